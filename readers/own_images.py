"""Your own images.

The files are ROOT/train.csv, ROOT/test.csv and, to choose epochs and thresholds, ROOT/val.csv, in
UTF-8. Each has a column `image`: a path relative to ROOT, an absolute path, or FILE::x,y,w,h, a box
in a file in pixels (after EXIF rotation; decimals are rounded outward). An image or a box has one
row. test.csv can be evaluated without train.csv.

The labels are either one column per label (1, 0; -1 or empty: unknown) or one column `labels` with
names separated by semicolons. The classes, and with them the rows of --text-features, have the
order of the columns in train.csv or, from a column `labels`, of their names, sorted.

Other separators would make new classes out of lists. A name may have spaces or slashes ("hot dog",
"tv/monitor"), so this needs a proof. One of these is enough:
- a name has a comma, |, a bracket or a line break in it;
- a name consists of other names in the file ("cat dog" beside "cat" and "dog"), and either no row
  uses a semicolon or there is more than a space, _ or - between them ("coffee table" is a name);
- no row uses a semicolon, at least nine of ten names occur once (of ten names or more), and half of
  the names consist of words that are in other names, too.
"""
import os
import re
import sys
from array import array
from collections import Counter
from itertools import chain
from typing import NamedTuple

import numpy as np

from lib.errors import explain_errors
from readers.images import box_of
from readers.tables import csv_rows, multi_hot

REMEDY = ("a csv data set is ROOT/train.csv and ROOT/test.csv in UTF-8, both with a column "
          "`image` (a path relative to ROOT) and the same labels: one column for each, with 1, 0, "
          "-1 or empty, or one column `labels` with names separated by semicolons")
CODES = {"1": 1, "0": 0, "-1": -1, "": -1, "1.0": 1, "0.0": 0, "-1.0": -1, "True": 1, "False": 0}
NO_VALUE = {"nan", "<na>", "nat", "null", "#n/a"}  # what programs write for an empty field
NOT_IN_NAMES = r"[,，、،|｜；؛\[\]{}\x00-\x1f\u2028\u2029]"
SEMICOLONS = ("labels are separated by semicolons; if this is one name, use the form with one "
              "column per label")


class Table(NamedTuple):
    """A csv file: the names of the label columns, and what is in each row."""
    columns: list
    paths: list
    values: np.ndarray | list  # int8 (N, K); of a column `labels`, the names in each row
    numbers: list  # row numbers in the file


def read_csv(root, split):
    """Classes, paths and targets (N, K)."""
    file = root / f"{split}.csv"
    train_file = root / "train.csv"
    if not train_file.is_file():
        train_file = file
    if split == "train":
        for file_not_read in unread_files(root):
            print(f"warning: {file_not_read} is not read: to choose epochs and thresholds on it, "
                  "rename it val.csv", file=sys.stderr)
    with explain_errors(train_file, REMEDY):
        train_columns = label_columns(train_file)
    with explain_errors(file, REMEDY):
        table = read_table(file, root)
        different = set(table.columns) ^ set(train_columns)
        if different:
            raise ValueError(f"row 1: {sorted(different)[:8]} are in only one of the files")
        if table.columns != ["labels"]:
            values = table.values
            if table.columns != train_columns:
                column_of = {label: k for k, label in enumerate(table.columns)}
                values = values[:, [column_of[label] for label in train_columns]]
            return train_columns, table.paths, values

    train_table = table
    with explain_errors(train_file, REMEDY):
        if train_file != file:
            train_table = read_table(train_file, root)
        refuse_lists(train_table)
    classes = set(chain.from_iterable(train_table.values))
    with explain_errors(file, REMEDY):
        for number, names in zip(table.numbers, table.values):
            unknown = names - classes
            if unknown:
                raise ValueError(f"row {number}: no such label in train.csv: {unknown}")
        targets = multi_hot(table.values, sorted(classes))
    return sorted(classes), table.paths, targets


def names_alone(root, split):
    """Whether a split lists label names, and there is no train.csv that lists all of them."""
    if (root / "train.csv").is_file():
        return False
    file = root / f"{split}.csv"
    with explain_errors(file, REMEDY):
        return label_columns(file) == ["labels"]


def unread_files(root):
    """Validation files with another name than val.csv."""
    if (root / "val.csv").is_file():
        return []
    names = ("valid.csv", "validation.csv", "dev.csv", "eval.csv", "Val.csv", "VAL.csv")
    return [root / name for name in names if (root / name).is_file()]


def label_columns(file):
    """The names of the label columns. Raises ValueError."""
    _, header = next(csv_rows(file), (1, []))
    columns, _ = read_header(header)
    return columns


def read_header(header):
    """The first row -> the names of the label columns, the position of the column `image`."""
    header = [name.strip() for name in header]
    if "image" not in header:
        raise ValueError(f"row 1: {header[:8]}: no column `image`")
    if len(header) < 2:
        raise ValueError("row 1: no label columns")
    if "" in header:
        raise ValueError(f"row 1: {header[:8]}: column {header.index('') + 1} has no name")
    if len(set(header)) < len(header):
        raise ValueError(f"row 1: {header[:8]}: a name occurs twice")
    position = header.index("image")
    return header[:position] + header[position + 1:], position


def read_table(file, root):
    """A csv file as a Table. Raises ValueError."""
    rows = csv_rows(file)
    _, header = next(rows, (1, []))
    columns, image_column = read_header(header)
    has_labels = "labels" in columns
    paths = []
    names = []
    codes = array("b")  # 1 byte for each value
    numbers = []
    seen = set()
    for number, row in rows:
        try:
            if len(row) != len(header):
                raise ValueError(f"{len(row)} fields, but the header has {len(header)}")
            image = row.pop(image_column).strip()
            identity = identity_of(root, image)
            if identity in seen:
                raise ValueError(f"{image} has two rows: put all its labels in one row")
            if columns == ["labels"]:
                names.append(label_names(row[0]))
            elif has_labels:
                refuse_others(row, columns)
            else:
                codes.extend(codes_of(row, columns))
        except ValueError as error:
            raise ValueError(f"row {number}: {error}") from None
        seen.add(identity)
        paths.append(os.path.join(root, image))
        numbers.append(number)
    if columns == ["labels"]:
        return Table(columns, paths, names, numbers)
    values = np.array(codes, np.int8).reshape(len(paths), len(columns))
    return Table(columns, paths, values, numbers)


def identity_of(root, image):
    """The same text for all spellings of a path and of a box in it. Raises ValueError."""
    if not image:
        raise ValueError("no image")
    file, mark, box = image.partition("::")
    identity = os.path.abspath(os.path.join(root, file))
    if mark:
        identity = f"{identity}::{box_of(box)}"
    return identity


def refuse_others(values, columns):
    """Raises ValueError, which names a column that stands beside the column `labels`."""
    for column, value in zip(columns, values):
        if column != "labels":
            raise ValueError(f"column {column}, {value!r}: beside a column `labels`, there must be "
                             "no column but image")


def codes_of(values, columns):
    """Texts -> 1, 0 or -1. Raises ValueError, which names the column."""
    try:
        return [CODES[value] for value in values]
    except KeyError:  # spaces around a value, or a wrong one
        values = [value.strip() for value in values]
        for column, value in zip(columns, values):
            if value not in CODES:
                raise ValueError(f"column {column}: {value!r} is not 1, 0, -1 or empty; there must "
                                 "be no columns but image and labels") from None
        return [CODES[value] for value in values]


def label_names(text):
    """The names in a field of the column `labels`. Raises ValueError."""
    names = {sys.intern(name.strip()) for name in text.split(";")}  # one object for each name
    names.discard("")
    for name in names:
        if re.search(NOT_IN_NAMES, name):
            raise ValueError(f"{text!r}: {SEMICOLONS}")
        if name == "None" or name.lower() in NO_VALUE:
            raise ValueError(f"{text!r}: {name} is no label: leave the field of an image without "
                             "labels empty; if it is a name, use the form with one column per "
                             "label")
    return names


# ---------------------------------------------------------------------- lists with other separators


def refuse_lists(table):
    """Raises ValueError if it is certain that names are lists of labels, or if there are none."""
    counts = Counter(chain.from_iterable(table.values))
    if table.values and not counts:
        raise ValueError("the column `labels` is empty in each row")
    words_of = {name: split_words(name) for name in counts}
    known = set(words_of.values())
    semicolons = any(len(names) > 1 for names in table.values)
    lists = set()
    for name, words in words_of.items():
        compound = semicolons and re.fullmatch(r"[\w\s-]+", name)  # such as coffee table
        if consists_of(words, known) and not compound:
            lists.add(name)
    reason = "it consists of other labels"
    if not lists and not semicolons:
        lists = combinations(counts, words_of)
        reason = "nearly every name occurs only once, in words that recur"
    for number, names in zip(table.numbers, table.values):
        found = sorted(names & lists)
        if found:
            raise ValueError(f"row {number}: {found[0]!r} is a list, since {reason}: {SEMICOLONS}")


def split_words(name):
    """The words of a name, whatever separates them; a decimal is one word."""
    return tuple(re.findall(r"\d+(?:\.\d+)+|[^\W_]+", name.casefold()))


def consists_of(words, known):
    """Whether a name, as a tuple of words, is two or more of the `known` ones in a row."""
    reached = {0}  # a list of known names may end before these words
    for begin in range(len(words)):
        if begin in reached:
            for end in range(begin + 1, len(words) + 1):
                piece = words[begin:end]
                if piece != words and piece in known:
                    reached.add(end)
    return len(words) > 0 and len(words) in reached


def combinations(counts, words_of):
    """The names that consist of words in other names, if nearly every name occurs once."""
    once = sum(count == 1 for count in counts.values())
    if len(counts) < 10 or once < 0.9 * len(counts):
        return set()
    names_with = Counter(chain.from_iterable(set(words) for words in words_of.values()))
    made = {name for name, words in words_of.items()
            if len(words) > 1 and all(names_with[word] > 1 for word in words)}
    if len(made) < len(counts) / 2:
        return set()
    return made
