"""Verification of a replica node on real files: it finds what is wrong, mends what it may, and stops at its brake."""

from __future__ import annotations

import asyncio
import errno
import os
import random
from collections import Counter
from collections.abc import AsyncIterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import orjson
import pytest

from fedstac.bootstrap import Node
from fedstac.db import connections
from fedstac.db.connections import Connection
from fedstac.db.replica import looks
from fedstac.domain.errors import Conflict
from fedstac.domain.replication.states import SERVED_TIER
from fedstac.domain.replication.verification import FileFault
from fedstac.replication import surveying
from fedstac.replication.marks import Marks
from fedstac.replication.surveying import DiskAway
from fedstac.workers import replica_verifying
from fedstac.workers.replica_verifying import Tiers, VerificationLimits, Verifier
from tests.db.replica.planting import BASE, NODE, PlantedFile, document_of, plant, write

SEED = 20251129
DAY = 86_400.0
LIMITS = VerificationLimits(grace_seconds=0, removes_dark=True)


@dataclass
class PlantedNode:
    """A replica node with files on disk: the files and the numbers of its datasets, by id."""

    conn: Connection
    folder: Path
    datasets: dict[str, list[PlantedFile]] = field(default_factory=dict)
    numbers: dict[str, int] = field(default_factory=dict)

    async def add(self, id: str, files: list[PlantedFile], **columns: Any) -> None:
        self.datasets[id] = files
        self.numbers[id] = await plant(self.conn, id, files, **columns)
        write(self.folder, id, files)

    def verifier(self, limits: VerificationLimits = LIMITS, *, days_later: float = 0.0) -> Verifier:
        tiers = Tiers({SERVED_TIER: self.folder}, lambda path, tier: f"{BASE}/{path}")
        now = max((entry.stat().st_ctime for entry in self.folder.rglob("*")), default=0.0) + days_later * DAY
        return Verifier(self.conn, NODE, tiers, limits, threads=4, now=lambda: now)

    async def verify(self, limits: VerificationLimits = LIMITS, *, by_checksum: bool = True, sample: float = 100.0,
                     days_later: float = 0.0) -> tuple[looks.DiskLook, str | None]:  # fmt: skip
        """Look at everything and mend; return the look and why the brake stopped it."""
        verifier = self.verifier(limits, days_later=days_later)
        look = await looks.begin(self.conn, looks.VERIFY, by_checksum=by_checksum, sample_percent=sample)
        look = await verifier.look(look)
        return look, await verifier.mend(look)

    async def found(self, look: looks.DiskLook) -> dict[str, set[str]]:
        """Return the paths, or the datasets of entries, by fault."""
        rows = await looks.findings(self.conn, look.id, limit=10_000)
        by_fault: dict[str, set[str]] = {}
        for row in rows:
            by_fault.setdefault(row.fault, set()).add(row.path or f"{row.dataset}/{row.asset}")
        return by_fault


@pytest.fixture
async def east(node: Node, dsn: str, tmp_path: Path) -> AsyncIterator[PlantedNode]:
    conn = await connections.connect(dsn, application="fedstac test")
    folder = tmp_path / "tree"
    folder.mkdir()
    yield PlantedNode(conn, folder)
    await conn.close(timeout=10)


def some_files(chance: random.Random, count: int) -> list[PlantedFile]:
    return [PlantedFile(f"f{n}.nc", chance.randbytes(chance.randrange(1, 400))) for n in range(count)]


@dataclass
class Faults:
    """A hundred planted faults, twenty of each kind, by path; those of entries by dataset and asset."""

    dark: set[str] = field(default_factory=set)
    missing: set[str] = field(default_factory=set)
    truncated: set[str] = field(default_factory=set)
    wrong: set[str] = field(default_factory=set)
    wrongly_announced: set[str] = field(default_factory=set)

    def as_found(self) -> dict[str, set[str]]:
        return {"dark": self.dark, "missing": self.missing, "truncated": self.truncated, "wrong": self.wrong,
                "wrongly announced": self.wrongly_announced}  # fmt: skip


async def plant_faults(east: PlantedNode, *, datasets: int = 200, files: int = 10, of_each: int = 20) -> Faults:
    chance = random.Random(SEED)
    for n in range(datasets):
        await east.add(f"d{n}", some_files(chance, files))
    for n in range(of_each // 4):  # announced at the federation, and nothing of them is here
        east.numbers[f"w{n}"] = await plant(east.conn, f"w{n}", [], state="removed")
        absent = [PlantedFile(f"f{m}.nc", b"absent", "queued") for m in range(4)]
        await east.conn.execute(
            "UPDATE fedstac.replica_dataset SET document = $2 WHERE n = $1", east.numbers[f"w{n}"],
            orjson.dumps(document_of(f"w{n}", absent, BASE)).decode(),
        )  # fmt: skip
    faults = Faults(wrongly_announced={f"w{n}/f{m}.nc" for n in range(of_each // 4) for m in range(4)})
    spots = [(id, file) for id, files_of in east.datasets.items() for file in files_of if len(file.content) > 1]
    for number, (id, file) in enumerate(chance.sample(spots, of_each * 3)):
        path = file.path(id)
        place = east.folder / path
        match number % 3:
            case 0:
                place.unlink()
                faults.missing.add(path)
            case 1:
                place.write_bytes(file.content[: chance.randrange(len(file.content))])
                faults.truncated.add(path)
            case _:
                content = bytearray(file.content)
                content[chance.randrange(len(content))] ^= 1 << chance.randrange(8)
                place.write_bytes(content)
                faults.wrong.add(path)
    for n in range(of_each):
        path = f"CMIP6/d{n}/left-over-{n}.nc"
        (east.folder / path).write_bytes(b"dark")
        faults.dark.add(path)
    return faults


async def states(conn: Connection, id: str) -> tuple[str, Counter[str], str | None]:
    """Return the state of a dataset, its files by state, and what the origin is to be message."""
    row = await conn.fetchrow(
        """SELECT d.n, d.state, (SELECT kind FROM fedstac.replica_announcement a
                                 WHERE a.n = d.n AND a.state = 'queued') AS kind
           FROM fedstac.replica_dataset d WHERE id = $1""",
        id,
    )
    assert row is not None
    files = await conn.fetch("SELECT state FROM fedstac.replica_file WHERE n = $1", row["n"])
    return row["state"], Counter(file["state"] for file in files), row["kind"]


async def test_a_hundred_planted_faults_are_found_and_those_that_may_be_are_mended(east: PlantedNode) -> None:
    faults = await plant_faults(east)
    look, brake = await east.verify(replace(LIMITS, brake_percent=3), days_later=29)
    assert await east.found(look) == faults.as_found(), f"seed {SEED}"
    assert brake is None
    assert (look.files, look.on_disk) == (2000, 2000)
    assert await looks.count_faults(east.conn, look.id, open_only=True) == {}
    lost = faults.missing | faults.truncated | faults.wrong
    for path in lost:
        state, files, message = await states(east.conn, path.split("/")[1])
        assert (state, message, files["queued"] > 0) == ("queued", "remove", True)
        assert not (east.folder / path).exists()  # nothing wrong is served under its final name
    queued = await east.conn.fetch("SELECT path, reason FROM fedstac.replica_file WHERE state = 'queued'")
    assert {row["path"] for row in queued} == lost
    assert all(row["reason"].startswith("verification: ") for row in queued)
    for path in faults.dark:
        assert not (east.folder / path).exists()
    told_to_go = await east.conn.fetch(
        """SELECT d.id FROM fedstac.replica_announcement a JOIN fedstac.replica_dataset d USING (n)
           WHERE a.kind = 'remove' AND d.id LIKE 'w%'"""
    )
    assert {row["id"] for row in told_to_go} == {name.split("/")[0] for name in faults.wrongly_announced}
    untouched = await east.conn.fetchval("SELECT count(*) FROM fedstac.replica_dataset WHERE state = 'announced'")
    assert untouched == 200 - len({path.split("/")[1] for path in lost})


async def test_dark_files_younger_than_the_limit_are_never_touched(east: PlantedNode) -> None:
    await east.add("d", some_files(random.Random(1), 4))
    (east.folder / "CMIP6/old.nc").write_bytes(b"old")
    middle = (east.folder / "CMIP6/old.nc").stat().st_ctime
    young = east.folder / "CMIP6/young.nc"
    while young.write_bytes(b"young") and young.stat().st_ctime <= middle:  # noqa: ASYNC110 (a file system's clock)
        await asyncio.sleep(0.002)
    os.utime(young, (0, 0))  # an old date of its bytes does not make it old: it came here a moment ago
    verifier = east.verifier(VerificationLimits(brake_percent=100, removes_dark=True, grace_seconds=0))
    verifier.now = lambda: (middle + young.stat().st_ctime) / 2 + 28 * DAY
    look = await verifier.look(await looks.begin(east.conn, looks.VERIFY, by_checksum=False))
    assert await verifier.mend(look) is None
    assert young.exists()
    assert not (east.folder / "CMIP6/old.nc").exists()
    outcomes = {row.path: (row.outcome, row.note) for row in await looks.findings(east.conn, look.id)}
    assert outcomes == {
        "CMIP6/old.nc": ("mended", "it is removed"), "CMIP6/young.nc": ("left", "it is younger than 28 days")
    }  # fmt: skip


async def test_a_dark_file_stays_unless_its_removal_is_asked_for(east: PlantedNode) -> None:
    (east.folder / "dark.nc").write_bytes(b"dark")
    await east.verify(VerificationLimits(brake_percent=100), days_later=100)
    assert (east.folder / "dark.nc").exists()


@pytest.mark.parametrize("fault", [FileFault.MISSING, FileFault.DARK])
async def test_the_brake_stops_all_mending_until_it_is_forced(east: PlantedNode, fault: FileFault) -> None:
    await east.add("d", some_files(random.Random(2), 100))
    (east.folder / "CMIP6/d/f0.nc").write_bytes(b"")  # one that could be mended
    for n in range(1, 3):
        if fault is FileFault.MISSING:
            (east.folder / f"CMIP6/d/f{n}.nc").unlink()
        else:
            (east.folder / f"CMIP6/d/dark{n}.nc").write_bytes(b"dark")
    look, brake = await east.verify(days_later=100)
    assert brake is not None
    assert f"are {fault}" in brake
    assert await states(east.conn, "d") == ("announced", Counter(verified=100), None)
    assert await looks.count_faults(east.conn, look.id, open_only=True) == {"truncated": 1, str(fault): 2}
    await east.verify(days_later=100)
    [trouble] = await east.conn.fetch("SELECT kind, detail FROM fedstac.trouble WHERE detail = $1 LIMIT 1", brake)
    assert trouble["kind"] == "replica-verify"
    _, brake = await east.verify(VerificationLimits(is_forced=True, removes_dark=True, grace_seconds=0), days_later=100)
    assert brake is None
    state, files, message = await states(east.conn, "d")
    assert (state, files["queued"], message) == ("queued", 3 if fault is FileFault.MISSING else 1, "remove")


@pytest.mark.parametrize("brake_percent", [1.0, 100.0])
async def test_a_file_that_the_disk_does_not_give_is_never_deleted(
    east: PlantedNode, monkeypatch: pytest.MonkeyPatch, brake_percent: float
) -> None:
    await east.add("d", some_files(random.Random(9), 50))
    bad = {(east.folder / f"CMIP6/d/f{n}.nc").stat().st_ino for n in range(2)}
    readv = os.readv

    def fail(fd: int, buffers: Any) -> int:
        if os.fstat(fd).st_ino in bad:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return readv(fd, buffers)

    monkeypatch.setattr(os, "readv", fail)
    look, brake = await east.verify(replace(LIMITS, brake_percent=brake_percent), days_later=100)
    assert await east.found(look) == {"unreadable": {"CMIP6/d/f0.nc", "CMIP6/d/f1.nc"}}
    assert (brake is not None) == (brake_percent < 4)
    for n in range(2):
        assert (east.folder / f"CMIP6/d/f{n}.nc").exists()
    assert await states(east.conn, "d") == ("announced", Counter(verified=50), None)
    outcome = "open" if brake else "left"
    assert {row.outcome for row in await looks.findings(east.conn, look.id)} == {outcome}


async def test_a_folder_that_is_not_mounted_stops_the_look_before_it_finds_anything(east: PlantedNode) -> None:
    await east.add("d", some_files(random.Random(3), 3))
    east.folder.rename(east.folder.with_name("elsewhere"))
    with pytest.raises(DiskAway, match="mount it"):
        await east.verify()
    assert await east.conn.fetchval("SELECT count(*) FROM fedstac.replica_finding") == 0


async def test_an_empty_mount_point_stops_the_look_before_it_finds_anything(east: PlantedNode) -> None:
    await east.add("d", some_files(random.Random(3), 3))
    await Marks(NODE).require(east.conn, {SERVED_TIER: east.folder})
    look, _ = await east.verify()
    assert (look.on_disk, await east.found(look)) == (3, {})  # the mark is no dark file
    east.folder.rename(east.folder.with_name("elsewhere"))
    east.folder.mkdir()
    with pytest.raises(DiskAway, match="has not its mark"):
        await east.verify(VerificationLimits(is_forced=True))
    assert await east.conn.fetchval("SELECT count(*) FROM fedstac.replica_finding") == 0


async def test_a_look_that_dies_goes_on_where_it_was(east: PlantedNode, monkeypatch: pytest.MonkeyPatch) -> None:
    faults = await plant_faults(east, datasets=30, files=10, of_each=4)
    monkeypatch.setattr(replica_verifying, "STRETCH_FILES", 20)
    reads: Counter[str] = Counter()
    look_at_file = surveying.look

    def count_reads(folder: Path, path: str, *arguments: Any, **options: Any) -> surveying.DiskReading:
        reads[path] += 1
        return look_at_file(folder, path, *arguments, **options)

    monkeypatch.setattr(surveying, "look", count_reads)
    look = await looks.begin(east.conn, looks.VERIFY, by_checksum=True)
    while look.phase != "done":
        steps = 0

        def die(name: str) -> None:
            nonlocal steps
            steps += name == "replica.looked"
            if steps == 4:
                raise KeyError("the process dies")

        monkeypatch.setattr(replica_verifying, "failpoint", die)
        try:
            look = await east.verifier().look(look)
        except KeyError:
            await east.conn.execute("SELECT pg_advisory_unlock_all()")
            again = await looks.begin(east.conn, looks.VERIFY, by_checksum=True)
            assert again.id == look.id
            look = again
    assert await east.found(look) == faults.as_found()
    assert set(reads.values()) == {1}
    assert look.files == 300


async def test_files_that_change_while_they_are_looked_at_are_no_fault(
    east: PlantedNode, monkeypatch: pytest.MonkeyPatch
) -> None:
    await east.add("d", some_files(random.Random(4), 2))
    (east.folder / "CMIP6/d/f0.nc").unlink()
    (east.folder / "CMIP6/d/f1.nc").unlink()
    verifier = east.verifier()
    recorded_files = looks.recorded_files

    async def then_replaced(conn: Connection, *arguments: Any) -> list[looks.FileToVerify]:
        files = await recorded_files(conn, *arguments)
        await conn.execute("UPDATE fedstac.replica_file SET verified_at = clock_timestamp() WHERE asset = 'f1.nc'")
        return files

    monkeypatch.setattr(looks, "recorded_files", then_replaced)
    look = await verifier.look(await looks.begin(east.conn, looks.VERIFY, by_checksum=False))
    assert await east.found(look) == {"missing": {"CMIP6/d/f0.nc"}}


async def test_by_size_a_flipped_bit_is_not_seen_and_a_sample_is_a_part(east: PlantedNode) -> None:
    await east.add("d", some_files(random.Random(5), 400))
    file = east.datasets["d"][0]
    (east.folder / file.path("d")).write_bytes(bytes(each ^ 1 for each in file.content))
    by_size, _ = await east.verify(by_checksum=False)
    assert await east.found(by_size) == {}
    sample, _ = await east.verify(by_checksum=False, sample=25)
    assert 50 < sample.files < 150
    assert (sample.on_disk, sample.phase) == (0, "done")


async def test_entries_that_moved_or_are_lacking_are_announced_anew(east: PlantedNode) -> None:
    files = some_files(random.Random(6), 2)
    await east.add("moved", files, announced_at="https://east.example/old")
    await east.add("lost-entry", files, announced_at="")
    await east.add("fine", files)
    look, _ = await east.verify()
    assert await east.found(look) == {
        "wrongly announced": {f"CMIP6/moved/f{n}.nc" for n in range(2)},
        "not announced": {f"CMIP6/lost-entry/f{n}.nc" for n in range(2)},
    }
    for id in ("moved", "lost-entry"):
        assert await states(east.conn, id) == ("announced", Counter(verified=2), "add")
    assert (await states(east.conn, "fine"))[2] is None
    again, _ = await east.verify()  # what is on its way is no fault
    assert await east.found(again) == {}


async def test_a_lost_file_of_a_dataset_that_is_not_wanted_any_more_is_left(east: PlantedNode) -> None:
    await east.add("d", some_files(random.Random(7), 100), state="restricted", announced_at="", goal="restrict")
    (east.folder / "CMIP6/d/f1.nc").unlink()
    look, brake = await east.verify()
    assert brake is None
    [row] = await looks.findings(east.conn, look.id)
    assert (row.outcome, (await states(east.conn, "d"))[0]) == ("left", "restricted")


async def test_a_lost_file_that_is_not_fetched_again_takes_the_entry_with_it(east: PlantedNode) -> None:
    await east.add("d", some_files(random.Random(8), 100), goal="hold")
    (east.folder / "CMIP6/d/f1.nc").unlink()
    await east.verify()
    assert await states(east.conn, "d") == ("parked", Counter(verified=99, failed=1), "remove")


async def test_two_looks_at_once_are_refused(east: PlantedNode, dsn: str) -> None:
    await looks.begin(east.conn, looks.VERIFY, by_checksum=False)
    other = await connections.connect(dsn, application="fedstac test")
    try:
        with pytest.raises(Conflict, match="wait for its end"):
            await looks.begin(other, looks.IMPORT, by_checksum=True)
    finally:
        await other.close(timeout=10)


def test_a_walk_is_in_one_order_and_goes_on_behind_any_of_its_files(tmp_path: Path) -> None:
    for path in ("a/b/1.nc", "a/b-c/2.nc", "a.nc", "b/.fedstac-part/3.nc", "b/4.nc", "tier/5.nc", "a/z.nc"):
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_bytes(b"x")
    (tmp_path / "b" / "link.nc").symlink_to(tmp_path / "a.nc")
    (tmp_path / "out").symlink_to("/etc")
    paths = [each.path for each in surveying.walk(tmp_path, without=[tmp_path / "tier"])]
    assert sorted(paths) == ["a.nc", "a/b-c/2.nc", "a/b/1.nc", "a/z.nc", "b/4.nc", "b/link.nc", "out"]
    for number, path in enumerate(paths):
        rest = [each.path for each in surveying.walk(tmp_path, after=path, without=[tmp_path / "tier"])]
        assert rest == paths[number + 1 :]
    plain = {each.path: each.is_plain for each in surveying.walk(tmp_path)}
    assert (plain["b/link.nc"], plain["out"], plain["b/4.nc"]) == (False, False, True)
