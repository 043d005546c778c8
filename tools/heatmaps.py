"""Heat maps on an image, as a contact sheet.

A model's `attention` gives maps (..., K, h, w). Their units differ from method to method: attention
sums to 1 over the cells, class activation maps are scores. So the heat of a cell is

    (its value - mean of the map) / (maximum - mean) * probability of the label

It says where the model looks more than on average, and its peak is the label's probability. Cells
below the mean have no heat. So all maps have one scale, from 0 to 1: an unsure label is pale. An
outline, at half of the map's peak, shows where a pale one lies.
"""
import math

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageDraw, ImageFont
from torchvision.transforms.v2.functional import pil_to_tensor, to_pil_image
from torchvision.utils import make_grid

COLUMNS = 4  # the image and three labels
# The colors of heat differ in brightness, too, for readers who can't tell red from green.
LOW = (1.0, 0.0, 0.6)  # pink, which few photographs have; transparent at heat 0
HIGH = (1.0, 0.9, 0.2)  # yellow
OPACITY = 0.75  # at heat 1: the object stays visible
NOISE = 0.1  # below this probability, a map is mostly noise and gets no outline
VERDICTS = {"right": "#007a50", "wrong": "#c04000", "missed": "#0060a8",
            "below threshold": "#909090"}


def contact_sheet(image, maps, scores, names, verdicts, title="", width=480, each_head=False):
    """A Pillow image -> a Pillow image with it, an overlay for each label, and a legend.

    maps (K, h, w), or (..., heads, K, h, w), whose mean is drawn; scores (probabilities), names of
    the labels and verdicts, of VERDICTS or "": K of each; title: the caption of the image; width:
    of a tile, in pixels. `each_head`: a row per label, with an overlay for each layer and head.
    """
    scale = min(width / image.width, 1.5 * width / image.height)  # a tall image fits a screen
    size = (scale * image.width, scale * image.height)
    image = image.resize([max(round(side), 16) for side in size])  # a strip is made wider
    captions = [f"{name} {score:.2f}" for name, score in zip(names, scores)]
    tiles = []
    if each_head:
        heads = maps.shape[:-3]
        columns = 1 + heads.numel()
        for k, (caption, verdict) in enumerate(zip(captions, verdicts)):
            tiles.append(tile(image, f"{caption} in {title}", width, verdict))
            for index in np.ndindex(heads):
                picture = overlay(image, maps[index][k], scores[k])
                tiles.append(tile(picture, head_name(index), width))
    else:
        rows = math.ceil((1 + len(scores)) / COLUMNS)
        columns = math.ceil((1 + len(scores)) / rows)  # without gaps: 5 tiles are 3 and 2
        mean = maps[None].flatten(0, -4).mean(0)
        tiles.append(tile(image, title, width))
        for heat, score, caption, verdict in zip(mean, scores, captions, verdicts):
            tiles.append(tile(overlay(image, heat, score), caption, width, verdict))
    grid = make_grid(tiles, columns, padding=0, pad_value=255)  # (3, height, columns * tile width)

    h, w = maps.shape[-2:]
    lines = [f"Heat: its peak is the label's score. The map has {h} x {w} cells.",
             f"Outline: half of the peak; none if the score is below {NOISE}."]
    if {"right", "wrong", "missed"} & set(verdicts):
        lines.append("missed: true, below the threshold. Verdicts are on labels, not places.")
    return to_pil_image(torch.cat([grid, legend(lines, grid.shape[-1], width)], 1))


def head_name(index):
    """(0, 1) -> "layer 1, head 2" and (1,) -> "head 2". Other shapes: "map 1 1 2"."""
    numbers = [i + 1 for i in index]
    if len(numbers) == 1:
        return f"head {numbers[0]}"
    if len(numbers) == 2:
        return f"layer {numbers[0]}, head {numbers[1]}"
    return " ".join(map(str, ["map", *numbers]))


def tile(picture, caption, width, verdict=""):
    """(3, height, width + 16): the picture, and under it a line of text and the colored verdict."""
    size = max(width // 20, 12)
    font = ImageFont.load_default(size)
    canvas = Image.new("RGB", (width + 16, picture.height + 5 * size // 2), "white")
    canvas.paste(picture)
    pen = ImageDraw.Draw(canvas)
    middle = picture.height + size
    caption = caption.encode("latin-1", "backslashreplace").decode("latin-1")  # the font's letters
    pen.text((2, middle), caption, "black", font, anchor="lm")
    if verdict:
        left = width - size // 2 - pen.textlength(verdict, font)
        box = (left - size // 2, middle - 3 * size // 4, width, middle + 3 * size // 4)
        pen.rectangle(box, VERDICTS[verdict])
        pen.text((left, middle), verdict, "white", font, anchor="lm")
    return pil_to_tensor(canvas)


def legend(lines, width, tile_width):
    """(3, height, width): the colors of heat from 0 to 1, and lines of text."""
    size = max(tile_width // 24, 10)
    font = ImageFont.load_default(size)
    canvas = Image.new("RGB", (width, 2 * size * len(lines)), "white")
    pen = ImageDraw.Draw(canvas)
    heat = torch.linspace(0, 1, tile_width // 2).expand(size, -1)
    bar = to_pil_image(colored(torch.ones(3, *heat.shape), heat))
    pen.text((2, size), "0", "black", font, anchor="lm")
    canvas.paste(bar, (size, size // 2))
    pen.text((bar.width + 4 * size // 3, size), "1", "black", font, anchor="lm")
    for i, line in enumerate(lines):
        pen.text((bar.width + 3 * size, size + 2 * i * size), line, "black", font, anchor="lm")
    return pil_to_tensor(canvas)


def overlay(image, heat, score):
    """The image under the colors of a map `heat` (h, w); score: the label's probability."""
    size = (image.height, image.width)
    smooth = F.interpolate(heat[None, None], size, mode="bicubic").squeeze((0, 1))
    smooth = smooth.clamp(heat.min(), heat.max())  # bicubic overshoots
    mean = heat.mean()
    spread = (heat.max() - mean).clamp(min=1e-6)  # a constant map has no heat, nor have traces
    relative = (smooth - mean).clamp(min=0) / spread  # (height, width), from 0 to 1

    # A little grayer and darker, so that a red bus isn't taken for heat, nor snow hides the yellow.
    gray = image.convert("L").convert("RGB")
    photograph = 0.9 * pil_to_tensor(Image.blend(image, gray, 0.2)) / 255  # (3, height, width)
    picture = colored(photograph, float(score) * relative)

    if score >= NOISE:
        picture = outlined(picture, relative > 0.5, strength=0.4 + 0.6 * float(score))
    return to_pil_image(picture)


def colored(photograph, heat):
    """A photograph (3, height, width) under the colors of heat (height, width), all from 0 to 1."""
    low = torch.tensor(LOW)[:, None, None]
    high = torch.tensor(HIGH)[:, None, None]
    colors = torch.lerp(low, high, heat ** 2)  # yellow only near heat 1
    return torch.lerp(photograph, colors, OPACITY * heat)


def outlined(picture, inside, strength):
    """A picture (3, height, width) with a line around a mask (height, width), white on its outer
    and black on its inner side: one of the two is seen on any ground."""
    inside = inside.float()
    line = max(picture.shape[-1] // 240, 1)  # its width in pixels
    white = widened(inside, line) - inside
    black = widened(1 - inside, line) - (1 - inside)
    picture = torch.lerp(picture, torch.tensor(1.0), strength * white)
    return torch.lerp(picture, torch.tensor(0.0), strength * black)


def widened(shape, line):
    """A mask (height, width), `line` pixels larger on each side."""
    return F.max_pool2d(shape[None], 2 * line + 1, stride=1, padding=line).squeeze(0)
