"""The Python client against a running node, and against servers that fail."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any

import httpx
import orjson
import pytest

from fedstac import settings
from fedstac.client import AsyncClient, Client, transport
from fedstac.client.documents import DocumentTrouble, ReadyDocument
from fedstac.client.publishing import Publishing, sort_out
from fedstac.client.transport import EnvironmentBroken, Failed, Invalid, NotAuthorised, NotFound, Unreachable
from fedstac.client.values import AcceptedBatch, Request
from fedstac.demo import sample
from fedstac.domain.errors import Finding, Severity
from tests.support.answering import answering
from tests.support.clients import broken, with_client
from tests.support.nodes import Api, StartApi
from tests.support.waiting import PATIENCE


async def test_a_batch_is_submitted_followed_and_its_results_are_read(api: Api) -> None:
    items = list(sample.items(5))

    def work(client: Client) -> None:
        submitted = client.submit("CMIP6", items)
        assert (submitted.total, submitted.url) == (5, f"{client.url}/requests/{submitted.id}")
        *_, last = client.wait(submitted.id, timeout=PATIENCE)
        assert (last.status, last.counts["done"]) == ("done", 5)
        results = list(client.results(submitted.id))
        assert [result.id for result in results] == [item["id"] for item in items]
        assert not list(client.results(submitted.id, status="rejected"))
        assert client.item("CMIP6", str(items[0]["id"]))["id"] == items[0]["id"]

    await with_client(api, "admin", work)


async def test_publishing_again_changes_nothing(api: Api) -> None:
    items = list(sample.items(30))

    def work(client: Client) -> None:
        for expected in (0, 30):
            run = Publishing(client, batch=7, patience=30)
            steps = list(client_entries(run, items))
            assert sum(isinstance(step, AcceptedBatch) for step in steps) == 5
            assert (run.counts["done"], run.outcomes["identical"]) == (30, expected)
            assert not run.open

    await with_client(api, "admin", work)


def client_entries(run: Publishing, items: list[dict[str, Any]]) -> Iterator[object]:
    return run.publish(
        ReadyDocument(f"item {n}", item["id"], "CMIP6", orjson.dumps(item)) for n, item in enumerate(items)
    )


async def test_one_invalid_item_is_named_with_its_findings_and_the_rest_is_published(api: Api) -> None:
    items = list(sample.items(4))
    items[2] = broken(items[2])
    steps = await with_client(api, "admin", lambda client: list(client.publish(items)))
    [trouble] = [step for step in steps if isinstance(step, DocumentTrouble)]
    assert (trouble.place, trouble.id, trouble.type) == ("item 3", items[2]["id"], "stac-validation")
    assert any(finding.pointer.startswith("/geometry") for finding in trouble.findings)
    *_, last = [step for step in steps if isinstance(step, Request)]
    assert (last.status, last.counts["done"]) == ("partly", 3)


async def test_a_batch_that_is_refused_as_a_whole_is_sorted_out(api: Api) -> None:
    items = [broken(item) for item in sample.items(3)]

    def work(client: Client) -> None:
        with pytest.raises(Invalid) as refused:
            client.submit("CMIP6", items)
        assert (refused.value.status, refused.value.type) == (400, "stac-validation")
        assert {finding.pointer.split("/")[1] for finding in refused.value.findings} == {"0", "1", "2"}
        troubles = list(client.publish(items, batch=2))
        assert [trouble.place for trouble in troubles if isinstance(trouble, DocumentTrouble)] == [
            "item 1",
            "item 2",
            "item 3",
        ]

    await with_client(api, "admin", work)


async def test_an_item_without_a_collection_is_not_sent(api: Api) -> None:
    item = {name: value for name, value in next(sample.items(1)).items() if name != "collection"}
    [trouble] = await with_client(api, "admin", lambda client: list(client.publish([item])))
    assert isinstance(trouble, DocumentTrouble)
    assert trouble.findings[0].pointer == "/collection"


async def test_refusals_have_types(api: Api) -> None:
    [item] = sample.items(1)
    with pytest.raises(NotFound, match="no collection 'nowhere'"):
        await with_client(api, "admin", lambda client: client.submit("nowhere", [item]))
    with pytest.raises(NotAuthorised) as unknown:
        await with_client(api, "wrong", lambda client: client.submit("CMIP6", [item]))
    assert unknown.value.status == 401
    with pytest.raises(NotAuthorised) as forbidden:
        await with_client(api, "node:east", lambda client: client.submit("CMIP6", [item]))
    assert (forbidden.value.status, forbidden.value.type) == (403, "missing-permission")
    with pytest.raises(NotFound):
        await with_client(api, "admin", lambda client: client.request("7c1f"))
    with pytest.raises(NotFound):
        await with_client(api, "admin", lambda client: client.item("CMIP6", "nothing"))
    with pytest.raises(Invalid, match="CQL2"):
        await with_client(api, "admin", lambda client: list(client.search(filter="and and")))


async def test_items_that_only_others_may_publish_do_not_stop_the_rest(api: Api) -> None:
    items = list(sample.items(1000))
    own = [item for item in items if item["properties"]["cmip6:institution_id"] == "NCAR"]
    others = [item for item in items if item["properties"]["cmip6:institution_id"] != "NCAR"]
    own = own[:5]
    assert own
    steps = await with_client(
        api, "publisher:NCAR", lambda client: list(client.publish([*own, *others[:3]], batch=len(own)))
    )
    assert [step.type for step in steps if isinstance(step, DocumentTrouble)] == ["missing-permission"] * 3
    assert sum(step.counts["done"] for step in steps if isinstance(step, Request) and step.is_final) == len(own)


async def test_a_search_pages_through(api: Api) -> None:
    items = list(sample.items(25))

    def work(client: Client) -> None:
        list(client.publish(items))
        found = client.search(collections=["CMIP6"], sortby=["id"], page=7)
        assert [item["id"] for item in found] == sorted(str(item["id"]) for item in items)
        assert (found.matched, found.is_estimated) == (25, False)
        assert len(list(client.search(limit=9, page=4))) == 9
        assert not list(client.search(limit=0))
        wanted = str(items[3]["id"])
        assert [item["id"] for item in client.search(ids=[wanted], limit=5)] == [wanted]
        model = items[0]["properties"]["cmip6:source_id"]
        same = list(client.search(filter=f"\"cmip6:source_id\" = '{model}'"))
        assert same
        assert {item["properties"]["cmip6:source_id"] for item in same} == {model}

    await with_client(api, "admin", work)


async def test_the_feed_is_read_to_its_end_and_on(api: Api) -> None:
    await with_client(api, "admin", lambda client: list(client.publish(sample.items(12))))

    def work(client: Client) -> None:
        first = next(page for page in client.events(follow=True) if page.events)  # the collection may come alone
        events = [*first.events, *(event for page in client.events(first.cursor) for event in page.events)]
        while len(events) < 13:
            last = events[-1]
            page = next(client.events(f"{last['epoch']}.{last['pos']}", follow=True))
            events += page.events
        assert [event["pos"] for event in events] == list(range(1, len(events) + 1))
        assert {event["type"] for event in events} >= {"org.fedstac.dataset.published.v1"}
        head = client.head()
        assert (head.origin, head.cursor) == ("west", f"1.{len(events)}")
        only = client.events(collection="CMIP6", type="org.fedstac.collection.created.v1")
        assert [event["subject"] for page in only for event in page.events] == ["CMIP6"]
        with pytest.raises(NotFound) as gone:
            list(client.events("1.99999"))
        assert gone.value.status == 410

    await with_client(api, "node:east", work)


async def test_waiting_ends_when_nothing_moves(start_api: StartApi, dsn: str) -> None:
    api = await start_api(dsn=dsn, background=False)
    await api.admin.post("/collections", json=sample.collection())

    def work(client: Client) -> None:
        submitted = client.submit("CMIP6", list(sample.items(2)))
        with pytest.raises(transport.Stalled, match=submitted.id):
            list(client.wait(submitted.id, timeout=0.1))

    await with_client(api, "admin", work)


# --- servers that fail ---


@pytest.fixture
def pauses(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """How long it would have slept."""
    slept: list[float] = []
    monkeypatch.setattr("fedstac.client.transport.time.sleep", slept.append)
    return slept


def client_of(url: str, retries: int = 3) -> Client:
    return Client(url, "secret", retries=retries, http=httpx.Client(trust_env=False))


@pytest.mark.parametrize("status", [429, 502, 503, 504])
def test_what_fails_for_the_moment_is_tried_again_not_before_retry_after(status: int, pauses: list[float]) -> None:
    with (
        answering([(status, {"Retry-After": "7"}, b""), (200, {}, b'{"id": "x"}')]) as (url, paths),
        client_of(url) as client,
    ):
        assert client.item("CMIP6", "x") == {"id": "x"}
    assert len(paths) == 2
    assert len(pauses) == 1
    assert pauses[0] >= 7


def test_tries_end(pauses: list[float]) -> None:
    with (
        answering([(503, {}, b"busy")]) as (url, paths),
        client_of(url) as client,
        pytest.raises(Failed, match="503"),
    ):
        client.item("CMIP6", "x")
    assert len(paths) == 4
    assert [pause <= most for pause, most in zip(pauses, (0.5, 1, 2), strict=True)] == [True] * 3


@pytest.mark.parametrize("token", ["se\ncret", "se\x00cret"])
def test_what_no_header_may_hold_is_not_sent_nor_told(token: str, pauses: list[float]) -> None:
    with (
        answering([]) as (url, paths),
        Client(url, token, http=httpx.Client(trust_env=False)) as client,
        pytest.raises(Invalid, match="the token holds a line break") as refusal,
    ):
        client.item("CMIP6", "x")
    assert "cret" not in str(refusal.value)
    assert (len(paths), pauses) == (0, [])


def test_a_token_from_a_file_may_end_with_a_line_break() -> None:
    with answering([(200, {}, b"{}")]) as (url, paths), Client(url, "secret\n") as client:
        assert client.item("CMIP6", "x") == {}
    assert len(paths) == 1


@pytest.mark.parametrize(
    ("name", "value", "phrase"),
    [
        ("ALL_PROXY", "socks5://127.0.0.1:9", "pip install 'httpx[socks]'"),
        ("HTTPS_PROXY", "gopher://127.0.0.1:9", "gopher"),
        ("SSL_CERT_FILE", "/nowhere/ca.pem", "No such file"),
    ],
)
def test_what_the_environment_says_of_the_network_and_cannot_be_is_named(
    name: str, value: str, phrase: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for each in settings.OF_NETWORK:
        monkeypatch.delenv(each, raising=False)
    monkeypatch.setenv(name, value)
    monkeypatch.setattr("httpx._transports.default.create_ssl_context", httpx.create_ssl_context)  # not made once
    for kind in (Client, AsyncClient):
        with pytest.raises(EnvironmentBroken, match="no request can be sent") as refusal:
            kind("https://west.example")
        assert name in str(refusal.value)
        assert phrase in str(refusal.value)


def test_a_server_that_is_away_is_named(pauses: list[float]) -> None:
    with answering([]) as (url, _):
        pass
    with client_of(url, retries=2) as client, pytest.raises(Unreachable, match=f"{url} does not answer .tried 3 times"):
        client.head()
    assert len(pauses) == 2


@pytest.mark.parametrize(
    ("status", "headers", "body", "kind", "message"),
    [
        (500, {}, b"<html>", Failed, "answered 500"),
        (301, {"Location": "https://elsewhere.example"}, b"", Failed, "use that address"),
        (404, {}, b"{}", NotFound, "answered 404"),
        (418, {}, b'{"type": "https://x.example/problems/teapot", "detail": "no coffee"}', Invalid, "no coffee"),
        (200, {}, b"<html>", Failed, "did not answer with JSON"),
    ],
)
def test_what_is_final_is_not_tried_again(
    status: int, headers: dict[str, str], body: bytes, kind: type[Exception], message: str, pauses: list[float]
) -> None:
    with (
        answering([(status, headers, body)]) as (url, paths),
        client_of(url) as client,
        pytest.raises(kind, match=message),
    ):
        client.item("CMIP6", "x")
    assert len(paths) == 1
    assert not pauses


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        ("3", 3),
        ("", 0),
        ("soon", 0),
        ("99999", 300),
        ("Sun, 01 Mar 2026 00:00:09 GMT", 9),
        ("-3", 0),
        ("Mon, 01 Jan 99999999999999 00:00:00 GMT", 0),
        ("9" * 5000, 300),
    ],
)
def test_retry_after_is_seconds_or_a_date(value: str, seconds: float) -> None:
    assert transport.retry_after(value, datetime(2026, 3, 1, tzinfo=UTC)) == seconds


def test_an_address_needs_a_scheme() -> None:
    with pytest.raises(ValueError, match="http"):
        Client("stac.example.org")


# --- a refused batch ---

ENTRIES = [ReadyDocument(f"file:{n}", f"id{n}", "CMIP6", b"{}") for n in range(4)]


def refused(*pointers: str, severity: Severity = Severity.ERROR) -> Invalid:
    findings = tuple(Finding("rule", pointer, "wrong", severity) for pointer in pointers)
    return Invalid(400, "stac-validation", "none is valid", findings)


@pytest.mark.parametrize("prefix", ["", "/features"])
def test_findings_are_mapped_to_items_and_the_rest_is_sent_again(prefix: str) -> None:
    troubles, left = sort_out(ENTRIES, refused(f"{prefix}/1/properties/a", f"{prefix}/1", f"{prefix}/3/id"))
    assert [trouble.place for trouble in troubles] == ["file:1", "file:3"]
    assert [finding.pointer for finding in troubles[0].findings] == ["/properties/a", ""]
    assert left == [[ENTRIES[0], ENTRIES[2]]]


@pytest.mark.parametrize(
    "refusal", [refused(), refused("/geometry", "/17/id"), refused("/1/id", severity=Severity.WARNING)]
)
def test_a_refusal_that_names_no_item_is_found_by_halves(refusal: Invalid) -> None:
    assert sort_out(ENTRIES, refusal) == ([], [ENTRIES[:2], ENTRIES[2:]])
    [trouble], left = sort_out(ENTRIES[:1], refusal)
    assert (trouble.id, left) == ("id0", [])
