"""The structure: imports go down, files stay small, a data set and a method are one addition each."""
import ast
import shutil

import numpy as np
import pytest
from conftest import HERE, run
from PIL import Image

ROOT, PROGRAMS = HERE.parent, HERE / "programs"
FLOORS = (("asl", "cprfl", "csra", "q2l"), ("train",), ("eval",), ("lib",), ("data",), ("sets",))


def floor_of(module):
    """0 is the top; None: not a module of the project."""
    return next((i for i, names in enumerate(FLOORS) if module.split(".")[0] in names), None)


def imports(file):
    """(module, whether it is imported by the main part only)"""
    tree = ast.parse(file.read_text("utf-8"))
    main = [node for part in tree.body if isinstance(part, ast.If) for node in ast.walk(part)]
    for node in ast.walk(tree):
        names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else \
            [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)] \
            if isinstance(node, ast.ImportFrom) else []
        for name in names:
            yield name, node in main


FILES = sorted([*ROOT.glob("*.py"), *ROOT.glob("lib/*.py"), *ROOT.glob("sets/*.py")])


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(ROOT)))
def test_imports_go_down(file):
    own = floor_of(file.relative_to(ROOT).with_suffix("").parts[0])
    for name, in_main in imports(file):
        other = floor_of(name)
        if own == 0:  # a method stands alone; its main part starts train.py
            assert other is None or (in_main and name == "train"), name
        elif other is not None:
            assert other > own or (other == own and own in (3, 5)), name


def test_there_is_no_import_cycle():
    graph = {}
    for file in FILES:
        module = ".".join(file.relative_to(ROOT).with_suffix("").parts)
        graph[module] = {name for name, in_main in imports(file) if not in_main}
    graph["sets"] = graph.pop("sets.__init__")

    def visit(module, above):
        assert module not in above, (*above, module)
        for name in graph.get(module, ()):
            if name in graph and not (module.startswith("sets") and name == "sets"):
                visit(name, (*above, module))
    for module in graph:
        visit(module, ())


def test_sizes():
    def lines(*patterns):
        return sum(len(file.read_text("utf-8").splitlines()) for p in patterns for file in ROOT.glob(p))
    assert lines("data.py") <= 280 and lines("train.py") <= 300 and lines("eval.py") <= 300
    for file in FILES:
        assert max(map(len, file.read_text("utf-8").splitlines())) <= 100, file
        for node in ast.walk(ast.parse(file.read_text("utf-8"))):
            if isinstance(node, ast.FunctionDef):
                assert node.end_lineno - node.lineno < 100, node.name


@pytest.mark.slow
@pytest.mark.parametrize("name", FLOORS[0])
def test_a_method_file_alone_is_enough(name, tmp_path):
    for file in (ROOT / f"{name}.py", PROGRAMS / "alone.py"):
        shutil.copy(file, tmp_path)
    run("alone.py", name, cwd=tmp_path)


@pytest.mark.slow
def test_a_new_data_set_and_a_new_method_are_one_addition_each(tmp_path):
    project = tmp_path / "project"
    for name in ("lib", "sets"):
        shutil.copytree(ROOT / name, project / name, ignore=shutil.ignore_patterns("__pycache__"))
    for file in ROOT.glob("*.py"):
        shutil.copy(file, project)
    shutil.copy(PROGRAMS / "toy_method.py", project / "toy.py")
    shutil.copy(PROGRAMS / "toy_set.py", project / "sets/toy.py")
    table = (project / "sets/__init__.py").read_text()
    table = table.replace("import coco, ", "import coco, toy, ").replace(
        "READERS = {", 'READERS = {"toy": toy.read_toy,')
    (project / "sets/__init__.py").write_text(table)
    for i in range(8):
        Image.fromarray(np.full((9, 9, 3), 255 * (i % 2), np.uint8)).save(project / f"{i}.png")
    flags = ("--data", "toy", "--root", project, "--batch-size", 4, "--image-size", 32, "--workers", 0)
    text = run("train.py", "--model", "toy", *flags, "--epochs", 20, "--lr", 0.1, "--power", 2, "--out",
               project / "run", cwd=project)
    assert "mAP 100.00" in text and "power=2.0" in text
    text = run("train.py", "--model", "asl", *flags, "--epochs", 1, "--backbone", "test_resnet",
               "--no-pretrained", cwd=project)
    assert "asl has no recipe for toy: using the one for csv" in text
    assert "100.00 AP" in run("eval.py", "--checkpoint", project / "run/last.pt", cwd=project)
