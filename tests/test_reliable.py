"""What happens to long runs: several processes, kills, full disks, broken images."""
import json
import multiprocessing
import os
import random
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import torch
from conftest import HERE
from PIL import Image
from test_train import log

import data
import eval as evaluation
import train

FLAGS = ["--model", "csra", "--data", "csv", "--no-pretrained", "--image-size", "64", "--lr", "1e-3",
         "--batch-size", "12", "--workers", "0", "--amp", "off"]
FAULTS = HERE / "programs/faults.py"


@pytest.fixture(scope="module", autouse=True)
def small_images(tmp_path_factory):
    """48 training and 21 test images, in FLAGS from here on."""
    root, scenes = tmp_path_factory.mktemp("csv"), data.load("scenes")
    for split, numbers in (("train", range(48)), ("test", range(48, 69))):
        (root / f"{split}.csv").write_text("image,labels\n" + "".join(
            f"{i}.png,{';'.join(np.array(scenes.classes)[scenes.targets[i] == 1])}\n"
            for i in numbers))
        for i in numbers:
            Image.fromarray(scenes.image(i).permute(1, 2, 0).numpy()).save(root / f"{i}.png")
    FLAGS[4:4] = ["--root", str(root)]
    yield
    del FLAGS[4:6]


def started(*command, **options):
    """A process in the project's folder, as a user starts it."""
    return subprocess.Popen([sys.executable, *map(str, command)], cwd=HERE.parent, text=True,
                            stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                            env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(HERE.parent),
                                              "PYTHONUNBUFFERED": "1"}, **options)


def child(main, argv, environment, dtype):
    os.environ.update(environment)
    torch.set_num_threads(1)
    torch.set_default_dtype(dtype)
    main([str(flag) for flag in argv])


def processes(count, main, *argv, dtype=torch.float32):
    """main(argv) in what `torchrun --nproc_per_node=COUNT` makes on one machine."""
    port, tasks = random.randrange(20000, 60000), []
    for rank in range(count):
        environment = {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(count),
                       "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
        tasks.append(multiprocessing.get_context("fork").Process(
            target=child, args=(main, argv, environment, dtype)))
        tasks[-1].start()
    for task in tasks:
        task.join(200)
    assert [task.exitcode for task in tasks] == [0] * count


@pytest.mark.parametrize("model, more", [
    ("csra", ["--backbone", "test_vit"]), ("asl", ["--backbone", "test_vit"]),
    pytest.param("q2l", ["--backbone", "test_convnext", "--d-model", 32, "--ffn", 32, "--dropout", 0],
                 marks=pytest.mark.slow)])
def test_world_size_and_micro_batches_change_nothing(tmp_path, model, more):
    """In float64, with layer norm: the loss curve and the weights of one process, for a loss that is
    a mean and one that is a sum; the last batch is smaller. The last norm of test_convnext is not
    used and gets no gradient."""
    results = []
    for name, count, parts in (("one", 1, 1), ("two", 2, 1), ("micro", 1, 3), ("three", 3, 2)):
        processes(count, train.main, "--model", model, *FLAGS[2:], "--ema", 0, *more, "--epochs", 2,
                  "--accumulate", parts, "--out", tmp_path / name, "--limit", 42, "--no-drop-last",
                  dtype=torch.float64)
        results.append((log(tmp_path / name), torch.load(tmp_path / name / "last.pt")["model"]))
    (first, weights), *others = results
    assert first[0]["processes"] == 1 and others[0][0][0]["processes"] == 2
    for lines, other in others:
        assert [line["loss"] for line in lines[1:3]] == pytest.approx(
            [line["loss"] for line in first[1:3]], rel=1e-9)
        assert lines[-1]["mAP"] == first[-1]["mAP"]
        for key, value in weights.items():
            torch.testing.assert_close(other[key], value, rtol=1e-7, atol=1e-9)


def test_micro_batches_of_different_sizes(tmp_path):
    """The last batch has 4 images, in micro-batches of 2 and 2; in others there are three of 4."""
    losses = []
    for parts in (1, 3):
        out = tmp_path / f"{parts}"
        processes(1, train.main, *FLAGS, "--backbone", "test_vit", "--epochs", 1, "--accumulate", parts,
                  "--limit", 40, "--no-drop-last", "--out", out, dtype=torch.float64)
        losses.append(log(out)[1]["loss"])
    assert losses[0] == pytest.approx(losses[1], rel=1e-9)


def test_all_processes_share_the_folder_of_rank_0(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(train.distributed, "gather", lambda item: ["of rank 0", item]
                        if isinstance(item, str) else [item])
    train.main([*FLAGS, "--backbone", "test_resnet", "--epochs", "1", "--limit", "12"])
    assert (tmp_path / "of rank 0/last.pt").is_file()


def test_sharded_evaluation_is_exact(tmp_path):
    out = tmp_path / "run"
    train.main([*FLAGS, "--backbone", "test_resnet", "--epochs", "1", "--out", str(out)])
    tables = []
    for count in (1, 2, 3):
        processes(count, evaluation.main, "--checkpoint", out / "last.pt", "--out",
                  tmp_path / f"{count}.json", "--scores", tmp_path / f"{count}.npz")
        tables.append(json.loads((tmp_path / f"{count}.json").read_text()))
    assert tables[0] == tables[1] == tables[2] and tables[0]["images"] == 21
    one, three = (np.load(tmp_path / f"{count}.npz") for count in (1, 3))
    assert [*one["paths"]] == [*three["paths"]] == [*data.load("csv", FLAGS[5], "test").paths]
    np.testing.assert_allclose(one["scores"], three["scores"], atol=1e-6)


def test_batches_that_do_not_divide(tmp_path, monkeypatch):
    flags = [*FLAGS, "--backbone", "test_resnet", "--out", str(tmp_path / "x")]
    monkeypatch.setattr(train.distributed, "world_size", lambda: 5)
    with pytest.raises(SystemExit, match="--batch-size 12 must be a multiple of 5 processes"):
        train.main(flags)
    with pytest.raises(SystemExit, match="--download: run it first, in one process"):
        train.main([*flags, "--batch-size", "10", "--download"])


def long():
    return [*FLAGS, "--backbone", "test_resnet", "--epochs", 6, "--ema", 0.9, "--augment", "crop,flip"]


def finished(*command):
    text = (task := started(*command)).communicate(timeout=300)[0]
    assert task.returncode == 0, text
    return text


@pytest.fixture(scope="module")
def whole(tmp_path_factory, small_images):
    out = tmp_path_factory.mktemp("whole") / "run"
    finished("train.py", *long(), "--out", out)
    return torch.load(out / "last.pt")


def same(one, two):
    assert len(one["history"]) == len(two["history"]) == 6
    for part in ("model", "ema"):
        assert all(torch.equal(one[part][key], two[part][key]) for key in one[part])
    assert [line["loss"] for line in one["history"]] == [line["loss"] for line in two["history"]]
    assert [line["mAP"] for line in one["history"]] == [line["mAP"] for line in two["history"]]


@pytest.mark.parametrize("seed", range(int(os.environ.get("KILLS", "2"))))
@pytest.mark.slow
def test_killed_at_any_moment_and_resumed_bit_for_bit(tmp_path, whole, seed):
    """SIGKILL at three random moments of the training; `seed` draws them."""
    rng, out, moments = random.Random(seed), tmp_path / "run", []
    flags = (*long(), "--workers", seed % 3, "--resume", "--out", out)
    for _ in range(3):
        task = started("train.py", *flags, start_new_session=True)
        for line in task.stdout:
            if line.startswith("epoch"):
                break
        time.sleep(rng.uniform(0, 0.5))
        os.killpg(task.pid, signal.SIGKILL)
        task.communicate()
        moments.append(len(torch.load(out / "last.pt")["history"]) if (out / "last.pt").exists() else 0)
    print("killed after epochs", *moments)
    assert moments[0] < 6
    finished("train.py", *flags)
    same(torch.load(out / "last.pt"), whole)
    assert [line.get("epoch") for line in log(out)] == [None, 1, 2, 3, 4, 5, 6, None]


@pytest.mark.slow
def test_killed_while_it_writes(tmp_path, whole):
    """What a kill during a write leaves: the checkpoint before it, whole, and part of the next."""
    out = tmp_path / "run"
    task = started(FAULTS, "killed_in_save", *long(), "--out", out)
    text = task.communicate(timeout=300)[0]
    assert task.returncode == -signal.SIGKILL and (out / "last.tmp").exists(), text
    finished("train.py", *long(), "--out", out, "--resume")
    same(torch.load(out / "last.pt"), whole)


@pytest.mark.slow
def test_an_error_ends_the_workers_too(tmp_path):
    task = started(FAULTS, "broken", *FLAGS, "--backbone", "test_resnet", "--workers", 2, "--out",
                   tmp_path / "run")
    assert "unforeseen" in task.communicate(timeout=60)[0] and task.returncode == 1


def test_outputs_that_can_not_be_written(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    with pytest.raises(SystemExit, match="file/run.*choose another --out"):
        train.main([*FLAGS, "--backbone", "test_resnet", "--out", str(tmp_path / "file/run")])
    kept = tmp_path / "last.pt"
    train.save({"a": 1}, kept)

    def full(state, path):
        path.write_bytes(b"part")
        raise RuntimeError("PytorchStreamWriter failed writing file data/0: No space left\nat ...")
    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(data.InputError, match="last.pt: .*No space left.*room"):
        train.save({"a": 2}, kept)
    assert torch.load(kept)["a"] == 1 and sorted(tmp_path.iterdir()) == [tmp_path / "file", kept]


def test_resume_with_another_methods_checkpoint(tmp_path):
    out = str(tmp_path / "run")
    train.main([*FLAGS, "--backbone", "test_resnet", "--epochs", "1", "--out", out])
    with pytest.raises(SystemExit, match="other settings for model"):
        train.main(["--model", "asl", "--resume", "--out", out])


@pytest.mark.parametrize("workers", [0, 1])
def test_a_broken_image_ends_the_run_in_one_line(tmp_path, workers):
    shutil.copytree(FLAGS[5], tmp_path, dirs_exist_ok=True)
    (tmp_path / "3.png").write_bytes((tmp_path / "3.png").read_bytes()[:400])
    flags = [*FLAGS, "--root", str(tmp_path), "--backbone", "test_resnet", "--epochs", "2"]
    with pytest.raises(SystemExit) as stop:
        train.main([*flags, "--workers", str(workers), "--out", str(tmp_path / "run")])
    text = str(stop.value)
    assert text.startswith(f"error: {tmp_path}/3.png: ") and "tools.check --data NAME --root ROOT --verify" in text
    assert "\n" not in text


def test_full_memory_names_the_setting(tmp_path, monkeypatch):
    def full(*_):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
    monkeypatch.setattr(data.Normalize, "__call__", full)
    with pytest.raises(SystemExit, match="--accumulate 2"):
        train.main([*FLAGS, "--backbone", "test_resnet", "--out", str(tmp_path / "other")])
