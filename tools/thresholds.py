"""The threshold of best F1 on train or val: one for all classes, or one for each.

Run: python -m tools.thresholds --checkpoint OUT/best.pt --split val [--per-class]
It writes OUT/best.thresholds.json, with --per-class OUT/best.class_thresholds.json. --threshold of
eval.py and tools.predict reads both: {"split", "threshold", "logit"}. The threshold is a
probability, a number or {class: number}; the logit is the same as logits.

The best threshold for a few positives is an accident, so --per-class leaves classes with fewer than
10 positives the one for all classes.
"""
import json
import math
from pathlib import Path

import numpy as np

from eval import (
    MEMORY_REMEDY,
    WRITE_REMEDY,
    Evaluation,
    add_data_flags,
    check_output,
    checkpoint_parser,
    probabilities,
)
from lib import distributed
from lib.errors import explain_errors
from lib.metrics import count_by_score, metrics

MIN_POSITIVES = 10  # of a class, for a threshold of its own


def best_threshold(scores, targets):
    """The threshold of best F1 for scores, targets (N,), midway between two scores; 0.5 without
    positives. Unknown targets (-1) are ignored."""
    levels, images, positives = count_by_score(scores, targets)
    total = positives.sum()
    if total == 0:
        return 0.5
    f1 = 2 * positives.cumsum() / (images.cumsum() + total)
    best = f1.argmax()
    above = levels[best]
    below = 0.0  # under the lowest score
    if best + 1 < len(levels):
        below = levels[best + 1]
    threshold = (above + below) / 2
    if threshold >= above:  # `above` is 0 or less, or the mean was rounded up to it
        threshold = np.nextafter(above, -np.inf)
    return float(threshold)


def as_logit(threshold, scores, logits, targets):
    """The threshold of best F1, a probability, as a logit. It is chosen anew on the logits (N,)
    where the probabilities, `scores`, tie, because those of a very sure model round to 1."""
    if (targets == 1).any() and len(np.unique(scores)) < len(np.unique(logits)):
        return best_threshold(logits, targets)
    if threshold <= 0:
        return -math.inf
    return math.log(threshold) - math.log1p(-threshold)


def choose(scores, logits, targets):
    """The threshold of best F1, as a probability and as a logit. scores, logits, targets (N,)."""
    threshold = best_threshold(scores, targets)
    return threshold, as_logit(threshold, scores, logits, targets)


def main(argv=None):
    parser = checkpoint_parser("The threshold of best F1 on train or val.")
    add_data_flags(parser)
    flag = parser.add_argument
    flag("--split", required=True, choices=["train", "val"], help="the split to choose on")
    flag("--per-class", action="store_true", help="one threshold for each class")
    flag("--out", help="default: CHECKPOINT.thresholds.json next to the checkpoint; with "
                       "--per-class, CHECKPOINT.class_thresholds.json")
    args = parser.parse_args(argv)
    suffix = ".thresholds.json"
    if args.per_class:
        suffix = ".class_thresholds.json"
    out = args.out or Path(args.checkpoint).with_suffix(suffix)
    check_output(out, [args.checkpoint])

    evaluation = Evaluation(args.checkpoint, args.weights, args.workers,
                            batch_size=args.batch_size)
    dataset = evaluation.load(args.split, args.data, args.root, args.limit)
    logits = evaluation.logits(dataset)
    if not distributed.is_main():
        return

    classes = dataset.classes
    targets = dataset.targets
    scores = probabilities(logits)
    threshold, logit = choose(scores.ravel(), logits.ravel(), targets.ravel())
    thresholds = np.full(len(classes), threshold)  # (K,)
    logit_thresholds = np.full(len(classes), logit)
    content = {"split": args.split, "threshold": threshold, "logit": logit}
    if args.per_class:
        few = (targets == 1).sum(axis=0) < MIN_POSITIVES
        for k in np.flatnonzero(~few):
            thresholds[k], logit_thresholds[k] = choose(scores[:, k], logits[:, k], targets[:, k])
        content["threshold"] = dict(zip(classes, thresholds.tolist()))
        content["logit"] = dict(zip(classes, logit_thresholds.tolist()))
    with explain_errors(out, WRITE_REMEDY):
        Path(out).write_text(json.dumps(content))

    print_table(classes, thresholds, metrics(logits, targets, 0),
                metrics(logits, targets, logit_thresholds))
    if args.per_class and few.any():
        names = ", ".join(np.array(classes)[few])
        print(f"warning: fewer than {MIN_POSITIVES} positives on {args.split}, so the threshold is "
              f"that of all classes, {threshold:.4g}: {names}")
    what = f"the threshold {threshold:.4g}"
    if args.per_class:
        what = "a threshold for each class"
    print(f"best F1 on {args.split}: {what}, written to {out}; check it on other images")


def print_table(classes, thresholds, before, after):
    """A line per class, then the means. before, after: metrics at 0.5, at the thresholds. A class
    name is the last in its line, so that a long one moves no figure."""
    print("positives  threshold  F1 at 0.5  F1 at threshold")
    for k, name in enumerate(classes):
        f1 = [math.nan if value is None else value for value in (before["F1"][k], after["F1"][k])]
        print(f"{before['positives'][k]:9}{thresholds[k]:11.4g}{f1[0]:11.2f}{f1[1]:17.2f}  {name}")
    print("\n     CF1     OF1")
    for result, where in ((before, "at 0.5"), (after, "at the threshold")):
        print(f"{result['CF1']:8.2f}{result['OF1']:8.2f}  {where}")


if __name__ == "__main__":
    with distributed.program(MEMORY_REMEDY):
        main()
