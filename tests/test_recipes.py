"""The recipes: against public training logs, the released scripts' numbers, and dry runs on data in
the published formats.

The logs: https://github.com/yu-gi-oh-leilei/Query2Labels (learning rates as printed at an epoch and
a step, both from 0; steps per epoch; the first loss, at batch 64 to 128).
"""
import json
import re

import numpy as np
import pytest
import torch
from conftest import page_commands
from test_data import write_csv, write_image, write_lists, write_voc

import asl
import cprfl
import csra
import data
import q2l
import train
from lib.settings import read_command_line
from readers import coco, voc

METHODS = {"csra": csra, "q2l": q2l, "cprfl": cprfl, "asl": asl}
LOGGED_RATES = {  # data set: (steps per epoch, [(epoch, step, learning rate)])
    "coco2014": (646, [
        (0, 0, 4e-6), (0, 400, 4.356e-6), (1, 0, 4.925e-6), (1, 400, 6.411e-6), (2, 0, 7.66e-6),
        (5, 0, 2.535e-5), (5, 400, 3.039e-5), (10, 0, 7.039e-5), (10, 400, 7.563e-5),
        (15, 0, 9.908e-5), (16, 0, 1e-4), (17, 400, 9.984e-5), (20, 400, 9.872e-5)]),
    "nuswide": (980, [
        (0, 0, 4e-6), (0, 800, 4.617e-6), (1, 400, 5.826e-6), (2, 800, 1.116e-5), (5, 400, 2.862e-5),
        (10, 800, 7.722e-5), (15, 400, 9.968e-5), (17, 800, 9.98e-5), (20, 800, 9.861e-5)]),
    "vg500": (1295, [
        (0, 400, 4.089e-6), (1, 800, 6.404e-6), (2, 1200, 1.171e-5), (5, 0, 2.534e-5),
        (10, 1200, 7.81e-5)])}


def settings_of(model, name, *flags):
    return read_command_line(["--model", model, "--data", name, *flags])[1]


@pytest.mark.parametrize("name", LOGGED_RATES)
def test_learning_rates_are_those_of_public_logs(name):
    steps, rates = LOGGED_RATES[name]
    settings = settings_of("q2l", name)
    optimizer = train.make_optimizer([{"params": [torch.nn.Parameter(torch.ones(1))]}], settings)
    schedule = train.make_schedule(optimizer, settings, steps_per_epoch=steps)
    logged = {epoch * steps + step: rate for epoch, step, rate in rates}
    found = {}
    for step in range(max(logged) + 1):
        found[step] = optimizer.param_groups[0]["lr"]
        optimizer.step()
        schedule.step()
    for step, rate in logged.items():
        assert found[step] == pytest.approx(rate, rel=2e-3), step


@pytest.mark.parametrize("model, name, images, steps", [
    ("q2l", "coco2014", 82783, 646), ("q2l", "nuswide", 125449, 980), ("q2l", "vg500", 82904, 1295),
    ("q2l", "voc2007", 5011, 78), ("csra", "coco2014", 82081, 5131), ("csra", "voc2007", 5011, 314),
    ("asl", "coco2014", 82081, 642), ("cprfl", "coco-lt", 1909, 120), ("cprfl", "voc-lt", 1142, 72)])
def test_steps_per_epoch_are_those_of_the_released_code(model, name, images, steps):
    dataset = data.Dataset(["a"], np.full(images, "a.jpg"), np.ones((images, 1), np.int8))
    assert len(data.make_loader(dataset, settings_of(model, name), training=True)) == steps


def test_the_first_loss_is_that_of_public_logs():
    """From the initialization alone; with gamma 2, two logs have 261 and 268: within 5 %."""
    losses = {0: [], 2: [], 4: []}
    for _ in range(8):
        model = q2l.build(range(80), backbone="resnet18", pretrained=False, image_size=64, ffn=512)
        targets = (torch.rand(32, 80) < 0.036).to(torch.int8)  # COCO has 2.9 labels per image
        with torch.no_grad():
            logits = model(torch.randn(32, 3, 64, 64))
        for gamma_neg, found in losses.items():
            found.append(q2l.loss(logits, targets, gamma_neg=gamma_neg))
    for gamma_neg, lowest, highest in ((0, 720, 763), (2, 248, 281), (4, 95, 133)):
        assert lowest <= np.mean(losses[gamma_neg]) <= highest, gamma_neg


def test_keys_of_the_recipes():
    def has(model, name, **expected):
        recipe = vars(settings_of(model, name))
        assert {key: recipe[key] for key in expected} == expected, (model, name)
    has("q2l", "coco2014", epochs=18, schedule_epochs=80, ffn=8192, optimizer="adamw", drop_last=True,
        augment=("cutout", "randaugment"), batch_size=128, ema=0.9997, mean=(0.485, 0.456, 0.406))
    has("q2l", "nuswide", epochs=12, schedule_epochs=80)
    has("q2l", "vg500", epochs=12, schedule_epochs=80, backbone="tresnet_v2_l.miil_in21k",
        image_size=576, batch_size=64, ffn=2048, gamma_neg=0., optimizer="adamw", decay_1d=True,
        augment=("randaugment",), mean=(0., 0., 0.), std=(1., 1., 1.))
    for name in ("voc2007", "voc2012", "voc2012-server"):
        has("q2l", name, epochs=24, schedule_epochs=80, ffn=2432, gamma_neg=0., optimizer="adam",
            decay_1d=False, mean=(0., 0., 0.), std=(1., 1., 1.), difficult="negative", batch_size=64,
            ema=0.9997, ema_start=3)
    has("q2l", "voc2007", self_attention=True)
    has("asl", "coco2014", epochs=18, schedule_epochs=80, drop_unlabelled=True, drop_last=False)
    has("asl", "coco2014", augment=("cutout", "randaugment"), optimizer="adam", lr=1e-4,
        weight_decay=1e-4, batch_size=128, ema=0.9997, mean=(0., 0., 0.), std=(1., 1., 1.))
    has("asl", "voc2007", epochs=24, schedule_epochs=80, difficult="negative", ema_start=3)
    has("asl", "nuswide", epochs=12, schedule_epochs=80, image_size=240, drop_unlabelled=False)
    has("csra", "voc2007", difficult="ignored", drop_last=False, epochs=30, decay_epochs=4, heads=1,
        lam=0.1, lr=0.01, batch_size=16, optimizer="sgd")
    has("csra", "coco2014", decay_epochs=5, heads=4, lam=0.5, drop_unlabelled=True)
    has("csra", "wider", decay_epochs=5, lam=0.3, image_size=224,
        backbone="vit_base_patch16_224.orig_in21k_ft_in1k", mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))
    for name, epochs in (("coco-lt", 79), ("voc-lt", 29)):
        has("cprfl", name, epochs=epochs, schedule_epochs=80, lr=1e-5, batch_size=16, ema=0.998,
            pct_start=0.1, mean=(0., 0., 0.), std=(1., 1., 1.), drop_last=False)
    for model in ("q2l", "asl", "cprfl"):
        has(model, "csv", epochs=20, schedule_epochs=20)


AVERAGES = [  # of published recipes: steps per epoch; after the last one, in the average by the
    # released rule, the share of the weights that it starts from, and the mean age of the rest
    ("q2l", "coco2014", 646, 0.031, 4.6), ("q2l", "nuswide", 980, 0.029, 3.0),
    ("q2l", "vg500", 1295, 0.009, 2.5), ("q2l", "voc2007", 78, 0.612, 9.6),
    ("asl", "coco2014", 642, 0.031, 4.6), ("asl", "voc2007", 40, 0.777, 10.0),
    ("asl", "nuswide", 931, 0.035, 3.1), ("cprfl", "voc-lt", 72, 0.015, 6.5),
    ("cprfl", "coco-lt", 120, 0.0, 4.2)]


def share_and_age(settings, steps_per_epoch):
    """Of the average after the last epoch: the share of the weights that it starts from, and the
    mean age of the other weights in epochs."""
    share = 1.0
    age = 0.0  # the sum over steps of weight times age
    for step in range(settings.epochs * steps_per_epoch):
        updates_done = step - settings.ema_start * steps_per_epoch
        decay = train.average_decay(settings.ema, settings.ema_warmup, updates_done)
        if updates_done >= 0:
            age = decay * (age + 1 - share)  # the other weights are one step older
            share *= decay
    return share, age / (1 - share) / steps_per_epoch


@pytest.mark.parametrize("model, name, steps, share, age", AVERAGES)
def test_the_average_is_the_released_one(model, name, steps, share, age):
    settings = settings_of(model, name)
    found_share, found_age = share_and_age(settings, steps)
    print(f"\n{model} {name}: {100 * found_share:.1f} % of the start, {found_age:.1f} epochs old")
    assert not settings.ema_warmup
    assert found_share == pytest.approx(share, abs=0.0006)
    assert found_age == pytest.approx(age, abs=0.06)


@pytest.mark.parametrize("model, name", [
    (model, name) for model, method in METHODS.items() for name in method.RECIPES
    if name in ("csv", "scenes", "scenes-lt") or (model in ("asl", "q2l") and name.endswith("-lt"))])
def test_the_average_of_our_own_recipes_forgets_its_start(model, name):
    settings = settings_of(model, name)
    settings.ema = settings.ema or 0.9997  # some have none
    settings.epochs = 1
    share, age = share_and_age(settings, 30)
    assert share < 1e-6 and age < 0.2


@pytest.mark.parametrize("model, name, other", [
    ("csra", "coco2017", "coco2014"), ("csra", "nuswide", "coco2014"), ("csra", "vg500", "coco2014"),
    ("csra", "voc2012-server", "voc2007"), ("asl", "coco2017", "coco2014"),
    ("asl", "voc2012", "voc2007"), ("cprfl", "coco2017", "coco2014"), ("q2l", "wider", "csv")])
def test_a_recipe_for_the_same_kind_of_data_is_used_and_named(model, name, other, capsys):
    settings = vars(settings_of(model, name))
    assert f"{model} has no recipe for {name}: using the one for {other}" in capsys.readouterr().err
    recipe = METHODS[model].RECIPES[other]
    inputs = {"mean", "std"} if other == "csv" else set()  # then those of the backbone
    for key in recipe.keys() - {"note"} - inputs:
        assert settings[key] == recipe[key], key
    assert settings["note"] == f"the settings of {other}"


def test_weight_decay_of_q2l_with_tresnet():
    model = q2l.build(["a"], backbone="tresnet_m", pretrained=False, image_size=64, ffn=32)
    for decay_1d in (True, False):
        groups = q2l.param_groups(model, 1e-4, 1e-2, decay_1d=decay_1d)
        assert sum(len(group["params"]) for group in groups) == sum(
            p.requires_grad for p in model.parameters())
        for group in groups:
            for p in group["params"]:
                decays = decay_1d or p.ndim > 1 or p is model.head.b  # (1, K) in the released code
                assert group["weight_decay"] == (1e-2 if decays else 0)


def test_what_a_recipe_aims_at_is_said_before_training(tmp_path, capsys):
    write_csv(tmp_path, "image,x\na.jpg,1\nb.jpg,0\n")
    flags = ["--root", str(tmp_path), "--backbone", "test_resnet", "--no-pretrained", "--image-size",
             "64", "--epochs", "1", "--batch-size", "2", "--workers", "0"]
    for model, name in PUBLISHED:
        assert METHODS[model].RECIPES[name]["note"], name
    write_published(tmp_path)
    train.main(["--model", "asl", "--data", "coco2014", *flags, "--out", str(tmp_path / "run")])
    said = capsys.readouterr().out
    assert said.index("recipe: for 86.6 mAP on COCO 2014: stops after 18") < said.index("epoch 1/1")
    assert "(changed by flags: backbone, batch_size, epochs, image_size, pretrained)" in said


def test_notes_agree_with_the_keys():
    """A note that names epochs names those of its recipe, and no flag changes it unseen."""
    for model, name in PUBLISHED:
        settings = settings_of(model, name)
        stop = re.search(r"stops after (\d+) of (\d+)", settings.note)
        if stop:
            said = (int(stop[1]), int(stop[2]))
            assert said == (settings.epochs, settings.schedule_epochs), (model, name)
    assert settings_of("q2l", "coco2014", "--workers", "0").note == q2l.COCO["note"]
    assert settings_of("q2l", "coco2014", "--image-size", "576").note.endswith(
        " (changed by flags: image_size)")


# ------------------------------------------------------------------------------------------ dry runs


def write_published(root):
    """Four images of each published data set, in its format."""
    write_voc(root)
    write_voc(root / "2012", 2012, ("trainval", "train"))
    write_voc(root / "2012val", 2012, ("val",))
    for name in ("2012", "2012val"):
        for file in (root / name).rglob("*.*"):
            if file.is_file():
                target = root / file.relative_to(root / name)
                target.parent.mkdir(parents=True, exist_ok=True)
                file.rename(target)
    (root / "VOCdevkit/VOC2012/ImageSets/Main/test.txt").write_text("000000\n000001\n")
    for kind, classes in (("coco", coco.CLASSES), ("voc", voc.CLASSES)):
        write_lists(root, kind)
        names = "".join(f"{name} {k}\n" for k, name in enumerate(classes))
        (root / f"longtail/{kind}_labels.txt").write_text(names)
    categories = [{"id": k, "name": name} for k, name in enumerate(coco.CLASSES)]
    (root / "annotations").mkdir()
    for year in ("2014", "2017"):
        for split in ("train", "val"):
            images = [{"id": i, "file_name": f"{i}.jpg"} for i in range(4)]
            boxes = [{"image_id": i, "category_id": i} for i in range(4)]
            (root / f"annotations/instances_{split}{year}.json").write_text(json.dumps(
                {"images": images, "annotations": boxes, "categories": categories}))
            for i in range(4):
                write_image(root / f"{split}{year}/{i}.jpg")
    labels = root / "Groundtruth/TrainTestLabels"
    labels.mkdir(parents=True)
    (root / "ImageList").mkdir()
    for part in ("Train", "Test"):
        (root / f"ImageList/{part}Imagelist.txt").write_text("".join(f"a\\{i}.jpg\n" for i in range(4)))
        for k in range(81):
            (labels / f"Labels_{k:02}_{part}.txt").write_text("1\n1\n1\n0\n")
    for i in range(4):
        write_image(root / f"Flickr/a/{i}.jpg")
        write_image(root / f"VG_100K/{i}.jpg")
    for split in ("train", "test"):
        (root / f"{split}_list_500.txt").write_text("0.jpg\n1.jpg\n2.jpg\n3.jpg\n")
    (root / "vg_category_500_labels_index.json").write_text(json.dumps(
        {f"{i}.jpg": [i, 499] for i in range(4)}))
    people = [{"bbox": [1, 2, 30, 30], "attribute": [1, -1] * 7}] * 4
    (root / "wider_attribute_annotation").mkdir()
    for split in ("trainval", "test"):
        (root / f"wider_attribute_annotation/wider_attribute_{split}.json").write_text(
            json.dumps({"images": [{"file_name": "x.jpg", "targets": people}]}))
    write_image(root / "Image/x.jpg")


PUBLISHED = [(model, name) for model, method in METHODS.items() for name in method.RECIPES
             if not name.startswith("scenes") and name not in ("csv", "small")]


@pytest.fixture(scope="module")
def published(tmp_path_factory):
    root = tmp_path_factory.mktemp("published")
    write_published(root)
    return root


COMMANDS = []  # (method, data set, further flags) of the pages' commands on published data
for _, (_, program, *words) in page_commands():
    model = program.removesuffix(".py")
    if model in METHODS and words[:1] == ["--data"] and words[2:4] == ["--root", "ROOT"]:
        name, flags = words[1], " ".join(words[4:])
        if flags and name != "csv" and not re.search(r"\b[A-Z]+\b", flags):  # no placeholder
            COMMANDS.append((model, name, flags))
STARTS = {}  # OUT of a command -> its method, data set and flags
for model, name, flags in COMMANDS:
    if "--out" in flags:
        flags, out = flags.split("--out ")
        STARTS[out] = (model, name, flags)


def dry_run(model, name, flags, root, out):
    """Two steps of one image with everything else as in the recipe, its whole schedule too, but for
    random weights."""
    recipe = METHODS[model].RECIPES[name]
    if model == "cprfl":
        flags = ["--text", "random", *flags]
    if "schedule_epochs" in recipe:  # --epochs alone would shorten the schedule
        flags = ["--schedule-epochs", str(recipe["schedule_epochs"]), *flags]
    train.main(["--model", model, "--data", name, "--root", str(root), "--no-pretrained", *flags,
                "--batch-size", "1", "--limit", "2", "--epochs", "1", "--workers", "0", "--out",
                str(out)])
    lines = (out / "log.jsonl").read_text().splitlines()
    assert "mAP" in json.loads(lines[-1]) and (out / "last.pt").is_file()
    assert 0 < json.loads(lines[1])["loss"] < 2000


@pytest.mark.slow
@pytest.mark.parametrize("model, name", PUBLISHED)
def test_dry_run_of_every_published_recipe(model, name, published, tmp_path, capsys):
    dry_run(model, name, [], published, tmp_path)
    said = capsys.readouterr().out
    assert "epoch 1/1 step 2/2 " in said
    if name in ("voc2007", "voc2012"):
        how = "ignored" if model in ("csra", "cprfl") else "negative"
        assert f"difficult objects of the test split: {how}" in said


@pytest.mark.slow
@pytest.mark.parametrize("model, name, flags", [c for c in COMMANDS if "--out" not in c[2]])
def test_dry_run_of_every_published_command(model, name, flags, published, tmp_path, capsys):
    """Those of the pages that have more flags: other backbones and sizes, starts from COCO."""
    flags = flags.split()
    if "--init" in flags:
        out, _, file = flags[-1].rpartition("/")
        first_model, first_name, first_flags = STARTS[out]
        dry_run(first_model, first_name, first_flags.split(), published, tmp_path / "first")
        flags[-1] = str(tmp_path / "first" / file)
    dry_run(model, name, flags, published, tmp_path / "run")
    assert "epoch 1/1 step 2/2 " in capsys.readouterr().out
