"""The chain: whatever a broker loses, repeats, delays or forges, events come in the order of the log, each once."""

from __future__ import annotations

from collections.abc import Sequence

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedstac.domain import events
from fedstac.domain.events import Cursor
from fedstac.messaging.sources import EventPage, RawEvent
from fedstac.messaging.sources.brokers import READ_MESSAGES
from fedstac.messaging.sources.chain import AHEAD_BYTES, AHEAD_MESSAGES, MOST_BYTES, Chain, LogMessage

LENGTH = 30


def event(pos: int, epoch: int = 1) -> RawEvent:
    return {"pos": pos, "epoch": epoch, "id": f"{epoch}.{pos}", "data": {}}


def message(
    pos: int, *, epoch: int = 1, prev: int | None = None, partition: str = "0", offset: int = 0, redrive: bool = False,
    value: bytes | None = None,
) -> LogMessage:  # fmt: skip
    headers = {"pos": str(pos), "epoch": str(epoch), "prev": str(pos - 1 if prev is None else prev)}
    if redrive:
        headers["redrive"] = "1"
    return LogMessage(partition, offset, headers, orjson.dumps(event(pos, epoch)) if value is None else value)


class Log:
    """An origin's feed: `fork` is the last position of epoch 1, what comes after is of epoch 2."""

    def __init__(self, length: int, fork: int | None = None) -> None:
        self.length, self.fork = length, fork

    def epoch_of(self, pos: int) -> int:
        return 1 if self.fork is None or pos <= self.fork else 2

    @property
    def end(self) -> Cursor:
        return Cursor(1 if self.fork is None else 2, self.length)

    def page(self, after: Cursor, limit: int) -> EventPage:
        events = [event(pos, self.epoch_of(pos)) for pos in range(after.pos + 1, self.length + 1)][:limit]
        return EventPage(events, Cursor(self.end.epoch, after.pos + len(events)))


def drain(chain: Chain, log: Log) -> list[RawEvent]:
    """Return all that comes out while the feed fills every gap."""
    events: list[RawEvent] = []
    while True:
        page = chain.take(7)
        gap = None if page.events or page.unreadable else chain.gap()
        if gap is not None:
            page = chain.fill(log.page(gap.after, gap.through - gap.after.pos), log.end)
        elif not page.events and not page.unreadable:
            return events
        events += page.events


def ids(events: Sequence[RawEvent]) -> list[str]:
    return [each["id"] for each in events]


def wholly(log: Log) -> list[str]:
    return [f"{log.epoch_of(pos)}.{pos}" for pos in range(1, log.length + 1)]


@st.composite
def deliveries(draw: st.DrawFn) -> list[LogMessage]:
    """Draw what a broker with three partitions gives of a log: parts of it, some of them again, and forged messages."""
    partitions = draw(st.lists(st.sampled_from("012"), min_size=LENGTH, max_size=LENGTH))
    sent = [(pos, partitions[pos - 1]) for pos in range(1, LENGTH + 1)]
    kept = [each for each in sent if draw(st.integers(0, 9))]
    back = draw(st.integers(0, len(kept)))
    kept += kept[back:]  # a rewind
    order = draw(st.permutations(range(3)))
    if draw(st.booleans()):  # partitions that come one after the other
        kept.sort(key=lambda each: order[int(each[1])])
    messages = [message(pos, partition=partition, offset=n) for n, (pos, partition) in enumerate(kept)]
    for _ in range(draw(st.integers(0, 4))):
        forged = draw(
            st.sampled_from(
                [
                    message(10**9), message(5, epoch=9), message(12, value=b"{"), message(LENGTH + 2),
                    message(10**9, prev=3, partition="1"), LogMessage("2", 0, {}, b"hello"),
                    LogMessage("0", 0, {"pos": "-1", "epoch": "x", "prev": "9" * 99}, b""),
                    message(7, value=orjson.dumps(event(8))), message(4, epoch=0),
                ]
            )
        )  # fmt: skip
        messages.insert(draw(st.integers(0, len(messages))), forged)
    return messages


@given(deliveries(), st.integers(0, LENGTH), st.integers(1, 9))
def test_whatever_the_broker_gives_the_log_comes_out_in_order_and_once(
    messages: list[LogMessage], after: int, portion: int
) -> None:
    log = Log(LENGTH)
    chain = Chain.begin(Cursor(1, after), {}, "012")
    events: list[RawEvent] = []
    for start in range(0, len(messages), portion):
        for each in messages[start : start + portion]:
            chain.put(each)
        events += drain(chain, log)
    last = chain.cursor.pos
    assert ids(events) == wholly(log)[after:last]
    delivered = [int(each.headers.get("pos", "0")) for each in messages if each.value[:1] == b"{"]
    assert last >= max((pos for pos in delivered if pos <= LENGTH), default=0)
    assert chain.gap() is None
    assert not chain.partitions_ahead()


@given(deliveries(), st.integers(0, LENGTH), st.integers(0, LENGTH))
def test_a_consumer_within_the_fork_goes_on_and_gets_nothing_of_the_lost_history(
    messages: list[LogMessage], after: int, fork: int
) -> None:
    log = Log(LENGTH, fork)
    chain = Chain.begin(Cursor(2, min(after, fork)), {}, "012")
    for each in messages:
        chain.put(each)
    for pos in range(fork + 1, LENGTH + 1):
        chain.put(message(pos, epoch=2, partition=str(pos % 3)))
    events = drain(chain, log)
    assert ids(events) == wholly(log)[min(after, fork) : chain.cursor.pos]
    assert chain.cursor.pos >= (LENGTH if fork < LENGTH else 0)


def test_offsets_are_those_of_the_first_message_that_is_not_yet_delivered() -> None:
    chain = Chain.begin(Cursor(1, 0), {"0": 40, "9": 1}, "01")
    chain.put(message(1, offset=50))
    chain.put(message(3, offset=51))
    assert ids(chain.take(10).events) == ["1.1"]
    assert chain.offsets == {"0": 51}
    chain.put(message(2, partition="1", offset=7))
    page = chain.take(10)
    assert ids(page.events) == ["1.2", "1.3"]
    assert page.offsets == {"0": 52, "1": 8}


def test_a_gap_is_certain_once_no_partition_can_bring_what_is_missing() -> None:
    chain = Chain.begin(Cursor(1, 0), {}, "01")
    chain.put(message(3))
    gap = chain.gap()
    assert gap is not None
    assert (gap.through, gap.is_certain) == (3, False)
    chain.put(message(4, partition="1"))
    gap = chain.gap()
    assert gap is not None
    assert gap.is_certain


def test_what_was_never_sent_to_the_broker_is_a_certain_gap() -> None:
    chain = Chain.begin(Cursor(1, 4), {}, "01")
    chain.put(message(7, prev=4))
    gap = chain.gap()
    assert gap is not None
    assert gap.is_certain


def test_a_redriven_event_passes_after_its_place_and_moves_nothing() -> None:
    chain = Chain.begin(Cursor(1, 20), {}, "0")
    chain.put(message(5, redrive=True))
    chain.put(message(6, epoch=2, redrive=True))  # of a history that is not ours
    page = chain.take(10)
    assert (ids(page.events), page.cursor) == (["1.5"], Cursor(1, 20))
    assert chain.take(10).events == []


@pytest.mark.parametrize(
    "value", [b"", b"{", b"[]", b"null", b"\xff", b'{"pos":1,"epoch":1,"dataref":"https://west.example/e"}']
)
def test_an_event_that_cannot_be_read_is_taken_from_the_feed(value: bytes) -> None:
    chain = Chain.begin(Cursor(1, 0), {}, "0")
    chain.put(message(1, value=value))
    chain.put(message(2))
    assert ids(drain(chain, Log(2))) == ["1.1", "1.2"]


def test_a_message_beyond_the_origins_log_is_unreadable_and_the_rest_goes_on() -> None:
    chain = Chain.begin(Cursor(1, 0), {}, "0")
    chain.put(message(9, offset=3))
    log = Log(0)
    gap = chain.gap()
    assert gap is not None
    page = chain.fill(log.page(gap.after, gap.through), log.end)
    [unreadable] = page.unreadable
    assert (unreadable.place, "no event" in unreadable.reason) == ("partition 0, offset 3", True)
    assert page.offsets == {"0": 4}
    chain.put(message(1))
    assert ids(chain.take(10).events) == ["1.1"]


def test_an_unreadable_message_of_a_log_that_was_made_anew_is_another_one() -> None:
    places = set()
    for identity in ("first", "second"):
        chain = Chain.begin(Cursor(1, 0), {}, "0", identity)
        chain.put(LogMessage("0", 7, {}, b"junk"))
        [unreadable] = chain.take(10).unreadable
        places.add(unreadable.place)
    assert places == {"partition 0, offset 7, log first", "partition 0, offset 7, log second"}


def test_a_partition_that_waits_for_others_is_read_no_further() -> None:
    chain = Chain.begin(Cursor(1, 0), {}, "01")
    for pos in range(2, AHEAD_MESSAGES + 1):
        chain.put(message(pos))
    assert not chain.partitions_ahead()
    chain.put(message(AHEAD_MESSAGES + 1))
    assert chain.partitions_ahead() == {"0"}
    chain.put(LogMessage("1", 0, {"pos": "9999", "epoch": "1", "prev": "9998"}, b" " * AHEAD_BYTES))
    assert chain.partitions_ahead() == {"0", "1"}
    assert READ_MESSAGES <= AHEAD_MESSAGES


def test_what_waits_in_all_is_bounded_and_what_is_due_can_still_come() -> None:
    names = [str(number) for number in range(8)]
    chain = Chain.begin(Cursor(1, 0), {}, names)
    for number, name in enumerate(names[1:]):
        headers = {"pos": str(number + 2), "epoch": "1", "prev": str(number + 1)}
        chain.put(LogMessage(name, 0, headers, b" " * (MOST_BYTES // 7 + 1)))
    assert chain.partitions_ahead() == set(names[1:])


# --- a dataset that is cleared and published again ---


def of_type(pos: int, event_type: str) -> LogMessage:
    return message(pos, offset=pos, value=orjson.dumps({**event(pos), "type": event_type}))


def positions(page: EventPage) -> list[int]:
    return [each["pos"] for each in page.events]


def test_no_page_ends_between_a_clearing_and_the_publication_after_it() -> None:
    for limit in range(2, 8):
        chain = Chain.begin(Cursor(1, 0), {}, ["0"])
        for pos in range(1, 25):
            chain.put(of_type(pos, events.CLEARED if pos % 2 else events.PUBLISHED))
        pages = []
        while (page := chain.take(limit)).events:
            pages.append(positions(page))
        assert [pos for page in pages for pos in page] == list(range(1, 25))
        assert all(page[-1] % 2 == 0 for page in pages), pages


def test_a_clearing_waits_once_for_what_the_broker_has_not_brought_yet() -> None:
    chain = Chain.begin(Cursor(1, 0), {}, ["0"])
    chain.put(of_type(1, events.PUBLISHED))
    chain.put(of_type(2, events.CLEARED))
    assert positions(chain.take(7)) == [1]
    assert positions(chain.take(7)) == []
    assert chain.is_holding
    chain.put(of_type(3, events.PUBLISHED))
    assert positions(chain.take(7)) == [2, 3]
    assert not chain.is_holding


def test_a_clearing_that_nothing_follows_comes_after_its_wait() -> None:
    chain = Chain.begin(Cursor(1, 0), {}, ["0"])
    chain.put(of_type(1, events.CLEARED))
    assert [positions(chain.take(7)) for _ in range(3)] == [[], [1], []]
    assert not chain.is_holding
