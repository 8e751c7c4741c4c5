"""Auditing a sink: which events of the log its broker does not have, and sending them again. It disturbs no relay."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from fedstac.db import dead_letters, sinks
from fedstac.db.connections import Connection
from fedstac.db.sinks import Sink, Stretch
from fedstac.domain.events import Cursor
from fedstac.domain.relaying import FeedState, ForeignLog
from fedstac.messaging.sinks import EventSink, SinkUnclear, scheme_of
from fedstac.messaging.sources.addresses import BROKERS
from fedstac.workers.relay import encoder_of, takes

REPORT_EVENTS = 1000


@dataclass(frozen=True, slots=True)
class SinkAudit:
    """What an audit found about a sink.

    through: the position through which the broker should have everything. messages: how many it has; None: its own
    counters prove that none is missing, and nothing was read. holes: what is missing and can be sent again; lost: what
    is missing, and the log does not reach back to. repeats: messages of an event that came before them. foreign:
    messages of events that this feed has not, or no longer.
    """

    through: int
    messages: int | None
    holes: Sequence[Stretch] = ()
    lost: Sequence[Stretch] = ()
    repeats: int = 0
    foreign: int = 0

    @property
    def missing(self) -> int:
        """How many events are missing."""
        return sum(each.through - each.after for each in (*self.holes, *self.lost))

    def as_json(self) -> dict[str, Any]:
        """Return it in JSON; a stretch is its first and its last position."""
        return {
            "through": self.through,
            "proof": "counters" if self.messages is None else "messages",
            "messages": self.messages,
            "missing": self.missing,
            "holes": [[each.after + 1, each.through] for each in self.holes],
            "lost": [[each.after + 1, each.through] for each in self.lost],
            "repeats": self.repeats,
            "foreign": self.foreign,
        }


async def audit(
    conn: Connection, sink: Sink, broker: EventSink, *, full: bool, on_progress: Callable[[int], object]
) -> SinkAudit:
    """Compare a broker's log with the feed. Without `full` nothing is read where the broker's counters prove it whole.

    SinkUnclear where the sink is none that tells what it has.
    """
    if scheme_of(sink.address) not in BROKERS:
        raise SinkUnclear(f"the sink {sink.name} is a webhook, which tells nothing of what it has")
    if not full and await broker.is_dense(sink.starts_after, sink.pos):
        return SinkAudit(sink.pos, None)
    feed = await sinks.feed_state(conn)
    census = _Census(feed, sink.starts_after, sink.pos)
    async for event in broker.stored_events():
        census.count(event.cursor)
        if census.messages % REPORT_EVENTS == 0:
            on_progress(census.messages)
    on_progress(census.messages)
    missing = sinks.without(list(census.missing()), await sinks.skips(conn, sink.name))
    if missing:
        missing = await _expected(conn, sink, missing)
    earliest = await sinks.earliest(conn)
    lost = [Stretch(each.after, min(each.through, earliest - 1)) for each in missing if each.after < earliest - 1]
    holes = [Stretch(max(each.after, earliest - 1), each.through) for each in missing if each.through >= earliest]
    return SinkAudit(sink.pos, census.messages, holes, lost, census.repeats, census.foreign)


async def _expected(conn: Connection, sink: Sink, missing: Sequence[Stretch]) -> list[Stretch]:
    """Return stretches without what was never to be sent: dead letters, and events that the format cannot tell."""
    absent = {cursor.pos for cursor in await dead_letters.positions(conn, sink.name, missing[0].after, sink.pos)}
    encoder = encoder_of(sink, "")
    types = await sinks.types_of(conn, missing)
    for event_type in (each for each in types if not takes(encoder, each)):
        absent |= await sinks.positions_of_type(conn, event_type, missing)
    if not encoder.dialect.is_native:
        absent |= await sinks.positions_left_blank(conn, missing)
    if not encoder.dialect.is_for_nodes:
        absent |= await sinks.positions_untold(conn, missing)
    stretches = []
    positions = sorted(absent)
    for each in missing:
        cuts = positions[bisect_right(positions, each.after) : bisect_right(positions, each.through)]
        for begin, end in zip((each.after, *cuts), (*(pos - 1 for pos in cuts), each.through), strict=True):
            if begin < end:
                stretches.append(Stretch(begin, end))
    return stretches


class _Census:
    """The positions that a broker has, a bit each."""

    def __init__(self, feed: FeedState, after: int, through: int) -> None:
        self._feed, self._after, self._through = feed, after, through
        self._bits = bytearray((max(through - after, 0) + 7) // 8)
        self.messages = self.repeats = self.foreign = 0

    def count(self, cursor: Cursor) -> None:
        """Take a message in."""
        self.messages += 1
        if not self._is_ours(cursor):
            self.foreign += 1
            return
        place, bit = divmod(cursor.pos - self._after - 1, 8)
        if not 0 <= place < len(self._bits):  # from before the sink began, or since the audit did
            return
        if self._bits[place] & 1 << bit:
            self.repeats += 1
        self._bits[place] |= 1 << bit

    def _is_ours(self, cursor: Cursor) -> bool:
        try:
            return self._feed.shared_through(cursor) >= cursor.pos
        except ForeignLog:
            return cursor.epoch in self._feed.forks  # it came since the audit began

    def missing(self) -> Iterator[Stretch]:
        """Yield the stretches that no message has."""
        begin: int | None = None
        for place, byte in enumerate(self._bits):
            if (byte == 0xFF and begin is None) or (byte == 0 and begin is not None):
                continue
            for bit in range(8):
                pos = self._after + 1 + place * 8 + bit
                if pos > self._through:
                    break
                if byte & 1 << bit:
                    if begin is not None:
                        yield Stretch(begin - 1, pos - 1)
                        begin = None
                elif begin is None:
                    begin = pos
        if begin is not None:
            yield Stretch(begin - 1, self._through)
