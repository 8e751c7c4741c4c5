"""Another policy on PostgreSQL: what a plan says happens, exactly and once, and a process that dies goes on."""

from __future__ import annotations

import asyncio
import os
import random
import sys
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Final

import orjson
import pytest

from fedstac.db import connections
from fedstac.db.connections import Connection
from fedstac.domain.replication.planning import PlanEffect, PlanLine
from fedstac.domain.replication.policy import ReplicaPolicy
from fedstac.replication import applying, intake
from fedstac.replication.applying import apply_policy
from tests.replication.catalogue_rows import MODELS, NOTHING_WANTED, POLICY, queued, take_in

SEED: Final = 45
MANY: Final = """INSERT INTO fedstac.replica_dataset (
        origin, collection, id, lineage, epoch, seq, pos, event_state, latest, retraction, document, size, files,
        action, rule, state, reason, goal, is_told, policy_digest)
    SELECT origin, collection, id || '-' || k, lineage || '-' || k, epoch, seq, pos, event_state, latest, retraction,
        document || jsonb_build_object('id', id || '-' || k, 'filler', repeat(md5(id), 200)), size, files, action,
        rule, state, reason, goal, is_told, policy_digest
    FROM fedstac.replica_dataset, generate_series(1, $1) k"""


@pytest.fixture
async def conn(dsn: str) -> AsyncIterator[Connection]:
    opened = await connections.connect(dsn, application="fedstac test")
    yield opened
    await asyncio.wait_for(opened.close(), 10)


async def bring_some(conn: Connection) -> None:
    """Let the files of each second dataset that is queued be here."""
    await conn.execute(
        """WITH whole AS (UPDATE fedstac.replica_dataset SET state = 'announced', announced_digest = files_digest
                          WHERE state = 'queued' AND n % 2 = 0 RETURNING n)
           UPDATE fedstac.replica_file SET state = 'verified' FROM whole WHERE replica_file.n = whole.n"""
    )


async def test_a_policy_change_copies_from_the_catalogue_what_now_fits_and_the_plan_said_so(conn: Connection) -> None:
    before, after = ReplicaPolicy.parse(NOTHING_WANTED), ReplicaPolicy.parse(POLICY)
    await take_in(conn, before, 300)
    assert await queued(conn) == {}
    plan = await apply_policy(conn, after, perform=False)
    assert await queued(conn) == {}
    outcome = await apply_policy(conn, after, perform=True)
    assert outcome == plan
    assert plan.looked_at == 300
    copies = [line for line in plan.lines if line.effect is PlanEffect.COPY]
    assert [line.rule for line in copies] == ["model A", "model C"]
    now = await queued(conn)
    for line in copies:
        sizes = await conn.fetchrow(
            "SELECT count(*), sum(size) FROM fedstac.replica_dataset WHERE state = 'queued' AND rule = $1", line.rule
        )
        assert sizes is not None
        assert tuple(sizes) == (line.datasets, line.bytes)
    for row in await conn.fetch("SELECT id, document FROM fedstac.replica_dataset"):
        properties = orjson.loads(row["document"])["properties"]
        if row["id"] in now:
            assert properties["cmip7:source_id"] in ("A-1", "C-3")
            assert not properties["title"].startswith("Draft")
    files = await conn.fetchval("SELECT count(*) FROM fedstac.replica_file WHERE state = 'queued'")
    assert files == 2 * len(now)


@pytest.mark.parametrize("number", range(6))
async def test_whatever_the_policies_a_plan_is_what_happens_and_once(conn: Connection, number: int) -> None:
    chance = random.Random(SEED + number)
    await take_in(conn, drawn_policy(chance), 120)
    for _ in range(4):
        await bring_some(conn)
        policy = drawn_policy(chance)
        plan = await apply_policy(conn, policy, perform=False)
        assert await apply_policy(conn, policy, perform=True) == plan, SEED + number
        again = await apply_policy(conn, policy, perform=False)
        assert (again.unchanged, again.lines) == (again.looked_at, []), SEED + number
        left = await conn.fetchval(
            "SELECT count(*) FROM fedstac.replica_dataset WHERE policy_digest <> $1 AND document IS NOT NULL",
            policy.digest,
        )
        assert left == 0
        await finish_removals(conn)


def drawn_policy(chance: random.Random) -> ReplicaPolicy:
    rules = []
    for n in range(chance.randint(0, 4)):
        where = chance.choice([
            f"\"cmip7:source_id\" = '{chance.choice(MODELS)}'", "title LIKE 'Draft%'", "collection = 'CMIP7'",
            "datetime < DATE('2010-01-01')", f"id IN ('d{chance.randrange(120)}', 'd1', 'd2')", "latest = true",
            "retracted = true", "S_INTERSECTS(geometry, POINT(10 50))", "\"cmip7:source_id\" <> 'A-1'",
        ])  # fmt: skip
        action = chance.choice(["replicate", "replicate", "restrict", "ignore"])
        more = chance.choice(["", "on_retracted: purge", "on_superseded: purge", "on_retracted: restrict",
                              "on_superseded: tier, superseded_tier: archive"])  # fmt: skip
        rules.append(f"  - {{name: r{n}, action: {action}, where: {orjson.dumps(where).decode()}, {more}}}")
    text = "version: 1\nsources: []\ntiers: {archive: /archive}\nrules:" + ("\n" + "\n".join(rules) if rules else " []")
    return ReplicaPolicy.parse(f"{text}\n# {chance.random()}\n")


async def finish_removals(conn: Connection) -> None:
    """Let removals be done, as the worker leaves them, as far as they stand in the way of the next policy."""
    await conn.execute("UPDATE fedstac.replica_removal SET state = 'done', done_at = clock_timestamp()")
    await conn.execute("UPDATE fedstac.replica_announcement SET state = 'done'")


async def test_a_process_that_dies_while_it_applies_a_policy_goes_on_where_it_was(
    conn: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(applying, "APPLIED_AT_ONCE", 25)
    after = ReplicaPolicy.parse(POLICY)
    await take_in(conn, ReplicaPolicy.parse(NOTHING_WANTED), 200)
    plan = await apply_policy(conn, after, perform=False)

    class Died(Exception):
        pass

    steps = 0

    def die(name: str) -> None:
        nonlocal steps
        steps += 1
        if steps == 3:
            raise Died

    monkeypatch.setattr(applying, "failpoint", die)
    with pytest.raises(Died):
        await apply_policy(conn, after, perform=True)
    rest = await apply_policy(conn, after, perform=True)
    assert rest.looked_at == 200 - 3 * 25
    copies = plan.total([PlanEffect.COPY])
    assert copies[0] == len(await queued(conn))


async def test_what_the_origin_does_not_list_any_more_is_not_brought_back_by_a_policy(conn: Connection) -> None:
    after = ReplicaPolicy.parse(NOTHING_WANTED.replace("[]", "[{name: all, action: replicate}]", 1))
    await take_in(conn, ReplicaPolicy.parse(NOTHING_WANTED), 20)
    async with conn.transaction():
        count = await intake.restrict_unlisted(conn, "west", before_epoch=2, pos=1)
    plan = await apply_policy(conn, after, perform=True)
    marked = "SELECT count(*) FROM fedstac.replica_dataset WHERE event_state = 'marked'"
    assert plan.looked_at == await conn.fetchval(marked) < count
    assert await queued(conn) == {}


async def test_a_thousand_datasets_are_planned_in_a_moment(conn: Connection) -> None:
    seconds, lines = await planning_seconds(conn, 1000)
    assert lines
    assert seconds < 0.5  # of processor time; 0.02 is usual


@pytest.mark.soak
async def test_a_hundred_thousand_datasets_are_planned_in_two_seconds(conn: Connection) -> None:
    seconds, lines = await planning_seconds(conn, 100_000)
    assert sum(line.datasets for line in lines) > 50_000
    assert seconds < 2.0


def processor_seconds(backend: int) -> float:
    """Return the processor time of this process and of its PostgreSQL backend."""
    of_backend = Path(f"/proc/{backend}/stat").read_text().rpartition(")")[2].split()
    return time.process_time() + (int(of_backend[11]) + int(of_backend[12])) / os.sysconf("SC_CLK_TCK")


async def planning_seconds(conn: Connection, count: int) -> tuple[float, list[PlanLine]]:
    """Return the processor time of a plan, the best of three, with documents of the size of CMIP's."""
    await take_in(conn, ReplicaPolicy.parse(NOTHING_WANTED), min(count, 1000))
    copies = count // 1000 - 1
    if copies > 0:
        await conn.execute(MANY, copies)
    await conn.execute("ANALYZE fedstac.replica_dataset")
    policy = ReplicaPolicy.parse(POLICY.replace("AND id <> 'd7'", ""))
    backend: int = await conn.fetchval("SELECT pg_backend_pid()")
    figures, lines = [], []
    for _ in range(3):
        start, clock = processor_seconds(backend), time.perf_counter()
        lines = (await apply_policy(conn, policy, perform=False)).lines
        figures.append((processor_seconds(backend) - start, time.perf_counter() - clock))
    seconds, wall = min(figures)
    sys.stdout.write(f"\n{count} datasets planned in {seconds:.2f} s of processor time, {wall:.2f} s by the clock\n")
    return seconds, lines
