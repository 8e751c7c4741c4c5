"""What other nodes announce, applied here: `apply` for their events, `load` for their snapshots.

The second entry to the writer of records (db/records.py). Consumers call it in the transaction that moves their cursor.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final

from fedstac.db import collections, purging, records
from fedstac.db.connections import Connection
from fedstac.db.records import RecordPlace
from fedstac.domain import events
from fedstac.domain.events import CollectionEvent, DatasetEvent, Event
from fedstac.domain.model import NO_CLAIM, Change, Draft, LatestClaim, Lineage, Record, State

PART_RECORDS: Final = 5_000  # of an origin that is forgotten, in one transaction


@dataclass(frozen=True, slots=True)
class PageResult:
    """The result of a page of events at a consumer."""

    applied_count: int
    ignored_count: int  # here already, or older than what is here
    foreign: tuple[Event, ...] = ()  # for lineages of another origin, or a collection that is not here


async def apply(conn: Connection, page: Sequence[Event]) -> PageResult:
    """Apply what an origin announced; join the consumer's transaction, which also moves its cursor.

    Each event counts once: one that is not newer by (epoch, seq) than the stored state is dropped, and so is one that
    was redacted since, whose dataset is deleted further on. A lineage's latest is derived from the last claim of any of
    its versions (C1), so no order of arrival and no event that is missing can show two, or one that was demoted.
    """
    count = 0
    foreign: list[Event] = []
    datasets: list[DatasetEvent] = []
    if any(isinstance(event, CollectionEvent) for event in page):
        await collections.hold(conn)
    for event in page:  # a collection's event is rare, and ends a run of datasets
        if isinstance(event, DatasetEvent):
            datasets.append(event)
        elif isinstance(event, CollectionEvent):
            count += await _apply_datasets(conn, datasets, foreign)
            datasets = []
            count += await collections.apply(conn, event)
    count += await _apply_datasets(conn, datasets, foreign)
    return PageResult(count, len(page) - count - len(foreign), tuple(foreign))


async def _apply_datasets(conn: Connection, page: Sequence[DatasetEvent], foreign: list[Event]) -> int:
    here = await records.hold_leaves(conn, sorted({event.record.collection for event in page}))
    foreign += [event for event in page if event.draft and event.record.collection not in here]
    page = [event for event in page if not event.draft or event.record.collection in here]
    if not page:
        return 0
    new_lineages = await _begin_lineages(conn, page)
    lineages = await _lineages_of(conn, page, new_lineages)
    before = {key: dict(lineage.records) for key, lineage in lineages.items()}
    drafts: dict[tuple[str, str], DatasetEvent] = {}
    claims: dict[str, LatestClaim] = {}
    count = 0
    for event in page:
        lineage, record = lineages[event.record.lineage], event.record
        if lineage.origin != record.origin:
            foreign.append(event)
            continue
        claim, own_claim = lineage.claim, record.claim
        if own_claim is not None and own_claim > claim:  # also where the dataset is further already
            claim = claims[lineage.key] = own_claim
        present = lineage.records.get(record.id)
        if present is not None and present.includes(record.epoch, record.seq):
            if claim is not lineage.claim:
                lineages[lineage.key] = replace(lineage, claim=claim)
            continue
        lineages[lineage.key] = Lineage(
            lineage.key, lineage.origin, max(lineage.seq, record.seq), {**lineage.records, record.id: record}, claim
        )
        drafts[record.collection, record.id] = event
        count += 1
    changes = [change for key in lineages for change in _with_latest(before[key], lineages[key], drafts)]
    if changes or claims:
        seqs = {key: lineage.seq for key, lineage in lineages.items() if not _is_as(new_lineages.get(key), lineage)}
        await records.write(conn, changes, seqs, here, claims=claims)
    purged: dict[str, list[tuple[str, str]]] = {}  # by origin: one, as a page is of one
    for each in changes:
        if each.after.state is State.PURGED:
            purged.setdefault(each.after.origin, []).append((each.after.collection, each.after.id))
    for origin, names in purged.items():
        await purging.purge_copies(conn, names, origin=origin)
    return count


async def load(conn: Connection, origin: str, datasets: Sequence[tuple[Record, Draft | None]]) -> PageResult:
    """Store datasets of a snapshot as they are; join the consumer's transaction.

    What its origin judged is not judged again. The lineages that nobody announced here yet are written at once; the
    others take the way of events.
    """
    seqs: dict[str, int] = {}
    claims: dict[str, LatestClaim] = {}
    for record, _ in datasets:
        key, claim = record.lineage, record.claim
        seqs[key] = max(seqs.get(key, 0), record.seq)
        if claim is not None:
            claims[key] = max(claims.get(key, NO_CLAIM), claim)
    lineages = [Lineage(key, origin, seq, {}, claims.get(key, NO_CLAIM)) for key, seq in seqs.items()]
    here = await records.hold_leaves(conn, sorted({record.collection for record, _ in datasets}))
    new_keys = await records.begin_lineages(conn, lineages)
    changes: list[Change] = []
    others: list[DatasetEvent] = []
    for record, draft in datasets:
        if record.lineage in new_keys and (draft is None or record.collection in here):
            latest = record.claim is not None and record.claim == claims[record.lineage]
            after = record if record.latest is latest else replace(record, latest=latest)
            changes.append(Change(events.CURRENT, None, after, draft=draft))
        else:
            others.append(DatasetEvent("", None, record, draft))
    await records.write(conn, changes, {}, here)
    foreign: list[Event] = []
    count = len(changes) + (await _apply_datasets(conn, others, foreign) if others else 0)
    return PageResult(count, len(datasets) - count - len(foreign), tuple(foreign))


async def _begin_lineages(conn: Connection, page: Sequence[DatasetEvent]) -> dict[str, Lineage]:
    """Insert the lineages that nobody announced here yet, and return them as they are stored.

    They have the number and the claim that the page leads to, as a rule, so that they are written once.
    """
    origins = {event.record.lineage: event.record.origin for event in reversed(page)}
    seqs = dict.fromkeys(origins, 0)
    claims = dict.fromkeys(origins, NO_CLAIM)
    for record in (event.record for event in page):
        key = record.lineage
        if record.origin != origins[key]:
            continue
        if record.seq > seqs[key]:
            seqs[key] = record.seq
        claim = record.claim
        if claim is not None and claim > claims[key]:
            claims[key] = claim
    lineages = {key: Lineage(key, origin, seqs[key], {}, claims[key]) for key, origin in origins.items()}
    new_keys = await records.begin_lineages(conn, list(lineages.values()))
    return {key: lineage for key, lineage in lineages.items() if key in new_keys}


def _is_as(row: Lineage | None, lineage: Lineage) -> bool:
    """Tell whether a lineage is stored with its number and its claim already."""
    return row is not None and (row.seq, row.claim) == (lineage.seq, lineage.claim)


async def _lineages_of(
    conn: Connection, page: Sequence[DatasetEvent], new_lineages: Mapping[str, Lineage]
) -> dict[str, Lineage]:
    """Return the lineages of a page, locked and loaded. A lineage without records belongs to its first announcer.

    new_lineages: those that are new here; they begin with nothing.
    """
    new = {key: replace(lineage, seq=0, claim=NO_CLAIM) for key, lineage in new_lineages.items()}
    first = {event.record.lineage: event.record.origin for event in reversed(page) if event.record.lineage not in new}
    if not first:
        return new
    lineages = await records.load(conn, await records.lock_present(conn, list(first)), ())
    empty = {key: first[key] for key, one in lineages.items() if not one.records and one.origin != first[key]}
    if empty:  # their origin was restored to before them, or is just taken anew
        await records.hand_over(conn, empty)
    lineages |= {key: replace(lineages[key], origin=origin) for key, origin in empty.items()}
    return new | {key: replace(lineage, claim=_claim_of(lineage)) for key, lineage in lineages.items()}


def _claim_of(lineage: Lineage) -> LatestClaim:
    """Return the last claim in a lineage. One whose datasets are forgotten has none: it is told anew."""
    claims = [claim for record in lineage.records.values() if record.latest and (claim := record.claim)]
    return max([lineage.claim, *claims]) if lineage.records else NO_CLAIM


def _with_latest(
    before: Mapping[str, Record], lineage: Lineage, drafts: Mapping[tuple[str, str], DatasetEvent]
) -> list[Change]:
    """Return the lineage's changes with its one latest derived (C1): who made the last claim and still makes it."""
    changes = []
    latest = max((record.id for record in lineage.records.values() if record.claim == lineage.claim), default=None)
    for record in lineage.records.values():
        is_latest = record.id == latest
        after = record if record.latest is is_latest else replace(record, latest=is_latest)
        if after == before.get(record.id):
            continue
        event = drafts.get((record.collection, record.id))
        changes.append(Change(events.CURRENT, before.get(record.id), after, draft=event.draft if event else None))
    return changes


@dataclass(frozen=True, slots=True)
class RepairOrder:
    """Datasets of one collection and origin that a consumer has wrong: the state they ought to have.

    surplus: what the origin does not have, as it was seen here.
    """

    origin: str
    collection: str
    entries: Sequence[DatasetEvent]
    surplus: Sequence[RecordPlace] = ()
    lineages: Sequence[str] = ()  # of the surplus


@dataclass(frozen=True, slots=True)
class RepairResult:
    """The ids of datasets that are as they ought to be now."""

    applied_ids: frozenset[str]
    removed_ids: frozenset[str]


async def mend(conn: Connection, order: RepairOrder) -> RepairResult:
    """Put datasets at a consumer into the state that their origin says, whatever is here; join the transaction.

    What became newer here since the origin was asked is left as it is.
    """
    here = await records.hold_leaves(conn, [order.collection])
    keys = {event.record.lineage for event in order.entries} | set(order.lineages)
    await records.lock(conn, dict.fromkeys(sorted(keys), order.origin))
    wrong = [RecordPlace(event.record.id, event.record.epoch, event.record.seq) for event in order.entries]
    removed_ids = await records.remove_some(
        conn, order.origin, order.collection, [*wrong, *order.surplus], leaf=here.get(order.collection)
    )
    result = await apply(conn, order.entries)
    foreign_ids = {event.record.id for event in result.foreign if isinstance(event, DatasetEvent)}
    applied_ids = {event.record.id for event in order.entries} - foreign_ids
    surplus_ids = {place.id for place in order.surplus}
    return RepairResult(frozenset(applied_ids), frozenset(removed_ids & surplus_ids))


async def forget(conn: Connection, origin: str, *, before_epoch: int) -> int:
    """Remove at a consumer what an origin no longer has: what its snapshot of a newer epoch did not list.

    With an epoch beyond all, everything of that origin goes, collections too: the start of a rebuild.
    """
    if before_epoch <= 1:
        return 0
    async with conn.transaction():
        leaving = [one.id for one in await collections.of_origin(conn, origin) if one.epoch < before_epoch]
        if leaving:
            await collections.hold(conn)
        removed = await records.remove(conn, origin, before_epoch)
        for collection in leaving:
            await collections.erase(conn, collection, origin)
        return removed


async def forget_in_parts(conn: Connection, origin: str, *, before_epoch: int) -> None:
    """Remove at a consumer the datasets of an origin, about PART_RECORDS of them in one transaction.

    A long transaction is looked behind by every search at each of its looks for changes. `forget` removes the rest.
    """
    removed = -1
    while removed:
        async with conn.transaction():
            removed = await records.remove(conn, origin, before_epoch, most=PART_RECORDS)
