"""docs/architecture.md says how to add a thing: in at most four places, and each place that it names is there."""

from __future__ import annotations

import inspect
import re
import sys

import pytest

from fedstac.domain import rules
from fedstac.workers import roles
from tests.support.places import REPOSITORY

PAGE = REPOSITORY / "docs" / "architecture.md"
SOURCES = REPOSITORY / "src" / "fedstac"
THINGS = {"an action", "a route", "a role", "a sink", "a rule", "a setting"}
MOST_PLACES = 4


def rows() -> dict[str, list[str]]:
    """Return the places of each thing in the table of the section "To add"."""
    section = PAGE.read_text().partition("\n## To add\n")[2].partition("\n## ")[0]
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in section.splitlines() if line[:1] == "|"]
    return {cell[0]: cell[1].split(" · ") for cell in cells[2:]}


def missing(place: str) -> list[str]:
    """Return what a place names and nobody finds: files, folders, names in the sources, commands of make."""
    source = "\n".join(path.read_text() for path in SOURCES.rglob("*.py"))
    makefile = (REPOSITORY / "Makefile").read_text()
    absent = []
    for name in re.findall(r"`([^`]+)`", place):
        if name.startswith("make "):
            is_there = f"\n{name.removeprefix('make ')}:" in makefile
        elif "/" in name or "." in name or (SOURCES / name).exists() or (REPOSITORY / name).exists():
            is_there = any(True for root in (SOURCES, REPOSITORY) for _ in root.glob(name)) or _is_anywhere(name)
        else:
            is_there = re.search(rf"\b{re.escape(name)}\b", source) is not None
        absent += [] if is_there else [name]
    return absent


def _is_anywhere(name: str) -> bool:
    return "/" not in name and any(SOURCES.rglob(name))


def test_the_page_tells_how_to_add_each_kind_of_thing() -> None:
    assert THINGS - rows().keys() == set()


@pytest.mark.parametrize("thing", sorted(rows()))
def test_a_thing_is_added_in_few_places_and_each_is_there(thing: str) -> None:
    places = rows()[thing]
    assert len(places) <= MOST_PLACES
    assert {place: names for place in places if (names := missing(place))} == {}


def text_below(folder: str) -> str:
    """Return the sources of a folder of the package as one text."""
    return "\n".join(path.read_text() for path in sorted((SOURCES / folder).rglob("*.py")))


def test_every_check_of_an_item_is_made() -> None:
    modules = (sys.modules[name] for name in list(sys.modules) if name.startswith("fedstac.domain.rules."))
    checks = {
        f"{module.__name__}.{name}"
        for module in modules
        for name, value in vars(module).items()
        if inspect.isfunction(value)
        if value.__module__ == module.__name__ and re.fullmatch(r"check(_\w+)?", name)
        if list(inspect.signature(value).parameters) == ["document", "vocabulary"]
    }
    made = {f"{check.__module__}.{check.__name__}" for check in rules.CHECKS}
    assert checks - made == set(), "put it into CHECKS, in domain/rules"


def test_every_role_is_started_by_a_command() -> None:
    ours = [name for name, value in vars(roles).items() if isinstance(value, roles.Role)]
    commands = text_below("cli")
    assert ours
    assert [name for name in ours if f"roles.{name}" not in commands] == [], "start it with a command, in cli"
