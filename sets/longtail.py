"""COCO-LT and VOC-LT as published, and a long-tailed subset of any data set.

ROOT/longtail/*.txt by --download; the images as in COCO 2017 and in both VOCs.
"""
import numpy as np
import torch

from sets.table import fields, multi_hot, reading

LISTS = ("https://raw.githubusercontent.com/jiexuanyan/CPRFL/"
         "10b5b7c9d91d421d86175b8ccf07f280c1e94cac/data")
SHA256 = {
    "coco_labels.txt": "a16d52dc65d8bc2b7abe5875199d802e951b7af142b327f8c85b496116a87f45",
    "coco_lt_train.txt": "8e0c354ae2214d7ced46f4a5ae24236149296be4dcd2df74f00eba2abe6be0ce",
    "coco_lt_test.txt": "4dda722463b0ed3aada172ce1c75f46f1391e4d2bee7643760549f916a8022e5",
    "voc_labels.txt": "59e82ce7a1fa096b8a80c22cc72e6c86e54c598b2e1cfe08a211f1c82a0dcb2c",
    "voc_lt_train.txt": "2111a5e58ae8b67a112a2b2c8aa98fe8fa926ac3e1d73e2e4e0e4844c90cc047",
    "voc_lt_test.txt": "43b2929a86e9fe685cdf3b6b72fb90b6838ff9f9f427807e8b9502111e73750a"}


def read_published(root, split, name):
    """Classes, paths and targets (N, K). A line of a list is an image's path and its label numbers.
    VOC's difficult objects count as positive in these lists."""
    remedy = f"--download fetches it, from {LISTS}/{name}, into ROOT/longtail"
    file = root / "longtail" / f"{name}_labels.txt"
    with reading(file, remedy):  # lines `name number`, by number; names may have spaces
        classes, numbers = zip(*((" ".join(names), number) for *names, number in fields(file)))
        if [int(number) for number in numbers] != [*range(len(numbers))]:
            raise ValueError("not `name number` lines, counted from 0")
    file = root / "longtail" / f"{name}_lt_{split}.txt"
    with reading(file, remedy):
        rows = fields(file)
        targets = multi_hot([row[1:] for row in rows], numbers)
    return [*classes], [f"{root}/{row[0]}" for row in rows], targets


def fetch(root, name):
    """Downloads the published lists and checks their sha256."""
    (root / "longtail").mkdir(parents=True, exist_ok=True)
    for file in (f"{name}_labels.txt", f"{name}_lt_train.txt", f"{name}_lt_test.txt"):
        torch.hub.download_url_to_file(f"{LISTS}/{name}/{file}", str(root / "longtail" / file),
                                       SHA256[file], progress=False)


def long_tailed(targets, ratio):
    """The indices of a subset whose class frequencies follow a power law (Pareto): the rarest class
    is `ratio` times rarer than the most frequent. An image is taken while none of its classes is
    full; the limit of the most frequent class is lowered until it is reached. Deterministic."""
    labels = targets == 1
    rank = np.argsort(np.argsort(-labels.sum(0), kind="stable"))
    shape = (1.0 + rank) ** (-np.log(ratio) / np.log(len(rank)))
    order, top = np.random.default_rng(0).permutation(len(labels)), labels.sum(0).max()
    while True:
        limit, have, keep = np.ceil(top * shape), np.zeros(len(rank), int), []
        for i in order:
            if (have + labels[i] <= limit).all():
                have += labels[i]
                keep.append(i)
        if have.max() >= 0.9 * top or top < ratio:
            return np.sort(keep)
        top *= 0.8
