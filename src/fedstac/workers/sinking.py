"""What operators do with sinks, over HTTP and on the command line: what they write is checked, words become places."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from fedstac.db import sinks
from fedstac.db.connections import Connection
from fedstac.db.sinks import NewSink, Sink
from fedstac.domain.errors import BadRequest, Conflict
from fedstac.domain.events import EventFormat, whole_number
from fedstac.domain.model import rfc3339
from fedstac.messaging import formats
from fedstac.messaging.sinks import SinkTarget, SinkUnclear, open_sink, scheme_of
from fedstac.messaging.sources.addresses import BROKERS, BrokerAddress
from fedstac.workers import auditing
from fedstac.workers.auditing import SinkAudit

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}")
LONGEST_ADDRESS = 1000
MOST_SINKS = 20
OPTIONS = ("config", "partitions", "status")  # of all brokers' addresses


@dataclass(frozen=True, slots=True, kw_only=True)
class SinkDescription:
    """A sink as somebody describes it. `start`: start, now, or a position after which it begins."""

    name: str
    address: str
    format: str = EventFormat.CLOUDEVENTS
    key_template: str = ""
    required: bool = True
    private: bool = False
    start: str = "start"


async def add(
    conn: Connection, description: SinkDescription, *, node: str, actor: str, correlation: str | None = None
) -> Sink:
    """Add a sink. BadRequest where something of it is wrong; nothing is connected to."""
    if not NAME.fullmatch(description.name):
        raise BadRequest(f"{description.name[:80]!r} is no name of a sink: 1 to 63 letters, digits, dots, - and _")
    if description.format not in set(EventFormat):
        raise BadRequest(f"{description.format[:80]!r} is no format; there are {', '.join(EventFormat)}")
    formats.check_key_template(description.key_template)
    target = SinkTarget(node, description.name, description.address, private=description.private)
    try:
        if len(description.address) > LONGEST_ADDRESS:
            raise SinkUnclear(f"an address has {LONGEST_ADDRESS} characters at most")
        open_sink(target)
    except SinkUnclear as error:
        raise BadRequest(str(error)) from None
    present_sinks = await sinks.every(conn)
    if len(present_sinks) >= MOST_SINKS and description.name not in {sink.name for sink in present_sinks}:
        raise Conflict(f"there are {MOST_SINKS} sinks, which are the most: each takes a session of the database")
    for sink in present_sinks:
        if sink.name != description.name and _is_one_log(sink.address, description.address):
            raise Conflict(f"the sink {sink.name!r} sends to {sink.address} already; two would write everything twice")
    after = await _position(conn, description.start)
    new = NewSink(
        name=description.name, address=description.address, format=description.format,
        key_template=description.key_template, required=description.required, private=description.private, after=after,
    )  # fmt: skip
    return await sinks.add(conn, new, actor=actor, correlation=correlation)


def names_file(address: str) -> bool:
    """Return whether an address names a file of this machine, which only its operators may do.

    SinkUnclear where it is no address.
    """
    if scheme_of(address) not in BROKERS:
        return False
    try:
        return "config" in BrokerAddress.parse(address, options=OPTIONS).options
    except ValueError as error:
        raise SinkUnclear(str(error)) from None


def _is_one_log(one: str, other: str) -> bool:
    """Return whether two addresses name the same stream or topic; a webhook keeps no log."""
    if scheme_of(one) != scheme_of(other) or scheme_of(one) not in BROKERS:
        return False
    first, second = (BrokerAddress.parse(address, options=OPTIONS) for address in (one, other))
    return first.name == second.name and not set(first.servers).isdisjoint(second.servers)


async def seek(conn: Connection, name: str, to: str, *, actor: str, correlation: str | None = None) -> Sink:
    """Let a sink go on after a position, or after what `start` and `now` stand for."""
    return await sinks.seek(conn, name, await _position(conn, to), actor=actor, correlation=correlation)


async def _position(conn: Connection, text: str) -> int:
    match text:
        case "start":
            return await sinks.earliest(conn) - 1
        case "now":
            return (await sinks.feed_state(conn)).head.pos
    position = whole_number(text)
    if position is not None:
        return position
    raise BadRequest(f"{text[:40]!r} is no place in the log; write start, now, or a position such as 4711")


async def audit(
    conn: Connection, name: str, *, node: str, full: bool, refills: bool, actor: str, correlation: str | None = None,
    on_progress: Callable[[int], object],
) -> SinkAudit:  # fmt: skip
    """Compare a sink with the log, and let a relay send again what is missing.

    SinkAway or SinkRefused where the broker fails.
    """
    sink = await sinks.read(conn, name)
    async with open_sink(SinkTarget(node, name, sink.address, private=sink.private)) as broker:
        result = await auditing.audit(conn, sink, broker, full=full, on_progress=on_progress)
    if result.holes and refills:
        await sinks.refill(conn, name, result.holes, actor=actor, correlation=correlation)
    return result


def stand_of(sink: Sink) -> str:
    """Return in one word how a sink stands."""
    if sink.lapsed_at is not None:
        return "lapsed"
    if sink.paused_reason is not None:
        return "paused"
    return "failing" if sink.failing_since is not None else "sending"


def document_of(sink: Sink) -> dict[str, Any]:
    """Return a sink in JSON; its secret is not in it."""
    return {
        "name": sink.name,
        "address": sink.address,
        "format": sink.format,
        "key": sink.key_template,
        "required": sink.required,
        "stand": stand_of(sink),
        "through": str(sink.cursor),
        "sent": sink.sent,
        "sent_at": rfc3339(sink.sent_at) if sink.sent_at else None,
        "paused": sink.paused_reason,
        "errors": sink.errors,
        "failing_since": rfc3339(sink.failing_since) if sink.failing_since else None,
        "last_error": sink.last_error,
        "created": rfc3339(sink.created),
    }
