"""The threshold with the best F1 on a split that is not reported, for all classes or one for each.

Run: python -m tools.thresholds --checkpoint OUT/best.pt --split val [--per-class]
It writes OUT/best.thresholds.json, which --threshold of eval.py and tools.predict reads.
"""
import argparse
import json
from pathlib import Path

import numpy as np

from eval import Evaluation, refuse_unwritable
from lib import distributed
from lib.settings import integer
from readers import READERS
from readers.errors import explain_errors


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
    flag("--weights", choices=["raw", "ema"], help="default: those that the run reports")
    flag("--data", choices=READERS, help="default: the data set trained on")
    flag("--root", help="default: the folder used in training")
    flag("--workers", type=integer(-1), default=-1, help="loading processes; -1: automatic")
    flag("--limit", type=integer(0), default=0, help="a random N of the images")
    flag("--out", help="default: CHECKPOINT.thresholds.json next to the checkpoint")
    args = parser.parse_args(argv)
    out = args.out or Path(args.checkpoint).with_suffix(".thresholds.json")
    refuse_unwritable([out], inputs=[args.checkpoint])

    evaluation = Evaluation(args.checkpoint, args.weights, args.workers)
    dataset = evaluation.load(args.split, args.data, args.root, args.limit)
    scores = evaluation.scores(dataset)
    if not distributed.is_main():
        return

    if args.per_class:
        threshold = {}
        for name, class_scores, targets in zip(dataset.classes, scores.T, dataset.targets.T):
            threshold[name] = best_threshold(class_scores, targets)
    else:
        threshold = best_threshold(scores.ravel(), dataset.targets.ravel())
    with explain_errors(out, "make room, or choose another place with --out"):
        content = {"split": args.split, "threshold": threshold}
        Path(out).write_text(json.dumps(content))
    print(f"thresholds with the best F1 on {args.split}: {out}")


if __name__ == "__main__":
    with distributed.program():
        main()
