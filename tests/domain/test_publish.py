"""What happens when someone publishes a dataset: one table of decisions, and what its changes say."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta

import orjson
import pytest

from fedstac.domain import events
from fedstac.domain.actions.publish import Publish
from fedstac.domain.errors import Conflict, ForeignOrigin, ItemAlreadyExists, MissingPermission, Problem
from fedstac.domain.model import Decision, Draft, Lineage, Outcome, Record, SearchCopy, State, World
from fedstac.domain.policy import Level, Principal
from fedstac.vocabularies.checker import open_checker
from tests.support import amending

NOW = datetime(2026, 3, 1, 12, tzinfo=UTC)
BEFORE = NOW - timedelta(days=9)
WORLD = World(now=NOW, origin="west", judge=open_checker(), epoch=3)
NCAR = Principal("nina", frozenset({"publisher:NCAR"}))
BASE = "CMIP6/CMIP6.a.b"


def draft(version: int | None, *, document: str = "d", files: str = "f", institution: str | None = "NCAR") -> Draft:
    name = f"CMIP6.a.b.v{version}" if version else "CMIP6.a.b"
    return Draft(
        collection="CMIP6", id=name, lineage=BASE, version=version, institution=institution,
        text=f'{{"links":[],"said":"{document}","assets":{{"a":{{"file:size":"{files}"}}}},"properties":{{}}}}',
        document_digest=document.encode(),
        files_digest=files.encode(), search=SearchCopy("{}", "", "", "{}"),
    )  # fmt: skip


def record(version: int | None, *, seq: int, state: State = State.PUBLISHED, latest: bool = False) -> Record:
    made = draft(version)
    return Record(
        collection=made.collection, id=made.id, lineage=BASE, origin="west", version=version, state=state,
        latest=latest, claims_latest=latest, epoch=1, seq=seq, created=BEFORE, updated=BEFORE,
        document=None if state in (State.DELETED, State.PURGED) else made.text, document_digest=made.document_digest,
        files_digest=made.files_digest, publisher="paul", cv_version=None,
    )  # fmt: skip


def lineage(*records: Record, origin: str = "west") -> Lineage:
    seq = max((record.seq for record in records), default=0)
    return Lineage(BASE, origin, seq, {record.id: record for record in records})


def decide(before: Lineage, new: Draft, principal: Principal = NCAR) -> Decision:
    return Publish(new, principal).decide(before, WORLD)


V1, V2 = record(20200101, seq=1), record(20210101, seq=3, latest=True)
RETRACTED, DELETED = (record(20210101, seq=4, state=state) for state in (State.RETRACTED, State.DELETED))
PLAIN = record(None, seq=1, latest=True)

# what is there, what comes, the outcome, and each change: event, version, seq, latest
DECISIONS = {
    "new": (lineage(), draft(20200101), Outcome.NEW, [(events.PUBLISHED, 20200101, 1, True)]),
    "newer": (
        lineage(V1, V2), draft(20220101), Outcome.NEWER,
        [(events.SUPERSEDED, 20210101, 4, False), (events.PUBLISHED, 20220101, 5, True)],
    ),
    "older": (lineage(V1, V2), draft(20150101), Outcome.OLDER, [(events.PUBLISHED, 20150101, 4, False)]),
    "in between": (lineage(V1, V2), draft(20200601), Outcome.OLDER, [(events.PUBLISHED, 20200601, 4, False)]),
    "a number, not a text": (lineage(V2), draft(202), Outcome.OLDER, [(events.PUBLISHED, 202, 4, False)]),
    "identical": (lineage(V1, V2), draft(20210101), Outcome.IDENTICAL, []),
    "identical and not latest": (lineage(V1, V2), draft(20200101), Outcome.IDENTICAL, []),
    "other metadata": (
        lineage(V1, V2), draft(20210101, document="e"), Outcome.UPDATED, [(events.UPDATED, 20210101, 4, True)],
    ),
    "other metadata of an old version": (
        lineage(V1, V2), draft(20200101, document="e"), Outcome.UPDATED, [(events.UPDATED, 20200101, 4, False)],
    ),
    "newer than a retracted one": (
        lineage(RETRACTED), draft(20220101), Outcome.NEWER, [(events.PUBLISHED, 20220101, 5, True)],
    ),
    "older than a retracted one": (
        lineage(RETRACTED), draft(20200101), Outcome.OLDER, [(events.PUBLISHED, 20200101, 5, False)],
    ),
    "older than a tombstone": (
        lineage(DELETED), draft(20200101), Outcome.OLDER, [(events.PUBLISHED, 20200101, 5, False)],
    ),
    "without versions": (lineage(), draft(None), Outcome.NEW, [(events.PUBLISHED, None, 1, True)]),
    "without versions, again": (lineage(PLAIN), draft(None), Outcome.IDENTICAL, []),
}  # fmt: skip

REFUSALS = {
    "other files": (lineage(V1, V2), draft(20210101, document="e", files="g"), NCAR, ItemAlreadyExists),
    "without versions, other content": (lineage(PLAIN), draft(None, document="e"), NCAR, ItemAlreadyExists),
    "a retracted version": (lineage(RETRACTED), draft(20210101, document="e"), NCAR, Conflict),
    "a retracted version, the same": (lineage(RETRACTED), draft(20210101), NCAR, Conflict),
    "a tombstone": (lineage(DELETED), draft(20210101), NCAR, Conflict),
    "of another node": (lineage(origin="south"), draft(20210101), NCAR, ForeignOrigin),
    "of another institution": (lineage(), draft(20210101, institution="DKRZ"), NCAR, MissingPermission),
    "of no institution": (lineage(), draft(20210101, institution=None), NCAR, MissingPermission),
    "identical and not permitted": (
        lineage(V2), draft(20210101), Principal("eve", frozenset({"node:east"})), MissingPermission,
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", DECISIONS)
def test_publishing(case: str) -> None:
    before, new, outcome, wanted = DECISIONS[case]
    decision = decide(before, new)
    assert decision.outcome is outcome
    assert [(c.event_type, c.after.version, c.after.seq, c.after.latest) for c in decision.changes] == wanted
    assert all(change.after.claims_latest == change.after.latest for change in decision.changes)
    after = before.after(decision.changes)
    assert sum(record.latest for record in after.records.values()) <= 1
    assert after.seq == before.seq + len(wanted)


@pytest.mark.parametrize("case", REFUSALS)
def test_publishing_is_refused(case: str) -> None:
    before, new, principal, problem = REFUSALS[case]
    with pytest.raises(Problem) as refused:
        decide(before, new, principal)
    assert type(refused.value) is problem
    assert new.id in refused.value.detail


def test_the_second_identical_request_changes_nothing() -> None:
    for before, new, _, _ in DECISIONS.values():
        after = before.after(decide(before, new).changes)
        again = decide(after, new)
        assert (again.outcome, again.changes) == (Outcome.IDENTICAL, ())


def test_an_administrator_may_publish_what_names_no_institution() -> None:
    root = Principal("root", frozenset({"admin"}))
    assert decide(lineage(), draft(20200101, institution=None), root).outcome is Outcome.NEW


def test_a_record_says_who_published_it_when_and_in_which_epoch() -> None:
    [change] = decide(lineage(), draft(20200101)).changes
    new = change.after
    assert (new.publisher, new.origin, new.created, new.updated, new.epoch) == ("nina", "west", NOW, NOW, 3)
    assert (change.before, change.draft) == (None, draft(20200101))


def test_an_update_keeps_who_published_it_and_when() -> None:
    [change] = decide(lineage(V2), draft(20210101, document="e")).changes
    assert (change.after.publisher, change.after.created, change.after.updated) == ("paul", BEFORE, NOW)
    assert change.after.document == draft(20210101, document="e").text


def test_a_demotion_changes_the_state_alone() -> None:
    demotion, _ = decide(lineage(V2), draft(20220101)).changes
    assert demotion.draft is None
    assert demotion.after == replace(V2, latest=False, claims_latest=False, epoch=3, seq=4, updated=NOW)
    assert demotion.reason == "superseded by CMIP6.a.b.v20220101"


def test_a_batch_folds() -> None:
    before = lineage()
    for n, version in enumerate((20200101, 20210101, 20190101), start=1):
        decision = decide(before, draft(version))
        before = before.after(decision.changes)
        assert len(before.records) == n
    assert before.latest is not None
    assert (before.latest.version, before.seq) == (20210101, 4)
    assert sorted(record.seq for record in before.records.values()) == [2, 3, 4]


@pytest.mark.parametrize(("level", "problem"), [(Level.CONTROLLED, MissingPermission), (Level.PRIVATE, Conflict)])
def test_who_may_publish_for_another_institution_changes_no_dataset_of_this_one(
    level: Level, problem: type[Problem]
) -> None:
    """Where the id does not name the institution, the document alone says whose the dataset is."""
    new, _ = amending.CHECKER.draft(amending.ITEM, "CMIP6", amending.VOCABULARY)
    before = Publish(new, amending.ROOT, amending.VERSION).decide(
        Lineage(new.lineage, "west", 0, {}), amending.WORLD
    ).changes[0].after  # fmt: skip
    document = orjson.loads(before.document or "")
    document["properties"] |= {"cmip6:institution_id": "DKRZ", "fedstac:access": level}
    here = replace(before, document=orjson.dumps(document).decode(), document_digest=b"other", access=level)
    publisher = Principal("p", frozenset({f"publisher:{amending.ITEM['properties']['cmip6:institution_id']}"}))
    stored = Lineage(new.lineage, "west", 1, {here.id: here})
    with pytest.raises(problem) as refusal:
        Publish(new, publisher, amending.VERSION).decide(stored, amending.WORLD)
    assert ("DKRZ" in refusal.value.detail) is (level is not Level.PRIVATE)
    retracted = replace(here, state=State.RETRACTED, latest=False)
    with pytest.raises(Conflict) as refusal:
        Publish(new, publisher, amending.VERSION).decide(Lineage(new.lineage, "west", 2, {here.id: retracted}),
                                                         amending.WORLD)  # fmt: skip
    assert ("retracted" in refusal.value.detail) is (level is not Level.PRIVATE)
