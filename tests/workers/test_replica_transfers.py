"""Transfers of a replica node with real files, PostgreSQL and HTTP: promises P1 and P3 to P6."""

from __future__ import annotations

import asyncio
import errno
import fcntl
import hashlib
import re
import subprocess
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import asyncpg
import pytest

from fedstac.bootstrap import Node
from fedstac.db import connections
from fedstac.db.connections import Connection
from fedstac.db.replica import claims, placement_queue
from fedstac.domain.replication.placing import Closures, Obstacle
from fedstac.replication import failures, storage
from fedstac.replication.copying import CopyOrder, CopyReport
from fedstac.replication.transports import Transports
from fedstac.workers import replica_transfers
from fedstac.workers.replica_transfers import Dispatcher
from tests.support.byte_server import ByteServer, Fault, byte_server, content
from tests.support.fixed_sources import RULES, FixedSources
from tests.support.replica_rows import add_dataset, states
from tests.support.waiting import until

Connect = Callable[[], Any]


@pytest.fixture
async def conn(node: Node) -> AsyncIterator[Connection]:
    opened = await connections.connect(node.settings.dsn)
    yield opened
    await opened.close()


@pytest.fixture
async def source() -> AsyncIterator[ByteServer]:
    async with byte_server() as server:
        yield server


def lane(server: ByteServer) -> str:
    return f"127.0.0.1:{server.port}"


@asynccontextmanager
async def transferring(node: Node, sources: FixedSources, *, processes: int = 1, most: int = 8) -> AsyncIterator[None]:
    """Run dispatchers, each as a process of its own would, until the context ends."""
    stop = asyncio.Event()
    async with AsyncExitStack() as stack:
        transports = await stack.enter_async_context(Transports(lambda: RULES))
        dispatchers = [Dispatcher(node, sources, transports, most=most, block_bytes=1 << 20) for _ in range(processes)]
        tasks = [asyncio.create_task(each.run(stop)) for each in dispatchers]
        try:
            yield
        finally:
            stop.set()
            await asyncio.gather(*tasks)


async def all_are(conn: Connection, *wanted: str) -> None:
    async def look() -> bool:
        return set((await states(conn)).values()) <= set(wanted)

    await until(look)


def check_files(root: Path) -> int:
    """Check that each file under its final name is whole (P1); return how many there are."""
    files = [each for each in root.rglob("*.bin") if ".fedstac-part" not in each.parts]
    for each in files:
        assert each.read_bytes() == content(each.name), each
    return len(files)


def parts_below(root: Path) -> list[Path]:
    return [each for each in root.rglob(".fedstac-part/1220*") if each.suffix != ".note"]


def is_unlocked(part: Path) -> bool:
    with part.open("rb") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
    return True


def names(count: int, size: int, prefix: str = "f") -> list[str]:
    return [f"{prefix}{n:05}-{size}.bin" for n in range(count)]


async def test_datasets_are_copied_once_by_several_processes(
    node: Node, conn: Connection, source: ByteServer, tmp_path: Path
) -> None:
    for n in range(6):
        files = {name: (source.url(name),) for name in names(5, 200_000, f"d{n}-")}
        await add_dataset(conn, f"d{n}", files)
    sources = FixedSources(tmp_path, {lane(source): None})
    async with transferring(node, sources, processes=3):
        await all_are(conn, "complete")
    assert check_files(tmp_path) == 30
    assert set(source.sent.values()) == {200_000}  # P4
    assert not await conn.fetchval("SELECT count(*) FROM fedstac.replica_claim")
    assert await conn.fetchval("SELECT count(*) FROM fedstac.replica_announcement WHERE kind = 'add'") == 6


async def test_a_wrong_copy_disqualifies_its_source_and_the_others_are_not_delayed(
    node: Node, conn: Connection, source: ByteServer, tmp_path: Path
) -> None:
    async with byte_server() as other:
        good, bad, alone = "good-9000.bin", "bad-9000.bin", "alone-9000.bin"
        source.corrupted |= {bad, alone}
        await add_dataset(conn, "good", {"f": (source.url(good),)})
        await add_dataset(conn, "mended", {"f": (source.url(bad), other.url(bad))})
        await add_dataset(conn, "parked", {"f": (source.url(alone),), "g": (source.url("other-9.bin"),)})
        sources = FixedSources(tmp_path, {lane(source): None, lane(other): None})
        async with transferring(node, sources):
            await all_are(conn, "complete", "parked")
        assert await states(conn) == {"good": "complete", "mended": "complete", "parked": "parked"}
        assert check_files(tmp_path) == 3
        assert other.sent == {bad: 9000}
    [row] = await conn.fetch("SELECT * FROM fedstac.replica_source_fault WHERE host = $1 AND n = 2", lane(source))
    assert (row["node"], row["until"]) == ("west", None)
    reasons = {row["what"] async for row in _cursor(conn, "SELECT what FROM fedstac.trouble")}
    assert any("the file at" in what for what in reasons)
    assert "parked is parked" in reasons
    file = await conn.fetchrow("SELECT * FROM fedstac.replica_file WHERE n = 3 AND asset = 'f'")
    assert file is not None
    assert (file["state"], file["attempts"]) == ("failed", 1)
    assert "checksum" in file["reason"]


async def _cursor(conn: Connection, statement: str) -> AsyncIterator[Any]:
    for row in await conn.fetch(statement):
        yield row


async def test_cut_connections_are_resumed_and_refusals_go_to_the_next_source(
    node: Node, conn: Connection, source: ByteServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(failures, "FIRST_PAUSE", 0.05)
    async with byte_server() as other:
        cut, missing = "cut-3000000.bin", "missing-9000.bin"
        source.faults = lambda path, before: (
            Fault(bytes=700_000) if path == cut and before < 3 else Fault(status=404) if path == missing else None
        )
        await add_dataset(conn, "cut", {"f": (source.url(cut),)})
        await add_dataset(conn, "missing", {"f": (source.url(missing), other.url(missing))})
        sources = FixedSources(tmp_path, {lane(source): None, lane(other): None})
        async with transferring(node, sources):
            await all_are(conn, "complete")
        assert check_files(tmp_path) == 2
        assert source.sent[cut] < 3_000_000 + 3 * (1 << 20)
    assert not await conn.fetchval("SELECT count(*) FROM fedstac.trouble")


@pytest.mark.parametrize("size", [0, 1])
async def test_a_source_that_cuts_its_connections_for_long_leaves_its_place_to_others(
    size: int, node: Node, conn: Connection, source: ByteServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(replica_transfers, "TURN_SECONDS", 0.0)
    source.faults = lambda path, before: Fault(bytes=size)
    async with byte_server() as other:
        await add_dataset(conn, "cut", {f"f{n}": (source.url(f"f{n}-99.bin"),) for n in range(9)}, priority=1)
        await add_dataset(conn, "good", {"f": (other.url("good-9.bin"),)})
        async with transferring(node, FixedSources(tmp_path, {lane(source): None, lane(other): None}), most=1):

            async def good_is_here() -> bool:
                return (await states(conn))["good"] == "complete"

            await until(good_is_here)
            assert len(source.requests) < 9


async def test_a_source_that_is_away_is_waited_for_and_nothing_is_counted(
    node: Node, conn: Connection, source: ByteServer, tmp_path: Path
) -> None:
    source.faults = lambda path, before: Fault(status=503) if before < 2 else None
    await add_dataset(conn, "d", {"f": (source.url("f-9000.bin"),)})
    async with transferring(node, FixedSources(tmp_path, {lane(source): None})):

        async def waits() -> Any:
            return await conn.fetchrow("SELECT * FROM fedstac.replica_dataset WHERE state = 'waiting'")

        row = await until(waits)
        assert row["reason"].startswith(f"{lane(source)} is away: ")
        assert row["until"] > row["since"]
        await all_are(conn, "complete")
    assert await conn.fetchval("SELECT attempts FROM fedstac.replica_file") == 0


async def test_a_file_that_its_server_stumbles_over_does_not_take_the_host_away(
    node: Node, conn: Connection, source: ByteServer, tmp_path: Path
) -> None:
    source.faults = lambda path, before: Fault(status=500) if path == "bad-9.bin" else None
    await add_dataset(conn, "bad", {"f": (source.url("bad-9.bin"),)}, priority=1)
    await add_dataset(conn, "good", {"f": (source.url("good-9.bin"),)})
    sources = FixedSources(tmp_path, {lane(source): None})
    async with transferring(node, sources, most=1):

        async def good_is_here() -> bool:
            return (await states(conn))["good"] == "complete"

        await until(good_is_here)
        assert not sources.away
    assert await conn.fetchval("SELECT attempts FROM fedstac.replica_file WHERE n = 1") == 1
    row = await conn.fetchrow("SELECT host, until > clock_timestamp() AS ends FROM fedstac.replica_source_fault")
    assert row is not None
    assert tuple(row) == (lane(source), True)


async def test_a_file_that_is_there_already_is_not_fetched_and_another_one_is_replaced(
    node: Node, conn: Connection, source: ByteServer, tmp_path: Path
) -> None:
    same, other = "same-50000.bin", "other-50000.bin"
    folder = tmp_path / "data" / "d"
    folder.mkdir(parents=True)
    (folder / same).write_bytes(content(same))
    (folder / other).write_bytes(b"x" * 50_000)
    source.gate.clear()
    await add_dataset(conn, "d", {"same": (source.url(same),), "other": (source.url(other),)})
    async with transferring(node, FixedSources(tmp_path, {lane(source): None})):

        async def begun() -> bool:
            return source.open > 0

        await until(begun)
        assert (folder / other).read_bytes() == b"x" * 50_000
        source.gate.set()
        await all_are(conn, "complete")
    assert check_files(tmp_path) == 2
    assert source.sent == {other: 50_000}


async def test_nothing_starts_in_a_closed_window_and_what_is_under_way_stops_and_goes_on_from_there(
    node: Node, conn: Connection, source: ByteServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(replica_transfers, "TELL_SECONDS", 0.05)
    monkeypatch.setattr(replica_transfers, "LOOK_SECONDS", 0.05)
    name = "f-4000000.bin"
    source.pause = 0.01
    await add_dataset(conn, "d", {"f": (source.url(name),)})
    sources = FixedSources(tmp_path, {lane(source): None})
    async with transferring(node, sources):

        async def half_is_here() -> bool:
            return source.sent[name] > 2_000_000

        await until(half_is_here)
        source.gate.clear()
        end = datetime.now(UTC) + timedelta(seconds=3)
        sources.closures = Closures({lane(source): Obstacle("closed until soon", end)})
        await all_are(conn, "waiting")
        row = await conn.fetchrow("SELECT reason, until FROM fedstac.replica_dataset")
        assert row is not None
        assert tuple(row) == ("closed until soon", end)
        requests = source.requests.copy()
        while datetime.now(UTC) < end:
            assert source.requests == requests
            await asyncio.sleep(0.05)
        sources.closures = Closures()
        source.gate.set()
        await all_are(conn, "complete")
    assert check_files(tmp_path) == 1
    assert source.sent[name] < 4_000_000 + (1 << 20)
    assert await conn.fetchval("SELECT attempts FROM fedstac.replica_file") == 0


async def test_a_slow_source_holds_its_own_slots_only_and_caps_hold_over_all_processes(
    node: Node, conn: Connection, source: ByteServer, tmp_path: Path
) -> None:
    async with byte_server() as quick:
        source.gate.clear()  # it gives nothing at all
        for n in range(20):
            await add_dataset(conn, f"slow{n}", {"f": (source.url(f"slow{n}-90000.bin"),)}, priority=5)
        for n in range(20):
            await add_dataset(conn, f"quick{n}", {"f": (quick.url(f"quick{n}-90000.bin"),)})
        sources = FixedSources(tmp_path, {lane(source): 3, lane(quick): None})
        async with transferring(node, sources, processes=2, most=4):

            async def quick_ones_are_here() -> bool:
                return all(state == "complete" for id, state in (await states(conn)).items() if id.startswith("quick"))

            await until(quick_ones_are_here)
            assert source.most_open <= 3
            assert not any(state == "complete" for id, state in (await states(conn)).items() if id.startswith("slow"))
            source.gate.set()
            await all_are(conn, "complete")
        assert source.most_open == 3
    assert check_files(tmp_path) == 40


async def test_over_budget_waits_with_a_reason_and_goes_on_with_a_larger_budget(
    node: Node, conn: Connection, source: ByteServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(replica_transfers, "AGAIN_SECONDS", 0.2)
    await add_dataset(conn, "small", {"f": (source.url("small-100.bin"),)})
    await add_dataset(conn, "large", {"f": (source.url("large-9000.bin"),)})
    sources = FixedSources(tmp_path, {lane(source): None}, budget=1000)
    async with transferring(node, sources):
        await all_are(conn, "complete", "waiting")
        assert await states(conn) == {"small": "complete", "large": "waiting"}
        sources.budget = None
        await all_are(conn, "complete")
    assert hashlib.sha256((tmp_path / "data/large/large-9000.bin").read_bytes()).hexdigest()


async def test_what_has_to_wait_for_the_budget_lets_the_dispatcher_pause(
    node: Node, conn: Connection, source: ByteServer, tmp_path: Path
) -> None:
    for n in range(20):
        await add_dataset(conn, f"d{n}", {"f": (source.url(f"d{n}-9000.bin"),)})
    sources = FixedSources(tmp_path, {lane(source): None}, budget=1000)
    async with Transports(lambda: RULES) as transports:
        dispatcher = Dispatcher(node, sources, transports, most=4, block_bytes=1 << 20)
        try:
            assert await dispatcher.dispatch() == 0
        finally:
            await dispatcher._end()
    assert list((await states(conn)).values()).count("waiting") == placement_queue.PLACED_AT_ONCE


async def test_the_check_of_a_rule_decides_whether_a_dataset_is_complete(
    node: Node, conn: Connection, source: ByteServer, tmp_path: Path
) -> None:
    await add_dataset(conn, "good", {"f": (source.url("good-9.bin"),)}, check="grep -q good-9.bin")
    await add_dataset(conn, "bad", {"f": (source.url("bad-9.bin"),)}, check="sh -c 'echo wrong units; exit 3'")
    await add_dataset(conn, "unusable", {"f": (source.url("unusable-9.bin"),)}, check="no-such-command-anywhere")
    async with transferring(node, FixedSources(tmp_path, {lane(source): None})):

        async def checked() -> bool:
            reason = await conn.fetchval("SELECT reason FROM fedstac.replica_dataset WHERE id = 'unusable'")
            ended = {"good": "complete", "bad": "parked", "unusable": "checking"}
            return "cannot be started" in (reason or "") and await states(conn) == ended

        await until(checked)
    rows = {row["id"]: row["reason"] for row in await conn.fetch("SELECT id, reason FROM fedstac.replica_dataset")}
    assert rows["bad"].endswith("\nwrong units")
    assert "cannot be started" in rows["unusable"]
    assert not await conn.fetchval("SELECT count(*) FROM fedstac.replica_claim")


async def test_a_check_that_is_interrupted_is_run_again_and_one_that_the_policy_dropped_passes(
    node: Node, conn: Connection, source: ByteServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(replica_transfers, "UNUSABLE_SECONDS", 0.1)
    marks = tmp_path / "marks"
    marks.mkdir()
    once = f"sh -c 'mkdir {marks}/once && kill -9 $$; exit 0'"
    await add_dataset(conn, "once", {"f": (source.url("once-9.bin"),)}, check=once)
    await add_dataset(conn, "always", {"f": (source.url("always-9.bin"),)}, check="sh -c 'kill -15 $$'")
    n = await add_dataset(conn, "dropped", {"f": (source.url("dropped-9.bin"),)})
    await conn.execute("UPDATE fedstac.replica_file SET state = 'verified' WHERE n = $1", n)
    await conn.execute("UPDATE fedstac.replica_dataset SET state = 'checking' WHERE n = $1", n)
    async with transferring(node, FixedSources(tmp_path, {lane(source): None})):
        await all_are(conn, "complete", "parked")
    assert await states(conn) == {"once": "complete", "always": "parked", "dropped": "complete"}
    reason = await conn.fetchval("SELECT reason FROM fedstac.replica_dataset WHERE id = 'always'")
    assert reason.startswith("the check was ended by signal 15")


@pytest.mark.parametrize("count", [2000, pytest.param(10_000, marks=pytest.mark.soak)])
async def test_a_large_dataset_takes_no_statement_per_file(
    count: int, node: Node, conn: Connection, source: ByteServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("SETTLE_SECONDS", "ASK_SECONDS", "TELL_SECONDS", "LOOK_SECONDS"):  # not by the clock of this machine
        monkeypatch.setattr(replica_transfers, name, 5.0)
    await add_dataset(conn, "large", {name: (source.url(name),) for name in names(count, 10)})
    await add_dataset(conn, "small", {"f": (source.url("small-10.bin"),)})
    statements = 0
    execute = getattr(asyncpg.Connection, "_do_execute")  # noqa: B009 (no part of its interface)

    async def count_and_execute(self: Any, *arguments: Any, **options: Any) -> Any:
        nonlocal statements
        statements += self is not conn  # this test's own are the more, the slower the machine
        return await execute(self, *arguments, **options)

    monkeypatch.setattr(asyncpg.Connection, "_do_execute", count_and_execute)
    async with transferring(node, FixedSources(tmp_path, {lane(source): None})):

        async def small_is_here() -> bool:
            return (await states(conn))["small"] == "complete"

        await until(small_is_here)
        assert (await states(conn))["large"] == "transferring"  # P6
        await all_are(conn, "complete")
    print(f"{statements} statements for {count} files")
    assert statements < count / 2
    assert source.requests.total() == count + 1


@contextmanager
def small_disk(folder: Path, size: int) -> Iterator[Path]:
    """Yield the folder of a file system of so many bytes; the test is skipped where this user may not mount one."""
    place = folder / "disk"
    place.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(place)], capture_output=True, check=False
    )
    if mounted.returncode:
        pytest.skip("a file system cannot be mounted here: it needs the rights of root")
    try:
        yield place
    finally:
        subprocess.run(["umount", "-l", str(place)], check=True)


async def test_a_full_disk_is_waited_for_and_transfers_go_on_when_there_is_room(
    node: Node, conn: Connection, source: ByteServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(replica_transfers, "AGAIN_SECONDS", 0.2)
    monkeypatch.setattr(failures, "DISK_PAUSE", 0.1)
    with small_disk(tmp_path, 4 << 20) as disk:
        (disk / "ballast").write_bytes(bytes(2 << 20))
        await add_dataset(conn, "d", {"f": (source.url("f-3000000.bin"),)})
        async with transferring(node, FixedSources(disk, {lane(source): None})):
            await all_are(conn, "waiting")
            row = await conn.fetchrow("SELECT reason, until > since AS has_end FROM fedstac.replica_dataset")
            assert row is not None
            assert row["reason"].startswith("disk full: ")
            assert row["has_end"]
            (disk / "ballast").unlink()
            await all_are(conn, "complete")
        assert check_files(disk) == 1
    assert await conn.fetchval("SELECT attempts FROM fedstac.replica_file") == 0
    assert not await conn.fetchval("SELECT count(*) FROM fedstac.trouble")


async def test_a_disk_that_refuses_is_not_called_full(
    node: Node, conn: Connection, source: ByteServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def refuse(order: CopyOrder, **_: object) -> CopyReport:
        raise storage.failure_of(PermissionError(errno.EACCES, "no"), order.path)

    monkeypatch.setattr(replica_transfers, "copy_file", refuse)
    await add_dataset(conn, "d", {"f": (source.url("f-3000.bin"),)})
    async with transferring(node, FixedSources(tmp_path, {lane(source): None})):
        await all_are(conn, "waiting")
    reason = await conn.fetchval("SELECT reason FROM fedstac.replica_dataset")
    assert re.fullmatch(r"disk refuses: \S+ cannot be stored: Permission denied", reason)


async def test_where_the_disk_has_no_room_for_all_the_oldest_transfer_is_finished(
    node: Node, conn: Connection, source: ByteServer, tmp_path: Path
) -> None:
    source.pause = 0.01
    with small_disk(tmp_path, 5 << 20) as disk:
        for n in range(3):
            await add_dataset(conn, f"d{n}", {"f": (source.url(f"d{n}-3000000.bin"),)})
        async with transferring(node, FixedSources(disk, {lane(source): None})):
            await all_are(conn, "complete", "waiting")
        assert sorted((await states(conn)).values()) == ["complete", "waiting", "waiting"]
        assert check_files(disk) == 1
        assert len(source.sent) == 1
    reasons = await conn.fetch("SELECT reason FROM fedstac.replica_dataset WHERE state = 'waiting'")
    assert all("files that began before need" in row["reason"] for row in reasons)


async def test_a_process_that_is_asked_to_stop_leaves_no_claims_and_keeps_what_it_has(
    node: Node, conn: Connection, source: ByteServer, tmp_path: Path
) -> None:
    name = "f-6000000.bin"
    source.pause = 0.01
    await add_dataset(conn, "d", {"f": (source.url(name),)})
    sources = FixedSources(tmp_path, {lane(source): None})
    async with transferring(node, sources):

        async def half_is_here() -> bool:
            return source.sent[name] > 3_000_000

        await until(half_is_here)
        source.gate.clear()
    assert not await conn.fetchval("SELECT count(*) FROM fedstac.replica_claim")
    row = await conn.fetchrow("SELECT state, attempts FROM fedstac.replica_file")
    assert row is not None
    assert tuple(row) == ("queued", 0)
    source.pause = 0
    source.gate.set()
    async with transferring(node, sources):
        await all_are(conn, "complete")
    assert source.sent[name] < 6_000_000 + (1 << 20)


async def test_a_lost_session_costs_its_process_the_claims_and_nothing_else(
    node: Node, conn: Connection, source: ByteServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(replica_transfers, "TELL_SECONDS", 0.05)
    source.pause = 0.005
    await add_dataset(conn, "d", {"f": (source.url("f-3000000.bin"),)})
    async with transferring(node, FixedSources(tmp_path, {lane(source): None})):

        async def is_claimed() -> Any:
            return await conn.fetchval("SELECT backend FROM fedstac.replica_claim")

        await conn.execute("SELECT pg_terminate_backend($1)", await until(is_claimed))
        await all_are(conn, "complete")
    assert check_files(tmp_path) == 1
    assert source.sent.total() < 3_000_000 + (1 << 20)


async def test_a_file_whose_claim_was_released_meanwhile_is_not_put_into_the_tree(
    node: Node, conn: Connection, source: ByteServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(replica_transfers, "TELL_SECONDS", 60)  # the process stalls: it does not renew its lease
    name = "f-3000000.bin"
    source.pause = 0.005
    await add_dataset(conn, "d", {"f": (source.url(name),)})
    async with transferring(node, FixedSources(tmp_path, {lane(source): None})):

        async def half_is_here() -> bool:
            return source.sent[name] > 1_500_000

        await until(half_is_here)
        source.gate.clear()
        async with conn.transaction():  # another process finds it dead, and its files are purged
            await conn.execute("UPDATE fedstac.replica_claim SET until = clock_timestamp() - interval '1 s'")
            assert await claims.release_dead(conn) == 1
            await conn.execute("DELETE FROM fedstac.replica_file")
            await conn.execute("UPDATE fedstac.replica_dataset SET state = 'removed'")
        source.gate.set()

        async def is_over() -> bool:
            parts = parts_below(tmp_path)
            return not parts or (parts[0].stat().st_size == 3_000_000 and is_unlocked(parts[0]))

        await until(is_over)
        assert check_files(tmp_path) == 0
    assert len(parts_below(tmp_path)) == 1


async def test_nothing_is_written_below_the_mount_point_of_a_disk_that_is_away(
    node: Node, conn: Connection, source: ByteServer, tmp_path: Path
) -> None:
    folder = tmp_path / "served"
    folder.mkdir()
    await add_dataset(conn, "first", {"f": (source.url("f-9000.bin"),)})
    async with transferring(node, FixedSources(folder, {lane(source): None})):
        await all_are(conn, "complete")
        folder.rename(tmp_path / "disk")
        folder.mkdir()
        await add_dataset(conn, "second", {"f": (source.url("g-9000.bin"),)})
        await all_are(conn, "complete", "waiting")
        reason = await conn.fetchval("SELECT reason FROM fedstac.replica_dataset WHERE state = 'waiting'")
        assert reason.startswith("disk refuses: the folder of the tier default has not its mark .fedstac-tier")
        folder.rmdir()  # nothing is in it
        (tmp_path / "disk").rename(folder)
        await conn.execute("UPDATE fedstac.replica_dataset SET until = now() WHERE state = 'waiting'")
        await all_are(conn, "complete")
    assert check_files(folder) == 2


async def test_files_of_a_source_that_the_policy_drops_come_from_another(
    node: Node, conn: Connection, source: ByteServer, tmp_path: Path
) -> None:
    async with byte_server() as other:
        source.faults = lambda path, before: Fault(bytes=0)
        await add_dataset(conn, "d", {"f": (source.url("f-9000.bin"), other.url("f-9000.bin"))})
        sources = FixedSources(tmp_path, {lane(source): None, lane(other): None})
        async with transferring(node, sources):

            async def is_tried() -> bool:
                return source.requests.total() > 0

            await until(is_tried)
            sources.lanes, sources.closures = {lane(other): None}, Closures()
            sources.dropped = {lane(source)}
            await all_are(conn, "complete")
        assert other.sent == {"f-9000.bin": 9000}
