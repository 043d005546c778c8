"""The files that VOC 2012's test server takes: a score for each test image and class.

Run: python -m tools.voc_server --checkpoint OUT/last.pt --root DIR --out FOLDER
"""
import argparse
from pathlib import Path

from eval import Evaluation
from lib import distributed
from lib.settings import integer
from readers.errors import explain_errors


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0], allow_abbrev=False)
    flag = parser.add_argument
    flag("--checkpoint", required=True, help="of train.py or tools/convert.py")
    flag("--root", required=True, help="the folder that holds VOCdevkit/VOC2012")
    flag("--out", required=True, metavar="FOLDER", help="gets results/VOC2012/Main/*.txt")
    flag("--weights", choices=["raw", "ema"], help="default: those that the run reports")
    flag("--flip", action="store_true", help="average with the mirrored image")
    flag("--workers", type=integer(-1), default=-1, help="loading processes; -1: automatic")
    args = parser.parse_args(argv)
    folder = Path(args.out, "results", "VOC2012", "Main")
    with explain_errors(folder, "choose another place to write to"):
        folder.mkdir(parents=True, exist_ok=True)

    evaluation = Evaluation(args.checkpoint, args.weights, args.workers)
    dataset = evaluation.load("server", "voc2012", args.root)
    scores = evaluation.scores(dataset, flip=args.flip)
    if not distributed.is_main():
        return

    images = [Path(path).stem for path in dataset.paths]
    with explain_errors(folder, "make room there"):
        for label, column in zip(dataset.classes, scores.T):
            lines = [f"{image} {score:.8f}\n" for image, score in zip(images, column)]
            file = folder / f"comp2_cls_test_{label}.txt"
            file.write_text("".join(lines))
    print(f"{len(dataset.classes)} files for {len(images)} images in {folder}")


if __name__ == "__main__":
    with distributed.program():
        main()
