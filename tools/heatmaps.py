"""Heat maps on an image, as a contact sheet.

A model's `attention` gives maps (..., K, h, w). Their units differ from method to method: attention
sums to 1 over the cells, class activation maps are scores. So the heat of a cell is

    (its value - mean of the map) / (maximum - mean) * probability of the label

It says where the model looks more than on average, and its peak is the label's probability. Cells
below the mean have no heat. So all maps have one scale, from 0 to 1: an unsure label is pale.
"""
import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageDraw, ImageFont
from torchvision.transforms.v2.functional import pil_to_tensor, to_pil_image
from torchvision.utils import make_grid

COLUMNS = 4  # the image and three labels
# The colors of heat differ in brightness, too, for readers who can't tell red from green.
LOW = (1.0, 0.1, 0.0)  # orange-red; transparent at heat 0
HIGH = (1.0, 0.9, 0.2)  # yellow
OPACITY = 0.75  # at heat 1: the object stays visible


def contact_sheet(image, maps, scores, captions, title="", width=480, each_head=False):
    """A Pillow image -> a Pillow image with it and an overlay for each label.

    maps (K, h, w), or (..., heads, K, h, w), whose mean is drawn; scores (probabilities) and
    captions: K of each; title: the caption of the image; width: of a tile, in pixels.
    `each_head`: a row per label, with an overlay for each of its layers and heads.
    """
    scale = min(width / image.width, 1.5 * width / image.height)  # a tall image fits a screen
    size = (scale * image.width, scale * image.height)
    image = image.resize([max(round(side), 16) for side in size])  # a strip is made wider
    tiles = []
    if each_head:
        heads = maps.shape[:-3]
        columns = 1 + heads.numel()
        for k, caption in enumerate(captions):
            tiles.append(tile(image, f"{caption} in {title}", width))
            for index in np.ndindex(heads):
                picture = overlay(image, maps[index][k], scores[k])
                tiles.append(tile(picture, head_name(index), width))
    else:
        columns = COLUMNS
        mean = maps[None].flatten(0, -4).mean(0)
        tiles.append(tile(image, title, width))
        for heat, score, caption in zip(mean, scores, captions):
            tiles.append(tile(overlay(image, heat, score), caption, width))
    return to_pil_image(make_grid(tiles, columns, padding=0, pad_value=255))


def head_name(index):
    """(0, 1) -> "layer 1, head 2" and (1,) -> "head 2". Other shapes: "map 1 1 2"."""
    numbers = [i + 1 for i in index]
    if len(numbers) == 1:
        return f"head {numbers[0]}"
    if len(numbers) == 2:
        return f"layer {numbers[0]}, head {numbers[1]}"
    return " ".join(map(str, ["map", *numbers]))


def tile(picture, caption, width):
    """(3, height, width + 8): the picture with a line of text under it."""
    font_size = max(width // 24, 12)
    canvas = Image.new("RGB", (width + 8, picture.height + 2 * font_size), "white")
    canvas.paste(picture)
    caption = caption.encode("latin-1", "backslashreplace").decode("latin-1")  # the font's letters
    pen = ImageDraw.Draw(canvas)
    pen.text((2, picture.height + 4), caption, "black", ImageFont.load_default(font_size))
    return pil_to_tensor(canvas)


def overlay(image, heat, score):
    """The image under the colors of a map `heat` (h, w); score: the label's probability."""
    size = (image.height, image.width)
    smooth = F.interpolate(heat[None, None], size, mode="bicubic").squeeze((0, 1))
    smooth = smooth.clamp(heat.min(), heat.max())  # bicubic overshoots
    mean = heat.mean()
    spread = (heat.max() - mean).clamp(min=1e-6)  # a constant map has no heat, nor have traces
    heat = float(score) * (smooth - mean).clamp(min=0) / spread  # (height, width)

    # A little grayer and darker, so that a red bus isn't taken for heat, nor snow hides the yellow.
    gray = image.convert("L").convert("RGB")
    photograph = 0.85 * pil_to_tensor(Image.blend(image, gray, 0.4)) / 255  # (3, height, width)
    low = torch.tensor(LOW)[:, None, None]
    high = torch.tensor(HIGH)[:, None, None]
    colors = torch.lerp(low, high, heat ** 2)  # yellow only near heat 1
    return to_pil_image(torch.lerp(photograph, colors, OPACITY * heat))
