"""What ends a run with a clear message: settings, images and losses that cannot work."""
import math

from data import InputError
from lib.processes import everyone, process


def check(s, device):
    """Refuses settings that this machine cannot run."""
    world = process()[1]
    if s["batch_size"] % (world * s["accumulate"]):
        raise InputError(f"--batch-size {s['batch_size']} must be a multiple of {world} processes "
                         f"times --accumulate {s['accumulate']}")
    if world > 1 and s["download"]:
        raise InputError("--download: run it first, in one process: python data.py --download")
    if s["sync_bn"] and device.type != "cuda":
        raise InputError("--sync-bn is for several GPUs")


def unreadable(batch, allowed, known):
    """The unreadable images so far, of all processes; more than `allowed` are an error."""
    pairs = everyone((batch.bad, len(batch.index))) if allowed else [(batch.bad, len(batch.index))]
    bad = known.union(*(texts for texts, _ in pairs))
    if len(bad) > allowed or not all(count for _, count in pairs):
        raise InputError(f"{(batch.bad or sorted(bad))[0]}; --skip-bad N leaves out up to N, not a "
                         "whole batch of them")
    return bad


def check_losses(losses, epoch, s, last):
    """Refuses to go on with a loss that is not finite. `losses`: of this epoch."""
    for step, loss in enumerate(losses, 1):
        if not math.isfinite(loss):
            raise InputError(f"loss {loss} in epoch {epoch}, step {step}, lr {s['lr']}, amp "
                             f"{s['amp']}: lower --lr, set --clip-grad, or --amp off; {last} is as "
                             "the last save left it")
