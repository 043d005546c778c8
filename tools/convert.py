"""Converts a released checkpoint to an ordinary one of this project, OUT/last.pt.

Run: python -m tools.convert --model q2l --data coco2014 released.pth OUT [--backbone NAME ...]
Then: python eval.py --checkpoint OUT/last.pt --root ROOT

Widths, layers, CSRA's heads, the projection and self-attention are read from the tensors. The
backbone, the image size, mean and std are those of the recipe; the flags of train.py override them.
--data names the published data set, and so the classes.
"""
import argparse
import sys
from pathlib import Path

import numpy as np
import torch

from data import load
from lib.checkpoint import save
from lib.distributed import program
from lib.errors import InputError, explain_errors
from lib.models import build_model, without_weights
from lib.settings import (
    add_data_flags,
    add_keywords,
    add_model_flags,
    add_what,
    complete,
    flags_in,
    make_parser,
    method_and_data,
    recipe_for,
)
from readers import CLASSES
from tools.released import convert


def main(argv=None):
    if argv is None:
        argv = sys.argv[1:]
    method, settings = read_flags(argv)
    path = settings.released
    with explain_errors(path, f"it must be a file that the authors of {settings.model} released"):
        state = convert(settings.model, read_released(path))
    read_shapes(settings, state)
    if settings.model == "cprfl" and not settings.tune_text and not settings.text_features:
        raise InputError(f"{path} holds no text tower: --text-features FILE must give the features "
                         "that it was trained with")
    if settings.data in CLASSES:
        classes = CLASSES[settings.data]
    else:  # they are in ROOT
        classes = load(settings.data, settings.root, "test", check=False).classes
    model = build_model(method, without_weights(settings), classes)
    with explain_errors(path, "it does not fit: check --data, --backbone and --image-size"):
        model.load_state_dict(state)

    folder = Path(settings.folder)
    with explain_errors(folder, "choose another folder"):
        folder.mkdir(parents=True)  # an error if it exists
    save({"model": model.state_dict(), "ema": None, "classes": classes, "class_counts": None,
          "settings": vars(settings)}, folder / "last.pt")
    print(f"{len(state)} tensors, {len(classes)} classes: {folder / 'last.pt'}")


def read_flags(argv):
    """The method's module, and the settings of its recipe for --data with the flags given."""
    method, data, _ = method_and_data(argv)
    parser = argparse.ArgumentParser(
        description="Converts a released checkpoint to OUT/last.pt.", allow_abbrev=False,
        usage="%(prog)s --model METHOD --data NAME RELEASED OUT [flags]    --help lists them")
    parser.add_argument("released", help="the released file")
    parser.add_argument("folder", metavar="OUT", help="a new folder for last.pt")
    add_what(parser)
    add_data_flags(parser)
    add_model_flags(parser)
    add_keywords(parser, method, method.build)
    everything = make_parser(method)
    everything.set_defaults(data=data, **recipe_for(method, data))
    settings = everything.parse_args([])
    parser.parse_args(argv, namespace=settings)
    given = flags_in(argv)
    if not {"model", "data"} <= given:
        raise InputError("--model and --data must say which method and data set the file is from")
    complete(settings, given, parser, method)
    return method, settings


def read_released(path):
    """Reads tensors and, as in released files, numpy numbers. Executes nothing."""
    number = np._core.multiarray.scalar
    allowed = [number, (number, "numpy.core.multiarray.scalar"), np.dtype,  # numpy 1's name, too
               np.dtypes.Float64DType, np.dtypes.Float32DType, np.dtypes.Int64DType]
    with torch.serialization.safe_globals(allowed):
        return torch.load(path, map_location="cpu", weights_only=True)


def read_shapes(settings, state):
    """Sets what the tensors' shapes and names say about a model."""
    if settings.model == "csra":
        settings.heads = state["head.weight"].shape[0]
    if settings.model == "q2l":
        settings.d_model = state["head.W"].shape[1]
        settings.ffn = state["head.decoder.0.linear1.weight"].shape[0]
        settings.encoder_layers = count_layers(state, "head.encoder")
        settings.decoder_layers = count_layers(state, "head.decoder")
        settings.self_attention = "head.decoder.0.norm1.weight" in state
        settings.project = "input_proj.weight" in state
    if settings.model == "cprfl":
        settings.d_model = state["phi.weight"].shape[0]
        settings.tau = state["prompts.0.weight"].shape[0] / settings.d_model
        settings.ffn = state["interaction.Wr.weight"].shape[0]
        settings.head_dim = state["interaction.to_out.weight"].shape[1] // settings.heads
        settings.tune_text = "text.text_projection" in state


def count_layers(state, name):
    count = 0
    while f"{name}.{count}.linear1.weight" in state:
        count += 1
    return count


if __name__ == "__main__":
    with program():
        sys.exit(main())
