"""Label tables."""
import numpy as np


def multi_hot(rows, labels):
    """Labels of each of N images -> targets int8 (N, K): 1 or 0. labels: of the K columns.

    Raises KeyError.
    """
    column_of = {label: k for k, label in enumerate(labels)}
    targets = np.zeros((len(rows), len(labels)), np.int8)
    for target, row in zip(targets, rows):
        for label in row:
            target[column_of[label]] = 1
    return targets
