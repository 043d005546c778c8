"""The one training loop: any method on any data set.

Run: python train.py --model csra [--data NAME --root DIR] [flags]    --help lists a method's flags
     torchrun --nproc_per_node=8 train.py ...                         one process per GPU

A method is a module with
    RECIPES        data set -> settings; the first data set is the default
    build          (classes, *, backbone, pretrained, image_size, ...) -> a model: images
                   (B, 3, H, W) to logits (B, K)
    loss           (logits, targets, ...) -> a number; targets are 1, 0 or -1 (unknown)
    REDUCTION      what `loss` does over the batch: sum or mean
    param_groups   (model, lr, weight_decay) -> parameter groups for the optimizer
Keyword arguments of these functions that have a default are flags.

OUT gets last.pt (for --resume, after each epoch) and log.jsonl (the settings, a line per epoch, the
result). The result is the test mAP of the EMA weights or, as `report` says, the raw ones after the
last epoch; with a val split, after the epoch that is best on val (kept in best.pt).

The loss is taken over the logits of all processes, so that each method's own normalization holds.
With --accumulate it is that of a micro-batch; where it is a mean, micro-batches weigh the same.
BatchNorm statistics are each process's own, with --sync-bn of all, with --freeze-bn the pretrained
ones. The order of an epoch depends on (seed, epoch), the random numbers of a step on (seed, step,
rank): neither needs to be stored.
"""
import copy
import math
import signal
import sys
import time
from contextlib import nullcontext
from functools import partial
from pathlib import Path

import torch
import torch.distributed as dist
from torch.optim import SGD, Adam, AdamW, lr_scheduler
from torch.optim.swa_utils import get_ema_multi_avg_fn

from data import InputError, loader, mixed, normalize, reading
from eval import metrics
from lib.checkpoint import compare, fingerprint, progress, read_checkpoint, save
from lib.checks import check, check_losses, unreadable
from lib.methods import chosen, method_of
from lib.order import in_order, shuffled, splits
from lib.predict import predict
from lib.processes import everyone, gathered, hardware, parallel, process
from lib.run import SIGNALS, Log, new_folder, program, stopped
from lib.settings import settings_of
from lib.weights import frozen_norms, starting_model
from sets.doubts import doubts

SHOWN = ("mAP", "head", "medium", "tail", "CF1", "OF1")  # after each epoch


def train(method, s):
    """Trains as the settings `s` say; returns the last line of the log."""
    device, dtype, s["workers"] = hardware(s["amp"], s["workers"])
    last = Path(s["out"], "last.pt")
    if s["out"] and last.is_file() and not s["resume"]:
        raise InputError(f"{last} exists: --resume continues it, --out starts elsewhere")
    check(s, device)

    # data, model, loss
    sets = splits(s)
    train_set, monitor = sets["train"], "val" if "val" in sets else "test"  # after each epoch
    prints = {name: fingerprint(data, s["root"]) for name, data in sets.items()}
    steps = max(len(train_set) // s["batch_size"], 1)  # per epoch
    counts = (train_set.targets == 1).sum(0)  # class frequencies
    torch.manual_seed(s["seed"])
    learner = Learner(method, s, train_set.classes, steps, device, dtype)
    learner.loss = loss_of(method, s, torch.from_numpy(counts).to(device), len(train_set))

    # where an interrupted run continues
    done, losses, history = 0, [], []  # steps; losses of this epoch; a line per epoch
    if s["resume"] and last.is_file():
        stored = read_checkpoint(last)
        with reading(last, "damaged: start over, or restore a backup"):
            compare(stored, prints, last)
            learner.load_state_dict(stored)
            done, losses, history = progress(stored, steps)

    s["out"] = s["out"] or everyone(new_folder(f"runs/{s['model']}-{s['data']}"))[0]
    last = Path(s["out"], "last.pt")
    order = shuffled(len(train_set), s["batch_size"], s["epochs"], s["seed"], done)
    batches = loader(train_set, s["image_size"], order, s["augment"], s["seed"], s["workers"])
    tests = {name: (data, loader(data, s["image_size"], in_order(len(data), s["batch_size"]),
                                 workers=s["workers"]))
             for name, data in sets.items() if name != "train"}
    log = Log(last.parent, [{"settings": s, "torch": torch.__version__, "device": str(device),
                             "autocast": str(dtype), "processes": process()[1]}, *history],
              fresh=not s["resume"])
    sizes = ", ".join(f"{len(data)} {name}" for name, data in sets.items())
    log.say(f"{s['model']} on {s['data']}: {sizes} images, {len(train_set.classes)} classes; "
            f"{process()[1]} x {device}, autocast {dtype}; to {s['out']}, from step {done}"
            + " (there is no last.pt yet)" * bool(s["resume"] and not done))
    log.say(*(f"{name}={value}" for name, value in s.items()))
    for text in (text for name, data in sets.items() for text in doubts(data, name)):
        log.say(text)

    fresh, bad, first = [], set(), done  # losses still on the device; unreadable images
    begin = mark = saved = time.time()
    for step, batch in enumerate(batches, done + 1):
        epoch, of_epoch = (step - 1) // steps + 1, (step - 1) % steps + 1
        bad = unreadable(batch, s["skip_bad"], bad)
        torch.manual_seed(mixed(s["seed"], step, process()[0]))  # for dropout
        fresh.append(learner.backward(batch))
        learner.update(step)

        # report, every 50 steps: only here does the loop wait for the device
        stop = stopped()
        due = s["save_every"] and time.time() - saved > 60 * s["save_every"]
        if of_epoch % 50 and of_epoch < steps and not stop and not due:
            continue
        values, lr = torch.stack(fresh).tolist(), learner.scheduler.get_last_lr()[0]
        losses, fresh, now = losses + values, [], time.time()
        check_losses(losses, epoch, s, last)
        log.say(f"epoch {epoch}/{s['epochs']} step {of_epoch}/{steps} "
                f"loss {sum(values) / len(values):.4f} lr {lr:.2e} "
                f"{len(values) * s['batch_size'] / (now - mark):.0f} images/s "
                f"{(now - begin) / (step - first) * (s['epochs'] * steps - step):.0f} s left")

        # test
        if of_epoch == steps:
            history.append({"epoch": epoch, "loss": sum(losses) / len(losses),
                            **test(learner, *tests[monitor], counts, epoch == s["epochs"]),
                            "lr": lr, "seconds": now - begin})
            if bad:
                history[-1]["left_out"] = sorted(bad)
                log.say(f"left out so far: {len(bad)} unreadable images", *sorted(bad), sep="\n  ")
            log.write(history[-1])
            shown = [(name, x) for name, x in history[-1].items() if name.startswith(SHOWN)]
            log.say(f"epoch {epoch}, {monitor}:", *(f"{name} {x:.2f}" for name, x in shown))
            losses = []

        # save
        if of_epoch == steps or stop or due:
            state = {**learner.state_dict(), "step": step, "losses": losses, "history": history,
                     "settings": s, "classes": train_set.classes, "counts": counts.tolist(),
                     "prints": prints}
            best = monitor == "val" and of_epoch == steps and history[-1] is best_of(history)
            for name in ["best.pt", "last.pt"][not best:] if process()[0] == 0 else ():
                save(state, last.with_name(name))
            saved = time.time()
        if stop and step < s["epochs"] * steps:
            log.say(f"stopped by a signal; {last} is saved, --resume --out {s['out']} continues")
            raise SystemExit(128 + (SIGNALS or [signal.SIGTERM])[0])
        mark = time.time()

    if monitor == "val":  # the test split is used once, for the epoch that val has chosen
        everyone("rank 0 has written best.pt")
        last = last.with_name("best.pt")
        learner.load_state_dict(read_checkpoint(last))
        history.append(test(learner, *tests["test"], counts, True))
    return finish(log, history, s, last, monitor, time.time() - begin)


def loss_of(method, s, class_freq, num_images):
    """The method's own loss with its settings, or that of --loss."""
    if not s["loss"]:
        return partial(method.loss, **chosen(method.loss, s))
    return method_of("asl").loss_by_name(s["loss"], class_freq, num_images, s["data"])


class Learner:
    """All that changes in training: model, EMA, optimizer, schedule, scaler."""

    def __init__(self, method, s, classes, steps, device, dtype):
        self.s, self.device, self.dtype = s, device, dtype
        self.reduction = "mean" if s["loss"] else method.REDUCTION
        model = starting_model(method, s, classes)
        self.model = model.to(device, memory_format=torch.channels_last)
        self.frozen = frozen_norms(self.model, s)
        groups = method.param_groups(self.model, s["lr"], s["weight_decay"],
                                     **chosen(method.param_groups, s))
        self.optimizer, self.scheduler = optimizer_and_schedule(groups, s, steps)
        self.scaler = torch.amp.GradScaler(device.type, enabled=dtype is torch.float16)
        self.average = copy.deepcopy(self.model).requires_grad_(False) if s["ema"] else None
        if self.average:  # paired once: the tensors stay the same objects
            pairs = zip(self.average.state_dict().values(), self.model.state_dict().values())
            self.pairs = [*zip(*(pair for pair in pairs if pair[0].is_floating_point()))]
        world = process()[1]
        self.net = parallel(self.model, s["image_size"], device) if world > 1 else self.model
        if s["compile"]:
            self.model.compile()

    def parts(self):
        """What a checkpoint holds, by name."""
        return {"model": self.model, "optimizer": self.optimizer, "scheduler": self.scheduler,
                "scaler": self.scaler, **({"ema": self.average} if self.average else {})}

    def state_dict(self):
        return {"ema": None, **{name: part.state_dict() for name, part in self.parts().items()}}

    def load_state_dict(self, state):
        for name, part in self.parts().items():
            part.load_state_dict(state[name])

    def backward(self, batch):
        """The gradient of a batch, one micro-batch at a time; returns its loss, on the device."""
        world, parts, total = process()[1], self.s["accumulate"], 0
        rows = (len(batch.index) + len(batch.bad)) // parts
        share = 1 if self.reduction == "sum" else 1 / parts
        self.net.train()
        for norm in self.frozen:
            norm.eval()
        for part in range(parts):
            own = slice(part * rows, part * rows + rows)
            if world == 1 and not len(batch.index[own]):  # all of it was unreadable
                continue
            images = normalize(batch.images[own], self.device, self.s["mean"], self.s["std"])
            targets = batch.targets[own].to(self.device, non_blocking=True)
            with self.net.no_sync() if world > 1 and part + 1 < parts else nullcontext():
                with torch.autocast(self.device.type, self.dtype, enabled=self.dtype is not None):
                    logits = self.net(images)
                loss = self.loss(gathered(logits, rows, 0), gathered(targets, rows, -1)) * share
                self.scaler.scale(loss * world).backward()  # DDP takes the mean over processes
            total = total + loss.detach()
        return total

    def update(self, step):
        """A step of optimizer, schedule and EMA; `step` counts from 1."""
        if self.s["clip_grad"]:
            self.scaler.unscale_(self.optimizer)
            torch.nn.utils.clip_grad_norm_(self.model.parameters(), self.s["clip_grad"])
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.optimizer.zero_grad()
        self.scheduler.step()
        if self.average:  # the warm-up: else a short run's average would be of its first weights
            decay = min(self.s["ema"], step / (step + 9))  # (1 + n) / (10 + n) after n updates
            get_ema_multi_avg_fn(decay)(*self.pairs, None)


def test(learner, data, batches, counts, final):
    """The metrics of the weights that the recipe reports; at the end also the mAP of the others."""
    s, result = learner.s, {}
    models = {"raw": learner.model} | ({"ema": learner.average} if s["ema"] else {})
    reported = s["report"] if s["ema"] else "raw"
    if not (data.targets >= 0).any():
        return {"mAP": math.nan}  # a server has the labels
    for name in models if final else [reported]:
        for buffer in models[name].buffers() if process()[1] > 1 else ():
            dist.broadcast(buffer, 0)  # BatchNorm statistics: all processes test the same model
        scores, index = predict(models[name], batches, learner.device, learner.dtype, s["mean"],
                                s["std"], skip_bad=s["skip_bad"])
        found = metrics(scores, data.targets[index], counts=counts)
        result |= {key: found[key] for key in SHOWN if key in found} if name == reported else {}
        result |= {f"mAP_{name}": found["mAP"]} if final and s["ema"] else {}
    return result


def best_of(history):
    """The line of the epoch with the highest mAP."""
    return max(history, key=lambda line: line["mAP"])


def finish(log, history, s, last, monitor, seconds):
    """The last line of the log: the result."""
    best = best_of(history[:-1] if monitor == "val" else history)
    result = {**{name: value for name, value in history[-1].items() if name.startswith(SHOWN)},
              "weights": s["report"] if s["ema"] else "raw", "seconds": seconds,
              f"best_mAP_on_{monitor}": best["mAP"], f"best_epoch_on_{monitor}": best["epoch"],
              "checkpoint": str(last)}
    log.write(result)
    which = "the last epoch" if monitor == "test" else f"epoch {best['epoch']}, the best on val"
    log.say(f"mAP {result['mAP']:.2f} on test, {result['weights']} weights after {which} "
            f"(best epoch, picked on {monitor}: {best['mAP']:.2f}, {best['epoch']}); "
            f"{seconds:.0f} s")
    log.say(f"python eval.py --checkpoint {last}")
    return result


def optimizer_and_schedule(groups, s, steps):
    """torch's optimizer and schedule, both updated once per step. `steps`: steps per epoch."""
    kind = {"sgd": partial(SGD, momentum=0.9), "adam": Adam, "adamw": AdamW}[s["optimizer"]]
    device = next(p.device.type for group in groups for p in group["params"])
    fused = {} if s["optimizer"] == "sgd" else {  # torch's fused SGD keeps an unset momentum where
        "fused": device in ("cuda", "cpu")}  # fp16 skips the first step
    optimizer = kind(groups, **fused)
    total = (s["schedule_epochs"] or s["epochs"]) * steps
    if s["schedule"] == "onecycle":
        rise = s["pct_start"]
        if rise * total == 1:  # torch would divide by 0
            rise *= 1 - 1e-6
        lrs = [group["lr"] for group in optimizer.param_groups]
        return optimizer, lr_scheduler.OneCycleLR(optimizer, lrs, total, pct_start=rise)
    warmup = max(round(s["warmup_epochs"] * steps), 1)
    rise = lr_scheduler.LinearLR(optimizer, 1 / warmup, total_iters=warmup - 1)
    decay = lr_scheduler.StepLR(optimizer, s["decay_epochs"] * steps) \
        if s["schedule"] == "step" else lr_scheduler.CosineAnnealingLR(optimizer, total)
    return optimizer, lr_scheduler.ChainedScheduler([rise, decay])


def main(argv=None):
    with program(note_signals=True):
        train(*settings_of(sys.argv[1:] if argv is None else argv))


if __name__ == "__main__":
    main()
