"""The files that VOC 2012's test server takes: a score for each test image and class.

Run: python -m tools.voc_server --checkpoint OUT/last.pt --root DIR --out FOLDER
"""
import argparse
from pathlib import Path

from eval import scores_at_sizes, split_for
from lib import distributed
from lib.checkpoint import read_checkpoint
from lib.models import model_of, reported_weights
from readers.errors import name_errors


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0], allow_abbrev=False)
    flag = parser.add_argument
    flag("--checkpoint", required=True, help="of train.py or tools/convert.py")
    flag("--root", required=True, help="the folder that holds VOCdevkit/VOC2012")
    flag("--out", required=True, metavar="FOLDER", help="gets results/VOC2012/Main/*.txt")
    flag("--weights", choices=["raw", "ema"], help="default: those that the recipe reports")
    flag("--flip", action="store_true", help="average with the mirrored image")
    flag("--workers", type=int, default=-1, help="loading processes; -1: automatic")
    args = parser.parse_args(argv)
    folder = Path(args.out, "results", "VOC2012", "Main")
    with name_errors(folder, "choose another place to write to"):
        folder.mkdir(parents=True, exist_ok=True)

    device = distributed.start()
    checkpoint = read_checkpoint(args.checkpoint)
    settings = checkpoint["settings"]
    settings.workers = args.workers
    _, state = reported_weights(checkpoint, args.weights)
    model = model_of(checkpoint, state, args.checkpoint)
    dataset = split_for(checkpoint, "voc2012", args.root, "server")
    scores = scores_at_sizes(model, dataset, settings, device, [settings.image_size], args.flip)
    if not distributed.is_main():
        return

    images = [Path(path).stem for path in dataset.paths]
    with name_errors(folder, "make room there"):
        for label, column in zip(dataset.classes, scores.T):
            lines = [f"{image} {score:.8f}\n" for image, score in zip(images, column)]
            file = folder / f"comp2_cls_test_{label}.txt"
            file.write_text("".join(lines))
    print(f"{len(dataset.classes)} files for {len(images)} images in {folder}")


if __name__ == "__main__":
    with distributed.program():
        main()
