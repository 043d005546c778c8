"""Heat maps on an image, as a contact sheet.

A model's `attention` gives maps (..., K, h, w); each is resized to the image.
"""
import numpy as np
import torch.nn.functional as F
from PIL import Image, ImageDraw, ImageFont, ImageOps
from torchvision.transforms.v2.functional import pil_to_tensor, to_pil_image
from torchvision.utils import make_grid

WIDTH = 224  # of a tile, in pixels
CAPTION = 22  # height of the line under a tile


def contact_sheet(image, maps, captions, each_head=False):
    """A Pillow image -> a Pillow image with it and an overlay for each class.

    maps (K, h, w), or (..., heads, K, h, w), whose mean is drawn; captions: one per class.
    `each_head`: a row per class, with an overlay for each of its layers and heads.
    """
    height = round(WIDTH * image.height / image.width)
    image = image.resize((WIDTH, min(max(height, 16), 4 * WIDTH)))  # a strip is squashed
    columns = 6
    tiles = []
    if each_head:
        heads = maps.shape[:-3]
        columns = 1 + heads.numel()
        for k, caption in enumerate(captions):
            tiles.append(tile(image, caption))
            for index in np.ndindex(heads):
                number = ".".join(str(i + 1) for i in index)  # layer.head
                picture = overlay(image, maps[index][k])
                tiles.append(tile(picture, number))
    else:
        mean = maps[None].flatten(0, -4).mean(0)
        tiles.append(tile(image, ""))
        for heat, caption in zip(mean, captions):
            tiles.append(tile(overlay(image, heat), caption))
    if not tiles:  # no class
        tiles.append(tile(image, ""))
    return to_pil_image(make_grid(tiles, columns, padding=0, pad_value=255))


def tile(picture, caption):
    """(3, height, width): the picture with a line of text under it."""
    canvas = Image.new("RGB", (WIDTH + 4, picture.height + CAPTION), "white")
    canvas.paste(picture)
    caption = caption.encode("latin-1", "backslashreplace").decode("latin-1")  # the font's letters
    pen = ImageDraw.Draw(canvas)
    pen.text((2, picture.height + 2), caption, "black", ImageFont.load_default(14))
    return pil_to_tensor(canvas)


def overlay(image, heat):
    """The image in gray under the map `heat` (h, w), whose values from minimum to maximum have the
    colors of viridis."""
    size = (image.height, image.width)
    smooth = F.interpolate(heat[None, None], size, mode="bicubic").squeeze((0, 1))
    heat = smooth.clamp(heat.min(), heat.max())  # bicubic overshoots, in dark rings around a peak
    heat = heat - heat.min()
    heat = heat / heat.max().clamp(min=1e-12)
    levels = to_pil_image((255 * heat).byte())
    colors = ImageOps.colorize(levels, black="#440154", white="#fde725", mid="#21918c")
    return Image.blend(image.convert("L").convert("RGB"), colors, 0.6)
