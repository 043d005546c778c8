"""Checks a data set before training: labels, missing, broken and dark images, copies.

Run: python -m tools.check --data NAME --root ROOT [--verify]
"""
import argparse
import hashlib
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from data import REMEDY, label_warnings, load
from lib.distributed import program
from lib.errors import InputError
from lib.progress import Clock
from readers import READERS, split_names
from readers.images import has_16_bits, missing
from readers.own_images import unread_files


def main(argv=None):
    """Returns whether there is a problem with an image."""
    parser = argparse.ArgumentParser(description="Checks a data set.", allow_abbrev=False)
    parser.add_argument("--data", required=True, choices=READERS, help="the data set")
    parser.add_argument("--root", default="", help="the folder that holds it")
    parser.add_argument("--download", action="store_true",
                        help="fetch VOC or the long-tailed lists into ROOT")
    parser.add_argument("--verify", action="store_true", help="decode all images, look for copies")
    args = parser.parse_args(argv)

    splits = split_names(args.data, args.root)
    if args.data == "csv" and not Path(args.root, "train.csv").is_file():
        splits.remove("train")  # a test.csv alone can be evaluated
    problems = []
    warnings = 0
    seen = {}  # content of an image -> where it was seen first
    classes = None  # of the first split
    for split in splits:
        dataset = load(args.data, args.root, split, download=args.download, check=False)
        classes = classes or dataset.classes
        dataset = dataset.with_order(classes, f"{args.data} {split} in {args.root}")
        print_labels(f"{args.data} {split}", dataset)
        for warning in label_warnings(dataset, split):
            print(warning)
            warnings += 1
        if args.data == "csv" and split == "train":
            warnings += len(unread_files(Path(args.root)))  # load has printed these
        if args.verify:
            problems += verify(dataset, split, seen)
        else:
            problems += [f"{dataset.paths[i]} is missing" for i in missing(dataset.paths)]
    for problem in problems:
        print(problem)
    if warnings:
        print(f"warnings: {warnings}")
    if not args.verify:
        print(f"missing images: {len(problems)}; --verify decodes all images")
    elif problems or warnings:
        print(f"problems: {len(problems)}")
    else:
        print("no problems")
    return len(problems) > 0


def print_labels(title, dataset):
    """How often each label is positive, negative and unknown."""
    labels = (dataset.targets == 1).sum(axis=1)  # per image
    print(f"{title}: {len(dataset)} images, {len(dataset.classes)} classes, "
          f"{labels.mean():.2f} labels per image, {(labels == 0).sum()} images without labels")
    print("  class                        yes      no     unknown")
    for name, column in zip(dataset.classes, dataset.targets.T):
        unknown, no, yes = np.bincount(column + 1, minlength=3)
        print(f"  {name:24}{yes:8}{no:8}{unknown:12}")


def verify(dataset, split, seen):
    """Messages about images that cannot be read, about images that occur twice with different
    labels or in two splits, and about 16-bit images that are too dark. Adds to `seen`: a hash of
    the pixels -> (split, path, hash of the targets)."""

    def decoded(index):
        """A hash of the shape and the pixels, the highest value of a 16-bit image (its high byte;
        else None), an error's text."""
        try:
            image = dataset.image(index).numpy()
            brightest = None
            if has_16_bits(dataset.paths[index]):
                brightest = image.max()
        except InputError as error:
            return None, None, str(error).removesuffix(f": {REMEDY}")  # to run this program
        return digest(image), brightest, ""

    problems = []
    dark = []  # 16-bit images whose highest bit is never set
    clock = Clock()
    with ThreadPoolExecutor() as pool:
        images = pool.map(decoded, range(len(dataset)))
        for number, image in enumerate(images):
            if clock.due():
                print(f"{split}: decoded {number} of {len(dataset)} images", file=sys.stderr)
            pixels, brightest, error = image
            path = dataset.paths[number]
            if error:
                problems.append(error)
                continue
            if brightest is not None and brightest < 128:
                dark.append(f"{path} (at most {256 * int(brightest) + 255} of 65535)")
            labels = digest(dataset.targets[number])
            first_split, first_path, first_labels = seen.setdefault(pixels, (split, path, labels))
            text = f"{path} ({split}) has the same content as {first_path} ({first_split})"
            if labels != first_labels:
                problems.append(f"{text}, with different labels")
            elif split != first_split:
                problems.append(text)
    if dark:
        problems.append(f"{split}: {len(dark)} images with 16 bits use only a part of their range, "
                        f"so they look too dark or black: multiply their values. The first is "
                        f"{dark[0]}")
    return problems


def digest(array):
    """A hash of the shape and the values: a few bytes instead of an image."""
    content = hashlib.sha256(repr(array.shape).encode())
    content.update(np.ascontiguousarray(array))
    return content.digest()


if __name__ == "__main__":
    with program():
        sys.exit(main())
