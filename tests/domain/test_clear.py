"""What a full-state load does to one dataset: it is cleared, and may be published again."""

from __future__ import annotations

import copy
from dataclasses import replace

import pytest

from fedstac.domain import events, patching
from fedstac.domain.actions.amend import Amend
from fedstac.domain.actions.clear import Clear, Rebuild
from fedstac.domain.actions.delete import Purge
from fedstac.domain.actions.mark import Mark
from fedstac.domain.actions.publish import Publish
from fedstac.domain.actions.retract import Retract
from fedstac.domain.actions.target import Target
from fedstac.domain.errors import Conflict, ItemDoesNotExist, MarkedForDeletion, MissingPermission, PreconditionFailed
from fedstac.domain.model import Lineage, Outcome, State
from fedstac.domain.policy import Principal
from tests.support.amending import CHECKER, ITEM, ROOT, VERSION, VOCABULARY, WORLD

DRAFT, _ = CHECKER.draft(ITEM, "CMIP6", VOCABULARY)
LATER, _ = CHECKER.draft(
    {**ITEM, "id": f"{ITEM['id'].rpartition('.v')[0]}.v20300101",
     "properties": {**ITEM["properties"], "version": "20300101"}}, "CMIP6", VOCABULARY,
)  # fmt: skip
TARGET = Target("CMIP6", DRAFT.id, DRAFT.lineage)
LATER_TARGET = replace(TARGET, id=LATER.id)
PUBLISH = Publish(DRAFT, ROOT, VERSION)
EMPTY = Lineage(DRAFT.lineage, "west", 0, {})


def after(*commands: Publish | Clear | Mark | Rebuild | Purge) -> Lineage:
    lineage = EMPTY
    for command in commands:
        lineage = lineage.after(command.decide(lineage, WORLD).changes)
    return lineage


def test_a_dataset_is_cleared_without_a_tombstone() -> None:
    decision = Clear(TARGET, ROOT, reason="not in the load").decide(after(PUBLISH), WORLD)
    [change] = decision.changes
    assert (decision.outcome, change.event_type, change.after.state) == (
        Outcome.CLEARED, events.CLEARED, State.CLEARED
    )  # fmt: skip
    assert (change.after.document, change.after.latest, change.reason) == (None, False, "not in the load")


def test_clearing_twice_changes_nothing() -> None:
    assert Clear(TARGET, ROOT).decide(after(PUBLISH, Clear(TARGET, ROOT)), WORLD).outcome is Outcome.IDENTICAL


def test_what_was_cleared_may_be_published_again_under_the_same_id() -> None:
    lineage = after(PUBLISH, Clear(TARGET, ROOT))
    decision = PUBLISH.decide(lineage, WORLD)
    [change] = decision.changes
    assert (decision.outcome, change.event_type, change.after.seq) == (Outcome.NEW, events.PUBLISHED, 3)
    assert change.before is not None
    assert change.before.state is State.CLEARED
    assert change.after.latest


def test_a_rebuild_is_a_clearing_and_a_publication_with_nothing_in_between() -> None:
    lineage = after(PUBLISH)
    decision = Rebuild(Clear(TARGET, ROOT), PUBLISH).decide(lineage, WORLD)
    assert decision.outcome is Outcome.REBUILT
    assert [change.event_type for change in decision.changes] == [events.CLEARED, events.PUBLISHED]
    assert [change.after.seq for change in decision.changes] == [2, 3]


def test_a_rebuild_keeps_which_version_is_the_latest() -> None:
    lineage = after(PUBLISH, Publish(LATER, ROOT, VERSION))
    for target, draft in ((TARGET, DRAFT), (LATER_TARGET, LATER)):
        decision = Rebuild(Clear(target, ROOT), Publish(draft, ROOT, VERSION)).decide(lineage, WORLD)
        assert len(decision.changes) == 2, "no other version is demoted or promoted"
        lineage = lineage.after(decision.changes)
    assert [record.id for record in lineage.records.values() if record.latest] == [LATER.id]


def latest_of(lineage: Lineage) -> list[str]:
    return [record.id for record in lineage.records.values() if record.latest]


def test_a_rebuild_keeps_a_version_the_latest_that_stands_in_for_a_retracted_one() -> None:
    world = replace(WORLD, policy=replace(WORLD.policy, promoting=frozenset({"CMIP6"})))
    lineage = after(PUBLISH, Publish(LATER, ROOT, VERSION))
    lineage = lineage.after(Retract(LATER_TARGET, ROOT, {"reason": "wrong"}).decide(lineage, world).changes)
    assert latest_of(lineage) == [DRAFT.id]
    decision = Rebuild(Clear(TARGET, ROOT), PUBLISH).decide(lineage, world)
    assert latest_of(lineage.after(decision.changes)) == [DRAFT.id]


def test_a_rebuild_does_not_make_a_version_the_latest_that_its_publisher_gave_up() -> None:
    lineage = after(PUBLISH, Publish(LATER, ROOT, VERSION))
    edit = patching.read([{"op": "replace", "path": "/properties/latest", "value": False}])
    lineage = lineage.after(Amend(LATER_TARGET, ROOT, edit, VERSION).decide(lineage, WORLD).changes)
    decision = Rebuild(Clear(LATER_TARGET, ROOT), Publish(LATER, ROOT, VERSION)).decide(lineage, WORLD)
    lineage = lineage.after(decision.changes)
    assert (lineage.records[LATER.id].superseded, lineage.records[LATER.id].latest) == (True, False)


def test_a_rebuild_is_no_way_around_the_reason_for_other_files() -> None:
    document = copy.deepcopy(ITEM)
    next(each for each in document["assets"].values() if "file:checksum" in each)["file:checksum"] = f"1220{9:064}"
    draft, _ = CHECKER.draft(document, "CMIP6", VOCABULARY)
    rebuild = Rebuild(Clear(TARGET, ROOT), Publish(draft, ROOT, VERSION))
    with pytest.raises(Conflict, match="Fedstac-Override"):
        rebuild.decide(after(PUBLISH), WORLD)
    decision = replace(rebuild, override="a file was broken").decide(after(PUBLISH), WORLD)
    assert decision.changes[-1].after.files_digest == draft.files_digest


def test_the_version_before_is_the_latest_when_the_latest_is_cleared() -> None:
    lineage = after(PUBLISH, Publish(LATER, ROOT, VERSION), Clear(LATER_TARGET, ROOT))
    assert latest_of(lineage) == [DRAFT.id], "as if the cleared one had never been there"
    lineage = after(PUBLISH, Publish(LATER, ROOT, VERSION), Clear(TARGET, ROOT))
    assert latest_of(lineage) == [LATER.id]


def test_a_version_that_was_cleared_does_not_count_as_newer() -> None:
    lineage = after(Publish(LATER, ROOT, VERSION), Clear(LATER_TARGET, ROOT))
    [change] = PUBLISH.decide(lineage, WORLD).changes
    assert change.after.latest


def test_a_load_clears_nothing_that_changed_since_it_was_compared() -> None:
    with pytest.raises(PreconditionFailed):
        Clear(TARGET, ROOT, expected=("0" * 32,)).decide(after(PUBLISH), WORLD)
    with pytest.raises(PreconditionFailed):
        Rebuild(Clear(TARGET, ROOT, expected=("0" * 32,)), PUBLISH).decide(after(PUBLISH), WORLD)


def test_a_load_leaves_what_is_marked_for_deletion() -> None:
    with pytest.raises(MarkedForDeletion):
        Clear(TARGET, ROOT).decide(after(PUBLISH, Mark(TARGET, ROOT)), WORLD)


def test_who_may_not_delete_clears_nothing() -> None:
    institution = ITEM["properties"]["cmip6:institution_id"]
    publisher = Principal("p", frozenset({f"publisher:{institution}"}))
    with pytest.raises(MissingPermission):
        Clear(TARGET, publisher).decide(after(PUBLISH), WORLD)


def test_what_is_not_here_is_not_cleared() -> None:
    with pytest.raises(ItemDoesNotExist):
        Clear(TARGET, ROOT).decide(EMPTY, WORLD)


def test_what_was_cleared_can_be_purged_and_its_id_is_never_used_again() -> None:
    lineage = after(PUBLISH, Clear(TARGET, ROOT))
    decision = Purge(TARGET, ROOT).decide(lineage, WORLD)
    [change] = decision.changes
    assert (decision.outcome, change.event_type, change.after.state) == (Outcome.PURGED, events.PURGED, State.PURGED)
    lineage = lineage.after(decision.changes)
    assert Purge(TARGET, ROOT).decide(lineage, WORLD).outcome is Outcome.IDENTICAL
    with pytest.raises(Conflict, match="publish a new version instead"):
        PUBLISH.decide(lineage, WORLD)


def test_a_purge_of_what_was_cleared_leaves_the_latest_as_it_is() -> None:
    lineage = after(PUBLISH, Publish(LATER, ROOT, VERSION), Clear(LATER_TARGET, ROOT), Purge(LATER_TARGET, ROOT))
    assert latest_of(lineage) == [DRAFT.id]


def test_for_whoever_may_not_purge_a_cleared_dataset_never_was() -> None:
    with pytest.raises(ItemDoesNotExist):
        Purge(TARGET, Principal("p", frozenset())).decide(after(PUBLISH, Clear(TARGET, ROOT)), WORLD)
