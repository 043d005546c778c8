"""Which samples a step takes: for each batch a list of keys (epoch, index) of this process."""
import numpy as np

from lib.processes import process


def in_order(count, batch_size):
    """Each of `count` samples once, in order; the batches of all processes."""
    rank, world = process()
    return [[(0, i) for i in range(start + rank, min(start + batch_size, count), world)]
            for start in range(0, count, batch_size)]


def shuffled(count, batch_size, epochs, seed, first=0):
    """A whole training from step `first` on. Each epoch has its own order, by (seed, epoch), and
    drops what is left after its last full batch."""
    rank, world = process()
    steps = max(count // batch_size, 1)  # per epoch
    for step in range(first, epochs * steps):
        epoch, k = divmod(step, steps)
        if k == 0 or step == first:
            order = np.random.default_rng((seed, epoch)).permutation(count)
        batch = order[k * batch_size:(k + 1) * batch_size]
        yield [(epoch, i) for i in batch[rank::world].tolist()]


def sample(data, count):
    """A random choice of `count` samples, in their order and the same each time: the rows of a list
    are often sorted by class. count 0: all."""
    if not 0 < count < len(data):
        return data
    return data.subset(np.sort(np.random.default_rng(0).permutation(len(data))[:count]))
