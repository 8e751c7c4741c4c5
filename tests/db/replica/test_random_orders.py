"""A thousand datasets, whose events come late, twice and out of order while files are fetched, moved and announced.

Whatever the order, files, entries and acknowledgements are in the end as policy and newest event say, and at no moment
is a file served whose removal was acknowledged. The expectation is a table of its own (`expected`), not the product's.
"""

from __future__ import annotations

import hashlib
import os
import random
from collections.abc import AsyncIterator, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from uuid import uuid4

import orjson
import pytest

from fedstac.bootstrap import Node
from fedstac.db import connections
from fedstac.db.connections import Connection
from fedstac.db.replica import announcements, claims, settling
from fedstac.db.replica.announcements import OriginAnswer
from fedstac.db.replica.claims import QueuedFile, Transfer, Worker
from fedstac.db.replica.datasets import DatasetKey, NewestEvent
from fedstac.db.replica.settling import FileResult
from fedstac.domain.events import Cursor
from fedstac.domain.replication.dataset_files import digest_of, files_of, total_bytes
from fedstac.domain.replication.policy import OnRetracted, OnSuperseded, ReplicaAction, ReplicaDecision, ReplicaPolicy
from fedstac.domain.replication.reacting import EventState
from fedstac.messaging.origin import Origin
from fedstac.messaging.sources.addresses import SourceAddress
from fedstac.replication import intake
from fedstac.replication.intake import JudgedEvent
from fedstac.workers.replica_node import ReplicaHandler
from fedstac.workers.replica_removals import Remover

SEED = int(os.environ.get("SEED", "20261129"))
COLD = "cold"
SERVED = "served"
TIERS = {"": SERVED, COLD: COLD, "restricted": "restricted"}  # and their folders
POLICIES = [
    ReplicaDecision(ReplicaAction.REPLICATE, "hold", on_retracted=OnRetracted.KEEP),
    ReplicaDecision(
        ReplicaAction.REPLICATE, "hide", on_retracted=OnRetracted.RESTRICT, on_superseded=OnSuperseded.PURGE
    ),
    ReplicaDecision(
        ReplicaAction.REPLICATE, "cool", on_retracted=OnRetracted.KEEP, on_superseded=OnSuperseded.TIER,
        superseded_tier=COLD,
    ),
    ReplicaDecision(ReplicaAction.REPLICATE, "drop", on_retracted=OnRetracted.PURGE),
]  # fmt: skip
STRICTNESS = ["keep", "restrict", "purge"]


# --- what the origin says ---


@dataclass(slots=True)
class Dataset:
    """One dataset at the origin: all its events, the newest last, and what the origin has of our entry."""

    id: str
    decision: ReplicaDecision
    events: list[NewestEvent] = field(default_factory=list)
    entry: Mapping[str, str] | None = None  # hrefs by asset

    @property
    def newest(self) -> NewestEvent:
        return self.events[-1]


def content_of(id: str, asset: str, edition: int) -> bytes:
    return f"{id} {asset} {edition}".encode() * 3


def document_of(id: str, edition: int) -> dict[str, Any]:
    """Return a document; another edition has a file that is changed, one that is new and one that is gone."""
    assets = {}
    for asset in ("a", "b", f"c{edition}"):
        content = content_of(id, asset, edition if asset == "b" else 0)
        assets[asset] = {
            "href": f"https://west.example/{asset}", "file:size": len(content),
            "file:checksum": "1220" + hashlib.sha256(content).hexdigest(), "file:local_path": f"plain/{id}/{asset}.nc",
        }  # fmt: skip
    return {"id": id, "collection": "plain", "assets": assets}


def history(chance: random.Random, id: str, positions: Iterator[int]) -> list[NewestEvent]:
    """Return the events of one dataset, as an origin allows them to follow one another."""
    state, latest, superseded, retraction, edition = EventState.PUBLISHED, True, False, None, 0
    made: list[NewestEvent] = []

    def say() -> None:
        document = document_of(id, edition) if state is not EventState.DELETED else None
        files = files_of(document) if document is not None else ()
        made.append(NewestEvent(
            DatasetKey("plain", id), "north", f"plain/{id}", 1, len(made) + 1, next(positions), str(uuid4()), state,
            latest, retraction, orjson.dumps(document).decode() if document is not None else None,
            total_bytes(files), len(files), digest_of(files) if document is not None else None,
        ))  # fmt: skip

    say()
    for _ in range(chance.randrange(1, 7)):
        match state:
            case EventState.PUBLISHED:
                step = chance.choice(["retract", "retract", "supersede", "mark", "replace", "quarantine", "annotate"])
            case EventState.RETRACTED:
                step = chance.choice(["retract", "reinstate", "reinstate", "mark"])
            case EventState.MARKED | EventState.QUARANTINED:
                step = chance.choice(["release", "release", "delete"])
            case _:
                break
        match step:
            case "retract":
                data = chance.choice([{}, {"data": "keep"}, {"data": "restrict"}, {"data": "purge"}])
                state, latest, retraction = EventState.RETRACTED, False, {"reason": "x", **data}
            case "reinstate":
                state, latest, retraction = EventState.PUBLISHED, not superseded, None
            case "supersede":
                latest, superseded = False, True
            case "mark":
                state, latest = EventState.MARKED, False
            case "quarantine":
                state = EventState.QUARANTINED
            case "release":
                state = EventState.RETRACTED if retraction is not None else EventState.PUBLISHED
                latest = retraction is None and not superseded
            case "delete":
                state, latest = EventState.DELETED, False
            case "replace":
                edition += 1
        say()
    return made


# --- what has to be ---


@dataclass(frozen=True, slots=True)
class Outcome:
    """Where files may be in the end: all of them in one tier, or nowhere. entry: whether the origin has ours."""

    tier: str | None  # None: nowhere
    entry: bool | None  # None: as it was


def strictest(*texts: str) -> str:
    return max(texts, key=STRICTNESS.index)


def expected(dataset: Dataset) -> Outcome:
    event, decision = dataset.newest, dataset.decision
    if event.state is EventState.DELETED:
        return Outcome(None, False)
    data = "keep"
    if event.retraction is not None:
        data = strictest(str(event.retraction.get("data", "keep")), decision.on_retracted)
    if event.state in (EventState.MARKED, EventState.QUARANTINED):
        return Outcome(None if data == "purge" else "restricted", None)
    if event.state is EventState.RETRACTED:
        if data == "keep":
            return Outcome("served", None)
        return Outcome(None if data == "purge" else "restricted", False)
    if not event.latest and decision.on_superseded == "purge":
        return Outcome(None, False)
    tier = COLD if not event.latest and decision.on_superseded == "tier" else ""
    return Outcome(tier, True)


# --- the world around the replica node ---


class World:
    """Origin, network and disk of the test. Transfers and announcements go through the product's own tables."""

    def __init__(self, conn: Connection, worker: Worker, folder: Path, chance: random.Random) -> None:
        self.conn, self.worker, self.chance = conn, worker, chance
        self.folders = {tier: folder / name for tier, name in TIERS.items()}
        for each in self.folders.values():
            each.mkdir()
        self.datasets: dict[str, Dataset] = {}
        self.under_way: list[Transfer] = []

    async def begin_transfers(self, share: float) -> None:
        """Claim files of some datasets that are queued."""
        rows = await self.conn.fetch(
            """SELECT d.n, d.id, f.asset, f.path, f.tier, f.size, f.checksum FROM fedstac.replica_dataset d
               JOIN fedstac.replica_file f USING (n)
               WHERE d.state IN ('queued', 'transferring') AND f.state = 'queued' ORDER BY d.n, f.asset"""
        )
        files: dict[tuple[int, str], list[QueuedFile]] = {}
        for row in rows:
            if self.chance.random() < share:
                file = QueuedFile(
                    asset=row["asset"], href="", node="west", source="west.example", path=row["path"],
                    tier=row["tier"], size=row["size"], checksum=row["checksum"], attempts=0, done_bytes=0,
                )  # fmt: skip
                files.setdefault((row["n"], row["id"]), []).append(file)
        transfers = [Transfer(uuid4(), n, "plain", id, "west.example", tuple(some)) for (n, id), some in files.items()]
        if transfers:
            async with self.conn.transaction():
                await claims.claim(self.conn, self.worker, transfers, 60)
        self.under_way += transfers

    async def end_transfers(self, share: float) -> None:
        """Put files in their places and settle them, of some of the transfers."""
        going, self.under_way = self.under_way, []
        for transfer in going:
            if self.chance.random() >= share:
                self.under_way.append(transfer)
                continue
            results = []
            for file in transfer.files:
                if self.chance.random() < 0.9:
                    self._write(transfer.id, file)
                    results.append(FileResult(file.asset, "verified", file.size or 0))
            await settling.settle(self.conn, transfer, results, ends=True)

    def _write(self, id: str, file: QueuedFile) -> None:
        place = self.folders[file.tier] / file.path
        place.parent.mkdir(parents=True, exist_ok=True)
        contents = [content_of(id, file.asset, edition) for edition in range(8)]
        place.write_bytes(next(
            each for each in contents if "1220" + hashlib.sha256(each).hexdigest() == file.checksum
        ))  # fmt: skip

    async def announce(self) -> None:
        """Tell the origin what is due; it answers as its datasets are."""
        due = await announcements.due(self.conn, "queued", 5000)
        async with self.conn.transaction():
            copies = await announcements.read_copies(self.conn, [each.n for each in due if each.kind == "add"])
        answers = []
        for each in due:
            dataset = self.datasets[each.id]
            state = dataset.newest.state
            if each.kind == "add" and each.n not in copies:
                continue
            if state is EventState.DELETED:
                dataset.entry = None
                parked = each.kind == "add"
                answers.append(OriginAnswer(each, "queued" if parked else "done", pause=0.0, counted=parked))
            elif state is EventState.MARKED or (each.kind == "add" and state is not EventState.PUBLISHED):
                answers.append(OriginAnswer(each, "queued", reason="409", counted=True))
            else:
                copied = (
                    {file.asset: f"{file.tier}/{file.path}" for file in copies[each.n].files}
                    if each.kind == "add"
                    else None
                )
                dataset.entry = copied
                answers.append(OriginAnswer(each, "done"))
        async with self.conn.transaction():
            await announcements.store(self.conn, "queued", answers)

    def files_of(self, dataset: Dataset) -> dict[str, set[str]]:
        """Return the files of a dataset on the disk, by tier."""
        found = {}
        for tier, folder in self.folders.items():
            place = folder / "plain" / dataset.id
            if names := {path.name for path in place.rglob("*") if path.is_file()} if place.is_dir() else set():
                found[tier] = names
        return found


def demands_removal(dataset: Dataset, event: NewestEvent) -> bool:
    """Tell whether no file may be served after this event."""
    so_far = Dataset(dataset.id, dataset.decision, [event])
    return expected(so_far).tier in (None, "restricted")


async def check_promise(world: World, handler: ReplicaHandler, applied: Mapping[str, NewestEvent], end: Cursor) -> None:
    """Check that nothing is served of what the origin may believe to be removed (P7)."""
    through = await handler.acknowledgeable("north", end)
    assert through <= end
    for id, event in applied.items():
        dataset = world.datasets[id]
        if event.pos <= through.pos and demands_removal(dataset, event):
            places = world.files_of(dataset)
            assert not places.keys() & {"", COLD}, (SEED, id, event, through, places)


async def check_end(world: World, handler: ReplicaHandler, end: Cursor) -> None:
    rows = {
        row["id"]: row
        for row in await world.conn.fetch("SELECT n, id, state, reason, goal FROM fedstac.replica_dataset")
    }
    for id, dataset in world.datasets.items():
        what = expected(dataset)
        places = world.files_of(dataset)
        story = [(each.seq, each.state, each.latest, each.retraction) for each in dataset.events]
        story_of_it = (SEED, id, dataset.decision.rule, story, dict(rows[id]), places, dataset.entry)
        document = orjson.loads(dataset.newest.document) if dataset.newest.document else {"assets": {}}
        names = {f"{asset}.nc" for asset in document["assets"]}
        match what.tier:
            case None:
                assert not places, story_of_it
            case "restricted":
                assert places.keys() <= {"restricted"}, story_of_it
            case "served":
                assert "restricted" not in places, story_of_it
                assert set().union(*places.values()) <= names, story_of_it
            case tier:
                assert places == {tier: names}, story_of_it
                assert rows[id]["state"] == "announced", story_of_it
                for fields in document["assets"].values():
                    content = (world.folders[tier] / fields["file:local_path"]).read_bytes()
                    assert "1220" + hashlib.sha256(content).hexdigest() == fields["file:checksum"], story_of_it
                assert dataset.entry == {
                    asset: f"{tier}/{fields['file:local_path']}" for asset, fields in document["assets"].items()
                }, story_of_it
        if what.entry is False:
            assert dataset.entry is None, story_of_it
    assert await world.conn.fetchval("SELECT count(*) FROM fedstac.replica_removal WHERE state <> 'done'") == 0
    assert await handler.acknowledgeable("north", end) == end


async def run(node: Node, conn: Connection, worker: Worker, folder: Path, *, count: int) -> None:
    print(f"SEED={SEED}")
    chance = random.Random(SEED)
    world = World(conn, worker, folder, chance)
    positions = iter(range(1, 1 << 30))
    queue: list[JudgedEvent] = []
    for number in range(count):
        id = f"d{number:04}"
        dataset = Dataset(id, chance.choice(POLICIES))
        dataset.events = history(chance, id, positions)
        world.datasets[id] = dataset
    for dataset in world.datasets.values():
        story_of_it = [*dataset.events, *chance.choices(dataset.events, k=chance.randrange(3))]
        queue += [intake.judge(event, dataset.decision) for event in story_of_it]
    chance.shuffle(queue)
    end = Cursor(1, next(positions))
    remover = Remover(node, lambda: world.folders)
    handler = ReplicaHandler(node, Origin(SourceAddress("http://north.invalid", "")), lambda: ReplicaPolicy())
    applied: dict[str, NewestEvent] = {}
    pages = 16
    for page in range(pages):
        events = queue[page * len(queue) // pages : (page + 1) * len(queue) // pages]
        async with conn.transaction():
            await intake.take(conn, events, policy_digest="p")
        for each in events:
            before = applied.get(each.newest.key.id)
            if before is None or before.seq < each.newest.seq:
                applied[each.newest.key.id] = each.newest
        await world.begin_transfers(0.6)
        if page % 2:
            await world.end_transfers(0.7)
        if page % 3 == 2:
            await remover.cycle()
        if page % 4 == 3:
            await world.announce()
        if page % 5 == 4:
            await check_promise(world, handler, applied, end)
    for _ in range(12):
        await world.end_transfers(1.0)
        while await remover.cycle():
            continue
        await world.announce()
        await world.begin_transfers(1.0)
    while await remover.cycle():
        continue
    await check_promise(world, handler, applied, end)
    await check_end(world, handler, end)


@pytest.fixture
async def worker(dsn: str) -> AsyncIterator[Worker]:
    session = await connections.connect(dsn)
    yield await claims.enter(session, "w")
    await session.close()


@pytest.fixture
async def own(dsn: str) -> AsyncIterator[Connection]:
    opened = await connections.connect(dsn)
    yield opened
    await opened.close()


async def test_two_hundred_random_orders_end_as_policy_and_events_say(
    node: Node, own: Connection, worker: Worker, tmp_path: Path
) -> None:
    await run(node, own, worker, tmp_path, count=200)


@pytest.mark.soak
async def test_a_thousand_random_orders_end_as_policy_and_events_say(
    node: Node, own: Connection, worker: Worker, tmp_path: Path
) -> None:
    await run(node, own, worker, tmp_path, count=1000)
