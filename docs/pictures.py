"""Draws the pictures of README and of the pages in docs/. Needs matplotlib.

Run: python docs/pictures.py [NAMES]                       all pictures, or those with these names
     python docs/pictures.py csra-labels --out DIR         into another folder than docs/pictures
     python docs/pictures.py readme --photo FILE --photo-runs DIR

Most pictures show a run on synthetic scenes. It is trained on a CPU (minutes) into a folder of
--runs, unless it is there already: then a picture is drawn in seconds.

`readme`, `heat-maps` and `cprfl-prompts` show runs on photographs, which this program does not
train: DIR holds finished runs of train.py called csra, q2l and cprfl (with --text-features), which
know the same classes. Without these flags, the three pictures are left out.
"""
import argparse
import json
import math
import sys
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from types import SimpleNamespace

import numpy as np
import torch
from PIL import Image

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))  # as if it were started there

import asl
import train
from csra import INF, spatial_attention
from data import load
from lib import distributed
from lib.checkpoint import read_checkpoint
from lib.errors import InputError, explain_errors
from lib.models import build_model, import_method, without_weights
from lib.optimizer import make_optimizer, make_schedule
from lib.settings import read_command_line
from tools import predict
from tools.heatmaps import head_name, overlay
from tools.plot import read_run
from tools.predict import open_checkpoint

try:
    import matplotlib
    from matplotlib.colors import to_rgb
    from matplotlib.figure import Figure
except ImportError:
    sys.exit("error: docs/pictures.py needs matplotlib: pip install matplotlib")

STYLE = {"font.size": 13, "axes.titlesize": 13, "figure.titlesize": 14, "axes.spines.top": False,
         "axes.spines.right": False, "axes.grid": True, "grid.alpha": 0.3, "lines.linewidth": 2.5,
         "figure.facecolor": "white"}  # not transparent: it is also read on dark pages
WIDTH = 8  # inches
DPI = 150  # 1200 pixels, which GitHub shrinks to about 800
JPEG_DPI = 120
# One color for one thing, in all pictures. They differ for readers who can't tell red from green.
GRAY, BLUE, GREEN, ORANGE, RED = "#555555", "#0072b2", "#009e73", "#cc8400", "#d55e00"
SCENE = "scene:1/569"  # an image of the test split of scenes, with five labels
SIDE = 384  # pixels of a scene in a picture; it is drawn with 128
# The maps of runs on scenes lie about 5 of 128 pixels too far left and up, for all methods: with
# --output-stride 16, the backbone test_resnet averages each cell of its last stage with its right
# and lower neighbors (timm's AvgPool2dSame). Here, the maps are drawn this much further.
SHIFT = 15  # of SIDE


# --------------------------------------------------------------------------- runs, images and maps


def run_on_scenes(runs, name, model, *flags):
    """The folder of a run of train.py on scenes. Trains it, or the rest of it, if needed."""
    folder = Path(runs, name)
    if not is_finished(folder):
        train.main(["--model", model, "--data", "scenes", *flags, "--out", str(folder),
                    "--resume"])
    return folder


def is_finished(folder):
    """Whether the log of a run ends with its result."""
    log = Path(folder, "log.jsonl")
    return log.is_file() and "weights" in json.loads(log.read_text().splitlines()[-1])


def reported_checkpoint(folder):
    """best.pt, which there is only with a val split, or last.pt."""
    best = Path(folder, "best.pt")
    return best if best.is_file() else Path(folder, "last.pt")


def look(folder, image):
    """A run's model looks at a Pillow image: class names, scores (K,), maps (..., K, h, w)."""
    model, classes, prepare = open_checkpoint(reported_checkpoint(folder))
    with torch.no_grad():
        logits, maps = model.attention(prepare(image)[None])
    return classes, logits[0].sigmoid(), maps[0]


def scene(path):
    """A test scene as a Pillow image, larger than it is, and the names of its labels."""
    test = load("scenes", split="test")
    index = list(test.paths).index(path)
    image = Image.fromarray(test.image(index).permute(1, 2, 0).numpy())
    labels = [name for name, y in zip(test.classes, test.targets[index]) if y == 1]
    return image.resize((SIDE, SIDE), Image.Resampling.LANCZOS), labels


def inner(image):
    """The part of a scene that the shifted maps cover."""
    return image.crop((SHIFT, SHIFT, SIDE, SIDE))


def overlay_scene(image, heat, score):
    """That part, under the colors of a shifted map (h, w)."""
    seen = image.crop((SHIFT, SHIFT, SIDE + SHIFT, SIDE + SHIFT))
    return overlay(seen, heat, score).crop((0, 0, SIDE - SHIFT, SIDE - SHIFT))


def mean_over_heads(maps):
    """(..., K, h, w) -> (K, h, w)"""
    return maps[None].flatten(0, -4).mean(0)


def highest_wrong(classes, scores, labels, count):
    """The labels with the highest scores among those that are not in the image."""
    order = scores.argsort(descending=True).tolist()
    wrong = [classes[k] for k in order if classes[k] not in labels]
    return wrong[:count]


# ------------------------------------------------------------------------------------ axes and text


def new_figure(height, rows=1, columns=1, **options):
    """A figure and its axes, an array (rows, columns)."""
    figure = Figure(figsize=(WIDTH, height), layout="constrained")
    figure.get_layout_engine().set(wspace=0.04)
    return figure, figure.subplots(rows, columns, squeeze=False, **options)


def show(axes, image, title="", color="black"):
    """An image without axes."""
    axes.imshow(image)
    axes.set_title(title, color=color)
    axes.set_axis_off()


def caption(name, score, labels):
    """The title of a map, with a mark for a label that is in the image or not."""
    mark = "✓" if name in labels else "✗"
    return f"{mark} {name} {score:.2f}"


def color_of(name, labels):
    return GREEN if name in labels else RED


def write_beside(axes, x, y, text, color):
    """A label at a point of a line, instead of a legend."""
    axes.annotate(text, (x, y), color=color, xytext=(6, 0), textcoords="offset points",
                  va="center")


# ----------------------------------------------------------------------------- pictures of the runs


def csra_temperatures(args):
    """One image, one label: the weights s of the cells (Eq. 2) as T grows, and the score m . a."""
    folder = run_on_scenes(args.runs, "csra", "csra")
    model, classes, prepare = open_checkpoint(reported_checkpoint(folder))
    image, _ = scene(SCENE)
    label = "red star"
    with torch.no_grad():
        x = model.features(prepare(image)[None])
        y_raw = model.head.scores(x)[0, 0, classes.index(label)]  # one head: (HW,)

    figure, axes = new_figure(6, rows=2, columns=3)
    show(axes[0, 0], inner(image), "image")
    remarks = {0: " (the mean)", INF: " (the maximum)"}
    for panel, T in zip(axes.flat[1:], (0, 1, 2, 4, INF)):
        s = spatial_attention(y_raw, T)
        m_a = (s * y_raw).sum()
        number = "∞" if T == INF else T
        show(panel, inner(image), f"T = {number}{remarks.get(T, '')}: {m_a:.1f}")
        draw_cells(panel, s.unflatten(0, x.shape[-2:]))
        print(f"T = {number}: highest weights {[f'{w:.2f}' for w in s.topk(4)[0]]}, {m_a:.2f}")
    figure.suptitle(f"“{label}”: weights of the cells in %, and their weighted mean score")
    return figure


def draw_cells(axes, s):
    """The weights s (h, w) of the cells over a scene: the more, the more orange."""
    h, w = s.shape
    colors = torch.zeros(h, w, 4)
    colors[..., :3] = torch.tensor(to_rgb(RED))
    colors[..., 3] = 0.85 * s.sqrt()  # sqrt: so that 1/64 is seen, too
    axes.imshow(colors.numpy(), extent=(0, SIDE, SIDE, 0))
    axes.set(xlim=(0, SIDE - SHIFT), ylim=(SIDE - SHIFT, 0))
    for row, column in np.ndindex(h, w):
        percent = 100 * s[row, column].item()
        if percent >= 1:
            number = f"{percent:.0f}" if percent >= 10 else f"{percent:.1f}"
            x = min((column + 0.5) * SIDE / w, SIDE - SHIFT - 18)  # whole, at the border, too
            y = min((row + 0.5) * SIDE / h, SIDE - SHIFT - 10)
            axes.text(x, y, number, color="white", fontsize=9, ha="center", va="center")


def maps_of_labels(folder, title):
    """One image, and a map for each of its labels; then two labels that are not in it."""
    image, labels = scene(SCENE)
    classes, scores, maps = look(folder, image)
    maps = mean_over_heads(maps)
    names = [*labels, *highest_wrong(classes, scores, labels, count=2)]

    figure, axes = new_figure(4.7, rows=2, columns=4)
    show(axes[0, 0], inner(image), "image")
    for panel, name in zip(axes.flat[1:], names):
        k = classes.index(name)
        show(panel, overlay_scene(image, maps[k], scores[k]), caption(name, scores[k], labels),
             color_of(name, labels))
    figure.suptitle(f"{title}, and its probability.   ✓ in the image   ✗ not", fontsize=13)
    return figure


def csra_labels(args):
    folder = run_on_scenes(args.runs, "csra", "csra")
    return maps_of_labels(folder, "CSRA: where each label looks")


def q2l_labels(args):
    folder = run_on_scenes(args.runs, "q2l", "q2l")
    return maps_of_labels(folder, "Q2L: where each query looks")


def cprfl_labels(args):
    folder = run_on_scenes(args.runs, "cprfl", "cprfl")
    return maps_of_labels(folder, "CPRFL: where each prompt looks")


def q2l_heads(args):
    """Three labels (rows): the attention of each decoder layer and head (Eq. 2)."""
    folder = run_on_scenes(args.runs, "q2l", "q2l")
    image, labels = scene(SCENE)
    classes, _, maps = look(folder, image)  # maps (layers, heads, K, h, w)
    layers, heads = maps.shape[:2]
    names = labels[:3]

    figure, axes = new_figure(3.3, rows=len(names), columns=1 + layers * heads)
    for row, name in zip(axes, names):
        k = classes.index(name)
        show(row[0], inner(image))
        row[0].text(-20, SIDE / 2, name.replace(" ", "\n"), ha="right", va="center", fontsize=12)
        for panel, index in zip(row[1:], np.ndindex(layers, heads)):
            show(panel, overlay_scene(image, maps[index][k], 1))
    for panel, index in zip(axes[0, 1:], np.ndindex(layers, heads)):
        panel.set_title(head_name(index).replace(", ", "\n"), fontsize=12)
    return figure


def curve(args):
    run = read_run(run_on_scenes(args.runs, "csra", "csra"))
    figure, _ = training_curves({BLUE: run})
    return figure


def csra_training(args):
    """The same run beside one without attention: lambda = 0."""
    csra = read_run(run_on_scenes(args.runs, "csra", "csra"))
    usual = read_run(run_on_scenes(args.runs, "csra-lam0", "csra", "--lam", "0"))
    figure, right = training_curves({BLUE: csra, GRAY: usual})
    right.text(3.3, 79, "CSRA: λ = 1", color=BLUE)
    right.text(3.3, 33, "plain mean: λ = 0", color=GRAY)
    return figure


def training_curves(runs):
    """Loss and mAP by epoch, in two panels. runs: color -> run. Returns the right panel, too."""
    figure, axes = new_figure(3.2, columns=2)
    left, right = axes[0]
    for color, run in runs.items():
        left.plot(run.epoch, run.loss, "o-", color=color)
        right.plot(run.epoch, run.mAP, "o-", color=color)
        write_beside(right, run.epoch[-1], run.mAP[-1], f"{run.mAP[-1]:.1f}", color)
    left.set(xlabel="epoch", ylabel="training loss", ylim=(0, None))
    right.set(xlabel="epoch", ylabel="test mAP (%)", ylim=(0, 103))
    return figure, right


# --------------------------------------------------------------------------------- pictures of ASL


CE = "cross-entropy"
FOCAL = r"focal: $\gamma$ = 2"
PS = "CE + PS: only m = 0.05"  # probability shifting
AF = r"AF: only $\gamma_-$ = 4"  # asymmetric focusing
ASL = r"ASL: $\gamma_-$ = 4, m = 0.05"
LOSS_COLORS = {CE: GRAY, FOCAL: BLUE, PS: GREEN, AF: ORANGE, ASL: RED}
LOSS_SETTINGS = {  # gamma-, m
    CE: (0, 0), FOCAL: (2, 0), PS: (0, 0.05), AF: (4, 0), ASL: (4, 0.05)}


def negative_losses(p, detach):
    """name -> the loss of a negative label at each probability p (N,), and its slope dL/dz (N,)."""
    result = {}
    for name, (gamma_neg, margin) in LOSS_SETTINGS.items():
        z = torch.logit(p).requires_grad_()
        loss = asl.asymmetric_loss(z[:, None], torch.zeros(len(z), 1), gamma_neg=gamma_neg,
                                   margin=margin, detach=detach, reduction="none")
        loss.sum().backward()
        result[name] = (loss.detach().flatten(), z.grad)
    return result


def asl_loss(args):
    """The loss of a negative label against its probability."""
    p = torch.linspace(0.001, 0.999, 999, dtype=torch.float64)
    figure, axes = new_figure(4.2)
    panel = axes[0, 0]
    for name, (loss, _) in negative_losses(p, detach=True).items():
        panel.plot(p, loss, color=LOSS_COLORS[name], label=name)
    panel.legend(labelcolor="linecolor", frameon=False)
    panel.set(xlabel="p, the probability of a label that is not in the image", ylabel="loss",
              xlim=(0, 1), ylim=(0, 4))
    return figure


def asl_gradient(args):
    """Its slope dL/dz, with the weight as a constant, and through the weight."""
    p = torch.linspace(0.001, 0.999, 999, dtype=torch.float64)
    figure, axes = new_figure(4.4, columns=2, sharey=True)
    for panel, detach in zip(axes[0], (True, False)):
        for name, (_, slope) in negative_losses(p, detach).items():
            panel.plot(p, slope, color=LOSS_COLORS[name], label=name)
        panel.set(xlabel="p of a label that is not in the image", xlim=(0, 1), ylim=(0, 1.5))
    axes[0, 0].legend(labelcolor="linecolor", frameon=False, loc="upper left")
    axes[0, 0].set(title="weight as a constant: detach=True,\nthe default here, as released",
                   ylabel="slope of the loss, dL/dz")
    axes[0, 1].set_title("through the weight, too:\ndetach=False, the paper's Eq. 8")
    return figure


def asl_share(args):
    """Training with cross-entropy and with ASL: the negatives' share of the gradient, and the mean
    probability of positives and negatives."""
    figure, axes = new_figure(4, columns=2)
    left, right = axes[0]
    for name, folder in ((CE, "share-ce"), (ASL, "share-asl")):
        gamma_neg, margin = LOSS_SETTINGS[name]
        loss = partial(asl.asymmetric_loss, gamma_neg=gamma_neg, margin=margin)
        epochs, record = record_of_training(Path(args.runs, folder), loss)
        print(f"{name}: in the first step {record[0].tolist()}")
        print(f"means of the epochs: {record.unflatten(0, (epochs, -1)).mean(1).tolist()}")
        means = record.unflatten(0, (-1, 8)).mean(1)  # of 8 steps
        epoch = torch.arange(0.5, len(means)) * epochs / len(means)
        share, p_pos, p_neg = means.T
        color = LOSS_COLORS[name]
        left.plot(epoch, 100 * share, color=color)
        right.plot(epoch, p_pos, color=color)
        right.plot(epoch, p_neg, color=color, linestyle="--")
    left.set(xlabel="epoch", ylabel="negatives' share of the gradient (%)", ylim=(0, 100))
    left.text(1, 82, "cross-entropy", color=GRAY)
    left.text(1, 34, "ASL", color=RED)
    right.set(xlabel="epoch", ylabel="mean probability p", ylim=(0, 1))
    right.text(1, 0.86, "ASL, positives", color=RED)
    right.text(1.7, 0.61, "ASL, negatives", color=RED)
    right.text(2.1, 0.165, "cross-entropy, positives", color=GRAY)
    right.text(2.1, 0.02, "cross-entropy, negatives", color=GRAY)
    return figure


def record_of_training(folder, loss):
    """Trains asl.py's model on scenes with this loss. Returns the number of epochs and a row for
    each step (steps, 3): the negatives' share of the sum of |dL/dz|, and the mean probability of
    positives and of negatives."""
    file = folder / "record.json"
    if not file.is_file() and folder.exists():
        raise InputError(f"{folder}: a run that was stopped: delete it, so that it starts again")
    if not file.is_file():
        record = []

        def recording(logits, targets):
            if logits.requires_grad:  # not when train.py tries the loss before the first step
                p = logits.detach().sigmoid()
                record.append([negatives_share(loss, logits, targets),
                               float(p[targets == 1].mean()), float(p[targets == 0].mean())])
            return loss(logits, targets)
        method, settings = read_command_line(["--model", "asl", "--data", "scenes",
                                              "--out", str(folder)])
        method = SimpleNamespace(**vars(method) | {"loss": recording})
        train.train(method, settings)
        file.write_text(json.dumps([settings.epochs, record]))
    epochs, record = json.loads(file.read_text())
    return epochs, torch.tensor(record)


def negatives_share(loss, logits, targets):
    """The part of the sum of |dL/dz| that negative labels make, from 0 to 1."""
    z = logits.detach().requires_grad_()
    loss(z, targets).backward()
    slope = z.grad.abs()
    return float(slope[targets == 0].sum() / slope.sum())


# ----------------------------------------------------------------------------------- other pictures


def schedules(args):
    """The learning rate by epoch. No recipe has cosine, so flags choose it."""
    voc = ["--model", "csra", "--data", "voc2007"]
    coco = ["--model", "q2l", "--data", "coco2014"]
    panels = (("step", "csra.py, VOC 2007", voc, 5011),  # training images
              ("onecycle", "q2l.py, COCO 2014", coco, 82783),
              ("cosine", "csra.py --schedule cosine", [*voc, "--schedule", "cosine"], 5011))
    figure, axes = new_figure(3.3, columns=3)
    for panel, (name, program, flags, images) in zip(axes[0], panels):
        _, settings = read_command_line(flags)
        steps = images / settings.batch_size  # per epoch
        steps = math.floor(steps) if settings.drop_last else math.ceil(steps)
        epochs = settings.schedule_epochs or settings.epochs
        optimizer = make_optimizer([{"params": [torch.nn.Parameter(torch.zeros(1))]}], settings)
        schedule = make_schedule(optimizer, settings, steps)
        rates = []
        for _ in range(epochs * steps):
            rates.append(1000 * optimizer.param_groups[0]["lr"])
            optimizer.step()
            schedule.step()
        panel.plot(torch.arange(len(rates)) / steps, rates, color=BLUE)
        panel.set(xlabel=f"epoch of {steps} steps", xlim=(0, epochs), ylim=(0, 1.1 * max(rates)),
                  xticks=range(0, epochs + 1, epochs // 4 // 10 * 10 or 10))
        panel.set_title(f"{name}\n{program}", fontsize=12)
        if settings.epochs < epochs:
            panel.axvline(settings.epochs, color=RED, linestyle="--")
            panel.text(settings.epochs + 2, 0.1 * max(rates),
                       f"training\nstops after\nepoch {settings.epochs}", color=RED, fontsize=12)
    axes[0, 0].set_ylabel("learning rate × 1000")
    axes[0, 0].text(9, 5, "× 0.1 every\n4 epochs", color=BLUE)
    return figure


def cprfl_prompts(args):
    """Cosine similarity of the class names' text features and of their prompts (Eq. 2)."""
    file = reported_checkpoint(folder_of_photos(args, "cprfl"))
    trained, classes, _ = open_checkpoint(file)
    initial = initial_model(file, trained.text_features)
    with torch.no_grad():
        panels = {"text features": trained.text_features,
                  "prompts, untrained": initial.category_prompts(),
                  "prompts, trained": trained.category_prompts()}

    figure, axes = new_figure(4.5, columns=3)
    for panel, (title, vectors) in zip(axes[0], panels.items()):
        unit = torch.nn.functional.normalize(vectors, dim=1)
        cosine = unit @ unit.T  # (K, K)
        pairs = cosine[~torch.eye(len(cosine), dtype=torch.bool)]
        picture = panel.imshow(cosine.numpy(), vmin=0, vmax=1, cmap="Oranges")
        panel.set_title(f"{title}\nmean of pairs: {pairs.mean():.2f}")
        print(f"{title}: cosines of pairs {pairs.min():.2f} to {pairs.max():.2f}")
        panel.set_xticks(range(len(classes)), classes, rotation=90, fontsize=9)
        panel.set_yticks([])
        panel.grid(False)
    axes[0, 0].set_yticks(range(len(classes)), classes, fontsize=9)
    figure.colorbar(picture, ax=axes, location="bottom", shrink=0.5, aspect=30,
                    label="cosine of two labels' vectors")
    return figure


def initial_model(file, text_features):
    """The CPRFL model with which the run of a checkpoint began: train.py seeds, then builds it."""
    checkpoint = read_checkpoint(file)
    settings = without_weights(checkpoint["settings"])  # the prompts are random in any case
    settings.text_features = text_features
    torch.manual_seed(settings.seed)
    return build_model(import_method("cprfl"), settings, checkpoint["classes"])


def folder_of_photos(args, name):
    """A run on photographs. Raises InputError."""
    folder = Path(args.photo_runs, name)
    if not is_finished(folder):
        raise InputError(f"{folder}: a finished run of train.py on photographs is needed there")
    return folder


def photograph(args):
    """The image --photo, or the part --crop of it. Raises InputError."""
    with explain_errors(args.photo, "--photo needs an image, --crop a part of it"):
        image = Image.open(args.photo).convert("RGB")
        if args.crop:
            image = image.crop([int(number) for number in args.crop.split(",")])
    return image


def readme(args):
    """A photograph, and maps of its labels (columns) by three methods (rows)."""
    image = photograph(args)
    labels = args.labels.split(",")
    names = labels + (args.wrong.split(",") if args.wrong else [])

    tile_height = image.height / image.width * WIDTH / (1.5 + len(names))
    figure = Figure(figsize=(WIDTH, 3 * tile_height + 1.2), layout="constrained")
    photo, maps_of = figure.subfigures(1, 2, width_ratios=[1.5, len(names)])
    show(photo.subplots(), image)
    axes = maps_of.subplots(3, len(names), squeeze=False)
    for row, method in enumerate(["CSRA", "Q2L", "CPRFL"]):
        classes, scores, maps = look(folder_of_photos(args, method.lower()), image)
        maps = mean_over_heads(maps)
        for panel, name in zip(axes[row], names):
            with explain_errors("--labels", f"the classes are {', '.join(classes)}"):
                k = classes.index(name)
            heading = f"{scores[k]:.2f}"
            if row == 0:
                mark = "✓" if name in labels else "✗"
                heading = f"{mark} {name}\n{heading}"
            show(panel, overlay(image, maps[k], scores[k]), heading, color_of(name, labels))
        axes[row, 0].text(-0.06, 0.5, method, rotation=90, va="center", ha="right",
                          transform=axes[row, 0].transAxes)
    return figure


def heat_maps(args):
    """What tools.predict draws of the photograph, with CSRA."""
    with TemporaryDirectory() as folder:
        photo = Path(folder, "photo.png")
        photograph(args).save(photo)
        table = Path(folder, "labels.csv")
        table.write_text(f"image,labels\nphoto.png,{args.labels.replace(',', ';')}\n", "utf-8")
        checkpoint = reported_checkpoint(folder_of_photos(args, "csra"))
        predict.main(["--checkpoint", str(checkpoint), str(photo), "--heatmaps", folder + "/maps",
                      "--labels", str(table)])
        file, = Path(folder, "maps").iterdir()
        sheet = Image.open(file).convert("RGB")  # reads it before the folder goes
    figure = Figure(figsize=(WIDTH, WIDTH * sheet.height / sheet.width))
    show(figure.add_axes((0, 0, 1, 1)), sheet)
    return figure


PICTURES = {
    "csra-temperatures": csra_temperatures, "csra-labels": csra_labels,
    "csra-training": csra_training, "q2l-heads": q2l_heads, "q2l-labels": q2l_labels,
    "cprfl-prompts": cprfl_prompts, "cprfl-labels": cprfl_labels, "asl-loss": asl_loss,
    "asl-gradient": asl_gradient, "asl-share": asl_share, "schedules": schedules,
    "curve": curve, "heat-maps": heat_maps, "readme": readme}
JPEG = ("csra-temperatures", "csra-labels", "q2l-heads", "q2l-labels", "cprfl-labels", "heat-maps",
        "readme")


def write(figure, name, folder):
    """Writes a figure. Raises InputError."""
    file = Path(folder, f"{name}.png")
    options = {"dpi": DPI}
    if name in JPEG:  # the noise of scenes and photographs is large as PNG
        file = file.with_suffix(".jpg")
        options = {"dpi": JPEG_DPI, "pil_kwargs": {"quality": 85}}
    with explain_errors(file, "choose another --out"):
        file.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(file, **options)
    print(f"written to {file}: {file.stat().st_size / 1000:.0f} kB")


def names_to_draw(args, parser):
    """The pictures that are asked for; by default, all for which the flags suffice."""
    needs = {"readme": ["photo", "labels", "photo_runs"], "cprfl-prompts": ["photo_runs"],
             "heat-maps": ["photo", "labels", "photo_runs"]}
    names = []
    for name in args.names or PICTURES:
        if name not in PICTURES:
            parser.error(f"no picture {name}: choose from {', '.join(PICTURES)}")
        lacks = [flag for flag in needs.get(name, []) if not getattr(args, flag)]
        lacks = ", ".join(f"--{flag.replace('_', '-')}" for flag in lacks)
        if lacks and args.names:
            parser.error(f"{name} needs {lacks}")
        if lacks:
            print(f"left out: {name}, which needs {lacks}")
        else:
            names.append(name)
    return names


def main(argv=None):
    parser = argparse.ArgumentParser(description="Draws the pictures of README and docs/.",
                                     allow_abbrev=False)
    flag = parser.add_argument
    flag("names", nargs="*", metavar="NAMES", help=f"of {', '.join(PICTURES)}; by default all")
    flag("--out", default=str(ROOT / "docs/pictures"), metavar="DIR", help="where to draw")
    flag("--runs", default=str(ROOT / "runs/pictures"), metavar="DIR",
         help="the folder of the runs on scenes: those that are missing are trained")
    flag("--photo-runs", metavar="DIR", help="readme, cprfl-prompts: the runs on photographs")
    flag("--photo", metavar="FILE", help="readme, heat-maps: the photograph")
    flag("--labels", metavar="A,B", help="the labels to show, all in the photograph")
    flag("--wrong", metavar="C", help="readme: labels to show that are not in the photograph")
    flag("--crop", metavar="X,Y,X,Y", help="left, top, right, bottom of a part, in pixels")
    args = parser.parse_args(argv)
    with matplotlib.rc_context(STYLE):
        for name in names_to_draw(args, parser):
            write(PICTURES[name](args), name, args.out)


if __name__ == "__main__":
    with distributed.program():
        main()
