"""Loss, mAP and learning rate of one or several runs over their epochs, in one picture.

Run: python -m tools.plot OUT [OUT ...] [--out FILE.png]
"""
import argparse
import itertools
import json
from pathlib import Path
from typing import NamedTuple

from lib import distributed
from lib.errors import InputError, explain_errors


class Run(NamedTuple):
    folder: Path
    split: str  # val or test: where mAP was measured after each epoch
    epoch: list
    loss: list
    mAP: list
    lr: list


def read_run(folder):
    """The log of a run, which may be unfinished. Raises InputError."""
    file = Path(folder, "log.jsonl")
    with explain_errors(file, "the folder of a run of train.py is needed"):
        lines = [json.loads(line) for line in file.read_text("utf-8").splitlines()]
        epochs = [line for line in lines if "epoch" in line]
        if not epochs:
            raise InputError(f"{file}: no epoch is complete yet")
        columns = {}
        for name in ("epoch", "loss", "mAP", "lr"):
            columns[name] = [float(line[name]) for line in epochs]
    split = "test"
    if "best_mAP_on_val" in lines[-1] or Path(folder, "best.pt").exists():  # only with a val split
        split = "val"
    return Run(Path(folder), split, **columns)


def draw(axes, runs, name, unit_of):
    """A line per run. Where the runs' scales differ more than tenfold, as the losses of different
    methods do, each is divided by its own unit, which a legend gives. Returns whether this is so.
    """
    units = [unit_of(getattr(run, name)) for run in runs]
    relative = 0 < 10 * min(units) < max(units)
    styles = itertools.cycle(["o-", "o--", "o:"])  # two lines in the same place stay visible
    for run, unit, style in zip(runs, units, styles):
        values = getattr(run, name)
        if relative:
            values = [value / unit for value in values]
        axes.plot(run.epoch, values, style, markersize=3)
    if relative:
        axes.legend(axes.lines, [f"{unit:.3g}" for unit in units], title="1.0 is")
    return relative


def legend_of(runs):
    """The folders' names, or their paths if two have the same name; val or test if runs differ."""
    labels = [run.folder.resolve().name for run in runs]
    if len(set(labels)) < len(runs):
        labels = [str(run.folder) for run in runs]
    if len({run.split for run in runs}) > 1:
        labels = [f"{label}: mAP on {run.split}" for label, run in zip(labels, runs)]
    return [label.replace("$", r"\$") for label in labels]  # $ would begin a formula


def main(argv=None):
    parser = argparse.ArgumentParser(description="Draws loss, mAP and learning rate of runs.",
                                     allow_abbrev=False)
    parser.add_argument("runs", nargs="+", metavar="OUT", help="the folder of a run")
    parser.add_argument("--out", metavar="FILE", help="default: plot.png in the first folder")
    args = parser.parse_args(argv)
    out = Path(args.out or f"{args.runs[0]}/plot.png")
    if not out.suffix:
        parser.error(f"--out {out}: a file name such as plot.png is needed")
    try:
        from matplotlib.figure import Figure
        from matplotlib.ticker import MaxNLocator
    except ImportError:
        raise InputError("tools.plot needs matplotlib: pip install matplotlib") from None
    runs = [read_run(folder) for folder in args.runs]

    figure = Figure(figsize=(8, 9), layout="constrained")
    top, middle, bottom = figure.subplots(3, sharex=True)
    relative = draw(top, runs, "loss", unit_of=lambda values: values[0])
    top.set_ylabel("training loss / that of epoch 1" if relative else "training loss")
    draw(middle, runs, "mAP", unit_of=lambda values: 100)
    splits = sorted({run.split for run in runs})
    middle.set_ylabel(f"mAP on {' and '.join(splits)} (%)")
    relative = draw(bottom, runs, "lr", unit_of=max)
    bottom.set_ylabel("learning rate / its maximum" if relative else "learning rate, end of epoch")
    bottom.set_xlabel("epoch")
    bottom.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    for axes in (top, middle, bottom):
        axes.grid(alpha=0.3)
    figure.legend(middle.lines, legend_of(runs), loc="outside upper center")
    with explain_errors(out, "choose another --out, such as plot.png"):
        figure.savefig(out, dpi=120)
    print(f"written to {out}")


if __name__ == "__main__":
    with distributed.program():
        main()
