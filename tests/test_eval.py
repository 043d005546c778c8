"""The metrics against definitions written out by brute force."""
import time

import numpy as np
import pytest

from eval import KINDS, average_precision, metrics


def brute_force_ap(scores, targets, kind):
    """Precision and recall at every threshold that occurs, by counting."""
    scores, targets = scores[targets >= 0], targets[targets >= 0]
    positives = (targets == 1).sum()
    if positives == 0:
        return np.nan
    curve = []  # (positives found, precision), from the highest threshold down
    for t in sorted(set(scores), reverse=True):
        curve.append(((targets[scores >= t] == 1).sum(), (targets[scores >= t] == 1).mean()))
    best = [max(p for _, p in curve[i:]) for i in range(len(curve))]
    if kind == "11-point":
        reached = [[b for (tp, _), b in zip(curve, best) if 10 * tp >= i * positives]
                   for i in range(11)]
        return np.mean([r[0] for r in reached])
    total = 0
    for s in scores[targets == 1]:
        i = sorted(set(scores), reverse=True).index(s)
        total += curve[i][1] if kind == "all-points" else best[i]
    return total / positives


def brute_force_table(scores, targets, threshold):
    result = {}
    for suffix in ("", "_3"):
        counts = []
        for k in range(targets.shape[1]):
            tp = predicted = positives = 0
            for i in range(len(targets)):
                rank = sum(scores[i, j] > scores[i, k] or (scores[i, j] == scores[i, k] and j < k)
                           for j in range(targets.shape[1]))
                yes = scores[i, k] > threshold and (suffix == "" or rank < 3)
                positives += targets[i, k] == 1
                tp += yes and targets[i, k] == 1
                predicted += yes and targets[i, k] >= 0
            counts.append((tp, predicted, positives))
        have = [c for c in counts if c[2]] or [(0, 0, 1)]
        tp, predicted, positives = map(sum, zip(*counts))
        for name, p, r in (
                ("C", np.mean([t / p if p else 0 for t, p, _ in have]),
                 np.mean([t / n for t, _, n in have])),
                ("O", tp / predicted if predicted else 0, tp / positives if positives else 0)):
            result |= {f"{name}P{suffix}": p, f"{name}R{suffix}": r,
                       f"{name}F1{suffix}": 2 * p * r / (p + r) if p + r else 0}
    return {name: 100 * value for name, value in result.items()}


def random_case(rng):
    n, k = rng.integers(1, 30), rng.integers(1, 7)
    scores = rng.random((n, k)) * rng.choice([0.4, 1])  # 0.4: nothing above the threshold
    if rng.random() < 0.7:
        scores = scores.round(rng.integers(1, 3))  # ties
    targets = rng.choice([-1, 0, 1], (n, k), p=rng.choice([[0.2, 0.5, 0.3], [0, 0.9, 0.1]]))
    return scores, targets.astype(np.int8)


def test_metrics_are_their_definitions():
    rng = np.random.default_rng(0)
    for _ in range(150):
        scores, targets = random_case(rng)
        for kind in KINDS:
            expected = [brute_force_ap(s, t, kind) for s, t in zip(scores.T, targets.T)]
            found = average_precision(scores, targets, kind)
            np.testing.assert_allclose(found, expected, atol=1e-12)
        result, expected = metrics(scores, targets), brute_force_table(scores, targets, 0.5)
        for name, value in expected.items():
            assert result[name] == pytest.approx(value, abs=1e-9), name


def test_known_values():
    scores = np.array([[0.9], [0.8], [0.7], [0.6]])
    targets = np.array([[0], [1], [0], [1]])
    assert average_precision(scores, targets)[0] == pytest.approx(0.5)  # (1/2 + 2/4) / 2
    targets = np.array([[1], [0], [0], [1]])
    assert average_precision(scores, targets)[0] == pytest.approx(0.75)
    assert average_precision(scores, targets, "11-point")[0] == pytest.approx((6 + 5 * 0.5) / 11)
    targets = np.array([[1], [-1], [-1], [1]])
    assert average_precision(scores, targets)[0] == 1
    result = metrics(np.tile(scores, 2), np.array([[1, 0], [0, 0], [0, 0], [1, -1]]))
    assert result["AP"][1] is None and result["mAP"] == pytest.approx(75)
    assert result["positives"] == [2, 0]
    with pytest.raises(ValueError, match="nan"):
        average_precision(scores * np.nan, targets)
    with pytest.raises(ValueError, match="all-points"):
        average_precision(scores, targets, "voc")


def test_envelope_is_never_lower_and_order_changes_nothing():
    rng = np.random.default_rng(1)
    scores, targets = rng.random((200, 5)).round(2), (rng.random((200, 5)) < 0.2).astype(np.int8)
    order = rng.permutation(200)
    for kind in KINDS:
        np.testing.assert_allclose(average_precision(scores, targets, kind),
                                   average_precision(scores[order], targets[order], kind))
    envelope = average_precision(scores, targets, "envelope")
    assert (envelope >= average_precision(scores, targets)).all()


def test_speed_at_coco_size():
    rng = np.random.default_rng(2)
    scores, targets = rng.random((40137, 80)), (rng.random((40137, 80)) < 0.04).astype(np.int8)
    start = time.perf_counter()
    average_precision(scores, targets)
    assert time.perf_counter() - start < 1


def test_head_medium_and_tail():
    rng = np.random.default_rng(3)
    scores, targets = rng.random((50, 4)), rng.integers(0, 2, (50, 4))
    ap = 100 * average_precision(scores, targets)
    result = metrics(scores, targets, counts=[100, 19, 20, 400])
    assert result["head"] == pytest.approx((ap[0] + ap[3]) / 2)
    assert result["medium"] == pytest.approx(ap[2]) and result["tail"] == pytest.approx(ap[1])
    assert "head" not in metrics(scores, targets, counts=[100] * 4)
