"""Label tables, which all readers fill."""
from array import array

import numpy as np


def multi_hot(rows, labels, row_numbers=None):
    """Lists of labels, one per image -> targets int8 (N, K): 1 or 0.

    labels: the label of each column; row_numbers: of the rows in their file, for messages.
    Raises ValueError.
    """
    if row_numbers is None:
        row_numbers = range(1, len(rows) + 1)
    column_of = {label: k for k, label in enumerate(labels)}
    targets = np.zeros((len(rows), len(column_of)), np.int8)
    for i, row in enumerate(rows):
        unknown = set(row) - column_of.keys()
        if unknown:
            raise ValueError(f"row {row_numbers[i]}: no such label: {unknown}")
        columns = [column_of[label] for label in row]
        targets[i, columns] = 1
    return targets


def translate(rows, codes, width, row_numbers=None):
    """Rows of `width` values each -> targets int8 (N, width), by the table `codes`.

    Raises ValueError.
    """
    if row_numbers is None:
        row_numbers = range(1, len(rows) + 1)
    targets = array("b")  # int8; a list of numbers would take eight times the memory
    for number, row in zip(row_numbers, rows):
        wrong = set(row) - codes.keys()
        if wrong or len(row) != width:
            raise ValueError(f"row {number}: {len(row)} values, expected {width} of {list(codes)}, "
                             f"found {list(wrong or row)[:8]}")
        targets.extend([codes[value] for value in row])
    return np.frombuffer(targets, np.int8).reshape(-1, width)
