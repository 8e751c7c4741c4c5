"""Which version is the latest after each action, and in which order the changes are told."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest

from fedstac.domain import events, patching
from fedstac.domain.actions import Command
from fedstac.domain.actions.amend import Amend
from fedstac.domain.actions.mark import Mark, Unmark
from fedstac.domain.actions.publish import Publish
from fedstac.domain.actions.retract import Reinstate, Retract
from fedstac.domain.actions.target import Target
from fedstac.domain.model import Decision, Lineage, World
from fedstac.domain.policy import Policy
from tests.support.amending import CHECKER, ITEM, ROOT, VERSION, VOCABULARY, WORLD

BASE = str(ITEM["id"]).rpartition(".v")[0]
DAYS = {"v1": 20200101, "v2": 20210101, "v3": 20220101}
NAMES = {f"{BASE}.v{day}": name for name, day in DAYS.items()}
PROMOTING = replace(WORLD, policy=Policy(promoting=frozenset({"CMIP6"})))
Told = list[tuple[str, str, bool]]


def item(name: str) -> dict[str, Any]:
    made: dict[str, Any] = copy.deepcopy(ITEM)
    made["id"], made["properties"]["version"] = f"{BASE}.v{DAYS[name]}", str(DAYS[name])
    return made


def command(action: str, name: str) -> Command:
    target = Target("CMIP6", f"{BASE}.v{DAYS[name]}", f"CMIP6/{BASE}")
    match action:
        case "publish":
            draft, findings = CHECKER.draft(item(name), "CMIP6", VOCABULARY)
            assert not [one for one in findings if one.severity == "error"]
            return Publish(draft, ROOT, VERSION)
        case "retract":
            return Retract(target, ROOT, {"reason": "wrong units"})
        case "reinstate":
            return Reinstate(target, ROOT)
        case "mark":
            return Mark(target, ROOT)
        case "unmark":
            return Unmark(target, ROOT)
    edit = {"supersede": {"latest": False}, "esgf retract": {"latest": False, "retracted": True}}[action]
    return Amend(target, ROOT, patching.read({"properties": edit}), VERSION)


def run(world: World, *steps: str) -> tuple[Lineage, Decision]:
    """Return the lineage after steps like `retract v2`, and the last decision."""
    lineage = Lineage(f"CMIP6/{BASE}", "west", 0, {})
    for step in steps:
        action, _, name = step.rpartition(" ")
        decision = command(action, name).decide(lineage, world)
        lineage = lineage.after(decision.changes)
        assert sum(record.latest for record in lineage.records.values()) <= 1
    return lineage, decision


def announced_changes(decision: Decision) -> Told:
    """Return each change in its order: what it is called, of which version, and whether that is the latest after it."""
    short = {event: event.split(".")[3] for event in (
        events.PUBLISHED, events.UPDATED, events.SUPERSEDED, events.RETRACTED, events.REINSTATED, events.MARKED,
        events.UNMARKED,
    )}  # fmt: skip
    return [(short[one.event_type], NAMES[one.after.id], one.after.latest) for one in decision.changes]


THREE = ("publish v1", "publish v2", "publish v3")
# whether the project promotes, what is done, and what the last step tells
CASES: dict[str, tuple[World, Sequence[str], Told]] = {
    "retracting the latest promotes nothing": (WORLD, (*THREE, "retract v3"), [("retracted", "v3", False)]),
    "unless the project says so": (
        PROMOTING, (*THREE, "retract v3"), [("retracted", "v3", False), ("updated", "v2", True)],
    ),
    "marking it does the same": (
        PROMOTING, (*THREE, "mark v3"), [("marked", "v3", False), ("updated", "v2", True)],
    ),
    "and the patch that ESGF's publisher sends": (
        PROMOTING, (*THREE, "esgf retract v3"), [("retracted", "v3", False), ("updated", "v2", True)],
    ),
    "what is retracted is passed over": (
        PROMOTING, (*THREE, "retract v2", "retract v3"), [("retracted", "v3", False), ("updated", "v1", True)],
    ),
    "and what its publisher gave up": (
        PROMOTING, ("publish v1", "publish v2", "supersede v2", "publish v3", "retract v3"),
        [("retracted", "v3", False), ("updated", "v1", True)],
    ),
    "retracting an old one promotes nothing": (PROMOTING, (*THREE, "retract v1"), [("retracted", "v1", False)]),
    "giving up the latest promotes nothing": (PROMOTING, (*THREE, "supersede v3"), [("superseded", "v3", False)]),
    "the only version has none before it": (PROMOTING, ("publish v1", "retract v1"), [("retracted", "v1", False)]),
    "the promoted one goes when the retracted comes back": (
        PROMOTING, (*THREE, "retract v3", "reinstate v3"), [("superseded", "v2", False), ("reinstated", "v3", True)],
    ),
    "or is unmarked": (
        PROMOTING, (*THREE, "mark v3", "unmark v3"), [("superseded", "v2", False), ("unmarked", "v3", True)],
    ),
    "or a newer one is published": (
        PROMOTING, ("publish v1", "publish v2", "retract v2", "publish v3"),
        [("superseded", "v1", False), ("published", "v3", True)],
    ),
    "a demoted one is promoted again": (
        PROMOTING, (*THREE, "retract v3", "reinstate v3", "retract v3"),
        [("retracted", "v3", False), ("updated", "v2", True)],
    ),
    "reinstated, the newest is latest again": (
        WORLD, (*THREE, "retract v3", "reinstate v3"), [("reinstated", "v3", True)],
    ),
    "unless a newer one came": (
        WORLD, ("publish v1", "retract v1", "publish v2", "reinstate v1"), [("reinstated", "v1", False)],
    ),
    "or one that is retracted itself": (
        WORLD, ("publish v1", "publish v2", "retract v2", "retract v1", "reinstate v1"), [("reinstated", "v1", False)],
    ),
    "or its publisher had given it up": (
        WORLD, ("publish v1", "supersede v1", "retract v1", "reinstate v1"), [("reinstated", "v1", False)],
    ),
    "which a mark does not forget either": (
        WORLD, ("publish v1", "supersede v1", "mark v1", "unmark v1"), [("unmarked", "v1", False)],
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_which_version_is_the_latest(case: str) -> None:
    world, steps, wanted = CASES[case]
    lineage, decision = run(world, *steps)
    assert announced_changes(decision) == wanted
    seqs = [change.after.seq for change in decision.changes]
    assert seqs == list(range(lineage.seq - len(seqs) + 1, lineage.seq + 1))


def test_a_promotion_says_why() -> None:
    _, decision = run(PROMOTING, *THREE, "retract v3")
    promoted = decision.changes[-1]
    assert promoted.reason == f"latest again: {BASE}.v{DAYS['v3']} is retracted"
    assert promoted.actions == ("promote",)


def test_what_was_given_up_is_part_of_the_state_that_nodes_compare() -> None:
    lineage, _ = run(WORLD, "publish v1", "supersede v1")
    [record] = lineage.records.values()
    assert record.superseded
    assert record.digest != replace(record, superseded=False).digest
