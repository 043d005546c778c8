"""The methods by name, their models, and the weights that these start from."""
import copy
import importlib
import inspect
import sys
from contextlib import contextmanager

import timm
import torch
from torch.nn.modules.batchnorm import _BatchNorm

import lib.cvt  # noqa: F401 (so that timm knows cvt_w24)
from lib.checkpoint import read_checkpoint
from lib.distributed import print_once
from readers.errors import InputError, explain_errors, first_line

METHODS = ["asl", "cprfl", "csra", "q2l"]


def import_method(name):
    """The module of a method. Nothing else is imported, whatever a checkpoint says."""
    if name not in METHODS:
        raise InputError(f"no method {name!r}: choose from {', '.join(METHODS)}")
    return importlib.import_module(name)


def settings_for(function, settings):
    """The settings that are keyword arguments of `function`: after a *, or with a default."""
    arguments = {}
    for parameter in inspect.signature(function).parameters.values():
        has_default = parameter.default is not parameter.empty
        is_keyword = has_default or parameter.kind is parameter.KEYWORD_ONLY
        if is_keyword and hasattr(settings, parameter.name):
            arguments[parameter.name] = getattr(settings, parameter.name)
    return arguments


def build_model(method, settings, classes):
    """`method.build` with its settings; one blank image shows whether the size suits the model.

    Raises InputError.
    """
    try:
        model = method.build(classes, **settings_for(method.build, settings))
    except Exception as error:  # timm and open_clip raise many kinds of error
        remedy = ""
        if settings.pretrained:
            remedy = ("\nPretrained weights need internet access once, then they are cached; "
                      "--no-pretrained starts from random ones.")
        text = str(error)[:800] or repr(error)
        raise InputError(f"{settings.model}, backbone {settings.backbone}: {text}"
                         f"{remedy}") from error
    try:
        model.eval()
        with torch.no_grad():
            model(torch.zeros(1, 3, settings.image_size, settings.image_size))
    except Exception as error:
        raise InputError(f"{settings.model}, backbone {settings.backbone}: no map of features for "
                         f"{settings.image_size} px ({first_line(error)}): ResNets and their kin, "
                         "ConvNeXt, ViT and Swin have one; check --image-size, too") from error
    return model.train()


# ----------------------------------------------------------------------------- a model for training


def starting_model(method, settings, classes, load_weights=True):
    """The model with its first weights: timm's, a file's (--weights), or a checkpoint's (--init).
    `load_weights`: False where a resumed run loads its own."""
    build_settings = copy.copy(settings)
    if settings.weights or settings.init:
        build_settings.pretrained = False  # other weights replace timm's
    if not load_weights:
        build_settings = without_weights(settings)
    model = build_model(method, build_settings, classes)
    if build_settings.pretrained or settings.weights:
        refuse_pooled_norm(settings.backbone)
    if load_weights and settings.weights:
        load_backbone(model.backbone, settings.weights)
    if load_weights and settings.init:
        load_matching(model, settings, classes)
    if settings.grad_checkpointing:
        with explain_errors("--grad-checkpointing", "this backbone does not have it: leave it out"):
            model.backbone.set_grad_checkpointing()
    if settings.freeze_bn:
        norms = batchnorms(model.backbone)
        if not norms:
            raise InputError(f"--freeze-bn: {settings.backbone} has no BatchNorm: leave it out")
        for norm in norms:
            norm.requires_grad_(False)
    if settings.sync_bn:
        model = timm.layers.convert_sync_batchnorm(model)
    return model


def refuse_pooled_norm(backbone):
    """Some ViTs (BEiT, EVA-02) were trained with their last norm after the average pooling. Without
    the pooling, timm would make a new norm. Raises InputError."""
    with torch.device("meta"):
        as_trained = timm.create_model(backbone)
    norm = getattr(as_trained, "fc_norm", None)
    if isinstance(norm, torch.nn.LayerNorm):
        raise InputError(f"--backbone {backbone}: its last norm was trained after average pooling, "
                         "which the methods here do not have: choose one with a class token")


def batchnorms(module):
    return [layer for layer in module.modules() if isinstance(layer, _BatchNorm)]


@contextmanager
def statistics_held(norms):
    """BatchNorms keep their running statistics inside this block."""
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.momentum = 0.0
    yield
    for norm, momentum in zip(norms, momenta):
        norm.momentum = momentum


def load_backbone(backbone, path):
    """--weights: a .safetensors or .pth file under timm's names, or names that timm converts. Every
    tensor of the backbone must come from it. Raises InputError."""
    with explain_errors(path, "a file of this backbone's weights is needed, under names that timm "
                           "knows"):
        state = timm.models.load_state_dict(path, use_ema=False, weights_only=True)
        timm_module = sys.modules[type(backbone).__module__]
        if hasattr(timm_module, "checkpoint_filter_fn"):
            state = timm_module.checkpoint_filter_fn(state, backbone)
        result = backbone.load_state_dict(state, strict=False)
        missing = trained_names(result.missing_keys)
        if missing:
            raise ValueError(f"{len(missing)} tensors are not in it, {missing[0]} first")
    print_once(f"{path}: all tensors of the backbone are loaded; left over: "
               f"{shortened(result.unexpected_keys)}")


def load_matching(model, settings, classes):
    """--init: the weights that a checkpoint reports. Where the classes differ, the tensors that
    depend on them keep their random start. Raises InputError."""
    path = settings.init
    checkpoint = read_checkpoint(path)
    if checkpoint["settings"].model != settings.model:
        raise InputError(f"{path} is of {checkpoint['settings'].model}, not {settings.model}")
    _, state = reported_weights(checkpoint)
    same_classes = checkpoint["classes"] == classes
    old_count = len(checkpoint["classes"])
    own = model.state_dict()
    loaded = {}
    if not all(torch.is_tensor(tensor) for tensor in state.values()):
        raise InputError(f"{path}: its weights are not tensors: it is damaged")
    for name, tensor in state.items():
        if name == "text_features":  # CPRFL's follow from the flags of this run
            continue
        of_classes = not name.startswith("backbone.") and old_count in tensor.shape
        if of_classes and not same_classes:
            continue
        if name in own and own[name].shape == tensor.shape:
            loaded[name] = tensor
    missing = trained_names([name for name in own if name not in loaded])
    if any(name.startswith("backbone.") for name in missing):
        raise InputError(f"{path}: its backbone does not fit this one: check --backbone and "
                         "--image-size")
    model.load_state_dict(loaded, strict=False)
    unknown = [name for name in state if name not in own]
    if "text_features" in missing:
        missing.remove("text_features")
    print_once(f"{path}: {len(loaded)} tensors are loaded; initialized: {shortened(missing)}; left "
               f"over: {shortened(unknown)}")


def trained_names(names):
    """Without BatchNorm's counters, which some files lack."""
    return [name for name in names if not name.endswith("num_batches_tracked")]


def shortened(names):
    if not names:
        return "none"
    text = f"{len(names)} ({', '.join(names[:4])}"
    if len(names) > 4:
        text += ", ..."
    return text + ")"


# -------------------------------------------------------------------------- a model of a checkpoint


def reported_weights(checkpoint, wanted=None):
    """The name (ema, raw) and the state of a checkpoint's weights; by default those that its run
    reports. Raises InputError."""
    if wanted is None:
        wanted = checkpoint["settings"].report
        if checkpoint["ema"] is None:
            wanted = "raw"
    if wanted == "raw":
        return "raw", checkpoint["model"]
    if checkpoint["ema"] is None:
        raise InputError("this checkpoint has no EMA weights: --weights raw")
    return "ema", checkpoint["ema"]


def without_weights(settings):
    """A copy that builds the model at random, without a download: a checkpoint has all weights."""
    settings = copy.copy(settings)
    settings.pretrained = False
    if getattr(settings, "tune_text", False) and not settings.text.startswith("random"):
        settings.text = f"random-{settings.text}"  # CPRFL's text tower
    return settings


def model_of(checkpoint, state, path):
    """The model of a checkpoint with the weights `state`; `path` names it in messages."""
    settings = without_weights(checkpoint["settings"])
    if "text_features" in state:  # CPRFL's: so they need not be computed again
        settings.text_features = state["text_features"]
    model = build_model(import_method(settings.model), settings, checkpoint["classes"])
    with explain_errors(path, "its weights do not fit its settings: it is damaged"):
        model.load_state_dict(state)
    return model.eval()
