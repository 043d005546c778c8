"""What a path of an image means: a file, a box of it (FILE::x,y,w,h), or a scene:SEED/NUMBER."""
import os

import numpy as np
import torch
from PIL import ExifTags, Image, ImageOps

from sets import scenes
from sets.table import reading

try:  # torchvision will remove it; Pillow gives the same values in twice the time
    from torchvision.io import decode_jpeg
except ImportError:
    decode_jpeg = None


def read_image(path, upright=False):
    """uint8 (3, H, W), RGB. `upright` applies EXIF rotation, which the released code ignores."""
    if path.startswith("scene:"):
        return torch.from_numpy(scenes.draw(path)[0]).permute(2, 0, 1)
    file, _, box = path.partition("::")
    with reading(file, "`python data.py --verify` lists such images; replace them, or take them "
                       "off the list"):
        image = decode(file, upright)
        if not box:
            return image
        try:
            x, y, w, h = map(int, box.split(","))
        except ValueError:
            raise ValueError(f"its box {box!r} is not x,y,w,h in pixels") from None
        image = image[:, max(y, 0):max(y + h, 0), max(x, 0):max(x + w, 0)]
        if not image.numel():
            raise ValueError(f"its box {box} lies outside the image")
        return image


def decode(file, upright):
    """Opened by Pillow, which refuses images over its limit of 179 megapixels."""
    with Image.open(file) as image:
        turned = upright and image.getexif().get(ExifTags.Base.Orientation, 1) != 1
        if decode_jpeg and image.format == "JPEG" and image.mode == "RGB" and not turned:
            return decode_jpeg(torch.from_numpy(np.fromfile(file, np.uint8)))
        return pixels(image, turned)


def pixels(image, upright):
    """A Pillow image as uint8 (3, H, W), RGB. Raises ValueError."""
    image = ImageOps.exif_transpose(image) if upright else image
    if image.mode in ("I", "F"):
        raise ValueError("32-bit pixels have no defined white: save it with 8 or 16 bits")
    if image.mode.startswith("I;16"):  # Pillow would clip at 255: take the high byte
        image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    return torch.from_numpy(np.array(image.convert("RGB"))).permute(2, 0, 1)


def missing(paths):
    """The indices of images whose file does not exist. Each folder is listed once."""
    parts = [os.path.split(path.split("::")[0]) for path in paths]
    there = {folder: set(os.listdir(folder)) if os.path.isdir(folder) else ()
             for folder in {folder for folder, _ in parts}}
    return [i for i, (folder, file) in enumerate(parts)
            if file not in there[folder] and not folder.startswith("scene:")]
