"""A model's surest mistakes, class by class, on one HTML page. Some of them are wrong labels.

Run: python -m tools.mistakes --checkpoint OUT/best.pt --split val --out FILE.html

A false positive has a score above the threshold, but the label 0: the highest scores come first. A
miss has a score at or below it, but the label 1: the lowest scores come first. Unknown labels (-1)
are left out. The page holds its pictures, so it opens offline, on any machine.
"""
import base64
import io
import os
from html import escape
from pathlib import Path

import numpy as np
import torch
from torchvision.transforms.v2.functional import to_pil_image

from data import Normalize, transform
from eval import (
    MEMORY_REMEDY,
    WRITE_REMEDY,
    Evaluation,
    add_data_flags,
    check_output,
    checkpoint_parser,
    probabilities,
    threshold_logits,
)
from lib import distributed
from lib.errors import InputError, explain_errors
from lib.settings import integer
from tools.heatmaps import overlay

SIDE = 320  # the longer side of a picture, in pixels
STYLE = """
body { font: 16px/1.4 sans-serif; color: #222; max-width: 1200px; margin: auto; padding: 0 12px; }
td, th { padding: 2px 12px 2px 0; text-align: right; }
td:first-child, th:first-child { text-align: left; overflow-wrap: anywhere; }
section { border-top: 2px solid #ccc; margin-top: 32px; }
.row { display: grid; gap: 12px; align-items: start;
       grid-template-columns: repeat(auto-fill, minmax(min(100%, 480px), 1fr)); }
figure { margin: 0; background: #f2f2f2; padding: 6px; }
.pair { display: grid; gap: 4px; grid-template-columns: 1fr 1fr; align-items: center; }
img { width: 100%; max-height: 320px; object-fit: contain; }
figcaption { font-size: 14px; overflow-wrap: anywhere; }
"""


def command_line(argv):
    parser = checkpoint_parser("A model's surest mistakes in each class, on one HTML page.")
    add_data_flags(parser)
    flag = parser.add_argument
    flag("--split", required=True, choices=["train", "val", "test"],
         help="the split to look at; in train, the model may have learned the wrong labels")
    flag("--threshold", default="0.5", help="a number, or a file from python -m tools.thresholds")
    flag("--top", type=integer(1), default=6, metavar="N",
         help="show up to N false positives and N misses of each class")
    flag("--out", required=True, metavar="HTML", help="write the page")
    args = parser.parse_args(argv)
    check_output(args.out, [args.checkpoint, args.threshold], replaced=True)
    return args


def mistakes_of(logits, targets, threshold):
    """The indices of a class's false positives and of its misses, the surest of each first.
    logits, targets (N,); threshold: a logit."""
    order = np.argsort(logits, kind="stable")
    above = logits[order] > threshold
    label = targets[order]
    false_positives = order[above & (label == 0)][::-1]
    misses = order[~above & (label == 1)]
    return false_positives, misses


@torch.inference_mode()
def heat_map(evaluation, image, k):
    """The map (h, w) of class k in an image, uint8 (3, H, W): the mean over layers and heads."""
    settings = evaluation.settings
    device = evaluation.device
    inputs = transform(settings.image_size)(image)
    inputs = Normalize(settings.mean, settings.std, device)(inputs[None])
    amp_dtype = distributed.autocast_dtype(device, settings.amp)
    with torch.autocast(device.type, amp_dtype, enabled=amp_dtype is not None):  # as eval.py
        _, maps = evaluation.model.attention(inputs)  # (1, ..., K, h, w)
    return maps[..., k, :, :].cpu().float().flatten(0, -3).mean(0)


def figure(image, heat, caption):
    """HTML of an image, uint8 (3, H, W), beside its heat map (h, w), over the caption."""
    photo = to_pil_image(image)
    scale = SIDE / max(photo.size)
    photo = photo.resize([max(round(scale * side), 16) for side in photo.size])
    # The heat at full strength: that of a miss, with a score near 0, could not be seen otherwise.
    pictures = f"{img(photo, 'photograph')}\n{img(overlay(photo, heat, 1), 'heat map')}"
    return (f'<figure><div class="pair">{pictures}</div>\n'
            f"<figcaption>{caption}</figcaption></figure>\n")


def img(picture, description):
    """HTML that holds a Pillow image, as JPEG."""
    file = io.BytesIO()
    picture.save(file, "JPEG", quality=80)
    text = base64.b64encode(file.getvalue()).decode()
    return f'<img src="data:image/jpeg;base64,{text}" alt="{description}">'


def file_link(path, root):
    """The name of an image in the folder `root`, with a link to its file."""
    name = escape(path.removeprefix(os.path.join(Path(root), "")))
    if path.startswith("scene:"):  # drawn, without a file
        return name
    file, _, _ = path.partition("::")
    return f'<a href="{escape(Path(file).absolute().as_uri())}">{name}</a>'


def html_page(title, about, table, without, sections):
    """The page. table: a row of HTML per class; without: the names of classes without mistakes."""
    head = (
        f'<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8"><title>{title}</title>\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<style>{STYLE}</style></head><body>\n<h1>{title}</h1>\n<p>{about}</p>\n"
        "<p>In a false positive, the model says yes and the label no; in a miss, the reverse. One "
        "of the two is wrong. A heat map shows where the model found the class most likely, at "
        "full strength whatever the score. A file name opens the file, if it is on this machine."
        "</p>\n")
    parts = [head]
    if table:
        parts.append("<table><tr><th>class</th><th>positives</th><th>false positives</th>"
                     "<th>misses</th></tr>\n")
        parts += table
        parts.append("</table>\n")
    if without:
        parts.append(f"<p>Without mistakes: {escape(', '.join(without))}</p>\n")
    parts += sections
    parts.append("</body></html>\n")
    return "".join(parts)


def main(argv=None):
    args = command_line(argv)
    evaluation = Evaluation(args.checkpoint, args.weights, args.workers,
                            batch_size=args.batch_size)
    classes = evaluation.classes
    if not hasattr(evaluation.model, "attention"):
        raise InputError(f"the model of {args.checkpoint} has no `attention`, which the top of "
                         "train.py describes: add it, since heat maps need it")
    thresholds = threshold_logits(args.threshold, classes)
    data = args.data or evaluation.settings.data
    root = args.root or evaluation.settings.root
    dataset = evaluation.load(args.split, data, root, args.limit)
    targets = dataset.targets  # (N, K)
    logits = evaluation.logits(dataset)  # (N, K)
    if not distributed.is_main():
        return

    # Only the images that are shown are opened again.
    evaluation.model.to(evaluation.device)
    table = []
    sections = []
    without = []
    for k, name in enumerate(classes):
        false_positives, misses = mistakes_of(logits[:, k], targets[:, k], thresholds[k])
        if len(false_positives) == 0 and len(misses) == 0:
            without.append(name)
            continue
        name = escape(name)
        table.append(f'<tr><td><a href="#class{k}">{name}</a></td>'
                     f"<td>{(targets[:, k] == 1).sum()}</td>"
                     f"<td>{len(false_positives)}</td><td>{len(misses)}</td></tr>\n")
        sections.append(f'<section id="class{k}"><h2>{name}</h2>\n')
        for kind, label, found in (("False positives", "no", false_positives),
                                   ("Misses", "yes", misses)):
            shown = found[:args.top]
            if len(shown) == 0:
                continue
            sections.append(f"<h3>{kind}: {len(shown)} of {len(found)}</h3>\n"
                            '<div class="row">\n')
            for index, score in zip(shown, probabilities(logits[shown, k])):
                image = dataset.image(index)
                labels = [classes[i] for i in np.flatnonzero(targets[index] == 1)]
                caption = (f"<b>{name}: model {score:.3f}, label {label}</b><br>\n"
                           f"{file_link(dataset.paths[index], root)}<br>\n"
                           f"labels: {escape(', '.join(labels) or 'none')}")
                sections.append(figure(image, heat_map(evaluation, image, k), caption))
            sections.append("</div>\n")
        sections.append('<p><a href="#">All classes</a></p></section>\n')

    title = f"Mistakes of {evaluation.settings.model} on {data} {args.split}"
    about = escape(f"Images: {len(dataset)}. Folder: {root or 'none'}. Checkpoint: "
                   f"{args.checkpoint}, {evaluation.weights} weights. Threshold: {args.threshold}.")
    part = f"{args.out}.part"  # becomes the page at the end, so the page is never half
    with explain_errors(args.out, WRITE_REMEDY):
        Path(part).write_text(html_page(title, about, table, without, sections), "utf-8")
        os.replace(part, args.out)
    print(f"{args.out}: the surest mistakes of {len(table)} classes, {len(without)} have none")


if __name__ == "__main__":
    with distributed.program(MEMORY_REMEDY):
        main()
