"""Run README's commands on the scenes again and say which figures moved.

Run: python tests/readme_numbers.py [--only TEXT] [--out DIR]    rows whose command holds TEXT

A figure "97.9 (97.0 to 98.4)" is the mean of seeds 0, 1, 2 and their range. It has moved if the new
mean lies outside the range by more than one point: threads and processors change the last digits, and
training carries these far.
"""
import argparse
import json
import re
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np

ROOT = Path(__file__).parent.parent
FIGURE = r"([\d.]+) \(([\d.]+) to ([\d.]+)\)"


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--only", default="")
    parser.add_argument("--out", default=tempfile.gettempdir() + "/readme")
    args = parser.parse_args()
    moved = 0
    for line in (ROOT / "README.md").read_text("utf-8").splitlines():
        command = re.search(r"\| `python (train\.py [^`]+)` \|", line)
        figures = [tuple(map(float, figure)) for figure in re.findall(FIGURE, line)]
        if not command or not figures or args.only not in command[1]:
            continue
        results = []
        for seed in range(3):
            out = Path(args.out, f"{re.sub(r'[^a-z0-9]+', '-', command[1])}-{seed}")
            subprocess.run([sys.executable, *command[1].split(), "--seed", str(seed), "--out",
                            str(out), "--resume"], cwd=ROOT, check=True, stdout=subprocess.DEVNULL)
            last = json.loads((out / "log.jsonl").read_text().splitlines()[-1])
            results.append([last[name] for name in ("mAP", "head", "medium", "tail")[:len(figures)]])
        print(f"python {command[1]}")
        for (mean, low, high), new in zip(figures, np.transpose(results)):
            ok = low - 1 <= new.mean() <= high + 1
            moved += not ok
            print(f"  README {mean} ({low} to {high})  now {new.mean():.1f} ({new.min():.1f} to "
                  f"{new.max():.1f}){'' if ok else '  MOVED'}", flush=True)
    print(f"{moved} figures moved")
    return int(moved > 0)


if __name__ == "__main__":
    sys.exit(main())
