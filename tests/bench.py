"""Speed against the reference implementation, both in one run, and how far apart their outputs are.

Run: python tests/bench.py [--images DIR]     DIR: a folder of JPEG images; else generated ones
"""
import argparse
import copy
import os
import random
import sys
import tempfile
import time
from functools import partial
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch.optim.swa_utils import AveragedModel
from torch.utils.flop_counter import FlopCounterMode
from torchvision import transforms as v1

sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parent.parent)]
from reference import PlainQ2L, plain_asl, plain_interaction, plain_model

import asl
import cprfl
import csra
import data
import q2l
import train
from lib.distributed import autocast_dtype
from lib.models import build_model
from lib.randaugment import OPERATIONS
from lib.settings import read_command_line
from readers.images import read_image
from readers.scenes import draw as draw_scene


def rates(ways, items, repeats=5):
    """Items/s of each implementation, median of `repeats`; they take turns, each first in half of
    them: noise and warm caches affect all of them."""
    seconds = {name: [] for name in ways}
    for turn in range(repeats):
        for name, way in list(ways.items())[::-1 if turn % 2 else 1]:
            start = time.perf_counter()
            for item in items:
                way(item)
            seconds[name].append(time.perf_counter() - start)
    return {name: len(items) / float(np.median(s)) for name, s in seconds.items()}


def make_images(folder, count=32):
    """JPEG files of COCO's usual size and about its usual file size."""
    for i in range(count):
        scene = Image.fromarray(draw_scene(f"scene:2/{i}")).resize((640, 480), Image.BICUBIC)
        scene.save(folder / f"{i}.jpg", quality=92)


def cut_out(image):
    """Cutout on a Pillow image, in place."""
    w, h = image.size
    x, y = np.random.randint(w), np.random.randint(h)
    image.paste(tuple(np.random.randint(256, size=3)),
                (max(x - w // 4, 0), max(y - h // 4, 0), min(x + w // 4, w), min(y + h // 4, h)))
    return image


def plain_randaugment(image):
    """The same operations on a Pillow image, with Python's random numbers."""
    for _ in range(2):
        operation, strongest, signed = random.choice(OPERATIONS)
        value = strongest * random.randint(1, 9) / 9
        if random.random() < 0.5:
            image = operation(image, random.choice((1, -1)) * value if signed else value)
    return image


def input_speed(images):
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as made:
        if not images:
            make_images(Path(made))
        paths = sorted(str(p) for p in Path(images or made).rglob("*.jpg"))[:160]
        print(f"\nInput: images/s on one core, 448 px; {len(paths)} from {images or 'scenes'}")
        finish = [v1.ToTensor(), v1.Normalize((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))]
        plain = {"evaluation": [v1.Resize((448, 448))],
                 "CSRA training": [v1.RandomResizedCrop(448, (0.7, 1)), v1.RandomHorizontalFlip()],
                 "RandAugment + Cutout": [v1.Resize((448, 448)), cut_out, plain_randaugment]}
        ours = {"evaluation": (), "CSRA training": ("crop", "flip"),
                "RandAugment + Cutout": ("cutout", "randaugment")}
        for name, steps in plain.items():
            convert = v1.Lambda(lambda image: image.convert("RGB"))
            plain_way = v1.Compose([Image.open, convert, *steps, *finish])
            our_way = v1.Compose([read_image, data.transform(448, ours[name])])
            rate = rates({"plain": plain_way, "ours": our_way}, paths)
            print(f"  {name:22} reference {rate['plain']:6.1f}  ours {rate['ours']:6.1f}  "
                  f"ratio {rate['ours'] / rate['plain']:.2f}")
        apart, resize = [], v1.Resize((448, 448))
        for path in paths:
            expected = np.asarray(resize(Image.open(path).convert("RGB"))).astype(int)
            found = data.transform(448)(read_image(path)).permute(1, 2, 0).numpy()
            apart.append(np.abs(expected - found))
        print(f"  evaluation, gray levels apart: at most {max(a.max() for a in apart)}, "
              f"on average {np.mean([a.mean() for a in apart]):.4f}")
        start = time.perf_counter()
        for i in range(2000):
            draw_scene(f"scene:0/{i}")
        print(f"  scenes drawn/s: {2000 / (time.perf_counter() - start):.0f}")


def timed(ways, repeats, calls=1):
    """Milliseconds per call of each function: median of `repeats` means over `calls`."""
    calls_of = {name: lambda _, way=way: way() for name, way in ways.items()}
    return {name: 1000 / rate for name, rate in rates(calls_of, range(calls), repeats).items()}


def backward(way, leaves):
    """A function that runs `way()` forward and backward, clearing the gradients of `leaves`."""
    def call():
        for x in leaves:
            x.grad = None
        out = way()
        out.backward(torch.ones_like(out))
    return call


def loss_speed():
    print("\nASL: ms forward + backward")
    compiled = torch.compile(asl.asymmetric_loss, fullgraph=True, dynamic=False)
    for shape in ((128, 80), (128, 9605)):
        z = torch.randn(shape, requires_grad=True)
        y = (torch.rand(shape) < 0.04).to(torch.int8)
        y_float = y.float()
        ways = {"plain": partial(plain_asl, z, y_float), "compiled": partial(compiled, z, y),
                "ours": partial(asl.asymmetric_loss, z, y)}
        calls = {name: backward(way, [z]) for name, way in ways.items()}
        for call in calls.values():
            call()  # warm-up: compilation, allocation
        ms = timed(calls, 31, calls=max(16000 // shape[1], 1))
        apart = (asl.asymmetric_loss(z, y) / plain_asl(z, y_float) - 1).abs().item()
        print(f"  {shape!s:12} reference {ms['plain']:7.2f}  ours {ms['ours']:7.2f}  ratio "
              f"{ms['plain'] / ms['ours']:.2f}  compiled {ms['compiled']:7.2f}  ratio "
              f"{ms['plain'] / ms['compiled']:.2f}  relative difference {apart:.0e}")


def peak_memory(call, leaves):
    """The peak memory of a call's tensors, in MiB."""
    for x in leaves:  # else the call would begin by freeing them
        x.grad = None
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        call()
        return (torch.cuda.max_memory_allocated() - before) / 2 ** 20
    with torch.profiler.profile(profile_memory=True) as profile:
        call()
    events = sorted((event.start_ns(), event.nbytes()) for event in
                    profile.profiler.kineto_results.events() if event.name() == "[memory]")
    return np.cumsum([size for _, size in events]).max() / 2 ** 20


def head_speed(name, ways, inputs, module, repeats):
    """Forward + backward of both implementations in training mode: ms, peak MiB, difference."""
    leaves = [*inputs, *module.parameters()]
    calls = {key: backward(partial(way, *inputs), leaves) for key, way in ways.items()}
    peak = {key: peak_memory(call, leaves) for key, call in calls.items()}  # and the warm-up
    ms = timed(calls, repeats)
    module.double().eval()  # without dropout and rounding the ways must agree: on one image
    inputs = [x.detach()[slice(1 if i == 0 else None)].double().requires_grad_()
              for i, x in enumerate(inputs)]
    grads = []
    for way in ways.values():
        out = way(*inputs)
        grads.append([out, *torch.autograd.grad(out.sin().sum(), inputs)])
    apart = max(((a - b).norm() / b.norm()).item() for a, b in zip(*grads))
    print(f"  {name}: reference {ms['plain']:.0f} ms, {peak['plain']:.0f} MiB  "
          f"ours {ms['ours']:.0f} ms, {peak['ours']:.0f} MiB  "
          f"ratio {ms['plain'] / ms['ours']:.2f}  relative difference {apart:.0e}")


def heads_speed():
    torch.manual_seed(0)
    print("\nHeads at 2048 wide, 80 labels, 14 x 14 cells, forward + backward")
    head = q2l.Q2LHead(80, 2048, 8192, 4, 1, 2, False, 0.1).train()
    plain, x = PlainQ2L(head), torch.randn(4, 2048, 14, 14, requires_grad=True)
    head_speed("Q2L, batch 4", {"plain": plain, "ours": lambda x: head(x)[0]}, [x], plain, 4)
    layer = cprfl.Interaction(2048, 8, 512, 2048, 0.1).train()
    inputs = [torch.randn(16, 196, 2048, requires_grad=True),
              torch.randn(80, 2048, requires_grad=True)]
    head_speed("CPRFL's interaction, batch 16",
               {"plain": partial(plain_interaction, layer), "ours": layer}, inputs, layer, 2)


def matrix_speed(device, dtype, n):
    """FLOP/s of n x n matrix products."""
    a, b = (torch.randn(n, n, device=device, dtype=dtype) for _ in range(2))
    return 2 * n ** 3 * 1000 / timed({"": lambda: finish(a @ b, device)}, 9, 10)[""]


def finish(x, device):
    if device.type == "cuda":
        torch.cuda.synchronize()
    return x


def step_speed(compiled):
    """A training step and an inference step of each method, here and in the reference implementation."""
    with tempfile.TemporaryDirectory() as folder:
        np.save(f"{folder}/features.npy", np.random.default_rng(0).standard_normal((80, 1024)))
        steps_of_all(compiled, f"{folder}/features.npy")


def steps_of_all(compiled, features):
    gpu = torch.cuda.is_available()
    device = torch.device("cuda" if gpu else "cpu")
    dtype = autocast_dtype(device, "auto")
    best = matrix_speed(device, dtype or torch.float32, 8192 if gpu else 1024)
    where = torch.cuda.get_device_name() if gpu else f"{torch.get_num_threads()} threads"
    size, small = (448, []) if gpu else (160, ["--backbone", "resnet18", "--batch-size", "8"])
    narrow = {"q2l": ["--d-model", "512", "--ffn", "2048"], "cprfl": ["--d-model", "512"]}
    print(f"\nSteps on {where}: {'R101' if gpu else 'resnet18'}, {size} px, 80 labels; matrix "
          f"products in {dtype} reach {best / 1e12:.2f} TFLOP/s")
    for name in ("csra", "q2l", "cprfl", "asl"):
        flags = small + narrow.get(name, []) if not gpu else []
        if name == "cprfl":
            flags += ["--text-features", features]
        method, s = read_command_line(["--model", name, "--data", "coco2014", "--no-pretrained",
                                       "--image-size", str(size), "--backbone", "resnet101", *flags])
        images = torch.randint(256, (s.batch_size, size, size, 3), dtype=torch.uint8)
        images = images.permute(0, 3, 1, 2).to(device)
        targets = (torch.rand(s.batch_size, 80) < 0.04).to(torch.int8).to(device)
        ways, peaks = {}, {}
        for way in ("plain", "ours"):
            train_step, infer = steps_of(name, method, s, way, compiled, images, targets)
            for call in (train_step, train_step, infer):
                call()  # warm-up
            ways[way], ways[f"{way} inference"] = train_step, infer
            peaks[way] = peak_memory(train_step, [])
        with FlopCounterMode(display=False) as counter:
            ways["ours"]()
        ms = timed(ways, 5, 5 if gpu else 1)
        rate = {way: 1000 * s.batch_size / ms[way] for way in ways}
        share = 1000 * counter.get_total_flops() / ms["ours"] / best
        print(f"  {name:6} batch {s.batch_size:3}  training: reference {rate['plain']:6.1f}  ours "
              f"{rate['ours']:6.1f} images/s  ratio {rate['ours'] / rate['plain']:.2f}, "
              f"{share:.0%} of the matrix products' speed; {peaks['plain']:.0f} and "
              f"{peaks['ours']:.0f} MiB  inference: reference {rate['plain inference']:6.1f}  ours "
              f"{rate['ours inference']:6.1f}  ratio "
              f"{rate['ours inference'] / rate['plain inference']:.2f}")


def steps_of(name, method, s, way, compiled, images, targets):
    """A training step and an inference step, as functions."""
    device, gpu, ours = images.device, images.is_cuda, way == "ours"
    torch.manual_seed(0)
    model = build_model(method, s, [str(k) for k in range(80)]).to(device)
    if ours:
        model = model.to(memory_format=torch.channels_last)
    else:
        plain_model(name, model)
    if ours and compiled:
        model.compile()
    groups = method.param_groups(model, s.lr, s.weight_decay)
    if ours:
        optimizer = train.make_optimizer(groups, s)
    else:
        kind = torch.optim.SGD if s.optimizer == "sgd" else torch.optim.AdamW
        optimizer = kind(groups, foreach=False)
    scaler = torch.amp.GradScaler(device.type, enabled=gpu and not ours)
    plain_type = torch.float16 if gpu else None
    dtype = autocast_dtype(device, "auto") if ours else plain_type
    if ours:
        average = copy.deepcopy(model).requires_grad_(False)
        update_average = partial(train.update_average, average, model, 0.999)
    else:
        average = AveragedModel(model, avg_fn=lambda old, new, _: 0.999 * old + 0.001 * new)
        update_average = partial(average.update_parameters, model)
    normalize = data.Normalize(s.mean, s.std, device)

    def forward():
        x = normalize(images)
        with torch.autocast(device.type, dtype, enabled=dtype is not None):
            return model(x if ours else x.contiguous())

    def train_step():
        model.train()
        scaler.scale(method.loss(forward(), targets)).backward()
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad()
        update_average()
        finish(None, device)

    def infer():
        model.eval()
        with torch.inference_mode():
            finish(forward(), device)
    return train_step, infer


def head_step(name, K):
    """A head with K labels, forward and backward, as a function."""
    x, y = torch.randn(8, 256, 7, 7, requires_grad=True), (torch.rand(8, K) < 0.1).to(torch.int8)
    prompts = torch.randn(K, 256)
    head = {"csra": csra.CSRAHead, "asl": torch.nn.Linear}.get(name, lambda *_: None)(256, K)
    if name == "q2l":
        head = q2l.Q2LHead(K, 256, 512, 4, 1, 2, False, 0.0)
    elif name == "cprfl":
        head = cprfl.Interaction(256, 4, 64, 512, 0.0)
    way = {"csra": lambda: head(x), "q2l": lambda: head(x)[0],
           "cprfl": lambda: head(x.flatten(2).transpose(1, 2), prompts).sum(-1),
           "asl": lambda: head(x.mean((2, 3)))}[name]
    return backward(lambda: asl.asymmetric_loss(way(), y), [x, *head.parameters()])


def growth():
    """How time and memory grow with labels and with images."""
    print("\nHeads at 256 wide, 7 x 7 cells, batch 8: ms forward + backward by number of labels")
    sizes = (20, 80, 500, 5000)
    for name in ("csra", "q2l", "cprfl", "asl"):
        ms = {}
        for K in sizes:
            call = head_step(name, K)
            call()
            ms[K] = timed({"": call}, max(1000 // K, 1))[""]
        print(f"  {name:6}", *(f"{K}: {one:.1f}" for K, one in ms.items()))
    print("Index of a csv with 20 labels: seconds to load, MiB held, MiB of a worker's copy")
    for count in (10 ** 4, 10 ** 5, 10 ** 6):
        with tempfile.TemporaryDirectory() as folder:
            with open(f"{folder}/train.csv", "w") as file:
                file.write("image," + ",".join(f"label {k}" for k in range(20)) + "\n")
                rows = [",".join("01"[(i + k) % 7 == 0] for k in range(20)) for i in range(7)]
                file.writelines(f"folder/{i:08}.jpg,{rows[i % 7]}\n" for i in range(count))
            start = time.perf_counter()
            index = data.load("csv", folder, check=False)
            seconds = time.perf_counter() - start
            held = (index.targets.nbytes + index.paths.nbytes
                    + sum(len(path) for path in index.paths if len(path) > 15)) / 2 ** 20
            reader, writer = os.pipe()
            if not (pid := os.fork()):  # a worker reads each entry once: what it copies is its own
                before = private_memory()
                for i in range(count):
                    index.paths[i], index.targets[i]
                os.write(writer, str(private_memory() - before).encode())
                os._exit(0)
            os.waitpid(pid, 0)
            print(f"  {count:8}: {seconds:6.2f} s, {held:.1f} MiB, worker "
                  f"{int(os.read(reader, 99)) / 1024:.1f} MiB")


def private_memory():
    """KiB of memory that this process shares with no other."""
    with open("/proc/self/smaps_rollup") as file:
        return sum(int(line.split()[1]) for line in file if line.startswith("Private"))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--images", help="folder of JPEG images")
    parser.add_argument("--only", help="some of loss,heads,steps,growth,input")
    parser.add_argument("--compile", action="store_true", help="steps: the models compiled")
    args = parser.parse_args()
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads")
    parts = {"loss": loss_speed, "heads": heads_speed, "steps": partial(step_speed, args.compile),
             "growth": growth, "input": partial(input_speed, args.images)}
    for name in (args.only or ",".join(parts)).split(","):
        parts[name]()
