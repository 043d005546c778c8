"""Speed against the plain way, both in the same run, and how far the outputs are apart.

Run: python tests/bench.py [--images DIR]     DIR: a folder of JPEG pictures; without it, made ones
"""
import argparse
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torchvision import transforms as v1

sys.path.insert(0, str(Path(__file__).parent.parent))
import data


def rates(ways, items, repeats=5):
    """Items/s of each way, the median of `repeats`; the ways take turns: noise hits them all."""
    seconds = {name: [] for name in ways}
    for _ in range(repeats):
        for name, way in ways.items():
            start = time.perf_counter()
            for item in items:
                way(item)
            seconds[name].append(time.perf_counter() - start)
    return {name: len(items) / float(np.median(s)) for name, s in seconds.items()}


def made_pictures(folder, count=32):
    """JPEG files of COCO's usual size and about its usual weight."""
    for i in range(count):
        scene = Image.fromarray(data.draw_scene(2, i)[0]).resize((640, 480), Image.BICUBIC)
        scene.save(folder / f"{i}.jpg", quality=92)


def input_speed(images):
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as made:
        if not images:
            made_pictures(Path(made))
        paths = sorted(str(p) for p in Path(images or made).rglob("*.jpg"))[:160]
        print(f"\nInput: pictures/s on one core, 448 px; {len(paths)} of {images or 'made ones'}")
        finish = [v1.ToTensor(), v1.Normalize((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))]
        plain = {"evaluation": [v1.Resize((448, 448))],
                 "CSRA training": [v1.RandomResizedCrop(448, (0.7, 1)), v1.RandomHorizontalFlip()],
                 "RandAugment + Cutout": [v1.Resize((448, 448)), v1.RandAugment()]}
        ours = {"evaluation": (), "CSRA training": ("crop", "flip"),
                "RandAugment + Cutout": ("cutout", "randaugment")}
        for name, steps in plain.items():
            plain_way = v1.Compose([Image.open, lambda image: image.convert("RGB"), *steps, *finish])
            our_way = v1.Compose([data.read_picture, data.transform(448, ours[name])])
            rate = rates({"plain": plain_way, "ours": our_way}, paths)
            print(f"  {name:22} plain {rate['plain']:6.1f}  ours {rate['ours']:6.1f}  "
                  f"ratio {rate['ours'] / rate['plain']:.2f}")
        apart, resize = [], v1.Resize((448, 448))
        for path in paths:
            expected = np.asarray(resize(Image.open(path).convert("RGB"))).astype(int)
            picture = data.transform(448)(data.read_picture(path)).permute(1, 2, 0).numpy()
            apart.append(np.abs(expected - picture))
        print(f"  evaluation, grey levels apart: at most {max(a.max() for a in apart)}, "
              f"on average {np.mean([a.mean() for a in apart]):.4f}")
        start = time.perf_counter()
        for i in range(2000):
            data.draw_scene(0, i)
        print(f"  scenes drawn/s: {2000 / (time.perf_counter() - start):.0f}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--images", help="folder of JPEG pictures")
    input_speed(parser.parse_args().images)
