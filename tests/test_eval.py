"""The metrics against definitions written out by brute force; what eval.py does with a checkpoint."""
import argparse
import json
import re
import shutil
import time

import numpy as np
import pytest
import timm
import torch
from conftest import run
from PIL import Image

import asl
import data
import eval as evaluation
from data import InputError
from lib import metrics as metrics_file
from lib.metrics import KINDS, average_precision, metrics
from lib.models import build_model
from lib.settings import read_command_line
from readers import voc
from readers.scenes import draw as draw_scene
from tools import predict, thresholds, voc_server
from tools.thresholds import best_threshold


def brute_force_ap(scores, targets, kind):
    """Precision and recall at every threshold that occurs, by counting."""
    scores, targets = scores[targets >= 0], targets[targets >= 0]
    positives = (targets == 1).sum()
    if positives == 0:
        return np.nan
    curve = []  # (positives found, precision), from the highest threshold down
    for t in sorted(set(scores), reverse=True):
        curve.append(((targets[scores >= t] == 1).sum(), (targets[scores >= t] == 1).mean()))
    best = [max(p for _, p in curve[i:]) for i in range(len(curve))]
    if kind == "11-point":
        reached = [[b for (tp, _), b in zip(curve, best) if 10 * tp >= i * positives]
                   for i in range(11)]
        return np.mean([r[0] for r in reached])
    total = 0
    for s in scores[targets == 1]:
        i = sorted(set(scores), reverse=True).index(s)
        total += curve[i][1] if kind == "all-points" else best[i]
    return total / positives


def brute_force_table(scores, targets, threshold):
    """In percent. Lists of each class; None for a class without positives."""
    result = {}
    for suffix in ("", "_3"):
        counts = []
        for k in range(targets.shape[1]):
            tp = predicted = positives = 0
            for i in range(len(targets)):
                rank = sum(scores[i, j] > scores[i, k] or (scores[i, j] == scores[i, k] and j < k)
                           for j in range(targets.shape[1]))
                yes = scores[i, k] > threshold and (suffix == "" or rank < 3)
                positives += targets[i, k] == 1
                tp += yes and targets[i, k] == 1
                predicted += yes and targets[i, k] >= 0
            counts.append((tp, predicted, positives))
        if suffix == "":
            for tp, predicted, positives in counts:
                p, r = tp / max(predicted, 1), tp / max(positives, 1)
                row = {"precision": p, "recall": r, "F1": 2 * p * r / (p + r) if tp else 0}
                for name, value in row.items():
                    result.setdefault(name, []).append(value if positives else None)
        have = [c for c in counts if c[2]] or [(0, 0, 1)]
        tp, predicted, positives = map(sum, zip(*counts))
        for name, p, r in (
                ("C", np.mean([t / p if p else 0 for t, p, _ in have]),
                 np.mean([t / n for t, _, n in have])),
                ("O", tp / predicted if predicted else 0, tp / positives if positives else 0)):
            result |= {f"{name}P{suffix}": p, f"{name}R{suffix}": r,
                       f"{name}F1{suffix}": 2 * p * r / (p + r) if p + r else 0}
    return {name: [None if v is None else 100 * v for v in value] if isinstance(value, list)
            else 100 * value for name, value in result.items()}


def random_case(rng):
    n, k = rng.integers(1, 30), rng.integers(1, 7)
    scores = rng.random((n, k)) * rng.choice([0.4, 1])  # 0.4: nothing above the threshold
    if rng.random() < 0.7:
        scores = scores.round(rng.integers(1, 3))  # ties
    targets = rng.choice([-1, 0, 1], (n, k), p=rng.choice([[0.2, 0.5, 0.3], [0, 0.9, 0.1]]))
    return scores, targets.astype(np.int8)


def test_metrics_match_their_definitions():
    rng = np.random.default_rng(0)
    for _ in range(1000):
        scores, targets = random_case(rng)
        for kind in KINDS:
            expected = [brute_force_ap(s, t, kind) for s, t in zip(scores.T, targets.T)]
            found = average_precision(scores, targets, kind)
            np.testing.assert_allclose(found, expected, atol=1e-12)
        result, expected = metrics(scores, targets), brute_force_table(scores, targets, 0.5)
        for name, value in expected.items():
            assert result[name] == pytest.approx(value, abs=1e-9), name


def test_the_example_at_the_head_is_right():
    text = metrics_file.__doc__
    rows = {name: re.search(rf"^    {name} +([\d./ ]+)$", text, re.MULTILINE)[1].split()
            for name in ("score", "target", "recall", "precision", "envelope")}
    scores, targets = np.array(rows["score"], float), np.array(rows["target"], int)
    for n in range(4):
        assert rows["precision"][n] == f"{targets[:n + 1].sum()}/{n + 1}"
        assert rows["recall"][n] == f"{targets[:n + 1].sum()}/3"
        assert eval(rows["envelope"][n]) == max(map(eval, rows["precision"][n:]))
    for kind in KINDS:
        formula, value = re.findall(rf"^    {kind} +(\(.*\) / \d+) += ([\d.]+)", text, re.MULTILINE)[0]
        assert eval(formula.replace("x", "*")) == pytest.approx(float(value), abs=5e-4)
        found = average_precision(scores[:, None], targets[:, None], kind)
        assert found[0] == pytest.approx(float(value), abs=5e-4)


def test_the_file_can_be_copied(tmp_path):
    """It needs numpy alone."""
    shutil.copy(metrics_file.__file__, tmp_path / "copied.py")
    (tmp_path / "use.py").write_text(
        "import sys\nfrom copied import metrics\n"
        "print(metrics([[0.9], [0.2]], [[1], [0]])['mAP'], 'torch' in sys.modules)\n")
    assert run("use.py", cwd=tmp_path) == "100.0 False\n"


def test_logits_are_scores_too():
    """Any monotone change of the scores leaves AP as it is, also where a sigmoid rounds to 1."""
    rng = np.random.default_rng(5)
    logits, targets = rng.normal(0, 4, (60, 5)), rng.integers(-1, 2, (60, 5))
    expected = metrics(1 / (1 + np.exp(-logits)), targets, 0.3)
    cut = np.log(0.3 / 0.7)
    for name, value in metrics(logits, targets, cut).items():
        assert value == pytest.approx(expected[name], abs=1e-9), name
    assert metrics(logits, targets, [cut] * 5)["CF1"] == pytest.approx(expected["CF1"])
    for kind in KINDS:
        ap = average_precision(logits, targets, kind)
        for changed in (logits + 40, 1000 * logits, np.sinh(logits)):
            np.testing.assert_array_equal(average_precision(changed, targets, kind), ap)
    logits[logits > 6], logits[logits < -6] = np.inf, -np.inf  # ties
    np.testing.assert_array_equal(average_precision(logits, targets),
                                  average_precision(np.clip(logits, -7, 7), targets))


@pytest.mark.parametrize("changes, message", [
    ({"counts": [100, 5]}, r"counts \(2,\): give one for each of the 3 classes"),
    ({"counts": [100] * 4}, r"counts \(4,\)"), ({"counts": [[5, 5, 5]]}, "counts"),
    ({"threshold": [0.5, 0.5]}, "threshold.*each of the 3 classes"),
    ({"threshold": [0.5]}, "threshold"), ({"threshold": np.full((4, 1), 0.5)}, "threshold"),
    ({"threshold": np.nan}, "threshold nan"), ({"targets": np.full((4, 3), 0.5)}, "1, 0 or -1"),
    ({"targets": np.full((4, 3), 2)}, "1, 0 or -1"), ({"targets": np.ones(3)}, r"\(3,\)")])
def test_input_of_another_shape_or_kind_is_refused(changes, message):
    right = {"scores": np.random.default_rng(6).random((4, 3)), "targets": np.eye(4, 3, dtype=int)}
    metrics(**right, counts=[5, 5, 5], threshold=[0.1, 0.2, 0.3])
    with pytest.raises(ValueError, match=message):
        metrics(**(right | changes))


def test_known_values():
    scores = np.array([[0.9], [0.8], [0.7], [0.6]])
    targets = np.array([[0], [1], [0], [1]])
    assert average_precision(scores, targets)[0] == pytest.approx(0.5)  # (1/2 + 2/4) / 2
    targets = np.array([[1], [0], [0], [1]])
    assert average_precision(scores, targets)[0] == pytest.approx(0.75)
    assert average_precision(scores, targets, "11-point")[0] == pytest.approx((6 + 5 * 0.5) / 11)
    targets = np.array([[1], [-1], [-1], [1]])
    assert average_precision(scores, targets)[0] == 1
    result = metrics(np.tile(scores, 2), np.array([[1, 0], [0, 0], [0, 0], [1, -1]]))
    assert result["AP"][1] is None and result["mAP"] == pytest.approx(75)
    assert result["positives"] == [2, 0]
    with pytest.raises(ValueError, match="nan"):
        average_precision(scores * np.nan, targets)
    for kind in (np.uint8, bool):  # their negative would wrap round
        rounded = (scores > 0.75).astype(kind)
        assert average_precision(rounded, [[1], [1], [0], [0]])[0] == 1
        assert metrics(rounded, [[1], [1], [0], [0]])["mAP"] == 100
    with pytest.raises(ValueError, match="all-points"):
        average_precision(scores, targets, "voc")


def test_envelope_is_never_lower_and_order_changes_nothing():
    rng = np.random.default_rng(1)
    scores, targets = rng.random((200, 5)).round(2), (rng.random((200, 5)) < 0.2).astype(np.int8)
    order = rng.permutation(200)
    for kind in KINDS:
        np.testing.assert_allclose(average_precision(scores, targets, kind),
                                   average_precision(scores[order], targets[order], kind))
    envelope = average_precision(scores, targets, "envelope")
    assert (envelope >= average_precision(scores, targets)).all()


def test_speed_at_coco_size():
    rng = np.random.default_rng(2)
    scores, targets = rng.random((40504, 80)), (rng.random((40504, 80)) < 0.04).astype(np.int8)
    start = time.perf_counter()
    metrics(scores, targets)
    assert time.perf_counter() - start < 2


def test_head_medium_and_tail():
    rng = np.random.default_rng(3)
    scores, targets = rng.random((50, 4)), rng.integers(0, 2, (50, 4))
    ap = 100 * average_precision(scores, targets)
    result = metrics(scores, targets, counts=[100, 19, 20, 400])
    assert result["head"] == pytest.approx((ap[0] + ap[3]) / 2)
    assert result["medium"] == pytest.approx(ap[2]) and result["tail"] == pytest.approx(ap[1])
    assert "head" not in metrics(scores, targets, counts=[100] * 4)


def test_best_threshold_is_the_best_of_all():
    def f1(scores, targets, threshold):
        yes = (scores > threshold) & (targets >= 0)
        return 2 * (yes & (targets == 1)).sum() / max(yes.sum() + (targets == 1).sum(), 1)
    rng = np.random.default_rng(4)
    for _ in range(200):
        scores, targets = (x[:, 0] for x in random_case(rng))
        best = max((f1(scores, targets, t) for t in [-1, *scores]), default=0)
        found = best_threshold(scores, targets)
        if (targets == 1).any():
            assert f1(scores, targets, found) == best
        else:
            assert found == 0.5
    assert best_threshold(np.array([0.9, 0.8, 0.1]), np.array([1, 1, 0])) == pytest.approx(0.45)


SMALL = {"csra": [], "asl": [], "q2l": ["--data", "scenes"], "cprfl": ["--data", "scenes"]}


@pytest.fixture
def checkpoint(tmp_path):
    """A function: (method, flags) -> an untrained checkpoint, as train.py writes it."""
    def write(model, *flags):
        method, settings = read_command_line(["--model", model, *SMALL[model], *flags])
        settings.workers = 0
        scenes = data.load("scenes", split="test")
        with torch.random.fork_rng():
            torch.manual_seed(3)
            net = build_model(method, settings, scenes.classes)
        file = tmp_path / f"{model}.pt"
        torch.save({"model": net.state_dict(), "ema": None, "settings": vars(settings),
                    "classes": scenes.classes, "class_counts": [100] * 10 + [10] * 10}, file)
        return file, net.eval()
    return write


def scenes_input(count):
    scenes = data.load("scenes", split="test").sample(count)
    images = torch.stack([scenes.image(i) for i in range(count)])
    return scenes, data.Normalize((0.5,) * 3, (0.25,) * 3, torch.device("cpu"))(images)


def save_scenes(folder, scenes, names):
    """PNG files of scenes."""
    for name, image in zip(names, (scenes.image(i) for i in range(len(names)))):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image.permute(1, 2, 0).numpy()).save(folder / name)


def call(*flags):
    return evaluation.main([str(flag) for flag in flags])


def test_table_scores_and_back(checkpoint, tmp_path, capsys):
    file, net = checkpoint("asl", "--amp", "off")
    scenes, images = scenes_input(20)
    call("--checkpoint", file, "--limit", 20, "--out", tmp_path / "a.json", "--scores",
         tmp_path / "s.npz", "--threshold", 0.501, "--ap", "envelope")
    text, table = capsys.readouterr().out, json.loads((tmp_path / "a.json").read_text())
    scores = net(images).double().sigmoid().detach().numpy()
    expected = metrics(scores, scenes.targets, 0.501, "envelope", [100] * 10 + [10] * 10)
    for name in ("mAP", "head", "tail", "CF1", "OF1_3"):
        assert table[name] == pytest.approx(expected[name], abs=1e-3), name
    assert "20 images" in text and "envelope AP, threshold 0.501" in text
    assert list(table["classes"]) == scenes.classes
    for k, row in enumerate(table["classes"].values()):
        for name in ("AP", "precision", "recall", "F1", "positives"):
            assert row[name] == pytest.approx(expected[name][k], abs=1e-3)
        assert row["threshold"] == 0.501
    with np.load(tmp_path / "s.npz") as saved:  # README's way to score again
        again = metrics(saved["scores"], saved["targets"], 0.501, "envelope")
    assert again["mAP"] == table["mAP"]
    assert again["AP"] == [row["AP"] for row in table["classes"].values()]


def test_what_is_printed_is_what_is_saved(checkpoint, tmp_path, capsys):
    file, _ = checkpoint("asl", "--amp", "off")
    state = torch.load(file)
    names = [*state["classes"][:-1], "a name that is longer than the table is wide, " * 3 + "as here"]
    torch.save(state | {"classes": names}, file)
    header = ",".join(f'"{name}"' for name in names)
    for split in ("train", "test"):  # the last class is empty
        (tmp_path / f"{split}.csv").write_text(
            f"image,{header}\n{split}0.png{',1' * 10}{',0' * 10}\n{split}1.png{',1' * 19},0\n")
    save_scenes(tmp_path, scenes_input(4)[0], ["train0.png", "train1.png", "test0.png", "test1.png"])
    call("--checkpoint", file, "--data", "csv", "--root", tmp_path, "--out", tmp_path / "a.json",
         "--workers", 0, "--threshold", 0)
    table, lines = json.loads((tmp_path / "a.json").read_text()), capsys.readouterr().out.splitlines()
    header = lines.index("      AP  precision  recall      F1  positives")
    for line, (name, row) in zip(lines[header + 1:], table["classes"].items()):
        *figures, positives = line.removesuffix(name).split()
        values = [np.nan if row[n] is None else row[n] for n in ("AP", "precision", "recall", "F1")]
        np.testing.assert_allclose(np.array(figures, float), values, atol=0.0051)
        assert int(positives) == row["positives"] and line == line[:46] + "  " + name
    assert figures == ["nan"] * 4 and line[:46].rstrip()[-1] == "0"
    means = lines.index("      CP      CR     CF1      OP      OR     OF1")
    for line, suffix in zip(lines[means + 1:], ("", "_3")):
        found = [float(figure) for figure in line.split()[:6]]
        expected = [table[name + suffix] for name in ("CP", "CR", "CF1", "OP", "OR", "OF1")]
        np.testing.assert_allclose(found, expected, atol=0.0051)
    assert lines[-1] == f"mAP {table['mAP']:.2f}" and f"tail {table['tail']:.2f}" in lines


def test_thresholds_are_matched_by_name(tmp_path):
    """A table of eval.py and a file of tools.thresholds; classes in another order."""
    file = tmp_path / "t.json"
    for content in ({"threshold": {"b": 0.2, "a": 0.1}},
                    {"classes": {"b": {"threshold": 0.2}, "a": {"threshold": 0.1}}}):
        file.write_text(json.dumps(content))
        assert evaluation.read_threshold(str(file), ["a", "b"]).tolist() == [0.1, 0.2]
    for content in ({"threshold": [0.1, 0.2]}, {"threshold": [0.1, 0.2], "classes": ["a", "b"]},
                    {"threshold": [0.1]}, {"classes": {"a": {"threshold": 0.1}}},
                    {"classes": ["a", "b"]}, {"classes": {"a": 0.1, "b": 0.2}}):
        file.write_text(json.dumps(content))
        with pytest.raises(InputError, match="t.json: .*for these classes") as error:
            evaluation.read_threshold(str(file), ["a", "b"])
        assert "\n" not in str(error.value)


def test_a_threshold_file_is_read_before_the_images(checkpoint, tmp_path, monkeypatch):
    file, _ = checkpoint("csra")
    (tmp_path / "t.json").write_text('{"threshold": 0.5, "logit": "x"}')
    monkeypatch.setattr(evaluation.Evaluation, "load", lambda *_: pytest.fail("the images are loaded"))
    with pytest.raises(InputError, match="t.json: .*write it again with tools.thresholds"):
        evaluation.main(["--checkpoint", str(file), "--threshold", str(tmp_path / "t.json")])


def test_thresholds_are_tuned_on_another_split_and_kept(checkpoint, tmp_path, capsys):
    file, _ = checkpoint("csra", "--amp", "off")
    flags = ["--checkpoint", str(file), "--limit", "60"]
    thresholds.main([*flags, "--split", "train", "--per-class"])
    kept = json.loads((tmp_path / "csra.class_thresholds.json").read_text())
    assert kept["split"] == "train" and len(kept["threshold"]) == 20
    call(*flags, "--split", "train", "--scores", tmp_path / "s.npz")
    saved = np.load(tmp_path / "s.npz")
    of_all = best_threshold(saved["scores"].ravel(), saved["targets"].ravel())
    few = []
    for name, scores, targets in zip(saved["classes"], saved["scores"].T, saved["targets"].T):
        if (targets == 1).sum() < 10:
            few.append(name)
            assert kept["threshold"][name] == of_all
        else:
            assert kept["threshold"][name] == best_threshold(scores, targets)
    assert 0 < len(few) < 20
    assert f", {of_all:.4g}: {', '.join(few)}\n" in capsys.readouterr().out  # they are named
    call(*flags, "--threshold", tmp_path / "csra.class_thresholds.json", "--out", tmp_path / "b.json")
    table = json.loads((tmp_path / "b.json").read_text())
    assert {name: row["threshold"] for name, row in table["classes"].items()} == kept["threshold"]
    again = evaluation.read_threshold(str(tmp_path / "b.json"), table["classes"])
    assert again.tolist() == [*kept["threshold"].values()]
    thresholds.main([*flags, "--split", "train", "--out", str(tmp_path / "one.json")])
    assert isinstance(json.loads((tmp_path / "one.json").read_text())["threshold"], float)
    few = ["--limit", "3", "--split", "train", "--per-class", "--out", str(tmp_path / "few.json")]
    thresholds.main(["--checkpoint", str(file), *few])
    assert "warning: fewer than 10 positives on train, so the threshold is that of" in capsys.readouterr().out
    with pytest.raises(InputError, match="nope.json is missing"):
        call(*flags, "--threshold", tmp_path / "nope.json")
    with pytest.raises(InputError, match=f"{tmp_path} is a folder: .* such as OUT/last.pt"):
        call("--checkpoint", tmp_path)
    with pytest.raises(SystemExit):
        thresholds.main([*flags, "--split", "test"])
    assert "--split" in capsys.readouterr().err


@pytest.mark.slow
def test_predict_names_labels_and_skips_bad_images(checkpoint, tmp_path):
    file, net = checkpoint("asl", "--amp", "off")
    scenes, images = scenes_input(2)
    save_scenes(tmp_path / "images", scenes, ["a.png", "inner/b.PNG"])
    (tmp_path / "images/notes.txt").write_text("no image")
    scores = net(images).double().sigmoid().detach().numpy()
    program = ("-m", "tools.predict", "--checkpoint", file)
    lines = run(*program, tmp_path / "images", "--json", "--threshold", np.median(scores)).splitlines()
    assert len(lines) == 2
    for line, row in zip(map(json.loads, lines), scores):
        expected = {scenes.classes[k]: row[k] for k in range(20) if row[k] > np.median(scores)}
        assert line["labels"] == pytest.approx(expected, abs=1e-3)
    (tmp_path / "images/bad.jpg").write_bytes(b"no image")
    text = run(*program, tmp_path / "images/a.png", tmp_path / "images/bad.jpg", "--threshold", 0.1,
               "--heatmaps", tmp_path / "maps", ok=False)
    assert [file.name for file in (tmp_path / "maps").iterdir()] == ["00000-a.png"]
    assert "images/a.png: " in text and "left out" in text and "bad.jpg" in text
    printed = re.search(r"images/a\.png: (.*)", text).group(1)
    printed = {name: float(score) for name, score in re.findall(r"(\w+ \w+) ([\d.]+)", printed)}
    expected = {scenes.classes[k]: scores[0, k] for k in range(20) if scores[0, k] > 0.1}
    assert printed == pytest.approx(expected, abs=0.006) and "Traceback" not in text
    text = run(*program, tmp_path / "images", "--heatmaps", tmp_path / "maps", ok=False)
    assert "it holds images already" in text and "Traceback" not in text


def test_contact_sheets_of_heat_maps(checkpoint, tmp_path, monkeypatch, capsys):
    small = ["--tile", "56"]  # most of the time is for writing PNG
    scenes, _ = scenes_input(1)
    save_scenes(tmp_path, scenes, ["a.png"])
    for model, each_head, size in (("csra", [], (4 * 72, 6 * 86 + 40)), ("q2l", ["--each-head"],
                                   (9 * 72, 20 * 86 + 40)), ("cprfl", ["--each-head"], None),
                                   ("asl", [], (4 * 72, 6 * 86 + 40))):
        file, _ = checkpoint(model)
        predict.main(["--checkpoint", str(file), str(tmp_path / "a.png"), "--heatmaps",
                      str(tmp_path / model), "--threshold", "0", *small, *each_head])
        sheet, = (tmp_path / model).iterdir()
        assert sheet.name == "00000-a.png" and size in (None, Image.open(sheet).size)
    (tmp_path / "b").mkdir()
    twin = tmp_path / "b/a.png"  # the same name in another folder
    twin.write_bytes((tmp_path / "a.png").read_bytes())
    with pytest.raises(SystemExit):
        predict.main(["--checkpoint", str(file), str(tmp_path), "--each-head"])
    long_name = tmp_path / f"{'x' * 250}.png"
    long_name.write_bytes((tmp_path / "a.png").read_bytes())
    predict.main(["--checkpoint", str(file), str(tmp_path / "a.png"), str(long_name), str(twin),
                  "--heatmaps", str(tmp_path / "none"), "--threshold", "1", *small])  # top three
    sheets = sorted((tmp_path / "none").iterdir())
    assert [sheet.name[:7] for sheet in sheets] == ["00000-a", "00001-x", "00002-a"]
    assert Image.open(sheets[0]).size == (4 * 72, 86 + 40)
    monkeypatch.delattr(asl.Baseline, "attention")  # an own method may lack it
    with pytest.raises(InputError, match="no `attention`"):
        predict.main(["--checkpoint", str(file), str(tmp_path / "a.png"), "--heatmaps",
                      str(tmp_path / "lacking")])


def test_captions_of_the_top_three_and_of_all_labels_above_their_thresholds(checkpoint, tmp_path,
                                                                            monkeypatch):
    file, net = checkpoint("asl", "--amp", "off")
    scenes, images = scenes_input(1)
    save_scenes(tmp_path, scenes, ["a.png"])
    scores = net(images).double().sigmoid().squeeze(0).detach().numpy()
    order = np.argsort(-scores)
    second, last = scenes.classes[order[1]], scenes.classes[order[-1]]
    limits = {"threshold": dict.fromkeys(scenes.classes, 1.0) | {second: 0.0, last: 0.0}}
    (tmp_path / "limits.json").write_text(json.dumps(limits))
    drawn = []

    def contact_sheet(*arguments):
        drawn.append(arguments)
        return Image.new("RGB", (9, 9))
    monkeypatch.setattr(predict, "contact_sheet", contact_sheet)
    predict.main(["--checkpoint", str(file), str(tmp_path / "a.png"), "--threshold",
                  str(tmp_path / "limits.json"), "--heatmaps", str(tmp_path / "maps")])
    _, maps, probabilities, names, verdicts, title, *_ = drawn[0]
    assert names == [scenes.classes[k] for k in order[[0, 1, 2, -1]]] and title == "a.png"
    assert verdicts == ["below threshold", "", "below threshold", ""]
    np.testing.assert_allclose(probabilities, scores[order[[0, 1, 2, -1]]], atol=1e-3)
    means = maps.mean((1, 2)).double().sigmoid().numpy()  # of these maps, they are the logits
    np.testing.assert_allclose(means, probabilities, atol=1e-3)


def test_captions_say_which_labels_are_right_wrong_and_missed(checkpoint, tmp_path, monkeypatch,
                                                              capsys):
    checkpoint, _ = checkpoint("asl", "--amp", "off")
    scenes, _ = scenes_input(2)
    save_scenes(tmp_path, scenes, ["0.png", "1.png"])
    files = [str(tmp_path / "0.png"), str(tmp_path / "1.png")]
    predict.main(["--checkpoint", str(checkpoint), *files, "--threshold", "0", "--json"])
    found = [json.loads(line)["labels"] for line in capsys.readouterr().out.splitlines()]
    classes = scenes.classes
    ranked = sorted(classes, key=found[0].get, reverse=True)
    # above the threshold: the first two and the fourth
    limits = {"threshold": dict.fromkeys(classes, 1.0) | dict.fromkeys(ranked[:2] + ranked[3:4], 0.0)}
    (tmp_path / "limits.json").write_text(json.dumps(limits))
    captions = []

    def contact_sheet(image, maps, scores, names, verdicts, *rest):
        captions.append(list(zip(names, verdicts)))
        assert maps.shape[-3] == len(scores) == len(names)
        return Image.new("RGB", (9, 9))
    monkeypatch.setattr(predict, "contact_sheet", contact_sheet)

    def captions_with(text):
        table = tmp_path / "truth.csv"
        table.write_text(text)
        maps = tmp_path / f"maps{len(captions)}"
        predict.main(["--checkpoint", str(checkpoint), *files, "--heatmaps", str(maps),
                      "--threshold", str(tmp_path / "limits.json"), "--labels", str(table)])
        return captions[-1]
    first, second, third, fourth, *_, last = ranked
    expected = [(first, "right"), (second, "wrong"), (third, "below threshold"), (fourth, "wrong"),
                (last, "missed")]
    assert captions_with(f"image,labels\n0.png,{first};{last}\n") == expected
    printed = capsys.readouterr()  # the other image has no row
    assert printed.out.startswith(files[0]) and len(captions) == len(printed.out.splitlines()) == 1
    assert printed.err == f"left out: 1 images without a row in {tmp_path / 'truth.csv'}\n"

    order = classes[::-1]  # columns in another order than the model's, one of them unknown
    codes = {first: "1", second: "", last: "1"}
    row = ",".join(codes.get(name, "0") for name in order)
    expected[1] = (second, "")
    assert captions_with(f"{','.join(order)},image\n{row},0.png\n") == expected

    # one label in each row, some of them made of other labels, as the data set has them
    rows = "".join(f"{i}.png,{name}\n" for i, name in enumerate([*classes, first]))
    assert captions_with(f"image,labels\n{rows}")
    assert captions_with(f'image,labels\n0.png,{first};{last}\n"1.png::0,0,5,5",{last}\n')
    assert f"left out: 1 rows of {tmp_path / 'truth.csv'}, which are boxes" in capsys.readouterr().err
    for text, message in (
            ("image,labels\n9.png,\n0.png,emu\n", "truth.csv: row 3: the model has no {'emu'}"),
            (f"image,{first}\n0.png,1\n", "truth.csv: row 1: no columns"),
            (f"image,labels\nphotos/0.png,{first}\n", "truth.csv has no row for any of the images")):
        with pytest.raises(InputError, match=message):
            captions_with(text)
    for flags in (["--labels", "x.csv"], ["--labels", "x.csv", "--heatmaps", "m", "--top", "2"]):
        with pytest.raises(SystemExit):
            predict.main(["--checkpoint", str(checkpoint), *files, *flags])


def test_residual_flip_and_sizes(checkpoint, tmp_path):
    _, images = scenes_input(6)

    def scores(file, *flags):
        call("--checkpoint", file, "--limit", 6, "--scores", tmp_path / "s.npz", *flags)
        return np.load(tmp_path / "s.npz")["scores"]
    file, net = checkpoint("asl", "--amp", "off")
    with torch.no_grad():
        x = net.features(images)
        s = torch.einsum("bdhw,kd->bkhw", x, net.head.weight) + net.head.bias[:, None, None]
        expected = (s.mean((2, 3)) + 0.3 * s.amax((2, 3))).sigmoid()
        np.testing.assert_allclose(scores(file, "--residual", 0.3), expected, atol=1e-5)
        expected = (net(images).sigmoid() + net(images.flip(3)).sigmoid()) / 2
        np.testing.assert_allclose(scores(file, "--flip"), expected, atol=1e-5)
        pair = (scores(file, "--image-size", 96) + scores(file, "--sizes", "128")) / 2
        np.testing.assert_allclose(scores(file, "--sizes", "96,128"), pair, atol=1e-9)
        assert abs(pair - net(images).sigmoid().numpy()).max() > 1e-4
        file, net = checkpoint("csra", "--amp", "off", "--lam", "0")
        s = net.head.scores(net.features(images))[:, 0]
        expected = (s.mean(-1) + 0.3 * s.amax(-1)).sigmoid()
        np.testing.assert_allclose(scores(file, "--residual", 0.3), expected, atol=1e-5)
    with pytest.raises(InputError, match="pooled linear"):
        call("--checkpoint", checkpoint("q2l")[0], "--residual", 0.3)
    with pytest.raises(InputError, match="pooled linear"):
        call("--checkpoint", checkpoint("cprfl")[0], "--residual", 0.3)


def test_where_nothing_can_be_written_is_said_before_the_work(checkpoint, tmp_path, monkeypatch):
    file, _ = checkpoint("asl")
    monkeypatch.setattr(evaluation, "model_of", None)  # the work
    inside = str(file / "inside/x")  # in a file
    for flag in ("--out", "--scores"):
        with pytest.raises(InputError, match="choose another place to write to"):
            call("--checkpoint", file, flag, inside)
    with pytest.raises(InputError, match="choose another place to write to"):
        predict.main(["--checkpoint", str(file), str(file), "--heatmaps", inside])
    with pytest.raises(InputError, match="choose another place to write to"):
        voc_server.main(["--checkpoint", str(file), "--root", "x", "--out", inside])
    with pytest.raises(InputError, match="choose another place to write to"):
        thresholds.main(["--checkpoint", str(file), "--split", "train", "--out", inside])
    for flags in (("--out", file), ("--scores", file), ("--out", tmp_path / "x", "--scores", tmp_path / "x")):
        with pytest.raises(InputError, match="another flag names the same file"):
            call("--checkpoint", file, *flags)
    with pytest.raises(SystemExit):
        call("--checkpoint", file, "--limit", -5)


@pytest.mark.parametrize("backbone, trained, size, family, window", [
    ("test_vit", 128, 160, timm.models.vision_transformer, {}),
    ("swin_tiny_patch4_window7_224", 224, 256, timm.models.swin_transformer, {"window_size": 8})])
@pytest.mark.slow
def test_other_image_sizes_are_as_timm_converts_them(checkpoint, tmp_path, backbone, trained, size,
                                                     family, window):
    flags = ("--backbone", backbone, "--output-stride", "none", "--amp", "off")
    file, net = checkpoint("csra", *flags, "--image-size", str(trained))
    call("--checkpoint", file, "--limit", 3, "--image-size", size, "--scores", tmp_path / "s.npz")
    method, settings = read_command_line(["--model", "csra", *flags, "--image-size", str(size)])
    scenes = data.load("scenes", split="test").sample(3)
    other = build_model(method, settings, scenes.classes).eval()
    other.backbone = timm.create_model(backbone, num_classes=0, global_pool="", img_size=size,
                                       **window).eval()
    state = net.backbone.state_dict()  # old timm versions would rename the layers between stages
    between = {name: state.pop(name) for name in [*state] if "downsample" in name}
    state = family.checkpoint_filter_fn(state, other.backbone) | between
    other.backbone.load_state_dict(state)
    other.head.load_state_dict(net.head.state_dict())
    images = torch.stack([data.transform(size)(scenes.image(i)) for i in range(3)])
    with torch.no_grad():
        normalize = data.Normalize((0.5,) * 3, (0.25,) * 3, torch.device("cpu"))
        expected = other(normalize(images))
    np.testing.assert_allclose(np.load(tmp_path / "s.npz")["scores"], expected.sigmoid(), atol=1e-5)
    scores = []
    for sizes in (size, trained, f"{size},{trained}"):  # back at the trained size, nothing is lost
        call("--checkpoint", file, "--limit", 3, "--sizes", sizes, "--scores", tmp_path / "s.npz")
        scores.append(np.load(tmp_path / "s.npz")["scores"])
    np.testing.assert_allclose(scores[2], (scores[0] + scores[1]) / 2, atol=1e-9)


def test_voc_server_files(checkpoint, tmp_path, monkeypatch):
    file, _ = checkpoint("asl")
    state = torch.load(file)
    net = build_model(__import__("asl"), argparse.Namespace(**state["settings"]), voc.CLASSES)
    torch.save(state | {"classes": voc.CLASSES, "model": net.state_dict()}, file)
    folder = tmp_path / "VOCdevkit/VOC2012"
    (folder / "ImageSets/Main").mkdir(parents=True)
    (folder / "JPEGImages").mkdir()
    (folder / "ImageSets/Main/test.txt").write_text("2008_000001\n2008_000004\n")
    for name in ("2008_000001", "2008_000004"):
        Image.fromarray(draw_scene("scene:1/0")).save(folder / f"JPEGImages/{name}.jpg")
    voc_server.main(["--checkpoint", str(file), "--root", str(tmp_path), "--out",
                     str(tmp_path / "out")])
    files = sorted((tmp_path / "out/results/VOC2012/Main").iterdir())
    assert [f.name for f in files] == [f"comp2_cls_test_{name}.txt" for name in voc.CLASSES]
    lines = [line.split() for line in files[3].read_text().splitlines()]
    assert [line[0] for line in lines] == ["2008_000001", "2008_000004"]
    assert all(0 < float(line[1]) < 1 for line in lines)


def test_an_unreadable_image_ends_the_evaluation_in_one_line(checkpoint, tmp_path):
    file, _ = checkpoint("asl")
    scenes = data.load("scenes", split="test")
    names = ",".join(scenes.classes)
    for split in ("train", "test"):
        (tmp_path / f"{split}.csv").write_text(
            f"image,{names}\n" + "".join(f"{n}.png{',1' * 20}\n" for n in "ab"))
    Image.fromarray(draw_scene("scene:1/0")).save(tmp_path / "a.png")
    (tmp_path / "b.png").write_bytes(b"")
    for workers in (0, 1):
        with pytest.raises(InputError, match="b.png") as error:
            call("--checkpoint", file, "--data", "csv", "--root", tmp_path, "--workers", workers)
        assert str(error.value).startswith(f"{tmp_path}/b.png") and "\n" not in str(error.value)
