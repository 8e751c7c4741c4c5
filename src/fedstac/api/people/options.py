"""OPTIONS: what a caller may send to a resource (RFC 9110, 10.2.1). STAC Browser offers editing by it."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import orjson
from starlette.requests import Request
from starlette.responses import Response

from fedstac.api.people import identity
from fedstac.bootstrap import Node
from fedstac.db import collections, search
from fedstac.domain.errors import CollectionDoesNotExist, ItemDoesNotExist
from fedstac.domain.policy import Action, Principal, Touched

READ = ("GET", "HEAD", "OPTIONS")
OF_ITEM = (
    ("PATCH", (Action.UPDATE, Action.ANNOTATE, Action.SUPERSEDE, Action.RETRACT, Action.REPLICATE)),
    ("PUT", (Action.UPDATE,)), ("DELETE", (Action.MARK,)),
)  # fmt: skip


async def options_item(request: Request) -> Response:
    """OPTIONS /collections/{collection_id}/items/{item_id}."""
    principal = await _known(request)
    if principal is None:
        return _allow(READ)
    node: Node = request.app.state.node
    collection, item_id = request.path_params["collection_id"], request.path_params["item_id"]
    async with node.pool.acquire() as conn:
        found = await search.item(conn, collection, item_id)
    if found is None:
        raise ItemDoesNotExist(f"there is no dataset {item_id[:512]!r} in {collection}; a search lists those there are")
    vocabulary = await node.vocabulary(collection, found[0].cv_version)
    said = orjson.loads(found[0].document)["properties"].get(vocabulary.institution) if vocabulary else None
    touched = Touched(item_id, collection, said if isinstance(said, str) else None)
    may = partial(node.policy.may_one_of, principal, touched=touched)
    return _allow((*READ, *(method for method, actions in OF_ITEM if may(actions=actions))))


async def options_items(request: Request) -> Response:
    """OPTIONS /collections/{collection_id}/items: POST for whoever may publish something of the project."""
    principal, node = await _known(request), request.app.state.node
    collection = await _collection(request)
    may = principal is not None and node.policy.may_somewhere(principal, Action.PUBLISH, collection)
    return _allow((*READ, "POST") if may else READ)


async def options_collection(request: Request) -> Response:
    """OPTIONS /collections/{collection_id}."""
    may = await _may_manage(request, await _collection(request))
    return _allow((*READ, "PUT", "PATCH", "DELETE") if may else READ)


async def options_collections(request: Request) -> Response:
    """OPTIONS /collections."""
    return _allow((*READ, "POST") if await _may_manage(request, "*") else READ)


def _allow(methods: Sequence[str]) -> Response:
    return Response(status_code=204, headers={"Allow": ", ".join(methods), "Cache-Control": "no-store"})


async def _known(request: Request) -> Principal | None:
    """The caller; None for somebody who does not say who they are."""
    return await identity.principal(request) if "authorization" in request.headers else None


async def _collection(request: Request) -> str:
    node: Node = request.app.state.node
    named: str = request.path_params["collection_id"]
    async with node.pool.acquire() as conn:
        if await collections.get(conn, named) is None:
            raise CollectionDoesNotExist(f"there is no collection {named[:128]!r} here; GET /collections lists them")
    return named


async def _may_manage(request: Request, collection: str) -> bool:
    principal, node = await _known(request), request.app.state.node
    touched = Touched(collection, collection, None)
    return principal is not None and node.policy.may_one_of(principal, (Action.COLLECTIONS,), touched)
