"""Event sinks: where a relay sends the log, one page after the other.

PostgreSQL is the truth. What a broker acknowledged it may still lose, so a relay never trusts a cursor of its own: it
asks the broker where its log ends, and goes on there.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from types import TracebackType
from typing import Protocol, Self

from fedstac.domain.events import Cursor
from fedstac.messaging.sources.addresses import BROKERS

LARGEST_PAGE_BYTES = 8 << 20  # of one transaction of a broker
LONGEST_BATCH = 100_000  # positions from the first to the last event of one message
LARGEST_IN_SIDECAR = 900_000  # bytes of a value that a sidecar publishes: Kafka's limit of 1 MiB, less what Dapr adds


class SinkUnclear(ValueError):
    """The address names no sink, or something for it is missing here; the message says what to do."""


class SinkAway(Exception):
    """The broker does not answer, or fails for the moment: open it again later and read its tail."""


class SinkRefused(Exception):
    """The broker refuses this node; an operator has to see to it. The sink is paused with this reason."""


class PageRefused(Exception):
    """The broker refuses a page for ever because of an event in it; nothing of the page was stored.

    `event_id`: of that event, where the broker or the sink can tell.
    """

    def __init__(self, reason: str, *, event_id: str | None = None) -> None:
        super().__init__(reason)
        self.event_id = event_id


class TailMoved(Exception):
    """Somebody else wrote since the tail was read: look at the lock, and read the tail again."""


class Fenced(Exception):
    """Another relay has begun after this one; this one gives up its leadership."""


@dataclass(frozen=True, slots=True)
class OutgoingEvent:
    """An event as it goes to a broker."""

    cursor: Cursor
    previous_pos: int  # of the event that was sent to this sink before it: what lies between is in dead_letter
    event_id: str
    key: str  # the lineage's key, or the item's id in ESGF's format
    project: str  # a part of the subject in NATS
    event_type: str
    headers: Mapping[str, str]  # those of the format; the sink adds those of `place_headers`
    value: bytes
    is_redrive: bool = False  # it stands in the log behind events that come after it, and moves no tail
    batch: tuple[int, ...] = ()  # positions, in its epoch, of events before it that its message tells too


def place_headers(event: OutgoingEvent, tail: Cursor) -> dict[str, str]:
    """Return the headers that every sink adds, by which consumers and a relay know a place in the log.

    `tail`: the cursor of the partition's last event that is no redrive, START in an empty partition. A redrive carries
    it, so that one look at the last message of a log tells where the log ends.
    """
    headers = {
        "pos": str(event.cursor.pos),
        "epoch": str(event.cursor.epoch),
        "prev": str(event.previous_pos),
        "ce-id": event.event_id,
    }
    if event.batch:
        headers["batch"] = ",".join(f"{first}-{last}" for first, last in _runs(event.batch))
    return headers | ({"redrive": "1", "tail": str(tail)} if event.is_redrive else {})


def _runs(positions: Sequence[int]) -> Iterator[tuple[int, int]]:
    """Yield the first and the last of each run of positions without a gap."""
    first = last = positions[0]
    for pos in positions[1:]:
        if pos != last + 1:
            yield first, last
            first = pos
        last = pos
    yield first, last


def is_redrive(headers: Mapping[str, str]) -> bool:
    """Return whether a message was sent again, behind events that come after it."""
    return headers.get("redrive") == "1"


def cursor_of(headers: Mapping[str, str]) -> Cursor:
    """Return the place of a message's event in the feed. LookupError or ValueError where the message is not ours."""
    return _cursor(headers["epoch"], headers["pos"])


def cursors_of(headers: Mapping[str, str]) -> list[Cursor]:
    """Return the places of all events that a message tells: one, but of a batch. Errors as of `cursor_of`."""
    own = cursor_of(headers)
    places: list[Cursor] = []
    for run in filter(None, headers.get("batch", "").split(",")):
        first, _, last = run.partition("-")
        begin, end = _cursor(headers["epoch"], first), _cursor(headers["epoch"], last)
        if not 0 <= end.pos - begin.pos <= own.pos - begin.pos <= LONGEST_BATCH:
            raise ValueError(f"{run[:80]} is no part of a batch before {own}")
        places += [Cursor(own.epoch, pos) for pos in range(begin.pos, end.pos + 1)]
    return [*places, own]


def tail_after(headers: Mapping[str, str]) -> Cursor:
    """Return where a log or partition ends whose last message this is. Errors as of `cursor_of`."""
    if not is_redrive(headers):
        return cursor_of(headers)
    epoch, _, pos = headers["tail"].partition(".")
    return _cursor(epoch, pos)


def _cursor(epoch: str, pos: str) -> Cursor:
    cursor = Cursor(int(epoch), int(pos))
    if not (0 <= cursor.epoch < 1 << 62 and 0 <= cursor.pos < 1 << 62):  # what no feed has, somebody else wrote
        raise ValueError(f"{str(cursor)[:80]} is no place in a feed")
    return cursor


@dataclass(frozen=True, slots=True)
class PartitionTail:
    """Where one partition of a broker's log ends: its last message, and the last event that is no redrive."""

    offset: int  # of the broker
    cursor: Cursor  # START in a partition that has redrives only


@dataclass(frozen=True, slots=True)
class Tail:
    """Where a broker's log ends. `identity` changes when the log was made anew: `created` of a stream, a topic's id."""

    identity: str
    partitions: Mapping[str, PartitionTail] = field(default_factory=dict)  # those that have an event

    @property
    def cursor(self) -> Cursor | None:
        """The place of the last event of all; None in an empty log."""
        cursors = [partition.cursor for partition in self.partitions.values()]
        return max(cursors, default=None)


@dataclass(frozen=True, slots=True)
class StoredEvent:
    """An event as an audit finds it in a broker's log, redrives among them."""

    partition: str
    offset: int
    cursor: Cursor
    is_redrive: bool = False


class EventSink(Protocol):
    """Takes the events of one feed. Its methods raise SinkAway where the broker fails, SinkRefused where it refuses."""

    async def __aenter__(self) -> Self: ...

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...

    async def begin(self) -> Tail:
        """Return where the log ends; make it if it is not there. No earlier relay of this sink can write after this.

        Call it once. `is_dense` and `stored_events` work without it, beside a relay that goes on.
        """
        ...

    async def publish(self, events: Sequence[OutgoingEvent], tail: Tail) -> Tail:
        """Store a page whole or not at all after a tail, and return the new one.

        PageRefused, TailMoved and Fenced say that nothing was stored. After any other error it is unknown whether the
        page was stored, and the sink is of no more use: close it, and ask a new one for the tail.
        """
        ...

    async def check(self, tail: Tail) -> None:
        """Do nothing if the broker answers, and its log ends at a tail as far as it tells that at once.

        TailMoved where it ends elsewhere, or is another log.
        """
        ...

    def partition_of(self, event: OutgoingEvent) -> str:
        """Return the partition that an event goes to, as Tail names it."""
        ...

    async def is_dense(self, after: int, through: int) -> bool | None:
        """Return whether the broker's own counters prove that no event is missing after a position, through another.

        None where they cannot tell.
        """
        ...

    def stored_events(self) -> AsyncIterator[StoredEvent]:
        """Read the places of all events that the broker keeps, for an audit; in their order within a partition."""
        ...


# --- opening ---


@dataclass(frozen=True, slots=True)
class SinkTarget:
    """A sink as its operator configured it. `origin` and `name` tell its relays from those of other sinks.

    private: it may lead to addresses of the own network. secret: signs what a webhook gets. sidecar_token: what a Dapr
    sidecar on this machine asks for. last_tail: where the log ended when that was noted, for a sink that keeps none.
    delivered_ids: what such a sink took of a page that failed afterwards; it is kept for the next one that is opened.
    """

    origin: str
    name: str
    address: str
    private: bool = True
    secret: bytes = field(default=b"", repr=False)
    sidecar_token: str = field(default="", repr=False)
    last_tail: Tail = field(default_factory=lambda: Tail(""))
    delivered_ids: set[str] = field(default_factory=set)


WEBHOOK_SCHEMES = ("https", "http")
DAPR_SCHEMES = ("dapr+http", "dapr+https")  # a sidecar of Dapr, which publishes to the broker that it is set up for
SCHEMES = (*WEBHOOK_SCHEMES, *DAPR_SCHEMES, *BROKERS)


def scheme_of(address: str) -> str:
    """Return which kind of sink an address names. SinkUnclear where it is none."""
    scheme = address.partition("://")[0].lower()
    if scheme not in SCHEMES:
        raise SinkUnclear(
            f"{address[:200]!r} is no address of a sink; write https://host/path, nats://host:port/STREAM, "
            f"kafka://host:port/topic or dapr+http://host:port/pubsub/topic"
        )
    return scheme


def shown_address(address: str) -> str:
    """Return an address for those who may only watch: the path of a webhook is often a secret."""
    scheme, separator, rest = address.partition("://")
    return address if scheme_of(address) in BROKERS else scheme + separator + rest.split("/")[0].split("?")[0]


def open_sink(target: SinkTarget) -> EventSink:
    """Return the sink of an address, which connects with `async with`. SinkUnclear where the address names none."""
    scheme = scheme_of(target.address)
    try:
        match scheme:
            case "nats":
                from fedstac.messaging.sinks.nats import NatsSink

                return NatsSink(target)
            case "kafka":
                from fedstac.messaging.sinks.kafka import KafkaSink

                return KafkaSink(target)
            case "https" | "http":
                from fedstac.messaging.sinks.webhook import WebhookSink

                return WebhookSink(target)
            case "dapr+http" | "dapr+https":
                from fedstac.messaging.sinks.dapr import DaprSink

                return DaprSink(target)
            case _:
                raise AssertionError(f"{scheme}:// has no sink here")
    except ModuleNotFoundError as error:
        raise SinkUnclear(f"{scheme}:// needs the module {error.name}: pip install 'fedstac[{scheme}]'") from None
