"""RandAugment as released with ASL, Query2Label and CPRFL. torchvision's changes images far more.

Two operations are drawn out of 15, each with a random magnitude of 1 to 9; each is applied with
probability 1/2. Random numbers are torch's.
"""
import torch
from PIL import Image, ImageEnhance, ImageOps
from torchvision.transforms.v2.functional import pil_to_tensor, to_pil_image

GRAY = (128, 128, 128)


def randaugment(image):
    """uint8 (3, H, W) -> uint8 (3, H, W)."""
    image = to_pil_image(image)
    for _ in range(2):
        if random_integer(2) == 0:
            continue
        operation, strongest, signed = OPERATIONS[random_integer(15)]
        magnitude = 1 + random_integer(9)
        value = strongest * magnitude / 9
        if signed and random_integer(2) == 0:
            value = -value
        image = operation(image, value)
    return pil_to_tensor(image)


def random_integer(n):
    """0, ..., n - 1"""
    return torch.randint(n, ()).item()


def invert(image, _):
    return ImageOps.invert(image)


def autocontrast(image, _):
    return ImageOps.autocontrast(image)


def equalize(image, _):
    return ImageOps.equalize(image)


def posterize(image, lost_bits):
    return ImageOps.posterize(image, round(8 - lost_bits))


def solarize(image, value):
    return ImageOps.solarize(image, 256 - value)


def small_cutout(image, side):
    """A gray square, its center anywhere in the image."""
    side = round(side)
    x = random_integer(image.width) - side // 2
    y = random_integer(image.height) - side // 2
    image.paste((125, 122, 113), (x, y, x + side, y + side))
    return image


def rotate(image, degrees):
    return image.rotate(degrees, fillcolor=GRAY)


def shear_x(image, value):
    return affine(image, (1, value, 0, 0, 1, 0), Image.BICUBIC)


def shear_y(image, value):
    return affine(image, (1, 0, 0, value, 1, 0), Image.BICUBIC)


def translate_x(image, share):
    return affine(image, (1, 0, share * image.width, 0, 1, 0))


def translate_y(image, share):
    return affine(image, (1, 0, 0, 0, 1, share * image.height))


def affine(image, matrix, resample=Image.NEAREST):
    return image.transform(image.size, Image.AFFINE, matrix, resample, fillcolor=GRAY)


def color(image, change):
    return ImageEnhance.Color(image).enhance(1 + change)


def contrast(image, change):
    return ImageEnhance.Contrast(image).enhance(1 + change)


def sharpness(image, change):
    return ImageEnhance.Sharpness(image).enhance(1 + change)


def brightness(image, change):
    return ImageEnhance.Brightness(image).enhance(1 + change)


OPERATIONS = [  # (operation, its value at magnitude 9, whether its sign is random)
    (invert, 0, False),
    (autocontrast, 0, False),
    (equalize, 0, False),
    (posterize, 4, False),
    (solarize, 256, False),
    (small_cutout, 20, False),
    (rotate, 30, False),
    (shear_x, 0.3, True),
    (shear_y, 0.3, True),
    (translate_x, 150 / 331, True),
    (translate_y, 150 / 331, True),
    (color, 0.9, True),
    (contrast, 0.9, True),
    (sharpness, 0.9, True),
    (brightness, 0.9, True),
]
