"""Images and targets, in batches.

    dataset = load("voc2007", root, "train")    .classes, .paths, .targets (1, 0, -1: unknown)
    image, target = dataset[0]                  uint8 (3, H, W), int8 (K,)
    loader = make_loader(dataset, settings, training=True)
    images = normalize(images)                  a Normalize object: uint8 -> float, on the device

The code that reads each data set is in readers/. Before training, you can find problems in a data
set with `python -m tools.check`.
"""
import copy
import os
import re
import shlex
import sys
import unicodedata
from pathlib import Path

import numpy as np
import torch
from torch.utils.data import DataLoader, DistributedSampler
from torchvision.transforms import v2

from lib.distributed import is_main, rank, world_size
from lib.errors import InputError, explain_errors
from lib.randaugment import randaugment, random_integer
from readers import DOWNLOADS, HAVE_DIFFICULT, READERS, UPRIGHT, split_names
from readers.images import missing, read_image
from readers.longtail import long_tailed

REMEDY = ("replace or remove it; `python -m tools.check --data NAME --root ROOT --verify` lists "
          "all such images")


class Dataset(torch.utils.data.Dataset):
    """One split. Arrays, not lists: forked loading processes share them without a copy."""

    def __init__(self, classes, paths, targets, upright=False):
        """paths (N,); targets int8 (N, K): 1 yes, 0 no, -1 unknown. `upright` applies EXIF
        rotation: on for your own images, off for published sets."""
        self.classes = classes
        self.paths = np.asarray(paths, np.dtypes.StringDType())  # strings of any length
        self.targets = targets
        self.upright = upright
        self.transform = None
        self.seed = 0
        self.epoch = 0

    def __len__(self):
        return len(self.paths)

    def image(self, index):
        """The whole image: uint8 (3, H, W), RGB. Raises InputError."""
        return read_image(self.paths[index], self.upright, REMEDY)

    def __getitem__(self, index):
        """A sample: the image, transformed, and its targets (K,)."""
        image = self.image(index)
        if self.transform is not None:
            # Random numbers depend on seed, epoch and index, so any process gets the same ones.
            seed = hash((self.seed, self.epoch, int(index)))
            # Only the CPU's generator, restored afterward: torch.manual_seed seeds the GPU, too.
            with torch.random.fork_rng(devices=[]):
                torch.default_generator.manual_seed(seed)
                image = self.transform(image)
        return image, self.targets[index]

    def set_epoch(self, epoch):
        """Call this before each epoch. It changes the random numbers of the augmentations."""
        self.epoch = epoch

    def subset(self, keep):
        """The Dataset of the samples `keep`: a slice, a mask or indices."""
        return Dataset(self.classes, self.paths[keep], self.targets[keep], self.upright)

    def sample(self, count):
        """A fixed random subset of `count` samples, in the order of the list; count 0 is the whole
        Dataset. Random, because lists are often sorted by class."""
        if count == 0:
            return self
        order = np.random.default_rng(0).permutation(len(self))
        return self.subset(np.sort(order[:count]))

    def with_order(self, classes, source):
        """The Dataset with its columns in the order of `classes`, those of the train split. If the
        names differ, raises InputError, which names `source`."""
        if self.classes == classes:
            return self
        lacks = sorted(set(classes) - set(self.classes))
        more = sorted(set(self.classes) - set(classes))
        if lacks or more:
            raise InputError(f"{source}: other classes than in the train split: it lacks "
                             f"{lacks[:5]}, and only it has {more[:5]}: the annotation files of "
                             "all splits must name the same classes")
        columns = [self.classes.index(label) for label in classes]
        return Dataset(classes, self.paths, self.targets[:, columns], self.upright)


def load(name, root="", split="train", *, drop_unlabelled=False, difficult="ignored", long_tail=0,
         download=False, check=True):
    """One split of a data set as a Dataset. Raises InputError.

    name: see readers/; split: train, test, or val if the data set has it. `drop_unlabelled` leaves
    out images without a positive label, in each split; `difficult` says how VOC's difficult objects
    count at test time: as ignored (-1) or negative; `long_tail` makes a training split long-tailed,
    with this ratio of the most to the least frequent class (0: off); `download` fetches VOC and the
    long-tailed lists; `check` raises an error if images are missing.
    """
    if name not in READERS:
        raise InputError(f"no data set {name}: choose from {', '.join(READERS)}")
    splits = split_names(name, root)
    if split not in splits:
        raise InputError(f"no split {split} in {name} {root}".rstrip() +
                         f": choose from {', '.join(splits)}")
    if long_tail != 0 and long_tail < 1:
        raise InputError(f"--long-tail {long_tail}: the ratio of the most to the least frequent "
                         "class must be at least 1")
    synthetic = name.startswith("scenes")  # drawn by code, without files
    if not root and not synthetic:
        raise InputError(f"{name} needs --root, the folder that holds it")
    root = Path(root)
    if download:
        with explain_errors(f"--download of {name}", f"put it into {root} by hand"):
            if name not in DOWNLOADS:
                raise ValueError(f"it can fetch only {', '.join(DOWNLOADS)}: leave it out")
            DOWNLOADS[name](root)
    if not synthetic and not root.is_dir():
        raise InputError(f"--root {root}: there is no such folder")

    classes, paths, targets = READERS[name](root, split)
    if targets.shape != (len(paths), len(classes)):
        raise InputError(f"{name} {split}: the reader gives targets {tuple(targets.shape)} for "
                         f"{len(paths)} images and {len(classes)} classes")
    if difficult == "negative" and name in HAVE_DIFFICULT:
        targets = np.maximum(targets, 0)  # -1 becomes 0
    dataset = Dataset(classes, paths, targets, upright=name in UPRIGHT)
    if drop_unlabelled:
        dataset = dataset.subset((targets == 1).any(axis=1))
    if long_tail and split == "train":
        with explain_errors(f"--long-tail {long_tail} of {name}", "leave it out"):
            dataset = dataset.subset(long_tailed(dataset.targets, long_tail))
        print_ratio(dataset, long_tail)

    if dataset.targets.size == 0:
        raise InputError(f"{name} {split} in {root} is empty")
    if dataset.targets.min() < -1 or dataset.targets.max() > 1:
        raise InputError(f"{name} {split}: the reader gives targets that are not 1, 0 or -1")
    if len(set(classes)) < len(classes):
        raise InputError(f"{name} in {root}: two classes have one name")
    if check:
        lost = missing(dataset.paths)
        if lost:
            raise InputError(f"{len(lost)} of {len(dataset)} listed images are missing, "
                             f"{dataset.paths[lost[0]]} first: "
                             f"`python -m tools.check --data {name} --root "
                             f"{shlex.quote(str(root))}` lists all")
    return dataset


def print_ratio(dataset, long_tail):
    """Says how long the tail has become: the data may have too few images of rare classes."""
    counts = (dataset.targets == 1).sum(axis=0)
    ratio = counts.max() / max(counts.min(), 1)
    if is_main():
        print(f"--long-tail {long_tail:g}: {len(dataset)} images, {counts.max()} of the most and "
              f"{counts.min()} of the least frequent class: the ratio is {ratio:.3g}",
              file=sys.stderr)


def load_splits(settings):
    """The splits of a training run by name: train, test, and val if the data set has it.
    --limit shortens the training split."""
    splits = {}
    for split in split_names(settings.data, settings.root):
        splits[split] = load(settings.data, settings.root, split,
                             drop_unlabelled=settings.drop_unlabelled,
                             difficult=settings.difficult,
                             long_tail=settings.long_tail,
                             download=settings.download)
        source = f"{settings.data} {split} in {settings.root}"
        splits[split] = splits[split].with_order(splits["train"].classes, source)
        if not (splits[split].targets == 1).any() and not settings.data.endswith("-server"):
            raise InputError(f"{settings.data}: the {split} split has no positive label: every "
                             "value is 0 or unknown")
    splits["train"] = splits["train"].sample(settings.limit)
    return splits


def label_warnings(dataset, split):
    """Warnings about classes that may be mislabeled, or that may be one class."""
    warnings = []
    names_of = {}  # spelling -> the classes that are spelled so
    for name in dataset.classes:
        names_of.setdefault(spelling(name), []).append(name)
    for names in names_of.values():
        if len(names) > 1:
            warnings.append(f"warning: {split}: {names} are {len(names)} classes, but their names "
                            "differ only in case, spaces or Unicode form")
    for value, what in ((1, "no positive image"), (0, "no negative image (-1 means unknown)")):
        lacking = np.flatnonzero((dataset.targets != value).all(axis=0))
        if len(lacking) > 0:
            names = ", ".join(dataset.classes[k] for k in lacking[:8])
            if len(lacking) > 8:
                names += ", ..."
            warnings.append(f"warning: {split}: {len(lacking)} of {len(dataset.classes)} classes "
                            f"have {what}: {names}")
    return warnings


def spelling(name):
    """The same text for names that look alike: in upper or lower case, with spaces, _ or -, with
    accents composed or not (Unicode's NFC, NFD), with invisible characters."""
    text = unicodedata.normalize("NFKC", name.casefold())
    visible = [letter for letter in text if unicodedata.category(letter) != "Cf"]
    return re.sub(r"[\s_-]+", " ", "".join(visible)).strip()


# --------------------------------------------------------------------------------------- transforms


def transform(image_size, augment=()):
    """uint8 (3, H, W) -> (3, image_size, image_size); the aspect ratio is not kept.

    augment: some of crop, flip, cutout, randaugment. Raises InputError.
    """
    unknown = set(augment) - {"crop", "flip", "cutout", "randaugment"}
    if unknown:
        raise InputError(f"--augment: unknown {unknown}: "
                         "choose from crop, flip, cutout, randaugment")
    size = (image_size, image_size)
    steps = [v2.Resize(size)]
    if "crop" in augment:
        steps = [v2.RandomResizedCrop(size, scale=(0.7, 1.0))]
    if "flip" in augment:
        steps.append(v2.RandomHorizontalFlip())
    if "cutout" in augment:
        steps.append(cutout)
    if "randaugment" in augment:
        steps.append(randaugment)
    return v2.Compose(steps)


def cutout(image):
    """Covers a square, with half the side length of `image`, uint8 (3, H, W), in one random color,
    in place. Its center is a random pixel. It is clipped at the image border."""
    height, width = image.shape[1:]
    y = random_integer(height)
    x = random_integer(width)
    color = torch.randint(256, (3, 1, 1), dtype=torch.uint8)
    top = max(y - height // 4, 0)
    bottom = y + height // 4 + 1  # + 1 as in the code released with ASL, Q2L and CPRFL
    left = max(x - width // 4, 0)
    right = x + width // 4 + 1
    image[:, top:bottom, left:right] = color
    return image


# ------------------------------------------------------------------------------------------ batches


def make_loader(dataset, settings, training):
    """A DataLoader of (images uint8 (B, 3, H, W), targets int8 (B, K)); B is this process's share
    of settings.batch_size."""
    dataset = copy.copy(dataset)  # shares the arrays; transform, seed and epoch are its own
    if training:
        dataset.transform = transform(settings.image_size, settings.augment)
        dataset.seed = settings.seed
        drop_last = settings.drop_last and len(dataset) >= settings.batch_size
        # torch seeds the order with seed + epoch. Without the factor 10000, seed 1 would repeat the
        # orders of seed 0, one epoch earlier.
        sampler = DistributedSampler(dataset, num_replicas=world_size(), rank=rank(),
                                     seed=10000 * settings.seed, drop_last=drop_last)
    else:
        dataset.transform = transform(settings.image_size)
        drop_last = False
        # Each image once; DistributedSampler would repeat some. eval.predict relies on this.
        sampler = range(rank(), len(dataset), world_size())
    workers = settings.workers
    if workers < 0:
        workers = default_workers()
    # DataLoader draws a number per epoch. It has its own generator for that, not dropout's.
    return DataLoader(dataset, batch_size=max(settings.batch_size // world_size(), 1),
                      sampler=sampler, drop_last=drop_last, num_workers=workers,
                      pin_memory=torch.cuda.is_available(), generator=torch.Generator())


def default_workers():
    """The number of loading processes. Without a GPU, half the cores stay free for the model."""
    cores = os.cpu_count() // int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    if not torch.cuda.is_available():
        cores = cores // 2
    return min(cores, 8)


class Normalize:
    """uint8 (B, 3, H, W) -> float on `device`: (images / 255 - mean) / std, per channel."""

    def __init__(self, mean, std, device):
        self.mean = 255 * torch.tensor(mean, device=device).view(3, 1, 1)
        self.std = 255 * torch.tensor(std, device=device).view(3, 1, 1)

    def __call__(self, images):
        images = images.to(self.mean.device, non_blocking=True)
        images = images.to(self.mean.dtype, memory_format=torch.channels_last)  # a copy
        return images.sub_(self.mean).div_(self.std)
