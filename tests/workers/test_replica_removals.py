"""Removals on a real disk that end half-way: by a file that cannot go, or by the death of the process."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from fedstac.bootstrap import Node
from fedstac.db import connections
from fedstac.db.connections import Connection
from fedstac.db.replica import removals
from fedstac.domain.replication.paths import MARK
from fedstac.domain.replication.policy import ReplicaDecision
from fedstac.domain.replication.reacting import EventState
from fedstac.replication import moving
from fedstac.replication.marks import Marks
from fedstac.workers import replica_removals
from fedstac.workers.replica_removals import Remover
from tests.replication.dataset_events import UNWANTED, WANTED, bring, event, files_here, state_of, take

FILES = {"data/a.nc": "a", "data/b.nc": "b", "data/c.nc": "c"}


@pytest.fixture
async def conn(dsn: str) -> AsyncIterator[Connection]:
    opened = await connections.connect(dsn, application="fedstac test")
    yield opened
    await asyncio.wait_for(opened.close(), 10)


@pytest.fixture
def folders(tmp_path: Path) -> dict[str, Path]:
    found = {"": tmp_path / "served", "restricted": tmp_path / "restricted"}
    for folder in found.values():
        folder.mkdir()
    return found


@pytest.fixture
def remover(node: Node, folders: dict[str, Path]) -> Remover:
    return Remover(node, lambda: folders)


async def serve(conn: Connection, folders: dict[str, Path]) -> None:
    """Let a dataset d be announced, with its files on the disk."""
    await take(conn, event("d", FILES))
    await bring(conn, "d")
    for path, content in FILES.items():
        (folders[""] / path).parent.mkdir(exist_ok=True)
        (folders[""] / path).write_text(content)


async def entry(conn: Connection) -> str | None:
    """Return what the origin is told of our entry."""
    kind: str | None = await conn.fetchval("SELECT kind || ' ' || state FROM fedstac.replica_announcement")
    return kind


async def test_what_a_removal_took_before_a_file_that_cannot_go_is_fetched_anew_when_it_is_reinstated(
    conn: Connection, folders: dict[str, Path], remover: Remover
) -> None:
    await serve(conn, folders)
    (folders[""] / "data/b.nc").unlink()
    (folders[""] / "data/b.nc").mkdir()  # no file that could be deleted
    await take(conn, event("d", FILES, seq=2, data="purge"))
    assert await remover.cycle() == 0
    assert await files_here(conn, "d") == [("data/b.nc", "verified"), ("data/c.nc", "verified")]
    assert not (folders[""] / "data/a.nc").exists()
    (folders[""] / "data/b.nc").rmdir()
    (folders[""] / "data/b.nc").write_text("b")
    await take(conn, event("d", FILES, seq=3))
    while await remover.cycle():
        pass
    assert await files_here(conn, "d") == [
        ("data/a.nc", "queued"), ("data/b.nc", "verified"), ("data/c.nc", "verified"),
    ]  # fmt: skip
    assert (await state_of(conn, "d"))[0] == "queued"
    assert await entry(conn) == "remove queued"


async def test_the_entry_goes_when_files_that_a_removal_took_are_not_wanted_any_more(
    conn: Connection, folders: dict[str, Path], remover: Remover
) -> None:
    await serve(conn, folders)
    (folders[""] / "data/b.nc").unlink()
    (folders[""] / "data/b.nc").mkdir()
    await take(conn, event("d", FILES, seq=2, data="purge"))
    assert await remover.cycle() == 0
    (folders[""] / "data/b.nc").rmdir()
    (folders[""] / "data/b.nc").write_text("b")
    await take(conn, event("d", FILES, seq=3), decision=UNWANTED)
    while await remover.cycle():
        pass
    assert (await state_of(conn, "d"))[0] == "catalogued"
    assert await entry(conn) == "remove queued"


async def test_the_entry_of_a_dataset_goes_whose_quarantine_ends_and_which_no_rule_wants(
    conn: Connection, folders: dict[str, Path], remover: Remover
) -> None:
    await serve(conn, folders)
    await take(conn, event("d", FILES, seq=2, state=EventState.QUARANTINED))
    while await remover.cycle():
        pass
    assert (await state_of(conn, "d"), await entry(conn)) == (("restricted", "under quarantine"), None)
    await take(conn, event("d", FILES, seq=3), decision=UNWANTED)
    while await remover.cycle():
        pass
    assert ((await state_of(conn, "d"))[0], await entry(conn)) == ("restricted", "remove queued")
    assert all((folders["restricted"] / path).exists() for path in FILES)
    assert await conn.fetchval("SELECT state FROM fedstac.replica_removal WHERE state <> 'done'") == "moved"


class Died(Exception):
    """Stands for the end of the process."""


@pytest.mark.parametrize(("decision", "state"), [(WANTED, "queued"), (UNWANTED, "catalogued")])
async def test_a_removal_that_died_at_the_disk_is_looked_after_when_it_is_taken_back(
    conn: Connection, folders: dict[str, Path], remover: Remover, monkeypatch: pytest.MonkeyPatch, state: str,
    decision: ReplicaDecision,
) -> None:  # fmt: skip
    await serve(conn, folders)
    await take(conn, event("d", FILES, seq=2, data="purge"))

    def die(name: str) -> None:
        raise Died(name)

    with monkeypatch.context() as patch:
        patch.setattr(replica_removals, "failpoint", die)
        with pytest.raises(Died):
            await remover.cycle()
    assert [state for _, state in await files_here(conn, "d")] == ["verified"] * 3
    assert not any((folders[""] / path).exists() for path in FILES)
    await take(conn, event("d", FILES, seq=3), decision=decision)
    assert (await state_of(conn, "d"))[0] == "moving"
    while await remover.cycle():
        pass
    assert [state for _, state in await files_here(conn, "d")] == ["queued"] * 3
    assert (await state_of(conn, "d"))[0] == state
    assert await conn.fetchval("SELECT announced_digest FROM fedstac.replica_dataset") is None
    assert await entry(conn) == "remove queued"


async def test_a_removal_that_has_not_begun_is_taken_back_at_once(
    conn: Connection, folders: dict[str, Path], remover: Remover
) -> None:
    await serve(conn, folders)
    await take(conn, event("d", FILES, seq=2, data="purge"))
    await take(conn, event("d", FILES, seq=3))
    assert (await state_of(conn, "d"))[0] == "announced"
    assert await remover.cycle() == 0


async def test_a_mount_point_without_its_disk_is_no_tier_without_files(
    node: Node, conn: Connection, folders: dict[str, Path], remover: Remover
) -> None:
    await Marks(node.settings.node).require(conn, folders)
    await serve(conn, folders)
    disk = folders[""].with_name("disk")
    folders[""].rename(disk)
    folders[""].mkdir()
    await take(conn, event("d", FILES, seq=2, data="purge"))
    assert await remover.cycle() == 0
    [removal] = await conn.fetch("SELECT state, reason FROM fedstac.replica_removal")
    assert removal["state"] == "queued"
    assert "the tier default has not its mark .fedstac-tier: is its disk mounted?" in removal["reason"]
    assert not list(folders[""].iterdir())
    folders[""].rmdir()
    disk.rename(folders[""])
    await conn.execute("UPDATE fedstac.replica_removal SET next_try = NULL")
    assert await remover.cycle() == 1
    assert [each.name for each in folders[""].iterdir()] == [MARK]
    assert (await state_of(conn, "d"))[0] == "removed"


async def test_the_disk_of_another_tier_is_refused(
    node: Node, conn: Connection, folders: dict[str, Path], remover: Remover
) -> None:
    await Marks(node.settings.node).require(conn, folders)
    await serve(conn, folders)
    await take(conn, event("d", FILES, seq=2, data="restrict"))
    folders[""], folders["restricted"] = folders["restricted"], folders[""]
    assert await remover.cycle() == 0
    assert "is another disk mounted?" in await conn.fetchval("SELECT reason FROM fedstac.replica_removal")


async def test_a_file_stays_that_another_dataset_has_and_goes_with_the_last_one(
    conn: Connection, folders: dict[str, Path], remover: Remover
) -> None:
    shared = {"data/b.nc": "b"}
    await serve(conn, folders)
    await take(conn, event("e", {**shared, "data/e.nc": "e"}))
    await bring(conn, "e")
    (folders[""] / "data/e.nc").write_text("e")
    await take(conn, event("d", FILES, seq=2, state=EventState.MARKED))
    await take(conn, event("d", FILES, seq=3, state=EventState.DELETED))
    while await remover.cycle():
        pass
    left = {path.name for folder in folders.values() for path in folder.rglob("*.nc")}
    assert left == {"b.nc", "e.nc"}
    assert (folders[""] / "data/b.nc").read_text() == "b"
    assert await files_here(conn, "e") == [("data/b.nc", "verified"), ("data/e.nc", "verified")]
    await take(conn, event("e", {**shared, "data/e.nc": "e"}, seq=2, state=EventState.DELETED))
    while await remover.cycle():
        pass
    assert not [path for folder in folders.values() for path in folder.rglob("*.nc")]


@pytest.mark.parametrize("is_staged", [False, True])
async def test_what_a_move_left_that_was_not_stored_goes_with_the_purge(
    conn: Connection, folders: dict[str, Path], remover: Remover, monkeypatch: pytest.MonkeyPatch, is_staged: bool
) -> None:
    """A mark moves files where nobody is served. The process dies there, and the purge comes before it is back."""
    await serve(conn, folders)
    await take(conn, event("other", {"data/c.nc": "c"}))  # has the last file, too
    await bring(conn, "other")
    await take(conn, event("d", FILES, seq=2, state=EventState.MARKED))

    def die(name: str) -> None:
        raise Died(name)

    def other_file_system(*_: object, **__: object) -> bool:
        raise moving.OtherFileSystem

    with monkeypatch.context() as patch:
        if is_staged:
            patch.setattr(moving, "move", other_file_system)
            stage = moving.stage

            def stage_and_die(*arguments: Any, to: Path) -> None:
                stage(*arguments, to=to)
                raise Died

            patch.setattr(moving, "stage", stage_and_die)
        else:
            patch.setattr(replica_removals, "failpoint", die)
        with pytest.raises(Died):
            await remover.cycle()
    assert any(path.is_file() and path.name != MARK for path in folders["restricted"].rglob("*"))
    assert {state for _, state in await files_here(conn, "d")} == {"verified"}
    await take(conn, event("d", FILES, seq=3, state=EventState.PURGED))
    while await remover.cycle():
        pass
    assert await files_here(conn, "d") == []
    left = {path.relative_to(folder) for folder in folders.values() for path in folder.rglob("*") if path.is_file()}
    assert left == {Path(MARK), Path("data/c.nc")}
    assert (folders[""] / "data/c.nc").read_text() == "c"


async def test_what_has_to_be_out_of_sight_goes_before_what_only_moves(
    conn: Connection, folders: dict[str, Path], remover: Remover, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(replica_removals, "LOOK_AGAIN_SECONDS", 0.0)  # as where each takes long
    files = {id: {f"{id}/{name}.nc": name for name in "ab"} for id in "def"}
    for id, own in files.items():
        await take(conn, event(id, own))
        await bring(conn, id)
        (folders[""] / id).mkdir()
        for path, content in own.items():
            (folders[""] / path).write_text(content)
    for id in "de":
        await take(conn, event(id, dict([*files[id].items()][:1]), seq=2))  # the other file is no more part of it
    await take(conn, event("f", files["f"], seq=2, data="purge"))
    assert [each.kind for each in await removals.next_due(conn)] == ["purge", "trim", "trim"]
    assert await remover.cycle() == 1
    assert [each.kind for each in await removals.next_due(conn)] == ["trim", "trim"]
    await take(conn, event("d", files["d"], seq=3, data="purge"))  # it comes while others wait
    assert [each.kind for each in await removals.next_due(conn)] == ["purge", "trim"]
    while await remover.cycle():
        pass
    assert [path.relative_to(folders[""]).as_posix() for path in folders[""].rglob("*.nc")] == ["e/a.nc"]
