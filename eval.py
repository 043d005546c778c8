"""Metrics of multi-label recognition; evaluation, prediction and pictures of a checkpoint.

AP has three definitions in use, up to two points apart; every table must say which it shows:
    all-points   mean, over the positives, of the precision at their score (CSRA, ASL, CPRFL)
    envelope     the same after precision is made monotone from the right; never lower (Q2L)
    11-point     mean of the envelope at recall 0, 0.1, ..., 1 (PASCAL VOC 2007)
The first is the default. Entries of -1 (not judged) take no part. A class without positives has no
AP: it is left out of every per-class mean, and listed.

Run: python eval.py --checkpoint OUT/last.pt [--data NAME --root DIR --split test]    the table
     python eval.py --checkpoint OUT/last.pt --predict PICTURE... [--heatmaps DIR]    labels
"""
import argparse
import copy
import importlib
import inspect
import json
import os
import pickle
import sys
import time
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
import torch.nn.functional as F
from PIL import Image, ImageDraw, ImageFont

from data import (
    SETS,
    Dataset,
    InputError,
    boxes,
    groups,
    load,
    loader,
    normalize,
    process,
    reading,
)

KINDS = ("all-points", "envelope", "11-point")


def ranked(scores, targets):
    """One class, (N,) each: what is judged, by descending score: scores, whether positive, and the
    last place of each run of equal scores."""
    judged = targets >= 0
    order = np.argsort(-scores[judged])
    s, y = scores[judged][order], targets[judged][order] == 1
    return s, y, np.append(s[1:] != s[:-1], True).nonzero()[0]


def average_precision(scores, targets, kind="all-points"):
    """AP per class in [0, 1], nan without positives. scores, targets (N, K); targets 1, 0, -1.

    Pictures of equal score enter together, so their order doesn't matter: precision and recall are
    taken where the score changes.
    """
    if kind not in KINDS:
        raise ValueError(f"kind {kind!r}: choose from {', '.join(KINDS)}")
    scores, targets = np.asarray(scores), np.asarray(targets)
    if scores.shape != targets.shape or np.isnan(scores).any():
        raise ValueError(f"scores {scores.shape}, targets {targets.shape}: must match, without nan")
    ap = np.full(scores.shape[1], np.nan)
    for k in range(scores.shape[1]):  # by class: its arrays stay in the cache
        _, y, last = ranked(scores[:, k], targets[:, k])
        if not y.any():
            continue
        tp = y.cumsum()[last]
        precision, new = tp / (last + 1), np.diff(tp, prepend=0)  # new: positives of this score
        if kind != "all-points":
            precision = np.maximum.accumulate(precision[::-1])[::-1]
        if kind == "11-point":  # recall tp / n >= t / 10, in integers
            ap[k] = precision[np.searchsorted(10 * tp, tp[-1] * np.arange(11))].mean()
        else:
            ap[k] = (precision * new).sum() / tp[-1]
    return ap


def metrics(scores, targets, threshold=0.5, kind="all-points", counts=None):
    """In percent: mAP; CP, CR, CF1 (per class, averaged; CF1 from CP and CR); OP, OR, OF1 (over all
    decisions score > threshold); with suffix _3, for the top 3 of a picture that are above it too.
    `counts`, training pictures per class, adds the mAP of head, medium and tail classes. Besides:
    AP, the list per class (None without positives), and positives, their numbers.

    scores: probabilities (N, K); targets (N, K): 1, 0, -1; threshold: one, or one per class (K,).
    Precision without predictions counts 0.
    """
    scores, targets = np.asarray(scores), np.asarray(targets)
    ap = 100 * average_precision(scores, targets, kind)
    positives, judged = (targets == 1).sum(0), targets >= 0
    result = {"mAP": np.nanmean(ap).item() if positives.any() else None}
    if counts is not None and np.min(counts) < 100:
        result |= {name: float(np.nanmean(ap[part])) for name, part in groups(counts).items()
                   if positives[part].any()}
    above = scores > threshold
    third = np.argsort(-scores, axis=1, kind="stable")[:, :3]
    top = np.zeros_like(above)
    np.put_along_axis(top, third, True, 1)
    for suffix, yes in (("", above), ("_3", above & top)):
        tp, predicted = (yes & (targets == 1)).sum(0), (yes & judged).sum(0)
        have = positives > 0
        cp = 100 * (tp / np.maximum(predicted, 1))[have].mean() if have.any() else 0.0
        cr = 100 * (tp[have] / positives[have]).mean() if have.any() else 0.0
        op = 100 * tp.sum() / max(predicted.sum(), 1)
        o_r = 100 * tp.sum() / max(positives.sum(), 1)
        for name, p, r in (("C", cp, cr), ("O", op, o_r)):
            result |= {f"{name}P{suffix}": float(p), f"{name}R{suffix}": float(r),
                       f"{name}F1{suffix}": float(2 * p * r / max(p + r, 1e-12))}
    return result | {"AP": [None if np.isnan(a) else float(a) for a in ap],
                     "positives": positives.tolist()}


def best_threshold(scores, targets):
    """Of scores (N,), targets (N,): the threshold of the best F1, midway between two scores."""
    s, y, last = ranked(scores, targets)
    if not y.any():
        return 0.5
    best = np.argmax(2 * y.cumsum()[last] / (last + 1 + y.sum()))  # F1 = 2 TP / (predicted + true)
    lower = s[last[best] + 1] if best + 1 < len(last) else -float(s[last[best]] == 0)
    middle = (s[last[best]] + lower) / 2
    return float(middle if middle < s[last[best]] else lower)


def hardware(amp, workers):
    """Under torchrun join the other processes, each with its GPU. The device; autocast's dtype or
    None (auto: bf16 where the hardware has it, fp16 on older GPUs); loading processes (-1: by the
    cores of this process)."""
    cuda, there = torch.cuda.is_available(), torch.accelerator.is_available()  # cuda, mps, ...
    if "WORLD_SIZE" in os.environ and not dist.is_initialized():
        if cuda:
            torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
        dist.init_process_group("cpu:gloo,cuda:nccl" if cuda else "gloo")
    device = torch.accelerator.current_accelerator() if there else torch.device("cpu")
    dtype = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(amp)
    if amp == "auto" and cuda:
        native = torch.cuda.is_bf16_supported(including_emulation=False)
        dtype = torch.bfloat16 if native else torch.float16
    elif amp == "auto" and not there and (torch.cpu._is_avx512_bf16_supported()
                                          or torch.cpu._is_amx_tile_supported()):
        dtype = torch.bfloat16
    cores = os.cpu_count() // int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    return device, dtype, min(8, cores if cuda else cores // 2) if workers < 0 else workers


def build_model(method, settings, classes):
    """`method.build` with the settings that its signature names."""
    hyper = [p.name for p in inspect.signature(method.build).parameters.values()
             if p.kind is p.KEYWORD_ONLY]
    try:
        return method.build(classes, **{name: settings[name] for name in hyper})
    except (OSError, RuntimeError, ValueError, AssertionError) as error:
        remedy = ("\nPretrained weights need a network once, then they are cached; "
                  "--no-pretrained starts from random ones.") if settings["pretrained"] else ""
        raise InputError(f"{settings['model']}, backbone {settings['backbone']}: "
                         f"{str(error)[:800] or repr(error)}{remedy}") from error


def with_progress(batches):
    """The batches; every ten seconds a line about what is left."""
    begin = told = time.time()
    for step, batch in enumerate(batches, 1):
        yield batch
        now = time.time()
        if now - told > 10 and process()[0] == 0:
            told, rate = now, step / (now - begin)
            print(f"{step} of {len(batches)} batches, {rate * len(batch.images):.0f} pictures/s, "
                  f"{(len(batches) - step) / rate:.0f} s left", file=sys.stderr)


@torch.inference_mode()
def predict(model, batches, device, dtype, mean, std, flip=False, skip_bad=0):
    """Probabilities float64 (N, K) and the indices (N,) of their samples, in ascending order, from
    all processes. `flip`: mean with the mirrored picture. More than `skip_bad` unreadable pictures
    are an error."""
    model.eval()
    logits, index, bad = [], [], []
    for batch in with_progress(batches):
        bad += batch.bad
        if len(bad) > skip_bad:
            raise InputError(bad[0])
        for message in batch.bad:
            print(f"left out: {message}", file=sys.stderr)
        images = normalize(batch.images, device, mean, std)
        with torch.autocast(device.type, dtype, enabled=dtype is not None):
            views = [images, images.flip(3)] if flip else [images]
            if len(images):  # the logits stay on the device: no wait before the end
                logits.append(torch.stack([model(view) for view in views]).movedim(0, -1))
                index.append(batch.index)
    if not index:
        raise InputError("none of the pictures can be read" if bad else "no pictures")
    # In float32, logits above 17 would tie.
    scores = torch.cat(logits).cpu().double().sigmoid().mean(-1).numpy()
    index = torch.cat(index).numpy()
    if (world := process()[1]) > 1:
        parts = [None] * world
        dist.all_gather_object(parts, (scores, index))
        scores, index = (np.concatenate(part) for part in zip(*parts))
    order = np.argsort(index)
    return scores[order], index[order]


def read_file(path):
    """A saved file of tensors, with numpy's numbers as released ones have; executes nothing."""
    number = np._core.multiarray.scalar  # numpy 1 wrote it under another name
    allowed = [number, (number, "numpy.core.multiarray.scalar"), np.dtype,
               *(type(np.dtype(kind)) for kind in ("float64", "float32", "int64"))]
    try:
        with torch.serialization.safe_globals(allowed):
            return torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, RuntimeError, EOFError, KeyError, pickle.UnpicklingError) as error:
        raise InputError(f"{path}: no readable checkpoint ({str(error)[:200]}); "
                         "train.py writes OUT/last.pt after each epoch") from error


def read_checkpoint(path):
    """A checkpoint of train.py."""
    checkpoint = read_file(path)
    if not isinstance(checkpoint, dict) or "settings" not in checkpoint:
        raise InputError(f"{path}: not of train.py; eval.py --official takes released ones")
    return checkpoint


def read_official(path, flags, root, split):
    """A released checkpoint as if train.py had written it; `flags`: its --model, --data, ..."""
    import train  # which imports this module
    method, settings = train.settings_of(flags)
    with reading(path, f"--official takes what {settings['model']}'s authors released"):
        state = method.from_official(read_file(path))
    return {"settings": settings, "ema": None, "model": state, "counts": None,
            "classes": load(settings["data"], root, split, check=False).classes}


def open_model(checkpoint, path, with_offset):
    """The model with the checkpoint's weights (EMA, where it has them), and its `view_offset`."""
    settings = checkpoint["settings"] | {"pretrained": False}
    state = checkpoint["ema"] or checkpoint["model"]
    if "text_features" in state:  # CPRFL's: kept with the weights, so that none need be fetched
        settings["text_features"] = state["text_features"]
    method = importlib.import_module(settings["model"])
    model = build_model(method, settings, checkpoint["classes"])
    offset = view_offset(model, settings["image_size"]) if with_offset else None  # yet untrained
    try:
        model.load_state_dict(state)
    except RuntimeError as error:
        raise InputError(f"{path} doesn't fit the model: {str(error)[:600]}\n"
                         "Do --backbone, --image-size and so on?") from error
    return model, offset


def at_size(model, size):
    """A copy for pictures of this size: ViT and Swin resample their position embeddings, each time
    from the trained ones; a ResNet takes any size."""
    model = copy.deepcopy(model)
    if hasattr(model.backbone, "set_input_size"):
        model.backbone.set_input_size((size, size))
    return model


def add_residual(model, lam):
    """CSRA's test-time trick (the paper's Figure 1) for a pooled linear classifier, trained
    already: z = mean_j s + lam max_j s."""
    if getattr(model.head, "lam", None) == 0:  # csra.py trained without its attention
        model.head.lam, model.head.temperatures = lam, (np.inf,) * len(model.head.temperatures)
    elif isinstance(model.head, torch.nn.Linear):
        def forward(images):
            logits, maps = model.attention(images)  # (B, K), (B, K, H, W)
            return logits + lam * maps.amax((2, 3))
        model.forward = forward
    else:
        raise InputError("--residual needs a pooled linear classifier: asl.py's, or csra --lam 0")


def view_offset(model, size):
    """How far the centre of what a cell of the map sees lies from the cell's own centre, (x, y) in
    fractions of the picture: strides and paddings of a ResNet shift it by up to half a cell. Taken
    from the gradient of the untrained model; a trained one's varies with the picture."""
    images = torch.rand(8, 3, size, size, generator=torch.Generator().manual_seed(0))
    x = model.eval().features(images.requires_grad_())
    H, W = x.shape[-2:]
    centre = x[..., (H - 1) // 2:H // 2 + 1, (W - 1) // 2:W // 2 + 1].abs().sum()
    seen = torch.autograd.grad(centre, images)[0].abs().sum((0, 1))  # (size, size)
    place = (torch.arange(size) + 0.5) / size - 0.5
    return [((seen.sum(axis) * place).sum() / seen.sum()).item() for axis in (0, 1)]


def enlarge(maps, height, width, offset):
    """Maps (N, h, w) -> (N, height, width) in the picture's own coordinates."""
    theta = torch.tensor([[1.0, 0, -2 * offset[0]], [0, 1, -2 * offset[1]]]).expand(len(maps), 2, 3)
    grid = F.affine_grid(theta, (len(maps), 1, height, width), align_corners=False)
    return F.grid_sample(maps[:, None].cpu().float(), grid, "bicubic", "border", False)[:, 0]


def attention_batches(model, data, settings, size, device):
    """(index, maps (..., K, H, W)) of every picture that can be read."""
    for batch in with_progress(loader(data, size, settings["batch_size"],
                                      workers=settings["workers"])):
        with torch.inference_mode():
            images = normalize(batch.images, device, settings["mean"], settings["std"])
            _, maps = model.attention(images)
        yield from zip(batch.index.tolist(), maps)


def pointing(attention, found, offset, targets):
    """Pointing game: in percent, how often a present class's map, averaged over layers and heads,
    has its maximum in a box of that class; `small`: where all its boxes are small."""
    hits = {"pointing": [], "pointing_small": []}
    for i, maps in attention:
        present = np.flatnonzero(targets[i] == 1)
        if not len(present):
            continue
        maps = maps.flatten(0, -4).mean(0)[present] if maps.ndim > 3 else maps[present]
        side = 8 * maps.shape[-1]
        for k, best in zip(present, enlarge(maps, side, side, offset).flatten(1).argmax(1)):
            y, x = (best // side + 0.5) / side, (best % side + 0.5) / side
            own = [box for box in found[i] if box[0] == k]
            hit = any(x0 <= x <= x1 and y0 <= y <= y1 for _, x0, y0, x1, y1, _ in own)
            for name in hits if all(box[-1] for box in own) else ["pointing"]:
                hits[name].append(hit)
    return {name: 100 * float(np.mean(hit)) for name, hit in hits.items() if hit} | {
        f"{name}_pairs": len(hit) for name, hit in hits.items()}


VIRIDIS = np.array([(68, 1, 84), (71, 44, 122), (59, 81, 139), (44, 113, 142), (33, 144, 141),
                    (39, 173, 129), (92, 200, 99), (170, 220, 50), (253, 231, 37)])


def overlay(image, one, offset):
    """The picture in grey under the map (h, w) in viridis, from its minimum to its maximum."""
    one = enlarge(one[None], image.height, image.width, offset)[0].numpy()
    one = (one - one.min()) / max(np.ptp(one), 1e-12)
    colours = [np.interp(one, np.linspace(0, 1, len(VIRIDIS)), VIRIDIS[:, c]) for c in range(3)]
    colours = Image.fromarray(np.stack(colours, -1).astype(np.uint8))
    return Image.blend(image.convert("L").convert("RGB"), colours, 0.6)


def draw_heatmaps(folder, attention, data, scores, offset, threshold, each_head, width=224):
    """A contact sheet per picture, NUMBER-NAME.png: the picture, then an overlay for each class
    above the threshold; `each_head`: a row per class, its layers and heads."""
    font, thresholds = ImageFont.load_default(14), np.broadcast_to(threshold, len(data.classes))
    for i, maps in attention:
        image = Image.fromarray(data.picture(i).permute(1, 2, 0).numpy())
        image = image.resize((width, max(round(width * image.height / image.width), 1)))
        maps = maps if maps.ndim > 3 else maps[None]  # (..., heads, K, H, W)
        rows = [[(image, "")]]
        for k in np.argsort(-scores[i]):
            name, own = f"{data.classes[k]} {scores[i, k]:.2f}", maps[..., k, :, :]
            if scores[i, k] > thresholds[k] and each_head:
                rows.append([(image, name)] + [
                    (overlay(image, own[at], offset), ".".join(str(n + 1) for n in at))
                    for at in np.ndindex(*own.shape[:-2])])
            elif scores[i, k] > thresholds[k]:
                rows[0].append((overlay(image, own.flatten(0, -3).mean(0), offset), name))
        rows = rows[1:] if len(rows) > 1 else [rows[0][n:n + 6] for n in range(0, len(rows[0]), 6)]
        x, y = width + 4, image.height + 22
        sheet = Image.new("RGB", (x * len(rows[0]), y * len(rows)), "white")
        for r, row in enumerate(rows):
            for c, (tile, name) in enumerate(row):
                sheet.paste(tile, (x * c, y * r))
                at = x * c + 2, y * r + image.height + 2
                ImageDraw.Draw(sheet).text(at, name, "black", font)
        sheet.save(folder / f"{i:05}-{Path(data.paths[i].split('::')[0]).stem}.png")


def pictures_in(paths):
    """The files among `paths`, and the pictures in the folders among them, by their extension."""
    known = Image.registered_extensions()
    for path in map(Path, paths):
        inside = path.rglob("*") if path.is_dir() else [path]
        yield from sorted(file for file in inside if file == path or file.suffix.lower() in known)


def read_threshold(text, classes):
    """A number, or a file that --tune-threshold wrote."""
    try:
        return float(text)
    except ValueError:
        with reading(text, "--threshold takes a number or a file of --tune-threshold"):
            value = json.loads(Path(text).read_text())["threshold"]
            return np.array([value[name] for name in classes]) if isinstance(value, dict) else value


def count(text):
    if int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text}: must be at least 1")
    return int(text)


def arguments(argv):
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0], allow_abbrev=False)
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--checkpoint", help="OUT/last.pt of train.py")
    source.add_argument("--official", help="a released checkpoint; with --model, and train.py's "
                                           "flags where it differs from the recipe")
    source.add_argument("--from-scores", metavar="NPZ", help="a file of --scores, or your own: "
                        "scores (N, K) in [0, 1], targets (N, K), classes (K,)")
    flag = parser.add_argument
    flag("--model", help="the method that --official is of")
    flag("--data", choices=SETS, help="default: the one trained on")
    flag("--root", help="default: the one trained on")
    flag("--split", default="test", choices=("train", "test"))
    flag("--workers", type=int, default=-1, help="loading processes; -1: by the device")
    flag("--limit", type=count, help="first N pictures")
    flag("--skip-bad", type=int, default=0, help="leave out up to N unreadable ones")
    flag("--ap", default=KINDS[0], choices=KINDS, help="definition of AP")
    flag("--threshold", default="0.5", help="number, or a file of --tune-threshold")
    flag("--tune-threshold", metavar="SPLIT", choices=("train", "test"),
         help="of the best F1 on SPLIT; kept beside the checkpoint")
    flag("--per-class", action="store_true", help="tune one threshold per class")
    flag("--image-size", type=count, help="default: the one trained on")
    flag("--sizes", type=lambda text: [*map(count, text.split(","))],
         help="image sizes to average over, 448,576")
    flag("--flip", action="store_true", help="average with the mirrored picture")
    flag("--residual", type=float, metavar="LAM", help="CSRA's trick on a pooled linear classifier")
    flag("--predict", nargs="+", metavar="PATH", help="label files, folders")
    flag("--json", action="store_true", help="--predict: a JSON object per line")
    flag("--heatmaps", metavar="DIR", help="a contact sheet for each picture")
    flag("--each-head", action="store_true", help="--heatmaps: layers, heads apart")
    flag("--pointing", action="store_true", help="do the maps' maxima hit boxes?")
    flag("--out", metavar="JSON", help="write the table")
    flag("--scores", metavar="NPZ", help="write scores, targets, classes, paths")
    flag("--voc-server", metavar="DIR", help="write comp2_cls files of VOC 2012's test pictures")
    args, flags = parser.parse_known_args(argv)
    if not args.official and (args.model or flags):
        parser.error(f"only with --official: {args.model or ''} {' '.join(flags)}")
    if args.official:  # its --image-size is what the model is made for; --sizes what it is shown
        given = {"--model": args.model, "--data": args.data, "--image-size": args.image_size}
        flags += [text for flag, value in given.items() if value for text in (flag, str(value))]
    elif args.image_size:
        args.sizes = args.sizes or [args.image_size]
    if args.tune_threshold == args.split:
        parser.error(f"--tune-threshold {args.split}: that is the split reported; tune on another")
    if args.heatmaps and args.pointing:
        parser.error("--heatmaps and --pointing: one at a time")
    if args.from_scores and (args.tune_threshold or args.predict or args.pointing or args.heatmaps):
        parser.error("--from-scores has no model: only --ap, --threshold, --out, --voc-server")
    return args, flags


def table(title, result, classes, kind, threshold, split):
    """What is printed."""
    given = f"{threshold:.4g}" if np.ndim(threshold) == 0 else "one per class"
    empty = [name for name, count in zip(classes, result["positives"]) if not count]
    lines = [f"{title}, {kind} AP, threshold {given}{f' tuned on {split}' if split else ''}"]
    for name, ap, count in zip(classes, result["AP"], result["positives"]):
        ap = "         n/a" if ap is None else f"{ap:12.2f}"
        lines.append(f"  {name:24}{ap} AP {count:8} positives")
    lines.append(f"without positives, left out of the means: {', '.join(empty) or 'none'}")
    lines += [" ".join(f"{name} {result[name]:.2f}" for name in row if result.get(name) is not None)
              for row in (("mAP", "head", "medium", "tail"),
                          ("CP", "CR", "CF1", "OP", "OR", "OF1"),
                          ("CP_3", "CR_3", "CF1_3", "OP_3", "OR_3", "OF1_3"))]
    return "\n".join(lines)


def main(argv=None):
    args, flags = arguments(argv)
    rank, tuned, extra = int(os.environ.get("RANK", "0")), "", {}
    for path in filter(None, (args.out, args.scores, args.heatmaps, args.voc_server)):
        with reading(path, "choose another place to write to"):  # now, before hours of work
            folder = Path(path).parent if path in (args.out, args.scores) else Path(path)
            folder.mkdir(parents=True, exist_ok=True)
            if not os.access(folder, os.W_OK):
                raise PermissionError("not writable")
    if args.from_scores:
        with reading(args.from_scores, "needs scores (N, K) in [0, 1], targets (N, K), classes"), \
                np.load(args.from_scores) as file:
            scores, targets, classes = file["scores"], file["targets"], file["classes"].tolist()
            counts, title = file.get("counts"), f"{args.from_scores}: {len(scores)} pictures"
            if scores.shape != targets.shape or scores.shape[1:] != (len(classes),) \
                    or not ((scores >= 0) & (scores <= 1)).all():
                raise ValueError(f"scores {scores.shape}, targets {targets.shape}, {len(classes)} "
                                 f"classes, or a score outside [0, 1]")
            paths = file.get("paths", np.arange(len(scores)).astype(str))
        threshold = read_threshold(args.threshold, classes)
    else:
        file = args.checkpoint or args.official
        checkpoint = read_official(file, flags, args.root, args.split) if args.official \
            else read_checkpoint(file)
        weights = "released" if args.official else "ema" if checkpoint["ema"] else "raw"
        settings, classes, counts = (checkpoint[key] for key in ("settings", "classes", "counts"))
        device, dtype, settings["workers"] = hardware(settings["amp"], args.workers)
        if process()[1] > 1 and (args.predict or args.heatmaps or args.pointing):
            raise InputError("--predict, --heatmaps and --pointing run in one process")
        torch.manual_seed(0)  # for view_offset
        model, offset = open_model(checkpoint, file, args.heatmaps or args.pointing)
        name, root = args.data or settings["data"], args.root or settings["root"]
        sizes = args.sizes or [settings["image_size"]]
        models = [at_size(model, size).to(device, memory_format=torch.channels_last)
                  for size in sizes]
        if args.residual is not None:
            for model in models:
                add_residual(model, args.residual)

        def scores_of(data, skip_bad):
            total = 0
            for size, model in zip(sizes, models):
                batches = loader(data, size, settings["batch_size"], workers=settings["workers"],
                                 pin=device.type == "cuda")
                scores, index = predict(model, batches, device, dtype, settings["mean"],
                                        settings["std"], args.flip, skip_bad)
                total = total + scores / len(sizes)
            return total, index

        def split_of(split):
            data = load(name, root, split, drop_unlabelled=settings["drop_unlabelled"],
                        long_tail=settings["long_tail"])
            if data.classes != classes:
                raise InputError(f"{name} has other classes than {file}, or another "
                                 f"order: {data.classes[:5]}... and {classes[:5]}...")
            return data.subset(slice(args.limit))

        threshold = read_threshold(args.threshold, classes)
        if args.tune_threshold:
            data, tuned = split_of(args.tune_threshold), args.tune_threshold
            scores, index = scores_of(data, args.skip_bad)
            targets = data.targets[index]
            threshold = np.array([best_threshold(*pair) for pair in zip(scores.T, targets.T)]) \
                if args.per_class else best_threshold(scores.ravel(), targets.ravel())
            value = dict(zip(classes, threshold.tolist())) if args.per_class else threshold
            kept = Path(file).with_suffix(".thresholds.json")
            if rank == 0:
                kept.write_text(json.dumps({"data": name, "split": tuned, "threshold": value}))
                print(f"threshold tuned on {tuned}, in {kept}")
        if args.predict:
            paths = [str(path) for path in pictures_in(args.predict)]
            data = Dataset(classes, paths, np.zeros((len(paths), len(classes)), np.int8))
        else:
            data = split_of("server" if args.voc_server else args.split)
        scores, index = scores_of(data, len(data) if args.predict else args.skip_bad)
        attention = attention_batches(models[0], data.subset(index), settings, sizes[0], device)
        if args.heatmaps:
            draw_heatmaps(Path(args.heatmaps), attention, data.subset(index), scores, offset,
                          threshold, args.each_head)
        if args.predict:
            for i, row, above in zip(index, scores, scores > threshold):
                labels = {classes[k]: round(row[k].item(), 4) for k in np.argsort(-row) if above[k]}
                print(json.dumps({"path": paths[i], "labels": labels}) if args.json else
                      f"{paths[i]}: " + ", ".join(f"{n} {v:.2f}" for n, v in labels.items()))
            return int(len(index) < len(data))
        targets, paths = data.targets[index], data.paths[index]
        if args.pointing:
            extra = pointing(attention, boxes(name, root, args.split, paths), offset, targets)
        title = (f"{settings['model']} on {name} {args.split}: {len(scores)} pictures, {weights} "
                 f"weights, image size {'+'.join(map(str, sizes))}{' and mirrored' * args.flip}"
                 + (f", residual {args.residual}" if args.residual is not None else ""))
    if rank:
        return 0
    if args.scores:
        more = {} if counts is None else {"counts": counts}
        np.savez_compressed(args.scores, scores=scores, targets=targets, classes=np.array(classes),
                            paths=np.array([*paths], str), **more)
    if args.voc_server:
        folder = Path(args.voc_server, "results", "VOC2012", "Main")
        folder.mkdir(parents=True, exist_ok=True)
        for label, column in zip(classes, scores.T):
            lines = (f"{Path(path).stem} {score:.8f}\n" for path, score in zip(paths, column))
            (folder / f"comp2_cls_test_{label}.txt").write_text("".join(lines))
        print(f"{len(classes)} files for {len(scores)} pictures in {folder}")
        return 0
    result = metrics(scores, targets, threshold, args.ap, counts) | extra
    print(table(title, result, classes, args.ap, threshold, tuned))
    for key in filter(extra.__contains__, ("pointing", "pointing_small")):
        print(f"{key} {extra[key]:.2f} of {extra[f'{key}_pairs']} pairs of picture and class")
    if args.out:
        Path(args.out).write_text(json.dumps(result | {
            "what": title, "ap": args.ap, "threshold": np.asarray(threshold).tolist(),
            "tuned_on": tuned, "classes": classes, "pictures": len(scores)}))
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except InputError as error:
        sys.exit(f"error: {error}")
