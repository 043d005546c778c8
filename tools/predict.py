"""Labels and heat maps of images.

Run: python -m tools.predict --checkpoint OUT/last.pt IMAGE_OR_FOLDER... [--heatmaps DIR]
In Python: model, classes, transform = open_checkpoint("OUT/last.pt")
"""
import json
import sys
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torchvision.transforms.v2.functional import to_pil_image

from data import Normalize, transform
from eval import Evaluation, at_size, checkpoint_parser, threshold_logits
from lib import distributed
from lib.errors import InputError, explain_errors
from lib.settings import integer
from readers.images import REMEDY, read_image, to_tensor
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


@torch.inference_mode()
def main(argv=None):
    """Returns whether an image could not be read."""
    parser = checkpoint_parser("Labels and heat maps of images.")
    flag = parser.add_argument
    flag("images", nargs="+", metavar="IMAGE_OR_FOLDER",
         help="files, and folders of images")
    flag("--threshold", default="0.5", help="a number, or a file from python -m tools.thresholds")
    flag("--image-size", type=integer(1), help="default: the size used in training")
    flag("--json", action="store_true", help="print a JSON object per line")
    flag("--heatmaps", metavar="DIR", help="draw each image, and maps of its labels and top three")
    flag("--tile", type=integer(32), default=480, help="--heatmaps: width of a tile, in pixels")
    flag("--each-head", action="store_true", help="--heatmaps: a map for each layer and head")
    args = parser.parse_args(argv)
    if args.each_head and not args.heatmaps:
        parser.error("--each-head goes with --heatmaps")
    files = images_in(args.images)
    if args.heatmaps:
        with explain_errors(args.heatmaps, "choose another place to write to"):
            Path(args.heatmaps).mkdir(parents=True, exist_ok=True)
            if list(Path(args.heatmaps).glob("*.png")):
                raise FileExistsError("it holds images already")

    model, classes, prepare, settings = opened(args.checkpoint, args.weights, args.image_size)
    thresholds = threshold_logits(args.threshold, classes)
    if args.heatmaps and not hasattr(model, "attention"):
        raise InputError(f"--heatmaps: the model of {args.checkpoint} has no `attention`, which "
                         "the top of train.py describes: add it, or leave out --heatmaps")
    device = distributed.start()  # already started: this returns the device
    amp_dtype = distributed.autocast_dtype(device, settings.amp)
    model.to(device, memory_format=torch.channels_last)

    failed = False
    for number, file in enumerate(files):
        try:
            image = to_pil_image(read_image(file, upright=True))
        except InputError as error:
            reason = str(error).removesuffix(f": {REMEDY}")  # it speaks of data sets
            print(f"left out: {reason}", file=sys.stderr)
            failed = True
            continue
        inputs = prepare(image).unsqueeze(0).to(device)
        with torch.autocast(device.type, amp_dtype, enabled=amp_dtype is not None):  # as eval.py
            if args.heatmaps:
                logits, maps = model.attention(inputs)
            else:
                logits = model(inputs)
        logits = logits.squeeze(0).cpu().double()  # Apple's GPUs have no float64
        scores = logits.sigmoid().numpy()
        logits = logits.numpy()
        order = np.argsort(-logits)
        labels = order[logits[order] > thresholds[order]]
        texts = [f"{classes[k]} {scores[k]:.2f}" for k in labels]
        if args.json:
            found = {classes[k]: round(float(scores[k]), 4) for k in labels}
            print(json.dumps({"path": file, "labels": found}))
        elif texts:
            print(f"{file}: {', '.join(texts)}")
        else:
            print(f"{file}: no label above the threshold")
        if args.heatmaps:
            drawn = [k for k in order if k in labels or k in order[:3]]
            captions = []
            for k in drawn:
                remark = "" if k in labels else "below the threshold: "
                captions.append(f"{scores[k]:.2f} {remark}{classes[k]}")  # a long name is cut
            drawn_maps = maps.squeeze(0)[..., drawn, :, :].cpu().float()
            sheet = contact_sheet(image, drawn_maps, scores[drawn], captions, Path(file).name,
                                  args.tile, args.each_head)
            name = Path(file).stem[:50]  # a file name has at most 255 bytes
            with explain_errors(args.heatmaps, "make room there"):
                sheet.save(Path(args.heatmaps, f"{number:05}-{name}.png"))
    return failed


if __name__ == "__main__":
    with distributed.program("a smaller --image-size needs less"):
        sys.exit(main())
