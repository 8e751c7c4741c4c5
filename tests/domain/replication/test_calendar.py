"""Closed windows of sources, in zones with and without daylight saving time."""

from __future__ import annotations

import random
from datetime import UTC, datetime, time, timedelta
from zoneinfo import ZoneInfo

import pytest

from fedstac.domain.replication.calendar import Calendar, Dates, Weekly, Window

EVERY_DAY = frozenset(range(7))
ZONES = ["UTC", "Europe/Berlin", "America/New_York", "Australia/Lord_Howe", "Asia/Kolkata", "America/St_Johns",
         "Africa/Casablanca", "Pacific/Apia"]  # fmt: skip
CHANGES = ["2026-03-29T01:00", "2026-10-25T01:00", "2026-11-01T06:00", "2026-04-04T15:00", "2026-03-22T02:00"]
CALENDARS, MOMENTS = 500, 20
SEED = 12


def utc(text: str) -> datetime:
    return datetime.fromisoformat(text).replace(tzinfo=UTC)


def nightly(zone: str = "Europe/Berlin") -> Calendar:
    return Calendar(zone, (Weekly(EVERY_DAY, time(22), time(6), "backup"),))


@pytest.mark.parametrize(
    ("now", "until"),
    [
        ("2026-06-01T19:59:59", None), ("2026-06-01T20:00", "2026-06-02T04:00"),
        ("2026-06-02T03:59", "2026-06-02T04:00"),
        ("2026-06-02T04:00", None), ("2026-03-28T23:00", "2026-03-29T04:00"), ("2026-10-24T21:00", "2026-10-25T05:00"),
    ],
)  # fmt: skip
def test_a_night_over_midnight_ends_by_the_clock_of_its_zone(now: str, until: str | None) -> None:
    assert nightly().closed_until(utc(now)) == (utc(until) if until else None)


def test_a_window_that_the_clock_skips_does_not_close() -> None:
    skipped = Calendar("Europe/Berlin", (Weekly(EVERY_DAY, time(2), time(2, 30)),))
    assert skipped.closed_until(utc("2026-03-29T01:00")) is None
    assert skipped.next_change(utc("2026-03-29T00:59")) == utc("2026-03-30T00:00")


def test_a_window_that_the_clock_shows_twice_closes_twice() -> None:
    twice = Calendar("Europe/Berlin", (Weekly(EVERY_DAY, time(2), time(2, 30)),))
    closures = twice.next_closings(utc("2026-10-24T23:00"), 2)
    assert [(each.start, each.end) for each in closures] == [
        (utc("2026-10-25T00:00"), utc("2026-10-25T00:30")), (utc("2026-10-25T01:00"), utc("2026-10-25T01:30")),
    ]  # fmt: skip


def test_windows_that_meet_are_one_closed_time() -> None:
    calendar = Calendar("UTC", (
        Weekly(frozenset((5,)), time(12), time(0)), Weekly(frozenset((6,)), time(0), time(0), "weekend"),
        Dates(datetime(2026, 6, 8), datetime(2026, 6, 9, 12), "move"),  # noqa: DTZ001
    ))  # fmt: skip
    [closure] = calendar.next_closings(utc("2026-06-06T00:00"), 1)
    assert (closure.start, closure.end) == (utc("2026-06-06T12:00"), utc("2026-06-09T12:00"))
    assert calendar.reason(utc("2026-06-07T12:00")) == "weekend"


def test_dates_that_are_over_change_nothing_more() -> None:
    calendar = Calendar("UTC", (Dates(datetime(2026, 1, 1), datetime(2026, 1, 2)),))  # noqa: DTZ001
    assert calendar.next_change(utc("2026-01-01T12:00")) == utc("2026-01-02T00:00")
    assert calendar.next_change(utc("2026-01-02T00:00")) is None
    assert Calendar().next_closings(utc("2026-01-02T00:00"), 3) == []


def is_closed(calendar: Calendar, moment: datetime) -> bool:
    """Tell whether a clock in the zone shows a time in a window, minute by minute and without arithmetic of windows."""
    clock = moment.astimezone(ZoneInfo(calendar.zone)).replace(tzinfo=None)
    minute = clock.hour * 60 + clock.minute
    for window in calendar.windows:
        if isinstance(window, Dates):
            if window.start <= clock < window.end:
                return True
            continue
        assert isinstance(window, Weekly)
        start, end = window.start.hour * 60 + window.start.minute, window.end.hour * 60 + window.end.minute
        end = end if end > start else end + 1440
        if clock.weekday() in window.days and start <= minute < end:
            return True
        if (clock.weekday() - 1) % 7 in window.days and start <= minute + 1440 < end:
            return True
    return False


def drawn_window(random: random.Random, near: datetime) -> Window:
    if random.random() < 0.3:
        start = near.replace(tzinfo=None) + timedelta(minutes=random.randint(-3000, 3000))
        return Dates(start, start + timedelta(minutes=random.randint(1, 4000)))
    days = EVERY_DAY if random.random() < 0.5 else frozenset(random.sample(range(7), random.randint(1, 3)))
    return Weekly(days, time(random.randrange(24), random.choice([0, 15, 30, 59])),
                  time(random.randrange(24), random.choice([0, 30, 45])))  # fmt: skip


def test_nothing_is_started_in_a_closed_window() -> None:
    """10 000 moments near changes of clocks: what is said of each agrees with the clock, minute by minute."""
    chance, judged = random.Random(SEED), 0
    while judged < CALENDARS * MOMENTS:
        near = utc(chance.choice(CHANGES))
        windows = tuple(drawn_window(chance, near) for _ in range(chance.randint(1, 3)))
        calendar = Calendar(chance.choice(ZONES), windows)
        if calendar.is_always_closed:
            continue
        for _ in range(MOMENTS):
            now = near + timedelta(seconds=chance.randint(-200_000, 200_000))
            until, change = calendar.closed_until(now), calendar.next_change(now)
            assert (until is not None) == is_closed(calendar, now), (SEED, calendar, now)
            assert until is None or (until > now and not is_closed(calendar, until)), (SEED, calendar, now, until)
            if change is not None:
                assert change > now
                assert is_closed(calendar, change) == (until is None), (SEED, calendar, now, change)
            for _ in range(4):  # nothing changes before
                end = min(change or now + timedelta(days=3), now + timedelta(days=3))
                between = now + (end - now) * chance.random() * 0.999
                assert is_closed(calendar, between) == (until is not None), (SEED, calendar, now, between)
            judged += 1
