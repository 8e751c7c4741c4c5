"""What is refused before anything is stored: a problem that names the place, and a database as it was."""

from __future__ import annotations

import asyncio
import copy
import gzip
import random
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import asyncpg
import httpx
import orjson
import pytest
import pytest_asyncio
from hypothesis import given, settings
from hypothesis import strategies as st

from fedstac.demo import embedded, sample
from fedstac.settings import Settings
from tests.api.mutations import mutate
from tests.support import nodes as running_nodes
from tests.support.databases import databases
from tests.support.documents import written
from tests.support.nodes import Api
from tests.support.waiting import PATIENCE

pytestmark = pytest.mark.asyncio(loop_scope="module")

Json = dict[str, Any]
ITEMS = "/collections/CMIP6/items"
EXAMPLES = 100
READ_TIMEOUT = 5.0  # seconds; longer than a busy machine stops the loop of the test and the server
TABLES = ("request", "request_item", "record", "lineage", "outbox", "tally")  # the audit log: test_audit.py
EDGE = b'{"type":"Feature","properties":{"x":'


@dataclass(frozen=True)
class Site:
    api: Api
    conn: asyncpg.Connection[asyncpg.Record]

    async def rows(self) -> dict[str, int]:
        """Return how many rows there are in everything that a write touches."""
        await self.conn.execute("SELECT pg_stat_clear_snapshot()")
        return {table: await self.conn.fetchval(f"SELECT count(*) FROM fedstac.{table}") for table in TABLES}

    async def refuse(
        self, send: Callable[[], Awaitable[httpx.Response]], status: int, code: str, *pointers: str
    ) -> Json:
        """Send what has to be refused with nothing stored. Return the problem."""
        before = await self.rows()
        async with asyncio.timeout(PATIENCE):
            response = await send()
        problem = check_problem(response, status)
        assert problem["code"] == code, problem
        found = [finding["pointer"] for finding in problem["errors"]]
        assert set(pointers) <= set(found), problem
        assert await self.rows() == before
        return problem


def check_problem(response: httpx.Response, status: int) -> Json:
    assert response.status_code == status, (response.status_code, response.text[:1000])
    assert response.headers["content-type"] == "application/problem+json"
    problem: Json = response.json()
    for member, kind in (("type", str), ("title", str), ("status", int), ("detail", str), ("instance", str)):
        assert isinstance(problem[member], kind)
        assert problem[member]
    assert problem["status"] == status
    for finding in problem["errors"]:
        assert isinstance(finding["pointer"], str)
        assert finding["rule"]
        assert finding["message"]
    return problem


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def site(cluster: embedded.Cluster, template: str) -> AsyncIterator[Site]:
    with databases(cluster, template) as make:
        dsn = make()
        config = Settings(
            dsn=dsn,
            node="west",
            default_wait_seconds=60,
            read_timeout_seconds=READ_TIMEOUT,
            max_batch_items=20,
            _env_file=None,
        )
        async with running_nodes.running(config) as api:
            for name in ("CMIP6", "free"):
                response = await api.admin.post("/collections", json=sample.collection(name))
                assert response.status_code == 201, response.text
            conn = await asyncpg.connect(dsn)
            yield Site(api, conn)
            await conn.close()


def an_item(n: int = 0) -> Json:
    [item] = sample.items(1, start=n)
    return item


def changed(path: str, value: Any) -> Json:
    """Return an item with one member replaced; `...` removes it."""
    item = copy.deepcopy(an_item())
    *parents, last = path.split("/")
    place: Any = item
    for step in parents:
        place = place[int(step)] if isinstance(place, list) else place[step]
    if value is ...:
        del place[last]
    else:
        place[last] = value
    return item


def nested(levels: int, kind: str = "array") -> bytes:
    opening, closing = (b"[", b"]") if kind == "array" else (b'{"a":', b"}")
    inner = b"" if kind == "array" else b"1"
    return EDGE + opening * levels + inner + closing * levels + b"}}"


# --- bodies that are not usable ---

BODIES: list[tuple[bytes, str, str]] = [
    (b"", "", "empty"), (b"   ", "", "empty"), (b"{", "", "line 1"), (b"not json", "", "line 1"), (b'{"a":1,}', "", ""),
    (b"{'a': 1}", "", ""), (b"\xff\xfe", "", "UTF-8"), (b"\xef\xbb\xbf{}", "", "byte order mark"),
    (b'{"a":1}x', "", ""),
    (EDGE + b"NaN}}", "/properties/x", "NaN"), (EDGE + b"Infinity}}", "/properties/x", "Infinity"),
    (EDGE + b"-Infinity}}", "/properties/x", "-Infinity"), (EDGE + b"1e400}}", "/properties/x", "1e400"),
    (EDGE + b"0.1000000000000000055511151231257827021}}", "/properties/x", "double"),
    (EDGE + b"9007199254740993}}", "/properties/x", "double"), (EDGE + b"1" * 5000 + b"}}", "/properties/x", "double"),
    (EDGE + b"1e-400}}", "/properties/x", "double"),
    (EDGE + b'"a\\u0000b"}}', "/properties/x", "U+0000"),
    (EDGE + b'{"a\\u0000":1}}}', "/properties/x/a\\u0000", "U+0000"),
    (EDGE + b'"\\ud800"}}', "/properties/x", "surrogate"), (EDGE + b'"\\udc00\\ud800"}}', "/properties/x", "surrogate"),
    (EDGE + b'{"\\ud83d":1}}}', "", "surrogate"), (EDGE + b'1,"x":2}}', "/properties/x", "more than once"),
    (b'{"id":"a","\\u0069d":"b"}', "/id", "more than once"), (nested(70), "", "deeper"),
    (nested(70, "object"), "", "deeper"),
    (nested(100_000), "", "deeper"), (nested(100_000, "object"), "", "deeper"), (b"[" * 4_000_000, "", ""),
    (EDGE + b'"\x00"}}', "", ""), (EDGE + b'"\n"}}', "", ""),
]  # fmt: skip


@pytest.mark.parametrize(("body", "pointer", "says"), BODIES, ids=[str(n) for n in range(len(BODIES))])
async def test_a_body_that_is_no_usable_json(site: Site, body: bytes, pointer: str, says: str) -> None:
    problem = await site.refuse(lambda: site.api.admin.post(ITEMS, content=body), 400, "malformed-json")
    assert says in problem["detail"]
    assert problem["errors"]
    if pointer:
        assert problem["errors"][0]["pointer"] == pointer


async def test_media_types_that_are_not_taken(site: Site) -> None:
    body = orjson.dumps(an_item())
    for media_type in ("text/plain", "application/xml", "multipart/form-data", "application/json-patch+json", "x"):
        headers = {"Content-Type": media_type}
        problem = await site.refuse(
            partial(site.api.admin.post, ITEMS, content=body, headers=headers),
            415, "unsupported-media-type",
        )  # fmt: skip
        assert media_type in problem["detail"]


# --- too large, too slow ---


async def test_a_body_of_100_mb_is_refused_by_its_announced_length(site: Site) -> None:
    headers = {"Content-Length": str(100 * 2**20), "Content-Type": "application/json"}
    raw = await raw_post(site, headers, b"{")
    assert raw.startswith(b"HTTP/1.1 413 ")


async def test_a_body_of_100_mb_in_chunks_is_refused(site: Site) -> None:
    before = await site.rows()
    piece = b"100000\r\n" + b" " * 2**20 + b"\r\n"
    answer = await raw_post(site, {"Transfer-Encoding": "chunked"}, *[piece] * 100)
    assert answer.startswith(b"HTTP/1.1 413 ")
    assert b"body-too-large" in answer
    assert await site.rows() == before


async def test_a_bomb_is_refused(site: Site) -> None:
    bomb = gzip.compress(b" " * (70 * 2**20))
    headers = {"Content-Encoding": "gzip"}
    await site.refuse(lambda: site.api.admin.post(ITEMS, content=bomb, headers=headers), 413, "body-too-large")


async def test_an_endless_and_a_slow_body_run_out_of_time(site: Site) -> None:
    before = await site.rows()
    stuck, dripping = await asyncio.gather(
        raw_post(site, {"Content-Length": "1000"}, b'{"type":'),
        raw_post(site, {"Transfer-Encoding": "chunked"}, *[b"1\r\n \r\n"] * 1000, pause=0.05),
    )
    for answer in (stuck, dripping):
        assert answer.startswith(b"HTTP/1.1 408 "), answer[:200]
        assert b"request-timeout" in answer
    assert await site.rows() == before


async def raw_post(site: Site, headers: dict[str, str], *pieces: bytes, pause: float = 0) -> bytes:
    """Return everything the server says to a POST that is sent piece by piece."""
    host, port = site.api.url.removeprefix("http://").split(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    head = {"Host": host, "Authorization": f"Bearer {site.api.tokens['admin']}", **headers}
    lines = "".join(f"{name}: {value}\r\n" for name, value in head.items())

    async def send() -> None:
        try:
            writer.write(f"POST {ITEMS} HTTP/1.1\r\n{lines}\r\n".encode())
            for piece in pieces:
                writer.write(piece)
                await writer.drain()
                await asyncio.sleep(pause)
        except ConnectionError:
            return

    sending = asyncio.create_task(send())
    try:
        async with asyncio.timeout(PATIENCE):
            answer = await reader.readuntil(b"\r\n\r\n")
            length = int(answer.lower().partition(b"content-length: ")[2].split(b"\r\n")[0])
            return answer + await reader.readexactly(length)
    finally:
        sending.cancel()
        await asyncio.gather(sending, return_exceptions=True)
        writer.close()


async def test_an_item_over_four_mib(site: Site) -> None:
    item = changed("properties/note", "x" * (4 << 20))
    await site.refuse(lambda: site.api.admin.post(ITEMS, content=orjson.dumps(item)), 413, "body-too-large")
    batch = {"type": "FeatureCollection", "features": [item]}
    await site.refuse(
        lambda: site.api.admin.post(ITEMS, content=orjson.dumps(batch)), 400, "stac-validation", "/features/0"
    )


async def test_batches_too_long_and_empty(site: Site) -> None:
    batch = {"type": "FeatureCollection", "features": list(sample.items(21))}
    problem = await site.refuse(lambda: site.api.admin.post(ITEMS, json=batch), 413, "body-too-large")
    assert "20" in problem["detail"]
    for features, pointer in (([], "/features"), ({}, "/features"), (None, "/features"), ("x", "/features")):
        body: Json = {"type": "FeatureCollection", "features": features}
        await site.refuse(partial(site.api.admin.post, ITEMS, json=body), 400, "stac-validation", pointer)
    await site.refuse(
        lambda: site.api.admin.post(ITEMS, json={"type": "FeatureCollection"}), 400, "stac-validation", "/features"
    )
    for other in ([], [an_item()], "text", 5, None, True):
        content = orjson.dumps(other)
        await site.refuse(partial(site.api.admin.post, ITEMS, content=content), 400, "stac-validation", "")


# --- who ---


async def test_who_may_not(site: Site) -> None:
    item = an_item()
    institution = item["properties"]["cmip6:institution_id"]
    assert institution != "NCAR"
    post = site.api.anyone.post
    for header in ("", "Bearer", "Bearer unknown", "Basic YWRtaW46YWRtaW4=", "Bearer " + "x" * 9000, "x"):
        problem = await site.refuse(
            partial(post, ITEMS, json=item, headers={"Authorization": header} if header else {}),
            401, "unauthenticated",
        )  # fmt: skip
        assert "token" in problem["detail"] or "Bearer" in problem["detail"]
    for role in ("publisher:NCAR", "node:east"):
        headers = {"Authorization": f"Bearer {site.api.tokens[role]}"}
        problem = await site.refuse(partial(post, ITEMS, json=item, headers=headers), 403, "missing-permission")
        assert institution in problem["detail"]
        batch = {"type": "FeatureCollection", "features": [item]}
        await site.refuse(partial(post, ITEMS, json=batch, headers=headers), 403, "missing-permission")
        await site.refuse(
            partial(post, "/collections", json=sample.collection("new"), headers=headers),
            403, "missing-permission",
        )  # fmt: skip


async def test_a_document_cannot_be_published_under_another_institutions_id(site: Site) -> None:
    """The id decides which lineage is written; so what the permission is for has to agree with it."""
    item = changed("properties/cmip6:institution_id", "NCAR")
    headers = {"Authorization": f"Bearer {site.api.tokens['publisher:NCAR']}"}
    await site.refuse(
        lambda: site.api.anyone.post(ITEMS, json=item, headers=headers),
        400, "stac-validation", "/properties/cmip6:institution_id",
    )  # fmt: skip


async def test_an_unknown_collection(site: Site) -> None:
    for name in ("absent", "CMIP7", "%00"[:0] + "a%20b", "..%2f..", "x" * 2000):
        path = f"/collections/{name}/items"
        before = await site.rows()
        response = await site.api.admin.post(path, json=an_item())
        assert response.status_code == 404, (name, response.text)
        check_problem(response, 404)
        assert await site.rows() == before


# --- documents ---

DOCUMENTS: list[tuple[Json, str]] = [
    (changed("collection", "CMIP5"), "/collection"), (changed("collection", ""), "/collection"),
    (changed("collection", 5), "/collection"), (changed("id", "CMIP6.x"), "/id"), (changed("id", 5), "/id"),
    (changed("id", ""), "/id"), (changed("id", an_item()["id"][:-9]), "/id"),
    (changed("id", an_item()["id"] + "/x"), "/id"),
    (changed("id", an_item()["id"] + "\n"), "/id"), (changed("id", "x" * 10_000), "/id"),
    (changed("id", an_item()["id"].replace("CMIP6.", "CMIP6..", 1)), "/id"), (changed("id", None), "/id"),
    (changed("type", "Item"), "/type"), (changed("type", 5), "/type"),
    (changed("stac_version", "0.9.0"), "/stac_version"),
    (changed("stac_version", None), "/stac_version"), (changed("properties", []), "/properties"),
    (changed("links", {}), "/links"), (changed("links", [5]), "/links/0"),
    (changed("links", [{"rel": 1, "href": ""}]), "/links/0"),
    (changed("links", [{"rel": "x"}]), "/links/0"), (changed("assets", []), "/assets"),
    (changed("assets", {"a/~b": 5}), "/assets/a~1~0b"),
    (changed("assets", {"a": {}}), "/assets/a"), (changed("assets", {"a": {"href": 5}}), "/assets/a/href"),
    (changed("bbox", ...), ""), (changed("bbox", [1, 2, 3]), "/bbox"), (changed("bbox", None), "/bbox"),
    (changed("geometry", "POINT(1 2)"), "/geometry"), (changed("geometry", {}), "/geometry/type"),
    (changed("geometry", {"type": ["Point"], "coordinates": [1, 2]}), "/geometry/type"),
    (changed("geometry", {"type": "Circle", "coordinates": [1, 2]}), "/geometry/type"),
    (changed("geometry", {"type": "Point", "coordinates": [361, 0]}), "/geometry/coordinates"),
    (changed("geometry", {"type": "Point", "coordinates": [0, 90.1]}), "/geometry/coordinates"),
    (changed("geometry", {"type": "Point", "coordinates": [0]}), "/geometry/coordinates"),
    (changed("geometry", {"type": "Point", "coordinates": ["0", "0"]}), "/geometry/coordinates"),
    (changed("geometry", {"type": "MultiPoint", "coordinates": []}), "/geometry/coordinates"),
    (changed("geometry", {"type": "MultiPoint", "coordinates": [[0, 0]] * 10_001}), "/geometry/coordinates"),
    (changed("geometry", {"type": "Polygon", "coordinates": [[[0, 0], [1, 0], [1, 1], [0, 1]]]}),
     "/geometry/coordinates/0"),
    (changed("geometry", {"type": "Polygon", "coordinates": [[[0, 0], [1, 0], [0, 0]]]}), "/geometry/coordinates/0"),
    (changed("geometry", {"type": "MultiPolygon", "coordinates": [[]]}), "/geometry/coordinates"),
    (changed("geometry", {"type": "LineString", "coordinates": [[0, 0]]}), "/geometry/coordinates"),
    (changed("geometry", {"type": "GeometryCollection", "geometries": []}), "/geometry/type"),
    (changed("geometry", {"type": "GeometryCollection", "geometries": [{"type": "GeometryCollection"}]}),
     "/geometry/type"),
    (changed("stac_extensions", ["https://evil.example/schema.json"]), "/stac_extensions/0"),
    (changed("stac_extensions", "x"), "/stac_extensions"), (changed("stac_extensions", [5]), "/stac_extensions/0"),
    (changed("properties/datetime", ...), "/properties"),
    (changed("properties/datetime", "now"), "/properties/datetime"),
    (changed("properties/datetime", 5), "/properties/datetime"),
    (changed("properties/datetime", []), "/properties/datetime"),
    (changed("properties/start_datetime", "0000-01-01T00:00:00Z"), "/properties/start_datetime"),
    (changed("properties/end_datetime", "10000-01-01T00:00:00Z"), "/properties/end_datetime"),
    (changed("properties/end_datetime", "9999-13-01T00:00:00Z"), "/properties/end_datetime"),
    (changed("properties/start_datetime", "2000-02-30T00:00:00Z"), "/properties/start_datetime"),
    (changed("properties/start_datetime", "1999-01-01"), "/properties/start_datetime"),
    (changed("properties/start_datetime", "1850-01-01T00:00:00+25:00"), "/properties/start_datetime"),
    (changed("properties/start_datetime", "9999-01-01T00:00:00Z"), "/properties/start_datetime"),
    (changed("properties/start_datetime", ...), "/properties"),
    (changed("properties/end_datetime", None), "/properties"),
    (changed("properties/cmip6:institution_id", ["NCAR"]), "/properties/cmip6:institution_id"),
    (changed("properties/cmip6:institution_id", ...), "/properties"),
    *((changed(name, ...), "") for name in ("type", "stac_version", "id", "properties", "links", "assets", "geometry")),
]  # fmt: skip


@pytest.mark.parametrize(("document", "pointer"), DOCUMENTS, ids=[str(n) for n in range(len(DOCUMENTS))])
async def test_a_document_that_is_not_valid(site: Site, document: Json, pointer: str) -> None:
    problem = await site.refuse(lambda: site.api.admin.post(ITEMS, json=document), 400, "stac-validation", pointer)
    assert problem["errors"][0]["message"]
    assert len(problem["detail"]) < 2000
    batch = {"type": "FeatureCollection", "features": [document, document]}
    await site.refuse(
        lambda: site.api.admin.post(ITEMS, json=batch),
        400, "stac-validation", f"/features/0{pointer}", f"/features/1{pointer}",
    )  # fmt: skip


async def test_all_findings_come_at_once(site: Site) -> None:
    item = changed("properties/start_datetime", "never")
    item |= {"geometry": {"type": "Point", "coordinates": [500, 0]}, "stac_extensions": ["https://evil.example/x.json"]}
    await site.refuse(
        lambda: site.api.admin.post(ITEMS, json=item), 400, "stac-validation",
        "/properties/start_datetime", "/geometry/coordinates", "/stac_extensions/0",
    )  # fmt: skip


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("", "is empty"), ("x" * 513, "513 characters"), (".", "takes for a folder"), ("..", "takes for a folder"),
        ("a/b", "U+002F (solidus) at place 2"), ("a?b", "question mark"), ("a#b", "number sign"),
        ("a%2fb", "percent sign"), ("a\x85b", "control character U+0085"), ("a\tb", "control character U+0009"),
        (" a", "begins with the space"),
        ("a,b", "U+002C (comma) at place 2, at which GET /search?ids= ends"), ("a ", "ends with the space U+0020"),
        ("a\u200b", "U+200B (zero width space)"), ("\u2028", "begins with the space U+2028"), ("a\ufeff", "U+FEFF"),
        ("a\u202eb", "U+202E (right-to-left override)"), ("a\ufe0f", "U+FE0F"), ("a\u3164", "U+3164"),
        ("a\u00a0b", "U+00A0 (no-break space) at place 2, which looks like"), ("a\U000e0041", "U+E0041"),
    ],
)  # fmt: skip
async def test_an_id_that_cannot_be_addressed_is_refused_with_its_reason(site: Site, name: str, sentence: str) -> None:
    item = {**an_item(), "id": name, "collection": "free", "stac_extensions": []}
    before = await site.rows()
    refused = check_problem(await site.api.admin.post("/collections/free/items", json=item), 400)
    assert {error["pointer"] for error in refused["errors"]} == {"/id"}
    assert refused["errors"][0]["rule"] == "id"
    assert sentence in refused["errors"][0]["detail"]
    assert await site.rows() == before


@pytest.mark.parametrize(
    "name", ["a b", "a+b&c=d;e", "naïve", "日本", "a'b\"c", "a\\b", "(x)", "~", "...", "a:b@c", "x!$*"]
)
async def test_an_id_that_is_odd_is_found_under_its_link(site: Site, name: str) -> None:
    item = {**an_item(), "id": name, "collection": "free", "stac_extensions": []}
    posted = await site.api.admin.post("/collections/free/items", json=item)
    assert posted.status_code in (200, 201), posted.text
    [link] = [link["href"] for link in posted.json()["links"] if link["rel"] == "self"]
    for url in (link, posted.headers["location"]):
        found = await site.api.anyone.get(url)
        assert found.status_code == 200, (url, found.text)
        assert found.json()["id"] == name
    searched = await site.api.anyone.post("/search", json={"ids": [name]})
    assert [feature["id"] for feature in searched.json()["features"]] == [name]


async def test_a_batch_in_which_some_are_bad_is_taken_with_a_result_for_each(site: Site) -> None:
    good, bad = [an_item(n) for n in range(100, 104)], changed("properties/start_datetime", "never")
    body = {"type": "FeatureCollection", "features": [good[0], bad, good[1], {}, 5, None, *good[2:], good[0]]}
    response = await site.api.admin.post(ITEMS, json=body)
    assert response.status_code == 200, response.text
    summary = response.json()
    assert summary["status"] == "partly"
    assert summary["counts"] == {"queued": 0, "done": 5, "rejected": 4, "failed": 0}
    results = (await site.api.admin.get(f"/requests/{summary['id']}/items")).json()["items"]
    assert [result["n"] for result in results] == list(range(9))
    assert {result["n"]: result["status"] for result in results if result["status"] != "done"} == dict.fromkeys(
        (1, 3, 4, 5), "rejected"
    )
    [finding] = [f for f in results[1]["findings"] if f["rule"] == "datetime"]
    assert finding["pointer"] == "/properties/start_datetime"
    assert all(results[n]["type"] == "stac-validation" and results[n]["findings"] for n in (1, 3, 4, 5))
    for item in good:
        assert (await site.api.anyone.get(f"{ITEMS}/{item['id']}")).status_code == 200


BAD_LINES = (
    b'{"type": "Feature", "id": "cut', b'{"type": "Feature", "id": NaN}', b'{"id": "a", "id": "a"}', b'{"id": "\xff"}',
    b'{"id": "\\ud800"}', b"\xef\xbb\xbf{}", b"no JSON",
)  # fmt: skip


async def test_a_line_that_is_not_json_refuses_itself_alone(site: Site) -> None:
    good = [orjson.dumps(an_item(n)) for n in range(110, 117)]
    body = b"\n".join(line for pair in zip(good, BAD_LINES, strict=True) for line in pair)
    response = await site.api.admin.post(ITEMS, content=body, headers={"Content-Type": "application/x-ndjson"})
    assert response.status_code == 200, response.text
    assert response.json()["counts"] == {"queued": 0, "done": 7, "rejected": 7, "failed": 0}
    results = (await site.api.admin.get(f"/requests/{response.json()['id']}/items")).json()["items"]
    for n, result in enumerate(results):
        if n % 2:
            assert (result["status"], result["type"]) == ("rejected", "malformed-json")
            assert f"line {n + 1}" in result["detail"]
            assert f"line {n + 1}" in result["findings"][0]["message"]
        else:
            assert result["status"] == "done"
    retried = check_problem(await site.api.admin.post(f"/requests/{response.json()['id']}/retry"), 409)
    assert "nothing was JSON" in retried["detail"]


async def test_lines_of_which_none_is_json_are_refused_at_the_door(site: Site) -> None:
    body, before = b"\n".join(BAD_LINES), await site.rows()
    response = await site.api.admin.post(ITEMS, content=body, headers={"Content-Type": "application/x-ndjson"})
    refused = check_problem(response, 400)
    assert refused["code"] == "malformed-json"
    assert [error["pointer"].split("/")[1] for error in refused["errors"]] == [str(n) for n in range(7)]
    assert await site.rows() == before


@pytest.mark.parametrize("route", [f"{ITEMS}?dry_run=true", "/validate"])
async def test_a_line_that_is_not_json_is_reported_beside_the_others(site: Site, route: str) -> None:
    body = b"\n".join((orjson.dumps(an_item(120)), b"{", orjson.dumps(an_item(121))))
    response = await site.api.admin.post(route, content=body, headers={"Content-Type": "application/x-ndjson"})
    assert response.status_code == 200, response.text
    items = response.json()["items"]
    assert [bool(item["findings"]) for item in items] == [False, True, False]
    assert items[1]["findings"][0]["message"].startswith("line 2, column 2: not JSON")


async def test_collections_that_are_not_valid(site: Site) -> None:
    good = sample.collection("another")
    for body, status, code in (
        ({**good, "id": "a/b"}, 400, "stac-validation"), ({**good, "id": ""}, 400, "stac-validation"),
        ({**good, "id": 5}, 400, "stac-validation"), ({**good, "type": "Catalog"}, 400, "stac-validation"),
        ({**good, "links": 5}, 400, "stac-validation"), ({**good, "links": [5]}, 400, "stac-validation"),
        ({**good, "extent": {}}, 400, "stac-validation"), ([], 400, "stac-validation"), (5, 400, "stac-validation"),
        ({**good, "extent": {"spatial": {}, "temporal": {"interval": [["x", None]]}}}, 400, "stac-validation"),
        ({**good, "id": "CMIP6"}, 409, "collection-already-exists"),
    ):  # fmt: skip
        content = orjson.dumps(body)
        await site.refuse(partial(site.api.admin.post, "/collections", content=content), status, code)


# --- at random ---


def mutated(seed: int, n: int) -> Json:
    rng = random.Random(seed)
    document = copy.deepcopy(an_item(n))
    for _ in range(rng.choice([1, 1, 1, 2, 3])):
        mutate(document, rng)
    return document


async def test_a_document_changed_at_random_is_refused_or_comes_back_equal(site: Site) -> None:
    """hypothesis is synchronous: it runs in a thread and has its questions asked here."""
    loop, numbers = asyncio.get_running_loop(), iter(range(1000, 10**6))

    @settings(max_examples=EXAMPLES, deadline=None, database=None)
    @given(seed=st.integers(0, 2**32), free=st.booleans())
    def judge(seed: int, free: bool) -> None:
        question = published_or_refused(site.api, seed, next(numbers), free=free)
        asyncio.run_coroutine_threadsafe(question, loop).result()

    await asyncio.to_thread(judge)


async def published_or_refused(api: Api, seed: int, n: int, *, free: bool) -> None:
    document = mutated(seed, n)
    if free and isinstance(document, dict):
        document["collection"] = "free"
    collection = "free" if free else "CMIP6"
    async with asyncio.timeout(PATIENCE):
        response = await api.admin.post(f"/collections/{collection}/items", content=orjson.dumps(document))
    if response.status_code in (200, 201):
        found = await api.anyone.get(response.headers["location"])
        assert found.status_code == 200, (seed, n, found.text)
        assert own(found.json()) == own(document), (seed, n)
        boxed = await api.anyone.post("/search", json={"ids": [document["id"]], "bbox": [-180, -90, 180, 90]})
        assert boxed.status_code == 200, (seed, n, boxed.text)
        assert bool(boxed.json()["features"]) == (document["geometry"] is not None), (seed, n)
    else:
        assert 400 <= response.status_code < 500, (seed, n, response.text)
        check_problem(response, response.status_code)


def own(document: Json) -> Json:
    """Return what the publisher wrote, less what the server owns."""
    return written(document)
