"""What a training run writes and prints: its folder, its log, and lines for people."""
import json
import math
import shlex
import time
from pathlib import Path

import torch

from lib import distributed
from lib.checkpoint import read_checkpoint, refuse_changed_data
from lib.distributed import print_once
from lib.errors import InputError, explain_errors
from lib.metrics import metrics
from lib.settings import changed_settings, recipe_name
from readers import HAVE_DIFFICULT

LOGGED = ("mAP", "head", "medium", "tail", "CF1", "OF1")  # after each epoch


# -------------------------------------------------------------------------------- folder and log


def output_folder(settings):
    """The folder of the run; sets settings.out if it is not given. A new run never overwrites an
    earlier one."""
    if not settings.out:
        name = ""
        if distributed.is_main():
            name = new_folder(f"runs/{settings.model}-{settings.data}-"
                              f"{time.strftime('%Y%m%d-%H%M%S')}")
        names = distributed.gather(name)
        settings.out = names[0]  # all processes write to the folder of the first one
    out = Path(settings.out)
    for name in ("last.pt", "best.pt", "log.jsonl"):
        if (out / name).exists() and not settings.resume:
            raise InputError(f"{out / name} exists: --resume continues that run; another "
                             "--out starts a new one")
    return out


def new_folder(name):
    """Creates a folder that was not there, so that two runs of one second do not share it."""
    folder = Path(name)
    number = 1
    with explain_errors(name, "choose another --out"):
        folder.parent.mkdir(parents=True, exist_ok=True)
        while True:
            try:
                folder.mkdir()
                return str(folder)
            except FileExistsError:
                number += 1
                folder = Path(f"{name}-{number}")


def continue_run(out, parts, fingerprints, amp_dtype):
    """Loads the last complete epoch of a run into its parts. Returns the lines of its epochs."""
    last = out / "last.pt"
    checkpoint = read_checkpoint(last)
    with explain_errors(last, "damaged: start over, or restore a backup"):
        refuse_changed_data(last, checkpoint["fingerprints"], fingerprints)
        if "val" in fingerprints:
            checkpoint = later_of(last, checkpoint, out / "best.pt")
        for name, part in parts.items():
            if name == "scaler" and not checkpoint[name]:
                continue  # the run was not in float16 so far
            if part is not None:  # there may be no average
                part.load_state_dict(checkpoint[name])
        before = checkpoint["machine"]["autocast"]
    if before != str(amp_dtype):
        print_once(f"warning: the run was computed with autocast {before} so far, and continues "
                   f"with {amp_dtype}, because this machine is another one")
    return checkpoint["history"]


def later_of(last, checkpoint, best):
    """`checkpoint`, that of last.pt, or the one of best.pt, if the run was killed between writing
    best.pt and last.pt. Raises InputError if best.pt is missing or of another run."""
    if not best.is_file():
        raise InputError(f"{best} is missing: with a val split, --resume needs it, too")
    best_checkpoint = read_checkpoint(best)
    history = checkpoint["history"]
    best_history = best_checkpoint.get("history")
    if best_history and best_history[:-1] == history:  # one epoch more
        return best_checkpoint
    if not best_history or best_history != history[:len(best_history)]:
        raise InputError(f"{best} is of another run than {last}: restore the one of this run")
    return checkpoint


def reach_min_steps(settings, steps_per_epoch):
    """Sets settings.epochs higher, if they have fewer steps than --min-steps."""
    needed = math.ceil(settings.min_steps / max(steps_per_epoch, 1))
    if needed > settings.epochs:
        print_once(f"{steps_per_epoch} steps per epoch: {needed} epochs instead of "
                   f"{settings.epochs}, for at least {settings.min_steps} steps")
        settings.epochs = needed


def machine(device, amp_dtype):
    """What the numbers of a run may depend on."""
    return {"torch": str(torch.__version__), "device": str(device), "autocast": str(amp_dtype),
            "processes": distributed.world_size()}


def start_log(out, run):
    """Creates the folder and the log, so that a run whose OUT cannot be written ends here."""
    if not distributed.is_main():
        return
    with explain_errors(out, "choose another --out"):
        out.mkdir(parents=True, exist_ok=True)
        write_log(out, log_lines(run))


def log_lines(run):
    """The lines of the log: the settings, then the epochs. run: as in the checkpoint."""
    return [{"settings": run["settings"], **run["machine"]}, *run["history"]]


def write_log(out, lines):
    """Rewrites the whole log, so that no epoch appears twice after a killed run is resumed."""
    text = ""
    for line in lines:
        text += json.dumps(line) + "\n"
    file = out / "log.jsonl"
    with explain_errors(file, "make room, then --resume"):
        file.write_text(text)


# ------------------------------------------------------------------------------------------ results


def summary(logits, dataset, class_counts):
    """The metrics that are logged, at probability 0.5. mAP is nan if all labels are unknown (VOC
    2012's test). class_counts: for head, medium and tail; None leaves them out."""
    result = logged(metrics(logits, dataset.targets, threshold=0, counts=class_counts))
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


def epoch_in_words(line, monitor, is_best):
    """The line for people after an epoch. monitor: the split that was evaluated."""
    text = f"epoch {line['epoch']}: {monitor} {in_words(line)}, {line['seconds']:.0f} s"
    if is_best:
        text += ", the best so far"
    return text


def finish_run(out, run, result, weights):
    """Logs and prints the result, the metrics on the test split, and returns it with what it is of.
    weights: raw or ema."""
    name = "last.pt"
    epoch = len(run["history"])
    if "best_epoch_on_val" in result:
        name = "best.pt"
        epoch = result["best_epoch_on_val"]
    result["weights"] = weights
    result["checkpoint"] = str(out / name)
    result["seconds"] = sum(line["seconds"] for line in run["history"])
    if distributed.is_main():
        write_log(out, [*log_lines(run), result])
    print_once(f"test: mAP {result['mAP']:.2f} (all-points AP), {weights} weights of epoch "
               f"{epoch}, {result['seconds']:.0f} s")
    if run["settings"]["data"] in HAVE_DIFFICULT:
        print_once(f"difficult objects of the test split: {run['settings']['difficult']}")
    print_once(f"evaluate with: python eval.py --checkpoint {shlex.quote(result['checkpoint'])}")
    return result


def in_words(line):
    return " ".join(f"{name} {value:.2f}" for name, value in logged(line).items())


def best_of(history):
    """The line of the epoch with the highest mAP."""
    return max(history, key=lambda line: line["mAP"])


# ------------------------------------------------------------------------------------ the beginning


def announce(method, settings, splits, model, run):
    """Prints in a few lines what is trained on what. The log has all settings."""
    print_once(f"{settings.model} on {settings.data}, writes to {settings.out}")
    name = recipe_name(method, settings.data, settings.recipe) or "no data set, only defaults"
    print_once(f"recipe: {settings.note or f'that of {settings.model} for {name}'}")
    changed = changed_settings(method, settings)
    if changed:
        print_once(f"changed by flags: {changed}")
    sizes = ", ".join(f"{len(split):,} {name}" for name, split in splits.items())
    print_once(f"images: {sizes}; {len(run['classes'])} classes")
    millions = sum(p.numel() for p in model.parameters()) / 1e6
    print_once(f"model: {settings.backbone} at {settings.image_size} px, {millions:.1f} million "
               "parameters")
    print_once(f"device: {machine_in_words(run['machine'])}")
    epochs_done = len(run["history"])
    last = Path(settings.out, "last.pt")
    if settings.resume and epochs_done == 0:
        print_once(f"there is no {last} yet: a new run starts, with this command line's settings")
    elif epochs_done == settings.epochs:
        print_once(f"this run has finished: --init {shlex.quote(str(last))} with another --out "
                   "trains on from its weights")
    elif epochs_done > 0:
        print_once(f"continues after epoch {epochs_done} of {settings.epochs}")


def machine_in_words(machine):
    """The machine of a run, as `machine` gives it."""
    name = machine["device"]
    if name.startswith("cuda"):
        name = torch.cuda.get_device_name(name)
    if machine["processes"] > 1:
        name = f"{machine['processes']} x {name}"
    if machine["autocast"] == "None":
        return f"{name}, float32"
    return f"{name}, {machine['autocast'].removeprefix('torch.')} autocast"


def run_warnings(settings, num_images, steps_per_epoch):
    """Warnings about a run that is too short for its schedule or its average, and about a last
    batch that depends on the number of processes."""
    warnings = []
    steps = settings.epochs * steps_per_epoch
    schedule_steps = (settings.schedule_epochs or settings.epochs) * steps_per_epoch
    if settings.schedule == "onecycle" and schedule_steps == 1:
        warnings.append("warning: with one step, onecycle has its last learning rate, which is "
                        "nearly 0, so nothing is learned: add epochs or images")
    share = settings.ema ** steps  # of the initial weights in the average
    if settings.ema > 0 and settings.ema_start == 0 and not settings.ema_warmup and share > 0.3:
        warnings.append(f"warning: after {steps} steps, {100 * share:.0f}% of the average of the "
                        "weights will still be the initial ones: add --ema-warmup")
    processes = distributed.world_size()
    if processes > 1 and not settings.drop_last and num_images % settings.batch_size:
        warnings.append("warning: the last batch of an epoch is smaller than the others, so the "
                        "result depends on the number of processes: --drop-last leaves it out")
    return warnings


def loss_unit(method):
    """What the printed loss is, because the methods' losses have different scales."""
    scale = getattr(method, "LOSS_SCALE", 1)
    if method.REDUCTION == "sum":
        return "sum over the batch"
    if scale != 1:
        return f"mean x {scale}"
    return "mean"
