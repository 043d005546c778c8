"""The loop through the command line: short real runs, resumed runs, and what goes wrong."""
import copy
import importlib
import json
import math

import numpy as np
import pytest
import torch
from conftest import default_settings, run
from PIL import Image
from torch.utils.data import DistributedSampler

import asl
import csra
import data
import eval as evaluation
import train
from data import InputError
from lib.models import settings_for
from lib.settings import make_parser, read_command_line

METHODS = ("csra", "q2l", "cprfl", "asl")
QUICK = ("--limit", 64, "--batch-size", 16, "--workers", 0)


def log(folder):
    return [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]


@pytest.mark.slow
def test_run_evaluate_and_repeat(tmp_path):
    text = run("csra.py", *QUICK, "--epochs", 2, "--lam", 0.5, "--out", tmp_path / "a")
    run("train.py", "--model", "csra", *QUICK, "--epochs", 2, "--lam", 0.5, "--workers", 2,
        "--out", tmp_path / "b")
    a, b = log(tmp_path / "a"), log(tmp_path / "b")
    assert a[0]["settings"]["lam"] == 0.5 and a[0]["settings"]["heads"] == 1 and "lam=0.5" in text
    assert [line["epoch"] for line in a[1:3]] == [1, 2] and a[-1]["mAP"] == a[2]["mAP"] > 0
    assert a[1]["loss"] == b[1]["loss"] and a[-1]["mAP"] == b[-1]["mAP"]  # whatever the workers
    table = run("eval.py", "--checkpoint", tmp_path / "a/last.pt")
    assert f"mAP {a[-1]['mAP']:.2f}\n" in table and "red circle" in table and "all-points" in table


def test_the_log_has_the_learning_rate_of_the_last_step(tmp_path):
    """OneCycleLR ends at 1/25/10,000 of its peak, and would rise again after that."""
    train.main(["--model", "csra", *map(str, QUICK), "--epochs", "2", "--image-size", "32",
                "--head-lr", "1", "--lr", "1e-3", "--out", str(tmp_path / "a")])
    assert log(tmp_path / "a")[2]["lr"] == pytest.approx(1e-3 / 25 / 1e4)


@pytest.mark.parametrize("model, ema", [
    pytest.param("csra", 0, marks=pytest.mark.slow),
    pytest.param("q2l", 0.9, marks=pytest.mark.slow)])
def test_resume_goes_on_bit_for_bit(tmp_path, model, ema, monkeypatch):
    """Q2L with dropout, so that the random state counts; CSRA with two learning rates."""
    method = [model, *(["--dropout", "0.1", "--data", "scenes"] if model == "q2l" else [])]
    argv = ["--model", *method, "--limit", "64", "--batch-size", "16", "--epochs", "3", "--workers",
            "0", "--ema", str(ema), "--schedule", "step", "--warmup-epochs", "1", "--out"]
    train.main([*argv, str(tmp_path / "whole")])
    save, saved = train.save, []

    def stop_after_two(checkpoint, path):
        save(checkpoint, path)
        saved.append(path)
        if len(saved) == 2:
            raise KeyboardInterrupt
    monkeypatch.setattr(train, "save", stop_after_two)
    with pytest.raises(KeyboardInterrupt):
        train.main([*argv, str(tmp_path / "cut")])
    monkeypatch.undo()
    with pytest.raises(SystemExit, match="--resume"):
        train.main([*argv, str(tmp_path / "cut")])
    with pytest.raises(SystemExit, match="other settings for lr"):
        train.main([*argv, str(tmp_path / "cut"), "--resume", "--lr", "9"])
    train.main(["--model", model, "--resume", "--out", str(tmp_path / "cut")])
    states = [torch.load(tmp_path / name / "last.pt") for name in ("whole", "cut")]
    for part in ("model", "ema") if ema else ("model",):
        one, two = (state[part] for state in states)
        assert all(torch.equal(one[name], two[name]) for name in one)
    assert [line["epoch"] for line in log(tmp_path / "cut")[1:-1]] == [1, 2, 3]
    assert log(tmp_path / "cut")[-1]["weights"] == ("ema" if ema else "raw")


@pytest.mark.slow
def test_the_average_of_a_short_run_is_near_its_raw_weights(tmp_path):
    """Its decay warms up; without that, the average would be almost the initial weights: 17.1 mAP."""
    train.main(["--model", "csra", "--epochs", "8", "--workers", "0", "--ema", "0.9997", "--out",
                str(tmp_path / "run")])
    last, tables = log(tmp_path / "run")[-1], {}
    for weights in ("ema", "raw", None):
        evaluation.main(["--checkpoint", str(tmp_path / "run/last.pt"), "--workers", "0", "--out",
                         str(tmp_path / "t.json"), *(["--weights", weights] if weights else [])])
        tables[weights] = json.loads((tmp_path / "t.json").read_text())
    assert tables[None]["mAP"] == tables["ema"]["mAP"] == pytest.approx(last["mAP"])
    assert abs(tables["ema"]["mAP"] - tables["raw"]["mAP"]) < 1 and last["mAP"] > 95
    assert tables["ema"]["mAP"] != tables["raw"]["mAP"] and last["weights"] == "ema"
    assert "ema weights" in tables["ema"]["what"] and "raw weights" in tables["raw"]["what"]


@pytest.mark.parametrize("warmup, start", [(True, 0), (False, 0), (False, 3), (True, 3)])
def test_the_average_matches_its_formula(warmup, start):
    """Against a loop in float64. Up to its start, the average is a copy of the weights."""
    model = torch.nn.Sequential(torch.nn.Linear(3, 2), torch.nn.BatchNorm1d(2))
    average = copy.deepcopy(model).requires_grad_(False)
    expected = {name: x.double() for name, x in model.state_dict().items()}
    for n in range(8):
        for x in model.state_dict().values():  # weights and statistics
            if x.is_floating_point():
                x.normal_()
        train.update_average(average, model, train.average_decay(0.5, warmup, n - start))
        decay = 0.5
        if warmup:
            decay = min(0.5, (1 + n - start) / (10 + n - start))
        if n < start:
            decay = 0
        for name, x in model.state_dict().items():
            expected[name] = decay * expected[name] + (1 - decay) * x.double()
    for name, x in average.state_dict().items():
        if x.is_floating_point():
            torch.testing.assert_close(x.double(), expected[name], rtol=1e-5, atol=1e-6)


def test_epochs_alone_end_the_schedule():
    def settings(*flags):
        return read_command_line(["--model", "cprfl", "--data", "voc-lt", *flags])[1]
    assert settings().schedule_epochs == 80
    given = settings("--epochs", "5")
    assert (given.epochs, given.schedule_epochs) == (5, 0)
    assert settings("--epochs", "5", "--schedule-epochs", "9").schedule_epochs == 9
    assert (settings().lr, settings().epochs) == (1e-5, 29)


@pytest.mark.parametrize("model, flags, keywords", [
    ("asl", ("--margin", 0), {"margin": 0.0}), ("asl", ("--gamma-neg", 0), {"gamma_neg": 0.0}),
    ("asl", ("--no-detach",), {"detach": False}),
    ("q2l", ("--gamma-neg", 1, "--data", "scenes"), {"gamma_neg": 1.0}),
    pytest.param("cprfl", ("--margin", 0.2, "--data", "scenes"), {"margin": 0.2},
                 marks=pytest.mark.slow)])
def test_keywords_of_the_loss_are_flags(model, flags, keywords, tmp_path):
    argv = ["--model", model, *map(str, QUICK), "--epochs", "1", *map(str, flags)]
    train.main([*argv, "--out", str(tmp_path / "a")])
    first = log(tmp_path / "a")[0]
    assert first["settings"].items() >= keywords.items()
    method, s = read_command_line(argv)
    loss, reduction = train.choose_loss(method, s, [5] * 20, 64, torch.device("cpu"))
    assert reduction == method.REDUCTION
    z, y = torch.randn(4, 20), torch.randint(0, 2, (4, 20))
    assert torch.equal(loss(z, y), method.loss(z, y, **keywords))
    assert not torch.equal(loss(z, y), method.loss(z, y)) or "detach" in keywords
    with pytest.raises(SystemExit):
        read_command_line([*argv, "--loss", "bce"])


@pytest.mark.parametrize("name, flags, keywords", [
    ("asl", [], {}), ("cprfl", ["--data", "scenes"], {}),
    ("q2l", [], {"gamma_neg": 0.0, "eps": 1e-12}), ("csra", [], {})])
def test_the_loss_of_a_flag_has_the_scale_of_the_methods_own(name, flags, keywords):
    """--loss asl with a method's own gammas is that method's loss, with the same gradient."""
    method, s = read_command_line(["--model", name, *flags])
    s.loss = "asl" if name in ("asl", "cprfl") else "bce"
    loss, reduction = train.choose_loss(method, s, [5] * 20, 64, torch.device("cpu"))
    assert reduction == method.REDUCTION
    z = torch.randn(4, 20, dtype=torch.float64, requires_grad=True)
    y = torch.randint(0, 2, (4, 20))
    own = method.loss(z, y, **keywords)
    torch.testing.assert_close(loss(z, y), own)
    found, = torch.autograd.grad(loss(z, y), z)
    expected, = torch.autograd.grad(own, z)
    torch.testing.assert_close(found, expected)
    s.loss = "db"
    with_scale, _ = train.choose_loss(method, s, [5] * 20, 64, torch.device("cpu"))
    db = asl.loss_by_name("db", torch.full((20,), 5), 64, s.data)(z, y)
    factor = {"asl": 80, "q2l": 1000}.get(name, 1)
    torch.testing.assert_close(with_scale(z, y), factor * db)


@pytest.mark.slow
def test_each_epoch_draws_its_own_random_numbers(tmp_path, monkeypatch):
    seeds, plain = [], torch.manual_seed
    monkeypatch.setattr(torch, "manual_seed", lambda seed: seeds.append(seed) or plain(seed))
    for seed in "01":
        train.main(["--model", "csra", *map(str, QUICK), "--epochs", "2", "--seed", seed, "--out",
                    str(tmp_path / seed)])
    assert len(set(seeds)) == len(seeds) == 2 * (1 + 2)  # the model's, then two epochs'


def test_each_epoch_has_its_own_order_and_augmentations(tmp_path, monkeypatch):
    epochs = {"images": [], "order": []}
    monkeypatch.setattr(data.Dataset, "set_epoch", lambda self, epoch: epochs["images"].append(epoch))
    monkeypatch.setattr(DistributedSampler, "set_epoch", lambda self, epoch: epochs["order"].append(epoch))
    train.main(["--model", "csra", *map(str, QUICK), "--image-size", "32", "--epochs", "3",
                "--out", str(tmp_path)])
    assert epochs == {"images": [0, 1, 2], "order": [0, 1, 2]}


def test_a_loss_that_is_not_finite_stops_the_run(tmp_path, capsys, monkeypatch):
    loss, calls = csra.loss, []

    def explode(logits, targets):
        calls.append(1)
        return loss(logits, targets) * (math.nan if len(calls) == 7 else 1)
    monkeypatch.setattr(csra, "loss", explode)
    with pytest.raises(SystemExit, match="the loss is nan in epoch 2: lower --lr"):
        train.main(["--model", "csra", *map(str, QUICK), "--epochs", "3", "--out", str(tmp_path)])
    assert len(torch.load(tmp_path / "last.pt", weights_only=True)["history"]) == 1


@pytest.mark.parametrize("flags, message", [
    (("--model", "nonesuch"), "csra"), (("--nonesuch", 1), "--nonesuch 1.*--help"),
    (("--data", "nonesuch"), "'scenes', 'scenes-lt', 'csv'"), (("--data", "csv"), "--root"),
    (("--heads", 3), "heads=3"), (("--optimizer", "lion"), "--optimizer.*adamw"),
    (("--augment", "mixup"), "crop, flip"), (("--pretrained",), "--no-pretrained"),
    (("--backbone", "resnet999"), "resnet999"), (("--amp", "int4"), "bf16"),
    (("--epochs", "many"), "--epochs"), (("--schedule-epochs", 3), "--schedule-epochs 0"),
    (("--image-size", "-1"), "image-size"), (("--mean", "0.5,0.5"), "three_numbers"),
    (("--std", "a,b,c"), "--std"), (("--seed", -1), "--seed: -1"), (("--ema", 1), "--ema: the decay"),
    (("--lr", -1), "--lr"),
    (("--output-stride", 5), "csra, backbone"), (("--schedule", "flat"), "onecycle")])
def test_wrong_flags_are_named(flags, message, tmp_path, capsys):
    with pytest.raises(SystemExit) as stop:
        train.main(["--model", "csra", *map(str, flags), "--out", str(tmp_path / "x")])
    text = f"{stop.value} {capsys.readouterr().err}"
    assert stop.value.code not in (0, None) and not (tmp_path / "x").exists()
    assert all(part in text for part in message.split(".*")), text


@pytest.mark.slow
def test_no_network_and_no_cache_names_both_ways_out(tmp_path, monkeypatch):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    with pytest.raises(SystemExit, match="go online once(.|\n)*--text-features FILE(.|\n)*m\\)"):
        train.main(["--model", "cprfl", "--text", "RN50", "--out", str(tmp_path / "x")])


@pytest.mark.slow
def test_help_names_recipe_and_hyper_parameters():
    text = run("csra.py", "--help")
    assert "--lam" in text and "--weight-decay" in text and "--no-pretrained" in text


@pytest.mark.parametrize("schedule", ["step", "cosine", "onecycle"])
def test_schedules_match_their_formulas(schedule):
    s = default_settings(schedule=schedule, optimizer="sgd", epochs=6, decay_epochs=2,
                         warmup_epochs=1.0, pct_start=0.5)
    groups = [{"params": [torch.nn.Parameter(torch.ones(1))], "lr": lr} for lr in (0.1, 1.0)]
    optimizer = train.make_optimizer(groups, s)
    scheduler = train.make_schedule(optimizer, s, steps_per_epoch=5)
    for step in range(30):
        if schedule == "onecycle":  # up to the peak in the first half, down to (nearly) nothing
            low, high, part = (0.04, 1, step / 14) if step <= 14 else (4e-6, 1, (29 - step) / 15)
            factor = high + (low - high) * (1 + math.cos(math.pi * part)) / 2
        else:
            factor = min((step + 1) / 5, 1)
            factor *= 0.1 ** (step // 10) if schedule == "step" else \
                (1 + math.cos(math.pi * step / 30)) / 2
        assert [g["lr"] for g in optimizer.param_groups] == pytest.approx([factor * 0.1, factor])
        optimizer.step()
        if step < 29:
            scheduler.step()


@pytest.mark.parametrize("name", METHODS)
def test_recipes_set_only_known_settings(name):
    method = importlib.import_module(name)
    known = vars(make_parser(method).parse_args([])).keys()
    for name_of_set, recipe in method.RECIPES.items():
        assert set(recipe) <= known, name_of_set


@pytest.mark.parametrize("loss", ["", "bce", "focal", "asl", "db"])
@pytest.mark.parametrize("name", METHODS)
def test_every_method_trains_with_every_loss_on_ones_own_images(name, loss, tmp_path, capsys):
    rng = np.random.default_rng(0)
    for split in ("train", "test"):
        rows = [f"{split}{i}.png,{i % 2},{-1 if i == 3 else i // 4}" for i in range(8)]
        (tmp_path / f"{split}.csv").write_text("\n".join(["image,a,b", *rows]))
        for i in range(8):
            Image.fromarray(rng.integers(0, 256, (40, 50, 3), np.uint8)).save(
                tmp_path / f"{split}{i}.png")
    small = {"q2l": ["--d-model", "32", "--ffn", "32", "--no-freeze"],
             "cprfl": ["--text", "random", "--d-model", "32", "--ffn", "32"]}.get(name, [])
    train.main(["--model", name, "--data", "csv", "--root", str(tmp_path), "--backbone",
                "test_resnet", "--no-pretrained", "--image-size", "64", "--batch-size", "4",
                "--epochs", "2", "--workers", "0", "--out", str(tmp_path / "run"), *small,
                *(["--loss", loss] if loss else [])])
    first, *epochs, last = log(tmp_path / "run")
    assert first["settings"]["loss"] == loss and len(epochs) == 2
    assert 0 < last["mAP"] <= 100 and math.isfinite(epochs[1]["loss"])


def test_files_that_are_no_checkpoint_of_this_run(tmp_path, capsys):
    class Malicious:
        def __reduce__(self):
            return (tmp_path.joinpath("executed").mkdir, ())
    good = tmp_path / "good"
    train.main(["--model", "csra", *map(str, QUICK), "--epochs", "1", "--out", str(good)])
    torch.save({"settings": Malicious()}, tmp_path / "evil.pt")
    torch.save({"weights": 1}, tmp_path / "other.pt")
    (tmp_path / "cut.pt").write_bytes((good / "last.pt").read_bytes()[:5000])
    state = torch.load(good / "last.pt")
    torch.save(state | {"classes": ["cat", *state["classes"][1:]]}, tmp_path / "renamed.pt")
    for name, message in (("evil.pt", "evil.pt"), ("other.pt", "whole checkpoint of train.py"),
                          ("cut.pt", "cut.pt"), ("lost.pt", "lost.pt is missing"),
                          ("renamed.pt", "lacks 1 classes.*cat")):
        with pytest.raises(InputError, match=message):
            evaluation.main(["--checkpoint", str(tmp_path / name)])
    assert not (tmp_path / "executed").exists()


@pytest.mark.parametrize("name", ["asl", "csra", "q2l", "cprfl"])
def test_learning_rate_of_the_new_parts(name):
    method, s = read_command_line([
        "--model", name, "--data", "csv", "--backbone", "test_resnet", "--no-pretrained",
        "--image-size", "64", "--head-lr", "3", *(["--text", "random"] if name == "cprfl" else [])])
    model = method.build(["a", "b"], **settings_for(method.build, s))
    groups = method.param_groups(model, 0.1, 0.5, **settings_for(method.param_groups, s))
    lr = {p: group["lr"] for group in groups for p in group["params"]}
    for part, p in model.named_parameters():
        if p.requires_grad:
            assert lr.pop(p) == pytest.approx(0.1 if part.startswith("backbone.") else 0.3)
    assert not lr
