"""Attention maps: heat maps on images, and the pointing game.

A model's `attention` gives maps (..., K, H, W). Each cell is drawn at the center of its receptive
field, which the strides and the padding of a ResNet shift by up to half a cell.
"""
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageDraw, ImageFont, ImageOps

from data import reading

WIDTH, CAPTION = 224, 22  # of a tile, in pixels


def view_offset(model, size):
    """The distance from a cell's own center to the center of its receptive field, (x, y) in
    fractions of the image. From the gradient of an untrained model: a trained one's varies with the
    image."""
    images = torch.rand(8, 3, size, size, generator=torch.Generator().manual_seed(0))
    x = model.eval().features(images.requires_grad_())
    H, W = x.shape[-2:]
    center = x[..., (H - 1) // 2:H // 2 + 1, (W - 1) // 2:W // 2 + 1].abs().sum()
    seen = torch.autograd.grad(center, images)[0].abs().sum((0, 1))  # (size, size)
    place = (torch.arange(size) + 0.5) / size - 0.5
    return [((seen.sum(axis) * place).sum() / seen.sum()).item() for axis in (0, 1)]


def enlarge(maps, height, width, offset):
    """Maps (N, h, w) -> (N, height, width) in the image's own coordinates."""
    theta = torch.tensor([[1.0, 0, -2 * offset[0]], [0, 1, -2 * offset[1]]]).expand(len(maps), 2, 3)
    grid = F.affine_grid(theta, (len(maps), 1, height, width), align_corners=False)
    return F.grid_sample(maps[:, None].cpu().float(), grid, "bicubic", "border", False)[:, 0]


def pointing(attention, found, offset, targets, columns):
    """The pointing game: how often, in percent, the map of a class that is present has its maximum
    in a box of that class; maps are averaged over layers and heads. `columns`: the classes' numbers
    in the boxes. `small`: all boxes are small."""
    hits = {"pointing": [], "pointing_small": []}
    for i, maps in attention:
        present = np.flatnonzero(targets[i] == 1)
        if not len(present):
            continue
        maps = maps.flatten(0, -4).mean(0)[present] if maps.ndim > 3 else maps[present]
        side = 8 * maps.shape[-1]
        for k, best in zip(present, enlarge(maps, side, side, offset).flatten(1).argmax(1)):
            y, x = (best // side + 0.5) / side, (best % side + 0.5) / side
            own = [box for box in found[i] if box[0] == columns[k]]
            hit = any(x0 <= x <= x1 and y0 <= y <= y1 for _, x0, y0, x1, y1, _ in own)
            for name in hits if all(box[-1] for box in own) else ["pointing"]:
                hits[name].append(hit)
    return {name: 100 * float(np.mean(hit)) for name, hit in hits.items() if hit} | {
        f"{name}_pairs": len(hit) for name, hit in hits.items()}


def overlay(image, one, offset):
    """The image in gray under the map (h, w) in viridis' colors, from its minimum to its
    maximum."""
    one = enlarge(one[None], image.height, image.width, offset)[0]
    one = 255 * (one - one.min()) / (one.max() - one.min()).clamp(min=1e-12)
    colors = ImageOps.colorize(Image.fromarray(one.byte().numpy()), "#440154", "#fde725", "#21918c")
    return Image.blend(image.convert("L").convert("RGB"), colors, 0.6)


def draw_heatmaps(folder, attention, data, scores, offset, threshold, each_head):
    """A contact sheet per image, NUMBER-NAME.png: the image, then an overlay for each class above
    the threshold. `each_head`: a row per class, with an overlay for each of its layers and
    heads."""
    thresholds = np.broadcast_to(threshold, len(data.classes))
    for i, maps in attention:
        image = Image.fromarray(data.image(i).permute(1, 2, 0).numpy())
        height = round(WIDTH * image.height / image.width)
        image = image.resize((WIDTH, min(max(height, 1), 4 * WIDTH)))  # a strip is squashed
        maps = maps if maps.ndim > 3 else maps[None]  # (..., heads, K, H, W)
        rows = [[(image, "")]]
        for k in np.argsort(-scores[i]):
            name, own = f"{data.classes[k]} {scores[i, k]:.2f}", maps[..., k, :, :]
            if scores[i, k] > thresholds[k] and each_head:
                rows.append([(image, name)] + [
                    (overlay(image, own[at], offset), ".".join(str(n + 1) for n in at))
                    for at in np.ndindex(*own.shape[:-2])])
            elif scores[i, k] > thresholds[k]:
                rows[0].append((overlay(image, own.flatten(0, -3).mean(0), offset), name))
        rows = rows[1:] if len(rows) > 1 else [rows[0][n:n + 6] for n in range(0, len(rows[0]), 6)]
        name = Path(data.paths[i].split("::")[0]).stem
        with reading(folder, "make room there"):
            sheet(rows, image.height + CAPTION).save(folder / f"{i:05}-{name}.png")


def sheet(rows, height):
    """Rows of (tile, caption) on a white background."""
    width, font = WIDTH + 4, ImageFont.load_default(14)
    result = Image.new("RGB", (width * len(rows[0]), height * len(rows)), "white")
    for r, row in enumerate(rows):
        for c, (tile, caption) in enumerate(row):
            result.paste(tile, (width * c, height * r))
            ImageDraw.Draw(result).text((width * c + 2, height * (r + 1) - CAPTION + 2), caption,
                                        "black", font)
    return result
