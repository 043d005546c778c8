"""Metrics of multi-label classification; the table of a checkpoint; labels of your own images.

AP has three definitions in use, up to two points apart, so every table must say which one it shows:
    all-points   the mean, over the positives, of the precision at their score (CSRA, ASL, CPRFL)
    envelope     the same after precision is made monotone from the right; never lower (Q2L)
    11-point     the mean of the envelope at recall 0, 0.1, ..., 1 (PASCAL VOC 2007)
The first is the default. Unknown entries (-1) are ignored. A class without positives has no AP: it
is left out of every mean over classes, and listed.

Run: python eval.py --checkpoint OUT/last.pt [--data NAME --root DIR --split test]    the table
     python eval.py --checkpoint OUT/last.pt --predict IMAGE... [--heatmaps DIR]      labels
"""
import json
import sys
from pathlib import Path

import numpy as np

from data import Dataset, InputError
from lib import files, maps
from lib.flags import at_least, check_flags
from lib.predict import Scorer
from lib.processes import process
from lib.run import program
from lib.settings import Parser
from sets import BOXES, READERS
from sets.doubts import doubts

KINDS = ("all-points", "envelope", "11-point")


# ----------------------------------------------------------------------------------------- metrics


def ranked(scores, targets):
    """The known entries of one class, (N,) each, by descending score: the scores, whether positive,
    and the last place of each run of equal scores."""
    known = targets >= 0
    order = np.argsort(-scores[known])
    s, y = scores[known][order], targets[known][order] == 1
    return s, y, np.append(s[1:] != s[:-1], True).nonzero()[0]


def average_precision(scores, targets, kind="all-points"):
    """AP per class (K,) in [0, 1], nan without positives. scores, targets (N, K): 1, 0, -1
    (unknown).

    Precision and recall are taken where the score changes, so the order of equal scores does not
    matter. Raises ValueError.
    """
    if kind not in KINDS:
        raise ValueError(f"kind {kind!r}: choose from {', '.join(KINDS)}")
    scores, targets = np.asarray(scores), np.asarray(targets)
    if scores.shape != targets.shape or np.isnan(scores).any():
        raise ValueError(f"scores {scores.shape}, targets {targets.shape}: must match, without nan")
    ap = np.full(scores.shape[1], np.nan)
    for k in range(scores.shape[1]):  # by class: its arrays stay in the cache
        _, y, last = ranked(scores[:, k], targets[:, k])
        if not y.any():
            continue
        tp = y.cumsum()[last]
        precision, new = tp / (last + 1), np.diff(tp, prepend=0)  # new: positives of this score
        if kind != "all-points":
            precision = np.maximum.accumulate(precision[::-1])[::-1]
        if kind == "11-point":  # recall tp / n >= t / 10, in integers
            ap[k] = precision[np.searchsorted(10 * tp, tp[-1] * np.arange(11))].mean()
        else:
            ap[k] = (precision * new).sum() / tp[-1]
    return ap


def head_medium_tail(counts):
    """The indices of head (n >= 100 training images), medium (n >= 20) and tail classes."""
    counts = np.asarray(counts)
    return {"head": np.flatnonzero(counts >= 100), "tail": np.flatnonzero(counts < 20),
            "medium": np.flatnonzero((counts >= 20) & (counts < 100))}


def metrics(scores, targets, threshold=0.5, kind="all-points", counts=None):
    """In percent: mAP; precision, recall, F1 averaged over classes (CP, CR; CF1 is from both) and
    over all decisions score > threshold (OP, OR, OF1); suffix _3: only those in an image's top 3.
    `counts`, class frequencies in training, adds head, medium and tail mAP if one is below 100.
    AP is the list per class (None without positives), positives the number of positives per class.

    scores: probabilities (N, K); targets (N, K): 1, 0, -1 (unknown); threshold: one, or one per
    class (K,). Precision without predictions counts as 0.
    """
    scores, targets = np.asarray(scores), np.asarray(targets)
    ap = 100 * average_precision(scores, targets, kind)
    positives, known = (targets == 1).sum(0), targets >= 0
    result = {"mAP": np.nanmean(ap).item() if positives.any() else None}
    if counts is not None and np.min(counts) < 100:
        parts = head_medium_tail(counts)
        result |= {name: float(np.nanmean(ap[part])) for name, part in parts.items()
                   if positives[part].any()}
    above = scores > threshold
    third = np.argsort(-scores, axis=1, kind="stable")[:, :3]
    top = np.zeros_like(above)
    np.put_along_axis(top, third, True, 1)
    for suffix, yes in (("", above), ("_3", above & top)):
        tp, predicted = (yes & (targets == 1)).sum(0), (yes & known).sum(0)
        have = positives > 0
        cp = 100 * (tp / np.maximum(predicted, 1))[have].mean() if have.any() else 0.0
        cr = 100 * (tp[have] / positives[have]).mean() if have.any() else 0.0
        op = 100 * tp.sum() / max(predicted.sum(), 1)
        o_r = 100 * tp.sum() / max(positives.sum(), 1)
        for name, p, r in (("C", cp, cr), ("O", op, o_r)):
            result |= {f"{name}P{suffix}": float(p), f"{name}R{suffix}": float(r),
                       f"{name}F1{suffix}": float(2 * p * r / max(p + r, 1e-12))}
    return result | {"AP": [None if np.isnan(a) else float(a) for a in ap],
                     "positives": positives.tolist()}


def best_threshold(scores, targets):
    """Threshold of best F1 for scores, targets (N,), midway between two; 0.5 without positives."""
    s, y, last = ranked(scores, targets)
    if not y.any():
        return 0.5
    best = np.argmax(2 * y.cumsum()[last] / (last + 1 + y.sum()))  # F1 = 2 TP / (predicted + true)
    lower = s[last[best] + 1] if best + 1 < len(last) else -float(s[last[best]] == 0)
    middle = (s[last[best]] + lower) / 2
    return float(middle if middle < s[last[best]] else lower)


# ------------------------------------------------------------------------------------ command line


def arguments(argv):
    """The arguments, and the flags of train.py that come with --official."""
    parser = Parser(description="The table of a checkpoint, or labels of your own images.",
                    allow_abbrev=False)
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--checkpoint", help="OUT/last.pt of train.py")
    source.add_argument("--official", help="a released checkpoint; with --model, and train.py's "
                                           "flags where it differs from the recipe")
    source.add_argument("--from-scores", metavar="NPZ", help="a file of --scores, or your own: "
                        "scores (N, K) in [0, 1], targets (N, K), classes (K,)")
    flag, number = parser.add_argument, at_least(1)
    flag("--model", help="the method of --official")
    flag("--backbone", help="of --official; else lets a checkpoint load it from a hub or a folder")
    flag("--weights", choices=("raw", "ema"), help="default: those that the recipe reports")
    flag("--data", choices=READERS, help="default: the data set trained on")
    flag("--root", help="default: the folder used in training")
    flag("--split", default="test", choices=("train", "val", "test"), help="the split to evaluate")
    flag("--workers", type=at_least(-1), default=-1, help="loading processes; -1: automatic")
    flag("--limit", type=number, help="a random N of the images, the same each time")
    flag("--skip-bad", type=at_least(0), default=0, help="leave out up to N unreadable images")
    flag("--ap", default=KINDS[0], choices=KINDS, help="definition of AP")
    flag("--threshold", default="0.5", help="a number, or a file of --tune-threshold")
    flag("--tune-threshold", metavar="SPLIT", choices=("train", "val", "test"),
         help="find the threshold with the best F1 on SPLIT; saved next to the checkpoint")
    flag("--per-class", action="store_true", help="tune one threshold per class")
    flag("--image-size", type=number, help="default: the size used in training")
    flag("--sizes", type=lambda text: [*map(number, text.split(","))], metavar="SIZES",
         help="image sizes to average over, such as 448,576")
    flag("--flip", action="store_true", help="average with the mirrored image")
    flag("--residual", type=float, metavar="LAM", help="CSRA's test-time trick: + LAM x max score")
    flag("--predict", nargs="+", metavar="PATH", help="print the labels of files and folders")
    flag("--json", action="store_true", help="--predict: a JSON object per line")
    flag("--heatmaps", metavar="DIR", help="draw each image and its maps")
    flag("--each-head", action="store_true", help="--heatmaps: layers and heads apart")
    flag("--pointing", action="store_true", help="how often a map has its maximum in a box")
    flag("--out", metavar="JSON", help="write the table")
    flag("--scores", metavar="NPZ", help="write scores, targets, classes, paths")
    flag("--voc-server", metavar="DIR", help="write comp2_cls files of VOC 2012's test images")
    args, flags = parser.parse_known_args(argv)

    typed, given = check_flags(parser, args, flags)
    if args.tune_threshold == args.split:
        parser.error(f"--tune-threshold {args.split}: that split is reported; tune on another")
    if args.official:  # its --image-size is what the model is made for; --sizes what it is shown
        own = ("model", "data", "backbone", "image_size")
        flags += [text for name in own if name in given
                  for text in (typed[name], str(getattr(args, name)))]
    elif args.image_size:
        args.sizes = args.sizes or [args.image_size]
    return args, flags


def table(title, result, classes, kind, threshold, split):
    """The text that is printed: AP and positives per class, then the means."""
    given = f"{threshold:.4g}" if np.ndim(threshold) == 0 else "one per class"
    empty = [name for name, count in zip(classes, result["positives"]) if not count]
    lines = [f"{title}, {kind} AP, threshold {given}{f' tuned on {split}' if split else ''}"]
    for name, ap, count in zip(classes, result["AP"], result["positives"]):
        ap = "         n/a" if ap is None else f"{ap:12.2f}"
        lines.append(f"  {name:24}{ap} AP {count:8} positives")
    lines.append(f"without positives, left out of the means: {', '.join(empty) or 'none'}")
    lines += [" ".join(f"{name} {result[name]:.2f}" for name in row if result.get(name) is not None)
              for row in (("mAP", "head", "medium", "tail"),
                          ("CP", "CR", "CF1", "OP", "OR", "OF1"),
                          ("CP_3", "CR_3", "CF1_3", "OP_3", "OR_3", "OF1_3"))]
    for name in ("pointing", "pointing_small"):
        if name in result:
            pairs = result[f"{name}_pairs"]
            lines.append(f"{name} {result[name]:.2f} of {pairs} pairs of image and class")
    return "\n".join(lines)


def tune(args, scorer):
    """--tune-threshold: the threshold with the best F1 on a split, kept next to the checkpoint."""
    data = scorer.split(args.tune_threshold)
    scores, index = scorer.scores(data, args.skip_bad)
    targets = data.targets[index]
    threshold = np.array([best_threshold(*pair) for pair in zip(scores.T, targets.T)]) \
        if args.per_class else best_threshold(scores.ravel(), targets.ravel())
    files.write_threshold(scorer, args.tune_threshold, threshold)
    return threshold


def print_labels(args, data, scores, threshold):
    """--predict: a line per image."""
    for path, row, above in zip(data.paths, scores, scores > threshold):
        labels = {data.classes[k]: round(row[k].item(), 4) for k in np.argsort(-row) if above[k]}
        print(json.dumps({"path": path, "labels": labels}) if args.json else
              f"{path}: " + ", ".join(f"{name} {score:.2f}" for name, score in labels.items()))


def main(argv=None):
    args, flags = arguments(argv)
    files.try_outputs(args)
    extra = {}
    if args.from_scores:
        scores, data, counts = files.read_scores(args.from_scores)
        threshold = files.read_threshold(args.threshold, data.classes)
        title = f"{args.from_scores}: {len(scores)} images"
    else:
        scorer = Scorer(args, flags)
        if process()[1] > 1 and (args.predict or args.heatmaps or args.pointing):
            raise InputError("--predict, --heatmaps and --pointing run in one process")
        threshold = tune(args, scorer) if args.tune_threshold else \
            files.read_threshold(args.threshold, scorer.classes)
        counts = scorer.counts

        # the images, then only those of them that can be read
        if args.predict:
            paths = files.images_in(args.predict)
            targets = np.zeros((len(paths), len(scorer.classes)), np.int8)
            data, skip_bad = Dataset(scorer.classes, paths, targets, upright=True), len(paths)
        else:
            data = scorer.split("server" if args.voc_server else args.split)
            skip_bad = args.skip_bad
        listed = len(data)
        scores, index = scorer.scores(data, skip_bad)
        data = data.subset(index)

        if args.heatmaps:
            maps.draw_heatmaps(Path(args.heatmaps), scorer.maps(data), data, scores,
                               scorer.map_offset(), threshold, args.each_head)
        if args.predict:
            print_labels(args, data, scores, threshold)
            return int(len(data) < listed)
        if args.pointing:
            if scorer.data not in BOXES:
                raise InputError(f"{scorer.data} has no boxes; choose from {', '.join(BOXES)}")
            found = BOXES[scorer.data](Path(scorer.root or "."), args.split, paths=data.paths)
            extra = maps.pointing(scorer.maps(data), found, scorer.map_offset(), data.targets,
                                  scorer.columns)
        title = (f"{scorer.settings['model']} on {scorer.data} {args.split}: {len(scores)} images, "
                 f"{'released' if args.official else scorer.weights} weights, image size "
                 f"{'+'.join(map(str, scorer.sizes))}{' and mirrored' * args.flip}"
                 + (f", residual {args.residual}" if args.residual is not None else ""))
    if process()[0]:
        return 0

    if args.scores:
        files.write_scores(args.scores, scores, data, counts)
    if args.voc_server:
        files.write_for_server(args.voc_server, data, scores)
        return 0
    for warning in doubts(data, args.split):
        print(warning, file=sys.stderr)
    result = metrics(scores, data.targets, threshold, args.ap, counts) | extra
    print(table(title, result, data.classes, args.ap, threshold, args.tune_threshold))
    if args.out:
        files.write_json(args.out, result | {
            "what": title, "ap": args.ap, "threshold": np.asarray(threshold).tolist(),
            "tuned_on": args.tune_threshold or "", "classes": data.classes, "images": len(scores)})
    return 0


if __name__ == "__main__":
    with program():
        sys.exit(main())
