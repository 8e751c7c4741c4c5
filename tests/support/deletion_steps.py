"""What the state-machine tests of deletion draw from: datasets, people, rules of projects, bodies of requests."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Final

import orjson

from fedstac.demo import sample
from fedstac.domain.policy import Principal

SMALL = [item for item in sample.items(600, versions=1, seed=5) if len(item["assets"]) < 4]
BY_INSTITUTION = {str(item["properties"]["cmip6:institution_id"]): item for item in reversed(SMALL)}
FIRST, SECOND = sorted(BY_INSTITUTION)[:2]
INSTITUTIONS: Final = {"A": FIRST, "B": SECOND}
DAYS: Final = (20200101, 20210101, 20220101, 20230101)


def item_of(name: str, day: int, run: int = 0) -> dict[str, Any]:
    """Return a version of a dataset: A of the first institution, B of the second, which has no identifier.

    run: no two have datasets in common.
    """
    given = BY_INSTITUTION[INSTITUTIONS[name]]
    member = given["properties"]["cmip6:variant_label"]
    text = orjson.dumps(given).decode()
    item: dict[str, Any] = orjson.loads(text.replace(member, f"r{run}i1p1f1") if run else text)
    item["id"] = f"{item['id'].rpartition('.v')[0]}.v{day}"
    item["properties"]["version"] = str(day)
    if name == "B":
        del item["properties"]["cmip6:pid"]
        item["links"] = []
    return item


PEOPLE = {
    name: Principal(name, frozenset(roles))
    for name, roles in {
        "root": ["admin"], "eve": ["admin"], "ada": [f"publisher:{FIRST}"], "bob": [f"publisher:{SECOND}"],
        "nobody": [],
    }.items()
}  # fmt: skip
EAST, WEST_SERVICE, DOI = "east", "east/files", "doi"
NODES: Final = (EAST, DOI, "south")


def part(name: str, *, required: bool = True, owns: bool = False) -> dict[str, Any]:
    return {"name": name, "required": required, "days": 1, "contact": None, "owns_identifier": owns}


def rules_of(*parts: dict[str, Any], grace: float = 0, automatic: bool = False) -> dict[str, Any]:
    return {"dependencies": list(parts), "grace_days": grace, "automatic": automatic, "schedule": ""}


RULES: Final = (
    rules_of(part(EAST), part(DOI, owns=True)), rules_of(part(EAST), part(DOI, owns=True), grace=1, automatic=True),
    rules_of(part(EAST, required=False), automatic=True), rules_of(part(EAST), part(WEST_SERVICE)),
    rules_of(part(EAST, owns=True), grace=30), rules_of(part(DOI), part("south", required=False), grace=0.5),
    rules_of(grace=2),
)  # fmt: skip
BODIES: Final[Mapping[str, Callable[[str], dict[str, Any]]]] = {
    "retract": lambda text: {"retraction": {"reason": text}}, "reinstate": lambda _: {},
    "mark": lambda text: {"reason": text}, "unmark": lambda _: {},
    "quarantine": lambda text: {"quarantine": {"reason": text}}, "release": lambda text: {"decision": text},
    "delete": lambda _: {}, "purge": lambda _: {},
    "amend": lambda text: {"edit": {"merge": {"properties": {"description": text}}}, "override": None},
    "give up": lambda _: {"edit": {"merge": {"properties": {"latest": False}}}, "override": None},
}  # fmt: skip
