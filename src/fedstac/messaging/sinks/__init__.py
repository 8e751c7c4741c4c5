"""Event sinks: where a relay sends the log, one page after the other. A new scheme is a module and a line.

PostgreSQL is the truth. What a broker acknowledged it may still lose, so a relay never trusts a cursor of its own: it
asks the broker where its log ends, and goes on there.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass, field
from types import TracebackType
from typing import Protocol, Self

from fedstac.domain.events import Cursor

LARGEST_PAGE_EVENTS, LARGEST_PAGE_BYTES = 1000, 8 << 20  # of one transaction of a broker


class SinkAway(Exception):
    """The broker does not answer, or fails for the moment: open it again later and read its tail."""


class SinkRefused(Exception):
    """The broker refuses this node; an operator has to see to it. The sink is paused with this reason."""


class PageRefused(Exception):
    """The broker refuses a page for ever because of an event in it; nothing of the page was stored."""


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
    headers: Mapping[str, str]  # those of the format; the sink adds pos, epoch, prev and ce-id
    value: bytes


@dataclass(frozen=True, slots=True)
class PartitionTail:
    """The last event that one partition of a broker's log has."""

    offset: int  # of the broker
    cursor: Cursor


@dataclass(frozen=True, slots=True)
class Tail:
    """Where a broker's log ends. `identity` changes when the log was made anew: `created` of a stream, a topic's id."""

    identity: str
    partitions: Mapping[str, PartitionTail] = field(default_factory=dict)  # those that have an event

    @property
    def cursor(self) -> Cursor | None:
        """The place of the last event of all; None in an empty log."""
        cursors = [partition.cursor for partition in self.partitions.values()]
        return max(cursors, key=lambda cursor: (cursor.epoch, cursor.pos), default=None)


@dataclass(frozen=True, slots=True)
class StoredEvent:
    """An event as an audit finds it in a broker's log."""

    partition: str
    offset: int
    cursor: Cursor


class EventSink(Protocol):
    """Takes the events of one feed. Its methods raise SinkAway where the broker fails, SinkRefused where it refuses."""

    async def __aenter__(self) -> Self: ...

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...

    async def begin(self) -> Tail:
        """Return where the log ends; make it if it is not there. No earlier relay of this sink can write after this."""
        ...

    async def publish(self, events: Sequence[OutgoingEvent], tail: Tail) -> Tail:
        """Store a page whole or not at all after a tail, and return the new one.

        PageRefused, TailMoved and Fenced say that nothing was stored.
        """
        ...

    def partition_of(self, event: OutgoingEvent) -> str:
        """Return the partition that an event goes to, as Tail names it."""
        ...

    async def is_dense(self) -> bool | None:
        """Return whether the broker's own counters prove that no event is missing; None where they cannot tell."""
        ...

    def stored_events(self) -> AsyncIterator[StoredEvent]:
        """Read the places of all events that the broker keeps, for an audit; in their order within a partition."""
        ...
