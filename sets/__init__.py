"""One reader per data set: the publisher's files in one common form.

    classes, paths, targets = READERS[name](root, split)  # targets int8 (N, K): 1, 0, -1 (unknown)

A path is a file, a box of a file in pixels (FILE::x,y,w,h), or a drawn scene (scene:SEED/NUMBER).
Splits: train, test; csv: also val. To add a data set, write such a function, named in READERS.
"""
from functools import partial
from pathlib import Path

from sets import coco, longtail, nuswide, own, scenes, vg500, voc, wider

READERS = {
    "scenes": scenes.read_scenes, "scenes-lt": scenes.read_scenes_lt, "csv": own.read_csv,
    "voc2007": partial(voc.read_voc, year=2007, train="trainval", test="test"),
    "voc2012": partial(voc.read_voc, year=2012, train="train", test="val"),
    "voc2012-server": partial(voc.read_voc, year=2012, train="trainval", test=None),
    "coco2014": partial(coco.read_coco, year="2014"),
    "coco2017": partial(coco.read_coco, year="2017"),
    "coco-lt": partial(longtail.read_published, name="coco"),
    "voc-lt": partial(longtail.read_published, name="voc"),
    "nuswide": nuswide.read_nuswide, "vg500": vg500.read_vg500, "wider": wider.read_wider}
FETCH = {
    "voc2007": partial(voc.fetch, year=2007), "voc2012": partial(voc.fetch, year=2012),
    "coco-lt": partial(longtail.fetch, name="coco"), "voc-lt": partial(longtail.fetch, name="voc")}
NAMES = {  # classes that are known without the files
    **dict.fromkeys(("voc2007", "voc2012", "voc2012-server"), voc.CLASSES), "wider": wider.CLASSES,
    **dict.fromkeys(("coco2014", "coco2017"), coco.CLASSES),
    **dict.fromkeys(("scenes", "scenes-lt"), scenes.CLASSES)}
BOXES = {
    "scenes": scenes.boxes, "scenes-lt": scenes.boxes,
    "coco2014": partial(coco.boxes, year="2014"), "coco2017": partial(coco.boxes, year="2017")}


def splits_of(name, root):
    """The names of the splits: val only where your own data set has one."""
    val = name == "csv" and Path(root or "", "val.csv").is_file()
    return ["train", "test", "val"][:2 + val]
