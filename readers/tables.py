"""Label tables."""
import numpy as np


def multi_hot(rows, labels):
    """Labels of each of N images -> targets int8 (N, K): 1 or 0. labels: the names of the
    K columns.

    Raises ValueError.
    """
    column_of = {label: k for k, label in enumerate(labels)}
    targets = np.zeros((len(rows), len(labels)), np.int8)
    for i, row in enumerate(rows):
        unknown = set(row) - column_of.keys()
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
