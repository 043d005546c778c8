"""Label tables and lists in text files, in UTF-8, with or without a byte order mark."""
import csv
import os
from pathlib import Path

import numpy as np


def multi_hot(rows, labels):
    """Labels of each of N images -> targets int8 (N, K): 1 or 0. labels: the names of the
    K columns.

    Raises ValueError.
    """
    column_of = {label: k for k, label in enumerate(labels)}
    targets = np.zeros((len(rows), len(labels)), np.int8)
    for i, row in enumerate(rows):
        unknown = {label for label in row if label not in column_of}
        if unknown:
            raise ValueError(f"row {i + 1}: no such label: {unknown}")
        columns = [column_of[label] for label in row]
        targets[i, columns] = 1
    return targets


def translate(values, codes):
    """Texts -> their numbers in the table `codes`. Raises ValueError."""
    for number, value in enumerate(values, 1):
        if value not in codes:
            raise ValueError(f"row {number}: {value!r}, expected one of {list(codes)}")
    return [codes[value] for value in values]


def refuse_repeated(images):
    """Raises ValueError if an image is listed twice, even in two spellings (a.jpg, ./a.jpg)."""
    first = {}  # image -> its row
    for number, image in enumerate(images, 1):
        row = first.setdefault(os.path.normpath(image), number)
        if row != number:
            raise ValueError(f"image {number}, {image}, is image {row} already: each image must be "
                             "listed once")


def read_text(file):
    """The text of a file. Raises ValueError."""
    content = Path(file).read_bytes()
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        row = content.count(b"\n", 0, error.start) + 1
        raise ValueError(f"row {row} is not in UTF-8") from None


def csv_rows(file):
    """(row number, fields) of each row of a csv file that is not blank. Raises ValueError."""
    with open(file, newline="", encoding="utf-8-sig") as lines:
        reader = csv.reader(lines, strict=True)
        while True:
            number = reader.line_num + 1
            try:
                row = next(reader)
            except StopIteration:
                return
            except csv.Error as error:  # a quote that is not closed
                raise ValueError(f"row {number}: {error}: check its quotes") from None
            except UnicodeDecodeError:
                read_text(file)  # its error names the row
                raise
            if row:
                yield number, row
