"""Full-state loads in tests: what somebody states, and how a load is followed to its end."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import httpx
import orjson

from fedstac.client.documents import DocumentTrouble, ReadyDocument, entries
from tests.support.waiting import until

Json = dict[str, Any]
LINES = {"Content-Type": "application/x-ndjson"}
RECONCILE = "/collections/CMIP6/reconcile"


def lines(items: Sequence[Json]) -> bytes:
    return b"".join(orjson.dumps(item) + b"\n" for item in items)


async def state(client: httpx.AsyncClient, items: Sequence[Json], **parameters: str) -> httpx.Response:
    """State everything that shall exist in CMIP6."""
    return await client.post(RECONCILE, content=lines(items), headers=LINES, params=parameters)


async def compared_load(client: httpx.AsyncClient, items: Sequence[Json]) -> Json:
    """State everything, and return the load once it says what would change."""
    response = await state(client, items, dry_run="true")
    assert response.status_code in (200, 202), response.text
    return await compared_again(client, response.json()["id"], before=None)


async def compared_again(client: httpx.AsyncClient, id: str, *, before: str | None) -> Json:
    """Return a load once it was compared at another time than before."""

    async def has_changes() -> Json | None:
        load: Json = (await client.get(f"/loads/{id}")).json()
        return load if load["changes"] is not None and load["compared"] != before else None

    load = await until(has_changes)
    assert load is not None
    return load


async def end_of(client: httpx.AsyncClient, id: str) -> Json:
    async def ended() -> Json | None:
        load: Json = (await client.get(f"/loads/{id}")).json()
        return load if load["status"] not in ("collecting", "compared", "waiting", "running") else None

    load = await until(ended)
    assert load is not None
    return load


async def load(client: httpx.AsyncClient, items: Sequence[Json], **parameters: str) -> Json:
    """State everything, have it done, and return the load at its end."""
    response = await state(client, items, **parameters)
    assert response.status_code in (200, 202), response.text
    return await end_of(client, response.json()["id"])


def ready(items: Sequence[Json]) -> Iterator[ReadyDocument | DocumentTrouble]:
    """Return items as the client sends them."""
    return entries(items)
