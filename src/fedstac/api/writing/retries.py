"""A request that is taken back while it waits, or whose refused items are tried again."""

from __future__ import annotations

import orjson
from starlette.responses import Response

from fedstac import publication
from fedstac.api.call import Call
from fedstac.api.http import links, preconditions
from fedstac.api.writing import changes, intake, items
from fedstac.api.writing import requests as own_requests
from fedstac.db import requests
from fedstac.domain.errors import Conflict
from fedstac.domain.policy import Principal


async def post_cancel(call: Call) -> Response:
    """POST /requests/{request_id}/cancel: what waits of it becomes final, as cancelled; what is done stays done."""
    summary = await own_requests.readable(call)
    principal = call.caller
    node = call.node
    async with node.pool.acquire() as conn:
        cancelled = await publication.cancel(conn, summary.id, principal.name)
        node.settled.wake()
        after = await requests.summary(conn, summary.id) or summary
        body = await own_requests.request_document(conn, call.base_url, after)
    said = {"cancelled": cancelled, **body}
    return Response(orjson.dumps(said), media_type=links.JSON, headers={"Cache-Control": "no-store"})


async def post_retry(call: Call) -> Response:
    """POST /requests/{request_id}/retry: a new request of what was rejected or failed, judged as of now.

    The old one stays as it is; the new one names it in `retry_of`.
    """
    summary = await own_requests.readable(call)
    principal = call.caller
    node = call.node
    if not summary.is_final:
        raise Conflict(f"the request {summary.id} is {summary.status}; wait until it is final, or cancel it first")
    if not summary.counts.keys() & {"rejected", "failed"}:
        raise Conflict(f"nothing of the request {summary.id} was rejected or failed: there is nothing to try again")
    if summary.action == "publish":
        return await _publish(call, principal, summary)
    async with node.pool.acquire() as conn:
        [(dataset, document)] = await requests.refused_items(conn, summary.id)
    target = (summary.collection, dataset)
    return await changes.accept(call, target, summary.action, orjson.loads(document), summary.id)


async def _publish(call: Call, principal: Principal, summary: requests.Summary) -> Response:
    node = call.node
    single = summary.total == 1

    async def read() -> bytes:
        async with node.pool.acquire() as conn:
            refused = await requests.refused_items(conn, summary.id)
        if not refused:
            raise Conflict(f"of what was rejected of the request {summary.id} nothing was JSON; send it again, mended")
        return b"\n".join(document.encode() for _, document in refused)

    kind = intake.JSON_TYPES[-1] if single else intake.LINE_TYPES[0]
    only_new = summary.only_new or preconditions.wants_new(call.headers)
    body = items.Body(summary.collection, read, kind, summary.id, only_new)
    return await items.publish(call, node, principal, body, large=not single)
