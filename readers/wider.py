"""WIDER Attribute, from http://mmlab.ie.cuhk.edu.hk/projects/WIDERAttribute.html

ROOT/wider_attribute_annotation/ and ROOT/Image/. A sample is the box of one person.
"""
import json

import numpy as np

from lib.errors import explain_errors

CLASSES = ["male", "long hair", "sunglasses", "hat", "T-shirt", "long sleeves", "formal", "shorts",
           "jeans", "long pants", "skirt", "face mask", "logo", "stripe"]
CODES = {1: 1, -1: 0, 0: -1}  # an unspecified attribute is 0 in the file


def read_wider(root, split):
    """Classes, paths and targets (N, 14). An unspecified attribute is negative in training and
    unknown at test time."""
    name = split.replace("train", "trainval")
    file = root / f"wider_attribute_annotation/wider_attribute_{name}.json"
    paths = []
    rows = []
    with explain_errors(file, "unpack WIDER Attribute's annotations and images in ROOT"):
        content = json.loads(file.read_bytes())
        for image in content["images"]:
            for person in image["targets"]:
                x, y, w, h = person["bbox"]
                left = round(x)
                top = round(y)
                width = round(x + w) - left  # both ends are rounded, as released
                height = round(y + h) - top
                paths.append(f"{root}/Image/{image['file_name']}::{left},{top},{width},{height}")
                rows.append([CODES[value] for value in person["attribute"]])
        targets = np.array(rows, np.int8)
    if split == "train":
        targets = np.maximum(targets, 0)  # -1 becomes 0
    return CLASSES, paths, targets
