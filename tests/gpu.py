"""What only a GPU can show: correctness, training, speed and data loading, in one command.

Run: python tests/gpu.py [--images DIR] [--out JSON]    on a GPU, about ten minutes
     python tests/gpu.py --quick                        the same at small sizes, also on a CPU

It needs the packages of requirements.txt without open_clip, and no data: images are made where
--images names no folder of JPEG files. A check that fails is marked FAILED, and the exit code is 1.
"""
import argparse
import json
import re
import signal
import subprocess
import sys
import tempfile
import time
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch.utils.flop_counter import FlopCounterMode

ROOT = Path(__file__).parent.parent
sys.path[:0] = [str(Path(__file__).parent), str(ROOT)]
import bench
from results import KEPT, SCENES

import data
import train
from asl import asymmetric_loss
from lib.distributed import autocast_dtype
from lib.models import build_model
from lib.settings import read_command_line
from readers.images import read_image

METHODS, CLASSES = ("csra", "q2l", "cprfl", "asl"), [str(k) for k in range(80)]
CUDA = torch.cuda.is_available()
FULL = {"backbone": "resnet101", "size": 448, "batch": None, "check_size": 224, "steps": 200,
        "matrix": 8192, "images": 64, "scenes": [], "short": ["--limit", "256", "--epochs", "3"],
        "repeats": 5, "compiled": METHODS}
QUICK = {"backbone": "test_resnet", "size": 64, "batch": 4, "check_size": 64, "steps": 12,
         "matrix": 512, "images": 16, "repeats": 2, "compiled": METHODS[:1],
         "scenes": ["--limit", "64", "--epochs", "1", "--batch-size", "16", "--workers", "0"],
         "short": ["--limit", "64", "--epochs", "2", "--workers", "0"]}
NARROW = {"q2l": ["--d-model", "64", "--ffn", "64"], "cprfl": ["--d-model", "64", "--ffn", "64"]}
FIGURES, FAILED, BEGIN = {}, [], time.time()


def report(name, figures, ok=True):
    """Prints a line of a table, keeps it for --out."""
    FIGURES[name] = figures
    text = "  ".join(f"{key} {value:.4g}" if isinstance(value, float) else f"{key} {value}"
                     for key, value in figures.items())
    print(f"{time.time() - BEGIN:4.0f} s  {name}: {text}{'' if ok else '  FAILED'}", flush=True)
    if not ok:
        FAILED.append(name)


def settings(name, args, *more):
    """The method and its settings for COCO 2014, without pretrained weights."""
    flags = ["--model", name, "--data", "coco2014", "--no-pretrained", "--backbone", args.backbone,
             "--image-size", str(args.size), *(NARROW.get(name, []) if args.quick else []), *more]
    if args.batch:
        flags += ["--batch-size", str(args.batch)]
    if name == "cprfl":
        flags += ["--text-features", args.features]
    return read_command_line(flags)


# -------------------------------------------------------------------------------------- correctness


def gradients(model, method, images, targets, dtype=None):
    """Logits, loss and all gradients, as one vector each, in float64 on the CPU."""
    model.zero_grad()
    with torch.autocast(images.device.type, dtype, enabled=dtype is not None):
        logits = model(images)
    loss = method.loss(logits, targets)
    loss.backward()
    grads = [p.grad.flatten() for p in model.parameters() if p.grad is not None]
    return [x.detach().double().cpu() for x in (logits.flatten(), loss[None], torch.cat(grads))]


def apart(found, expected):
    """Relative L2 distances of logits, loss and gradients."""
    return {name: ((a - b).norm() / b.norm()).item()
            for name, a, b in zip(("logits", "loss", "gradients"), found, expected)}


def correctness(args):
    print("\nCorrectness: relative distance from float64 on the CPU, evaluation mode; TF32 is off")
    bounds = {None: 1e-4, torch.bfloat16: 0.15, torch.float16: 0.03}
    for name in METHODS:
        method, s = settings(name, args, "--backbone", "resnet18" if CUDA else args.backbone,
                             "--image-size", str(args.check_size))
        torch.manual_seed(0)
        model = build_model(method, s, CLASSES).eval()
        images = torch.rand(4, 3, s.image_size, s.image_size)
        targets = (torch.rand(4, 80) < 0.1).to(torch.int8)
        expected = gradients(model.double(), method, images.double(), targets)
        model, images, targets = (x.to(args.device) for x in (model.float(), images, targets))
        for dtype, bound in bounds.items():
            if dtype is torch.float16 and not CUDA:
                continue
            found = apart(gradients(model, method, images, targets, dtype), expected)
            report(f"{name} {str(dtype or torch.float32)[6:]}", found | {"bound": bound},
                   max(found.values()) < bound)
        model = model.to(memory_format=torch.channels_last)
        found = apart(gradients(model, method, images.contiguous(
            memory_format=torch.channels_last), targets), expected)
        report(f"{name} channels_last", found | {"bound": 1e-4}, max(found.values()) < 1e-4)
        if name in args.compiled:
            model.compile()
            found = apart(gradients(model, method, images, targets), expected)
            report(f"{name} compiled", found | {"bound": 1e-4}, max(found.values()) < 1e-4)
        if name in ("q2l", "cprfl"):
            report(f"{name} attention", {"kernels": attention_kernels(model, images)})


def attention_kernels(model, images):
    """What scaled_dot_product_attention calls in a training step in half precision."""
    activities = [torch.profiler.ProfilerActivity.CPU]
    with torch.profiler.profile(activities=activities) as profile, \
            torch.autocast(images.device.type, torch.bfloat16):
        model.train()(images).sum().backward()
    model.eval()
    names = {event.key for event in profile.key_averages()}
    return ", ".join(sorted(name.removeprefix("aten::") for name in names if re.match(
        r"aten::_scaled_dot_product_\w*attention\w*$", name) and "backward" not in name))


# ----------------------------------------------------------------------------------------- training


def program(*command, kill_after=None):
    """Runs a program of the project; with `kill_after`, kills it at the first line that starts with
    it. Returns the exit code and the output."""
    task = subprocess.Popen(list(map(str, command)), cwd=ROOT, text=True, stdout=subprocess.PIPE,
                            stderr=subprocess.STDOUT)
    lines = []
    for line in task.stdout:
        lines.append(line)
        if kill_after and line.startswith(kill_after):
            task.kill()
            kill_after = None
    return task.wait(), "".join(lines)


def training(args):
    print("\nTraining through the command line, on scenes")
    for name in METHODS:
        out = Path(args.folder, name)
        more = ["--data", "scenes", "--out", out, *args.scenes]
        if name == "cprfl":  # 20 orthogonal features in place of CLIP's: not the pages' figure
            np.save(f"{args.folder}/scenes.npy", np.eye(20, 64, dtype=np.float32))
            more += ["--text-features", f"{args.folder}/scenes.npy"]
        begin = time.time()
        code, text = program(sys.executable, "train.py", "--model", name, *more)
        command = next(command for command in SCENES if command.startswith(name))
        expected = KEPT[f"{command} --seed 0"]["mAP"]  # on a CPU; seeds differ by up to two points
        score = json.loads((out / "log.jsonl").read_text().splitlines()[-1])["mAP"] if not code else 0
        loose = args.quick or name == "cprfl"
        report(f"{name} on scenes", {"mAP": score, "on a CPU": expected,
                                     "seconds": time.time() - begin, "exit": code},
               code == 0 and (loose or abs(score - expected) < 3))
        if code:
            print(text[-2000:])

    short = [sys.executable, "train.py", "--model", "csra", *args.short]
    code, text = program(*short, "--out", f"{args.folder}/cut", kill_after="epoch 1: test")
    again, after = program(*short, "--out", f"{args.folder}/cut", "--resume")
    report("SIGKILL and --resume", {"exit": f"{code}, {again}"},
           (code, again) == (-signal.SIGKILL, 0) and "continues after epoch 1 of" in after)
    half, dtype = ("fp16", "float16") if CUDA else ("bf16", "bfloat16")
    code, text = program(*short, "--amp", half, "--out", f"{args.folder}/half")
    report(half, {"exit": code}, code == 0 and f"{dtype} autocast" in text)
    code, text = program(sys.executable, "-m", "torch.distributed.run", "--nproc_per_node=1",
                         *short[1:], "--out", f"{args.folder}/one")
    report("torchrun", {"exit": code, "backend": "nccl" if CUDA else "gloo"}, code == 0)
    if CUDA:
        out_of_memory(args)
    memorize(args)


def out_of_memory(args):
    torch.cuda.empty_cache()
    torch.cuda.set_per_process_memory_fraction(0.004)
    try:
        train.main(["--model", "csra", "--backbone", "resnet101", "--output-stride", "16", "--epochs",
                    "1", "--limit", "64", "--out", f"{args.folder}/full"])
        text = "no error"
    except SystemExit as stop:
        text = str(stop)
    torch.cuda.set_per_process_memory_fraction(1.0)
    torch.cuda.empty_cache()
    report("out of memory", {"says": text.splitlines()[-1][:80]}, "--accumulate 2" in text)


class Learner:
    """A method's training step, as in train.py."""

    def __init__(self, method, s, device, amp="off"):
        torch.manual_seed(0)
        self.model = build_model(method, s, CLASSES).to(device, memory_format=torch.channels_last)
        self.loss, self.device = method.loss, device
        self.optimizer = train.make_optimizer(
            method.param_groups(self.model, s.lr, s.weight_decay), s)
        self.normalize = data.Normalize(s.mean, s.std, device)
        self.dtype = autocast_dtype(device, amp)

    def step(self, images, targets):
        targets = targets.to(self.device, non_blocking=True)
        with torch.autocast(self.device.type, self.dtype, enabled=self.dtype is not None):
            logits = self.model(self.normalize(images))
        loss = self.loss(logits, targets)
        loss.backward()
        self.optimizer.step()
        self.optimizer.zero_grad()
        return loss.detach()


def memorize(args):
    """CSRA learns random labels of a few images: its loss on the device, and the first steps on the
    CPU from the same weights."""
    images = image_batch(args, args.images)
    targets = (torch.rand(len(images), 80, generator=torch.Generator().manual_seed(0)) < 0.05)
    losses = []
    for device, count in ((args.device, args.steps), (torch.device("cpu"), 3)):
        method, s = settings("csra", args, "--batch-size", "8", "--amp", "off", "--warmup-epochs", "0")
        learner, steps = Learner(method, s, device), []
        for step in range(count):
            own = torch.arange(8 * step, 8 * step + 8) % len(images)
            steps.append(learner.step(images[own], targets[own].to(torch.int8)))
        losses.append(torch.stack(steps).tolist())
    here, cpu = losses
    early = max(abs(a / b - 1) for a, b in zip(here, cpu))
    report("CSRA, random labels of images", {
        "loss": here[0], f"after {args.steps} steps": float(np.mean(here[-8:])),
        "first 3 steps, from the CPU": early}, np.mean(here[-8:]) < here[0] and early < 1e-2)


# -------------------------------------------------------------------------------------------- speed


def image_batch(args, count):
    """uint8 (count, 3, size, size)"""
    load = data.transform(args.size)
    paths = sorted(map(str, Path(args.photos).rglob("*.jpg")))
    return torch.stack([load(read_image(path)) for path in (paths * count)[:count]])


def speed_of(name, args, compiled, peak):
    """Images/s, memory and shares of one method's training and inference step."""
    method, s = settings(name, args)
    shape = (s.batch_size, args.size, args.size, 3)
    images = torch.randint(256, shape, dtype=torch.uint8).permute(0, 3, 1, 2).to(args.device)
    targets = (torch.rand(s.batch_size, 80) < 0.04).to(torch.int8).to(args.device)
    ways, memory = {}, {}
    for way in ("ours",) if compiled else ("plain", "ours"):
        step, infer = bench.steps_of(name, method, s, way, compiled, images, targets)
        for call in (step, step, infer):
            call()  # warm-up
        ways[way], ways[f"{way} inference"] = step, infer
        memory[way] = bench.peak_memory(step, [])
    ms = bench.timed(ways, args.repeats, args.repeats)
    rate = {way: 1000 * s.batch_size / value for way, value in ms.items()}
    figures = {"batch": s.batch_size, "images/s": rate["ours"], "MiB": memory["ours"],
               "inference": rate["ours inference"]}
    if not compiled:
        with FlopCounterMode(display=False) as counter:
            ways["ours"]()
        share = 1000 * counter.get_total_flops() / ms["ours"] / peak
        figures |= {"ratio": rate["ours"] / rate["plain"], "share of matrix speed": share,
                    "reference": rate["plain"], "reference MiB": memory["plain"],
                    "inference ratio": rate["ours inference"] / rate["plain inference"]}
    return figures


def speed(args, compiled=False):
    dtype = autocast_dtype(args.device, "auto") or torch.float32
    peak = bench.matrix_speed(args.device, dtype, args.matrix)
    print(f"\nSpeed, {'compiled' if compiled else 'eager'}, {args.backbone}, {args.size} px, 80 labels;"
          f" matrix products in {dtype} reach {peak / 1e12:.3g} TFLOP/s")
    for name in args.compiled if compiled else METHODS:
        what = f"{name} speed{', compiled' * compiled}"
        if compiled and time.time() - BEGIN > 430:
            print(f"{name}: not measured, the time is up")
            continue
        try:
            report(what, speed_of(name, args, compiled, peak))
        except torch.OutOfMemoryError:
            report(what, {"out of memory at": name}, ok=False)
        if CUDA:
            torch.cuda.empty_cache()


def asl_kernel(args):
    """The loss at 9,605 classes, compiled, against what reading and writing its tensors takes."""
    z = torch.randn(128, 9605, device=args.device, requires_grad=True)
    y = (torch.rand(128, 9605, device=args.device) < 0.04).to(torch.int8)
    ways = {}
    for name, loss in (("eager", asymmetric_loss), ("compiled", torch.compile(asymmetric_loss))):
        call = bench.backward(partial(loss, z, y), [z])
        ways[name] = lambda call=call: bench.finish(call(), args.device)
        ways[name]()
    ms = bench.timed(ways, 9, 20)
    big = torch.empty(2 ** 26 if CUDA else 2 ** 22, device=args.device)
    copy = bench.timed({"": lambda: bench.finish(big.clone(), args.device)}, 9, 5)[""]
    limit = (2 * 5 + 4) * z.numel() * copy / (8 * big.numel())  # read z, y twice; write the gradient
    report("ASL (128, 9605)", {"eager ms": ms['eager'], "compiled ms": ms['compiled'],
                               "memory's limit ms": limit})


# ------------------------------------------------------------------------------------------ feeding


def feeding(args):
    workers = 2 if args.quick else 16
    print(f"\nData loading: {workers} loading processes, {args.size} px")
    paths = sorted(map(str, Path(args.photos).rglob("*.jpg")))
    paths = (paths * 8000)[:64 if args.quick else 4000]
    targets = np.zeros((len(paths), 80), np.int8)
    targets[:, 0] = 1
    images = data.Dataset(CLASSES, paths, targets)
    for name in METHODS[:1] if args.quick else ("csra", "asl"):
        method, s = settings(name, args)
        s.workers, s.image_size = workers, args.size
        loader = data.make_loader(images, s, training=True)
        begin = time.time()
        count = sum(len(batch) for batch, _ in loader)
        alone = count / (time.time() - begin)
        learner, waited, begin = Learner(method, s, args.device, "auto"), 0.0, time.time()
        mark = begin
        for batch, labels in loader:
            waited += time.time() - mark
            learner.step(batch, labels)
            if CUDA:
                torch.cuda.synchronize()
            mark = time.time()
        seconds = mark - begin
        report(f"{name} feeding", {"images/s alone": alone, "in training": count / seconds,
                                   "share waited": waited / seconds})
        del loader


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--images", help="folder of JPEG images")
    parser.add_argument("--quick", action="store_true", help="small sizes, also on a CPU")
    parser.add_argument("--only", help="some of correctness,training,speed,asl,feeding,compiled")
    parser.add_argument("--out", help="write the figures to this JSON file")
    args = parser.parse_args()
    if not CUDA and not args.quick:
        parser.error("no GPU here: --quick runs small sizes on a CPU")
    vars(args).update({**(QUICK if args.quick else FULL), "photos": args.images,
                       "device": torch.device("cuda" if CUDA else "cpu")})
    name = torch.cuda.get_device_name() if CUDA else f"{torch.get_num_threads()} CPU threads"
    print(f"torch {torch.__version__} on {name}")
    # float32 is compared with the CPU; what is timed uses half precision
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    parts = {"correctness": correctness, "training": training, "speed": speed, "asl": asl_kernel,
             "feeding": feeding, "compiled": partial(speed, compiled=True)}
    with tempfile.TemporaryDirectory() as args.folder:
        args.features = f"{args.folder}/features.npy"
        np.save(args.features, np.random.default_rng(0).standard_normal((80, 1024)))
        if not args.photos:
            args.photos = args.folder
            bench.make_images(Path(args.folder), args.images)
        everything = list(parts)[:5 if args.quick else 6]
        for part in args.only.split(",") if args.only else everything:
            parts[part](args)
            if args.out:
                figures = {"device": name, "torch": torch.__version__} | FIGURES
                Path(args.out).write_text(json.dumps(figures))
    print(f"\n{time.time() - BEGIN:.0f} s; {len(FAILED)} failed {', '.join(FAILED)}")
    return int(bool(FAILED))


if __name__ == "__main__":
    sys.exit(main())
