"""What ends the worker itself: it is found, and only it fails; faults of the database are nobody's."""

from __future__ import annotations

from typing import Any

import asyncpg
import pytest

from fedstac import publication
from fedstac.bootstrap import Node
from fedstac.demo import sample
from fedstac.settings import folder
from fedstac.vocabularies import store
from fedstac.workers import publisher
from tests.db import writing
from tests.db.writing import Connect

[ITEM] = sample.items(1)


class Crash(BaseException):
    """What a kill looks like from inside."""


async def test_only_the_item_that_kills_workers_fails(
    west: Node, connect: Connect, monkeypatch: pytest.MonkeyPatch
) -> None:
    conn = await connect()
    items = [writing.titled(ITEM, f"title {n}") for n in range(30)]
    await writing.submit(conn, *items, writing.titled(ITEM, "poison"), writing.titled(ITEM, "after"))
    perform = publication.perform

    async def dying(conn: Any, rules: Any, work: Any, *, claim: Any = None) -> Any:
        if any("poison" in entry.command.draft.text for entry in work):
            raise Crash
        return await perform(conn, rules, work, claim=claim)

    monkeypatch.setattr(publication, "perform", dying)
    while await conn.fetchval("SELECT count(*) FROM fedstac.request_item WHERE status = 'queued'"):
        try:
            await publisher.work_once(west, conn, "w")
        except Crash:
            await conn.execute("UPDATE fedstac.shard SET until = '-infinity'")
    rows = await conn.fetch("SELECT n, status FROM fedstac.request_item WHERE status <> 'done'")
    assert [tuple(row) for row in rows] == [(30, "failed")]


async def test_a_full_disk_fails_nothing(west: Node, connect: Connect, monkeypatch: pytest.MonkeyPatch) -> None:
    conn = await connect()
    await writing.submit(conn, ITEM)

    async def full(*_: object, **__: object) -> None:
        raise asyncpg.DiskFullError("no space left")

    with monkeypatch.context() as patch:
        patch.setattr(publication, "perform", full)
        for _ in range(9):
            with pytest.raises(asyncpg.DiskFullError):
                await publisher.work_once(west, conn, "w")
    assert await publisher.work_once(west, conn, "w")
    assert await conn.fetchval("SELECT status FROM fedstac.request_item") == "done"


async def test_a_vocabulary_that_another_process_has_judged_with_fails_nothing(west: Node, connect: Connect) -> None:
    conn = await connect()
    await writing.publish(conn, ITEM)
    raw = (folder("cv") / "CMIP6" / "6.2.60.0.json").read_bytes()
    await store.install(conn, raw.replace(b'"version":"6.2.60.0"', b'"version":"6.2.61.0"', 1), "somebody")
    await conn.execute("UPDATE fedstac.record SET cv_version = '6.2.61.0'")  # as the other process would
    accepted = await writing.submit(conn, ITEM)
    await conn.execute("UPDATE fedstac.request SET action = 'retract' WHERE id = $1", accepted.id)
    await conn.execute(
        """UPDATE fedstac.request_item SET document = '{"retraction": {"reason": "wrong units"}}', prepared = NULL"""
    )
    assert await publisher.work_once(west, conn, "w")
    assert await conn.fetchval("SELECT outcome FROM fedstac.request_item") == "retracted"
