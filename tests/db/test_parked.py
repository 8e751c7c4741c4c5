"""Parked events: told to operators, tried again when they say so, never over something newer."""

from __future__ import annotations

from typing import Any

import orjson
import pytest
import typer.testing

from fedstac.bootstrap import Node
from fedstac.cli import app
from fedstac.db import parked
from fedstac.db.connections import Connection
from fedstac.demo import sample
from fedstac.domain.errors import Conflict, NotFound
from fedstac.messaging.sources import NotServed, SourceRefused, UnreadableMessage
from fedstac.runtime.metrics import process_families, text_of
from fedstac.workers import pages
from tests.db.sources import RAW, Json, Source, entry, follow, follower_of
from tests.support.nodes import StartApi

CMIP6, NEXT = "6.2.60.0", "6.2.61.0"  # a version that is here, and one that is not
FIRST, SECOND = sample.items(2)


async def parked_for_a_vocabulary(node: Node) -> Source:
    """Park an event whose vocabulary the source does not have; return the source."""
    source = Source([entry(node, FIRST, NEXT)], NotServed("404"))
    await follow(node, source)
    return source


async def ids(conn: Connection) -> list[str]:
    return [row[0] for row in await conn.fetch("SELECT id FROM fedstac.record ORDER BY 1")]


async def actions(conn: Connection) -> list[str]:
    return [row["action"] for row in await conn.fetch("SELECT action FROM fedstac.audit ORDER BY id")]


async def test_operators_are_told_once_of_what_is_parked(node: Node, conn: Connection) -> None:
    source = await parked_for_a_vocabulary(node)
    await follow(node, source)
    [row] = await conn.fetch("SELECT kind, place, what, detail FROM fedstac.trouble")
    assert tuple(row)[:3] == ("parked", "index of north", f"CMIP6/{FIRST['id']}")
    assert NEXT in row["detail"]


async def test_of_a_fault_of_many_datasets_operators_get_a_few_lines(node: Node, conn: Connection) -> None:
    items = sample.items(parked.MOST_REPORTED + 5, versions=1)
    await follow(node, Source([entry(node, item, NEXT) for item in items], NotServed("404")))
    rows = await conn.fetch("SELECT what, detail FROM fedstac.trouble ORDER BY id")
    assert len(rows) == parked.MOST_REPORTED + 1
    assert tuple(rows[-1]) == ("5 more", "see fedstac parked list")


async def test_a_requeued_event_is_applied_once_its_reason_is_mended(node: Node, conn: Connection) -> None:
    source = await parked_for_a_vocabulary(node)
    [row] = await parked.every(conn)
    source.served = RAW
    [marked] = await parked.requeue(conn, [row.id], actor="anna")
    assert marked.requeued_at is not None
    await follower_of(node, source).step(0)
    assert (await ids(conn), await parked.every(conn)) == ([FIRST["id"]], [])
    assert await actions(conn) == ["requeue-parked"]


async def test_what_fails_again_stays_parked_and_is_not_tried_for_ever(node: Node, conn: Connection) -> None:
    source = await parked_for_a_vocabulary(node)
    [row] = await parked.every(conn)
    await parked.requeue(conn, [row.id], actor="anna")
    follower = follower_of(node, source)
    await follower.step(0)
    [again] = await parked.every(conn)
    assert (again.id, again.attempts, again.requeued_at) == (row.id, row.attempts + 1, None)
    assert await parked.requeued_events(conn, "index", "north") == []


async def test_a_requeue_of_what_is_stale_is_refused(node: Node, conn: Connection) -> None:
    source = await parked_for_a_vocabulary(node)
    [row] = await parked.every(conn)
    event = (await parked.read(conn, row.id)).event
    await follow(node, Source([entry(node, FIRST, CMIP6, seq=2)]))
    assert await parked.every(conn) == []  # C2: the later event took its place
    again = parked.ParkedEvent(row.event_id, row.subject, row.epoch, row.seq, "by an old process", event)
    await parked.park(conn, "index", "north", 1, [again])
    [stale] = await parked.every(conn)
    with pytest.raises(Conflict, match=f"fedstac parked discard {stale.id}"):
        await parked.requeue(conn, [stale.id], actor="anna")
    await parked.discard(conn, [stale.id], actor="anna")
    assert await parked.every(conn) == []
    assert await actions(conn) == ["discard-parked"]
    await follower_of(node, source).step(0)
    assert await conn.fetchval("SELECT seq FROM fedstac.record") == 2


async def test_all_or_none_is_requeued(node: Node, conn: Connection) -> None:
    await parked_for_a_vocabulary(node)
    [row] = await parked.every(conn)
    with pytest.raises(NotFound, match="fedstac parked list"):
        await parked.requeue(conn, [row.id, 999], actor="anna")
    assert [each.requeued_at for each in await parked.every(conn)] == [None]
    assert await actions(conn) == []


async def test_a_message_that_is_no_event_is_rejected_and_can_only_be_discarded(node: Node, conn: Connection) -> None:
    source = Source([])
    follower = await follow(node, source)
    message = UnreadableMessage("partition 3, offset 17", "its headers say no place", "hello\0")
    page = pages.Page("north", [], follower.applied_cursor)
    await follower._apply(pages.ComingPage(page, [pages.unreadable(message, "north")]))
    [row] = await parked.every(conn)
    assert (row.outcome, row.subject, row.detail) == ("rejected", message.place, message.reason)
    assert follower.acknowledgements.exceptions == [
        {"event_id": message.place, "outcome": "rejected", "detail": message.reason}
    ]
    with pytest.raises(Conflict, match="no event that this node would ever take"):
        await parked.requeue(conn, [row.id], actor="anna")
    await parked.discard(conn, [row.id], actor="anna")


async def test_what_somebody_else_is_the_origin_of_is_never_tried_again(node: Node, conn: Connection) -> None:
    source = Source([])
    source.entries.append({**orjson.loads(entry(node, FIRST, CMIP6)), "source": "south"})
    await follow(node, source)
    [row] = await parked.every(conn)
    assert row.outcome == "rejected"
    with pytest.raises(Conflict, match="no event that this node would ever take"):
        await parked.requeue(conn, [row.id], actor="anna")
    await conn.execute("UPDATE fedstac.parked_event SET requeued_at = now()")  # as nothing of ours does
    await follower_of(node, source).step(0)
    assert await ids(conn) == []
    assert [each.requeued_at for each in await parked.every(conn)] == [None]


async def test_an_origin_that_is_away_holds_up_nobody_who_follows_while_an_event_waits_for_it(
    node: Node, conn: Connection
) -> None:
    source = await parked_for_a_vocabulary(node)
    [row] = await parked.every(conn)
    await parked.requeue(conn, [row.id], actor="anna")
    source.served = SourceRefused("503")
    await follower_of(node, source).step(0)
    assert [each.requeued_at is not None for each in await parked.every(conn)] == [True]


async def test_a_requeued_event_that_kills_is_found_again(node: Node, conn: Connection) -> None:
    source = await parked_for_a_vocabulary(node)
    [row] = await parked.every(conn)
    await conn.execute(
        "INSERT INTO fedstac.event_attempt (consumer, origin, event_id, attempts) VALUES ('index', 'north', $1, 9)",
        row.event_id,
    )
    await parked.requeue(conn, [row.id], actor="anna")
    assert await conn.fetchval("SELECT count(*) FROM fedstac.event_attempt") == 0
    await conn.execute(  # as three processes that died over it leave it
        "INSERT INTO fedstac.event_attempt (consumer, origin, event_id, attempts) VALUES ('index', 'north', $1, 3)",
        row.event_id,
    )
    await follower_of(node, source).step(0)
    [again] = await parked.every(conn)
    assert "3 processes of this node ended" in again.detail
    assert again.requeued_at is None


# --- the commands ---


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, dsn: str) -> Any:
    """Run a command against the node's database, in a thread of its own: it has an event loop."""
    monkeypatch.setenv("FEDSTAC_DSN", dsn)
    monkeypatch.setenv("FEDSTAC_NODE", "west")
    from fedstac import settings

    settings.load.cache_clear()

    async def command(*words: str) -> typer.testing.Result:
        import asyncio

        runner = typer.testing.CliRunner()
        return await asyncio.to_thread(runner.invoke, app, ["parked", *words])

    yield command
    settings.load.cache_clear()


async def test_the_commands_list_show_requeue_and_discard(node: Node, conn: Connection, run: Any) -> None:
    await parked_for_a_vocabulary(node)
    [row] = await parked.every(conn)
    listed = await run("list")
    assert (listed.exit_code, FIRST["id"] in listed.stdout, "north" in listed.stdout) == (0, True, True)
    shown: Json = orjson.loads((await run("show", str(row.id), "-o", "json")).stdout)
    assert (shown["subject"], shown["event"]["data"]["id"]) == (f"CMIP6/{FIRST['id']}", FIRST["id"])
    assert (await run("requeue", str(row.id), "-o", "json")).exit_code == 0
    assert [each.requeued_at is not None for each in await parked.every(conn)] == [True]
    assert (await run("show", "999")).exit_code == 3
    assert (await run("discard")).exit_code == 2
    assert (await run("discard", "--all")).exit_code == 0
    assert await parked.every(conn) == []
    assert {row["actor"] for row in await conn.fetch("SELECT actor FROM fedstac.audit")} == {"database:fedstac_writer"}


async def test_every_outcome_is_counted(node: Node, conn: Connection) -> None:
    strange = {**orjson.loads(entry(node, SECOND, CMIP6)), "source": "south"}
    source = Source([entry(node, FIRST, CMIP6), entry(node, FIRST, CMIP6), entry(node, SECOND, NEXT)], NotServed("404"))
    source.entries.append(strange)
    await follow(node, source)
    text = text_of(process_families(node.metrics, node.parts, ())).decode()
    lines = [line for line in text.splitlines() if line.startswith("fedstac_consumed_events_total{")]
    assert {line.partition('outcome="')[2] for line in lines} == {
        'applied"} 2.0', 'ignored"} 1.0', 'parked"} 1.0', 'rejected"} 1.0',
    }  # fmt: skip


async def test_administrators_of_an_index_node_do_the_same_over_http(
    node: Node, conn: Connection, dsn: str, start_api: StartApi
) -> None:
    source = await parked_for_a_vocabulary(node)
    api = await start_api(dsn=dsn, background=False)
    [listed] = (await api.admin.get("/parked-events")).json()["parked_events"]
    assert (listed["subject"], listed["outcome"]) == (f"CMIP6/{FIRST['id']}", "parked")
    assert (await api.admin.get(f"/parked-events?after={listed['id']}")).json() == {"parked_events": []}
    whole = (await api.admin.get(f"/parked-events/{listed['id']}")).json()
    assert whole["event"]["data"]["id"] == FIRST["id"]
    body = {"ids": [listed["id"]]}
    assert (await api.anyone.post("/parked-events/requeue", json=body)).status_code == 401
    [requeued] = (await api.admin.post("/parked-events/requeue", json=body)).json()["parked_events"]
    assert requeued["requeued_at"] is not None
    source.served = RAW
    await follower_of(node, source).step(0)
    assert await ids(conn) == [FIRST["id"]]
    assert (await api.admin.post("/parked-events/discard", json=body)).status_code == 404
