"""Copies code from the source into the pages, so that a page shows what the files say.

Run: python docs/excerpts.py             writes the excerpts into README.md and docs/*.md
     python docs/excerpts.py --check     only says whether they are up to date

A line above a block of Python says what the block shows:
    <!-- excerpt: csra.py CSRAHead.forward -->             a function, method or class
    <!-- excerpt: csra.py 'first text' .. 'last text' -->  the lines from the first one that has the
                                                           first text to the next with the last text
"""
import argparse
import ast
import re
import shlex
import sys
import textwrap
from pathlib import Path

ROOT = Path(__file__).parent.parent
MARK = re.compile(r"^<!-- excerpt: (.*) -->$", re.MULTILINE)
BLOCK = re.compile(r"^(<!-- excerpt: ([^\n]*) -->\n\n?```python\n)(.*?)^(```)$",
                   re.MULTILINE | re.DOTALL)


def pages():
    return [ROOT / "README.md", *sorted(ROOT.glob("docs/*.md"))]


def named(source, name):
    """The lines of a function, method or class; its decorators are part of it."""
    found = ast.parse(source)
    for part in name.split("."):
        nodes = [node for node in ast.iter_child_nodes(found)
                 if getattr(node, "name", None) == part]
        if not nodes:
            raise ValueError(f"there is no {name}")
        found = nodes[0]
    first = min(node.lineno for node in (found, *found.decorator_list))
    return source.splitlines()[first - 1:found.end_lineno]


def between(source, first, last):
    """The lines from the one with the text `first` to the next one with the text `last`."""
    lines = source.splitlines()
    begin = next((i for i, line in enumerate(lines) if first in line), None)
    if begin is None:
        raise ValueError(f"no line has {first!r}")
    end = next((i for i in range(begin, len(lines)) if last in lines[i]), None)
    if end is None:
        raise ValueError(f"no line from {begin + 1} on has {last!r}")
    return lines[begin:end + 1]


def excerpt(mark):
    """The text that a mark asks for, dedented. Raises ValueError."""
    file, *words = shlex.split(mark)
    if not (ROOT / file).is_file():
        raise ValueError(f"there is no file {file}")
    source = (ROOT / file).read_text("utf-8")
    if len(words) == 1:
        lines = named(source, words[0])
    elif len(words) == 3 and words[1] == "..":
        lines = between(source, words[0], words[2])
    else:
        raise ValueError("a name, or 'first text' .. 'last text', must follow the file")
    return textwrap.dedent("\n".join(lines)) + "\n"


def refreshed(page, text):
    """The text of a page with every excerpt copied again. Raises ValueError, naming the page."""
    def copied(block):
        before, mark, _, end = block.groups()
        try:
            return before + excerpt(mark) + end
        except ValueError as error:
            raise ValueError(f"{page}: excerpt: {mark}: {error}") from None
    marks = MARK.findall(text)
    blocks = [block[1] for block in BLOCK.findall(text)]
    for mark in marks:
        if mark not in blocks:
            raise ValueError(f"{page}: excerpt: {mark}: no ```python block follows this line")
    return BLOCK.sub(copied, text)


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--check", action="store_true",
                        help="write nothing; exit 1 if a page is old")
    args = parser.parse_args()
    old = []
    for page in pages():
        text = page.read_text("utf-8")
        new = refreshed(page.relative_to(ROOT), text)
        if new != text:
            old.append(str(page.relative_to(ROOT)))
            if not args.check:
                page.write_text(new, "utf-8")
    if args.check and old:
        raise ValueError(f"out of date: {', '.join(old)}: run python docs/excerpts.py")
    if old:
        print(f"written: {', '.join(old)}")
    else:
        print("all excerpts are up to date")


if __name__ == "__main__":
    try:
        main()
    except ValueError as error:
        sys.exit(str(error))
