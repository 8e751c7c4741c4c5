"""Where a relay goes on: what a broker's log has, compared with this node's feed. Pure.

The feed is the truth. What was noted of an earlier run is a hint: by it a part of the broker's log that went missing
shows, which the broker itself cannot tell.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from fedstac.domain.events import START, Cursor


class ForeignLog(Exception):
    """A broker's log has what this node's feed never had; the text says what, and what to do."""


@dataclass(frozen=True, slots=True)
class FeedState:
    """A feed: its last place, and the position after which each of its epochs began."""

    head: Cursor
    forks: Mapping[int, int]

    def shared_through(self, cursor: Cursor) -> int:
        """Return through which position a log that ends there is the same as this feed. ForeignLog if it is another's.

        Behind a fork the log has events that this feed has lost.
        """
        if cursor == START:
            return 0
        if cursor.epoch not in self.forks:
            raise ForeignLog(
                f"its log ends at {cursor}, and this feed never had the epoch {cursor.epoch}: another node "
                f"writes there, or this database was restored without its last epoch"
            )
        later_forks = [fork for epoch, fork in self.forks.items() if epoch > cursor.epoch]
        if not later_forks and cursor.pos > self.head.pos:
            raise ForeignLog(
                f"its log ends at {cursor}, and this feed at {self.head}: this database was put back to an earlier "
                f"state; run fedstac admin new-epoch"
            )
        return min([cursor.pos, *later_forks])


@dataclass(frozen=True, slots=True)
class LogPlace:
    """What was noted of a broker's log: its identity, and where each partition ended.

    `cursor`: everything through there was done, also what was not sent. `previous_pos`: of the last event that was
    sent, or the place that an operator sought.
    """

    identity: str
    cursor: Cursor
    previous_pos: int
    partitions: Mapping[str, Cursor] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Resumption:
    """Where a relay goes on: after a position of the feed. `previous_pos` is of the event that the log has before it.

    `lost`: partitions that end before what was noted of them. `is_made_anew`: the log is another one.
    """

    after: int
    previous_pos: int
    lost: tuple[str, ...] = ()
    is_made_anew: bool = False


def resumption(last: LogPlace, ends: Mapping[str, Cursor], identity: str, feed: FeedState, start: int) -> Resumption:
    """Return where to go on, so that the log has everything from `start` on once that is done.

    `ends`: where each partition of the broker's log ends. What is sent has to be compared with them: of the events
    after the place that is returned, some are there already. ForeignLog where the log is not one of this feed.
    """
    for end in ends.values():
        feed.shared_through(end)
    is_made_anew = last.identity not in ("", identity)
    if is_made_anew or not last.identity:
        return Resumption(start, start, is_made_anew=is_made_anew)
    lost = tuple(sorted(name for name, cursor in last.partitions.items() if ends.get(name, START) < cursor))
    sent_through = feed.shared_through(last.cursor)
    if not lost:
        return Resumption(sent_through, min(last.previous_pos, sent_through))
    after = min([sent_through, *(max(feed.shared_through(ends.get(name, START)), start) for name in lost)])
    return Resumption(after, after, lost)


def is_in_log(cursor: Cursor, end: Cursor | None) -> bool:
    """Return whether a partition that ends there has the event of a place that belongs to it."""
    return end is not None and end >= cursor
