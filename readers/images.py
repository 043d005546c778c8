"""Reads the image that a path names: a file, a box in it (FILE::x,y,w,h), or scene:SEED/NUMBER.

Transparent pixels are shown on white. Of 16 bits, the high byte counts: an image that uses only 12
of them is nearly black, and `python -m tools.check --verify` says so.
"""
import math
import os
import re

import numpy as np
import torch
from PIL import ExifTags, Image
from torchvision.transforms import v2

from lib.errors import explain_errors
from readers import scenes

try:  # torchvision will remove it; Pillow gives the same values in twice the time
    from torchvision.io import decode_jpeg
except ImportError:
    decode_jpeg = None

REMEDY = "replace or remove it"  # data.py, which knows of data sets, says more


def read_image(path, upright=False, remedy=REMEDY):
    """uint8 (3, H, W), RGB. `upright` applies EXIF rotation, which the released code ignores; a box
    is measured in the rotated image.

    Raises InputError.
    """
    if path.startswith("scene:"):
        return torch.from_numpy(scenes.draw(path)).permute(2, 0, 1)
    file, _, box = path.partition("::")
    with explain_errors(file, remedy):
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
        orientation = orientation_of(image, upright)
    content = torch.from_numpy(np.fromfile(file, np.uint8))
    try:
        pixels = decode_jpeg(content)
    except RuntimeError as error:  # its text names a file inside torchvision
        raise ValueError("the JPEG file is damaged or incomplete") from error
    return turn(pixels, orientation)


def orientation_of(image, upright):
    """How a Pillow image is turned, by EXIF or XMP as Pillow reads them: 1 (not at all) to 8.
    Torchvision's decoder reads other values in some files, so it is not asked."""
    if not upright:
        return 1
    try:
        return image.getexif().get(ExifTags.Base.Orientation, 1)
    except (SyntaxError, ValueError):  # Pillow's errors for a damaged block, which says nothing
        return 1


def turn(pixels, orientation):
    """An image (3, H, W), turned as ImageOps.exif_transpose does it: for 5 to 8, (3, W, H)."""
    flips = {2: [2], 3: [1, 2], 4: [1], 5: [], 6: [2], 7: [1, 2], 8: [1]}
    if orientation not in flips:
        return pixels
    if orientation >= 5:
        pixels = pixels.transpose(1, 2)
    return pixels.flip(flips[orientation])


def to_tensor(image, upright):
    """A Pillow image as uint8 (3, H, W), RGB. Raises ValueError."""
    image.load()  # Pillow turns a TIFF file itself, and then says that it is upright
    orientation = orientation_of(image, upright)
    if image.mode in ("I", "F"):
        raise ValueError("32-bit pixels, as Pillow reads them, have no defined white level: save "
                         "it as a PNG file with 8 or 16 bits")
    if image.mode.startswith("I;16"):  # Pillow would clip at 255: take the high byte
        image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    if image.has_transparency_data:  # the colors of transparent pixels are arbitrary
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    pixels = torch.from_numpy(np.array(image.convert("RGB"))).permute(2, 0, 1)
    return turn(pixels, orientation)


def has_16_bits(path):
    """Whether a file stores 16 bits per color. Pillow keeps only the high byte of some of them."""
    file, _, _ = path.partition("::")
    if file.startswith("scene:"):
        return False
    with Image.open(file) as image:
        return re.search("I;16|[ABX];16[BLN]", f"{image.mode} {image.tile}") is not None


def box_of(text):
    """The box "x,y,w,h" in whole pixels, rounded outward. Raises ValueError."""
    try:
        x, y, w, h = [float(number) for number in text.split(",")]
    except ValueError:
        raise ValueError(f"the box {text} is not four numbers x,y,w,h") from None
    if not math.isfinite(x + y + w + h) or w <= 0 or h <= 0:
        raise ValueError(f"the box {text} has no area: x,y,w,h are its upper left corner, width "
                         "and height")
    left = math.floor(x)
    top = math.floor(y)
    return left, top, math.ceil(x + w) - left, math.ceil(y + h) - top


def crop(image, box):
    """The box "x,y,w,h" in an image (3, H, W), in pixels; black outside the image."""
    x, y, w, h = box_of(box)
    inside = image[:, max(y, 0):max(y + h, 0), max(x, 0):max(x + w, 0)]
    if not inside.numel():
        raise ValueError(f"its box {box} lies outside the image")
    return v2.functional.crop(image, y, x, h, w)


def missing(paths):
    """The indices of images whose file does not exist. Each folder is listed once."""
    files_in = {}  # folder -> the names of the files in it
    lost = []
    for index, path in enumerate(paths):
        if path.startswith("scene:"):
            continue
        file, _, _ = path.partition("::")
        folder, name = os.path.split(file)
        if folder not in files_in:
            files_in[folder] = names_of_files(folder)
        # A disk may also find a name that is spelled in another way (a.JPG).
        if name not in files_in[folder] and not os.path.isfile(file):
            lost.append(index)
    return lost


def names_of_files(folder):
    """The names of the files in a folder, without links that lead nowhere; none if it cannot be
    listed."""
    try:
        with os.scandir(folder) as entries:
            return {entry.name for entry in entries if entry.is_file()}
    except (OSError, ValueError):  # ValueError: a null byte in the name
        return set()
