"""RandAugment as released with ASL, Query2Label and CPRFL. torchvision's changes images far more.

Two operations are drawn out of 15, each with a random magnitude of 1 to 9; each is applied with
probability 1/2. Random numbers are torch's.
"""
import numpy as np
import torch
from PIL import Image, ImageEnhance, ImageOps

GRAY = (128, 128, 128)


def randaugment(image):
    """uint8 (3, H, W) -> uint8 (3, H, W)."""
    operations = list(OPERATIONS.values())
    pillow_image = None  # converted only where an operation is applied
    for _ in range(2):
        if random_integer(2) == 0:
            continue
        operation, lowest, highest, signed = operations[random_integer(15)]
        magnitude = 1 + random_integer(9)
        value = lowest + (highest - lowest) * magnitude / 9
        if signed and random_integer(2) == 0:
            value = -value
        if pillow_image is None:
            pillow_image = Image.fromarray(image.permute(1, 2, 0).numpy())
        pillow_image = operation(pillow_image, value)
    if pillow_image is None:
        return image
    return torch.from_numpy(np.array(pillow_image)).permute(2, 0, 1)


def random_integer(n):
    """0, ..., n - 1"""
    return torch.randint(n, ()).item()


def invert(image, _):
    return ImageOps.invert(image)


def autocontrast(image, _):
    return ImageOps.autocontrast(image)


def equalize(image, _):
    return ImageOps.equalize(image)


def posterize(image, bits):
    return ImageOps.posterize(image, round(bits))


def solarize(image, threshold):
    return ImageOps.solarize(image, threshold)


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
    matrix = (1, value, 0, 0, 1, 0)
    return image.transform(image.size, Image.AFFINE, matrix, Image.BICUBIC, fillcolor=GRAY)


def shear_y(image, value):
    matrix = (1, 0, 0, value, 1, 0)
    return image.transform(image.size, Image.AFFINE, matrix, Image.BICUBIC, fillcolor=GRAY)


def translate_x(image, share):
    matrix = (1, 0, share * image.width, 0, 1, 0)
    return image.transform(image.size, Image.AFFINE, matrix, fillcolor=GRAY)


def translate_y(image, share):
    matrix = (1, 0, 0, 0, 1, share * image.height)
    return image.transform(image.size, Image.AFFINE, matrix, fillcolor=GRAY)


def color(image, change):
    return ImageEnhance.Color(image).enhance(1 + change)


def contrast(image, change):
    return ImageEnhance.Contrast(image).enhance(1 + change)


def sharpness(image, change):
    return ImageEnhance.Sharpness(image).enhance(1 + change)


def brightness(image, change):
    return ImageEnhance.Brightness(image).enhance(1 + change)


OPERATIONS = {  # name: (operation, its value at magnitude 0, at magnitude 9, with a random sign)
    "Invert": (invert, 0, 0, False),
    "AutoContrast": (autocontrast, 0, 0, False),
    "Equalize": (equalize, 0, 0, False),
    "Posterize": (posterize, 8, 4, False),
    "Solarize": (solarize, 256, 0, False),
    "Cutout": (small_cutout, 0, 20, False),
    "Rotate": (rotate, 0, 30, False),
    "ShearX": (shear_x, 0, 0.3, True),
    "ShearY": (shear_y, 0, 0.3, True),
    "TranslateX": (translate_x, 0, 150 / 331, True),
    "TranslateY": (translate_y, 0, 150 / 331, True),
    "Color": (color, 0, 0.9, True),
    "Contrast": (contrast, 0, 0.9, True),
    "Sharpness": (sharpness, 0, 0.9, True),
    "Brightness": (brightness, 0, 0.9, True),
}
