"""Sinks and dead letters over HTTP, for whoever has the right to manage messaging."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from typing import Any

import orjson
from starlette.responses import Response

from fedstac.api.call import Call
from fedstac.api.http import links, no_store, numbers
from fedstac.db import dead_letters, sinks
from fedstac.db.dead_letters import DeadLetter
from fedstac.db.sinks import Sink
from fedstac.domain import destinations
from fedstac.domain.errors import BadRequest, Conflict, NotFound, Unavailable
from fedstac.domain.events import EventFormat, whole_number
from fedstac.domain.policy import Action, Resource
from fedstac.messaging.sinks import SinkAway, SinkRefused, SinkUnclear, scheme_of
from fedstac.workers import sinking
from fedstac.workers.sinking import SinkDescription

ALL_SINKS = Resource("the sinks of this node", "*", "*")
MOST_IDS, MOST_LETTERS = 1000, 1000
LONGEST_REASON = 500
AUDIT_SECONDS = 20.0
ON_COMMAND_LINE = "use fedstac sink audit on a machine of the node"
_auditing = asyncio.Semaphore(1)  # in this process: each reads a broker's log as fast as it can


def _require_right(call: Call) -> None:
    call.node.policy.require(call.caller, Action.MESSAGING, ALL_SINKS)


# --- sinks ---


async def get_sinks(call: Call) -> Response:
    """List the sinks: how far each has come, and what ails it."""
    _require_right(call)
    async with call.node.pool.acquire() as conn:
        every = await sinks.every(conn)
    return no_store.answer({"sinks": [sinking.document_of(sink) for sink in every]})


async def post_sink(call: Call) -> Response:
    """Add a sink. The answer has the secret that signs what a webhook gets.

    `from` is `start`, `now`, or a position: it gets what comes after. The same sink again is answered with 200. An
    address on a private network, and that of a broker, is taken where the setting FEDSTAC_NOTIFY_PRIVATE allows it;
    else it is added on the command line of the node.
    """
    _require_right(call)
    description = _description(
        await call.body.read_object("name", "address", "format", "key", "required", "from"), call
    )
    async with call.node.pool.acquire() as conn:
        is_new = await sinks.find(conn, description.name) is None
        sink = await sinking.add(
            conn, description, node=call.node.settings.node, actor=call.caller.name, correlation=call.request_id
        )
    body = {**sinking.document_of(sink), "secret": destinations.shown_secret(sink.secret)}
    return no_store.answer(body, 201 if is_new else 200, Location=f"{call.base_url}/sinks/{sink.name}")


def _description(body: dict[str, Any], call: Call) -> SinkDescription:
    values = {"format": EventFormat.CLOUDEVENTS.value, "key": "", "from": "start", "required": True, **body}
    texts = {name: values.get(name) for name in ("name", "address", "format", "key", "from")}
    if wrong := [name for name, value in texts.items() if not isinstance(value, str)]:
        raise BadRequest(f'{wrong[0]} is a text; send {{"name": …, "address": …}}')
    if type(values["required"]) is not bool:
        raise BadRequest("required is true or false")
    private, address = call.node.settings.notify_private, str(texts["address"])
    try:
        if scheme_of(address) not in ("http", "https") and not private:
            raise BadRequest("a broker is added on the command line of the node: fedstac sink add")
        if sinking.names_file(address):
            raise BadRequest("a sink with a file of this machine is added on its command line: fedstac sink add")
    except SinkUnclear as error:
        raise BadRequest(str(error)) from None
    return SinkDescription(
        name=str(texts["name"]), address=address, format=str(texts["format"]), key_template=str(texts["key"]),
        required=values["required"], private=private, start=str(texts["from"]),
    )  # fmt: skip


async def get_sink(call: Call) -> Response:
    """Return one sink."""
    _require_right(call)
    async with call.node.pool.acquire() as conn:
        return _document(await sinks.read(conn, call.path_params["sink"]))


async def delete_sink(call: Call) -> Response:
    """Remove a sink with its dead letters. What the broker has stays there."""
    _require_right(call)
    async with call.node.pool.acquire() as conn:
        await sinks.remove(conn, call.path_params["sink"], actor=call.caller.name, correlation=call.request_id)
    return Response(status_code=204)


async def post_pause(call: Call) -> Response:
    """Send nothing to a sink until it is resumed."""
    _require_right(call)
    reason = (await call.body.read_object("reason")).get("reason", "an operator paused it")
    if not isinstance(reason, str) or not 0 < len(reason) <= LONGEST_REASON:
        raise BadRequest(f"reason is a text of 1 to {LONGEST_REASON} characters")
    async with call.node.pool.acquire() as conn:
        return _document(
            await sinks.pause(
                conn, call.path_params["sink"], reason, actor=call.caller.name, correlation=call.request_id
            )
        )


async def post_resume(call: Call) -> Response:
    """Send to a paused sink again."""
    _require_right(call)
    async with call.node.pool.acquire() as conn:
        return _document(
            await sinks.resume(conn, call.path_params["sink"], actor=call.caller.name, correlation=call.request_id)
        )


async def post_seek(call: Call) -> Response:
    """Let a sink go on after a position, `start` or `now`. Back: it gets what comes after it once more."""
    _require_right(call)
    to = (await call.body.read_object("to")).get("to")
    if type(to) not in (str, int):
        raise BadRequest('send {"to": "start"}, {"to": "now"}, or a position: {"to": 4711}')
    async with call.node.pool.acquire() as conn:
        return _document(
            await sinking.seek(
                conn, call.path_params["sink"], str(to), actor=call.caller.name, correlation=call.request_id
            )
        )


async def post_audit(call: Call) -> Response:
    """Compare what a broker has with the log, and have sent again what is missing.

    With `full` everything is read, also where the broker's counters prove its log whole; with `list` nothing is sent. A
    log that takes longer than 20 seconds to read is audited on the command line of the node; so are two at once.
    """
    _require_right(call)
    body = await call.body.read_object("full", "list")
    if any(type(value) is not bool for value in body.values()):
        raise BadRequest("full and list are true or false")
    if _auditing.locked():
        raise Unavailable(f"another sink is audited just now; {ON_COMMAND_LINE}", retry_after=int(AUDIT_SECONDS))
    try:
        async with _auditing, asyncio.timeout(AUDIT_SECONDS), call.node.pool.acquire() as conn:
            result = await sinking.audit(
                conn, call.path_params["sink"], node=call.node.settings.node, full=body.get("full", False),
                refills=not body.get("list", False), actor=call.caller.name, correlation=call.request_id,
                on_progress=lambda _: None,
            )  # fmt: skip
    except TimeoutError:
        raise Conflict(f"its log takes longer to read than a request may take; {ON_COMMAND_LINE}") from None
    except SinkAway as error:
        raise Unavailable(f"the sink does not answer: {error}", retry_after=10) from None
    except (SinkRefused, SinkUnclear) as error:
        raise Conflict(str(error)) from None
    return no_store.answer({"sink": call.path_params["sink"], **result.as_json()})


def _document(sink: Sink) -> Response:
    return no_store.answer(sinking.document_of(sink))


# --- dead letters ---


async def get_dead_letters(call: Call) -> Response:
    """List the events that sinks refused, the oldest first, and why."""
    _require_right(call)
    sink = call.query_params.get("sink")
    limit = numbers.whole(call.query_params, "limit", default=100, most=MOST_LETTERS)
    async with call.node.pool.acquire() as conn:
        return _letters(await dead_letters.every(conn, sink, limit))


async def get_dead_letter(call: Call) -> Response:
    """Return one dead letter with its event."""
    _require_right(call)
    id = path_id(call, "letter", "dead letter", "fedstac dead-letter list")
    async with call.node.pool.acquire() as conn:
        whole = await dead_letters.read(conn, id)
    return answer_with_event(dead_letters.document_of(whole.letter), whole.event)


async def post_redrive(call: Call) -> Response:
    """Send events to their sinks again: all of those named, or none.

    An event is refused after which its dataset changed again: the sink has, or gets, the later one.
    """
    _require_right(call)
    ids = await read_ids(call)
    async with call.node.pool.acquire() as conn:
        return _letters(await dead_letters.redrive(conn, ids, actor=call.caller.name, correlation=call.request_id))


async def post_discard(call: Call) -> Response:
    """Delete dead letters for good: all of those named, or none."""
    _require_right(call)
    ids = await read_ids(call)
    async with call.node.pool.acquire() as conn:
        return _letters(await dead_letters.discard(conn, ids, actor=call.caller.name, correlation=call.request_id))


async def read_ids(call: Call) -> list[int]:
    """Return the ids that a body names. BadRequest where it names none."""
    ids = (await call.body.read_object("ids")).get("ids")
    is_list = isinstance(ids, list) and 0 < len(ids) <= MOST_IDS
    if not is_list or not all(type(id) is int and 0 < id < 1 << 62 for id in ids or ()):
        raise BadRequest(f'send {{"ids": [17, 18]}}, at most {MOST_IDS}')
    return list(ids or ())


def path_id(call: Call, parameter: str, thing: str, listing: str) -> int:
    """Return the id that the path names. NotFound where it is none; the message says which command lists the things."""
    text = call.path_params[parameter]
    id = whole_number(text)
    if id is None:
        raise NotFound(f"there is no {thing} {text[:40]!r}; see {listing}")
    return id


def answer_with_event(document: Mapping[str, object], event: str) -> Response:
    """Answer with a description and, as its last member, the stored text of the event."""
    text = orjson.dumps(document)
    return Response(text[:-1] + b',"event":' + event.encode() + b"}", 200, no_store.HEADERS, links.JSON)


def _letters(letters: Sequence[DeadLetter]) -> Response:
    return no_store.answer({"dead_letters": [dead_letters.document_of(letter) for letter in letters]})
