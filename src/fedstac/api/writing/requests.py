"""Following a request: its results, item by item, and where it is visible."""

from __future__ import annotations

from typing import Any, NamedTuple
from uuid import UUID

import orjson
from starlette.responses import Response

from fedstac.api.call import Call
from fedstac.api.http import links, no_store, numbers
from fedstac.bootstrap import Node
from fedstac.db import requests
from fedstac.db.connections import Connection
from fedstac.domain.errors import BadRequest, RequestDoesNotExist
from fedstac.domain.model import rfc3339
from fedstac.domain.policy import Principal

STATUSES = ("queued", "done", "rejected", "failed")
PAGE, LARGEST_PAGE = 100, 5000
OWN_PAGE, LARGEST_OWN_PAGE = 20, 100  # requests, each of up to 5 000 items that are counted


async def get_requests(call: Call) -> Response:
    """List the caller's requests, the newest first."""
    limit = max(1, numbers.whole(call.query_params, "limit", default=OWN_PAGE, most=LARGEST_OWN_PAGE))
    try:
        after = UUID(call.query_params["after"]) if "after" in call.query_params else None
    except ValueError:
        raise BadRequest("after is not the id of a request; send one, or leave it out") from None
    async with call.node.pool.acquire() as conn:
        requests_of_caller = await requests.of_submitter(conn, call.caller.name, after=after, limit=limit + 1)
    url = f"{call.base_url}/requests"
    more = {"limit": limit, "after": requests_of_caller[limit - 1].id} if len(requests_of_caller) > limit else None
    entries = [
        {"id": str(one.id), "status": one.status, "action": one.action, "collection": one.collection,
         "total": one.total, "counts": {status: one.counts.get(status, 0) for status in STATUSES},
         "cancelled": one.cancelled, "created": rfc3339(one.created)}
        for one in requests_of_caller[:limit]
    ]  # fmt: skip
    body = {"requests": entries, "links": links.of_page(url, more)}
    return no_store.answer(body)


async def get_request(call: Call) -> Response:
    """Return a request: what became of it, and where that is visible."""
    summary = await readable(call.node, call.caller, call.path_params["request_id"])
    async with call.node.pool.acquire() as conn:
        body = await request_document(conn, call.base_url, summary)
    return no_store.answer(body)


async def get_request_items(call: Call) -> Response:
    """List the results of a request, in the order of the batch."""
    summary = await readable(call.node, call.caller, call.path_params["request_id"])
    status, limit, after = _page(call)
    async with call.node.pool.acquire() as conn:
        results = await requests.results(conn, summary.id, status=status, after=after, limit=limit + 1)
    url = links.request_url(call.base_url, summary.id) + "/items"
    filters = {"status": status} if status else {}
    more = {"limit": limit, "after": results[limit - 1].n, **filters} if len(results) > limit else None
    body = {"items": [_item(call.base_url, result) for result in results[:limit]], "links": links.of_page(url, more)}
    return no_store.answer(body)


class ResultsPage(NamedTuple):
    """Which results of a request: of a status, so many, after a number."""

    status: str | None
    limit: int
    after: int


def _page(call: Call) -> ResultsPage:
    status = call.query_params.get("status")
    if status is not None and status not in STATUSES:
        raise BadRequest(f"status={status[:20]!r} is not one of {', '.join(STATUSES)}")
    limit = numbers.whole(call.query_params, "limit", default=PAGE, most=LARGEST_PAGE)
    return ResultsPage(status, max(1, limit), numbers.whole(call.query_params, "after", default=-1, most=1 << 30))


async def readable(node: Node, caller: Principal, request_id: str) -> requests.Summary:
    """Return a request of the caller's, or any one to an administrator; to others it is as if there were none."""
    try:
        number = UUID(request_id)
    except ValueError:
        raise RequestDoesNotExist(
            f"{request_id[:80]!r} is not the id of a request, which is a UUID; GET /requests lists yours"
        ) from None
    async with node.pool.acquire() as conn:
        summary = await requests.summary(conn, number)
    if summary is None or not (caller.is_admin or caller.name == summary.submitter):
        raise RequestDoesNotExist(f"there is no request {number} of yours; GET /requests lists those you have")
    return summary


async def request_document(conn: Connection, base: str, summary: requests.Summary) -> dict[str, Any]:
    """Return a request as it is shown: status, counts, problems of the first items, and where it is visible."""
    nodes = await requests.visible(conn, summary.pos) if summary.pos is not None else []
    problems = [
        result
        for status in ("rejected", "failed") if summary.counts.get(status)
        for result in await requests.results(conn, summary.id, status=status, after=-1, limit=20)
    ]  # fmt: skip
    url = links.request_url(base, summary.id)
    return {
        "id": str(summary.id),
        "status": summary.status,
        "action": summary.action,
        "collection": summary.collection,
        "total": summary.total,
        "counts": {status: summary.counts.get(status, 0) for status in STATUSES},
        "outcomes": summary.outcomes,
        "warned": summary.warned_items,
        "unchanged": summary.is_final and summary.last_event is None and bool(summary.counts.get("done")),
        "created": rfc3339(summary.created),
        "finished": rfc3339(summary.finished) if summary.finished else None,
        "submitter": summary.submitter,
        "user_agent": summary.user_agent,
        "correlation": summary.correlation,
        "cv_version": summary.cv_version,
        **({"retry_of": str(summary.retry_of)} if summary.retry_of else {}),
        "position": summary.pos,
        "visible": [{"node": node, "since": rfc3339(at) if at else None} for node, at in nodes],
        "problems": [_item(base, result) for result in problems[:20]],
        "links": [
            {"rel": "self", "type": links.JSON, "href": url},
            {"rel": "items", "type": links.JSON, "href": url + "/items"},
        ],
    }


def _item(base: str, result: requests.StoredResult) -> dict[str, Any]:
    body: dict[str, Any] = {"n": result.n, "id": result.dataset, "status": result.status, "outcome": result.outcome}
    if result.problem:
        body |= {"type": result.problem, "detail": result.detail}
    if result.deletion is not None:
        body["deletion"] = links.deletion_url(base, result.deletion)
    if result.findings:
        body["findings"] = orjson.loads(result.findings)
    return body
