"""tools/plot.py: what is drawn is what the log says."""
import json
import re
import sys

import pytest
from PIL import Image

import train
from lib.errors import InputError
from tools import plot


def write_log(folder, losses, *, lr=0.1, result=None):
    """The log of a run with these losses; its mAP is 10 x the epoch."""
    folder.mkdir(parents=True)
    lines = [{"settings": {"model": "csra"}}]
    for epoch, loss in enumerate(losses, 1):
        lines.append({"epoch": epoch, "loss": loss, "lr": lr / epoch, "mAP": 10 * epoch})
    if result is not None:
        lines.append(result)
    (folder / "log.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return str(folder)


@pytest.fixture
def figures(monkeypatch):
    """The figures that are saved. Skips the test where matplotlib is missing."""
    figure = pytest.importorskip("matplotlib.figure").Figure
    saved, savefig = [], figure.savefig

    def save(self, *args, **options):
        saved.append(self)
        savefig(self, *args, **options)
    monkeypatch.setattr(figure, "savefig", save)
    return saved


def drawn(figure):
    """For each of the three axes, its label and the values of each line."""
    return [(axes.get_ylabel(), [[*line.get_ydata()] for line in axes.lines]) for axes in figure.axes]


def legend(axes_or_figure):
    return [text.get_text() for text in axes_or_figure.get_texts()]


def test_a_run_is_drawn(tmp_path, figures, capsys):
    for split in ("train", "test"):
        for n in range(4):
            Image.new("RGB", (9, 9), (60 * n, 0, 0)).save(tmp_path / f"{split}{n}.png")
        rows = "".join(f"{split}{n}.png,1,{n % 2}\n" for n in range(4))
        (tmp_path / f"{split}.csv").write_text(f"image,a,b\n{rows}")
    out = tmp_path / "OUT"
    train.main(["--model", "csra", "--data", "csv", "--root", str(tmp_path), "--backbone",
                "test_resnet", "--no-pretrained", "--batch-size", "2", "--epochs", "2", "--workers", "0",
                "--image-size", "32", "--out", str(out)])
    plot.main([str(out)])
    lines = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()][1:3]
    expected = [("training loss", "loss"), ("mAP on test (%)", "mAP"),
                ("learning rate, end of epoch", "lr")]
    assert drawn(figures[0]) == [(label, [[line[name] for line in lines]]) for label, name in expected]
    assert figures[0].axes[2].get_xlabel() == "epoch"
    assert legend(figures[0].legends[0]) == ["OUT"]
    with Image.open(out / "plot.png") as image:
        assert image.format == "PNG" and min(image.size) > 500
    assert f"written to {out / 'plot.png'}" in capsys.readouterr().out


def test_losses_of_another_scale_are_drawn_relative_to_the_first_epoch(tmp_path, figures):
    a = write_log(tmp_path / "a", [0.5, 0.25])
    b = write_log(tmp_path / "b", [300, 150, 75], lr=0.001)
    plot.main([a, b, "--out", str(tmp_path / "x.png")])
    (loss, losses), (_, scores), (rate, rates) = drawn(figures[0])
    assert "/ that of epoch 1" in loss and losses == [[1, 0.5], [1, 0.5, 0.25]]
    assert legend(figures[0].axes[0].get_legend()) == ["0.5", "300"]
    assert scores == [[10, 20], [10, 20, 30]]
    assert "/ its maximum" in rate and rates[1] == pytest.approx([1, 1 / 2, 1 / 3])
    plot.main([a, write_log(tmp_path / "c", [4, 3]), "--out", str(tmp_path / "x.png")])
    assert drawn(figures[1])[0] == ("training loss", [[0.5, 0.25], [4, 3]])


def test_val_and_test_are_named(tmp_path, figures):
    """An unfinished run has no result yet, but best.pt."""
    runs = [write_log(tmp_path / "a", [1], result={"mAP": 3, "best_mAP_on_val": 10}),
            write_log(tmp_path / "b", [1])]
    (tmp_path / "b/best.pt").touch()
    plot.main(runs)
    assert drawn(figures[0])[1] == ("mAP on val (%)", [[10], [10]])  # not 3, on test
    assert [tick for tick in figures[0].axes[2].get_xticks() if 0.9 < tick < 1.1] == [1]
    plot.main([*runs, write_log(tmp_path / "$c$/b", [1])])
    assert drawn(figures[1])[1][0] == "mAP on test and val (%)"
    names = [f"{tmp_path}/a: mAP on val", f"{tmp_path}/b: mAP on val",
             rf"{tmp_path}/\$c\$/b: mAP on test"]
    assert legend(figures[1].legends[0]) == names  # two folders are called b


@pytest.mark.parametrize("text, message", [
    (None, "is missing"), ("", "no epoch is complete yet"), ('{"settings": {}}\n', "no epoch"),
    ('{"settings": {}}\n{"epoch": 1, "lo', "log.jsonl: "), ("1\n", "log.jsonl: "), ("\xff", "utf-8"),
    ('{"epoch": 1, "loss": 1, "lr": 1}\n', "'mAP' is missing"),
    ('{"epoch": 1, "loss": [], "lr": 1, "mAP": 1}\n', "log.jsonl: ")])
def test_a_damaged_log_is_one_line(tmp_path, text, message):
    if text is not None:
        (tmp_path / "log.jsonl").write_text(text, "latin-1")
    with pytest.raises(InputError, match=message) as error:
        plot.read_run(tmp_path)
    assert str(error.value).startswith(str(tmp_path / "log.jsonl")) and "\n" not in str(error.value)


def test_where_matplotlib_is_missing_it_is_said(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(InputError, match="pip install matplotlib"):
        plot.main([write_log(tmp_path / "a", [1])])


def test_only_a_picture_is_written(tmp_path, figures, capsys):
    run = write_log(tmp_path / "a", [1])
    before = (tmp_path / "a/log.jsonl").read_text()
    with pytest.raises(InputError, match="log.jsonl: .*choose another --out"):
        plot.main([run, "--out", f"{run}/log.jsonl"])
    assert (tmp_path / "a/log.jsonl").read_text() == before
    with pytest.raises(InputError, match="choose another --out"):
        plot.main([run, "--out", str(tmp_path / "none/x.png")])
    with pytest.raises(SystemExit):
        plot.main([run, "--out", run])
    assert re.search("--out .*a: a file name", capsys.readouterr().err)
