"""Metrics of multi-label classification, and the table of a checkpoint.

AP has three definitions in use, up to two points apart, so every table must say which one it shows:
    all-points   the mean, over the positives, of the precision at their score (CSRA, ASL, CPRFL)
    envelope     the same after precision is made monotone from the right; never lower (Q2L)
    11-point     the mean of the envelope at recall 0, 0.1, ..., 1 (PASCAL VOC 2007)
The first is the default. Unknown entries (-1) are ignored. A class without positives has no AP: it
is left out of every mean over classes, and listed.

Run: python eval.py --checkpoint OUT/last.pt [--data NAME --root DIR --split test]
"""
import argparse
import copy
import json
import os
import sys
from pathlib import Path

import numpy as np
import torch
from torch import nn

from data import Dataset, Normalize, label_warnings, load, make_loader
from lib import distributed
from lib.checkpoint import read_checkpoint
from lib.models import import_method, model_of, reported_weights
from readers import READERS
from readers.errors import InputError, name_errors

KINDS = ("all-points", "envelope", "11-point")


# ------------------------------------------------------------------------------------------ metrics


def average_precision(scores, targets, kind="all-points"):
    """AP per class (K,) in [0, 1], nan without positives.

    scores (N, K); targets (N, K): 1, 0, -1 (unknown). Raises ValueError.
    """
    scores = np.asarray(scores, np.float64)
    targets = np.asarray(targets)
    if kind not in KINDS:
        raise ValueError(f"kind {kind!r}: choose from {', '.join(KINDS)}")
    if scores.ndim != 2 or scores.shape != targets.shape:
        raise ValueError(f"scores {scores.shape}, targets {targets.shape}: both must be (N, K)")
    if np.isnan(scores).any():
        raise ValueError("a score is nan")
    columns = zip(scores.T, targets.T)
    return np.array([average_precision_of_class(s, y, kind) for s, y in columns])


def average_precision_of_class(scores, targets, kind):
    """AP of one class; scores, targets (N,)."""
    known = targets >= 0
    order = np.argsort(-scores[known])
    scores = scores[known][order]
    positive = targets[known][order] == 1
    if not positive.any():
        return np.nan

    # Precision is taken where the score changes, so the order of equal scores does not matter.
    last_of_equals = np.append(scores[1:] != scores[:-1], True)
    true_positives = positive.cumsum()[last_of_equals]
    predicted = np.arange(1, len(scores) + 1)[last_of_equals]
    precision = true_positives / predicted
    total = true_positives[-1]
    if kind != "all-points":
        precision = np.maximum.accumulate(precision[::-1])[::-1]  # the envelope
    if kind == "11-point":
        tenths = total * np.arange(11)
        reached = np.searchsorted(10 * true_positives, tenths)  # in integers: recall >= t / 10
        return precision[reached].mean()
    new_positives = np.diff(true_positives, prepend=0)
    return (precision * new_positives).sum() / total


def metrics(scores, targets, threshold=0.5, kind="all-points", counts=None):
    """A dictionary, in percent: mAP; precision, recall and F1 over classes (CP, CR, CF1) and over
    all decisions score > threshold (OP, OR, OF1), with the suffix _3 for those in an image's top 3;
    AP and the number of positives of each class.

    scores: probabilities (N, K); targets (N, K): 1, 0, -1 (unknown); threshold: one, or one per
    class (K,); counts (K,): training images per class, which adds head, medium and tail mAP where
    one is below 100. Precision without predictions is 0. Without positives, mAP and AP are None.
    """
    scores = np.asarray(scores, np.float64)
    targets = np.asarray(targets)
    ap = 100 * average_precision(scores, targets, kind)
    positive = targets == 1
    known = targets >= 0
    has_positives = positive.any(axis=0)
    result = {"mAP": mean_of(ap)}
    if counts is not None and min(counts) < 100:
        for group, classes in head_medium_tail(counts).items():
            if has_positives[classes].any():
                result[group] = mean_of(ap[classes])

    above = scores > threshold
    for suffix, chosen in (("", above), ("_3", above & in_top_3(scores))):
        predicted = chosen & known
        correct = predicted & positive
        precision = correct.sum(axis=0) / np.maximum(predicted.sum(axis=0), 1)  # (K,)
        recall = correct.sum(axis=0) / np.maximum(positive.sum(axis=0), 1)
        cp = 100 * (mean_of(precision[has_positives]) or 0)
        cr = 100 * (mean_of(recall[has_positives]) or 0)
        op = 100 * correct.sum() / max(predicted.sum(), 1)
        o_r = 100 * correct.sum() / max(positive.sum(), 1)
        result["CP" + suffix] = cp
        result["CR" + suffix] = cr
        result["CF1" + suffix] = f1(cp, cr)
        result["OP" + suffix] = float(op)
        result["OR" + suffix] = float(o_r)
        result["OF1" + suffix] = f1(op, o_r)
    result["AP"] = [None if np.isnan(value) else float(value) for value in ap]
    result["positives"] = positive.sum(axis=0).tolist()
    return result


def head_medium_tail(counts):
    """The indices of head (n >= 100 training images), medium (n >= 20) and tail classes."""
    counts = np.asarray(counts)
    head = counts >= 100
    tail = counts < 20
    return {"head": np.flatnonzero(head), "medium": np.flatnonzero(~head & ~tail),
            "tail": np.flatnonzero(tail)}


def in_top_3(scores):
    """(N, K) -> whether a score is among the three highest of its image."""
    highest = np.argsort(-scores, axis=1, kind="stable")[:, :3]
    result = np.zeros(scores.shape, bool)
    np.put_along_axis(result, highest, True, axis=1)
    return result


def mean_of(values):
    """The mean without nan; None of no values."""
    values = values[~np.isnan(values)]
    if len(values) == 0:
        return None
    return float(values.mean())


def f1(precision, recall):
    """The harmonic mean."""
    return float(2 * precision * recall / max(precision + recall, 1e-12))


# ------------------------------------------------------------------------------------------- scores


@torch.inference_mode()
def predict(model, loader, normalize, amp_dtype, flip=False):
    """Probabilities float64 (N, K) of all images in a test loader's data set, from all processes.

    `flip`: the mean with the mirrored image. Raises InputError where a score is nan.
    """
    model.eval()
    distributed.broadcast_buffers(model)  # all processes test the same BatchNorm statistics
    device = normalize.mean.device
    all_logits = []
    for step, (images, _) in enumerate(loader, 1):
        images = normalize(images)
        with torch.autocast(device.type, amp_dtype, enabled=amp_dtype is not None):
            views = [model(images)]
            if flip:
                views.append(model(images.flip(3)))
        all_logits.append(torch.stack(views))  # on the device: wait for it only at the end
        if step % 50 == 0 and distributed.is_main():
            print(f"tested {step} of {len(loader)} batches", file=sys.stderr)

    # A process may have none of the images.
    own_scores = np.zeros((0, len(loader.dataset.classes)))
    if all_logits:
        logits = torch.cat(all_logits, dim=1).cpu().double()  # in float32, large ones would tie
        own_scores = logits.sigmoid().mean(0).numpy()
    scores = np.zeros((len(loader.dataset), len(loader.dataset.classes)))
    for rank, part in enumerate(distributed.gather(own_scores)):
        scores[rank::distributed.world_size()] = part
    bad = np.isnan(scores).any(axis=1).sum()
    if bad:
        raise InputError(f"{bad} images have the score nan: the weights have diverged; lower --lr, "
                         "set --clip-grad, or --amp off")
    return scores


def scores_at_sizes(model, dataset, settings, device, sizes, flip=False):
    """The mean, over image sizes, of the probabilities (N, K)."""
    normalize = Normalize(settings.mean, settings.std, device)
    amp_dtype = distributed.autocast_dtype(device, settings.amp)
    total = 0
    for size in sizes:
        settings = copy.copy(settings)
        settings.image_size = size
        loader = make_loader(dataset, settings, training=False)
        resized = at_size(model, size).to(device, memory_format=torch.channels_last)
        total = total + predict(resized, loader, normalize, amp_dtype, flip)
    return total / len(sizes)


def at_size(model, size):
    """A copy for images of this size. ViT and Swin resample their position embeddings, always from
    the trained ones; a ResNet takes any size."""
    model = copy.deepcopy(model)
    with name_errors(f"image size {size}", "choose a multiple of the backbone's patches"):
        backbone = getattr(model, "backbone", None)
        if hasattr(backbone, "set_input_size"):
            backbone.set_input_size((size, size))
        with torch.no_grad():
            model.eval()(torch.zeros(1, 3, size, size))
    return model


class Residual(nn.Module):
    """CSRA's test-time trick on a trained model that pools the class scores of its cells."""

    def __init__(self, model, lam):
        super().__init__()
        self.model = model
        self.backbone = model.backbone  # for at_size
        self.lam = lam
        self.residual = import_method("csra").residual
        head = getattr(model, "head", None)
        self.csra_without_attention = getattr(head, "lam", None) == 0
        if not self.csra_without_attention and not isinstance(head, nn.Linear):
            raise InputError("--residual needs a pooled linear classifier: asl.py's, or csra "
                             "--lam 0")

    def forward(self, images):
        if self.csra_without_attention:
            s = self.model.head.scores(self.model.features(images))  # (B, heads, K, HW)
        else:
            _, maps = self.model.attention(images)  # (B, K, H, W)
            s = maps.flatten(2)[:, None]  # (B, 1, K, HW)
        return self.residual(s, self.lam).sum(1)


def split_for(checkpoint, name, root, split, limit=0):
    """A split of the data set `name` with the checkpoint's classes: columns are chosen by name."""
    settings = checkpoint["settings"]
    classes = checkpoint["classes"]
    dataset = load(name, root, split, drop_unlabelled=settings.drop_unlabelled,
                   difficult=settings.difficult, long_tail=settings.long_tail)
    lost = [label for label in classes if label not in dataset.classes]
    if lost:
        raise InputError(f"{name} lacks {len(lost)} classes of the model: {lost[:5]}...")
    if len(dataset.classes) > len(classes) and distributed.is_main():
        print(f"{name}: only the model's {len(classes)} of {len(dataset.classes)} classes count",
              file=sys.stderr)
    columns = [dataset.classes.index(label) for label in classes]
    dataset = Dataset(classes, dataset.paths, dataset.targets[:, columns], dataset.upright)
    return dataset.sample(limit)


# ------------------------------------------------------------------------------------- command line


def arguments(argv):
    parser = argparse.ArgumentParser(description="The table of a checkpoint.", allow_abbrev=False)
    flag = parser.add_argument
    flag("--checkpoint", required=True, help="OUT/last.pt of train.py or tools/convert.py")
    flag("--weights", choices=["raw", "ema"], help="default: those that the recipe reports")
    flag("--data", choices=READERS, help="default: the data set trained on")
    flag("--root", help="default: the folder used in training")
    flag("--split", default="test", choices=["train", "val", "test"], help="the split to evaluate")
    flag("--workers", type=int, default=-1, help="loading processes; -1: automatic")
    flag("--limit", type=int, default=0, help="a random N of the images, the same each time")
    flag("--ap", default="all-points", choices=KINDS, help="definition of AP")
    flag("--threshold", default="0.5", help="a number, or a file of python -m tools.thresholds")
    sizes = parser.add_mutually_exclusive_group()
    sizes.add_argument("--image-size", type=int, help="default: the size used in training")
    sizes.add_argument("--sizes", help="image sizes to average over, such as 448,576")
    flag("--flip", action="store_true", help="average with the mirrored image")
    flag("--residual", type=float, metavar="LAM", help="CSRA's test-time trick: + LAM x max score")
    flag("--out", metavar="JSON", help="write the table")
    flag("--scores", metavar="NPZ", help="write scores, targets, classes, paths")
    args = parser.parse_args(argv)
    if args.limit < 0 or args.workers < -1:
        parser.error("--limit and --workers: must not be negative")
    return args


def main(argv=None):
    args = arguments(argv)
    refuse_unwritable([args.out, args.scores], inputs=[args.checkpoint, args.threshold])
    device = distributed.start()
    checkpoint = read_checkpoint(args.checkpoint)
    settings = checkpoint["settings"]
    settings.workers = args.workers
    data = args.data or settings.data
    root = args.root or settings.root
    threshold = read_threshold(args.threshold, checkpoint["classes"])
    weights, state = reported_weights(checkpoint, args.weights)
    model = model_of(checkpoint, state, args.checkpoint)
    if args.residual is not None:
        model = Residual(model, args.residual)
    sizes = [args.image_size or settings.image_size]
    if args.sizes:
        with name_errors(f"--sizes {args.sizes}", "numbers, such as 448,576"):
            sizes = [int(size) for size in args.sizes.split(",")]

    dataset = split_for(checkpoint, data, root, args.split, args.limit)
    scores = scores_at_sizes(model, dataset, settings, device, sizes, args.flip)
    if not distributed.is_main():
        return

    title = (f"{settings.model} on {data} {args.split}: {len(scores)} images, {weights} weights, "
             f"image size {'+'.join(str(size) for size in sizes)}")
    if args.flip:
        title += " and mirrored"
    if args.residual is not None:
        title += f", residual {args.residual}"
    if data in ("voc2007", "voc2012"):
        title += f", difficult objects {settings.difficult}"
    if args.scores:
        write_scores(args.scores, scores, dataset)
    for warning in label_warnings(dataset, args.split):
        print(warning, file=sys.stderr)
    result = metrics(scores, dataset.targets, threshold, args.ap, checkpoint["class_counts"])
    result["what"] = title
    result["ap"] = args.ap
    result["threshold"] = np.asarray(threshold).tolist()
    result["classes"] = dataset.classes
    result["images"] = len(scores)
    print_table(result)
    if args.out:
        with name_errors(args.out, "make room, or choose another place to write to"):
            Path(args.out).write_text(json.dumps(result))


def print_table(result):
    """AP and positives per class, then the means."""
    threshold = "one per class"
    if np.ndim(result["threshold"]) == 0:
        threshold = f"{result['threshold']:.4g}"
    print(f"{result['what']}, {result['ap']} AP, threshold {threshold}")
    empty = []
    for name, ap, positives in zip(result["classes"], result["AP"], result["positives"]):
        text = "n/a"
        if ap is None:
            empty.append(name)
        else:
            text = f"{ap:.2f}"
        print(f"  {name:24}{text:>12} AP {positives:8} positives")
    print(f"without positives, left out of the means: {', '.join(empty) or 'none'}")
    for names in (["mAP", "head", "medium", "tail"], ["CP", "CR", "CF1", "OP", "OR", "OF1"],
                  ["CP_3", "CR_3", "CF1_3", "OP_3", "OR_3", "OF1_3"]):
        known = [name for name in names if result.get(name) is not None]
        print(" ".join(f"{name} {result[name]:.2f}" for name in known))


def read_threshold(text, classes):
    """A number, or the content of a file of tools/thresholds.py: a number or one per class (K,)."""
    with name_errors(f"--threshold {text}", "it takes a number in [0, 1], or a file of python -m "
                                            "tools.thresholds for these classes"):
        lowest = 0
        if not Path(text).is_file():
            values = np.array(float(text))
        else:
            lowest = -1  # where all scores are 0, a tuned threshold lies below
            stored = json.loads(Path(text).read_bytes())["threshold"]
            if isinstance(stored, dict):
                stored = [stored[name] for name in classes]
            if any(isinstance(value, bool) for value in np.atleast_1d(np.array(stored, object))):
                raise ValueError("true and false are no thresholds")
            values = np.array(stored, np.float64)
            if values.shape not in ((), (len(classes),)):
                raise ValueError("neither one number nor one per class")
        if not ((values >= lowest) & (values <= 1)).all():
            raise ValueError("not in [0, 1]")
    return values


def refuse_unwritable(outputs, inputs=()):
    """Checks where results go to, before the work; None: no output. Raises InputError."""
    taken = [os.path.realpath(path) for path in inputs if path]
    for path in outputs:
        if path is None:
            continue
        if os.path.realpath(path) in taken:
            raise InputError(f"{path} is read or written by another flag, too: choose another file")
        taken.append(os.path.realpath(path))
        with name_errors(path, "choose another place to write to"):
            Path(path).parent.mkdir(parents=True, exist_ok=True)
            if Path(path).is_dir():
                raise IsADirectoryError("a folder, where a file is needed")
            if not os.access(Path(path).parent, os.W_OK):
                raise PermissionError("the folder is not writable")


def write_scores(path, scores, dataset):
    """scores and targets (N, K), classes, paths, as numpy's npz."""
    remedy = "make room, or choose another place to write to"
    with name_errors(path, remedy), open(path, "wb") as file:
        np.savez_compressed(file, scores=scores, targets=dataset.targets,
                            classes=np.array(dataset.classes),
                            paths=np.array(list(dataset.paths), str))


if __name__ == "__main__":
    with distributed.program():
        main()
