"""Images and targets, as batches.

    dataset = load("voc2007", root, "train")    .classes, .paths, .targets: 1 yes, 0 no, -1 unknown
    image, target = dataset[0]                  uint8 (3, H, W), int8 (K,)
    loader = make_loader(dataset, settings, training=True)
    images = normalize(images)                  a Normalize: uint8 -> float, on the device

The readers of the data sets are in readers/. `python -m tools.check` shows what to look at before
training.
"""
import os
from pathlib import Path

import numpy as np
import torch
from torch.utils.data import DataLoader, DistributedSampler
from torchvision.transforms import v2

from lib.distributed import rank, world_size
from lib.randaugment import randaugment, random_integer
from readers import DOWNLOADS, READERS, split_names
from readers.errors import InputError, name_errors
from readers.images import missing, read_image
from readers.longtail import long_tailed


class Dataset(torch.utils.data.Dataset):
    """One split. Its arrays are shared by loading processes, which would copy Python objects."""

    def __init__(self, classes, paths, targets, upright=False):
        """paths (N,); targets int8 (N, K): 1 yes, 0 no, -1 unknown. `upright` applies EXIF
        rotation: on for your own images, off for published sets."""
        self.classes = classes
        with name_errors("the list of images", "file names must be UTF-8: rename the file"):
            self.paths = np.asarray(paths, np.dtypes.StringDType())
        self.targets = targets
        self.upright = upright
        self.transform = None
        self.seed = 0
        self.epoch = 0

    def __len__(self):
        return len(self.paths)

    def image(self, index):
        """The whole image: uint8 (3, H, W), RGB. Raises InputError."""
        return read_image(self.paths[index], self.upright)

    def __getitem__(self, index):
        """A sample: the image, transformed, and its targets (K,)."""
        image = self.image(index)
        if self.transform is not None:
            # Its random numbers depend on nothing else, so that runs repeat exactly.
            with torch.random.fork_rng(devices=[]):
                torch.default_generator.manual_seed(hash((self.seed, self.epoch, int(index))))
                image = self.transform(image)
        return image, self.targets[index]

    def set_epoch(self, epoch):
        """Other random numbers for the augmentations of each epoch."""
        self.epoch = epoch

    def subset(self, keep):
        """The Dataset of the samples `keep`: a slice, a mask or indices."""
        return Dataset(self.classes, self.paths[keep], self.targets[keep], self.upright)

    def sample(self, count):
        """`count` random samples, in their order and the same each time: the rows of a list are
        often sorted by class. 0: all."""
        if count == 0 or count >= len(self):
            return self
        order = np.random.default_rng(0).permutation(len(self))
        return self.subset(np.sort(order[:count]))


def load(name, root="", split="train", *, drop_unlabelled=False, difficult="ignored", long_tail=0,
         download=False, check=True):
    """One split of a data set as a Dataset. Raises InputError.

    name: see readers/; split: train, test, or val of your own images. `drop_unlabelled` leaves out
    images without a positive label; `difficult` says how VOC's difficult objects count at test
    time, ignored (-1) or negative; `long_tail` makes a training split long-tailed by that ratio;
    `download` fetches VOC and the long-tailed lists; `check` refuses missing images.
    """
    splits = ["train", "test"]
    if name == "csv":
        splits.append("val")
    if name.startswith("voc2012"):
        splits.append("server")
    if name not in READERS:
        raise InputError(f"no data set {name}: choose from {', '.join(READERS)}")
    if split not in splits:
        raise InputError(f"{name} has no split {split}: choose from {', '.join(splits)}")
    if 0 < long_tail < 1:
        raise InputError(f"--long-tail {long_tail}: most / least frequent class must be at least 1")
    root = Path(root or "")
    if download:
        with name_errors(f"--download, which knows {', '.join(DOWNLOADS)}",
                         f"put it into {root} by hand"):
            DOWNLOADS[name](root)
    if not name.startswith("scenes") and (root == Path("") or not root.is_dir()):
        raise InputError(f"{name} needs --root, the folder that holds it; {root} is not there")

    classes, paths, targets = READERS[name](root, split)
    if difficult == "negative" and name in ("voc2007", "voc2012") and split == "test":
        targets = np.maximum(targets, 0)
    dataset = Dataset(classes, paths, targets, upright=name == "csv")
    if drop_unlabelled:
        labelled = (targets == 1).any(axis=1)
        dataset = dataset.subset(labelled)
    if long_tail and split == "train":
        dataset = dataset.subset(long_tailed(dataset.targets, long_tail))

    if dataset.targets.size == 0:
        raise InputError(f"{name} {split} in {root}: {len(dataset)} images, {len(classes)} classes")
    if len(set(classes)) < len(classes):
        raise InputError(f"{name} {split} in {root}: {len(classes)} classes with "
                         f"{len(set(classes))} different names")
    if check:
        lost = missing(dataset.paths)
        if lost:
            raise InputError(f"{dataset.paths[lost[0]]} and {len(lost) - 1} more listed images are "
                             f"missing: `python -m tools.check --data {name} --root {root}` names "
                             "them all")
    return dataset


def load_splits(settings):
    """The splits of a training run by name: train, test, and val where your own data has it."""
    splits = {}
    for split in split_names(settings.data, settings.root):
        splits[split] = load(settings.data, settings.root, split,
                             drop_unlabelled=settings.drop_unlabelled,
                             difficult=settings.difficult,
                             long_tail=settings.long_tail,
                             download=settings.download)
        if splits[split].classes != splits["train"].classes:
            raise InputError(f"{settings.data}: train and {split} have different classes")
        if not (splits[split].targets == 1).any() and not settings.data.endswith("-server"):
            raise InputError(f"{settings.data}: the {split} split has no positive label: every "
                             "value is 0 or unknown")
    splits["train"] = splits["train"].sample(settings.limit)
    return splits


def label_warnings(dataset, split):
    """Sentences about classes whose labels may be mistaken."""
    warnings = []
    for value, what in ((1, "no positive image"), (0, "no negative image (-1 means unknown)")):
        has_value = (dataset.targets == value).any(axis=0)
        classes = [name for name, has in zip(dataset.classes, has_value) if not has]
        if classes:
            named = ", ".join(classes[:8])
            if len(classes) > 8:
                named += ", ..."
            warnings.append(f"warning: {split}: {len(classes)} of {len(dataset.classes)} classes "
                            f"have {what}: {named}")
    return warnings


# --------------------------------------------------------------------------------------- transforms


def transform(image_size, augment=()):
    """uint8 (3, H, W) -> (3, image_size, image_size); the aspect ratio is not kept.

    augment: some of crop, flip, cutout, randaugment. Raises InputError.
    """
    known = ("crop", "flip", "cutout", "randaugment")
    for name in augment:
        if name not in known:
            raise InputError(f"unknown augmentation {name}: choose from {', '.join(known)}")
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
    """Covers a square of half the side of `image`, uint8 (3, H, W), with one random color, in
    place. The center of the square lies in the image."""
    height, width = image.shape[1:]
    y = random_integer(height)
    x = random_integer(width)
    color = torch.randint(256, (3, 1, 1), dtype=torch.uint8)
    top, bottom = max(y - height // 4, 0), y + height // 4 + 1  # both ends are covered
    left, right = max(x - width // 4, 0), x + width // 4 + 1
    image[:, top:bottom, left:right] = color
    return image


# ------------------------------------------------------------------------------------------ batches


def make_loader(dataset, settings, training):
    """A DataLoader of (images uint8 (B, 3, H, W), targets int8 (B, K)); B is this process's share
    of settings.batch_size."""
    if training:
        dataset.transform = transform(settings.image_size, settings.augment)
        dataset.seed = settings.seed
        drop_last = settings.drop_last and len(dataset) >= settings.batch_size
        # The sampler adds the epoch to its seed.
        sampler = DistributedSampler(dataset, num_replicas=world_size(), rank=rank(),
                                     seed=1000 * settings.seed, drop_last=drop_last)
    else:
        dataset.transform = transform(settings.image_size)
        drop_last = False
        sampler = range(rank(), len(dataset), world_size())  # each image once
    workers = settings.workers
    if workers < 0:
        workers = default_workers()
    return DataLoader(dataset, batch_size=settings.batch_size // world_size(), sampler=sampler,
                      drop_last=drop_last, num_workers=workers,
                      pin_memory=torch.cuda.is_available(),
                      generator=torch.Generator())  # its own: the global one is the model's


def default_workers():
    """Loading processes for this process: without a GPU, the model needs cores, too."""
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
        images = images.to(self.mean.dtype, memory_format=torch.channels_last)
        return images.sub_(self.mean).div_(self.std)
