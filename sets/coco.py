"""COCO 2014 and 2017, from https://cocodataset.org/#download.

ROOT/train2014/, ROOT/val2014/ (the test split) and ROOT/annotations/instances_*2014.json; or 2017.
"""
import json

from sets.table import multi_hot, reading

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


def read_annotations(root, split, year):
    """The annotations, the row of each image id, the category id of each column, and the table."""
    name = {"train": "train", "test": "val"}[split] + year
    file = root / "annotations" / f"instances_{name}.json"
    with reading(file, f"unpack http://images.cocodataset.org/zips/{name}.zip and /annotations/"
                       f"annotations_trainval{year}.zip from there in {root}"):
        content = json.loads(file.read_bytes())  # of bytes: it knows a byte order mark
        names = {category["id"]: str(category["name"]) for category in content["categories"]}
        ids = sorted(names)  # 1..90 with holes become columns 0..79
        row = {image["id"]: i for i, image in enumerate(content["images"])}
        if len(row) < len(content["images"]) or len(names) < len(content["categories"]):
            raise ValueError("an id occurs twice")
        labels = [set() for _ in row]
        for box in content["annotations"]:
            labels[row[box["image_id"]]].add(box["category_id"])
        paths = [f"{root}/{name}/{image['file_name']}" for image in content["images"]]
        table = [names[i] for i in ids], paths, multi_hot(labels, ids)
    return content, row, ids, table


def read_coco(root, split, year):
    """Classes, paths and targets (N, K)."""
    return read_annotations(root, split, year)[-1]


def boxes(root, split, year, paths):
    """For each path [(class, x0, y0, x1, y1, small)], in fractions of the image. small: an area
    below 32^2 pixels, as COCO defines it."""
    content, row, ids, (_, all_paths, _) = read_annotations(root, split, year)
    found = {path: [] for path in all_paths}
    with reading(f"{root}/annotations", "--pointing needs bbox, area, width and height of COCO"):
        for annotation in content["annotations"]:
            image, (x, y, w, h) = row[annotation["image_id"]], annotation["bbox"]
            width, height = (content["images"][image][side] for side in ("width", "height"))
            found[all_paths[image]].append((
                ids.index(annotation["category_id"]), x / width, y / height, (x + w) / width,
                (y + h) / height, annotation["area"] < 32 ** 2))
    return [found[path] for path in paths]
