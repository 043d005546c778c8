"""Data sets -> pictures and targets; transforms; loaders.

    data = load("voc2007", root, "train")      .classes, .paths, .targets: 1 yes, 0 no, -1 unknown
    for batch in loader(data, ...):            batch.images uint8 (B, 3, H, W), batch.targets, ...;
                                               then `normalize` on the device

Splits are train and test everywhere. Every random choice of a sample comes from (seed, epoch,
index), so the number of workers changes nothing, and a run can be repeated or resumed exactly.

Run: python data.py --data NAME --root DIR [--verify]    the table that one wants before training
"""
import argparse
import csv
import json
import os
import re
import signal
import sys
from array import array
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import torch.distributed as dist
import torchvision
from PIL import Image, ImageChops, ImageDraw
from torchvision import transforms
from torchvision.io import ImageReadMode, decode_jpeg
from torchvision.transforms import v2


class InputError(Exception):
    """Bad input; the message names the file, the row and the remedy."""


@contextmanager
def reading(file, remedy):
    """Whatever is wrong with `file` inside this block becomes one clear InputError."""
    try:
        yield
    except FileNotFoundError:
        raise InputError(f"{file} is missing: {remedy}") from None
    except KeyError as error:
        raise InputError(f"{file}: no {error}: {remedy}") from error
    except (OSError, RuntimeError, ValueError, TypeError, AttributeError, SyntaxError, csv.Error,
            Image.DecompressionBombError) as error:
        raise InputError(f"{file}: {str(error).splitlines()[0]:.300}: {remedy}") from error


@dataclass
class Dataset:
    """One split, held as arrays: worker processes share them; Python objects they would copy."""
    classes: list[str]
    paths: np.ndarray  # (N,) of numpy's variable-width strings
    targets: np.ndarray  # (N, K) int8: 1 yes, 0 no, -1 not judged

    def __post_init__(self):
        self.paths = np.asarray(self.paths, np.dtypes.StringDType())

    def __len__(self):
        return len(self.paths)

    def picture(self, index):
        """uint8 (3, H, W)"""
        return read_picture(self.paths[index])

    def subset(self, keep):
        """`keep`: a slice, a mask or indices."""
        return type(self)(self.classes, self.paths[keep], self.targets[keep])


def read_picture(path):
    """uint8 (3, H, W), RGB. EXIF rotation is not applied, as in the field's released codes."""
    with reading(path, "`python data.py --verify` lists such pictures; replace or unlist them"):
        data = np.fromfile(path, np.uint8)
        if data[:3].tobytes() == b"\xff\xd8\xff":
            picture = decode_jpeg(torch.from_numpy(data), ImageReadMode.UNCHANGED)
            if len(picture) == 3:  # the same values as Pillow's, sooner
                return picture
        with Image.open(path) as image:  # grey, CMYK, palette, PNG, WebP, ...
            if image.mode.startswith("I;16"):  # Pillow clips 16 bits at 255: take the high byte
                image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
            return torch.from_numpy(np.array(image.convert("RGB"))).permute(2, 0, 1)


class Crops(Dataset):
    """A sample is a box of a picture; a path is FILE::x,y,w,h in pixels."""

    def picture(self, index):
        file, box = self.paths[index].rsplit("::", 1)
        picture, (x, y, w, h) = read_picture(file), map(int, box.split(","))
        crop = picture[:, max(y, 0):max(y + h, 0), max(x, 0):max(x + w, 0)]
        if not crop.numel():
            raise InputError(f"{file}: its box {box} lies outside the picture: leave it out")
        return crop


def fields(file):
    """The fields of each line that has any."""
    return [line.split() for line in file.read_text("utf-8").splitlines() if line.strip()]


def multi_hot(rows, labels, first=1):
    """Labels of each picture -> int8 (N, K); `labels`: of the columns; `first`: number of a row."""
    column = {label: k for k, label in enumerate(labels)}
    targets = np.zeros((len(rows), len(column)), np.int8)
    for i, row in enumerate(rows):
        if not column.keys() >= set(row):
            raise ValueError(f"row {i + first}: no such label: {set(row) - column.keys()}")
        targets[i, [column[label] for label in row]] = 1
    return targets


def coded(rows, codes, width, first=1):
    """A value for each of `width` classes -> int8 (N, width), by the table `codes`."""
    targets = array("b")
    for number, row in enumerate(rows, first):
        if len(row) != width or not codes.keys() >= set(row):
            raise ValueError(f"row {number}: {row[:8]}: not {width} of {[*codes]}")
        targets.extend([codes[value] for value in row])
    return np.frombuffer(targets, np.int8).reshape(-1, width)


# ------------------------------------------------------------------------------------------ scenes


def outline(corners, inner=1.0, turn=0.0):
    """Corners (n, 2) of a star in the unit circle; every second one lies at radius `inner`."""
    angle = (np.arange(corners) + turn) * 2 * np.pi / corners
    radius = np.where(np.arange(corners) % 2, inner, 1.0)
    return np.stack([radius * np.sin(angle), -radius * np.cos(angle)], 1)


COLOURS = {"red": (214, 48, 49), "green": (30, 180, 60), "blue": (40, 80, 230),
           "yellow": (235, 196, 40)}
SHAPES = {"circle": outline(16), "square": outline(4, turn=0.5), "triangle": outline(3),
          "star": outline(10, 0.42), "cross": np.array(
              [(-1, -3), (1, -3), (1, -1), (3, -1), (3, 1), (1, 1), (1, 3), (-1, 3), (-1, 1),
               (-3, 1), (-3, -1), (-1, -1)]) / 3}
PALETTE = [*COLOURS.values(), (150, 150, 150), (240, 240, 240), (30, 30, 30), (165, 80, 200),
           (235, 130, 60), (90, 200, 210)]  # the last six are no class
SIDE, GRID = 128, 6  # picture side; shapes lie in different cells of a GRID x GRID raster
NOISE = Image.fromarray(
    np.random.default_rng(0).integers(0, 49, (2 * SIDE, 2 * SIDE, 3), dtype=np.uint8))


class Scenes(Dataset):
    """Synthetic pictures, drawn when asked for; a path is scenes/SEED/NUMBER."""

    def picture(self, index):
        return torch.from_numpy(draw_scene(*self.paths[index].split("/")[1:])[0]).permute(2, 0, 1)


def scene_labels(rng):
    return rng.integers(len(COLOURS) * len(SHAPES), size=rng.integers(1, 6))


def draw_scene(seed, number):
    """Picture uint8 (SIDE, SIDE, 3) and boxes [(class, x0, y0, x1, y1)]; depends on nothing else.

    One to five small shapes, among shapes in colours that are no class and lines in all colours.
    """
    rng = np.random.default_rng((int(seed), int(number)))
    labels = scene_labels(rng)  # drawn first: load_scenes needs no more than these
    image = Image.fromarray(rng.integers(80, 176, (3, 3, 3), dtype=np.uint8))
    image = image.resize((SIDE, SIDE), Image.BILINEAR)
    draw = ImageDraw.Draw(image)
    start, turn = SIDE * rng.random((10, 2)), 2 * np.pi * rng.random((10, 1))
    length = rng.integers(8, 38, (10, 1))
    lines = np.hstack([start, start + length * np.hstack([np.sin(turn), np.cos(turn)])]).tolist()
    for i, colour in enumerate(rng.integers(len(PALETTE), size=10)):
        draw.line(lines[i], PALETTE[colour], 1 + i % 3)
    count = 7 + len(labels)
    colour = np.hstack([rng.integers(len(COLOURS), len(PALETTE), 7), labels // len(SHAPES)])
    shape = np.hstack([rng.integers(len(SHAPES), size=7), labels % len(SHAPES)])
    cell = rng.permutation(GRID * GRID)[:count]
    centre = np.stack([cell % GRID, cell // GRID], 1) + rng.uniform(0.3, 0.7, (count, 2))
    centre = (centre * SIDE / GRID).clip(12, SIDE - 12)  # whole shapes only
    size, turn = rng.uniform(6, 11, count), rng.uniform(-0.35, 0.35, count)  # pixels, radians
    cos, sin = size * np.cos(turn), size * np.sin(turn)
    shapes, boxes = list(SHAPES.values()), []
    for i in range(count):
        points = shapes[shape[i]] @ [[cos[i], sin[i]], [-sin[i], cos[i]]] + centre[i]
        draw.polygon(points.ravel().tolist(), PALETTE[colour[i]])
        if i >= 7:
            boxes.append((int(labels[i - 7]), *points.min(0), *points.max(0)))
    x, y = rng.integers(SIDE, size=2).tolist()
    noise = NOISE.crop((x, y, x + SIDE, y + SIDE))  # 0..48, added around zero
    return np.array(ImageChops.add(image, noise, 1, -24)), boxes


def load_scenes(root, split, count=4000, ratio=1):
    seed, count = (0, count) if split == "train" else (1, 1000)
    classes = [f"{colour} {shape}" for colour in COLOURS for shape in SHAPES]
    labels = [scene_labels(np.random.default_rng((seed, i))).tolist() for i in range(count)]
    data = Scenes(classes, [f"scenes/{seed}/{i}" for i in range(count)],
                  multi_hot(labels, range(len(classes))))
    return long_tailed(data, ratio) if ratio > 1 and split == "train" else data


# --------------------------------------------------------------------------------------- real data


CSV = ("a csv data set is ROOT/train.csv and ROOT/test.csv in UTF-8, both with the header `image` "
       "(a path relative to ROOT) and the same labels, each once; a value is 1, 0, -1 or empty")


def csv_rows(file):
    """Label columns; values of the rows in them; pictures of the rows."""
    with reading(file, CSV), open(file, newline="", encoding="utf-8-sig") as lines:
        header, *rows = [row for row in csv.reader(lines, strict=True) if row] or [[]]
        if "image" not in header or len(set(header)) < max(len(header), 2):
            raise ValueError(f"row 1: {header[:8]}: no `image`, no label columns, or a name twice")
        for number, row in enumerate(rows, 2):
            if len(row) != len(header):
                raise ValueError(f"row {number}: {len(row)} fields, the header has {len(header)}")
    at = header.index("image")
    pictures = [row.pop(at) for row in [header, *rows]]
    return header, rows, pictures[1:]


def load_csv(root, split):
    """Column `image`, then one column per label, or one column `labels`: names separated by ;"""
    file = root / f"{split}.csv"
    first = header, rows, pictures = csv_rows(file)
    classes, first_rows, _ = csv_rows(root / "train.csv") if split == "test" else first
    with reading(file, CSV):
        if set(header) != set(classes):
            raise ValueError(f"row 1: {sorted(set(header) ^ set(classes))} is in one file only")
        if classes == ["labels"]:
            names, first_names = ([[name for name in map(str.strip, text.split(";")) if name]
                                   for text, in part] for part in (rows, first_rows))
            classes = sorted(set().union(*first_names))
            targets = multi_hot(names, classes, 2)
        else:
            at, codes = [header.index(name) for name in classes], {"1": 1, "0": 0, "-1": -1, "": -1}
            targets = coded(([row[k].strip() for k in at] for row in rows), codes, len(at), 2)
    return Dataset(classes, [f"{root}/{picture}" for picture in pictures], targets)


VOC = ["aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow",
       "diningtable", "dog", "horse", "motorbike", "person", "pottedplant", "sheep", "sofa",
       "train", "tvmonitor"]


def load_voc(root, split, year, test):
    """Difficult (0 in the lists): negative in training, not judged in the test, as CSRA has it."""
    name = test if split == "test" else {"test": "trainval", "val": "train"}[test]
    folder, remedy = root / "VOCdevkit" / f"VOC{year}", f"{root} must hold VOCdevkit/VOC{year}"
    if split == "server":  # VOC 2012's test pictures, whose labels only the server has
        file = folder / "ImageSets" / "Main" / "test.txt"
        with reading(file, f"{remedy}, and its test archive"):
            pictures = file.read_text("utf-8").split()
        targets = np.full((len(pictures), len(VOC)), -1, np.int8)
    else:
        codes, columns = {"1": 1, "-1": 0, "0": 0 if split == "train" else -1}, []
        for label in VOC:
            file = folder / "ImageSets" / "Main" / f"{label}_{name}.txt"
            with reading(file, f"{remedy}; --download fetches it"):
                rows = fields(file)
                values = coded([row[1:] for row in rows], codes, 1)[:, 0]
                values = dict(zip([row[0] for row in rows], values))
                pictures = [*values] if label == VOC[0] else pictures
                if values.keys() != set(pictures) or len(values) < len(rows):
                    raise ValueError(f"not the pictures of {VOC[0]}_{name}.txt, each once")
                columns.append([values[picture] for picture in pictures])
        targets = np.array(columns, np.int8).T.copy()
    return Dataset(VOC, [f"{folder}/JPEGImages/{picture}.jpg" for picture in pictures], targets)


def read_coco(root, split, year):
    """The annotations; row of each image id; category id of each column; the data set."""
    name = {"train": "train", "test": "val"}[split] + year
    file = root / "annotations" / f"instances_{name}.json"
    with reading(file, f"unpack http://images.cocodataset.org/zips/{name}.zip and /annotations/"
                       f"annotations_trainval{year}.zip from there in {root}"):
        content = json.loads(file.read_text("utf-8"))
        names = {category["id"]: str(category["name"]) for category in content["categories"]}
        numbers = sorted(names)  # 1..90 with holes become columns 0..79
        row = {image["id"]: i for i, image in enumerate(content["images"])}
        if len(row) < len(content["images"]) or len(names) < len(content["categories"]):
            raise ValueError("an id occurs twice")
        labels = [set() for _ in row]
        for box in content["annotations"]:
            labels[row[box["image_id"]]].add(box["category_id"])
        paths = [f"{root}/{name}/{image['file_name']}" for image in content["images"]]
        data = Dataset([names[n] for n in numbers], paths, multi_hot(labels, numbers))
    return content, row, numbers, data


def load_coco(root, split, year):
    return read_coco(root, split, year)[-1]


LISTS = ("https://raw.githubusercontent.com/jiexuanyan/CPRFL/"
         "10b5b7c9d91d421d86175b8ccf07f280c1e94cac/data")
SHA256 = {
    "coco_labels.txt": "a16d52dc65d8bc2b7abe5875199d802e951b7af142b327f8c85b496116a87f45",
    "coco_lt_train.txt": "8e0c354ae2214d7ced46f4a5ae24236149296be4dcd2df74f00eba2abe6be0ce",
    "coco_lt_test.txt": "4dda722463b0ed3aada172ce1c75f46f1391e4d2bee7643760549f916a8022e5",
    "voc_labels.txt": "59e82ce7a1fa096b8a80c22cc72e6c86e54c598b2e1cfe08a211f1c82a0dcb2c",
    "voc_lt_train.txt": "2111a5e58ae8b67a112a2b2c8aa98fe8fa926ac3e1d73e2e4e0e4844c90cc047",
    "voc_lt_test.txt": "43b2929a86e9fe685cdf3b6b72fb90b6838ff9f9f427807e8b9502111e73750a"}


def load_published(root, split, name):
    """COCO-LT and VOC-LT as published: ROOT/longtail/*.txt, a picture's path and its label numbers
    a line. VOC's difficult objects count as positive in these lists."""
    remedy = f"--download fetches it, from {LISTS}/{name}, into ROOT/longtail"
    file = root / "longtail" / f"{name}_labels.txt"
    with reading(file, remedy):  # lines `name number`, by number; names may have spaces
        classes, numbers = zip(*((" ".join(names), number) for *names, number in fields(file)))
        if [int(number) for number in numbers] != [*range(len(numbers))]:
            raise ValueError("not `name number` lines, counted from 0")
    file = root / "longtail" / f"{name}_lt_{split}.txt"
    with reading(file, remedy):
        rows = fields(file)
        targets = multi_hot([row[1:] for row in rows], numbers)
    return Dataset([*classes], [f"{root}/{row[0]}" for row in rows], targets)


def load_nuswide(root, split):
    """ROOT/nus_wid_data.csv (ASL's split) where it is there, else the official lists. Pictures that
    can no longer be had are counted and left out."""
    file, part = root / "nus_wid_data.csv", {"train": "Train", "test": "Test"}[split]
    remedy = "NUS-WIDE is nus_wid_data.csv, or ImageList/ and Groundtruth/TrainTestLabels/"
    if file.is_file():
        with reading(file, remedy), open(file, newline="", encoding="utf-8-sig") as lines:
            rows = [*csv.DictReader(lines, strict=True)]
            labels = [[n for n in re.split(r"[\[\]',\s]+", row["label"]) if n] for row in rows]
            classes, name = sorted(set().union(*labels)), {"train": "train", "test": "val"}[split]
            data = Dataset(classes, [f"{root}/{row['filepath']}" for row in rows],
                           multi_hot(labels, classes))
            data = data.subset([row["split_name"] == name for row in rows])
    else:
        file = root / "ImageList" / f"{part}Imagelist.txt"
        with reading(file, remedy):
            paths = file.read_text("utf-8").replace("\\", "/").split()
        folder = root / "Groundtruth" / "TrainTestLabels"
        files = {f.name[7:-len(part) - 5]: f for f in folder.glob(f"Labels_*_{part}.txt")}
        targets = np.zeros((len(paths), len(files)), np.int8)
        for k, name in enumerate(sorted(files)):
            with reading(files[name], f"a 0 or 1 for each of the {len(paths)} rows of {file}"):
                column = coded(fields(files[name]), {"0": 0, "1": 1}, 1)[:, 0]
                if len(column) != len(paths):
                    raise ValueError(f"{len(column)} rows")
                targets[:, k] = column
        data = Dataset(sorted(files), [f"{root}/Flickr/{path}" for path in paths], targets)
    if lost := missing(data):
        print(f"NUS-WIDE {split}: {len(lost)} of {len(data)} pictures are MISSING and left out, "
              f"{data.paths[lost[0]]} first", file=sys.stderr)
    return data.subset(np.setdiff1d(np.arange(len(data)), lost))


def load_vg500(root, split):
    """Visual Genome's 500 most frequent labels, numbered without names in the published lists."""
    file, remedy = root / f"{split}_list_500.txt", "SSGRL's data/VG has it"
    with reading(file, remedy):
        names = file.read_text("utf-8").split()
    file, classes = root / "vg_category_500_labels_index.json", [str(k) for k in range(500)]
    with reading(file, remedy):
        labels = json.loads(file.read_text("utf-8"))  # compared as JSON text: there true is no 1
        targets = multi_hot([[json.dumps(n) for n in labels[name]] for name in names], classes)
    second = root / "VG_100K_2"  # the archives unpack into two folders
    there = set(os.listdir(second)) if second.is_dir() else ()
    return Dataset(classes, [f"{second if name in there else root / 'VG_100K'}/{name}"
                             for name in names], targets)


WIDER = ["male", "long hair", "sunglasses", "hat", "T-shirt", "long sleeves", "formal", "shorts",
         "jeans", "long pants", "skirt", "face mask", "logo", "stripe"]


def load_wider(root, split):
    """One sample per person box. Unspecified (0 in the file): negative in training, not judged in
    the test."""
    name = {"train": "trainval", "test": "test"}[split]
    file = root / "wider_attribute_annotation" / f"wider_attribute_{name}.json"
    codes, paths, values = {1: 1, -1: 0, 0: 0 if split == "train" else -1}, [], []
    with reading(file, "WIDER Attribute is wider_attribute_annotation/ and Image/, unpacked here"):
        for image in json.loads(file.read_text("utf-8"))["images"]:
            for person in image["targets"]:
                x, y, w, h = map(round, person["bbox"])
                paths.append(f"{root}/Image/{image['file_name']}::{x},{y},{w},{h}")
                values.append(person["attribute"])
        targets = coded(values, codes, len(WIDER))
    return Crops(WIDER, paths, targets)


def boxes(name, root, split, paths):
    """For each path [(class, x0, y0, x1, y1, small)], in fractions of the picture; small: an area
    below 32^2 in a picture of COCO's size (640 x 480), which no shape of scenes has."""
    if name.startswith("scenes"):
        drawn = [draw_scene(*path.split("/")[1:])[1] for path in paths]
        return [[(k, *(v / SIDE for v in box), False) for k, *box in found] for found in drawn]
    if not name.startswith("coco20"):
        raise InputError(f"{name} has no boxes: scenes, coco2014 and coco2017 have")
    content, row, numbers, data = read_coco(Path(root), split, name[4:])
    found = {path: [] for path in data.paths}
    with reading(f"{root}/annotations", "--pointing needs bbox, area, width and height of COCO"):
        for annotation in content["annotations"]:
            image, (x, y, w, h) = row[annotation["image_id"]], annotation["bbox"]
            width, height = (content["images"][image][side] for side in ("width", "height"))
            found[data.paths[image]].append((
                numbers.index(annotation["category_id"]), x / width, y / height, (x + w) / width,
                (y + h) / height, annotation["area"] < 32 ** 2))
    return [found[path] for path in paths]


def long_tailed(data, ratio):
    """A subset whose classes, ordered by frequency, follow a power law (Pareto) from the first to
    the last, `ratio` times rarer: the largest in which the first fills up, since a picture's other
    labels keep it out once theirs are full. Deterministic."""
    labels = data.targets == 1
    rank = np.argsort(np.argsort(-labels.sum(0), kind="stable"))
    shape = (1.0 + rank) ** (-np.log(ratio) / np.log(len(rank)))
    order, top = np.random.default_rng(0).permutation(len(labels)), labels.sum(0).max()
    while True:
        limit, have, keep = np.ceil(top * shape), np.zeros(len(rank), int), []
        for i in order:
            if (have + labels[i] <= limit).all():
                have += labels[i]
                keep.append(i)
        if have.max() >= 0.9 * top or top < ratio:
            return data.subset(np.sort(keep))
        top *= 0.8


def groups(counts):
    """Class numbers of head (n >= 100 training pictures), medium (n >= 20) and tail."""
    counts = np.asarray(counts)
    return {"head": np.flatnonzero(counts >= 100), "tail": np.flatnonzero(counts < 20),
            "medium": np.flatnonzero((counts >= 20) & (counts < 100))}


SETS = {"scenes": load_scenes, "scenes-lt": partial(load_scenes, count=60000, ratio=50),
        "csv": load_csv, "coco-lt": partial(load_published, name="coco"),
        "voc-lt": partial(load_published, name="voc"),
        "voc2007": partial(load_voc, year=2007, test="test"),
        "voc2012": partial(load_voc, year=2012, test="val"),  # its test labels are on a server
        "coco2014": partial(load_coco, year="2014"), "coco2017": partial(load_coco, year="2017"),
        "nuswide": load_nuswide, "vg500": load_vg500, "wider": load_wider}


def load(name, root=None, split="train", *, drop_unlabelled=False, long_tail=0, download=False,
         check=True):
    """One split as a Dataset. `drop_unlabelled` leaves out pictures without any label, `long_tail`
    makes the training split a long-tailed one of that ratio, `download` fetches VOC and the lists,
    `check` makes a missing picture an error. Raises InputError."""
    if name not in SETS or split not in ("train", "test", "server")[:2 + (name == "voc2012")]:
        raise InputError(f"no data set {name}, {split}: choose train or test of {', '.join(SETS)}")
    if not name.startswith("scenes") and not (root and (download or os.path.isdir(root))):
        raise InputError(f"{name} needs --root, the folder that holds it; {root} is not there")
    if download:
        fetch(name, Path(root))
    data = SETS[name](Path(root or "."), split)
    if drop_unlabelled:
        data = data.subset((data.targets == 1).any(1))
    if long_tail and split == "train":
        if long_tail < 1:
            raise InputError(f"--long-tail {long_tail}: most over least frequent class, at least 1")
        data = long_tailed(data, long_tail)
    if not data.targets.size:
        raise InputError(f"{name} {split} in {root}: {len(data)} pictures, "
                         f"{len(data.classes)} classes")
    if check and (lost := missing(data)):
        raise InputError(f"{data.paths[lost[0]]} and {len(lost) - 1} more listed pictures are "
                         f"missing: `python data.py --data {name} --root {root}` names them all")
    return data


def fetch(name, root):
    """VOC through torchvision, the published lists by their sha256."""
    with reading(name, f"put it into {root} by hand, as README says"):
        if name in ("voc2007", "voc2012"):
            for part in ("trainval", "test") if name == "voc2007" else ("trainval",):
                torchvision.datasets.VOCDetection(str(root), name[3:], part, download=True)
        elif name in ("coco-lt", "voc-lt"):
            kind, folder = name.split("-")[0], root / "longtail"
            folder.mkdir(parents=True, exist_ok=True)
            for file in (f"{kind}_labels.txt", f"{kind}_lt_train.txt", f"{kind}_lt_test.txt"):
                torch.hub.download_url_to_file(f"{LISTS}/{kind}/{file}", str(folder / file),
                                               SHA256[file], progress=False)
        else:
            raise ValueError("--download fetches voc2007, voc2012 and the lists of coco-lt, voc-lt")


def missing(data):
    """Indices of the pictures that are not there; each folder is read once, not each file."""
    paths = [] if isinstance(data, Scenes) else data.paths
    if isinstance(data, Crops):
        paths = [path.rsplit("::", 1)[0] for path in paths]
    parts = [os.path.split(path) for path in paths]
    there = {folder: set(os.listdir(folder)) if os.path.isdir(folder) else ()
             for folder in {folder for folder, _ in parts}}
    return [i for i, (folder, file) in enumerate(parts) if file not in there[folder]]


# -------------------------------------------------------------------------- transforms and loaders


class Cutout(torch.nn.Module):
    """A square of one random colour, half the picture's side, put in place; its centre lies in the
    picture."""

    def forward(self, picture):
        h, w = picture.shape[-2:]
        y, x = torch.randint(h, ()).item(), torch.randint(w, ()).item()
        colour = torch.randint(256, (3, 1, 1), dtype=torch.uint8)
        picture[:, max(y - h // 4, 0):y + h // 4, max(x - w // 4, 0):x + w // 4] = colour
        return picture


class RandAugment(transforms.RandAugment):
    """torchvision's, by way of Pillow, much faster there than on a tensor; its
    table of magnitudes is made once, not for each operation."""

    _augmentation_space = cache(transforms.RandAugment._augmentation_space)

    def forward(self, picture):
        image = super().forward(Image.fromarray(picture.permute(1, 2, 0).numpy()))
        return torch.from_numpy(np.array(image)).permute(2, 0, 1)


def transform(image_size, augment=()):
    """uint8 (3, H, W) -> uint8 (3, image_size, image_size), squashed unless `augment` has crop."""
    size = (image_size, image_size)
    steps = {"crop": v2.RandomResizedCrop(size, (0.7, 1.0)), "flip": v2.RandomHorizontalFlip(),
             "cutout": Cutout(), "randaugment": RandAugment()}
    if set(augment) - set(steps):
        raise InputError(f"unknown augmentation in {augment}: choose from {', '.join(steps)}")
    chosen = [step for name, step in steps.items() if name in augment]
    return v2.Compose(chosen if "crop" in augment else [v2.Resize(size), *chosen])


class Batch(NamedTuple):
    images: torch.Tensor  # uint8 (B, 3, H, W), in memory as (B, H, W, 3)
    targets: torch.Tensor  # int8 (B, K)
    index: torch.Tensor  # (B,) which samples these are
    bad: list[str]  # what is wrong with the samples that should be here and could not be read


@dataclass
class Samples:
    """What a worker does: keys (epoch, index) of a batch -> the Batch."""
    data: Dataset
    transform: v2.Compose
    seed: int

    def __getitem__(self, keys):
        pictures, index, bad = [], [], []
        for epoch, i in keys:
            seed = np.random.SeedSequence((self.seed, epoch, i)).generate_state(1, np.uint64)[0]
            try:
                with torch.random.fork_rng(devices=[]):  # the training loop's state stays as it is
                    torch.default_generator.manual_seed(int(seed))
                    pictures.append(self.transform(self.data.picture(i)).permute(1, 2, 0))
                index.append(i)
            except InputError as error:
                bad.append(str(error))
        images = torch.stack(pictures) if index else torch.zeros(0, 1, 1, 3, dtype=torch.uint8)
        return Batch(images.permute(0, 3, 1, 2), torch.from_numpy(self.data.targets[index]),
                     torch.tensor(index, dtype=torch.int64), bad)


@dataclass
class Order:
    """The batches of an epoch, each a list of keys (epoch, index): the first `stop` of `count`
    pictures, shuffled by (seed, epoch), or in order where seed is None; of each batch, the share of
    this process. Before each pass set `epoch`, and `skip` to how many pictures are done already."""
    count: int
    stop: int
    batch_size: int  # of all processes
    seed: int | None
    epoch: int = 0
    skip: int = 0

    def __len__(self):
        return len(range(self.skip, self.stop, self.batch_size))

    def __iter__(self):
        rank, world = process()
        order = np.arange(self.count) if self.seed is None else \
            np.random.default_rng((self.seed, self.epoch)).permutation(self.count)
        for start in range(self.skip, self.stop, self.batch_size):
            batch = order[start:min(start + self.batch_size, self.stop)]
            yield [(self.epoch, i) for i in batch[rank::world].tolist()]


def leave_signals(worker):
    """A signal to the whole group is the main process's business: it has 10 s for its step and the
    workers, which must not outlive it either."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda *_: signal.alarm(10))


def process():
    """Number of this process and of all processes of a distributed run; 0, 1 without."""
    on = dist.is_available() and dist.is_initialized()
    return (dist.get_rank(), dist.get_world_size()) if on else (0, 1)


def loader(data, image_size, batch_size, augment=(), train=0, seed=0, workers=0, pin=False):
    """Batches of `batch_size` over all processes. `train`: shuffled, augmented, and without what is
    left over at the end of an epoch after steps of so many batches."""
    samples = Samples(data, transform(image_size, augment if train else ()), seed)
    whole = len(data) // max(batch_size * train, 1) * batch_size * train
    if train and not whole and process()[1] * train > 1:
        raise InputError(f"{len(data)} training pictures are fewer than a batch: lower --batch-size")
    order = Order(len(data), whole or len(data), batch_size, seed if train else None)
    return torch.utils.data.DataLoader(
        samples, batch_size=None, sampler=order, num_workers=workers, worker_init_fn=leave_signals,
        persistent_workers=workers > 0, pin_memory=pin,
        generator=torch.Generator())  # its own: the global random state is the training loop's


@cache
def channels(values, device):
    return 255 * torch.tensor(values, device=device).view(3, 1, 1)


def normalize(images, device, mean, std):
    """uint8 (B, 3, H, W) -> float32 on `device`: (images / 255 - mean) / std, by channel."""
    images = images.to(device, non_blocking=True).to(torch.get_default_dtype())
    return images.sub_(channels(tuple(mean), device)).div_(channels(tuple(std), device))


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0], allow_abbrev=False)
    parser.add_argument("--data", default="scenes", choices=SETS)
    parser.add_argument("--root", help="the folder that holds the data set")
    parser.add_argument("--download", action="store_true", help="fetch VOC into ROOT")
    parser.add_argument("--verify", action="store_true", help="decode every picture")
    args = parser.parse_args(argv)
    bad = []
    for split in ("train", "test"):
        data = load(args.data, args.root, split, download=args.download, check=False)
        count = np.stack([(data.targets == value).sum(0) for value in (1, 0, -1)], 1)  # (K, 3)
        labels = (data.targets == 1).sum(1)
        print(f"{args.data} {split}: {len(data)} pictures, {len(data.classes)} classes, "
              f"{labels.mean():.2f} labels per picture ({labels.min()} to {labels.max()}), "
              f"{(labels == 0).sum()} without\n  {'class':24}     yes      no  not judged")
        for name, (yes, no, unjudged) in zip(data.classes, count):
            print(f"  {name:24}{yes:8}{no:8}{unjudged:12}")
        lost = missing(data)
        bad += [f"{data.paths[i]} is missing" for i in lost]
        if args.verify:
            rest = data.subset(np.setdiff1d(np.arange(len(data)), lost))
            for batch in loader(rest, 32, 64, workers=os.cpu_count()):
                bad += batch.bad
    print(*bad, f"{len(bad)} pictures missing or unreadable", sep="\n")
    return int(bool(bad))


if __name__ == "__main__":
    try:
        sys.exit(main())
    except InputError as error:
        sys.exit(f"error: {error}")
