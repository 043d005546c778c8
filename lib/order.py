"""Which samples a run has, and which of them a step takes: keys (epoch, index) for each batch."""
import numpy as np

from data import InputError, load
from lib.processes import process
from sets import splits_of


def splits(s):
    """The splits of a run by name: train, test, and val where your own data set has one."""
    sets = {name: load(s["data"], s["root"], name, drop_unlabelled=s["drop_unlabelled"],
                       long_tail=s["long_tail"], download=s["download"])
            for name in splits_of(s["data"], s["root"])}
    for name, data in sets.items():
        if data.classes != sets["train"].classes:
            raise InputError(f"{s['data']}: train and {name} have different classes: "
                             f"{sets['train'].classes[:5]}..., {data.classes[:5]}...")
        if not (data.targets == 1).any() and not s["data"].endswith("-server"):
            raise InputError(f"{s['data']}: the {name} split has no positive label: every value is "
                             "0 or unknown")
    sets["train"] = sample(sets["train"], s["limit"])
    count = len(sets["train"])
    if count < s["batch_size"] and process()[1] * s["accumulate"] > 1:
        raise InputError(f"{count} training images are fewer than a batch: lower --batch-size")
    return sets


def in_order(count, batch_size):
    """Each of `count` samples once, in order; this rank's part of each batch."""
    rank, world = process()
    return [[(0, i) for i in range(start + rank, min(start + batch_size, count), world)]
            for start in range(0, count, batch_size)]


def shuffled(count, batch_size, epochs, seed, first=0):
    """This rank's batches from step `first` on. Each epoch has its own order, by (seed, epoch), and
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
