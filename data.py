"""Images and targets -> batches on the device.

    data = load("voc2007", root, "train")      .classes, .paths, .targets: 1 yes, 0 no, -1 unknown
    for batch in loader(data, ...):            batch.images uint8 (B, 3, H, W), batch.targets, ...
        normalize(batch.images, ...)           on the device

Every random choice is seeded by (seed, epoch, index), so runs repeat exactly. Readers are in sets/.

Run: python data.py --data NAME --root DIR [--verify]    what to look at before training
"""
import argparse
import os
import signal
import sys
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image, ImageEnhance, ImageOps
from torchvision.transforms import v2

from sets import FETCH, READERS, splits_of
from sets.doubts import copies, doubts
from sets.images import missing, read_image
from sets.longtail import long_tailed
from sets.table import InputError, reading


@dataclass
class Dataset:
    """One split, as arrays: loading processes share these, but would copy Python objects."""
    classes: list[str]
    paths: np.ndarray  # (N,) of numpy's variable-width strings
    targets: np.ndarray  # (N, K) int8: 1 yes, 0 no, -1 unknown
    upright: bool = False  # apply EXIF rotation: on for your own images, off for published sets

    def __post_init__(self):
        with reading("the list of images", "file names must be UTF-8: rename the file"):
            self.paths = np.asarray(self.paths, np.dtypes.StringDType())

    def __len__(self):
        return len(self.paths)

    def image(self, index):
        """The image: uint8 (3, H, W), RGB. Raises InputError."""
        return read_image(self.paths[index], self.upright)

    def subset(self, keep):
        """The Dataset of the samples `keep`: a slice, a mask or indices."""
        return Dataset(self.classes, self.paths[keep], self.targets[keep], self.upright)


def load(name, root=None, split="train", *, drop_unlabelled=False, long_tail=0, download=False,
         check=True):
    """One split as a Dataset. `drop_unlabelled` leaves out images without a positive label,
    `long_tail` makes a training split long-tailed by that ratio, `download` fetches VOC and the
    long-tailed lists, `check` refuses missing images. Raises InputError."""
    third = {"csv": "val", "voc2012": "server", "voc2012-server": "server"}.get(name)
    if name not in READERS or split not in ("train", "test", third):
        raise InputError(f"no data set {name}, {split}: choose train or test of "
                         f"{', '.join(READERS)}")
    if not name.startswith("scenes") and not (root and (download or os.path.isdir(root))):
        raise InputError(f"{name} needs --root, the folder that holds it; {root} is not there")
    if 0 < long_tail < 1:
        raise InputError(f"--long-tail {long_tail}: most / least frequent class must be at least 1")
    if download:
        with reading(f"--download, which knows {', '.join(FETCH)}", f"put it into {root} by hand"):
            FETCH[name](Path(root))

    data = Dataset(*READERS[name](Path(root or "."), split), upright=name == "csv")
    if drop_unlabelled:
        data = data.subset((data.targets == 1).any(1))
    if long_tail and split == "train":
        data = data.subset(long_tailed(data.targets, long_tail))

    if not data.targets.size or len(set(data.classes)) < len(data.classes):
        raise InputError(f"{name} {split} in {root}: {len(data)} images, {len(data.classes)} "
                         f"classes with {len(set(data.classes))} different names: too few")
    if check and (lost := missing(data.paths)):
        raise InputError(f"{data.paths[lost[0]]} and {len(lost) - 1} more listed images are "
                         f"missing: `python data.py --data {name} --root {root}` names them all")
    return data


# -------------------------------------------------------------------------------------- transforms


def draw(n):
    """A random integer in 0..n-1."""
    return torch.randint(n, ()).item()


def cutout(image):
    """Covers a square of half the side of `image`, uint8 (3, H, W), with one random color, in
    place; its center lies in the image."""
    h, w = image.shape[-2:]
    y, x, color = draw(h), draw(w), torch.randint(256, (3, 1, 1), dtype=torch.uint8)
    image[:, max(y - h // 4, 0):y + h // 4, max(x - w // 4, 0):x + w // 4] = color
    return image


def square(image, side):
    """The small Cutout of RandAugment: a gray square, its center anywhere in the image."""
    x, y = draw(image.width) - side // 2, draw(image.height) - side // 2
    image.paste((125, 122, 113), (x, y, x + side, y + side))
    return image


def translate(image, x, y):
    matrix = (1, 0, x * image.width, 0, 1, y * image.height)
    return image.transform(image.size, Image.AFFINE, matrix, fillcolor=(128, 128, 128))


def shear(image, value):
    """Pillow's bicubic affine along x in less than half its time: the pixels of a row have the same
    offset, so they share their four weights."""
    x = np.asarray(image)  # (H, W, 3)
    size, border = x.shape[1], int(abs(value) * len(x)) + 3
    offset = value * (np.arange(len(x)) + 0.5)
    whole, d = np.floor(offset).astype(int), torch.from_numpy(offset % 1)[:, None, None].float()
    wide = np.pad(x, ((0, 0), (border, border), (0, 0)), "edge")
    taps = [row[border + n - 1:border + n + size + 2] for row, n in zip(wide, whole)]
    taps = torch.from_numpy(np.stack(taps)).float()  # (H, W + 3, 3)
    x = (2 * d ** 2 - d - d ** 3) * taps[:, :size]
    for k, w in enumerate((1 - 2 * d ** 2 + d ** 3, d + d ** 2 - d ** 3, d ** 3 - d ** 2), 1):
        x.addcmul_(w, taps[:, k:k + size])
    x = x.add_(1e-3).clamp_(0, 255).to(torch.uint8).numpy()  # 127.9999 is 128
    center = np.arange(size) + 0.5 + offset[:, None]
    x[(center < 0) | (center >= size)] = 128
    return Image.fromarray(x)


TURN = Image.Transpose.TRANSPOSE
RANDAUGMENT = {  # operation: (value at magnitude 0, at 9, is a sign drawn, (image, value) -> image)
    "Invert": (0, 0, False, lambda x, v: ImageOps.invert(x)),
    "AutoContrast": (0, 0, False, lambda x, v: ImageOps.autocontrast(x)),
    "Equalize": (0, 0, False, lambda x, v: ImageOps.equalize(x)),
    "Posterize": (8, 4, False, lambda x, v: ImageOps.posterize(x, round(v))),
    "Solarize": (256, 0, False, lambda x, v: ImageOps.solarize(x, v)),
    "Cutout": (0, 20, False, lambda x, v: square(x, round(v))),
    "Rotate": (0, 30, False, lambda x, v: x.rotate(v, fillcolor=(128, 128, 128))),
    "ShearX": (0, 0.3, True, lambda x, v: shear(x, v)),
    "ShearY": (0, 0.3, True, lambda x, v: shear(x.transpose(TURN), v).transpose(TURN)),
    "TranslateX": (0, 150 / 331, True, lambda x, v: translate(x, v, 0)),
    "TranslateY": (0, 150 / 331, True, lambda x, v: translate(x, 0, v)),
    "Color": (0, 0.9, True, lambda x, v: ImageEnhance.Color(x).enhance(1 + v)),
    "Contrast": (0, 0.9, True, lambda x, v: ImageEnhance.Contrast(x).enhance(1 + v)),
    "Sharpness": (0, 0.9, True, lambda x, v: ImageEnhance.Sharpness(x).enhance(1 + v)),
    "Brightness": (0, 0.9, True, lambda x, v: ImageEnhance.Brightness(x).enhance(1 + v))}


def randaugment(image):
    """As released with ASL, Q2L and CPRFL (torchvision's changes images far more), uint8 (3, H, W):
    two random operations, magnitude 1..9, each applied with probability 1/2."""
    chosen = [(draw(15), 1 + draw(9), 1 - 2 * draw(2)) for _ in range(2) if draw(2)]
    image = Image.fromarray(image.permute(1, 2, 0).numpy()) if chosen else image
    for number, magnitude, sign in chosen:
        low, high, signed, operation = [*RANDAUGMENT.values()][number]
        value = low + (high - low) * magnitude / 9
        image = operation(image, sign * value if signed else value)
    return torch.from_numpy(np.array(image)).permute(2, 0, 1) if chosen else image


def transform(image_size, augment=()):
    """uint8 (3, H, W) -> (3, image_size, image_size); aspect ratio not kept. Raises InputError."""
    size = (image_size, image_size)
    steps = {"crop": v2.RandomResizedCrop(size, (0.7, 1.0)), "flip": v2.RandomHorizontalFlip(),
             "cutout": cutout, "randaugment": randaugment}
    if set(augment) - set(steps):
        raise InputError(f"unknown augmentation in {augment}: choose from {', '.join(steps)}")
    chosen = [step for name, step in steps.items() if name in augment]
    return v2.Compose(chosen if "crop" in augment else [v2.Resize(size), *chosen])


# ------------------------------------------------------------------------ image tensors -> batches


class Batch(NamedTuple):
    images: torch.Tensor  # uint8 (B, 3, H, W), in memory as (B, H, W, 3)
    targets: torch.Tensor  # int8 (B, K)
    index: torch.Tensor  # (B,) of the samples
    bad: list[str]  # an error message for each sample that could not be read


@dataclass
class Samples:
    """What a loading process does: keys (epoch, index) of a batch -> the Batch."""
    data: Dataset
    transform: v2.Compose
    seed: int

    def __getitem__(self, keys):
        images, index, bad = [], [], []
        for epoch, i in keys:
            try:
                with torch.random.fork_rng(devices=[]):  # keep the training loop's random state
                    torch.default_generator.manual_seed(mixed(self.seed, epoch, i))
                    images.append(self.transform(self.data.image(i)).permute(1, 2, 0))
                index.append(i)
            except InputError as error:
                bad.append(str(error))
        images = torch.stack(images) if index else torch.zeros(0, 1, 1, 3, dtype=torch.uint8)
        return Batch(images.permute(0, 3, 1, 2), torch.from_numpy(self.data.targets[index]),
                     torch.tensor(index, dtype=torch.int64), bad)


def mixed(*numbers):
    """One seed out of several numbers."""
    return int(np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0])


def leave_signals(worker):
    """A signal to the whole group is for the main process: it has 10 s to finish its step, and no
    loading process may outlive it."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda *_: signal.alarm(10))


def loader(data, image_size, order, augment=(), seed=0, workers=0):
    """Batches as `order` says: for each one a list of (epoch, index). See lib/order.py."""
    return torch.utils.data.DataLoader(
        Samples(data, transform(image_size, augment), seed), batch_size=None, sampler=order,
        num_workers=workers, worker_init_fn=leave_signals, persistent_workers=workers > 0,
        pin_memory=torch.cuda.is_available(),
        generator=torch.Generator())  # its own: the global random state is the training loop's


@cache  # a tensor made anew in each step would make the device wait
def channels(values, device):
    return 255 * torch.tensor(values, device=device).view(3, 1, 1)


def normalize(images, device, mean, std):
    """uint8 (B, 3, H, W) -> float32 on `device`: (images / 255 - mean) / std, per channel."""
    images = images.to(device, non_blocking=True).to(torch.get_default_dtype())
    return images.sub_(channels(tuple(mean), device)).div_(channels(tuple(std), device))


# -------------------------------------------------------------------------- a look before training


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0], allow_abbrev=False)
    parser.add_argument("--data", default="scenes", choices=READERS, help="the data set")
    parser.add_argument("--root", help="the folder that holds it")
    parser.add_argument("--download", action="store_true", help="fetch VOC or the lists into ROOT")
    parser.add_argument("--verify", action="store_true", help="decode all images, look for copies")
    args = parser.parse_args(argv)
    bad, seen = [], {}
    for split in splits_of(args.data, args.root):
        data = load(args.data, args.root, split, download=args.download, check=False)
        count = np.stack([(data.targets == value).sum(0) for value in (1, 0, -1)], 1)  # (K, 3)
        labels = (data.targets == 1).sum(1)
        print(f"{args.data} {split}: {len(data)} images, {len(data.classes)} classes, "
              f"{labels.mean():.2f} labels per image ({labels.min()} to {labels.max()}), "
              f"{(labels == 0).sum()} without labels\n  {'class':24}     yes      no     unknown")
        for name, (yes, no, unknown) in zip(data.classes, count):
            print(f"  {name:24}{yes:8}{no:8}{unknown:12}")
        for text in doubts(data, split):
            print(text)
        lost = missing(data.paths)
        bad += [f"{data.paths[i]} is missing" for i in lost]
        if args.verify:
            rest = data.subset(np.setdiff1d(np.arange(len(data)), lost))
            order = [[(0, i)] for i in range(len(rest))]
            bad += copies(loader(rest, 32, order, workers=os.cpu_count()), rest, split, seen)
    what = "missing, unreadable or in doubt" if args.verify else "missing; --verify decodes all"
    print(*bad, f"{len(bad)} images {what}", sep="\n")
    return int(bool(bad))


if __name__ == "__main__":
    try:
        sys.exit(main())
    except InputError as error:
        sys.exit(f"error: {error}")
