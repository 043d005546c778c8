"""Data sets in their published formats, in small, written by the tests; transforms; what goes wrong."""
import hashlib
import json
import pickle

import numpy as np
import pytest
import torch
from conftest import HERE, default_settings, run
from PIL import Image, ImageColor

import data
from data import InputError, load
from lib.metrics import head_medium_tail
from readers import images, longtail, scenes, voc
from readers.images import read_image
from tools import check


def write_image(path, mode="RGB", size=(50, 40), **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(len(path.name))
    values = rng.integers(0, 256, (size[1], size[0], 3), np.uint8)
    Image.fromarray(values).resize(size).convert(mode).save(path, **options)


def write_csv(root, train, test=None):
    for name, text in (("train", train), ("test", test or train)):
        (root / f"{name}.csv").write_text(text)
    for name in "abcdef":
        write_image(root / f"{name}.jpg")
    return root


def test_csv_columns(tmp_path):
    write_csv(tmp_path, "image,cat,N/A,dog\na.jpg,1,0,\nb.jpg,-1,1,0\r\n",
              "\ufeffdog,image,cat,N/A\n1,c.jpg,0,0\n")
    train, test = load("csv", tmp_path), load("csv", tmp_path, "test")
    assert train.classes == test.classes == ["cat", "N/A", "dog"]
    assert train.targets.tolist() == [[1, 0, -1], [-1, 1, 0]] and train.targets.dtype == np.int8
    assert test.targets.tolist() == [[0, 0, 1]] and test.paths[0] == f"{tmp_path}/c.jpg"
    assert train.image(0).shape == (3, 40, 50)


def test_a_test_file_alone_can_be_read(tmp_path):
    (tmp_path / "test.csv").write_text("image,a,b\n x.jpg ,1,0\n")
    found = load("csv", tmp_path, "test", check=False)
    assert found.classes == ["a", "b"] and found.paths[0] == f"{tmp_path}/x.jpg"


def test_csv_names(tmp_path):
    write_csv(tmp_path, "image,labels\na.jpg,dog; cat\nb.jpg,\n", "labels,image\ncat,c.jpg\n")
    assert load("csv", tmp_path).classes == ["cat", "dog"]
    assert load("csv", tmp_path).targets.tolist() == [[1, 1], [0, 0]]
    assert load("csv", tmp_path, "test").targets.tolist() == [[1, 0]]
    assert len(load("csv", tmp_path, drop_unlabelled=True)) == 1


@pytest.mark.parametrize("train, test, message", [
    ("photo,a\na.jpg,1\n", None, "row 1.*image"),
    ("", None, "image"),
    ("image\na.jpg\n", None, "no label columns"),
    ("image,x,x\na.jpg,1,1\n", None, "twice"),
    ("image,x\na.jpg,1\nb.jpg,2\n", None, "train.csv.*row 3.*'2' is not 1, 0, -1 or empty"),
    ("image,x\na.jpg,1,1\n", None, "row 2.*3 fields"),
    ("image,x\na.jpg,1\n", "image,y\nb.jpg,1\n", "test.csv.*'x', 'y'"),
    ("image,labels\na.jpg,x\n", "image,labels\nb.jpg,y\n", "test.csv.*row 2.*'y'"),
    ("image,x\n", None, "csv train in .* is empty"),
    ("image,x\na.jpg,1\nlost.jpg,0\n", None, "1 of 2 listed images are missing, .*lost.jpg first.*tools.check"),
    ('image,x\n"a.jpg,1\n', None, "train.csv"),
    ("image,x\na.jpg,1\nb.jpg,0\na.jpg,0\n", None, "row 4: a.jpg has two rows"),
    ("image,labels\na.jpg,\"cat,dog\"\n", None, "'cat,dog': labels are separated by semicolons"),
    ("image,labels\na.jpg,cat|dog\n", None, "separated by semicolons"),
    ("image,labels\na.jpg,['cat'; 'dog']\n", None, "separated by semicolons")])
def test_csv_errors(tmp_path, train, test, message):
    write_csv(tmp_path, train, test)
    with pytest.raises(InputError, match=message):
        load("csv", tmp_path), load("csv", tmp_path, "test")


def test_load_errors(tmp_path):
    for arguments, message in ((("csv", ""), "--root"), (("csv", tmp_path / "x"), "x: there is no such folder"),
                               (("csv", tmp_path), "train.csv is missing"),
                               (("nonesuch", tmp_path), "choose.*scenes, scenes-lt, csv"),
                               (("scenes", "", "val"), "no split val"),
                               (("csv", tmp_path, "val"), "no split val"),
                               (("voc2007", tmp_path), "aeroplane_trainval.txt is missing"),
                               (("coco2014", tmp_path), "images.cocodataset.org")):
        with pytest.raises(InputError, match=message):
            load(*arguments)
    with pytest.raises(InputError, match="--download of coco2014: .*by hand"):
        load("coco2014", tmp_path, download=True)


def write_voc(root, year=2007, splits=("trainval", "test")):
    folder = root / "VOCdevkit" / f"VOC{year}"
    (folder / "ImageSets" / "Main").mkdir(parents=True)
    for i, split in enumerate(splits):
        (folder / "ImageSets" / "Main" / f"{split}.txt").write_text("only the images\n")
        for k, label in enumerate(voc.CLASSES):
            values = [1 if k == 14 else -1, 0 if label == "train" else -1]
            text = "".join(f"00000{2 * i + j} {v:2}\r\n" for j, v in enumerate(values))
            (folder / "ImageSets" / "Main" / f"{label}_{split}.txt").write_bytes(text.encode())
        for j in range(2):
            write_image(folder / "JPEGImages" / f"00000{2 * i + j}.jpg")
    return root


@pytest.mark.parametrize("year, splits", [(2007, ("trainval", "test")), (2012, ("train", "val"))])
def test_voc(tmp_path, year, splits):
    write_voc(tmp_path, year, splits)
    for split, difficult in (("train", 0), ("test", -1)):
        found = load(f"voc{year}", tmp_path, split)
        expected = np.zeros((2, 20), np.int8)
        expected[0, voc.CLASSES.index("person")], expected[1, voc.CLASSES.index("train")] = 1, difficult
        assert np.array_equal(found.targets, expected) and found.classes == voc.CLASSES
    assert found.paths[1].endswith(f"VOC{year}/JPEGImages/000003.jpg")
    found = load(f"voc{year}", tmp_path, "test", difficult="negative")
    assert (found.targets >= 0).all() and found.targets.sum() == 1


def test_voc_2012_trains_on_trainval_for_the_server(tmp_path):
    folder = write_voc(tmp_path, 2012, ("trainval", "val")) / "VOCdevkit/VOC2012/ImageSets/Main"
    (folder / "test.txt").write_text("000002\n000003\n")
    train, test = load("voc2012-server", tmp_path), load("voc2012-server", tmp_path, "test")
    assert len(train) == 2 and train.targets[0, voc.CLASSES.index("person")] == 1
    assert test.paths[1].endswith("000003.jpg") and (test.targets == -1).all()


@pytest.mark.parametrize("line, message", [("000001 2\n", "row 2.*'2'"), ("000001\n", "row 2"),
                                           ("000009 1\n", "not the images of")])
def test_voc_errors(tmp_path, line, message):
    file = write_voc(tmp_path) / "VOCdevkit/VOC2007/ImageSets/Main/dog_trainval.txt"
    file.write_text("000000 -1\n" + line)
    with pytest.raises(InputError, match="dog_trainval.*" + message):
        load("voc2007", tmp_path)


def test_voc_lists_have_the_same_images_in_the_same_order(tmp_path):
    folder = write_voc(tmp_path) / "VOCdevkit/VOC2007/ImageSets/Main"
    for broken in ("000001 -1\n000000 1\n", "000000 -1\n000000 -1\n000001 -1\n"):
        (folder / "person_trainval.txt").write_text(broken)
        with pytest.raises(InputError, match="not the images of aeroplane_trainval.txt"):
            load("voc2007", tmp_path)


def coco_matrix(content):
    """Independent of data.py: the label matrix, by image and name."""
    names = sorted((c["id"], c["name"]) for c in content["categories"])
    has = {(a["image_id"], a["category_id"]) for a in content["annotations"]}
    return ([name for _, name in names],
            [[int((i["id"], number) in has) for number, _ in names] for i in content["images"]])


def test_coco(tmp_path):
    content = {"images": [{"id": 7, "file_name": "b.jpg"}, {"id": 3, "file_name": "a.jpg"}],
               "categories": [{"id": i, "name": n} for i, n in ((90, "z"), (2, "N/A"), (5, "y"))],
               "annotations": [{"image_id": 7, "category_id": i} for i in (90, 2)]}
    (tmp_path / "annotations").mkdir()
    file = tmp_path / "annotations/instances_train2017.json"
    file.write_text(json.dumps(content))
    for name in "ab":
        write_image(tmp_path / f"train2017/{name}.jpg")
    coco = load("coco2017", tmp_path)
    assert coco.classes == ["N/A", "y", "z"] and coco.targets.tolist() == [[1, 0, 1], [0, 0, 0]]
    assert coco.paths[0].endswith("train2017/b.jpg")
    assert load("coco2017", tmp_path, drop_unlabelled=True).targets.tolist() == [[1, 0, 1]]
    for broken in ("{", "[]", '{"images": []}', json.dumps(content | {"annotations": [{}]}),
                   json.dumps(content | {"annotations": [{"image_id": 1, "category_id": 2}]})):
        file.write_text(broken)
        with pytest.raises(InputError, match="instances_train2017.json.*unpack"):
            load("coco2017", tmp_path)


@pytest.mark.parametrize("split, name", [("train", "train"), ("test", "val")])
def test_coco_mini(split, name):
    root = HERE.parent.parent / "shared/data/coco-mini"
    if not root.is_dir():
        pytest.skip("no coco-mini here")
    coco = load("coco2017", root, split)
    content = json.loads((root / f"annotations/instances_{name}2017.json").read_text())
    assert (coco.classes, coco.targets.tolist()) == coco_matrix(content)
    assert len(coco) == len(coco.classes) == 80


def test_scenes():
    train, test = load("scenes"), load("scenes", split="test")
    assert len(train.classes) == 20 and "red circle" in train.classes
    assert (train.targets.sum(0) > 100).all() and (test.targets.sum(0) > 20).all()
    assert torch.equal(train.image(5), load("scenes").image(5))
    assert not torch.equal(train.image(5), test.image(5))
    for i in range(50):
        image = train.image(i).int()
        for k in train.targets[i].nonzero()[0]:  # the noise is -24 to 24
            color = torch.tensor(ImageColor.getrgb(scenes.PALETTE[k // len(scenes.SHAPES)]))
            assert ((image - color.view(3, 1, 1)).abs() <= 24).all(0).sum() > 60


@pytest.mark.parametrize("name, mode, options", [
    ("rgb.jpg", "RGB", {}), ("grey.jpg", "L", {}), ("cmyk.jpg", "CMYK", {}), ("p.png", "P", {}),
    ("rgba.png", "RGBA", {}), ("x.webp", "RGB", {}), ("x.gif", "P", {}), ("one.png", "1", {}),
    ("turned.jpg", "RGB", {"exif": b"Exif\0\0MM\0*\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01\0\x06"
                                   b"\0\0\0\0\0\0"})])
def test_images_read_as_pillow_reads_them(tmp_path, name, mode, options):
    write_image(tmp_path / name, mode, **options)
    expected = np.asarray(Image.open(tmp_path / name).convert("RGB"))
    assert np.array_equal(read_image(f"{tmp_path}/{name}").permute(1, 2, 0), expected)


@pytest.mark.parametrize("name", ["a.jpg", "b.png"])
def test_without_torchvisions_decoder_images_are_the_same(tmp_path, name, monkeypatch):
    write_image(tmp_path / name)
    expected = read_image(f"{tmp_path}/{name}")
    assert images.decode_jpeg is not None
    monkeypatch.setattr(images, "decode_jpeg", None)
    assert torch.equal(read_image(f"{tmp_path}/{name}"), expected)


def test_boxes_of_own_images(tmp_path):
    write_csv(tmp_path, "image,x\n\"a.jpg::5,6,20,10\",1\nb.jpg,0\n")
    own = load("csv", tmp_path)
    assert torch.equal(own.image(0), read_image(f"{tmp_path}/a.jpg")[:, 6:16, 5:25])
    own.paths[0] = own.paths[0].replace("5,6", "five,6")
    with pytest.raises(InputError, match="a.jpg: .*five"):
        own.image(0)


def test_16_bits_keep_their_shades(tmp_path):
    Image.fromarray(np.array([[0, 300, 30000, 65535]], np.uint16)).save(tmp_path / "deep.png")
    assert read_image(f"{tmp_path}/deep.png")[0, 0].tolist() == [0, 1, 117, 255]


@pytest.mark.slow
def test_broken_images_are_named(tmp_path):
    write_csv(tmp_path, "image,x\na.jpg,1\nb.jpg,0\n")
    whole = (tmp_path / "b.jpg").read_bytes()
    for broken in (whole[:len(whole) // 2], b"", b"no image", whole[:30]):
        (tmp_path / "b.jpg").write_bytes(broken)
        with pytest.raises(InputError, match="b.jpg.*--verify") as error:
            load("csv", tmp_path).image(1)
        assert "cpp" not in str(error.value)
    text = run("-m", "tools.check", "--data", "csv", "--root", tmp_path, "--verify", ok=False)
    assert text.count("b.jpg: ") == 2 and "problems: 3" in text and "tools.check" not in text
    assert f"{tmp_path}/a.jpg (test) has the same content as {tmp_path}/a.jpg (train)" in text
    (tmp_path / "b.jpg").unlink()
    text = run("-m", "tools.check", "--data", "csv", "--root", tmp_path, ok=False)
    assert "b.jpg is missing" in text


def batches_of(folder, workers, epoch, augment=("crop", "flip", "cutout", "randaugment")):
    dataset = load("csv", folder)
    settings = default_settings(image_size=32, augment=augment, seed=3, batch_size=2, workers=workers)
    loader = data.make_loader(dataset, settings, training=True)
    loader.sampler.set_epoch(epoch)
    dataset.set_epoch(epoch)
    return list(loader)


def test_samples_depend_on_seed_epoch_and_index_only(tmp_path):
    write_csv(tmp_path, "image,x\n" + "".join(f"{n}.jpg,1\n" for n in "abcdef"))
    torch.manual_seed(0)
    before = torch.get_rng_state()
    one, two = batches_of(tmp_path, 0, 1), batches_of(tmp_path, 2, 1)
    assert torch.equal(before, torch.get_rng_state())
    assert all(torch.equal(a[0], b[0]) for a, b in zip(one, two)) and len(one) == 3
    assert not all(torch.equal(a[0], b[0]) for a, b in zip(one, batches_of(tmp_path, 0, 2)))
    samples = load("csv", tmp_path)
    samples.transform = data.transform(32, ("crop",))
    first, _ = samples[0]
    assert torch.equal(first, samples[0][0])
    samples.paths[3] = samples.paths[0]
    assert not torch.equal(first, samples[3][0])  # by index (the same image),
    samples.set_epoch(1)
    assert not torch.equal(first, samples[0][0])  # by epoch,
    samples.set_epoch(0)
    samples.seed = 1
    assert not torch.equal(first, samples[0][0])  # by seed


def test_each_epoch_has_its_own_order_and_each_image_once(tmp_path):
    write_image(tmp_path / "a.jpg")
    dataset = data.Dataset(["x"], [f"{tmp_path}/a.jpg"] * 40, np.zeros((40, 1), np.int8))
    dataset.targets = np.arange(40, dtype=np.int8)[:, None]  # to know them by
    settings = default_settings(image_size=32, batch_size=16, workers=0)
    orders = []
    for seed, epoch in ((0, 0), (0, 1), (1, 0), (0, 0)):
        settings.seed = seed
        loader = data.make_loader(dataset, settings, training=True)
        loader.sampler.set_epoch(epoch)
        batches = [targets.flatten().tolist() for _, targets in loader]
        assert [len(batch) for batch in batches] == [16, 16]
        orders.append([i for batch in batches for i in batch])
        assert len(set(orders[-1])) == 32
    assert orders[0] == orders[3] and orders[0] != orders[1] != orders[2] != orders[0]
    settings.drop_last = False
    assert len(data.make_loader(dataset, settings, training=True)) == 3
    settings.drop_last, settings.batch_size = True, 64  # fewer images than a batch: one batch
    assert [len(x) for x, _ in data.make_loader(dataset, settings, training=True)] == [40]
    tested = [targets for _, targets in data.make_loader(dataset, settings, training=False)]
    assert torch.cat(tested).flatten().tolist() == list(range(40))


def test_normalize_and_transforms():
    batch = torch.randint(0, 256, (2, 3, 8, 8), dtype=torch.uint8)
    mean, std = (0.1, 0.2, 0.3), (0.5, 0.6, 0.7)
    plain = (batch / 255 - torch.tensor(mean).view(3, 1, 1)) / torch.tensor(std).view(3, 1, 1)
    found = data.Normalize(mean, std, torch.device("cpu"))(batch)
    torch.testing.assert_close(found, plain)
    assert found.is_contiguous(memory_format=torch.channels_last)
    grey = torch.full((3, 40, 60), 7, dtype=torch.uint8)
    cut = (data.cutout(grey) != 7).any(0)
    assert 0 < cut.sum() <= 21 * 31
    sides = [(data.cutout(torch.full((3, 448, 448), 300, dtype=torch.int16)) != 300).any(0)
             for _ in range(20)]
    assert max(side.any(0).sum() for side in sides) == 225  # both ends are covered
    with pytest.raises(InputError, match="crop, flip, cutout, randaugment"):
        data.transform(32, ("mixup",))


def test_the_index_holds_no_python_objects(tmp_path):
    (tmp_path / "train.csv").write_text(
        "image,x\n" + "".join(f"some/longer/folder/{i:06}.jpg,1\n" for i in range(20000)))
    index = load("csv", tmp_path, check=False)
    assert index.paths.dtype == np.dtypes.StringDType() and index.targets.nbytes == 20000
    assert pickle.loads(pickle.dumps(index)).paths[7] == index.paths[7]


def test_table(tmp_path, capsys):
    write_csv(tmp_path, "image,cat,dog\na.jpg,1,0\nb.jpg,1,-1\n")
    assert check.main(["--data", "csv", "--root", str(tmp_path)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("csv train: 2 images, 2 classes, 1.00 labels per image")
    assert [line.split() for line in lines[2:4]] == [["cat", *"200"], ["dog", *"011"]]
    assert lines[-1].startswith("missing images: 0")
    assert "no positive image: cat" not in "".join(lines)


def write_lists(root, kind):
    """The published form: a path and label numbers a line; the last line break may be missing."""
    (root / "longtail").mkdir(exist_ok=True)
    (root / f"longtail/{kind}_labels.txt").write_text("person 0\ntraffic light 1 \ncat 2")
    (root / f"longtail/{kind}_lt_train.txt").write_text("x/a.jpg 0 2 \nx/b.jpg 1")
    (root / f"longtail/{kind}_lt_test.txt").write_text("x/c.jpg 1\nx/a.jpg\n")
    for name in "abc":
        write_image(root / f"x/{name}.jpg")


def test_published_lists(tmp_path, monkeypatch):
    with pytest.raises(InputError, match="coco_labels.txt is missing.*--download"):
        load("coco-lt", tmp_path)
    write_lists(tmp_path, "coco")
    train, test = load("coco-lt", tmp_path), load("coco-lt", tmp_path, "test")
    assert train.classes == ["person", "traffic light", "cat"] and len(test) == 2
    assert train.targets.tolist() == [[1, 0, 1], [0, 1, 0]]
    assert test.targets.tolist() == [[0, 1, 0], [0, 0, 0]]
    (tmp_path / "longtail/coco_lt_train.txt").write_text("x/a.jpg 0\nx/b.jpg 3\n")
    with pytest.raises(InputError, match="coco_lt_train.txt.*row 2: no such label: {.3.}"):
        load("coco-lt", tmp_path)
    for labels in ("person 0\ndog 1\ncat 1\n", "person 1\ncat 2\n"):
        (tmp_path / "longtail/coco_labels.txt").write_text(labels)
        with pytest.raises(InputError, match="coco_labels.txt.*counted from 0"):
            load("coco-lt", tmp_path)
    (tmp_path / "published").mkdir()
    write_lists(tmp_path / "published", "voc")
    (tmp_path / "published/longtail").rename(tmp_path / "published/voc")
    monkeypatch.setattr(longtail, "LISTS", f"file://{tmp_path}/published")
    with pytest.raises(InputError, match="invalid hash"):
        load("voc-lt", tmp_path, download=True)
    for file in (tmp_path / "published/voc").iterdir():
        monkeypatch.setitem(longtail.SHA256, file.name, hashlib.sha256(file.read_bytes()).hexdigest())
    assert len(load("voc-lt", tmp_path, download=True)) == 2


@pytest.mark.parametrize("name, train, test, most, least, sizes", [
    ("coco-lt", 1909, 5000, 1128, 6, (22, 33, 25)), ("voc-lt", 1142, 4952, 775, 4, (6, 6, 8))])
def test_lists_have_the_published_counts(name, train, test, most, least, sizes):
    root = HERE.parent.parent / "shared/data"
    if not (root / "longtail").is_dir():
        pytest.skip("no published lists here")
    index = load(name, root, check=False)
    counts = (index.targets == 1).sum(0)
    assert (len(index), counts.max(), counts.min()) == (train, most, least)
    parts = head_medium_tail(counts)
    assert tuple(len(parts[part]) for part in ("head", "medium", "tail")) == sizes
    index = load(name, root, "test", check=False)
    assert len(index) == test and (name == "voc-lt" or (index.targets.sum(1) == 0).sum() == 48)


def test_groups():
    parts = head_medium_tail([19, 20, 99, 100, 3])
    assert {name: list(part) for name, part in parts.items()} == {
        "head": [3], "medium": [1, 2], "tail": [0, 4]}


def test_long_tail():
    plain, tail = load("scenes"), load("scenes", long_tail=10)
    counts = np.sort((tail.targets == 1).sum(0))[::-1]
    rank = np.arange(1, 21)
    assert 6 < counts[0] / counts[-1] < 15 and len(tail) < len(plain)
    shape = counts[0] * rank ** (-np.log(10) / np.log(20))
    assert (abs(counts - shape) <= 0.12 * shape + 2).all()
    assert np.array_equal(tail.paths, load("scenes", long_tail=10).paths)
    assert len(load("scenes", split="test", long_tail=10)) == 1000
    row = np.flatnonzero(plain.paths == tail.paths[5])[0]  # images keep their labels
    assert np.array_equal(plain.targets[row], tail.targets[5])
    parts = head_medium_tail((load("scenes-lt").targets == 1).sum(0))
    assert [len(parts[part]) for part in ("head", "medium", "tail")] == [4, 12, 4]
    with pytest.raises(InputError, match="--long-tail"):
        load("scenes", long_tail=0.5)


def test_nuswide_published_lists(tmp_path, capsys):
    (tmp_path / "ImageList").mkdir()
    labels = tmp_path / "Groundtruth/TrainTestLabels"
    labels.mkdir(parents=True)
    values = {"sun": "0\n1\n0\n", "airport": "1\n1\n0\n", "sunset": "0\n0\n1\n"}
    for part in ("Train", "Test"):
        (tmp_path / f"ImageList/{part}Imagelist.txt").write_bytes(
            b"actor\\0001_1.jpg \r\nactor\\0002_2.jpg \r\nzoo\\0003_3.jpg \r\n")
        for name, text in values.items():
            (labels / f"Labels_{name}_{part}.txt").write_text(text)
    write_image(tmp_path / "Flickr/actor/0001_1.jpg")
    write_image(tmp_path / "Flickr/zoo/0003_3.jpg")
    nus = load("nuswide", tmp_path)
    assert nus.classes == ["airport", "sun", "sunset"]  # by name, not by file name
    assert nus.targets.tolist() == [[1, 0, 0], [0, 0, 1]] and nus.image(1).shape == (3, 40, 50)
    assert "1 of 3 images are MISSING" in capsys.readouterr().err
    for name, text in (("sun", "0\n0\n0\n"), ("airport", "1\n0\n0\n")):  # the second: no label
        (labels / f"Labels_{name}_Train.txt").write_text(text)
    assert len(load("nuswide", tmp_path)) == 2 and "MISSING" not in capsys.readouterr().err
    for name in ("sun", "airport"):
        (labels / f"Labels_{name}_Train.txt").write_text(values[name])
    for broken, message in (("0\n1\n", "Labels_sun_Test.*2 rows"), ("1\n", "Labels_sun_Test.*1 rows"),
                            ("0\n2\n1\n", "Labels_sun_Test.*row 2")):
        (labels / "Labels_sun_Test.txt").write_text(broken)
        with pytest.raises(InputError, match=message):
            load("nuswide", tmp_path, "test")


def test_nuswide_csv(tmp_path, capsys):
    (tmp_path / "nus_wid_data.csv").write_text(
        "filepath,label,split_name\nimages/1_1.jpg,\"['sky', 'clouds']\",train\n"
        "images/2_2.jpg,['sun'],val\nimages/3_3.jpg,['sky'],train\n")
    for name in ("1_1", "2_2"):
        write_image(tmp_path / f"images/{name}.jpg")
    train, test = load("nuswide", tmp_path), load("nuswide", tmp_path, "test")
    assert train.classes == test.classes == ["clouds", "sky", "sun"]
    assert train.targets.tolist() == [[1, 1, 0]] and test.targets.tolist() == [[0, 0, 1]]
    assert "NUS-WIDE train: 1 of 2 images" in capsys.readouterr().err


def test_vg500(tmp_path):
    (tmp_path / "train_list_500.txt").write_text("1.jpg\n2.jpg\n")
    (tmp_path / "vg_category_500_labels_index.json").write_text('{"1.jpg": [0, 499], "2.jpg": []}')
    write_image(tmp_path / "VG_100K/1.jpg")
    write_image(tmp_path / "VG_100K_2/2.jpg")
    vg = load("vg500", tmp_path)
    assert len(vg.classes) == 500 and np.flatnonzero(vg.targets[0]).tolist() == [0, 499]
    assert vg.targets[1].sum() == 0 and vg.image(1).shape == (3, 40, 50)
    for text, message in (('{"1.jpg": [0]}', "'2.jpg' is missing or unknown"), ('{"1.jpg": [500], "2.jpg": []}', "500"),
                          ('{"1.jpg": [-1], "2.jpg": []}', "row 1"),
                          ('{"1.jpg": [true], "2.jpg": []}', "row 1")):
        (tmp_path / "vg_category_500_labels_index.json").write_text(text)
        with pytest.raises(InputError, match=message):
            load("vg500", tmp_path)


def test_wider(tmp_path):
    people = [{"bbox": [10, 5, 20, 30], "attribute": [1, -1, 0] + [-1] * 11},
              {"bbox": [-3.2, 20.1, 10, 90], "attribute": [0] * 13 + [1]}]
    (tmp_path / "wider_attribute_annotation").mkdir()
    for split in ("trainval", "test"):
        (tmp_path / f"wider_attribute_annotation/wider_attribute_{split}.json").write_text(
            json.dumps({"images": [{"file_name": "train/0--Parade/a.jpg", "targets": people}]}))
    write_image(tmp_path / "Image/train/0--Parade/a.jpg")
    train, test = load("wider", tmp_path), load("wider", tmp_path, "test")
    assert len(train) == 2 and len(train.classes) == 14
    assert train.targets.tolist() == [[1] + [0] * 13, [0] * 13 + [1]]
    assert test.targets.tolist() == [[1, 0, -1] + [0] * 11, [-1] * 13 + [1]]
    whole = read_image(f"{tmp_path}/Image/train/0--Parade/a.jpg")
    assert torch.equal(train.image(0), whole[:, 5:35, 10:30])
    # from -3.2 to 6.8 and 20.1 to 110.1: both ends rounded, black outside
    padded = torch.zeros(3, 90, 10, dtype=torch.uint8)
    padded[:, :20, 3:] = whole[:, 20:, :7]
    assert torch.equal(train.image(1), padded)
    train.paths[1] = train.paths[1].replace("-3,20", "90,20")
    with pytest.raises(InputError, match="a.jpg: its box 90,20"):
        train.image(1)
    (tmp_path / "Image/train/0--Parade/a.jpg").unlink()
    with pytest.raises(InputError, match="2 of 2 .*a.jpg::10,5,20,30 first"):
        load("wider", tmp_path)
    content = {"images": [{"file_name": "x.jpg", "targets": [{"bbox": [1, 2, 3], "attribute": [2]}]}]}
    (tmp_path / "wider_attribute_annotation/wider_attribute_test.json").write_text(
        json.dumps(content))
    with pytest.raises(InputError, match="wider_attribute_test.json"):
        load("wider", tmp_path, "test")
