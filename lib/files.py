"""What eval.py reads and writes besides checkpoints: scores, thresholds, tables, lists of
images."""
import json
import os
from pathlib import Path

import numpy as np

from data import Dataset, InputError, reading
from lib.processes import process

SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".avif")


def images_in(paths):
    """The files among `paths` and the images in the folders among them, each once."""
    found, folders = {}, set()
    for path in paths:
        if not os.path.isdir(path):
            found.setdefault(os.path.realpath(path), path)
        for folder, inside, names in os.walk(path, followlinks=True):
            if os.path.realpath(folder) in folders:  # a link back
                inside.clear()
                continue
            folders.add(os.path.realpath(folder))
            for file in (os.path.join(folder, name) for name in sorted(names)):
                if file.lower().endswith(SUFFIXES):
                    found.setdefault(os.path.realpath(file), file)
    for path in found.values():
        with reading(repr(path), "file names must be UTF-8: rename it"):
            os.fspath(path).encode()
    if not found:
        raise InputError(f"no images in {', '.join(map(str, paths))}")
    return [*map(os.fspath, found.values())]


def try_outputs(args):
    """Refuses outputs that cannot be written: now, not after hours of work."""
    for path in filter(None, (args.out, args.scores, args.heatmaps, args.voc_server)):
        with reading(path, "choose another place to write to"):
            is_file = path in (args.out, args.scores)
            folder = Path(path).parent if is_file else Path(path)
            folder.mkdir(parents=True, exist_ok=True)
            if not os.access(folder, os.W_OK):
                raise PermissionError("not writable")
            if is_file and Path(path).is_dir():
                raise IsADirectoryError("a folder, where a file is needed")


def read_threshold(text, classes):
    """A number, or a file of --tune-threshold with one or one per class."""
    try:
        value = float(text)
        if not 0 <= value <= 1:
            raise InputError(f"--threshold {text}: must lie in [0, 1], as probabilities do")
        return value
    except ValueError:
        with reading(text, "--threshold takes a number or a file of --tune-threshold"):
            value = json.loads(Path(text).read_bytes())["threshold"]
            values = [value[name] for name in classes] if isinstance(value, dict) else [value]
            if not all(type(x) in (int, float) and -1 <= x <= 1 for x in values):
                raise ValueError("not a number in [0, 1] for each class") from None
            return np.array(values) if isinstance(value, dict) else value


def write_threshold(scorer, split, threshold):
    """CHECKPOINT.thresholds.json next to the checkpoint."""
    path = Path(scorer.file).with_suffix(".thresholds.json")
    value = threshold if np.ndim(threshold) == 0 else dict(zip(scorer.classes, threshold.tolist()))
    if process()[0] == 0:
        write_json(path, {"data": scorer.data, "split": split, "threshold": value})
        print(f"threshold tuned on {split}, in {path}")


def write_json(path, content):
    with reading(path, "make room, or choose another place to write to"):
        Path(path).write_text(json.dumps(content))


def read_scores(path):
    """--from-scores: a file of --scores, or your own. Scores (N, K), a Dataset, class
    frequencies."""
    with reading(path, "needs scores (N, K) in [0, 1], targets (N, K) of 1, 0, -1, classes (K,)"), \
            np.load(path) as file:
        scores, targets = file["scores"], file["targets"]
        classes, counts = [*map(str, file["classes"])], file.get("counts")
        paths = file.get("paths", np.arange(len(scores)).astype(str))
        if scores.dtype.kind not in "fiu" or file["classes"].ndim != 1 or paths.ndim != 1 \
                or len(set(classes)) < len(classes) or counts is not None and not (
                    counts.dtype.kind in "fiu" and (counts >= 0).all()):
            raise ValueError("scores or counts that are not numbers, paths that are not a list, or "
                             "classes that are not a list of distinct names")
        if not scores.shape == targets.shape == (len(paths), len(classes)) or not scores.size \
                or counts is not None and counts.shape != (len(classes),):
            raise ValueError(f"scores {scores.shape}, targets {targets.shape}, {len(classes)} "
                             f"classes, {len(paths)} paths, or counts, do not match")
        if not ((scores >= 0) & (scores <= 1)).all() or not np.isin(targets, (-1, 0, 1)).all():
            raise ValueError("a score outside [0, 1], or a target other than 1, 0, -1")
        return scores.astype(float), Dataset(classes, paths, targets.astype(np.int8)), counts


def write_scores(path, scores, data, counts):
    """--scores: saves scores and targets (N, K), classes, paths and class frequencies."""
    more = {} if counts is None else {"counts": counts}
    with reading(path, "make room, or choose another place to write to"), open(path, "wb") as file:
        np.savez_compressed(file, scores=scores, targets=data.targets, **more,
                            classes=np.array(data.classes), paths=np.array([*data.paths], str))


def write_for_server(folder, data, scores):
    """--voc-server: VOC 2012's result files, one per class."""
    folder = Path(folder, "results", "VOC2012", "Main")
    with reading(folder, "make room, or choose another place to write to"):
        folder.mkdir(parents=True, exist_ok=True)
        for label, column in zip(data.classes, scores.T):
            lines = (f"{Path(path).stem} {score:.8f}\n" for path, score in zip(data.paths, column))
            (folder / f"comp2_cls_test_{label}.txt").write_text("".join(lines))
    print(f"{len(data.classes)} files for {len(scores)} images in {folder}")
