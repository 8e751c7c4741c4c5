"""A webhook as an event sink: one signed POST of a CloudEvent for each event, to a receiver that keeps no log for us.

Events of one key are sent one after the other, those of different keys beside each other. The receiver may get an event
twice: one that it took before the relay could note that. It knows it by its id.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping, Sequence
from types import TracebackType
from typing import Final, Self

from fedstac.domain import destinations
from fedstac.domain.errors import BadRequest
from fedstac.domain.events import START
from fedstac.messaging.sinks import (
    OutgoingEvent,
    PageRefused,
    PartitionTail,
    SinkAway,
    SinkRefused,
    SinkTarget,
    SinkUnclear,
    StoredEvent,
    Tail,
    place_headers,
)
from fedstac.messaging.webhooks import Forbidden, Undelivered, Webhooks

AT_ONCE: Final = 16  # posts under way
ANSWER_SECONDS: Final = 30.0
PARTITION: Final = ""
IDENTITY: Final = "webhook"  # there is no log that could be made anew
PLACE_PREFIX: Final = "fedstac-"


class WebhookSink:
    """Posts the events of a feed. Where it stands only the relay knows, which gives it its last tail."""

    about_the_event: tuple[int, ...] = (400, 413, 415, 422)  # statuses that refuse an event for ever
    about_the_caller: tuple[int, ...] = (401, 403)  # statuses that refuse this node
    remedy = "see to its address, and that it takes what this node signs"

    def __init__(self, target: SinkTarget) -> None:
        self._url = self._read_address(target)
        self._secret, self._last_tail = target.secret, target.last_tail
        self._hooks = Webhooks(private=target.private, keep=AT_ONCE)
        self._room = asyncio.Semaphore(AT_ONCE)
        self._delivered_ids = target.delivered_ids
        self._is_failing = False  # in the page that is under way

    async def __aenter__(self) -> Self:
        await self._hooks.__aenter__()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._hooks.__aexit__(kind, error, trace)

    async def begin(self) -> Tail:
        """Return the tail that the relay noted."""
        return Tail(IDENTITY, self._last_tail.partitions)

    async def publish(self, events: Sequence[OutgoingEvent], tail: Tail) -> Tail:
        """Post a page. What was taken of a page that fails is not posted again by this relay.

        After a failure that is not an event's nothing more is begun: a receiver that is away is noticed at once.
        """
        self._is_failing = False
        end = tail.partitions.get(PARTITION, PartitionTail(0, START))
        by_key: dict[str, list[OutgoingEvent]] = {}
        for event in events:
            if event.event_id not in self._delivered_ids:
                by_key.setdefault(event.key, []).append(event)
        results = await asyncio.gather(
            *(self._post_all(own, end) for own in by_key.values()), return_exceptions=True
        )  # all of them end, so that nothing of this page is under way when the next attempt begins
        failures = [result for result in results if isinstance(result, BaseException)]
        try:
            if failures:
                raise min(failures, key=_urgency)
        finally:  # the traceback has this frame, which would keep it and the page until the next collection
            del results, failures
        self._delivered_ids -= {event.event_id for event in events}
        cursor = next((event.cursor for event in reversed(events) if not event.is_redrive), end.cursor)
        return Tail(IDENTITY, {PARTITION: PartitionTail(end.offset + len(events), cursor)})

    async def check(self, tail: Tail) -> None:
        """Do nothing: a receiver is asked nothing."""

    def partition_of(self, event: OutgoingEvent) -> str:
        """Return the one partition."""
        return PARTITION

    async def is_dense(self, after: int, through: int) -> bool | None:
        """Return None: a receiver tells nothing of what it has."""
        return None

    async def stored_events(self) -> AsyncIterator[StoredEvent]:
        """Yield nothing: a receiver tells nothing of what it has."""
        nothing: tuple[StoredEvent, ...] = ()
        for event in nothing:
            yield event

    async def _post_all(self, events: Sequence[OutgoingEvent], end: PartitionTail) -> None:
        for event in events:
            async with self._room:
                if self._is_failing:
                    return
                await self._post(event, end)
            self._delivered_ids.add(event.event_id)

    async def _post(self, event: OutgoingEvent, end: PartitionTail) -> None:
        place = {f"{PLACE_PREFIX}{name}": value for name, value in place_headers(event, end.cursor).items()}
        try:
            await self._send(event, place)
        except Forbidden as error:
            self._is_failing = True
            raise SinkRefused(str(error)) from error
        except Undelivered as error:
            if error.status in self.about_the_event:
                raise PageRefused(str(error), event_id=event.event_id) from error
            self._is_failing = True
            if error.status in self.about_the_caller or (error.status or 0) // 100 == 3:
                raise SinkRefused(f"{error}; {self.remedy}") from error
            raise SinkAway(str(error)) from error

    async def _send(self, event: OutgoingEvent, place: Mapping[str, str]) -> None:
        """Post an event. `place`: the headers that tell its place in the log. Errors as of `Webhooks.send`."""
        await self._post_signed(self._url, event, {**event.headers, **place})

    async def _post_signed(self, url: str, event: OutgoingEvent, headers: Mapping[str, str]) -> None:
        await self._hooks.send(
            url, id=event.event_id, secret=self._secret, body=event.value, seconds=ANSWER_SECONDS, headers=headers
        )

    def _read_address(self, target: SinkTarget) -> str:
        """Return the URL that is posted to. SinkUnclear where the address names none."""
        return url_of(target.address, private=target.private)


def url_of(address: str, *, private: bool) -> str:
    """Return the URL that an address of a webhook is. SinkUnclear where it is none, or must not be used."""
    try:
        return destinations.parse(address, private=private).target
    except BadRequest as error:
        raise SinkUnclear(error.detail) from None


def _urgency(error: BaseException) -> int:
    """Return the order in which failures of one page matter: what stops the sink comes before what refuses an event."""
    order = (SinkRefused, SinkAway, PageRefused)
    return next((place for place, kind in enumerate(order) if isinstance(error, kind)), -1)
