"""The training loop that all methods share.

Run: python train.py --model csra [--data NAME --root ROOT] [flags]    --help lists a method's flags
     torchrun --nproc_per_node=8 train.py ...                          one process per GPU

A method is a module with
    RECIPES        data set, or name for --recipe -> settings; the first is the default
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
    best.pt     the checkpoint of the best epoch; only with a val split
Without a val split, the test split is evaluated after each epoch. The result is the test mAP after
the last epoch. With a val split, val is evaluated after each epoch. The result is the test mAP of
best.pt.
"""
import copy
import math
from functools import partial

import torch
from torch import nn

from data import Normalize, label_warnings, load_splits, make_loader
from eval import predict
from lib import distributed
from lib.checkpoint import fingerprint, read_checkpoint, save
from lib.distributed import is_main, print_once
from lib.errors import InputError, explain_errors
from lib.models import (
    freeze_batchnorms,
    import_method,
    reported_weights,
    settings_for,
    starting_model,
)
from lib.optimizer import average_decay, make_optimizer, make_schedule, update_average
from lib.outputs import (
    announce,
    best_of,
    continue_run,
    epoch_in_words,
    finish_run,
    log_lines,
    logged,
    loss_unit,
    machine,
    output_folder,
    reach_min_steps,
    run_warnings,
    start_log,
    summary,
    write_log,
)
from lib.progress import TrainingProgress
from lib.settings import is_long_tailed, read_command_line


def train(method, settings):
    """Trains `method` as `settings` say. Returns the last line of the log: the result."""
    device = distributed.start()  # under torchrun, one process per GPU
    amp_dtype = distributed.autocast_dtype(device, settings.amp)  # None: float32
    check_processes(settings, distributed.world_size())
    out = output_folder(settings)
    torch.manual_seed(settings.seed)

    # Data. After each epoch, val is evaluated if there is one, else test.
    splits = load_splits(settings)
    train_set = splits["train"]
    monitor = "val" if "val" in splits else "test"
    train_loader = make_loader(train_set, settings, training=True)
    monitor_loader = make_loader(splits[monitor], settings, training=False)
    reach_min_steps(settings, steps_per_epoch=len(train_loader))
    normalize = Normalize(settings.mean, settings.std, device)
    class_counts = (train_set.targets == 1).sum(axis=0).tolist()
    tail_counts = class_counts if is_long_tailed(settings) else None  # head, medium, tail

    # Model, and the moving average of its weights (EMA).
    resuming = settings.resume and (out / "last.pt").is_file()
    model = starting_model(method, settings, train_set.classes, load_weights=not resuming)
    model.to(device, memory_format=torch.channels_last)
    average = None
    if settings.ema > 0:
        average = copy.deepcopy(model).requires_grad_(False)
    weights = settings.report if settings.ema > 0 else "raw"
    reported = average if weights == "ema" else model  # whose mAP is the result

    # Loss, optimizer, learning rate.
    loss_function, reduction = choose_loss(method, settings, class_counts, len(train_set), device)
    options = settings_for(method.param_groups, settings)
    groups = method.param_groups(model, settings.lr, settings.weight_decay, **options)
    optimizer = make_optimizer(groups, settings)
    schedule = make_schedule(optimizer, settings, steps_per_epoch=len(train_loader))
    scaler = torch.amp.GradScaler(device.type, enabled=amp_dtype == torch.float16)

    # What runs a training step: the model, or the model in several processes.
    network = distributed.data_parallel(model, settings.image_size, device)
    if settings.compile:
        model.compile()  # in place, so `network` runs it too

    # What a checkpoint holds. An earlier run continues after its last complete epoch.
    parts = {"model": model, "ema": average, "optimizer": optimizer, "schedule": schedule,
             "scaler": scaler}
    fingerprints = {name: fingerprint(split, settings.root) for name, split in splits.items()}
    history = []  # a line for each epoch
    if resuming:
        history = continue_run(out, parts, fingerprints, amp_dtype)
    run = {"settings": vars(settings), "machine": machine(device, amp_dtype),
           "classes": train_set.classes, "class_counts": class_counts,
           "fingerprints": fingerprints, "history": history}
    start_log(out, run)
    announce(method, settings, splits, model, run)
    print_warnings(settings, splits, len(train_loader))
    progress = TrainingProgress(settings.epochs, train_loader, monitor_loader, loss_unit(method))

    for epoch in range(len(history), settings.epochs):
        progress.start_epoch()
        seed_epoch(train_loader, settings.seed, epoch)
        network.train()
        if settings.freeze_bn:
            freeze_batchnorms(model.backbone)
        loss, lr = train_one_epoch(
            network, average, train_loader, normalize, amp_dtype, loss_function, reduction,
            optimizer, schedule, scaler, epoch, settings, progress)
        logits = predict(reported, monitor_loader, normalize, amp_dtype)  # (N, K)
        line = {"epoch": epoch + 1, "loss": loss, "lr": lr}
        line.update(summary(logits, splits[monitor], tail_counts))
        line["seconds"] = progress.end_epoch()
        history.append(line)
        is_best = monitor == "val" and best_of(history) is line
        save_epoch(out, run, parts, is_best)
        print_once(epoch_in_words(line, monitor, is_best))

    # The result. With a val split, the test split is used here, once, for the epoch that val chose.
    result = logged(history[-1])
    if monitor == "val":
        result = evaluate_best(reported, out, history, splits["test"], tail_counts, settings,
                               normalize, amp_dtype)
    return finish_run(out, run, result, weights)


def train_one_epoch(network, average, loader, normalize, amp_dtype, loss_function, reduction,
                    optimizer, schedule, scaler, epoch, settings, progress):
    """Trains `network` on all batches of `loader`, and updates `average`, a model or None.

    Returns the mean loss of a step and the learning rate of the last one. Raises InputError if the
    loss is not finite.
    """
    device = normalize.mean.device
    total_loss = 0.0
    for step, (images, targets) in enumerate(loader, 1):
        images = normalize(images)  # uint8 -> float (B, 3, H, W), on the device
        targets = targets.to(device, non_blocking=True)  # (B, K)

        # forward and backward, in micro-batches where memory is short
        step_loss = 0.0
        for x, y in zip(images.chunk(settings.accumulate), targets.chunk(settings.accumulate)):
            with torch.autocast(device.type, amp_dtype, enabled=amp_dtype is not None):
                logits = network(x)  # (B, K)
            loss = loss_function(logits, y)  # it converts half-precision logits to float32
            if reduction == "mean":
                # The sum over micro-batches is the batch's mean, if no label is unknown.
                loss = loss * len(x) / len(images)
            else:
                # DistributedDataParallel takes the mean of gradients.
                loss = loss * distributed.world_size()
            scaler.scale(loss).backward()
            step_loss = step_loss + loss.detach()

        # update the weights, the learning rate and the average
        if settings.clip_grad > 0:
            scaler.unscale_(optimizer)
            nn.utils.clip_grad_norm_(network.parameters(), settings.clip_grad)
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad()
        lr = optimizer.param_groups[0]["lr"]  # of this step
        schedule.step()
        if average is not None:
            updates_done = (epoch - settings.ema_start) * len(loader) + step - 1
            decay = average_decay(settings.ema, settings.ema_warmup, updates_done)
            update_average(average, network, decay)

        # report about every ten seconds: reading the loss waits for the GPU
        total_loss = total_loss + step_loss
        if progress.due() or step == len(loader):
            mean_loss = float(total_loss) / step
            if not math.isfinite(mean_loss):
                raise InputError(f"the loss is {mean_loss} in epoch {epoch + 1}: lower --lr, "
                                 "set --clip-grad, or use --amp off")
            progress.show(epoch, step, mean_loss, lr)
    return sum(distributed.gather(mean_loss)) / distributed.world_size(), lr


def seed_epoch(loader, seed, epoch):
    """Random numbers depend on seed, epoch and process rank, so --resume repeats them."""
    loader.sampler.set_epoch(epoch)  # the order
    loader.dataset.set_epoch(epoch)  # augmentations
    # dropout; a hash of integers is the same in every process
    torch.manual_seed(hash((seed, epoch, distributed.rank())))


def save_epoch(out, run, parts, is_best):
    """Writes last.pt, best.pt if this epoch is the best so far, and the log."""
    if not is_main():
        return
    checkpoint = dict(run)
    for name, part in parts.items():
        checkpoint[name] = None
        if part is not None:  # there may be no average
            checkpoint[name] = part.state_dict()
    if is_best:
        save(checkpoint, out / "best.pt")
    save(checkpoint, out / "last.pt")
    write_log(out, log_lines(run))


def evaluate_best(model, out, history, test_set, counts, settings, normalize, amp_dtype):
    """The metrics on the test split of best.pt, whose weights are loaded into `model`."""
    distributed.wait_for_all()  # until the first process has written it
    _, state = reported_weights(read_checkpoint(out / "best.pt"))
    model.load_state_dict(state)
    test_loader = make_loader(test_set, settings, training=False)
    logits = predict(model, test_loader, normalize, amp_dtype)  # (N, K)
    result = summary(logits, test_set, counts)
    best = best_of(history)
    result["best_mAP_on_val"] = best["mAP"]
    result["best_epoch_on_val"] = best["epoch"]
    return result


def choose_loss(method, settings, class_counts, num_images, device):
    """Returns the loss, a function of (logits, targets), and its reduction. It is the method's own
    loss or, with --loss, that loss from asl.py, at the scale of the method's own: weight decay,
    which some optimizers add to the gradient, then means the same."""
    if settings.loss:
        class_freq = torch.tensor(class_counts, device=device)
        other = import_method("asl").loss_by_name(settings.loss, class_freq, num_images,
                                                  settings.data, method.REDUCTION)
        scale = getattr(method, "LOSS_SCALE", 1)

        def loss(logits, targets):
            return scale * other(logits, targets)
    else:
        loss = partial(method.loss, **settings_for(method.loss, settings))

    with explain_errors(f"the loss of {settings.model}", "correct its flags"):
        some = torch.zeros(1, len(class_counts), device=device)
        loss(some, some)  # fails here, before the first step, if a flag does not suit it
    return loss, method.REDUCTION


def print_warnings(settings, splits, steps_per_epoch):
    for name, split in splits.items():
        for warning in label_warnings(split, name):
            print_once(warning)
    for warning in run_warnings(settings, len(splits["train"]), steps_per_epoch):
        print_once(warning)


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


def main(argv=None):
    with distributed.program():
        method, settings = read_command_line(argv)
        train(method, settings)


if __name__ == "__main__":
    main()
