"""The training loop that all methods share.

Run: python train.py --model csra [--data NAME --root ROOT] [flags]    --help lists a method's flags
     torchrun --nproc_per_node=8 train.py ...                          one process per GPU

A method is a module with
    RECIPES        data set -> settings; the first data set is the default
    build          (classes, *, backbone, pretrained, image_size, ...) -> a model: images
                   (B, 3, H, W) to logits (B, K); `model.backbone` is a timm model
    loss           (logits, targets, ...) -> a scalar; targets are 1, 0 or -1 (unknown)
    REDUCTION      what `loss` does over the batch: sum or mean
    param_groups   (model, lr, weight_decay) -> parameter groups for the optimizer
For heat maps, `model.attention(images)` returns logits and maps (B, ..., K, H, W).
Each keyword argument of these functions that has a default becomes a flag (except `reduction`).

A run writes into the folder --out, called OUT:
    last.pt     the checkpoint after the last complete epoch; --resume continues from it
    log.jsonl   one line with the settings, one line per epoch, one line with the result
    best.pt     the checkpoint of the best epoch; only if your own data has a val split
Without a val split, the test split is evaluated after each epoch. The result is the test mAP after
the last epoch. With a val split, val is evaluated after each epoch. The result is the test mAP of
best.pt.
"""
import copy
import json
import math
import time
from functools import partial
from pathlib import Path

import torch
from torch import nn
from torch.optim import SGD, Adam, AdamW
from torch.optim.lr_scheduler import (
    ChainedScheduler,
    CosineAnnealingLR,
    LinearLR,
    OneCycleLR,
    StepLR,
)
from torch.optim.swa_utils import get_ema_multi_avg_fn

from data import HAVE_DIFFICULT, Normalize, label_warnings, load_splits, make_loader
from eval import predict
from lib import distributed
from lib.checkpoint import fingerprint, read_checkpoint, refuse_changed_data, save
from lib.distributed import is_main, print_once
from lib.errors import InputError, explain_errors
from lib.metrics import metrics
from lib.models import (
    batchnorms,
    import_method,
    reported_weights,
    settings_for,
    starting_model,
    statistics_held,
)
from lib.settings import read_command_line

LOGGED = ("mAP", "head", "medium", "tail", "CF1", "OF1")  # after each epoch


def train(method, settings):
    """Trains `method` as `settings` say. Returns the last line of the log: the result."""
    device = distributed.start()  # under torchrun, one process per GPU
    world_size = distributed.world_size()
    amp_dtype = distributed.autocast_dtype(device, settings.amp)  # None: float32
    check_processes(settings, world_size)
    out = output_folder(settings)
    torch.manual_seed(settings.seed)

    # Data. After each epoch, val is evaluated if there is one, else test.
    splits = load_splits(settings)
    train_set = splits["train"]
    monitor = "test"
    if "val" in splits:
        monitor = "val"
    train_loader = make_loader(train_set, settings, training=True)
    monitor_loader = make_loader(splits[monitor], settings, training=False)
    class_counts = (train_set.targets == 1).sum(axis=0).tolist()
    normalize = Normalize(settings.mean, settings.std, device)

    # Model.
    resuming = settings.resume and (out / "last.pt").is_file()
    model = starting_model(method, settings, train_set.classes, load_weights=not resuming)
    model.to(device, memory_format=torch.channels_last)

    # Loss, optimizer, learning rate.
    loss_function, reduction = choose_loss(method, settings, class_counts, len(train_set), device)
    options = settings_for(method.param_groups, settings)
    groups = method.param_groups(model, settings.lr, settings.weight_decay, **options)
    optimizer = make_optimizer(groups, settings)
    schedule = make_schedule(optimizer, settings, steps_per_epoch=len(train_loader))
    scaler = torch.amp.GradScaler(device.type, enabled=amp_dtype == torch.float16)
    parts = {"model": model, "optimizer": optimizer, "schedule": schedule, "scaler": scaler}

    # The moving average of the weights (EMA), and which weights' mAP is the result.
    reported = model
    weights = "raw"
    if settings.ema > 0:
        average = copy.deepcopy(model).requires_grad_(False)
        parts["ema"] = average
        if settings.report == "ema":
            reported = average
            weights = "ema"

    # What runs a training step.
    network = model
    if world_size > 1:  # parameters that never get a gradient are frozen: DDP would wait for them
        network = distributed.data_parallel(model, settings.image_size, device)
    if settings.compile:
        model.compile()  # in place, so `network` runs it too
    norms = []
    if settings.grad_checkpointing:
        norms = batchnorms(model)

    # Continue an earlier run after its last complete epoch.
    fingerprints = {name: fingerprint(split, settings.root) for name, split in splits.items()}
    history = []
    if resuming:
        history = continue_run(out, parts, fingerprints)
    first_line = {"settings": vars(settings), "torch": torch.__version__, "device": str(device),
                  "autocast": str(amp_dtype), "processes": world_size}
    announce(settings, splits, resuming)
    print_once(f"{world_size} x {device}, autocast {amp_dtype}, from epoch {len(history) + 1}")
    if is_main():
        with explain_errors(out, "choose another --out"):
            out.mkdir(parents=True, exist_ok=True)
            write_log(out, [first_line] + history)  # fails here if OUT cannot be written

    for epoch in range(len(history), settings.epochs):
        start = time.time()
        # Random numbers depend on seed, epoch and process rank, so --resume repeats them.
        train_loader.sampler.set_epoch(epoch)  # the order
        train_set.set_epoch(epoch)  # augmentations
        # dropout; a hash of integers is the same in every process
        torch.manual_seed(hash((settings.seed, epoch, distributed.rank())))
        network.train()
        if settings.freeze_bn:
            for norm in batchnorms(model.backbone):
                norm.eval()

        # Train.
        total_loss = 0.0
        for step, (images, targets) in enumerate(train_loader, 1):
            images = normalize(images)
            targets = targets.to(device, non_blocking=True)

            # forward and backward, in micro-batches where memory is short
            step_loss = 0.0
            for x, y in zip(images.chunk(settings.accumulate),
                            targets.chunk(settings.accumulate)):
                with torch.autocast(device.type, amp_dtype, enabled=amp_dtype is not None):
                    logits = network(x)  # (B, K)
                loss = loss_function(logits, y)  # it converts half-precision logits to float32
                if reduction == "mean":
                    # The sum over micro-batches is the batch's mean, if no label is unknown.
                    loss = loss * len(x) / len(images)
                else:
                    loss = loss * world_size  # DistributedDataParallel takes the mean of gradients
                # With --grad-checkpointing, backward() runs the forward pass again. This second
                # pass must not update BatchNorm's running statistics.
                with statistics_held(norms):
                    scaler.scale(loss).backward()
                step_loss = step_loss + loss.detach()

            # update the weights, the learning rate and the average
            if settings.clip_grad > 0:
                scaler.unscale_(optimizer)
                nn.utils.clip_grad_norm_(model.parameters(), settings.clip_grad)
            scaler.step(optimizer)
            scaler.update()
            optimizer.zero_grad()
            lr = optimizer.param_groups[0]["lr"]  # of this step
            schedule.step()
            if settings.ema > 0:
                updates_done = epoch * len(train_loader) + step - 1
                update_average(average, model, settings.ema, updates_done)

            # report every 50 steps: reading the loss waits for the GPU
            total_loss = total_loss + step_loss
            if step == 1 or step % 50 == 0 or step == len(train_loader):
                mean_loss = float(total_loss) / step
                if not math.isfinite(mean_loss):
                    raise InputError(f"the loss is {mean_loss} in epoch {epoch + 1}: lower --lr, "
                                     "set --clip-grad, or use --amp off")
                print_once(f"epoch {epoch + 1}/{settings.epochs} step {step}/{len(train_loader)} "
                           f"loss {mean_loss:.4f} lr {lr:.2e}")

        # Evaluate. mean_loss and lr are those of the last report, after the last step.
        mean_loss = sum(distributed.gather(mean_loss)) / world_size
        line = {"epoch": epoch + 1, "loss": mean_loss, "lr": lr}
        scores = predict(reported, monitor_loader, normalize, amp_dtype)  # (N, K)
        line.update(summary(scores, splits[monitor], class_counts))
        line["seconds"] = time.time() - start
        history.append(line)

        # Save and log.
        if is_main():
            checkpoint = {"ema": None, "history": history, "settings": vars(settings),
                          "classes": train_set.classes, "class_counts": class_counts,
                          "fingerprints": fingerprints}
            for name, part in parts.items():
                checkpoint[name] = part.state_dict()
            if monitor == "val" and best_of(history) is line:
                save(checkpoint, out / "best.pt")
            save(checkpoint, out / "last.pt")
            write_log(out, [first_line] + history)
        print_once(f"epoch {epoch + 1}, {monitor}: {in_words(line)}, {line['seconds']:.0f} s")

    # The result. With a val split, the test split is used here, once, for the epoch that val chose.
    file = out / "last.pt"
    result = logged(history[-1])
    tested_epoch = settings.epochs
    if monitor == "val":
        file = out / "best.pt"
        distributed.wait_for_all()  # until the first process has written it
        _, state = reported_weights(read_checkpoint(file))
        reported.load_state_dict(state)
        test_loader = make_loader(splits["test"], settings, training=False)
        scores = predict(reported, test_loader, normalize, amp_dtype)
        result = summary(scores, splits["test"], class_counts)
        best = best_of(history)
        tested_epoch = best["epoch"]
        result["best_mAP_on_val"] = best["mAP"]
        result["best_epoch_on_val"] = tested_epoch
    result["weights"] = weights
    result["checkpoint"] = str(file)
    result["seconds"] = sum(line["seconds"] for line in history)
    if is_main():
        write_log(out, [first_line] + history + [result])
    print_once(f"test: mAP {result['mAP']:.2f} (all-points AP), {weights} weights of epoch "
               f"{tested_epoch}, {result['seconds']:.0f} s")
    if settings.data in HAVE_DIFFICULT:
        print_once(f"difficult objects of the test split: {settings.difficult}")
    print_once(f"python eval.py --checkpoint {file}")
    return result


# --------------------------------------------------------------------------- optimizer and schedule


def make_optimizer(groups, settings):
    """SGD with momentum, Adam or AdamW. The groups have their own learning rate and weight decay.

    The onecycle schedule also changes momentum (Adam: beta1), from 0.95 to 0.85 and back.
    """
    if settings.optimizer == "sgd":
        # Not fused: fused SGD fails where the scaler skips the first step.
        return SGD(groups, lr=settings.lr, momentum=0.9)
    if settings.optimizer == "adam":
        return Adam(groups, lr=settings.lr, fused=True)
    return AdamW(groups, lr=settings.lr, fused=True)


def make_schedule(optimizer, settings, steps_per_epoch):
    """A learning rate schedule that is updated after every step. It may be longer than training:
    see settings.schedule_epochs."""
    epochs = settings.schedule_epochs or settings.epochs
    total_steps = epochs * steps_per_epoch
    if settings.schedule == "onecycle":
        peaks = [group["lr"] for group in optimizer.param_groups]
        pct_start = settings.pct_start
        if pct_start * total_steps == 1:  # OneCycleLR divides by pct_start * total_steps - 1
            pct_start = pct_start * (1 - 1e-6)
        return OneCycleLR(optimizer, peaks, total_steps, pct_start=pct_start)

    if settings.schedule == "step":
        decay = StepLR(optimizer, settings.decay_epochs * steps_per_epoch, gamma=0.1)
    else:
        decay = CosineAnnealingLR(optimizer, total_steps)
    warmup_steps = max(round(settings.warmup_epochs * steps_per_epoch), 1)
    # The factor is (t + 1) / warmup_steps at step t = 0, 1, ..., then 1.
    warmup = LinearLR(optimizer, 1 / warmup_steps, total_iters=warmup_steps - 1)
    return ChainedScheduler([decay, warmup])  # their factors are multiplied


def choose_loss(method, settings, class_counts, num_images, device):
    """Returns the loss, a function of (logits, targets), and its reduction. It is the method's own
    loss or, with --loss, the mean of that loss from asl.py."""
    if settings.loss:
        losses = import_method("asl")
        class_freq = torch.tensor(class_counts, device=device)
        loss = losses.loss_by_name(settings.loss, class_freq, num_images, settings.data)
        return loss, "mean"
    options = settings_for(method.loss, settings)
    return partial(method.loss, **options), method.REDUCTION


@torch.no_grad()
def update_average(average, model, ema, updates_done):
    """average = decay * average + (1 - decay) * model, for weights and BatchNorm statistics. The
    decay rises from 0.1 to `ema`. This way, a short run forgets its initial weights."""
    decay = min(ema, (1 + updates_done) / (10 + updates_done))
    update = get_ema_multi_avg_fn(decay)  # in place, all tensors at once
    update(floating_point_tensors(average), floating_point_tensors(model), None)  # None: not used


def floating_point_tensors(model):
    """Weights and statistics, without BatchNorm's counters."""
    return [x for x in model.state_dict().values() if x.is_floating_point()]


# ------------------------------------------------------------------------------ folder and messages


def check_processes(settings, world_size):
    """Rejects settings that do not work with this many processes."""
    if settings.batch_size % world_size:
        raise InputError(f"--batch-size {settings.batch_size} must be a multiple of {world_size} "
                         "processes")
    if settings.download and world_size > 1:
        raise InputError("--download: run it first, in one process: python -m tools.check --data "
                         f"{settings.data} --root {settings.root} --download")
    if settings.sync_bn and world_size > 1 and not torch.cuda.is_available():
        raise InputError("--sync-bn with several processes needs GPUs: leave it out")


def output_folder(settings):
    """Sets settings.out if it is not given. A new run never overwrites an earlier one."""
    if not settings.out:
        name = f"runs/{settings.model}-{settings.data}-{time.strftime('%Y%m%d-%H%M%S')}"
        names = distributed.gather(name)
        settings.out = names[0]  # all processes write to the folder of the first one
    out = Path(settings.out)
    for name in ("last.pt", "best.pt", "log.jsonl"):
        if (out / name).exists() and not settings.resume:
            raise InputError(f"{out / name} exists: --resume continues that run; another "
                             "--out starts a new one")
    return out


def continue_run(out, parts, fingerprints):
    """Loads OUT/last.pt into the parts of a run. Returns the lines of its epochs."""
    last = out / "last.pt"
    checkpoint = read_checkpoint(last)
    with explain_errors(last, "damaged: start over, or restore a backup"):
        refuse_changed_data(last, checkpoint["fingerprints"], fingerprints)
        for name, part in parts.items():
            part.load_state_dict(checkpoint[name])
        history = checkpoint["history"]
    if "val" in fingerprints and not (out / "best.pt").is_file():
        raise InputError(f"{out / 'best.pt'} is missing: with a val split, --resume needs it, too")
    return history


def summary(scores, dataset, class_counts):
    """The metrics that are logged. mAP is nan if all labels are unknown (VOC 2012's test)."""
    result = logged(metrics(scores, dataset.targets, counts=class_counts))
    if result["mAP"] is None:
        result["mAP"] = math.nan
    return result


def logged(line):
    """Those entries of the dictionary `line` that are named in LOGGED."""
    result = {}
    for name in LOGGED:
        if name in line:
            result[name] = line[name]
    return result


def in_words(line):
    return " ".join(f"{name} {value:.2f}" for name, value in logged(line).items())


def best_of(history):
    """The line of the epoch with the highest mAP."""
    return max(history, key=lambda line: line["mAP"])


def write_log(out, lines):
    """Rewrites the whole log, so that no epoch appears twice after a killed run is resumed."""
    text = ""
    for line in lines:
        text += json.dumps(line) + "\n"
    file = out / "log.jsonl"
    with explain_errors(file, "make room, then --resume"):
        file.write_text(text)


def announce(settings, splits, resuming):
    """Prints the settings, the recipe and the data."""
    print_once(" ".join(f"{name}={value}" for name, value in vars(settings).items()))
    if settings.resume and not resuming:
        print_once("there is no last.pt yet: a new run starts, with this command line's settings")
    if settings.note:
        print_once(f"recipe: {settings.note}")
    for name, split in splits.items():
        print_once(f"{name}: {len(split)} images, {len(split.classes)} classes")
        for warning in label_warnings(split, name):
            print_once(warning)


def main(argv=None):
    with distributed.program():
        method, settings = read_command_line(argv)
        train(method, settings)


if __name__ == "__main__":
    main()
