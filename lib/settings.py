"""The command line of train.py: the recipe of a method for a data set, overridden by flags."""
import argparse
import ast
import inspect
import math
import os
import sys
from pathlib import Path

import timm

from data import InputError, reading
from lib.checkpoint import read_checkpoint
from lib.methods import METHODS, method_of, remote
from sets import READERS

ANY, SOME = (0, math.inf), (1, math.inf)
SETTINGS = {  # name: (default, allowed: choices or [from, below), help)
    # what a recipe may set
    "backbone": ("resnet101.tv_in1k", None, "a model name of timm"),
    "pretrained": (True, None, "start from timm's pretrained weights"),
    "image_size": (448, SOME, "side of the square input in pixels"),
    "mean": ((0.485, 0.456, 0.406), None, "of the input channels: r,g,b"),
    "std": ((0.229, 0.224, 0.225), None, "of the input channels: r,g,b"),
    "augment": ((), None, "some of crop,flip,cutout,randaugment"),
    "drop_unlabelled": (False, None, "leave out images without a positive label"),
    "long_tail": (0.0, ANY, "make the training split long-tailed: most over least frequent class"),
    "loss": ("", ["asl", "focal", "bce", "db"], "train with the mean of this loss instead"),
    "optimizer": ("adamw", ["sgd", "adam", "adamw"], "torch's optimizer"),
    "lr": (1e-4, ANY, "learning rate"),
    "weight_decay": (1e-4, ANY, "L2 penalty; adamw: decoupled"),
    "clip_grad": (0.0, ANY, "largest gradient norm; 0: no clipping"),
    "schedule": ("onecycle", ["step", "onecycle", "cosine"], "schedule of the learning rate"),
    "pct_start": (0.2, (0, 1), "onecycle: the share of steps in which the learning rate rises"),
    "decay_epochs": (1, SOME, "step: multiply the learning rate by 0.1 every N epochs"),
    "warmup_epochs": (0.0, (0, 10 ** 6), "step and cosine: epochs of linear warm-up"),
    "epochs": (30, SOME, "when training ends; given alone, the schedule ends there, too"),
    "schedule_epochs": (0, ANY, "the length of a schedule that training cuts short; 0: epochs"),
    "batch_size": (16, SOME, "images per step, over all processes and micro-batches"),
    "ema": (0.0, (0, 1), "decay of the weights' moving average; 0: none"),
    "report": ("ema", ["ema", "raw"], "the weights whose mAP is the result; without ema, raw"),
    # how and where to run
    "weights": ("", None, "a file of the backbone's weights, in place of timm's pretrained ones"),
    "init": ("", None, "a checkpoint to start from, even one with different classes"),
    "official": (False, None, "--init is a released checkpoint"),
    "root": ("", None, "folder of the data set"),
    "out": ("", None, "folder of the run"),
    "seed": (0, (0, 2 ** 63), "of all random numbers"),
    "workers": (-1, (-1, math.inf), "loading processes; -1: chosen for the machine"),
    "amp": ("auto", ["auto", "off", "bf16", "fp16"], "autocast"),
    "compile": (False, None, "use torch.compile"),
    "accumulate": (1, SOME, "gradient accumulation: micro-batches per step, to save memory"),
    "grad_checkpointing": (False, None, "compute activations twice, to save memory"),
    "sync_bn": (False, None, "BatchNorm statistics over all processes"),
    "freeze_bn": (False, None, "keep the backbone's BatchNorms as they were pretrained"),
    "save_every": (0.0, ANY, "minutes between checkpoints within an epoch; 0: none"),
    "skip_bad": (0, ANY, "leave out up to N unreadable images"),
    "limit": (0, ANY, "train on N random images, the same for any seed; 0: all"),
    "resume": (False, None, "continue from OUT/last.pt"),
    "download": (False, None, "fetch the data into ROOT")}
FREE = ("resume", "workers", "root", "out", "compile", "download", "save_every", "skip_bad")
LONGER = "step"  # the schedule that does not depend on the number of epochs
USED = {"pct_start": ["onecycle"], "decay_epochs": ["step"], "warmup_epochs": ["step", "cosine"]}


def flag_type(default, allowed):
    """Text -> a value of the default's type within the bounds."""
    def parse(text):
        if default is None:
            return literal(text)
        if isinstance(default, tuple):  # mean and std hold numbers, augment holds names
            return tuple((float if default else str)(item) for item in text.split(",") if item)
        value = type(default)(text)
        if isinstance(allowed, tuple) and not allowed[0] <= value < allowed[1]:
            raise argparse.ArgumentTypeError(f"{text}: must be in [{allowed[0]}, {allowed[1]})")
        return value
    parse.__name__ = type(default).__name__  # argparse prints it
    return parse


def literal(text):
    """A number, True, False or None (in any case), or the text itself."""
    try:
        return ast.literal_eval(text.title() if text.lower() in ("true", "false", "none") else text)
    except (ValueError, SyntaxError):
        return text


def as_typed(value):
    """A setting as typed on the command line."""
    return ",".join(map(str, value)) if isinstance(value, tuple) else value


class Parser(argparse.ArgumentParser):
    """An error prints its own line only, not the usage of fifty flags."""

    def error(self, message):
        self.exit(2, f"{self.prog}: error: {message} (--help lists the flags)\n")


def keywords(function, what):
    """The keyword arguments of `function` that become flags: name -> a row as in SETTINGS."""
    return {p.name: (p.default, ANY if type(p.default) in (int, float) else None,
                     f"of the {what}: see the method's file")
            for p in inspect.signature(function).parameters.values()
            if p.default is not p.empty and p.name != "reduction"}


def checked(settings, path):
    """The settings of a checkpoint. Settings newer than the checkpoint get their default."""
    with reading(path, "damaged: train again, or restore a backup"):
        settings = {name: row[0] for name, row in SETTINGS.items()} | settings
        for name, (default, allowed, _) in SETTINGS.items():
            value, kind = settings[name], type(default)
            fits = isinstance(value, (int, float) if kind is float else kind) or (
                value is None and name in ("root", "out"))  # as older checkpoints have it
            if fits and isinstance(allowed, tuple):
                fits = allowed[0] <= value < allowed[1]
            elif fits and allowed and value:
                fits = value in allowed
            if name in ("mean", "std"):
                fits = fits and len(value) == 3 and all(map(math.isfinite, value))
            if not fits:
                raise ValueError(f"its setting {name} is {value!r}")
    return settings


def settings_of(argv):
    """The method's module and its settings: the recipe with the flags; --resume: the stored
    ones."""
    # The method and the data set come first: the defaults of the other flags depend on them.
    parser = Parser(allow_abbrev=False, add_help=False)
    parser.add_argument("--model", required="-h" not in argv and "--help" not in argv,
                        choices=METHODS, default=METHODS[0])
    parser.add_argument("--data", choices=READERS)
    model, data = vars(parser.parse_known_args(argv)[0]).values()
    method = method_of(model)
    data = data or next(iter(method.RECIPES))
    if data not in method.RECIPES:
        print(f"{model} has no recipe for {data}: using the one for csv", file=sys.stderr)
    recipe = method.RECIPES.get(data, method.RECIPES.get("csv", {}))

    of_loss = keywords(method.loss, "loss")
    table = {"model": (model, METHODS, "the method"), "data": (data, [*READERS], "the data set"),
             **SETTINGS, **keywords(method.build, "model"), **of_loss,
             **keywords(method.param_groups, "optimizer")}
    settings = {name: row[0] for name, row in table.items()} | recipe
    parser = Parser(description=method.__doc__.split("\n")[0], allow_abbrev=False,
                    argument_default=argparse.SUPPRESS)
    for name, (default, allowed, text) in table.items():
        kind = {"action": argparse.BooleanOptionalAction} if isinstance(default, bool) else {
            "type": flag_type(default, allowed), "metavar": None if isinstance(allowed, list) else
            "X", "choices": allowed if isinstance(allowed, list) else None}
        parser.add_argument("--" + name.replace("_", "-"), **kind,
                            help=f"{text} [{as_typed(settings[name])}]".replace("%", "%%"))
    flags = vars(parser.parse_args(argv))

    last = Path(flags.get("out", ""), "last.pt")
    resumed = flags.get("resume") and last.is_file()
    if resumed:
        settings |= checked(read_checkpoint(last)["settings"], last)
        changed = [name for name, value in flags.items()
                   if settings[name] != value and name not in FREE]
        if changed == ["epochs"] and flags["epochs"] > settings["epochs"]:
            if settings["schedule"] != LONGER:
                raise InputError(f"{last}: its {settings['schedule']} schedule ends after "
                                 f"{settings['epochs']} epochs: start anew for more --epochs; only "
                                 f"--schedule {LONGER} goes on")
        elif changed:
            raise InputError(f"{last} was made with other settings for {', '.join(changed)}: "
                             "leave these flags out to resume, or start anew with another --out")
        remote(settings["backbone"], "backbone" in flags, last)
    elif "epochs" in flags and "schedule_epochs" not in flags:
        settings["schedule_epochs"] = 0  # else a short run might end while the learning rate rises
    settings |= flags
    unset = {"mean", "std"} - flags.keys() if data == "csv" and not resumed else ()
    if unset:  # for your own images, as the backbone was trained
        with reading(f"--backbone {settings['backbone']}", "choose another of timm's names"):
            inputs = timm.get_pretrained_cfg(settings["backbone"])
        if not inputs and ":" in settings["backbone"]:
            parser.error("--mean, --std: timm does not know those of this backbone: give both")
        settings |= {name: tuple(getattr(inputs, name)) for name in unset if inputs}
    if settings["root"]:  # a checkpoint is also used from other folders
        settings["root"] = os.path.abspath(settings["root"])

    if flags.get("resume") and not settings["out"]:
        parser.error("--resume needs --out, the folder of the run to continue")
    for name, schedules in USED.items():
        if name in flags and settings["schedule"] not in schedules:
            parser.error(f"--{name.replace('_', '-')} is for --schedule {' or '.join(schedules)}")
    if flags.get("official") and not settings["init"]:
        parser.error("--official is for --init FILE")
    if settings["freeze_bn"] and settings["sync_bn"]:
        parser.error("--sync-bn has no effect with --freeze-bn: leave one out")
    if settings["freeze_bn"] and not any(settings[x] for x in ("pretrained", "weights", "init")):
        parser.error("--freeze-bn is for pretrained weights: leave --no-pretrained out")
    if settings["init"] and settings["weights"]:
        parser.error("--init FILE has the weights of the backbone, too: leave --weights out")
    if flags.get("report") == "ema" and not settings["ema"]:
        parser.error("--report ema: there is no average without --ema DECAY")
    if not len(settings["mean"]) == len(settings["std"]) == 3 or 0 in settings["std"] or not all(
            map(math.isfinite, (*settings["mean"], *settings["std"]))):
        parser.error("--mean, --std: three numbers each, r,g,b; none of --std is 0")
    if 0 < settings["schedule_epochs"] < settings["epochs"]:
        parser.error(f"--epochs {settings['epochs']}: the schedule ends after "
                     f"{settings['schedule_epochs']}; --schedule-epochs 0 makes it as long")
    if settings["loss"] and (unused := [name for name in of_loss if name in flags]):
        parser.error(f"--loss {settings['loss']} replaces {model}'s loss, which alone has "
                     f"{', '.join(unused)}")
    return method, settings
