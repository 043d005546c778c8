"""README is true: marks of equations, sizes, examples, flags, figures."""
import json
import re
import shutil

import pytest
import results
from conftest import HERE, run

import asl
import q2l

ROOT = HERE.parent
README = (ROOT / "README.md").read_text("utf-8")
EXAMPLES = re.findall(r"```python\n(.*?)```", README, re.DOTALL)


@pytest.mark.parametrize("name, figures", [("csra", ["1"]), ("q2l", []), ("cprfl", []), ("asl", [])])
def test_each_equation_has_its_mark(name, figures):
    """The equations of a file's header, the marks in its code, and README's table are the same."""
    text = (ROOT / f"{name}.py").read_text("utf-8")
    header, code = text.split('"""', 2)[1:]
    equations = re.findall(r"^    Eq\. (\d+) ", header, re.MULTILINE)
    marks = [number for group in re.findall(r"# Eq\. ([\d, ]*\d)", code) for number in group.split(", ")]
    assert len(equations) >= 4 and sorted(marks) == sorted(set(marks)) == sorted(equations)
    assert re.findall(r"# Fig\. (\d)", code) == figures
    table = README[README.index("| equation |"):README.index("## Your own images")]
    rows = re.split(r"\[(\w+)\.py\]", table)
    named = re.findall(r"`Eq\. (\d)`", rows[rows.index(name) + 1])
    assert sorted(named) == sorted(equations)


@pytest.mark.slow
@pytest.mark.parametrize("code", EXAMPLES, ids=[re.search(r"from (\w+) ", code)[1]
                                                for code in EXAMPLES])
def test_a_file_alone_does_what_its_example_says(code, tmp_path):
    name = re.search(r"from (csra|q2l|cprfl|asl) import", code)[1]
    shutil.copy(ROOT / f"{name}.py", tmp_path)
    shapes = re.findall(r"(\w+) = .*# .*?(\(\d+(?:, \d+)+\))", code)
    checks = "".join(f"\nassert {what}.shape == {shape}, {what}.shape" for what, shape in shapes)
    (tmp_path / "example.py").write_text(code + checks)
    run("example.py", cwd=tmp_path)


@pytest.mark.slow
def test_commands_and_linked_files_exist():
    """Flags of the commands in README are flags of the programs; linked files are there."""
    texts = {"eval.py": run("eval.py", "--help")}
    for tool in ("check", "split", "predict", "thresholds", "convert", "voc_server", "plot"):
        texts[f"-m tools.{tool}"] = run("-m", f"tools.{tool}", "--help")
    for model in ("csra", "q2l", "cprfl", "asl"):
        texts[f"{model}.py"] = texts[f"train.py --model {model}"] = run(f"{model}.py", "--help")
    texts["train.py"] = texts["csra.py"]  # the default
    commands = re.findall(r"(?:python|torchrun \S+) (-m tools\.\w+|(?:train|eval|csra|q2l|cprfl|asl)\.py"
                          r"(?: --model \w+)?)([^`\n]*)", README)
    assert len(commands) > 20
    for program, flags in commands:
        text = texts["eval.py" if program.startswith("eval") else program]
        for flag in re.findall(r"--[a-z][a-z-]+", flags):
            assert flag in text, f"{program} {flag}"
    for file in re.findall(r"\]\((tests/[^)]+)\)", README):
        assert (ROOT / file).is_file(), file


def test_the_structure_is_that_of_the_tree():
    table = README[README.index("| where | what |"):README.index("## Citation")]
    named = set(re.findall(r"`([\w/]+(?:\.py)?)`", table))
    there = {file.name for file in ROOT.glob("*.py")} | {
        f"{file.parent.name}/" for file in ROOT.glob("*/*.py") if not file.parent.name.startswith(".")}
    assert named == there
    row = re.search(r"^\| `tools/` \| programs: (.*) \|$", table, re.MULTILINE)[1]
    programs = {file.stem for file in ROOT.glob("tools/*.py") if "__main__" in file.read_text("utf-8")}
    assert set(row.split(", ")) == programs


LOGGED = {  # row of "What to expect": (run in the public logs, our method, data set)
    "Q2L, ResNet-101, COCO 2014, 448 px": ("q2l r101 448 coco, batch 128", q2l, "coco2014"),
    "Q2L, `--backbone resnet101.tv2_in1k`": (
        "q2l r101 (V2 weights, by the name of the run) 448 coco", q2l, "coco2014"),
    "Q2L, ResNet-101, 576 px": ("q2l r101 576 coco", q2l, "coco2014"),
    "Q2L, TResNet-L, 448 px": ("q2l tresnet_l 448 coco", q2l, "coco2014"),
    "Q2L, TResNet-L 22k, 448 px": ("q2l tresnet_l 22k 448 coco", q2l, "coco2014"),
    "Q2L, ResNet-101, NUS-WIDE": ("q2l r101 448 nuswide", q2l, "nuswide"),
    "Q2L, TResNet-L, NUS-WIDE": ("q2l tresnet_l 448 nuswide", q2l, "nuswide"),
    "Q2L, TResNet-L 22k, VG500, 576 px": ("q2l tresnet_l 22k 576 vg500", q2l, "vg500"),
    "Q2L, TResNet-L, VOC 2007, from COCO": (
        "q2l tresnet_l 448 voc2007, started from coco", q2l, "voc2007"),
    "ASL, TResNet-L, COCO 2014, 448 px": ("asl tresnet_l 448 coco", asl, "coco2014")}
OTHER_AVERAGE = {  # another decay, and another schedule, than those of our recipe
    "Q2L, ResNet-101, 576 px", "ASL, TResNet-L, COCO 2014, 448 px"}
PLAIN = {  # row: (run, how far its last five epochs are from the best, at most)
    "plain ResNet-101, max pooling, COCO 2014, 448 px": (
        "plain r101 (V1) max pooling 448 coco", 0.1),
    "plain ResNet-101, newer weights (`resnet101.tv2_in1k`), COCO 2014, 448 px": (
        "plain r101 (V2) max pooling 448 coco", 0.1),
    "plain ResNet-101, average pooling, VOC 2007": (
        "plain r101 (V1) average pooling 448 voc2007", 0.2)}


def logged(name, weights):
    """The mAP after each epoch of a run in the public logs."""
    file = ROOT.parent / "shared/logs/public_logs.json"
    if not file.is_file():
        pytest.skip("no public logs here")
    return json.loads(file.read_text())["runs"][name][f"mAP_{weights}"]


def expected(row):
    """The cells of a row of "What to expect", after the first; the best mAP and its epoch."""
    cells = re.search(rf"^\| {re.escape(row)} \|(.*)$", README, re.MULTILINE)[1].split("|")
    return cells, float(cells[1].split()[0]), int(cells[2])


@pytest.mark.parametrize("row", LOGGED)
def test_what_to_expect_is_what_the_logs_say(row):
    name, method, data = LOGGED[row]
    curve = logged(name, "ema")
    cells, best, epoch = expected(row)
    assert (best, epoch) == (max(curve), curve.index(max(curve)) + 1)
    recipe = method.RECIPES[data]
    if row in OTHER_AVERAGE:
        assert cells[3].strip() == "-"
    else:
        assert float(cells[3]) == curve[recipe["epochs"] - 1] and not recipe["ema_warmup"]
    if method == asl:
        assert f"({curve[39]} after epoch 40, the last)" in cells[1] and len(curve) == 40


@pytest.mark.parametrize("row", PLAIN)
def test_what_to_expect_of_a_plain_resnet_is_what_the_logs_say(row):
    name, distance = PLAIN[row]
    curve = logged(name, "raw")
    cells, best, epoch = expected(row)
    assert (best, epoch) == (max(curve), curve.index(max(curve)) + 1)
    assert best - min(curve[-5:]) <= distance + 1e-9
    assert cells[3].strip() == f"last epochs: within {distance} of the best"


def test_figures_are_those_of_the_runs():
    pages = [page.read_text("utf-8") for page in results.PAGES]
    for lines in filter(None, (make() for make in results.TABLES)):  # the speed may be missing
        assert any("\n".join(lines) + "\n" in page for page in pages), lines[0]
    parity = results.KEPT[f"python {results.PARITY}"]
    for name in ("csra", "q2l", "cprfl", "asl"):
        row = re.search(rf"^\| `{name}\.py` .*$", README, re.MULTILINE)[0]
        short = {key: f"{value:.0e}".replace("e-0", "e-") for key, value in parity.items()
                 if isinstance(value, float) and key.split(",")[0] == name}
        training = short.get(f"{name}, training", "-")
        assert f"| {short[name]} | {training} |" in row
        command = next(command for command in results.SCENES if command.startswith(name))
        assert row.endswith(f"| {results.KEPT[f'{command} --seed 0']['mAP']:.1f} |")
