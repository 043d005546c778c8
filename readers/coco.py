"""COCO 2014 and 2017, from https://cocodataset.org/#download.

ROOT/train2014/, ROOT/val2014/ (the test split) and ROOT/annotations/instances_*2014.json; or 2017.
"""
import json

from readers.errors import explain_errors
from readers.tables import multi_hot

CLASSES = [
    "person", "bicycle", "car", "motorcycle", "airplane", "bus", "train", "truck", "boat",
    "traffic light", "fire hydrant", "stop sign", "parking meter", "bench", "bird", "cat", "dog",
    "horse", "sheep", "cow", "elephant", "bear", "zebra", "giraffe", "backpack", "umbrella",
    "handbag", "tie", "suitcase", "frisbee", "skis", "snowboard", "sports ball", "kite",
    "baseball bat", "baseball glove", "skateboard", "surfboard", "tennis racket", "bottle",
    "wine glass", "cup", "fork", "knife", "spoon", "bowl", "banana", "apple", "sandwich",
    "orange", "broccoli", "carrot", "hot dog", "pizza", "donut", "cake", "chair", "couch",
    "potted plant", "bed", "dining table", "toilet", "tv", "laptop", "mouse", "remote",
    "keyboard", "cell phone", "microwave", "oven", "toaster", "sink", "refrigerator", "book",
    "clock", "vase", "scissors", "teddy bear", "hair drier", "toothbrush"]


def read_coco(root, split, year):
    """Classes, paths and targets (N, K)."""
    name = f"train{year}"
    if split == "test":
        name = f"val{year}"
    file = root / "annotations" / f"instances_{name}.json"
    remedy = (f"unpack http://images.cocodataset.org/zips/{name}.zip and /annotations/"
              f"annotations_trainval{year}.zip from there in {root}")
    with explain_errors(file, remedy):
        content = json.loads(file.read_bytes())  # of bytes: it knows a byte order mark
        names = {category["id"]: str(category["name"]) for category in content["categories"]}
        row_of = {image["id"]: row for row, image in enumerate(content["images"])}
        if len(row_of) < len(content["images"]) or len(names) < len(content["categories"]):
            raise ValueError("an id occurs twice")

        labels = [set() for _ in row_of]
        for box in content["annotations"]:
            labels[row_of[box["image_id"]]].add(box["category_id"])
        ids = sorted(names)  # 1..90 with holes become columns 0..79
        classes = [names[number] for number in ids]
        paths = [f"{root}/{name}/{image['file_name']}" for image in content["images"]]
        targets = multi_hot(labels, ids)
    return classes, paths, targets
