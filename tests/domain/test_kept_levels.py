"""A level that nobody speaks of stays: in the same dataset again, in a new version, in every kind of change."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any

import orjson
import pytest

from fedstac.domain import documents, patching, reconcile
from fedstac.domain.access import level_in_document
from fedstac.domain.actions.amend import Amend
from fedstac.domain.actions.clear import Clear, Rebuild
from fedstac.domain.actions.publish import Publish
from fedstac.domain.actions.target import QueuedAction, Target
from fedstac.domain.errors import Conflict, MissingPermission
from fedstac.domain.groups import ANY
from fedstac.domain.model import Lineage, Outcome, Record, World
from fedstac.domain.patching import Edit, JsonPatch, MergePatch, Whole, WithoutNode
from fedstac.domain.policy import Action, By, Level, Policy, PolicyRule, Principal, ProjectLevel, Who
from fedstac.domain.vocabulary import DatasetName
from tests.support.amending import CHECKER, ITEM, ROOT, VERSION, VOCABULARY, WORLD

Json = dict[str, Any]
PLACE = "/properties/fedstac:access"


def at_level(level: str | None, *, version: str | None = None, title: str | None = None) -> Json:
    """Return the dataset with a level, or with a word about none."""
    item = copy.deepcopy(ITEM)
    if version is not None:
        item["id"] = f"{item['id'].rpartition('.v')[0]}.v{version}"
        item["properties"]["version"] = version
    if level is not None:
        item["properties"]["fedstac:access"] = level
    if title is not None:
        item["properties"]["description"] = title
    return item


def publication(item: Json, principal: Principal = ROOT) -> Publish:
    return Publish(CHECKER.draft(item, "CMIP6", VOCABULARY)[0], principal, VERSION)


def stored(*items: Json, world: World = WORLD) -> Lineage:
    lineage = Lineage(publication(items[0]).draft.lineage, "west", 0, {})
    for item in items:
        lineage = lineage.after(publication(item).decide(lineage, world).changes)
    return lineage


def levels(record: Record) -> tuple[str, str]:
    """Return the level of a record, and the one that its document states."""
    return record.access.value, level_in_document(record).value


def asking(level: Level) -> World:
    return replace(WORLD, policy=replace(WORLD.policy, levels=(ProjectLevel(frozenset(("CMIP6",)), level),)))


@pytest.mark.parametrize("level", ["controlled", "private"])
def test_the_same_dataset_again_keeps_its_level(level: str) -> None:
    before = stored(at_level(level))
    assert publication(at_level(None)).decide(before, WORLD).outcome is Outcome.IDENTICAL
    decision = publication(at_level(None, title="better")).decide(before, WORLD)
    [change] = decision.changes
    assert (decision.outcome, levels(change.after)) == (Outcome.UPDATED, (level, level))
    assert [each.rule for each in decision.warnings] == ["access"]
    again = publication(at_level(None, title="better")).decide(before.after(decision.changes), WORLD)
    assert again.outcome is Outcome.IDENTICAL, "a repeat is harmless"


@pytest.mark.parametrize("level", ["controlled", "private"])
def test_a_word_opens_it(level: str) -> None:
    decision = publication(at_level("open")).decide(stored(at_level(level)), WORLD)
    assert [levels(change.after) for change in decision.changes] == [("open", "open")]
    assert not decision.warnings


@pytest.mark.parametrize(
    ("here", "version", "word", "level"),
    [
        (["controlled"], "20300101", None, "controlled"),
        (["private"], "20300101", None, "private"),
        (["private"], "20300101", "controlled", "controlled"),
        (["private"], "20300101", "open", "open"),
        (["open"], "20300101", None, "open"),
        (["open"], "20300101", "private", "private"),
        (["controlled"], "19900101", None, "controlled"),  # before the first one
        (["open", "controlled"], "20250101", None, "open"),  # its predecessor's, and no later one's
        (["controlled", "open"], "20400101", None, "open"),
        (["controlled", "private"], "20400101", None, "private"),
    ],
)
def test_a_new_version_has_the_level_of_the_version_before(
    here: list[str], version: str, word: str | None, level: str
) -> None:
    lineage = stored(*(at_level(each, version=f"20{n}00101") for n, each in enumerate(here, 2)))
    [*_, change] = publication(at_level(word, version=version)).decide(lineage, WORLD).changes
    assert levels(change.after) == (level, level)
    assert change.after.id.endswith(version)


def test_the_level_of_a_deleted_version_counts() -> None:
    lineage = stored(at_level("private"))
    [record] = lineage.records.values()
    gone = replace(lineage, records={record.id: replace(record, document=None)})
    [change] = publication(at_level(None, version="20300101")).decide(gone, WORLD).changes
    assert levels(change.after) == ("private", "private")


def test_a_level_of_the_project_that_was_lowered_stays_until_it_is_applied() -> None:
    """`fedstac admin apply-levels` lowers it, and no chance change does; documents do not get it."""
    lineage = stored(at_level(None), world=asking(Level.PRIVATE))
    [record] = lineage.records.values()
    assert levels(record) == ("private", "open")
    amend = Amend(Target("CMIP6", record.id, record.lineage), ROOT, MergePatch({"properties": {"description": "x"}}),
                  VERSION)  # fmt: skip
    assert publication(at_level(None)).decide(lineage, WORLD).outcome is Outcome.IDENTICAL
    for command in (publication(at_level(None, title="x")), publication(at_level(None, version="20300101")), amend):
        decision = command.decide(lineage, asking(Level.CONTROLLED))
        assert levels(decision.changes[-1].after) == ("private", "open")
        assert not decision.warnings


def test_who_may_not_update_a_dataset_may_not_lower_its_level() -> None:
    who = (Who(By.NAME, "paul"),)
    everywhere = frozenset((ANY,))
    rule = PolicyRule("publishers", who, frozenset((Action.PUBLISH,)), everywhere, everywhere, everywhere)
    world, paul = replace(WORLD, policy=Policy((rule,))), Principal("paul", frozenset())
    lineage = stored(at_level("private"))
    for item in (at_level("open", version="20300101"), at_level("controlled", version="20300101"), at_level("open")):
        with pytest.raises(MissingPermission, match="update"):
            publication(item, paul).decide(lineage, world)
    [change] = publication(at_level(None, version="20300101"), paul).decide(lineage, world).changes
    assert change.after.access is Level.PRIVATE


def test_who_may_not_read_a_private_dataset_does_not_learn_that_it_is_the_same() -> None:
    """Its document says whose it is. The same without its level is identical to the owner alone."""
    lineage = stored(at_level("private"))
    [record] = lineage.records.values()
    publisher = Principal("p", frozenset({f"publisher:{ITEM['properties']['cmip6:institution_id']}"}))
    assert publication(at_level(None), publisher).decide(lineage, WORLD).outcome is Outcome.IDENTICAL
    document = orjson.loads(record.document or "")
    document["properties"]["cmip6:institution_id"] = "ANOTHER"
    theirs = replace(record, document=orjson.dumps(document).decode())
    with pytest.raises(Conflict, match="was used before"):
        publication(at_level(None), publisher).decide(replace(lineage, records={record.id: theirs}), WORLD)


BARE: Json = dict(documents.without_server_members(ITEM))
WITHOUT: Json = BARE["properties"] | {"description": "x"}
KEEPING = [
    Whole(at_level(None, title="x")), MergePatch({"properties": {"description": "x"}}),
    JsonPatch([{"op": "add", "path": "/properties/description", "value": "x"}]),
    JsonPatch([{"op": "replace", "path": "/properties", "value": WITHOUT}]),
    JsonPatch([{"op": "test", "path": PLACE, "value": "private"},
               {"op": "add", "path": "/properties/description", "value": "x"}]),
]  # fmt: skip
OPENING = [
    Whole(at_level("open")), MergePatch({"properties": {"fedstac:access": "open"}}),
    MergePatch({"properties": {"fedstac:access": None}}), JsonPatch([{"op": "remove", "path": PLACE}]),
    JsonPatch([{"op": "replace", "path": PLACE, "value": "open"}]),
    JsonPatch([{"op": "replace", "path": "/properties", "value": WITHOUT | {"fedstac:access": "open"}}]),
    JsonPatch([{"op": "replace", "path": "", "value": BARE | {"properties": WITHOUT | {"fedstac:access": "open"}}}]),
    JsonPatch([{"op": "move", "from": PLACE, "path": "/properties/description"}]),
]  # fmt: skip


@pytest.mark.parametrize(("edit", "level"), [*((each, "private") for each in KEEPING), *((e, "open") for e in OPENING)])
def test_a_change_that_says_nothing_of_the_level_keeps_it(edit: Edit, level: str) -> None:
    lineage = stored(at_level("private"))
    [record] = lineage.records.values()
    decision = Amend(Target("CMIP6", record.id, record.lineage), ROOT, edit, VERSION).decide(lineage, WORLD)
    [change] = decision.changes
    assert levels(change.after) == (level, level)


def test_an_edit_of_replicas_says_nothing_of_the_level() -> None:
    assert not patching.names(WithoutNode("east"), "properties", "fedstac:access")


def test_a_rebuild_keeps_the_level_and_what_was_cleared_comes_back_at_its_own() -> None:
    lineage = stored(at_level("private"))
    [record] = lineage.records.values()
    clear = Clear(Target("CMIP6", record.id, record.lineage), ROOT)
    rebuilt = Rebuild(clear, publication(at_level(None))).decide(lineage, WORLD)
    cleared = lineage.after(clear.decide(lineage, WORLD).changes)
    again = publication(at_level(None)).decide(cleared, WORLD)
    for decision in (rebuilt, again):
        after = decision.changes[-1].after
        assert levels(after) == ("private", "private")
        assert not after.latest
    opened = Rebuild(clear, publication(at_level("open"))).decide(lineage, WORLD)
    assert levels(opened.changes[-1].after) == ("open", "open")


@pytest.mark.parametrize("level", [None, "open", "controlled"])
def test_what_waits_remembers_whether_it_says_a_level(level: str | None) -> None:
    draft = publication(at_level(level)).draft
    texts = documents.texts_of(draft)
    assert texts.document is not None
    assert texts.prepared is not None
    name = DatasetName(draft.lineage, draft.version)
    again = Publish.read(QueuedAction(
        "CMIP6", draft.id, name, ROOT, texts.document, prepared=texts.prepared, coded=texts.coded, vocabulary=VOCABULARY
    )).draft  # fmt: skip
    assert again == draft
    assert again.states_level is (level is not None)
    document = documents.as_stated(texts.document, texts.prepared)
    assert document["properties"].get("fedstac:access") == level


@pytest.mark.parametrize(
    ("here", "word", "differs"),
    [
        ("controlled", None, False), ("controlled", "controlled", False), ("controlled", "open", True),
        (None, "open", False), (None, None, False), (None, "private", True),
    ],
)  # fmt: skip
def test_a_load_that_says_nothing_of_the_level_changes_nothing(
    here: str | None, word: str | None, *, differs: bool
) -> None:
    text = publication(at_level(here)).draft.text
    document = documents.without_server_members(at_level(None))
    if word is not None:
        document = {**document, "properties": {**document["properties"], "fedstac:access": word}}
    assert reconcile.differs(text, document) is differs
