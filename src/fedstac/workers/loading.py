"""Full-state loads: what somebody states comes in parts, is compared with what is here, and is applied.

Nothing changes before `apply`. A large load is compared by workers/load_steps.py, some datasets at a time. Once it is
applied, a load is a change of many datasets: workers/bulk_changes.py works it off, a part in one transaction, and goes
on after whatever kills it. Each dataset is changed by a command of its own, in
the state that it was compared in alone: what somebody else changes meanwhile stays, and is refused to the load.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any, Final
from uuid import UUID

import structlog

from fedstac.bootstrap import Node
from fedstac.db import audit, bulks, load_application, load_comparison, loads
from fedstac.db.bulks import Bulk, WaitingDataset
from fedstac.db.connections import Connection
from fedstac.db.load_application import StatedDocument
from fedstac.db.loads import ListedLoad, Load, LoadPart, NewLoad, StatedDataset
from fedstac.domain import documents
from fedstac.domain.actions import Command
from fedstac.domain.actions.amend import Amend
from fedstac.domain.actions.clear import Clear, Rebuild
from fedstac.domain.actions.publish import Publish
from fedstac.domain.actions.target import QueuedAction
from fedstac.domain.errors import BadRequest, Conflict, Finding, LoadDoesNotExist, StacInvalid
from fedstac.domain.identifiers import uuid7
from fedstac.domain.model import rfc3339
from fedstac.domain.patching import Whole
from fedstac.domain.policy import Principal
from fedstac.domain.reconcile import MOST, MOST_OPEN, MOST_OPEN_OF_COLLECTION, LoadChange, LoadMode
from fedstac.domain.vocabulary import DatasetName, Vocabulary
from fedstac.runtime.failpoints import failpoint
from fedstac.workers import load_steps

FIRST_STEPS: Final = 3  # of a comparison, that a request does itself
EVERYTHING: Final = "*"  # in an audit row
log = structlog.get_logger()


async def begin(conn: Connection, new: NewLoad) -> Load:
    """Store a load that has no part yet. Conflict where the person or the collection has too many open ones."""
    async with conn.transaction():
        count = await loads.count_open(conn, new.submitter, new.collection)
        if count.of_person >= MOST_OPEN:
            raise Conflict(
                f"{count.of_person} loads of yours are open, and {MOST_OPEN} may be; apply or cancel one, the oldest "
                f"is {count.oldest}"
            )
        if count.of_collection >= MOST_OPEN_OF_COLLECTION:
            raise Conflict(
                f"{count.of_collection} loads of {new.collection} are open, and {MOST_OPEN_OF_COLLECTION} may be; one "
                "that is not applied is forgotten after a week"
            )
        await loads.create(conn, new)
        return await _locked(conn, new.id)


async def put_part(
    conn: Connection, id: UUID, part: LoadPart, datasets: Sequence[StatedDataset], names: Sequence[str]
) -> None:
    """Store a part; the same again changes nothing, another body takes its place.

    names: where each dataset stands in the body, for findings. Conflict where the load is applied or cancelled,
    StacInvalid where a dataset is stated twice, or has no id.
    """
    _refuse_repeats(datasets, names)
    async with conn.transaction():
        load = await _locked(conn, id)
        others = await loads.parts(conn, id)
        if any((each.n, each.digest) == (part.n, part.digest) for each in others):
            return
        _require_open(load)
        if sum(each.datasets for each in others if each.n != part.n) + part.datasets > MOST:
            raise BadRequest(f"the load states more than {MOST} datasets; load several collections")
        twice = await loads.in_other_part(conn, id, part.n, [each.id for each in datasets])
        if twice is not None:
            raise Conflict(f"{twice} is in another part of the load too; state each dataset once")
        await loads.put_part(conn, id, part, datasets)
        failpoint("load.part")


def _refuse_repeats(datasets: Sequence[StatedDataset], names: Sequence[str]) -> None:
    first: dict[str, str] = {}
    findings = []
    for each, name in zip(datasets, names, strict=True):
        if not each.id:
            message = "it has no id that can be read: what it states of the collection cannot be told"
            findings.append(Finding("load", name, each.detail or message))
        elif each.id in first:
            findings.append(Finding("load", name, f"{each.id} is stated at {first[each.id]} already"))
        first.setdefault(each.id, name)
    if findings:
        raise StacInvalid(f"the part is not taken: {findings[0].message}", findings=findings[:1000])


async def compare(node: Node, conn: Connection, id: UUID) -> Load:
    """Begin to compare what a load states with what is here now, and do the first steps. Nothing changes.

    Return the load: a small one is compared then, a larger one by the workers (load_steps.py). One that is being
    compared goes on. One that is applied keeps the changes that it was applied with. Conflict where a part is missing.
    """
    async with conn.transaction():
        load = await _locked(conn, id)
        if load.bulk is not None or load.done_at is not None:
            return load
        _require_open(load)
        _require_all_before_the_last(await loads.parts(conn, id))
        if not load.is_comparing:
            await load_comparison.begin_comparison(conn, id)
            load = await _locked(conn, id)
    for _ in range(FIRST_STEPS):
        async with conn.transaction():
            load = await _locked(conn, id)
            if not load.is_comparing:
                break
            await load_steps.advance(node, conn, load)
            load = await _locked(conn, id)
    return load


def _require_all_before_the_last(parts: Sequence[LoadPart]) -> None:
    for n, part in enumerate(parts, 1):
        if part.n != n:
            raise Conflict(f"part {n} is missing, and its datasets would be cleared; send it, empty if it states none")


async def apply(
    node: Node, conn: Connection, caller: Principal, id: UUID, *, confirmed: int | None, identity: str | None,
    correlation: str, traceparent: str | None, comparison_time: datetime | None = None,
) -> Load:  # fmt: skip
    """Begin to apply a load that was compared. Applying it again changes nothing.

    comparison_time: of the comparison whose changes somebody saw (`Load.compared_at`); None: whichever was the last.
    LoadNotConfirmed where many datasets go and nobody confirmed how many. Conflict where it was not compared, or again
    since it was shown, or another load of the collection is being applied, or was since. BadRequest where more than
    MOST datasets change.
    """
    async with conn.transaction():
        load = await _locked(conn, id)
        _require_comparison(load, comparison_time)
        if load.bulk is not None or load.done_at is not None:
            return load
        _require_open(load)
        if load.is_comparing:
            raise Conflict(
                f"it is being compared, {load.compared_stated + load.compared_here} datasets so far; look at the "
                "changes once it is `compared`"
            )
        changes = load.changes
        if changes is None:
            raise Conflict("parts have come since the load was compared; compare it, and look at the changes")
        changes.require(confirmed)
        if not changes.total:
            await loads.close(conn, id)
            return await _locked(conn, id)
        if changes.total > MOST:
            raise BadRequest(f"{changes.total} datasets change, and {MOST} at most may; load fewer at a time")
        if (other := await load_application.applied_beside(conn, load)) is not None:
            raise Conflict(
                f"the load {other} of {load.collection} is being applied, or was since this one was compared; when it "
                "has ended, compare this one again and look at the changes"
            )
        bulk = uuid7(datetime.now(UTC))
        now_asked_by = NewLoad(
            id=load.id, collection=load.collection, mode=load.mode, override=load.override, submitter=caller.name,
            roles=sorted(caller.roles), identity=identity, correlation=correlation, traceparent=traceparent,
        )  # fmt: skip
        await load_application.begin(conn, load, bulk, changes.total, now_asked_by=now_asked_by)
        if changes.stated + changes.counts.get(LoadChange.REMOVED, 0) < load_steps.AT_ONCE:
            await load_steps.advance(node, conn, await _locked(conn, id))  # one step lists all of it
        await audit.append(conn, [audit.NewRow(
            actor=caller.name, action="reconcile", collection=load.collection, dataset=EVERYTHING, request=bulk,
            outcome="accepted", before=None, after=None, correlation=correlation, items=changes.total,
        )])  # fmt: skip
        failpoint("load.accepted")
    log.info("a full-state load begins", load=str(load.id), collection=load.collection, mode=load.mode,
             datasets=changes.total, actor=caller.name)  # fmt: skip
    return replace(load, bulk=bulk)


def _require_comparison(load: Load, comparison_time: datetime | None) -> None:
    """Raise Conflict where somebody saw the changes of another comparison than the one that counts."""
    if comparison_time is None or load.compared_at == comparison_time or load.cancelled_by is not None:
        return
    if load.bulk is not None or load.done_at is not None:
        raise Conflict("it was applied with the changes of another comparison than the one that you saw; look at them")
    raise Conflict("the load was compared again since it was shown, or parts came; look at what it changes now")


async def cancel(conn: Connection, id: UUID, actor: str, *, correlation: str) -> Load:
    """End a load that is not applied: what it stated is removed. Conflict where it is being applied."""
    async with conn.transaction():
        load = await _locked(conn, id)
        if load.bulk is not None:
            raise Conflict(f"it is being applied; POST /bulk/{load.bulk}/cancel ends that where it stands")
        if load.done_at is not None:
            raise Conflict("it is done; there was nothing to do")
        if load.cancelled_by is None:
            await loads.cancel(conn, id, actor)
            await audit.append(conn, [audit.NewRow(
                actor=actor, action="cancel-load", collection=load.collection, dataset=f"load/{id}", request=None,
                outcome="done", before=None, after=None, correlation=correlation, items=1,
            )])  # fmt: skip
        return await _locked(conn, id)


async def _locked(conn: Connection, id: UUID) -> Load:
    load = await loads.find(conn, id, locking=True)
    if load is None:
        raise LoadDoesNotExist(f"there is no full-state load {id}; it may have been forgotten since, begin a new one")
    return load


def _require_open(load: Load) -> None:
    if load.takes_parts:
        return
    raise Conflict(f"the load is {'cancelled' if load.cancelled_by is not None else 'applied'}; begin a new one")


# --- as it is shown ---


@dataclass(frozen=True, slots=True)
class LoadView:
    """A load with its parts, and the change that applies it."""

    load: Load
    parts: Sequence[LoadPart]
    bulk: Bulk | None

    def as_json(self) -> dict[str, Any]:
        """Return it as it is shown."""
        examples = self.load.examples if self.load.changes is not None else {}
        return {
            **summary_of(ListedLoad(self.load, sum(each.datasets for each in self.parts), self.bulk)),
            "parts": [{"n": each.n, "digest": each.digest.hex(), "datasets": each.datasets} for each in self.parts],
            "examples": {
                change.value: list(ids) for change, ids in examples.items() if change is not LoadChange.UNCHANGED
            },
        }  # fmt: skip


def summary_of(entry: ListedLoad) -> dict[str, Any]:
    """Return a load as it is shown in a list."""
    load, changes = entry.load, entry.load.changes
    return {
        "id": str(load.id), "collection": load.collection, "mode": load.mode, "status": _status(load, entry.bulk),
        "submitter": load.submitter, "created": rfc3339(load.created), "stated": entry.stated_count,
        "progress": {"stated": load.compared_stated, "here": load.compared_here} if load.is_comparing else None,
        "compared": rfc3339(load.compared_at) if load.compared_at else None,
        "current": load.current if changes else None,
        "changes": {change.value: changes.counts.get(change, 0) for change in LoadChange} if changes else None,
        "cleared": changes.cleared if changes else None,
        "to_confirm": changes.to_confirm if changes else None,
        "bulk": str(load.bulk) if load.bulk else None,
        "counts": entry.bulk.counts if entry.bulk else None,
    }  # fmt: skip


def _status(load: Load, bulk: Bulk | None) -> str:
    """Return how far a load is: collecting, comparing, compared, or as the change that applies it."""
    if load.cancelled_by is not None:
        return "cancelled"
    if bulk is not None:
        return bulk.status
    if load.is_comparing:
        return "comparing"
    if load.changes is None:
        return "collecting"
    return "compared" if load.changes.total else "done"


async def view(conn: Connection, load: Load) -> LoadView:
    """Return a load as it stands. Call it in a transaction."""
    bulk = await bulks.find(conn, load.bulk) if load.bulk is not None else None
    return LoadView(load, await loads.parts(conn, load.id), bulk)


# --- what applies it ---


@dataclass(frozen=True, slots=True)
class DatasetCommand:
    """The command of one dataset of a load, and the name of it in the audit log; None where its document is gone."""

    command: Command | None
    action: str


async def commands(
    node: Node, conn: Connection, job: Bulk, caller: Principal, body: Mapping[str, Any],
    datasets: Sequence[WaitingDataset],
) -> list[DatasetCommand]:  # fmt: skip
    """Return the commands of a part of a load."""
    load_id = UUID(job.digest)
    documents_of_part = await load_application.documents(conn, load_id, [each.dataset for each in datasets])
    mode, override = LoadMode(body["mode"]), body.get("override")
    result = []
    for each in datasets:
        document = documents_of_part.get(each.dataset)
        vocabulary = await node.vocabulary(each.collection, document.cv_version) if document is not None else None
        result.append(_command(each, mode, _action(each, caller, document, vocabulary), document, override))
    return result


async def forget_documents(conn: Connection, job: Bulk, datasets: Sequence[WaitingDataset]) -> None:
    """Remove the documents of a part that is applied, in the same transaction."""
    load_id = UUID(job.digest)
    await load_application.forget_documents(conn, load_id, [each.dataset for each in datasets])


def _action(
    each: WaitingDataset, caller: Principal, document: StatedDocument | None, vocabulary: Vocabulary | None
) -> QueuedAction:
    name = DatasetName(each.lineage, document.version if document is not None else None)
    if document is None:
        return QueuedAction(each.collection, each.dataset, name, caller, "{}")
    return QueuedAction(
        each.collection, each.dataset, name, caller, document.text, prepared=document.prepared,
        coded=document.coded, vocabulary=vocabulary, only_new=each.change == LoadChange.NEW,
    )  # fmt: skip


def _command(
    each: WaitingDataset, mode: LoadMode, action: QueuedAction, document: StatedDocument | None, override: str | None
) -> DatasetCommand:
    expected = (each.digest[:16].hex(),)
    change = LoadChange(each.change or "")
    if change is LoadChange.REMOVED:
        reason = "a full-state load does not state it"
        return DatasetCommand(Clear(action.target, action.principal, expected, reason), "clear")
    if document is None:
        return DatasetCommand(None, "publish")
    if change is LoadChange.NEW:
        return DatasetCommand(Publish.read(action), "publish")
    if mode is LoadMode.REBUILD:
        clear = Clear(action.target, action.principal, expected, "a full-state load builds it again")
        return DatasetCommand(Rebuild(clear, Publish.read(action), override), "rebuild")
    edit = Whole(documents.as_stated(document.text, document.prepared))
    return DatasetCommand(
        Amend(action.target, action.principal, edit, action.cv_version, override=override, expected=expected), "amend"
    )
