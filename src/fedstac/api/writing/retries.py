"""A request that is cancelled while it waits, or whose refused items are tried again."""

from __future__ import annotations

from uuid import UUID

import orjson
from starlette.responses import Response

from fedstac import publication
from fedstac.api.call import Call, Services
from fedstac.api.http import no_store
from fedstac.api.writing import answers, changes, intake, items
from fedstac.api.writing import requests as own_requests
from fedstac.api.writing.admission import AcceptedRequest, EarlierRequest
from fedstac.api.writing.answers import DryRun, NoChange
from fedstac.api.writing.options import WriteOptions, options_of
from fedstac.bootstrap import Node
from fedstac.db import requests
from fedstac.domain.errors import Conflict
from fedstac.domain.policy import Principal
from fedstac.domain.texts import Text
from fedstac.runtime.spool import Spool


async def post_cancel(call: Call) -> Response:
    """Cancel a request: its waiting items become final. Items that are done stay done."""
    summary = await own_requests.readable(call.node, call.caller, call.path_params["request_id"])
    count = await cancel(call.node, call.caller, summary.id)
    async with call.node.pool.acquire() as conn:
        after = await requests.summary(conn, summary.id) or summary
        body = await own_requests.request_document(conn, call.base_url, after)
    return no_store.answer({"cancelled": count, **body})


async def post_retry(call: Call) -> Response:
    """Send the rejected and failed items of a request again, as a new request that is judged as of now.

    The old request stays as it is; the new one names it in `retry_of`.
    """
    summary = await own_requests.readable(call.node, call.caller, call.path_params["request_id"])
    return await answers.answer(call, await retry(call.services, call.caller, summary, options_of(call)))


async def cancel(node: Node, caller: Principal, request: UUID) -> int:
    """Make the waiting items of a request final; return how many they were."""
    async with node.pool.acquire() as conn:
        count = await publication.cancel(conn, request, caller.name)
    node.settled.wake()
    return count


async def retry(
    services: Services, caller: Principal, summary: requests.Summary, options: WriteOptions
) -> AcceptedRequest | EarlierRequest | DryRun | NoChange:
    """Send the refused items of a request again. Conflict where there are none, or the request is not final."""
    if not summary.is_final:
        raise Conflict(f"the request {summary.id} is {summary.status}; wait until it is final, or cancel it first")
    if not summary.counts.keys() & {"rejected", "failed"}:
        raise Conflict(f"nothing of the request {summary.id} was rejected or failed: there is nothing to try again")
    options = options.retrying(summary.id, only_new=summary.only_new)
    if summary.action == "publish":
        return await items.publish(services, caller, _body(services.node, summary), options)
    async with services.node.pool.acquire() as conn:
        [(dataset, document)] = [item async for item in requests.refused_items(conn, summary.id)]
    change = changes.DatasetAction(summary.collection, dataset, summary.action, orjson.loads(document))
    return await changes.accept(services, caller, change, options)


def _body(node: Node, summary: requests.Summary) -> intake.Body:
    """Return the refused items of a request as a body, which is read from the database."""
    is_single = summary.total == 1

    async def read() -> Text:
        spool = Spool()
        async with node.pool.acquire() as conn:
            async for _, document in requests.refused_items(conn, summary.id):
                spool.append((b"\n" if spool.size else b"") + document.encode())
        if not spool.size:
            raise Conflict(f"of what was rejected of the request {summary.id} nothing was JSON; send it again, mended")
        return spool.text()

    media_type = intake.JSON_TYPES[-1] if is_single else intake.LINE_TYPES[0]
    return intake.Body(summary.collection, read, media_type, is_large=not is_single)
