"""Labels and heat maps of images.

Run: python -m tools.predict --checkpoint OUT/last.pt IMAGE_OR_FOLDER... [--heatmaps DIR]
In Python: model, classes, transform = open_checkpoint("OUT/last.pt")
"""
import argparse
import json
import os
import sys
from pathlib import Path

import numpy as np
import torch

from data import Normalize, transform
from eval import Evaluation, at_size, read_threshold
from lib.distributed import program
from lib.heatmaps import contact_sheet
from lib.settings import integer
from readers.errors import InputError, explain_errors
from readers.images import read_image, to_tensor

SUFFIXES = (".jpg", ".jpeg", ".jfif", ".jpe", ".jp2", ".png", ".webp", ".bmp", ".gif", ".tif",
            ".tiff", ".ppm", ".avif")


def open_checkpoint(path, weights=None, image_size=None):
    """The model in evaluation mode, its class names, and the transform of a Pillow image to the
    model's input (3, size, size).

    weights: raw or ema, by default those that the run reports. Raises InputError.
    """
    evaluation = Evaluation(path, weights)
    settings = evaluation.settings
    image_size = image_size or settings.image_size
    model = at_size(evaluation.model, image_size)
    resize = transform(image_size)
    normalize = Normalize(settings.mean, settings.std, torch.device("cpu"))

    def prepare(image):
        image = to_tensor(image, upright=True)
        return normalize(resize(image)[None])[0]
    return model, evaluation.classes, prepare


def images_in(paths):
    """The files among `paths` and the images in the folders among them, each once."""
    files = []
    for path in paths:
        if os.path.isdir(path):
            files += images_in_folder(path)
        elif os.path.isfile(path):
            files.append(path)
        else:
            raise InputError(f"{path} is neither a file nor a folder")
    found = {}
    for file in files:
        found.setdefault(os.path.realpath(file), os.fspath(file))
    if not found:
        raise InputError(f"no images in {', '.join(str(path) for path in paths)}")
    return list(found.values())


def images_in_folder(folder):
    """In the order of their names; sub-folders and links to folders, too."""
    files = []
    visited = set()
    for inner, subfolders, names in os.walk(folder, followlinks=True):
        subfolders.sort()
        if os.path.realpath(inner) in visited:  # a link back
            subfolders.clear()
            continue
        visited.add(os.path.realpath(inner))
        for name in sorted(names):
            file = os.path.join(inner, name)
            if name.lower().endswith(SUFFIXES) and os.path.isfile(file):  # no named pipe
                files.append(file)
    return files


@torch.inference_mode()
def main(argv=None):
    """Returns 1 where an image could not be read, else 0."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0], allow_abbrev=False)
    flag = parser.add_argument
    flag("--checkpoint", required=True, help="of train.py or tools/convert.py")
    flag("images", nargs="+", metavar="IMAGE_OR_FOLDER", help="files, and folders of images")
    flag("--threshold", default="0.5", help="a number, or a file of python -m tools.thresholds")
    flag("--weights", choices=["raw", "ema"], help="default: those that the run reports")
    flag("--image-size", type=integer(1), help="default: the size used in training")
    flag("--json", action="store_true", help="print a JSON object per line")
    flag("--heatmaps", metavar="DIR", help="draw each image and the maps of its labels")
    flag("--each-head", action="store_true", help="a map for each layer and head")
    args = parser.parse_args(argv)
    if args.each_head and not args.heatmaps:
        parser.error("--each-head goes with --heatmaps")
    files = images_in(args.images)
    if args.heatmaps:
        with explain_errors(args.heatmaps, "choose another place to write to"):
            Path(args.heatmaps).mkdir(parents=True, exist_ok=True)
            if list(Path(args.heatmaps).glob("*.png")):
                raise FileExistsError("it holds images already")

    evaluation = Evaluation(args.checkpoint, args.weights)
    settings = evaluation.settings
    classes = evaluation.classes
    thresholds = np.broadcast_to(read_threshold(args.threshold, classes), len(classes))
    size = args.image_size or settings.image_size
    model = at_size(evaluation.model, size)
    model.to(evaluation.device, memory_format=torch.channels_last)
    resize = transform(size)
    normalize = Normalize(settings.mean, settings.std, evaluation.device)

    unreadable = 0
    for number, file in enumerate(files):
        try:
            image = read_image(file, upright=True)
        except InputError as error:
            print(f"left out: {error}", file=sys.stderr)
            unreadable += 1
            continue
        logits, maps = model.attention(normalize(resize(image)[None]))
        scores = logits[0].double().sigmoid().cpu().numpy()
        labels = [k for k in np.argsort(-scores) if scores[k] > thresholds[k]]
        print_labels(file, [classes[k] for k in labels], scores[labels], args.json)
        if args.heatmaps:
            sheet = contact_sheet(image, maps[0][..., labels, :, :].cpu(),
                                  [classes[k] for k in labels], scores[labels], args.each_head)
            name = Path(file).stem[:50]  # a name may have 255 bytes
            with explain_errors(args.heatmaps, "make room there"):
                sheet.save(Path(args.heatmaps, f"{number:05}-{name}.png"))
    return int(unreadable > 0)


def print_labels(file, names, scores, as_json):
    """A line per image."""
    if as_json:
        labels = {name: round(float(score), 4) for name, score in zip(names, scores)}
        print(json.dumps({"path": file, "labels": labels}))
    else:
        labels = [f"{name} {score:.2f}" for name, score in zip(names, scores)]
        print(f"{file}: {', '.join(labels)}")


if __name__ == "__main__":
    with program():
        sys.exit(main())
