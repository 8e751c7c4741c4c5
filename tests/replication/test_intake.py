"""What a node stores of a page of events, and what later events and policies make of it, on PostgreSQL."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import orjson
import pytest

from fedstac.db import connections
from fedstac.db.connections import Connection
from fedstac.db.replica import files, orders
from fedstac.domain.replication.dataset_files import files_of
from fedstac.domain.replication.policy import ReplicaPolicy
from fedstac.replication.applying import apply_policy
from tests.replication.dataset_events import (
    CHECKED,
    KEPT,
    UNWANTED,
    WANTED,
    bring,
    event,
    files_here,
    reconsider,
    state_of,
    take,
)


@pytest.fixture
async def conn(dsn: str) -> AsyncIterator[Connection]:
    opened = await connections.connect(dsn, application="fedstac test")
    yield opened
    await asyncio.wait_for(opened.close(), 10)


# --- paths ---


async def test_of_two_datasets_of_one_page_with_the_same_path_and_other_bytes_the_second_is_parked(
    conn: Connection,
) -> None:
    await take(conn, event("a", {"data/x.nc": "one"}), event("b", {"data/x.nc": "two", "data/y.nc": "y"}),
               event("c", {"data/x.nc": "one"}))  # fmt: skip
    assert await files_here(conn, "a") == [("data/x.nc", "queued")]
    assert await files_here(conn, "b") == [("", "failed"), ("data/y.nc", "queued")]
    assert await files_here(conn, "c") == [("data/x.nc", "queued")]
    assert await state_of(conn, "a") == ("queued", "")
    assert await state_of(conn, "b") == ("parked", "asset0: data/x.nc is another file here, of CMIP6/a")


async def retry_all(conn: Connection) -> None:
    await orders.retry(conn, [row["n"] for row in await conn.fetch("SELECT n FROM fedstac.replica_dataset")], actor="a")


async def test_a_file_without_a_path_says_why_after_a_retry_and_has_one_when_its_path_is_free(conn: Connection) -> None:
    await take(conn, event("a", {"data/x.nc": "one"}), event("b", {"data/x.nc": "two"}))
    await retry_all(conn)
    assert await files_here(conn, "b") == [("", "failed")]
    assert await state_of(conn, "b") == ("parked", "asset0: data/x.nc is another file here, of CMIP6/a")
    await conn.execute("DELETE FROM fedstac.replica_dataset WHERE id = 'a'")
    await retry_all(conn)
    assert await files_here(conn, "b") == [("data/x.nc", "queued")]
    assert await state_of(conn, "b") == ("queued", "")


async def test_a_retry_never_gives_a_replaced_file_the_path_of_another_datasets_file(conn: Connection) -> None:
    await take(conn, event("a", {"data/x.nc": "one"}), event("b", {"data/x.nc": "one"}))
    await bring(conn, "b")
    await take(conn, event("a", {"data/x.nc": "two"}, seq=2), event("c", {"data/z.nc": "z"}))
    async with conn.transaction():  # as a transfer that is over, or a removal, does
        n = await conn.fetchval("SELECT n FROM fedstac.replica_dataset WHERE id = 'a'")
        replaced = files_of(orjson.loads(event("a", {"data/x.nc": "two"}).document or ""))
        await files.plan(conn, [files.FilePlan(n, "", replaced)])
        await conn.execute("UPDATE fedstac.replica_dataset SET state = 'parked' WHERE n = $1", n)
    for _ in range(2):
        assert await files_here(conn, "a") == [("", "failed")]
        await retry_all(conn)
    assert await files_here(conn, "b") == [("data/x.nc", "verified")]
    assert await state_of(conn, "a") == ("parked", "asset0: data/x.nc is another file here, of CMIP6/b")


# --- what stands still ---


async def test_a_dataset_that_is_checked_is_complete_when_its_rule_has_no_check_any_more(conn: Connection) -> None:
    newest = event("a", {"data/x.nc": "one"})
    await take(conn, newest, decision=CHECKED)
    await bring(conn, "a", state="checking")
    await reconsider(conn, newest, CHECKED)
    assert await state_of(conn, "a") == ("checking", "")
    await reconsider(conn, newest, WANTED)
    assert await state_of(conn, "a") == ("complete", "")
    assert await conn.fetchval("SELECT kind || ' ' || state FROM fedstac.replica_announcement") == "add queued"


async def park(conn: Connection, id: str) -> None:
    """Let one file of a dataset fail for good."""
    n = await conn.fetchval("SELECT n FROM fedstac.replica_dataset WHERE id = $1", id)
    await conn.execute(
        """UPDATE fedstac.replica_file SET state = 'failed', attempts = 9, reason = 'no source is left',
                  href = 'https://west.example/', next_try = now() + interval '1 hour'
           WHERE n = $1 AND asset = 'asset0'""",
        n,
    )
    await conn.execute("UPDATE fedstac.replica_file SET state = 'verified' WHERE n = $1 AND asset <> 'asset0'", n)
    await conn.execute("UPDATE fedstac.replica_dataset SET state = 'parked', reason = 'no source' WHERE n = $1", n)


async def attempts(conn: Connection) -> tuple[object, ...]:
    row = await conn.fetchrow("SELECT state, attempts, next_try, href FROM fedstac.replica_file WHERE asset = 'asset0'")
    assert row is not None
    return tuple(row)


async def test_what_is_parked_is_tried_again_with_the_next_event(conn: Connection) -> None:
    content = {"data/x.nc": "one", "data/y.nc": "two"}
    await take(conn, event("a", content))
    await park(conn, "a")
    await take(conn, event("a", content))  # the same again is none
    assert (await state_of(conn, "a"))[0] == "parked"
    await take(conn, event("a", content, seq=2, mirror="north"))
    assert await state_of(conn, "a") == ("queued", "")
    assert await attempts(conn) == ("queued", 0, None, None)
    assert await files_here(conn, "a") == [("data/x.nc", "queued"), ("data/y.nc", "verified")]


async def test_what_failed_is_tried_again_when_a_dataset_is_reinstated(conn: Connection) -> None:
    content = {"data/x.nc": "one", "data/y.nc": "two"}
    await take(conn, event("a", content), decision=KEPT)
    await park(conn, "a")
    await take(conn, event("a", content, seq=2, data="keep"), decision=KEPT)
    assert (await state_of(conn, "a"))[0] == "catalogued"
    await take(conn, event("a", content, seq=3))
    assert (await state_of(conn, "a"), await attempts(conn)) == (("queued", ""), ("queued", 0, None, None))


async def test_what_is_parked_is_tried_again_once_by_another_policy_and_the_plan_says_so(conn: Connection) -> None:
    text = "version: 1\nsources: []\nrules:\n- {name: all, action: replicate}\n"
    before, after = (
        ReplicaPolicy.parse(text),
        ReplicaPolicy.parse(text.replace("[]", "[{name: n, hosts: [n.example]}]")),
    )
    await take(conn, event("a", {"data/x.nc": "one", "data/y.nc": "two"}), policy_digest=before.digest)
    await park(conn, "a")
    assert (await apply_policy(conn, before, perform=True)).looked_at == 0
    assert (await state_of(conn, "a"))[0] == "parked"
    plan = await apply_policy(conn, after, perform=False)
    assert [(line.effect, line.datasets, line.bytes) for line in plan.lines] == [("copy", 1, 3)]
    assert await apply_policy(conn, after, perform=True) == plan
    assert (await state_of(conn, "a"), await attempts(conn)) == (("queued", ""), ("queued", 0, None, None))
    await park(conn, "a")
    assert (await apply_policy(conn, after, perform=True)).looked_at == 0
    assert (await state_of(conn, "a"))[0] == "parked"


async def test_a_refused_announcement_is_made_again_with_the_next_event(conn: Connection) -> None:
    await take(conn, event("a", {"data/x.nc": "one"}))
    await bring(conn, "a", state="parked")
    await conn.execute(
        """INSERT INTO fedstac.replica_announcement (n, kind, state, attempts)
           SELECT n, 'add', 'parked', 15 FROM fedstac.replica_dataset"""
    )
    await take(conn, event("a", {"data/x.nc": "one"}, seq=2))
    assert await state_of(conn, "a") == ("complete", "")
    assert await conn.fetchval("SELECT state || ' ' || attempts FROM fedstac.replica_announcement") == "queued 0"


# --- what a person ordered ---


async def removal_of(conn: Connection) -> tuple[str, str]:
    row = await conn.fetchrow("SELECT kind, state FROM fedstac.replica_removal ORDER BY id DESC LIMIT 1")
    assert row is not None
    return row["kind"], row["state"]


async def test_a_purge_that_a_person_ordered_outlasts_events_and_policies_until_the_files_are_wanted(
    conn: Connection,
) -> None:
    newest = event("a", {"data/x.nc": "one"})
    await take(conn, newest)
    await bring(conn, "a")
    await reconsider(conn, newest, UNWANTED)
    assert len(await orders.purge(conn, await orders.unwanted(conn, after=0), actor="anna")) == 1
    await reconsider(conn, newest, UNWANTED)
    newest = event("a", {"data/x.nc": "one"}, seq=2)
    await take(conn, newest, decision=UNWANTED)
    text = "version: 1\nsources: []\nrules: []\n"
    for policy in (ReplicaPolicy.parse(text), ReplicaPolicy.parse(f"{text}# another\n")):
        plan = await apply_policy(conn, policy, perform=False)
        assert [(line.effect, line.datasets, line.bytes) for line in plan.lines] == [("purge", 1, 3)]
        assert await apply_policy(conn, policy, perform=True) == plan
        assert await removal_of(conn) == ("purge", "queued")
        state, reason = await state_of(conn, "a")
        assert (state, "purged by anna" in reason) == ("removing", True)
    await reconsider(conn, newest, WANTED)
    assert await removal_of(conn) == ("purge", "done")
    assert (await state_of(conn, "a"))[0] == "announced"
