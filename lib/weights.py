"""A run's first weights: from timm, from a file of the backbone's weights, or from a checkpoint."""
import sys
from pathlib import Path

import timm
from torch.nn.modules.batchnorm import _BatchNorm

from data import InputError, reading
from lib.checkpoint import read_checkpoint, read_file
from lib.methods import build_model
from lib.processes import process


def starting_model(method, s, classes):
    """The model as a run starts with it; a line says what --weights and --init have given."""
    resumed = s["resume"] and s["out"] and Path(s["out"], "last.pt").is_file()
    from_file = resumed or s["weights"] or s["init"]
    model = build_model(method, s | {"pretrained": s["pretrained"] and not from_file}, classes)
    if s["weights"] and not resumed:
        load_backbone(model, s["weights"])
    if s["init"] and not resumed:
        load_checkpoint(model, method, s["init"], s["official"], classes, s["data"])
    if from_file:
        model.random_frozen = False  # so q2l.py need not warn
    if s["grad_checkpointing"]:
        with reading("--grad-checkpointing", "this backbone does not have it: leave it out"):
            model.backbone.set_grad_checkpointing()
    return timm.layers.convert_sync_batchnorm(model) if s["sync_bn"] else model


def frozen_norms(model, s):
    """--freeze-bn: the backbone's BatchNorms. Scale and shift do not learn; so that the statistics
    stay, too, the caller keeps them in evaluation mode."""
    if not s["freeze_bn"]:
        return []
    norms = [m for m in model.backbone.modules() if isinstance(m, _BatchNorm)]
    if not norms:
        raise InputError(f"--freeze-bn: {s['backbone']} has no BatchNorm: leave it out")
    for norm in norms:
        norm.requires_grad_(False)
    return norms


def say(text):
    if process()[0] == 0:
        print(text)


def shortened(names):
    return f"{len(names)} ({', '.join(names[:4])}{', ...' * (len(names) > 4)})" if names else "none"


def load_backbone(model, path):
    """--weights: a .safetensors or .pth file under timm's names, or names that timm converts."""
    remedy = "a file of this backbone's weights is needed, under names that timm knows"
    with reading(path, remedy):
        state = timm.models.load_state_dict(path, use_ema=False, weights_only=True)
        module = sys.modules[type(model.backbone).__module__]
        convert = getattr(module, "checkpoint_filter_fn", None)
        state = convert(state, model.backbone) if convert else state
        own = model.backbone.state_dict()
        fits = {name: x for name, x in state.items() if name in own and own[name].shape == x.shape}
        lacking = [name for name in own if name not in fits and "num_batches" not in name]
        if lacking:
            raise ValueError(f"{len(fits)} of {len(own)} tensors fit, {lacking[0]} does not")
        model.backbone.load_state_dict(fits, strict=False)
    rest = [name for name in state if name not in fits]
    say(f"{path}: the backbone's {len(fits)} tensors are loaded; left over: {shortened(rest)}")


def load_checkpoint(model, method, path, official, classes, data="csv"):
    """--init: a checkpoint of train.py or, with --official, a released one. Where the classes
    differ, the tensors that depend on them are initialized. A released checkpoint does not name its
    classes: they always differ from those of your own images."""
    if official:
        with reading(path, f"--official takes what {method.__name__}'s authors released"):
            state = method.from_official(read_file(path))
        count = len(classes) if data == "csv" else None
    else:
        stored = read_checkpoint(path)
        if stored["settings"]["model"] != method.__name__:
            raise InputError(f"{path} is of {stored['settings']['model']}, not {method.__name__}")
        state = stored["ema"] or stored["model"]
        count = len(stored["classes"]) if stored["classes"] != classes else None
    own = model.state_dict()
    own.pop("text_features", None)  # CPRFL's follow from the flags of this run
    fits = {name: x for name, x in state.items() if name in own and own[name].shape == x.shape
            and (name.startswith("backbone.") or count not in x.shape)}
    if any(name.startswith("backbone.") and name not in fits and "num_batches" not in name
           for name in own):
        raise InputError(f"{path}: its backbone does not fit this one: check --backbone and "
                         "--image-size")
    model.load_state_dict(fits, strict=False)
    anew = [name for name in own if name not in fits and "num_batches" not in name]
    rest = [name for name in state if name not in own]
    say(f"{path}: {len(fits)} tensors are loaded; initialized: {shortened(anew)}; left over: "
        f"{shortened(rest)}")
