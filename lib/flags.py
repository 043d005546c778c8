"""Checks of eval.py's flags: none is ignored silently."""
import argparse

CONFLICTS = {  # a flag -> flags that it would ignore
    "from_scores": ("data", "root", "split", "workers", "limit", "skip_bad", "weights", "backbone",
                    "per_class", "tune_threshold", "image_size", "sizes", "flip", "residual",
                    "predict", "heatmaps", "pointing", "scores"),
    "predict": ("data", "root", "split", "limit", "skip_bad", "ap", "out", "scores", "pointing",
                "voc_server"),
    "voc_server": ("out", "split", "ap", "pointing", "threshold", "tune_threshold"),
    "heatmaps": ("pointing",), "tune_threshold": ("threshold",)}
NEEDS = {"each_head": "heatmaps", "json": "predict", "per_class": "tune_threshold"}


def at_least(low):
    def parse(text):
        if int(text) < low:
            raise argparse.ArgumentTypeError(f"{text}: must be at least {low}")
        return int(text)
    parse.__name__ = "number"  # argparse prints it
    return parse


def check_flags(parser, args, rest):
    """Refuses flags that would be ignored; returns how each flag is typed, and those given."""
    given = [name for name, value in vars(args).items() if value != parser.get_default(name)]
    typed = {name: f"--{name.replace('_', '-')}" for name in vars(args)}
    if not args.official and (args.model or rest):
        parser.error(f"only with --official: {args.model or ''} {' '.join(rest)}")
    needed = ("data", "root") if args.official else ()  # a released checkpoint does not name it
    for name, ignored in CONFLICTS.items():
        if name in given and (both := [typed[other] for other in ignored if other in given
                                       and other not in needed]):
            parser.error(f"{typed[name]} ignores {', '.join(both)}: leave these out")
    if {"image_size", "sizes"} <= {*given} and not args.official:
        parser.error("--sizes replaces --image-size: leave one out")
    for name, other in NEEDS.items():
        if name in given and other not in given:
            parser.error(f"{typed[name]} goes with {typed[other]}")
    return typed, given
