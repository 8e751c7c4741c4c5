"""The edge of a node as proxies, browsers and hostile clients meet it."""

from __future__ import annotations

import asyncio
import gzip
import re
from collections.abc import MutableMapping
from typing import Any
from urllib.parse import urlsplit

import brotli
import httpx
import pytest
from starlette.datastructures import Headers
from starlette.responses import Response
from starlette.routing import Route
from structlog.testing import capture_logs

from fedstac.api.app import TABLE
from fedstac.api.http import compression, endpoint, prefixes
from fedstac.api.http.guard import Guard
from fedstac.api.http.media_types import Accept
from fedstac.demo import sample
from fedstac.settings import Settings
from tests.support.nodes import Api, StartApi
from tests.support.waiting import PATIENCE, until

PAGE = {"Origin": "https://browser.example"}
EXPOSED = {"Allow", "Content-Location", "ETag", "Link", "Location", "Preference-Applied", "Retry-After", "X-Request-Id"}
MB = 2**20


# --- the public path ---

PROXIES = {
    "a proxy that strips a path that is no route": ("/stac", {}, ""),
    "a proxy that keeps it": ("/stac", {}, "/stac"),
    "a proxy that strips a path that begins a route": ("/collections", {}, ""),
    "a proxy that keeps it, as the settings say": ("/collections", {"proxy_path": "kept"}, "/collections"),
    "a proxy that strips a deep path": ("/collections/CMIP6", {"proxy_path": "stripped"}, ""),
    "a proxy that keeps a deep path": ("/api/v1", {}, "/api/v1"),
}


@pytest.mark.parametrize("kind", PROXIES)
async def test_every_link_of_the_landing_page_leads_somewhere(kind: str, start_api: StartApi, dsn: str) -> None:
    prefix, values, passed = PROXIES[kind]
    api = await start_api(dsn=dsn, public_url=f"https://catalogue.example{prefix}", **values)

    async def visit(href: str) -> httpx.Response:
        """Return the address as the proxy passes it on."""
        public = urlsplit(href)
        assert public.path.startswith(f"{prefix}/")
        return await api.admin.get(passed + public.path.removeprefix(prefix))

    assert (await api.admin.post(f"{passed}/collections", json=sample.collection())).status_code == 201
    landing = (await visit(f"https://catalogue.example{prefix}/")).json()
    hrefs = {link["href"] for link in landing["links"]} | {f"https://catalogue.example{prefix}/collections/CMIP6/items"}
    assert {f"https://catalogue.example{prefix}{path}" for path in ("/api", "/collections", "/search")} <= hrefs
    for href in hrefs:
        answer = await visit(href)
        assert answer.status_code == 200, (href, answer.text)
    assert "paths" in (await visit(f"https://catalogue.example{prefix}/api")).json()


@pytest.mark.parametrize(
    ("path", "clashes"),
    [("/api", True), ("/collections", True), ("/search", True), ("/events", True), ("/collections/x", True),
     ("/groups/g/members/m/n", True), ("/stac", False), ("/api/v1", False), ("/search/v1", False), ("", False)],
)  # fmt: skip
def test_a_public_path_that_begins_a_route_is_taken_as_stripped(path: str, clashes: bool) -> None:
    routes = [Route(route.path, lambda _: None) for route in TABLE]

    def is_stripped(**values: Any) -> bool:
        settings = Settings(_env_file=None, **values)
        return prefixes.is_stripped(f"https://catalogue.example{path}", settings, routes)

    assert is_stripped() is clashes
    assert is_stripped(proxy_path="stripped") is bool(path)
    assert not is_stripped(proxy_path="kept")


# --- CORS ---


def is_readable(answer: httpx.Response) -> bool:
    """Return whether a page of any origin may read the answer and its headers, also from a cache."""
    exposed = {name.strip() for name in answer.headers["access-control-expose-headers"].split(",")}
    return answer.headers["access-control-allow-origin"] == "*" and exposed >= EXPOSED


async def test_a_page_may_read_what_is_refused_before_any_route(api: Api) -> None:
    refusals = {
        400: await api.anyone.get("/search?ids=" + "a" * 17_000, headers=PAGE),
        404: await api.anyone.get("/nothing", headers=PAGE),
        405: await api.anyone.delete("/search", headers=PAGE),
        413: await api.anyone.post("/search", content=b" " * (4 * MB + 1), headers=PAGE),
        415: await api.anyone.post("/search", content=b"x", headers={**PAGE, "Content-Encoding": "br"}),
        431: await api.anyone.get("/search", headers={**PAGE, **{f"X-{n}": "x" for n in range(200)}}),
        401: await api.anyone.get("/me", headers=PAGE),
    }
    assert {status: answer.status_code for status, answer in refusals.items()} == {each: each for each in refusals}
    assert all(map(is_readable, [*refusals.values(), await api.anyone.get("/search?ids=%00", headers=PAGE)]))


async def test_a_copy_that_a_cache_took_for_somebody_else_is_readable_too(api: Api) -> None:
    [item] = sample.items(1)
    assert (await api.admin.post("/collections/CMIP6/items", json=item)).status_code == 201
    path = f"/collections/CMIP6/items/{item['id']}"
    answers = [
        await api.anyone.get(path), await api.anyone.get("/search"), await api.anyone.post("/search", json={}),
        await api.anyone.get("/collections"), await api.anyone.get("/"), await api.anyone.options(path),
    ]  # fmt: skip
    assert all(map(is_readable, answers))


async def test_a_browser_that_asks_before_it_sends_may_send_anything(api: Api) -> None:
    headers = {"Access-Control-Request-Method": "PATCH", "Access-Control-Request-Headers": "authorization,if-match"}
    answer = await api.anyone.options("/collections/CMIP6/items/x", headers=PAGE | headers)
    assert answer.status_code == 204
    assert answer.headers["access-control-allow-origin"] == "*"
    assert answer.headers["access-control-allow-headers"] == "authorization,if-match"
    assert "PATCH" in answer.headers["access-control-allow-methods"].split(", ")
    assert "allow" not in answer.headers


# --- refused uploads ---


async def test_every_one_of_many_large_uploads_with_a_bad_token_gets_its_401(api: Api) -> None:
    """Each client sends all of its body before it reads, as many do."""
    where = urlsplit(api.url)

    async def upload() -> bytes:
        reader, writer = await asyncio.open_connection(where.hostname, where.port)
        head = "POST /collections/CMIP6/items HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer fst_no\r\n"
        writer.write(f"{head}Content-Length: {20 * MB}\r\n\r\n".encode())
        for _ in range(20):
            writer.write(b" " * MB)
            await writer.drain()
        answer = await reader.read()
        writer.close()
        return answer

    answers = await asyncio.gather(*(upload() for _ in range(10)))
    assert [answer.split(b"\r\n")[0] for answer in answers] == [b"HTTP/1.1 401 Unauthorized"] * 10


# --- the access log ---


Lines = list[MutableMapping[str, Any]]


async def lines_of(logs: Lines, *request_ids: str) -> Lines:
    """Return the lines of the access log of these requests, once all are written."""

    async def look() -> Lines:
        found = [log for log in logs if log["event"] == "request" and log["request_id"] in request_ids]
        return found if len(found) == len(request_ids) else []

    return await until(look)


async def test_the_head_and_the_body_of_an_answer_come_in_one_piece(api: Api) -> None:
    """A client wakes up once, however short its answer is; and the answers of one connection stay in their order."""
    where = urlsplit(str(api.anyone.base_url))
    reader, writer = await asyncio.open_connection(where.hostname, where.port)
    try:
        for path in ("/_mgmt/ping", "/conformance", "/nowhere") * 5:
            writer.write(f"GET {path} HTTP/1.1\r\nHost: {where.netloc}\r\n\r\n".encode())
            head, _, body = (await reader.read(2**16)).partition(b"\r\n\r\n")
            length = re.search(rb"content-length: (\d+)", head)
            assert length is not None
            assert len(body) == int(length[1])
        writer.write(f"HEAD /conformance HTTP/1.1\r\nHost: {where.netloc}\r\n\r\n".encode())
        assert (await reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 200")
    finally:
        writer.close()


async def test_every_request_is_a_line_of_the_access_log(api: Api) -> None:
    with capture_logs() as logs:
        headers = {"X-Forwarded-For": "203.0.113.7", "X-Request-Id": "one"}
        found = await api.anyone.get("/search?limit=1", headers=headers)
        missing = await api.anyone.get("/collections/none", headers={"X-Request-Id": "two"})
        await api.anyone.get("/search?ids=%00", headers={"X-Request-Id": "three"})
        one, two, three = await lines_of(logs, "one", "two", "three")
    assert one.items() >= {
        "method": "GET", "path": "/search", "query": "limit=1", "status": 200, "bytes": len(found.content),
        "client": "127.0.0.1", "forwarded_for": "203.0.113.7", "log_level": "info",
    }.items()  # fmt: skip
    assert one["milliseconds"] >= 0
    assert two.items() >= {"path": "/collections/none", "status": 404, "bytes": len(missing.content)}.items()
    assert "query" not in two
    assert three["status"] == 400


async def test_words_in_a_query_are_not_logged(api: Api) -> None:
    query = "limit=1&q=secret&%72eason=secret&code=secret&state=secret&filter=title%3D'secret'&ids=a=b"
    with capture_logs() as logs:
        await api.anyone.get(f"/search?{query}", headers={"X-Request-Id": "one"})
        [line] = await lines_of(logs, "one")
    assert "secret" not in line["query"]
    assert line["query"] == "limit=1&q&%72eason&code&state&filter&ids=a=b"


async def test_what_is_no_request_is_a_line_too(api: Api) -> None:
    with capture_logs() as logs:
        answer = await send(api.url, b"nonsense\r\n\r\n")
        [request_id] = re.findall(rb"x-request-id: (\w+)", answer)
        [line] = await lines_of(logs, request_id.decode())
    assert (line["status"], line["problem"], line["client"]) == (400, "bad-request", "127.0.0.1")


async def test_the_access_log_can_be_switched_off(start_api: StartApi, dsn: str) -> None:
    other = await start_api(dsn=dsn)
    api = await start_api(dsn=dsn, access_log=False)
    with capture_logs() as logs:
        assert (await api.anyone.get("/", headers={"X-Request-Id": "none"})).status_code == 200
        assert (await other.anyone.get("/", headers={"X-Request-Id": "one"})).status_code == 200
        assert len(await lines_of(logs, "one")) == 1
    assert not [log for log in logs if log.get("request_id") == "none"]


async def test_a_line_has_no_more_of_what_a_client_made_up_than_helps(api: Api) -> None:
    with capture_logs() as logs:
        headers = {"X-Forwarded-For": "c" * 5000 + ", 203.0.113.7", "X-Request-Id": "one"}
        await api.anyone.get("/" + "a" * 5000 + "?" + "b" * 5000, headers=headers)
        [line] = await lines_of(logs, "one")
    assert {len(line[name]) for name in ("path", "query", "forwarded_for")} == {500}
    assert line["forwarded_for"].endswith(", 203.0.113.7")  # what the proxy says, not what the client made up


async def send(url: str, message: bytes) -> bytes:
    """Return what a server answers before it closes."""
    where = urlsplit(url)
    reader, writer = await asyncio.open_connection(where.hostname, where.port)
    writer.write(message)
    answer = await reader.read()
    writer.close()
    return answer


# --- compressed answers ---


@pytest.mark.parametrize(
    ("accepted", "coding"),
    [
        ("gzip", "gzip"), ("GZIP", "gzip"), ("x-gzip", "gzip"), ("br", "br"), ("gzip, br", "br"), ("*", "br"),
        ("gzip, deflate, br, zstd", "br"), ("gzip;q=1.0, br;q=0.5", "gzip"), ("br;q=0, gzip", "gzip"),
        ("br;q=0, *", "gzip"), ("*;q=0, gzip", "gzip"), ("gzip ; q=0.001", "gzip"), ("identity;q=0.5, gzip", "gzip"),
        ("", None), ("identity", None), ("deflate, zstd", None), ("gzip;q=0", None), ("gzip;q=0.000", None),
        ("*;q=0", None), ("identity, gzip;q=0.5", None), ("gzip;q=2", None), ("gzip;q=0.1234", None),
        ("gzip;level=1", None), ("gzip br", None), (",, gzip ,", "gzip"),
    ],
)  # fmt: skip
def test_the_coding_is_the_one_that_the_client_likes_best(accepted: str, coding: str | None) -> None:
    assert compression.best(accepted) == coding


async def raw(api: Api, path: str, **headers: str) -> tuple[httpx.Response, bytes]:
    """Return an answer and its body as it came over the wire."""
    async with api.anyone.stream("GET", path, headers={"Accept-Encoding": "", **headers}) as answer:
        return answer, b"".join([piece async for piece in answer.aiter_raw()])


DECODERS = {"br": brotli.decompress, "gzip": gzip.decompress}


@pytest.mark.parametrize("coding", DECODERS)
async def test_who_asks_gets_the_same_answer_compressed(coding: str, api: Api) -> None:
    answer = await api.admin.post(
        "/collections/CMIP6/items", json={"type": "FeatureCollection", "features": list(sample.items(20))}
    )
    assert answer.status_code == 200
    plain, body = await raw(api, "/search?limit=20")
    packed, packed_body = await raw(api, "/search?limit=20", **{"Accept-Encoding": coding})
    assert "content-encoding" not in plain.headers
    assert packed.headers["content-encoding"] == coding
    assert int(packed.headers["content-length"]) == len(packed_body) < len(body) / 4
    assert DECODERS[coding](packed_body) == body
    assert all("Accept-Encoding" in answer.headers.get_list("vary") for answer in (plain, packed))


async def test_a_large_answer_is_compressed_in_pieces(start_api: StartApi, dsn: str) -> None:
    api = await start_api(dsn=dsn)
    path = "/vocabularies/CMIP6/current"
    _, body = await raw(api, path)
    assert len(body) > compression.INLINE
    for coding, decode in DECODERS.items():
        packed, packed_body = await raw(api, path, **{"Accept-Encoding": coding})
        assert packed.headers["content-encoding"] == coding
        assert decode(packed_body) == body


async def test_a_small_answer_is_not_compressed(api: Api) -> None:
    answer, body = await raw(api, "/livez", **{"Accept-Encoding": "gzip"})
    assert len(body) < compression.LEAST
    assert "content-encoding" not in answer.headers


async def test_compression_can_be_switched_off(start_api: StartApi, dsn: str) -> None:
    api = await start_api(dsn=dsn, compress=False)
    answer, _ = await raw(api, "/vocabularies/CMIP6/current", **{"Accept-Encoding": "gzip"})
    assert "content-encoding" not in answer.headers


async def test_a_compressed_answer_has_an_entity_tag_of_its_own_that_conditions_know(api: Api) -> None:
    [item] = sample.items(1)
    assert (await api.admin.post("/collections/CMIP6/items", json=item)).status_code == 201
    path = f"/collections/CMIP6/items/{item['id']}"
    plain, _ = await raw(api, path)
    packed, _ = await raw(api, path, **{"Accept-Encoding": "gzip"})
    tag, packed_tag = plain.headers["etag"], packed.headers["etag"]
    assert packed_tag == tag[:-1] + '-gzip"'

    for sent, accepted, answered in (
        (tag, "", tag), (packed_tag, "gzip", packed_tag), (f'W/{packed_tag}, "x"', "gzip", packed_tag),
        (packed_tag, "", tag), (tag, "gzip", tag),
    ):  # fmt: skip
        fresh, body = await raw(api, path, **{"Accept-Encoding": accepted, "If-None-Match": sent})
        assert (fresh.status_code, fresh.headers["etag"], body) == (304, answered, b"")
        assert "content-encoding" not in fresh.headers
    stale, _ = await raw(api, path, **{"Accept-Encoding": "gzip", "If-None-Match": '"other-1-gzip"'})
    assert stale.status_code == 200

    patch = {"properties": {"cmip6:grid": "another"}}
    merge = {"Content-Type": "application/merge-patch+json"}
    lost = await api.admin.patch(path, json=patch, headers={**merge, "If-Match": '"0000-1-gzip"'})
    assert lost.status_code == 412
    done = await api.admin.patch(path, json=patch, headers={**merge, "If-Match": packed_tag})
    assert done.status_code == 200, done.text


async def test_head_says_what_the_answer_is_uncompressed(api: Api) -> None:
    _, body = await raw(api, "/vocabularies/CMIP6/current")
    answer = await api.anyone.head("/vocabularies/CMIP6/current", headers={"Accept-Encoding": "gzip"})
    assert (answer.status_code, int(answer.headers["content-length"])) == (200, len(body))


# --- what is there more than once ---


async def test_the_lines_of_a_header_that_is_a_list_count_together(api: Api) -> None:
    [item] = sample.items(1)
    assert (await api.admin.post("/collections/CMIP6/items", json=item)).status_code == 201
    path = f"/collections/CMIP6/items/{item['id']}"
    tag = (await api.anyone.get(path)).headers["etag"]
    fresh = await api.anyone.get(path, headers=[("If-None-Match", '"other"'), ("If-None-Match", tag)])
    assert fresh.status_code == 304
    patch = {"properties": {"cmip6:grid": "another"}}
    merge = ("Content-Type", "application/merge-patch+json")
    matches = [("If-Match", f'"{"0" * 32}-1"'), ("If-Match", tag)]
    prefers = [("Prefer", "respond-async"), ("Prefer", "wait=0")]
    later = await api.admin.patch(path, json=patch, headers=[merge, *matches, *prefers])
    assert later.status_code == 202, later.text  # the node itself waits for 60 seconds
    lines = await api.anyone.get("/problems", headers=[("Accept", "application/json;q=0.1"), ("Accept", "text/html")])
    assert lines.headers["content-type"].startswith("text/html")


def test_the_address_that_the_proxy_adds_counts_and_not_the_one_that_its_client_made_up() -> None:
    async def receive() -> Any:
        return {"type": "http.request", "body": b"", "more_body": False}

    async def send(message: Any) -> None:
        pass

    clients: list[str] = []

    async def application(scope: Any, receive: Any, send: Any) -> None:
        clients.append(endpoint.client_of(scope, Headers(scope=scope)))
        await Response()(scope, receive, send)

    lines = [(b"x-forwarded-for", b"198.51.100.1"), (b"x-forwarded-for", b"203.0.113.7")]
    scope = {
        "type": "http", "http_version": "1.1", "method": "GET", "path": "/", "raw_path": b"/", "query_string": b"",
        "scheme": "http", "client": ("127.0.0.1", 1), "headers": [(b"host", b"node"), *lines],
    }  # fmt: skip
    asyncio.run(Guard(application, limit_for=lambda _: 0)(scope, receive, send))
    assert clients == ["203.0.113.7"]


@pytest.mark.parametrize("name", ["Authorization", "Content-Type", "Idempotency-Key", "Range"])
async def test_a_header_that_two_readers_could_take_differently_is_refused(name: str, api: Api) -> None:
    answer = await api.anyone.get("/search?limit=1", headers=[(name, "one"), (name, "two"), *PAGE.items()])
    assert (answer.status_code, answer.json()["code"]) == (400, "bad-request")
    assert answer.json()["detail"] == f"the header {name} is there 2 times; send it once"
    assert is_readable(answer)


async def test_a_parameter_that_could_mean_either_is_refused(api: Api) -> None:
    [item] = sample.items(1)
    for dry_runs in ("dry_run=true&dry_run=false", "dry_run=false&dry_run=true"):
        answer = await api.admin.post(f"/collections/CMIP6/items?{dry_runs}", json=item)
        assert (answer.status_code, answer.json()["code"]) == (400, "bad-request")
        assert "the parameter dry_run is there more than once" in answer.json()["detail"]
    assert (await api.anyone.get(f"/collections/CMIP6/items/{item['id']}")).status_code == 404
    east = {"Authorization": f"Bearer {api.tokens['node:east']}"}
    for path in ("/events?collection=CMIP6&collection=CMIP7", "/events/head?x=1&x=2", "/search?f=json&f=parquet"):
        answer = await api.anyone.get(path, headers=east)
        assert answer.status_code == (200 if "/head" in path else 400), path  # nobody reads x


# --- which form somebody would like ---


@pytest.mark.parametrize(
    ("accept", "are_lines"),
    [
        ("application/x-ndjson", True), ("Application/X-NDJSON", True), ("application/x-ndjson, */*", True),
        ("application/json;q=0.5, application/x-ndjson;q=0.9", True), ("*/*;q=0.1, application/x-ndjson;q=0.2", True),
        ("application/x-ndjson;charset=utf-8;q=0.3", True), ("application/x-ndjson;q=nonsense", True),
        ("application/x-ndjson;q=0", False), ("application/json, application/x-ndjson;q=0.9", False),
        ("application/x-ndjson;q=0.000, */*", False), ("application/*, application/x-ndjson;q=0.5", False),
        ("application/x-ndjson-seq", False), ("*/*", False), ("", False), (",;=,;q=1", False),
    ],
)  # fmt: skip
def test_a_form_is_given_to_who_likes_it_best(accept: str, are_lines: bool) -> None:
    headers = Headers({"accept": accept})
    assert Accept(headers).asks_for("application/x-ndjson", instead_of=("application/json",)) is are_lines


async def test_who_refuses_a_form_does_not_get_it(api: Api) -> None:
    east = {"Authorization": f"Bearer {api.tokens['node:east']}"}
    lines, parquet = "application/x-ndjson", "application/vnd.apache.parquet"
    for path, form, usual in (
        ("/events", lines, "application/cloudevents-batch+json"), ("/events/stream?wait=0", lines, "text/event-stream"),
        ("/search?limit=1", parquet, "application/geo+json"),
    ):  # fmt: skip
        for weight, media_type in (("1", form), ("0", usual)):
            headers = {**east, "Accept": f"{form};q={weight}, */*;q=0.5"}
            answer = await api.anyone.get(path, headers=headers)
            assert answer.headers["content-type"].partition(";")[0] == media_type, (path, weight)
    for weight, media_type in (("1", lines), ("0", "application/json")):
        headers = {"Accept": f"{lines};q={weight}"}
        answer = await api.anyone.post("/datasets/status", json={"ids": []}, headers=headers)
        assert answer.headers["content-type"] == media_type


async def test_the_head_of_a_stream_ends_and_the_connection_goes_on(api: Api) -> None:
    parts = urlsplit(api.url)
    reader, writer = await asyncio.open_connection(parts.hostname, parts.port)
    authorization = f"Authorization: Bearer {api.tokens['node:east']}\r\n"
    writer.write(f"HEAD /events/stream HTTP/1.1\r\nHost: node\r\n{authorization}\r\n".encode())
    writer.write(b"GET /livez HTTP/1.1\r\nHost: node\r\nConnection: close\r\n\r\n")
    answers = (await asyncio.wait_for(reader.read(), PATIENCE)).decode()
    writer.close()
    assert answers.count("HTTP/1.1 200 OK") == 2
    assert "content-type: text/event-stream" in answers
