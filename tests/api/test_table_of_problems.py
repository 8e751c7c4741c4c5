"""Every refusal that there is, produced at running nodes: it names the thing and the remedy, in full (RFC 9457).

The table is docs/reference/problems.md row by row: how a refusal comes about, the thing that its sentence names, and
what it says to do. A problem that no row produces fails the last test.
"""

from __future__ import annotations

import asyncio
import copy
import json
import re
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, Final
from urllib.parse import urlsplit
from uuid import UUID

import asyncpg
import httpx
import pytest
import pytest_asyncio

from fedstac.db.nodes import issue_token
from fedstac.demo import embedded, sample
from fedstac.domain import errors
from fedstac.domain.errors import Problem
from fedstac.settings import Settings
from tests.support.databases import databases
from tests.support.identity import AUDIENCE, Provider, bearer
from tests.support.nodes import Api, running
from tests.support.waiting import PATIENCE, until

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.xdist_group("table of problems")]

Json = dict[str, Any]
ITEMS = "/collections/CMIP6/items"
HOME = "https://south.example"
SAMPLES: list[Json] = list(sample.items(400))
OTHERS = [item for item in SAMPLES if item["properties"]["cmip6:institution_id"] != "NCAR"]
STORED, RETRACTED, MARKED, NEW, SUSPECT, DELETED = OTHERS[:6]
NCAR = next(item for item in SAMPLES if item["properties"]["cmip6:institution_id"] == "NCAR")
NOTE: Json = {"properties": {"note": "x"}}
WITH_FINDINGS = {errors.MalformedJson, errors.StacInvalid, errors.DeletionNotReady}
INSIDE = ("Traceback", "asyncpg", "SELECT", "fedstac.", "pgstac", ".py", "Expecting", "Decode", "fedstac_writer")


@dataclass(frozen=True)
class Nodes:
    """Who refuses: nodes that differ in a setting or in what befell their database."""

    west: Api
    strict: Api  # wants If-Match, and the datasets of NCAR have their home elsewhere
    east: Api  # an index node of west's
    idle: Api  # has no workers: what it accepts waits
    damaged: Api  # its collection cannot be read any more
    away: Api  # its database is
    provider: Provider


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def nodes(
    cluster: embedded.Cluster, template: str, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[Nodes]:
    policy = tmp_path_factory.mktemp("policy") / "policy.yaml"
    policy.write_text(f"""
version: 1
builtin: true
homes: [{{projects: [CMIP6], institutions: [NCAR], node: south, url: "{HOME}"}}]
""")
    provider = Provider()
    async with AsyncExitStack() as stack:
        stack.callback(provider.close)
        provider.start()
        make = stack.enter_context(databases(cluster, template))
        shared, damaged, away = make(), make(), make()

        async def start(dsn: str, *, background: bool = False, **values: Any) -> Api:
            config = Settings(**{"dsn": dsn, "node": "west", "default_wait_seconds": 60, "_env_file": None, **values})
            return await stack.enter_async_context(running(config, background=background))

        west = await start(
            shared, background=True, issuers=json.dumps([{"issuer": provider.url}]), audience=AUDIENCE,
            read_timeout_seconds=5, max_batch_items=20,
        )  # fmt: skip
        await fill(west)
        found = Nodes(
            west, await start(shared, require_if_match=True, policy=str(policy), request_memory_bytes=32 << 20),
            await start(make(), node="east", source=west.url, source_token=west.tokens["node:east"]),
            await start(make(), request_seconds=2), await start(damaged), await start(away), provider,
        )  # fmt: skip
        await until(partial(shows_the_collection, found.east))
        await make_collection(found.idle)
        await damage(cluster, found.damaged)
        await stack.enter_async_context(outage(cluster, found.away))
        yield found


async def shows_the_collection(node: Api) -> bool:
    return (await node.anyone.get("/collections/CMIP6")).is_success


async def damage(cluster: embedded.Cluster, node: Api) -> None:
    """Spoil a stored text: it is whole to the database and not to whoever reads it."""
    await make_collection(node)
    conn = await asyncpg.connect(cluster.dsn(database_of(node)))
    try:
        await conn.execute("UPDATE fedstac.collection SET document = left(document, 40)")
    finally:
        await conn.close()


@asynccontextmanager
async def outage(cluster: embedded.Cluster, node: Api) -> AsyncIterator[None]:
    """Let the node's database take no connections, and end those that it has."""
    conn, name = await asyncpg.connect(cluster.dsn()), database_of(node)
    try:
        await conn.execute(f'ALTER DATABASE "{name}" ALLOW_CONNECTIONS false')
        ended = "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity WHERE datname = $1"
        while await conn.fetchval(ended, name):
            pass
        yield
    finally:
        await conn.execute(f'ALTER DATABASE "{name}" ALLOW_CONNECTIONS true')
        await conn.close()


def database_of(node: Api) -> str:
    return urlsplit(node.settings.dsn).path.strip("/")


async def make_collection(node: Api) -> None:
    assert (await node.admin.post("/collections", json=sample.collection())).status_code == 201


async def fill(west: Api) -> None:
    await make_collection(west)
    for item in (STORED, RETRACTED, MARKED, SUSPECT, DELETED):
        assert (await west.admin.post(ITEMS, json=item)).status_code == 201
    assert (
        await west.admin.post(f"{ITEMS}/{RETRACTED['id']}/retract", json={"reason": "wrong units"})
    ).status_code == 200
    for item in (MARKED, DELETED):
        assert (await west.admin.delete(f"{ITEMS}/{item['id']}")).is_success
    assert (await west.admin.post(f"{ITEMS}/{SUSPECT['id']}/quarantine", json={"reason": "personal data"})).is_success
    await end_waiting(west, DELETED["id"])
    assert (await west.admin.post(f"{ITEMS}/{DELETED['id']}/delete")).is_success


async def end_waiting(node: Api, id: str) -> None:
    """Let the grace period of a deletion be over, and its dependencies done."""
    conn = await asyncpg.connect(node.settings.dsn)
    try:
        await conn.execute("UPDATE fedstac.deletion SET grace_until = marked_at WHERE dataset = $1", id)
        await conn.execute("UPDATE fedstac.deletion_dependency SET state = 'ok'")
    finally:
        await conn.close()


# --- how refusals come about ---

Way = Callable[[Nodes], Awaitable[httpx.Response]]


def sent(
    method: str, path: str, *, to: str = "west", by: str = "admin", headers: dict[str, str] | None = None, **body: Any
) -> Way:
    """Return one request, with a token of the node's own; `by=""`: without."""

    async def way(nodes: Nodes) -> httpx.Response:
        node: Api = getattr(nodes, to)
        who = bearer(node.tokens[by]) if by else {}
        return await node.anyone.request(method, path, headers={**who, **(headers or {})}, **body)

    return way


get, post, put, patch, delete = (partial(sent, method) for method in ("GET", "POST", "PUT", "PATCH", "DELETE"))


def with_token(**claims: Any) -> Way:
    """Return a question with a token that the provider signed."""
    return lambda nodes: nodes.west.anyone.get("/me", headers=bearer(nodes.provider.token(**claims)))


def changed(item: Json, **properties: Any) -> Json:
    return {**item, "properties": {**item["properties"], **properties}}


def with_other_files(item: Json) -> Json:
    other = copy.deepcopy(item)
    asset = next(asset for asset in other["assets"].values() if "file:checksum" in asset)
    asset["file:checksum"] = "1220" + "0" * 64
    return other


def head(*lines: str) -> bytes:
    """Return a request, or its beginning; an empty line ends its headers."""
    return "\r\n".join((f"POST {ITEMS} HTTP/1.1", "Host: west", *lines, "")).encode()


def raw(to: str, raw_bytes: bytes) -> Way:
    """Return bytes as they are, to whichever node."""
    return lambda nodes: over_socket(getattr(nodes, to), raw_bytes)


async def over_socket(node: Api, raw_bytes: bytes) -> httpx.Response:
    """Return what a server answers to bytes."""
    where = urlsplit(node.url)
    reader, writer = await asyncio.open_connection(where.hostname, where.port)
    try:
        writer.write(raw_bytes)
        async with asyncio.timeout(PATIENCE):
            first, *lines = (await reader.readuntil(b"\r\n\r\n")).decode().strip().split("\r\n")
            headers = dict(line.split(": ", 1) for line in lines)
            body = await reader.readexactly(int(headers["content-length"]))
    finally:
        writer.close()
    return httpx.Response(int(first.split()[1]), headers=headers, content=body)


async def half_a_body(nodes: Nodes) -> httpx.Response:
    return await over_socket(nodes.west, head(*authorized(nodes.west), "Content-Length: 9", "", '{"id"'))


def authorized(node: Api) -> tuple[str]:
    return (f"Authorization: Bearer {node.tokens['admin']}",)


async def key_for_something_else(nodes: Nodes) -> httpx.Response:
    headers = {"Idempotency-Key": "monday"}
    assert (await nodes.west.admin.post(ITEMS, json=OTHERS[6], headers=headers)).status_code == 201
    return await nodes.west.admin.post(ITEMS, json=OTHERS[7], headers=headers)


async def quarantined_by_a_publisher(nodes: Nodes) -> httpx.Response:
    """Return what a publisher gets who changes a dataset of theirs that is under quarantine."""
    conn = await asyncpg.connect(nodes.west.settings.dsn)
    try:
        role = f"publisher:{SUSPECT['properties']['cmip6:institution_id']}"
        token = await issue_token(conn, "anna", [role])
    finally:
        await conn.close()
    return await nodes.west.anyone.patch(f"{ITEMS}/{SUSPECT['id']}", json=NOTE, headers=bearer(token))


async def into_a_closing_collection(nodes: Nodes) -> httpx.Response:
    """Return what somebody gets who publishes into a collection that is being deleted with its datasets."""
    assert (await nodes.idle.admin.post("/collections", json=sample.collection("obs"))).status_code == 201
    path = "/collections/obs?cascade=true&confirm=0&reason=over"
    assert (await nodes.idle.admin.delete(path)).status_code == 202
    return await nodes.idle.admin.post("/collections/obs/items", json=NEW)


async def taken_back(nodes: Nodes) -> httpx.Response:
    """Return what happens when somebody waits for a result, and somebody cancels the request."""
    waiting = asyncio.create_task(nodes.idle.admin.post(ITEMS, json=NEW))
    found: list[Json] = []

    async def is_listed() -> bool:
        found[:] = (await nodes.idle.admin.get("/requests")).json()["requests"]
        return bool(found)

    await until(is_listed)
    assert (await nodes.idle.admin.post(f"/requests/{found[0]['id']}/cancel")).status_code == 200
    return await waiting


async def too_many_batches(nodes: Nodes) -> httpx.Response:
    """Send a body that takes all the memory for bodies, which is that of one large batch, and does not end.

    It is sent anew where it came while a small one had some of that memory: then it is the one that is refused.
    """
    where = urlsplit(nodes.strict.url)
    size = nodes.strict.settings.request_memory_bytes // 8
    while True:
        reader, writer = await asyncio.open_connection(where.hostname, where.port)
        refusal = asyncio.create_task(reader.read())
        try:
            writer.write(head(*authorized(nodes.strict), "Transfer-Encoding: chunked", "", f"{size:x}"))
            writer.write(b" " * size + b"\r\n")
            await writer.drain()
            while not refusal.done():
                answer = await nodes.strict.admin.post(ITEMS, content=b" " * (100 << 10))
                if answer.json()["code"] != "malformed-json":  # the other one is not there yet
                    return answer
        except ConnectionError:
            continue
        finally:
            refusal.cancel()
            writer.close()
            await asyncio.gather(refusal, return_exceptions=True)


async def a_search_that_takes_too_long(nodes: Nodes) -> httpx.Response:
    """Hold what the handler has to read."""
    conn = await asyncpg.connect(nodes.idle.settings.dsn)
    try:
        async with conn.transaction():
            await conn.execute("LOCK TABLE pgstac.items IN ACCESS EXCLUSIVE MODE")
            return await nodes.idle.anyone.get("/search", params={"sortby": "id"})  # an order that the columns lack
    finally:
        await conn.close()


# --- the table ---


@dataclass(frozen=True)
class Row:
    """A refusal: how it comes about, what its sentence names and what it says to do."""

    problem: type[Problem]
    way: Way
    thing: str
    remedy: str


MANY: Final = {"action": "mark", "collections": ["CMIP6"], "digest": f"{'0' * 64}.1700.1700000000000000"}
TABLE = (
    Row(errors.BadRequest, get("/search?colour=red"), "colour", "a search has access"),
    Row(errors.BadRequest, get("/search?collection=CMIP6"), "a search has access", "did you mean `collections`?"),
    Row(errors.BadRequest, get("/collections?Limit=1"), "there are ", "did you mean `limit`?"),
    Row(errors.BadRequest, get("/events?after=yesterday", by="node:east"), "'yesterday'", "X-Cursor gives it"),
    Row(errors.BadRequest, post("/search", json={"filter": {"op": "near", "args": []}}), "'near'", "there are and or"),
    Row(errors.MalformedJson, post(ITEMS, content=b'{"id": NaN}'), "NaN is not JSON", "use null, or leave"),
    Row(errors.StacInvalid, post(ITEMS, json=changed(NEW, **{"cmip6:frequency": "monn"})), "`monn`", "did you mean"),
    Row(errors.StacInvalid, post(ITEMS, json=[NEW]), "neither an Item nor", "send one of them"),
    Row(errors.Unauthenticated, post(ITEMS, json=NEW, by=""), "bearer token", "log in and send the header"),
    Row(errors.Unauthenticated, get("/me", by="", headers=bearer("fst_unknown")), "this token", "for a new one"),
    Row(errors.InvalidToken, with_token(exp=int(time.time()) - 3600), "the token has expired", "log in again"),
    Row(errors.InvalidTokenAudience, with_token(aud="https://east.example"), "(claim aud)", f"one for {AUDIENCE}"),
    Row(errors.MissingPermission, post(ITEMS, json=NEW, by="publisher:NCAR"), NEW["id"], "ask the administrators"),
    Row(errors.MissingPermission, get("/snapshot"), "admin is no node", "a token with a role node:<name> is needed"),
    Row(errors.NotFound, get("/nothing"), "/nothing", "GET / has links"),
    Row(errors.NotFound, get("/vocabularies/CMIP9"), "'CMIP9'", "there are CMIP6"),
    Row(errors.ItemDoesNotExist, get(f"{ITEMS}/{NEW['id']}"), NEW["id"], "a search lists those"),
    Row(errors.ItemDoesNotExist, patch(f"{ITEMS}/{NEW['id']}", json=NOTE), NEW["id"], "a search lists those"),
    Row(errors.CollectionDoesNotExist, get("/collections/CMIP9"), "'CMIP9'", "GET /collections lists"),
    Row(errors.CollectionDoesNotExist, post("/collections/CMIP9/items", json=NEW), "'CMIP9'", "POST /collections"),
    Row(errors.RequestDoesNotExist, get(f"/requests/{UUID(int=7)}"), str(UUID(int=7)), "GET /requests lists"),
    Row(errors.MethodNotAllowed, delete("/search"), "/search does not take DELETE", "it takes GET, HEAD, POST"),
    Row(errors.BodyTimeout, half_a_body, "the body paused for 5 s", "Send it again"),
    Row(errors.BodyTimeout, raw("west", head()), "headers were not complete after 5 s", "send them in one go"),
    Row(errors.CollectionAlreadyExists, post("/collections", json=sample.collection()), "CMIP6", "PUT /collections"),
    Row(errors.CollectionNotEmpty, delete("/collections/CMIP6"), "the collection CMIP6", "delete them first"),
    Row(errors.CollectionClosing, into_a_closing_collection, "the collection obs", "/collections/obs/cascade"),
    Row(errors.Conflict, patch(f"{ITEMS}/{RETRACTED['id']}", json=NOTE), RETRACTED["id"], "reinstate it"),
    Row(errors.MarkedForDeletion, patch(f"{ITEMS}/{MARKED['id']}", json=NOTE), MARKED["id"], "unmark it first"),
    Row(errors.DeletionNotReady, post(f"{ITEMS}/{MARKED['id']}/delete"), MARKED["id"], "wait for its end"),
    Row(errors.UnderQuarantine, quarantined_by_a_publisher, SUSPECT["id"], "the administrators"),
    Row(errors.ItemDeleted, get(f"{ITEMS}/{DELETED['id']}"), DELETED["id"], "never used again"),
    Row(errors.BulkChanged, post("/bulk", json=MANY), "1700 then", "look at the preview again"),
    Row(errors.BulkDoesNotExist, get(f"/bulk/{UUID(int=7)}"), "of many datasets", "GET /bulk lists those"),
    Row(errors.LoadNotConfirmed, post("/collections/CMIP6/reconcile"), "the load is empty", "say so with confirm="),
    Row(errors.LoadDoesNotExist, get(f"/loads/{UUID(int=7)}"), "full-state load", "begin one with POST"),
    Row(errors.Cancelled, taken_back, "cancelled by admin", "/retry sends it again"),
    Row(errors.ForeignOrigin, post(ITEMS, json=NEW, to="east"), "CMIP6 belongs to the node west", "publish there"),
    Row(errors.ItemAlreadyExists, post(ITEMS, json=with_other_files(STORED)), STORED["id"], "publish a new version"),
    Row(errors.CursorGone, get("/events?after=9.9", by="node:east"), "after 9.9", "take GET /snapshot"),
    Row(errors.PreconditionFailed, patch(f"{ITEMS}/{STORED['id']}", json=NOTE, headers={"If-Match": '"0-1"'}),
        STORED["id"], "read it again"),
    Row(errors.BodyTooLarge, post(ITEMS, json={"type": "FeatureCollection", "features": SAMPLES[:21]}),
        "more than 20 items", "which are the most: send several"),
    Row(errors.BodyTooLarge, raw("west", head("Content-Length: 99999999", "")), "67108864 bytes", "send fewer"),
    Row(errors.UnsupportedMediaType, post(ITEMS, content=b"<a/>", headers={"Content-Type": "text/xml"}), "'text/xml'",
        "send one of application/"),
    Row(errors.Misdirected, post(ITEMS, json=NCAR, to="strict"), "CMIP6 × NCAR", f"send this to {HOME}"),
    Row(errors.IdempotencyKeyReused, key_for_something_else, "'monday'", "take a new key"),
    Row(errors.PreconditionRequired, patch(f"{ITEMS}/{STORED['id']}", json=NOTE, to="strict"), "no If-Match", "ETag"),
    Row(errors.TooManyRequests, too_many_batches, "many large bodies", "send this one again in a moment"),
    Row(errors.HeadersTooLarge, get("/", headers={f"x-{n}": "" for n in range(99)}), "the headers", "send at most 100"),
    Row(errors.HeadersTooLarge, raw("west", head("x: " + "y" * 65536)), "the headers", "send at most 65536 bytes"),
    Row(errors.InternalError, get("/collections/CMIP6", to="damaged"), "this answer's x-request-id", "Try again later"),
    Row(errors.Unavailable, get("/collections/CMIP6", to="away"), "the database", "try again"),
    Row(errors.TakesTooLong, a_search_that_takes_too_long, "over 2 s", "ask for less at once"),
)  # fmt: skip


@pytest.mark.parametrize("row", TABLE, ids=lambda row: row.problem.name)
async def test_a_refusal_names_the_thing_and_the_remedy(nodes: Nodes, row: Row) -> None:
    answer = await row.way(nodes)
    document = await in_full(nodes, answer, row.problem)
    assert row.thing in document["detail"]
    assert row.remedy in document["detail"]


async def in_full(nodes: Nodes, answer: httpx.Response, problem: type[Problem]) -> Json:
    """Return the document of a refusal, after checking what is promised of it."""
    document: Json = answer.json()
    description = (answer.status_code, document["code"], document["title"])
    assert description == (problem.status, problem.name, problem.title), document
    assert answer.headers["content-type"] == "application/problem+json"
    assert answer.headers["cache-control"] == "no-store"
    assert answer.headers["x-request-id"]
    assert document["status"] == document["status_code"] == problem.status
    assert document["description"] == document["detail"]
    assert document["instance"] == path_in(answer)
    assert not [word for word in INSIDE if word in answer.text], "a refusal shows nothing of the inside"
    for finding in document["errors"]:
        assert finding.keys() >= {"rule", "pointer", "detail"}
        assert finding["rule"]
        assert finding["detail"]
        assert finding["pointer"] == "" or finding["pointer"].startswith("/")
        assert finding.get("suggestion") != ""
    assert bool(document["errors"]) == (problem in WITH_FINDINGS)
    await check_explanation(document, problem)
    await check_what_goes_with(nodes, answer, problem)
    return document


def path_in(answer: httpx.Response) -> str:
    """Return the path of the request, as it was sent; of bytes on a socket, what the server could read of them."""
    try:
        return answer.request.url.raw_path.decode().partition("?")[0]
    except RuntimeError:  # httpx has not sent it
        return ITEMS if answer.headers.get("date") else ""


async def check_explanation(document: Json, problem: type[Problem]) -> None:
    """Check that the type is an address, with a page that explains it."""
    async with httpx.AsyncClient(trust_env=False) as http:
        page = await http.get(document["type"])
    explained = page.json()
    assert page.status_code == 200
    assert (explained["type"], explained["name"]) == (document["type"], problem.name)
    assert (explained["status"], explained["title"]) == (problem.status, problem.title)
    assert explained["description"]


async def check_what_goes_with(nodes: Nodes, answer: httpx.Response, problem: type[Problem]) -> None:
    """Check the headers and members that some refusals have beside."""
    assert ("retry-after" in answer.headers) == issubclass(problem, (errors.TooManyRequests, errors.Unavailable))
    assert int(answer.headers.get("retry-after", 1)) > 0
    assert ("www-authenticate" in answer.headers) == issubclass(problem, errors.Unauthenticated)
    if challenge := answer.headers.get("www-authenticate"):
        sent_one = "authorization" in answer.request.headers
        assert challenge.startswith("Bearer ")
        assert ('error="invalid_token"' in challenge) == sent_one
        metadata = re.search(r'resource_metadata="([^"]+)"', challenge)
        assert metadata
        assert (await nodes.west.anyone.get(metadata[1])).status_code == 200
    assert ("allow" in answer.headers) == (problem is errors.MethodNotAllowed)
    home = {"node": "south", "href": HOME} if problem is errors.Misdirected else None
    assert answer.json().get("home") == home


async def test_the_table_has_every_problem() -> None:
    assert {row.problem for row in TABLE} == set(errors.problems())
