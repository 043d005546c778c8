"""What one does with one's own images: weights from files, other classes, export, predictions."""
import json
import shutil

import numpy as np
import pytest
import timm
import torch
import torchvision
from conftest import run
from PIL import Image
from safetensors.torch import save_file
from test_odd import own
from test_train import log

import asl
import cprfl
import csra
import eval as evaluation
import q2l
import tools.released
import train
from data import InputError
from lib.checkpoint import save
from lib.models import build_model, load_backbone, load_matching, starting_model
from lib.settings import read_command_line
from readers import CLASSES, voc
from readers.images import read_image
from tools import convert, predict, thresholds
from tools.predict import open_checkpoint


def settings(*flags):
    return read_command_line(["--model", "csra", "--data", "csv", "--image-size", "64", *flags])


@pytest.mark.parametrize("name", ["r18.pth", "r18.safetensors", "tresnet.pth"])
def test_weights_of_a_backbone_from_a_file(name, tmp_path, capsys):
    """torchvision's names, with a classifier; TResNet's released ones."""
    if name == "tresnet.pth":
        backbone, first = "tresnet_m", "body.conv1.conv.weight"
        state = timm.create_model(backbone).state_dict()
        expected = state[first]
        state = {key.replace(".conv.", ".0.").replace(".bn.", ".1."): tensor
                 for key, tensor in state.items() if "num_batches" not in key}
    else:
        backbone, first = "resnet18", "conv1.weight"
        state = torchvision.models.resnet18().state_dict()
        expected = state[first]
    save_file(state, tmp_path / name) if "safe" in name else torch.save(state, tmp_path / name)
    method, s = settings("--backbone", backbone, "--weights", str(tmp_path / name))
    model = starting_model(method, s, ["a", "b"])
    assert torch.equal(model.backbone.state_dict()[first], expected)
    said = capsys.readouterr().out
    assert f"{name}: all tensors of the backbone" in said and "left over: [" in said and "fc" in said


def test_wrong_weights_are_one_error(tmp_path):
    torch.save(torchvision.models.resnet18().state_dict(), tmp_path / "r18.pth")
    torch.save({"odd": torch.ones(1)}, tmp_path / "odd.pth")
    (tmp_path / "junk.safetensors").write_bytes(b"junk")
    model = csra.build(["a"], backbone="resnet34", pretrained=False, image_size=64)
    for name in ("r18.pth", "odd.pth", "junk.safetensors", "lost.pth"):
        with pytest.raises(InputError, match=f"{name}.*backbone's weights"):
            load_backbone(model.backbone, str(tmp_path / name))


def test_class_names_that_are_numbers_need_other_text_features(tmp_path):
    """VG500's classes have no names in its files."""
    np.save(tmp_path / "features.npy", np.ones((2, 4), np.float32))
    flags = ["--model", "cprfl", "--data", "vg500", "--root", str(tmp_path), "--no-pretrained",
             "--backbone", "test_resnet", "--image-size", "64"]
    method, s = read_command_line(flags)
    with pytest.raises(InputError, match="the class names are numbers, 0 first, .*--text-features FILE"):
        build_model(method, s, ["0", "1"])
    for more in (["--text", "random"], ["--text-features", str(tmp_path / "features.npy")]):
        method, s = read_command_line([*flags, *more])
        build_model(method, s, ["0", "1"])


def test_init_from_other_classes(tmp_path, capsys):
    (tmp_path / "old").mkdir(), (tmp_path / "new").mkdir()
    train.main([*own(tmp_path / "old"), "--epochs", "1", "--out", str(tmp_path / "run")])
    file = str(tmp_path / "run/last.pt")
    stored = torch.load(file)["model"]
    _, s = settings("--backbone", "test_resnet", "--init", file)
    for classes, kept in ((["a", "b"], True), (["b", "a"], False), (["a", "b", "c"], False)):
        torch.manual_seed(1)
        model = csra.build(classes, backbone="test_resnet", pretrained=False, image_size=64)
        load_matching(model, s, classes)
        assert torch.equal(model.backbone.conv1[0].weight, stored["backbone.conv1.0.weight"])
        same = model.head.weight.shape == stored["head.weight"].shape and torch.equal(
            model.head.weight, stored["head.weight"])
        assert same == kept
        said = capsys.readouterr().out
        assert ("initialized: ['head.weight']" in said) != kept
        assert ("the same classes in another order, ['a', 'b'] first" in said) == (classes == ["b", "a"])
    model = csra.build(["a"], backbone="resnet18", pretrained=False, image_size=64)
    with pytest.raises(InputError, match="backbone.* does not fit"):
        load_matching(model, s, ["a"])
    s.model = "asl"
    with pytest.raises(InputError, match="is of csra, not asl"):
        load_matching(model, s, ["a"])
    train.main([*own(tmp_path / "new"), "--epochs", "1", "--init", file, "--out", str(tmp_path / "b")])
    assert "tensors are loaded" in capsys.readouterr().out


def test_init_of_q2l_from_more_classes(tmp_path):
    """From COCO to VOC: all but the label embeddings and the classifier is loaded."""
    options = {"backbone": "test_resnet", "pretrained": False, "image_size": 64, "d_model": 32,
               "ffn": 64, "self_attention": True}
    old = q2l.build([str(k) for k in range(80)], **options)
    new = q2l.build([str(k) for k in range(20)], **options)
    flags = ["--model", "q2l", "--data", "csv", "--root", str(tmp_path), "--backbone", "test_resnet"]
    _, s = read_command_line(flags)
    save({"settings": vars(s), "classes": [str(k) for k in range(80)], "model": old.state_dict(),
          "ema": None, "history": [], "class_counts": [], "fingerprints": {}}, tmp_path / "old.pt")
    s.init = str(tmp_path / "old.pt")
    load_matching(new, s, [str(k) for k in range(20)])
    stored, loaded = old.state_dict(), new.state_dict()
    different = [name for name in loaded if loaded[name].shape != stored[name].shape
                 or not torch.equal(loaded[name], stored[name])]
    assert different == ["head.query_embed", "head.W", "head.b"]


def test_init_takes_the_weights_that_the_run_reports(tmp_path):
    for report in ("ema", "raw"):
        out = tmp_path / report
        train.main([*own(tmp_path), "--epochs", "1", "--ema", "0.9", "--report", report, "--out",
                    str(out)])
        stored = torch.load(out / "last.pt")
        method, s = settings("--backbone", "test_resnet", "--init", str(out / "last.pt"))
        model = starting_model(method, s, ["a", "b"])
        expected = stored["ema"] if report == "ema" else stored["model"]
        assert torch.equal(model.head.weight, expected["head.weight"])
        assert not torch.equal(stored["ema"]["head.weight"], stored["model"]["head.weight"])


def released_csra(path, K=20, state=None):
    """A released file of CSRA, made by hand: a ResNet-18 and a head."""
    state = state or torchvision.models.resnet18().state_dict()
    state = {f"module.{name}": tensor for name, tensor in state.items() if not name.startswith("fc.")}
    state["module.classifier.multi_head.0.head.weight"] = torch.randn(K, 512, 1, 1)
    torch.save({"state_dict": state}, path)
    return state


def test_init_from_a_released_checkpoint(tmp_path):
    state = released_csra(tmp_path / "released.pth")
    convert.main(["--model", "csra", "--data", "voc2007", "--backbone", "resnet18", "--image-size", "64",
                  str(tmp_path / "released.pth"), str(tmp_path / "out")])
    method, s = settings("--backbone", "resnet18", "--init", str(tmp_path / "out/last.pt"))
    weight = state["module.classifier.multi_head.0.head.weight"][None, :, :, 0, 0]
    for classes, kept in ((voc.CLASSES, True), ([str(k) for k in range(20)], False)):
        model = starting_model(method, s, classes)
        assert torch.equal(model.backbone.conv1.weight, state["module.conv1.weight"])
        assert torch.equal(model.head.weight, weight) == kept


def test_init_keeps_the_text_features_of_this_run(tmp_path, capsys):
    flags = ["--model", "cprfl", *own(tmp_path)[2:], "--d-model", "32", "--ffn", "32"]
    np.save(tmp_path / "old.npy", np.ones((2, 16), np.float32))
    np.save(tmp_path / "new.npy", 2 * np.ones((2, 16), np.float32))
    train.main([*flags, "--text-features", str(tmp_path / "old.npy"), "--epochs", "1", "--out",
                str(tmp_path / "run")])
    method, s = read_command_line([*flags, "--text-features", str(tmp_path / "new.npy"), "--init",
                             str(tmp_path / "run/last.pt")])
    model = starting_model(method, s, ["a", "b"])
    assert (model.text_features == 2).all() and "initialized: []" in capsys.readouterr().out


def test_q2l_warns_of_frozen_random_weights_unless_a_file_replaces_them(tmp_path, capsys):
    flags = ["--model", "q2l", *own(tmp_path)[2:], "--d-model", "32"]
    for more, warns in (([], True), (["--weights", "w.pth"], False), (["--no-freeze"], False)):
        read_command_line([*flags, *more])
        assert ("--no-freeze, train them" in capsys.readouterr().err) == warns


def test_frozen_batchnorms_stay_as_the_file_has_them(tmp_path):
    flags = own(tmp_path)
    state = timm.create_model("test_resnet", num_classes=0).state_dict()
    norms = {name.rpartition(".")[0] for name in state if "running_mean" in name}
    state = {name: x + torch.rand_like(x) if name.rpartition(".")[0] in norms and x.is_floating_point()
             else x for name, x in state.items()}
    torch.save(state, tmp_path / "w.pth")
    flags = [*flags, "--weights", str(tmp_path / "w.pth"), "--freeze-bn", "--schedule", "step",
             "--lr", "1e-3", "--ema", "0.9", "--epochs", "2"]
    train.main([*flags, "--out", str(tmp_path / "whole")])
    whole = torch.load(tmp_path / "whole/last.pt")
    for kind in ("model", "ema"):
        for name, x in state.items():
            now = whole[kind][f"backbone.{name}"]
            assert torch.equal(now, x) == (name.rpartition(".")[0] in norms), name


def test_inputs_of_own_images_follow_the_checkpoint_of_init(tmp_path):
    train.main([*own(tmp_path), "--epochs", "1", "--mean", "0.1,0.2,0.3", "--std", "1,1,1", "--out",
                str(tmp_path / "run")])
    _, s = settings("--backbone", "test_resnet", "--init", str(tmp_path / "run/last.pt"))
    assert s.mean == (0.1, 0.2, 0.3) and s.std == (1, 1, 1)
    state = torch.load(tmp_path / "run/last.pt")
    torch.save(state | {"model": {"head.weight": 3}}, tmp_path / "odd.pt")
    method, s = settings("--backbone", "test_resnet", "--init", str(tmp_path / "odd.pt"))
    with pytest.raises(InputError, match="odd.pt: its weights are not tensors"):
        starting_model(method, s, ["a", "b"])


def test_inputs_of_own_images_follow_the_backbone():
    _, s = settings("--backbone", "tf_efficientnet_lite0.in1k")
    assert s.mean == s.std == (0.5, 0.5, 0.5)
    _, s = settings("--backbone", "resnet18.tv_in1k")
    assert s.mean == (0.485, 0.456, 0.406)
    _, s = settings("--backbone", "resnet18.tv_in1k", "--mean", "0,0,0", "--std", "1,1,1")
    assert s.mean == (0, 0, 0)
    _, s = settings("--backbone", "resnet18.tv_in1k", "--mean", "0,0,0")
    assert s.mean == (0, 0, 0) and s.std == (0.229, 0.224, 0.225)
    assert read_command_line(["--model", "csra", "--data", "voc2007"])[1].mean == (0, 0, 0)


def test_a_released_checkpoint_predicts_without_the_data_set(tmp_path, capsys):
    released_csra(tmp_path / "released.pth")
    Image.new("RGB", (90, 60), "red").save(tmp_path / "photo.jpg")
    flags = ["--backbone", "resnet18", "--image-size", "64", str(tmp_path / "released.pth")]
    convert.main(["--model", "csra", "--data", "voc2007", *flags, str(tmp_path / "out")])
    capsys.readouterr()
    file = str(tmp_path / "out/last.pt")
    checkpoint = torch.load(file)
    checkpoint["settings"]["amp"] = "off"  # so that tools.predict has the float32 of the model below
    torch.save(checkpoint, file)
    predict.main(["--checkpoint", file, str(tmp_path / "photo.jpg"), "--threshold", "0", "--json"])
    labels = json.loads(capsys.readouterr().out)["labels"]
    assert labels.keys() == set(voc.CLASSES)
    net, classes, transform = open_checkpoint(file)
    scores = net(transform(Image.open(tmp_path / "photo.jpg"))[None]).sigmoid()[0]
    assert labels == pytest.approx(dict(zip(classes, scores.tolist())), abs=1e-4)
    assert CLASSES["coco2014"][79] == "toothbrush" and len(CLASSES["wider"]) == 14
    for model_and_data, message in (
            (["--model", "csra"], "--model and --data must say"),
            (["--model", "csra", "--data", "coco2014"], "it does not fit: check --data"),
            (["--model", "q2l", "--data", "voc2007"], "released.pth: .*authors of q2l"),
            (["--model", "asl", "--data", "voc2007"], "released.pth: .*authors of asl")):
        with pytest.raises(InputError, match=message):
            convert.main([*model_and_data, *flags, str(tmp_path / "other")])
    with pytest.raises(InputError, match="out: .*File exists"):
        convert.main(["--model", "csra", "--data", "voc2007", *flags, str(tmp_path / "out")])
    for wrong, message in ((["--std", "0,0,0"], "--std above 0"), (["--image-size", "0"], "at least 1")):
        with pytest.raises(SystemExit):
            convert.main(["--model", "csra", "--data", "voc2007", *flags, str(tmp_path / "x"), *wrong])
        assert message in capsys.readouterr().err and not (tmp_path / "x").exists()


def test_a_converted_checkpoint_has_an_absolute_root(tmp_path, monkeypatch):
    released_csra(tmp_path / "released.pth")
    monkeypatch.chdir(tmp_path)
    convert.main(["--model", "csra", "--data", "voc2007", "--backbone", "resnet18", "--image-size", "64",
                  "--root", "here", "released.pth", "out"])
    assert torch.load("out/last.pt")["settings"]["root"] == str(tmp_path / "here")


def test_a_released_checkpoint_for_classes_that_are_in_a_folder(tmp_path):
    released_csra(tmp_path / "csra.pth", K=2)
    (tmp_path / "longtail").mkdir()
    (tmp_path / "longtail/voc_labels.txt").write_text("cat 0\ndog 1\n")
    (tmp_path / "longtail/voc_lt_test.txt").write_text("a.jpg 1\n")
    convert.main(["--model", "csra", "--data", "voc-lt", "--root", str(tmp_path), "--backbone",
                  "resnet18", str(tmp_path / "csra.pth"), str(tmp_path / "out")])
    _, classes, _ = open_checkpoint(tmp_path / "out/last.pt")
    assert classes == ["cat", "dog"]


def test_convert_reads_a_cprfl_checkpoints_shapes(tmp_path):
    options = {"backbone": "resnet26", "pretrained": False, "image_size": 64, "heads": 8, "tau": 0.25,
               "d_model": 32, "head_dim": 12, "ffn": 48, "text_features": torch.randn(20, 16)}
    model = cprfl.build(voc.CLASSES, **options).eval()
    names = dict(zip(cprfl_names().values(), cprfl_names()))
    state = {}
    for name, tensor in model.state_dict().items():
        for here, released in names.items():
            if name.startswith(f"{here}."):
                state[released + name.removeprefix(here)] = tensor
    torch.save({"state_dict": state}, tmp_path / "cprfl.pth")
    np.save(tmp_path / "text.npy", model.text_features.numpy())
    argv = ["--model", "cprfl", "--data", "voc2007", "--backbone", "resnet26", "--image-size", "64",
            str(tmp_path / "cprfl.pth"), str(tmp_path / "out")]
    with pytest.raises(InputError, match="cprfl.pth holds no text tower"):
        convert.main(argv)  # its text features would be random
    convert.main([*argv, "--text-features", str(tmp_path / "text.npy")])
    (tmp_path / "text.npy").unlink()  # the checkpoint has them
    net, _, _ = open_checkpoint(tmp_path / "out/last.pt")
    images = torch.randn(1, 3, 64, 64)
    torch.testing.assert_close(net(images), model(images))


def cprfl_names():
    from tools.released import CPRFL_NAMES
    return CPRFL_NAMES


def test_three_lines_of_python_are_what_eval_predicts(tmp_path, capsys):
    train.main([*own(tmp_path), "--epochs", "1", "--ema", "0.9", "--out", str(tmp_path / "run")])
    capsys.readouterr()
    model, classes, transform = open_checkpoint(tmp_path / "run/last.pt")
    image = Image.open(tmp_path / "test0.png")
    scores = model(transform(image)[None]).sigmoid()[0]
    predict.main(["--checkpoint", str(tmp_path / "run/last.pt"), "--threshold", "0", "--json",
                  str(tmp_path / "test0.png")])
    labels = json.loads(capsys.readouterr().out)["labels"]
    assert labels == pytest.approx(dict(zip(classes, scores.tolist())), abs=1e-4)


def test_the_transform_treats_an_image_as_eval_does(tmp_path):
    train.main([*own(tmp_path), "--epochs", "1", "--out", str(tmp_path / "run")])
    _, _, transform = open_checkpoint(tmp_path / "run/last.pt")
    values, exif = np.random.default_rng(0).integers(0, 65536, (6, 9), np.uint16), Image.Exif()
    exif[0x0112] = 6  # to be turned clockwise
    Image.fromarray(values).save(tmp_path / "deep.png", exif=exif)
    Image.fromarray((values >> 8).astype(np.uint8)).convert("RGB").save(tmp_path / "turned.png",
                                                                        exif=exif)
    for name in ("deep.png", "turned.png"):
        upright = read_image(f"{tmp_path}/{name}", upright=True)
        assert upright.shape == (3, 9, 6)
        image = Image.fromarray(upright.permute(1, 2, 0).numpy())
        assert torch.equal(transform(Image.open(tmp_path / name)), transform(image)), name


@pytest.mark.parametrize("method, more", [
    (csra, {"heads": 4}), (q2l, {"d_model": 32, "ffn": 32}), (asl, {}),
    (cprfl, {"text_features": torch.ones(2, 16), "d_model": 32, "ffn": 32})])
def test_export_with_a_dynamic_batch_size(method, more):
    model = method.build(["a", "b"], backbone="test_resnet", pretrained=False, image_size=64,
                         **more).eval()
    batch = torch.export.Dim("batch")
    program = torch.export.export(model, (torch.randn(3, 3, 64, 64),), dynamic_shapes=({0: batch},))
    for count in (1, 5):
        images = torch.randn(count, 3, 64, 64)
        torch.testing.assert_close(program.module()(images), model(images))


@pytest.mark.slow
def test_weights_from_the_command_line(tmp_path):
    flags = own(tmp_path)
    with pytest.raises(SystemExit, match="is a folder: a file with this backbone"):
        train.main([*flags, "--weights", str(tmp_path), "--out", str(tmp_path / "other")])
    state = timm.create_model("test_resnet").state_dict()
    torch.save(state, tmp_path / "w.pth")
    text = run("train.py", *flags, "--epochs", 1, "--weights", tmp_path / "w.pth", "--out",
               tmp_path / "run")
    assert "are loaded" in text and np.isfinite(log(tmp_path / "run")[-1]["mAP"])


def test_a_third_split_chooses_the_epoch_and_the_thresholds(tmp_path, capsys, monkeypatch):
    flags = own(tmp_path)
    shutil.copy(tmp_path / "test.csv", tmp_path / "val.csv")
    scores = iter((30.0, 50.0, 50.0, 40.0, 77.0))
    plain, seen = train.summary, []

    def summary(found, dataset, class_counts):
        seen.append(dataset)
        return plain(found, dataset, class_counts) | {"mAP": next(scores)}
    monkeypatch.setattr(train, "summary", summary)
    train.main([*flags, "--epochs", "4", "--out", str(tmp_path / "run")])
    lines, best = log(tmp_path / "run"), torch.load(tmp_path / "run/best.pt")
    assert len(best["history"]) == 2 and len(torch.load(tmp_path / "run/last.pt")["history"]) == 4
    assert [line["mAP"] for line in lines[1:]] == [30, 50, 50, 40, 77]
    assert lines[-1]["best_epoch_on_val"] == 2 and lines[-1]["checkpoint"].endswith("best.pt")
    assert lines[-1]["best_mAP_on_val"] == 50 and "weights of epoch 2" in capsys.readouterr().out
    assert [dataset is seen[0] for dataset in seen] == [True] * 4 + [False]  # test: once
    shutil.copytree(tmp_path / "run", tmp_path / "copy")
    resume = ["--model", "csra", "--resume", "--out", str(tmp_path / "copy")]
    (tmp_path / "copy/best.pt").unlink()
    with pytest.raises(SystemExit, match="best.pt is missing"):
        train.main(resume)
    (tmp_path / "val.csv").rename(tmp_path / "gone.csv")
    with pytest.raises(SystemExit, match="the val split has changed"):
        train.main(resume)
    (tmp_path / "gone.csv").rename(tmp_path / "val.csv")
    thresholds.main(["--checkpoint", str(tmp_path / "run/best.pt"), "--workers", "0", "--split", "val",
                     "--per-class"])
    assert "best F1 on val" in capsys.readouterr().out
    evaluation.main(["--checkpoint", str(tmp_path / "run/best.pt"), "--workers", "0", "--split", "val",
                     "--threshold", str(tmp_path / "run/best.class_thresholds.json")])
    assert "csv val: 16 images" in capsys.readouterr().out


def test_the_result_has_no_figure_of_val(tmp_path):
    """Class a is medium, b is tail; b is positive in val and unknown in test."""
    flags = own(tmp_path, "image,a,b\n" + "".join(f"train{i}.png,1,{i % 2}\n" for i in range(24)),
                "image,a,b\n" + "".join(f"test{i}.png,{i % 2},\n" for i in range(24)), count=24)
    text = (tmp_path / "test.csv").read_text()
    (tmp_path / "val.csv").write_text(text.replace(",\n", ",1\n"))
    train.main([*flags, "--epochs", "1", "--long-tail", "1", "--out", str(tmp_path / "run")])
    _, epoch, result = log(tmp_path / "run")
    assert "tail" in epoch and "medium" in result and "tail" not in result


def test_a_model_is_evaluated_on_a_data_set_that_has_its_classes_by_name(tmp_path, capsys):
    flags = own(tmp_path)
    train.main([*flags, "--epochs", "1", "--out", str(tmp_path / "run")])
    header, *rows = (tmp_path / "test.csv").read_text().splitlines()
    _, *names = header.split(",")
    (tmp_path / "wider").mkdir()
    (tmp_path / "wider/test.csv").write_text("\n".join(
        ",".join([tmp_path.as_posix() * (n > 0) + "/" * (n > 0) + path, "cat" if n == 0 else "1",
                  *values[::-1]]) for n, (path, *values) in enumerate(
                      row.split(",") for row in (header, *rows))))
    shutil.copy(tmp_path / "wider/test.csv", tmp_path / "wider/train.csv")
    tables = []
    for root in (tmp_path, tmp_path / "wider"):
        evaluation.main(["--checkpoint", str(tmp_path / "run/last.pt"), "--workers", "0", "--root",
                         str(root), "--out", str(tmp_path / "table.json")])
        tables.append(json.loads((tmp_path / "table.json").read_text()))
    assert tables[0] == tables[1] and list(tables[1]["classes"]) == names
    assert f"only the model's {len(names)} of {len(names) + 1} classes" in capsys.readouterr().err


@pytest.mark.parametrize("train_csv", [False, True])
@pytest.mark.parametrize("text, error", [
    ("image,labels\n{0}/test0.png,c;a\n{0}/test1.png,\n", None),
    ("image,a,c\n{0}/test0.png,1,1\n{0}/test1.png,0,0\n", "lacks 1 classes of the model .*'b'")])
def test_names_in_a_test_file_alone_may_lack_classes_of_the_model(tmp_path, train_csv, text, error):
    train.main([*own(tmp_path), "--epochs", "1", "--out", str(tmp_path / "run")])
    (tmp_path / "alone").mkdir()
    for name in ("test", "train")[:1 + train_csv]:
        (tmp_path / f"alone/{name}.csv").write_text(text.format(tmp_path))
    loaded = evaluation.Evaluation(tmp_path / "run/last.pt", workers=0)
    if error or train_csv:  # train.csv says which classes there are
        with pytest.raises(InputError, match=error or "lacks 1 classes of the model .*'b'"):
            loaded.load("test", root=str(tmp_path / "alone"))
        return
    dataset = loaded.load("test", root=str(tmp_path / "alone"))
    assert dataset.classes == ["a", "b"] and dataset.targets.tolist() == [[1, 0], [0, 0]]
    assert loaded.logits(dataset).shape == (2, 2)


def test_frozen_batchnorms_need_batchnorm():
    method, s = settings("--backbone", "test_convnext", "--freeze-bn")
    with pytest.raises(InputError, match="test_convnext has no BatchNorm"):
        starting_model(method, s, ["a"], load_weights=False)


def test_what_is_no_released_checkpoint_is_a_value_error():
    for name in ("csra", "q2l", "cprfl", "asl", "nonesuch"):
        for state in ({}, {"conv1.weight": torch.ones(1)}, {"model": 3}, {3: torch.ones(1)}):
            with pytest.raises(ValueError, match=name) as error:
                tools.released.convert(name, state)
            assert "TensorList" not in str(error.value)
