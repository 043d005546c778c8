"""What is worth a look before training: labels that may be mistakes, images that occur twice."""


def doubts(data, split):
    """Warnings about classes whose labels may be mistaken."""
    for value, what in ((1, "no positive image"), (0, "no negative image (-1 means unknown)")):
        bad = [name for name, ok in zip(data.classes, (data.targets == value).any(0)) if not ok]
        if bad:
            yield (f"warning: {split}: {len(bad)} of {len(data.classes)} classes have {what}: "
                   f"{', '.join(bad[:8])}{', ...' * (len(bad) > 8)}")


def copies(batches, data, split, seen):
    """Messages about images that cannot be read, and about images that occur twice with different
    labels or in two splits. `seen`: content -> (split, path, labels)."""
    for batch in batches:
        yield from batch.bad
        for image, i in zip(batch.images.numpy(), batch.index.tolist()):
            one = split, data.paths[i], data.targets[i].tobytes()
            other = seen.setdefault(image.tobytes(), one)
            if other[::2] != one[::2]:
                yield (f"{one[1]} ({split}) shows the same as {other[1]} ({other[0]})"
                       + ", with different labels" * (other[2] != one[2]))
