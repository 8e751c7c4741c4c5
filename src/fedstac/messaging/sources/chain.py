"""The chain: puts the messages of a broker's partitions in the order of the log, and finds what is missing between.

Positions are dense, so that after the cursor comes its pos + 1 and nothing else. Whatever does not fit there (a message
that the broker lost or never got, an epoch that begins, a log that was restored) is asked of the origin's own feed,
which knows. So nothing in the broker has to be trusted, and a wrong offset costs time only. Pure.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from fedstac.domain.events import Cursor, whole_number
from fedstac.messaging.dialects import cloudevents
from fedstac.messaging.sources import EventPage, Offsets, RawEvent, UnreadableMessage, is_clearing

PAGE_BYTES = 8 << 20
AHEAD_MESSAGES, AHEAD_BYTES = 1000, 16 << 20  # of one partition that waits for the others
MOST_BYTES = 64 << 20  # of all that wait
SHOWN_CHARACTERS = 2000  # of an unreadable message
NO_SUCH_EVENT = "the origin's log has no event of its epoch and pos"
REDRIVE = "redrive"  # the header of an event that comes after its place


@dataclass(frozen=True, slots=True)
class LogMessage:
    """A message as a broker gives it."""

    partition: str
    offset: int
    headers: Mapping[str, str]
    value: bytes


@dataclass(frozen=True, slots=True)
class MessagePlace:
    """Where an event is in its origin's log, as the headers of its message say it."""

    cursor: Cursor
    previous_pos: int  # of the event that was sent before it: what lies between is not in the broker
    is_redrive: bool


@dataclass(frozen=True, slots=True)
class Gap:
    """What has to come before the next message, and is not here: the events after a cursor, through a position."""

    after: Cursor
    through: int
    is_certain: bool  # the broker cannot bring it any more


def place_of(message: LogMessage) -> MessagePlace | None:
    """Return the place that the headers of a message say; None where they say none."""
    numbers = [whole_number(message.headers.get(name)) for name in ("epoch", "pos", "prev")]
    epoch, pos, previous_pos = numbers
    if epoch is None or pos is None or previous_pos is None:
        return None
    return MessagePlace(Cursor(epoch, pos), previous_pos, message.headers.get(REDRIVE) == "1")


def event_of(message: LogMessage, cursor: Cursor) -> RawEvent | None:
    """Return the event of a message; None where it has none, or that of another place, or only a reference to it."""
    event = cloudevents.read(message.headers, message.value)
    if event is None or (event.get("epoch"), event.get("pos")) != (cursor.epoch, cursor.pos):
        return None
    return event if "data" in event else None


@dataclass(slots=True)
class Chain:
    """Messages that wait for their turn. `offsets`: by partition, the message to read on at after a restart.

    `log_identity`: changes when the broker's log is made anew, where the same offsets are other messages.
    """

    cursor: Cursor
    offsets: dict[str, int] = field(default_factory=dict)
    log_identity: str = ""
    _waiting: dict[str, deque[LogMessage]] = field(default_factory=dict)
    _bytes: dict[str, int] = field(default_factory=dict)
    _clearing_cursor: Cursor | None = None  # of a clearing that waited once for what comes after it

    @classmethod
    def begin(cls, after: Cursor, offsets: Offsets, partitions: Iterable[str], log_identity: str = "") -> Chain:
        """Return a chain that goes on after a cursor."""
        names = list(partitions)
        known_offsets = {name: offset for name, offset in offsets.items() if name in names}
        return cls(after, known_offsets, log_identity, {name: deque() for name in names}, dict.fromkeys(names, 0))

    def put(self, message: LogMessage) -> None:
        """Take a message; those of one partition in their order."""
        self._waiting.setdefault(message.partition, deque()).append(message)
        self._bytes[message.partition] = self._bytes.get(message.partition, 0) + len(message.value)

    def partitions_ahead(self) -> frozenset[str]:
        """Return the partitions that wait with enough: reading on there would only take memory.

        What is due next can only come from a partition of which nothing waits, so those are always read.
        """
        is_full = sum(self._bytes.values()) >= MOST_BYTES
        return frozenset(
            name
            for name, waiting in self._waiting.items()
            if waiting and (is_full or len(waiting) >= AHEAD_MESSAGES or self._bytes[name] >= AHEAD_BYTES)
        )

    def take(self, limit: int) -> EventPage:
        """Return the events that are due, as far as they are here.

        A clearing waits once for the event after it, which may publish the dataset again; both go into one page.
        """
        events: list[RawEvent] = []
        unreadable: list[UnreadableMessage] = []
        size = 0
        while len(events) + len(unreadable) < limit and size < PAGE_BYTES:
            message = self._next(events, unreadable)
            if message is None:
                break
            cursor = Cursor(self.cursor.epoch, self.cursor.pos + 1)
            event = event_of(message, cursor)
            if event is None:
                break
            if is_clearing(event):
                is_followed = len(self._waiting[message.partition]) > 1
                has_room = len(events) + len(unreadable) + 1 < limit and size + len(message.value) < PAGE_BYTES
                if events and not (is_followed and has_room):
                    break
                if not is_followed and self._clearing_cursor != cursor:
                    self._clearing_cursor = cursor
                    break
            self._pop(message.partition)
            events.append(event)
            size += len(message.value)
            self.cursor = cursor
        return EventPage(events, self.cursor, dict(self.offsets), unreadable)

    @property
    def is_holding(self) -> bool:
        """Whether the event that is due is here, and waits for the one after it."""
        return self._clearing_cursor == Cursor(self.cursor.epoch, self.cursor.pos + 1)

    def gap(self) -> Gap | None:
        """Return what is missing before the next message; None while the broker gave no message that is ahead."""
        heads = self._heads()
        if not heads:
            return None
        first = min(heads, key=lambda head: head.cursor.pos)
        if first.cursor.epoch != self.cursor.epoch:  # an epoch ends or begins somewhere here: the origin knows where
            return Gap(self.cursor, self.cursor.pos + AHEAD_MESSAGES, is_certain=True)
        is_certain = all(self._waiting.values()) or first.previous_pos <= self.cursor.pos
        return Gap(self.cursor, first.cursor.pos, is_certain)

    def fill(self, page: EventPage, end: Cursor) -> EventPage:
        """Go on to where a page of the origin's feed leads. `end`: of that feed, before the page was read.

        Messages beyond the end are no events of that log. Those of an earlier epoch were: a restore has lost them.
        """
        unreadable: list[UnreadableMessage] = []
        is_stuck = page.cursor == self.cursor
        self.cursor = page.cursor
        for name, waiting in self._waiting.items():
            while waiting and (place := place_of(waiting[0])) and self._is_ahead(place.cursor):
                if place.cursor.pos <= end.pos and place.cursor.epoch <= end.epoch:
                    break
                if place.cursor.epoch >= end.epoch:
                    unreadable.append(self._unreadable(waiting[0], NO_SUCH_EVENT))
                self._pop(name)
                is_stuck = False
        if is_stuck:
            message = min((waiting[0] for waiting in self._waiting.values() if waiting), key=_pos)
            unreadable.append(self._unreadable(message, NO_SUCH_EVENT))
            self._pop(message.partition)
        return EventPage(page.events, self.cursor, dict(self.offsets), unreadable)

    def go_on(self, page: EventPage) -> EventPage:
        """Go on to where a page of the origin's feed leads, while the broker gives nothing."""
        self.cursor = page.cursor
        return EventPage(page.events, self.cursor, dict(self.offsets))

    def _next(self, events: list[RawEvent], unreadable: list[UnreadableMessage]) -> LogMessage | None:
        """Return the message that is due, if it is here. What comes after its place goes out with the others."""
        due = None
        for name, waiting in self._waiting.items():
            while waiting:
                message = waiting[0]
                place = place_of(message)
                if place is None:
                    reason = "its headers epoch, pos and prev say no place in the log"
                    unreadable.append(self._unreadable(message, reason))
                elif place.is_redrive:
                    self._take_redrive(message, place, events, unreadable)
                elif self._is_ahead(place.cursor):
                    if place.cursor == Cursor(self.cursor.epoch, self.cursor.pos + 1):
                        due = message
                    break
                self._pop(name)
        return due

    def _take_redrive(
        self, message: LogMessage, place: MessagePlace, events: list[RawEvent], unreadable: list[UnreadableMessage]
    ) -> None:
        """Let an event out that comes after its place.

        One of another epoch stays in: it may be of a history that is lost, and what was missing came from the feed.
        """
        if place.cursor.epoch != self.cursor.epoch:
            return
        event = event_of(message, place.cursor)
        if event is None:
            unreadable.append(self._unreadable(message, "it is no event in JSON with its epoch and pos"))
        else:
            events.append(event)

    def _heads(self) -> list[MessagePlace]:
        places = [place_of(waiting[0]) for waiting in self._waiting.values() if waiting]
        return [place for place in places if place is not None]

    def _is_ahead(self, cursor: Cursor) -> bool:
        """Return whether a message may be news. One of an older epoch may be, where the epoch began after it."""
        return cursor.pos > self.cursor.pos or cursor.epoch > self.cursor.epoch

    def _unreadable(self, message: LogMessage, reason: str) -> UnreadableMessage:
        log = f", log {self.log_identity}" if self.log_identity else ""
        place = f"partition {message.partition or '0'}, offset {message.offset}{log}"
        text = message.value[:SHOWN_CHARACTERS].decode(errors="replace")
        return UnreadableMessage(place, reason, text)

    def _pop(self, partition: str) -> None:
        message = self._waiting[partition].popleft()
        self._bytes[partition] -= len(message.value)
        self.offsets[partition] = message.offset + 1


def _pos(message: LogMessage) -> int:
    place = place_of(message)
    return place.cursor.pos if place else 0
