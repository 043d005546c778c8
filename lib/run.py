"""How the programs start, report and end: the log, signals, errors in one line."""
import fcntl
import json
import os
import signal
import sys
import time
from contextlib import contextmanager
from pathlib import Path

import torch
import torch.distributed as dist

from data import InputError, reading
from lib.processes import process


class Log:
    """OUT/log.jsonl: one JSON line for programs; `say`: one line for people. Only rank 0 writes."""

    def __init__(self, out, record, fresh=False):
        self.on = process()[0] == 0
        with reading(out, "choose another --out"):
            if self.on:
                out.mkdir(parents=True, exist_ok=True)
            self.file = (out / "log.jsonl" if self.on else Path(os.devnull)).open("a", buffering=1)
        if self.on:  # the system frees the lock when the process ends, however it ends
            try:
                fcntl.flock(self.file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as error:
                raise InputError(f"{out}: another run is writing there ({error}): wait for it, "
                                 "stop it, or choose another --out") from error
            if fresh and (out / "last.pt").exists():  # of a run that ended in the meantime
                raise InputError(f"{out / 'last.pt'} exists: --resume continues it, --out starts "
                                 "elsewhere")
            self.file.truncate(0)
        for line in record:
            self.write(line)

    def write(self, line):
        with reading(self.file.name, "make room, then --resume"):
            self.file.write(json.dumps(line) + "\n")

    def say(self, *text, sep=" "):
        if self.on:
            print(*text, sep=sep, flush=True)


def new_folder(stem):
    """A new run's folder, named by the time; runs that start in the same second do not share it."""
    stem += time.strftime("-%Y%m%d-%H%M%S")
    while process()[0] == 0:
        try:
            Path(stem).mkdir(parents=True)
            break
        except FileExistsError:  # another run began in the same second
            stem += "x"
    return stem


REMEDIES = {  # a part of an error's text -> what helps
    "DataLoader worker": "A loading process died, in most cases for lack of (shared) memory: lower "
                         "--workers; 0 loads in the main process",
    "more than 1 value per channel": "BatchNorm needs more than one cell: raise --batch-size or "
                                     "--image-size"}
SIGNALS = []  # received so far


def note_signal(number, frame):
    """The first signal ends a run after its step; a second one ends it at once."""
    SIGNALS.append(number)
    signal.signal(number, signal.SIG_DFL)


def stopped():
    """Whether any process has received a signal."""
    stop = torch.tensor(len(SIGNALS))
    if process()[1] > 1:
        dist.all_reduce(stop)  # on the CPU, so that the GPU need not be waited for
    return bool(stop)


@contextmanager
def program(note_signals=False):
    """Turns errors that a user can fix into one line; leaves the process group in any case."""
    numbers = (signal.SIGTERM, signal.SIGINT) if note_signals else ()
    before = [signal.signal(number, note_signal) for number in numbers]
    SIGNALS.clear()
    try:
        yield
    except InputError as error:
        sys.exit(f"error: {error}")
    except torch.OutOfMemoryError as error:
        sys.exit(f"error: {str(error).splitlines()[0]:.200}\nOut of memory on the device: "
                 "--accumulate 2 keeps the batch size; --grad-checkpointing saves more, at a cost")
    except (RuntimeError, ValueError) as error:
        remedy = next((remedy for text, remedy in REMEDIES.items() if text in str(error)), None)
        if not remedy:
            raise
        sys.exit(f"error: {str(error).splitlines()[0]:.200}\n{remedy}")
    finally:
        for number, action in zip(numbers, before):
            signal.signal(number, action)
        if dist.is_available() and dist.is_initialized():
            time.sleep(0.1)  # torch 2.6 hangs here while its thread still frees the last operation
            dist.destroy_process_group()
