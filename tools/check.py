"""Checks a data set before training: labels, missing and broken images, copies.

Run: python -m tools.check --data NAME --root ROOT [--verify]
"""
import argparse
import sys
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from data import label_warnings, load, transform
from lib.distributed import program
from lib.errors import InputError
from readers import READERS, split_names
from readers.images import REMEDY, missing


def main(argv=None):
    """Returns whether there is a problem with an image."""
    parser = argparse.ArgumentParser(description="Checks a data set.", allow_abbrev=False)
    parser.add_argument("--data", required=True, choices=READERS, help="the data set")
    parser.add_argument("--root", default="", help="the folder that holds it")
    parser.add_argument("--download", action="store_true",
                        help="fetch VOC or the long-tailed lists into ROOT")
    parser.add_argument("--verify", action="store_true", help="decode all images, look for copies")
    args = parser.parse_args(argv)

    problems = []
    seen = {}  # content of an image -> where it was seen first
    for split in split_names(args.data, args.root):
        dataset = load(args.data, args.root, split, download=args.download, check=False)
        print_labels(f"{args.data} {split}", dataset)
        for warning in label_warnings(dataset, split):
            print(warning)
        if args.verify:
            problems += verify(dataset, split, seen)
        else:
            problems += [f"{dataset.paths[i]} is missing" for i in missing(dataset.paths)]
    for problem in problems:
        print(problem)
    if args.verify:
        print(f"problems: {len(problems)}")
    else:
        print(f"missing images: {len(problems)}; --verify decodes all images")
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
    """Messages about images that cannot be read, and about images that occur twice with different
    labels or in two splits. Adds to `seen`: pixels -> (split, path, targets)."""
    resize = transform(32)

    def thumbnail(index):
        """The pixels of a small copy, or an error's text."""
        try:
            return resize(dataset.image(index)).numpy().tobytes(), ""
        except InputError as error:
            return b"", str(error).removesuffix(f": {REMEDY}")  # it says to run this program

    problems = []
    with ThreadPoolExecutor() as pool:
        thumbnails = pool.map(thumbnail, range(len(dataset)))
        for path, targets, (pixels, error) in zip(dataset.paths, dataset.targets, thumbnails):
            if error:
                problems.append(error)
                continue
            targets = targets.tolist()
            first_split, first_path, first_targets = seen.setdefault(pixels, (split, path, targets))
            text = f"{path} ({split}) has the same content as {first_path} ({first_split})"
            if targets != first_targets:
                problems.append(f"{text}, with different labels")
            elif split != first_split:
                problems.append(text)
    return problems


if __name__ == "__main__":
    with program():
        sys.exit(main())
