"""Checkpoints: written whole, read without executing anything, and compared with the data."""
import hashlib
import os
import pickle

import numpy as np
import torch

from data import InputError
from sets.table import one_line


def save(checkpoint, path):
    """Writes to a temporary name, then renames: an interruption leaves the old file intact."""
    part = path.with_suffix(".tmp")
    try:
        torch.save(checkpoint, part)
        os.replace(part, path)
    except (OSError, RuntimeError) as error:  # torch's writer raises the second
        part.unlink(missing_ok=True)
        raise InputError(f"{path} can't be written ({str(error).splitlines()[0]}): make room, then "
                         "--resume; the checkpoint before it is intact") from error


def read_file(path):
    """A saved file of tensors, and of numpy numbers as released files have; executes nothing."""
    number = np._core.multiarray.scalar  # numpy 1 wrote it under another name
    allowed = [number, (number, "numpy.core.multiarray.scalar"), np.dtype,
               *(type(np.dtype(kind)) for kind in ("float64", "float32", "int64"))]
    try:
        with torch.serialization.safe_globals(allowed):
            return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:  # its text advises running the file's code
        raise InputError(f"{path}: not a readable checkpoint: it is damaged, or holds more than "
                         "tensors and numbers") from error
    except Exception as error:  # torch raises many kinds on damaged files
        raise InputError(f"{path}: not a readable checkpoint ({one_line(error)}); "
                         "train.py writes OUT/last.pt after each epoch") from error


def read_checkpoint(path):
    """A checkpoint of train.py."""
    checkpoint = read_file(path)
    parts = {"settings": dict, "model": dict, "classes": list, "ema": (dict, type(None))}
    if not isinstance(checkpoint, dict) or "settings" not in checkpoint:
        raise InputError(f"{path}: not written by train.py; eval.py --official takes released ones")
    for name, kind in parts.items():
        if not isinstance(checkpoint.get(name), kind):
            raise InputError(f"{path}: damaged: its {name!r} is missing or of another kind; train "
                             "again, or restore a backup")
    count = checkpoint.get("counts")
    if count is not None and (not isinstance(count, list) or len(count) != len(
            checkpoint["classes"]) or not all(type(n) is int for n in count)):
        raise InputError(f"{path}: damaged: its 'counts' are not a number per class")
    return checkpoint


def progress(stored, steps):
    """Steps done, the losses of the unfinished epoch, and the history of a checkpoint."""
    done, losses, history = stored["step"], [*map(float, stored["losses"])], stored["history"]
    if type(done) is not int or done < 0 or len(history) != done // steps or not all(
            isinstance(line["mAP"], float | None) for line in history):
        raise ValueError(f"step {done}, {len(history)} epochs of {steps} steps")
    return done, losses, history


def fingerprint(data, root):
    """What must not change between a run and its resumption; paths are relative to `root`."""
    paths = "\n".join(path.removeprefix(f"{root}") for path in data.paths)
    return {"classes": data.classes, "number of images": len(data),
            "paths": hashlib.sha256(paths.encode("utf-8", "surrogateescape")).hexdigest(),
            "labels": hashlib.sha256(data.targets.tobytes()).hexdigest()}


def compare(stored, prints, last):
    """Refuses to resume with other data, or without the best epoch so far."""
    known, best = stored.get("prints"), last.with_name("best.pt")
    if known is None:
        raise InputError(f"{last} is from an older version: eval.py reads it, --resume does not")
    for split in {**known, **prints}:
        before, now = known.get(split, {}), prints.get(split, {})
        if changed := [what for what in {**before, **now} if before.get(what) != now.get(what)]:
            raise InputError(f"{last}: the {split} split has changed since ({', '.join(changed)}): "
                             "restore the data, or start anew with another --out")
    if "val" in prints and stored["history"] and not best.is_file():
        raise InputError(f"{best} is missing: with a val split, --resume needs it beside last.pt")
