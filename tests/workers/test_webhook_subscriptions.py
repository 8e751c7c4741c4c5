"""Subscriptions that are sent to webhooks: real receivers, the real log, and what is stored of each."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator

import pytest

from fedstac import bootstrap
from fedstac.bootstrap import Node
from fedstac.db import subscriptions
from fedstac.db.connections import Connection
from fedstac.domain import destinations
from fedstac.settings import Settings
from fedstac.workers import webhook_chunks
from tests.db import writing
from tests.support.subscribers import (
    TAKEN,
    Request,
    sending,
    subscribe,
    subscriber,
    subscription_that,
    with_status,
)
from tests.support.waiting import until
from tests.workers.things import publish, rename


@pytest.fixture
async def node(dsn: str) -> AsyncIterator[Node]:
    """A node whose webhooks may lead to loopback."""
    settings = Settings(
        dsn=dsn, node="west", webhook_networks=("127.0.0.0/8",), public_url="https://west.example", _env_file=None
    )
    async with bootstrap.node(settings) as running:
        yield running


@pytest.fixture(autouse=True)
def _hurried(monkeypatch: pytest.MonkeyPatch) -> None:
    """What failed is tried again soon."""
    monkeypatch.setattr(webhook_chunks, "FIRST_RETRY_SECONDS", 0.02)
    monkeypatch.setattr(webhook_chunks, "LONGEST_RETRY_SECONDS", 0.05)
    monkeypatch.setattr(webhook_chunks, "FIRST_WAIT_SECONDS", 0.02)
    monkeypatch.setattr(webhook_chunks, "LONGEST_WAIT_SECONDS", 0.05)


async def head(conn: Connection) -> int:
    return int(await conn.fetchval("SELECT pos FROM fedstac.feed_state") or 0)


async def test_events_are_sent_once_and_signed_after_the_receiver_agreed(node: Node, conn: Connection) -> None:
    await writing.create_collections(node, "plain")
    await publish(conn, *range(20))
    async with subscriber() as receiver:
        stored = await subscribe(conn, receiver.url, filter={"cql2": "title = 'a'"})
        async with sending(node):
            await until(lambda: _is(len(receiver.taken) == 21))
            await rename(conn, 3, title="b")
            await subscription_that(conn, lambda each: each.delivered == 22)
    [handshake] = receiver.handshakes
    assert handshake.headers["webhook-request-origin"] == "west.example"
    assert sorted(receiver.datasets[:-1]) == sorted(["", *(f"thing-{number}" for number in range(20))])
    last = receiver.taken[-1]
    assert last.event["type"] == "org.fedstac.dataset.left.v1"
    assert last.event["data"]["id"] == "thing-3"
    assert set(last.event["data"]) == {"collection", "id", "base_id", "version", "seq"}
    for request in receiver.taken:
        id, at = request.headers["webhook-id"], int(request.headers["webhook-timestamp"])
        assert request.event["id"] == id
        assert request.headers["webhook-signature"] == destinations.signature(stored.secret, id, at, request.body)
    assert len({request.headers["webhook-id"] for request in receiver.taken}) == 22


async def _is(condition: bool) -> bool:
    return condition


async def test_other_datasets_pass_one_that_fails_and_its_own_events_wait_behind_it(
    node: Node, conn: Connection
) -> None:
    await writing.create_collections(node, "plain")
    await publish(conn, 1, 2, 3)
    await rename(conn, 1, 2, title="b")
    await rename(conn, 1, title="c")
    refused = asyncio.Event()

    async with subscriber() as receiver:

        async def respond(request: Request) -> str:
            return with_status("RETRY") if request.dataset == "thing-1" and not refused.is_set() else TAKEN

        receiver.respond = respond
        await subscribe(conn, receiver.url, filter={"types": ["dataset.published", "dataset.updated"]})
        async with sending(node):
            await until(lambda: _is(len(receiver.taken) == 3))
            await until(lambda: _is(Counter(request.dataset for request in receiver.requests)["thing-1"] >= 3))
            assert receiver.datasets.count("thing-1") == 0
            refused.set()
            await until(lambda: _is(len(receiver.taken) == 6))
            stored = await subscription_that(conn, lambda each: each.delivered == 6)
    own = [request for request in receiver.taken if request.dataset == "thing-1"]
    assert [request.event["data"]["document"]["properties"]["title"] for request in own] == ["a", "b", "c"]
    assert stored.pos == await head(conn)
    assert await conn.fetchval("SELECT count(*) FROM fedstac.subscription_event") == 0


async def test_an_event_that_fails_again_and_again_is_a_dead_letter_and_what_follows_goes_on(
    node: Node, conn: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(webhook_chunks, "MOST_TRIES", 3)
    await writing.create_collections(node, "plain")
    await publish(conn, 1)
    await rename(conn, 1, title="b")
    async with subscriber() as receiver:

        async def respond(request: Request) -> str:
            return "422 No" if request.event["data"]["document"]["properties"]["title"] == "a" else TAKEN

        receiver.respond = respond
        await subscribe(conn, receiver.url, filter={"types": ["dataset.published", "dataset.updated"]})
        async with sending(node):
            await subscription_that(conn, lambda each: each.delivered == 1)
    [letter] = await subscriptions.dead_letters(conn, "one", after=0, limit=10)
    assert (letter.attempts, letter.reason) == (3, "the receiver answered 422")
    assert [request.headers["fedstac-attempt"] for request in receiver.requests] == ["1", "2", "3", "1"]


async def test_what_a_receiver_drops_is_not_sent_again(node: Node, conn: Connection) -> None:
    await writing.create_collections(node, "plain")
    await publish(conn, 1, 2)
    async with subscriber() as receiver:

        async def respond(request: Request) -> str:
            return with_status("DROP")

        receiver.respond = respond
        await subscribe(conn, receiver.url)
        async with sending(node):
            stored = await subscription_that(conn, lambda each: each.delivered == 3)
    assert (len(receiver.requests), stored.failing_since) == (3, None)
    assert await conn.fetchval("SELECT count(*) FROM fedstac.subscription_event") == 0
