"""Metrics for multi-label classification, and a program that prints them for a checkpoint.

Three definitions of AP are in use. They differ by up to two points, so every table must say which
one it uses:
    all-points   the precision at each positive's score, averaged over positives (CSRA, ASL, CPRFL)
    envelope     the same, but with the best precision at this or any higher recall (Q2L)
    11-point     the mean of the envelope at recall 0, 0.1, ..., 1 (PASCAL VOC 2007)
The first is the default. Unknown entries (-1) are ignored. A class without positives has no AP: it
is left out of every mean over classes, and the table says nan.

Run: python eval.py --checkpoint OUT/last.pt [--data NAME --root ROOT --split test]
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

from data import (
    HAVE_DIFFICULT,
    Dataset,
    Normalize,
    label_warnings,
    load,
    make_loader,
    spelling,
)
from lib import distributed
from lib.checkpoint import read_checkpoint
from lib.errors import InputError, explain_errors
from lib.models import import_method, model_of, reported_weights
from lib.settings import integer, integers
from readers import READERS
from readers.own_images import names_alone

KINDS = ("all-points", "envelope", "11-point")
WRITE_REMEDY = "make room, or choose another place to write to"


# ------------------------------------------------------------------------------------------ metrics


def average_precision(scores, targets, kind="all-points"):
    """AP per class (K,) in [0, 1], nan without positives.

    scores (N, K); targets (N, K): 1, 0, -1 (unknown). Raises ValueError.
    """
    scores = np.asarray(scores, np.float64)
    targets = np.asarray(targets)
    if kind not in KINDS:
        raise ValueError(f"kind {kind!r}: choose from {KINDS}")
    if scores.ndim != 2 or scores.shape != targets.shape:
        raise ValueError(f"scores {scores.shape}, targets {targets.shape}: both must be (N, K)")
    if np.isnan(scores).any():
        raise ValueError("a score is nan")
    columns = zip(scores.T, targets.T)
    return np.array([average_precision_of_class(s, y, kind) for s, y in columns])


def average_precision_of_class(scores, targets, kind):
    """AP of one class; scores, targets (N,)."""
    _, images, positives = count_by_score(scores, targets)  # per score, from the highest
    total = positives.sum()
    if total == 0:
        return np.nan
    true_positives = positives.cumsum()
    precision = true_positives / images.cumsum()
    if kind != "all-points":
        precision = np.maximum.accumulate(precision[::-1])[::-1]  # the envelope
    if kind == "11-point":
        # For t = 0..10 the first place with TP / total >= t / 10; without division, so exact.
        places = np.searchsorted(10 * true_positives, total * np.arange(11))
        return precision[places].mean()
    return (precision * positives).sum() / total


def count_by_score(scores, targets):
    """The distinct scores, highest first, and the numbers of images and of positives with each.

    scores, targets (N,). Unknown targets (-1) are left out. Equal scores share one entry, so their
    order does not matter.
    """
    known = targets >= 0
    levels, index, images = np.unique(-scores[known], return_inverse=True, return_counts=True)
    positives = np.bincount(index, weights=targets[known] == 1)
    return -levels, images, positives


def metrics(scores, targets, threshold=0.5, kind="all-points", counts=None):
    """A dictionary, in percent:

        mAP                 mean AP over classes; head, medium, tail: over the classes of this group
        CP, CR, CF1         precision and recall, means over classes, and the F1 of the two means
        OP, OR, OF1         precision, recall and F1 over all decisions
        CP_3, ..., OF1_3    the same, if only the three highest scores of an image may be positive
        AP, positives       of each class: AP (None without positives), number of positives

    scores: probabilities (N, K); targets (N, K): 1, 0, -1 (unknown). threshold: a score above it is
    a positive decision; one number, or one per class (K,). counts (K,): training images per class;
    without counts, or if every class has 100 or more, head, medium and tail are left out.
    Precision without positive decisions is 0. Without positives, mAP is None.
    """
    scores = np.asarray(scores, np.float64)
    targets = np.asarray(targets)
    ap = 100 * average_precision(scores, targets, kind)
    positive = targets == 1
    known = targets >= 0
    positives = positive.sum(axis=0)  # (K,)
    counted = positives > 0  # the classes in the means
    classes = max(counted.sum(), 1)
    result = {"mAP": mean_of(ap)}
    if counts is not None and min(counts) < 100:
        for group, members in head_medium_tail(counts).items():
            if counted[members].any():
                result[group] = mean_of(ap[members])

    above = scores > threshold
    for suffix, chosen in (("", above), ("_3", above & in_top_3(scores))):
        predicted = (chosen & known).sum(axis=0)  # (K,)
        correct = (chosen & positive).sum(axis=0)
        precision = correct / np.maximum(predicted, 1)
        recall = correct / np.maximum(positives, 1)
        cp = 100 * precision[counted].sum() / classes
        cr = 100 * recall[counted].sum() / classes
        op = 100 * correct.sum() / max(predicted.sum(), 1)
        o_r = 100 * correct.sum() / max(positives.sum(), 1)
        result["CP" + suffix] = float(cp)
        result["CR" + suffix] = float(cr)
        result["CF1" + suffix] = f1(cp, cr)
        result["OP" + suffix] = float(op)
        result["OR" + suffix] = float(o_r)
        result["OF1" + suffix] = f1(op, o_r)
    result["AP"] = np.where(counted, ap, None).tolist()
    result["positives"] = positives.tolist()
    return result


def head_medium_tail(counts):
    """The indices of head (n >= 100 training images), medium (n >= 20) and tail classes."""
    group = np.digitize(counts, [20, 100])
    return {"head": np.flatnonzero(group == 2), "medium": np.flatnonzero(group == 1),
            "tail": np.flatnonzero(group == 0)}


def in_top_3(scores):
    """(N, K) -> whether a score is among the three highest of its image."""
    order = np.argsort(-scores, axis=1, kind="stable")
    ranks = np.argsort(order, axis=1)  # 0 is the highest
    return ranks < 3


def mean_of(values):
    """The mean of the values that are not nan; None if there are none."""
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
    """Probabilities float64 (N, K) of all images of a test loader; each process gets all of them.

    `flip`: the mean over the image and its mirror image. Raises InputError if a score is nan.
    """
    model.eval()
    distributed.broadcast_buffers(model)  # all processes use the same BatchNorm statistics
    device = normalize.mean.device
    all_logits = []
    for step, (images, _) in enumerate(loader, 1):
        images = normalize(images)
        with torch.autocast(device.type, amp_dtype, enabled=amp_dtype is not None):
            views = [model(images)]
            if flip:
                views.append(model(images.flip(3)))
        # (views, B, K), on the device: .cpu() would wait in each batch
        all_logits.append(torch.stack(views))
        if step % 50 == 0 and distributed.is_main():
            print(f"tested {step} of {len(loader)} batches", file=sys.stderr)

    scores = np.zeros(loader.dataset.targets.shape)
    own_scores = scores[:0]  # a process may have no images
    if all_logits:
        logits = torch.cat(all_logits, dim=1).cpu().double()  # a float32 sigmoid rounds to 1
        own_scores = logits.sigmoid().mean(0).numpy()
    for rank, part in enumerate(distributed.gather(own_scores)):  # the order of make_loader
        scores[rank::distributed.world_size()] = part
    bad = np.isnan(scores).any(axis=1).sum()
    if bad:
        raise InputError(f"{bad} images have the score nan: lower --lr, set --clip-grad, or "
                         "use --amp off")
    return scores


def at_size(model, size):
    """A copy for images of this size. ViT and Swin resample their position embeddings; a ResNet
    takes any size."""
    model = copy.deepcopy(model)
    with explain_errors(f"image size {size}", "choose a multiple of the backbone's patches"):
        backbone = getattr(model, "backbone", None)
        if hasattr(backbone, "set_input_size"):
            backbone.set_input_size((size, size))
        with torch.no_grad():
            model(torch.zeros(1, 3, size, size))  # fails if the size does not fit
    return model


class Residual(nn.Module):
    """CSRA's test-time trick: the mean class score of the cells + lam x the highest. For models
    with a linear classifier on the mean feature: asl.py's, and csra.py's without attention."""

    def __init__(self, model, lam):
        super().__init__()
        self.model = model
        self.lam = lam
        self.csra = import_method("csra")

    def forward(self, images):
        if isinstance(self.model, self.csra.CSRA):
            s = self.model.head.scores(self.model.features(images))  # (B, heads, K, HW)
        else:
            _, maps = self.model.attention(images)  # class scores (B, K, H, W)
            s = maps.flatten(2).unsqueeze(1)  # (B, 1, K, HW): one head
        return self.csra.residual(s, self.lam).sum(1)  # over heads


class Evaluation:
    """The model of a checkpoint, and the data for the classes that the model knows."""

    def __init__(self, path, weights=None, workers=-1, residual=None):
        """weights: raw or ema, by default those that the run reports. Raises InputError."""
        self.device = distributed.start()
        self.checkpoint = read_checkpoint(path)
        self.classes = self.checkpoint["classes"]
        self.settings = self.checkpoint["settings"]  # a Namespace
        self.settings.workers = workers
        self.weights, state = reported_weights(self.checkpoint, weights)
        self.model = model_of(self.checkpoint, state, path)
        self.residual = residual
        if residual is not None:
            lam = getattr(self.settings, "lam", 0)  # of csra
            if self.settings.model not in ("asl", "csra") or lam != 0:
                raise InputError("--residual needs a pooled linear classifier: asl's, or that of "
                                 "csra --lam 0")

    def load(self, split, name=None, root=None, limit=0):
        """A split of the data set `name`, by default the one trained on. Its columns are put into
        the order of the model's classes; other classes are left out. What the run left out of its
        own data set (drop_unlabelled, long_tail) counts in other data. A published data set is the
        same in each folder, your own images are not."""
        name = name or self.settings.data
        root = root or self.settings.root
        same_data = name == self.settings.data
        if name == "csv":
            same_data = same_data and os.path.realpath(root) == os.path.realpath(self.settings.root)
        left_out = {}
        if same_data:
            left_out["drop_unlabelled"] = self.settings.drop_unlabelled
            left_out["long_tail"] = self.settings.long_tail
        dataset = load(name, root, split, difficult=self.settings.difficult, **left_out)
        lost = [label for label in self.classes if label not in dataset.classes]
        spelled = {spelling(label): label for label in dataset.classes}
        for label in lost:
            if spelling(label) in spelled:
                raise InputError(f"{name}: the model's class {label!r} is spelled "
                                 f"{spelled[spelling(label)]!r} there: spell both alike")
        # A test.csv with a column of label names shows only the classes that occur in it. Without
        # train.csv, the model may have more classes: no test image has them.
        if lost and not (name == "csv" and names_alone(Path(root), split)):
            raise InputError(f"{name} lacks {len(lost)} classes of the model ({lost[:5]}): "
                             "choose --data and --root that have them")
        classes = dataset.classes + lost
        targets = np.pad(dataset.targets, ((0, 0), (0, len(lost))))  # with 0: no image has them
        if len(classes) > len(self.classes) and distributed.is_main():
            print(f"{name}: only the model's {len(self.classes)} of {len(classes)} classes count",
                  file=sys.stderr)
        columns = [classes.index(label) for label in self.classes]
        dataset = Dataset(self.classes, dataset.paths, targets[:, columns], dataset.upright)
        return dataset.sample(limit)

    def scores(self, dataset, sizes=None, flip=False):
        """Probabilities (N, K), the mean over image sizes; by default the size trained on."""
        sizes = sizes or [self.settings.image_size]
        normalize = Normalize(self.settings.mean, self.settings.std, self.device)
        amp_dtype = distributed.autocast_dtype(self.device, self.settings.amp)
        total = 0
        for size in sizes:
            settings = copy.copy(self.settings)
            settings.image_size = size
            loader = make_loader(dataset, settings, training=False)
            model = at_size(self.model, size)
            if self.residual is not None:
                model = Residual(model, self.residual)
            model.to(self.device, memory_format=torch.channels_last)
            total = total + predict(model, loader, normalize, amp_dtype, flip)
        return total / len(sizes)


# ------------------------------------------------------------------------------------- command line


def checkpoint_parser(description):
    """The flags of all programs that use a checkpoint. The first line of `description` is shown."""
    first_line, _, _ = description.partition("\n")
    parser = argparse.ArgumentParser(description=first_line, allow_abbrev=False)
    parser.add_argument("--checkpoint", required=True,
                        help="last.pt or best.pt of train.py, or a converted one")
    parser.add_argument("--weights", choices=["raw", "ema"],
                        help="default: those that the run reports")
    return parser


def add_data_flags(parser):
    parser.add_argument("--data", choices=READERS, help="default: the data set trained on")
    parser.add_argument("--root", help="default: the folder used in training")
    parser.add_argument("--workers", type=integer(-1), default=-1,
                        help="loading processes; -1: automatic")
    parser.add_argument("--limit", type=integer(0), default=0,
                        help="only N random images, always the same; 0: all")


def main(argv=None):
    parser = checkpoint_parser(__doc__)
    add_data_flags(parser)
    flag = parser.add_argument
    flag("--split", default="test", choices=["train", "val", "test"], help="the split to evaluate")
    flag("--ap", default="all-points", choices=KINDS, help="definition of AP")
    flag("--threshold", default="0.5", help="a number, or a file from python -m tools.thresholds")
    flag("--image-size", "--sizes", type=integers, dest="sizes",
         help="default: the size used in training; several, such as 448,576, are averaged")
    flag("--flip", action="store_true", help="average with the mirrored image")
    flag("--residual", type=float, metavar="LAM", help="CSRA's test-time trick: + LAM x max score")
    flag("--out", metavar="JSON", help="write the table")
    flag("--scores", metavar="NPZ", help="write scores, targets, classes, paths")
    args = parser.parse_args(argv)
    check_output(args.out, [args.checkpoint, args.threshold])
    check_output(args.scores, [args.checkpoint, args.threshold, args.out])

    evaluation = Evaluation(args.checkpoint, args.weights, args.workers, args.residual)
    settings = evaluation.settings
    threshold = read_threshold(args.threshold, evaluation.classes)
    sizes = args.sizes or [settings.image_size]
    dataset = evaluation.load(args.split, args.data, args.root, args.limit)
    scores = evaluation.scores(dataset, sizes, args.flip)
    if not distributed.is_main():
        return

    for warning in label_warnings(dataset, args.split):
        print(warning, file=sys.stderr)
    counts = evaluation.checkpoint["class_counts"]
    result = metrics(scores, dataset.targets, threshold, args.ap, counts)
    result["what"] = (f"{settings.model} on {args.data or settings.data} {args.split}: "
                      f"{len(scores)} images, {evaluation.weights} weights, image sizes {sizes}, "
                      f"flip {args.flip}, residual {args.residual}, {args.ap} AP, "
                      f"threshold {args.threshold}")
    if (args.data or settings.data) in HAVE_DIFFICULT:
        result["what"] += f", difficult objects {settings.difficult}"
    result["threshold"] = threshold.tolist()
    result["classes"] = dataset.classes
    result["images"] = len(scores)
    print_table(result)
    if args.out:
        with explain_errors(args.out, WRITE_REMEDY):
            Path(args.out).write_text(json.dumps(result))
    if args.scores:
        with explain_errors(args.scores, WRITE_REMEDY), open(args.scores, "wb") as file:
            np.savez_compressed(file, scores=scores, targets=dataset.targets,
                                classes=dataset.classes, paths=dataset.paths.tolist())


def print_table(result):
    """AP and positives per class (without positives: nan), then the means."""
    print(result["what"])
    ap = np.array(result["AP"], float)  # None becomes nan
    for name, value, positives in zip(result["classes"], ap, result["positives"]):
        print(f"  {name:24}{value:12.2f} AP {positives:8} positives")
    for name, value in result.items():
        if isinstance(value, float):
            print(f"{name} {value:.2f}")


def read_threshold(text, classes):
    """--threshold, a number or a file from tools/thresholds.py -> (K,). Raises InputError."""
    remedy = "a number in [0, 1] is needed, or a file from tools.thresholds for these classes"
    with explain_errors(f"--threshold {text}", remedy):
        if text.endswith(".json") or Path(text).is_file():
            content = json.loads(Path(text).read_bytes())
            values = content["threshold"]
        else:
            values = float(text)
        if isinstance(values, dict):
            values = [values[name] for name in classes]
        values = np.array(values, float)
        # A threshold may be just below 0, so that a score of 0 counts.
        if not ((values > -1e-9) & (values <= 1)).all():
            raise ValueError("not a probability")
        return np.broadcast_to(values, len(classes))


def check_output(path, others):
    """Creates the file that will be written, which must not be one of the others. If it cannot be
    written, raises InputError before the work starts."""
    if path is None:
        return
    with explain_errors(path, WRITE_REMEDY):
        for other in others:
            if other and os.path.realpath(path) == os.path.realpath(other):
                raise FileExistsError("another flag names the same file")
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        open(path, "a").close()


if __name__ == "__main__":
    with distributed.program():
        main()
