"""docs/architecture.md and its picture name modules that are there; every page names functions where they are."""

from __future__ import annotations

import re

import pytest

from tests.support.places import REPOSITORY

DOCS, PACKAGE = REPOSITORY / "docs", REPOSITORY / "src/fedstac"
PAGE, PICTURE = DOCS / "architecture.md", DOCS / "architecture.svg"
PAGES = sorted(DOCS.rglob("*.md"))
ROOMLESS = sorted(path.stem for path in PACKAGE.glob("*.py"))
DEFINITION = re.compile(r"^ *(?:(?:async )?def|class) (\w+)|^ *([A-Z_]+)\b.* = |^    (\w+): ", re.MULTILINE)


def is_there(name: str) -> bool:
    """Return whether a path leads to a file or folder of the package or of the repository."""
    return (REPOSITORY / name).exists() or (PACKAGE / name).exists() or any(PACKAGE.rglob(name))


def names_in(text: str) -> set[str]:
    """Return what a module defines: functions, classes, constants, fields."""
    return {name for match in DEFINITION.finditer(text) for name in match.groups() if name}


@pytest.mark.parametrize("path", [PAGE, PICTURE], ids=lambda path: path.name)
def test_every_module_that_is_named_is_there(path: object) -> None:
    text = PAGE.read_text() if path == PAGE else PICTURE.read_text()
    quoted = re.findall(r"`([a-z_]+(?:/[a-z_]+)*(?:/|\.py))`|`([a-z_]+(?:/[a-z_]+)+)`", text)
    names = {a or b for a, b in quoted} | set(re.findall(r">([a-z_/]+\.py)<", text))
    assert names
    assert sorted(name for name in names if not is_there(name)) == []


def test_what_is_named_with_its_module_is_in_it() -> None:
    """Check `find` in `api/search/reading.py`, and `publication.perform`."""
    mentions: list[tuple[str, str, str]] = []  # page, name, module
    for page in PAGES:
        text = " ".join(page.read_text().split())
        for name, module in re.findall(r"`([\w.]+)` (?:in|of) `((?:\w+/)*\w+\.py)`", text):
            if (PACKAGE / module).exists():
                mentions.append((page.name, name, module))
        for module, name in re.findall(rf"`({'|'.join(ROOMLESS)})\.(\w+)`", text):
            if name != "py":
                mentions.append((page.name, name, f"{module}.py"))
    assert len(mentions) > 10
    absent = [
        mention for mention in mentions
        if not set(mention[1].split(".")) <= names_in((PACKAGE / mention[2]).read_text())
    ]  # fmt: skip
    assert absent == []
