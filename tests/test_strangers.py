"""Data as people have it: lists with other separators, merged files, turned photographs, odd paths."""
import json
import os
import struct
import time
import tracemalloc
import zlib

import numpy as np
import pytest
import torch
from conftest import default_settings
from PIL import Image, ImageOps
from test_data import coco_matrix, write_csv, write_image, write_lists, write_voc
from test_odd import own

import data
import eval as evaluation
import train
from data import InputError, load
from readers import images, own_images
from readers.images import box_of, read_image
from readers.longtail import long_tailed
from tools import check

# ------------------------------------------------------------------------------ lists of label names


def write_labels(root, fields):
    """train.csv and test.csv with a column `labels`: one field per image."""
    rows = [f'{i}.jpg,"{field}"\n' for i, field in enumerate(fields)]
    for split in ("train", "test"):
        (root / f"{split}.csv").write_text("image,labels\n" + "".join(rows))
    return root


@pytest.mark.parametrize("between", [" ", "  ", "/", " / ", "+", "&", " & ", ":", "-", "_", ".", "\\",
                                     "#", "~", "·", "•", "\u3000", ",", ", ", "|", "\n", "\r\n",
                                     "\t", "，", "；", "、", "\u2028"])
def test_a_list_of_labels_with_another_separator_is_refused(tmp_path, between):
    fields = ["scab", f"scab{between}complex", "complex", "rust"]
    with pytest.raises(InputError, match="train.csv: row 3: .*scab.*semicolons.*one column per label"):
        load("csv", write_labels(tmp_path, fields), check=False)


@pytest.mark.parametrize("fields", [
    ["16", "0", "3", "16 0 3"], ["hot dog", "cat", "hot dog cat"], ["a", "b", "B A"],
    ["frog_eye_leaf_spot", "complex", "frog_eye_leaf_spot complex"], ["C++", "Java", "C++/Java"],
    ["tv/monitor", "cat", "cat tv/monitor"], ["a;b", "a/b"], ["cat", "dog", "cat and", "and", "cat and dog"],
    ["{cat}"], ["['cat']"], ["cat;[dog]"]])
def test_a_name_that_consists_of_other_names_is_a_list(tmp_path, fields):
    with pytest.raises(InputError, match=r"train.csv: row \d: .*semicolons"):
        load("csv", write_labels(tmp_path, fields), check=False)


def test_names_that_occur_once_and_consist_of_recurring_words_are_lists(tmp_path):
    rng = np.random.default_rng(0)
    for between in (" ", "/", "_"):
        fields = {between.join(str(k) for k in rng.choice(12, size=3, replace=False))
                  for _ in range(40)}
        with pytest.raises(InputError, match="row 2: .* occurs only once.*semicolons"):
            load("csv", write_labels(tmp_path, sorted(fields)), check=False)


@pytest.mark.parametrize("fields, classes", [
    (["hot dog;cat", "tv/monitor", "dog", "traffic light;hot dog", "light rail"],
     ["cat", "dog", "hot dog", "light rail", "traffic light", "tv/monitor"]),
    (["red circle", "red square", "blue circle", "blue square"] * 3,
     ["blue circle", "blue square", "red circle", "red square"]),
    (["animal", "animal/dog", "animal/cat"], ["animal", "animal/cat", "animal/dog"]),
    (["coffee;table", "coffee table", "cat-furniture;cat", "furniture"],
     ["cat", "cat-furniture", "coffee", "coffee table", "furniture", "table"]),
    (["1", "1.5", "2", "5"], ["1", "1.5", "2", "5"]), (["C", "C++", "C#"], ["C", "C#", "C++"]),
    (["T-shirt;shirt", "long sleeves"], ["T-shirt", "long sleeves", "shirt"]),
    ([f"a very long name, as of a file {i}".replace(",", "") for i in range(30)], None),
    (["Abyssinian cat", "Bengal cat", "Birman cat", "Bombay cat", "Egyptian Mau", "Maine Coon",
      "Basset Hound", "Great Pyrenees", "German Shorthaired", "Russian Blue", "Shiba Inu"], None),
    (["N/A", "none", "nan bread"], ["N/A", "nan bread", "none"]), (["cat;", ";dog", " "], ["cat", "dog"])])
def test_names_with_spaces_and_slashes_are_names(tmp_path, fields, classes):
    found = load("csv", write_labels(tmp_path, fields), check=False)
    assert found.classes == (classes or sorted(fields))
    assert found.targets.sum() == sum(len(set(field.split(";")) - {"", " "}) for field in fields)


@pytest.mark.parametrize("text", ["nan", "NaN", "NAN", "<NA>", "None", "null", "#N/A", "cat;nan"])
def test_a_field_without_a_value_makes_no_class(tmp_path, text):
    with pytest.raises(InputError, match="train.csv: row 3: .*no label: leave the field .* empty"):
        load("csv", write_labels(tmp_path, ["cat", text]), check=False)
    (tmp_path / "train.csv").write_text("image,nan,cat dog,cat,dog\na.jpg,1,0,1,\n")  # the way out
    assert load("csv", tmp_path, check=False).classes == ["nan", "cat dog", "cat", "dog"]


def test_labels_that_are_all_empty(tmp_path):
    with pytest.raises(InputError, match="train.csv: the column `labels` is empty in each row"):
        load("csv", write_labels(tmp_path, ["", " ", ";"]), check=False)


# -------------------------------------------------------------------------------------------- rows


@pytest.mark.parametrize("content, message", [
    (b"image,a,b\nx.png,1,0\n,,\n", "row 3: no image"),
    (b"image,a,b,,\nx.png,1,0,,\n", "row 1: .*column 4 has no name"),
    (b"image,a,b\nx.png,1,0,,\n", "row 2: 5 fields, but the header has 3"),
    (b'image,a,b\nx.png,1,0\n"y.png,1,0\nz.png,1,1\n', "row 3: .*quotes"),
    (b'image,a,b\nx.png,1,0\n"y.png"z,1,0\n', "row 3: .*quotes"),
    (b'image,a,b\nx.png,1,0\n"' + 40000 * b"y.png,1,0\n", "row 3: .*quotes"),
    (b"image,a,b\nx.png,1,0\n" + 2000 * b"\n" + "é.png,1,0\n".encode("latin-1"), "row 2003 .*UTF-8"),
    ("image,a,b\nx.png,1,0\n".encode("utf-16"), "row 1 is not in UTF-8"),
    ("image,a,é\nx.png,1,0\n".encode("cp1252"), "row 1 is not in UTF-8")])
def test_a_row_that_cannot_be_read_is_named(tmp_path, content, message):
    for split in ("train", "test"):
        (tmp_path / f"{split}.csv").write_bytes(content)
    with pytest.raises(InputError, match=f"train.csv: {message}"):
        load("csv", tmp_path, check=False)


@pytest.mark.parametrize("second", ["./a.jpg", "x/../a.jpg", "{0}/a.jpg", ".//a.jpg", " a.jpg "])
def test_an_image_has_one_row_however_its_path_is_spelled(tmp_path, second, monkeypatch):
    write_csv(tmp_path, f"image,x\na.jpg,1\n{second.format(tmp_path)},0\n")
    monkeypatch.chdir(tmp_path)
    for root in (tmp_path, "."):
        with pytest.raises(InputError, match="row 3: .*a.jpg has two rows"):
            load("csv", root)


@pytest.mark.parametrize("box, message", [
    ("1,2,3", "row 3: the box 1,2,3 is not four numbers"), ("1,2,3,4,5", "row 3: .*four numbers"),
    ("1,2,x,4", "row 3: .*four numbers"), ("1;2;3;4", "row 3: .*four numbers"), ("", "row 3: .*four"),
    ("1,2,0,4", "row 3: .*no area"), ("1,2,3,-4", "row 3: .*no area"), ("1,2,nan,4", "row 3: .*no area"),
    ("inf,2,3,4", "row 3: .*no area"), ("1,1,10,10.0", "row 3: .*has two rows")])
def test_boxes_are_checked_when_the_file_is_read(tmp_path, box, message):
    write_csv(tmp_path, f'image,x\n"a.jpg::1,1,10,10",1\n"a.jpg::{box}",1\n')
    with pytest.raises(InputError, match=f"train.csv: {message}"):
        load("csv", tmp_path)


def test_boxes_with_decimals_are_rounded_outward(tmp_path):
    assert box_of("1.5,2.25,20,20") == (1, 2, 21, 21)
    assert box_of("-1.5, 2, 3.5, 1e1") == (-2, 2, 4, 10)
    write_csv(tmp_path, 'image,x\n"a.jpg::1.5,2.25,20,20",1\n')
    expected = read_image(f"{tmp_path}/a.jpg")[:, 2:23, 1:22]
    assert torch.equal(load("csv", tmp_path).image(0), expected)


def test_a_box_is_measured_in_the_turned_image(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    write_csv(tmp_path, 'image,x\n"t.jpg::3,4,20,30",1\n')
    write_image(tmp_path / "t.jpg", size=(60, 40), exif=exif)
    whole = read_image(f"{tmp_path}/t.jpg", upright=True)
    assert whole.shape == (3, 60, 40)
    assert torch.equal(load("csv", tmp_path).image(0), whole[:, 4:34, 3:23])


def test_a_validation_file_with_another_name_is_mentioned(tmp_path, capsys):
    for name in ("valid", "dev"):
        write_csv(tmp_path, "image,x\na.jpg,1\n")
        (tmp_path / f"{name}.csv").write_text("image,x\nb.jpg,1\n")
        load("csv", tmp_path)
        said = capsys.readouterr().err
        assert f"{name}.csv is not read: " in said and "rename it val.csv\n" in said
        (tmp_path / f"{name}.csv").unlink()
    (tmp_path / "val.csv").write_text("image,x\nb.jpg,1\n")
    load("csv", tmp_path)
    assert not capsys.readouterr().err


# ------------------------------------------------------------------------------------- large files


def test_many_classes_load_in_seconds(tmp_path):
    names = [f"label number {k}" for k in range(9605)]
    fields = [";".join(names[i % 9605:i % 9605 + 4]) for i in range(20000)]
    begin = time.process_time()
    assert load("csv", write_labels(tmp_path, fields), check=False).targets.shape == (20000, 9605)
    assert time.process_time() - begin < 6  # 1.6 s; a set of all names for each row: 18 s


def test_the_rows_of_train_csv_are_not_parsed_for_another_split(tmp_path, monkeypatch):
    write_csv(tmp_path, "image,a,b\na.jpg,1,0\n", "image,b,a\nb.jpg,1,0\n")
    read = []
    plain = own_images.read_table

    def read_table(file, root):
        read.append(file.name)
        return plain(file, root)
    monkeypatch.setattr(own_images, "read_table", read_table)
    load("csv", tmp_path)
    test = load("csv", tmp_path, "test")
    assert read == ["train.csv", "test.csv"] and test.targets.tolist() == [[0, 1]]


def test_a_table_takes_little_memory(tmp_path):
    row = ",".join("01"[k % 2] for k in range(80))
    text = f"image,{','.join(f'c{k}' for k in range(80))}\n"
    text += "".join(f"{i}.jpg,{row}\n" for i in range(20000))
    (tmp_path / "train.csv").write_text(text)
    tracemalloc.start()
    load("csv", tmp_path, check=False)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 20 * 2 ** 20  # bytes; with a list of ints for each row: 24 MiB or more


# ------------------------------------------------------------------------------------------- COCO


def coco_content(first=1):
    """Two images of a cat, two of a dog."""
    return {"images": [{"id": first + i, "file_name": f"{first}_{i}.jpg"} for i in range(4)],
            "categories": [{"id": 1, "name": "cat"}, {"id": 2, "name": "dog"}],
            "annotations": [{"image_id": first + i, "category_id": 1 + i % 2} for i in range(4)]}


def write_coco(root, content, name="train2017"):
    (root / "annotations").mkdir(exist_ok=True)
    (root / f"annotations/instances_{name}.json").write_text(json.dumps(content))


def test_merged_coco_files(tmp_path):
    one, two = coco_content(), coco_content(first=5)
    merged = {**one, "images": one["images"] + two["images"],
              "annotations": one["annotations"] + two["annotations"]}
    write_coco(tmp_path, merged)
    assert load("coco2017", tmp_path, check=False).targets.sum(0).tolist() == [4, 4]
    for image in merged["images"][4:]:
        image["id"] -= 4
    write_coco(tmp_path, merged)
    for program in (lambda: load("coco2017", tmp_path, check=False),
                    lambda: check.main(["--data", "coco2017", "--root", str(tmp_path)])):
        with pytest.raises(InputError, match="instances_train2017.json: two images have the id 1, "
                                             "the second is 5_0.jpg: .*number the images anew"):
            program()


@pytest.mark.parametrize("image, message", [
    ({"id": 1, "file_name": "1_0.jpg"}, "two images have the id 1"),
    ({"id": 9, "file_name": "1_0.jpg"}, "image 5, 1_0.jpg, is image 1 already"),
    ({"id": 9, "file_name": "./1_0.jpg"}, "image 5, ./1_0.jpg, is image 1 already"),
    ({"id": 9, "file_name": None}, "image 9 has the file_name null")])
def test_an_image_is_listed_once_in_coco(tmp_path, image, message):
    content = coco_content()
    content["images"].append(image)
    write_coco(tmp_path, content)
    with pytest.raises(InputError, match=f"instances_train2017.json: {message}"):
        load("coco2017", tmp_path, check=False)


def test_the_classes_of_two_coco_files_are_matched_by_name(tmp_path, capsys):
    """The second file numbers its categories in another order."""
    one, two = coco_content(), coco_content(first=5)
    two["categories"] = [{"id": 1, "name": "dog"}, {"id": 2, "name": "cat"}]
    two["annotations"].pop()  # a cat
    for content, name in ((one, "train2017"), (two, "val2017")):
        write_coco(tmp_path, content, name)
        for image in content["images"]:
            write_image(tmp_path / name / image["file_name"])
    settings = default_settings(data="coco2017", root=str(tmp_path))
    splits = data.load_splits(settings)
    assert splits["test"].classes == splits["train"].classes == ["cat", "dog"]
    names, matrix = coco_matrix(two)
    assert names == ["dog", "cat"] and splits["test"].targets.tolist() == [row[::-1] for row in matrix]
    check.main(["--data", "coco2017", "--root", str(tmp_path)])
    lines = capsys.readouterr().out.splitlines()
    assert [line.split() for line in lines if line.startswith("  dog")] == [["dog", *"220"]] * 2
    two["categories"][1]["name"] = "Cat"
    write_coco(tmp_path, two, "val2017")
    for program in (lambda: data.load_splits(settings),
                    lambda: check.main(["--data", "coco2017", "--root", str(tmp_path)])):
        with pytest.raises(InputError, match=r"coco2017 test in .*lacks \['cat'\], .*\['Cat'\]"):
            program()


# ------------------------------------------------------------------------------------- other lists


def test_lists_with_a_byte_order_mark(tmp_path):
    folder = write_voc(tmp_path) / "VOCdevkit/VOC2007/ImageSets/Main"
    write_lists(tmp_path, "coco")
    before = load("voc2007", tmp_path), load("coco-lt", tmp_path)
    for file in [*folder.glob("*.txt"), *tmp_path.glob("longtail/*.txt")]:
        file.write_bytes(b"\xef\xbb\xbf" + file.read_bytes())
    for found, expected in zip((load("voc2007", tmp_path), load("coco-lt", tmp_path)), before):
        assert found.classes == expected.classes and (found.paths == expected.paths).all()


def test_a_list_in_another_encoding_names_the_row(tmp_path):
    write_lists(tmp_path, "coco")
    (tmp_path / "longtail/coco_lt_train.txt").write_bytes("x/a.jpg 0\nx/é.jpg 1\n".encode("latin-1"))
    with pytest.raises(InputError, match="coco_lt_train.txt: row 2 is not in UTF-8"):
        load("coco-lt", tmp_path)


def test_an_image_twice_in_each_list_of_voc(tmp_path):
    folder = write_voc(tmp_path) / "VOCdevkit/VOC2007/ImageSets/Main"
    for file in folder.glob("*_trainval.txt"):
        file.write_text(file.read_text() + "000000 1\n")
    with pytest.raises(InputError, match="aeroplane_trainval.txt: image 3, 000000, is image 1 already"):
        load("voc2007", tmp_path)


def test_an_image_twice_in_a_long_tailed_list(tmp_path):
    write_lists(tmp_path, "coco")
    (tmp_path / "longtail/coco_lt_train.txt").write_text("x/a.jpg 0\nx/b.jpg 1\n./x/a.jpg 2\n")
    with pytest.raises(InputError, match="coco_lt_train.txt: image 3, ./x/a.jpg, is image 1 already"):
        load("coco-lt", tmp_path)


def test_names_of_two_words_in_nuswide_csv(tmp_path):
    file = tmp_path / "nus_wid_data.csv"
    text = ("filepath,label,split_name\n1.jpg,\"['hot dog', 'sky']\",train\n"
            "2.jpg,\"[\"\"hot dog\"\", \"\"cow's milk\"\"]\",train\n3.jpg,['sky' 'cow'],train\n4.jpg,[],train\n")
    file.write_text(text)
    for name in "1234":
        write_image(tmp_path / f"{name}.jpg")
    found = load("nuswide", tmp_path)
    assert found.classes == ["cow", "cow's milk", "hot dog", "sky"]
    assert found.targets.tolist() == [[0, 0, 1, 1], [0, 1, 1, 0], [1, 0, 0, 1], [0] * 4]
    for label in ("hot dog", "[sky]", "'sky; cow"):
        file.write_text(text.replace("[]", label))
        with pytest.raises(InputError, match="nus_wid_data.csv: row 5: .*not a list"):
            load("nuswide", tmp_path)


def test_a_label_file_that_nuswide_lacks_in_both_parts(tmp_path, capsys):
    labels = tmp_path / "Groundtruth/TrainTestLabels"
    labels.mkdir(parents=True)
    (tmp_path / "ImageList").mkdir()
    for part in ("Train", "Test"):
        (tmp_path / f"ImageList/{part}Imagelist.txt").write_text("a\\1.jpg\n")
        for k in range(81):
            (labels / f"Labels_c{k:02}_{part}.txt").write_text("1\n")
    write_image(tmp_path / "Flickr/a/1.jpg")
    assert len(load("nuswide", tmp_path).classes) == 81 and not capsys.readouterr().err
    for part in ("Train", "Test"):
        (labels / f"Labels_c07_{part}.txt").unlink()
    load("nuswide", tmp_path)
    assert "80 label files Labels_*_Train.txt" in capsys.readouterr().err


# ------------------------------------------------------------------------------------------- images

BYTE, SHORT, LONG = 1, 3, 4
XMP = b'<x:xmpmeta><rdf:Description tiff:Orientation="%d"/></x:xmpmeta>'


def exif_block(orientation, kind=SHORT, order=">", mark=b"Exif\0\0"):
    """An EXIF block with the orientation alone, stored as `kind`."""
    value = {BYTE: struct.pack("BBBB", orientation, 0, 0, 0), LONG: struct.pack(order + "I", orientation),
             SHORT: struct.pack(order + "HH", orientation, 0)}[kind]
    head = {">": b"MM", "<": b"II"}[order] + struct.pack(order + "HI", 42, 8)
    return mark + head + struct.pack(order + "HHHI", 1, 0x0112, kind, 1) + value + bytes(4)


def xmp_block(orientation):
    return b"http://ns.adobe.com/xap/1.0/\0" + XMP % orientation


def jpeg_with(file, *blocks):
    """A JPEG file, (40, 60) pixels, with these APP1 blocks, in this order."""
    write_image(file, size=(60, 40))
    whole = file.read_bytes()
    segments = b"".join(b"\xff\xe1" + struct.pack(">H", len(block) + 2) + block for block in blocks)
    file.write_bytes(whole[:2] + segments + whole[2:])
    return file


@pytest.mark.parametrize("blocks, turned", [
    ([exif_block(6)], True), ([exif_block(6, order="<")], True), ([exif_block(6, BYTE)], False), ([exif_block(6, BYTE, "<")], False),
    ([exif_block(6, LONG)], True), ([exif_block(6, LONG, "<")], True), ([xmp_block(6)], True),
    ([xmp_block(1), exif_block(6)], True), ([exif_block(6), xmp_block(1)], True),
    ([exif_block(1), xmp_block(6)], False), ([exif_block(6, mark=b"Exif\0\xff")], False),
    ([exif_block(0)], False), ([exif_block(9)], False), ([b"Exif\0\0junk"], False), ([b"Exif\0\0"], False)])
def test_a_photograph_is_turned_as_pillow_turns_it(tmp_path, blocks, turned, monkeypatch):
    file = jpeg_with(tmp_path / "a.jpg", *blocks)
    image = Image.open(file)
    if b"Exif\0\0junk" not in blocks:  # Pillow raises an error
        image = ImageOps.exif_transpose(image)
    expected = torch.from_numpy(np.array(image.convert("RGB"))).permute(2, 0, 1)
    assert expected.shape == ((3, 60, 40) if turned else (3, 40, 60))
    found = read_image(str(file), upright=True)
    assert torch.equal(found, expected)
    assert torch.equal(images.to_tensor(Image.open(file), upright=True), expected)
    assert read_image(str(file)).shape == (3, 40, 60)
    monkeypatch.setattr(images, "decode_jpeg", None)
    assert torch.equal(read_image(str(file), upright=True), found)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("name", ["a.jpg", "a.png", "a.webp", "a.tif"])
def test_each_orientation(tmp_path, name, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    options = {"lossless": True} if name == "a.webp" else {}
    write_image(tmp_path / name, size=(60, 40), exif=exif, **options)
    image = ImageOps.exif_transpose(Image.open(tmp_path / name)).convert("RGB")
    assert np.array_equal(read_image(f"{tmp_path}/{name}", upright=True).permute(1, 2, 0), image)


def test_a_turned_photograph_is_decoded_by_the_fast_decoder(tmp_path, monkeypatch):
    file = jpeg_with(tmp_path / "a.jpg", exif_block(6))
    called = []
    plain = images.decode_jpeg
    monkeypatch.setattr(images, "decode_jpeg", lambda content: called.append(1) or plain(content))
    read_image(str(file), upright=True)
    assert called == [1]


def png_16(path, values, color_type):
    """A PNG file with 16 bits: gray (0), RGB (2), gray and alpha (4), RGBA (6). values (H, W, C)."""
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)
    parts = [(b"IHDR", struct.pack(">IIBBBBB", values.shape[1], values.shape[0], 16, color_type, 0, 0, 0)),
             (b"IDAT", zlib.compress(rows)), (b"IEND", b"")]
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))
        for name, content in parts))


@pytest.mark.parametrize("color_type, channels", [(0, 1), (2, 3), (4, 2), (6, 4)])
def test_16_bits_of_which_only_12_are_used_are_a_problem(tmp_path, color_type, channels, capsys):
    write_csv(tmp_path, "image,x\na.png,1\nb.png,1\nc.jpg,0\n", "image,x\nother.jpg,1\n")
    write_image(tmp_path / "other.jpg")
    for bits, problems in ((12, 1), (14, 1), (8, 1), (16, 0)):
        for name, seed in (("a.png", 0), ("b.png", 1)):
            values = np.random.default_rng(seed).integers(0, 2 ** bits, (8, 8, channels), np.uint16)
            values[0, 0] = 2 ** bits - 1
            if color_type >= 4:
                values[:, :, -1] = 65535  # opaque
            png_16(tmp_path / name, values, color_type)
        assert check.main(["--data", "csv", "--root", str(tmp_path), "--verify"]) == (problems > 0)
        text = capsys.readouterr().out
        assert f"problems: {problems}\n" in text
        assert ("train: 2 images with 16 bits use only a part of their range" in text) == (problems > 0)
        assert (f"a.png (at most {max(2 ** bits - 1, 255)} of 65535)" in text) == (problems > 0)


@pytest.mark.parametrize("name", ["a.tif", "a.png"])
def test_16_bit_files_of_other_formats_are_found(tmp_path, name):
    Image.fromarray(np.full((4, 4), 4095, np.uint16)).save(tmp_path / name)
    write_image(tmp_path / "b.png")
    write_image(tmp_path / "c.jpg")
    assert images.has_16_bits(f"{tmp_path}/{name}") and images.has_16_bits(f"{tmp_path}/{name}::0,0,2,2")
    assert not images.has_16_bits(f"{tmp_path}/b.png") and not images.has_16_bits(f"{tmp_path}/c.jpg")
    assert not images.has_16_bits("scene:0/0")


def test_what_is_transparent_is_white(tmp_path):
    pixels = np.array([[[200, 0, 0, 0], [200, 0, 0, 255], [200, 0, 0, 51]]], np.uint8)
    rgba = Image.fromarray(pixels)
    expected = [[255, 255, 255], [200, 0, 0], [244, 204, 204]]
    for name in ("a.png", "a.webp", "a.tif"):
        rgba.save(tmp_path / name, **({"lossless": True, "exact": True} if name == "a.webp" else {}))
        assert read_image(f"{tmp_path}/{name}")[:, 0].T.tolist() == expected
    gray = Image.fromarray(np.array([[[7, 0], [7, 255]]], np.uint8))
    gray.save(tmp_path / "gray.png")
    palette = Image.fromarray(np.array([[0, 1]], np.uint8), "P")
    palette.putpalette([200, 0, 0, 7, 7, 7])
    palette.save(tmp_path / "palette.png", transparency=0)
    palette.save(tmp_path / "palette.gif", transparency=0)
    key = Image.fromarray(np.array([[[200, 0, 0], [7, 7, 7]]], np.uint8))
    key.save(tmp_path / "key.png", transparency=(200, 0, 0))
    for name in ("gray.png", "palette.png", "palette.gif", "key.png"):
        assert read_image(f"{tmp_path}/{name}")[:, 0].T.tolist() == [[255] * 3, [7] * 3], name


# -------------------------------------------------------------------------------------------- check


def test_links_that_lead_nowhere_are_missing(tmp_path, capsys):
    write_csv(tmp_path, "image,x\na.jpg,1\nlink.jpg,1\ngood.jpg,0\nfolder.jpg,0\n", "image,x\nb.jpg,1\n")
    (tmp_path / "link.jpg").symlink_to(tmp_path / "nowhere.jpg")
    (tmp_path / "good.jpg").symlink_to(tmp_path / "a.jpg")
    (tmp_path / "folder.jpg").mkdir()
    with pytest.raises(InputError, match="2 of 4 listed images are missing, .*link.jpg first"):
        load("csv", tmp_path)
    assert check.main(["--data", "csv", "--root", str(tmp_path)])
    text = capsys.readouterr().out
    assert "link.jpg is missing\n" in text and "folder.jpg is missing\n" in text
    assert "good.jpg is missing" not in text and "missing images: 2" in text


def test_verify_compares_all_pixels(tmp_path, capsys):
    """Two pictures that differ in one pixel have one thumbnail."""
    write_csv(tmp_path, "image,x\none.png,1\ntwo.png,0\ncopy.bmp,0\n", "image,x\na.jpg,1\n")
    pixels = np.full((400, 400, 3), 128, np.uint8)
    Image.fromarray(pixels).save(tmp_path / "one.png")
    Image.fromarray(pixels).save(tmp_path / "copy.bmp")
    pixels[7, 9] = 129
    Image.fromarray(pixels).save(tmp_path / "two.png")
    assert check.main(["--data", "csv", "--root", str(tmp_path), "--verify"])
    text = capsys.readouterr().out
    assert "problems: 1\n" in text and "two.png" not in text
    assert f"copy.bmp (train) has the same content as {tmp_path}/one.png (train), with" in text


def test_verify_keeps_little_of_each_image():
    """With 9,605 classes, 71 KiB for an image were 71 GiB for a million."""
    classes = [f"c{k}" for k in range(9605)]
    dataset = data.Dataset(classes, [f"scene:0/{i}" for i in range(40)], np.zeros((40, 9605), np.int8))
    seen = {}
    tracemalloc.start()
    before, _ = tracemalloc.get_traced_memory()
    assert check.verify(dataset, "train", seen) == [] and len(seen) == 40
    after, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert after - before < 40 * 2000


def test_a_test_file_alone_can_be_checked(tmp_path, capsys):
    (tmp_path / "test.csv").write_text("image,x\na.jpg,1\nlost.jpg,0\n")
    write_image(tmp_path / "a.jpg")
    with pytest.raises(InputError, match="lost.jpg first: `python -m tools.check --data csv --root"):
        load("csv", tmp_path, "test")
    assert check.main(["--data", "csv", "--root", str(tmp_path)])
    assert f"{tmp_path}/lost.jpg is missing\nmissing images: 1" in capsys.readouterr().out


def test_the_remedy_names_check_only_for_data_sets(tmp_path):
    (tmp_path / "my data").mkdir()
    write_csv(tmp_path / "my data", "image,x\na.jpg,1\n")
    dataset = load("csv", tmp_path / "my data")
    (tmp_path / "my data/a.jpg").write_bytes(b"junk")
    with pytest.raises(InputError, match="a.jpg: .*tools.check"):
        dataset.image(0)
    with pytest.raises(InputError, match="a.jpg: .*: replace or remove it$"):
        read_image(f"{tmp_path}/my data/a.jpg")
    (tmp_path / "my data/a.jpg").unlink()
    with pytest.raises(InputError, match=f"--root '{tmp_path}/my data'` lists all"):
        load("csv", tmp_path / "my data")


@pytest.mark.parametrize("classes", [["cat", "Cat"], ["caf\u00e9", "cafe\u0301"], ["hot dog", "hot_dog"],
                                     ["STRASSE", "stra\u00dfe"], ["cat", "c\u200bat"], ["\uff21", "a"],
                                     ["hot dog", "hot\u00a0\u00a0dog"]])
def test_names_that_look_alike_are_a_warning(tmp_path, classes, capsys):
    write_csv(tmp_path, f"image,{','.join(classes)},C,C++\na.jpg,1,0,1,0\nb.jpg,0,1,0,1\n")
    check.main(["--data", "csv", "--root", str(tmp_path)])
    text = capsys.readouterr().out
    assert f"warning: train: {classes} are 2 classes, but their names differ only in" in text
    assert text.count("differ only") == 2  # train and test; not C++


# ------------------------------------------------------------------------------------------- loading


def test_a_download_of_what_has_none(tmp_path):
    for name in ("csv", "wider"):
        with pytest.raises(InputError, match=f"--download of {name}: it can fetch only voc2007, .*by hand"):
            load(name, tmp_path, download=True)


def test_long_tail_says_the_ratio_and_empties_no_class(tmp_path, capsys):
    """Each image has the frequent class, so the rare ones are soon full of it."""
    rng = np.random.default_rng(0)
    targets = (rng.random((400, 6)) < [0.95, 0.5, 0.3, 0.2, 0.1, 0.01]).astype(np.int8)
    targets[:, 5] = 0
    targets[:3, 5] = targets[:3, 0] = 1
    rows = "".join(f"{i}.jpg,{','.join(map(str, row))}\n" for i, row in enumerate(targets))
    (tmp_path / "train.csv").write_text("image,a,b,c,d,e,f\n" + rows)
    for ratio in (2, 10, 100, 1000):
        found = load("csv", tmp_path, long_tail=ratio, check=False)
        counts = (found.targets == 1).sum(0)
        assert counts.min() >= 1
        text = capsys.readouterr().err
        assert f"--long-tail {ratio}: {len(found)} images, {counts.max()} of the most" in text
        assert f"the ratio is {counts.max() / counts.min():.3g}\n" in text
    with pytest.raises(ValueError, match="two classes"):
        long_tailed(np.ones((9, 1), np.int8), 10)
    (tmp_path / "train.csv").write_text("image,a\nx.jpg,1\n")
    with pytest.raises(InputError, match="--long-tail 10 of csv: .*two classes"):
        load("csv", tmp_path, long_tail=10, check=False)


def test_a_class_that_the_long_tail_would_empty_keeps_an_image():
    """The rare class occurs only beside full ones."""
    targets = np.zeros((60, 3), np.int8)
    targets[:40, 0] = targets[40:, 1] = 1
    targets[:2] = 1
    emptied = 0
    for ratio in (5, 20, 40, 60):
        keep = long_tailed(targets, ratio)
        counts = targets[keep].sum(0)
        emptied += counts[2] == 1
        assert counts.min() >= 1 and len(set(keep)) == len(keep) and (np.diff(keep) > 0).all()
    assert emptied > 0


@pytest.fixture
def trained_without_unlabelled(tmp_path):
    """A run with --drop-unlabelled, and other data: 20 rows, 12 without labels."""
    (tmp_path / "old").mkdir(), (tmp_path / "new").mkdir()
    text = "image,a,b\n" + "".join(f"test{i}.png,{i % 2},{int(i % 4 == 3)}\n" for i in range(16))
    train.main([*own(tmp_path / "old", test=text), "--drop-unlabelled", "--long-tail", "2", "--epochs", "1",
                "--out", str(tmp_path / "run")])
    rows = "".join(f"test{i}.png,{int(i % 5 == 1)},{int(i % 5 == 2)}\n" for i in range(20))
    own(tmp_path / "new", test="image,a,b\n" + rows, count=20)
    (tmp_path / "new/train.csv").unlink()
    return tmp_path


def test_other_data_counts_as_a_whole(trained_without_unlabelled):
    root = trained_without_unlabelled
    loaded = evaluation.Evaluation(root / "run/last.pt", workers=0)
    assert len(loaded.load("test")) == 8 and len(loaded.load("train")) < 16  # as in training
    (root / "link").symlink_to(root / "old")
    assert len(loaded.load("test", root=str(root / "link"))) == 8
    assert len(loaded.load("test", name="csv")) == 8
    other = loaded.load("test", root=str(root / "new"))
    assert [os.path.basename(path) for path in other.paths] == [f"test{i}.png" for i in range(20)]
    assert (other.targets == 1).any(1).sum() == 8
    evaluation.main(["--checkpoint", str(root / "run/last.pt"), "--workers", "0", "--root",
                     str(root / "new"), "--scores", str(root / "s.npz"), "--out", str(root / "t.json")])
    scores = np.load(root / "s.npz")
    assert scores["scores"].shape == (20, 2) and json.loads((root / "t.json").read_text())["images"] == 20
    expected = 100 * np.nanmean(evaluation.average_precision(scores["scores"], other.targets))
    assert json.loads((root / "t.json").read_text())["mAP"] == pytest.approx(expected)


def test_a_class_that_is_spelled_in_another_way_is_not_left_out(trained_without_unlabelled):
    root = trained_without_unlabelled
    (root / "new/test.csv").write_text("image,labels\ntest0.png,A\ntest1.png,b\n")
    loaded = evaluation.Evaluation(root / "run/last.pt", workers=0)
    with pytest.raises(InputError, match="the model's class 'a' is spelled 'A' there"):
        loaded.load("test", root=str(root / "new"))


def test_a_published_data_set_is_the_same_in_each_folder(tmp_path, monkeypatch):
    """Its recipe may leave out images without labels, wherever they lie."""
    seen = []
    loaded = evaluation.Evaluation.__new__(evaluation.Evaluation)
    loaded.settings = default_settings(data="coco2014", root="/old", drop_unlabelled=True)
    loaded.classes = ["a"]

    def load_one(name, root, split, **options):
        seen.append(options.get("drop_unlabelled", False))
        return data.Dataset(["a"], ["x.jpg"], np.ones((1, 1), np.int8))
    monkeypatch.setattr(evaluation, "load", load_one)
    for name, root in ((None, None), (None, "/new"), ("coco2017", "/old"), ("csv", "/old")):
        loaded.load("test", name, root)
    assert seen == [True, True, False, False]
