"""The methods by name, their models, and the weights that these start from."""
import copy
import importlib
import inspect
import os
import warnings

import timm
import torch
from torch.nn.modules.batchnorm import _BatchNorm

import lib.cvt  # noqa: F401 (so that timm knows cvt_w24)
from lib.checkpoint import read_checkpoint
from lib.distributed import print_once
from lib.downloads import address_of, cache_only, why_offline
from lib.errors import InputError, explain_errors, first_line

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
    what = f"{settings.model}, backbone {settings.backbone}"
    if needs_text_tower(settings) and all(name.isdigit() for name in classes):
        raise InputError(f"{what}: the class names are numbers, {classes[0]} first, which mean "
                         "nothing to the text tower: use --text-features FILE or --text random")
    offline = ""
    if settings.pretrained or needs_text_tower(settings):
        offline = why_offline()
    try:
        with cache_only(offline), warnings.catch_warnings():
            if settings.pretrained:
                refuse_pooled_norm(settings.backbone)
            # Here, the weights may come later; lib/settings.py says it where they do not.
            warnings.filterwarnings("ignore", "the frozen layers")
            model = method.build(classes, **settings_for(method.build, settings))
    except InputError:
        raise
    except OSError as error:  # the hub's errors and those of files
        text = (f"{what}: pretrained weights cannot be loaded ({offline or first_line(error)}): "
                f"get {address_of(settings.backbone)} and add --weights FILE, or start from random "
                "ones with --no-pretrained")
        if needs_text_tower(settings):
            text += ("; the text tower needs a download, too: --text random or --text-features "
                     "FILE replace it")
        raise InputError(text) from error
    except ValueError as error:  # from the method's file: it says what to do
        raise InputError(f"{what}: {error}") from error
    except Exception as error:  # timm raises many kinds of error
        text = str(error)[:800] or "it cannot be built with these settings"
        raise InputError(
            f"{what}: {text.rstrip('.')}. Backbones that work: ResNets and their relatives, "
            "ConvNeXt, ViT, Swin. --output-stride (8, 16) is for ResNets and their "
            "relatives.") from error
    try:
        model.eval()
        with torch.no_grad():
            model(torch.zeros(1, 3, settings.image_size, settings.image_size))
    except Exception as error:
        raise InputError(f"{what}: no map of features for {settings.image_size} px "
                         f"({first_line(error)}): ResNets and their relatives, ConvNeXt, ViT and "
                         "Swin have one; check --image-size, too") from error
    return model.train()


def needs_text_tower(settings):
    """Whether the model reads the pretrained text tower of open_clip (CPRFL)."""
    text = getattr(settings, "text", "random")  # other methods have none
    own_features = getattr(settings, "text_features", None)
    return own_features is None and not text.startswith("random")


def refuse_pooled_norm(backbone):
    """Some ViTs (BEiT, EVA-02) were trained with their last norm after the average pooling. Without
    the pooling, timm would make a new norm, without pretrained weights. Raises InputError."""
    with torch.device("meta"):
        as_trained = timm.create_model(backbone)
    norm = getattr(as_trained, "fc_norm", None)
    if isinstance(norm, torch.nn.LayerNorm):
        raise InputError(f"--backbone {backbone}: its last norm was trained after average pooling, "
                         "which the methods here do not use: choose one with a class token")


# ----------------------------------------------------------------------------- a model for training


def starting_model(method, settings, classes, load_weights=True):
    """The model with its initial weights: timm's, a file's (--weights) or a checkpoint's (--init).
    `load_weights`: False if a resumed run loads its own."""
    build_settings = copy.copy(settings)
    if settings.weights or settings.init:
        build_settings.pretrained = False  # other weights replace timm's
    if not load_weights:
        build_settings = without_weights(settings)
    model = build_model(method, build_settings, classes)
    if load_weights and settings.weights:
        load_backbone(model.backbone, settings.weights)
    if load_weights and settings.init:
        load_matching(model, settings, classes)
    if settings.freeze_bn:
        norms = batchnorms(model.backbone)
        if not norms:
            raise InputError(f"--freeze-bn: {settings.backbone} has no BatchNorm: leave it "
                             "out, or use --no-freeze-bn")
        for norm in norms:
            norm.requires_grad_(False)
    if settings.sync_bn:
        model = timm.layers.convert_sync_batchnorm(model)
    return model


def batchnorms(module):
    return [layer for layer in module.modules() if isinstance(layer, _BatchNorm)]


def freeze_batchnorms(module):
    """BatchNorm uses its running statistics, and does not change them, until module.train()."""
    for norm in batchnorms(module):
        norm.eval()


def load_backbone(backbone, path):
    """--weights: a .safetensors or .pth file with timm's tensor names, or names that timm converts.
    Every tensor of the backbone must come from it. Raises InputError."""
    with explain_errors(path, "a file with this backbone's weights is needed, with names that "
                        "timm knows"):
        # The module of the architecture may have a function that converts published names.
        timm_module = inspect.getmodule(type(backbone))
        convert = getattr(timm_module, "checkpoint_filter_fn", None)
        if os.path.isdir(path):
            raise IsADirectoryError(path)
        result = timm.models.load_checkpoint(backbone, path, use_ema=False, strict=False,
                                             filter_fn=convert, weights_only=True)
        if result.missing_keys:
            raise ValueError(f"{result.missing_keys[0]} is not in it")
    print_once(f"{path}: all tensors of the backbone are loaded; left over: "
               f"{result.unexpected_keys}")


def load_matching(model, settings, classes):
    """--init: the weights that a checkpoint's run reports. If the classes differ, the tensors that
    depend on them, CLASS_TENSORS of the method, keep their random initial values. Raises
    InputError."""
    path = settings.init
    checkpoint = read_checkpoint(path)
    if checkpoint["settings"].model != settings.model:
        raise InputError(f"{path} is of {checkpoint['settings'].model}, not {settings.model}")
    old_classes = checkpoint["classes"]
    _, state = reported_weights(checkpoint)
    if not all(torch.is_tensor(tensor) for tensor in state.values()):
        raise InputError(f"{path}: its weights are not tensors: it is damaged")
    initialized = {"text_features"}  # CPRFL's follow from the flags of this run
    if classes != old_classes:
        initialized.update(import_method(settings.model).CLASS_TENSORS)
        if set(classes) == set(old_classes):
            print_once(f"warning: {path} has the same classes in another order, {old_classes[:3]} "
                       "first, so the classifier starts from random values: give the columns of "
                       "the data this order to keep it")
    misfit = (f"{path}: its backbone, {checkpoint['settings'].backbone}, does not fit "
              f"{settings.backbone}: check --backbone and --image-size")
    own = model.state_dict()
    loaded = {}
    for name, tensor in state.items():
        if name in initialized or name not in own:
            continue
        if own[name].shape != tensor.shape and name.startswith("backbone."):
            raise InputError(misfit)
        if own[name].shape != tensor.shape:
            raise InputError(f"{path}: {name} is {tuple(tensor.shape)} there, but "
                             f"{tuple(own[name].shape)} here: repeat that run's flags that define "
                             "the model, such as --d-model")
        loaded[name] = tensor
    result = model.load_state_dict(loaded, strict=False)
    missing = [name for name in result.missing_keys if name not in initialized]
    if any(name.startswith("backbone.") for name in missing):
        raise InputError(misfit)
    print_once(f"{path}: {len(loaded)} tensors are loaded; initialized: {result.missing_keys}")
    if missing:
        print_once(f"warning: {len(missing)} of {len(own)} tensors are not in {path} and start "
                   f"from random values, {missing[0]} first: repeat that run's flags that define "
                   "the model")


# -------------------------------------------------------------------------- a model of a checkpoint


def reported_weights(checkpoint, wanted=None):
    """The name (ema or raw) and the state of a checkpoint's weights: those `wanted`, by default
    those that its run reports. Raises InputError."""
    if wanted == "ema" and checkpoint["ema"] is None:
        raise InputError("this checkpoint has no EMA weights: use --weights raw")
    wanted = wanted or checkpoint["settings"].report
    if wanted == "raw" or checkpoint["ema"] is None:
        return "raw", checkpoint["model"]
    return "ema", checkpoint["ema"]


def without_weights(settings):
    """A copy of the settings that builds a model with random weights, without a download: a
    checkpoint has all weights."""
    settings = copy.copy(settings)
    settings.pretrained = False
    if hasattr(settings, "text") and not settings.text.startswith("random"):
        settings.text = f"random-{settings.text}"  # CPRFL's text tower, or the features it gave
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
