"""Visual Genome's 500 most frequent labels.

ROOT/train_list_500.txt, test_list_500.txt and vg_category_500_labels_index.json (image -> label
numbers) from https://github.com/HCPLab-SYSU/SSGRL, data/VG; ROOT/VG_100K/ and VG_100K_2/ from
https://homes.cs.washington.edu/~ranjay/visualgenome/api.html
"""
import json

from lib.errors import explain_errors
from readers.tables import multi_hot, read_text

REMEDY = "SSGRL's data/VG has it"


def read_vg500(root, split):
    """Classes, paths and targets (N, 500). The published lists have label numbers, not names."""
    file = root / f"{split}_list_500.txt"
    with explain_errors(file, REMEDY):
        names = read_text(file).split()

    classes = [str(k) for k in range(500)]
    file = root / "vg_category_500_labels_index.json"
    with explain_errors(file, REMEDY):
        labels_of = json.loads(file.read_bytes())
        rows = []
        for name in names:
            rows.append([str(label) for label in labels_of[name]])
        targets = multi_hot(rows, classes)

    in_second = {file.name for file in root.glob("VG_100K_2/*")}  # there are two archives
    paths = []
    for name in names:
        folder = "VG_100K"
        if name in in_second:
            folder = "VG_100K_2"
        paths.append(f"{root}/{folder}/{name}")
    return classes, paths, targets
