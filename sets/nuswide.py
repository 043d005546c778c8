"""NUS-WIDE, from https://lms.comp.nus.edu.sg/wp-content/uploads/2019/research/nuswide/NUS-WIDE.html

ROOT/Flickr/, ImageList/ and Groundtruth/TrainTestLabels/; or ASL's nus_wid_data.csv and the images/
that it lists. Images that are no longer available are counted and left out.
"""
import csv
import re
import sys

import numpy as np

from sets.images import missing
from sets.table import coded, fields, multi_hot, reading


def read_nuswide(root, split):
    """Classes, paths and targets (N, 81). ROOT/nus_wid_data.csv (ASL's split) overrides the
    published lists."""
    file, part = root / "nus_wid_data.csv", {"train": "Train", "test": "Test"}[split]
    remedy = "NUS-WIDE is nus_wid_data.csv, or ImageList/ and Groundtruth/TrainTestLabels/"
    if file.is_file():
        with reading(file, remedy), open(file, newline="", encoding="utf-8-sig") as lines:
            rows = [*csv.DictReader(lines, strict=True)]
            labels = [[n for n in re.split(r"[\[\]',\s]+", row["label"]) if n] for row in rows]
            classes, name = sorted(set().union(*labels)), {"train": "train", "test": "val"}[split]
            keep = [row["split_name"] == name for row in rows]
            paths = np.array([f"{root}/{row['filepath']}" for row in rows])[keep]
            targets = multi_hot(labels, classes)[keep]
    else:
        file = root / "ImageList" / f"{part}Imagelist.txt"
        with reading(file, remedy):
            names = file.read_text("utf-8").replace("\\", "/").split()
        folder = root / "Groundtruth" / "TrainTestLabels"
        files = {f.name[7:-len(part) - 5]: f for f in folder.glob(f"Labels_*_{part}.txt")}
        targets = np.zeros((len(names), len(files)), np.int8)
        for k, name in enumerate(sorted(files)):
            with reading(files[name], f"a 0 or 1 for each of the {len(names)} rows of {file}"):
                column = coded(fields(files[name]), {"0": 0, "1": 1}, 1)[:, 0]
                if len(column) != len(names):
                    raise ValueError(f"{len(column)} rows")
                targets[:, k] = column
        classes, paths = sorted(files), np.array([f"{root}/Flickr/{name}" for name in names])
    if lost := missing(paths):
        print(f"NUS-WIDE {split}: {len(lost)} of {len(paths)} images are MISSING and left out, "
              f"{paths[lost[0]]} first", file=sys.stderr)
    return classes, np.delete(paths, lost), np.delete(targets, lost, 0)
