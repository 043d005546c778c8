"""Visual Genome's 500 most frequent labels.

ROOT/train_list_500.txt, test_list_500.txt and vg_category_500_labels_index.json (image -> label
numbers) from https://github.com/HCPLab-SYSU/SSGRL, data/VG; ROOT/VG_100K/ and VG_100K_2/ from
https://homes.cs.washington.edu/~ranjay/visualgenome/api.html
"""
import json
import os

from sets.table import multi_hot, reading


def read_vg500(root, split):
    """Classes, paths and targets (N, 500). The published lists number the labels, without names."""
    file, remedy = root / f"{split}_list_500.txt", "SSGRL's data/VG has it"
    with reading(file, remedy):
        names = file.read_text("utf-8").split()
    file, classes = root / "vg_category_500_labels_index.json", [str(k) for k in range(500)]
    with reading(file, remedy):
        labels = json.loads(file.read_bytes())
        # Compared as JSON text: in Python, True equals 1.
        targets = multi_hot([[json.dumps(n) for n in labels[name]] for name in names], classes)
    second = root / "VG_100K_2"  # the archives unpack into two folders
    there = set(os.listdir(second)) if second.is_dir() else ()
    return classes, [f"{second if name in there else root / 'VG_100K'}/{name}"
                     for name in names], targets
