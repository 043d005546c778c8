"""Synthetic images with known labels and boxes: a data set that needs no download.

A scene has one to five small shapes of 20 classes ("red circle") among distractors: shapes in other
colors, and lines in all colors. It is drawn on demand from its seed and number; its path is
scene:SEED/NUMBER.
"""
import numpy as np
from PIL import Image, ImageChops, ImageDraw

from sets.longtail import long_tailed


def outline(corners, inner=1.0, turn=0.0):
    """The corners (n, 2) of a star in the unit circle. Every second one lies at radius `inner`."""
    angle = (np.arange(corners) + turn) * 2 * np.pi / corners
    radius = np.where(np.arange(corners) % 2, inner, 1.0)
    return np.stack([radius * np.sin(angle), -radius * np.cos(angle)], 1)


COLORS = {"red": (214, 48, 49), "green": (30, 180, 60), "blue": (40, 80, 230),
           "yellow": (235, 196, 40)}
SHAPES = {"circle": outline(16), "square": outline(4, turn=0.5), "triangle": outline(3),
          "star": outline(10, 0.42), "cross": np.array(
              [(-1, -3), (1, -3), (1, -1), (3, -1), (3, 1), (1, 1), (1, 3), (-1, 3), (-1, 1),
               (-3, 1), (-3, -1), (-1, -1)]) / 3}
CLASSES = [f"{color} {shape}" for color in COLORS for shape in SHAPES]
PALETTE = [*COLORS.values(), (150, 150, 150), (240, 240, 240), (30, 30, 30), (165, 80, 200),
           (235, 130, 60), (90, 200, 210)]  # the last six belong to no class
SIDE, GRID = 128, 6  # image side; each shape has its own cell of a GRID x GRID raster
NOISE = Image.fromarray(
    np.random.default_rng(0).integers(0, 49, (2 * SIDE, 2 * SIDE, 3), dtype=np.uint8))


def labels_of(rng):
    return rng.integers(len(CLASSES), size=rng.integers(1, 6))


def read_scenes(root, split, count=4000):
    """Classes, paths and targets (N, K)."""
    seed, count = (0, count) if split == "train" else (1, 1000)
    targets = np.zeros((count, len(CLASSES)), np.int8)
    for i in range(count):
        targets[i, labels_of(np.random.default_rng((seed, i)))] = 1
    return CLASSES, [f"scene:{seed}/{i}" for i in range(count)], targets


def draw(path):
    """The image uint8 (SIDE, SIDE, 3) and boxes [(class, x0, y0, x1, y1)] of scene:SEED/NUMBER."""
    rng = np.random.default_rng([int(n) for n in path.removeprefix("scene:").split("/")])
    labels = labels_of(rng)  # drawn first: read_scenes needs only these
    image = Image.fromarray(rng.integers(80, 176, (3, 3, 3), dtype=np.uint8))
    image = image.resize((SIDE, SIDE), Image.BILINEAR)
    pen = ImageDraw.Draw(image)

    # ten lines
    start, turn = SIDE * rng.random((10, 2)), 2 * np.pi * rng.random((10, 1))
    length = rng.integers(8, 38, (10, 1))
    lines = np.hstack([start, start + length * np.hstack([np.sin(turn), np.cos(turn)])]).tolist()
    for i, color in enumerate(rng.integers(len(PALETTE), size=10)):
        pen.line(lines[i], PALETTE[color], 1 + i % 3)

    # seven distractors, then the shapes of the labels, so that nothing hides these
    count = 7 + len(labels)
    color = np.hstack([rng.integers(len(COLORS), len(PALETTE), 7), labels // len(SHAPES)])
    shape = np.hstack([rng.integers(len(SHAPES), size=7), labels % len(SHAPES)])
    cell = rng.permutation(GRID * GRID)[:count]
    center = np.stack([cell % GRID, cell // GRID], 1) + rng.uniform(0.3, 0.7, (count, 2))
    center = (center * SIDE / GRID).clip(12, SIDE - 12)  # whole shapes only
    size, turn = rng.uniform(6, 11, count), rng.uniform(-0.35, 0.35, count)  # pixels, radians
    cos, sin = size * np.cos(turn), size * np.sin(turn)
    shapes, boxes = list(SHAPES.values()), []
    for i in range(count):
        points = shapes[shape[i]] @ [[cos[i], sin[i]], [-sin[i], cos[i]]] + center[i]
        pen.polygon(points.ravel().tolist(), PALETTE[color[i]])
        if i >= 7:
            boxes.append((int(labels[i - 7]), *points.min(0), *points.max(0)))

    x, y = rng.integers(SIDE, size=2).tolist()
    noise = NOISE.crop((x, y, x + SIDE, y + SIDE))  # 0..48, added around zero
    return np.array(ImageChops.add(image, noise, 1, -24)), boxes


def read_scenes_lt(root, split):
    """A long-tailed subset of 60,000 scenes. The test split is that of scenes."""
    classes, paths, targets = read_scenes(root, split, 60000)
    keep = long_tailed(targets, 50) if split == "train" else slice(None)
    return classes, np.array(paths)[keep], targets[keep]


def boxes(root, split, paths):
    """For each path [(class, x0, y0, x1, y1, small)], in fractions of the image. None counts as
    small: COCO's definition is for larger images."""
    return [[(k, *(v / SIDE for v in box), False) for k, *box in draw(path)[1]] for path in paths]
