"""A request has one deadline for all of its work, and a lane of connections: what is slow holds up nobody else."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, closing, suppress
from functools import partial

import asyncpg
import httpx
import pytest
from starlette.datastructures import Headers

from fedstac.api.http import bodies
from fedstac.api.http.endpoint import client_of
from fedstac.columns import memory
from fedstac.demo import embedded, sample
from fedstac.domain.errors import BadRequest
from fedstac.runtime import capacity, shares
from tests.support.garbage import objects_of, uncollected
from tests.support.nodes import Api, StartApi
from tests.support.processes import children

HANG_GUARD = 30.0
BLOCKED = (
    "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock' "
    "AND application_name LIKE 'fedstac %'"
)


@asynccontextmanager
async def searches_blocked(cluster: embedded.Cluster, dsn: str) -> AsyncIterator[asyncpg.Connection[asyncpg.Record]]:
    """Make every search wait in the database. Yield a connection that sees them."""
    conn = await asyncpg.connect(cluster.dsn(dsn.rpartition("/")[2].partition("?")[0]))
    try:
        async with conn.transaction():
            await conn.execute("LOCK TABLE pgstac.items IN ACCESS EXCLUSIVE MODE")
            yield conn
    finally:
        await conn.close()


async def blocked(conn: asyncpg.Connection[asyncpg.Record], number: int) -> None:
    """Wait until so many searches wait in the database."""
    async with asyncio.timeout(HANG_GUARD):
        while await conn.fetchval(BLOCKED) != number:
            await conn.execute("SELECT pg_stat_clear_snapshot()")
            await asyncio.sleep(0.01)


@pytest.fixture
async def hasty(start_api: StartApi, dsn: str) -> Api:
    """A node whose requests have a second."""
    started = await start_api(dsn=dsn, columns=False, request_seconds=1.0, anonymous_pool_size=2, reader_pool_size=2)
    assert (await started.admin.post("/collections", json=sample.collection())).status_code == 201
    return started


async def test_a_request_ends_at_its_deadline_and_so_does_its_statement(
    hasty: Api, cluster: embedded.Cluster, dsn: str
) -> None:
    async with searches_blocked(cluster, dsn) as conn:
        response = await hasty.anyone.get("/search")
        await blocked(conn, 0)
    assert response.status_code == 503
    assert response.json()["type"].endswith("/takes-too-long")
    assert int(response.headers["retry-after"]) > 0


async def test_the_connections_of_requests_that_ended_are_used_again(
    hasty: Api, cluster: embedded.Cluster, dsn: str
) -> None:
    async with searches_blocked(cluster, dsn):
        for _ in range(3):
            assert (await hasty.anyone.get("/search")).status_code == 503
    assert (await hasty.anyone.get("/search")).status_code == 200


async def test_a_search_whose_client_left_ends_in_the_database(
    start_api: StartApi, cluster: embedded.Cluster, dsn: str
) -> None:
    api = await start_api(dsn=dsn, columns=False)
    async with searches_blocked(cluster, dsn) as conn:
        async with httpx.AsyncClient(base_url=api.url, trust_env=False) as leaving:
            search = asyncio.create_task(leaving.post("/search", json={"limit": 1}))
            await blocked(conn, 1)
            search.cancel()
            await asyncio.gather(search, return_exceptions=True)
        await blocked(conn, 0)


async def test_searches_of_anybody_hold_up_neither_health_nor_writes_nor_readers_with_a_token(
    start_api: StartApi, cluster: embedded.Cluster, dsn: str
) -> None:
    api = await start_api(dsn=dsn, columns=False, anonymous_pool_size=1)
    await api.admin.post("/collections", json=sample.collection())
    async with searches_blocked(cluster, dsn) as conn:
        searches = [asyncio.create_task(api.anyone.get("/search")) for _ in range(20)]
        await blocked(conn, 1)
        refused, _ = await asyncio.wait(searches, return_when=asyncio.FIRST_COMPLETED)
        assert (await api.anyone.get("/healthcheck")).status_code == 200
        assert (await api.admin.get("/collections")).status_code == 200
        assert (await api.admin.put("/collections/CMIP6", json=sample.collection())).status_code == 200
    answers = await asyncio.gather(*searches)
    assert {response.status_code for response in answers} == {200, 503}
    assert all(task.result().headers["retry-after"] for task in refused)


async def test_what_postgresql_has_to_search_leaves_connections_to_others_and_is_shared_among_clients(
    start_api: StartApi, cluster: embedded.Cluster, dsn: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Half of the connections are for it. A client that asks for much waits longer than one that asks for little."""
    monkeypatch.setattr(memory, "MOST_DOUBTFUL", 0)
    api = await start_api(dsn=dsn, anonymous_pool_size=2)
    await api.admin.post("/collections", json=sample.collection())
    headers = {"Prefer": "wait=30"}
    item = next(sample.items(1))
    assert (await api.admin.post("/collections/CMIP6/items", json=item, headers=headers)).status_code == 201

    def search(client: int) -> asyncio.Task[httpx.Response]:
        headers = {"X-Forwarded-For": f"10.9.9.9, 198.51.100.{client}"}
        body = {"filter": {"op": "like", "args": [{"property": "title"}, "%x%"]}}
        return asyncio.create_task(api.anyone.post("/search", json=body, headers=headers))

    assert (await search(1)).json()["numberMatched"] == 0  # and which properties there are is known
    async with searches_blocked(cluster, dsn) as conn:
        greedy = [search(1)]
        await blocked(conn, 1)
        greedy += [search(1) for _ in range(shares.WAITING_PER_CLIENT + 5)]
        refused, _ = await asyncio.wait(greedy, return_when=asyncio.FIRST_COMPLETED)
        assert {task.result().status_code for task in refused} == {429}
        assert all(task.result().headers["retry-after"] for task in refused)
        quick = await api.anyone.post("/search", json={"filter": {"op": "=", "args": [{"property": "latest"}, True]}})
        assert (quick.status_code, quick.json()["numberMatched"]) == (200, 1)
        modest = search(2)
        await blocked(conn, 1)
    ends = list[int]()
    modest.add_done_callback(lambda _: ends.extend([sum(task.done() for task in greedy)]))
    answers = await asyncio.gather(*greedy, modest)
    assert {answer.status_code for answer in answers} <= {200, 429, 503}
    assert answers[-1].status_code == 200
    assert ends[0] < len(greedy)


async def test_previews_of_changes_of_many_leave_connections_to_searches(
    start_api: StartApi, cluster: embedded.Cluster, dsn: str
) -> None:
    """They share half of the connections of their lane with the searches that PostgreSQL has to do."""
    api = await start_api(dsn=dsn, reader_pool_size=2)
    await api.admin.post("/collections", json=sample.collection())
    item = next(sample.items(1))
    headers = {"Prefer": "wait=30"}
    assert (await api.admin.post("/collections/CMIP6/items", json=item, headers=headers)).status_code == 201
    question = {"filter": {"op": "=", "args": [{"property": "latest"}, True]}}
    created = {"op": "<", "args": [{"property": "created"}, {"timestamp": "2999-01-01T00:00:00Z"}]}
    wish = {"action": "mark", "collections": ["CMIP6"], "filter": created}  # which memory cannot tell
    assert (await api.admin.post("/bulk/preview", json=wish)).json()["total"] == 1
    assert (await api.admin.post("/search", json=question)).json()["numberMatched"] == 1
    async with searches_blocked(cluster, dsn) as conn:
        previews = [asyncio.create_task(api.admin.post("/bulk/preview", json=wish)) for _ in range(4)]
        await blocked(conn, 1)
        assert (await api.admin.post("/search", json=question)).status_code == 200
        await blocked(conn, 1)
    answers = await asyncio.gather(*previews)
    assert {answer.status_code for answer in answers} <= {200, 503}
    assert answers[0].json()["total"] == 1


@pytest.mark.parametrize(
    ("peer", "forwarded", "wanted"),
    [
        ("193.0.14.129", "198.51.100.7", "193.0.14.129"),
        ("127.0.0.1", "10.1.1.1, 193.0.14.129", "193.0.14.129"),
        ("172.18.0.2", None, "172.18.0.2"),
        ("2001:67c:10ec:1::5", None, "2001:67c:10ec:1"),
        ("::1", "2001:67c:10ec:1:a::9", "2001:67c:10ec:1"),
    ],
)
def test_a_client_is_the_network_that_it_comes_from(peer: str, forwarded: str | None, wanted: str) -> None:
    headers = Headers({"X-Forwarded-For": forwarded} if forwarded else {})
    assert client_of({"client": (peer, 5)}, headers) == wanted


async def test_a_wait_that_the_caller_agreed_on_comes_on_top_of_the_deadline(start_api: StartApi, dsn: str) -> None:
    api = await start_api(dsn=dsn, request_seconds=1.0)
    node = {"Authorization": f"Bearer {api.tokens['node:east']}"}
    async with httpx.AsyncClient(base_url=api.url, headers=node, trust_env=False, timeout=HANG_GUARD) as east:
        response = await east.get("/events", params={"wait": 2})
    assert response.status_code == 200


@pytest.fixture
def stop_postgresql(cluster: embedded.Cluster) -> Iterator[Callable[[], None]]:
    """Stops every process of the cluster; the end of the test lets them go on."""
    stopped: list[int] = []

    def stop() -> None:
        for pid in (cluster.pid, *children(cluster.pid)):
            os.kill(pid, signal.SIGSTOP)
            stopped.append(pid)

    try:
        yield stop
    finally:
        for pid in reversed(stopped):
            os.kill(pid, signal.SIGCONT)


async def test_health_is_answered_while_postgresql_is_stopped(
    start_api: StartApi, dsn: str, stop_postgresql: Callable[[], None]
) -> None:
    api = await start_api(dsn=dsn, background=False, request_seconds=1.0)
    assert (await api.anyone.get("/healthcheck")).status_code == 200
    stop_postgresql()
    async with asyncio.timeout(HANG_GUARD):
        while (response := await api.anyone.get("/healthcheck")).status_code == 200:
            pass  # an answer is kept for a second
        again = await api.anyone.get("/healthcheck")
    assert (response.status_code, again.status_code) == (503, 503)
    assert response.headers["retry-after"]


async def test_searches_and_writes_are_answered_while_postgresql_is_stopped(
    api: Api, start_api: StartApi, dsn: str, stop_postgresql: Callable[[], None]
) -> None:
    hasty = await start_api(dsn=dsn, background=False, request_seconds=1.0)
    assert (await hasty.admin.get("/search")).status_code == 200
    stop_postgresql()
    async with asyncio.timeout(HANG_GUARD):
        answers = await asyncio.gather(
            hasty.anyone.get("/search"),
            hasty.admin.get("/search"),
            hasty.admin.put("/collections/CMIP6", json=sample.collection()),
        )
    assert [response.status_code for response in answers] == [503, 503, 503]


async def test_a_request_that_is_answered_is_kept_by_nothing(hasty: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    """What works for a request may be large: none of it may wait for the garbage collector."""
    monkeypatch.setattr(bodies, "WATCH_SECONDS", 0.0)  # its client is watched from the start
    with uncollected():
        assert (await hasty.anyone.get("/search")).status_code == 200
        await asyncio.sleep(0)  # the loop has done what it had at hand
        assert not objects_of(bodies.Peer)


class LargeBody:
    """What a thread works on."""


async def test_work_that_fails_in_a_thread_is_kept_by_nothing() -> None:
    def fail(_: LargeBody) -> None:
        raise BadRequest("it is wrong")

    threads = capacity.Threads()
    with closing(threads), uncollected():
        with suppress(BadRequest):
            await threads.run(partial(fail, LargeBody()))
        await asyncio.sleep(0)  # the loop has done what it had at hand
        assert not objects_of(LargeBody)
