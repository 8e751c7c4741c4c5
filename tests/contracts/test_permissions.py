"""Every route of the running application says whom it is for, and keeps to it."""

from __future__ import annotations

import itertools
import re
from collections import Counter
from collections.abc import AsyncIterator
from typing import Any
from uuid import UUID

import asyncpg
import httpx
import pytest
from starlette.routing import BaseRoute, Mount

from fedstac.api import app
from fedstac.api.people import me
from fedstac.api.route import Access, Route
from fedstac.db import nodes
from fedstac.demo import sample
from fedstac.domain.policy import Action
from fedstac.settings import Settings
from fedstac.workers import roles
from tests.support.nodes import Api
from tests.support.waiting import PATIENCE

CELLS = [(route.access, route.method, route.path) for route in app.TABLE if route.method != "OPTIONS"]
ITEM = next(sample.items(1))
REPLICA = {name: {"href": f"https://south.example/{name}.nc"} for name, asset in ITEM["assets"].items()
           if "file:checksum" in asset}  # fmt: skip
GROUP = {"name": "g", "project": "CMIP6", "institution": "NCAR", "title": ""}
BODIES: dict[tuple[str, str], Any] = {
    ("POST", "/collections"): {**sample.collection(), "id": "other"},
    ("PUT", "/collections/{collection_id}"): sample.collection(),
    ("PATCH", "/collections/{collection_id}"): {"title": "another"},
    ("POST", "/collections/{collection_id}/items"): ITEM,
    ("PUT", "/collections/{collection_id}/items/{item_id}"): {**ITEM, "links": []},
    ("PATCH", "/collections/{collection_id}/items/{item_id}"): {"properties": {"latest": False}},
    ("PUT", "/collections/{collection_id}/items/{item_id}/replicas/{node}"): REPLICA,
    ("POST", "/groups"): GROUP,
    ("PUT", "/groups/{group}"): GROUP,
    ("POST", "/sinks"): {"name": "made", "address": "https://portal.example/hook", "from": "now"},
    ("POST", "/sinks/{sink}/seek"): {"to": "now"},
    ("POST", "/subscriptions/{subscription}/ack"): {"cursor": "1.0"},
    ("POST", "/subscriptions/{subscription}/nack"): {"event_id": "x"},
    ("POST", "/subscriptions/{subscription}/seek"): {"cursor": "head"},
    ("POST", "/dead-letters/redrive"): {"ids": [7]},
    ("POST", "/dead-letters/discard"): {"ids": [7]},
    ("POST", "/parked-events/requeue"): {"ids": [7]},
    ("POST", "/parked-events/discard"): {"ids": [7]},
    ("PUT", "/deletions/rules/{project}"): {},
    ("POST", "/deletions/{deletion}/waive"): {"name": "east", "reason": "it is gone"},
    ("POST", "/events/status"): {"epoch": 1, "through": 0, "exceptions": []},
    ("POST", "/deletions/reports"): {"reports": []},
    ("POST", "/dapr/deletion-reports"): {"data": {"reports": []}},
}
PARTS = {
    "collection_id": "CMIP6",
    "item_id": ITEM["id"],
    "node": "south",
    "group": "g",
    "event": "7",
    "principal": "p",
    "destination_id": str(UUID(int=1)),
    "deletion": str(UUID(int=1)),
    "project": "CMIP6",
}


def served(routes: list[BaseRoute], prefix: str = "") -> set[tuple[str, str]]:
    """Return what an application answers to, by method and path."""
    found: set[tuple[str, str]] = set()
    for route in routes:
        path, included = prefix + getattr(route, "path", ""), getattr(route, "original_router", None)
        if isinstance(route, Mount) or included is not None:  # FastAPI keeps included routers whole
            inner: Any = route if isinstance(route, Mount) else included
            found |= served(list(inner.routes), path)
        else:
            found |= {(method, path) for method in getattr(route, "methods", None) or ("?",)}
    return {(method, path) for method, path in found if method not in ("HEAD", "OPTIONS")}


def test_every_route_is_declared_once_and_every_declaration_is_a_route() -> None:
    routes = served(app.create(Settings(_env_file=None), "http://node", roles=[roles.PUBLISH]).router.routes)
    declared = Counter((method, path) for _, method, path in CELLS)
    assert not [route for route, count in declared.items() if count > 1]
    assert routes - set(declared) == set(), "declare them in the routes.py of their room"
    assert set(declared) - routes == set(), "there is no such route"


def test_a_route_cannot_be_made_without_an_access_or_with_half_of_one() -> None:
    with pytest.raises(TypeError, match="access"):
        Route(method="GET", path="/x", handler=me.get_me)  # type: ignore[call-arg]
    with pytest.raises(ValueError, match="right"):
        Route(method="GET", path="/x", handler=me.get_me, access=Access.RIGHT)
    with pytest.raises(ValueError, match="right"):
        Route(method="GET", path="/x", handler=me.get_me, access=Access.PUBLIC, right=Action.GROUPS)


@pytest.fixture
async def callers(api: Api) -> AsyncIterator[dict[str, httpx.AsyncClient]]:
    """Clients of a node that has a dataset and a group; `stranger` is known and has no rights."""
    assert (await api.admin.post("/collections/CMIP6/items", json=ITEM)).status_code == 201
    path = f"/collections/CMIP6/items/{ITEM['id']}/replicas/south"
    other = {name: {"href": entry["href"] + "?moved"} for name, entry in REPLICA.items()}
    assert (await api.admin.put(path, json=other)).status_code == 200
    assert (await api.admin.post("/groups", json=GROUP)).status_code == 201
    conn = await asyncpg.connect(api.settings.dsn)
    try:
        token = await nodes.issue_token(conn, "stranger", ["observer"])
    finally:
        await conn.close()
    async with httpx.AsyncClient(
        base_url=api.url, headers={"Authorization": f"Bearer {token}"}, timeout=PATIENCE, trust_env=False
    ) as stranger:
        yield {"anyone": api.anyone, "stranger": stranger, "admin": api.admin}


async def ask(client: httpx.AsyncClient, method: str, path: str) -> httpx.Response:
    filled = re.sub(r"{(\w+)(:path)?}", lambda part: PARTS.get(part[1], "x"), path)
    return await client.request(method, filled, json=BODIES.get((method, path)))


async def test_every_route_keeps_to_what_it_declares(callers: dict[str, httpx.AsyncClient]) -> None:
    """Without a token 401 unless it is public; with one that has no rights 403 unless being known is enough."""
    wrong: list[tuple[object, ...]] = []
    for access, method, path in CELLS:
        without = (await ask(callers["anyone"], method, path)).status_code
        if (without == 401) is (access is Access.PUBLIC) or without == 403:
            wrong.append((method, path, "anyone", without))
        answer = await ask(callers["stranger"], method, path)
        if (answer.status_code == 403) is (access in (Access.PUBLIC, Access.AUTHENTICATED)):
            wrong.append((method, path, "stranger", answer.status_code, answer.text[:300]))
    assert not wrong, "\n".join(map(str, wrong))


async def test_what_is_not_declared_is_not_there(callers: dict[str, httpx.AsyncClient]) -> None:
    for method, path in itertools.product(("POST", "PUT", "PATCH", "DELETE"), ("/", "/nothing", "/admin", "/problems")):
        assert (await callers["admin"].request(method, path, json={})).status_code in (404, 405), (method, path)
