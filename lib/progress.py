"""Progress of long work: a line about every ten seconds."""
import sys
import time

from lib.distributed import print_once, world_size

SECONDS = 10  # between two lines


class Clock:
    """due() is true about every ten seconds."""

    def __init__(self):
        self.last = time.time()

    def due(self):
        now = time.time()
        if now - self.last < SECONDS:
            return False
        self.last = now
        return True


class TrainingProgress:
    """Prints how far a run is, how fast, and how long it will still take.

    loss_unit: what the loss is, for people.
    """

    def __init__(self, epochs, train_loader, monitor_loader, loss_unit):
        self.epochs = epochs
        self.steps = len(train_loader)  # per epoch
        self.images_per_step = train_loader.batch_size * world_size()
        self.loss_unit = loss_unit
        # An image is evaluated about three times as fast as it is trained on. This is for the first
        # epoch only: then the seconds of a whole epoch are known.
        self.evaluation = len(monitor_loader) / 3  # in training steps
        self.epoch_seconds = None

    def start_epoch(self):
        self.epoch_start = time.time()
        self.shown_at = self.epoch_start
        self.shown_step = 0

    def end_epoch(self):
        """Returns the seconds that the epoch took, with its evaluation."""
        self.epoch_seconds = time.time() - self.epoch_start
        return self.epoch_seconds

    def due(self):
        return time.time() - self.shown_at >= SECONDS

    def show(self, epoch, step, loss, lr):
        """epoch: from 0; step: from 1. In a terminal, a line replaces the one before."""
        now = time.time()
        images = (step - self.shown_step) * self.images_per_step
        speed = images / max(now - self.shown_at, 1e-9)
        self.shown_at = now
        self.shown_step = step
        line = (f"epoch {epoch + 1}/{self.epochs} step {step}/{self.steps} loss {loss:.4f} "
                f"({self.loss_unit}) lr {lr:.2e} {speed:.0f} images/s, "
                f"{duration(self.seconds_left(epoch, step))} left")
        if sys.stdout.isatty():
            end = "\n" if step == self.steps else "\r"
            print_once(line.ljust(99), end)
        else:
            print_once(line)

    def seconds_left(self, epoch, step):
        """Of the whole run."""
        elapsed = time.time() - self.epoch_start
        epoch_seconds = self.epoch_seconds
        if epoch_seconds is None:
            epoch_seconds = elapsed / step * (self.steps + self.evaluation)
        return max((self.epochs - epoch) * epoch_seconds - elapsed, 0)


def duration(seconds):
    """In words."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    if seconds < 100 * 60:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h"
