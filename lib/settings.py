"""The command line of train.py: a method's recipe for a data set, overridden by flags."""
import argparse
import inspect
import math
import os
import sys
from pathlib import Path

import timm

from lib.checkpoint import read_checkpoint
from lib.models import METHODS, import_method
from readers import READERS
from readers.errors import InputError, explain_errors

LOSSES = ["asl", "focal", "bce", "db"]
MAY_CHANGE = {"resume", "workers", "root", "out", "compile", "download"}  # when a run is resumed


class Parser(argparse.ArgumentParser):
    """An error prints its own line only, not the usage of fifty flags."""

    def error(self, message):
        self.exit(2, f"{self.prog}: error: {message} (--help lists the flags)\n")


def read_command_line(argv, positional=()):
    """The method's module and the settings: the recipe with the flags; --resume: the stored ones.

    The settings are an argparse.Namespace: a name for each flag, `model` and `data` among them.
    positional: names of further arguments, as tools/convert.py has them.
    """
    if argv is None:
        argv = sys.argv[1:]
    # The method and the data set come first: the defaults of the other flags depend on them.
    first = Parser(allow_abbrev=False, add_help=False)
    first.add_argument("--model", choices=METHODS, default="csra")
    first.add_argument("--data", choices=READERS)
    chosen, _ = first.parse_known_args(argv)
    method = import_method(chosen.model)
    data = chosen.data or next(iter(method.RECIPES))

    parser = make_parser(method)
    for name in positional:
        parser.add_argument(name)
    parser.set_defaults(model=chosen.model, data=data)
    parser.set_defaults(**recipe_for(method, data))
    settings = parser.parse_args(argv)
    given = flags_in(argv)

    last = Path(settings.out, "last.pt")
    if settings.resume and not settings.out:
        parser.error("--resume needs --out, the folder of the run to continue")
    if settings.resume and last.is_file():
        settings = stored_settings(last, settings, given)
    else:
        if "epochs" in given and "schedule_epochs" not in given:
            settings.schedule_epochs = 0  # else a short run might end while the learning rate rises
        check_settings(settings, given, parser, method)
        if settings.data == "csv":
            set_normalization(settings, given, parser)
    if settings.root:  # a checkpoint is also used from other folders
        settings.root = os.path.abspath(settings.root)
    return method, settings


def recipe_for(method, data):
    if data in method.RECIPES:
        return method.RECIPES[data]
    print(f"{method.__name__} has no recipe for {data}: using the one for csv", file=sys.stderr)
    return method.RECIPES.get("csv", {})


def make_parser(method):
    parser = Parser(description=method.__doc__.split("\n")[0], allow_abbrev=False,
                    formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    flag = parser.add_argument
    # what a recipe may set
    flag("--model", choices=METHODS, help="the method")
    flag("--data", choices=READERS, help="the data set")
    flag("--backbone", default="resnet101.tv_in1k", help="a model name of timm")
    flag("--pretrained", default=True, action=argparse.BooleanOptionalAction,
         help="start from timm's pretrained weights")
    flag("--image-size", default=448, type=integer(1), help="side of the square input in pixels")
    flag("--mean", default=(0.485, 0.456, 0.406), type=three_numbers, help="of the input: r,g,b")
    flag("--std", default=(0.229, 0.224, 0.225), type=three_numbers, help="of the input: r,g,b")
    flag("--augment", default=(), type=names, help="some of crop,flip,cutout,randaugment")
    flag("--drop-unlabelled", default=False, action=argparse.BooleanOptionalAction,
         help="leave out images without a positive label")
    flag("--difficult", default="ignored", choices=["ignored", "negative"],
         help="how VOC's difficult objects count at test time")
    flag("--long-tail", default=0.0, type=number(0),
         help="make the training split long-tailed: most over least frequent class; 0: as it is")
    flag("--loss", default="", choices=["", *LOSSES],
         help="train with the mean of this loss in place of the method's own")
    flag("--optimizer", default="adamw", choices=["sgd", "adam", "adamw"], help="torch's optimizer")
    flag("--lr", default=1e-4, type=number(0), help="learning rate")
    flag("--weight-decay", default=1e-4, type=number(0), help="L2 penalty; adamw: decoupled")
    flag("--clip-grad", default=0.0, type=number(0), help="largest gradient norm; 0: no clipping")
    flag("--schedule", default="onecycle", choices=["step", "onecycle", "cosine"],
         help="schedule of the learning rate")
    flag("--pct-start", default=0.2, type=number(0, 1),
         help="onecycle: the share of steps in which the learning rate rises")
    flag("--decay-epochs", default=1, type=integer(1),
         help="step: multiply the learning rate by 0.1 every N epochs")
    flag("--warmup-epochs", default=0.0, type=number(0, 10 ** 6),
         help="step and cosine: epochs of linear warm-up")
    flag("--epochs", default=30, type=integer(1),
         help="when training ends; given alone, the schedule ends there, too")
    flag("--schedule-epochs", default=0, type=integer(0),
         help="the length of a schedule that training cuts short; 0: epochs")
    flag("--batch-size", default=16, type=integer(1),
         help="images per step, over all processes and micro-batches")
    flag("--drop-last", default=True, action=argparse.BooleanOptionalAction,
         help="leave out the last, smaller batch of an epoch")
    flag("--ema", default=0.0, type=number(0, 1), help="decay of the weights' average; 0: none")
    flag("--report", default="ema", choices=["ema", "raw"],
         help="the weights whose mAP is the result; without --ema, raw")
    parser.set_defaults(note="")  # of a recipe: printed before training
    # how and where to run
    flag("--weights", default="", help="a file with the backbone's weights, in place of timm's")
    flag("--init", default="", help="a checkpoint to start from, even one with different classes")
    flag("--root", default="", help="folder of the data set")
    flag("--out", default="", help="folder of the run")
    flag("--seed", default=0, type=integer(0, 2 ** 32), help="of all random numbers")
    flag("--workers", default=-1, type=integer(-1), help="loading processes; -1: automatic")
    flag("--amp", default="auto", choices=["auto", "off", "bf16", "fp16"], help="autocast")
    flag("--compile", action="store_true", help="use torch.compile")
    flag("--accumulate", default=1, type=integer(1),
         help="gradient accumulation: micro-batches per step, to save memory")
    flag("--grad-checkpointing", action="store_true", help="compute activations twice, for memory")
    flag("--sync-bn", action="store_true", help="BatchNorm statistics over all processes")
    flag("--freeze-bn", action="store_true", help="keep the backbone's BatchNorms as pretrained")
    flag("--limit", default=0, type=integer(0), help="train on N random images; 0: all")
    flag("--resume", action="store_true", help="continue from OUT/last.pt")
    flag("--download", action="store_true", help="fetch the data into ROOT")
    # of the method: the keyword arguments of its functions
    add_keywords(parser, method.build, "model")
    add_keywords(parser, method.loss, "loss")
    add_keywords(parser, method.param_groups, "optimizer")
    return parser


def add_keywords(parser, function, what):
    """A flag for each keyword argument of `function` that has a default."""
    for parameter in inspect.signature(function).parameters.values():
        default = parameter.default
        if default is parameter.empty or parameter.name == "reduction":
            continue
        name = "--" + parameter.name.replace("_", "-")
        help_text = f"of the {what}: see the method's file"
        if isinstance(default, bool):
            parser.add_argument(name, default=default, help=help_text,
                                action=argparse.BooleanOptionalAction)
        elif default is None:
            kind = OPTIONAL[parameter.annotation]
            parser.add_argument(name, default=default, type=kind, help=help_text)
        elif isinstance(default, str):
            parser.add_argument(name, default=default, help=help_text)
        elif isinstance(default, int):
            parser.add_argument(name, default=default, type=integer(0), help=help_text)
        else:
            parser.add_argument(name, default=default, type=number(0), help=help_text)


def flags_in(argv):
    """The names of the settings that are typed on the command line."""
    given = set()
    for word in argv:
        if word.startswith("--"):
            name = word.removeprefix("--").split("=")[0]
            given.add(name.removeprefix("no-").replace("-", "_"))
    return given


# ----------------------------------------------------------------------------------- types of flags


def integer(low, high=math.inf):
    return in_range(int, low, high)


def number(low, high=math.inf):
    return in_range(float, low, high)


def in_range(kind, low, high):
    """A type for argparse: text -> a number in [low, high)."""
    def parse(text):
        value = kind(text)
        if not low <= value < high:
            raise argparse.ArgumentTypeError(f"{text}: must be in [{low}, {high})")
        return value
    parse.__name__ = kind.__name__  # argparse prints it
    return parse


def three_numbers(text):
    values = tuple(float(item) for item in text.split(","))
    if len(values) != 3 or not all(math.isfinite(value) for value in values):
        raise argparse.ArgumentTypeError(f"{text}: three numbers are needed, r,g,b")
    return values


def integers(text):
    return [integer(1)(item) for item in text.split(",")]


def names(text):
    return tuple(item for item in text.split(",") if item)


def integer_or_none(text):
    if text.lower() == "none":
        return None
    return int(text)


def true_false_or_none(text):
    values = {"true": True, "false": False, "none": None}
    if text.lower() not in values:
        raise argparse.ArgumentTypeError(f"{text}: true, false or none")
    return values[text.lower()]


OPTIONAL = {int | None: integer_or_none, bool | None: true_false_or_none, str | None: str}


# -------------------------------------------------------------------------------- what flags decide


def stored_settings(last, settings, given):
    """--resume: the settings in OUT/last.pt. Only flags that change no result may differ."""
    stored = read_checkpoint(last)["settings"]
    changed = []
    for name in sorted(given & vars(settings).keys()):
        value = getattr(settings, name)
        if name in MAY_CHANGE:
            setattr(stored, name, value)
        elif getattr(stored, name, None) != value:
            changed.append(name)
    if changed:
        raise InputError(f"{last} was made with other settings for {', '.join(changed)}: leave "
                         "these flags out to resume, or start anew with another --out")
    return stored


def set_normalization(settings, given, parser):
    """Mean and std for your own images, where they are not given: the checkpoint's of --init, else
    those with which the backbone was trained."""
    if settings.init:
        inputs = read_checkpoint(settings.init)["settings"]
    else:
        with explain_errors(f"--backbone {settings.backbone}", "choose another of timm's names"):
            inputs = timm.get_pretrained_cfg(settings.backbone)
    if inputs is None:
        if ":" in settings.backbone and not {"mean", "std"} <= given:
            parser.error("--mean, --std: timm does not know those of this backbone: give both")
        return
    if "mean" not in given:
        settings.mean = tuple(inputs.mean)
    if "std" not in given:
        settings.std = tuple(inputs.std)


def check_settings(settings, given, parser, method):
    """Refuses flags without effect and settings that cannot work."""
    for name, schedules in (("pct_start", ["onecycle"]), ("decay_epochs", ["step"]),
                            ("warmup_epochs", ["step", "cosine"]),
                            ("schedule_epochs", ["onecycle", "cosine"])):
        if name in given and settings.schedule not in schedules:
            flag = "--" + name.replace("_", "-")
            parser.error(f"{flag} is for --schedule {' or '.join(schedules)}")
    if settings.freeze_bn and settings.sync_bn:
        parser.error("--sync-bn has no effect with --freeze-bn: leave one out")
    random_start = not (settings.pretrained or settings.weights or settings.init)
    if settings.freeze_bn and random_start:
        parser.error("--freeze-bn is for pretrained weights: leave --no-pretrained out")
    if getattr(settings, "freeze", False) and random_start:
        print("warning: the frozen layers of a ResNet stay random: --no-freeze trains them, too",
              file=sys.stderr)
    if {"text", "text_features"} <= given:
        parser.error("--text-features replaces the tower --text: leave one out")
    if settings.init and settings.weights:
        parser.error("--init FILE has the weights of the backbone, too: leave --weights out")
    if "report" in given and settings.report == "ema" and settings.ema == 0:
        parser.error("--report ema: there is no average without --ema DECAY")
    if 0 in settings.std:
        parser.error("--std: a standard deviation of 0 would divide by zero")
    if 0 < settings.schedule_epochs < settings.epochs:
        parser.error(f"--epochs {settings.epochs}: the schedule ends after "
                     f"{settings.schedule_epochs}; --schedule-epochs 0 makes it as long")
    if settings.loss:
        unused = sorted(given & inspect.signature(method.loss).parameters.keys())
        if unused:
            parser.error(f"--loss {settings.loss} replaces {settings.model}'s loss, which alone "
                         f"has {', '.join(unused)}")
