"""What the readers share: errors that name the file, and label tables."""
from array import array
from contextlib import contextmanager
from itertools import count

import numpy as np


class InputError(Exception):
    """Bad input. The message names the file, the row and the remedy."""


@contextmanager
def reading(file, remedy):
    """Turns whatever goes wrong with `file` inside this block into one InputError."""
    try:
        yield
    except FileNotFoundError:
        raise InputError(f"{file} is missing: {remedy}") from None
    except KeyError as error:
        raise InputError(f"{file}: no {error}: {remedy}") from error
    except InputError:
        raise
    except Exception as error:  # decoders and parsers raise many kinds of error
        raise InputError(f"{file}: {one_line(error)}: {remedy}") from error


def one_line(error):
    """The beginning of an error's text."""
    return (str(error).strip() or repr(error)).splitlines()[0][:300]


def fields(file):
    """The fields of each line that is not blank."""
    return [line.split() for line in file.read_text("utf-8").splitlines() if line.strip()]


def multi_hot(rows, labels, numbers=None):
    """The labels of each image -> int8 (N, K). `labels`: of the columns; `numbers`: of the rows."""
    column = {label: k for k, label in enumerate(labels)}
    targets = np.zeros((len(rows), len(column)), np.int8)
    for i, (number, row) in enumerate(zip(numbers or count(1), rows)):
        if not column.keys() >= set(row):
            raise ValueError(f"row {number}: no such label: {set(row) - column.keys()}")
        targets[i, [column[label] for label in row]] = 1
    return targets


def coded(rows, codes, width, numbers=None):
    """A value for each of `width` classes -> int8 (N, width), translated by the table `codes`."""
    targets = array("b")
    for number, row in zip(numbers or count(1), rows):
        if len(row) != width or not codes.keys() >= set(row):
            wrong = [value for value in row if value not in codes]
            raise ValueError(f"row {number}: {len(row)} values, expected {width} of {[*codes]}, "
                             f"found {(wrong or row)[:8]}")
        targets.extend([codes[value] for value in row])
    return np.frombuffer(targets, np.int8).reshape(-1, width)
