"""Training runs in which something goes wrong at a known moment, for test_reliable.py.

Run: python tests/programs/faults.py FAULT [flags of train.py]
"""
import itertools
import os
import signal
import sys
import time
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parents[2]))
import data
import train

SAVE, NORMALIZE, COUNT = torch.save, data.normalize, itertools.count(1)


def killed_in_save(state, path):
    """The sixth checkpoint is written in part."""
    SAVE(state, path)
    if next(COUNT) == 6:
        os.truncate(path, os.path.getsize(path) // 2)
        os.kill(os.getpid(), signal.SIGKILL)


def signaled(number, *inputs):
    """In step 2 of epoch 2; to the workers too, as schedulers and terminals do."""
    if next(COUNT) == 6:
        os.killpg(0, number)
    return NORMALIZE(*inputs)


def signaled_twice(*_):
    os.kill(os.getpid(), signal.SIGTERM)
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(60)


def broken(*_):
    raise ValueError("unforeseen")


def dead_worker(*_):
    os.kill(os.getpid(), signal.SIGKILL)


fault = sys.argv.pop(1)
if fault == "killed_in_save":
    torch.save = killed_in_save
elif fault == "dead_worker":
    data.Dataset.image = dead_worker
elif fault in ("SIGTERM", "SIGINT"):
    train.normalize = lambda *inputs: signaled(signal.Signals[fault], *inputs)
else:
    train.normalize = {"signaled_twice": signaled_twice, "broken": broken}[fault]
train.main()
