"""WIDER Attribute, from http://mmlab.ie.cuhk.edu.hk/projects/WIDERAttribute.html

ROOT/wider_attribute_annotation/ and ROOT/Image/. A sample is the box of one person.
"""
import json

from readers.errors import explain_errors
from readers.tables import translate

CLASSES = ["male", "long hair", "sunglasses", "hat", "T-shirt", "long sleeves", "formal", "shorts",
           "jeans", "long pants", "skirt", "face mask", "logo", "stripe"]
CODES = {  # an unspecified attribute is 0 in the file
    "train": {1: 1, -1: 0, 0: 0},
    "test": {1: 1, -1: 0, 0: -1}}


def read_wider(root, split):
    """Classes, paths and targets (N, 14). An unspecified attribute is negative in training and
    unknown at test time."""
    name = {"train": "trainval", "test": "test"}[split]
    file = root / "wider_attribute_annotation" / f"wider_attribute_{name}.json"
    paths = []
    attributes = []
    with explain_errors(file, "WIDER Attribute is wider_attribute_annotation/ and Image/, unpacked "
                           "here"):
        content = json.loads(file.read_bytes())
        for image in content["images"]:
            for person in image["targets"]:
                x, y, w, h = person["bbox"]
                left = round(x)
                top = round(y)
                width = round(x + w) - left  # both ends are rounded, as released
                height = round(y + h) - top
                box = f"{left},{top},{width},{height}"
                paths.append(f"{root}/Image/{image['file_name']}::{box}")
                attributes.append(person["attribute"])
        targets = translate(attributes, CODES[split], len(CLASSES))
    return CLASSES, paths, targets
