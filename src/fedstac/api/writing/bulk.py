"""Changes of many datasets: look first, then do what was shown, and follow it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final
from uuid import UUID

import orjson
from starlette.responses import Response

from fedstac.api.call import Call
from fedstac.api.http import links, no_store, numbers
from fedstac.api.people import identity
from fedstac.api.search import query as queries
from fedstac.api.search.reading import columns_at
from fedstac.columns.memory import PageQuestion
from fedstac.columns.plan import Plan
from fedstac.columns.selection import Evaluation, Selection
from fedstac.db import bulks
from fedstac.db.bulks import Bulk
from fedstac.db.connections import Connection
from fedstac.domain import bulk, strict_json
from fedstac.domain.bulk import MOST
from fedstac.domain.errors import BadRequest, BulkDoesNotExist
from fedstac.domain.policy import Resource
from fedstac.domain.reconcile import MOST as MOST_OF_LOAD
from fedstac.workers import bulk_changes
from fedstac.workers.bulk_changes import BulkRequest
from fedstac.workers.deleting import Caller

WISHES: Final = frozenset(("action", "digest", *bulk.MEMBERS.values()))  # the other members choose datasets
CONDITIONS: Final = frozenset(("ids", "collections", "filter", "query", "bbox", "intersects", "datetime", "q"))
EVERYTHING: Final = Resource("datasets of this node", "*", "*")
LONGEST_CONDITIONS: Final = 50_000  # bytes of JSON: they are stored, and shown with the change
PAGE, LARGEST_PAGE = 100, 5000
OWN_PAGE, LARGEST_OWN_PAGE = 20, 100


async def post_preview(call: Call) -> Response:
    """Show what a change of many datasets would do: how many, whose, and what depends on them. Nothing is stored.

    `digest` in the answer is of these datasets as they are now: `POST /bulk` takes it, and does what was shown.
    """
    body = await _body(call)
    async with call.services.shares.place(), call.node.pool.acquire() as conn:
        look = await bulk_changes.preview(call.node, conn, call.caller, await _choice(call, conn, body))
    return no_store.answer(look.as_json())


async def post_bulk(call: Call) -> Response:
    """Mark, unmark, quarantine or release many datasets: all those that the preview showed, or none.

    The body is that of the preview, with its `digest`. Where the datasets are others by now, or one of them has
    changed, the answer is 409 with the difference by count. The work is done beside other work; `Location` is where to
    follow it. The same request again is the same change.
    """
    body = await _body(call)
    async with call.node.pool.acquire() as conn:
        choice = await _choice(call, conn, body)
        job, is_new = await bulk_changes.start(
            call.node, conn, call.caller, choice, body.get("digest"), identity=identity.packed(call.caller),
            correlation=call.request_id, traceparent=call.traceparent,
        )  # fmt: skip
    location = f"{call.base_url}/bulk/{job.id}"
    return no_store.answer(_document(call, job), 202 if is_new else 200, Location=location)


async def get_bulks(call: Call) -> Response:
    """List the caller's changes of many datasets, the newest first; to administrators those of everybody."""
    limit = max(1, numbers.whole(call.query_params, "limit", default=OWN_PAGE, most=LARGEST_OWN_PAGE))
    after = _id(call.query_params["after"]) if "after" in call.query_params else None
    submitter = None if call.caller.is_admin else call.caller.name
    async with call.node.pool.acquire() as conn:
        page = await bulks.list_page(conn, submitter, after=after, limit=limit + 1)
    url = f"{call.base_url}/bulk"
    more = {"limit": limit, "after": page[limit - 1].id} if len(page) > limit else None
    return no_store.answer(
        {"bulks": [_document(call, each) for each in page[:limit]], "links": links.of_page(url, more)}
    )


async def get_bulk(call: Call) -> Response:
    """Return a change of many datasets: how far it is, how fast, and how long it will take."""
    async with call.node.pool.acquire() as conn:
        return no_store.answer(_document(call, await _readable(call, conn)))


async def get_bulk_datasets(call: Call) -> Response:
    """List what became of each dataset of a change, in the order of the work."""
    status = call.query_params.get("status")
    if status is not None and status not in bulks.STATUSES:
        raise BadRequest(f"status={status[:20]!r} is not one of {', '.join(bulks.STATUSES)}")
    limit = max(1, numbers.whole(call.query_params, "limit", default=PAGE, most=LARGEST_PAGE))
    after = numbers.whole(call.query_params, "after", default=0, most=MOST_OF_LOAD)
    async with call.node.pool.acquire() as conn:
        job = await _readable(call, conn)
        page = await bulks.results(conn, job.id, status=status, after=after, limit=limit + 1)
    url = f"{call.base_url}/bulk/{job.id}/datasets"
    filters = {"status": status} if status else {}
    more = {"limit": limit, "after": page[limit - 1].n, **filters} if len(page) > limit else None
    datasets = [
        {"n": each.n, "collection": each.collection, "id": each.dataset, "status": each.status,
         "outcome": each.outcome, **({"type": each.problem, "detail": each.detail} if each.problem else {})}
        for each in page[:limit]
    ]  # fmt: skip
    return no_store.answer({"datasets": datasets, "links": links.of_page(url, more)})


async def post_cancel(call: Call) -> Response:
    """End a change of many datasets where it stands. What is done stays done."""
    async with call.node.pool.acquire() as conn:
        job = await _readable(call, conn)
        now = await bulk_changes.cancel(conn, job, call.caller.name, correlation=call.request_id)
    return no_store.answer(_document(call, now))


# --- what is asked for ---


async def _body(call: Call) -> dict[str, Any]:
    raw = await call.body.read()
    body = await call.services.threads.run(lambda: strict_json.parse(raw))
    if not isinstance(body, dict):
        raise BadRequest('send a JSON object: {"action": "mark", "filter": "…", "collections": ["…"]}')
    return {name: value for name, value in body.items() if value is not None}


async def _choice(call: Call, conn: Connection, body: Mapping[str, Any]) -> BulkRequest:
    """Return what a body asks for. BadRequest or StacInvalid where it is not understood."""
    wish = bulk.read_wish(body)
    Caller(call.caller, call.node.policy).require_somewhere((bulk.RIGHTS[wish.action],), EVERYTHING)
    members = {name: value for name, value in body.items() if name not in WISHES}
    if not members.keys() & CONDITIONS:
        raise BadRequest("say which datasets: `ids`, or the members of a search such as `filter` and `collections`")
    if len(orjson.dumps({name: value for name, value in members.items() if name != "ids"})) > LONGEST_CONDITIONS:
        raise BadRequest(f"the conditions have over {LONGEST_CONDITIONS} bytes; choose by `ids`, which may be many")
    if "ids" in members:
        if others := sorted(members.keys() - {"ids", "collections"}):
            raise BadRequest(f"ids are members one by one; leave {', '.join(others)[:200]} out")
        ids = queries.strings("ids", members["ids"], MOST)
        if not ids:
            raise BadRequest("ids is empty; name at least one dataset")
        conditions = {}
        if "collections" in members:
            conditions["collections"] = queries.strings("collections", members["collections"], queries.MOST_IDS)
        return BulkRequest(wish, ids, conditions, {"ids": len(set(ids)), **conditions})
    is_hidden = wish.action in bulks.STATES
    if is_hidden and (unfit := sorted(members.keys() & {"q", "retracted"})):
        raise BadRequest(f"{', '.join(unfit)} is not taken here: the datasets are in no search; use `filter`")
    if foreign := sorted(members.keys() & {"sortby", "limit", "token", "fields", "access"}):
        raise BadRequest(f"{', '.join(foreign)} is for the pages of a search; all that a filter finds is changed")
    if isinstance(members.get("filter"), str):
        members.setdefault("filter-lang", "cql2-text")
    query = queries.from_body(members, call.node.settings)
    full, warnings = await call.services.queryables.understand(conn, query)
    conditions = dict(full.conditions)
    if is_hidden:
        conditions.pop("retracted", None)
        return BulkRequest(wish, None, conditions, members, warnings)
    return BulkRequest(wish, None, conditions, members, warnings, await _numbers_of(call, conn, conditions))


async def _numbers_of(call: Call, conn: Connection, conditions: Mapping[str, Any]) -> list[int] | None:
    """Return the numbers of the datasets that meet conditions, at most MOST and one; None where memory cannot tell."""
    if (columns := columns_at(call.services, conn)) is None:
        return None
    return await columns.count(conn, call.services.threads, PageQuestion(conditions), _first_hits, key=None)


def _first_hits(_: Evaluation, __: Plan, selection: Selection) -> list[int]:
    numbers: list[int] = selection.hits[: MOST + 1].tolist()
    return numbers


async def _readable(call: Call, conn: Connection) -> Bulk:
    """Return the change that the path names, of the caller's own, or any to an administrator."""
    job = await bulks.find(conn, _id(call.path_params["bulk_id"]))
    if job is None or not (call.caller.is_admin or call.caller.name == job.submitter):
        raise BulkDoesNotExist("there is no such change of many datasets of yours; GET /bulk lists those you have")
    return job


def _id(text: str) -> UUID:
    try:
        return UUID(text)
    except ValueError:
        raise BulkDoesNotExist(f"{text[:80]!r} is no id of a change of many datasets; GET /bulk lists yours") from None


def _document(call: Call, job: Bulk) -> dict[str, Any]:
    url = f"{call.base_url}/bulk/{job.id}"
    own_links = [
        {"rel": "self", "type": links.JSON, "href": url},
        {"rel": "datasets", "type": links.JSON, "href": f"{url}/datasets"},
    ]
    return {**bulk_changes.document_of(job), "links": own_links}
