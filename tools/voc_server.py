"""The files that VOC 2012's test server takes: a score for each test image and class.

Run: python -m tools.voc_server --checkpoint OUT/last.pt --root ROOT --out FOLDER
"""
from pathlib import Path

from eval import MEMORY_REMEDY, Evaluation, checkpoint_parser, probabilities
from lib import distributed
from lib.errors import explain_errors
from lib.settings import integer


def main(argv=None):
    parser = checkpoint_parser("The files that VOC 2012's test server takes.")
    flag = parser.add_argument
    flag("--root", required=True, help="the folder that holds VOCdevkit/VOC2012")
    flag("--out", required=True, metavar="FOLDER", help="for results/VOC2012/Main/*.txt")
    flag("--flip", action="store_true", help="average with the mirrored image")
    flag("--batch-size", type=integer(1), help="default: as in training")
    flag("--workers", type=integer(-1), default=-1, help="loading processes; -1: automatic")
    args = parser.parse_args(argv)
    folder = Path(args.out, "results", "VOC2012", "Main")
    with explain_errors(folder, "choose another place to write to"):
        folder.mkdir(parents=True, exist_ok=True)

    evaluation = Evaluation(args.checkpoint, args.weights, args.workers,
                            batch_size=args.batch_size)
    dataset = evaluation.load("test", "voc2012-server", args.root)
    scores = probabilities(evaluation.logits(dataset, flip=args.flip))
    if not distributed.is_main():
        return

    for label, column in zip(dataset.classes, scores.T):
        text = ""
        for path, score in zip(dataset.paths, column):
            text += f"{Path(path).stem} {score:.17g}\n"  # all digits, so that none tie
        file = folder / f"comp2_cls_test_{label}.txt"
        with explain_errors(file, "make room there"):
            file.write_text(text)
    print(f"{len(dataset.classes)} files for {len(dataset)} images in {folder}")


if __name__ == "__main__":
    with distributed.program(MEMORY_REMEDY):
        main()
