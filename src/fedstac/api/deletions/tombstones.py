"""Tombstones over HTTP, for those who may delete: what became of a dataset that is gone."""

from __future__ import annotations

from datetime import datetime
from typing import Any, Final

import orjson
from starlette.responses import Response

from fedstac.api.call import Call
from fedstac.api.http import links, numbers
from fedstac.db import tombstones
from fedstac.db.tombstones import Tombstone, TombstonePlace
from fedstac.domain.errors import BadRequest
from fedstac.domain.model import moment, rfc3339
from fedstac.domain.policy import Action, Principal, Resource

PRIVATE: Final = {"Cache-Control": "private, no-store", "Vary": "Authorization"}
DEFAULT_PAGE, MOST_TOMBSTONES = 100, 1000


def may_see(call: Call, caller: Principal, tombstone: Tombstone) -> bool:
    """Tell whether a caller might have deleted the dataset. Whose it was is known only to the node that deleted it."""
    resource = Resource(tombstone.id, tombstone.collection, tombstone.institution or "*")
    return call.node.policy.may_one_of(caller, (Action.DELETE,), resource)


def document_of(tombstone: Tombstone) -> dict[str, Any]:
    """Return a tombstone as JSON."""
    return {
        "collection": tombstone.collection, "id": tombstone.id, "state": tombstone.state, "origin": tombstone.origin,
        "deleted_at": rfc3339(tombstone.deleted_at), "deleted_by": tombstone.deleted_by,
        "updated": rfc3339(tombstone.updated), "deletion": str(tombstone.deletion) if tombstone.deletion else None,
    }  # fmt: skip


def answer(tombstone: Tombstone) -> Response:
    """Answer with one tombstone."""
    return Response(orjson.dumps(document_of(tombstone)), 200, PRIVATE, links.JSON)


async def get_tombstones(call: Call) -> Response:
    """List the datasets that are deleted or purged, those that changed last first.

    For those who may delete every dataset: of all collections, or of the one that `collection` names.
    """
    collection = call.query_params.get("collection") or None
    call.node.policy.require(call.caller, Action.DELETE, Resource("the tombstones", collection or "*", "*"))
    limit = max(numbers.whole(call.query_params, "limit", default=DEFAULT_PAGE, most=MOST_TOMBSTONES), 1)
    since, after = _since(call), _after(call)
    async with call.node.search_pool.acquire() as conn:
        page = await tombstones.page(conn, collection=collection, since=since, after=after, limit=limit + 1)
    last = page[limit - 1] if len(page) > limit else None
    body = {
        "tombstones": [document_of(each) for each in page[:limit]],
        "links": [_next_link(call, last)] if last else [],
    }
    return Response(orjson.dumps(body), 200, PRIVATE, links.JSON)


def _since(call: Call) -> datetime | None:
    text = call.query_params.get("since")
    if not text:
        return None
    since = moment(text)
    if since is None:
        raise BadRequest(f"since={text[:40]!r} is no time; give one as 2026-11-29T00:00:00Z")
    return since


def _after(call: Call) -> TombstonePlace | None:
    text = call.query_params.get("after")
    if not text:
        return None
    updated, collection, id = (*text.split("/", 2), "", "")[:3]
    at = moment(updated)
    if at is None or not id:
        raise BadRequest(f"after={text[:40]!r} is no place in the list; take that of the link `next`")
    return TombstonePlace(at, collection, id)


def _next_link(call: Call, last: Tombstone) -> dict[str, str]:
    after = f"{rfc3339(last.updated)}/{last.collection}/{last.id}"
    return links.next_page(call.base_url + call.path, {**call.query_params, "after": after})
