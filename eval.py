"""Scores the images of a data set with a checkpoint, and prints the metrics of lib/metrics.py.

Run: python eval.py --checkpoint OUT/last.pt [--data NAME --root ROOT --split test]

--out JSON has what is printed, and more: mAP, CP, ... as numbers; under "classes", by name, each
class's AP, precision, recall, F1 (null without positives), positives, and threshold.
"""
import argparse
import copy
import json
import math
import os
import sys
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F

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
from lib.metrics import KINDS, MEANS, average_precision, metrics  # noqa: F401 (others import them)
from lib.models import import_method, model_of, reported_weights
from lib.progress import Clock
from lib.settings import integer, integers
from readers import READERS
from readers.own_images import names_alone

PER_CLASS = ("AP", "precision", "recall", "F1")
WRITE_REMEDY = "make room, or choose another place to write to"
MEMORY_REMEDY = "add a smaller --batch-size"


# ------------------------------------------------------------------------------------------- scores


@torch.inference_mode()
def predict(model, loader, normalize, amp_dtype, flip=False):
    """Logits float64 (N, K) of all images of a test loader; each process gets all of them.

    Not probabilities: those of a very sure model round to 1, which would tie its images. `flip`:
    of the mean probability of an image and its mirror image. Raises InputError if a logit is nan.
    """
    model.eval()
    distributed.broadcast_buffers(model)  # all processes use the same BatchNorm statistics
    device = normalize.mean.device
    all_logits = []
    clock = Clock()
    for step, (images, _) in enumerate(loader, 1):
        images = normalize(images)
        with torch.autocast(device.type, amp_dtype, enabled=amp_dtype is not None):
            views = [model(images)]
            if flip:
                views.append(model(images.flip(3)))
        # (views, B, K), on the device: .cpu() would wait in each batch
        all_logits.append(torch.stack(views))
        if clock.due() and distributed.is_main():
            print(f"evaluated {step} of {len(loader)} batches", file=sys.stderr)

    logits = np.zeros(loader.dataset.targets.shape)
    own_logits = logits[:0]  # a process may have no images
    if all_logits:
        views = torch.cat(all_logits, dim=1).cpu().double()
        own_logits = logit_of_mean(views).numpy()
    for rank, part in enumerate(distributed.gather(own_logits)):  # the order of make_loader
        logits[rank::distributed.world_size()] = part
    bad = np.isnan(logits).any(axis=1).sum()
    if bad:
        raise InputError(f"{bad} images have the score nan: lower --lr, set --clip-grad, or "
                         "use --amp off")
    return logits


def logit_of_mean(logits):
    """Logits (views, N, K) -> the logits (N, K) of the views' mean probability."""
    if len(logits) == 1:
        return logits[0]
    # log p - log(1 - p), where p is the mean; the number of views cancels
    log_p = F.logsigmoid(logits).logsumexp(0)
    log_not_p = F.logsigmoid(-logits).logsumexp(0)
    return log_p - log_not_p


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


class Evaluation:
    """The model of a checkpoint, and the data for the classes that the model knows."""

    def __init__(self, path, weights=None, workers=-1, residual=None, batch_size=None):
        """weights: raw or ema, by default those that the run reports; batch_size: by default as in
        training. Raises InputError."""
        self.device = distributed.start()
        self.checkpoint = read_checkpoint(path)
        self.classes = self.checkpoint["classes"]
        self.settings = self.checkpoint["settings"]  # a Namespace
        self.settings.workers = workers
        if batch_size is not None:
            self.settings.batch_size = batch_size
        self.residual = residual
        if residual is not None:
            with explain_errors("--residual", "leave it out"):
                import_method("csra").check_residual(self.settings)
        self.weights, state = reported_weights(self.checkpoint, weights)
        self.model = model_of(self.checkpoint, state, path)

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

    def logits(self, dataset, sizes=None, flip=False):
        """Logits (N, K) of the mean probability over image sizes; by default the size trained on.
        """
        sizes = sizes or [self.settings.image_size]
        normalize = Normalize(self.settings.mean, self.settings.std, self.device)
        amp_dtype = distributed.autocast_dtype(self.device, self.settings.amp)
        views = []
        for size in sizes:
            settings = copy.copy(self.settings)
            settings.image_size = size
            loader = make_loader(dataset, settings, training=False)
            model = at_size(self.model, size)
            if self.residual is not None:
                model = import_method("csra").Residual(model, self.residual)
            model.to(self.device, memory_format=torch.channels_last)
            views.append(torch.from_numpy(predict(model, loader, normalize, amp_dtype, flip)))
        return logit_of_mean(torch.stack(views)).numpy()


# ------------------------------------------------------------------------------------- command line


def checkpoint_parser(description):
    """The flags of all programs that use a checkpoint."""
    parser = argparse.ArgumentParser(description=description, allow_abbrev=False)
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
    parser.add_argument("--batch-size", type=integer(1), help="default: as in training")
    parser.add_argument("--limit", type=integer(0), default=0,
                        help="only N random images, always the same; 0: all")


def main(argv=None):
    parser = checkpoint_parser("Prints the metrics of a checkpoint.")
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
    flag("--scores", metavar="NPZ",
         help="write scores (probabilities), logits, targets, classes, paths")
    args = parser.parse_args(argv)
    check_output(args.out, [args.checkpoint, args.threshold])
    check_output(args.scores, [args.checkpoint, args.threshold, args.out])

    evaluation = Evaluation(args.checkpoint, args.weights, args.workers, args.residual,
                            args.batch_size)
    settings = evaluation.settings
    threshold = read_threshold(args.threshold, evaluation.classes)
    logit_threshold = threshold_logits(args.threshold, evaluation.classes)
    sizes = args.sizes or [settings.image_size]
    dataset = evaluation.load(args.split, args.data, args.root, args.limit)
    logits = evaluation.logits(dataset, sizes, args.flip)
    if not distributed.is_main():
        return

    for warning in label_warnings(dataset, args.split):
        print(warning, file=sys.stderr)
    counts = evaluation.checkpoint["class_counts"]
    result = metrics(logits, dataset.targets, logit_threshold, args.ap, counts)
    result["what"] = (f"{settings.model} on {args.data or settings.data} {args.split}: "
                      f"{len(logits)} images, {evaluation.weights} weights, image sizes {sizes}, "
                      f"flip {args.flip}, residual {args.residual}, {args.ap} AP, "
                      f"threshold {args.threshold}")
    if (args.data or settings.data) in HAVE_DIFFICULT:
        result["what"] += f", difficult objects {settings.difficult}"
    result["images"] = len(logits)
    result["classes"] = by_class(result, dataset.classes, threshold)
    if args.out:
        with explain_errors(args.out, WRITE_REMEDY):
            Path(args.out).write_text(json.dumps(result))
    if args.scores:
        with explain_errors(args.scores, WRITE_REMEDY), open(args.scores, "wb") as file:
            np.savez_compressed(file, scores=probabilities(logits), logits=logits,
                                targets=dataset.targets, classes=dataset.classes,
                                paths=dataset.paths.tolist())
    print_table(result)


def by_class(result, classes, threshold):
    """Takes the lists out of the metrics. Returns class -> AP, precision, ..., threshold."""
    columns = {}
    for name in (*PER_CLASS, "positives"):
        columns[name] = result.pop(name)
    columns["threshold"] = threshold.tolist()
    table = {}
    for k, label in enumerate(classes):
        table[label] = {name: values[k] for name, values in columns.items()}
    return table


def print_table(result):
    """A line per class, the means over all labels and over the top 3, then mAP. A class name is the
    last in its line, so that a long one moves no figure."""
    def number(value):
        return math.nan if value is None else value  # without positives

    print(result["what"])
    print("\n      AP  precision  recall      F1  positives")
    for label, row in result["classes"].items():
        ap, precision, recall, f1 = [number(row[name]) for name in PER_CLASS]
        print(f"{ap:8.2f}{precision:11.2f}{recall:8.2f}{f1:8.2f}{row['positives']:11}  {label}")

    print("\n" + "".join(f"{name:>8}" for name in MEANS))
    for suffix, what in (("", "all labels"), ("_3", "top 3 of each image")):
        print("".join(f"{result[name + suffix]:8.2f}" for name in MEANS) + f"  {what}")

    print()
    for name in ("head", "medium", "tail", "mAP"):
        if name in result:
            print(f"{name} {number(result[name]):.2f}")


def read_threshold(text, classes):
    """--threshold, a number or a file, -> (K,). The file is from tools/thresholds.py, with one
    threshold or one for each class by name, or it is a table of eval.py. Raises InputError."""
    remedy = "a number in [0, 1] is needed, or a file from tools.thresholds for these classes"
    with explain_errors(f"--threshold {text}", remedy):
        if text.endswith(".json") or Path(text).is_file():
            content = json.loads(Path(text).read_bytes())
            if "threshold" in content:
                values = content["threshold"]
            else:  # a table of eval.py
                values = {name: row["threshold"] for name, row in content["classes"].items()}
        else:
            values = float(text)
        if isinstance(values, list):
            raise TypeError("a list of thresholds does not say which class each one is for")
        if isinstance(values, dict):
            values = [values[name] for name in classes]
        values = np.array(values, float)
        # A threshold may be just below 0, so that a score of 0 counts.
        if not ((values > -1e-9) & (values <= 1)).all():
            raise ValueError("not a probability")
        return np.broadcast_to(values, len(classes))


def threshold_logits(text, classes):
    """--threshold in logits (K,). A file of tools/thresholds.py has them, too, because the
    probabilities of a very sure model round to 1. Raises InputError."""
    thresholds = read_threshold(text, classes).clip(0, 1)
    if Path(text).is_file():
        with explain_errors(f"--threshold {text}", "write it again with tools.thresholds"):
            logits = json.loads(Path(text).read_bytes()).get("logit")
            if isinstance(logits, dict):
                logits = [logits[name] for name in classes]
            if logits is not None:
                return np.broadcast_to(np.array(logits, float), len(classes))
    with np.errstate(divide="ignore"):  # at 0 and 1, they are infinite
        return np.log(thresholds) - np.log1p(-thresholds)


def probabilities(logits):
    """A numpy array of logits -> float64 probabilities."""
    return torch.from_numpy(logits).double().sigmoid().numpy()


def check_output(path, others, replaced=False):
    """Tries whether a file can be written, which must not be one of the others. If not, raises
    InputError before the work starts. replaced: another file will be renamed to it."""
    if path is None:
        return
    with explain_errors(path, WRITE_REMEDY):
        for other in others:
            if other and os.path.realpath(path) == os.path.realpath(other):
                raise FileExistsError("another flag names the same file")
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        is_new = not Path(path).exists()
        if replaced and not is_new and not os.path.isdir(path) and not os.path.isfile(path):
            raise FileExistsError("it is a device, not a file")
        open(path, "a").close()
        if is_new:
            os.remove(path)  # if the work fails, no empty file is left


if __name__ == "__main__":
    with distributed.program(MEMORY_REMEDY):
        main()
