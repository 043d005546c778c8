"""The command line of train.py: a method's recipe for a data set, overridden by flags."""
import argparse
import inspect
import math
import os
import re
import shlex
import sys
from functools import partial
from pathlib import Path

import timm

from lib.checkpoint import read_checkpoint
from lib.errors import InputError, explain_errors
from lib.models import METHODS, import_method
from readers import READERS

USAGE = "%(prog)s [flags]    --help lists them"
ONLY_FOR = {  # setting -> the schedules that use it
    "pct_start": ["onecycle"], "decay_epochs": ["step"], "warmup_epochs": ["step", "cosine"],
    "schedule_epochs": ["onecycle", "cosine"]}
SAME_KIND = {  # data set -> the one whose recipe is used if a method has none for it
    "coco2017": "coco2014", "nuswide": "coco2014", "vg500": "coco2014",
    "voc2012": "voc2007", "voc2012-server": "voc2007",
    "coco-lt": "voc-lt", "voc-lt": "coco-lt", "scenes-lt": "scenes"}
OWN_IMAGES = ("csv", "small", None)  # recipes without mean and std: the backbone's are used
MAY_CHANGE = {"resume", "workers", "root", "out", "compile", "download"}  # when a run is resumed


def read_command_line(argv):
    """The method's module and the settings: recipe and flags or, with --resume, the stored ones.

    The settings are an argparse.Namespace: a name for each flag, `model` and `data` among them.
    """
    if argv is None:
        argv = sys.argv[1:]
    method, data, name = method_and_data(argv)
    recipe = recipe_for(method, data, name)
    parser = make_parser(method)
    parser.set_defaults(data=data, **recipe)
    settings = parser.parse_args(argv)
    given = flags_in(argv)
    changed = sorted(given & recipe.keys())
    if settings.note and changed:
        settings.note += f" (changed by flags: {', '.join(changed)})"

    last = Path(settings.out, "last.pt")
    if settings.resume and not settings.out:
        parser.error("--resume needs --out, the folder of the run to continue")
    if settings.resume and last.is_file():
        settings = stored_settings(last, settings, given)
        method = import_method(settings.model)  # the run's, if --model is not given
    else:
        if settings.resume and given <= MAY_CHANGE | {"model"}:
            # Without this, a wrong --out would start a default run. csra.py adds --model itself.
            parser.error(f"there is no {last} to continue from: correct --out, or repeat the run's "
                         "whole command with --resume, which starts it again")
        if "epochs" in given and "schedule_epochs" not in given:
            settings.schedule_epochs = 0  # else a short run might end while the learning rate rises
        if "epochs" in given and "min_steps" not in given:
            settings.min_steps = 0  # these epochs are meant
        complete(settings, given, parser, method)
    return method, settings


def recipe_name(method, data, recipe=""):
    """The name of the recipe in method.RECIPES: `recipe` if it is given, else the data set's, that
    of one of the same kind, or csv. None without one."""
    for name in (recipe, data, SAME_KIND.get(data), "csv"):
        if name in method.RECIPES:
            return name
    return None


def recipe_for(method, data, recipe=""):
    """The recipe: settings that replace the defaults of make_parser."""
    name = recipe_name(method, data, recipe)
    if name in (data, recipe):
        return method.RECIPES[name]
    what = f"the one for {name}"
    if name is None:
        what = "the defaults of lib/settings.py"
    print(f"{method.__name__} has no recipe for {data}: using {what}", file=sys.stderr)
    if name is None:
        return {}
    return dict(method.RECIPES[name], note=f"the settings of {name}")


def method_and_data(argv):
    """The method's module, the data set and the recipe that a command line names: the defaults of
    all other flags depend on them."""
    parser = argparse.ArgumentParser(usage=USAGE, allow_abbrev=False, add_help=False)
    add_what(parser)
    parser.add_argument("--recipe", default="")
    chosen, _ = parser.parse_known_args(argv)
    method = import_method(chosen.model)
    if chosen.recipe and chosen.recipe not in method.RECIPES:
        parser.error(f"--recipe {chosen.recipe}: {chosen.model} has "
                     f"{', '.join(method.RECIPES)}")
    return method, chosen.data or next(iter(method.RECIPES)), chosen.recipe


def changed_settings(method, settings):
    """In words: the settings that are not those of the recipe."""
    parser = make_parser(method)
    name = recipe_name(method, settings.data, settings.recipe)
    parser.set_defaults(**method.RECIPES.get(name, {}))
    recipe = vars(parser.parse_args([]))
    expected = {"model", "data", "recipe", "root", "out", "note", "resume", "download", "workers"}
    if name in OWN_IMAGES:
        expected |= {"mean", "std"}  # those of the backbone
    if settings.min_steps:
        expected.add("epochs")  # there may be more of them for this
    changed = []
    for key, value in vars(settings).items():
        if key not in expected and value != recipe.get(key, value):
            changed.append(f"{key}={value}")
    return " ".join(changed)


def is_long_tailed(settings):
    """Whether the training split is a long-tailed one."""
    return settings.data.endswith("-lt") or settings.long_tail > 0


# ------------------------------------------------------------------------------------------- flags


class HelpFormatter(argparse.ArgumentDefaultsHelpFormatter):
    """Shows the defaults that say something."""

    def _get_help_string(self, action):
        if action.default in ("", None, (), False):
            return action.help
        return super()._get_help_string(action)


def make_parser(method):
    """The flags of train.py for a method, in groups."""
    parser = argparse.ArgumentParser(usage=USAGE, allow_abbrev=False, formatter_class=HelpFormatter,
                                     add_help=False)
    parser.set_defaults(note="")  # of a recipe: printed before training
    group = parser.add_argument_group("what to train on what")
    add_what(group)
    group.add_argument("--recipe", default="", choices=["", *method.RECIPES], metavar="NAME",
                       help="a recipe of another name than --data; small: for few images or no GPU")
    add_data_flags(group)
    flag = partial(add_flag, group)
    flag("--augment", (), "some of crop,flip,cutout,randaugment", kind=names)
    flag("--drop-unlabelled", False, "leave out images without a positive label")
    flag("--long-tail", 0.0,
         "make the training split long-tailed: most to least frequent class; 0: leave it as it is")
    flag("--limit", 0, "train on N random images; 0: all")
    flag("--download", False, "fetch the data into ROOT")

    group = parser.add_argument_group("model")
    add_model_flags(group)
    flag = partial(add_flag, group)
    flag("--pretrained", True, "start from timm's pretrained weights")
    flag("--weights", "", "a file with the backbone's weights, instead of timm's")
    flag("--init", "", "a checkpoint to start from, even one with different classes")
    flag("--freeze-bn", False, "keep the backbone's BatchNorms as pretrained")

    group = parser.add_argument_group(f"{method.__name__}'s own settings")
    add_keywords(group, method, method.build)
    add_keywords(group, method, method.loss)
    add_keywords(group, method, method.param_groups)

    flag = partial(add_flag, parser.add_argument_group("training"))
    flag("--loss", "", "train with this loss instead of the method's own, at the same scale",
         choices=["asl", "focal", "bce", "db"])
    flag("--optimizer", "adamw", "torch's optimizer", choices=["sgd", "adam", "adamw"])
    flag("--lr", 1e-4, "learning rate")
    flag("--weight-decay", 1e-4, "L2 penalty; adamw: decoupled")
    flag("--clip-grad", 0.0, "largest gradient norm; 0: no clipping")
    flag("--schedule", "onecycle", "schedule of the learning rate",
         choices=["step", "onecycle", "cosine"])
    flag("--pct-start", 0.2, "onecycle: the share of steps in which the learning rate rises")
    flag("--decay-epochs", 1, "step: multiply the learning rate by 0.1 every N epochs")
    flag("--warmup-epochs", 0.0, "step and cosine: epochs of linear warm-up")
    flag("--epochs", 30, "epochs to train; without --schedule-epochs, the schedule is as long")
    flag("--min-steps", 0, "train more epochs, if --epochs have fewer steps than this")
    flag("--schedule-epochs", 0, "length of a schedule that training cuts short; 0: --epochs")
    flag("--batch-size", 16, "images per step, over all processes and micro-batches")
    flag("--drop-last", True, "leave out the last, smaller batch of an epoch")
    flag("--ema", 0.0, "decay of the moving average of the weights, below 1; 0: no average")
    flag("--ema-warmup", True, "the decay rises from 0.1 to --ema, so that a short run forgets its "
         "initial weights; without it, the decay is --ema from the first step")
    flag("--ema-start", 0, "the average starts after N epochs, as a copy of the weights")
    flag("--report", "ema", "the weights whose mAP is the result; without --ema, raw",
         choices=["ema", "raw"])
    flag("--seed", 0, "the seed of all random numbers")

    group = parser.add_argument_group("how and where to run")
    group.add_argument("-h", "--help", action="help", help="show this text")
    flag = partial(add_flag, group)
    flag("--out", "", "folder of the run; else runs/METHOD-DATA-TIME")
    flag("--resume", False, "continue from OUT/last.pt")
    flag("--workers", -1, "loading processes; -1: automatic")
    flag("--amp", "auto", "the dtype of autocast", choices=["auto", "off", "bf16", "fp16"])
    flag("--compile", False, "use torch.compile")
    flag("--accumulate", 1, "gradient accumulation: micro-batches per step, to save memory")
    flag("--sync-bn", False, "BatchNorm statistics over all processes")
    return parser


def add_what(group):
    group.add_argument("--model", choices=METHODS, default="csra", help="the method")
    group.add_argument("--data", choices=READERS, help="the data set")


def add_data_flags(group):
    """Those that a converted checkpoint needs, too."""
    add_flag(group, "--root", "", "folder of the data set", kind=folder)
    add_flag(group, "--difficult", "ignored", "how VOC's difficult objects count at test time",
             choices=["ignored", "negative"])


def add_model_flags(group):
    """Those that a converted checkpoint needs, too."""
    add_flag(group, "--backbone", "resnet101.tv_in1k", "a timm model name")
    add_flag(group, "--image-size", 448, "side of the square input in pixels")
    add_flag(group, "--mean", (0.485, 0.456, 0.406), "of the input: r,g,b", kind=three_numbers)
    add_flag(group, "--std", (0.229, 0.224, 0.225), "of the input: r,g,b", kind=three_numbers)


def add_keywords(group, method, function):
    """A flag for each keyword argument of a method's function that has a default. method.HELP says
    what it is."""
    texts = getattr(method, "HELP", {})
    for parameter in inspect.signature(function).parameters.values():
        default = parameter.default
        if default is parameter.empty or parameter.name == "reduction":
            continue
        flag = "--" + parameter.name.replace("_", "-")
        text = texts.get(parameter.name, f"see {method.__name__}.py")
        # None without that annotation: an int or a bool
        if default is None and parameter.annotation != str | None:
            add_flag(group, flag, default, text, kind=literal)
        else:
            add_flag(group, flag, default, text)


def add_flag(group, flag, default, text, kind=str, choices=None):
    """The default decides. A bool makes --flag and --no-flag. A number sets the type and the lowest
    value, 0 or the default if that is negative. Otherwise, `kind` turns the text into a value."""
    if isinstance(default, bool):
        group.add_argument(flag, default=default, help=text,
                           action=argparse.BooleanOptionalAction)
        return
    if isinstance(default, int | float):
        kind = at_least(min(default, 0), type(default))
    group.add_argument(flag, default=default, help=text, type=kind, choices=choices)


def flags_in(argv):
    """The names of the settings that are typed on the command line."""
    given = set()
    for word in argv:
        if word.startswith("--"):
            name, _, _ = word.removeprefix("--").removeprefix("no-").partition("=")
            given.add(name.replace("-", "_"))
    return given


# ----------------------------------------------------------------------------------- types of flags


def integer(low):
    return at_least(low, int)


def at_least(low, kind):
    """A type for argparse: text -> a number, an int or a float, of at least `low`."""
    def parse(text):
        value = kind(text)
        if not low <= value < 2 ** 31:  # also nan; seeds and sizes must fit into 64 bits
            raise argparse.ArgumentTypeError(f"{text}: must be at least {low}, and below 2^31")
        return value
    parse.__name__ = kind.__name__  # argparse prints it
    return parse


def folder(text):
    """An absolute path: a checkpoint is also used from other folders. Empty text stays."""
    if not text:
        return text
    return os.path.abspath(text)


def three_numbers(text):
    red, green, blue = text.split(",")
    return float(red), float(green), float(blue)


def integers(text):
    return [int(item) for item in text.split(",")]


def names(text):
    return tuple(re.findall(r"\w+", text))


def literal(text):
    """An int, or true, false or none."""
    words = {"true": True, "false": False, "none": None}
    if text.lower() in words:
        return words[text.lower()]
    return int(text)


# -------------------------------------------------------------------------------- what flags decide


def complete(settings, given, parser, method):
    """Checks the settings of a command line and adds those that follow from others. given: the
    names of those that are typed."""
    check_settings(settings, given, parser, method)
    if recipe_name(method, settings.data, settings.recipe) in OWN_IMAGES:
        set_normalization(settings, given)


def stored_settings(last, settings, given):
    """--resume: the settings in OUT/last.pt. Only flags that change no result may differ."""
    stored = read_checkpoint(last)["settings"]
    defaults = make_parser(import_method(stored.model)).parse_args([])
    for name, value in vars(defaults).items():  # flags that are newer than the run
        if not hasattr(stored, name):
            setattr(stored, name, value)
    for name in given:
        value = getattr(settings, name)
        if name in MAY_CHANGE:
            setattr(stored, name, value)
        elif name == "epochs" and stored.min_steps and value < stored.epochs:
            continue  # --min-steps has raised them
        elif name == "epochs" and stored.epochs != value:
            raise InputError(f"{last} is of a run of {stored.epochs} epochs, and its schedule with "
                             f"it: to train longer, use --init {shlex.quote(str(last))} with "
                             "another --out")
        elif getattr(stored, name, None) != value:
            raise InputError(f"{last} was made with other settings for {name}: leave this flag out "
                             "to resume, or start over with another --out")
    return stored


def set_normalization(settings, given):
    """Mean and std for your own images, if they are not given: those of the --init checkpoint, else
    those that the backbone was trained with, if timm knows them."""
    if settings.init:
        inputs = read_checkpoint(settings.init)["settings"]
    else:
        with explain_errors(f"--backbone {settings.backbone}", "choose another timm model name"):
            inputs = timm.get_pretrained_cfg(settings.backbone)
    missing = {"mean", "std"} - given
    if missing and inputs is None:
        raise InputError(f"--backbone {settings.backbone}: timm does not know it, or not its mean "
                         "and std: correct the name, or give --mean and --std")
    for name in missing:
        setattr(settings, name, tuple(getattr(inputs, name)))


def check_settings(settings, given, parser, method):
    """Rejects flags that have no effect and settings that cannot work."""
    for name, schedules in ONLY_FOR.items():
        if name in given and settings.schedule not in schedules:
            parser.error(f"--{name.replace('_', '-')} is for --schedule {' or '.join(schedules)}")
    if 0 < settings.schedule_epochs < settings.epochs:
        parser.error(f"--epochs {settings.epochs}: the schedule ends earlier; --schedule-epochs 0 "
                     "makes it last as long")
    if settings.min_steps and settings.schedule_epochs:
        parser.error("--min-steps also makes the schedule longer: it needs --schedule-epochs 0")
    if settings.ema >= 1:
        parser.error("--ema: the decay must be below 1")
    if settings.report == "ema" and "report" in given and settings.ema == 0:
        parser.error("--report ema needs --ema DECAY")
    if settings.ema == 0 and given & {"ema_start", "ema_warmup"}:
        parser.error("--ema-start and --ema-warmup need --ema DECAY")
    for name in ("epochs", "batch_size", "image_size", "accumulate", "decay_epochs"):
        if getattr(settings, name) < 1:
            parser.error(f"--{name.replace('_', '-')} must be at least 1")
    if not 0 <= settings.pct_start < 1:
        parser.error("--pct-start is a share: it must be below 1")
    finite = all(math.isfinite(value) for value in settings.mean + settings.std)
    if not finite or min(settings.std) <= 0:
        parser.error("--mean and --std must be finite, and --std above 0")
    if settings.init and settings.weights:
        parser.error("--init replaces --weights: leave --weights out")
    if {"text", "text_features"} <= given:
        parser.error("--text-features replaces the text tower: leave --text out")
    if settings.loss:
        unused = given & inspect.signature(method.loss).parameters.keys()
        if unused:
            parser.error(f"--loss {settings.loss} has no {', '.join(unused)}")
    random_start = not (settings.pretrained or settings.weights or settings.init)
    if random_start and (settings.freeze_bn or getattr(settings, "freeze", False)):
        print("warning: frozen layers stay random: --no-freeze-bn, and for q2l "
              "--no-freeze, train them, too", file=sys.stderr)
