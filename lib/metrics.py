"""Metrics for multi-label classification. To use them elsewhere, copy this file: it needs numpy
alone.

**Average precision (AP).** Take one class and go through the images from the highest score to the
lowest. After each image, precision is the share of positives among the images so far, and recall is
the share of all positives that have been found. Three definitions of AP are in use:

    all-points   the precision at each positive, averaged over positives (CSRA, ASL, CPRFL)
    envelope     the same, but with the best precision at this or any higher recall (Q2L)
    11-point     the mean of the envelope at recall 0, 0.1, ..., 1 (PASCAL VOC 2007)

An example, four images of which three are positive:

    score        0.9   0.8   0.7   0.6
    target         1     0     1     1
    recall       1/3   1/3   2/3   3/3
    precision    1/1   1/2   2/3   3/4
    envelope       1   3/4   3/4   3/4

    all-points   (1 + 2/3 + 3/4) / 3     = 0.806     at the three positives
    envelope     (1 + 3/4 + 3/4) / 3     = 0.833     the same places
    11-point     (4 x 1 + 7 x 3/4) / 11  = 0.841     recall 0 to 0.3, then 0.4 to 1

On real data, they differ by up to two points, so every table must say which one it uses. Here,
all-points is the default. AP depends on the order alone: probabilities and logits have the same AP.
Images with the same score enter together. mAP is the mean AP over classes.

**Decisions.** A score above a threshold is a positive decision. Of class k, with TP_k correct ones:

    precision of the class   P_k = TP_k / number of positive decisions
    recall of the class      R_k = TP_k / number of positives
    CP, CR, CF1              mean P_k, mean R_k, and 2 CP CR / (CP + CR)
    OP, OR, OF1              the same, but of all decisions on all classes as if of one class

CF1 is not the mean of the classes' F1. With the suffix _3, a decision is positive only if its score
is also among the three highest of the image.

A class without positives has no AP and is left out of every mean over classes. Unknown targets (-1)
are ignored everywhere.

    result = metrics(scores, targets)                      # scores: probabilities (N, K)
    result = metrics(logits, targets, threshold=0)         # logit 0 is probability 0.5
    print(result["mAP"], result["CF1"])                    # in percent
"""
import numpy as np

KINDS = ("all-points", "envelope", "11-point")
MEANS = ("CP", "CR", "CF1", "OP", "OR", "OF1")


def average_precision(scores, targets, kind="all-points"):
    """AP per class (K,) in [0, 1], nan without positives.

    scores (N, K): real numbers of any scale, also infinite; targets (N, K): 1, 0, -1 (unknown).
    Raises ValueError: wrong shapes, a score that is nan, other targets.
    """
    scores = np.asarray(scores, np.float64)
    targets = np.asarray(targets)
    if kind not in KINDS:
        raise ValueError(f"kind {kind!r}: choose from {KINDS}")
    if scores.ndim != 2 or scores.shape != targets.shape:
        raise ValueError(f"scores {scores.shape}, targets {targets.shape}: both must be (N, K)")
    if np.isnan(scores).any():
        raise ValueError("a score is nan")
    if not np.isin(targets, (1, 0, -1)).all():
        raise ValueError("a target is not 1, 0 or -1 (unknown)")
    columns = zip(scores.T, targets.T)
    return np.array([average_precision_of_class(s, y, kind) for s, y in columns])


def average_precision_of_class(scores, targets, kind):
    """AP of one class; scores, targets (N,)."""
    _, images, positives = count_by_score(scores, targets)  # per score, from the highest
    total = positives.sum()
    if total == 0:
        return np.nan
    true_positives = positives.cumsum()
    precision = true_positives / images.cumsum()
    if kind != "all-points":
        precision = np.maximum.accumulate(precision[::-1])[::-1]  # the envelope
    if kind == "11-point":
        # For t = 0..10 the first place with TP / total >= t / 10; without division, so exact.
        places = np.searchsorted(10 * true_positives, total * np.arange(11))
        return precision[places].mean()
    return (precision * positives).sum() / total


def count_by_score(scores, targets):
    """The distinct scores, highest first, and the numbers of images and of positives with each.

    scores, targets (N,). Unknown targets (-1) are left out. Equal scores share one entry, so their
    order does not matter.
    """
    known = targets >= 0
    levels, index, images = np.unique(-scores[known], return_inverse=True, return_counts=True)
    positives = np.bincount(index, weights=targets[known] == 1)
    return -levels, images, positives


def metrics(scores, targets, threshold=0.5, kind="all-points", counts=None):
    """A dictionary, in percent:

        mAP                 mean AP over classes; head, medium, tail: over the classes of this group
        CP, ..., OF1        precision, recall and F1 at the threshold; means over classes, overall
        CP_3, ..., OF1_3    the same, if only the three highest scores of an image may be positive
        AP, precision, recall, F1
                            of each class, a list; None for a class without positives
        positives           of each class, their number

    scores (N, K): probabilities or logits; targets (N, K): 1, 0, -1 (unknown). threshold: a score
    above it is a positive decision, so it is in the unit of the scores: 0.5 for probabilities, 0
    for logits; one number, or one per class (K,). counts (K,): training images per class; without
    counts, or if every class has 100 or more, head, medium and tail are left out.
    Precision without positive decisions is 0. Without positives, mAP is None.
    Raises ValueError: wrong shapes, a score or a threshold that is nan, other targets.
    """
    scores = np.asarray(scores, np.float64)
    targets = np.asarray(targets)
    threshold = np.asarray(threshold, np.float64)
    ap = 100 * average_precision(scores, targets, kind)  # (K,)
    if threshold.shape not in ((), ap.shape) or np.isnan(threshold).any():
        raise ValueError(f"threshold {threshold}: give one number, or one for each of the "
                         f"{len(ap)} classes")
    if counts is not None and np.shape(counts) != ap.shape:
        raise ValueError(f"counts {np.shape(counts)}: give one for each of the {len(ap)} classes")

    result = {"mAP": mean_of(ap)}
    if counts is not None and min(counts) < 100:
        for group, members in head_medium_tail(counts).items():
            mean = mean_of(ap[members])
            if mean is not None:
                result[group] = mean

    decisions = scores > threshold
    all_labels = of_decisions(decisions, targets)
    top_3 = of_decisions(decisions & in_top_3(scores), targets)
    for name in MEANS:
        result[name] = float(all_labels[name])
    for name in MEANS:
        result[f"{name}_3"] = float(top_3[name])

    positives = (targets == 1).sum(axis=0)  # (K,)
    per_class = {"AP": ap, "precision": all_labels["precision"], "recall": all_labels["recall"],
                 "F1": all_labels["F1"]}
    for name, values in per_class.items():
        result[name] = np.where(positives > 0, values, None).tolist()
    result["positives"] = positives.tolist()
    return result


def of_decisions(decisions, targets):
    """CP, CR, CF1, OP, OR, OF1; precision, recall, F1 of each class (K,). In percent.

    decisions (N, K): whether the label is predicted; targets (N, K).
    """
    correct = (decisions & (targets == 1)).sum(axis=0)  # (K,)
    predicted = (decisions & (targets >= 0)).sum(axis=0)
    positives = (targets == 1).sum(axis=0)
    precision = 100 * correct / np.maximum(predicted, 1)
    recall = 100 * correct / np.maximum(positives, 1)

    counted = positives > 0  # the classes in the means
    classes = max(counted.sum(), 1)
    cp = precision[counted].sum() / classes
    cr = recall[counted].sum() / classes
    op = 100 * correct.sum() / max(predicted.sum(), 1)
    o_r = 100 * correct.sum() / max(positives.sum(), 1)
    return {"CP": cp, "CR": cr, "CF1": f1(cp, cr), "OP": op, "OR": o_r, "OF1": f1(op, o_r),
            "precision": precision, "recall": recall, "F1": f1(precision, recall)}


def head_medium_tail(counts):
    """The indices of head (n >= 100 training images), medium (n >= 20) and tail classes."""
    group = np.digitize(counts, [20, 100])
    return {"head": np.flatnonzero(group == 2), "medium": np.flatnonzero(group == 1),
            "tail": np.flatnonzero(group == 0)}


def in_top_3(scores):
    """(N, K) -> whether a score is among the three highest of its image."""
    order = np.argsort(-scores, axis=1, kind="stable")
    ranks = np.argsort(order, axis=1)  # 0 is the highest
    return ranks < 3


def mean_of(values):
    """The mean of the values that are not nan; None if there are none."""
    values = values[~np.isnan(values)]
    if len(values) == 0:
        return None
    return float(values.mean())


def f1(precision, recall):
    """The harmonic mean; 0 if both are 0."""
    return 2 * precision * recall / np.maximum(precision + recall, 1e-12)
