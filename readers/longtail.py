"""COCO-LT and VOC-LT as published, and a long-tailed subset of any data set.

--download fetches ROOT/longtail/*.txt. The images are those of COCO 2017, and of VOC 2007 and 2012.
"""
import numpy as np
import torch

from lib.errors import explain_errors
from readers.tables import multi_hot, read_text, refuse_repeated

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
    """Classes, paths and targets (N, K). VOC's difficult objects are positive in these lists."""
    remedy = f"--download fetches it, from {LISTS}/{name}, into ROOT/longtail"
    file = root / f"longtail/{name}_labels.txt"
    with explain_errors(file, remedy):  # a line: the name, which may have spaces, and its number
        lines = read_fields(file)
        classes = [" ".join(line[:-1]) for line in lines]
        numbers = [line[-1] for line in lines]
        if numbers != [str(k) for k in range(len(numbers))]:
            raise ValueError("not `name number` lines, counted from 0")

    file = root / f"longtail/{name}_lt_{split}.txt"
    with explain_errors(file, remedy):  # a line: a path and the numbers of its labels
        lines = read_fields(file)
        refuse_repeated([line[0] for line in lines])
        paths = [f"{root}/{line[0]}" for line in lines]
        targets = multi_hot([line[1:] for line in lines], numbers)
    return classes, paths, targets


def read_fields(file):
    """The fields of each line."""
    return [line.split() for line in read_text(file).splitlines()]


def download(root, name):
    """Fetches the published lists and checks their sha256."""
    folder = root / "longtail"
    folder.mkdir(parents=True, exist_ok=True)
    for file, sha256 in SHA256.items():
        if file.startswith(name):
            torch.hub.download_url_to_file(f"{LISTS}/{name}/{file}", str(folder / file),
                                           hash_prefix=sha256, progress=False)


def long_tailed(targets, ratio):
    """The indices of a subset whose class frequencies follow a power law (Pareto).

    The rarest class is `ratio` times rarer than the most frequent one. An image is taken if none of
    its classes is full; the limit of the most frequent class is lowered until it is reached. A
    class that has images keeps one. If the data has too few rare classes, the ratio is smaller than
    asked for. Every call returns the same subset. Raises ValueError.
    """
    if targets.shape[1] < 2:
        raise ValueError("a long tail needs two classes or more")
    labels = targets == 1  # (N, K)
    counts = labels.sum(axis=0)
    rank = np.argsort(np.argsort(-counts, kind="stable"))  # 0: the most frequent class
    shape = (1.0 + rank) ** (-np.log(ratio) / np.log(len(rank)))  # from 1 down to 1 / ratio
    order = np.random.default_rng(0).permutation(len(labels))
    top = counts.max()
    while True:
        limit = np.ceil(top * shape)
        taken = np.zeros(len(rank), int)  # images of each class
        keep = []
        for i in order:
            if (taken + labels[i] <= limit).all():
                taken += labels[i]
                keep.append(i)
        if taken.max() >= 0.9 * top or top < ratio:
            break
        top *= 0.8
    for k in np.flatnonzero((taken == 0) & (counts > 0)):
        images = np.flatnonzero(labels[:, k])
        keep.append(images[labels[images].sum(axis=1).argmin()])  # with the fewest other labels
    return np.unique(np.array(keep, int))
