"""Checkpoints: saved atomically, loaded without executing code, checked against data on resume."""
import argparse
import hashlib
import json
import os

import torch

from lib.errors import InputError, explain_errors


def save(checkpoint, path):
    """Writes a temporary file, then renames it: an interruption leaves the old file intact."""
    temporary = path.with_suffix(".tmp")
    with explain_errors(path, "make room, then --resume"):
        try:
            torch.save(checkpoint, temporary)
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)  # half of a file: the disk is full


def read_checkpoint(path):
    """A checkpoint of train.py or tools/convert.py, on the CPU. Raises InputError."""
    with explain_errors(path, "a whole checkpoint of train.py is needed, such as OUT/last.pt; "
                        "python -m tools.convert converts released ones"):
        checkpoint = torch.load(path, map_location="cpu", weights_only=True)
        for key in ("model", "ema", "classes", "class_counts"):
            checkpoint[key]  # KeyError if it is missing
        settings = checkpoint["settings"]
        if "clip" in settings:  # the margin's name in older checkpoints
            settings["margin"] = settings.pop("clip")
        checkpoint["settings"] = argparse.Namespace(**settings)
    return checkpoint


def fingerprint(dataset, root):
    """A hash of what must not change between a run and its resumption: classes, paths relative to
    `root`, targets."""
    paths = [path.removeprefix(root) for path in dataset.paths]
    names = json.dumps([dataset.classes, paths])
    return hashlib.sha256(names.encode() + dataset.targets.tobytes()).hexdigest()


def refuse_changed_data(path, stored, current):
    """stored, current: split -> fingerprint. `path` names the checkpoint in the message."""
    for split in ("train", "val", "test"):
        if stored.get(split) != current.get(split):
            raise InputError(f"{path}: the {split} split has changed since then: restore the data, "
                             "or start over with another --out")
