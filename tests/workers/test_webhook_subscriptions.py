"""Subscriptions that are sent to webhooks: real receivers, the real log, and what is stored of each."""

from __future__ import annotations

import asyncio
import statistics
import time
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack
from dataclasses import replace
from datetime import timedelta
from functools import partial
from types import SimpleNamespace
from typing import Any
from uuid import uuid4

import orjson
import pytest

from fedstac import bootstrap
from fedstac.bootstrap import Node
from fedstac.db import nodes, notifications, subscription_events, subscriptions, webhook_deliveries
from fedstac.db.connections import Connection
from fedstac.db.subscription_events import LogSlice, MissedCounts, Postponement
from fedstac.db.webhook_deliveries import DeliveryResult, Note, Stop, Turn
from fedstac.domain import destinations
from fedstac.domain.errors import CursorGone
from fedstac.domain.events import Cursor
from fedstac.domain.groups import Identity
from fedstac.domain.policy import Principal
from fedstac.domain.subscriptions import Subscriber as LogReader
from fedstac.domain.subscriptions import SubscriptionFilter
from fedstac.runtime.metrics import text_of
from fedstac.settings import Settings
from fedstac.workers import delivering, notifier, subscribing, webhook_chunks
from fedstac.workers.page_cache import PageCache
from fedstac.workers.subscriptions import WITHOUT_TOKEN, NoteWriter, WebhookSender, groups_of
from tests.db import writing
from tests.support.receivers import receiving
from tests.support.subscribers import (
    TAKEN,
    Request,
    Subscriber,
    agree,
    sending,
    subscribe,
    subscriber,
    subscription_that,
    with_status,
)
from tests.support.waiting import until
from tests.workers.things import SPOIL, publish, rename


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
    [letter] = await subscription_events.dead_letters(conn, "one", after=0, limit=10)
    assert (letter.attempts, letter.reason) == (3, "the receiver answered 422")
    assert [request.headers["fedstac-attempt"] for request in receiver.requests] == ["1", "2", "3", "1"]


async def test_an_event_that_the_format_cannot_write_is_a_dead_letter_at_once_and_later_ones_go_on(
    node: Node, conn: Connection, administrator: Connection
) -> None:
    await writing.create_collections(node, "plain")
    await publish(conn, 1, 2)
    await rename(conn, 1, title="b")
    await administrator.execute(SPOIL, "thing-1", "org.fedstac.dataset.published.v1")
    async with subscriber() as receiver:
        await subscribe(conn, receiver.url, format="overview")
        async with sending(node):
            stored = await subscription_that(conn, lambda each: each.pos == 4 and each.lease is None)
    [letter] = await subscription_events.dead_letters(conn, "one", after=0, limit=10)
    assert (letter.dataset, letter.attempts) == ("thing-1", 1)
    assert letter.reason == "a fault in fedstac, KeyError: 'digest'"
    assert sorted(orjson.loads(request.body)["title"] for request in receiver.taken) == ["a", "b"]
    assert (stored.failing_since, stored.last_error) == (None, None), "the receiver is not to blame"
    assert b'fedstac_unwritable_events_total{format="overview"} 1.0' in text_of(node.metrics.families())


async def test_groups_of_an_identity_provider_count_for_a_bounded_time_after_the_last_put(
    node: Node, conn: Connection
) -> None:
    def owner(*groups: str) -> Principal:
        identity = Identity("https://idp.example", "1", "", None, "", frozenset(groups), (), frozenset())
        return Principal("person:1" if groups else "person:2", frozenset(), identity)

    await writing.create_collections(node, "plain")
    await publish(conn, 1)
    async with subscriber() as receiver:
        await subscribe(conn, receiver.url, "grouped", owner=owner("curators"))
        await subscribe(conn, receiver.url, "plain", owner=owner())
        await subscribe(conn, receiver.url, "token")
        await conn.execute("UPDATE fedstac.subscription SET rights_at = rights_at - '31 days'::interval")
        async with sending(node):
            paused = await subscription_that(conn, lambda each: each.paused_reason is not None, "grouped")
            for name in ("plain", "token"):
                await subscription_that(conn, lambda each: each.delivered == 2, name)
            assert "put it more than 30 days ago; put it again" in (paused.paused_reason or "")
            assert paused.delivered == 0
            again = await subscribe(conn, receiver.url, "grouped", owner=owner("curators"))
            assert again.paused_reason is None
            await subscription_that(conn, lambda each: each.delivered == 2, "grouped")
    days = node.settings.webhook_rights_days
    assert subscribing.rights_until(again, days) == again.rights_at + timedelta(days=days)
    renewed = await subscribe(conn, receiver.url, "grouped", owner=owner("curators"))
    assert (renewed.rights_at > again.rights_at, renewed.version) == (True, again.version)
    for name in ("plain", "token"):
        stored = await subscriptions.find(conn, name)
        assert stored is not None
        assert subscribing.rights_until(stored, days) is None


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


@pytest.mark.parametrize("answer", ["429 Too Many Requests\r\nRetry-After: 0", "503 Service Unavailable", "hang up"])
async def test_a_receiver_that_is_busy_or_does_not_answer_is_left_in_peace_and_gets_everything_later(
    node: Node, conn: Connection, answer: str
) -> None:
    await writing.create_collections(node, "plain")
    await publish(conn, *range(8))
    is_busy = asyncio.Event()
    is_busy.set()
    async with subscriber() as receiver:

        async def respond(request: Request) -> str:
            if is_busy.is_set() and answer == "hang up":
                raise ConnectionError
            return answer if is_busy.is_set() else TAKEN

        receiver.respond = respond
        await subscribe(conn, receiver.url)
        async with sending(node):
            failing = await subscription_that(conn, lambda each: each.failing_since is not None and each.errors > 2)
            assert (failing.pos, failing.delivered) == (0, 0)
            is_busy.clear()
            stored = await subscription_that(conn, lambda each: each.delivered == 9)
    assert (stored.failing_since, stored.paused_reason) == (None, None)
    assert len({request.headers["webhook-id"] for request in receiver.taken}) == len(receiver.taken) == 9
    assert await conn.fetchval("SELECT count(*) FROM fedstac.subscription_event") == 0  # nothing was counted


async def test_a_receiver_that_times_out_is_tried_again(
    node: Node, conn: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(webhook_chunks, "ANSWER_SECONDS", 0.2)
    await writing.create_collections(node, "plain")
    await publish(conn, 1)
    slow = asyncio.Event()
    slow.set()
    async with subscriber() as receiver:

        async def respond(request: Request) -> str:
            if slow.is_set():
                await asyncio.Event().wait()
            return TAKEN

        receiver.respond = respond
        await subscribe(conn, receiver.url)
        async with sending(node):
            stored = await subscription_that(conn, lambda each: each.errors > 1)
            assert (stored.delivered, stored.last_error) == (0, "no answer in time")
            monkeypatch.setattr(webhook_chunks, "ANSWER_SECONDS", 60.0)
            slow.clear()
            await subscription_that(conn, lambda each: each.delivered == 2)


async def test_a_receiver_that_is_gone_ends_its_subscription_and_another_put_begins_it_anew(
    node: Node, conn: Connection
) -> None:
    await writing.create_collections(node, "plain")
    await writing.sequence_all(conn)
    async with subscriber() as receiver:

        async def respond(request: Request) -> str:
            return "410 Gone"

        receiver.respond = respond
        await subscribe(conn, receiver.url)
        async with sending(node):
            stored = await subscription_that(conn, lambda each: each.ended_reason is not None)
            assert stored.ended_reason == "the receiver answered 410: it wants no more events"
            await publish(conn, 1)
            assert len(receiver.requests) == 1
            receiver.respond = agree
            await subscribe(conn, receiver.url)
            await subscription_that(conn, lambda each: each.delivered == 2)
    actions = await conn.fetch("SELECT action FROM fedstac.audit WHERE dataset = 'subscription/one' ORDER BY id")
    assert [row["action"] for row in actions] == ["add-subscription", "end-subscription", "change-subscription"]


async def test_a_redirect_to_a_private_address_is_not_followed_and_pauses_the_subscription(
    node: Node, conn: Connection
) -> None:
    await writing.create_collections(node, "plain")
    await writing.sequence_all(conn)
    async with subscriber() as private, subscriber() as receiver:

        async def respond(request: Request) -> str:
            return f"307 Temporary Redirect\r\nLocation: {private.url}"

        receiver.respond = respond
        await subscribe(conn, receiver.url)
        async with sending(node):
            stored = await subscription_that(conn, lambda each: each.paused_reason is not None)
    assert stored.paused_reason is not None
    assert "redirects are not followed" in stored.paused_reason
    assert (stored.pos, private.requests, private.handshakes) == (0, [], [])


async def test_a_private_address_that_the_operator_did_not_list_is_not_connected_to(
    node: Node, conn: Connection
) -> None:
    settings = node.settings.model_copy(update={"webhook_networks": ("10.0.0.0/8",)})
    await writing.create_collections(node, "plain")
    async with subscriber() as receiver:
        await subscribe(conn, receiver.url)
        async with sending(replace(node, settings=settings)):
            stored = await subscription_that(conn, lambda each: each.paused_reason is not None)
    assert stored.paused_reason == "127.0.0.1 leads to an address that is not of the internet"
    assert (receiver.requests, receiver.handshakes) == ([], [])


async def test_a_receiver_that_does_not_agree_gets_nothing(node: Node, conn: Connection) -> None:
    await writing.create_collections(node, "plain")
    async with subscriber() as receiver:
        receiver.consent = "200 OK\r\nWebHook-Allowed-Origin: east.example"
        await subscribe(conn, receiver.url)
        async with sending(node):
            stored = await subscription_that(conn, lambda each: each.paused_reason is not None)
    assert "did not agree" in (stored.paused_reason or "")
    assert (len(receiver.handshakes), receiver.requests) == (1, [])


async def test_a_subscription_that_nobody_can_work_on_waits_and_holds_up_no_other(
    node: Node, conn: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    await writing.create_collections(node, "plain")
    await publish(conn, 1)

    async with subscriber() as receiver, subscriber() as odd:

        def read(text: object) -> SubscriptionFilter:
            if text == {"cql2": "title = 'fault'"}:
                raise RuntimeError
            return SubscriptionFilter.parse(text)

        async def respond(request: Request) -> str:
            return "503 Later\r\nRetry-After: Mon, 01 Jan 2024 00:00:00 +9999999999999999"

        odd.respond = respond
        monkeypatch.setattr("fedstac.domain.subscriptions.SubscriptionFilter", SimpleNamespace(parse=read))
        await subscribe(conn, receiver.url, "good")
        await subscribe(conn, odd.url, "odd answer")
        await subscribe(conn, "https://a..b.example/hook", "odd host")
        await subscribe(conn, receiver.url, "old filter", filter={"no": "member"})
        await subscribe(conn, receiver.url, "fault", filter={"cql2": "title = 'fault'"})
        async with sending(node):
            for name in ("odd answer", "odd host", "fault"):
                await subscription_that(conn, lambda each: each.errors > 1, name)
            old = await subscription_that(conn, lambda each: each.paused_reason is not None, "old filter")
            await subscription_that(conn, lambda each: each.delivered == 2, "good")
            fault = await subscription_that(conn, lambda each: each.failing_since is not None, "fault")
    assert "put it again" in (old.paused_reason or "")
    assert fault.last_error == "a fault in fedstac: RuntimeError; ask its operators"
    assert len(receiver.taken) == 2


async def test_an_owner_is_told_what_ails_their_subscriptions_and_nobody_else_is(
    node: Node, conn: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(webhook_chunks, "MOST_TRIES", 1)
    monkeypatch.setattr(notifier, "LOOK_SECONDS", 0.05)
    settings = node.settings.model_copy(update={"notify_private": True, "notify_window_seconds": 0.0})
    node = replace(node, settings=settings)
    await writing.create_collections(node, "plain")
    await publish(conn, 1, 2)
    stop = asyncio.Event()
    async with subscriber() as strict, subscriber() as moved, receiving() as own, receiving() as of_others:

        async def refuse(request: Request) -> str:
            return "422 No" if request.dataset == "thing-1" else TAKEN

        async def redirect(request: Request) -> str:
            return "301 Moved"

        strict.respond, moved.respond = refuse, redirect
        for owner, receiver in (("ben", own), ("eve", of_others)):
            await notifications.register(conn, owner, receiver.url, ["subscription"], confirmed=True)
        await subscribe(conn, strict.url, "strict")
        await subscribe(conn, moved.url, "moved")
        async with sending(node):
            await subscription_that(conn, lambda each: each.delivered == 2, "strict")
            await subscription_that(conn, lambda each: each.paused_reason is not None, "moved")
        telling = asyncio.create_task(notifier.Notifier(node).run(stop))
        message = (await own.next()).json
        stop.set()
        await telling
        assert of_others.calls.empty()
    assert (message["type"], message["data"]["total"]) == ("fedstac.subscriptions.troubled", 2)
    redirected, with_letter = message["data"]["subscriptions"]
    assert (redirected["name"], redirected["stand"], redirected["dead_letters"]) == ("moved", "paused", 0)
    assert "redirects are not followed" in redirected["reason"]
    assert with_letter == {
        "name": "strict", "stand": "sent", "reason": None, "dead_letters": 1,
        "last_reason": "the receiver answered 422", "url": "https://west.example/subscriptions/strict",
    }  # fmt: skip


async def test_an_owner_whose_token_is_revoked_gets_nothing_and_later_what_the_next_one_may_read(
    node: Node, conn: Connection
) -> None:
    await writing.create_collections(node, "plain")
    private = writing.plain(1)
    private["properties"]["fedstac:access"] = "private"
    await writing.publish(conn, private)
    await publish(conn, 2)
    async with subscriber() as receiver:
        await subscribe(
            conn, receiver.url, owner=Principal("opal", frozenset({"admin"})), filter={"types": ["dataset.published"]}
        )
        await nodes.revoke_tokens(conn, "opal")
        async with sending(node):
            stored = await subscription_that(conn, lambda each: each.errors > 1)
            assert (receiver.requests, stored.last_error) == ([], WITHOUT_TOKEN.reason)
            await nodes.issue_token(conn, "opal", ["publisher:nobody"])
            stored = await subscription_that(conn, lambda each: each.delivered == 1)
    assert (receiver.datasets, stored.failing_since) == (["thing-2"], None)


async def test_a_subscription_behind_the_log_says_what_its_owner_does(
    node: Node, conn: Connection, administrator: Connection
) -> None:
    await writing.create_collections(node, "plain")
    await publish(conn, 1)
    async with subscriber() as receiver:
        await subscribe(conn, receiver.url)
        async with sending(node):
            await subscription_that(conn, lambda each: each.delivered == 2)
        await administrator.execute("UPDATE fedstac.subscription SET pos = 0")
        await administrator.execute("UPDATE fedstac.forgotten SET pos = 1")
        async with sending(node):
            stored = await subscription_that(conn, lambda each: each.paused_reason is not None)
    assert "seek the place" in (stored.paused_reason or "")


async def test_a_slow_and_a_failing_receiver_do_not_delay_the_others(node: Node, conn: Connection) -> None:
    await writing.create_collections(node, "plain")
    lags: dict[bool, list[float]] = {False: [], True: []}  # by whether a slow and a failing one are beside
    published: dict[str, float] = {}

    async def be_slow(request: Request) -> str:
        await asyncio.sleep(1.0)
        return TAKEN

    async def fail(request: Request) -> str:
        return "500 Internal Server Error"

    good: list[Subscriber] = []

    async def have_taken(count: int) -> bool:
        return all(len(each.taken) == count for each in good)

    async with AsyncExitStack() as stack:
        good += [await stack.enter_async_context(subscriber()) for _ in range(4)]
        slow, failing = [await stack.enter_async_context(subscriber()) for _ in range(2)]
        slow.respond, failing.respond = be_slow, fail
        for n, receiver in enumerate(good):
            await subscribe(conn, receiver.url, f"good-{n}", filter={"types": ["dataset.published"]})
        await stack.enter_async_context(sending(node))
        for has_others in (False, True):
            if has_others:
                await subscribe(conn, slow.url, "slow", filter={"types": ["dataset.published"]})
                await subscribe(conn, failing.url, "failing", filter={"types": ["dataset.published"]})
                await subscription_that(conn, lambda each: each.failing_since is not None, "failing")
            for number in range(30):
                number += 1000 * has_others
                await publish(conn, number)
                published[f"thing-{number}"] = time.monotonic()
                node.sequenced.wake()
            await until(partial(have_taken, 30 * (1 + has_others)))
            for receiver in good:
                lags[has_others] += [each.at - published[each.dataset] for each in receiver.taken[-30:]]
        assert len(slow.taken) < 60
        assert not failing.taken
    figures = {has: (statistics.median(own), sorted(own)[int(len(own) * 0.95)]) for has, own in lags.items()}
    print(
        f"lag in seconds, median and 95th percentile: alone {figures[False]}, beside slow and failing {figures[True]}"
    )


async def test_those_far_behind_do_not_keep_the_turn_from_others(node: Node, conn: Connection) -> None:
    await writing.create_collections(node, "plain")
    await publish(conn, *range(20))
    near = Cursor(1, await head(conn) - 1)
    for number in range(20):
        await subscribe(conn, "https://hooks.example/x", f"far {number}")
    await subscribe(conn, "https://hooks.example/x", "near", after=near)
    await conn.execute("SELECT setseed(0.1)")
    names = set()
    for _ in range(200):
        [turn] = await webhook_deliveries.claim(conn, lease := uuid4(), 15.0, most=1, most_slow=1)
        await webhook_deliveries.release(conn, lease, [turn.name])
        names.add(turn.name)
    assert len(names) == 21


async def _claimed(node: Node, conn: Connection, count: int) -> list[Turn]:
    """Return the turns of new subscriptions, by name."""
    await writing.create_collections(node, "plain")
    await publish(conn, 1, 2)
    for number in range(count):
        await subscribe(conn, "https://hooks.example/x", f"hook {number}")
    turns = await webhook_deliveries.claim(conn, uuid4(), 15.0, most=count, most_slow=1)
    return sorted(turns, key=lambda turn: turn.name)


async def test_what_came_of_several_chunks_is_stored_together_and_of_a_lost_lease_nothing(
    node: Node, conn: Connection
) -> None:
    first, second, changed, taken_over = await _claimed(node, conn, 4)
    await conn.execute("UPDATE fedstac.subscription SET version = version + 1 WHERE name = $1", changed.name)
    await conn.execute("UPDATE fedstac.subscription SET lease = $2 WHERE name = $1", taken_over.name, uuid4())
    [event] = await subscription_events.events_at(conn, [2])
    failed = Postponement(event, "no", 60.0)
    await subscription_events.postpone(conn, second.name, [failed])
    dead = replace(failed, seconds=None)
    results = {
        first.name: DeliveryResult(through=Cursor(1, 3), taken_count=2, postponements=[failed]),
        second.name: DeliveryResult(through=None, taken_count=0, postponements=[dead], error="no"),
        changed.name: DeliveryResult(through=Cursor(1, 3), taken_count=2, postponements=[failed]),
        taken_over.name: DeliveryResult(through=Cursor(1, 3), taken_count=2, stop=Stop(ended_reason="over")),
    }
    notes = [Note(turn, results[turn.name]) for turn in (taken_over, changed, second, first)]
    own_notes = await webhook_deliveries.note(conn, notes, window=0.0)
    assert {each.turn.name for each in own_notes} == {first.name, second.name}
    rows = await conn.fetch("SELECT pos, delivered, errors, ended_reason FROM fedstac.subscription ORDER BY name")
    assert [tuple(row) for row in rows] == [(3, 2, 0, None), (0, 0, 1, None), (0, 0, 0, None), (0, 0, 0, None)]
    counts = await subscription_events.missed_counts(conn, [turn.name for turn in (first, second, changed)])
    assert counts == {first.name: MissedCounts(waiting=1), second.name: MissedCounts(dead=1)}


async def test_owners_are_told_of_many_chunks_in_as_many_statements_as_of_one(node: Node, conn: Connection) -> None:
    turns = await _claimed(node, conn, 40)
    destination, _ = await notifications.register(
        conn, turns[0].subscription.owner, "mailto:ben@example.org", ["subscription"], confirmed=True
    )
    ended, names = Stop(ended_reason="over"), [turn.name for turn in turns]
    statements: list[Any] = []

    async def note(some: Sequence[Turn]) -> int:
        statements.clear()
        results = [Note(turn, DeliveryResult(through=None, taken_count=0, error="over", stop=ended)) for turn in some]
        with conn.query_logger(statements.append):
            await webhook_deliveries.note(conn, results, window=60.0)
        return len(statements)

    await note(turns[:1])  # asyncpg asks for the types of arguments
    assert await note(turns[1:4]) == await note(turns[4:])
    rows = await conn.fetch("SELECT about FROM fedstac.notification WHERE destination = $1", destination.id)
    assert [list(row["about"]) for row in rows] == [names], "one digest, in which each stands once"
    await note(turns[:3])
    rows = await conn.fetch("SELECT about FROM fedstac.notification WHERE destination = $1", destination.id)
    assert [list(row["about"]) for row in rows] == [names]
    audited = await conn.fetch("SELECT dataset FROM fedstac.audit WHERE action = 'end-subscription' ORDER BY id")
    assert [row["dataset"] for row in audited] == [f"subscription/{name}" for name in (*names, *names[:3])]


async def test_a_note_that_cannot_be_stored_hinders_no_other(node: Node, conn: Connection) -> None:
    notes = NoteWriter(node)
    turns = await _claimed(node, conn, 5)
    outcomes = await asyncio.gather(
        *(
            notes.store(Note(turn, DeliveryResult(through=Cursor(1, 3), taken_count=1, error="\0" if n == 3 else None)))
            for n, turn in enumerate(turns)
        ),
        return_exceptions=True,
    )
    await notes.end()
    assert [outcome is True for outcome in outcomes] == [True, True, True, False, True]
    rows = await conn.fetch("SELECT pos FROM fedstac.subscription ORDER BY name")
    assert [row["pos"] for row in rows] == [3, 3, 3, 0, 3]


async def test_leases_last_while_the_log_is_read_for_many_that_stand_apart(
    node: Node, conn: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    await writing.create_collections(node, "plain")
    await publish(conn, *range(20))
    look, leased = subscription_events.look, list[bool]()

    async def look_slowly(one: Connection, *arguments: Any) -> LogSlice:
        await asyncio.sleep(0.2)  # a third of a lease
        leased.append(
            await conn.fetchval("SELECT bool_and(leased_until > clock_timestamp()) FROM fedstac.subscription")
        )
        return await look(one, *arguments)

    monkeypatch.setattr(subscription_events, "look", look_slowly)
    monkeypatch.setattr("fedstac.workers.subscriptions.PAGE_EVENTS", 1)
    monkeypatch.setattr("fedstac.workers.page_cache.KEPT_SECONDS", -1.0)  # each of them reads
    for number in range(6):
        await subscribe(conn, "https://hooks.example/x", f"at {number}", after=Cursor(1, number * 3))
    await conn.execute('UPDATE fedstac.subscription SET agreed_url = url, filter = \'{"collections": ["CMIP6"]}\'')
    sender = WebhookSender(node, lease_seconds=0.6)
    await sender.step(conn)
    assert leased[:5] == [True] * 5


async def test_nothing_later_is_sent_after_a_seek_while_an_earlier_event_is_on_its_way(
    node: Node, conn: Connection
) -> None:
    await writing.create_collections(node, "plain")
    await publish(conn, 1)
    went_on = asyncio.Event()
    async with subscriber() as slow, subscriber() as other:

        async def respond(request: Request) -> str:
            await went_on.wait()
            return TAKEN

        slow.respond = respond
        types = {"types": ["dataset.published", "dataset.updated"]}
        await subscribe(conn, slow.url, filter=types)
        async with sending(node):
            await until(lambda: _is(len(slow.requests) == 1))
            place = str(Cursor(1, await head(conn)))
            await subscribing.seek(conn, "one", place, actor="ben")
            await rename(conn, 1, title="b")
            await subscribe(conn, other.url, "two", filter=types)
            await until(lambda: _is(len(other.taken) == 2))
            assert len(slow.requests) == 1
            went_on.set()
            stored = await subscription_that(conn, lambda each: each.delivered == 1 and each.lease is None)
    titles = [request.event["data"]["document"]["properties"]["title"] for request in slow.taken]
    assert titles == ["a", "b"]
    assert stored.pos == await head(conn)


async def test_several_senders_share_subscriptions_and_send_nothing_twice(node: Node, conn: Connection) -> None:
    await writing.create_collections(node, "plain")
    await publish(conn, *range(30))
    async with subscriber() as receiver, sending(node), sending(node):
        for n in range(6):
            await subscribe(conn, f"{receiver.url}/{n}", f"s{n}", batch=5)
        for n in range(6):
            await subscription_that(conn, lambda each: each.delivered == 31, f"s{n}")
    assert set(Counter((each.path, each.headers["webhook-id"]) for each in receiver.taken).values()) == {1}


async def test_a_page_of_the_log_is_read_once_for_those_who_come_to_it_a_moment_later(
    node: Node, conn: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fedstac.workers.page_cache.PAGE_EVENTS", 10)
    await writing.create_collections(node, "plain")
    await publish(conn, *range(20))
    now = 0.0
    cache = PageCache(node, clock=lambda: now)
    first = await cache.read(conn, Cursor(1, 0), None)
    assert [event.cursor.pos for event in first.log_page.events] == list(range(1, 11))
    assert await cache.read(conn, Cursor(1, 4), frozenset({"plain"})) is first
    assert [event.cursor.pos for event in first.log_page.after(8).events] == [9, 10]
    second = await cache.read(conn, first.through, frozenset({"plain"}))
    assert (second.through.pos, cache.reading_count) == (20, 2)
    assert await cache.read(conn, Cursor(1, 12), frozenset({"plain"})) is second
    assert (await cache.read(conn, Cursor(1, 12), None)).collections is None  # it has not what others want
    assert cache.reading_count == 3
    with pytest.raises(CursorGone):
        await cache.read(conn, Cursor(1, 1000), None)
    now = 6.0  # a deletion may have taken the text away
    assert await cache.read(conn, Cursor(1, 0), None) is not first
    thrifty = PageCache(node, most_bytes=1)
    for _ in range(2):
        await thrifty.read(conn, Cursor(1, 0), None)
    assert thrifty.reading_count == 2


async def test_a_page_from_before_a_deletion_shows_no_text_that_the_log_has_no_more(
    node: Node, conn: Connection, administrator: Connection
) -> None:
    await writing.create_collections(node, "plain")
    await publish(conn, 1, 2)
    pages = PageCache(node)
    reader = LogReader("one", SubscriptionFilter.parse({"types": ["dataset.published"]}), writing.ANNA)

    async def texts() -> list[str]:
        page = await delivering.next_deliveries(pages, conn, Cursor(1, 0), None, [reader])
        return [orjson.loads(each.event.text)["data"]["id"] for each in page.by_name["one"]]

    assert await texts() == ["thing-1", "thing-2"]
    assert (await texts(), pages.reading_count) == (["thing-1", "thing-2"], 1), "the page is shared"
    await administrator.execute("""UPDATE fedstac.record SET state = 'deleted', document = NULL WHERE id = 'thing-1'""")
    await administrator.execute(
        """UPDATE fedstac.outbox SET event = jsonb_set(event::jsonb, '{data,document}', 'null')::text
           WHERE dataset = 'thing-1'"""
    )
    assert (await texts(), pages.reading_count) == (["thing-2"], 2)


async def test_a_part_of_a_page_reaches_to_its_last_event(node: Node, conn: Connection) -> None:
    await writing.create_collections(node, "plain")
    await publish(conn, *range(5))
    page = await PageCache(node).read(conn, Cursor(1, 0), None)
    log_page, through = page.part(2, 2)
    assert ([event.cursor.pos for event in log_page.events], through.pos) == ([3, 4], 4)
    assert len(list(log_page.datasets_of_events)) == 2
    whole, end = page.part(2, None)
    assert (len(whole.events), end) == (4, page.through)


async def test_subscriptions_within_half_a_page_of_the_first_are_read_together(node: Node, conn: Connection) -> None:
    await writing.create_collections(node, "plain")
    places = {"a": (1, 0), "b": (1, 250), "c": (1, 251), "d": (1, 501), "e": (1, 502), "other epoch": (2, 510)}
    for name, (epoch, pos) in places.items():
        await subscribe(conn, "https://hooks.example/x", name, after=Cursor(epoch, pos))
    turns = []
    for name in reversed(places):
        stored = await subscriptions.find(conn, name)
        assert stored is not None
        turns.append(Turn(stored, stored.url, None, waits=0, is_slow=False, waiting=0, has_stored=False, is_due=False))
    assert [[turn.name for turn in group] for group in groups_of(turns)] == [
        ["a", "b"], ["c", "d"], ["e"], ["other epoch"],
    ]  # fmt: skip
    assert groups_of([]) == []


async def test_a_subscription_behind_what_the_log_keeps_is_paused_and_those_further_on_get_their_events(
    node: Node, conn: Connection, administrator: Connection
) -> None:
    await writing.create_collections(node, "plain")
    await publish(conn, *range(5))
    await administrator.execute("UPDATE fedstac.forgotten SET pos = 3")
    async with subscriber() as receiver:
        await subscribe(conn, receiver.url, "behind", after=Cursor(1, 1))
        await subscribe(conn, receiver.url, "on", after=Cursor(1, 4))
        async with sending(node):
            behind = await subscription_that(conn, lambda each: each.paused_reason is not None, "behind")
            await subscription_that(conn, lambda each: each.delivered == 2, "on")
    assert "the log no longer has what comes next" in (behind.paused_reason or "")
    assert [request.headers["fedstac-subscription"] for request in receiver.taken] == ["on", "on"]


async def test_a_receiver_gets_no_more_a_minute_than_it_allowed(node: Node, conn: Connection) -> None:
    await writing.create_collections(node, "plain")
    await publish(conn, *range(30))
    async with subscriber() as receiver:
        receiver.consent = "200 OK\r\nWebHook-Allowed-Origin: west.example\r\nWebHook-Allowed-Rate: 14"
        await subscribe(conn, receiver.url)
        async with sending(node):
            stored = await subscription_that(conn, lambda each: each.delivered == 2)
            seconds = await conn.fetchval(
                "SELECT extract(epoch FROM wait_until - delivered_at) FROM fedstac.subscription"
            )
        rate = await conn.fetchval("SELECT allowed_rate FROM fedstac.subscription")
    assert (rate, len(receiver.taken), stored.failing_since) == (14, 2, None)
    assert 8.0 < seconds < 9.0  # two of 14 a minute
