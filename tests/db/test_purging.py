"""Purges of many datasets: in batches, by the index, and each event of them cut exactly once."""

from __future__ import annotations

import os
import time
from pathlib import Path

import asyncpg
import pytest

from fedstac import publication
from fedstac.bootstrap import Node
from fedstac.db import nodes, purging
from fedstac.db.connections import Connection
from fedstac.demo import embedded, sample
from fedstac.domain.actions import Command, Work
from fedstac.domain.actions.delete import Delete, Purge
from fedstac.domain.actions.mark import Mark
from fedstac.domain.actions.target import Target
from fedstac.domain.events import Cursor
from fedstac.domain.model import Outcome
from tests.db import writing
from tests.db.writing import ANNA, Connect
from tests.support.databases import name_in

PLAN = """UPDATE fedstac.outbox o SET event = o.event
          FROM (SELECT r.lineage, r.collection, r.id FROM unnest(ARRAY['CMIP6'], ARRAY['x']) d (collection, id)
                JOIN fedstac.record r ON r.collection = d.collection AND r.id = d.id) gone
          WHERE o.key = gone.lineage AND o.collection = gone.collection AND o.dataset = gone.id"""


def processor_seconds(conn: Connection) -> float:
    """Return what this process and the one that serves its connection have taken so far."""
    fields = Path(f"/proc/{conn.get_server_pid()}/stat").read_text().rpartition(")")[2].split()
    return time.process_time() + (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


async def act(conn: Connection, commands: list[Command], name: str, chunk: int, outcome: Outcome) -> float:
    """Perform commands in chunks; return the processor seconds that this and PostgreSQL took."""
    started = processor_seconds(conn)
    for start in range(0, len(commands), chunk):
        part = commands[start : start + chunk]
        work = [Work(command, "anna", name) for command in part]
        receipts = await publication.perform(conn, writing.RULES, work)
        assert {receipt.outcome for receipt in receipts} == {outcome}, receipts[0]
    return processor_seconds(conn) - started


async def purge_many(conn: Connection, count: int, chunk: int) -> dict[str, float]:
    items = list(sample.items(count * 2, versions=1))
    for start in range(0, len(items), 250):
        await writing.publish(conn, *items[start : start + 250])
    targets = [Target("CMIP6", draft.id, draft.lineage) for draft in map(writing.draft, items[:count])]
    seconds = {"mark": await act(conn, [Mark(each, ANNA) for each in targets], "mark", chunk, Outcome.MARKED)}
    await conn.execute("UPDATE fedstac.deletion SET grace_until = marked_at - interval '1 second'")
    await conn.execute("UPDATE fedstac.deletion_dependency SET state = 'waived'")
    seconds["delete"] = await act(
        conn, [Delete(each, ANNA) for each in targets], "delete", chunk, Outcome.DELETED
    )  # fmt: skip
    seconds["purge"] = await act(conn, [Purge(each, ANNA) for each in targets], "purge", chunk, Outcome.PURGED)
    cut = await conn.fetch(
        """SELECT type, event LIKE '%"redacted":true}}' AS is_cut, event LIKE '%"document"%' AS is_whole, count(*) AS n
           FROM fedstac.outbox WHERE dataset = ANY ($1::text[]) GROUP BY 1, 2, 3 ORDER BY 1""",
        [each.id for each in targets],
    )
    assert [(row["type"].split(".")[-2], row["is_cut"], row["is_whole"], row["n"]) for row in cut] == [
        ("deleted", True, False, count), ("marked", True, False, count), ("published", True, False, count),
        ("purged", False, False, count),
    ]  # fmt: skip
    whole = "SELECT count(*) FROM fedstac.outbox WHERE dataset IS NOT NULL AND event LIKE '%\"document\"%'"
    assert await conn.fetchval(whole) == count  # the others
    return seconds


async def test_many_datasets_are_purged_in_batches_and_the_others_stay(west: Node) -> None:
    async with west.pool.acquire() as conn:
        await purge_many(conn, 30, 10)
        async with conn.transaction():
            await conn.execute("SET LOCAL enable_seqscan = off")  # as the function has it
            plan = "\n".join(row[0] for row in await conn.fetch(f"EXPLAIN {PLAN}"))
    assert "_key_idx" in plan, plan  # the index on the lineage's key
    assert "Seq Scan" not in plan, plan


@pytest.mark.soak
async def test_a_thousand_datasets_are_purged_in_chunks_of_250(west: Node) -> None:
    async with west.pool.acquire() as conn:
        for action, seconds in (await purge_many(conn, 1000, 250)).items():
            print(f"{action}: 1 000 datasets in {seconds:.2f} s of processor time, load {os.getloadavg()[0]:.0f}")


async def test_what_a_node_said_of_a_purged_dataset_goes_though_its_event_has_left_the_log(
    connect: Connect, cluster: embedded.Cluster, dsn: str
) -> None:
    conn = await connect()
    item = writing.plain(1)
    await writing.publish(conn, item)
    event_id = await conn.fetchval("SELECT event_id::text FROM fedstac.outbox WHERE dataset = $1", item["id"])
    names = (event_id, f"snapshot:plain/{item['id']}", "snapshot:plain/another")
    exceptions = [{"event_id": name, "outcome": "parked", "detail": "a word of it"} for name in names]
    await nodes.acknowledge(conn, "east", Cursor(1, 0), exceptions)
    owner = await asyncpg.connect(cluster.dsn(name_in(dsn)))
    await owner.execute("DELETE FROM fedstac.outbox")  # as retention drops its partition
    await owner.close()
    await purging.purge(conn, [("plain", item["id"])])
    await conn.execute("UPDATE fedstac.record SET state = 'purged', document = NULL, latest = false")
    for _ in range(2):
        rows = await conn.fetch("SELECT event_id FROM fedstac.node_exception WHERE detail = 'a word of it'")
        assert [row["event_id"] for row in rows] == ["snapshot:plain/another"]
        await nodes.acknowledge(conn, "east", Cursor(1, 0), exceptions)  # a topic brings it again at each start
