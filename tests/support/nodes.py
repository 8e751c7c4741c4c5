"""Running nodes: the real application behind real uvicorn on a loopback port, in the test's own event loop."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import asyncpg
import httpx

from fedstac.api import app
from fedstac.console.routes import CONSOLE
from fedstac.db import nodes
from fedstac.demo import sample
from fedstac.demo.embedded import Cluster
from fedstac.settings import Settings
from fedstac.workers import roles
from tests.support.databases import databases, name_in
from tests.support.waiting import PATIENCE

Json = dict[str, Any]


@dataclass(frozen=True)
class Api:
    """A node that answers, and clients for it."""

    url: str
    settings: Settings
    admin: httpx.AsyncClient
    anyone: httpx.AsyncClient
    tokens: dict[str, str]


@asynccontextmanager
async def running(settings: Settings, *, background: bool = True) -> AsyncIterator[Api]:
    listening = socket.create_server(("127.0.0.1", 0))
    listening.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)  # as uvloop does; asyncio does not, for this socket
    url = f"http://127.0.0.1:{listening.getsockname()[1]}"
    base_url = settings.public_url or url
    role = roles.INDEX if settings.source else roles.PUBLISH
    settings = settings if background else settings.model_copy(update={"run_workers": False})
    pages = [CONSOLE] if settings.console and role is roles.PUBLISH else []  # as `fedstac serve` does
    application = app.create(settings, base_url, roles=[role], undescribed=pages)
    uvicorn = app.running_on(application, settings, base_url)
    task = asyncio.create_task(uvicorn.serve(sockets=[listening]))
    while not uvicorn.started:
        if task.done():
            await task
        await asyncio.sleep(0.01)
    tokens = await issue_tokens(settings.dsn)
    bearer = {"Authorization": f"Bearer {tokens['admin']}"}
    try:
        async with (
            httpx.AsyncClient(base_url=url, headers=bearer, timeout=PATIENCE, trust_env=False) as admin,
            httpx.AsyncClient(base_url=url, timeout=PATIENCE, trust_env=False) as anyone,
        ):
            yield Api(url, settings, admin, anyone, tokens)
    finally:
        uvicorn.should_exit = True
        await asyncio.wait_for(task, PATIENCE)


@asynccontextmanager
async def publishing(cluster: Cluster, template: str, items: Mapping[str, Sequence[Json]]) -> AsyncIterator[Api]:
    """Run the node `west` on a database of its own, with these datasets by collection; they are published in order."""
    with databases(cluster, template) as make:
        settings = Settings(dsn=make(), node="west", default_wait_seconds=60, _env_file=None)
        async with running(settings) as api:
            for name, documents in items.items():
                assert (await api.admin.post("/collections", json=sample.collection(name))).status_code == 201
                body = {"type": "FeatureCollection", "features": documents}
                answer = await api.admin.post(f"/collections/{name}/items", json=body)
                assert answer.json()["counts"]["done"] == len(documents), answer.text
            yield api


@asynccontextmanager
async def catalogue_of_west(cluster: Cluster, template: str) -> AsyncIterator[str]:
    """Make a database in which the node `west` has made the collection CMIP6, and yield its name. No token is left."""
    with databases(cluster, template) as make:
        dsn = make()
        async with running(Settings(dsn=dsn, node="west", _env_file=None)) as api:
            (await api.admin.post("/collections", json=sample.collection())).raise_for_status()
        conn = await asyncpg.connect(dsn)
        await conn.execute("DELETE FROM fedstac.token")
        await conn.close()
        yield name_in(dsn)


async def issue_tokens(dsn: str) -> dict[str, str]:
    conn = await asyncpg.connect(dsn)
    try:
        roles = ("admin", "publisher:NCAR", "node:east", "node:south")
        return {role: await nodes.issue_token(conn, role, [role]) for role in roles}
    finally:
        await conn.close()


StartApi = Callable[..., Awaitable[Api]]
