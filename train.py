"""The one training loop: any method on any data.

Run: python train.py --model csra [--data NAME --root DIR] [flags]    --help lists a method's flags
     torchrun --nproc_per_node=8 train.py ...                         a process for each GPU

The method's recipe for the data set gives the settings, flags override, and what is in force is
printed and stored. OUT gets last.pt (all that --resume needs, after each epoch) and log.jsonl (the
settings, a line per epoch, the result). The result is the mAP of the EMA weights (of the raw ones
where the recipe has no EMA) after the last epoch; the best epoch beside it was picked on the test
split and is called what it is.

--batch-size is that of a step, over all processes and --accumulate parts. The loss is taken over
all processes' logits, so that each method's own normalisation holds; BatchNorm's statistics are
each process's own, as usual, or of all with --sync-bn. The order of an epoch and the random numbers
of a step depend on (seed, epoch, step), so nothing of them need be stored.
"""
import argparse
import ast
import importlib
import inspect
import json
import math
import os
import signal
import sys
import time
from contextlib import nullcontext
from functools import partial
from pathlib import Path

import numpy as np
import timm
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch.nn.parallel import DistributedDataParallel
from torch.optim import SGD, Adam, AdamW, lr_scheduler
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from asl import loss_by_name
from data import InputError, load, loader, normalize, process, reading
from eval import build_model, hardware, metrics, predict, read_checkpoint

RECIPE = {  # what a recipe may set, and what holds where it doesn't
    "backbone": "resnet101.tv_in1k", "pretrained": True, "image_size": 448,
    "mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225), "augment": (),
    "drop_unlabelled": False, "long_tail": 0.0, "loss": "", "optimizer": "adamw", "lr": 1e-4,
    "weight_decay": 1e-4, "clip_grad": 0.0, "schedule": "onecycle", "pct_start": 0.2,
    "decay_epochs": 1, "warmup_epochs": 0.0, "epochs": 30, "schedule_epochs": 0,
    "batch_size": 16, "ema": 0.0}
RUN = {  # the rest, without influence on what the run aims at
    "root": None, "out": None, "seed": 0, "workers": -1, "amp": "auto", "compile": False,
    "accumulate": 1, "grad_checkpointing": False, "sync_bn": False, "save_every": 0.0,
    "skip_bad": 0, "limit": 0, "resume": False, "download": False}
HELP = {
    "mean": "r,g,b", "std": "r,g,b", "augment": "some of crop,flip,cutout,randaugment",
    "drop_unlabelled": "leave out pictures without labels",
    "long_tail": "make the training split long-tailed: most over least frequent class",
    "clip_grad": "norm; 0: none",
    "loss": "the mean of this one in place of the method's own",
    "pct_start": "rising part of onecycle", "decay_epochs": "schedule step: x 0.1 every so many",
    "warmup_epochs": "linear; step and cosine", "schedule_epochs": "if cut short; 0: epochs",
    "ema": "decay; 0: none", "root": "folder of the data set", "out": "folder of the run",
    "workers": "-1: by the device", "compile": "torch.compile",
    "accumulate": "parts of a step's batch, one after the other, to save memory",
    "grad_checkpointing": "compute activations twice, to save memory",
    "sync_bn": "BatchNorm's statistics over all processes",
    "save_every": "minutes between checkpoints within an epoch; 0: none",
    "skip_bad": "leave out up to N unreadable pictures",
    "limit": "first N training pictures", "resume": "go on from OUT/last.pt",
    "download": "fetch the data into ROOT"}
CHOICES = {"loss": ("asl", "focal", "bce", "db"), "optimizer": ("sgd", "adam", "adamw"),
           "schedule": ("step", "onecycle", "cosine"), "amp": ("auto", "off", "bf16", "fp16")}
BOUNDS = {"workers": (-1, math.inf), "ema": (0, 1), "pct_start": (0, 1), **dict.fromkeys(
    ("epochs", "batch_size", "image_size", "decay_epochs", "accumulate"), (1, math.inf))}
SHOWN = ("mAP", "head", "medium", "tail", "CF1", "OF1")  # after each epoch
LOG_EVERY = 50  # steps


def literal(text):
    """A flag's text as a number, True, False, None (in any case), or itself."""
    try:
        return ast.literal_eval(text.title() if text.lower() in ("true", "false", "none") else text)
    except (ValueError, SyntaxError):
        return text


def settings_of(argv):
    """The method's module, and its recipe with the flags; --resume: the stored settings."""
    methods = sorted(path.stem for path in Path(__file__).parent.glob("*.py")
                     if "\nRECIPES = " in path.read_text("utf-8"))
    parser = argparse.ArgumentParser(allow_abbrev=False, add_help=False)
    parser.add_argument("--model", required="-h" not in argv and "--help" not in argv,
                        choices=methods, default=methods[0])
    parser.add_argument("--data")
    model, data = vars(parser.parse_known_args(argv)[0]).values()
    method = importlib.import_module(model)
    data = data or next(iter(method.RECIPES))
    if data not in method.RECIPES:
        parser.error(f"--data {data}: {model} has recipes for {', '.join(method.RECIPES)}")
    hyper = {p.name: p.default for p in inspect.signature(method.build).parameters.values()
             if p.default is not p.empty}
    settings = {"model": model, "data": data, **RECIPE, **hyper, **RUN, **method.RECIPES[data]}
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0], allow_abbrev=False,
                                     argument_default=argparse.SUPPRESS)
    for name, value in settings.items():
        may_be_none = value is None or hyper.get(name, value) is None
        kind = {"type": literal if may_be_none else type(value)}
        if isinstance(value, bool):
            kind = {"action": argparse.BooleanOptionalAction}
        elif isinstance(value, tuple):
            item = float if name in ("mean", "std") else str
            kind = {"type": lambda text, item=item: tuple(map(item, filter(None, text.split(","))))}
        choices = CHOICES.get(name, {"model": methods, "data": [*method.RECIPES]}.get(name))
        parser.add_argument("--" + name.replace("_", "-"), choices=choices, **kind,
                            help=f"{HELP.get(name, '')} [{value}]")
    flags = vars(parser.parse_args(argv))
    last = Path(flags.get("out") or "", "last.pt")
    if flags.get("resume") and last.is_file():
        settings = read_checkpoint(last)["settings"]
        changed = [name for name, value in flags.items() if settings.get(name) != value
                   and name not in ("resume", "workers", "root", "out", "compile", "download",
                                    "save_every", "skip_bad")]
        if changed:
            raise InputError(f"{last} was made with other settings for {', '.join(changed)}: "
                             "leave these flags out to resume, or start anew with another --out")
    settings |= flags
    for name, value in settings.items():
        low, high = BOUNDS.get(name, (0, math.inf))
        if type(value) in (int, float) and not low <= value < high:
            parser.error(f"--{name.replace('_', '-')} {value}: must be in [{low}, {high})")
    if not len(settings["mean"]) == len(settings["std"]) == 3 or 0 in settings["std"]:
        parser.error("--mean, --std: three numbers each, r,g,b; none of --std is 0")
    if 0 < settings["schedule_epochs"] < settings["epochs"]:
        parser.error(f"--epochs {settings['epochs']}: the schedule ends after "
                     f"{settings['schedule_epochs']}; --schedule-epochs 0 makes it as long")
    return method, settings


def optimizer_and_schedule(groups, settings, steps):
    """torch's own, stepped once per iteration. `steps`: iterations per epoch."""
    kind = {"sgd": partial(SGD, momentum=0.9), "adam": Adam, "adamw": AdamW}
    name, schedule = settings["optimizer"], settings["schedule"]
    total = (settings["schedule_epochs"] or settings["epochs"]) * steps
    optimizer = kind[name](groups, fused=groups[0]["params"][0].device.type in ("cuda", "cpu"))
    if schedule == "onecycle":
        rates = [group["lr"] for group in optimizer.param_groups]
        return optimizer, lr_scheduler.OneCycleLR(optimizer, rates, total,
                                                  pct_start=settings["pct_start"])
    warmup = max(round(settings["warmup_epochs"] * steps), 1)
    rise = lr_scheduler.LinearLR(optimizer, 1 / warmup, total_iters=warmup - 1)
    decay = lr_scheduler.StepLR(optimizer, settings["decay_epochs"] * steps) \
        if schedule == "step" else lr_scheduler.CosineAnnealingLR(optimizer, total)
    return optimizer, lr_scheduler.ChainedScheduler([rise, decay])


def save(checkpoint, path):
    """Under a temporary name, then renamed: an interruption leaves the previous one whole."""
    part = path.with_suffix(".tmp")
    try:
        torch.save(checkpoint, part)
        os.replace(part, path)
    except (OSError, RuntimeError) as error:  # torch's writer raises the second
        part.unlink(missing_ok=True)
        raise InputError(f"{path} can't be written ({str(error).splitlines()[0]}): make room, then "
                         "--resume; the checkpoint before it is whole") from error


def gathered(x, rows, fill):
    """(b, K) of each process -> (B, K) of all; gradient flows into this process's own rows. Where a
    picture was left out `fill` makes up the number of rows."""
    rank, world = process()
    x = F.pad(x, (0, 0, 0, rows - len(x)), value=fill)
    parts = [torch.empty_like(x) for _ in range(world)]
    dist.all_gather(parts, x.detach().contiguous())
    parts[rank] = x
    return torch.cat(parts)


def train(method, settings):
    """Train as the settings say; returns the last line of the log."""
    s, parts = settings, settings["accumulate"]
    device, dtype, s["workers"] = hardware(s["amp"], s["workers"])
    rank, world = process()
    if s["batch_size"] % (world * parts):
        raise InputError(f"--batch-size {s['batch_size']} must be a multiple of {world} processes "
                         f"times --accumulate {parts}")
    if world > 1 and s["download"]:
        raise InputError("--download: by one process, python data.py --download, before")
    out = Path(s["out"] or f"runs/{s['model']}-{s['data']}-{time.strftime('%Y%m%d-%H%M%S')}")
    s["out"], last = str(out), out / "last.pt"
    if last.is_file() and not s["resume"]:
        raise InputError(f"{last} is there: --resume goes on from it, --out starts elsewhere")
    data = {split: load(s["data"], s["root"], split, drop_unlabelled=s["drop_unlabelled"],
                        long_tail=s["long_tail"], download=s["download"])
            for split in ("train", "test")}
    classes = data["train"].classes
    if classes != data["test"].classes:
        raise InputError(f"{s['data']}: train and test have other classes: {classes[:5]}..., "
                         f"{data['test'].classes[:5]}...")
    if not (data["test"].targets == 1).any():
        raise InputError(f"{s['data']}: the test split has no positive label, so no mAP")
    if s["limit"]:
        data["train"] = data["train"].subset(slice(s["limit"]))
    counts = (data["train"].targets == 1).sum(0)  # training pictures per class
    batches, test_batches = (
        loader(data[split], s["image_size"], s["batch_size"] // parts, s["augment"],
               parts * (split == "train"), s["seed"], s["workers"], device.type == "cuda")
        for split in ("train", "test"))
    steps = len(batches) // parts  # per epoch

    torch.manual_seed(s["seed"])
    model = build_model(method, s, classes)
    if s["grad_checkpointing"]:
        model.backbone.set_grad_checkpointing()
    if s["sync_bn"]:
        if device.type != "cuda":
            raise InputError("--sync-bn is for several GPUs")
        model = timm.layers.convert_sync_batchnorm(model)
    model = model.to(device, memory_format=torch.channels_last)
    groups = method.param_groups(model, s["lr"], s["weight_decay"])
    optimizer, scheduler = optimizer_and_schedule(groups, s, steps)
    loss_of = method.loss
    if s["loss"]:
        loss_of = loss_by_name(s["loss"], torch.from_numpy(counts).to(device), len(data["train"]),
                               s["data"])
    reduction = inspect.signature(loss_of).parameters.get("reduction")
    share = 1 if reduction and reduction.default == "sum" else 1 / parts  # of a part in the loss
    scaler = torch.amp.GradScaler(device.type, enabled=dtype is torch.float16)
    ema = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(s["ema"]), use_buffers=True) \
        if s["ema"] else None
    if s["compile"]:
        model.compile()
    history, start, first, seen = [], 0, 0, []
    if s["resume"] and last.is_file():
        state = read_checkpoint(last)
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        scheduler.load_state_dict(state["scheduler"])
        scaler.load_state_dict(state["scaler"])
        history, start, first, seen = (state[name] for name in ("history", "epoch", "step", "seen"))
        if ema:
            ema.module.load_state_dict(state["ema"])
            ema.n_averaged.fill_(start * steps + first)
    elif s["resume"] and rank == 0:
        print(f"{last} is not there yet: starting at the first epoch")
    net = DistributedDataParallel(model) if world > 1 else model
    tell = partial(print, flush=True) if rank == 0 else lambda *text: None
    tell(f"{s['model']} on {s['data']}: {len(data['train'])} training and {len(data['test'])} "
         f"test pictures, {len(classes)} classes; {world} x {device}, autocast {dtype}; to {out}")
    tell(*(f"{name}={value}" for name, value in s.items()))
    with reading(out, "choose another --out"):
        if rank == 0:
            out.mkdir(parents=True, exist_ok=True)
        log = (out / "log.jsonl" if rank == 0 else Path(os.devnull)).open("w")
    record = [{"settings": s, "torch": torch.__version__, "device": str(device),
               "autocast": str(dtype), "processes": world}, *history]
    log.writelines(json.dumps(line) + "\n" for line in record)
    log.flush()

    def write(epoch, step):
        """The state after so many steps of so many whole epochs."""
        if rank == 0:
            save({"model": model.state_dict(), "ema": ema.module.state_dict() if ema else None,
                  "optimizer": optimizer.state_dict(), "scheduler": scheduler.state_dict(),
                  "scaler": scaler.state_dict(), "epoch": epoch, "step": step, "seen": seen,
                  "history": history, "settings": s, "classes": classes,
                  "counts": counts.tolist()}, last)

    begin = saved = time.time()
    done, total, bad = 0, (s["epochs"] - start) * steps - first, set()
    for epoch in range(start, s["epochs"]):
        model.train()
        batches.sampler.epoch, batches.sampler.skip = epoch, first * s["batch_size"]
        losses, value, mark, step = [], 0, time.time(), first
        for part, batch in enumerate(batches, first * parts + 1):
            bad.update(batch.bad)
            if len(bad) > s["skip_bad"] or not len(batch.index):
                raise InputError(f"{batch.bad[0]}; --skip-bad N leaves out up to N, not a whole "
                                 "batch of them")
            torch.manual_seed(int(np.random.SeedSequence(
                (s["seed"], epoch, part, rank)).generate_state(1, np.uint64)[0] >> 1))
            step, rest = divmod(part, parts)
            with net.no_sync() if rest and world > 1 else nullcontext():
                images = normalize(batch.images, device, s["mean"], s["std"])
                with torch.autocast(device.type, dtype, enabled=dtype is not None):
                    logits = net(images)
                targets = batch.targets.to(device, non_blocking=True)
                if world > 1:
                    rows = s["batch_size"] // parts // world
                    logits, targets = gathered(logits, rows, 0), gathered(targets, rows, -1)
                loss = loss_of(logits, targets) * share
                scaler.scale(loss * world).backward()  # the mean over processes follows
            value = value + loss.detach()
            if rest:
                continue
            if s["clip_grad"]:
                scaler.unscale_(optimizer)
                torch.nn.utils.clip_grad_norm_(model.parameters(), s["clip_grad"])
            scaler.step(optimizer)
            scaler.update()
            optimizer.zero_grad()
            scheduler.step()
            if ema:
                ema.update_parameters(model)
            losses.append(value)
            value, stop = 0, torch.tensor(len(SIGNALS))
            if world > 1:
                dist.all_reduce(stop)  # on the CPU: the GPU is not waited for
            due = s["save_every"] and time.time() - saved > 60 * s["save_every"]
            if step % LOG_EVERY and step < steps and not stop and not due:
                continue
            values = torch.stack(losses).tolist()  # the loop's only synchronisation
            for i, one in enumerate(values, len(seen) + 1):
                if not math.isfinite(one):
                    raise InputError(f"loss {one} in epoch {epoch + 1}, step {i}, lr {s['lr']}, "
                                     f"amp {s['amp']}: lower --lr, set --clip-grad, or --amp off; "
                                     f"{last} is as the last save left it")
            seen, losses, done, now = seen + values, [], done + len(values), time.time()
            tell(f"epoch {epoch + 1}/{s['epochs']} step {step}/{steps} "
                 f"loss {sum(values) / len(values):.4f} lr {scheduler.get_last_lr()[0]:.2e} "
                 f"{len(values) * s['batch_size'] / (now - mark):.0f} pictures/s "
                 f"{(now - begin) / done * (total - done):.0f} s left")
            mark = now
            if stop or due:
                write(epoch, step)
                saved = time.time()
            if stop:
                tell(f"stopped by a signal; {last} is saved, --resume --out {out} goes on")
                raise SystemExit(128 + (SIGNALS or [signal.SIGTERM])[0])
        if bad:
            tell(f"left out so far: {len(bad)} unreadable pictures", *sorted(bad), sep="\n  ")
        for buffer in (ema.module if ema else model).buffers() if world > 1 else ():
            dist.broadcast(buffer, 0)  # BatchNorm's: all test the same model
        scores, index = predict(ema.module if ema else model, test_batches, device, dtype,
                                s["mean"], s["std"], skip_bad=s["skip_bad"])
        result = metrics(scores, data["test"].targets[index], counts=counts)
        shown = {name: value for name, value in result.items() if name in SHOWN}
        history.append({"epoch": epoch + 1, "loss": sum(seen) / max(len(seen), 1), **shown,
                        "lr": scheduler.get_last_lr()[0], "seconds": time.time() - begin,
                        **({"left_out": sorted(bad)} if bad else {})})
        log.write(json.dumps(history[-1]) + "\n")
        log.flush()
        tell(f"epoch {epoch + 1}, test:", *(f"{name} {x:.2f}" for name, x in shown.items()))
        first, seen = 0, []
        write(epoch + 1, 0)
        saved = time.time()
        if SIGNALS and epoch + 1 < s["epochs"] and world == 1:  # it came during the test
            raise SystemExit(128 + SIGNALS[0])
    best = max(history, key=lambda line: line["mAP"])
    final = {**{name: history[-1][name] for name in SHOWN if name in history[-1]},
             "weights": "ema" if ema else "raw", "seconds": time.time() - begin,
             "best_mAP_on_test": best["mAP"], "best_epoch_on_test": best["epoch"],
             "checkpoint": str(last)}
    log.write(json.dumps(final) + "\n")
    log.close()
    tell(f"mAP {final['mAP']:.2f} on test, {final['weights']} weights after the last epoch (best "
         f"epoch, picked on test: {best['mAP']:.2f}, {best['epoch']}); {final['seconds']:.0f} s\n"
         f"python eval.py --checkpoint {last}")
    return final


SIGNALS = []  # that have come


def note_signal(number, frame):
    """The first ends the run after its step; the second, with the default action, at once."""
    SIGNALS.append(number)
    signal.signal(number, signal.SIG_DFL)


def main(argv=None):
    numbers = signal.SIGTERM, signal.SIGINT
    before = [signal.signal(number, note_signal) for number in numbers]
    SIGNALS.clear()
    try:
        train(*settings_of(sys.argv[1:] if argv is None else argv))
    except InputError as error:
        sys.exit(f"error: {error}")
    except torch.OutOfMemoryError as error:
        sys.exit(f"error: {str(error).splitlines()[0]:.200}\nOut of memory on the device: "
                 "--accumulate 2 keeps the batch size, --grad-checkpointing saves more, at a cost")
    except RuntimeError as error:
        if "DataLoader worker" not in str(error):
            raise
        sys.exit(f"error: {str(error).splitlines()[0]:.200}\nA loading process died, mostly for "
                 "want of (shared) memory: lower --workers; 0 loads in the main process")
    finally:
        for number, action in zip(numbers, before):
            signal.signal(number, action)
        if dist.is_available() and dist.is_initialized():
            time.sleep(0.1)  # torch 2.6 hangs here while its thread still frees the last operation
            dist.destroy_process_group()


if __name__ == "__main__":
    main()
