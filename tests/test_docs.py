"""README and docs/ are true: commands, examples, excerpts, links, equations, figures."""
import ast
import doctest
import importlib
import json
import re
import shutil
from pathlib import Path
from urllib.parse import unquote

import excerpts
import pytest
import results
from conftest import HERE, page_commands, run

import asl
import q2l
from lib.models import METHODS, import_method
from lib.settings import make_parser
from readers import READERS

ROOT = HERE.parent
PAGES = {str(page.relative_to(ROOT)): page.read_text("utf-8") for page in excerpts.pages()}
BLOCK = re.compile(r"^(?:<!-- (excerpt): [^\n]* -->\n\n?)?```python\n(.*?)^```$",
                   re.MULTILINE | re.DOTALL)
FENCED = re.compile(r"^( *)(```+).*?^\1\2 *$", re.MULTILINE | re.DOTALL)
every_page = pytest.mark.parametrize("page", PAGES)


def prose(text):
    """A page without its code: fenced and indented blocks, inline code."""
    text = re.sub(r"^ {4,}\S.*$", "", FENCED.sub("", text), flags=re.MULTILINE)
    return re.sub(r"(`+)[^`]+\1", "", text)


# ------------------------------------------------------------------------------------- the equations


def equations_of(name):
    """The numbers of the equations in the head of a method's file, and its code."""
    head, code = (ROOT / f"{name}.py").read_text("utf-8").split('"""', 2)[1:]
    return re.findall(r"^    Eq\. (\d+) ", head, re.MULTILINE), code


@pytest.mark.parametrize("name, figures", [("csra", ["1"]), ("q2l", []), ("cprfl", []), ("asl", [])])
def test_each_equation_has_its_mark(name, figures):
    """The equations of a file's head are those that its code marks."""
    equations, code = equations_of(name)
    marks = [number for group in re.findall(r"# Eq\. ([\d, ]*\d)", code) for number in group.split(", ")]
    assert len(equations) >= 4 and sorted(marks) == sorted(set(marks)) == sorted(equations)
    assert re.findall(r"# Fig\. (\d)", code) == figures


@pytest.mark.parametrize("name", [name for name in METHODS if f"docs/{name}.md" in PAGES])
def test_a_methods_page_has_its_equations(name):
    named = set()
    for numbers in re.findall(r"\bEqs?\. ?(\d+(?:(?:, | and | to )\d+)*)", PAGES[f"docs/{name}.md"]):
        for first, last in re.findall(r"(\d+)(?: to (\d+))?", numbers):
            named.update(range(int(first), int(last or first) + 1))
    assert {int(number) for number in equations_of(name)[0]} <= named


# ------------------------------------------------------------------------------------ code on a page


@every_page
def test_excerpts_are_what_the_source_says(page):
    assert excerpts.refreshed(page, PAGES[page]) == PAGES[page], "run python docs/excerpts.py"


@pytest.mark.parametrize("mark, message", [
    ("csra.py CSRAHead.forwad", "there is no CSRAHead.forwad"), ("no.py loss", "no file no.py"),
    ("csra.py 'no such text' .. 'x'", "no line has 'no such text'"),
    ("csra.py 'RECIPES = {' .. 'no such text'", "on has 'no such text'"),
    ("csra.py 'RECIPES", "No closing quotation"), ("csra.py a b", "must follow the file")])
def test_an_excerpt_that_does_not_exist_is_one_clear_line(mark, message):
    with pytest.raises(ValueError) as error:
        excerpts.refreshed("docs/a.md", f"<!-- excerpt: {mark} -->\n```python\n```\n")
    assert str(error.value).startswith(f"docs/a.md: excerpt: {mark}: ")
    assert message in str(error.value) and "\n" not in str(error.value)


def test_an_excerpt_without_a_block_is_an_error():
    with pytest.raises(ValueError, match="no ```python block follows"):
        excerpts.refreshed("a", "<!-- excerpt: csra.py loss -->\ntext\n```python\n```\n")


def test_excerpts_are_copied_and_dedented():
    """A function with its decorator, a method, and lines from one text to another."""
    source = "import a\n\n\nclass A:\n    @a.b\n    def c(self):\n        return 1\n\n    d = 2\n"
    assert excerpts.named(source, "A.c") == ["    @a.b", "    def c(self):", "        return 1"]
    assert excerpts.between(source, "def c", "d = ") == source.splitlines()[5:]
    text = "a\n<!-- excerpt: csra.py loss -->\n```python\n```\nb\n"
    new = excerpts.refreshed("a", text)
    assert new.startswith("a\n<!-- excerpt: csra.py loss -->\n```python\ndef loss(")
    assert new.endswith("\n```\nb\n") and excerpts.refreshed("a", new) == new


def doctests(text):
    """The lines of the doctests of a page; the other lines are empty, so that numbers are right."""
    lines = [""] * len(text.splitlines())
    for block in BLOCK.finditer(text):
        if ">>> " in block[2] and not block[1]:
            first = text.count("\n", 0, block.start(2))
            for i, line in enumerate(block[2].splitlines(), first):
                lines[i] = line
    return "\n".join(lines) + "\n"


def test_a_doctest_is_found_next_to_an_excerpt():
    block = "```python\n{}\n```\n"
    text = "<!-- excerpt: a.py b -->\n" + block.format("c") + "d\n" + block.format(">>> e\nf") + "g\n"
    assert doctests(text) == "\n" * 6 + ">>> e\nf\n\n\n"


@pytest.mark.parametrize("page", [page for page, text in PAGES.items() if doctests(text).strip()])
def test_doctests(page, monkeypatch):
    """All of a page in one go: a later block may use the names of an earlier one."""
    monkeypatch.chdir(ROOT)
    test = doctest.DocTestParser().get_doctest(doctests(PAGES[page]), {}, page, str(ROOT / page), 0)
    said = []
    runner = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE)
    runner.run(test, out=said.append)
    assert runner.summarize(verbose=False).failed == 0, "".join(said)


EXAMPLES = [pytest.param(block[2], id=f"{page}:{text.count(chr(10), 0, block.start(2)) + 1}")
            for page, text in PAGES.items() for block in BLOCK.finditer(text)
            if not block[1] and ">>> " not in block[2]]
ALONE = {*METHODS, "lib.metrics"}  # files that are meant to be copied


@pytest.mark.slow
@pytest.mark.parametrize("code", EXAMPLES)
def test_an_example_runs_in_a_folder_of_its_own(code, tmp_path, monkeypatch):
    """With the shapes that its comments say. Method files are copied next to it, without the rest."""
    modules = set()
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.ImportFrom):
            modules.add(node.module)
        elif isinstance(node, ast.Import):
            modules |= {alias.name for alias in node.names}
    here = {name for name in modules if (ROOT / f"{name.replace('.', '/')}.py").is_file()}
    if here <= ALONE:
        for name in here:
            file = Path(f"{name.replace('.', '/')}.py")
            (tmp_path / file).parent.mkdir(exist_ok=True)
            shutil.copy(ROOT / file, tmp_path / file)
    else:
        monkeypatch.setenv("PYTHONPATH", str(ROOT))
    shapes = re.findall(r"(\w+) = .*# .*?(\(\d+(?:, \d+)+\))", code)
    checks = "".join(f"\nassert {what}.shape == {shape}, {what}.shape" for what, shape in shapes)
    (tmp_path / "example.py").write_text(code + checks, "utf-8")
    run("example.py", cwd=tmp_path)


COMMANDS = page_commands()
OUTSIDE = {"pytest", "venv", "pip", "doctest"}  # modules that are not of this project


def parse_settings(words, capsys):
    """Words of train.py through the parser of its method. Placeholders have no value to check."""
    words = list(words)
    for flag, known in (("--model", METHODS), ("--data", None)):
        if flag in words and words[words.index(flag) + 1].isupper():
            i = words.index(flag)
            del words[i:i + 2]
    model = words[words.index("--model") + 1] if "--model" in words else "csra"
    assert model in METHODS
    words = ["1" if re.fullmatch("[A-Z]+", word) else word for word in words]
    try:
        make_parser(import_method(model)).parse_args(words)
    except SystemExit:
        pytest.fail(capsys.readouterr().err)


def help_of(module, words, capsys):
    with pytest.raises(SystemExit):
        importlib.import_module(module).main([*words, "--help"])
    return capsys.readouterr().out


@pytest.mark.parametrize("page, words", COMMANDS, ids=[" ".join(words) for _, words in COMMANDS])
def test_a_command_parses(page, words, capsys):
    """Its program is there and has its flags; those of training also have such values."""
    words = [word.strip("[]") for word in words if word not in ("...", "...]")]
    i = next(i for i, word in enumerate(words) if i > 0 and not word.startswith("--"))  # torchrun's
    module = None
    if words[i] == "-m":
        module, rest = words[i + 1], words[i + 2:]
        if module in OUTSIDE:
            return
        program = ROOT / f"{module.replace('.', '/')}.py"
    else:
        program, rest = ROOT / words[i], words[i + 1:]
    assert program.is_file(), f"{page}: {program.name}"
    flags = [word.split("=")[0] for word in rest if word.startswith("--")]
    if program == ROOT / "train.py":
        parse_settings(rest, capsys)
    elif program.parent == ROOT and program.stem in METHODS:
        parse_settings(["--model", program.stem, *rest], capsys)
    elif module == "tools.convert":
        text = help_of(module, rest[:rest.index("--data")], capsys)
        assert not [flag for flag in flags if not re.search(rf"{flag}\b(?!-)", text)]
    elif module or program == ROOT / "eval.py":
        text = help_of(module or "eval", [], capsys)
        assert not [flag for flag in flags if not re.search(rf"{flag}\b(?!-)", text)]
    else:  # tests/bench.py and the like: an argparse of their own
        text = program.read_text("utf-8")
        assert not [flag for flag in flags if f'"{flag}"' not in text]


# ----------------------------------------------------------------------- links, pictures, what stands


def anchors(text):
    """The anchors of a page's headings, as GitHub makes them."""
    found = []
    for heading in re.findall(r"^#+ (.+?) *$", FENCED.sub("", text), re.MULTILINE):
        name = re.sub(r"\[([^]]*)\]\([^)]*\)", r"\1", heading).lower()
        name = re.sub(r"[^\w\- ]", "", name).replace(" ", "-")
        count = sum(other == name for other, _ in found)
        found.append((name, f"{name}-{count}" if count else name))
    return {anchor for _, anchor in found}


def targets(text):
    """What a page links to and shows, except on the web."""
    text = prose(text)
    found = re.findall(r"\]\(([^)\s]+)\)", text) + re.findall(r'(?:href|src(?:set)?)="([^"]+)"', text)
    return [unquote(target) for target in found if not re.match(r"https?://", target)]


@every_page
def test_links_lead_somewhere(page):
    for target in targets(PAGES[page]):
        file, _, anchor = target.partition("#")
        path = (ROOT / page).parent / file if file else ROOT / page
        assert path.exists(), target
        if anchor:
            assert anchor in anchors(path.read_text("utf-8")), target


@every_page
def test_pictures_say_in_words_what_they_show(page):
    for words in re.findall(r"!\[([^]]*)\]\(", prose(PAGES[page])):
        assert len(words.split()) >= 3, words


def test_pictures_are_small():
    sizes = {file: file.stat().st_size for file in ROOT.glob("docs/pictures/*.*")}
    for file, size in sizes.items():
        assert size < 200_000, file
    assert sum(sizes.values()) < 3_000_000


def test_nothing_is_said_twice():
    """No long line stands twice on README and the pages: neither prose nor the row of a table."""
    seen = {}
    for page, text in PAGES.items():
        blank = FENCED.sub("", text)
        for line in blank.splitlines():
            if len(line) > 80 and not line.startswith("    "):
                assert line not in seen, f"{seen[line]} and {page}: {line}"
                seen[line] = page


def test_the_structure_is_that_of_the_tree():
    table = table_of("| where | what |")
    named = set(re.findall(r"`([\w/]+(?:\.py)?)`", table))
    there = {file.name for file in ROOT.glob("*.py")} | {
        f"{file.parent.name}/" for file in ROOT.glob("*/*.py") if not file.parent.name.startswith(".")}
    assert named == there
    row = re.search(r"^\| `tools/` \| programs: (.*) \|$", table, re.MULTILINE)[1]
    programs = {file.stem for file in ROOT.glob("tools/*.py") if "__main__" in file.read_text("utf-8")}
    assert set(row.split(", ")) == programs


def test_the_citation_file_names_the_four_papers():
    """It is YAML, which Python does not read: keys at the start of a line, and one paper each."""
    text = (ROOT / "CITATION.cff").read_text("utf-8")
    keys = re.findall(r"^([a-z-]+):", text, re.MULTILINE)
    assert keys == ["cff-version", "message", "title", "abstract", "type", "authors", "license",
                    "references"]
    assert "\t" not in text and "cff-version: 1.2.0\n" in text
    papers = text.split("\nreferences:\n")[1].split("  - type: ")[1:]
    assert len(papers) == 4
    for paper, name in zip(papers, ("csra", "q2l", "cprfl", "asl"), strict=True):
        for key in ("title", "authors", "year", "notes"):
            assert f"\n    {key}:" in paper, key
        number = re.search(r"arXiv:(\d{4}\.\d{5})", paper)[1]
        assert number in (ROOT / f"{name}.py").read_text("utf-8").split("\n\n")[0]


# -------------------------------------------------------------------------------------- the figures


def table_of(header):
    """The lines of the table whose first line begins so, on whichever page it stands."""
    found = {table for text in PAGES.values() for table in
             re.findall(rf"^{re.escape(header)}.*\n(?:\|.*\n?)+", text, re.MULTILINE)}
    assert len(found) == 1, f"{len(found)} tables: {header}"
    return found.pop()


def row_of(name):
    """The rest of the row with this first cell, on whichever page it stands."""
    found = {row for text in PAGES.values() for row in
             re.findall(rf"^\| {re.escape(name)} \|(.*)$", text, re.MULTILINE)}
    assert len(found) == 1, f"{len(found)} rows: {name}"
    return found.pop()


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
    cells = row_of(row).split("|")
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


def test_tables_are_those_of_the_runs():
    """Each table that tests/results.py makes stands on a page, to the digit."""
    for lines in filter(None, (make() for make in results.TABLES)):  # the speed may be missing
        assert any("\n".join(lines) + "\n" in page for page in PAGES.values()), lines[0]


ROWS_OF_README = {  # row of README's results -> (its command on scenes, its row on photographs)
    "usual classifier": (None, "baseline, BCE, classifier learning rate x 10"),
    "CSRA": ("python csra.py", "CSRA"), "Q2L": ("python q2l.py --data scenes", "Q2L"),
    "CPRFL": ("python cprfl.py --data scenes", "CPRFL"),
    "ASL": ("python asl.py", "baseline, ASL, classifier learning rate x 10")}


def cells_of(page, header, name):
    """Cells of a row, by column, from the table with this header."""
    table = re.search(rf"^{re.escape(header)}.*\n(?:\|.*\n)+", PAGES[page], re.MULTILINE)[0]
    columns, _, *rows = [[cell.strip() for cell in line.split("|")[1:-1]]
                         for line in table.splitlines()]
    row = next(row for row in rows if row[0] == name)
    return dict(zip(columns, row, strict=True))


@pytest.mark.parametrize("name", ROWS_OF_README)
def test_readmes_results_are_those_of_the_results_page(name):
    command, row = ROWS_OF_README[name]
    found = cells_of("README.md", "| test mAP |", name)
    photographs = cells_of("docs/results.md", "| photographs, 320 px |", row)
    assert found["photographs"] == photographs["mAP"]
    assert found["long-tailed photographs"] == photographs["long-tailed: mAP"]
    if command:
        scenes = cells_of("docs/results.md", "| on scenes |", f"`{command}`")
        assert found["`scenes`"] == scenes["mAP"]
        figure = re.search(r": ([\d.]+), ", found["published"])[1]
        model = command.split()[1].removesuffix(".py")
        recipe = "coco-lt" if "COCO-LT" in found["published"] else "coco2014"
        assert figure in import_method(model).RECIPES[recipe]["note"]


COMMAND_ROWS = [(command, figure) for text in PAGES.values() for command, figure in
                re.findall(r"^\| `python (\w+\.py --data \S+ --root ROOT)`[^|]* \| (\d+\.\d+)", text,
                           re.MULTILINE)]


@pytest.mark.parametrize("command, figure", sorted(set(COMMAND_ROWS)))
def test_published_figures_are_those_of_the_recipes(command, figure):
    """A recipe's note, which training prints, names the figure that the page has."""
    model, name = re.match(r"(\w+)\.py --data (\S+)", command).groups()
    assert figure in import_method(model).RECIPES[name]["note"]


def test_every_published_recipe_has_its_command_on_a_page():
    for name in METHODS:
        for data, recipe in import_method(name).RECIPES.items():
            if recipe.get("note", "").startswith("for "):
                command = f"python {name}.py --data {data} --root ROOT"
                assert any(command in text for text in PAGES.values()), command


def test_numbers_of_images_are_those_that_other_tests_have():
    """The table of data sets: the published numbers of training images, as in test_recipes.py."""
    for name, images in (("coco2014", "82,783"), ("voc2007", "5,011"), ("vg500", "82,904"),
                         ("coco-lt", "1,909"), ("voc-lt", "1,142")):
        assert f" | {images} | " in row_of(f"`{name}`"), name
    for name in ("scenes", "scenes-lt"):
        _, paths, _ = READERS[name](ROOT, "train")
        _, test_paths, _ = READERS[name](ROOT, "test")
        assert row_of(f"`{name}`").endswith(f" | {len(paths):,} | {len(test_paths):,} |")
