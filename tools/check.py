"""A look at a data set before training: labels, missing and broken images, copies.

Run: python -m tools.check --data NAME --root DIR [--verify]
"""
import argparse
import os
import sys

import numpy as np
from torch.utils.data import DataLoader

from data import label_warnings, load, transform
from lib.distributed import program
from readers import READERS, split_names
from readers.errors import InputError
from readers.images import missing


def main(argv=None):
    """Returns 1 where an image is missing, broken or in doubt, else 0."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0], allow_abbrev=False)
    parser.add_argument("--data", default="scenes", choices=READERS, help="the data set")
    parser.add_argument("--root", default="", help="the folder that holds it")
    parser.add_argument("--download", action="store_true", help="fetch VOC or the lists into ROOT")
    parser.add_argument("--verify", action="store_true", help="decode all images, look for copies")
    args = parser.parse_args(argv)

    problems = []
    seen = {}  # content of an image -> where it was seen first
    for split in split_names(args.data, args.root):
        dataset = load(args.data, args.root, split, download=args.download, check=False)
        print_labels(f"{args.data} {split}", dataset)
        for warning in label_warnings(dataset, split):
            print(warning)
        lost = missing(dataset.paths)
        problems += [f"{dataset.paths[i]} is missing" for i in lost]
        if args.verify:
            there = np.setdiff1d(np.arange(len(dataset)), lost)
            problems += verify(dataset.subset(there), split, seen)
    for problem in problems:
        print(problem)
    what = "missing; --verify decodes all"
    if args.verify:
        what = "missing, unreadable or in doubt"
    print(f"{len(problems)} images {what}")
    return int(len(problems) > 0)


def print_labels(title, dataset):
    """How often each label is positive, negative and unknown."""
    labels = (dataset.targets == 1).sum(axis=1)  # per image
    print(f"{title}: {len(dataset)} images, {len(dataset.classes)} classes, "
          f"{labels.mean():.2f} labels per image ({labels.min()} to {labels.max()}), "
          f"{(labels == 0).sum()} without labels")
    print(f"  {'class':24}     yes      no     unknown")
    for name, column in zip(dataset.classes, dataset.targets.T):
        yes = (column == 1).sum()
        no = (column == 0).sum()
        unknown = (column == -1).sum()
        print(f"  {name:24}{yes:8}{no:8}{unknown:12}")


class Thumbnails:
    """For loading processes: the pixels of a small copy of an image, or an error's text."""

    def __init__(self, dataset):
        self.dataset = dataset
        self.resize = transform(32)

    def __len__(self):
        return len(self.dataset)

    def __getitem__(self, index):
        try:
            return self.resize(self.dataset.image(index)).numpy().tobytes(), ""
        except InputError as error:
            return b"", str(error)


def verify(dataset, split, seen):
    """Sentences about images that cannot be read, and about images that occur twice with different
    labels or in two splits. Adds to `seen`: pixels -> (split, path, targets)."""
    problems = []
    loader = DataLoader(Thumbnails(dataset), batch_size=None, num_workers=os.cpu_count())
    for index, (pixels, error) in enumerate(loader):
        if error:
            problems.append(error)
            continue
        path = dataset.paths[index]
        targets = dataset.targets[index].tolist()
        first_split, first_path, first_targets = seen.setdefault(pixels, (split, path, targets))
        text = f"{path} ({split}) shows the same as {first_path} ({first_split})"
        if targets != first_targets:
            problems.append(f"{text}, with different labels")
        elif split != first_split:
            problems.append(text)
    return problems


if __name__ == "__main__":
    with program():
        sys.exit(main())
