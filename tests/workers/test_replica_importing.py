"""Adoption of files that are on disk: adopted, unknown and wrong ones; nothing is moved or changed."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from fedstac.bootstrap import Node
from fedstac.db import connections
from fedstac.db.connections import Connection
from fedstac.db.replica import looks
from fedstac.domain.errors import BadRequest
from fedstac.domain.replication.states import SERVED_TIER
from fedstac.replication import surveying
from fedstac.workers import replica_importing, replica_verifying
from fedstac.workers.replica_importing import Importer
from fedstac.workers.replica_verifying import Tiers
from tests.db.replica.planting import PlantedFile, plant, write
from tests.support.commands import Fedstac

POLICY = "version: 1\nrules: [{name: all, action: replicate}]\nsources: [{name: west, hosts: [west.example]}]\n"


@pytest.fixture
async def east(node: Node, dsn: str) -> AsyncIterator[Connection]:
    conn = await connections.connect(dsn, application="fedstac test")
    yield conn
    await conn.close(timeout=10)


def queued_files(count: int, seed: int = 1) -> list[PlantedFile]:
    chance = random.Random(seed)
    return [PlantedFile(f"f{n}.nc", chance.randbytes(chance.randrange(2, 300)), "queued") for n in range(count)]


async def plant_tree(conn: Connection, folder: Path) -> None:
    """Plant a dataset that is all here, one that is partly here, one with a wrong file, and files of nobody."""
    for id, state in (("whole", "queued"), ("part", "transferring"), ("bad", "queued"), ("parked", "parked")):
        files = queued_files(4, seed=len(id))
        await plant(conn, id, files, state=state, announced_at="")
        write(folder, id, files[:2] if id == "part" else files)
    await conn.execute(
        """UPDATE fedstac.replica_file f SET state = 'failed' FROM fedstac.replica_dataset d
           WHERE d.n = f.n AND d.id = 'parked' AND f.asset = 'f0.nc'"""
    )
    (folder / "CMIP6/bad/f1.nc").write_bytes(b"?")
    place = folder / "CMIP6/bad/f2.nc"
    place.write_bytes(bytes(each ^ 255 for each in place.read_bytes()))
    (folder / "CMIP6/nobody.nc").write_bytes(b"nobody's")


def snapshot_of(folder: Path) -> dict[str, tuple[int, int, bytes]]:
    return {
        str(each): (each.stat().st_ino, each.stat().st_mtime_ns, each.read_bytes())
        for each in folder.rglob("*") if each.is_file()
    }  # fmt: skip


async def states(conn: Connection) -> dict[str, tuple[str, Counter[str]]]:
    rows = await conn.fetch(
        """SELECT d.id, d.state, array_agg(f.state) AS files
           FROM fedstac.replica_dataset d JOIN fedstac.replica_file f USING (n) GROUP BY d.id, d.state"""
    )
    return {row["id"]: (row["state"], Counter(row["files"])) for row in rows}


async def run_import(conn: Connection, folder: Path, root: Path) -> looks.DiskLook:
    tiers = Tiers({SERVED_TIER: root}, lambda path, tier: path)
    place = replica_importing.place_of(tiers, folder)
    look = await looks.begin(conn, looks.IMPORT, by_checksum=True, folder=str(folder))
    return await Importer(conn, tiers, threads=2).run(look, place)


async def test_what_has_the_right_checksum_is_adopted_and_nothing_is_touched(east: Connection, tmp_path: Path) -> None:
    await plant_tree(east, tmp_path)
    before = snapshot_of(tmp_path)
    look = await run_import(east, tmp_path, tmp_path)
    assert snapshot_of(tmp_path) == before
    assert await states(east) == {
        "whole": ("complete", Counter(verified=4)), "parked": ("complete", Counter(verified=4)),
        "part": ("transferring", Counter(verified=2, queued=2)), "bad": ("queued", Counter(verified=2, queued=2)),
    }  # fmt: skip
    assert (look.adopted, look.on_disk) == (12, 15)
    found = {(row.fault, row.path) for row in await looks.findings(east, look.id)}
    assert found == {
        ("truncated", "CMIP6/bad/f1.nc"), ("wrong", "CMIP6/bad/f2.nc"), ("unknown", "CMIP6/nobody.nc")
    }  # fmt: skip
    announced = await east.fetch(
        """SELECT d.id FROM fedstac.replica_announcement a JOIN fedstac.replica_dataset d USING (n)
           WHERE a.kind = 'add' AND a.state = 'queued' ORDER BY 1"""
    )
    assert [row["id"] for row in announced] == ["parked", "whole"]


async def test_an_import_that_dies_goes_on_and_reads_no_adopted_file_again(
    east: Connection, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    await plant_tree(east, tmp_path)
    monkeypatch.setattr(replica_verifying, "PAGE", 4)
    reads: Counter[str] = Counter()
    look_at_file = surveying.look

    def count_reads(folder: Path, path: str, checksum: str | None, **options: Any) -> surveying.DiskReading:
        reads[path] += checksum is not None
        return look_at_file(folder, path, checksum, **options)

    monkeypatch.setattr(surveying, "look", count_reads)
    deaths = 0

    def die(name: str) -> None:
        nonlocal deaths
        deaths += 1
        if deaths % 2 == 0:
            raise KeyError("the process dies")

    monkeypatch.setattr(replica_importing, "failpoint", die)
    for _ in range(10):
        try:
            look = await run_import(east, tmp_path, tmp_path)
            break
        except KeyError:
            await east.execute("SELECT pg_advisory_unlock_all()")
    assert (look.adopted, look.on_disk, deaths > 3) == (12, 15, True)
    assert max(reads.values()) == 1


async def test_a_folder_below_is_imported_alone_and_one_elsewhere_is_refused(east: Connection, tmp_path: Path) -> None:
    root = tmp_path / "tree"
    await plant_tree(east, root)
    look = await run_import(east, root / "CMIP6" / "part", root)
    assert (look.adopted, look.on_disk) == (2, 2)
    with pytest.raises(BadRequest, match="name it as a tier"):
        replica_importing.place_of(Tiers({SERVED_TIER: root}, lambda path, tier: path), tmp_path)


async def test_the_commands_report_and_exit_by_what_they_found(
    east: Connection, tmp_path: Path, fedstac: Fedstac, dsn: str
) -> None:
    root, policy = tmp_path / "tree", tmp_path / "policy.yaml"
    await plant_tree(east, root)
    policy.write_text(POLICY)
    setting = {
        "FEDSTAC_DSN": dsn, "FEDSTAC_NODE": "east", "FEDSTAC_REPLICA_FOLDER": str(root),
        "FEDSTAC_REPLICA_POLICY": str(policy), "FEDSTAC_REPLICA_URL": "https://east.example/data",
        "FEDSTAC_REPLICA_BRAKE_PERCENT": "20",
    }  # fmt: skip
    imported = await fedstac("replica", "import", str(root), "-o", "ndjson", **setting)
    assert imported.code == 1, imported.stderr
    assert {(row["fault"], row["path"]) for row in imported.lines} == {
        ("truncated", "CMIP6/bad/f1.nc"), ("wrong", "CMIP6/bad/f2.nc"), ("unknown", "CMIP6/nobody.nc")
    }  # fmt: skip
    assert "adopted 12 files" in imported.stderr
    again = await fedstac("replica", "import", str(root / "CMIP6" / "whole"), **setting)
    assert (again.code, "0 files" in again.stderr, "4 were verified already" in again.stderr) == (0, True, True)
    (root / "CMIP6/whole/f0.nc").write_bytes(b"")
    (root / "CMIP6/nobody.nc").unlink()
    for name in ("bad/f1.nc", "bad/f2.nc"):
        (root / "CMIP6" / name).unlink()
    verified = await fedstac("replica", "verify", "--checksums", **setting)
    assert verified.code == 1, verified.stderr
    assert "truncated" in verified.stdout
    assert "--repair mends" in verified.stderr
    repaired = await fedstac("replica", "verify", "--checksums", "--repair", "-o", "json", **setting)
    assert repaired.code == 0, repaired.stderr
    assert '"outcome":"mended"' in repaired.stdout
    assert (await states(east))["whole"] == ("queued", Counter(verified=3, queued=1))
    root.rename(tmp_path / "unmounted")
    away = await fedstac("replica", "verify", **setting)
    assert (away.code, "mount it" in away.stderr) == (5, True)
    unset = await fedstac("replica", "verify", FEDSTAC_DSN=dsn)
    assert (unset.code, "FEDSTAC_REPLICA_FOLDER" in unset.stderr) == (2, True)
