"""WIDER Attribute, from http://mmlab.ie.cuhk.edu.hk/projects/WIDERAttribute.html

ROOT/wider_attribute_annotation/ and ROOT/Image/. A sample is the box of one person.
"""
import json

from sets.table import coded, reading

CLASSES = ["male", "long hair", "sunglasses", "hat", "T-shirt", "long sleeves", "formal", "shorts",
           "jeans", "long pants", "skirt", "face mask", "logo", "stripe"]


def read_wider(root, split):
    """Classes, paths and targets (N, 14). An unspecified attribute (0 in the file) is negative in
    training and unknown at test time."""
    name = {"train": "trainval", "test": "test"}[split]
    file = root / "wider_attribute_annotation" / f"wider_attribute_{name}.json"
    codes, paths, values = {1: 1, -1: 0, 0: 0 if split == "train" else -1}, [], []
    with reading(file, "WIDER Attribute is wider_attribute_annotation/ and Image/, unpacked here"):
        for image in json.loads(file.read_bytes())["images"]:
            for person in image["targets"]:
                x, y, w, h = map(round, person["bbox"])
                paths.append(f"{root}/Image/{image['file_name']}::{x},{y},{w},{h}")
                values.append(person["attribute"])
        targets = coded(values, codes, len(CLASSES))
    return CLASSES, paths, targets
