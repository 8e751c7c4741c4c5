"""When a source is closed: windows of dates, of weekdays and of every day, in the time of a zone.

A window closes its source whenever a clock in the zone shows a time in it: twice where the clock is put back, and not
at all where it is put forward over the window.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, time, timedelta
from typing import Final, Protocol
from zoneinfo import ZoneInfo

DAY: Final = timedelta(days=1)
DAYS: Final = ("monday", "tuesday", "wednesday", "thursday", "friday", "saturday", "sunday")
MINUTES_OF_WEEK: Final = 7 * 24 * 60


class Window(Protocol):
    """A closed window. Its moments are what a clock in the zone shows, without the zone."""

    @property
    def reason(self) -> str: ...

    def end_of(self, clock: datetime) -> datetime | None:
        """Return when the window that holds a moment ends; None where it is outside."""

    def next_start(self, clock: datetime) -> datetime | None:
        """Return the first start that is later than a moment; None where there is none."""


@dataclass(frozen=True, slots=True)
class Dates:
    """A window from one moment to another: a maintenance."""

    start: datetime
    end: datetime
    reason: str = ""

    def end_of(self, clock: datetime) -> datetime | None:
        return self.end if self.start <= clock < self.end else None

    def next_start(self, clock: datetime) -> datetime | None:
        return self.start if clock < self.start else None

    def __str__(self) -> str:
        return f"{self.start:%Y-%m-%d %H:%M} to {self.end:%Y-%m-%d %H:%M}"


@dataclass(frozen=True, slots=True)
class Weekly:
    """A window on some weekdays, Monday is 0. One that ends no later than it starts goes over midnight.

    `end` is 00:00 for the end of the day.
    """

    days: frozenset[int]
    start: time
    end: time
    reason: str = ""

    @property
    def length(self) -> timedelta:
        minutes = _minutes(self.end) - _minutes(self.start)
        return timedelta(minutes=minutes if minutes > 0 else minutes + 24 * 60)

    def end_of(self, clock: datetime) -> datetime | None:
        ends = [start + self.length for start in self._starts(clock, (0, -1)) if start <= clock < start + self.length]
        return max(ends, default=None)

    def next_start(self, clock: datetime) -> datetime | None:
        return next(start for start in self._starts(clock, range(8)) if start > clock)

    def _starts(self, clock: datetime, offsets: Sequence[int]) -> Iterator[datetime]:
        for offset in offsets:
            day = clock.date() + timedelta(days=offset)
            if day.weekday() in self.days:
                yield datetime.combine(day, self.start)

    def __str__(self) -> str:
        days = "every day" if len(self.days) == 7 else ", ".join(DAYS[day] for day in sorted(self.days))
        return f"{days} {self.start:%H:%M} to {'24:00' if self.end == time() else format(self.end, '%H:%M')}"


@dataclass(frozen=True, slots=True)
class Closure:
    """A time during which a source is closed, from moment to moment in UTC, and what the policy says of it."""

    start: datetime
    end: datetime
    reason: str


@dataclass(frozen=True, slots=True)
class Calendar:
    """The closed windows of a source. They never cover the whole week (`is_always_closed`)."""

    zone: str = "UTC"
    windows: tuple[Window, ...] = ()

    @property
    def is_always_closed(self) -> bool:
        """Whether the weekly windows leave no minute of a week open."""
        closed = bytearray(MINUTES_OF_WEEK)
        for window in self.windows:
            if isinstance(window, Weekly):
                for day in window.days:
                    start = day * 24 * 60 + _minutes(window.start)
                    for minute in range(start, start + int(window.length.total_seconds()) // 60):
                        closed[minute % MINUTES_OF_WEEK] = 1
        return all(closed)

    def closed_until(self, now: datetime) -> datetime | None:
        """Return when the source opens, in UTC; None where it is open."""
        if not self.windows or not self._ends(self._clock(now)):
            return None
        moment = now.astimezone(UTC)
        while ends := self._ends(clock := self._clock(moment)):
            moment = self._step(moment, max(ends) - clock)
        return moment

    def reason(self, now: datetime) -> str:
        """Return what the policy says of the window that holds this moment; "" where it says nothing."""
        clock = self._clock(now)
        return next((window.reason for window in self.windows if window.reason and window.end_of(clock)), "")

    def next_change(self, now: datetime) -> datetime | None:
        """Return when the source opens or closes next, in UTC; None where it stays open for good."""
        if (end := self.closed_until(now)) is not None:
            return end
        moment = now.astimezone(UTC)
        while True:
            clock = self._clock(moment)
            if moment > now and self._ends(clock):
                return moment
            starts = [start for window in self.windows if (start := window.next_start(clock)) is not None]
            if not starts:
                return None
            moment = self._step(moment, min(starts) - clock)

    def next_closings(self, now: datetime, count: int) -> list[Closure]:
        """Return the closed times from now on, `count` at most; the one under way begins now."""
        closings: list[Closure] = []
        moment = now.astimezone(UTC)
        while len(closings) < count:
            end = self.closed_until(moment)
            if end is not None:
                closings.append(Closure(moment, end, self.reason(moment)))
                moment = end
                continue
            start = self.next_change(moment)
            if start is None:
                break
            moment = start
        return closings

    def _ends(self, clock: datetime) -> list[datetime]:
        return [end for window in self.windows if (end := window.end_of(clock)) is not None]

    def _clock(self, moment: datetime) -> datetime:
        """Return what a clock in the zone shows."""
        return moment.astimezone(ZoneInfo(self.zone)).replace(tzinfo=None, fold=0)

    def _offset(self, moment: datetime) -> timedelta:
        return self._clock(moment) - moment.replace(tzinfo=None)

    def _step(self, moment: datetime, length: timedelta) -> datetime:
        """Return the moment that lies that much later, or the one at which the clock is put before that."""
        offset, end = self._offset(moment), moment + length
        day = moment
        while day < end:
            later = min(day + DAY, end)
            if self._offset(later) != offset:
                return self._change(day, later)
            day = later
        return end

    def _change(self, before: datetime, after: datetime) -> datetime:
        """Return the first whole second after `before` with another offset than it; `after` has another."""
        offset = self._offset(before)
        low, high = 0, int((after - before) / timedelta(seconds=1)) + 1  # seconds after the whole second of `before`
        start = before.replace(microsecond=0)
        while high - low > 1:
            middle = (low + high) // 2
            if self._offset(start + timedelta(seconds=middle)) == offset:
                low = middle
            else:
                high = middle
        return start + timedelta(seconds=high)


def _minutes(moment: time) -> int:
    return moment.hour * 60 + moment.minute
