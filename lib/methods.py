"""Which methods there are, and how their models are built."""
import importlib
import inspect
from pathlib import Path

import torch

import lib.cvt  # noqa: F401 (so that timm knows cvt_w24)
from data import InputError

METHODS = sorted(path.stem for path in Path(__file__).parent.parent.glob("*.py")
                 if "\nRECIPES = " in path.read_text("utf-8"))


def method_of(name):
    """The module of a method. Nothing else is imported, whatever a checkpoint says."""
    if name not in METHODS:
        raise InputError(f"no method {name!r}: choose from {', '.join(METHODS)}")
    return importlib.import_module(name)


def remote(backbone, given, path):
    """Refuses a backbone from a hub or a folder that only a checkpoint asks for."""
    if not given and (":" in backbone or "/" in backbone or "\\" in backbone):
        raise InputError(f"{path} asks for the backbone {backbone}, which comes from elsewhere: if "
                         "you trust it, say --backbone with this name")


def chosen(function, settings):
    """The settings that are keyword arguments of `function`."""
    return {p.name: settings[p.name] for p in inspect.signature(function).parameters.values()
            if p.name in settings and (p.kind is p.KEYWORD_ONLY or p.default is not p.empty)}


def build_model(method, settings, classes):
    """`method.build` with its settings; one blank image shows whether the size suits the model."""
    try:
        model = method.build(classes, **chosen(method.build, settings))
        with torch.no_grad():
            model.eval()(torch.zeros(1, 3, settings["image_size"], settings["image_size"]))
        return model.train()
    except Exception as error:  # timm, open_clip and decoders raise many kinds of error
        remedy = ("\nPretrained weights need internet access once, then they are cached; "
                  "--no-pretrained starts from random ones.") if settings["pretrained"] else ""
        raise InputError(f"{settings['model']}, backbone {settings['backbone']}: "
                         f"{str(error)[:800] or repr(error)}{remedy}") from error
