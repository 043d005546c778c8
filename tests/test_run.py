"""What a training run prints and writes, and what ends it in one line."""
import json
import math
import os
import sys
import warnings

import numpy as np
import pytest
import torch
from conftest import default_settings, run
from PIL import Image
from test_odd import own
from test_train import QUICK, log

import asl
import csra
import data
import eval as evaluation
import q2l
import train
from lib import distributed, outputs, progress
from lib.errors import InputError
from lib.models import load_matching
from lib.settings import read_command_line
from tools import predict, thresholds

SMALL = [*map(str, QUICK), "--image-size", "32"]


def short_run(out, *flags):
    train.main(["--model", "csra", *SMALL, "--epochs", "1", *flags, "--out", str(out)])


# ---------------------------------------------------------------------- the recipe for small data


def photographs(root, count):
    """`count` noisy images of two classes, and a test split of four."""
    rng = np.random.default_rng(0)
    for split, size in {"train": count, "test": 4}.items():
        rows = [f"{split}{i}.png,{i % 2},{(i + 1) % 2}" for i in range(size)]
        (root / f"{split}.csv").write_text("\n".join(["image,a,b", *rows]))
        for i in range(size):
            pixels = rng.integers(0, 256, (40, 50, 3), np.uint8)
            Image.fromarray(pixels).save(root / f"{split}{i}.png")


def small_recipe(model, root, out, *flags):
    own_text = ["--text", "random"] if model == "cprfl" else []
    train.main(["--model", model, "--data", "csv", "--root", str(root), "--recipe", "small",
                "--no-pretrained", "--image-size", "32", "--workers", "0", "--out", str(out),
                *own_text, *flags])
    return log(out)


@pytest.mark.parametrize("model", ["csra", *(
    pytest.param(name, marks=pytest.mark.slow) for name in ("q2l", "cprfl", "asl"))])
def test_few_images_get_more_epochs(model, tmp_path, capsys):
    photographs(tmp_path, 33)  # 2 steps of 16; the rest of an epoch is dropped
    first, *epochs, _ = small_recipe(model, tmp_path, tmp_path / "a", "--min-steps", "9")
    said = capsys.readouterr().out
    assert "2 steps per epoch: 5 epochs instead of 4, for at least 9 steps" in said
    assert "recipe: that of " + model + " for small" in said and "epochs=5" not in said
    assert len(epochs) == 5 == first["settings"]["epochs"]
    assert epochs[-1]["lr"] < 1e-3 * epochs[0]["lr"]  # the schedule is as long
    assert first["settings"]["backbone"] == "tf_efficientnet_lite0.in1k"
    assert first["settings"]["freeze_bn"] and first["settings"]["mean"] == [0.5, 0.5, 0.5]  # timm's


def test_more_epochs_only_where_they_are_needed_and_not_chosen(tmp_path, capsys):
    photographs(tmp_path, 33)
    lines = small_recipe("csra", tmp_path, tmp_path / "a", "--min-steps", "8")
    assert len(lines) == 2 + 4 and "instead of" not in capsys.readouterr().out
    lines = small_recipe("csra", tmp_path, tmp_path / "b", "--epochs", "1")
    assert len(lines) == 2 + 1 and "instead of" not in capsys.readouterr().out


def test_a_longer_run_resumes_to_the_same_weights(tmp_path, monkeypatch):
    photographs(tmp_path, 33)
    small_recipe("csra", tmp_path, tmp_path / "a", "--min-steps", "10")

    def stop_after_the_second(line, *args):
        if line["epoch"] == 2:
            raise KeyboardInterrupt
        return ""
    monkeypatch.setattr(train, "epoch_in_words", stop_after_the_second)
    with pytest.raises(KeyboardInterrupt):
        small_recipe("csra", tmp_path, tmp_path / "b", "--min-steps", "10")
    monkeypatch.undo()
    whole_command = ["--model", "csra", "--data", "csv", "--root", str(tmp_path), "--recipe", "small",
                     "--min-steps", "10", "--epochs", "1", "--resume", "--out", str(tmp_path / "b")]
    _, settings = read_command_line(whole_command)  # as a job that is started again has it
    assert settings.epochs == 5
    with pytest.raises(InputError, match="is of a run of 5 epochs"):
        read_command_line([*whole_command, "--epochs", "6"])
    train.main(["--out", str(tmp_path / "b"), "--resume"])
    states = [torch.load(tmp_path / out / "last.pt", weights_only=True)["model"] for out in "ab"]
    assert len(log(tmp_path / "b")) == 2 + 5
    assert all(torch.equal(states[0][key], states[1][key]) for key in states[0])


def test_recipes_by_name(tmp_path, capsys):
    short_run(tmp_path / "a", "--recipe", "scenes-lt")  # another one's settings for the same data
    assert "recipe: that of csra for scenes-lt" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        short_run(tmp_path / "b", "--recipe", "tiny")
    assert "--recipe tiny: csra has scenes, scenes-lt, csv, small" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        short_run(tmp_path / "b", "--min-steps", "9", "--schedule-epochs", "8")
    assert "--schedule-epochs 0" in capsys.readouterr().err


@pytest.mark.parametrize("flags, message", [
    (["--resume", "--out", "typo"], "typo/last.pt to continue from: correct --out"),
    (["--resume", "--out", "typo", "--root", "x", "--workers", "0"], "typo/last.pt to continue from"),
    (["--ema-start", "3"], "--ema-start and --ema-warmup need --ema DECAY"),
    (["--no-ema-warmup"], "--ema-start and --ema-warmup need --ema DECAY")])
def test_flags_that_would_be_without_effect_are_refused(flags, message, capsys):
    with pytest.raises(SystemExit):
        read_command_line(["--model", "csra", *flags])  # as csra.py does
    assert message in capsys.readouterr().err


# -------------------------------------------------------------------------------- what a run prints


def test_a_run_says_in_six_lines_what_is_trained_on_what(tmp_path, capsys):
    short_run(tmp_path / "a", "--lam", "0.5", "--amp", "off")
    before, after = capsys.readouterr().out.split("epoch 1/1", 1)
    lines = before.splitlines()
    assert len(lines) <= 6 and max(map(len, lines)) < 100
    assert lines[0].startswith("csra on scenes") and lines[1] == "recipe: that of csra for scenes"
    assert lines[2] == ("changed by flags: limit=64 image_size=32 lam=0.5 epochs=1 batch_size=16 "
                        "amp=off")
    assert lines[3] == "images: 64 train, 1,000 test; 20 classes"
    assert "test_resnet at 32 px" in lines[4] and lines[5] == "device: cpu, float32"
    assert log(tmp_path / "a")[0]["settings"]["weight_decay"] == 1e-2  # all settings
    assert " step 4/4 loss " in after and "(mean)" in after and "images/s" in after
    assert after.splitlines()[-1] == f"evaluate with: python eval.py --checkpoint {tmp_path}/a/last.pt"


def test_lines_come_every_ten_seconds_and_after_the_last_step(tmp_path, capsys, monkeypatch):
    read = []
    show = progress.TrainingProgress.show
    monkeypatch.setattr(progress.TrainingProgress, "show",
                        lambda self, *args: read.append(args[1]) or show(self, *args))
    short_run(tmp_path / "a")
    assert read == [4]
    monkeypatch.setattr(progress, "SECONDS", 0)
    short_run(tmp_path / "b")
    assert read[1:] == [1, 2, 3, 4]


def test_the_time_left_counts_the_evaluation(monkeypatch):
    """Epochs of 60 s of training and 30 s of evaluation; the clock is ours."""
    now = [1000.0]
    monkeypatch.setattr(progress.time, "time", lambda: now[0])
    loader = torch.utils.data.DataLoader(range(60), batch_size=1)
    bar = progress.TrainingProgress(5, loader, range(90), "mean")
    for epoch in range(5):
        bar.start_epoch()
        for step in range(1, 61):
            now[0] += 1
            true = (5 - epoch) * 90 - step
            assert bar.seconds_left(epoch, step) == pytest.approx(true, abs=1e-6)
        now[0] += 30
        assert bar.end_epoch() == 90
    assert [progress.duration(s) for s in (59.6, 130, 9000)] == ["60 s", "2 min", "2.5 h"]


def test_a_terminal_line_replaces_the_one_before(monkeypatch, capsys):
    bar = progress.TrainingProgress(1, torch.utils.data.DataLoader(range(2)), range(1), "mean")
    bar.start_epoch()
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True, raising=False)
    bar.show(0, 1, 0.5, 1e-3)
    bar.show(0, 2, 0.5, 1e-3)
    text = capsys.readouterr().out
    assert text.count("\r") == 1 and text.endswith("\n") and text.index("\r") < text.index("step 2/2")


@pytest.mark.parametrize("method, unit", [(csra, "mean"), (q2l, "mean x 1000"),
                                          (asl, "sum over the batch")])
def test_the_loss_is_named(method, unit):
    assert outputs.loss_unit(method) == unit


def test_head_and_tail_are_those_of_long_tailed_data_only(tmp_path, capsys):
    short_run(tmp_path / "a", "--long-tail", "9", "--limit", "0")
    assert "tail " in capsys.readouterr().out and "tail" in log(tmp_path / "a")[1]
    short_run(tmp_path / "b")  # 64 images: every class has fewer than 20
    assert "tail " not in capsys.readouterr().out and "tail" not in log(tmp_path / "b")[1]


def test_the_best_epoch_so_far_is_named(tmp_path, capsys):
    flags = own(tmp_path)
    (tmp_path / "val.csv").write_text((tmp_path / "test.csv").read_text())
    train.main([*flags, "--epochs", "2", "--out", str(tmp_path / "run")])
    lines = [line for line in capsys.readouterr().out.splitlines() if ": val mAP" in line]
    assert len(lines) == 2 and lines[0].endswith(", the best so far")


def test_a_resumed_run_says_where_it_goes_on(tmp_path, capsys, monkeypatch):
    out = tmp_path / "a b"
    save = train.save

    def stop(checkpoint, path):
        save(checkpoint, path)
        raise KeyboardInterrupt
    monkeypatch.setattr(train, "save", stop)
    with pytest.raises(KeyboardInterrupt):
        short_run(out, "--epochs", "2")
    monkeypatch.undo()
    resume = ["--model", "csra", "--resume", "--out", str(out)]
    train.main(resume)
    assert "continues after epoch 1 of 2\n" in capsys.readouterr().out
    train.main(resume)
    text = capsys.readouterr().out
    assert "this run has finished: --init " in text and f"--checkpoint '{out}/last.pt'" in text
    with pytest.raises(SystemExit, match="a run of 2 epochs.*use --init '"):
        train.main([*resume, "--epochs", "9"])


def test_runs_that_are_too_short_are_warned_about(tmp_path, capsys):
    short_run(tmp_path / "a", "--limit", "16")
    assert "warning: with one step" in capsys.readouterr().out
    short_run(tmp_path / "b", "--ema", "0.9997", "--no-ema-warmup")
    assert "warning: after 4 steps, 100% of the average" in capsys.readouterr().out
    short_run(tmp_path / "c", "--ema", "0.9997")
    assert "warning" not in capsys.readouterr().out


def test_the_last_batch_of_several_processes_is_warned_about(monkeypatch):
    monkeypatch.setattr(distributed, "world_size", lambda: 2)
    for drop_last, count, warned in ((False, 10, True), (True, 10, False), (False, 12, False)):
        settings = default_settings(drop_last=drop_last, batch_size=4)
        found = outputs.run_warnings(settings, count, steps_per_epoch=3)
        assert any("number of processes" in warning for warning in found) == warned


# --------------------------------------------------------------------------------- folders and files


def test_two_runs_of_one_second_have_two_folders(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(outputs.time, "strftime", lambda form: "now")
    names = [outputs.output_folder(default_settings(data="csv")) for _ in range(3)]
    assert [str(name) for name in names] == [f"runs/csra-csv-now{end}" for end in ("", "-2", "-3")]


def test_the_best_epoch_of_another_run_is_refused(tmp_path):
    flags = own(tmp_path)
    (tmp_path / "val.csv").write_text((tmp_path / "test.csv").read_text())
    for seed in "01":
        train.main([*flags, "--epochs", "2", "--seed", seed, "--out", str(tmp_path / seed)])
    os.replace(tmp_path / "1/best.pt", tmp_path / "0/best.pt")
    with pytest.raises(SystemExit, match="0/best.pt is of another run"):
        train.main(["--model", "csra", "--resume", "--out", str(tmp_path / "0")])


def test_a_run_that_was_killed_between_best_and_last_resumes(tmp_path, monkeypatch):
    """The second epoch is the best: best.pt is one epoch ahead of last.pt."""
    flags = own(tmp_path)
    (tmp_path / "val.csv").write_text((tmp_path / "test.csv").read_text())
    plain_summary = train.summary
    scores = iter([1.0, 2.0, 1.5, 0.0])  # of three epochs, and of test

    def summary(*args):
        result = plain_summary(*args)
        return result | {"mAP": next(scores)}
    monkeypatch.setattr(train, "summary", summary)
    train.main([*flags, "--epochs", "3", "--out", str(tmp_path / "a")])

    scores = iter([1.0, 2.0])
    plain_save = train.save

    def save(checkpoint, file):
        if file.name == "last.pt" and len(checkpoint["history"]) == 2:
            raise KeyboardInterrupt
        plain_save(checkpoint, file)
    monkeypatch.setattr(train, "save", save)
    with pytest.raises(KeyboardInterrupt):
        train.main([*flags, "--epochs", "3", "--out", str(tmp_path / "b")])
    monkeypatch.setattr(train, "save", plain_save)
    scores = iter([1.5, 0.0])
    train.main(["--resume", "--out", str(tmp_path / "b")])
    assert [line.get("mAP") for line in log(tmp_path / "b")] == [None, 1.0, 2.0, 1.5, 0.0]
    for name in ("last.pt", "best.pt"):
        states = [torch.load(tmp_path / out / name, weights_only=True)["model"] for out in "ab"]
        assert all(torch.equal(states[0][key], states[1][key]) for key in states[0])


def test_a_run_may_continue_in_another_precision(tmp_path, capsys):
    """From bfloat16, which needs no scaler, to an older GPU in float16, and back."""
    short_run(tmp_path, "--amp", "bf16")
    model = torch.nn.Linear(1, 1)
    checkpoint = torch.load(tmp_path / "last.pt", weights_only=False)
    fingerprints = checkpoint["fingerprints"]
    checkpoint["model"] = model.state_dict()
    torch.save(checkpoint, tmp_path / "last.pt")
    capsys.readouterr()
    scaler = torch.amp.GradScaler("cpu", enabled=True)
    parts = {"model": model, "scaler": scaler}
    history = outputs.continue_run(tmp_path, parts, fingerprints, torch.float16)
    assert len(history) == 1
    assert ("warning: the run was computed with autocast torch.bfloat16 so far, and continues with "
            "torch.float16") in capsys.readouterr().out

    checkpoint["scaler"] = scaler.state_dict() | {"scale": 8.0}
    checkpoint["machine"]["autocast"] = "torch.float16"
    torch.save(checkpoint, tmp_path / "last.pt")
    outputs.continue_run(tmp_path, parts, fingerprints, torch.float16)
    assert scaler.get_scale() == 8 and not capsys.readouterr().out
    parts["scaler"] = torch.amp.GradScaler("cpu", enabled=False)
    outputs.continue_run(tmp_path, parts, fingerprints, torch.bfloat16)
    assert "continues with torch.bfloat16" in capsys.readouterr().out


def test_runs_older_than_a_flag_can_be_resumed(tmp_path):
    train.main(["--model", "asl", "--data", "scenes", *SMALL, "--epochs", "1", "--margin", "0.2",
                "--out", str(tmp_path / "a")])
    file = tmp_path / "a/last.pt"
    checkpoint = torch.load(file)
    settings = checkpoint["settings"]
    for name in ("ema_warmup", "ema_start"):
        del settings[name]
    settings["clip"] = settings.pop("margin")  # its former name
    torch.save(checkpoint, file)
    _, settings = read_command_line(["--model", "asl", "--resume", "--out", str(tmp_path / "a")])
    assert (settings.margin, settings.ema_warmup, settings.ema_start) == (0.2, True, 0)


def test_a_loader_leaves_the_dataset_as_it_is():
    dataset = data.load("scenes").sample(4)
    settings = default_settings(seed=7, image_size=32, workers=0)
    loader = data.make_loader(dataset, settings, training=True)
    assert dataset.transform is None and dataset.seed == 0
    assert loader.dataset.transform is not None and loader.dataset.seed == 7
    assert loader.dataset.targets is dataset.targets


# ----------------------------------------------------------------------------------------------- help


def test_help_has_groups_and_a_text_for_every_flag(capsys):
    for name in ("csra", "q2l", "cprfl", "asl"):
        with pytest.raises(SystemExit):
            read_command_line(["--model", name, "--help"])
        text = capsys.readouterr().out
        for group in ("what to train on what:", "model:", f"{name}'s own settings:", "training:",
                      "how and where to run:"):
            assert group in text
        assert "(default: )" not in text and "{,asl" not in text and f"see {name}.py" not in text


@pytest.mark.slow
def test_convert_shows_its_own_flags_only():
    text = run("-m", "tools.convert", "--help")
    assert "--backbone" in text and "--heads" in text and "OUT" in text
    for flag in ("--epochs", "--lr", "--resume", "--pretrained", "--loss"):
        assert flag not in text


@pytest.mark.slow
def test_programs_run_without_docstrings():
    for program in (("eval.py",), ("-m", "tools.predict"), ("-m", "tools.thresholds"),
                    ("-m", "tools.check"), ("-m", "tools.plot"), ("-m", "tools.voc_server"),
                    ("-m", "tools.convert"), ("train.py",)):
        assert "--help" in run("-OO", *program, "--help")


@pytest.mark.parametrize("flags, message", [
    (("--seed", str(10 ** 18)), "--seed"), (("--batch-size", str(10 ** 19)), "--batch-size"),
    (("--warmup-epochs", "inf", "--schedule", "step"), "--warmup-epochs"),
    (("--model", "asl", "--margin", "1"), "margin=1.0: it must be in [0, 1): correct its flags")])
def test_flags_that_cannot_work_are_named(flags, message, tmp_path, capsys):
    with pytest.raises(SystemExit) as stop:
        train.main(["--model", "csra", *SMALL, *flags, "--out", str(tmp_path / "x")])
    assert message in f"{stop.value} {capsys.readouterr().err}" and stop.value.code not in (0, None)


# -------------------------------------------------------------------------------- errors in one line


def test_a_batch_of_one_names_the_remedy(tmp_path):
    with pytest.raises(SystemExit, match="BatchNorm needs more than one value.*--freeze-bn"):
        train.main([*own(tmp_path), "--image-size", "32", "--batch-size", "1", "--output-stride", "32",
                    "--out", str(tmp_path / "run")])


def test_a_killed_loading_process_is_one_line():
    with (pytest.raises(SystemExit, match="a loading process was killed.*--workers"),
          distributed.program()):
        raise RuntimeError("DataLoader worker (pid 7) is killed by signal: Killed.")
    with pytest.raises(RuntimeError, match="else"), distributed.program():
        raise RuntimeError("something else")


def test_memory_of_an_evaluation_is_saved_by_its_own_flag():
    with (pytest.raises(SystemExit, match="out of memory on the device: add a smaller --batch-size"),
          distributed.program(evaluation.MEMORY_REMEDY)):
        raise torch.OutOfMemoryError("CUDA out of memory")


@pytest.mark.slow
def test_names_that_the_terminal_cannot_show_do_not_stop_the_work(tmp_path, monkeypatch):
    flags = own(tmp_path)
    for name in ("train.csv", "test.csv"):
        text = (tmp_path / name).read_text("utf-8").replace("image,a,b", "image,猫,b")
        (tmp_path / name).write_text(text, "utf-8")
    monkeypatch.setenv("PYTHONIOENCODING", "ascii")
    run("train.py", *flags, "--epochs", 1, "--out", tmp_path / "run")
    checkpoint = ("--checkpoint", tmp_path / "run/last.pt")
    table = run("eval.py", *checkpoint, "--out", tmp_path / "t.json")
    assert "\\u732b" in table and "猫" in json.loads((tmp_path / "t.json").read_text())["classes"]
    assert "\\u732b" in run("-m", "tools.predict", *checkpoint, tmp_path / "test0.png", "--threshold", 0)
    run("-m", "tools.thresholds", *checkpoint, "--split", "train")


def test_an_evaluation_that_fails_leaves_no_empty_file(tmp_path):
    with pytest.raises(InputError, match="x.pt is missing"):
        evaluation.main(["--checkpoint", str(tmp_path / "x.pt"), "--out", str(tmp_path / "t.json")])
    assert not (tmp_path / "t.json").exists()


# ------------------------------------------------------------------------------- logits, not rounded


def test_a_bias_changes_no_ranking(tmp_path, capsys):
    """Probabilities of logits above 36.7 round to 1. The same model with a bias of + 40."""
    flags = own(tmp_path)
    flags[1] = "asl"
    train.main([*flags, "--epochs", "2", "--amp", "off", "--out", str(tmp_path / "run")])
    file = tmp_path / "run/last.pt"
    checkpoint = torch.load(file)
    found = []
    for bias in (0, 40):
        for state in filter(None, (checkpoint["model"], checkpoint["ema"])):
            state["head.bias"] = state["head.bias"].double() * 0 + bias
        torch.save(checkpoint, file)
        evaluation.main(["--checkpoint", str(file), "--scores", str(tmp_path / "s.npz"), "--out",
                         str(tmp_path / "t.json")])
        saved = np.load(tmp_path / "s.npz")
        thresholds.main(["--checkpoint", str(file), "--split", "train", "--per-class", "--out",
                         str(tmp_path / "thresholds.json")])
        evaluation.main(["--checkpoint", str(file), "--split", "train", "--threshold",
                         str(tmp_path / "thresholds.json"), "--out", str(tmp_path / "tuned.json")])
        table = json.loads((tmp_path / "t.json").read_text())
        tuned = json.loads((tmp_path / "tuned.json").read_text())
        found.append((table["mAP"], tuned["CF1"],
                      evaluation.metrics(saved["logits"], saved["targets"], threshold=0)["mAP"]))
    assert (saved["scores"] == 1).mean() > 0.5
    assert found[0] == pytest.approx(found[1], abs=1e-3)


def test_the_mean_of_views_is_that_of_their_probabilities():
    logits = 9 * torch.randn(3, 50, 4, dtype=torch.float64)
    found = evaluation.logit_of_mean(logits)
    torch.testing.assert_close(found.sigmoid(), logits.sigmoid().mean(0))
    sure = torch.tensor([[[800.]], [[900.]]]).double()
    assert evaluation.logit_of_mean(sure).item() == pytest.approx(800 + math.log(2))


# ------------------------------------------------------------------------------------------ starting


def checkpoint_of(model, classes, tmp_path, **settings):
    _, s = read_command_line(["--model", "q2l", "--data", "csv", "--root", str(tmp_path), "--backbone",
                              "test_resnet"])
    vars(s).update(settings)
    torch.save({"settings": vars(s), "classes": classes, "model": model.state_dict(), "ema": None,
                "class_counts": []}, tmp_path / "old.pt")
    s.init = str(tmp_path / "old.pt")
    return s


def test_init_names_the_tensors_of_the_classes(tmp_path, capsys):
    """32 classes at width 32: many tensors have this length."""
    options = {"backbone": "test_resnet", "pretrained": False, "image_size": 64, "ffn": 64}
    classes = [str(k) for k in range(32)]
    old = q2l.build(classes, d_model=32, **options)
    new = q2l.build(classes[1:] + ["x"], d_model=32, **options)
    s = checkpoint_of(old, classes, tmp_path)
    load_matching(new, s, classes[1:] + ["x"])
    stored = old.state_dict()
    different = [name for name, tensor in new.state_dict().items() if not torch.equal(tensor, stored[name])]
    assert different == ["head.query_embed", "head.W", "head.b"]
    assert "warning" not in capsys.readouterr().out
    wide = q2l.build(classes, d_model=64, **options)
    with pytest.raises(InputError, match=r"old.pt: input_proj.weight is \(32, .*--d-model"):
        load_matching(wide, s, classes)
    deep = q2l.build(classes, d_model=32, decoder_layers=3, **options)
    load_matching(deep, s, classes)
    assert "tensors are not in" in capsys.readouterr().out


@pytest.mark.slow
def test_a_model_that_is_loaded_is_not_warned_about(tmp_path):
    train.main(["--model", "q2l", "--data", "scenes", *SMALL, "--epochs", "1", "--d-model", "32",
                "--ffn", "32", "--backbone", "resnet18", "--freeze", "--out", str(tmp_path / "a")])
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        evaluation.Evaluation(tmp_path / "a/last.pt")


# ------------------------------------------------------------------------------------------- predict


def test_files_that_predict_leaves_out_are_counted(tmp_path, capsys):
    Image.new("RGB", (9, 9)).save(tmp_path / "a.png")
    for name in ("b.heic", "c.pgm"):
        (tmp_path / name).write_bytes(b"x")
    (tmp_path / "d.jpg").symlink_to(tmp_path / "nowhere.jpg")
    assert predict.images_in([str(tmp_path)]) == [f"{tmp_path}/a.png"]
    assert "left out: 3 images" in capsys.readouterr().err
