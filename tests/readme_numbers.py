"""Run README's commands on the scenes again and say which figures moved.

Run: python tests/readme_numbers.py [--only TEXT] [--out DIR]    rows whose command holds TEXT

A figure "97.9 (97.0 to 98.4)" is the mean of seeds 0, 1, 2 and their range; one without a range is
seed 0's. It has moved if the new one lies outside the range by more than one point: threads and
processors change the last digits, and training carries these far. What DIR holds isn't run again.
"""
import argparse
import json
import re
import subprocess
import sys
import tempfile
from functools import cache
from pathlib import Path

import numpy as np

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text("utf-8")
COLUMNS = ("mAP", "CP", "CR", "CF1", "OP", "OR", "OF1", "CF1_3", "OF1_3", "pointing")


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--only", default="")
    parser.add_argument("--out", default=tempfile.gettempdir() + "/readme")
    args = parser.parse_args()
    moved = 0

    def say(command, figures, new):
        """`figures`: README's (mean, low, high); `new`: (n,) of one seed or (3, n) of three."""
        nonlocal moved
        print(f"python {command}")
        for (mean, low, high), values in zip(figures, np.atleast_2d(new).T, strict=True):
            ok = float(low) - 1 <= values.mean() <= float(high) + 1
            moved += not ok
            print(f"  README {mean} ({low} to {high})  now {values.mean():.1f} ({values.min():.1f} "
                  f"to {values.max():.1f}){'' if ok else '  MOVED'}", flush=True)

    @cache
    def train(command, seed):
        """The folder of this run."""
        out = Path(args.out, f"{re.sub(r'[^a-z0-9]+', '-', command)}-{seed}")
        subprocess.run([sys.executable, *command.split(), "--seed", str(seed), "--out", str(out),
                        "--resume"], cwd=ROOT, check=True, stdout=subprocess.DEVNULL)
        return out

    def evaluate(command, flags, figures, names):
        """Compare figures of eval.py, by their names, after the training `command` with seed 0."""
        program = f"eval.py --checkpoint {train(command, 0)}/last.pt {flags}"
        table = Path(args.out, "table.json")
        subprocess.run([sys.executable, *program.split(), "--out", str(table)], cwd=ROOT,
                       check=True, stdout=subprocess.DEVNULL)
        result = json.loads(table.read_text())
        say(program, [(figure,) * 3 for figure in figures], [result[name] for name in names])

    commands = re.findall(r"^\|.*?`python (train\.py [^`]+)` \|(.*)$", README, re.MULTILINE)
    for command, row in commands:
        figures = re.findall(r"([\d.]+) \(([\d.]+) to ([\d.]+)\)", row)
        if args.only in command:
            logs = [(train(command, seed) / "log.jsonl").read_text() for seed in range(3)]
            last = [json.loads(log.splitlines()[-1]) for log in logs]
            names = ("mAP", "head", "medium", "tail")[:len(figures)]
            say(command, figures, [[line[name] for name in names] for line in last])
    first = dict(re.findall(r"^\| `(\w+)\.py` \|.* `python (train\.py [^`]+)` \|", README,
                            re.MULTILINE))
    for model, row in re.findall(r"^\| (\w+) \|((?: [\d.]+ \|)+)$", README, re.MULTILINE):
        if args.only in first[model]:
            evaluate(first[model], "--pointing", re.findall(r"[\d.]+", row), COLUMNS)
    baselines = {"bce": "train.py --model asl --loss bce", "asl": first["asl"]}
    for loss, figures in re.findall(r"`(?:--loss )?(bce|asl)` ((?:[\d.]+, ){3}[\d.]+)", README):
        for lam, figure in zip((0.1, 0.3, 1), figures.split(", ")[1:], strict=True):
            if args.only in baselines[loss]:
                evaluate(baselines[loss], f"--residual {lam}", [figure.rstrip(".")], ["mAP"])
    if args.only in first["asl"]:
        tuned = re.search(r"OF1 [\d.]+\s+at 0.5 and\s+([\d.]+)\s+at thresholds", README)[1]
        evaluate(first["asl"], "--tune-threshold train --per-class", [tuned], ["OF1"])
    print(f"{moved} figures moved")
    return int(moved > 0)


if __name__ == "__main__":
    sys.exit(main())
