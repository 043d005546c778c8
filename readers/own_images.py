"""Your own images.

The files are ROOT/train.csv, ROOT/test.csv and, to choose epochs and thresholds, ROOT/val.csv, in
UTF-8. Each has a column `image`: a path relative to ROOT, an absolute path, or FILE::x,y,w,h, a box
in a file in pixels. The labels are either one column per label (1, 0; -1 or empty: unknown) or one
column `labels` with names separated by semicolons. test.csv can be evaluated without train.csv.
"""
import csv
import os
import re
from itertools import chain

import numpy as np

from lib.errors import explain_errors
from readers.tables import multi_hot

REMEDY = ("a csv data set is ROOT/train.csv and ROOT/test.csv in UTF-8, both with a column "
          "`image` (a path relative to ROOT) and the same labels: one column for each, with 1, 0, "
          "-1 or empty, or one column `labels` with names separated by semicolons")
CODES = {"1": 1, "0": 0, "-1": -1, "": -1, "1.0": 1, "0.0": 0, "-1.0": -1, "True": 1, "False": 0}


def read_csv(root, split):
    """Classes, paths and targets (N, K). The order of the classes is that of train.csv."""
    file = root / f"{split}.csv"
    train_file = root / "train.csv"
    if not train_file.is_file():
        train_file = file
    train_columns, train_rows = read_table(train_file)
    classes = train_columns
    if train_columns == ["labels"]:
        classes = sorted(set(chain.from_iterable(train_rows.values())))
    columns, rows = read_table(file, known=classes)
    with explain_errors(file, REMEDY):
        different = set(columns) ^ set(train_columns)
        if different:
            raise ValueError(f"row 1: {sorted(different)[:8]} are in only one of the files")
        if columns == ["labels"]:
            targets = multi_hot(rows.values(), classes)
        else:
            column_of = {label: k for k, label in enumerate(columns)}
            order = [column_of[label] for label in classes]
            targets = np.array(list(rows.values()), np.int8).reshape(len(rows), len(columns))
            targets = targets[:, order]
    return classes, [os.path.join(root, image) for image in rows], targets


def names_alone(root, split):
    """Whether a split lists label names, and there is no train.csv that lists all of them."""
    columns, _ = read_table(root / f"{split}.csv")
    return columns == ["labels"] and not (root / "train.csv").is_file()


def read_table(file, known=None):
    """The label columns of a csv file, and {image: the values or names in its row}. known: the
    names that a column `labels` may have; None: any."""
    rows = {}
    with explain_errors(file, REMEDY), open(file, newline="", encoding="utf-8-sig") as lines:
        reader = csv.reader(lines, strict=True)
        header = [name.strip() for name in next(reader, [])]
        check_header(header)
        image_column = header.index("image")
        columns = header.copy()
        columns.remove("image")
        for row in reader:
            if not row:  # a blank line
                continue
            with explain_errors(f"{file}, row {reader.line_num}", REMEDY):
                if len(row) != len(header):
                    raise ValueError(f"{len(row)} fields, but the header has {len(header)}")
                image = row.pop(image_column).strip()
                if image in rows:
                    raise ValueError(f"{image} has two rows: put all its labels in one row")
                if columns == ["labels"]:
                    rows[image] = label_names(row[0])
                    if known is not None and not rows[image] <= set(known):
                        unknown = rows[image] - set(known)
                        raise ValueError(f"no such label in train.csv: {unknown}")
                else:
                    rows[image] = [code_of(value.strip()) for value in row]
    return columns, rows


def check_header(header):
    if "image" not in header:
        raise ValueError(f"row 1: {header[:8]}: no column `image`")
    if len(header) < 2:
        raise ValueError("row 1: no label columns")
    if "" in header:
        raise ValueError(f"row 1: {header[:8]}: a column without a name")
    if len(set(header)) < len(header):
        raise ValueError(f"row 1: {header[:8]}: a name occurs twice")


def code_of(value):
    if value not in CODES:
        raise ValueError(f"{value!r} is not 1, 0, -1 or empty")
    return CODES[value]


def label_names(text):
    """The names in a field of the column `labels`."""
    if re.search(r"[,|\[\]]", text):
        raise ValueError(f"{text!r}: labels are separated by semicolons")
    names = {name.strip() for name in text.split(";")}
    names.discard("")
    return names
