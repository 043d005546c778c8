"""Synthetic images with known labels: a data set that needs no download.

A scene has one to five small shapes of 20 classes ("red circle") among distractors: shapes in other
colors, and lines in all colors. It is drawn on demand from its seed and number; its path is
scene:SEED/NUMBER.
"""
from itertools import product

import numpy as np
from PIL import Image, ImageChops, ImageDraw

from readers.longtail import long_tailed


def outline(corners, inner=1.0, turn=0.0):
    """The corners (n, 2) of a star in the unit circle. Every second one lies at radius `inner`."""
    angle = (np.arange(corners) + turn) * 2 * np.pi / corners
    radius = np.where(np.arange(corners) % 2, inner, 1.0)
    return np.stack([radius * np.sin(angle), -radius * np.cos(angle)], 1)


def cross():
    """The corners (12, 2) of a cross. y is x, a quarter turn later."""
    x = np.array([-1, 1, 1, 3, 3, 1, 1, -1, -1, -3, -3, -1]) / 3
    return np.stack([x, np.roll(x, 3)], 1)


SHAPES = {"circle": outline(16), "square": outline(4, turn=0.5), "triangle": outline(3),
          "star": outline(10, 0.42), "cross": cross()}
COLORS = ["red", "green", "blue", "yellow"]
PALETTE = ["#d63031", "#1eb43c", "#2850e6", "#ebc428",  # of the classes, then of distractors
           "#969696", "#f0f0f0", "#1e1e1e", "#a550c8", "#eb823c", "#5ac8d2"]
CLASSES = [f"{color} {shape}" for color, shape in product(COLORS, SHAPES)]
SIDE = 128  # of an image, in pixels
GRID = 6  # each shape has its own cell in a grid of GRID x GRID cells
NOISE = Image.fromarray(
    np.random.default_rng(0).integers(0, 49, (2 * SIDE, 2 * SIDE, 3), dtype=np.uint8))


def draw_labels(rng):
    """One to five random classes."""
    return rng.integers(len(CLASSES), size=rng.integers(1, 6))


def read_scenes(root, split, train_count=4000):
    """Classes, paths and targets (N, K)."""
    seed = 0
    count = train_count
    if split == "test":
        seed = 1
        count = 1000
    targets = np.zeros((count, len(CLASSES)), np.int8)
    for i in range(count):
        rng = np.random.default_rng([seed, i])
        targets[i, draw_labels(rng)] = 1
    return CLASSES, [f"scene:{seed}/{i}" for i in range(count)], targets


def read_scenes_lt(root, split):
    """A long-tailed subset of 60,000 scenes. The test split is that of scenes."""
    classes, paths, targets = read_scenes(root, split, train_count=60000)
    if split == "train":
        keep = long_tailed(targets, ratio=50)
        paths = np.array(paths)[keep]
        targets = targets[keep]
    return classes, paths, targets


def draw(path):
    """The image uint8 (SIDE, SIDE, 3) of scene:SEED/NUMBER."""
    seed, number = path.removeprefix("scene:").split("/")
    rng = np.random.default_rng([int(seed), int(number)])
    labels = draw_labels(rng)  # drawn first: read_scenes needs only these
    background = rng.integers(80, 176, (3, 3, 3), dtype=np.uint8)
    image = Image.fromarray(background).resize((SIDE, SIDE), Image.BILINEAR)
    pen = ImageDraw.Draw(image)

    # ten lines
    start = SIDE * rng.random((10, 2))
    angle = 2 * np.pi * rng.random((10, 1))
    length = rng.integers(8, 38, (10, 1))
    end = start + length * np.hstack([np.sin(angle), np.cos(angle)])
    lines = np.hstack([start, end]).tolist()
    for i, color in enumerate(rng.integers(len(PALETTE), size=10)):
        pen.line(lines[i], PALETTE[color], width=1 + i % 3)

    # seven distractors, then the shapes of the labels, so that nothing hides these
    count = 7 + len(labels)
    colors = np.hstack([rng.integers(len(COLORS), len(PALETTE), 7), labels // len(SHAPES)])
    shapes = np.hstack([rng.integers(len(SHAPES), size=7), labels % len(SHAPES)])
    cells = rng.permutation(GRID * GRID)[:count]
    centers = np.stack([cells % GRID, cells // GRID], axis=1) + rng.uniform(0.3, 0.7, (count, 2))
    centers = (centers * SIDE / GRID).clip(12, SIDE - 12)  # whole shapes only
    sizes = rng.uniform(6, 11, count)  # pixels
    turns = rng.uniform(-0.35, 0.35, count)  # radians
    cos = sizes * np.cos(turns)
    sin = sizes * np.sin(turns)
    outlines = list(SHAPES.values())
    for i in range(count):
        turn_and_scale = [[cos[i], sin[i]], [-sin[i], cos[i]]]
        points = outlines[shapes[i]] @ turn_and_scale + centers[i]
        pen.polygon(points.ravel().tolist(), PALETTE[colors[i]])

    x, y = rng.integers(SIDE, size=2).tolist()
    noise = NOISE.crop((x, y, x + SIDE, y + SIDE))  # 0..48, centered on 0 by the offset
    return np.array(ImageChops.add(image, noise, offset=-24))
