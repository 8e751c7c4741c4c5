"""docs/architecture.md and its picture name modules that are there."""

from __future__ import annotations

import re

import pytest

from tests.support.places import REPOSITORY

PAGE, PICTURE = REPOSITORY / "docs/architecture.md", REPOSITORY / "docs/architecture.svg"
COMING = ("messaging/sinks",)  # rooms that their first module makes


def is_there(name: str) -> bool:
    """Return whether a path leads to a file or folder of the package or of the repository."""
    package = REPOSITORY / "src/fedstac"
    return (REPOSITORY / name).exists() or (package / name).exists() or any(package.rglob(name))


@pytest.mark.parametrize("path", [PAGE, PICTURE], ids=lambda path: path.name)
def test_every_module_that_is_named_is_there(path: object) -> None:
    text = PAGE.read_text() if path == PAGE else PICTURE.read_text()
    quoted = re.findall(r"`([a-z_]+(?:/[a-z_]+)*(?:/|\.py))`|`([a-z_]+(?:/[a-z_]+)+)`", text)
    names = {a or b for a, b in quoted} | set(re.findall(r">([a-z_/]+\.py)<", text))
    assert names
    assert sorted(name for name in names if not name.startswith(COMING) and not is_there(name)) == []
