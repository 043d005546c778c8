"""Training runs in which something goes wrong at a known moment, for test_reliable.py.

Run: python tests/programs/faults.py FAULT [flags of train.py]
"""
import itertools
import os
import signal
import sys
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parents[2]))
import data
import train

SAVE, COUNT = torch.save, itertools.count(1)


def killed_in_save(state, path):
    """The fourth checkpoint is written in part."""
    SAVE(state, path)
    if next(COUNT) == 4:
        os.truncate(path, os.path.getsize(path) // 2)
        os.kill(os.getpid(), signal.SIGKILL)


def broken(*_):
    raise ValueError("unforeseen")


fault = sys.argv.pop(1)
if fault == "killed_in_save":
    torch.save = killed_in_save
elif fault == "broken":
    data.Normalize.__call__ = broken
train.main()
