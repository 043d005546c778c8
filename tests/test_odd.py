"""Odd input: no run silently ends in wrong labels, a wrong mAP or lost work."""
import json
import os
import shutil
import subprocess
import sys
import time
import types

import numpy as np
import pytest
import torch
from conftest import HERE, default_settings, run
from PIL import Image
from test_reliable import FLAGS, processes, small_images  # noqa: F401 (a fixture)
from test_train import log

import data
import eval as evaluation
import train
from data import InputError, load
from lib.models import refuse_pooled_norm
from lib.settings import read_command_line, recipe_for
from readers.images import read_image
from tools import check, predict

SMALL = ["--backbone", "test_resnet", "--no-pretrained", "--image-size", "64", "--batch-size", "8",
         "--workers", "0", "--amp", "off"]


def own(root, train="", test="", count=16):
    """A csv data set of small images with two labels, a and b."""
    rng = np.random.default_rng(0)
    for split, text in (("train", train), ("test", test)):
        rows = [f"{split}{i}.png,{i % 2},{i // 2 % 2}" for i in range(count)]
        (root / f"{split}.csv").write_text(text or "\n".join(["image,a,b", *rows]) + "\n")
        for i in range(count):
            Image.fromarray(rng.integers(0, 256, (40, 50, 3), np.uint8)).save(root / f"{split}{i}.png")
    return ["--model", "csra", "--data", "csv", "--root", str(root), *SMALL]


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    root = tmp_path_factory.mktemp("trained")
    train.main([*own(root), "--epochs", "1", "--out", str(root / "run")])
    return root


def changed(root, copy):
    shutil.copytree(root, copy, dirs_exist_ok=True)
    return ["--model", "csra", "--resume", "--out", str(copy / "run"), "--root", str(copy)]


@pytest.mark.parametrize("old, new", [
    ("image,a,b", "image,b,a"), ("image,a,b", "image,a,c"),
    ("train3.png,1,1\n", ""), ("train3.png,1,1", "train3.png,0,1"),
    ("train3.png,1,1\ntrain4", "train4,0,0\ntrain3")])
def test_resume_refuses_changed_data(trained, tmp_path, old, new):
    flags = changed(trained, tmp_path)
    for split in ("train", "test"):
        text = (tmp_path / f"{split}.csv").read_text()
        (tmp_path / f"{split}.csv").write_text(text.replace(old.replace("train", split),
                                                            new.replace("train", split)))
    with pytest.raises(SystemExit, match="train split has changed|train4"):
        train.main(flags)


def test_resume_knows_the_same_data_in_another_folder(trained, tmp_path):
    train.main(changed(trained, tmp_path))


def test_a_new_run_refuses_a_folder_with_an_earlier_one(tmp_path):
    flags = [*own(tmp_path), "--epochs", "1", "--out", str(tmp_path / "run")]
    (tmp_path / "run").mkdir()
    for name in ("last.pt", "best.pt", "log.jsonl"):
        (tmp_path / "run" / name).write_text("earlier")
        with pytest.raises(SystemExit, match=f"{name} exists: --resume"):
            train.main(flags)
        assert (tmp_path / "run" / name).read_text() == "earlier"
        (tmp_path / "run" / name).unlink()
    train.main(flags)


@pytest.mark.parametrize("value, message", [
    ("-1", "1 of 2 classes have no negative image .-1 means unknown"),
    ("0", "1 of 2 classes have no positive image: a")])
def test_labels_that_look_wrong_are_named(tmp_path, value, message, capsys):
    rows = "".join(f"train{i}.png,{1 if value == '-1' and i % 2 else value},{i // 2 % 2}\n"
                   for i in range(16))
    train.main([*own(tmp_path, "image,a,b\n" + rows), "--epochs", "1", "--out", str(tmp_path / "run")])
    said = capsys.readouterr().out
    assert message.split(".")[0] in said
    check.main(["--data", "csv", "--root", str(tmp_path)])
    assert message.split(".")[0] in capsys.readouterr().out
    shutil.copy(tmp_path / "train.csv", tmp_path / "test.csv")
    evaluation.main(["--checkpoint", str(tmp_path / "run/last.pt"), "--workers", "0"])
    assert message.split(".")[0] in capsys.readouterr().err


def test_limit_takes_a_random_choice():
    scenes = load("scenes")
    chosen, again = scenes.sample(100), scenes.sample(100)
    rows = [int(path.split("/")[1]) for path in chosen.paths]
    assert rows == sorted(set(rows)) and len(rows) == 100 and rows[50] > 1000
    assert (chosen.paths == again.paths).all() and len(scenes.sample(0)) == 4000


def test_verify_names_copies(tmp_path, capsys):
    own(tmp_path, "image,a,b\ntrain0.png,1,0\ntrain1.png,1,0\nsame.png,1,0\nother.png,0,1\n",
        "image,a,b\ncopy.png,1,0\ntest0.png,0,1\n", count=2)
    for name, copy in (("train0", "copy"), ("train0", "same"), ("train1", "other")):
        shutil.copy(tmp_path / f"{name}.png", tmp_path / f"{copy}.png")
    assert check.main(["--data", "csv", "--root", str(tmp_path), "--verify"]) == 1
    text = capsys.readouterr().out
    assert f"other.png (train) has the same content as {tmp_path}/train1.png (train), with" in text
    assert f"copy.png (test) has the same content as {tmp_path}/train0.png (train)\n" in text
    assert "problems: 2" in text


def test_pixels_without_a_range_are_refused_and_rotation_is_applied_to_own_images(tmp_path):
    for dtype in (np.int32, np.float32):
        Image.fromarray(np.ones((4, 4), dtype)).save(tmp_path / "deep.tif")
        with pytest.raises(InputError, match="deep.tif: 32-bit"):
            read_image(f"{tmp_path}/deep.tif")
    pixels = np.random.default_rng(0).integers(0, 256, (6, 9, 3), np.uint8)
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned clockwise
    for name in ("turned.png", "turned.jpg"):
        Image.fromarray(pixels).save(tmp_path / name, exif=exif)
        plain = read_image(f"{tmp_path}/{name}")
        upright = read_image(f"{tmp_path}/{name}", upright=True)
        assert plain.shape == (3, 6, 9) and torch.equal(upright, plain.rot90(-1, (1, 2)))
    for split in ("train", "test"):
        (tmp_path / f"{split}.csv").write_text("image,a\nturned.jpg,1\n")
    assert load("csv", tmp_path).image(0).shape == load("csv", tmp_path).subset([0]).image(0).shape \
        == (3, 9, 6)


@pytest.mark.parametrize("flags, message", [
    ("--checkpoint x --lam 3", "--lam 3"),
    ("--checkpoint x --workers -2", "--workers"), ("--checkpoint x --image-size a", "--image-size")])
def test_wrong_flags_of_eval_are_named(flags, message, capsys):
    with pytest.raises(SystemExit):
        evaluation.main(flags.split())
    assert message in capsys.readouterr().err


@pytest.mark.parametrize("text", ["nan", "50", "-0.1", '{"threshold": null}', '{"threshold": "x"}',
                                  '{"threshold": {"a": 0.5}}', '{"threshold": {"a": null, "b": 1}}',
                                  '{"threshold": [1, 2, 3]}', "[]", "", "{"])
def test_thresholds_are_checked(text, tmp_path):
    argument = text if text in ("nan", "50", "-0.1") else str(tmp_path / "t.json")
    (tmp_path / "t.json").write_text(text)
    with pytest.raises(InputError, match="threshold"):
        evaluation.read_threshold(argument, ["a", "b"])


def test_fewer_test_images_than_processes(tmp_path, trained):
    flags = own(tmp_path, test="image,a,b\ntest0.png,1,1\n")
    processes(2, train.main, *flags, "--epochs", 1, "--out", tmp_path / "run")
    assert log(tmp_path / "run")[-1]["mAP"] == 100
    processes(3, evaluation.main, "--checkpoint", trained / "run/last.pt", "--limit", 1, "--out",
              tmp_path / "t.json")
    assert json.loads((tmp_path / "t.json").read_text())["images"] == 1


def test_onecycle_where_the_rise_ends_with_the_first_step():
    for steps, share in ((5, 0.2), (10, 0.1), (1, 0.5), (2, 0.5)):
        s = default_settings(epochs=steps, pct_start=share)
        groups = [{"params": [torch.nn.Parameter(torch.ones(1))], "lr": 1.0}]
        optimizer = train.make_optimizer(groups, s)
        scheduler = train.make_schedule(optimizer, s, steps_per_epoch=1)
        lrs = []
        for _ in range(steps):
            lrs.append(optimizer.param_groups[0]["lr"])
            optimizer.step()
            scheduler.step()
        assert np.isfinite(lrs).all() and lrs == sorted(lrs, reverse=True) or share * steps < 1


def test_weights_that_diverge_in_the_last_step_end_in_one_line(tmp_path, monkeypatch):
    plain = train.predict

    def diverged(model, *inputs):
        model.head.weight.data.fill_(float("nan"))
        return plain(model, *inputs)
    monkeypatch.setattr(train, "predict", diverged)
    with pytest.raises(SystemExit, match="16 images have the score nan.*--lr"):
        train.main([*own(tmp_path), "--epochs", "1", "--batch-size", "16", "--out",
                    str(tmp_path / "run")])


def test_a_strip_is_squashed_and_a_huge_image_refused(trained, tmp_path, monkeypatch):
    Image.new("RGB", (1, 4000)).save(tmp_path / "strip.png")
    predict.main(["--checkpoint", str(trained / "run/last.pt"), str(tmp_path / "strip.png"),
                  "--heatmaps", str(tmp_path / "maps"), "--threshold", "0"])
    sheet, = (tmp_path / "maps").iterdir()
    assert Image.open(sheet).height < 1000
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    for name in ("large.jpg", "large.png"):
        Image.new("RGB", (60, 60)).save(tmp_path / name)
        with pytest.raises(InputError, match=f"{name}: .*pixels"):
            read_image(f"{tmp_path}/{name}")


@pytest.mark.slow
def test_a_full_disk_is_one_line(trained, tmp_path, monkeypatch):
    for flag in ("--out", "--scores"):
        text = run("eval.py", "--checkpoint", trained / "run/last.pt", "--workers", 0, flag,
                   "/dev/full", ok=False)
        assert "error: /dev/full: " in text and "No space left" in text and "Traceback" not in text
    with pytest.raises(InputError, match="is a folder"):
        evaluation.main(["--checkpoint", "x", "--out", str(tmp_path)])
    (tmp_path / "log.jsonl").symlink_to("/dev/full")
    with pytest.raises(InputError, match="log.jsonl.*No space left.*--resume"):
        train.write_log(tmp_path, [{"mAP": 1}])


def test_checkpoints_that_lack_something(trained, tmp_path, monkeypatch):
    whole = torch.load(trained / "run/last.pt")
    flags = ["--checkpoint", str(tmp_path / "x.pt"), "--workers", "0"]
    for name in ("model", "classes", "ema", "class_counts", "settings"):
        torch.save({key: value for key, value in whole.items() if key != name}, tmp_path / "x.pt")
        with pytest.raises(InputError, match="x.pt: .*a whole checkpoint of train.py"):
            evaluation.main(flags)
    settings = {name: value for name, value in whole["settings"].items() if name != "lam"}
    torch.save(whole | {"settings": settings}, tmp_path / "x.pt")  # older than a keyword
    evaluation.main(flags)
    (tmp_path / "os.py").write_text("")
    for name, message in (("os", "no method 'os'"), ("train", "no method"), (3, "no method 3")):
        torch.save(whole | {"settings": whole["settings"] | {"model": name}}, tmp_path / "x.pt")
        with pytest.raises(InputError, match=message):
            evaluation.main(flags)


@pytest.mark.parametrize("flags, message", [
    (["--output-stride", "7"], "test_resnet: it cannot be built with these settings"),
    (["--backbone", "test_vit", "--image-size", "100"], "test_vit"),
    (["--backbone", "mixer_s32_224"], "mixer_s32_224"),
    (["--backbone", "nonesuch"], "nonesuch"), (["--backbone", "resnet18.nonesuch"], "nonesuch"),
    (["--backbone", "nonesuch", "--pretrained", "--mean", "0,0,0", "--std", "1,1,1"], "nonesuch"),
    (["--lam", "abc"], "--lam"), (["--optimizer", "adam", "--lr", "nan"], "--lr")])
def test_settings_that_cannot_work_are_one_line(flags, message, tmp_path, capsys):
    with pytest.raises(SystemExit) as stop:
        train.main([*own(tmp_path), *flags, "--epochs", "1", "--out", str(tmp_path / "run")])
    assert message in f"{stop.value} {capsys.readouterr().err}"


@pytest.mark.parametrize("content", [b"", b"junk", b"\x93NUMPY\x01\x00junk", b"PK\x03\x04"])
@pytest.mark.parametrize("name", ["w.npy", "w.pt"])
def test_junk_in_text_features(content, name, tmp_path):
    (tmp_path / name).write_bytes(content)
    flags = [*own(tmp_path), "--text-features", str(tmp_path / name), "--d-model", "32"]
    for more in ([], ["--tune-text"]):
        with pytest.raises(SystemExit, match="cprfl, backbone"):
            train.main(["--model", "cprfl", *flags[2:], *more, "--out", str(tmp_path / "run")])


def test_many_columns_load_fast_and_rows_keep_their_numbers(tmp_path):
    header = ",".join(f" label {k} " for k in range(100_000))
    row = ",".join("01"[k % 2] for k in range(100_000))
    for split in ("train", "test"):
        rows = "".join(f"{name}.jpg,{row}\n" for name in "abcd")
        (tmp_path / f"{split}.csv").write_text(f"image,{header}\n" + rows)
    begin = time.time()
    assert load("csv", tmp_path, "test", check=False).classes[7] == "label 7"
    assert time.time() - begin < 10
    own(tmp_path, "image,a\n\n\ntrain0.png,1\n\ntrain1.png,x\n", count=2)
    with pytest.raises(InputError, match="row 6.*'x'"):
        load("csv", tmp_path)
    own(tmp_path, f"image,a,b\n{tmp_path}/train0.png,True,False\ntrain1.png,1.0,0.0\n", count=2)
    found = load("csv", tmp_path)
    assert found.paths[0] == f"{tmp_path}/train0.png" and found.targets.tolist() == [[1, 0]] * 2


def test_coco_with_two_categories_of_one_name_or_a_byte_order_mark(tmp_path):
    content = {"images": [{"id": 1, "file_name": "a.jpg"}], "annotations": [],
               "categories": [{"id": 1, "name": "x"}, {"id": 2, "name": "y"}]}
    (tmp_path / "annotations").mkdir()
    file = tmp_path / "annotations/instances_train2017.json"
    file.write_text(json.dumps(content), encoding="utf-8-sig")
    assert load("coco2017", tmp_path, check=False).classes == ["x", "y"]
    content["categories"][1]["name"] = "x"
    file.write_text(json.dumps(content))
    with pytest.raises(InputError, match="two classes have one name"):
        load("coco2017", tmp_path, check=False)


def test_images_in_folders(tmp_path):
    (tmp_path / "a/inner").mkdir(parents=True)
    for name in ("a/1.JPG", "a/inner/2.png", "a/doc.pdf", "a/film.mpg", "other.webp"):
        (tmp_path / name).write_bytes(b"")
    (tmp_path / "a/inner/back").symlink_to(tmp_path / "a")
    found = predict.images_in([str(tmp_path / "a"), str(tmp_path / "other.webp")])
    assert sorted(os.path.basename(path) for path in found) == ["1.JPG", "2.png", "other.webp"]


def test_a_relative_root_works_from_elsewhere(tmp_path, monkeypatch):
    flags = own(tmp_path)
    monkeypatch.chdir(tmp_path)
    flags[flags.index("--root") + 1] = "."
    assert read_command_line(flags)[1].root == str(tmp_path)


def test_fp16_with_sgd_keeps_its_momentum(tmp_path):
    """Its scaler skips the first step; torch's fused SGD would then keep an unset momentum."""
    train.main([*own(tmp_path), "--amp", "fp16", "--optimizer", "sgd", "--epochs", "3",
                "--image-size", "32", "--out", str(tmp_path / "run")])
    state = torch.load(tmp_path / "run/last.pt")
    assert all(x.isfinite().all() for x in state["model"].values())
    groups = [{"params": [torch.nn.Parameter(torch.ones(1))], "lr": 0.1}]
    for name in ("sgd", "adam", "adamw"):
        optimizer = train.make_optimizer(groups, default_settings(optimizer=name))
        assert bool(optimizer.defaults["fused"]) == (name != "sgd")


@pytest.mark.parametrize("flags, message", [
    (["--resume"], "--resume needs --out"), (["--report", "ema"], "--ema DECAY"),
    (["--model", "cprfl", "--text", "RN50", "--text-features", "x.npy"], "leave --text out"),
    (["--std", "0,1,1"], "--std"), (["--pct-start", "1", "--schedule", "onecycle"], "--pct-start"),
    (["--output-stride", "8px"], "--output-stride"),
    (["--warmup-epochs", "3", "--schedule", "onecycle"], "--warmup-epochs is for"),
    (["--decay-epochs", "3", "--schedule", "cosine"], "--decay-epochs is for --schedule step"),
    (["--pct-start", "0.4", "--schedule", "step"], "--pct-start is for"), (["--lam", "nan"], "--lam"),
    (["--schedule", "step", "--schedule-epochs", "9"], "--schedule-epochs is for"),
    (["--init", "x", "--weights", "y"], "leave --weights out"),
    (["--lam", "-1"], "--lam"), (["--std", "inf,1,1"], "--std"), (["--mean", "nan,0,0"], "--mean"),
    (["--seed", "1e3"], "invalid int value")])
def test_flags_of_training_without_effect_are_errors(flags, message, tmp_path, capsys):
    with pytest.raises(SystemExit):
        read_command_line([*own(tmp_path), *flags])
    assert message in capsys.readouterr().err


def test_odd_sizes_in_the_evaluation(tmp_path):
    train.main([*own(tmp_path), "--epochs", "1", "--backbone", "test_vit", "--out",
                str(tmp_path / "run")])
    flags = ["--checkpoint", str(tmp_path / "run/last.pt"), "--workers", "0"]
    with pytest.raises(InputError, match="image size 100.*multiple of the backbone's patches"):
        evaluation.main([*flags, "--sizes", "100"])
    with pytest.raises(SystemExit):
        evaluation.main([*flags, "--sizes", "a,b"])


def test_scores_keep_their_name(trained, tmp_path):
    evaluation.main(["--checkpoint", str(trained / "run/last.pt"), "--workers", "0", "--scores",
                     str(tmp_path / "sc.txt")])
    assert len(np.load(tmp_path / "sc.txt")["scores"]) == 16


@pytest.mark.parametrize("content", [b"", b"junk", {"settings": 3}, {"a": 1}, [1]])
def test_a_file_that_is_no_checkpoint_is_one_line(content, trained, tmp_path):
    run_folder = tmp_path / "run"
    run_folder.mkdir()
    if isinstance(content, bytes):
        (run_folder / "last.pt").write_bytes(content)
    else:
        torch.save(content, run_folder / "last.pt")
    with pytest.raises(SystemExit, match="error: .*last.pt: .*whole checkpoint of train.py"):
        train.main(["--model", "csra", "--resume", "--out", str(run_folder), "--root", str(trained)])
    with pytest.raises(InputError, match="last.pt: .*whole checkpoint"):
        evaluation.main(["--checkpoint", str(run_folder / "last.pt"), "--workers", "0"])


@pytest.mark.parametrize("name, value", [("optimizer", {}), ("model", {}), ("schedule", None),
                                         ("fingerprints", "x")])
def test_a_damaged_part_is_one_line(name, value, trained, tmp_path):
    state = torch.load(trained / "run/last.pt")
    (tmp_path / "run").mkdir()
    torch.save(state | {name: value}, tmp_path / "run/last.pt")
    with pytest.raises(SystemExit, match="last.pt: .*damaged"):
        train.main(["--model", "csra", "--resume", "--out", str(tmp_path / "run"), "--root",
                    str(trained)])


@pytest.mark.parametrize("name, content", [("runs", "file"), ("runs", "link")])
def test_a_default_folder_that_cannot_be_made_is_one_line(tmp_path, name, content, monkeypatch):
    flags = own(tmp_path)
    monkeypatch.chdir(tmp_path)
    if content == "file":
        (tmp_path / "runs").write_text("")
    else:
        (tmp_path / "runs").symlink_to(tmp_path / "nowhere/else")
    with pytest.raises(SystemExit, match="choose another --out"):
        train.main([*flags, "--epochs", "1"])


@pytest.mark.parametrize("flags, message", [
    (["--model", "q2l", "--project", "no"], "--project"), (["--model", "q2l", "--d-model", "x"], "--d-model"),
    (["--output-stride", "off"], "--output-stride"),
    (["--model", "q2l", "--decoder-layers", "0", "--d-model", "32", "--no-freeze"], "decoder_layers")])
def test_words_that_are_no_values_are_errors(flags, message, tmp_path, capsys):
    with pytest.raises(SystemExit) as stop:
        train.main([*own(tmp_path)[2:], *flags, "--out", str(tmp_path / "run")])
    assert message in f"{stop.value} {capsys.readouterr().err}"


@pytest.mark.parametrize("backbone", ["mixer_s32_224", "volo_d1_224", "levit_128s"])
def test_backbones_without_a_map_are_refused_in_one_line(backbone, tmp_path):
    with pytest.raises(SystemExit, match=f"backbone {backbone}: .*(no map of features|img_size)"):
        train.main([*own(tmp_path), "--backbone", backbone, "--image-size", "224", "--out",
                    str(tmp_path / "run")])


def test_a_norm_that_was_trained_after_pooling_is_refused():
    with pytest.raises(InputError, match="beit_base_patch16_224: its last norm was trained after"):
        refuse_pooled_norm("beit_base_patch16_224")
    refuse_pooled_norm("test_vit")
    refuse_pooled_norm("resnet18")


@pytest.mark.slow
def test_standard_output_that_fails_does_not_end_a_run(tmp_path):
    """A full disk or a closed pipe: the run says so on standard error and goes on."""
    flags = [*own(tmp_path), "--epochs", "1", "--out", str(tmp_path / "run")]
    with open("/dev/full", "w") as full:
        done = subprocess.run([sys.executable, "train.py", *flags], cwd=HERE.parent, text=True,
                              stdout=full, stderr=subprocess.PIPE, timeout=100, check=False)
    assert "standard output has failed" in done.stderr and (tmp_path / "run/last.pt").is_file()


def test_a_world_size_without_a_rank_is_one_line(tmp_path, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(SystemExit, match="WORLD_SIZE.*torchrun"):
        train.main([*own(tmp_path), "--epochs", "1"])


def test_a_named_pipe_does_not_hang(tmp_path):
    os.mkfifo(tmp_path / "pipe.jpg")
    with pytest.raises(InputError, match="neither a file nor a folder"):
        predict.images_in([str(tmp_path / "pipe.jpg")])
    with pytest.raises(InputError, match="no images in"):
        predict.images_in([str(tmp_path)])


def test_resume_without_the_method_takes_that_of_the_run(tmp_path):
    flags = own(tmp_path)
    flags[1] = "asl"
    train.main([*flags, "--epochs", "1", "--out", str(tmp_path / "run")])
    method, settings = read_command_line(["--resume", "--out", str(tmp_path / "run")])
    assert (method.__name__, settings.model) == ("asl", "asl")


def test_resume_of_no_run_does_not_start_one(tmp_path, capsys):
    """A wrong --out, or a run that was killed in its first epoch."""
    with pytest.raises(SystemExit):
        read_command_line(["--resume", "--out", str(tmp_path / "run")])
    assert f"there is no {tmp_path}/run/last.pt" in capsys.readouterr().err
    whole = ["--model", "csra", "--data", "scenes", "--resume", "--out", str(tmp_path / "run")]
    assert read_command_line(whole)[1].resume


def test_a_reader_whose_targets_do_not_fit_is_named(monkeypatch):
    monkeypatch.setitem(data.READERS, "scenes", lambda root, split: (["a", "b"], ["x.png"],
                                                                    np.ones((1, 3), np.int8)))
    with pytest.raises(InputError, match=r"scenes train: .* \(1, 3\) for 1 images and 2 classes"):
        load("scenes", check=False)


def test_a_closed_pipe_ends_a_program_without_a_traceback():
    code = ("from lib.distributed import program\n"
            "with program():\n"
            "    for i in range(100000):\n"
            "        print(i)\n")
    writer = subprocess.Popen([sys.executable, "-c", code], cwd=HERE.parent, stdout=subprocess.PIPE,
                              stderr=subprocess.PIPE, text=True)
    writer.stdout.readline()
    writer.stdout.close()
    assert writer.stderr.read() == "" and writer.wait() == 1


@pytest.mark.parametrize("split", ["train", "test"])
def test_a_split_without_positives_is_an_error(tmp_path, split):
    text = "image,a,b\n" + "".join(f"{split}{i}.png,-1,0\n" for i in range(16))
    flags = own(tmp_path, **{split: text})
    with pytest.raises(SystemExit, match=f"the {split} split has no positive label"):
        train.main([*flags, "--out", str(tmp_path / "run")])


def test_a_backbone_whose_inputs_are_not_known_needs_both(tmp_path):
    with pytest.raises(InputError, match="give --mean and --std"):
        read_command_line([*own(tmp_path), "--backbone", "hf-hub:someone/model", "--mean", "0,0,0"])
    with pytest.raises(InputError, match="--backbone resnett18: .*correct the name"):
        read_command_line([*own(tmp_path), "--backbone", "resnett18"])


def test_what_a_method_refuses_is_said_without_advice_on_backbones(tmp_path):
    flags = own(tmp_path)
    flags[1] = "cprfl"
    with pytest.raises(SystemExit) as stop:
        train.main([*flags, "--prompts", "none", "--out", str(tmp_path / "run")])
    assert str(stop.value).endswith("prompts=none: choose from nonlinear, linear, random")


def test_a_method_without_a_recipe_for_csv_has_the_defaults(capsys):
    method = types.ModuleType("toy")
    method.RECIPES = {"scenes": {"lr": 1.}}
    assert recipe_for(method, "coco2014") == {}
    assert "toy has no recipe for coco2014: using the defaults" in capsys.readouterr().err


def test_sync_bn_of_several_processes_needs_gpus(monkeypatch):
    settings = default_settings(sync_bn=True, batch_size=4)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    train.check_processes(settings, 1)
    with pytest.raises(InputError, match="--sync-bn"):
        train.check_processes(settings, 2)


def test_lists_that_are_cut_say_so():
    for count in (8, 9):
        classes = [f"c{k}" for k in range(count)]
        targets = np.zeros((2, count), np.int8)
        dataset = data.Dataset(classes, ["a.jpg", "b.jpg"], targets)
        warnings = data.label_warnings(dataset, "train")
        assert warnings[0].endswith("c7") == (count == 8)
        assert warnings[0].endswith("c7, ...") == (count == 9)


def test_an_image_without_labels_says_so(trained, capsys):
    flags = ["--checkpoint", str(trained / "run/last.pt"), str(trained / "test0.png")]
    predict.main([*flags, "--threshold", "1"])
    assert "test0.png: no label above the threshold\n" in capsys.readouterr().out


def test_difficult_objects_are_named_only_where_there_are_any(trained, capsys):
    evaluation.main(["--checkpoint", str(trained / "run/last.pt"), "--workers", "0"])
    assert "difficult" not in capsys.readouterr().out
