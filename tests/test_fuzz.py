"""Mutated inputs end in the program's own error or in the labels that an independent reading finds:
100 of each kind, FUZZ=10000 for the long mode."""
import csv
import io
import json
import os
import random
import signal

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps
from test_data import coco_matrix, write_csv, write_lists, write_voc

import cprfl
from data import InputError, load
from eval import read_threshold
from lib.checkpoint import read_checkpoint
from lib.errors import explain_errors
from readers import voc
from readers.images import box_of, read_image
from readers.own_images import CODES
from readers.scenes import draw as draw_scene
from tools.convert import read_released

COUNT = int(os.environ.get("FUZZ", "100"))
SNIPPETS = (b",", b"\n", b"\r\n", b'"', b";", b"\0", b"1", b"-1", b"2", b"9" * 30, b"\xff\xfe", b"[",
            b"}", b" ", b"nan", b"\xe2\x82\xac", b"image", b"../", b":", b"null", b"1.5", b"true")


def mutated(content, rng):
    """A few bytes changed, removed, doubled, moved, cut off, or replaced by telling ones."""
    content = bytearray(content)
    for _ in range(rng.choice((1, 1, 2, 5))):
        i, n = rng.randrange(len(content) + 1), rng.choice((1, 2, 8, 40))
        kind = rng.randrange(6)
        if kind == 0:
            content[i:i + 1] = bytes([rng.randrange(256)])
        elif kind == 1:
            del content[i:i + n]
        elif kind == 2:
            content[i:i] = content[i:i + n] * rng.choice((1, 50))
        elif kind == 3:
            content[i:i + rng.randrange(3)] = rng.choice(SNIPPETS)
        elif kind == 4:
            j = rng.randrange(len(content) + 1)
            content[j:j] = content[i:i + n]
        elif rng.random() < 0.3:
            del content[i:]
    return bytes(content)


def changed_json(text, rng):
    """One value somewhere in it replaced, removed or doubled."""
    content = json.loads(text)
    at, spots = content, []

    def walk(node):
        for key in (node if isinstance(node, dict) else range(len(node))):
            spots.append((node, key))
            if isinstance(node[key], (dict, list)):
                walk(node[key])
    walk(at)
    node, key = rng.choice(spots)
    value = rng.choice((None, -1, 10 ** 30, "x", [], {}, 1.5, True, [[]], "0", node[key]))
    if isinstance(node, list) and rng.random() < 0.3:
        node.insert(key, value)
    elif rng.random() < 0.2:
        del node[key]
    else:
        node[key] = value
    return json.dumps(content).encode()


@pytest.fixture(autouse=True)
def no_hang():
    def late(*_):
        raise TimeoutError("hangs")
    before = signal.signal(signal.SIGALRM, late)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


def fuzz(file, attempt, check, mutate=mutated):
    """How many of COUNT mutations were refused; every other passes `check`."""
    whole, rng, refused = file.read_bytes(), random.Random(0), 0
    check(attempt())
    for _ in range(COUNT):
        file.write_bytes(mutate(whole, rng))
        signal.alarm(20)
        try:
            result = attempt()
        except InputError as error:
            assert len(str(error)) < 2000 and "\n" not in str(error).strip()
            refused += 1
        else:
            check(result)
        signal.alarm(0)
    file.write_bytes(whole)
    print(f"{file.name}: {COUNT} mutations, {refused} refused")
    assert 0 < refused < COUNT


def test_csv_columns(tmp_path):
    file = write_csv(tmp_path, "image,cat,dog\na.jpg,1,0\nb.jpg,-1,1\nc.jpg,,1\n") / "train.csv"
    codes = CODES

    def check(found):
        lines = io.StringIO(file.read_bytes().decode("utf-8-sig"), newline="")
        header, *rows = [row for row in csv.reader(lines) if row]
        header = [name.strip() for name in header]
        for i, row in enumerate(rows):
            row = dict(zip(header, row))
            assert found.paths[i] == os.path.join(tmp_path, row.pop("image").strip())
            if found.classes == [*row]:
                assert found.targets[i].tolist() == [codes[v.strip()] for v in row.values()]
            else:  # the header became image,labels
                assert "labels" in row
        assert len(found) == len(rows)
    fuzz(file, lambda: load("csv", tmp_path, check=False), check)


def test_csv_names(tmp_path):
    file = write_csv(tmp_path, "image,labels\na.jpg,dog; cat\nb.jpg,\nc.jpg,cat\n") / "train.csv"

    def check(found):
        rows = csv.DictReader(io.StringIO(file.read_bytes().decode("utf-8-sig"), newline=""))
        if sorted(rows.fieldnames) != ["image", "labels"]:
            return  # no longer a file of names; the test above covers these
        for row, target in zip(rows, found.targets, strict=True):
            names = {name.strip() for name in row["labels"].split(";")} - {""}
            assert {found.classes[k] for k in np.flatnonzero(target)} == names
    fuzz(file, lambda: load("csv", tmp_path, check=False), check)


@pytest.mark.parametrize("mutate", [mutated, changed_json])
def test_coco(tmp_path, mutate):
    content = {"images": [{"id": 7, "file_name": "b.jpg"}, {"id": 3, "file_name": "a.jpg"}],
               "categories": [{"id": i, "name": n} for i, n in ((90, "z"), (2, "N/A"), (5, "y"))],
               "annotations": [{"image_id": i, "category_id": k, "bbox": [0, 1, 2, 3], "area": 6}
                               for i, k in ((7, 90), (7, 2), (3, 5))]}
    (tmp_path / "annotations").mkdir()
    file = tmp_path / "annotations/instances_train2017.json"
    file.write_text(json.dumps(content))

    def check(found):
        classes, matrix = coco_matrix(json.loads(file.read_text()))
        assert found.targets.tolist() == matrix and found.classes == [str(name) for name in classes]
    fuzz(file, lambda: load("coco2017", tmp_path, check=False), check, mutate)


def test_voc(tmp_path):
    file = write_voc(tmp_path) / "VOCdevkit/VOC2007/ImageSets/Main/dog_trainval.txt"

    def check(found):
        lines = dict(line.split() for line in file.read_text().splitlines() if line.strip())
        dog = found.targets[:, voc.CLASSES.index("dog")]
        assert [lines[path[-10:-4]] == "1" for path in found.paths] == (dog == 1).tolist()
    fuzz(file, lambda: load("voc2007", tmp_path, check=False), check)


def test_published_lists(tmp_path):
    write_lists(tmp_path, "coco")
    file = tmp_path / "longtail/coco_lt_train.txt"

    def check(found):
        lines = [line.split() for line in file.read_text().splitlines() if line.strip()]
        for path, target, (name, *numbers) in zip(found.paths, found.targets, lines, strict=True):
            assert path == f"{tmp_path}/{name}"
            assert set(np.flatnonzero(target)) == {int(number) for number in numbers}
    fuzz(file, lambda: load("coco-lt", tmp_path, check=False), check)


def test_nuswide_csv(tmp_path):
    (tmp_path / "images").mkdir()
    for name in "123":
        (tmp_path / f"images/{name}.jpg").touch()
    file = tmp_path / "nus_wid_data.csv"
    file.write_text("filepath,label,split_name\nimages/1.jpg,\"['sky', 'clouds']\",train\n"
                    "images/2.jpg,['sun'],val\nimages/3.jpg,['sky'],train\n")

    def check(found):
        rows = csv.DictReader(io.StringIO(file.read_bytes().decode("utf-8-sig"), newline=""))
        rows = [row for row in rows if row["split_name"] == "train"
                and os.path.basename(row["filepath"])
                and os.path.exists(f"{tmp_path}/{row['filepath']}")]
        for row, path, target in zip(rows, found.paths, found.targets, strict=True):
            assert path == f"{tmp_path}/{row['filepath']}"
            names, quote = [], ""
            for letter in row["label"]:
                if not quote and letter in "'\"":
                    quote, names = letter, [*names, ""]
                elif letter == quote:
                    quote = ""
                elif quote:
                    names[-1] += letter
            assert {found.classes[k] for k in np.flatnonzero(target)} == {
                name.strip() for name in names} - {""}
    fuzz(file, lambda: load("nuswide", tmp_path), check)


def test_csv_boxes(tmp_path):
    file = write_csv(tmp_path, "image,x\n\"a.jpg::5,6,20,10\",1\n\"a.jpg::1.5,2.25,4,5\",0\n") / "train.csv"

    def check(found):
        for path in found.paths:
            _, mark, box = path.partition("::")
            numbers = [float(number) for number in box.split(",")] if mark else [0, 0, 1, 1]
            x, y, w, h = numbers
            left, top, width, height = box_of(box) if mark else (0, 0, 1, 1)
            assert left <= x and top <= y and left + width >= x + w and top + height >= y + h
            assert width - w < 2.001 or w > 1e6
            assert height - h < 2.001 or h > 1e6
        assert len(set(found.paths)) == len(found)
    fuzz(file, lambda: load("csv", tmp_path, check=False), check)


def test_nuswide_lists(tmp_path):
    labels = tmp_path / "Groundtruth/TrainTestLabels"
    labels.mkdir(parents=True), (tmp_path / "ImageList").mkdir(), (tmp_path / "Flickr").mkdir()
    (tmp_path / "ImageList/TrainImagelist.txt").write_text("1.jpg\n2.jpg\n3.jpg\n")
    for name in "123":
        (tmp_path / f"Flickr/{name}.jpg").touch()
    (labels / "Labels_sky_Train.txt").write_text("1\n1\n1\n")
    file = labels / "Labels_sun_Train.txt"
    file.write_text("1\n0\n1\n")

    def check(found):
        sun = found.targets[:, found.classes.index("sun")].tolist()
        assert sun == [int(word) for word in file.read_text("utf-8-sig").split()]
    fuzz(file, lambda: load("nuswide", tmp_path), check)


@pytest.mark.parametrize("mutate", [mutated, changed_json])
def test_vg500(tmp_path, mutate):
    (tmp_path / "train_list_500.txt").write_text("1.jpg\n2.jpg\n")
    file = tmp_path / "vg_category_500_labels_index.json"
    file.write_text('{"1.jpg": [0, 499, 7, 30], "2.jpg": [], "3.jpg": [1, 2, 3]}')

    def check(found):
        content = json.loads(file.read_text())
        for name, target in zip(("1.jpg", "2.jpg"), found.targets, strict=True):
            assert set(np.flatnonzero(target)) == {int(label) for label in content[name]}
    fuzz(file, lambda: load("vg500", tmp_path, check=False), check, mutate)


@pytest.mark.parametrize("mutate", [mutated, changed_json])
def test_wider(tmp_path, mutate):
    people = [{"bbox": [10, 5, 20, 30], "attribute": [1, -1, 0] + [-1] * 11}] * 2
    (tmp_path / "wider_attribute_annotation").mkdir()
    file = tmp_path / "wider_attribute_annotation/wider_attribute_trainval.json"
    file.write_text(json.dumps({"images": [{"file_name": "a.jpg", "targets": people}]}))

    def check(found):
        people = [p for image in json.loads(file.read_text())["images"] for p in image["targets"]]
        assert [[max(value, 0) for value in p["attribute"]] for p in people] == found.targets.tolist()
    fuzz(file, lambda: load("wider", tmp_path, check=False), check, mutate)


@pytest.mark.parametrize("name, options", [("x.jpg", {}), ("x.png", {}),
                                           ("p.jpg", {"progressive": True})])
def test_images(tmp_path, name, options):
    Image.fromarray(draw_scene("scene:0/0")).save(tmp_path / name, **options)

    def check(found):
        assert found.ndim == 3 and found.shape[0] == 3 and str(found.dtype) == "torch.uint8"
    fuzz(tmp_path / name, lambda: read_image(f"{tmp_path}/{name}"), check)


@pytest.mark.filterwarnings("ignore")  # Pillow warns of a damaged EXIF block
@pytest.mark.parametrize("name", ["t.jpg", "t.webp", "t.png"])
def test_turned_photographs(tmp_path, name):
    exif, file = Image.Exif(), tmp_path / name
    exif[0x0112], exif[0x010f], exif[0x829a] = 6, "Maker", 0.01
    Image.new("RGB", (30, 20)).save(file, exif=exif)

    def near_exif(content, rng):
        begin = max(content.find(b"MM\0*") - 8, 0)
        return content[:begin] + mutated(content[begin:begin + 90], rng) + content[begin + 90:]

    def check(found):
        try:
            image = ImageOps.exif_transpose(Image.open(file))
        except Exception:  # noqa: BLE001 (Pillow's, of many kinds: the block is damaged)
            return
        assert found.shape == (3, image.height, image.width)
    fuzz(file, lambda: read_image(str(file), upright=True), check, near_exif)


def test_checkpoints(tmp_path):
    net = torch.nn.Linear(3, 2)
    settings = {"model": "csra", "backbone": "test_resnet", "seed": 0}
    torch.save({"model": net.state_dict(), "ema": None, "settings": settings, "classes": ["a", "b"],
                "class_counts": [1, 2]}, tmp_path / "x.pt")

    def check(found):
        assert isinstance(vars(found["settings"]), dict)
    fuzz(tmp_path / "x.pt", lambda: read_checkpoint(tmp_path / "x.pt"), check)


def test_old_format_checkpoints(tmp_path):
    file = tmp_path / "old.pth"
    torch.save({"state_dict": {"w": torch.ones(3)}}, file, _use_new_zipfile_serialization=False)

    def read():
        with explain_errors(file, "as tools.convert does"):
            return read_released(file)
    fuzz(file, read, lambda found: None)


@pytest.mark.parametrize("mutate", [mutated, changed_json])
def test_thresholds(tmp_path, mutate):
    file = tmp_path / "t.json"
    file.write_text(json.dumps({"data": "csv", "split": "train", "threshold": {"a": 0.25, "b": 0.5}}))

    def check(found):
        assert np.shape(found) in ((), (2,)) and (abs(np.asarray(found)) <= 1).all()
    fuzz(file, lambda: read_threshold(str(file), ["a", "b"]), check, mutate)


@pytest.mark.parametrize("name", ["w.npy", "w.pt"])
def test_text_features(tmp_path, name):
    values = 10 + np.arange(6, dtype=np.float32).reshape(2, 3)
    np.save(tmp_path / name, values) if name == "w.npy" else torch.save(
        torch.tensor(values), tmp_path / name)

    def read():
        try:
            return cprfl.read_text_features(str(tmp_path / name), 2)
        except ValueError as error:  # the file stands alone: build_model makes it an InputError
            raise InputError(str(error)) from error

    def check(found):
        assert found.ndim == 2 and len(found) == 2 and found.isfinite().all()
    fuzz(tmp_path / name, read, check)
