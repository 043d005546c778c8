"""The threshold with the best F1 on a split that is not reported, for all classes or one for each.

Run: python -m tools.thresholds --checkpoint OUT/best.pt --split val [--per-class]
It writes OUT/best.thresholds.json, which --threshold of eval.py and tools.predict reads.
"""
import argparse
import json
from pathlib import Path

import numpy as np

from eval import refuse_unwritable, scores_at_sizes, split_for
from lib import distributed
from lib.checkpoint import read_checkpoint
from lib.models import model_of, reported_weights
from readers import READERS
from readers.errors import name_errors


def best_threshold(scores, targets):
    """The threshold of best F1 for scores, targets (N,), midway between two scores; 0.5 without
    positives. Unknown targets (-1) are ignored."""
    known = targets >= 0
    order = np.argsort(-scores[known])
    scores = scores[known][order]
    positive = targets[known][order] == 1
    if not positive.any():
        return 0.5
    predicted = np.arange(1, len(scores) + 1)
    f1 = 2 * positive.cumsum() / (predicted + positive.sum())
    f1[:-1][scores[1:] == scores[:-1]] = 0  # no threshold separates equal scores
    best = f1.argmax()
    above = scores[best]
    if best + 1 < len(scores):
        below = scores[best + 1]
    else:
        below = 0.0 if above > 0 else -1.0
    middle = (above + below) / 2
    if middle < above:
        return float(middle)
    return float(below)  # the two are neighboring numbers


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0], allow_abbrev=False)
    flag = parser.add_argument
    flag("--checkpoint", required=True, help="of train.py")
    flag("--split", required=True, choices=["train", "val"], help="the split to choose on")
    flag("--per-class", action="store_true", help="one threshold for each class")
    flag("--weights", choices=["raw", "ema"], help="default: those that the recipe reports")
    flag("--data", choices=READERS, help="default: the data set trained on")
    flag("--root", help="default: the folder used in training")
    flag("--workers", type=int, default=-1, help="loading processes; -1: automatic")
    flag("--limit", type=int, default=0, help="a random N of the images")
    flag("--out", help="default: CHECKPOINT.thresholds.json next to the checkpoint")
    args = parser.parse_args(argv)
    out = args.out or Path(args.checkpoint).with_suffix(".thresholds.json")
    refuse_unwritable([out], inputs=[args.checkpoint])

    device = distributed.start()
    checkpoint = read_checkpoint(args.checkpoint)
    settings = checkpoint["settings"]
    settings.workers = args.workers
    _, state = reported_weights(checkpoint, args.weights)
    model = model_of(checkpoint, state, args.checkpoint)
    dataset = split_for(checkpoint, args.data or settings.data, args.root or settings.root,
                        args.split, args.limit)
    scores = scores_at_sizes(model, dataset, settings, device, [settings.image_size])
    if not distributed.is_main():
        return

    if args.per_class:
        threshold = {}
        for name, class_scores, targets in zip(dataset.classes, scores.T, dataset.targets.T):
            threshold[name] = best_threshold(class_scores, targets)
    else:
        threshold = best_threshold(scores.ravel(), dataset.targets.ravel())
    with name_errors(out, "make room, or choose another place with --out"):
        content = {"data": settings.data, "split": args.split, "threshold": threshold}
        Path(out).write_text(json.dumps(content))
    print(f"thresholds with the best F1 on {args.split}: {out}")


if __name__ == "__main__":
    with distributed.program():
        main()
