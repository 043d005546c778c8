"""Your own images.

ROOT/train.csv, ROOT/test.csv and, for choices between epochs and thresholds, ROOT/val.csv, in
UTF-8: a column `image` (a path relative to ROOT, an absolute one, or FILE::x,y,w,h, a box of a file
in pixels), then either one column per label (1, 0; -1 or empty: unknown) or one column `labels`
with names separated by semicolons.
"""
import csv
import os
from dataclasses import dataclass

from readers.errors import explain_errors
from readers.tables import multi_hot, translate

REMEDY = ("a csv data set is ROOT/train.csv and ROOT/test.csv in UTF-8, both with the header "
          "`image` (a path relative to ROOT) and the same labels, each once; a value is 1, 0, -1 "
          "or empty")
CODES = {"1": 1, "0": 0, "-1": -1, "": -1, "1.0": 1, "0.0": 0, "-1.0": -1, "True": 1, "False": 0}


@dataclass
class Table:
    """A csv file: a row per image."""
    labels: list[str]  # the header, without `image`
    images: list[str]
    values: list[list[str]]  # of the label columns
    row_numbers: list[int]  # in the file, for messages


def read_csv(root, split):
    """Classes, paths and targets (N, K). The order of the classes is that of train.csv."""
    table = read_table(root / f"{split}.csv")
    train = table
    if (root / "train.csv").is_file():
        train = read_table(root / "train.csv")
    with explain_errors(root / f"{split}.csv", REMEDY):
        check_images(table)
        different = set(table.labels) ^ set(train.labels)
        if different:
            raise ValueError(f"row 1: {sorted(different)[:8]} in one file only")
        if train.labels == ["labels"]:
            classes = sorted({name for names in label_names(train) for name in names})
            targets = multi_hot(label_names(table), classes, table.row_numbers)
        else:
            classes = train.labels
            column_of = {label: k for k, label in enumerate(table.labels)}
            order = [column_of[label] for label in classes]
            rows = [[row[k] for k in order] for row in table.values]
            targets = translate(rows, CODES, len(classes), table.row_numbers)
    return classes, [os.path.join(root, image) for image in table.images], targets


def read_table(file):
    """The Table in a csv file. Blank rows are left out."""
    table = Table(labels=[], images=[], values=[], row_numbers=[])
    with explain_errors(file, REMEDY), open(file, newline="", encoding="utf-8-sig") as lines:
        reader = csv.reader(lines, strict=True)
        header = []
        for row in reader:
            if not row:
                continue
            if not header:
                header = [name.strip() for name in row]
                check_header(header)
                image_column = header.index("image")
                continue
            if len(row) != len(header):
                raise ValueError(f"row {reader.line_num}: {len(row)} fields, the header has "
                                 f"{len(header)}")
            table.images.append(row.pop(image_column).strip())
            table.values.append([value.strip() for value in row])
            table.row_numbers.append(reader.line_num)
        check_header(header)  # of an empty file
    table.labels = [name for name in header if name != "image"]
    return table


def check_header(header):
    if "image" not in header:
        raise ValueError(f"row 1: {header[:8]}: no column `image`")
    if len(header) < 2:
        raise ValueError("row 1: no label columns")
    if "" in header:
        raise ValueError(f"row 1: {header[:8]}: a column without a name")
    if len(set(header)) < len(header):
        raise ValueError(f"row 1: {header[:8]}: a name occurs twice")


def check_images(table):
    """One row per image: a table with one row per image and label would contradict itself."""
    first_row_of = {}
    for image, number in zip(table.images, table.row_numbers):
        if image in first_row_of:
            raise ValueError(f"row {number}: {image} occurs in row {first_row_of[image]}, too: an "
                             "image has one row, with all its labels")
        first_row_of[image] = number


def label_names(table):
    """The names in the column `labels` of each row."""
    rows = []
    for [text] in table.values:
        names = [name.strip() for name in text.split(";")]
        names = [name for name in names if name]
        for name in names:
            if any(character in name for character in ",|[]"):
                raise ValueError(f"label {name!r}: labels are separated by semicolons")
        rows.append(names)
    return rows
