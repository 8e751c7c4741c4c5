"""Acknowledgements of consumers, as the route takes them and as a broker brings them: one verb for both.

The part of a publishing node reads the topics of acknowledgements that its sinks' addresses name. Each message is taken
once: the place in the topic is stored with what the message changes. So an old report fulfils no new duty after a
restart. A message that is no acknowledgement is logged and counted.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial

import structlog

from fedstac.bootstrap import Node
from fedstac.db import deletion_reports as stored_reports
from fedstac.db import feed, nodes, sinks, status_topics
from fedstac.db.connections import Connection
from fedstac.db.status_topics import StatusSource
from fedstac.domain import deletion_reports, strict_json
from fedstac.domain.deletion_reports import DependencyReport, ReportAnswer, ReportResult
from fedstac.domain.errors import BadRequest, MissingPermission, Problem
from fedstac.domain.events import START, Cursor
from fedstac.messaging import statuses
from fedstac.messaging.sources import SourceAway, SourceRefused, broker_of
from fedstac.messaging.sources.addresses import BROKERS, BrokerAddress
from fedstac.messaging.sources.chain import LogMessage
from fedstac.runtime import supervision
from fedstac.runtime.causes import is_refusal
from fedstac.runtime.metrics import STATUS_MESSAGES
from fedstac.runtime.wakeup import Backoff, cancel, pause, unless

PART = "statuses"
MOST_EXCEPTIONS = 2000
LONGEST_ID, LONGEST_DETAIL = 650, 2000  # characters
CONSUMER = re.compile(r"[a-z][a-z0-9-]{0,39}")
OUTCOMES = ("applied", "ignored", "rejected", "parked")
LOOK_SECONDS = 2.0  # between looks at the sinks
LONGEST_RETRY_SECONDS = 2.0  # of a topic that is away
READ_MESSAGES, READ_SECONDS = 200, 5.0
TROUBLES = {
    SourceAway: "a topic of acknowledgements cannot be read; trying again",
    SourceRefused: "the broker refuses this node a topic of acknowledgements; see to its address",
}
log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class Status:
    """What a consumer acknowledges, and under which name."""

    reporter: str
    through: Cursor
    exceptions: list[dict[str, str]]
    reports: tuple[DependencyReport, ...] = ()  # of the node's part of deletions


def read_status(body: object, name: str) -> Status:
    """Read an acknowledgement of the node of this name. BadRequest where it is none; MissingPermission of another's."""
    if not isinstance(body, dict) or type(body.get("epoch")) is not int or type(body.get("through")) is not int:
        raise BadRequest(
            "an acknowledgement is {node, consumer, epoch, through, exceptions}, epoch and through whole numbers"
        )
    if body.get("node", name) != name:
        raise MissingPermission(f"{name} may not acknowledge for {str(body['node'])[:63]}; use that node's own token")
    consumer = body.get("consumer", nodes.INDEX)
    if not isinstance(consumer, str) or not CONSUMER.fullmatch(consumer):
        raise BadRequest("consumer is the name of a role: small letters, digits and hyphens, 40 at most")
    exceptions = body.get("exceptions") or []
    if not isinstance(exceptions, list) or len(exceptions) > MOST_EXCEPTIONS:
        raise BadRequest(f"exceptions is a list of at most {MOST_EXCEPTIONS}")
    for entry in exceptions:
        if not isinstance(entry, dict) or entry.get("outcome") not in OUTCOMES or "event_id" not in entry:
            raise BadRequest(f"an exception is {{event_id, outcome, detail}} with an outcome of {', '.join(OUTCOMES)}")
    by_event = {
        str(entry["event_id"])[:LONGEST_ID]: {
            name: str(entry.get(name, ""))[:LONGEST_DETAIL] for name in ("outcome", "detail")
        }
        for entry in exceptions
    }  # of one event the last word
    return Status(
        nodes.reporter(name, consumer),
        Cursor.parse(f"{body['epoch']}.{body['through']}"),
        [{"event_id": event, **outcome} for event, outcome in by_event.items()],
        deletion_reports.read(body.get("reports") or [], name),
    )


async def store(
    conn: Connection, status: Status, *, actor: str, correlation: str | None = None
) -> Sequence[ReportAnswer]:
    """Store an acknowledgement with its reports. CursorGone where it is of a log that is not this one.

    Return what became of each report.
    """
    async with conn.transaction():
        await feed.resume(conn, status.through)  # what lies beyond the log or a fork is not what is announced here now
        await nodes.acknowledge(conn, status.reporter, status.through, status.exceptions)
        return await report(conn, status.reports, actor=actor, correlation=correlation)


async def report(
    conn: Connection, reports: Sequence[DependencyReport], *, actor: str, correlation: str | None = None
) -> Sequence[ReportAnswer]:
    """Store how far dependencies are with their parts of deletions; return what became of each report.

    Routes and topics come here. A node reads its reports by `domain.deletion_reports.read`: it reports for itself only.
    """
    async with conn.transaction():
        answers = await stored_reports.store(conn, reports, actor=actor, correlation=correlation)
    for each in answers:
        if each.result is ReportResult.STORED:
            log.info(
                "a dependency reports", name=each.report.name, outcome=each.report.outcome.value, actor=actor,
                event_id=str(each.report.event_id or ""), dataset=each.report.dataset,
            )  # fmt: skip
    return answers


# --- over a broker ---


async def run(node: Node, stop: asyncio.Event) -> None:
    """Read the topics of acknowledgements of all sinks until `stop`."""
    readers: dict[str, asyncio.Task[None]] = {}  # by address

    async def step() -> None:
        async with node.pool.acquire() as conn:
            addresses = _addresses([sink.address for sink in await sinks.every(conn)])
        for text in readers.keys() - addresses.keys():
            readers.pop(text).cancel()
        for text in addresses.keys() - readers.keys():
            read = partial(_read, node, addresses[text], stop)
            readers[text] = asyncio.create_task(
                supervision.keep_trying(
                    node.parts,
                    part_of(addresses[text]),
                    read,
                    stop,
                    expected=TROUBLES,
                    backoff=Backoff(least=0.1, most=LONGEST_RETRY_SECONDS),
                )
            )
        if readers:  # of sinks that may be removed
            await pause(stop, LOOK_SECONDS)
        else:
            await node.commits.pause(PART, stop, LOOK_SECONDS)

    try:
        await supervision.keep_trying(node.parts, PART, step, stop, commits=node.commits)
    finally:
        await cancel(*readers.values())


def part_of(address: BrokerAddress) -> str:
    """Return the name of what reads a topic, in logs and health: the trouble of one is not over while another works."""
    return f"{PART} {address.name}"


def _addresses(sink_addresses: list[str]) -> dict[str, BrokerAddress]:
    """Return the topics of acknowledgements that sinks name, by their text."""
    addresses = [
        statuses.status_address(BrokerAddress.parse(text, options=None))
        for text in sink_addresses if text.partition("://")[0] in BROKERS
    ]  # fmt: skip
    return {str(address): address for address in addresses if address is not None}


async def _read(node: Node, address: BrokerAddress, stop: asyncio.Event) -> None:
    """Read a topic until `stop`; make it first, so that none is missing. What was taken before is passed over."""
    async with statuses.open_topic(address) as own:
        await own.make()
    async with broker_of(address).open_log(address) as topic:
        await topic.seek(START, {})
        while not stop.is_set():
            messages = await unless(stop, topic.read(READ_MESSAGES, READ_SECONDS, without=()))
            for message in messages or ():
                await take(node, message, StatusSource(str(address), topic.identity))
            node.parts.works(part_of(address))


async def take(node: Node, message: LogMessage, topic: StatusSource) -> None:
    """Store the acknowledgement of a message; one that is none, or not of who it says, changes nothing.

    The message is taken once, by whichever process comes first.
    """
    outcome = "stored"
    async with node.pool.acquire() as conn, conn.transaction():
        if not await status_topics.advance(conn, topic, message.partition, message.offset):
            return
        try:
            async with conn.transaction():
                await _store_message(conn, message)
        except Exception as error:
            if not isinstance(error, Problem) and not is_refusal(error):
                raise
            outcome, reason = "refused", error.detail if isinstance(error, Problem) else "the database refuses it"
            log.warning("an acknowledgement is refused", topic=topic.address, offset=message.offset, reason=reason)
    node.metrics.count(STATUS_MESSAGES, outcome)


async def _store_message(conn: Connection, message: LogMessage) -> None:
    """Store what a message acknowledges, and its reports. A Problem where it is refused.

    A report that names a dataset alone may be of an earlier mark: it counts over HTTP only, where it is of now.
    """
    signed_status = statuses.read(message.value)
    signed_status.require(await nodes.token_hashes(conn, f"node:{signed_status.node}"))
    status = read_status(strict_json.parse(signed_status.text.encode()), signed_status.node)
    reports = tuple(each for each in status.reports if each.event_id is not None)
    if len(reports) < len(status.reports):
        log.warning(
            "reports over a topic that name no event are left out; send them over HTTP", node=signed_status.node,
            reports=len(status.reports) - len(reports),
        )  # fmt: skip
    await store(conn, replace(status, reports=reports), actor=f"node:{signed_status.node}")
