"""The optimizer, the schedule of its learning rate, and the moving average of the weights."""
import torch
from torch.optim import SGD, Adam, AdamW
from torch.optim.lr_scheduler import (
    ChainedScheduler,
    CosineAnnealingLR,
    LinearLR,
    OneCycleLR,
    StepLR,
)
from torch.optim.swa_utils import get_ema_multi_avg_fn


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


def average_decay(ema, warmup, updates_done):
    """The decay of the next update. Before the average starts, updates_done is negative and the
    decay 0: it is a copy of the weights."""
    if updates_done < 0:
        return 0.0
    if warmup:
        return min(ema, (1 + updates_done) / (10 + updates_done))
    return ema


@torch.no_grad()
def update_average(average, model, decay):
    """average = decay * average + (1 - decay) * model, for weights and BatchNorm statistics."""
    update = get_ema_multi_avg_fn(decay)  # in place, all tensors at once
    update(floating_point_tensors(average), floating_point_tensors(model), None)  # None: not used


def floating_point_tensors(model):
    """Weights and statistics, without BatchNorm's counters."""
    return [x for x in model.state_dict().values() if x.is_floating_point()]
