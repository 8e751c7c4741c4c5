"""Each action's way through the table: the body that waits in the queue → a command → a decision.

The bodies here are those of nodes that are updated while work waits: their form may grow, and never change.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from datetime import UTC, datetime
from uuid import UUID

import orjson
import pytest

from fedstac.demo import sample
from fedstac.domain import documents, events
from fedstac.domain.actions import ACTIONS, command_of
from fedstac.domain.actions.target import QueuedAction
from fedstac.domain.deletion import Deletion
from fedstac.domain.errors import MarkedForDeletion, PreconditionFailed
from fedstac.domain.model import Lineage, Outcome, World
from fedstac.domain.policy import Principal
from fedstac.domain.vocabulary import DatasetName
from fedstac.vocabularies.checker import open_checker

CHECKER = open_checker()
VOCABULARY = CHECKER.vocabularies.current("CMIP6")
assert VOCABULARY is not None
PARSED = CHECKER.vocabularies.select(["CMIP6"], [("CMIP6", VOCABULARY.version)])
ROOT = Principal("root", frozenset({"admin"}))
[ITEM] = sample.items(1)
DRAFT, _ = CHECKER.draft(ITEM, "CMIP6", VOCABULARY)
NAME = DatasetName(DRAFT.lineage, DRAFT.version)
NOW = datetime(2026, 3, 1, tzinfo=UTC)
READY = Deletion(UUID(int=1), "CMIP6", DRAFT.id, UUID(int=2), NOW, NOW, "root")  # nothing is missing
WORLD = World(NOW, "west", CHECKER, vocabularies=PARSED, deletions={("CMIP6", DRAFT.id): READY})
EMPTY = Lineage(DRAFT.lineage, "west", 0, {})
FILE = next(key for key, asset in ITEM["assets"].items() if "file:checksum" in asset)
PATH = f"/assets/{FILE}/alternate/b.example"
QUARANTINE = {"reason": "personal data", "case": "T-17", "contact": "data@a.example"}
RETRACTION = {"reason": "wrong forcing", "errata": "https://errata.example/1", "data": "restrict"}

# action, the stored body, what happened before, the outcome, the event
BODIES = {
    "a document that was not prepared": ("publish", ITEM, (), Outcome.NEW, events.PUBLISHED),
    "a JSON Patch": (
        "amend", {"edit": {"operations": [{"op": "add", "path": PATH, "value": {"href": "https://b.example/f.nc"}}]},
                  "override": None, "expected": None}, ("publish",), Outcome.REPLICATED, events.REPLICATED,
    ),
    "a merge patch": (
        "amend", {"edit": {"merge": {"properties": {"latest": False}}}, "override": None, "expected": ["*"]},
        ("publish",), Outcome.SUPERSEDED, events.SUPERSEDED,
    ),
    "a whole document": (
        "amend", {"edit": {"whole": {**ITEM, "links": [*ITEM["links"], {"rel": "about", "href": "https://a.example"}]}}},
        ("publish",), Outcome.ANNOTATED, events.ANNOTATED,
    ),
    "replicas of a node that has none": (
        "amend", {"edit": {"without": "b.example"}, "node": "b.example"}, ("publish",), Outcome.IDENTICAL, None,
    ),
    "a retraction": (
        "retract", {"retraction": RETRACTION, "expected": None}, ("publish",), Outcome.RETRACTED, events.RETRACTED,
    ),
    "a reinstatement": ("reinstate", {"expected": None}, ("publish", "retract"), Outcome.REINSTATED, events.REINSTATED),
    "a mark": ("mark", {"reason": None, "expected": None}, ("publish",), Outcome.MARKED, events.MARKED),
    "an unmark": ("unmark", {"expected": None}, ("publish", "mark"), Outcome.UNMARKED, events.UNMARKED),
    "a quarantine": (
        "quarantine", {"quarantine": QUARANTINE, "expected": None}, ("publish",), Outcome.QUARANTINED,
        events.QUARANTINED,
    ),
    "a release": (
        "release", {"decision": "harmless", "expected": None}, ("publish", "quarantine"), Outcome.RELEASED,
        events.RELEASED,
    ),
    "a deletion": ("delete", {"expected": None}, ("publish", "mark"), Outcome.DELETED, events.DELETED),
    "a deletion that was asked for by its id": (
        "delete", {"expected": None, "deletion": str(UUID(int=1)), "automatic": False}, ("publish", "mark"),
        Outcome.DELETED, events.DELETED,
    ),
    "an unmark by the id of the deletion": (
        "unmark", {"expected": None, "deletion": str(UUID(int=1))}, ("publish", "mark"), Outcome.UNMARKED,
        events.UNMARKED,
    ),
    "a clearing": (
        "clear", {"expected": None, "reason": "not in the load"}, ("publish",), Outcome.CLEARED, events.CLEARED,
    ),
    "a purge": ("purge", {}, ("publish", "mark", "delete"), Outcome.PURGED, events.PURGED),
    "a purge of what a load cleared": ("purge", {}, ("publish", "clear"), Outcome.PURGED, events.PURGED),
}  # fmt: skip
BEFORE: Mapping[str, object] = {
    "publish": ITEM, "retract": {"retraction": RETRACTION}, "mark": {}, "quarantine": {"quarantine": QUARANTINE},
    "delete": {}, "clear": {},
}  # fmt: skip


def queued(body: object) -> QueuedAction:
    return QueuedAction("CMIP6", DRAFT.id, NAME, ROOT, orjson.dumps(body).decode(), vocabulary=VOCABULARY)


def lineage_after(*actions: str) -> Lineage:
    lineage = EMPTY
    for action in actions:
        lineage = lineage.after(command_of(action, queued(BEFORE[action])).decide(lineage, WORLD).changes)
    return lineage


@pytest.mark.parametrize("case", BODIES)
def test_a_stored_body_becomes_its_decision(case: str) -> None:
    action, body, before, outcome, event = BODIES[case]
    decision = command_of(action, queued(body)).decide(lineage_after(*before), WORLD)
    assert decision.outcome is outcome
    assert [change.event_type for change in decision.changes] == ([event] if event else [])


def test_every_action_has_a_body_here() -> None:
    assert {action for action, *_ in BODIES.values()} == set(ACTIONS)


def test_a_prepared_document_is_not_parsed_again() -> None:
    queue_text = replace(queued(ITEM), text=DRAFT.text, prepared=documents.packed(DRAFT), only_new=True)
    command = command_of("publish", queue_text)
    assert command.decide(EMPTY, WORLD).outcome is Outcome.NEW
    with pytest.raises(PreconditionFailed):
        command.decide(lineage_after("publish"), WORLD)


def test_a_condition_of_the_stored_body_counts() -> None:
    with pytest.raises(PreconditionFailed):
        command_of("mark", queued({"expected": ["0" * 32]})).decide(lineage_after("publish"), WORLD)


@pytest.mark.parametrize(
    ("action", "body"),
    [
        ("delete", {"deletion": str(UUID(int=9))}),
        ("unmark", {"deletion": str(UUID(int=9))}),
        ("delete", {"deletion": str(READY.id), "automatic": True}),  # its rules do not delete by the schedule
    ],
)
def test_what_was_asked_about_one_deletion_does_nothing_to_another(action: str, body: Mapping[str, object]) -> None:
    with pytest.raises(MarkedForDeletion) as refusal:
        command_of(action, queued({"expected": None, **body})).decide(lineage_after("publish", "mark"), WORLD)
    assert refusal.value.deletion == READY.id


def test_the_schedule_deletes_what_its_rules_let_it_delete() -> None:
    world = replace(WORLD, deletions={("CMIP6", DRAFT.id): replace(READY, automatic=True)})
    body = {"expected": None, "deletion": str(READY.id), "automatic": True}
    assert command_of("delete", queued(body)).decide(lineage_after("publish", "mark"), world).outcome is Outcome.DELETED


def test_no_other_name_is_an_action() -> None:
    with pytest.raises(LookupError):
        command_of("erase", queued({}))
