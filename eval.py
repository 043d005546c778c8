"""Metrics of multi-label recognition, and the evaluation of a checkpoint.

AP has three definitions in use, up to two points apart; every table must say which it shows:
    all-points   mean, over the positives, of the precision at their score (CSRA, ASL, CPRFL)
    envelope     the same after precision is made monotone from the right; never lower (Q2L)
    11-point     mean of the envelope at recall 0, 0.1, ..., 1 (PASCAL VOC 2007)
The first is the default. Entries of -1 (not judged) take no part. A class without positives has no
AP: it is left out of every per-class mean, and listed.

Run: python eval.py --checkpoint OUT/last.pt [--data NAME --root DIR --split test]
"""
import argparse
import importlib
import inspect
import pickle
import sys

import numpy as np
import torch

from data import SETS, InputError, groups, load, loader, normalize

KINDS = ("all-points", "envelope", "11-point")


def average_precision(scores, targets, kind="all-points"):
    """AP per class in [0, 1], nan without positives. scores, targets (N, K); targets 1, 0, -1.

    Pictures of equal score enter together, so their order doesn't matter: precision and recall are
    taken where the score changes.
    """
    if kind not in KINDS:
        raise ValueError(f"kind {kind!r}: choose from {', '.join(KINDS)}")
    scores, targets = np.asarray(scores), np.asarray(targets)
    if scores.shape != targets.shape or np.isnan(scores).any():
        raise ValueError(f"scores {scores.shape}, targets {targets.shape}: must match, without nan")
    ap = np.full(scores.shape[1], np.nan)
    for k in range(scores.shape[1]):  # by class: its arrays stay in the cache
        judged = targets[:, k] >= 0
        order = np.argsort(-scores[judged, k])
        s, y = scores[judged, k][order], targets[judged, k][order] == 1
        if not y.any():
            continue
        last = np.append(s[1:] != s[:-1], True).nonzero()[0]  # last of each run of equal scores
        tp = y.cumsum()[last]
        precision, new = tp / (last + 1), np.diff(tp, prepend=0)  # new: positives of this score
        if kind != "all-points":
            precision = np.maximum.accumulate(precision[::-1])[::-1]
        if kind == "11-point":  # recall tp / n >= t / 10, in integers
            ap[k] = precision[np.searchsorted(10 * tp, tp[-1] * np.arange(11))].mean()
        else:
            ap[k] = (precision * new).sum() / tp[-1]
    return ap


def metrics(scores, targets, threshold=0.5, kind="all-points", counts=None):
    """In percent: mAP; CP, CR, CF1 (per class, averaged; CF1 from CP and CR); OP, OR, OF1 (over all
    decisions score > threshold); with suffix _3, for the top 3 of a picture that are above it too.
    `counts`, training pictures per class, adds the mAP of head, medium and tail classes. Besides:
    AP, the list per class (None without positives), and positives, their numbers.

    scores: probabilities (N, K); targets (N, K): 1, 0, -1. Precision without predictions counts 0.
    """
    scores, targets = np.asarray(scores), np.asarray(targets)
    ap = 100 * average_precision(scores, targets, kind)
    positives, judged = (targets == 1).sum(0), targets >= 0
    result = {"mAP": np.nanmean(ap).item() if positives.any() else None}
    if counts is not None and np.min(counts) < 100:
        result |= {name: float(np.nanmean(ap[part])) for name, part in groups(counts).items()
                   if positives[part].any()}
    above = scores > threshold
    third = np.argsort(-scores, axis=1, kind="stable")[:, :3]
    top = np.zeros_like(above)
    np.put_along_axis(top, third, True, 1)
    for suffix, yes in (("", above), ("_3", above & top)):
        tp, predicted = (yes & (targets == 1)).sum(0), (yes & judged).sum(0)
        have = positives > 0
        cp = 100 * (tp / np.maximum(predicted, 1))[have].mean() if have.any() else 0.0
        cr = 100 * (tp[have] / positives[have]).mean() if have.any() else 0.0
        op = 100 * tp.sum() / max(predicted.sum(), 1)
        o_r = 100 * tp.sum() / max(positives.sum(), 1)
        for name, p, r in (("C", cp, cr), ("O", op, o_r)):
            result |= {f"{name}P{suffix}": float(p), f"{name}R{suffix}": float(r),
                       f"{name}F1{suffix}": float(2 * p * r / max(p + r, 1e-12))}
    return result | {"AP": [None if np.isnan(a) else float(a) for a in ap],
                     "positives": positives.tolist()}


def pick_device():
    for name in ("cuda", "mps"):
        if getattr(torch, name).is_available():
            return torch.device(name)
    return torch.device("cpu")


def pick_dtype(amp, device):
    """Autocast's dtype or None. auto: bf16 where the hardware has it, fp16 on older GPUs."""
    if amp not in ("auto", "off", "bf16", "fp16"):
        raise InputError(f"--amp {amp}: choose auto, off, bf16 or fp16")
    if amp != "auto":
        return {"off": None, "bf16": torch.bfloat16, "fp16": torch.float16}[amp]
    if device.type == "cuda":
        native = torch.cuda.is_bf16_supported(including_emulation=False)
        return torch.bfloat16 if native else torch.float16
    fast = device.type == "cpu" and (torch.cpu._is_avx512_bf16_supported()
                                     or torch.cpu._is_amx_tile_supported())
    return torch.bfloat16 if fast else None


def build_model(method, settings, classes):
    """`method.build` with the settings that its signature names."""
    hyper = [p.name for p in inspect.signature(method.build).parameters.values()
             if p.kind is p.KEYWORD_ONLY]
    try:
        return method.build(classes, **{name: settings[name] for name in hyper})
    except (OSError, RuntimeError, ValueError) as error:
        remedy = ("\nPretrained weights need a network once, then they are cached; "
                  "--no-pretrained starts from random ones.") if settings["pretrained"] else ""
        raise InputError(f"{settings['model']}, backbone {settings['backbone']}: "
                         f"{str(error)[:800]}{remedy}") from error


@torch.inference_mode()
def predict(model, batches, device, dtype, mean, std):
    """Probabilities float64 (N, K) and targets int8 (N, K), in the order of the data."""
    model.eval()
    scores, targets = [], []
    for images, target in batches:
        with torch.autocast(device.type, dtype, enabled=dtype is not None):
            logits = model(normalize(images, device, mean, std))
        scores.append(logits.cpu().double().sigmoid())  # float32 would tie above a logit of 17
        targets.append(target)
    return torch.cat(scores).numpy(), torch.cat(targets).numpy()


def read_file(path):
    """A saved file of tensors, with numpy's numbers as released ones have; executes nothing."""
    number = np._core.multiarray.scalar  # numpy 1 wrote it under another name
    allowed = [number, (number, "numpy.core.multiarray.scalar"), np.dtype,
               *(type(np.dtype(kind)) for kind in ("float64", "float32", "int64"))]
    try:
        with torch.serialization.safe_globals(allowed):
            return torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, RuntimeError, EOFError, KeyError, pickle.UnpicklingError) as error:
        raise InputError(f"{path}: no readable checkpoint ({str(error)[:200]}); "
                         "train.py writes OUT/last.pt after each epoch") from error


def read_checkpoint(path):
    """A checkpoint of train.py."""
    checkpoint = read_file(path)
    if not isinstance(checkpoint, dict) or "settings" not in checkpoint:
        raise InputError(f"{path}: not of train.py; eval.py --official takes released ones")
    return checkpoint


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0], allow_abbrev=False)
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--checkpoint", help="OUT/last.pt of train.py")
    source.add_argument("--official", help="a released checkpoint; with --model, and train.py's "
                                           "flags where it differs from the recipe")
    parser.add_argument("--model", help="the method that --official is of")
    parser.add_argument("--data", choices=SETS, help="default: the one trained on")
    parser.add_argument("--root", help="default: the one trained on")
    parser.add_argument("--split", default="test", choices=("train", "test"))
    parser.add_argument("--limit", type=int, help="first N pictures")
    args, flags = parser.parse_known_args(argv)
    if args.checkpoint:
        if args.model or flags:
            parser.error(f"not with --checkpoint: {args.model or ''} {' '.join(flags)}")
        checkpoint = read_checkpoint(args.checkpoint)
        settings, weights = checkpoint["settings"], "ema" if checkpoint["ema"] else "model"
        method, state = importlib.import_module(settings["model"]), checkpoint[weights]
    else:
        import train  # which imports this module
        if args.data:
            flags += ["--data", args.data]
        method, settings = train.settings_of(["--model", args.model or "", *flags])
        state, weights = method.from_official(read_file(args.official)), "released"
    name, root = args.data or settings["data"], args.root or settings["root"]
    data = load(name, root, args.split, drop_unlabelled=settings["drop_unlabelled"],
                long_tail=settings["long_tail"])
    if args.checkpoint and data.classes != checkpoint["classes"]:
        raise InputError(f"{name} has other classes than {args.checkpoint}, or another order: "
                         f"{data.classes[:5]}... and {checkpoint['classes'][:5]}...")
    data = data.subset(slice(args.limit))
    settings = settings | {"pretrained": False}
    if "text_features" in state:  # CPRFL's: kept with the weights, so that none need be fetched
        settings["text_features"] = state["text_features"]
    model = build_model(method, settings, data.classes)
    try:
        model.load_state_dict(state)
    except RuntimeError as error:
        raise InputError(f"{args.checkpoint or args.official} doesn't fit the model: "
                         f"{str(error)[:600]}\nDo --backbone, --image-size and so on?") from error
    device = pick_device()
    dtype, workers = pick_dtype(settings["amp"], device), max(settings["workers"], 0)
    batches = loader(data, settings["image_size"], settings["batch_size"], workers=workers)
    scores, targets = predict(model.to(device), batches, device, dtype, settings["mean"],
                              settings["std"])
    counts = checkpoint.get("counts") if args.checkpoint else None
    result = metrics(scores, targets, counts=counts)
    print(f"{settings['model']} on {name} {args.split}: {len(data)} pictures, {weights} weights, "
          "all-points AP, threshold 0.5")
    for label, ap, count in zip(data.classes, result["AP"], result["positives"]):
        ap = "         n/a" if ap is None else f"{ap:12.2f}"
        print(f"  {label:24}{ap} AP {count:8} positives")
    print(*(f"{key} {value:.2f}" for key, value in result.items() if isinstance(value, float)))


if __name__ == "__main__":
    try:
        main()
    except InputError as error:
        sys.exit(f"error: {error}")
