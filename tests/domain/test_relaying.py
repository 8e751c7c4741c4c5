"""Where a relay goes on, against a model: a feed with forks, and a broker that forgets."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedstac.domain.events import START, Cursor
from fedstac.domain.relaying import FeedState, ForeignLog, LogPlace, Resumption, is_in_log, resumption

PARTITIONS = 3


@dataclass
class Federation:
    """A feed, a broker's log, and what a relay has noted of it. The event at a position has one key in every epoch."""

    start: int
    epochs: dict[int, int] = field(default_factory=lambda: {1: 0})  # where each began
    feed: list[Cursor] = field(default_factory=list)
    log: dict[str, list[Cursor]] = field(default_factory=dict)
    identity: int = 1
    noted: LogPlace = field(default_factory=lambda: LogPlace("", START, 0))

    def __post_init__(self) -> None:
        self.noted = LogPlace("", Cursor(1, self.start) if self.start else START, self.start)

    @property
    def ends(self) -> dict[str, Cursor]:
        return {name: cursors[-1] for name, cursors in self.log.items() if cursors}

    def grow(self, count: int) -> None:
        first = len(self.feed) + 1
        self.feed += [Cursor(max(self.epochs), pos) for pos in range(first, first + count)]

    def fork(self, lost: int) -> None:
        """Put the database back to what it was some events ago."""
        self.feed = self.feed[: len(self.feed) - lost]
        self.epochs[max(self.epochs) + 1] = len(self.feed)

    def relay(self, *, is_noted: bool) -> Resumption:
        """Send what is due, as a relay does, in one page; its last acknowledgement may be lost."""
        state = FeedState(Cursor(max(self.epochs), len(self.feed)), self.epochs)
        ends = self.ends
        begin = resumption(self.noted, ends, str(self.identity), state, self.start)
        for cursor in self.feed[begin.after :]:
            name = str(cursor.pos % PARTITIONS)
            if not is_in_log(cursor, ends.get(name)):
                self.log.setdefault(name, []).append(cursor)
        if is_noted:
            place = self.feed[-1] if len(self.feed) > self.start else Cursor(max(self.epochs), self.start)
            self.noted = LogPlace(str(self.identity), place, place.pos, self.ends)
        return begin

    def check(self) -> None:
        """Check that the log has the feed from the start on, each event once, in its order in each partition."""
        for number in range(PARTITIONS):
            cursors = self.log.get(str(number), [])
            assert len(set(cursors)) == len(cursors)
            own = [cursor for cursor in self.feed[self.start :] if cursor.pos % PARTITIONS == number]
            assert [cursor for cursor in cursors if cursor in set(own)] == own


steps = st.one_of(
    st.tuples(st.just("grow"), st.integers(1, 8)),
    st.tuples(st.just("fork"), st.integers(0, 5)),
    st.tuples(st.just("relay"), st.just(True)),
    st.tuples(st.just("relay"), st.booleans()),
    st.tuples(st.just("cut"), st.integers(0, PARTITIONS - 1), st.integers(1, 6)),
    st.tuples(st.just("empty")),
    st.tuples(st.just("make anew")),
)


@settings(max_examples=300)
@given(start=st.integers(0, 4), history=st.lists(steps, max_size=25))
def test_whatever_a_broker_forgets_its_log_is_whole_again_and_nothing_is_in_it_twice(
    start: int, history: list[tuple[Any, ...]]
) -> None:
    federation = Federation(start)
    federation.grow(start + 8)
    for step in history:
        match step:
            case ("grow", int(count)):
                federation.grow(count)
            case ("fork", int(lost)):
                federation.fork(min(lost, len(federation.feed) - start - 1))
                federation.grow(1)
            case ("relay", bool(is_noted)):
                federation.relay(is_noted=is_noted)
                federation.check()
            case ("cut", int(partition), int(count)):
                del federation.log.get(str(partition), [])[-count:]
            case ("empty",):
                federation.log = {}
            case ("make anew",):
                federation.log, federation.identity = {}, federation.identity + 1
    federation.relay(is_noted=True)
    federation.check()
    assert federation.relay(is_noted=True).after == len(federation.feed)


STATE = FeedState(Cursor(9, 30), {1: 0, 9: 20})


@pytest.mark.parametrize(("end", "shared"), [(START, 0), (Cursor(1, 12), 12), (Cursor(1, 25), 20), (Cursor(9, 25), 25)])
def test_a_log_is_shared_up_to_the_fork(end: Cursor, shared: int) -> None:
    assert STATE.shared_through(end) == shared


@pytest.mark.parametrize(
    ("end", "reason"), [(Cursor(9, 31), "fedstac admin new-epoch"), (Cursor(5, 3), "never had the epoch 5")]
)
def test_a_log_of_what_this_feed_never_had_is_foreign(end: Cursor, reason: str) -> None:
    with pytest.raises(ForeignLog, match=reason):
        resumption(LogPlace("x", Cursor(1, 3), 3), {"": end}, "x", STATE, 0)


def test_what_an_operator_skipped_is_not_said_to_be_sent() -> None:
    place = LogPlace("x", Cursor(9, 28), 28, {"": Cursor(9, 22)})
    assert resumption(place, {"": Cursor(9, 22)}, "x", STATE, 0) == Resumption(28, 28)
