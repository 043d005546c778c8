"""PASCAL VOC 2007 and 2012, from http://host.robots.ox.ac.uk/pascal/VOC/ or by --download.

ROOT/VOCdevkit/VOC2007, VOC2012. The labels of VOC 2012's test images are on a server only. So the
test split of voc2012 is its val split. voc2012-server trains on trainval. Its test split has the
test images, with unknown labels, and tools/voc_server.py writes the files for the server.
"""
import numpy as np
import torchvision

from lib.errors import explain_errors
from readers.tables import read_text, refuse_repeated, translate

CLASSES = ["aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow",
           "diningtable", "dog", "horse", "motorbike", "person", "pottedplant", "sheep", "sofa",
           "train", "tvmonitor"]


def read_voc(root, split, year, train, test):
    """Classes, paths and targets (N, 20). Difficult objects (0 in the lists) are negative in
    training and unknown (-1) at test time."""
    folder = root / "VOCdevkit" / f"VOC{year}"
    list_name = test
    codes = {"1": 1, "-1": 0, "0": -1}
    if split == "train":
        list_name = train
        codes["0"] = 0
    if list_name == "server":
        images, targets = read_server_images(folder)
    else:
        images, targets = read_lists(folder, list_name, codes)
    return CLASSES, [f"{folder}/JPEGImages/{image}.jpg" for image in images], targets


def read_lists(folder, list_name, codes):
    """The images and targets (N, 20) in the lists of the 20 classes, which share one order."""
    columns = []
    for label in CLASSES:
        file = folder / "ImageSets/Main" / f"{label}_{list_name}.txt"
        with explain_errors(file, f"{folder} must be VOC's folder; --download fetches it"):
            names = []
            values = []
            for number, line in enumerate(read_text(file).splitlines(), 1):
                fields = line.split()
                if len(fields) != 2:
                    raise ValueError(f"row {number}: not an image and a value")
                names.append(fields[0])
                values.append(fields[1])
            if label == CLASSES[0]:
                images = names
                refuse_repeated(images)
            if names != images:
                raise ValueError(f"not the images of {CLASSES[0]}_{list_name}.txt")
            columns.append(translate(values, codes))
    return images, np.array(columns, np.int8).T


def read_server_images(folder):
    """The test images of VOC 2012; their targets are unknown."""
    file = folder / "ImageSets/Main/test.txt"
    with explain_errors(file, f"{folder} must be VOC's folder, with its test archive"):
        images = read_text(file).split()
        refuse_repeated(images)
    return images, np.full((len(images), len(CLASSES)), -1, np.int8)


def download(root, year):
    """Fetches VOC of this year into ROOT, through torchvision."""
    torchvision.datasets.VOCDetection(root, str(year), "trainval", download=True)
    if year == 2007:
        torchvision.datasets.VOCDetection(root, "2007", "test", download=True)
