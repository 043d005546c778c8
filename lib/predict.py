"""Scores of images from a checkpoint, train.py's or a released one, in one or several views."""
import copy
import sys
import time

import numpy as np
import torch

from data import Dataset, InputError, load, loader, normalize, reading, transform
from lib import maps
from lib.checkpoint import read_checkpoint, read_file
from lib.methods import build_model, method_of, remote
from lib.order import in_order, sample
from lib.processes import everyone, hardware, process
from lib.settings import checked, settings_of
from sets import NAMES
from sets.images import pixels


def with_progress(batches):
    """The batches, with a line about the time left every ten seconds."""
    begin = told = time.time()
    for step, batch in enumerate(batches, 1):
        yield batch
        now = time.time()
        if now - told > 10 and process()[0] == 0:
            told, rate = now, step / (now - begin)
            print(f"{step} of {len(batches)} batches, {rate * len(batch.images):.0f} images/s, "
                  f"{(len(batches) - step) / rate:.0f} s left", file=sys.stderr)


@torch.inference_mode()
def predict(model, batches, device, dtype, mean, std, flip=False, skip_bad=0):
    """Probabilities float64 (N, K) and the indices (N,) of their samples, in ascending order, from
    all processes. `flip`: the mean with the mirrored image. More than `skip_bad` unreadable images
    are an error, and so are nan scores."""
    model.eval()
    logits, index, bad = [], [], []
    for batch in with_progress(batches):
        bad += batch.bad
        if len(bad) > skip_bad:
            raise InputError(bad[0])
        images = normalize(batch.images, device, mean, std)
        with torch.autocast(device.type, dtype, enabled=dtype is not None):
            views = [images, images.flip(3)] if flip else [images]
            if len(images):  # the logits stay on the device: wait for it only at the end
                logits.append(torch.stack([model(view) for view in views]).movedim(0, -1))
                index.append(batch.index)

    # A process may have none of the images. In float32, sigmoids of logits above 17 would tie.
    own = (torch.cat(logits).cpu().double().sigmoid().mean(-1).numpy(),
           torch.cat(index).numpy()) if index else None
    owns, bads = zip(*everyone((own, bad)))
    owns, bad = [own for own in owns if own], [text for texts in bads for text in texts]
    for message in bad if process()[0] == 0 else ():
        print(f"left out: {message}", file=sys.stderr)
    if len(bad) > skip_bad or not owns:
        raise InputError(bad[0] if bad else "no images")
    scores, index = (np.concatenate(part) for part in zip(*owns))
    if np.isnan(scores).any():
        raise InputError(f"{np.isnan(scores).any(1).sum()} images have the score nan: the weights "
                         "have diverged; lower --lr, set --clip-grad, or --amp off")
    order = np.argsort(index)
    return scores[order], index[order]


def at_size(model, size):
    """A copy for images of this size. ViT and Swin resample their position embeddings, always from
    the trained ones; a ResNet takes any size."""
    model = copy.deepcopy(model)
    with reading(f"image size {size}", "choose a multiple of the backbone's patches"), \
            torch.no_grad():
        if hasattr(getattr(model, "backbone", None), "set_input_size"):
            model.backbone.set_input_size((size, size))
        model.eval()(torch.zeros(1, 3, size, size))
    return model


def add_residual(model, lam):
    """CSRA's test-time trick on a trained classifier that pools the scores of the cells."""
    residual, head = method_of("csra").residual, getattr(model, "head", None)
    if getattr(head, "lam", None) == 0:  # csra.py trained without attention
        model.forward = lambda images: sum(
            residual(s, lam) for s in head.scores(model.features(images)).unbind(1))
    elif isinstance(head, torch.nn.Linear):  # asl.py
        model.forward = lambda images: residual(model.attention(images)[1].flatten(2), lam)
    else:
        raise InputError("--residual needs a pooled linear classifier: asl.py's, or csra --lam 0")


def read_official(path, flags, root, split):
    """A released checkpoint in the form of train.py's. `flags`: its --model, --data, ..."""
    method, settings = settings_of(flags)
    name = settings["data"]
    if name == "csv" or not any(flag.split("=")[0] == "--data" for flag in flags):
        raise InputError(f"{path} does not name its classes: --data must say which published set "
                         "it is from; for your own classes, train with --init and --official")
    with reading(path, f"--official takes what {settings['model']}'s authors released"):
        state = method.from_official(read_file(path))
    classes = NAMES.get(name) or load(name, root or settings["root"], split, check=False).classes
    return {"settings": settings, "ema": None, "model": state, "counts": None, "classes": classes}


def untrained(checkpoint, state):
    """The checkpoint's model before its weights `state` are loaded."""
    settings = checkpoint["settings"] | {"pretrained": False}
    if "text_features" in state:  # CPRFL's: part of the checkpoint, so they need not be downloaded
        settings["text_features"] = state["text_features"]
    return build_model(method_of(settings["model"]), settings, checkpoint["classes"])


def open_model(checkpoint, state, path):
    """The model with the weights `state`, which `path` holds."""
    model = untrained(checkpoint, state)
    try:
        model.load_state_dict(state)
    except (RuntimeError, TypeError, AttributeError) as error:
        raise InputError(f"{path} doesn't fit the model: {str(error)[:600]}\n"
                         "Check --backbone, --image-size and so on.") from error
    return model


def weights_of(checkpoint, wanted):
    """The name and the state of the weights that are wanted: ema, where there is one, or raw."""
    ema = wanted == "ema" and checkpoint["ema"]
    return ("ema", checkpoint["ema"]) if ema else ("raw", checkpoint["model"])


def open_checkpoint(path, *flags):
    """The model, its class names, and the transform of a Pillow image to (3, size, size). For a
    released checkpoint, `flags` are those of train.py: "--model", "q2l", "--data", "coco2014"."""
    checkpoint = read_official(path, [*flags], None, "test") if flags else read_checkpoint(path)
    s = checked(checkpoint["settings"], path)
    remote(s["backbone"], flags, path)
    model = open_model(checkpoint, weights_of(checkpoint, s["report"])[1], path)
    resize = transform(s["image_size"])

    def prepare(image):
        image = resize(pixels(image, upright=True))
        return normalize(image[None], torch.device("cpu"), s["mean"], s["std"])[0]
    return model.eval(), checkpoint["classes"], prepare


class Scorer:
    """A checkpoint's model on this machine, in the views that eval.py's flags ask for."""

    def __init__(self, args, flags):
        self.file, self.args = args.checkpoint or args.official, args
        self.checkpoint = checkpoint = read_official(self.file, flags, args.root, args.split) \
            if args.official else read_checkpoint(self.file)
        settings = self.settings = checked(checkpoint["settings"], self.file)
        if args.backbone and not args.official and args.backbone != settings["backbone"]:
            raise InputError(f"--backbone {args.backbone}: {self.file} has {settings['backbone']}")
        with reading(self.file, "not a checkpoint that train.py has written"):
            remote(settings["backbone"], args.official or args.backbone, self.file)
            if args.weights == "ema" and not checkpoint["ema"]:
                raise InputError(f"{self.file} has no EMA weights: --weights raw")
            self.weights, self.state = weights_of(checkpoint, args.weights or settings["report"])
            self.classes, self.counts = checkpoint["classes"], checkpoint["counts"]
            self.data, self.root = args.data or settings["data"], args.root or settings["root"]
            self.sizes = args.sizes or [settings["image_size"]]
            self.device, self.dtype, self.workers = hardware(settings["amp"], args.workers)
            model = open_model(checkpoint, self.state, self.file)
        self.models = [at_size(model, size).to(self.device, memory_format=torch.channels_last)
                       for size in self.sizes]
        for model in self.models if args.residual is not None else ():
            add_residual(model, args.residual)

    def split(self, split):
        """A split of the data set, with the model's classes: columns are chosen by their names."""
        data = load(self.data, self.root, split, drop_unlabelled=self.settings["drop_unlabelled"],
                    long_tail=self.settings["long_tail"])
        if lost := [name for name in self.classes if name not in data.classes]:
            raise InputError(f"{self.data} lacks {len(lost)} classes of {self.file}: {lost[:5]}...")
        if len(data.classes) > len(self.classes) and process()[0] == 0:
            print(f"{self.data}: only the model's {len(self.classes)} of {len(data.classes)} "
                  "classes count", file=sys.stderr)
        self.columns = [data.classes.index(name) for name in self.classes]
        data = Dataset(self.classes, data.paths, data.targets[:, self.columns], data.upright)
        return sample(data, self.args.limit or 0)

    def batches(self, data, size):
        return loader(data, size, in_order(len(data), self.settings["batch_size"]),
                      workers=self.workers)

    def scores(self, data, skip_bad):
        """Scores (N, K), averaged over the views; the indices (N,) of the readable images."""
        total = 0
        for size, model in zip(self.sizes, self.models):
            scores, index = predict(model, self.batches(data, size), self.device, self.dtype,
                                    self.settings["mean"], self.settings["std"], self.args.flip,
                                    skip_bad)
            total = total + scores / len(self.sizes)
        return total, index

    def maps(self, data):
        """(index, maps (..., K, H, W)) of each image."""
        for batch in with_progress(self.batches(data, self.sizes[0])):
            with torch.inference_mode():
                images = normalize(batch.images, self.device, self.settings["mean"],
                                   self.settings["std"])
                _, found = self.models[0].attention(images)
            yield from zip(batch.index.tolist(), found)

    def map_offset(self):
        """Where the cells' receptive fields are centered: see maps.view_offset."""
        torch.manual_seed(0)
        return maps.view_offset(untrained(self.checkpoint, self.state),
                                self.settings["image_size"])
