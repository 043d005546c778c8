"""The threshold of best F1 on train or val: one for all classes, or one for each.

Run: python -m tools.thresholds --checkpoint OUT/best.pt --split val [--per-class]
It writes OUT/best.thresholds.json, which --threshold of eval.py and tools.predict reads.
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
from lib.metrics import count_by_score


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


def main(argv=None):
    parser = checkpoint_parser("The threshold of best F1 on train or val.")
    add_data_flags(parser)
    flag = parser.add_argument
    flag("--split", required=True, choices=["train", "val"], help="the split to choose on")
    flag("--per-class", action="store_true", help="one threshold for each class")
    flag("--out", help="default: CHECKPOINT.thresholds.json next to the checkpoint")
    args = parser.parse_args(argv)
    out = args.out or Path(args.checkpoint).with_suffix(".thresholds.json")
    check_output(out, [args.checkpoint])

    evaluation = Evaluation(args.checkpoint, args.weights, args.workers,
                            batch_size=args.batch_size)
    dataset = evaluation.load(args.split, args.data, args.root, args.limit)
    logits = evaluation.logits(dataset)
    if not distributed.is_main():
        return

    scores = probabilities(logits)
    if args.per_class:
        empty = np.array(dataset.classes)[~(dataset.targets == 1).any(axis=0)]
        if len(empty) > 0:
            print(f"warning: no positive image on {args.split}, so the threshold is 0.5: "
                  f"{', '.join(empty)}")
        threshold = {}
        logit = {}
        for name, p, z, y in zip(dataset.classes, scores.T, logits.T, dataset.targets.T):
            threshold[name] = best_threshold(p, y)
            logit[name] = as_logit(threshold[name], p, z, y)
    else:
        p = scores.ravel()
        z = logits.ravel()
        y = dataset.targets.ravel()
        threshold = best_threshold(p, y)
        logit = as_logit(threshold, p, z, y)
    content = {"split": args.split, "threshold": threshold, "logit": logit}
    with explain_errors(out, WRITE_REMEDY):
        Path(out).write_text(json.dumps(content))
    print(f"threshold of best F1 on {args.split}, written to {out}: {threshold}")


if __name__ == "__main__":
    with distributed.program(MEMORY_REMEDY):
        main()
