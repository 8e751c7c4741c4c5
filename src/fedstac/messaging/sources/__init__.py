"""Event sources: where a consumer's events come from, one page after the other. A new scheme is a module and a line."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import TYPE_CHECKING, Any, Protocol, Self, TypeAlias

from fedstac.domain.events import Cursor

if TYPE_CHECKING:
    from fedstac.messaging.sources.addresses import SourceAddress

RawEvent: TypeAlias = Mapping[str, Any]  # an event as it came, not yet read


class SourceAway(Exception):
    """The source does not answer, or answers with a fault of its own: try again later."""


class SourceRefused(Exception):
    """The source refuses this node; an operator has to see to it."""


class NotServed(SourceRefused):
    """The source has no such thing, whoever asks: asking again is of no use."""


class BehindRetention(Exception):
    """The feed does not reach back to our cursor: take a snapshot."""


@dataclass(frozen=True, slots=True)
class EventPage:
    """Some events in the order of the log, and the place in it after them."""

    events: Sequence[RawEvent]
    cursor: Cursor


class EventSource(Protocol):
    """Gives the events of one origin. Its methods raise SourceAway or SourceRefused where the source fails."""

    async def __aenter__(self) -> Self: ...

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...

    async def receive(self, after: Cursor, *, limit: int, wait: int) -> EventPage:
        """Return the events after a place, after up to `wait` seconds. BehindRetention where they are not kept."""
        ...

    async def commit(self, through: Cursor) -> None:
        """Note that everything through a place is stored here, so that a restart gets what comes after it."""
        ...


def open_source(source: SourceAddress) -> EventSource:
    """Return the event source of an address. Use it with `async with`."""
    from fedstac.messaging.sources.http import HttpSource

    return HttpSource(source)
