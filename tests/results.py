"""Run the commands whose figures README and tests/RESULTS.md show; keep what they give in tests/results.json.

Run: python tests/results.py --data DIR [--only TEXT] [--out DIR]

DIR holds the photographs: coco18/ and xray/ (train.csv, val.csv, test.csv). What results.json has
is not run again.
"""
import argparse
import json
import platform
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch

ROOT = Path(__file__).parent.parent
FILE = ROOT / "tests" / "results.json"
LITE = ("--backbone tf_efficientnet_lite0.in1k --image-size 128 --augment flip --optimizer adamw "
        "--weight-decay 1e-2 --schedule onecycle --pct-start 0.2 --batch-size 16 --ema 0 --amp off")
SETS = {  # the flags that all methods share
    "coco18": f"--data csv --root coco18 {LITE} --limit 2000 --epochs 4",
    "coco18-lt": f"--data csv --root coco18 {LITE} --long-tail 50 --limit 1000 --epochs 8",
    "xray": f"--data csv --root xray {LITE} --epochs 12"}
Q2L = "q2l.py --d-model 512 --ffn 2048"
CPRFL = "cprfl.py --d-model 512"
GRID = [  # data set, command, flags to choose from on val with seed 0
    ("coco18", "asl.py --loss bce", ["--lr 5e-4", "--lr 1e-3"]),
    ("coco18", "csra.py --heads 1 --lam 0.2", ["--lr 5e-4", "--lr 1e-3"]),
    ("coco18", "csra.py --lam 0", ["--lr 5e-4", "--lr 1e-3"]),
    ("coco18", CPRFL + " --text-features coco18/minilm10.npy", ["--lr 2e-4", "--lr 5e-4", "--lr 1e-3 --head-lr 0.3"]),
    ("coco18", Q2L, ["--lr 3e-4", "--lr 6e-4", "--lr 1e-3 --head-lr 0.3"]),
    ("coco18", "asl.py", ["--lr 5e-4", "--lr 1e-3"]),
]


def run(command, folder, data):
    begin = time.time()
    words = [f"{data}/{word}" if word.startswith(("coco18", "xray")) else word
             for word in command.split()]
    subprocess.run([sys.executable, *words, "--out", str(folder), "--resume"], cwd=ROOT, check=True,
                   stdout=subprocess.DEVNULL)
    lines = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    print(f"{command}: val {lines[-1].get('best_mAP_on_val', 0):.2f}, test {lines[-1]['mAP']:.2f}, "
          f"{time.time() - begin:.0f} s", flush=True)
    return {"seconds": lines[-1]["seconds"], **lines[-1], "torch": torch.__version__,
            "machine": platform.machine()}


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--only", default="")
    parser.add_argument("--data")
    parser.add_argument("--out", default=tempfile.gettempdir() + "/results")
    args = parser.parse_args()
    kept = json.loads(FILE.read_text()) if FILE.is_file() else {}

    def result(name, command, seed):
        command = f"{command} {SETS[name]} --seed {seed}"
        if command not in kept:
            folder = Path(args.out, re.sub(r"[^a-z0-9.]+", "-", command)[-240:])
            kept[command] = run(command, folder, args.data)
            FILE.write_text(json.dumps(kept, indent=1))
        return kept[command]

    for name, command, choices in GRID:
        if args.only in f"{name}: {command}":
            for flags in choices:
                result(name, f"{command} {flags}", 0)


if __name__ == "__main__":
    main()
