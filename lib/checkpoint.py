"""Checkpoints: written whole, read without executing anything, compared with the data on resume."""
import argparse
import hashlib
import os

import torch

from readers.errors import InputError, first_line


def save(checkpoint, path):
    """Writes under a temporary name, then renames: an interruption leaves the old file intact."""
    temporary = path.with_suffix(".tmp")
    try:
        torch.save(checkpoint, temporary)
        os.replace(temporary, path)
    except (OSError, RuntimeError) as error:  # torch's writer raises the second
        temporary.unlink(missing_ok=True)
        raise InputError(f"{path} can't be written ({first_line(error)}): make room, then "
                         "--resume") from error


def read_checkpoint(path):
    """A checkpoint of train.py or tools/convert.py, on the CPU. Raises InputError."""
    try:
        checkpoint = torch.load(path, map_location="cpu", weights_only=True)
        for key in ("model", "ema", "classes", "class_counts"):
            checkpoint[key]  # KeyError where it is missing
        checkpoint["settings"] = argparse.Namespace(**checkpoint["settings"])
        return checkpoint
    except FileNotFoundError:
        raise InputError(f"{path} is missing: train.py writes OUT/last.pt after each "
                         "epoch") from None
    except Exception as error:  # torch raises many kinds on damaged files
        raise InputError(f"{path}: not a checkpoint of train.py, or damaged "
                         f"({type(error).__name__}); python -m tools.convert takes released "
                         "ones") from error


def fingerprint(dataset, root):
    """What must not change between a run and its resumption; paths are relative to `root`."""
    paths = "\n".join(path.removeprefix(f"{root}") for path in dataset.paths)
    return {
        "classes": dataset.classes,
        "number of images": len(dataset),
        "paths": hashlib.sha256(paths.encode("utf-8", "surrogateescape")).hexdigest(),
        "labels": hashlib.sha256(dataset.targets.tobytes()).hexdigest(),
    }


def refuse_changed_data(path, stored, current):
    """stored, current: split -> fingerprint. `path` names the checkpoint in the message."""
    for split in list(stored) + list(current):
        before = stored.get(split, {})
        now = current.get(split, {})
        changed = []
        for what in list(before) + list(now):
            if before.get(what) != now.get(what) and what not in changed:
                changed.append(what)
        if changed:
            raise InputError(f"{path}: the {split} split has changed since ({', '.join(changed)}): "
                             "restore the data, or start anew with another --out")
