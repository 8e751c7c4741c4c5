"""Subscriptions and changes over HTTP: what is given out, taken, refused and given again, and to whom."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Sequence
from typing import Any

import orjson
import pytest

from fedstac.db import feed
from fedstac.db.connections import Connection
from fedstac.demo import sample
from fedstac.domain.events import Cursor
from fedstac.domain.subscriptions import SubscriberEvent
from fedstac.messaging.formats import Encoder
from fedstac.messaging.sinks import OutgoingEvent
from fedstac.workers import delivering
from tests.support.nodes import Api, StartApi
from tests.support.waiting import PATIENCE, until
from tests.workers.things import SPOIL

Json = dict[str, Any]


def thing(number: int, title: str) -> Json:
    """Return an item of a collection without a vocabulary."""
    return {
        "type": "Feature", "stac_version": "1.1.0", "id": f"thing-{number}", "collection": "plain",
        "geometry": {"type": "Point", "coordinates": [number, number]}, "bbox": [number] * 4,
        "properties": {"datetime": "2020-01-01T00:00:00Z", "title": title}, "links": [], "assets": {},
    }  # fmt: skip


@pytest.fixture
async def api(start_api: StartApi, dsn: str) -> Api:
    """A node with three datasets of a plain collection, two of them with the title `a`."""
    started = await start_api(dsn=dsn, default_wait_seconds=60, event_streams=1)
    assert (await started.admin.post("/collections", json=sample.collection("plain"))).status_code == 201
    for number, title in ((1, "a"), (2, "b"), (3, "a")):
        answer = await started.admin.post("/collections/plain/items", json=thing(number, title))
        assert answer.status_code in (200, 201), answer.text
    return started


async def head_is(api: Api, conn: Connection, pos: int) -> None:
    """Wait until the log has come to a position."""

    async def has_come() -> bool:
        return (await feed.head(conn)).pos >= pos

    await until(has_come)


async def retitle(api: Api, number: int, title: str) -> None:
    answer = await api.admin.patch(f"/collections/plain/items/thing-{number}", json={"properties": {"title": title}})
    assert answer.status_code == 200, answer.text


async def subscribe(api: Api, name: str = "mine", **members: Any) -> Json:
    answer = await api.admin.put(f"/subscriptions/{name}", json={"from": "start", **members})
    assert answer.status_code == 201, answer.text
    document: Json = answer.json()
    return document


async def next_of(api: Api, name: str = "mine", **parameters: Any) -> Json:
    answer = await api.admin.get(f"/subscriptions/{name}/next", params={"wait": 20, **parameters})
    assert answer.status_code == 200, answer.text
    page: Json = answer.json()
    return page


async def ack(api: Api, page: Json, name: str = "mine") -> Json:
    body = {"cursor": page["cursor"], "lease": page["lease"]}
    answer = await api.admin.post(f"/subscriptions/{name}/ack", json=body)
    assert answer.status_code == 200, answer.text
    place: Json = answer.json()
    return place


def names(events: Sequence[Json]) -> list[tuple[str, str]]:
    return [(event["value"]["data"]["id"], event["kind"]) for event in events]


TITLED_A = {"types": ["dataset.published", "dataset.updated", "dataset.left"], "cql2": "title = 'a'"}


async def test_events_are_leased_and_what_is_not_acknowledged_is_given_again(api: Api, conn: Connection) -> None:
    await head_is(api, conn, 4)
    await subscribe(api, filter=TITLED_A)
    first = await next_of(api, limit=1)
    assert names(first["events"]) == [("thing-1", "entered")]
    other = await next_of(api, wait=0)
    assert (other["events"], "lease" in other) == ([], False)  # somebody has the lease
    await conn.execute("UPDATE fedstac.subscription SET leased_until = clock_timestamp()")
    again = await next_of(api, limit=1)
    assert (names(again["events"]), again["lease"] != first["lease"]) == (names(first["events"]), True)
    assert (await ack(api, again))["cursor"] == again["cursor"]
    assert (await ack(api, again))["cursor"] == again["cursor"]  # a repeat changes nothing
    second = await next_of(api)
    assert names(second["events"]) == [("thing-3", "entered")]
    late = await api.admin.post("/subscriptions/mine/ack", json={**second, "events": None, "leased_until": None})
    assert late.status_code == 400
    stale = {"cursor": second["cursor"], "lease": first["lease"]}
    assert (await api.admin.post("/subscriptions/mine/ack", json=stale)).status_code == 409
    await ack(api, second)
    await retitle(api, 1, "b")
    third = await next_of(api)
    assert names(third["events"]) == [("thing-1", "left")]
    assert third["events"][0]["type"] == "org.fedstac.dataset.left.v1"
    await ack(api, third)
    assert (await next_of(api, wait=0))["events"] == []
    shown = (await api.admin.get("/subscriptions/mine")).json()
    assert (shown["stand"], shown["delivered"], shown["dead_letters"]) == ("active", 4, 0)


async def test_a_refused_event_is_given_again_and_its_dataset_waits_for_it(api: Api, conn: Connection) -> None:
    await retitle(api, 1, "c")
    await head_is(api, conn, 5)
    await subscribe(api, filter={"types": ["dataset.published", "dataset.updated"]})
    page = await next_of(api, limit=1)
    refused = {"event_id": page["events"][0]["event_id"], "reason": "the disk is full", "retry_in": 3600}
    answer = await api.admin.post("/subscriptions/mine/nack", json=refused)
    assert (answer.status_code, answer.json()["attempts"]) == (200, 1)
    await ack(api, page)
    others = await next_of(api)
    assert names(others["events"]) == [("thing-2", "entered"), ("thing-3", "entered")]  # and not the update of thing-1
    await ack(api, others)
    shown = (await api.admin.get("/subscriptions/mine")).json()
    assert shown["waiting"] == 2
    await conn.execute("UPDATE fedstac.subscription_event SET retry_at = clock_timestamp()")
    retried = await next_of(api)
    assert names(retried["events"]) == [("thing-1", "entered")]
    await ack(api, retried)
    last = await next_of(api)
    assert names(last["events"]) == [("thing-1", "changed")]
    await ack(api, last)
    assert (await api.admin.get("/subscriptions/mine")).json()["waiting"] == 0
    assert (await api.admin.post("/subscriptions/mine/nack", json=refused)).status_code == 404


async def test_an_event_that_the_format_cannot_write_is_a_dead_letter_and_later_ones_flow(
    api: Api, conn: Connection, administrator: Connection
) -> None:
    await retitle(api, 1, "c")
    await head_is(api, conn, 5)
    await administrator.execute(SPOIL, "thing-1", "org.fedstac.dataset.published.v1")
    await subscribe(api, format="overview")
    page = await next_of(api)
    assert [each["value"]["title"] for each in page["events"]] == ["b", "a", "c"]
    assert (await ack(api, page))["cursor"] == "1.5"
    [letter] = (await api.admin.get("/subscriptions/mine/dead-letters")).json()["dead_letters"]
    assert letter["reason"] == "a fault in fedstac, KeyError: 'digest'"
    again = await api.admin.post("/subscriptions/mine/seek", json={"cursor": "1.1"})
    assert again.json()["dead_letters"] == 0
    assert len((await next_of(api, limit=1))["events"]) == 1, "a page of nothing else is passed over"
    assert (await api.admin.get("/subscriptions/mine")).json()["dead_letters"] == 1
    metrics = (await api.admin.get("/metrics")).text
    assert 'fedstac_unwritable_events_total{format="overview"} 2.0' in metrics


async def test_a_stored_event_that_the_format_cannot_write_is_a_dead_letter(
    api: Api, conn: Connection, administrator: Connection
) -> None:
    await head_is(api, conn, 4)
    await subscribe(api, format="overview")
    page = await next_of(api)
    refused = {"event_id": page["events"][0]["event_id"], "reason": "no", "retry_in": 0}
    assert (await api.admin.post("/subscriptions/mine/nack", json=refused)).status_code == 200
    await ack(api, page)
    await administrator.execute(SPOIL, "thing-1", "org.fedstac.dataset.published.v1")
    assert (await next_of(api, wait=0))["events"] == []
    shown = (await api.admin.get("/subscriptions/mine")).json()
    assert (shown["waiting"], shown["dead_letters"]) == (0, 1)
    [letter] = (await api.admin.get("/subscriptions/mine/dead-letters")).json()["dead_letters"]
    body = {"cursor": page["cursor"]}
    assert (await api.admin.post(f"/subscriptions/mine/dead-letters/{letter['id']}/redrive")).status_code == 200
    assert (await next_of(api, wait=0))["events"] == []
    assert (await api.admin.post("/subscriptions/mine/ack", json=body)).status_code == 200


async def test_changes_say_what_the_format_cannot_write_and_go_on(
    api: Api, conn: Connection, administrator: Connection
) -> None:
    await head_is(api, conn, 4)
    await administrator.execute(SPOIL, "thing-1", "org.fedstac.dataset.published.v1")
    page = (await api.anyone.get("/changes", params={"since": "start", "format": "overview"})).json()
    assert [each["value"]["accession"] for each in page["changes"]] == ["thing-2", "thing-3"]
    [left_out] = page["unwritable"]
    assert (left_out["cursor"], left_out["collection"], left_out["dataset"]) == ("1.2", "plain", "thing-1")
    assert left_out["reason"] == "a fault in fedstac, KeyError: 'digest'"
    alone = await api.anyone.get("/changes", params={"since": "1.1", "format": "overview", "limit": "1", "wait": "60"})
    assert (alone.json()["changes"], alone.json()["cursor"]) == ([], "1.2")
    native = (await api.anyone.get("/changes", params={"since": "start"})).json()
    assert (len(native["changes"]), native["unwritable"]) == (4, [])


async def test_large_events_are_written_beside_the_event_loop(
    api: Api, conn: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    threads: list[bool] = []
    write = Encoder.encode_for

    def note(self: Encoder, event: SubscriberEvent) -> OutgoingEvent:
        threads.append(threading.current_thread() is threading.main_thread())
        return write(self, event)

    monkeypatch.setattr(Encoder, "encode_for", note)
    await head_is(api, conn, 4)
    await api.anyone.get("/changes", params={"since": "1.3"})
    monkeypatch.setattr(delivering, "INLINE_CHARACTERS", 1)
    await api.anyone.get("/changes", params={"since": "1.3"})
    assert threads == [True, False]


async def test_what_follows_a_refused_event_in_its_batch_comes_again_after_it(api: Api, conn: Connection) -> None:
    await retitle(api, 1, "c")
    await head_is(api, conn, 5)
    await subscribe(api, filter={"types": ["dataset.published", "dataset.updated"]})
    page = await next_of(api)
    assert [each["value"]["data"]["id"] for each in page["events"]] == ["thing-1", "thing-2", "thing-3", "thing-1"]
    body = {"event_id": page["events"][0]["event_id"], "reason": "the disk is full", "retry_in": 0}
    assert (await api.admin.post("/subscriptions/mine/nack", json=body)).status_code == 200
    await ack(api, page)
    for kind in ("entered", "changed"):
        retried = await next_of(api)
        assert names(retried["events"]) == [("thing-1", kind)]
        await ack(api, retried)
    assert (await next_of(api, wait=0))["events"] == []
    assert (await api.admin.get("/subscriptions/mine")).json()["waiting"] == 0


async def test_what_is_refused_too_often_is_a_dead_letter_that_can_be_sent_again(api: Api, conn: Connection) -> None:
    await head_is(api, conn, 4)
    await subscribe(api, filter={"types": ["dataset.published"]})
    for _ in range(10):
        page = await next_of(api, limit=1)
        answer = await api.admin.post(
            "/subscriptions/mine/nack", json={"event_id": page["events"][0]["event_id"], "reason": "no", "retry_in": 0}
        )
        assert answer.status_code == 200
        await ack(api, page)
    [letter] = (await api.admin.get("/subscriptions/mine/dead-letters")).json()["dead_letters"]
    assert (letter["dataset"], letter["attempts"], letter["reason"]) == ("thing-1", 10, "no")
    redrive = f"/subscriptions/mine/dead-letters/{letter['id']}/redrive"
    assert (await api.admin.post(redrive)).json()["dead_at"] is None
    page = await next_of(api, limit=1)
    assert names(page["events"]) == [("thing-1", "entered")]
    for _ in range(9):
        body = {"event_id": page["events"][0]["event_id"], "reason": "no", "retry_in": 0}
        await api.admin.post("/subscriptions/mine/nack", json=body)
        await ack(api, page)
        page = await next_of(api, limit=1)
    await api.admin.post("/subscriptions/mine/nack", json=body)
    await ack(api, page)
    await retitle(api, 1, "later")
    await head_is(api, conn, 5)
    refusal = await api.admin.post(redrive)
    assert (refusal.status_code, "which says more" in refusal.json()["detail"]) == (409, True)
    assert (await api.admin.post("/subscriptions/mine/seek", json={"cursor": page["cursor"]})).json()[
        "dead_letters"
    ] == 1
    assert (await api.admin.post("/subscriptions/mine/seek", json={"cursor": "start"})).json()["dead_letters"] == 0
    assert names((await next_of(api, limit=1))["events"]) == [("thing-1", "entered")], "it comes again"


async def test_a_member_of_a_filter_that_is_null_is_left_out(api: Api) -> None:
    kept = {"collections": ["plain"], "cql2": "title = 'a'"}
    assert (await subscribe(api, filter={**kept, "bbox": None, "types": None}))["filter"] == kept
    assert (await api.admin.put("/subscriptions/mine", json={"filter": kept})).status_code == 200


async def test_a_subscription_is_its_owners(api: Api) -> None:
    await subscribe(api)
    stranger = {"Authorization": f"Bearer {api.tokens['publisher:NCAR']}"}
    for method, path, body in (
        ("GET", "", None), ("DELETE", "", None), ("GET", "/next", None), ("POST", "/ack", {"cursor": "1.1"}),
        ("POST", "/nack", {"event_id": "x"}), ("POST", "/seek", {"cursor": "start"}), ("GET", "/dead-letters", None),
    ):  # fmt: skip
        answer = await api.anyone.request(method, f"/subscriptions/mine{path}", json=body, headers=stranger)
        assert (method, path, answer.status_code) == (method, path, 404)
    assert (await api.anyone.put("/subscriptions/mine", json={}, headers=stranger)).status_code == 409
    webhook = {"delivery": "webhook", "url": "https://hooks.example:8443/s3cret?token=s3cret"}
    theirs = await api.anyone.put("/subscriptions/theirs", json=webhook, headers=stranger)
    assert theirs.json()["url"] == webhook["url"]
    seen = [await api.admin.get(path) for path in ("/subscriptions/theirs", "/subscriptions?all=true")]
    assert ["s3cret" in each.text for each in seen] == [False, False]
    assert seen[0].json()["url"] == "https://hooks.example:8443/…"
    assert theirs.status_code == 201
    own = (await api.anyone.get("/subscriptions", headers=stranger)).json()
    assert [each["name"] for each in own["subscriptions"]] == ["theirs"]
    assert (await api.anyone.get("/subscriptions?all=true", headers=stranger)).status_code == 403
    every = (await api.admin.get("/subscriptions?all=true&limit=1")).json()
    assert [each["name"] for each in every["subscriptions"]] == ["mine"]
    assert any(link["rel"] == "next" for link in every["links"])
    assert (await api.admin.delete("/subscriptions/theirs")).status_code == 204  # by the right to manage messaging
    assert (await api.admin.get("/subscriptions/theirs/next")).status_code == 404


async def test_putting_it_again_changes_what_is_wanted_and_keeps_the_place(api: Api, conn: Connection) -> None:
    await head_is(api, conn, 4)
    await subscribe(api, filter={"types": ["dataset.published"]})
    await ack(api, await next_of(api, limit=2))
    body = {"filter": {"cql2": "title = 'a'"}, "from": "start"}
    changed = await api.admin.put("/subscriptions/mine", json=body)
    assert (changed.status_code, changed.json()["cursor"]) == (200, "1.3")
    assert (await api.admin.put("/subscriptions/mine", json=body)).json() == changed.json()
    assert names((await next_of(api))["events"]) == [("thing-3", "entered")]
    sought = await api.admin.post("/subscriptions/mine/seek", json={"cursor": "start"})
    assert sought.json()["cursor"] == "0.0"
    moment = (await conn.fetchval("SELECT at FROM fedstac.outbox ORDER BY id LIMIT 1 OFFSET 2")).isoformat()
    sought = await api.admin.post("/subscriptions/mine/seek", json={"time": moment})
    assert sought.json()["cursor"] == "1.2"
    rows = await conn.fetch("SELECT action FROM fedstac.audit WHERE dataset = 'subscription/mine' ORDER BY id")
    assert [row["action"] for row in rows] == [
        "add-subscription", "change-subscription", "seek-subscription", "seek-subscription",
    ]  # fmt: skip


REFUSED: tuple[Json, ...] = (
    {"delivery": "post"}, {"format": "xml"}, {"filter": {"where": 1}}, {"batch": 0}, {"batch": "x"},
    {"delivery": "webhook"}, {"url": "https://hooks.example/x"}, {"from": "yesterday"}, {"key": "{nothing}"},
    {"delivery": "webhook", "url": "http://127.0.0.1/x"}, {"delivery": "webhook", "url": "mailto:a@b.example"},
    {"filter": "x"}, {"format": 1}, {"unknown": 1},
)  # fmt: skip


async def test_a_subscription_that_becomes_a_webhook_comes_with_its_secret(api: Api, conn: Connection) -> None:
    await subscribe(api)
    webhook = {"delivery": "webhook", "url": "https://hooks.example/x"}
    assert (await api.admin.put("/subscriptions/mine", json=webhook)).json()["secret"].startswith("whsec_")
    again = await api.admin.put("/subscriptions/mine", json={**webhook, "url": "https://hooks.example/y"})
    assert (again.status_code, "secret" in again.json()) == (200, False)
    details = await conn.fetch("SELECT detail FROM fedstac.audit WHERE dataset = 'subscription/mine' ORDER BY id")
    assert [orjson.loads(row["detail"]).get("host") for row in details] == [None, "hooks.example", "hooks.example"]


async def test_a_service_puts_its_subscription_again_though_the_log_lost_where_it_began(
    api: Api, administrator: Connection
) -> None:
    await head_is(api, administrator, 4)
    body = {"from": "1.1"}
    assert (await api.admin.put("/subscriptions/mine", json=body)).status_code == 201
    await administrator.execute("UPDATE fedstac.subscription SET pos = 3")
    await administrator.execute("UPDATE fedstac.forgotten SET pos = 2")
    assert (await api.admin.put("/subscriptions/mine", json=body)).status_code == 200
    assert (await api.admin.put("/subscriptions/other", json=body)).status_code == 410


async def test_what_is_no_subscription_is_refused(api: Api) -> None:
    for body in REFUSED:
        answer = await api.admin.put("/subscriptions/mine", json=body)
        assert answer.status_code == 400, (body, answer.text)
    assert (await api.admin.put("/subscriptions/-", json={})).status_code == 400


async def test_what_the_log_no_longer_has_is_said_and_head_takes_nothing(
    api: Api, conn: Connection, administrator: Connection
) -> None:
    await head_is(api, conn, 4)
    await subscribe(api)
    assert (await api.admin.head("/subscriptions/mine/next")).status_code == 200
    assert (await api.admin.get("/subscriptions/mine")).json()["leased_until"] is None
    await administrator.execute("UPDATE fedstac.forgotten SET pos = 2")
    gone = await api.admin.get("/subscriptions/mine/next")
    assert (gone.status_code, "read everything with a search" in gone.json()["detail"]) == (410, True)
    assert (await api.anyone.get("/changes?since=1.1")).status_code == 410
    assert (await api.admin.post("/subscriptions/mine/seek", json={"cursor": "1.1"})).status_code == 410
    assert (await api.admin.post("/subscriptions/mine/seek", json={"cursor": "head"})).json()["cursor"] == "1.4"


async def test_what_waits_is_acknowledged_after_the_log_has_forked(
    api: Api, conn: Connection, administrator: Connection
) -> None:
    await head_is(api, conn, 4)
    await administrator.execute("INSERT INTO fedstac.epoch (n, forked_at_pos) VALUES (2, 4)")
    await administrator.execute("UPDATE fedstac.feed_state SET epoch = 2")
    await subscribe(api, **{"from": "head"})
    await retitle(api, 1, "c")
    page = await next_of(api)
    body = {"event_id": page["events"][0]["event_id"], "reason": "no", "retry_in": 0}
    assert (await api.admin.post("/subscriptions/mine/nack", json=body)).status_code == 200
    await conn.execute("UPDATE fedstac.subscription SET leased_until = clock_timestamp()")
    again = await next_of(api)
    assert (again["cursor"], names(again["events"])) == ("2.4", [("thing-1", "changed")])
    assert (await ack(api, again))["cursor"] == "2.4"
    repeat = await next_of(api)  # its batch was never acknowledged
    assert [each["event_id"] for each in repeat["events"]] == [body["event_id"]]
    assert (await ack(api, repeat))["cursor"] == "2.5"
    lost = await api.admin.post("/subscriptions/mine/ack", json={"cursor": "1.5"})
    assert lost.status_code == 409  # of the branch that was lost


async def test_changes_from_cursor_to_cursor(api: Api, conn: Connection) -> None:
    await retitle(api, 1, "b")
    await head_is(api, conn, 5)
    parameters = {"since": "start", "filter": "title = 'a'", "collections": "plain", "limit": "2"}
    answer = (await api.anyone.get("/changes", params=parameters)).json()
    kinds = [(each["value"]["data"].get("id"), each["kind"]) for each in answer["changes"]]
    assert kinds == [(None, "changed"), ("thing-1", "entered")]
    assert [link["rel"] for link in answer["links"]] == ["self", "next"]
    page = (await api.anyone.get("/changes", params={**parameters, "since": answer["cursor"]})).json()
    assert names(page["changes"]) == [("thing-3", "entered"), ("thing-1", "left")]
    last = (await api.anyone.get("/changes", params={**parameters, "since": page["cursor"]})).json()
    assert (last["changes"], [link["rel"] for link in last["links"]]) == ([], ["self"])
    crud = (await api.anyone.get("/changes", params={"since": "start", "format": "crud"})).json()
    assert len(crud["changes"]) == 4
    for wrong in ({}, {"since": "9.9"}, {"since": "start", "bbox": "1,2"}, {"since": "start", "filter": "a ="}):
        assert (await api.anyone.get("/changes", params=wrong)).status_code in (400, 410)


async def test_a_place_that_a_standby_has_not_come_to_yet_is_not_lost(
    api: Api, conn: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    await head_is(api, conn, 4)
    assert (await api.anyone.get("/changes?since=1.9")).status_code == 410
    assert not await feed.lags_behind(conn, Cursor(1, 9)), "it is no standby"

    async def lags_behind(conn: Connection, cursor: Cursor) -> bool:
        return cursor == Cursor(1, 9)

    monkeypatch.setattr(feed, "lags_behind", lags_behind)
    answer = await api.anyone.get("/changes?since=1.9")
    assert (answer.status_code, answer.headers["retry-after"]) == (503, "2")
    assert (await api.anyone.get("/changes?since=2.9")).status_code == 410


async def test_readers_without_a_token_who_wait_are_bounded(api: Api, conn: Connection) -> None:
    await head_is(api, conn, 4)
    parameters: Json = {"since": "1.4", "wait": 60}
    waits = {asyncio.create_task(api.anyone.get("/changes", params=parameters)) for _ in range(2)}
    done, waiting = await asyncio.wait(waits, timeout=PATIENCE, return_when=asyncio.FIRST_COMPLETED)
    [refused] = [each.result() for each in done]
    assert (refused.status_code, refused.headers["retry-after"]) == (429, "5")
    assert (await api.anyone.get("/changes", params={"since": "1.4"})).status_code == 200
    with_token = asyncio.create_task(api.admin.get("/changes", params=parameters))
    await retitle(api, 1, "c")
    for each in (*waiting, with_token):
        answer = await asyncio.wait_for(each, PATIENCE)
        assert (answer.status_code, len(answer.json()["changes"])) == (200, 1)


async def test_changes_show_what_the_reader_may_see(api: Api, conn: Connection) -> None:
    marked = await api.admin.delete("/collections/plain/items/thing-1")
    assert marked.status_code in (200, 204), marked.text
    await head_is(api, conn, 5)
    strangers = (await api.anyone.get("/changes", params={"since": "1.4"})).json()
    assert names(strangers["changes"]) == [("thing-1", "left")]
    managers = (await api.admin.get("/changes", params={"since": "1.4"})).json()
    assert names(managers["changes"]) == [("thing-1", "changed")]
    assert '"actor"' not in str((await api.anyone.get("/changes", params={"since": "start"})).json())
