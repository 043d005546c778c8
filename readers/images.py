"""Reads the image that a path names: a file, a box in it (FILE::x,y,w,h), or scene:SEED/NUMBER."""
import os
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps
from torchvision.transforms import v2

from lib.errors import explain_errors
from readers import scenes

try:  # torchvision will remove it; Pillow gives the same values in twice the time
    from torchvision.io import decode_jpeg
except ImportError:
    decode_jpeg = None

REMEDY = ("replace or remove it; `python -m tools.check --data NAME --root ROOT --verify` lists "
          "all such images")


def read_image(path, upright=False):
    """uint8 (3, H, W), RGB. `upright` applies EXIF rotation, which the released code ignores.

    Raises InputError.
    """
    if path.startswith("scene:"):
        return torch.from_numpy(scenes.draw(path)).permute(2, 0, 1)
    file, _, box = path.partition("::")
    with explain_errors(file, REMEDY):
        image = read_file(file, upright)
        if box:
            image = crop(image, box)
    return image


def read_file(file, upright):
    """Pillow opens the file and rejects images over its limit of 179 megapixels."""
    with Image.open(file) as image:
        plain_jpeg = image.format == "JPEG" and image.mode == "RGB"
        if not plain_jpeg or decode_jpeg is None:
            return to_tensor(image, upright)
    content = torch.from_numpy(np.fromfile(file, np.uint8))
    try:
        return decode_jpeg(content, apply_exif_orientation=upright)
    except RuntimeError as error:  # its text names a file inside torchvision
        raise ValueError("the JPEG file is damaged or incomplete") from error


def to_tensor(image, upright):
    """A Pillow image as uint8 (3, H, W), RGB. Raises ValueError."""
    if upright:
        image = ImageOps.exif_transpose(image)
    if image.mode in ("I", "F"):
        raise ValueError("32-bit pixels have no defined white level: save it with 8 or 16 bits")
    if image.mode.startswith("I;16"):  # Pillow would clip at 255: take the high byte
        image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    return torch.from_numpy(np.array(image.convert("RGB"))).permute(2, 0, 1)


def crop(image, box):
    """The box "x,y,w,h" in an image (3, H, W), in pixels; black outside the image."""
    x, y, w, h = [int(number) for number in box.split(",")]
    inside = image[:, max(y, 0):max(y + h, 0), max(x, 0):max(x + w, 0)]
    if not inside.numel():
        raise ValueError(f"its box {box} lies outside the image")
    return v2.functional.crop(image, y, x, h, w)


def missing(paths):
    """The indices of images whose file does not exist. Each folder is listed once."""
    names_in = {}  # folder -> the names in it
    lost = []
    for index, path in enumerate(paths):
        if path.startswith("scene:"):
            continue
        file, _, _ = path.partition("::")
        folder, name = os.path.split(file)
        if folder not in names_in:
            names_in[folder] = {entry.name for entry in Path(folder).glob("*")}
        if name not in names_in[folder]:
            lost.append(index)
    return lost
