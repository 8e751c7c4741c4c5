"""The queue of a replica node on PostgreSQL: claims, fairness, dead workers, settling, completion."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from uuid import uuid4

import pytest

from fedstac.db import connections
from fedstac.db.connections import Connection
from fedstac.db.replica import claims, placement_queue, settling
from fedstac.db.replica.claims import FileProgress, Transfer, TransferLost, Worker
from fedstac.db.replica.settling import FileResult
from fedstac.domain.replication import placing, sharing
from fedstac.domain.replication.placing import Closures, Obstacle
from tests.support.replica_rows import add_dataset, states


@pytest.fixture
async def conn(dsn: str) -> AsyncIterator[Connection]:
    opened = await connections.connect(dsn)
    yield opened
    await opened.close()


@pytest.fixture
async def worker(dsn: str) -> AsyncIterator[Worker]:
    session = await connections.connect(dsn)
    yield await claims.enter(session, "w")
    await session.close()


class At:
    def __init__(self, href: str) -> None:
        self.host, self.href = href.split("/")[2], href
        self.node = self.source = self.host


def some_files(count: int, host: str = "a.example", size: int = 10) -> Mapping[str, Sequence[str]]:
    return {f"f{n:05}": (f"https://{host}/f{n:05}-{size}.bin",) for n in range(count)}


async def place_all(conn: Connection, closed: Mapping[str, Obstacle] | None = None) -> None:
    async with conn.transaction():
        while datasets := await placement_queue.unplaced(conn):
            placements = {}
            for each in datasets:
                candidates = {
                    key: [At(asset["href"]), *(At(entry["href"]) for entry in asset.get("alternate", {}).values())]
                    for key, asset in each.document["assets"].items()
                }
                placements[each.n] = placing.place(
                    each.assets,
                    candidates,
                    faults=each.faults,
                    closures=Closures(closed or {}),
                    already=each.placed_counts,
                    reasons={},
                )
            await placement_queue.write_places(conn, placements)
            if not any(placement.lane for placement in placements.values()):
                return


async def take(conn: Connection, worker: Worker, room: int, free: Mapping[str, int]) -> list[Transfer]:
    async with conn.transaction():
        await conn.execute(claims.TAKING)
        counts = sharing.share_out(room, dict(free), await claims.line_up(conn, list(free)))
        transfers = [
            Transfer(uuid4(), each.n, each.collection, each.id, each.lane, each.files[batch.start : batch.stop])
            for each in await claims.next_files(conn, counts)
            for batch in sharing.batches_of([file.size or 0 for file in each.files])[: counts[each.n]]
        ]
        if transfers:
            await claims.claim(conn, worker, transfers, 30)
    return transfers


def verified(transfer: Transfer) -> list[FileResult]:
    return [FileResult(file.asset, "verified", file.size or 0) for file in transfer.files]


async def test_a_dataset_is_placed_claimed_settled_and_complete(conn: Connection, worker: Worker) -> None:
    n = await add_dataset(conn, "d", some_files(3))
    await place_all(conn)
    [transfer] = await take(conn, worker, 4, {"a.example": 4})
    assert (transfer.n, transfer.lane, len(transfer.files)) == (n, "a.example", 3)
    assert await states(conn) == {"d": "transferring"}
    assert await take(conn, worker, 4, {"a.example": 4}) == []
    progress = [FileProgress(transfer.token, n, "f00000", 7)]
    assert await claims.renew(conn, [transfer.token, uuid4()], progress, 30) == {transfer.token}
    assert await conn.fetchval("SELECT done_bytes FROM fedstac.replica_file WHERE asset = 'f00000'") == 7
    await settling.settle(conn, transfer, verified(transfer)[:2], ends=False)
    assert await states(conn) == {"d": "transferring"}
    await settling.settle(conn, transfer, verified(transfer)[2:], ends=True)
    assert await states(conn) == {"d": "complete"}
    assert await conn.fetchval("SELECT kind FROM fedstac.replica_announcement WHERE n = $1", n) == "add"
    assert not await conn.fetchval("SELECT count(*) FROM fedstac.replica_claim")


async def test_a_rule_with_a_check_has_the_files_checked_first(conn: Connection, worker: Worker) -> None:
    await add_dataset(conn, "d", some_files(1), check="true")
    await place_all(conn)
    [transfer] = await take(conn, worker, 4, {"a.example": 4})
    await settling.settle(conn, transfer, verified(transfer), ends=True)
    assert await states(conn) == {"d": "checking"}
    assert not await conn.fetchval("SELECT count(*) FROM fedstac.replica_announcement")


async def test_a_large_dataset_leaves_turns_to_the_small_ones(conn: Connection, worker: Worker) -> None:
    await add_dataset(conn, "large", some_files(1000))
    for n in range(3):
        await add_dataset(conn, f"small {n}", some_files(1))
    await place_all(conn)
    assert [each.id for each in await take(conn, worker, 2, {"a.example": 2})] == ["large", "small 0"]
    assert {each.id for each in await take(conn, worker, 2, {"a.example": 2})} == {"small 1", "small 2"}
    rest = await take(conn, worker, 9, {"a.example": 9})
    assert [each.id for each in rest] == ["large"] * 4
    assert sum(len(each.files) for each in rest) == 800


async def test_priority_comes_first_and_sources_do_not_wait_for_each_other(conn: Connection, worker: Worker) -> None:
    await add_dataset(conn, "low", some_files(1))
    await add_dataset(conn, "high", some_files(1), priority=9)
    await add_dataset(conn, "elsewhere", some_files(1, host="b.example"))
    await place_all(conn)
    first = await take(conn, worker, 2, {"a.example": 1, "b.example": 1})
    assert {each.id for each in first} == {"high", "elsewhere"}
    assert [each.id for each in await take(conn, worker, 2, {"a.example": 1})] == ["low"]
    assert await claims.transfers_by_lane(conn) == {"a.example": 2, "b.example": 1}


async def test_what_a_dead_worker_held_is_claimed_again(conn: Connection, dsn: str, worker: Worker) -> None:
    await add_dataset(conn, "d", some_files(2))
    await place_all(conn)
    session = await connections.connect(dsn)
    dying = await claims.enter(session, "dying")
    [transfer] = await take(conn, dying, 1, {"a.example": 1})
    assert await claims.release_dead(conn) == 0
    await conn.execute("SELECT pg_terminate_backend($1, 60000)", dying.backend)
    assert await claims.release_dead(conn) == 1
    [again] = await take(conn, worker, 1, {"a.example": 1})
    assert again.files == transfer.files
    with pytest.raises(TransferLost):
        await settling.settle(conn, transfer, verified(transfer), ends=True)
    assert await claims.renew(conn, [transfer.token], [], 30) == set()
    session.terminate()


async def test_a_lease_that_is_not_renewed_ends(conn: Connection, worker: Worker) -> None:
    await add_dataset(conn, "d", some_files(1))
    await place_all(conn)
    await take(conn, worker, 1, {"a.example": 1})
    await conn.execute("UPDATE fedstac.replica_claim SET until = clock_timestamp()")
    assert await claims.release_dead(conn) == 1
    assert len(await take(conn, worker, 1, {"a.example": 1})) == 1


async def test_a_source_with_another_content_is_disqualified_and_the_next_is_asked(
    conn: Connection, worker: Worker
) -> None:
    await add_dataset(conn, "d", {"f": ("https://a.example/f-9.bin", "https://b.example/f-9.bin")})
    await place_all(conn)
    for source, state in (("a.example", "transferring"), ("b.example", "parked")):
        [transfer] = await take(conn, worker, 1, {source: 1})
        wrong = FileResult("f", "queued", 0, "its checksum is wrong", source, source, counted=True,
                           keeps_source=False, fault_seconds=float("inf"), is_wrong=True)  # fmt: skip
        await settling.settle(conn, transfer, [wrong], ends=True)
        await place_all(conn)
        assert await states(conn) == {"d": state}
    reason = await conn.fetchval("SELECT reason FROM fedstac.replica_dataset")
    assert reason.startswith("f: no source is left; a.example: its checksum is wrong; b.example: its")
    kinds = await conn.fetch("SELECT kind, what FROM fedstac.trouble ORDER BY id")
    assert [row["kind"] for row in kinds] == ["replica-source", "replica-source", "replica-parked"]


async def test_a_closed_source_is_waited_for_and_counts_nothing(conn: Connection, worker: Worker) -> None:
    await add_dataset(conn, "d", some_files(2))
    soon = await conn.fetchval("SELECT clock_timestamp() + interval '1 hour'")
    await place_all(conn, {"a.example": Obstacle("a.example is closed until noon", soon)})
    row = await conn.fetchrow("SELECT state, reason, until FROM fedstac.replica_dataset")
    assert row is not None
    assert tuple(row) == ("waiting", "a.example is closed until noon", soon)
    async with conn.transaction():
        assert await placement_queue.unplaced(conn) == []
    await conn.execute("UPDATE fedstac.replica_dataset SET until = clock_timestamp()")
    await place_all(conn)
    [transfer] = await take(conn, worker, 1, {"a.example": 1})
    assert [file.attempts for file in transfer.files] == [0, 0]


async def test_files_of_a_source_that_closes_are_placed_elsewhere(conn: Connection, worker: Worker) -> None:
    files = {f"f{n}": (f"https://a.example/f{n}-9.bin", f"https://b.example/f{n}-9.bin") for n in range(3)}
    await add_dataset(conn, "d", files)
    await place_all(conn)
    assert await placement_queue.leave_lanes(conn, ["a.example"]) == 1
    soon = await conn.fetchval("SELECT clock_timestamp() + interval '1 hour'")
    await place_all(conn, {"a.example": Obstacle("closed", soon)})
    [transfer] = await take(conn, worker, 1, {"a.example": 1, "b.example": 1})
    assert (transfer.lane, len(transfer.files)) == ("b.example", 3)
