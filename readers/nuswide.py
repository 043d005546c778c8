"""NUS-WIDE, from https://lms.comp.nus.edu.sg/wp-content/uploads/2019/research/nuswide/NUS-WIDE.html

ROOT/Flickr/, ImageList/ and Groundtruth/TrainTestLabels/; or ASL's nus_wid_data.csv and the images/
that it lists. Images that are no longer available are counted and left out.
"""
import re
import sys
from itertools import chain

import numpy as np

from lib.errors import explain_errors
from readers.images import missing
from readers.tables import csv_rows, multi_hot, read_text, translate

CONCEPTS = 81
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
        names = read_text(image_list).replace("\\", "/").split()

    classes = []
    columns = []
    for file in sorted(root.glob(f"Groundtruth/TrainTestLabels/Labels_*_{part}.txt")):
        with explain_errors(file, f"it needs a 0 or 1 for each image of {image_list}"):
            _, label, _ = file.name.split("_")
            column = translate(read_text(file).split(), {"0": 0, "1": 1})
            if len(column) != len(names):
                raise ValueError(f"{len(column)} rows")
        classes.append(label)
        columns.append(column)
    if len(classes) != CONCEPTS:
        print(f"warning: NUS-WIDE {split}: {len(classes)} label files Labels_*_{part}.txt in "
              f"{root}/Groundtruth/TrainTestLabels, not {CONCEPTS}: results on other classes "
              "cannot be compared", file=sys.stderr)
    targets = np.array(columns, np.int8).reshape(len(classes), len(names)).T  # (N, 81)
    labelled = np.flatnonzero(targets.any(axis=1))
    return classes, [f"{root}/Flickr/{names[i]}" for i in labelled], targets[labelled]


def read_asl_csv(root, split):
    split_name = {"train": "train", "test": "val"}[split]
    file = root / "nus_wid_data.csv"
    with explain_errors(file, REMEDY):
        rows = csv_rows(file)
        _, header = next(rows, (1, []))
        paths = []
        labels = []
        in_split = []
        for number, fields in rows:
            if len(fields) != len(header):
                raise ValueError(f"row {number}: {len(fields)} fields, but the header has "
                                 f"{len(header)}")
            row = dict(zip(header, fields))
            paths.append(f"{root}/{row['filepath']}")
            labels.append(label_list(row["label"], number))
            in_split.append(row["split_name"] == split_name)
        classes = sorted(set(chain.from_iterable(labels)))
        targets = multi_hot(labels, classes)
        in_split = np.array(in_split, bool)
    return classes, np.array(paths)[in_split], targets[in_split]


def label_list(text, number):
    """The names in a printed Python list, such as ['sky', "hot dog"]. Raises ValueError."""
    quoted = r"""'[^']*'|"[^"]*\""""
    if re.search(r"[^\[\],\s]", re.sub(quoted, "", text)):
        raise ValueError(f"row {number}: {text!r} is not a list such as ['sky', 'clouds']")
    names = [name[1:-1].strip() for name in re.findall(quoted, text)]
    return [name for name in names if name]
