"""NUS-WIDE, from https://lms.comp.nus.edu.sg/wp-content/uploads/2019/research/nuswide/NUS-WIDE.html

ROOT/Flickr/, ImageList/ and Groundtruth/TrainTestLabels/; or ASL's nus_wid_data.csv and the images/
that it lists. Images that are no longer available are counted and left out.
"""
import csv
import re
import sys
from itertools import chain

import numpy as np

from lib.errors import explain_errors
from readers.images import missing
from readers.tables import multi_hot, translate

REMEDY = "ROOT needs nus_wid_data.csv, or ImageList/ and Groundtruth/TrainTestLabels/"


def read_nuswide(root, split):
    """Classes, paths and targets (N, 81). ASL's nus_wid_data.csv, which has another split,
    overrides the published lists."""
    if (root / "nus_wid_data.csv").is_file():
        classes, paths, targets = read_asl_csv(root, split)
    else:
        classes, paths, targets = read_published_lists(root, split)
    lost = missing(paths)
    if lost:
        print(f"NUS-WIDE {split}: {len(lost)} of {len(paths)} images are MISSING and left out; "
              f"the first is {paths[lost[0]]}", file=sys.stderr)
    return classes, np.delete(paths, lost), np.delete(targets, lost, axis=0)


def read_published_lists(root, split):
    """Images without any label are left out, as in Query2Label's loaders."""
    part = split.capitalize()
    image_list = root / f"ImageList/{part}Imagelist.txt"
    with explain_errors(image_list, REMEDY):
        names = image_list.read_text("utf-8").replace("\\", "/").split()

    classes = []
    columns = []
    for file in sorted(root.glob(f"Groundtruth/TrainTestLabels/Labels_*_{part}.txt")):
        with explain_errors(file, f"it needs a 0 or 1 for each image of {image_list}"):
            _, label, _ = file.name.split("_")
            column = translate(file.read_text().split(), {"0": 0, "1": 1})
            if len(column) != len(names):
                raise ValueError(f"{len(column)} rows")
        classes.append(label)
        columns.append(column)
    targets = np.array(columns, np.int8).reshape(len(classes), len(names)).T  # (N, 81)
    labelled = np.flatnonzero(targets.any(axis=1))
    return classes, [f"{root}/Flickr/{names[i]}" for i in labelled], targets[labelled]


def read_asl_csv(root, split):
    split_name = {"train": "train", "test": "val"}[split]
    file = root / "nus_wid_data.csv"
    with explain_errors(file, REMEDY), open(file, newline="", encoding="utf-8-sig") as lines:
        rows = list(csv.DictReader(lines, strict=True))
        paths = np.array([f"{root}/{row['filepath']}" for row in rows])
        labels = [re.findall(r"[^\[\]',\s]+", row["label"]) for row in rows]  # ['sky', 'clouds']
        classes = sorted(set(chain.from_iterable(labels)))
        targets = multi_hot(labels, classes)
        in_split = [row["split_name"] == split_name for row in rows]
    return classes, paths[in_split], targets[in_split]
