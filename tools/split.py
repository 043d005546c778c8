"""Splits one csv file of your own images into train.csv, val.csv and test.csv.

Run: python -m tools.split FILE --root ROOT [--val 0.15 --test 0.15 --seed 0]
FILE has the form of train.csv, with paths relative to ROOT: see readers/own_images.py.

Boxes in one file, and copies of a file, stay together. Each split gets its share of the images of
each class, and at least one, where there are enough. The rarest class is dealt out first, because
it leaves the least choice.
"""
import argparse
import hashlib
import shlex
from pathlib import Path

import numpy as np

from lib.distributed import program
from lib.errors import InputError, explain_errors
from lib.settings import at_least, integer
from readers.own_images import read_table, refuse_lists
from readers.tables import multi_hot

SPLITS = ("train", "val", "test")
REMEDY = ("a csv file in UTF-8 is needed, with a column `image` (a path relative to --root) and "
          "either one column per label, with 1, 0, -1 or empty, or one column `labels` with names "
          "separated by semicolons")


def main(argv=None):
    parser = argparse.ArgumentParser(description="Splits a csv file into train, val and test.",
                                     allow_abbrev=False)
    flag = parser.add_argument
    flag("file", metavar="FILE", help="a csv file of your own images")
    flag("--root", required=True, help="the folder that the paths in FILE are relative to")
    flag("--val", type=at_least(0, float), default=0.15, help="the share of val.csv")
    flag("--test", type=at_least(0, float), default=0.15, help="the share of test.csv")
    flag("--seed", type=integer(0), default=0, help="another seed gives another split")
    args = parser.parse_args(argv)
    shares = [1 - args.val - args.test, args.val, args.test]
    if min(shares) <= 0:
        parser.error("--val and --test must be above 0, and their sum below 1")
    root = Path(args.root)
    if not root.is_dir():
        raise InputError(f"--root {root}: there is no such folder")
    outputs = [root / f"{name}.csv" for name in SPLITS]
    for output in outputs:
        if output.exists():
            raise InputError(f"{output} is there already and is not overwritten: rename it")

    with explain_errors(args.file, REMEDY):
        table = read_table(args.file, root)
        classes, labels = labels_of(table)
        header, rows = texts_of(args.file, table.numbers)
    split_of = deal(together(args.file, table), labels, shares, args.seed)  # (N,)
    for index, name in enumerate(SPLITS):
        if not (split_of == index).any():
            raise InputError(f"{args.file}: no image is left for {name}.csv, because train.csv "
                             "needs one of each class: add images")
    for index, output in enumerate(outputs):
        lines = [header] + [rows[i] for i in np.flatnonzero(split_of == index)]
        remedy = "make room, and remove the files of this split"
        with explain_errors(output, remedy), open(output, "x", encoding="utf-8", newline="") as out:
            out.writelines(f"{line}\n" for line in lines)
    print_counts(classes, labels, split_of)
    print(f"written to {root}; next: python -m tools.check --data csv "
          f"--root {shlex.quote(args.root)} --verify")


def labels_of(table):
    """The classes, and whether an image has each of them, bool (N, K). Raises ValueError."""
    if not table.paths:
        raise ValueError("it has no images")
    if table.columns != ["labels"]:
        return table.columns, table.values == 1
    refuse_lists(table)
    classes = sorted(set().union(*table.values))
    return classes, multi_hot(table.values, classes) == 1


def texts_of(file, numbers):
    """The text of the header, and of each row. numbers: the lines in which the rows begin, from 1;
    a field in quotes may go over several lines."""
    with open(file, encoding="utf-8-sig", newline="") as stream:
        lines = list(stream)
    begins = [0] + [number - 1 for number in numbers]
    ends = begins[1:] + [len(lines)]
    header, *rows = ["".join(lines[i:j]).strip("\r\n") for i, j in zip(begins, ends)]
    return header, rows


def together(file, table):
    """Lists of the indices of images that belong in one split: boxes in one file, copies of it.
    Raises InputError if an image is missing."""
    hashes = {}  # path of a file -> a hash of its content
    groups = {}  # the hash -> indices
    for index, path in enumerate(table.paths):
        path, _, _ = path.partition("::")
        if path not in hashes:
            where = f"{file}: row {table.numbers[index]}: {path}"
            with explain_errors(where, "correct the row or --root"), open(path, "rb") as content:
                hashes[path] = hashlib.file_digest(content, "sha256").digest()
        groups.setdefault(hashes[path], []).append(index)
    return list(groups.values())


def deal(groups, labels, shares, seed):
    """The split of each image (N,), an index into SPLITS.

    groups: lists of the indices of images that stay together; labels: bool (N, K).
    """
    labels = np.column_stack([labels, np.ones(len(labels), bool)])  # a class that all images have
    labels = labels[:, labels.sum(axis=0).argsort(kind="stable")]  # the rarest class first
    counts = np.array([labels[group].sum(axis=0) for group in groups])  # (groups, K + 1)
    total = counts.sum(axis=0)
    wanted = np.outer(shares, total)  # (splits, K + 1): numbers of images
    dealt = np.zeros(wanted.shape)
    split_of = np.full(len(labels), -1)
    order = np.random.default_rng(seed).permutation(len(groups))
    for k in range(len(total)):
        for number in order[counts[order, k] > 0]:
            group = groups[number]
            if split_of[group[0]] >= 0:  # dealt out with a rarer class
                continue
            new = (counts[number] > 0) & (dealt == 0)  # its classes that a split has no image of
            last = counts[number] == total - dealt.sum(axis=0)  # no other group has the class
            if (new[0] & last).any():
                split = 0  # train needs all classes
            elif new.any():
                rarest = new.any(axis=0).argmax()
                split = new[:, rarest].argmax()  # the first split without it
            else:  # the split that lacks most of class k; in a tie, most images
                lacking = wanted - dealt
                split = max(range(len(shares)), key=lambda s: (lacking[s, k], lacking[s, -1]))
            split_of[group] = split
            dealt[split] += counts[number]
    return split_of


def print_counts(classes, labels, split_of):
    """How many images of each class are in each split."""
    print("".join(f"{name:>8}" for name in SPLITS))
    every = np.ones(len(labels), bool)
    for name, column in [*zip(classes, labels.T), ("all images", every)]:
        counts = np.bincount(split_of[column], minlength=len(SPLITS))
        print("".join(f"{count:8}" for count in counts) + f"  {name}")


if __name__ == "__main__":
    with program():
        main()
