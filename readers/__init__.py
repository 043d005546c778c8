"""One reader per data set: the publisher's files in one common form.

    classes, paths, targets = READERS[name](root, split)    targets int8 (N, K): 1, 0, -1 (unknown)

A path is a file, a box in a file in pixels (FILE::x,y,w,h), or a drawn scene (scene:SEED/NUMBER).
Splits: train, test and, in some data sets, val, on which a run chooses its best epoch.

To add a data set, write such a function and name it in READERS. If it also reads val, name it in
HAVE_VAL, too.
"""
from functools import partial
from pathlib import Path

from readers import coco, longtail, nuswide, own_images, scenes, vg500, voc, wider

READERS = {
    "scenes": scenes.read_scenes,
    "scenes-lt": scenes.read_scenes_lt,
    "csv": own_images.read_csv,
    "voc2007": partial(voc.read_voc, year=2007, train="trainval", test="test"),
    "voc2012": partial(voc.read_voc, year=2012, train="train", test="val"),
    "voc2012-server": partial(voc.read_voc, year=2012, train="trainval", test="server"),
    "coco2014": partial(coco.read_coco, year="2014"),
    "coco2017": partial(coco.read_coco, year="2017"),
    "coco-lt": partial(longtail.read_published, name="coco"),
    "voc-lt": partial(longtail.read_published, name="voc"),
    "nuswide": nuswide.read_nuswide,
    "vg500": vg500.read_vg500,
    "wider": wider.read_wider,
}
DOWNLOADS = {
    "voc2007": partial(voc.download, year=2007),
    "voc2012": partial(voc.download, year=2012),
    "coco-lt": partial(longtail.download, name="coco"),
    "voc-lt": partial(longtail.download, name="voc"),
}
HAVE_VAL = ()  # with a split val; csv is not among them: it has one if there is a val.csv
UPRIGHT = ("csv",)  # EXIF rotation is applied; the figures of published data sets are without it
HAVE_DIFFICULT = ("voc2007", "voc2012")  # with objects that are marked as difficult
CLASSES = {  # of data sets with files, if the classes are known without the files
    "voc2007": voc.CLASSES,
    "voc2012": voc.CLASSES,
    "voc2012-server": voc.CLASSES,
    "coco2014": coco.CLASSES,
    "coco2017": coco.CLASSES,
    "wider": wider.CLASSES,
}


def split_names(name, root):
    """The splits of a data set: train, test, and val if it has one."""
    has_val = name in HAVE_VAL
    if name == "csv":
        has_val = Path(root, "val.csv").is_file()
    if has_val:
        return ["train", "val", "test"]
    return ["train", "test"]
