"""Labels, scores and heat maps of images.

Run: python -m tools.predict --checkpoint OUT/last.pt IMAGE_OR_FOLDER... [--csv FILE --heatmaps DIR]
In Python: model, classes, transform = open_checkpoint("OUT/last.pt")
"""
import csv
import json
import os
import sys
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image
from torchvision.transforms.v2.functional import to_pil_image

from data import Normalize, transform
from eval import (
    WRITE_REMEDY,
    Evaluation,
    at_size,
    check_output,
    checkpoint_parser,
    threshold_logits,
)
from lib import distributed
from lib.errors import InputError, explain_errors
from lib.settings import integer
from readers.images import REMEDY, read_image, to_tensor
from readers.own_images import read_table
from readers.tables import multi_hot
from tools.heatmaps import contact_sheet

SUFFIXES = (".jpg", ".jpeg", ".jfif", ".jpe", ".jp2", ".png", ".webp", ".bmp", ".gif", ".tif",
            ".tiff", ".ppm", ".avif")
OTHER_SUFFIXES = {  # images, too, but not read
    *Image.registered_extensions(), ".heic", ".heif", ".jxl", ".svg", ".raw", ".dng", ".cr2",
    ".cr3", ".nef", ".arw", ".raf", ".orf", ".rw2"} - set(SUFFIXES)


def open_checkpoint(path, weights=None, image_size=None):
    """The model in evaluation mode, its class names, and the transform of a Pillow image to the
    model's input (3, size, size).

    weights: raw or ema, by default those that the run reports. Raises InputError.
    """
    model, classes, prepare, _ = opened(path, weights, image_size)
    return model, classes, prepare


def opened(path, weights, image_size):
    """As open_checkpoint, and the run's settings."""
    evaluation = Evaluation(path, weights)
    settings = evaluation.settings
    image_size = image_size or settings.image_size
    model = at_size(evaluation.model, image_size)
    resize = transform(image_size)
    normalize = Normalize(settings.mean, settings.std, torch.device("cpu"))

    def prepare(image):
        image = resize(to_tensor(image, upright=True))
        return normalize(image.unsqueeze(0)).squeeze(0)
    return model, evaluation.classes, prepare, settings


def images_in(paths):
    """The files among `paths`, and the images in the folders among them, including subfolders.
    Prints how many images and linked folders are left out."""
    files = []
    others = []
    for path in paths:
        if Path(path).is_file():
            files.append(path)
        elif Path(path).is_dir():
            for file in sorted(Path(path).rglob("*")):
                if file.suffix.lower() in SUFFIXES and file.is_file():  # no named pipe
                    files.append(str(file))
                elif file.suffix.lower() in OTHER_SUFFIXES or file.is_symlink():
                    others.append(str(file))
        else:
            raise InputError(f"{path} is neither a file nor a folder")
    if others:
        print(f"left out: {len(others)} images of another format than {' '.join(SUFFIXES)}, or "
              f"links to folders or to nothing; the first is {others[0]}", file=sys.stderr)
    if not files:
        raise InputError(f"no images in {paths}")
    return files


class Photo(NamedTuple):
    number: int  # among the files, from 0
    file: str
    image: Image.Image
    inputs: torch.Tensor  # (3, size, size)


def read_batch(files, numbers, prepare):
    """The images with these numbers, without those that cannot be read, which are reported."""
    batch = []
    for number in numbers:
        file = files[number]
        try:
            image = to_pil_image(read_image(file, upright=True))
        except InputError as error:
            reason = str(error).removesuffix(f": {REMEDY}")  # it speaks of data sets
            print(f"left out: {reason}", file=sys.stderr)
            continue
        batch.append(Photo(number, file, image, prepare(image)))
    return batch


def write_rows(file, mode, rows):
    """Writes, or with mode "a" appends, rows of a csv file."""
    with (explain_errors(file, WRITE_REMEDY),
          open(file, mode, encoding="utf-8", errors="surrogateescape", newline="") as lines):
        csv.writer(lines).writerows(rows)  # surrogateescape: any file name can be written


def print_labels(file, found, args):
    """found: the labels that are printed, and their scores."""
    if args.json:
        rounded = {name: round(score, 4) for name, score in found.items()}
        print(json.dumps({"path": file, "labels": rounded}))
    elif found:
        texts = [f"{name} {score:.2f}" for name, score in found.items()]
        print(f"{file}: {', '.join(texts)}")
    else:
        print(f"{file}: no label above the threshold")


def true_labels(file, classes):
    """--labels: absolute path of an image -> its targets (K,), 1, 0 or -1 (unknown), as in the csv
    files of a data set. Raises InputError."""
    with explain_errors(file, "a csv file in the form of train.csv is needed, with the classes of "
                              "the model; its paths are relative to its folder"):
        table = read_table(file, Path(file).parent)
        if table.columns == ["labels"]:
            for number, names in zip(table.numbers, table.values):
                if names - set(classes):
                    raise ValueError(f"row {number}: the model has no {names - set(classes)}")
            targets = multi_hot(table.values, classes)  # (N, K)
        else:
            lacking = set(classes) - set(table.columns)
            if lacking:
                raise ValueError(f"row 1: no columns {sorted(lacking)[:5]}")
            columns = [table.columns.index(name) for name in classes]
            targets = table.values[:, columns]
    paths = [os.path.abspath(path) for path in table.paths]
    boxes = sum("::" in path for path in paths)
    if boxes:
        print(f"left out: {boxes} rows of {file}, which are boxes: images are shown whole",
              file=sys.stderr)
    return dict(zip(paths, targets))


def with_row(files, truth, table):
    """The files that have labels in `truth`. Prints how many are left out. Raises InputError."""
    found = [file for file in files if os.path.abspath(file) in truth]
    if not found:
        raise InputError(f"{table} has no row for any of the images, {files[0]} first: its paths "
                         "are relative to its folder")
    if len(found) < len(files):
        print(f"left out: {len(files) - len(found)} images without a row in {table}",
              file=sys.stderr)
    return found


def verdict(predicted, target):
    """What a caption says of a label. target: 1, 0, -1 or, without --labels, None."""
    if target == 1:
        return "right" if predicted else "missed"
    if target == 0 and predicted:
        return "wrong"
    if not predicted:
        return "below threshold"
    return ""


def draw(photo, maps, scores, order, labels, targets, classes, args):
    """Writes a picture of the maps of `labels`, of the three highest labels and of missed ones.

    maps (..., K, h, w); scores (K,); order (K,): the labels, highest first; targets (K,) or None.
    """
    drawn = []
    verdicts = []
    for k in order:
        target = None if targets is None else targets[k]
        if k in labels or k in order[:3] or target == 1:
            drawn.append(k)
            verdicts.append(verdict(k in labels or args.top, target))
    names = [classes[k] for k in drawn]
    maps = maps[..., drawn, :, :].cpu().float()
    sheet = contact_sheet(photo.image, maps, np.array(scores)[drawn], names, verdicts,
                          Path(photo.file).name, args.tile, args.each_head)
    name = Path(photo.file).stem[:50]  # a file name has at most 255 bytes
    with explain_errors(args.heatmaps, "make room there"):
        sheet.save(Path(args.heatmaps, f"{photo.number:05}-{name}.png"))


def command_line(argv):
    """The flags, and the files to read. Tries the places to write to. Raises InputError."""
    parser = checkpoint_parser("Labels, scores and heat maps of images.")
    flag = parser.add_argument
    flag("images", nargs="+", metavar="IMAGE_OR_FOLDER",
         help="files, and folders of images")
    choice = parser.add_mutually_exclusive_group()
    choice.add_argument("--threshold", default="0.5",
                        help="a number, or a file from python -m tools.thresholds")
    choice.add_argument("--top", type=integer(1), metavar="K",
                        help="the K highest labels, instead of those above the threshold")
    flag("--image-size", type=integer(1), help="default: the size used in training")
    flag("--batch-size", type=integer(1), help="default: 16 on a GPU, 1 on a CPU")
    flag("--json", action="store_true", help="print a JSON object per line")
    flag("--csv", metavar="FILE", help="write the scores of all classes, a row per image")
    flag("--heatmaps", metavar="DIR", help="draw each image, and maps of its labels and top three")
    flag("--labels", metavar="FILE", help="--heatmaps: only of images in this csv, such as "
         "ROOT/test.csv; captions say which labels are right, wrong or missed")
    flag("--tile", type=integer(32), default=480, help="--heatmaps: width of a tile, in pixels")
    flag("--each-head", action="store_true", help="--heatmaps: a map for each layer and head")
    args = parser.parse_args(argv)
    if args.each_head and not args.heatmaps:
        parser.error("--each-head goes with --heatmaps")
    if args.labels and not args.heatmaps:
        parser.error("--labels goes with --heatmaps")
    if args.labels and args.top:
        parser.error("--labels compares the labels above the threshold: leave --top out")
    files = images_in(args.images)
    check_output(args.csv, [args.checkpoint, args.threshold, args.labels, *files], replaced=True)
    if args.heatmaps:
        with explain_errors(args.heatmaps, "choose another place to write to"):
            Path(args.heatmaps).mkdir(parents=True, exist_ok=True)
            if list(Path(args.heatmaps).glob("*.png")):
                raise FileExistsError("it holds images already")
    return args, files


@torch.inference_mode()
def main(argv=None):
    """Returns whether an image could not be read."""
    args, files = command_line(argv)
    model, classes, prepare, settings = opened(args.checkpoint, args.weights, args.image_size)
    thresholds = threshold_logits(args.threshold, classes)
    if args.heatmaps and not hasattr(model, "attention"):
        raise InputError(f"--heatmaps: the model of {args.checkpoint} has no `attention`, which "
                         "the top of train.py describes: add it, or leave out --heatmaps")
    truth = {}
    if args.labels:
        truth = true_labels(args.labels, classes)
        files = with_row(files, truth, args.labels)
    device = distributed.start()  # already started: this returns the device
    amp_dtype = distributed.autocast_dtype(device, settings.amp)
    model.to(device, memory_format=torch.channels_last)
    batch_size = args.batch_size
    if batch_size is None:
        batch_size = 1 if device.type == "cpu" else 16
    if args.csv:
        part = f"{args.csv}.part"  # becomes FILE at the end, so FILE is never half
        write_rows(part, "w", [["image", *classes]])

    done = 0
    for begin in range(0, len(files), batch_size):
        end = min(begin + batch_size, len(files))
        batch = read_batch(files, range(begin, end), prepare)
        if not batch:
            continue
        inputs = torch.stack([photo.inputs for photo in batch]).to(device)  # (B, 3, size, size)
        with torch.autocast(device.type, amp_dtype, enabled=amp_dtype is not None):  # as eval.py
            if args.heatmaps:
                logits, maps = model.attention(inputs)  # maps (B, ..., K, h, w)
            else:
                logits = model(inputs)
        logits = logits.cpu().double()  # (B, K); Apple's GPUs have no float64
        scores = logits.sigmoid().tolist()
        logits = logits.numpy()
        for i, photo in enumerate(batch):
            if np.isnan(logits[i]).any():
                raise InputError(f"{photo.file} has the score nan: the model of {args.checkpoint} "
                                 "is broken; train it with a lower --lr or --amp off")
            order = np.argsort(-logits[i])
            if args.top:
                labels = order[:args.top]
            else:
                labels = order[logits[i, order] > thresholds[order]]
            found = {classes[k]: scores[i][k] for k in labels}
            print_labels(photo.file, found, args)
            if args.heatmaps:
                targets = truth.get(os.path.abspath(photo.file))
                draw(photo, maps[i], scores[i], order, labels, targets, classes, args)
        if args.csv:
            rows = [[photo.file, *row] for photo, row in zip(batch, scores)]
            write_rows(part, "a", rows)
        done += len(batch)
    if args.csv:
        with explain_errors(args.csv, WRITE_REMEDY):
            os.replace(part, args.csv)
    return done < len(files)


if __name__ == "__main__":
    with distributed.program("a smaller --batch-size or --image-size needs less"):
        sys.exit(main())
