"""The split val: a reader that is named in HAVE_VAL has it, in all programs; no other one has."""
import json

import numpy as np
import pytest
from PIL import Image
from programs.toy_set import read_toy
from test_odd import SMALL
from test_train import log

import eval as evaluation
import readers
import train
from data import load
from lib.errors import InputError
from tools import check, mistakes, thresholds

SPLIT_PROGRAMS = (evaluation.main, thresholds.main, mistakes.main)


@pytest.fixture
def flags(tmp_path, monkeypatch):
    """The flags of a run on the toy data set, which has no val yet."""
    monkeypatch.setitem(readers.READERS, "toy", read_toy)
    for i in range(8):
        pixels = np.full((9, 9, 3), 255 * (i % 2), np.uint8)
        Image.fromarray(pixels).save(tmp_path / f"{i}.png")
    return ["--model", "csra", "--data", "toy", "--root", str(tmp_path), *SMALL, "--epochs", "4",
            "--out", str(tmp_path / "run")]


def test_a_run_chooses_its_epoch_on_a_readers_val(flags, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(readers, "HAVE_VAL", ("toy",))
    given = {0: 10.0, 1: 70.0, 2: 40.0, 3: 69.0}  # mAP of each epoch, on val

    def summary(logits, dataset, counts):
        result = plain(logits, dataset, counts)
        if (dataset.targets[0] == [0, 1]).all():  # only val has this wrong label
            result["mAP"] = given[len(seen)]
            seen.append(dataset)
        return result
    seen = []
    plain = train.summary
    monkeypatch.setattr(train, "summary", summary)
    train.main(flags)
    *_, result = lines = log(tmp_path / "run")
    assert [line["mAP"] for line in lines if "epoch" in line] == list(given.values())
    assert result["best_epoch_on_val"] == 2 and result["best_mAP_on_val"] == 70
    checkpoint = ["--checkpoint", str(tmp_path / "run/best.pt"), "--workers", "0"]
    evaluation.main([*checkpoint, "--out", str(tmp_path / "test.json")])
    found = json.loads((tmp_path / "test.json").read_text())["mAP"]
    assert found == pytest.approx(result["mAP"], abs=0.006)

    checkpoint += ["--split", "val"]
    evaluation.main([*checkpoint, "--scores", str(tmp_path / "val.npz")])
    targets = np.load(tmp_path / "val.npz")["targets"]
    assert targets[:3].tolist() == [[0, 1], [1, 0], [1, 0]]
    thresholds.main(checkpoint)
    assert json.loads((tmp_path / "run/best.thresholds.json").read_text())["split"] == "val"
    mistakes.main([*checkpoint, "--out", str(tmp_path / "page.html")])
    assert "Mistakes of csra on toy val" in (tmp_path / "page.html").read_text()
    capsys.readouterr()
    check.main(["--data", "toy", "--root", str(tmp_path)])
    text = capsys.readouterr().out
    assert [name for name in ("train", "val", "test") if f"toy {name}: 8 images" in text] == [
        "train", "val", "test"]


@pytest.mark.parametrize("value", [2, -2, 127])
def test_targets_of_a_reader_are_checked_before_training(flags, value, tmp_path, monkeypatch):
    def read_counts(root, split):
        classes, paths, targets = read_toy(root, split)
        targets[3, 1] = value
        return classes, paths, targets
    monkeypatch.setitem(readers.READERS, "toy", read_counts)
    with pytest.raises(InputError, match="toy train: the reader gives targets that are not 1, 0 or -1"):
        load("toy", tmp_path)


def test_without_one_there_is_no_val(flags, tmp_path):
    train.main(flags)
    *_, last, result = log(tmp_path / "run")
    assert result["mAP"] == last["mAP"] and "best_epoch_on_val" not in result
    assert not (tmp_path / "run/best.pt").exists()
    for main in SPLIT_PROGRAMS:
        out = str(tmp_path / "out")
        with pytest.raises(InputError, match="no split val in toy .*: choose from train, test$"):
            main(["--checkpoint", str(tmp_path / "run/last.pt"), "--workers", "0",
                  "--split", "val", "--out", out])


@pytest.mark.parametrize("name", readers.READERS)
def test_published_data_sets_have_none(name, tmp_path):
    (tmp_path / "val.csv").write_text("image,a\n")
    expected = ["train", "val", "test"] if name == "csv" else ["train", "test"]
    assert readers.split_names(name, tmp_path) == expected
    if name != "csv":
        with pytest.raises(InputError, match="no split val"):
            load(name, tmp_path, "val")
