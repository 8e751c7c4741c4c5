"""GET /private: the private datasets that the caller has a right to. No search finds them."""

from __future__ import annotations

import base64
from typing import Any, Final

import orjson
from starlette.responses import Response

from fedstac.api.call import Call
from fedstac.api.http import links, numbers
from fedstac.api.search import views
from fedstac.db import collections, grant_rights, private
from fedstac.db.private import START, UNSAID, Place, PrivatePlaces
from fedstac.db.search import ServedItem
from fedstac.domain.access import View
from fedstac.domain.errors import BadRequest
from fedstac.domain.groups import ANY
from fedstac.domain.model import rfc3339
from fedstac.domain.policy import READING, Policy, Principal, Resource

DEFAULT_PAGE, MOST_PAGE = 50, 1000
LOOKED_AT: Final = 200  # datasets that one look reads
MOST_HELD: Final = 10_000  # grants of a caller that are looked up one by one; with more, their collections are read


async def get_private(call: Call) -> Response:
    """List the private datasets that the caller has a right to, by collection and id; no search finds them.

    A right is a grant, or a rule that lets the caller publish, update or replicate the dataset. Who has a right to none
    gets an empty list, whatever there is. `href` leads to the dataset, and the link `next` to the next page.
    """
    limit = max(numbers.whole(call.query_params, "limit", default=DEFAULT_PAGE, most=MOST_PAGE), 1)
    place = _read_token(call.query_params.get("token"))
    collection = call.query_params.get("collection")
    places = await _places(call, collection)
    shown_items: list[ServedItem] = []
    is_end = False
    while len(shown_items) <= limit and not is_end:
        async with call.node.search_pool.acquire() as conn:
            items = await private.after(conn, places, place, LOOKED_AT)
        if items:
            read_views = await views.views_of(call, call.caller, items)
            shown_items += [item for item in items if read_views[item.collection, item.id] > View.NOTHING]
            place = (items[-1].collection, items[-1].id)
        is_end = len(items) < LOOKED_AT
    page, has_more = shown_items[:limit], len(shown_items) > limit
    parameters = {"limit": str(limit), **({"collection": collection} if collection is not None else {})}
    following = {**parameters, "token": _token(page[-1])} if has_more else None
    body = {
        "datasets": [_document(call, each) for each in page],
        "links": links.of_page(f"{call.base_url}/private", following),
    }
    return Response(orjson.dumps(body), headers=views.PRIVATE, media_type=links.JSON)


async def _places(call: Call, collection: str | None) -> PrivatePlaces:
    """Return where private datasets may be that the caller has a right to, of one collection or of all.

    By the policy these are whole collections, or those of institutions: nobody reads past what others have.
    """
    caller, policy = call.caller, call.node.policy
    async with call.node.search_pool.acquire() as conn:
        names = await collections.names(conn)
        projects = [name for name in names if collection in (None, name)]
        holdings = await grant_rights.holdings(conn, caller.name, most=MOST_HELD)
        by_grant = holdings.projects if holdings is not None else await grant_rights.collections_of(conn, caller.name)
        whole = {name for name in projects if name in by_grant or _may_read(policy, caller, name, ANY)}
        some = [
            name for name in projects
            if name not in whole and policy.may_one_somewhere(caller, READING, name)
        ]  # fmt: skip
        places = await private.institutions(conn, some) if some else []
    institutions = [
        (name, institution) for name, institution in places
        if institution == UNSAID or _may_read(policy, caller, name, institution or None)
    ]  # fmt: skip
    if holdings is None:
        return PrivatePlaces(sorted(whole), institutions)
    return PrivatePlaces(
        sorted(whole), institutions, [key for key in holdings.lineages if key.partition("/")[0] in projects],
        [dataset for dataset in holdings.datasets if dataset[0] in projects],
    )  # fmt: skip


def _may_read(policy: Policy, caller: Principal, project: str, institution: str | None) -> bool:
    """Tell whether the policy lets a caller read the private datasets of an institution of a project."""
    resource = Resource(f"private datasets of {project}", project, institution)
    return caller.is_admin or policy.without_homes.may_one_of(caller, READING, resource)


def _document(call: Call, item: ServedItem) -> dict[str, Any]:
    href = links.item_url(call.base_url, item.collection, item.id)
    return {
        "collection": item.collection, "id": item.id, "state": item.state, "updated": rfc3339(item.updated),
        "href": f"{href}?access=full",
    }  # fmt: skip


def _token(item: ServedItem) -> str:
    return base64.urlsafe_b64encode(orjson.dumps([item.collection, item.id])).decode()


def _read_token(text: str | None) -> Place:
    """Return the place of a token. BadRequest where this server gave no such token."""
    if text is None:
        return START
    try:
        match orjson.loads(base64.urlsafe_b64decode(text)):
            case [str(collection), str(id)] if "\0" not in collection + id:
                return collection, id
    except ValueError:
        pass
    raise BadRequest("token is not one that this server gave; take that of the link `next`")
