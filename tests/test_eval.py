"""The metrics against definitions written out by brute force; what eval.py does with a checkpoint."""
import json
import time

import numpy as np
import pytest
import timm
import torch
from conftest import run
from PIL import Image

import data
import eval as evaluation
from data import InputError
from eval import KINDS, average_precision, best_threshold, metrics
from lib import maps, predict
from lib.methods import build_model
from lib.order import sample
from lib.settings import settings_of
from sets import voc
from sets.scenes import draw as draw_scene


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
        have = [c for c in counts if c[2]] or [(0, 0, 1)]
        tp, predicted, positives = map(sum, zip(*counts))
        for name, p, r in (
                ("C", np.mean([t / p if p else 0 for t, p, _ in have]),
                 np.mean([t / n for t, _, n in have])),
                ("O", tp / predicted if predicted else 0, tp / positives if positives else 0)):
            result |= {f"{name}P{suffix}": p, f"{name}R{suffix}": r,
                       f"{name}F1{suffix}": 2 * p * r / (p + r) if p + r else 0}
    return {name: 100 * value for name, value in result.items()}


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
        method, settings = settings_of(["--model", model, *SMALL[model], *flags])
        scenes = data.load("scenes", split="test")
        with torch.random.fork_rng():
            torch.manual_seed(3)
            net = build_model(method, settings, scenes.classes)
        file = tmp_path / f"{model}.pt"
        torch.save({"model": net.state_dict(), "ema": None, "settings": settings | {"workers": 0},
                    "classes": scenes.classes, "counts": [100] * 10 + [10] * 10}, file)
        return file, net.eval()
    return write


def scenes_input(count):
    scenes = sample(data.load("scenes", split="test"), count)
    images = torch.stack([scenes.image(i) for i in range(count)])
    return scenes, data.normalize(images, torch.device("cpu"), (0.5,) * 3, (0.25,) * 3)


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
        assert f"{name} {table[name]:.2f}" in text
    assert "20 images" in text and "envelope AP, threshold 0.501" in text
    empty = [n for n, count in zip(scenes.classes, scenes.targets.sum(0)) if not count]
    assert f"left out of the means: {', '.join(empty) or 'none'}" in text
    call("--from-scores", tmp_path / "s.npz", "--ap", "envelope", "--threshold", 0.501, "--out",
         tmp_path / "b.json")
    again = json.loads((tmp_path / "b.json").read_text())
    assert {k: v for k, v in again.items() if k != "what"} == {
        k: v for k, v in table.items() if k != "what"}
    np.savez(tmp_path / "logits.npz", scores=scores * 9, targets=scenes.targets,
             classes=scenes.classes)
    with pytest.raises(InputError, match="logits.npz.*outside"):
        call("--from-scores", tmp_path / "logits.npz")


def test_thresholds_are_tuned_on_another_split_and_kept(checkpoint, tmp_path, capsys):
    file, _ = checkpoint("csra", "--amp", "off")
    call("--checkpoint", file, "--limit", 30, "--tune-threshold", "train", "--per-class", "--out",
         tmp_path / "a.json")
    kept = json.loads((tmp_path / "csra.thresholds.json").read_text())
    table = json.loads((tmp_path / "a.json").read_text())
    assert kept["split"] == table["tuned_on"] == "train"
    assert [*kept["threshold"].values()] == table["threshold"] and len(table["threshold"]) == 20
    call("--checkpoint", file, "--limit", 30, "--threshold", tmp_path / "csra.thresholds.json",
         "--out", tmp_path / "b.json")
    assert json.loads((tmp_path / "b.json").read_text())["OF1"] == table["OF1"]
    with pytest.raises(SystemExit):
        call("--checkpoint", file, "--tune-threshold", "test")
    assert "tune on another" in capsys.readouterr().err


@pytest.mark.slow
def test_predict_names_labels_and_skips_bad_images(checkpoint, tmp_path):
    file, net = checkpoint("asl", "--amp", "off")
    scenes, images = scenes_input(2)
    (tmp_path / "images/inner").mkdir(parents=True)
    for name, i in (("a.png", 0), ("inner/b.PNG", 1)):
        Image.fromarray(scenes.image(i).permute(1, 2, 0).numpy()).save(
            tmp_path / "images" / name)
    (tmp_path / "images/notes.txt").write_text("no image")
    scores = net(images).double().sigmoid().detach().numpy()
    lines = run("eval.py", "--checkpoint", file, "--predict", tmp_path / "images", "--json",
                "--threshold", np.median(scores)).splitlines()
    for line, row in zip(map(json.loads, lines), scores):
        expected = {scenes.classes[k]: row[k] for k in range(20) if row[k] > np.median(scores)}
        assert line["labels"] == pytest.approx(expected, abs=1e-3)
    (tmp_path / "images/bad.jpg").write_bytes(b"no image")
    text = run("eval.py", "--checkpoint", file, "--predict", tmp_path / "images/a.png",
               tmp_path / "images/bad.jpg", "--threshold", 0.1, "--heatmaps", tmp_path / "maps",
               ok=False)
    assert [file.name for file in (tmp_path / "maps").iterdir()] == ["00000-a.png"]
    assert "images/a.png: " in text and "left out" in text and "bad.jpg" in text
    assert "red circle 0.5" in text and "Traceback" not in text


def test_contact_sheets_of_heat_maps(checkpoint, tmp_path, monkeypatch):
    monkeypatch.setattr(maps, "WIDTH", 56)  # small tiles: most of the time is for writing PNG
    for model, each_head, size in (("csra", [], (6 * 60, 4 * 78)), ("q2l", ["--each-head"],
                                   (9 * 60, 20 * 78)), ("cprfl", ["--each-head"], None),
                                   ("asl", [], (6 * 60, 4 * 78))):
        file, _ = checkpoint(model)
        call("--checkpoint", file, "--limit", 1, "--heatmaps", tmp_path / model, "--threshold", 0,
             *each_head)
        sheet, = (tmp_path / model).iterdir()
        assert sheet.name.startswith("00000-") and size in (None, Image.open(sheet).size)


def test_contact_sheets_show_what_the_views_predict(checkpoint, tmp_path, monkeypatch):
    def drawn(folder, attention, data, scores, *_):
        assert np.array_equal(scores, np.load(tmp_path / "s.npz")["scores"])
        drawn.indices = [i for i, _ in attention]
    monkeypatch.setattr(maps, "draw_heatmaps", drawn)
    flags = ("--checkpoint", checkpoint("csra")[0], "--limit", 3, "--flip", "--sizes", "96,128")
    call(*flags, "--scores", tmp_path / "s.npz")
    call(*flags, "--heatmaps", tmp_path / "maps")
    assert drawn.indices == [0, 1, 2]


def test_maps_lie_at_their_receptive_fields():
    one = torch.zeros(1, 8, 8)
    one[0, 2, 5] = 1
    for offset, place in (((0, 0), (5.5, 2.5)), ((0.05, -0.1), (5.5 + 0.4, 2.5 - 0.8))):
        large = maps.enlarge(one, 160, 320, offset)[0]
        y, x = divmod(large.argmax().item(), 320)
        assert ((x + 0.5) / 40, (y + 0.5) / 20) == pytest.approx(place, abs=0.051)

    class Strided(torch.nn.Module):
        def features(self, x):  # cell i sees pixels 4 i - 1 to 4 i + 1; its own are 4 i to 4 i + 3
            return torch.nn.functional.conv2d(x, torch.ones(2, 3, 3, 3), stride=(2, 4), padding=1)
    offset = maps.view_offset(Strided(), 64)
    assert offset == pytest.approx([-1.5 / 64, -0.5 / 64])  # x, y


def test_pointing_game():
    found_maps = torch.zeros(2, 3, 4, 4)  # heads, K, h, w
    found_maps[:, 0, 1, 2], found_maps[:, 1, 3, 3], found_maps[:, 2, 0, 0] = 1, 1, 1
    inside, outside = (0.5, 0.25, 0.75, 0.5), (0.0, 0.5, 0.2, 0.9)
    found = [[(0, *outside, False), (0, *inside, True), (1, *inside, True), (1, *outside, True)]]
    result = maps.pointing([(0, found_maps), (1, found_maps)], [*found, []], (0, 0),
                           np.array([[1, 1, 0], [0, 0, 0]]), [0, 1, 2])
    assert result == {"pointing": 50.0, "pointing_small": 0.0, "pointing_pairs": 2,
                      "pointing_small_pairs": 1}
    turned = [[(5 - box[0], *box[1:]) for box in found[0]]]  # the boxes' own class numbers
    assert result == maps.pointing([(0, found_maps), (1, found_maps)], [*turned, []], (0, 0),
                                   np.array([[1, 1, 0], [0, 0, 0]]), [5, 4, 3])
    result = maps.pointing([(0, found_maps[0])], found, (-0.3, 0), np.array([[1, 0, 0]]), [0, 1, 2])
    assert result == {"pointing": 0.0, "pointing_pairs": 1, "pointing_small_pairs": 0}


def test_pointing_from_the_command_line(checkpoint, tmp_path, capsys):
    call("--checkpoint", checkpoint("asl")[0], "--limit", 20, "--pointing", "--out",
         tmp_path / "a.json")
    scenes, _ = scenes_input(20)
    assert json.loads((tmp_path / "a.json").read_text())["pointing_pairs"] == scenes.targets.sum()
    assert "pairs of image and class" in capsys.readouterr().out


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
        predict.add_residual(torch.nn.Identity(), 0.3)  # no head, as in cprfl.py


def test_where_nothing_can_be_written_is_said_before_the_work(checkpoint, tmp_path, monkeypatch):
    file, _ = checkpoint("asl")
    monkeypatch.setattr(predict, "open_model", None)  # the work
    for flag in ("--out", "--scores", "--heatmaps", "--voc-server"):
        with pytest.raises(InputError, match="choose another place to write to"):
            call("--checkpoint", file, flag, file / "inside" / "x")
    with pytest.raises(SystemExit):
        call("--checkpoint", file, "--limit", -5)


def test_what_was_not_released_is_an_error(tmp_path):
    file = tmp_path / "other.pth"
    for content in ([1], {"state_dict": {"odd": torch.zeros(1)}}):
        torch.save(content, file)
        for model in ("csra", "q2l"):
            with pytest.raises(InputError, match=f"other.pth: .*{model}'s authors"):
                call("--model", model, "--official", file, "--data", "scenes")


@pytest.mark.parametrize("backbone, trained, size, family, window", [
    ("test_vit", 128, 160, timm.models.vision_transformer, {}),
    ("swin_tiny_patch4_window7_224", 224, 256, timm.models.swin_transformer, {"window_size": 8})])
@pytest.mark.slow
def test_other_image_sizes_are_as_timm_converts_them(checkpoint, tmp_path, backbone, trained, size,
                                                     family, window):
    flags = ("--backbone", backbone, "--output-stride", "none", "--amp", "off")
    file, net = checkpoint("csra", *flags, "--image-size", str(trained))
    call("--checkpoint", file, "--limit", 3, "--image-size", size, "--scores", tmp_path / "s.npz")
    method, settings = settings_of(["--model", "csra", *flags, "--image-size", str(size)])
    scenes = sample(data.load("scenes", split="test"), 3)
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
        expected = other(data.normalize(images, torch.device("cpu"), (0.5,) * 3, (0.25,) * 3))
    np.testing.assert_allclose(np.load(tmp_path / "s.npz")["scores"], expected.sigmoid(), atol=1e-5)
    scores = []
    for sizes in (size, trained, f"{size},{trained}"):  # back at the trained size, nothing is lost
        call("--checkpoint", file, "--limit", 3, "--sizes", sizes, "--scores", tmp_path / "s.npz")
        scores.append(np.load(tmp_path / "s.npz")["scores"])
    np.testing.assert_allclose(scores[2], (scores[0] + scores[1]) / 2, atol=1e-9)


def test_voc_server_files(checkpoint, tmp_path, monkeypatch):
    file, _ = checkpoint("asl")
    state = torch.load(file)
    net = build_model(__import__("asl"), state["settings"], voc.CLASSES)
    torch.save(state | {"classes": voc.CLASSES, "model": net.state_dict()}, file)
    folder = tmp_path / "VOCdevkit/VOC2012"
    (folder / "ImageSets/Main").mkdir(parents=True)
    (folder / "JPEGImages").mkdir()
    (folder / "ImageSets/Main/test.txt").write_text("2008_000001\n2008_000004\n")
    for name in ("2008_000001", "2008_000004"):
        Image.fromarray(draw_scene("scene:1/0")[0]).save(folder / f"JPEGImages/{name}.jpg")
    call("--checkpoint", file, "--data", "voc2012", "--root", tmp_path, "--voc-server",
         tmp_path / "out")
    files = sorted((tmp_path / "out/results/VOC2012/Main").iterdir())
    assert [f.name for f in files] == [f"comp2_cls_test_{name}.txt" for name in voc.CLASSES]
    lines = [line.split() for line in files[3].read_text().splitlines()]
    assert [line[0] for line in lines] == ["2008_000001", "2008_000004"]
    assert all(0 < float(line[1]) < 1 for line in lines)


def test_unreadable_images_are_an_error_or_counted(checkpoint, tmp_path, capsys):
    file, _ = checkpoint("asl")
    scenes = data.load("scenes", split="test")
    names = ",".join(scenes.classes)
    for split in ("train", "test"):
        (tmp_path / f"{split}.csv").write_text(
            f"image,{names}\n" + "".join(f"{n}.png{',1' * 20}\n" for n in "ab"))
    Image.fromarray(draw_scene("scene:1/0")[0]).save(tmp_path / "a.png")
    (tmp_path / "b.png").write_bytes(b"")
    flags = ("--checkpoint", file, "--data", "csv", "--root", tmp_path)
    with pytest.raises(InputError, match="b.png"):
        call(*flags)
    call(*flags, "--skip-bad", 1)
    said = capsys.readouterr()
    assert "1 images" in said.out and "left out" in said.err and "b.png" in said.err
