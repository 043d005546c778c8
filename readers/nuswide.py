"""NUS-WIDE, from https://lms.comp.nus.edu.sg/wp-content/uploads/2019/research/nuswide/NUS-WIDE.html

ROOT/Flickr/, ImageList/ and Groundtruth/TrainTestLabels/; or ASL's nus_wid_data.csv and the images/
that it lists. Images that are no longer available are counted and left out.
"""
import csv
import re
import sys

import numpy as np

from readers.errors import InputError, explain_errors
from readers.images import missing
from readers.tables import multi_hot, read_fields, translate

REMEDY = "NUS-WIDE is nus_wid_data.csv, or ImageList/ and Groundtruth/TrainTestLabels/"


def read_nuswide(root, split):
    """Classes, paths and targets (N, 81). ASL's nus_wid_data.csv, which is another split, overrides
    the published lists."""
    if (root / "nus_wid_data.csv").is_file():
        classes, paths, targets = read_asl_csv(root, split)
    else:
        classes, paths, targets = read_published_lists(root, split)
    lost = missing(paths)
    if lost:
        print(f"NUS-WIDE {split}: {len(lost)} of {len(paths)} images are MISSING and left out, "
              f"{paths[lost[0]]} first", file=sys.stderr)
    return classes, np.delete(np.array(paths), lost), np.delete(targets, lost, axis=0)


def read_published_lists(root, split):
    """Images without any label are left out, as in the protocol of the published results."""
    part = {"train": "Train", "test": "Test"}[split]
    image_list = root / "ImageList" / f"{part}Imagelist.txt"
    with explain_errors(image_list, REMEDY):
        names = image_list.read_text("utf-8").replace("\\", "/").split()

    folder = root / "Groundtruth" / "TrainTestLabels"
    file_of = {}  # class -> its file
    for file in folder.glob(f"Labels_*_{part}.txt"):
        label = file.name.removeprefix("Labels_").removesuffix(f"_{part}.txt")
        file_of[label] = file
    classes = sorted(file_of)
    columns = []
    for label in classes:
        file = file_of[label]
        with explain_errors(file, f"a 0 or 1 for each of the {len(names)} rows of {image_list}"):
            column = translate(read_fields(file), {"0": 0, "1": 1}, width=1)
            if len(column) != len(names):
                raise ValueError(f"{len(column)} rows")
        columns.append(column)
    if not columns:
        raise InputError(f"{folder} has no Labels_*_{part}.txt: {REMEDY}")
    targets = np.concatenate(columns, axis=1)  # (N, 81)
    labelled = np.flatnonzero(targets.any(axis=1))
    return classes, [f"{root}/Flickr/{names[i]}" for i in labelled], targets[labelled]


def read_asl_csv(root, split):
    split_name = {"train": "train", "test": "val"}[split]
    file = root / "nus_wid_data.csv"
    with explain_errors(file, REMEDY), open(file, newline="", encoding="utf-8-sig") as lines:
        rows = list(csv.DictReader(lines, strict=True))
        all_labels = [label_names(row["label"]) for row in rows]
        classes = sorted({label for labels in all_labels for label in labels})
        all_targets = multi_hot(all_labels, classes)
        in_split = [row["split_name"] == split_name for row in rows]
        all_paths = np.array([f"{root}/{row['filepath']}" for row in rows])
    return classes, all_paths[in_split], all_targets[in_split]


def label_names(text):
    """The names in a text such as "['sky', 'clouds']"."""
    return re.findall(r"[^\[\]',\s]+", text)
