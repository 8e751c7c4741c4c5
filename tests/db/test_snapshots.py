"""Snapshots in files: written, brought up to now, loaded into an empty node; interrupted anywhere, and refused where
a part is not what the manifest names."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import suppress
from itertools import combinations
from pathlib import Path

import orjson
import pyarrow.parquet as pq
import pytest

from fedstac import applying, bootstrap, publication
from fedstac.bootstrap import Node
from fedstac.db import feed, invariants, nodes
from fedstac.db.connections import Connection
from fedstac.demo import sample
from fedstac.domain.actions import Work
from fedstac.domain.actions.delete import Delete
from fedstac.domain.actions.mark import Mark
from fedstac.domain.actions.retract import Retract
from fedstac.domain.actions.target import Target
from fedstac.domain.model import GONE, State
from fedstac.geoparquet import manifest as manifests
from fedstac.geoparquet.manifest import Manifest, PartKind, SnapshotBroken, SnapshotPart
from fedstac.runtime import failpoints
from fedstac.settings import Settings
from fedstac.workers import snapshot_files, snapshot_loading, snapshots
from fedstac.workers.following import FollowedElsewhere
from fedstac.workers.snapshot_files import OtherOrigin, SnapshotAway
from fedstac.workers.snapshot_loading import Group, Stretches
from tests.db import writing
from tests.db.writing import ANNA

COUNT = 60


class Died(Exception):
    """Stands for the end of a process."""


@pytest.fixture
async def origin(west: Node, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Connection]:
    """The node west with datasets in all states, some of them in several versions; parts are small."""
    monkeypatch.setattr(snapshots, "PART_ROWS", 25)
    monkeypatch.setattr(snapshots, "GROUP_ROWS", 10)
    async with west.pool.acquire() as conn:
        items = list(sample.items(COUNT, versions=2, seed=3))
        await writing.publish(conn, *items, *(writing.plain(number) for number in range(20)))
        drafts = [writing.draft(item) for item in items]
        targets = [Target("CMIP6", draft.id, draft.lineage) for draft in drafts]
        await publication.perform(conn, writing.RULES, [
            *(Work(Retract(target, ANNA, {"reason": "wrong units"}), "anna", "retract")
              for target in targets[:5]),
            *(Work(Mark(target, ANNA), "anna", "mark") for target in targets[5:8]),
        ])  # fmt: skip
        await writing.sequence_all(conn)
        yield conn


@pytest.fixture
async def empty(make_database: Callable[[], str]) -> AsyncIterator[Node]:
    """An index node without anything."""
    async with bootstrap.node(Settings(dsn=make_database(), node="east", _env_file=None)) as node:
        yield node


@pytest.fixture(autouse=True)
def _no_failpoints() -> Iterator[None]:
    yield
    failpoints.act(None)


def die_at(name: str, nth: int) -> None:
    """Let the nth pass of a failpoint raise Died."""
    passes = 0

    def act(passed: str) -> None:
        nonlocal passes
        passes += passed == name
        if passed == name and passes == nth:
            raise Died

    failpoints.act(act)


async def load(node: Node, folder: Path) -> bool:
    async with snapshot_files.open_files(str(folder), ()) as files:
        return await snapshot_loading.load(node, files)


async def assert_equal(node: Node, origin: Connection) -> None:
    """Compare everything that a node shows with its origin."""
    async with node.pool.acquire() as conn:
        assert await writing.stored(conn) == await writing.stored(origin)
        assert await writing.searched(conn) == await writing.searched(origin)
        assert await feed.digests(conn, "west") == await feed.digests(origin, "west")
        assert await invariants.check(conn) == []
        for table in ("fedstac.record", "fedstac.lineage"):
            columns = "collection, id, lineage, document, retraction, replicas, superseded, cv_version, latest"
            query = f"SELECT {columns if 'record' in table else 'key, origin, seq'} FROM {table} ORDER BY 1, 2"
            assert await conn.fetch(query) == await origin.fetch(query)
        query = "SELECT id, datetime, end_datetime, geometry::text, content FROM pgstac.items ORDER BY id"
        assert await conn.fetch(query) == await origin.fetch(query)


async def test_an_empty_node_starts_from_files_with_every_state_and_goes_on_from_their_cursor(
    west: Node, origin: Connection, empty: Node, tmp_path: Path
) -> None:
    manifest = await snapshots.write(west, tmp_path)
    assert len(manifest.of_kind(PartKind.RECORDS)) > 2
    assert await load(empty, tmp_path)
    await assert_equal(empty, origin)
    async with empty.pool.acquire() as conn:
        progress = await nodes.progress(conn, nodes.INDEX, "west")
        states = {row[0] for row in await conn.fetch("SELECT DISTINCT state FROM fedstac.record")}
    assert progress == nodes.Progress(manifest.cursor, None)
    assert states == {State.PUBLISHED, State.RETRACTED, State.MARKED}
    assert not await load(empty, tmp_path)  # it has a place in the feed
    async with empty.pool.acquire() as conn:
        rows = await conn.fetch("SELECT outcome, event_id FROM fedstac.own_report WHERE is_marked")
    assert [tuple(row) for row in rows] == [("nothing to do", None)] * 3  # of the marked ones


async def test_what_changed_since_is_one_more_part_and_the_others_stay(
    west: Node, origin: Connection, empty: Node, tmp_path: Path
) -> None:
    first = await snapshots.write(west, tmp_path)
    [item] = sample.items(1, seed=3)
    await writing.publish(origin, writing.titled(item, "another title"), writing.version(item, 20300101))
    await writing.sequence_all(origin)
    second = await snapshots.write(west, tmp_path)
    assert second.of_kind(PartKind.RECORDS) == first.of_kind(PartKind.RECORDS)
    [changes] = second.of_kind(PartKind.CHANGES)
    assert changes.rows == 3  # the new version, and the latest until then
    assert second.cursor > first.cursor
    await load(empty, tmp_path)
    await assert_equal(empty, origin)
    third = await snapshots.write(west, tmp_path)  # nothing changed
    assert third.parts == second.parts


async def test_parts_are_written_anew_when_much_changed_and_old_files_go_after_the_next_time(
    west: Node, origin: Connection, tmp_path: Path
) -> None:
    first = await snapshots.write(west, tmp_path)
    await writing.publish(origin, *(writing.titled(item, "new") for item in sample.items(COUNT, versions=2, seed=3)))
    await writing.sequence_all(origin)
    second = await snapshots.write(west, tmp_path)
    old = {part.name for part in first.of_kind(PartKind.RECORDS)}
    assert not second.of_kind(PartKind.CHANGES)
    assert not old & {part.name for part in second.parts}
    assert all((tmp_path / name).exists() for name in old)  # somebody may be fetching them
    await snapshots.write(west, tmp_path)
    assert not any((tmp_path / name).exists() for name in old)


async def delete_one(conn: Connection) -> str:
    """Delete a published dataset, and return its id."""
    row = await conn.fetchrow("SELECT collection, id, lineage FROM fedstac.record WHERE state = 'published' LIMIT 1")
    assert row is not None
    target = Target(row["collection"], row["id"], row["lineage"])
    await publication.perform(conn, writing.RULES, [Work(Mark(target, ANNA), "anna", "mark")])
    await conn.execute("UPDATE fedstac.deletion SET grace_until = marked_at - interval '1 second'")
    await conn.execute("UPDATE fedstac.deletion_dependency SET state = 'waived'")
    work = Work(Delete(target, ANNA), "anna", "delete")
    [receipt] = await publication.perform(conn, writing.RULES, [work])
    assert receipt.problem is None, receipt.problem
    await writing.sequence_all(conn)
    return str(row["id"])


def documents_in(folder: Path) -> list[str]:
    """Return the ids of the datasets whose documents are in the parts of a folder."""
    return [
        row["id"]
        for path in sorted(folder.glob("*.parquet"))
        for row in pq.read_table(path, columns=["id", "state"]).to_pylist()
        if row["state"] not in GONE
    ]


async def test_no_part_keeps_a_dataset_that_was_deleted_whether_a_writer_runs_or_not(
    west: Node, origin: Connection, empty: Node, tmp_path: Path
) -> None:
    await snapshots.write(west, tmp_path)
    first = await delete_one(origin)
    assert first in documents_in(tmp_path)
    await snapshots.write(west, tmp_path)
    assert first not in documents_in(tmp_path)
    second = await delete_one(origin)
    assert await snapshots.remove_stale(west, tmp_path)
    assert documents_in(tmp_path) == []
    assert not (tmp_path / manifests.NAME).exists()
    die_at("snapshot.part", 1)
    with suppress(Died):
        await snapshots.write(west, tmp_path)
    await delete_one(origin)
    manifest = await snapshots.write(west, tmp_path)
    assert second not in documents_in(tmp_path)
    assert await snapshots.remove_stale(west, tmp_path)
    assert (tmp_path / manifests.NAME).exists()  # nothing was deleted since
    await load(empty, tmp_path)
    await assert_equal(empty, origin)
    assert manifest.cursor == await feed.head(origin)


async def test_a_writer_that_died_goes_on_after_its_last_part(
    west: Node, origin: Connection, empty: Node, tmp_path: Path
) -> None:
    written = 0

    def count(rows: int) -> None:
        nonlocal written
        written += rows

    die_at("snapshot.part", 2)
    with suppress(Died):
        await snapshots.write(west, tmp_path, on_rows=count)
    done = {name for name in os.listdir(tmp_path) if name.endswith(".parquet")}
    assert len(done) == 2
    assert not (tmp_path / manifests.NAME).exists()
    [item] = sample.items(1, seed=3)
    await writing.publish(origin, writing.titled(item, "meanwhile"))
    await writing.sequence_all(origin)
    manifest = await snapshots.write(west, tmp_path, on_rows=count)
    assert done <= {part.name for part in manifest.parts}
    assert written == sum(part.rows for part in manifest.of_kind(PartKind.RECORDS))
    await load(empty, tmp_path)
    async with empty.pool.acquire() as conn:
        rest = [event for event in await writing.whole_feed(origin) if event.cursor and event.cursor > manifest.cursor]
        async with conn.transaction():
            await applying.apply(conn, rest)
    await assert_equal(empty, origin)


async def test_a_loader_that_died_three_times_goes_on_and_loads_nothing_twice(
    west: Node, origin: Connection, empty: Node, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    await snapshots.write(west, tmp_path)
    loaded: list[int] = []

    async def counted(conn: Connection, name: str, datasets: list[object]) -> applying.PageResult:
        result = await original(conn, name, datasets)  # type: ignore[arg-type]
        loaded.append(len(datasets))
        return result

    original = applying.load
    monkeypatch.setattr(applying, "load", counted)
    for name, nth in (("snapshot.written", 1), ("snapshot.loaded", 2), ("snapshot.written", 3)):
        die_at(name, nth)
        with pytest.raises(Died):
            await load(empty, tmp_path)
    failpoints.act(None)
    assert await load(empty, tmp_path)
    await assert_equal(empty, origin)
    groups = sum(part.groups for part in (await read(tmp_path)).parts)
    assert len(loaded) <= groups + 3 * snapshot_loading.LOADERS  # those that were under way


@pytest.mark.parametrize("takers", [1, 2, 3])
def test_loaders_take_each_group_once_and_no_neighbours_at_once(takers: int) -> None:
    part = SnapshotPart("part", PartKind.RECORDS, "", 0, 0)
    for count in range(30):
        groups = [Group(number, part, Path("part"), number) for number in range(count)]
        stretches = Stretches(groups, takers)
        rounds: list[list[int]] = []  # each with what is under way at once
        while any(taken := [group for taker in range(takers) if (group := stretches.take(taker)) is not None]):
            rounds.append([group.number for group in taken])
        assert sorted(number for taken in rounds for number in taken) == list(range(count))
        if count >= 2 * takers:
            assert all(abs(one - other) > 1 for taken in rounds[:-1] for one, other in combinations(taken, 2))


def test_a_loader_that_is_done_takes_half_of_the_longest_stretch() -> None:
    part = SnapshotPart("part", PartKind.RECORDS, "", 0, 0)
    stretches = Stretches([Group(number, part, Path("part"), number) for number in range(12)], 2)
    quick = []
    while (group := stretches.take(0)) is not None:
        quick.append(group.number)
    assert quick == [0, 1, 2, 3, 4, 5, 9, 10, 11, 7, 8, 6]


async def test_a_node_that_died_goes_on_with_another_snapshot_too(
    west: Node, origin: Connection, empty: Node, tmp_path: Path
) -> None:
    await snapshots.write(west, tmp_path)
    die_at("snapshot.loaded", 3)
    with pytest.raises(Died):
        await load(empty, tmp_path)
    failpoints.act(None)
    [item] = sample.items(1, seed=3)
    await writing.publish(origin, writing.titled(item, "meanwhile"))
    await writing.sequence_all(origin)
    await snapshots.write(west, tmp_path)
    assert await load(empty, tmp_path)
    await assert_equal(empty, origin)


async def read(folder: Path) -> Manifest:
    return manifests.read((folder / manifests.NAME).read_bytes())


@pytest.mark.parametrize("kind", [PartKind.RECORDS, PartKind.COLLECTIONS, PartKind.VOCABULARY])
async def test_a_part_that_was_tampered_with_is_refused_by_its_name(
    west: Node, origin: Connection, empty: Node, tmp_path: Path, kind: PartKind
) -> None:
    part = (await snapshots.write(west, tmp_path)).of_kind(kind)[-1]
    path = tmp_path / part.name
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(bytes(content))
    with pytest.raises(SnapshotBroken, match=part.name.replace(".", r"\.")):
        await load(empty, tmp_path)
    path.write_bytes(bytes(content[:-1]))
    with pytest.raises(SnapshotBroken, match="bytes"):
        await load(empty, tmp_path)
    path.unlink()
    with pytest.raises(SnapshotBroken, match=part.name.replace(".", r"\.")):
        await load(empty, tmp_path)
    async with empty.pool.acquire() as conn:
        assert await conn.fetchval("SELECT count(*) FROM pgstac.items WHERE id = ''") == 0


@pytest.mark.parametrize(
    "change",
    [
        {"name": "../records.parquet"}, {"name": "/etc/passwd"}, {"name": "a/b.parquet"}, {"name": "..parquet"},
        {"name": "a..parquet"}, {"name": ""}, {"name": "C:\\x.parquet"}, {"name": 5}, {"sha256": "00"},
        {"bytes": -1}, {"bytes": 2**63}, {"bytes": "9"}, {"rows": True}, {"groups": 10**9}, {"kind": "other"},
    ],
    ids=str,
)  # fmt: skip
async def test_a_manifest_that_names_what_is_no_part_is_refused(change: dict[str, object]) -> None:
    part: dict[str, object] = {"name": "records-1.parquet", "kind": "records", "sha256": "0" * 64, "bytes": 1,
                               "rows": 1, "groups": 1}  # fmt: skip
    body = {"fedstac_snapshot": 1, "origin": "west", "cursor": "1.2", "created": "2026-01-01T00:00:00Z"}
    assert manifests.read(orjson.dumps(body | {"parts": [part]})).parts
    with pytest.raises(SnapshotBroken):
        manifests.read(orjson.dumps(body | {"parts": [part | change]}))


@pytest.mark.parametrize(
    "text", [b"", b"[]", b"{}", b"null", b'{"fedstac_snapshot":2}', b'{"fedstac_snapshot":1,"parts":[]}', b"\xff"]
)
async def test_what_is_no_manifest_is_refused(text: bytes) -> None:
    with pytest.raises(SnapshotBroken):
        manifests.read(text)


async def test_a_node_starts_from_no_copy_of_itself_and_not_beside_a_follower(
    west: Node, origin: Connection, empty: Node, tmp_path: Path
) -> None:
    with pytest.raises(SnapshotAway):
        await load(empty, tmp_path)
    await snapshots.write(west, tmp_path)
    with pytest.raises(OtherOrigin):
        await load(west, tmp_path)
    async with empty.pool.acquire() as conn:
        assert await nodes.follow_alone(conn, nodes.INDEX, "west")
        with pytest.raises(FollowedElsewhere):
            await load(empty, tmp_path)
        await conn.execute("SELECT pg_advisory_unlock_all()")


async def test_a_part_is_geoparquet_with_the_exact_documents(west: Node, origin: Connection, tmp_path: Path) -> None:
    manifest = await snapshots.write(west, tmp_path)
    tables = [pq.read_table(tmp_path / part.name) for part in manifest.of_kind(PartKind.RECORDS)]
    geo = orjson.loads(tables[0].schema.metadata[b"geo"])
    assert geo["columns"][geo["primary_column"]]["encoding"] == "WKB"
    documents = {row["id"]: row["document"] for table in tables for row in table.to_pylist()}
    stored = {row["id"]: row["document"] for row in await origin.fetch("SELECT id, document FROM fedstac.record")}
    assert documents == stored
