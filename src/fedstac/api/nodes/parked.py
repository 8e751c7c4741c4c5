"""Parked events over HTTP, for whoever has the right to manage messaging at the node that follows."""

from __future__ import annotations

from collections.abc import Sequence

from starlette.responses import Response

from fedstac.api.call import Call
from fedstac.api.http import no_store, numbers
from fedstac.api.nodes.sinks import answer_with_event, path_id, read_ids
from fedstac.db import parked
from fedstac.db.parked import ParkedRow
from fedstac.domain.policy import Action, Resource

ALL_PARKED = Resource("the parked events of this node", "*", "*")
MOST_EVENTS = 1000


def _require_right(call: Call) -> None:
    call.node.policy.require(call.caller, Action.MESSAGING, ALL_PARKED)


async def get_parked_events(call: Call) -> Response:
    """List the events that consumers of this node could not apply, the oldest first, and why.

    `after` is the id of the last event of the page before.
    """
    _require_right(call)
    limit = numbers.whole(call.query_params, "limit", default=100, most=MOST_EVENTS)
    after = numbers.whole(call.query_params, "after", default=0, most=(1 << 62) - 1)
    async with call.node.pool.acquire() as conn:
        return _answer(await parked.every(conn, after=after, limit=limit))


async def get_parked_event(call: Call) -> Response:
    """Return one parked event with its text."""
    _require_right(call)
    id = path_id(call, "event", "parked event", "fedstac parked list")
    async with call.node.pool.acquire() as conn:
        whole = await parked.read(conn, id)
    return answer_with_event(parked.document_of(whole.row), whole.event)


async def post_requeue(call: Call) -> Response:
    """Ask for another try of parked events: of all those named, or of none.

    The process that follows applies them within seconds; what fails again stays parked. An event is refused whose
    dataset is as new here already.
    """
    _require_right(call)
    ids = await read_ids(call)
    async with call.node.pool.acquire() as conn:
        return _answer(await parked.requeue(conn, ids, actor=call.caller.name, correlation=call.request_id))


async def post_discard(call: Call) -> Response:
    """Delete parked events for good: all of those named, or none."""
    _require_right(call)
    ids = await read_ids(call)
    async with call.node.pool.acquire() as conn:
        return _answer(await parked.discard(conn, ids, actor=call.caller.name, correlation=call.request_id))


def _answer(rows: Sequence[ParkedRow]) -> Response:
    return no_store.answer({"parked_events": [parked.document_of(row) for row in rows]})
