"""COCO 2014 and 2017, from https://cocodataset.org/#download.

ROOT/train2014/, ROOT/val2014/ (the test split) and ROOT/annotations/instances_*2014.json; or 2017.
"""
import json

from lib.errors import explain_errors
from readers.tables import multi_hot, refuse_repeated

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
    """Classes, paths and targets (N, K). In files that were merged, two images may have one id, and
    would share their labels: such a file is refused."""
    name = split.replace("test", "val") + year
    file = root / f"annotations/instances_{name}.json"
    archive = f"http://images.cocodataset.org/annotations/annotations_trainval{year}.zip"
    with explain_errors(file, f"unpack {archive} in {root}"):
        content = json.loads(file.read_bytes())  # bytes: json handles a byte order mark
        name_of = {category["id"]: str(category["name"]) for category in content["categories"]}
        ids = sorted(name_of)  # 1..90 with gaps become columns 0..79
        classes = [name_of[number] for number in ids]

        if len(name_of) < len(content["categories"]):
            raise ValueError("two categories have one id: give each its own")
        labels_of = {}
        for image in content["images"]:
            if image["file_name"] is None:
                raise ValueError(f"image {image['id']} has the file_name null")
            if image["id"] in labels_of:
                raise ValueError(f"two images have the id {image['id']}, the second is "
                                 f"{image['file_name']}: if files were merged, number the images "
                                 "anew, and image_id with them")
            labels_of[image["id"]] = set()
        refuse_repeated([image["file_name"] for image in content["images"]])
        for box in content["annotations"]:
            labels_of[box["image_id"]].add(box["category_id"])
        paths = [f"{root}/{name}/{image['file_name']}" for image in content["images"]]
        targets = multi_hot([labels_of[image["id"]] for image in content["images"]], ids)
    return classes, paths, targets
