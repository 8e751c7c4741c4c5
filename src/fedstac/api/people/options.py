"""OPTIONS: what a caller may send to a resource (RFC 9110, 10.2.1). STAC Browser offers editing by it."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import orjson
from starlette.responses import Response

from fedstac.api.call import Call
from fedstac.api.search import views
from fedstac.db import collections, search
from fedstac.domain.errors import CollectionDoesNotExist, ItemDoesNotExist
from fedstac.domain.policy import Action, Level, Resource

READ = ("GET", "HEAD", "OPTIONS")
OF_ITEM = (
    ("PATCH", (Action.UPDATE, Action.ANNOTATE, Action.SUPERSEDE, Action.RETRACT, Action.REPLICATE)),
    ("PUT", (Action.UPDATE,)), ("DELETE", (Action.MARK,)),
)  # fmt: skip


async def options_item(call: Call) -> Response:
    """Say what the caller may do with a dataset."""
    caller, node = await call.find_caller(), call.node
    if caller is None:
        return _allow(READ)
    collection, item_id = call.path_params["collection_id"], call.path_params["item_id"]
    with_private = await views.may_read_some_private(call, collection)
    async with node.pool.acquire() as conn:
        dataset = await search.item(conn, collection, item_id, with_private=with_private)
    if dataset is None or (dataset[0].access is Level.PRIVATE and not await views.may_read_hidden(call, dataset[0])):
        raise ItemDoesNotExist(f"there is no dataset {item_id[:512]!r} in {collection}; a search lists those there are")
    vocabulary = await node.vocabulary(collection, dataset[0].cv_version)
    institution = orjson.loads(dataset[0].document)["properties"].get(vocabulary.institution) if vocabulary else None
    resource = Resource(item_id, collection, institution if isinstance(institution, str) else None)
    may = partial(node.policy.may_one_of, caller, resource=resource)
    return _allow((*READ, *(method for method, actions in OF_ITEM if may(actions=actions))))


async def options_items(call: Call) -> Response:
    """Say what the caller may do with the datasets of a collection. POST is for those who may publish one of them."""
    caller = await call.find_caller()
    collection = await _collection(call)
    may = caller is not None and call.node.policy.may_somewhere(caller, Action.PUBLISH, collection)
    return _allow((*READ, "POST") if may else READ)


async def options_collection(call: Call) -> Response:
    """Say what the caller may do with a collection."""
    may = await _may_manage(call, await _collection(call))
    return _allow((*READ, "PUT", "PATCH", "DELETE") if may else READ)


async def options_collections(call: Call) -> Response:
    """Say what the caller may do with the list of collections."""
    return _allow((*READ, "POST") if await _may_manage(call, "*") else READ)


def _allow(methods: Sequence[str]) -> Response:
    return Response(status_code=204, headers={"Allow": ", ".join(methods), "Cache-Control": "no-store"})


async def _collection(call: Call) -> str:
    """Return the collection that the path names. CollectionDoesNotExist without one."""
    name: str = call.path_params["collection_id"]
    async with call.node.pool.acquire() as conn:
        if await collections.get(conn, name) is None:
            raise CollectionDoesNotExist(f"there is no collection {name[:128]!r} here; GET /collections lists them")
    return name


async def _may_manage(call: Call, collection: str) -> bool:
    caller = await call.find_caller()
    resource = Resource(collection, collection, None)
    return caller is not None and call.node.policy.may_one_of(caller, (Action.COLLECTIONS,), resource)
