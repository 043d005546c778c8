"""From one csv file to a model that one trusts: tools.split, thresholds, predict and check."""
import csv
import itertools
import json
import math
import os
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from test_odd import own

import eval as evaluation
import train
from data import load
from lib.errors import InputError
from lib.metrics import metrics
from tools import check, predict, split, thresholds
from tools.predict import open_checkpoint
from tools.thresholds import best_threshold

SPLITS = ("train", "val", "test")


def write_images(folder, names):
    """Files that differ."""
    for number, name in enumerate(names):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b"image %d" % number)


def split_csv(root, text, *flags, names=None):
    """tools.split on a csv file with this text; the lines of each split, without the header."""
    (root / "all.csv").write_text(text, "utf-8", newline="")
    if names is None:
        names = [line.split(",")[0] for line in text.splitlines()[1:]]
    write_images(root, names)
    split.main([str(root / "all.csv"), "--root", str(root), *flags])
    header = text.splitlines()[0].removeprefix("\ufeff")
    lines = {}
    for name in SPLITS:
        first, *rest = (root / f"{name}.csv").read_bytes().decode().split("\n")
        assert first == header and rest.pop() == ""
        lines[name] = rest
    return lines


def fresh(folder):
    for name in SPLITS:
        (folder / f"{name}.csv").unlink()


# ------------------------------------------------------------------------------------------- split


def test_each_row_is_in_one_split_as_it_is(tmp_path, capsys):
    rows = [f" {n}.jpg,{1.0 if n % 3 else 0},{n % 2}," for n in range(200)]
    lines = split_csv(tmp_path, "\n".join(["\ufeffimage,a,b b,c", *rows]) + "\n",
                      names=[f"{n}.jpg" for n in range(200)])
    assert sorted(itertools.chain(*lines.values())) == sorted(rows)
    assert [len(lines[name]) for name in SPLITS] == [140, 30, 30]
    for name in SPLITS:  # in the order of the file
        assert lines[name] == sorted(lines[name], key=rows.index)
    printed = capsys.readouterr().out.splitlines()
    assert printed[0].split() == list(SPLITS) and printed[-2].split() == ["140", "30", "30", "all", "images"]
    for k, label in enumerate(("a", "b b", "c")):
        *counts, found = printed[1 + k].split(maxsplit=3)
        expected = [sum(line.split(",")[1 + k] in ("1", "1.0") for line in lines[s]) for s in SPLITS]
        assert found == label and [int(count) for count in counts] == expected
    assert load("csv", tmp_path, "val").classes == ["a", "b b", "c"]


def test_the_seed_decides(tmp_path):
    text = "image,a,b\n" + "".join(f"{n}.jpg,{n % 2},1\n" for n in range(40))
    found = []
    for seed in ("0", "0", "1"):
        found.append(split_csv(tmp_path, text, "--seed", seed))
        fresh(tmp_path)
    assert found[0] == found[1] != found[2]


def test_every_class_is_in_every_split_where_it_has_the_images(tmp_path):
    """One label per image, so nothing else stands in the way: with three images or more."""
    counts = {"one": 1, "two": 2, "three": 3, "four": 4, "seven": 7, "many": 83, "more": 100}
    labels = [name for name, count in counts.items() for _ in range(count)]
    order = np.random.default_rng(0).permutation(len(labels))
    text = "image,labels\n" + "".join(f"{n}.jpg,{labels[n]}\n" for n in order)
    lines = split_csv(tmp_path, text)
    for name, count in counts.items():
        in_split = [sum(line.endswith(f",{name}") for line in lines[s]) for s in SPLITS]
        assert sum(in_split) == count and in_split[0] > 0
        assert min(in_split) > 0 or count < 3
        for found, share in zip(in_split, (0.7, 0.15, 0.15)):
            assert abs(found - share * count) < 2  # of so few, one may be forced
    assert [len(lines[s]) for s in SPLITS] == pytest.approx([140, 30, 30], abs=3)


def test_random_label_sets_keep_their_shares():
    """Many labels per image: train has all classes, each split the frequent ones; the counts are much
    closer to the shares than those of groups that are dealt out at random."""
    rng = np.random.default_rng(0)
    shares = np.array([0.6, 0.3, 0.1])
    errors, errors_at_random = [], []
    for _ in range(30):
        labels = rng.random((300, 12)) < rng.uniform(0.005, 0.4, 12)
        groups = [group.tolist() for group in np.array_split(rng.permutation(300), 200)]
        split_of = split.deal(groups, labels, shares, 0)
        at_random = np.zeros(300, int)
        for group in groups:
            assert len(set(split_of[group])) == 1
            at_random[group] = rng.choice(3, p=shares)
        wanted = np.outer(shares, labels.sum(axis=0))
        counts = np.array([labels[split_of == index].sum(axis=0) for index in range(3)])
        counts_at_random = np.array([labels[at_random == index].sum(axis=0) for index in range(3)])
        assert counts[0][wanted[0] > 0].all() and counts[:, wanted[2] > 2].all()
        errors.append((counts - wanted) ** 2)
        errors_at_random.append((counts_at_random - wanted) ** 2)
    assert np.mean(errors) < np.mean(errors_at_random) / 3


def test_train_has_all_classes():
    """train.csv must name them all. Few images with many rare labels are the hard case."""
    rng = np.random.default_rng(0)
    for seed in range(300):
        labels = rng.random((12, 12)) < 0.2
        split_of = split.deal([[index] for index in range(12)], labels, [0.4, 0.3, 0.3], seed)
        assert (labels[split_of == 0].any(axis=0) == labels.any(axis=0)).all()


def test_boxes_and_copies_of_a_file_stay_together(tmp_path):
    rows = []
    for n in range(30):
        write_images(tmp_path, [f"{n}.jpg"])
        (tmp_path / f"{n}.jpg").write_bytes(b"content %d" % (n // 2))  # 2 m + 1 is a copy of 2 m
        rows += [f'"{n}.jpg::{x},0,5,5",{x}' for x in range(2)]
        rows.append(f"./x/../{n}.jpg,1")
    (tmp_path / "x").mkdir()
    (tmp_path / "all.csv").write_text("image,a\n" + "\n".join(rows))
    split.main([str(tmp_path / "all.csv"), "--root", str(tmp_path)])
    in_split = {}
    for name in SPLITS:
        dataset = load("csv", tmp_path, name)
        for path in dataset.paths:
            number = int(re.search(r"(\d+)\.jpg", path)[1])
            in_split.setdefault(number // 2, []).append(name)
    assert sorted(in_split) == list(range(15))
    for names in in_split.values():
        assert len(names) == 6 and len(set(names)) == 1


def test_a_field_may_have_several_lines_and_the_last_row_no_end(tmp_path):
    names = [f"{n}.jpg" for n in range(9)]
    write_images(tmp_path, names)
    blocks = [f'{name},"1\r\n"\r\n\r\n' for name in names]
    (tmp_path / "all.csv").write_text("image,a\r\n" + "".join(blocks).rstrip(), newline="")
    split.main([str(tmp_path / "all.csv"), "--root", str(tmp_path), "--val", "0.3", "--test", "0.3"])
    found = [path for name in SPLITS for path in load("csv", tmp_path, name).paths]
    assert sorted(found) == [f"{tmp_path}/{name}" for name in names]


@pytest.mark.parametrize("text, message", [
    ("image,a\n0.jpg,1\n1.jpg,2\n", "all.csv: row 3: column a: '2' is not 1, 0, -1 or empty"),
    ("photo,a\n0.jpg,1\n", "all.csv: row 1: .*no column `image`"),
    ("image,a\n", "all.csv: it has no images"),
    ("", "all.csv: row 1"),
    ("image,a\n0.jpg,1\nlost.jpg,1\n", "all.csv: row 3: .*lost.jpg is missing: correct the row or --root"),
    ("image,labels\n0.jpg,a|b\n", "all.csv: row 2: .*semicolons"),
    ("image,labels\n0.jpg,a\n1.jpg,b\n2.jpg,a b\n", "all.csv: row 4: 'a b' is a list"),
    ("image,a\n0.jpg,1\n1.jpg,1\n", "all.csv: no image is left for test.csv"),
    ("image,a\n0.jpg,1\n0.jpg,1\n", "all.csv: row 3: 0.jpg has two rows"),
    ("image,a\n0.jpg,1\n\"1.jpg::1,2,3\",1\n", "all.csv: row 3: .*not four numbers"),
    ("image,labels\n0.jpg,caf\xe9\n", "all.csv: row 2 is not in UTF-8")])
def test_a_bad_csv_is_one_line_and_nothing_is_written(text, message, tmp_path):
    (tmp_path / "all.csv").write_text(text, "latin-1")
    write_images(tmp_path, ["0.jpg", "1.jpg"])
    with pytest.raises(InputError, match=message) as error:
        split.main([str(tmp_path / "all.csv"), "--root", str(tmp_path)])
    assert "\n" not in str(error.value)
    assert not any((tmp_path / f"{name}.csv").exists() for name in SPLITS)


@pytest.mark.parametrize("name", SPLITS)
def test_files_that_are_there_are_never_overwritten(name, tmp_path):
    rows = "image,a\n" + "".join(f"{n}.jpg,1\n" for n in range(20))
    write_images(tmp_path, [f"{n}.jpg" for n in range(20)])
    (tmp_path / "all.csv").write_text(rows)
    (tmp_path / f"{name}.csv").write_text("mine")
    with pytest.raises(InputError, match=f"{name}.csv is there already"):
        split.main([str(tmp_path / "all.csv"), "--root", str(tmp_path)])
    assert (tmp_path / f"{name}.csv").read_text() == "mine"
    assert len([*tmp_path.glob("*.csv")]) == 2


def test_wrong_shares_and_folders_are_named(tmp_path, capsys):
    for flags in (["--val", "0"], ["--val", "0.5", "--test", "0.5"], ["--test", "nan"]):
        with pytest.raises(SystemExit):
            split.main([str(tmp_path / "all.csv"), "--root", str(tmp_path), *flags])
        assert "--test" in capsys.readouterr().err
    with pytest.raises(InputError, match="nowhere: there is no such folder"):
        split.main([str(tmp_path / "all.csv"), "--root", str(tmp_path / "nowhere")])
    with pytest.raises(InputError, match="all.csv is missing"):
        split.main([str(tmp_path / "all.csv"), "--root", str(tmp_path)])


# -------------------------------------------------------------------------------------- thresholds


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A run on 16 images with val.csv, in which 5 have label a and 4 have label b."""
    root = tmp_path_factory.mktemp("trained")
    flags = own(root)
    rows = (root / "test.csv").read_text().splitlines()
    (root / "val.csv").write_text("\n".join(rows[:11]))
    train.main([*flags, "--epochs", "1", "--amp", "off", "--out", str(root / "run")])
    return root


def test_thresholds_are_written_and_shown_before_and_after(trained, tmp_path, capsys, monkeypatch):
    """The F1s are those of metrics; the means are what eval.py then prints; a class with few
    positives has the threshold of all classes."""
    checkpoint = ["--checkpoint", str(trained / "run/best.pt"), "--workers", "0"]
    logits = np.random.default_rng(0).normal(0, 1, (10, 2))
    monkeypatch.setattr(evaluation.Evaluation, "logits", lambda self, dataset, *more: logits)
    evaluation.main([*checkpoint, "--split", "val", "--scores", str(tmp_path / "s.npz")])
    saved = np.load(tmp_path / "s.npz")
    counts = (saved["targets"] == 1).sum(axis=0)
    assert counts.tolist() == [5, 4]
    monkeypatch.setattr(thresholds, "MIN_POSITIVES", 5)
    capsys.readouterr()
    of_all = best_threshold(saved["scores"].ravel(), saved["targets"].ravel())
    for flags, name in (([], "best.thresholds.json"), (["--per-class"], "best.class_thresholds.json")):
        thresholds.main([*checkpoint, "--split", "val", *flags])
        text = capsys.readouterr().out
        file = trained / "run" / name
        assert str(file) in text
        limits = evaluation.threshold_logits(str(file), saved["classes"].tolist())
        before = metrics(saved["logits"], saved["targets"], 0)
        after = metrics(saved["logits"], saved["targets"], limits)
        for k, label in enumerate(saved["classes"]):
            row = re.search(rf"^(.*)  {label}$", text, re.MULTILINE)[1].split()
            expected = [counts[k], evaluation.read_threshold(str(file), saved["classes"])[k],
                        before["F1"][k], after["F1"][k]]
            assert [float(value) for value in row] == pytest.approx(expected, rel=1e-3, abs=0.006)
        for result, where in ((before, "at 0.5"), (after, "at the threshold")):
            assert f"{result['CF1']:8.2f}{result['OF1']:8.2f}  {where}\n" in text
        content = json.loads(file.read_text())
        assert content.keys() == {"split", "threshold", "logit"} and content["split"] == "val"
        for threshold, logit in zip(*[np.atleast_1d([*value.values()] if flags else value)
                                      for value in (content["threshold"], content["logit"])]):
            assert np.log(threshold / (1 - threshold)) == pytest.approx(logit)
        if flags:
            scores, targets = saved["scores"][:, 0], saved["targets"][:, 0]
            assert content["threshold"] == {"a": best_threshold(scores, targets), "b": of_all}
            assert "warning: fewer than 5 positives on val" in text and f"{of_all:.4g}: b\n" in text
        else:
            assert content["threshold"] == of_all and "warning" not in text


# ----------------------------------------------------------------------------------------- predict


@pytest.fixture
def photos(tmp_path):
    """Five images of several sizes, and a broken one in between."""
    folder = tmp_path / "photos"
    folder.mkdir()
    rng = np.random.default_rng(0)
    for number, size in enumerate(((20, 30), (40, 40), (33, 21), (9, 64), (50, 20))):
        pixels = rng.integers(0, 256, (*size, 3), np.uint8)
        Image.fromarray(pixels).save(folder / f"{number}.png")
    (folder / "2b.png").write_bytes(b"no image")
    return folder


@pytest.mark.slow
def test_batches_do_not_change_what_is_predicted(trained, photos, tmp_path, capsys):
    model, classes, transform = open_checkpoint(trained / "run/best.pt")
    expected = {}
    for number in range(5):
        image = transform(Image.open(photos / f"{number}.png"))[None]
        expected[f"{photos}/{number}.png"] = model(image).double().sigmoid()[0].tolist()
    for size in (1, 2, 4, 100):
        table, maps = tmp_path / f"{size}.csv", tmp_path / f"maps{size}"
        failed = predict.main(["--checkpoint", str(trained / "run/best.pt"), str(photos), "--json",
                               "--threshold", "0", "--batch-size", str(size), "--csv", str(table),
                               "--heatmaps", str(maps)])
        printed = capsys.readouterr()
        assert failed and "left out: " in printed.err and "2b.png" in printed.err
        lines = [json.loads(line) for line in printed.out.splitlines()]
        assert [line["path"] for line in lines] == list(expected)
        for line in lines:
            scores = dict(zip(classes, expected[line["path"]]))
            assert line["labels"] == pytest.approx(scores, abs=1e-4)
        header, *rows = csv.reader(table.open(newline=""))
        assert header == ["image", *classes] and [row[0] for row in rows] == list(expected)
        for path, *scores in rows:
            assert [float(score) for score in scores] == pytest.approx(expected[path], rel=1e-5)
        names = [file.name for file in sorted(maps.iterdir())]
        assert names == ["00000-0.png", "00001-1.png", "00002-2.png", "00004-3.png", "00005-4.png"]
        for name in names:  # the maps are those of the image
            one = Image.open(tmp_path / "maps1" / name)
            difference = np.asarray(Image.open(maps / name), int) - np.asarray(one, int)
            assert abs(difference).max() <= 2
        assert not Path(f"{table}.part").exists()


def test_an_error_leaves_no_half_csv(trained, photos, monkeypatch):
    table = photos / "scores.csv"
    table.write_text("the one from yesterday")
    prepared = []
    plain = predict.read_batch

    def read_batch(files, numbers, prepare):
        if prepared:
            raise KeyboardInterrupt
        prepared.append(numbers)
        return plain(files, numbers, prepare)
    monkeypatch.setattr(predict, "read_batch", read_batch)
    with pytest.raises(KeyboardInterrupt):
        predict.main(["--checkpoint", str(trained / "run/best.pt"), str(photos), "--csv", str(table)])
    assert table.read_text() == "the one from yesterday"
    assert len((photos / "scores.csv.part").read_text().splitlines()) == 2  # what was done so far


def test_top_prints_the_highest_labels(trained, photos, capsys):
    flags = ["--checkpoint", str(trained / "run/best.pt"), str(photos / "0.png")]
    predict.main([*flags, "--threshold", "0", "--json"])
    scores = json.loads(capsys.readouterr().out)["labels"]
    ranked = sorted(scores, key=scores.get, reverse=True)
    for k in (1, 2, 99):
        predict.main([*flags, "--top", str(k)])
        text = capsys.readouterr().out.strip().removeprefix(f"{photos}/0.png: ")
        assert text == ", ".join(f"{name} {scores[name]:.2f}" for name in ranked[:k])
    with pytest.raises(SystemExit):
        predict.main([*flags, "--top", "1", "--threshold", "0.5"])
    with pytest.raises(SystemExit):
        predict.main([*flags, "--top", "0"])
    with pytest.raises(InputError, match="another flag names the same file"):
        predict.main([*flags, "--csv", str(photos / "0.png")])
    Image.open(photos / "0.png").load()  # it is still there
    os.mkfifo(photos / "pipe")  # as /dev/stdout can be: a renamed file would take its place
    with pytest.raises(InputError, match="pipe: it is a device, not a file"):
        predict.main([*flags, "--csv", str(photos / "pipe")])


def test_scores_that_are_nan_are_no_answer(trained, photos, tmp_path):
    saved = torch.load(trained / "run/best.pt", weights_only=True)
    for values in saved["model"].values():
        if values.is_floating_point():
            values.fill_(math.nan)
    torch.save(saved, tmp_path / "nan.pt")
    with pytest.raises(InputError, match="0.png has the score nan: the model of .*nan.pt is broken"):
        predict.main(["--checkpoint", str(tmp_path / "nan.pt"), str(photos / "0.png")])


# ------------------------------------------------------------------------------------------- check


def test_an_extra_column_is_named_with_its_value(tmp_path):
    (tmp_path / "train.csv").write_text("image,cat,width\na.jpg,1,1\nb.jpg,0, 640\n")
    with pytest.raises(InputError, match="train.csv: row 3: column width: '640' is not 1, 0, -1 or "
                                         "empty; there must be no columns but image and labels"):
        load("csv", tmp_path)


@pytest.mark.parametrize("text, named", [
    ("image,labels,split\na.jpg,cat;dog,train\n", "row 2: column split, 'train'"),
    ("verified,image,labels\n1,a.jpg,\n0,b.jpg,\n", "row 2: column verified, '1'")])  # all valid codes
def test_a_column_beside_labels_is_named_with_its_value(text, named, tmp_path):
    (tmp_path / "train.csv").write_text(text)
    with pytest.raises(InputError, match=f"train.csv: {named}: beside a column `labels`, there must be"):
        load("csv", tmp_path)


def test_a_validation_file_that_is_not_read_is_no_clean_check(tmp_path, capsys):
    for number, split_name in enumerate(("train", "test", "valid")):
        Image.new("RGB", (8, 8), (50 * number, 0, 0)).save(tmp_path / f"{number}.png")
        Image.new("RGB", (8, 8), (0, 50, 50 * number)).save(tmp_path / f"{number}b.png")
        (tmp_path / f"{split_name}.csv").write_text(f"image,cat\n{number}.png,1\n{number}b.png,0\n")
    assert not check.main(["--data", "csv", "--root", str(tmp_path), "--verify"])
    printed = capsys.readouterr()
    assert "valid.csv is not read" in printed.err
    assert printed.out.endswith("\nwarnings: 1\nproblems: 0\n")


@pytest.mark.parametrize("text, verdict", [
    ("image,cat,dog\n0.png,1,0\n1.png,0,1\n", "no problems"),
    ("image,cat,dog\n0.png,1,0\n1.png,1,1\n", "warnings: 2\nproblems: 0"),
    ("image,cat,dog\n0.png,1,0\nlost.png,0,1\n", "problems: 1")])
def test_no_problems_means_no_warnings(text, verdict, tmp_path, capsys):
    for number in range(4):
        Image.new("RGB", (8, 8), (50 * number, 0, 0)).save(tmp_path / f"{number}.png")
    (tmp_path / "train.csv").write_text(text)
    (tmp_path / "test.csv").write_text(text.replace("0.png", "2.png").replace("1.png", "3.png").replace(
        "lost", "3"))
    failed = check.main(["--data", "csv", "--root", str(tmp_path), "--verify"])
    text = capsys.readouterr().out
    assert text.endswith(f"\n{verdict}\n") and ("warnings: " in text) == ("warnings: " in verdict)
    assert failed == verdict.startswith("problems: 1")
