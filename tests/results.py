"""The figures of README and docs/: runs the commands, keeps what they give, writes the tables.

Run: python tests/results.py --data DIR --steps photographs,evaluations,small,scenes,parity,speed
     python tests/results.py                          only the tables, from tests/results.json

DIR holds the photographs: coco18/ and xray/ (train.csv, val.csv, test.csv), coco-mini/, and, for
the recipe `small`, coco18-N: coco18 with the first N rows of train.csv and, up to N = 500, the
first 100 of val.csv. A run that tests/results.json has is not run again. Settings with several
choices are chosen by the mAP on val of seed 0; test is used once per run, for the epoch that val
has chosen.
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
from pathlib import Path

import torch

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))

from lib.models import METHODS, import_method
from lib.settings import make_parser

FILE = ROOT / "tests/results.json"
PAGES = [ROOT / f"docs/{name}.md" for name in ("results", "datasets", "speed", "own-images")]
SEEDS = (0, 1, 2)

LITE = ("--backbone tf_efficientnet_lite0.in1k --image-size 128 --augment flip --optimizer adamw "
        "--weight-decay 1e-2 --schedule onecycle --pct-start 0.2 --batch-size 16 --ema 0 --amp off")
TRAINED = {  # table: the flags that all its commands share
    "coco18": f"--data csv --root coco18 {LITE} --limit 2000 --epochs 4",
    "coco18-lt": f"--data csv --root coco18 {LITE} --long-tail 50 --limit 760 --epochs 8",
    "xray": f"--data csv --root xray {LITE} --epochs 12"}
SHARED = {**{name: f"{flags} --freeze-bn" for name, flags in TRAINED.items()},
          **{f"{name}, BatchNorm trained": flags for name, flags in TRAINED.items()}}
SHARED |= {f"{name}, {size} px": flags.replace("--image-size 128", f"--image-size {size}")
           for name, flags in SHARED.items() for size in (224, 320, 400)}
LR, LOSS = ("--lr 1e-4", "--lr 2e-4", "--lr 5e-4"), ("--lr 5e-4", "--lr 2e-4 --head-lr 10")
XRAY = ("--lr 2e-4", "--lr 1e-3")
BCE, CSRA, POOLED = "asl.py --loss bce", "csra.py --lam 0.2", "csra.py --lam 0"
Q2L, CPRFL = "q2l.py --d-model 512 --ffn 2048", "cprfl.py --d-model 512"
MINILM = f"{CPRFL} --text-features coco18/minilm10.npy"
RANDOM = f"{CPRFL} --text-features coco18/random10.npy"
FAST = "baseline, BCE, classifier learning rate x 10"
FAST_ASL = "baseline, ASL, classifier learning rate x 10"
NORMALIZED = "CSRA without attention"  # a baseline with a normalized classifier
ROWS = {  # table: (label, command, its choices: flags, or the command whose choice is taken)
    "coco18": [
        ("baseline, BCE", BCE, ("--lr 2e-4", "--lr 5e-4", "--lr 1e-3")),
        (FAST, f"{BCE} --head-lr 10", LR),
        (NORMALIZED, POOLED, LR),
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
        (FAST, f"{BCE} --head-lr 10",
         f"{BCE} --head-lr 10"),
        (NORMALIZED, POOLED, POOLED),
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
ROWS["coco18, 320 px"] = [
    ("baseline, BCE", BCE, ("--lr 2e-4", "--lr 5e-4", "--lr 1e-3")),
    (FAST, f"{BCE} --head-lr 10", ("--lr 2e-4", "--lr 1e-4")),
    (NORMALIZED, POOLED, ("--lr 2e-4", "--lr 5e-4")),
    ("CSRA", CSRA, ("--lr 2e-4", "--lr 5e-4")),
    ("CSRA, lambda 1", "csra.py --lam 1", ("--lr 2e-4",)),
    (FAST_ASL, "asl.py --head-lr 10",
     ("--lr 2e-4", "--lr 1e-4")),
    ("Q2L", Q2L, ("--lr 1e-4 --head-lr 3", "--lr 3e-4")),
    ("CPRFL", MINILM, ("--lr 2e-4", "--lr 1e-4"))]
ROWS["coco18-lt, 320 px"] = [
    (FAST, f"{BCE} --head-lr 10", f"{BCE} --head-lr 10"),
    (FAST_ASL, "asl.py --head-lr 10", "asl.py --head-lr 10"),
    ("CSRA", CSRA, CSRA), ("Q2L", Q2L, Q2L), ("CPRFL", MINILM, MINILM),
    ("CPRFL, random text features of the same norm", RANDOM, MINILM),
    ("CPRFL, random prompts", f"{MINILM} --prompts random", MINILM),
    ("CPRFL, linear prompts", f"{MINILM} --prompts linear", MINILM)]
POOLED_MAP = ": its map mean-pooled to 4 x 4 cells, by hand"
CELLS = [(FAST, f"{BCE} --head-lr 10 --lr 2e-4"),
         ("CSRA", f"{CSRA} --lr 2e-4"), ("Q2L", f"{Q2L} --lr 1e-4 --head-lr 3")]
ROWS |= {f"coco18, {size} px": [(label, *command.split(" --lr ")[:1],
                                 ("--lr " + command.split(" --lr ")[1],))
                                for label, command in CELLS] for size in (224,)}
ROWS["coco18, BatchNorm trained, 320 px"] = [("CSRA", CSRA, ("--lr 2e-4", "--lr 1e-3"))]
ROWS["xray, 400 px"] = []  # at 128 px, trained BatchNorm was better on X-rays
ROWS["xray, BatchNorm trained, 400 px"] = [
    ("CSRA", CSRA, XRAY), ("CSRA without attention", POOLED, XRAY)]
LABELS = {"csra": "CSRA", "q2l": "Q2L", "cprfl": "CPRFL", "asl": "ASL"}
SMALL_SIZES = [(130, 224), (500, 224), (2000, 224), (5000, 224), (2000, 320), (5000, 320)]
SCENES = ("csra.py", "q2l.py --data scenes", "cprfl.py --data scenes", "asl.py", "cprfl.py")
BENCH = "tests/bench.py --images coco-mini --only loss,heads,steps,input"
GPU = "python tests/gpu.py"  # its figures; they are entered by hand
ON_CPU = ": on a CPU"  # after the command of a run that was repeated on a GPU
PARITY = "-m pytest -s --slow -k parity tests"
KEPT = json.loads(FILE.read_text("utf-8")) if FILE.is_file() else {}


def kept(name, make):
    """The result of this name; `make` is called where it is missing."""
    if name not in KEPT:
        KEPT[name] = make() | {"torch": torch.__version__, "machine": machine()}
        FILE.write_text(json.dumps(KEPT, indent=1, sort_keys=True) + "\n", "utf-8")
    return KEPT[name]


def machine():
    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    names = [line.split(":")[1].strip() for line in Path("/proc/cpuinfo").read_text().splitlines()
             if line.startswith("model name")] if Path("/proc/cpuinfo").is_file() else []
    return f"{os.cpu_count()} cores, {names[0] if names else platform.machine()}"


# glibc keeps memory for the next step, in large pages: the same numbers, faster on a CPU.
MEMORY = {"GLIBC_TUNABLES": "glibc.malloc.hugetlb=1:glibc.malloc.mmap_max=0:"
                            "glibc.malloc.trim_threshold=20000000000"}


def python(args, *words):
    """Runs a command whose paths are in the folder of the photographs; returns its output."""
    folders = ("coco18", "coco-mini", "xray", *(f"coco18-{n}" for n, _ in SMALL_SIZES))
    words = [f"{args.data}/{word}" if word.split("/")[0] in folders else word for word in words]
    print("python", *words, flush=True)
    return subprocess.run([sys.executable, *words], cwd=ROOT, check=True, text=True,
                          env=os.environ | MEMORY, stdout=subprocess.PIPE).stdout


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
            return without_classes(json.loads(Path(temporary, "a.json").read_text()))
    return kept(f"{command}: eval.py {' '.join(flags)}", make)


TUNED = "tools.thresholds --split val; eval.py"
TUNED_BY_CLASS = "tools.thresholds --split val --per-class; eval.py"


def evaluated_tuned(args, command, how=TUNED):
    """The same at the threshold with the best F1 on val, or at one of each class."""
    per_class = ["--per-class"] if how == TUNED_BY_CLASS else []

    def make():
        best = folder(args, command) / "best.pt"
        with tempfile.TemporaryDirectory() as temporary:
            threshold, table = f"{temporary}/t.json", f"{temporary}/a.json"
            python(args, "-m", "tools.thresholds", "--checkpoint", str(best), "--split", "val",
                   "--out", threshold, *per_class)
            python(args, "eval.py", "--checkpoint", str(best), "--threshold", threshold, "--out", table)
            return without_classes(json.loads(Path(table).read_text()))
    return kept(f"{command}: {how}", make)


def without_classes(table):
    return {name: value for name, value in table.items() if name != "classes"}


# ---------------------------------------------------------------------------------------- what runs


def full(table, command, flags, seed):
    return " ".join([command, flags, SHARED[table], f"--seed {seed}"])


def choice(table, command, choices):
    """The flags with the highest mAP on val, among the runs that are there."""
    if isinstance(choices, str):
        base = table.replace("-lt", "")
        row = next(row for row in ROWS[base] if row[1] == choices)
        return choice(base, *row[1:])
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
    for table in ("coco18", "coco18, 320 px"):
        for label, command, choices in ROWS[table]:
            flags = choice(table, command, choices)
            for seed in SEEDS if flags else ():
                run = full(table, command, flags, seed)
                if run not in KEPT or args.only not in f"{table}: {label}: seed {seed}":
                    continue
                evaluated_tuned(args, run)
                for lam in ("0.1", "0.3", "1") if command.startswith(BCE) else ():
                    evaluated(args, run, "--residual", lam)


def small_recipe(model, images, size, seed):
    """The command of a run of the recipe `small`."""
    command = f"{model}.py --data csv --root coco18-{images} --recipe small"
    if size != 224:
        command += f" --image-size {size}"
    if model == "cprfl":
        command += " --text-features coco18/minilm10.npy"
    return f"{command} --seed {seed}"


def run_small(args):
    for seed in SEEDS:
        for images, size in SMALL_SIZES:
            for model in METHODS:
                if seed == 0 or (images, size) == (2000, 224):
                    trained(args, small_recipe(model, images, size, seed))
    for model in METHODS:
        for how in (TUNED, TUNED_BY_CLASS):
            evaluated_tuned(args, small_recipe(model, 2000, 224, 0), how)


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


def on_cpu(run):
    """The result of the run, from a CPU if it was repeated there."""
    return KEPT.get(run + ON_CPU, KEPT[run])


def of_log(name):
    return lambda _, line: line[name]


def of_evaluation(evaluation, name):
    """`name` in the table of an evaluation, or None."""
    return lambda run, _: KEPT.get(f"{run}: {evaluation}", {}).get(name)


def table(header, rows):
    """The lines of a table. A figure that is not measured yet is an empty cell. Columns without any
    figure are left out; without rows, there is no table."""
    if not rows:
        return []
    filled = [column for column in zip(header, *rows) if any(column[1:])]
    lines = [f"| {' | '.join(cells)} |" for cells in zip(*filled)]
    return [lines[0], "|" + " --- |" * len(filled), *lines[1:]]


def photographs(size=""):
    """Every method on coco18, and on its long-tailed subset."""
    names = [f"coco18{size}", f"coco18-lt{size}"]
    tail = {command: choices for _, command, choices in ROWS[names[1]]}
    rows = []
    for label, command, choices in ROWS[names[0]]:
        figures = [mean(of_runs(names[0], command, choices, value)) for value in (
            of_log("mAP"), of_log("CF1"), of_log("OF1"), of_evaluation(TUNED, "OF1"))]
        figures += [mean(of_runs(names[1], command, tail[command], of_log(name)))
                    if command in tail else "" for name in ("mAP", "tail")]
        if any(figures):
            rows.append([label, *figures])
    return table([f"photographs{size or ', 128 px'}", "mAP", "CF1", "OF1", "OF1, tuned",
                  "long-tailed: mAP", "tail"], rows)


def long_tail(name="coco18-lt", what="long-tailed, 128 px"):
    rows = []
    for label, command, choices in ROWS[name]:
        figures = [mean(of_runs(name, command, choices, of_log(part)))
                   for part in ("mAP", "head", "medium", "tail")]
        if any(figures):
            rows.append([label, *figures, f"`python {command} {choice(name, command, choices)}`"])
    return table([what, "mAP", "head", "medium", "tail", "command"], rows)


def grid(base="coco18", size="128 px"):
    rows = []
    for label, command, choices in ROWS[base]:
        for flags in choices if isinstance(choices, tuple) else ():
            name = full(base, command, flags, 0)
            if name in KEPT:
                line = KEPT[name]
                timed = on_cpu(name)
                minutes = f"{timed['seconds'] / 60:.0f}" if "cores" in timed["machine"] else ""
                rows.append([label, f"`python {command} {flags}`",
                             f"{line['best_mAP_on_val']:.1f}", f"{line['mAP']:.1f}", minutes])
    return table([f"candidate at {size}, seed 0", "command", "mAP on val", "mAP",
                  "minutes on a CPU"], rows)


def cells():
    """The same commands at three sizes, and with as few cells as at 128 px."""
    rows = []
    for label, command in CELLS:
        command, flags = command.split(" --lr ")
        row = [label]
        for name in ("coco18", "coco18, 224 px", "coco18, 320 px"):
            row.append(mean(of_runs(name, command, (f"--lr {flags}",), of_log("mAP"))))
        pooled = KEPT.get(full("coco18, 320 px", command, f"--lr {flags}", 0) + POOLED_MAP, {})
        row.append(mean([pooled.get("mAP")]))
        rows.append(row)
    return table(["mAP", "128 px: 4 x 4 cells", "224 px: 7 x 7", "320 px: 10 x 10",
                  "320 px, pooled to 4 x 4"], rows)


def small_objects(size=""):
    rows = []
    for name in (f"xray{size}", f"xray, BatchNorm trained{size}"):
        for label, command, choices in ROWS[name]:
            for flags in choices:
                figures = [mean(of_runs(name, command, (flags,), of_log(value)))
                           for value in ("best_mAP_on_val", "mAP", "CF1", "OF1")]
                if any(figures):
                    rows.append([name.replace("xray", label).replace(size, ""), *figures,
                                 f"`python {command} {flags}`"])
    return table([f"xray{size or ', 128 px'}", "mAP on val", "mAP", "CF1", "OF1", "command"], rows)


def residual():
    """Of the runs that were evaluated with each lambda. Of runs on both, the one on a CPU was."""
    rows = []
    for name, label, command in (
            ("coco18, 320 px", "320 px, classifier learning rate x 10", f"{BCE} --head-lr 10"),
            ("coco18, 320 px", "320 px", BCE),
            ("coco18", "128 px", BCE)):
        choices = next(row[2] for row in ROWS[name] if row[1] == command)
        by_lam = [of_runs(name, command, choices, lambda run, _: on_cpu(run)["mAP"])]
        for lam in ("0.1", "0.3", "1"):
            value = of_evaluation(f"eval.py --residual {lam}", "mAP")
            by_lam.append(of_runs(name, command, choices, value))
        runs = [figures for figures in zip(*by_lam) if None not in figures]
        if runs:
            rows.append([label, *(mean(figures) for figures in zip(*runs))])
    return table(["`--residual` on the baseline, BCE: mAP", "0", "0.1", "0.3", "1"], rows)


def speed():
    """From the lines that tests/bench.py prints."""
    lines = KEPT.get(BENCH, {"lines": []})["lines"]

    def row(what, start, pattern, unit):
        """`pattern` finds reference, here and ratio in the line that begins with `start`."""
        line = next(line for line in lines if line.strip().startswith(start))
        reference, here, ratio = re.search(pattern, line).groups()
        return [what, reference + unit, here + unit, ratio]
    plain = r"reference +([\d.]+) +ours +([\d.]+) +ratio ([\d.]+)"
    training = r"training: reference +([\d.]+) +ours +([\d.]+) images/s +ratio ([\d.]+)"
    compiled = r"reference +([\d.]+) .*compiled +([\d.]+) +ratio ([\d.]+)"
    head = r"reference (\d+ ms, \d+ MiB) +ours (\d+ ms, \d+ MiB) +ratio ([\d.]+)"
    if not lines:
        return []
    rows = [row("input at 448 px, one core: evaluation", "evaluation  ", plain, " images/s"),
            row("input, CSRA's training", "CSRA training", plain, " images/s"),
            row("input, RandAugment and Cutout", "RandAugment", plain, " images/s")]
    for model in ("csra", "q2l", "cprfl", "asl"):
        rows.append(row(f"training step, {model}, resnet18, 160 px, batch size 8 (reference: float32)",
                        model, training, " images/s"))
    for model in ("csra", "q2l", "cprfl", "asl"):
        rows.append(row(f"inference, {model}, same settings", model, "inference: " + plain,
                        " images/s"))
    rows += [row("asymmetric loss (128, 80), forward and backward, compiled", "(128, 80)", compiled,
                 " ms"),
             row("asymmetric loss (128, 9605), forward and backward, compiled", "(128, 9605)",
                 compiled, " ms"),
             row("Q2L's head, width 2048, 80 labels, 14 x 14 cells, batch size 4", "Q2L, batch",
                 head, ""),
             row("CPRFL's head, same sizes, batch size 16", "CPRFL's", head, "")]
    return table(["what", "reference", "here", "ratio"], rows)


def gpu_speed():
    """Images/s and memory of each method at the size and batch size of its COCO recipe."""
    found = KEPT[GPU]
    rows = []
    for model in ("csra", "q2l", "cprfl", "asl"):
        line, compiled = found[f"{model} speed"], found[f"{model} speed, compiled"]
        what = f"{model}, batch size {line['batch']}"
        rows.append([f"training, {what}", f"{line['reference']:.0f} images/s",
                     f"{line['images/s']:.0f} images/s", f"{line['ratio']:.2f}",
                     f"{compiled['images/s']:.0f} images/s"])
        plain = line["inference"] / line["inference ratio"]
        rows.append([f"inference, {what}", f"{plain:.0f} images/s",
                     f"{line['inference']:.0f} images/s", f"{line['inference ratio']:.2f}",
                     f"{compiled['inference']:.0f} images/s"])
        rows.append([f"memory of a training step, {what}",
                     f"{line['reference MiB'] / 1024:.1f} GiB", f"{line['MiB'] / 1024:.1f} GiB",
                     f"{line['reference MiB'] / line['MiB']:.2f}",
                     f"{compiled['MiB'] / 1024:.1f} GiB"])
    return table(["on a GPU", "reference", "here", "ratio", "here, with `--compile`"], rows)


def parity():
    """How far our outputs are from those of the released code, with the same weights."""
    found = KEPT[f"python {PARITY}"]
    rows = []
    for model in ("csra", "q2l", "cprfl", "asl"):
        figures = [f"{found[name]:.0e}".replace("e-0", "e-") if name in found else "-"
                   for name in (model, f"{model}, training")]
        rows.append([f"`{model}.py`", *figures])
    return table(["difference from the released code", "logits (ASL: the loss)",
                  "losses of eight training steps"], rows)


def scenes():
    """What the main job of each method gives."""
    rows = []
    for command in SCENES:
        found = KEPT[f"{command} --seed 0"]
        rows.append([f"`python {command}`", f"{found['mAP']:.1f}", f"{found['seconds'] / 60:.1f}"])
    return table(["on scenes", "mAP", "minutes on two CPU cores"], rows)


def small(cell, what):
    """The recipe `small`: `cell`, a text on some runs, by the number of training images."""
    rows = []
    for model, label in LABELS.items():
        row = [label]
        for images, size in SMALL_SIZES:
            runs = [KEPT.get(small_recipe(model, images, size, seed)) for seed in SEEDS]
            runs = [run for run in runs if run]
            row.append(cell(runs) if runs else "")
        rows.append(row)
    sizes = [f"{images:,} images" + (f", {size} px" if size != 224 else "")
             for images, size in SMALL_SIZES]
    return table([f"`--recipe small`: {what}", *sizes], rows)


def small_accuracy():
    return small(lambda runs: mean([run["mAP"] for run in runs]), "mAP")


def small_minutes():
    return small(lambda runs: f"{sum(run['seconds'] for run in runs) / len(runs) / 60:.0f}",
                 "minutes on one core")


def small_thresholds():
    """What thresholds that are chosen on val do on test."""
    rows = []
    for model, label in LABELS.items():
        command = small_recipe(model, 2000, 224, 0)
        results = [KEPT.get(command), *(KEPT.get(f"{command}: {how}")
                                        for how in (TUNED, TUNED_BY_CLASS))]
        rows.append([label, *(f"{result[name]:.1f}" if result else ""
                              for name in ("CF1", "OF1") for result in results)])
    return table(["2,000 images, on test", "CF1 at 0.5", "one threshold", "one per class",
                  "OF1 at 0.5", "one threshold", "one per class"], rows)


def recipes():
    """The settings of the recipes for published figures."""
    rows = []
    for model in METHODS:
        method = import_method(model)
        for name, recipe in method.RECIPES.items():
            if not recipe.get("note", "").startswith("for "):  # for 94.7 mAP on VOC 2007
                continue
            parser = make_parser(method)
            parser.set_defaults(**recipe)
            s = parser.parse_args([])
            schedule = f"onecycle of {s.schedule_epochs}"
            if s.schedule == "step":
                schedule = f"{s.warmup_epochs:g} of warm-up, x 0.1 every {s.decay_epochs}"
            average = "-"
            if s.ema > 0:
                average = f"{s.ema}, from epoch {s.ema_start + 1}"
            rates = f"{s.optimizer} {s.lr:.0e}, {s.weight_decay:.0e}".replace("e-0", "e-")
            rows.append([f"`{model}.py --data {name}`", f"`{s.backbone}`", f"{s.image_size} px",
                         ", ".join(s.augment), f"{s.epochs}, {schedule}", str(s.batch_size), rates,
                         average])
    return table(["recipe", "backbone", "image", "augmentation", "epochs, schedule", "batch",
                  "optimizer, learning rate, weight decay", "EMA"], rows)


TABLES = (partial(photographs, ", 320 px"), photographs,
          partial(long_tail, "coco18-lt, 320 px", "long-tailed, 320 px"), long_tail,
          partial(long_tail, "coco18, BatchNorm trained", "BatchNorm trained, 128 px"),
          partial(long_tail, "coco18-lt, BatchNorm trained", "long-tailed, BatchNorm trained, 128 px"),
          partial(grid, "coco18, 320 px", "320 px"), grid, cells,
          partial(small_objects, ", 400 px"), small_objects, residual, speed,
          gpu_speed, parity, scenes, small_accuracy, small_minutes, small_thresholds, recipes)


def write():
    """Puts each table into the page that has a table with this first column."""
    for page in PAGES:
        lines = page.read_text("utf-8").splitlines()
        for make in TABLES:
            new = make()
            old = [i for i, line in enumerate(lines) if new and line.startswith(
                "|" + new[0].split("|")[1] + "|")]
            if old:
                begin = old[0]
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
             "small": run_small, "scenes": run_scenes, "parity": run_parity, "speed": run_speed}
    parser.add_argument("--steps", default="", help=f"some of {','.join(steps)}; none: the tables")
    args = parser.parse_args()
    for name in filter(None, args.steps.split(",")):
        steps[name](args)
    write()


if __name__ == "__main__":
    main()
