"""Heat maps on an image, as a contact sheet.

A model's `attention` gives maps (..., K, h, w); each is resized to the image.
"""
import numpy as np
import torch.nn.functional as F
from PIL import Image, ImageDraw, ImageFont, ImageOps

WIDTH = 224  # of a tile, in pixels
CAPTION = 22  # height of the line under a tile


def contact_sheet(image, maps, names, scores, each_head=False):
    """A Pillow image: `image`, then an overlay for each class.

    image (3, H, W) uint8; maps (K, h, w), or (..., heads, K, h, w), of which the mean is drawn;
    names and scores of the K classes. `each_head`: a row per class, with an overlay for each of its
    layers and heads.
    """
    image = tile(image)
    rows = []
    if each_head and maps.ndim > 3:
        for k, name in enumerate(names):
            row = [(image, f"{name} {scores[k]:.2f}")]
            of_class = maps[..., k, :, :]
            for index in np.ndindex(*of_class.shape[:-2]):
                caption = ".".join(str(number + 1) for number in index)  # layer.head
                row.append((overlay(image, of_class[index]), caption))
            rows.append(row)
    else:
        maps = maps.flatten(0, -4).mean(0) if maps.ndim > 3 else maps
        tiles = [(image, "")]
        for k, name in enumerate(names):
            tiles.append((overlay(image, maps[k]), f"{name} {scores[k]:.2f}"))
        for start in range(0, len(tiles), 6):
            rows.append(tiles[start:start + 6])
    return paste(rows or [[(image, "")]], image.height + CAPTION)


def tile(image):
    """(3, H, W) uint8 -> a Pillow image of the tiles' width. A strip is squashed."""
    image = Image.fromarray(image.permute(1, 2, 0).numpy())
    height = round(WIDTH * image.height / image.width)
    return image.resize((WIDTH, min(max(height, 1), 4 * WIDTH)))


def overlay(image, heat):
    """The image in gray under the map `heat` (h, w), from its minimum to its maximum in viridis'
    colors."""
    size = (image.height, image.width)
    heat = F.interpolate(heat[None, None].float().cpu(), size, mode="bicubic", align_corners=False)
    heat = heat[0, 0]
    heat = (heat - heat.min()) / (heat.max() - heat.min()).clamp(min=1e-12)
    levels = Image.fromarray((255 * heat).byte().numpy())
    colors = ImageOps.colorize(levels, black="#440154", white="#fde725", mid="#21918c")
    return Image.blend(image.convert("L").convert("RGB"), colors, 0.6)


def paste(rows, row_height):
    """Rows of (tile, caption) on a white background."""
    font = ImageFont.load_default(14)
    column_width = WIDTH + 4
    sheet = Image.new("RGB", (column_width * len(rows[0]), row_height * len(rows)), "white")
    pen = ImageDraw.Draw(sheet)
    for r, row in enumerate(rows):
        for c, (image, caption) in enumerate(row):
            left = column_width * c
            top = row_height * r
            sheet.paste(image, (left, top))
            pen.text((left + 2, top + row_height - CAPTION + 2), caption, "black", font)
    return sheet
