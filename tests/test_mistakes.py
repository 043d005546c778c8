"""tools.mistakes: planted wrong labels come first, names are escaped, the page stands alone."""
import base64
import io
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

import numpy as np
import pytest
import torch
from PIL import Image

import train
from lib.errors import InputError
from tools import heatmaps, mistakes
from tools.predict import open_checkpoint

RED = "<red> & \"warm\" 'é"  # a name that HTML would misread
BLUE, SELDOM = "blue", "seldom"
FLAGS = ["--backbone", "test_resnet", "--no-pretrained", "--image-size", "64", "--batch-size", "8",
         "--workers", "0", "--amp", "off"]


def write_set(root):
    """Images whose left half is red or gray and whose right half is blue or gray, with labels.

    In val, four labels are wrong: image 3 is red and 4 isn't, 5 is blue and 6 isn't. Label 7 is
    unknown. Image 2 is a box in a file. The class `seldom` has no mistakes in val.
    """
    rng = np.random.default_rng(0)
    for split in ("train", "val", "test"):
        quoted = RED.replace('"', '""')
        rows = [f'image,"{quoted}",{BLUE},{SELDOM}']
        for i in range(32):
            red, blue = i % 2, i // 2 % 2
            pixels = np.full((24, 40, 3), 110) + rng.integers(0, 30, (24, 40, 3))
            pixels[:, :20, 0] += 110 * red
            pixels[:, 20:, 2] += 110 * blue
            name = f"{split}<{i}> #é.png"
            box = ""
            if split == "val" and i == 2:
                pixels = np.pad(pixels, ((5, 5), (5, 5), (0, 0)))
                box = "::5,5,40,24"
            Image.fromarray(pixels.astype(np.uint8)).save(root / name)
            if split == "val":
                red = {3: 0, 4: 1, 7: -1}.get(i, red)
                blue = {5: 1, 6: 0}.get(i, blue)
            rows.append(f'"{name}{box}",{red},{blue},{int(split == "train" and i == 0)}')
        (root / f"{split}.csv").write_text("\n".join(rows), "utf-8")


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    root = tmp_path_factory.mktemp("colors")
    write_set(root)
    train.main(["--model", "csra", "--data", "csv", "--root", str(root), *FLAGS, "--epochs", "20",
                "--lr", "0.05", "--out", str(root / "run")])
    return root


class Page(HTMLParser):
    """What a browser sees of a page: texts and pictures of each section, all links, ids and tags."""

    def __init__(self, file):
        super().__init__()
        self.tags, self.ids, self.links, self.sections = set(), [], [], {"": []}
        self.last = ""
        self.feed(file.read_text("utf-8"))

    def handle_starttag(self, tag, attrs):
        attrs = dict(attrs)
        self.tags.add(tag)
        if tag == "section":
            self.last = attrs["id"]
            self.sections[self.last] = []
            self.ids.append(self.last)
        if tag == "a":
            self.links.append(attrs["href"])
        if tag == "img":
            mark, data = attrs["src"].split(",")
            assert mark == "data:image/jpeg;base64"
            self.sections[self.last].append(base64.b64decode(data))

    def handle_data(self, text):
        if text.strip():
            self.sections[self.last].append(text.strip())


def page_of(run, file, *flags):
    mistakes.main(["--checkpoint", str(run / "run/best.pt"), "--split", "val", "--workers", "0",
                   "--out", str(file), *flags])
    return Page(file)


def test_planted_wrong_labels_are_the_first_of_their_class(run, tmp_path):
    file = tmp_path / "page.html"
    file.write_text("the one from yesterday")
    page = page_of(run, file)
    assert page.ids == ["class0", "class1"]
    for section, name, false_positive, miss, labels in (
            ("class0", RED, 3, 4, (BLUE, RED)), ("class1", BLUE, 6, 5, ("none", f"{RED}, {BLUE}"))):
        found = page.sections[section]
        texts = [part for part in found if isinstance(part, str)]
        assert texts[0] == name
        for kind, answer, image, all_labels in (("False positives", "no", false_positive, labels[0]),
                                                ("Misses", "yes", miss, labels[1])):
            place = next(i for i, text in enumerate(texts) if text.startswith(f"{kind}: "))
            assert texts[place] == f"{kind}: 1 of 1"  # nothing else is wrong, nor is the unknown
            score = float(texts[place + 1].removeprefix(f"{name}: model ").removesuffix(
                f", label {answer}"))
            assert (score > 0.5) == (answer == "no")
            assert texts[place + 2:place + 4] == [f"val<{image}> #é.png", f"labels: {all_labels}"]
    text = " ".join(page.sections[""])
    assert f"Without mistakes: {SELDOM}" in text and "Images: 32." in text
    assert [*tmp_path.iterdir()] == [file]  # no .part is left


def test_the_page_stands_alone(run, tmp_path):
    page = page_of(run, tmp_path / "page.html")
    assert not page.tags & {"script", "link", "iframe", "red"}
    inner = [link[1:] for link in page.links if link.startswith("#")]
    assert sorted(inner) == ["", "", "class0", "class1"]  # "": back to the top
    outer = [urlsplit(link) for link in page.links if not link.startswith("#")]
    assert [(url.scheme, Path(unquote(url.path))) for url in outer] == [
        ("file", run / f"val<{i}> #é.png") for i in (3, 4, 6, 5)]
    assert page.sections[""].count(RED) == page.sections[""].count(BLUE) == 1  # in the table


def test_pictures_are_the_image_and_its_map_of_this_class(run, tmp_path):
    """From the files on, by the path of tools.predict; the box is shown as its crop."""
    page = page_of(run, tmp_path / "page.html", "--threshold", "0", "--top", "40")
    model, _, prepare = open_checkpoint(run / "run/best.pt")
    for k, name in enumerate((RED, BLUE)):
        found = page.sections[f"class{k}"]
        for i, part in enumerate(found):
            if not str(part).startswith("val<"):
                continue
            image = Image.open(run / part.removesuffix("::5,5,40,24"))
            if "::" in part:
                image = image.crop((5, 5, 45, 29))
            photo, heat = found[i - 3:i - 1]
            resized = image.resize((320, 192))
            assert jpeg(resized) == photo
            with torch.inference_mode():
                logits, maps = model.attention(prepare(image)[None])
            expected = jpeg(heatmaps.overlay(resized, maps[0, 0, k], 1))
            differs = abs(pixels(expected) - pixels(heat)).max(-1) > 4
            assert differs.mean() < 0.005  # rounding moves a few pixels of the outline
            shown = f"{name}: model {logits[0, k].sigmoid():.3f}, label no"
            assert shown == found[i - 1]
    everything = page.sections["class0"] + page.sections["class1"]
    assert sum("::5,5,40,24" in str(part) for part in everything) == 1  # it is blue, not red


def jpeg(picture):
    file = io.BytesIO()
    picture.save(file, "JPEG", quality=80)
    return file.getvalue()


def pixels(jpeg):
    return np.asarray(Image.open(io.BytesIO(jpeg)), int)


def test_mistakes_of_a_class_are_those_a_loop_finds():
    rng = np.random.default_rng(0)
    logits = rng.integers(-4, 5, 200).astype(float)  # with ties, also at the threshold
    targets = rng.integers(-1, 2, 200)
    false_positives, misses = mistakes.mistakes_of(logits, targets, 1.0)
    expected = [{i for i in range(200) if logits[i] > 1 and targets[i] == 0},
                {i for i in range(200) if logits[i] <= 1 and targets[i] == 1}]
    assert [set(false_positives), set(misses)] == expected
    assert [len(false_positives), len(misses)] == [len(indices) for indices in expected]
    assert (np.diff(logits[false_positives]) <= 0).all() and (np.diff(logits[misses]) >= 0).all()


@pytest.mark.parametrize("shape", [(1, 3, 4, 5), (1, 2, 3, 4, 5), (1, 6, 2, 3, 4, 5)])
def test_maps_of_layers_and_heads_are_averaged(shape, run):
    """K = 3 maps of 4 x 5 cells."""
    evaluation = mistakes.Evaluation(run / "run/best.pt")
    maps = torch.rand(shape)
    evaluation.model.attention = lambda images: (None, maps)
    found = mistakes.heat_map(evaluation, torch.zeros(3, 40, 30, dtype=torch.uint8), 1)
    expected = maps.reshape(-1, 3, 4, 5).mean(0)[1]
    torch.testing.assert_close(found, expected)


def test_narrow_and_small_images_are_shown():
    for size in ((2, 300), (300, 2), (5, 5)):
        html = mistakes.figure(torch.zeros(3, *size, dtype=torch.uint8), torch.rand(3, 3), "caption")
        file = io.BytesIO(base64.b64decode(html.split("base64,")[1].split('"')[0]))
        assert max(Image.open(file).size) == 320 and min(Image.open(file).size) >= 16


def test_bad_input_is_one_line(run, tmp_path, monkeypatch):
    checkpoint = ["--checkpoint", str(run / "run/best.pt"), "--workers", "0"]
    for flags, message in (
            (["--split", "val", "--out", str(run / "run/best.pt")], "another flag names the same"),
            (["--split", "val", "--out", str(tmp_path)], "is a folder"),
            (["--split", "val", "--threshold", "2"], "not a probability"),
            (["--split", "val", "--data", "scenes"], "no split val in scenes")):
        out = [] if "--out" in flags else ["--out", str(tmp_path / "x.html")]
        with pytest.raises(InputError, match=message):
            mistakes.main([*checkpoint, *flags, *out])
    assert not (tmp_path / "x.html").exists()
    monkeypatch.delattr("csra.CSRA.attention")
    with pytest.raises(InputError, match="best.pt has no `attention`, which the top of train.py"):
        mistakes.main([*checkpoint, "--split", "val", "--out", str(tmp_path / "x.html")])


def test_an_error_leaves_the_earlier_page(run, tmp_path, monkeypatch):
    file = tmp_path / "page.html"
    file.write_text("the one from yesterday")
    monkeypatch.setattr(Path, "write_text", lambda *content: 1 / 0)  # as if the disk were full
    with pytest.raises(InputError, match="page.html: division by zero: make room"):
        page_of(run, file)
    assert file.read_text() == "the one from yesterday"
