"""The figures of README and RESULTS.md: runs the commands, keeps what they give, writes the tables.

Run: python tests/results.py --data DIR --steps photographs,evaluations,scenes,parity,speed
     python tests/results.py                          only the tables, from tests/results.json

DIR holds the photographs: coco18/ and xray/ (train.csv, val.csv, test.csv) and coco-mini/. A run
that tests/results.json has is not run again. Settings with several choices are chosen by the mAP on
val of seed 0; test is used once per run, for the epoch that val has chosen.
"""
import argparse
import json
import os
import platform
import re
import subprocess
import sys
import tempfile
import zlib
from functools import partial
from itertools import accumulate
from pathlib import Path

import torch
from PIL import Image, ImageDraw, ImageFont

ROOT = Path(__file__).parent.parent
FILE, PAGES = ROOT / "tests/results.json", (ROOT / "README.md", ROOT / "tests/RESULTS.md")
SEEDS = (0, 1, 2)

LITE = ("--backbone tf_efficientnet_lite0.in1k --image-size 128 --augment flip --optimizer adamw "
        "--weight-decay 1e-2 --schedule onecycle --pct-start 0.2 --batch-size 16 --ema 0 --amp off")
TRAINED = {  # table: the flags that all its commands share
    "coco18": f"--data csv --root coco18 {LITE} --limit 2000 --epochs 4",
    "coco18-lt": f"--data csv --root coco18 {LITE} --long-tail 50 --limit 760 --epochs 8",
    "xray": f"--data csv --root xray {LITE} --epochs 12"}
SHARED = {**{name: f"{flags} --freeze-bn" for name, flags in TRAINED.items()},
          **{f"{name}, BatchNorm trained": flags for name, flags in TRAINED.items()}}
LR, LOSS = ("--lr 1e-4", "--lr 2e-4", "--lr 5e-4"), ("--lr 5e-4", "--lr 2e-4 --head-lr 10")
XRAY = ("--lr 2e-4", "--lr 1e-3")
BCE, CSRA, POOLED = "asl.py --loss bce", "csra.py --lam 0.2", "csra.py --lam 0"
Q2L, CPRFL = "q2l.py --d-model 512 --ffn 2048", "cprfl.py --d-model 512"
MINILM = f"{CPRFL} --text-features coco18/minilm10.npy"
RANDOM = f"{CPRFL} --text-features coco18/random10.npy"
ROWS = {  # table: (label, command, its choices: flags, or the command whose choice is taken)
    "coco18": [
        ("baseline, BCE", BCE, ("--lr 2e-4", "--lr 5e-4", "--lr 1e-3")),
        ("the same, learning rate of the classifier x 10", f"{BCE} --head-lr 10", LR),
        ("the same, classifier normalized: CSRA without attention", POOLED, LR),
        ("CSRA", CSRA, LR),
        ("baseline, focal loss", "asl.py --loss focal", LOSS),
        ("baseline, ASL", "asl.py", LOSS),
        ("baseline, DB loss", "asl.py --loss db", LOSS),
        ("Q2L", Q2L, ("--lr 3e-4", "--lr 6e-4", "--lr 1e-4 --head-lr 3")),
        ("Q2L, decoder with self-attention", f"{Q2L} --self-attention", Q2L),
        ("Q2L, the paper's loss", f"{Q2L} --gamma-neg 1", Q2L),
        ("CPRFL", MINILM, ("--lr 2e-4", "--lr 5e-4", "--lr 1e-4 --head-lr 5"))],
    "coco18-lt": [
        ("baseline, BCE", BCE, BCE),
        ("the same, learning rate of the classifier x 10", f"{BCE} --head-lr 10",
         f"{BCE} --head-lr 10"),
        ("the same, classifier normalized: CSRA without attention", POOLED, POOLED),
        ("baseline, focal loss", "asl.py --loss focal", "asl.py --loss focal"),
        ("baseline, ASL", "asl.py", "asl.py"),
        ("baseline, DB loss", "asl.py --loss db", "asl.py --loss db"),
        ("CSRA", CSRA, CSRA),
        ("Q2L", Q2L, Q2L),
        ("CPRFL", MINILM, MINILM),
        ("CPRFL, random prompts", f"{MINILM} --prompts random", MINILM),
        ("CPRFL, random text features of the same norm", RANDOM, MINILM),
        ("CPRFL, untrained text tower", f"{CPRFL} --text random", MINILM),
        ("CPRFL, linear prompts", f"{MINILM} --prompts linear", MINILM),
        ("CPRFL, gradient through the interaction only", f"{MINILM} --paths interaction", MINILM),
        ("CPRFL, gradient through the score only", f"{MINILM} --paths direct", MINILM),
        ("CPRFL, text features of norm 1", f"{CPRFL} --text-features coco18/minilm.npy", MINILM)],
    "xray": [("CSRA", CSRA, XRAY), ("CSRA without attention", POOLED, XRAY)]}
BEFORE = [("baseline, BCE", BCE, ("--lr 5e-4",)), ("baseline, ASL", "asl.py", ("--lr 1e-3",)),
          ("CSRA without attention", POOLED, ("--lr 1e-3",)), ("CSRA", CSRA, ("--lr 1e-3",)),
          ("Q2L", Q2L, ("--lr 3e-4",)), ("CPRFL", MINILM, ("--lr 5e-4",))]  # chosen likewise
ROWS |= {"coco18, BatchNorm trained": BEFORE, "coco18-lt, BatchNorm trained": BEFORE,
         "xray, BatchNorm trained": [row for row in BEFORE if row[0].startswith("CSRA")]}
VARIANTS = ("baseline, focal loss", "Q2L, decoder with self-attention", "Q2L, the paper's loss")
PHOTOGRAPHS = ("coco-mini/val2017/000000397133.jpg", "coco-mini/train2017/000000547503.jpg")
SCENES = ("csra.py", "q2l.py --data scenes", "cprfl.py --data scenes", "asl.py")
BENCH = "tests/bench.py --images coco-mini --only loss,heads,steps,input"
PARITY = "-m pytest -s --slow -k parity tests"
KEPT = json.loads(FILE.read_text("utf-8")) if FILE.is_file() else {}


def kept(name, make):
    """The result of this name; `make` is called where it is missing."""
    if name not in KEPT:
        KEPT[name] = make() | {"torch": torch.__version__, "machine": machine()}
        FILE.write_text(json.dumps(KEPT, indent=1, sort_keys=True) + "\n", "utf-8")
    return KEPT[name]


def machine():
    names = [line.split(":")[1].strip() for line in Path("/proc/cpuinfo").read_text().splitlines()
             if line.startswith("model name")] if Path("/proc/cpuinfo").is_file() else []
    return f"{os.cpu_count()} cores, {names[0] if names else platform.machine()}"


def python(args, *words):
    """Runs a command whose paths are in the folder of the photographs; returns its output."""
    folders = ("coco18", "coco-mini", "xray")
    words = [f"{args.data}/{word}" if word.split("/")[0] in folders else word for word in words]
    print("python", *words, flush=True)
    return subprocess.run([sys.executable, *words], cwd=ROOT, check=True, text=True,
                          stdout=subprocess.PIPE).stdout


def folder(args, command):
    name = re.sub(r"[^a-z0-9.]+", "-", command)
    return Path(args.out, f"{name[:60]}-{zlib.crc32(command.encode()):08x}")


def trained(args, command):
    """The last line of the log, and how long it took."""
    def make():
        out = folder(args, command)
        python(args, *command.split(), "--out", str(out), "--resume")
        line = json.loads((out / "log.jsonl").read_text().splitlines()[-1])
        print(f"  val {line.get('best_mAP_on_val', 0):.2f}, test {line['mAP']:.2f}, "
              f"{line['seconds']:.0f} s", flush=True)
        if (out / "best.pt").exists():  # last.pt would double what all runs take: 22 GB
            (out / "last.pt").unlink()
        return {name: value for name, value in line.items() if name != "checkpoint"}
    return kept(command, make)


def evaluated(args, command, *flags):
    """The table that eval.py writes for the checkpoint of a command."""
    def make():
        with tempfile.TemporaryDirectory() as temporary:
            best = str(folder(args, command) / "best.pt")
            python(args, "eval.py", "--checkpoint", best, *flags, "--out", f"{temporary}/a.json")
            return without_lists(json.loads(Path(temporary, "a.json").read_text()))
    return kept(f"{command}: eval.py {' '.join(flags)}", make)


TUNED = "tools.thresholds --split val; eval.py"


def evaluated_tuned(args, command):
    """The same at the threshold with the best F1 on val."""
    def make():
        best = folder(args, command) / "best.pt"
        with tempfile.TemporaryDirectory() as temporary:
            threshold, table = f"{temporary}/t.json", f"{temporary}/a.json"
            python(args, "-m", "tools.thresholds", "--checkpoint", str(best), "--split", "val",
                   "--out", threshold)
            python(args, "eval.py", "--checkpoint", str(best), "--threshold", threshold, "--out", table)
            return without_lists(json.loads(Path(table).read_text()))
    return kept(f"{command}: {TUNED}", make)


def without_lists(table):
    return {name: value for name, value in table.items() if not isinstance(value, list)}


# ---------------------------------------------------------------------------------------- what runs


def full(table, command, flags, seed):
    return " ".join([command, flags, SHARED[table], f"--seed {seed}"])


def choice(table, command, choices):
    """The flags with the highest mAP on val, among the runs that are there."""
    if isinstance(choices, str):
        row = next(row for row in ROWS["coco18"] if row[1] == choices)
        return choice("coco18", *row[1:])
    there = [flags for flags in choices if full(table, command, flags, 0) in KEPT]
    return max(there, key=lambda flags: KEPT[full(table, command, flags, 0)]["best_mAP_on_val"],
               default=None)


def run_photographs(args):
    for seed in SEEDS:
        for table, rows in ROWS.items():
            for label, command, choices in rows:
                if args.only not in f"{table}: {label}: seed {seed}":
                    continue
                for flags in choices if seed == 0 and isinstance(choices, tuple) else ():
                    trained(args, full(table, command, flags, 0))
                trained(args, full(table, command, choice(table, command, choices), seed))


def run_evaluations(args):
    for label, command, choices in ROWS["coco18"]:
        flags = choice("coco18", command, choices)
        for seed in SEEDS if flags else ():
            run = full("coco18", command, flags, seed)
            if run not in KEPT or args.only not in f"coco18: {label}: seed {seed}":
                continue
            evaluated_tuned(args, run)
            for lam in ("0.1", "0.3", "1") if command == BCE else ():
                evaluated(args, run, "--residual", lam)


def run_picture(args):
    """README's first image: what tools.predict --heatmaps draws for each method, in rows."""
    rows, names = [], ("CSRA", "Q2L", "CPRFL", "baseline, BCE")
    for label, command, choices in (row for row in ROWS["coco18"] if row[0] in names):
        run = full("coco18", command, choice("coco18", command, choices), 0)
        with tempfile.TemporaryDirectory() as temporary:
            python(args, "-m", "tools.predict", "--checkpoint", str(folder(args, run) / "best.pt"),
                   *PHOTOGRAPHS, "--heatmaps", temporary, "--threshold", "0.6", "--image-size", "288")
            rows.append((label, [Image.open(file).convert("RGB")
                                 for file in sorted(Path(temporary).iterdir())]))
    widths = [max(sheet.width for sheet in column) for column in zip(*(sheets for _, sheets in rows))]
    heights = [20 + max(sheet.height for sheet in sheets) for _, sheets in rows]  # label, sheets
    picture = Image.new("RGB", (sum(widths), sum(heights)), "white")
    for (label, sheets), top in zip(rows, accumulate(heights, initial=0)):
        ImageDraw.Draw(picture).text((4, top + 2), label, "black", ImageFont.load_default(14))
        for sheet, left in zip(sheets, accumulate(widths, initial=0)):
            picture.paste(sheet, (left, top + 20))
    picture.save(ROOT / "tests/pictures/heatmaps.jpg", quality=72)


def run_scenes(args):
    for command in SCENES:
        trained(args, f"{command} --seed 0")


def run_parity(args):
    """The differences that the tests of parity print."""
    def make():
        text, found = python(args, *PARITY.split(), "-q"), {}
        for name, value in re.findall(r"^(\w[^:\n]*): (\de-\d+)$", text, re.MULTILINE):
            found[name] = max(found.get(name, 0), float(value))
        return found
    kept(f"python {PARITY}", make)


def run_speed(args):
    def make():
        text = python(args, *BENCH.split())
        return {"lines": text.replace(f"{args.data}/", "").splitlines()}
    kept(BENCH, make)


# --------------------------------------------------------------------------------------- the tables


def mean(values, digits=1):
    """The mean and half the range."""
    values = [value for value in values if value is not None]
    if not values:
        return ""
    half = f" ±{(max(values) - min(values)) / 2:.{digits}f}" if len(values) > 1 else ""
    return f"{sum(values) / len(values):.{digits}f}{half}"


def of_runs(table, command, choices, value):
    """`value(name, result)` of each kept run of a row, by seed."""
    flags = choice(table, command, choices)
    names = [full(table, command, flags, seed) for seed in SEEDS] if flags else []
    return [value(name, KEPT[name]) for name in names if name in KEPT]


def of_log(name):
    return lambda _, line: line[name]


def of_evaluation(evaluation, name):
    """`name` in the table of an evaluation, or None."""
    return lambda run, _: KEPT.get(f"{run}: {evaluation}", {}).get(name)


def table(header, rows):
    """The lines of a table. A figure that is not measured yet is an empty cell."""
    return [f"| {' | '.join(header)} |", "|" + " --- |" * len(header),
            *(f"| {' | '.join(row)} |" for row in rows)]


def photographs(more=False):
    """Every method on coco18, and on its long-tailed subset; `more`: also variants."""
    tail = {label: (command, choices) for label, command, choices in ROWS["coco18-lt"]}
    rows = []
    for label, command, choices in ROWS["coco18"]:
        if not more and label in VARIANTS:
            continue
        figures = [mean(of_runs("coco18", command, choices, value)) for value in (
            of_log("mAP"), of_log("CF1"), of_log("OF1"),
            of_evaluation(TUNED, "OF1"))]
        figures += [mean(of_runs("coco18-lt", *tail[label], of_log(name)))
                    if label in tail else "" for name in ("mAP", "tail")]
        rows.append([label, *figures])
    return table(["all runs" if more else "photographs", "mAP", "CF1", "OF1", "OF1, tuned",
                  "long-tailed: mAP", "tail"], rows)


def long_tail(name="coco18-lt", what="long-tailed"):
    return table([what, "total", "head", "medium", "tail", "command"], [
        [label, *(mean(of_runs(name, command, choices, of_log(part)))
                  for part in ("mAP", "head", "medium", "tail")),
         f"`python {command} {choice(name, command, choices) or ''}`".replace(" `", "`")]
        for label, command, choices in ROWS[name]])


def grid():
    rows = []
    for label, command, choices in ROWS["coco18"]:
        for flags in choices if isinstance(choices, tuple) else ():
            name = full("coco18", command, flags, 0)
            if name in KEPT:
                rows.append([label.replace("the same", "baseline, BCE"), f"`python {command} {flags}`",
                             f"{KEPT[name]['best_mAP_on_val']:.1f}"])
    return table(["candidate, seed 0", "command", "mAP on val"], rows)


def larger():
    """The rows of coco18 at the photographs' own size, where these runs are there."""
    rows = []
    for label, command, choices in ROWS["coco18"]:
        for flags in choices if isinstance(choices, tuple) else ():
            name = full("coco18", command, flags, 0).replace("--image-size 128", "--image-size 320")
            if name in KEPT:
                line = KEPT[name]
                figures = [line["best_mAP_on_val"], line["mAP"], line["CF1"], line["OF1"]]
                rows.append([label.replace("the same", "baseline, BCE"), f"`python {command} {flags}`",
                             *(f"{figure:.1f}" for figure in figures)])
    return table(["320 px, seed 0", "command", "mAP on val", "mAP", "CF1", "OF1"], rows)


def seconds():
    return table(["time", "seconds per run", "best epoch"], [
        [f"{name}: {label}", f"{mean(values, 0)}, at most {max(values):.0f}",
         ", ".join(map(str, of_runs(name, command, choices, of_log("best_epoch_on_val"))))]
        for name, rows in ROWS.items() for label, command, choices in rows
        if (values := of_runs(name, command, choices, of_log("seconds")))])


def small_objects():
    return table(["xray", "mAP on val", "mAP", "CF1", "OF1", "command"], [
        [name.replace("xray", label),
         *(mean(of_runs(name, command, (flags,), of_log(value)))
           for value in ("best_mAP_on_val", "mAP", "CF1", "OF1")),
         f"`python {command} {flags}`"]
        for name in ("xray", "xray, BatchNorm trained") for label, command, choices in ROWS[name]
        for flags in choices])


def residual():
    _, command, choices = ROWS["coco18"][0]
    plain = mean(of_runs("coco18", command, choices, of_log("mAP")))
    return table(["`--residual` on the baseline, BCE", "0", "0.1", "0.3", "1"], [
        ["mAP", plain, *(mean(of_runs("coco18", command, choices,
                                      of_evaluation(f"eval.py --residual {lam}", "mAP")))
                         for lam in ("0.1", "0.3", "1"))]])


def speed():
    """From the lines that tests/bench.py prints."""
    lines = KEPT.get(BENCH, {"lines": []})["lines"]

    def row(what, starts, pattern, unit):
        """One row for several lines; `pattern` finds reference, here and ratio in each."""
        found = [re.search(pattern, line).groups() for start in starts for line in lines
                 if line.strip().startswith(start)]
        return [what, *(" / ".join(column) + text for column, text in
                        zip(zip(*found), (unit, unit, "")))]
    plain = r"reference +([\d.]+) +ours +([\d.]+) +ratio ([\d.]+)"
    models = ("csra", "q2l", "cprfl", "asl")
    training = r"training: reference +([\d.]+) +ours +([\d.]+) images/s +ratio ([\d.]+)"
    head = r"reference (\d+ ms, \d+ MiB) +ours (\d+ ms, \d+ MiB) +ratio ([\d.]+)"
    return table(["what", "reference", "here", "ratio"], [
        row("input at 448 px, one core: evaluation / CSRA's training / RandAugment and Cutout",
            ("evaluation  ", "CSRA training", "RandAugment"), plain, " images/s"),
        row("training step, resnet18, 160 px, batch 8 (reference: float32): CSRA / Q2L / CPRFL / ASL",
            models, training, " images/s"),
        row("inference, likewise", models, "inference: " + plain, " images/s"),
        row("asymmetric loss, forward and backward, compiled: (128, 80) / (128, 9605)", ("(128",),
            r"reference +([\d.]+) .*compiled +([\d.]+) +ratio ([\d.]+)", " ms"),
        row("heads, 2048 wide, 80 labels, 14 x 14 cells: Q2L's, batch 4 / CPRFL's, batch 16",
            ("Q2L, batch", "CPRFL's"), head, "")]) if lines else []


TABLES = (photographs, partial(photographs, more=True), long_tail,
          partial(long_tail, "coco18, BatchNorm trained", "BatchNorm trained"),
          partial(long_tail, "coco18-lt, BatchNorm trained", "long-tailed, BatchNorm trained"),
          grid, larger, seconds, small_objects, residual, speed)


def write():
    """Puts each table into the page that has a table with this header."""
    for page in PAGES:
        lines = page.read_text("utf-8").splitlines()
        for make in TABLES:
            new = make()
            if new and new[0] in lines:
                begin = lines.index(new[0])
                end = next((i for i in range(begin, len(lines)) if not lines[i].startswith("|")),
                           len(lines))
                lines[begin:end] = new
        page.write_text("\n".join(lines) + "\n", "utf-8")


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--data", help="the folder of the photographs")
    parser.add_argument("--out", default=tempfile.gettempdir() + "/results", help="of the runs")
    parser.add_argument("--only", default="", help="of the photographs: part of TABLE: LABEL: seed N")
    steps = {"photographs": run_photographs, "evaluations": run_evaluations,
             "picture": run_picture, "scenes": run_scenes, "parity": run_parity, "speed": run_speed}
    parser.add_argument("--steps", default="", help=f"some of {','.join(steps)}; none: the tables")
    args = parser.parse_args()
    for name in filter(None, args.steps.split(",")):
        steps[name](args)
    write()


if __name__ == "__main__":
    main()
