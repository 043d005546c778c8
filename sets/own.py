"""Your own images.

ROOT/train.csv, ROOT/test.csv and, for choices between epochs and thresholds, ROOT/val.csv, in
UTF-8: a column `image` (a path relative to ROOT, an absolute one, or FILE::x,y,w,h, a box of a file
in pixels), then either one column per label (1, 0; -1 or empty: unknown) or one column `labels`
with names separated by semicolons.
"""
import csv
import os

from sets.table import coded, multi_hot, reading

CSV = ("a csv data set is ROOT/train.csv and ROOT/test.csv in UTF-8, both with the header `image` "
       "(a path relative to ROOT) and the same labels, each once; a value is 1, 0, -1 or empty")
CODES = {"1": 1, "0": 0, "-1": -1, "": -1, "1.0": 1, "0.0": 0, "-1.0": -1, "True": 1, "False": 0}


def read_file(file):
    """The label columns; the line numbers, values and images of the rows."""
    with reading(file, CSV), open(file, newline="", encoding="utf-8-sig") as lines:
        reader = csv.reader(lines, strict=True)
        header = [name.strip() for name in next((row for row in reader if row), [])]
        if "image" not in header or "" in header or len(set(header)) < max(len(header), 2):
            raise ValueError(f"row 1: {header[:8]}: no `image`, no label columns, a name twice, or "
                             "an empty one")
        at, numbers, rows, images = header.index("image"), [], [], []
        header.pop(at)
        for row in filter(None, reader):
            if len(row) != len(header) + 1:
                raise ValueError(f"row {reader.line_num}: {len(row)} fields, the header has "
                                 f"{len(header) + 1}")
            images.append(row.pop(at))
            rows.append([value.strip() for value in row])
            numbers.append(reader.line_num)
    return header, numbers, rows, images


def read_csv(root, split):
    """Classes, paths and targets (N, K). The order of the classes is that of train.csv."""
    file = root / f"{split}.csv"
    header, numbers, rows, images = read_file(file)
    classes, _, first_rows, _ = read_file(root / "train.csv") if split != "train" else (
        header, None, rows, None)
    with reading(file, CSV):
        if set(header) != set(classes):
            raise ValueError(f"row 1: {sorted(set(header) ^ set(classes))[:8]} in one file only")
        if classes == ["labels"]:
            names, first_names = ([[name for name in map(str.strip, text.split(";")) if name]
                                   for text, in part] for part in (rows, first_rows))
            classes = sorted(set().union(*first_names))
            targets = multi_hot(names, classes, numbers)
        else:
            place = {name: k for k, name in enumerate(header)}
            order = [place[name] for name in classes]
            targets = coded(([row[k] for k in order] for row in rows), CODES, len(order), numbers)
    return classes, [os.path.join(root, image) for image in images], targets
