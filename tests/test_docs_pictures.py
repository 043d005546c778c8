"""docs/pictures.py: the pictures that need no long training, and the committed ones."""
import importlib.util
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import HERE, run
from PIL import Image

import asl
import train
from tools.predict import open_checkpoint

FOLDER = HERE.parent / "docs/pictures"


@pytest.fixture(scope="module")
def pictures():
    pytest.importorskip("matplotlib")
    spec = importlib.util.spec_from_file_location("pictures", HERE.parent / "docs/pictures.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def photo_runs(tmp_path_factory):
    """A folder of short runs of csra, q2l and cprfl on six images, and one of these."""
    root = tmp_path_factory.mktemp("photos")
    rows = "image,cat,small dog\n"
    for n in range(6):
        pixels = np.random.default_rng(n).integers(0, 256, (40, 60, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(root / f"{n}.png")
        rows += f"{n}.png,{n % 2},{n // 3}\n"
    for split in ("train", "test"):
        (root / f"{split}.csv").write_text(rows)
    np.save(root / "text.npy", 10 * np.eye(2, 5, dtype=np.float32))
    own = {"csra": [], "q2l": ["--d-model", "16", "--ffn", "16", "--no-freeze"],
           "cprfl": ["--d-model", "16", "--ffn", "16", "--text-features", str(root / "text.npy")]}
    for model, flags in own.items():
        # With this rate, the trained prompts are those of the beginning.
        train.main(["--model", model, *flags, "--data", "csv", "--root", str(root), "--lr", "1e-12",
                    "--backbone", "test_resnet", "--no-pretrained", "--image-size", "32",
                    "--batch-size", "3", "--epochs", "1", "--workers", "0", "--augment", "flip",
                    "--optimizer", "adamw", "--ema", "0", "--out", str(root / "runs" / model)])
    return root / "runs", root / "0.png"


def test_pictures_of_functions(pictures, tmp_path):
    names = ["asl-loss", "asl-gradient", "schedules"]
    pictures.main([*names, "--out", str(tmp_path)])
    for name in names:
        picture = Image.open(tmp_path / f"{name}.png")
        assert picture.size == Image.open(FOLDER / f"{name}.png").size
        assert len(picture.convert("RGB").getcolors(1 << 20)) > 100  # not blank


def test_pictures_of_photographs(pictures, photo_runs, tmp_path):
    runs, photo = photo_runs
    pictures.main(["readme", "heat-maps", "cprfl-prompts", "--photo", str(photo), "--photo-runs",
                   str(runs), "--labels", "cat", "--wrong", "small dog", "--out", str(tmp_path)])
    for name in ("readme", "heat-maps"):
        assert Image.open(tmp_path / f"{name}.jpg").width == 960
    assert Image.open(tmp_path / "cprfl-prompts.png").width == 1200


def test_the_prompts_before_training(pictures, photo_runs):
    file = photo_runs[0] / "cprfl/last.pt"
    trained, _, _ = open_checkpoint(file)
    initial = pictures.initial_model(file, trained.text_features)
    assert torch.allclose(initial.category_prompts(), trained.category_prompts(), atol=1e-6)


def test_the_losses_are_those_of_the_example(pictures):
    """The table at the top of asl.py."""
    p = torch.tensor([0.05, 0.3, 0.5, 0.9, 0.99], dtype=torch.float64)
    expected = {(pictures.CE, True): [0.050, 0.300, 0.500, 0.900, 0.990],
                (pictures.FOCAL, False): [0.000, 0.072, 0.298, 1.102, 1.061],
                (pictures.ASL, True): [0.000, 0.001, 0.019, 0.313, 0.129],
                (pictures.ASL, False): [0.000, 0.005, 0.073, 0.733, 0.221]}
    for (name, detach), slopes in expected.items():
        _, found = pictures.negative_losses(p, detach)[name]
        assert found.tolist() == pytest.approx(slopes, abs=5.1e-4), name


def test_the_share_of_the_negatives(pictures):
    """At the top of asl.py: 3 positives and 77 negatives at p = 0.5."""
    logits = torch.zeros(2, 80)
    targets = torch.zeros(2, 80)
    targets[:, :3] = 1
    share = pictures.negatives_share(asl.binary_cross_entropy, logits, targets)
    assert share == pytest.approx(77 / 80)
    assert round(pictures.negatives_share(asl.asymmetric_loss, logits, targets), 2) == 0.49


def test_committed_pictures(pictures):
    files = [*FOLDER.iterdir()]
    assert {file.stem for file in files} <= set(pictures.PICTURES)
    assert sum(file.stat().st_size for file in files) < 3e6
    for file in files:
        assert 3000 < file.stat().st_size < 200e3, file
        assert "transparency" not in Image.open(file).info
        assert np.array(Image.open(file).convert("RGBA"))[..., 3].min() == 255, file  # opaque


@pytest.mark.slow
def test_errors_in_one_line(pictures, tmp_path, capsys):
    for argv, message in ((["asl"], "no picture asl"), (["readme"], "readme needs --photo")):
        with pytest.raises(SystemExit):
            pictures.main(argv)
        assert message in capsys.readouterr().err
    text = run("docs/pictures.py", "readme", "--photo", "no.jpg", "--labels", "cat", "--photo-runs",
               tmp_path, "--out", tmp_path, ok=False)
    assert text.splitlines()[-1].startswith("error: no.jpg is missing")
    program = "import sys; sys.modules['matplotlib'] = None; import runpy; runpy.run_path({!r})"
    text = run("-c", program.format(str(Path("docs", "pictures.py"))), ok=False)
    assert text.splitlines()[-1] == ("error: docs/pictures.py needs matplotlib: pip install "
                                     "matplotlib")
    assert "pictures" not in sys.modules
