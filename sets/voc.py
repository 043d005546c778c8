"""PASCAL VOC 2007 and 2012, from http://host.robots.ox.ac.uk/pascal/VOC/ or by --download.

ROOT/VOCdevkit/VOC2007, VOC2012. The labels of VOC 2012's test images are on a server only. So the
test split of voc2012 is its val split; voc2012-server trains on trainval, its test split has the
test images with unknown labels, and eval.py --voc-server writes the files for the server.
"""
import numpy as np
import torchvision

from sets.table import coded, fields, reading

CLASSES = ["aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow",
           "diningtable", "dog", "horse", "motorbike", "person", "pottedplant", "sheep", "sofa",
           "train", "tvmonitor"]


def read_voc(root, split, year, train, test):
    """Classes, paths and targets (N, 20). Difficult objects (0 in the lists) are negative in
    training and unknown at test time, as in CSRA's protocol."""
    name = {"train": train, "test": test, "server": None}[split]
    folder, remedy = root / "VOCdevkit" / f"VOC{year}", f"{root} must hold VOCdevkit/VOC{year}"
    if name is None:
        file = folder / "ImageSets" / "Main" / "test.txt"
        with reading(file, f"{remedy}, and its test archive"):
            images = file.read_text("utf-8").split()
        targets = np.full((len(images), len(CLASSES)), -1, np.int8)
    else:
        codes, columns = {"1": 1, "-1": 0, "0": 0 if split == "train" else -1}, []
        for label in CLASSES:
            file = folder / "ImageSets" / "Main" / f"{label}_{name}.txt"
            with reading(file, f"{remedy}; --download fetches it"):
                rows = fields(file)
                values = coded([row[1:] for row in rows], codes, 1)[:, 0]
                values = dict(zip([row[0] for row in rows], values))
                images = [*values] if label == CLASSES[0] else images
                if values.keys() != set(images) or len(values) < len(rows):
                    raise ValueError(f"not the images of {CLASSES[0]}_{name}.txt, each once")
                columns.append([values[image] for image in images])
        targets = np.array(columns, np.int8).T.copy()
    return CLASSES, [f"{folder}/JPEGImages/{image}.jpg" for image in images], targets


def fetch(root, year):
    """Downloads VOC of this year into ROOT, through torchvision."""
    for part in ("trainval", "test") if year == 2007 else ("trainval",):
        torchvision.datasets.VOCDetection(str(root), str(year), part, download=True)
