"""Event sources: where a consumer's events come from, one page after the other. A new scheme is a module and a line."""

from __future__ import annotations

import importlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType, TracebackType
from typing import TYPE_CHECKING, Any, Protocol, Self, TypeAlias

from fedstac.domain.events import CLEARED, Cursor
from fedstac.settings import Misconfigured

if TYPE_CHECKING:
    from fedstac.messaging.sources.addresses import BrokerAddress, SourceAddress
    from fedstac.messaging.sources.brokers import BrokerLog

RawEvent: TypeAlias = Mapping[str, Any]  # an event as it came, not yet read
Offsets: TypeAlias = Mapping[str, int]  # by partition of a broker: the message to read on at
NO_OFFSETS: Offsets = MappingProxyType({})


class SourceAway(Exception):
    """The source does not answer, or answers with a fault of its own: try again later."""


class SourceRefused(Exception):
    """The source refuses this node; an operator has to see to it."""


class NotServed(SourceRefused):
    """The source has no such thing, whoever asks: asking again is of no use."""


class BehindRetention(Exception):
    """The feed does not reach back to our cursor: take a snapshot."""


@dataclass(frozen=True, slots=True)
class UnreadableMessage:
    """A message that is no event of the origin's log. It is parked; the others go on."""

    place: str  # in the broker, for people; the same message has the same
    reason: str
    text: str  # the beginning of it


@dataclass(frozen=True, slots=True)
class EventPage:
    """Some events in the order of the log, and the place in it after them.

    offsets: the broker's own place after the page. The consumer stores it with the cursor and gives it to `begin`.
    unreadable: messages on the way there that are no events.
    """

    events: Sequence[RawEvent]
    cursor: Cursor
    offsets: Offsets = field(default_factory=dict)
    unreadable: Sequence[UnreadableMessage] = ()


def is_clearing(event: RawEvent) -> bool:
    """Return whether an event clears a dataset: the next one may publish it again, in the same transaction.

    Whoever applies the first alone shows a catalogue without the dataset, which its origin never did.
    """
    return event.get("type") == CLEARED


class EventSource(Protocol):
    """Gives the events of one origin. Its methods raise SourceAway or SourceRefused where the source fails."""

    async def __aenter__(self) -> Self: ...

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...

    async def begin(self, after: Cursor, offsets: Offsets) -> None:
        """Go to a place: call it before the first `receive`, and after a snapshot.

        `offsets` are those of the page that ended there; none where something else led there. They are a hint: the
        broker may have been emptied since.
        """
        ...

    async def receive(self, after: Cursor, *, limit: int, wait: float) -> EventPage:
        """Return the events after a place, after up to `wait` seconds. BehindRetention where they are not kept.

        No page ends between the clearing of a dataset and its publication, if more than one event is asked for.
        """
        ...


class SourceMissing(Misconfigured):
    """What is needed to read from a broker is not installed; the message says what to install."""


class BrokerModule(Protocol):
    """A module beside this one, named by its scheme."""

    def open_log(self, address: BrokerAddress) -> BrokerLog:
        """Return the log of an address, not yet connected."""
        ...


def broker_of(address: BrokerAddress) -> BrokerModule:
    """Return the module that reads from a broker. SourceMissing where the broker's client is not installed."""
    module: BrokerModule = _import(address.scheme, address)
    return module


def _import(name: str, address: BrokerAddress) -> Any:
    """Return a module beside this one that needs the client of an address's broker."""
    try:
        return importlib.import_module(f"fedstac.messaging.sources.{name}")
    except ModuleNotFoundError as error:
        if (error.name or "").startswith("fedstac"):
            raise
        extra = f"fedstac[{address.scheme}]"
        raise SourceMissing(f"{address} needs the client of {address.scheme}: pip install '{extra}'") from error


def open_source(source: SourceAddress) -> EventSource:
    """Return the event source of an address. Use it with `async with`.

    SourceMissing where the client of its broker is not installed.
    """
    from fedstac.messaging.sources.brokers import BrokerSource
    from fedstac.messaging.sources.http import HttpSource

    if source.feed is None:
        return HttpSource(source)
    if (origin := source.topic_origin) is not None:
        source_of_topic: EventSource = _import("esgf", source.feed).EsgfSource(source.feed, origin)
        return source_of_topic
    return BrokerSource(broker_of(source.feed).open_log(source.feed), HttpSource(source), source.feed)
