"""A chunk of events on its way to one webhook: the posts, and what their outcomes come to.

`result_of` is pure. A failure is the event's own where the receiver says so, or where it took other events meanwhile.
Else it is the receiver's: then nothing is counted, and the whole subscription waits.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Callable, Sequence, Set
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Final
from urllib.parse import quote

from fedstac.bootstrap import Node
from fedstac.db.subscription_events import Postponement
from fedstac.db.webhook_deliveries import DeliveryResult, Stop, Turn
from fedstac.domain.events import Cursor, LoggedEvent
from fedstac.domain.subscriptions import SubscriberEvent
from fedstac.domain.webhook_answers import TAKEN, WebhookOutcome, WebhookVerdict, outcome_of
from fedstac.messaging.formats import Encoder
from fedstac.messaging.webhooks import Forbidden, Undelivered, Webhooks
from fedstac.runtime.metrics import SUBSCRIPTION_POSTS
from fedstac.workers import delivering

POSTS_EACH, RETRIES_EACH = 4, 2  # of one subscription, each of another dataset: of new events, and of those that failed
ANSWER_SECONDS: Final = 10.0
CHUNK_SECONDS: Final = 10.0  # after which nothing more of a chunk is begun
SLOW_SECONDS: Final = 1.0  # a receiver that takes longer for an answer, on average, is slow
MOST_TRIES: Final = 12  # of an event; then it is a dead letter
FIRST_RETRY_SECONDS, LONGEST_RETRY_SECONDS = 1.0, 600.0  # of an event
FIRST_WAIT_SECONDS, LONGEST_WAIT_SECONDS = 0.5, 300.0  # of a receiver that takes nothing
MOST_FAILING: Final = timedelta(days=7)  # that a receiver takes nothing: then nothing more is sent
MOST_UNCLEAR: Final = 3  # failures in a row, after which it is the receiver that fails
BEHIND: Final = "it waits behind an earlier event of its dataset"
NOT_BEGUN: Final = "it was not sent yet"
PLACE_PREFIX: Final = "fedstac-"
DONE: Final = (WebhookVerdict.TAKEN, WebhookVerdict.DROPPED)
STOPPING: Final = (WebhookVerdict.BUSY, WebhookVerdict.REFUSED, WebhookVerdict.ENDED)


@dataclass(slots=True)
class Item:
    """An event that is to be sent.

    attempts: before this one. tried_at: when the last one failed; None in an event that is new. is_behind: an earlier
    event of its dataset waits, so it is not sent now. outcome: None where it was not sent.
    """

    delivery: SubscriberEvent
    attempts: int = 0
    tried_at: datetime | None = None
    is_behind: bool = False
    outcome: WebhookOutcome | None = None

    @property
    def source(self) -> LoggedEvent:
        """The event as it is in the log."""
        return self.delivery.source

    @property
    def dataset(self) -> tuple[str, str | None]:
        return self.source.collection, self.source.dataset

    @property
    def is_done(self) -> bool:
        return self.outcome is not None and self.outcome.verdict in DONE

    @property
    def is_unwritable(self) -> bool:
        return self.outcome is not None and self.outcome.verdict is WebhookVerdict.UNWRITABLE


@dataclass(slots=True)
class Chunk:
    """Events for one subscription: those that failed before and are due, and the next ones of the log.

    settled_positions: of stored events that are nothing to the subscriber any more. lost_positions: of those that the
    log no longer has. through: the place that is passed_count when all that is new is done.
    """

    turn: Turn
    retries: Sequence[Item]
    news: Sequence[Item]
    settled_positions: Sequence[int] = ()
    lost_positions: Sequence[int] = ()
    through: Cursor | None = None
    seconds: list[float] = field(default_factory=list)  # of each post that was answered or not


class ChunkPost:
    """Posts one chunk. Events of one dataset go one after the other, others beside them.

    room: posts that a process has at once. is_ending: nothing more is to be begun.
    """

    def __init__(
        self, node: Node, hooks: Webhooks, room: asyncio.Semaphore, encoder: Encoder, is_ending: Callable[[], bool],
        chunk: Chunk,
    ) -> None:  # fmt: skip
        self._node, self._hooks, self._room, self._encoder = node, hooks, room, encoder
        self._is_ending, self._chunk = is_ending, chunk
        self._end = time.monotonic() + CHUNK_SECONDS
        self._taken_count = self._unclear_count = 0  # the latter in a row
        self._is_stopped = False

    async def send(self) -> None:
        """Send what can be sent now, and put the outcomes into the items."""
        await asyncio.gather(
            self._send_some(self._chunk.news, POSTS_EACH), self._send_some(self._chunk.retries, RETRIES_EACH)
        )

    async def _send_some(self, items: Sequence[Item], at_once: int) -> None:
        by_dataset: dict[tuple[str, str | None], list[Item]] = {}
        for item in items:
            if not item.is_behind:
                by_dataset.setdefault(item.dataset, []).append(item)
        room = asyncio.Semaphore(at_once)
        await asyncio.gather(*(self._send_in_order(each, room) for each in by_dataset.values()))

    async def _send_in_order(self, items: Sequence[Item], own_room: asyncio.Semaphore) -> None:
        async with own_room:
            for item in items:
                async with self._room:
                    if self._is_over():
                        return
                    item.outcome = await self._post(item)
                self._count(item.outcome)
                if not (item.is_done or item.is_unwritable):
                    return

    def _is_over(self) -> bool:
        gives_up = self._unclear_count >= MOST_UNCLEAR and not self._taken_count
        return self._is_stopped or gives_up or self._is_ending() or time.monotonic() > self._end

    def _count(self, outcome: WebhookOutcome) -> None:
        if outcome.verdict is WebhookVerdict.UNWRITABLE:
            return  # nothing was sent
        self._node.metrics.count(SUBSCRIPTION_POSTS, outcome.verdict)
        if outcome.verdict in DONE:
            self._taken_count, self._unclear_count = self._taken_count + 1, 0
        elif outcome.verdict is WebhookVerdict.UNCLEAR:
            self._unclear_count += 1
        elif outcome.verdict in STOPPING:
            self._is_stopped = True

    async def _post(self, item: Item) -> WebhookOutcome:
        subscription, event = self._chunk.turn.subscription, item.delivery.event
        if not self._encoder.tells(event):
            return TAKEN  # the format has no words for it
        encoding = await delivering.write(self._node, self._encoder, [item.delivery])
        if encoding.unwritable:
            return WebhookOutcome(WebhookVerdict.UNWRITABLE, encoding.unwritable[0].reason)
        message = encoding.events[0].message
        place = {
            "subscription": subscription.name, "pos": str(event.cursor.pos), "epoch": str(event.cursor.epoch),
            "key": quote(message.key, safe="/:"), "attempt": str(item.attempts + 1),
        }  # fmt: skip
        begin = time.monotonic()
        try:
            answer = await self._hooks.post(
                subscription.url or "", id=message.event_id, secret=subscription.secret, body=message.value,
                seconds=ANSWER_SECONDS,
                headers={**message.headers, **{f"{PLACE_PREFIX}{name}": text for name, text in place.items()}},
            )  # fmt: skip
        except Forbidden as error:
            return WebhookOutcome(WebhookVerdict.REFUSED, str(error))
        except Undelivered as error:
            verdict = WebhookVerdict.UNCLEAR if error.was_sent else WebhookVerdict.BUSY
            return WebhookOutcome(verdict, str(error))
        finally:
            self._chunk.seconds.append(time.monotonic() - begin)
        return outcome_of(answer, datetime.now(UTC))


# --- what the outcomes come to; pure ---


def result_of(chunk: Chunk, now: datetime) -> DeliveryResult:
    """Return what is stored of a chunk that was sent."""
    items = [*chunk.retries, *chunk.news]
    done_count = sum(item.is_done for item in items)
    unwritable_items = [(item, item.outcome) for item in items if item.outcome is not None and item.is_unwritable]
    failures = [
        (item, item.outcome) for item in items
        if item.outcome is not None and not (item.is_done or item.is_unwritable)
    ]  # fmt: skip
    stop = next((outcome for _, outcome in failures if outcome.verdict in STOPPING), None)
    is_one_dataset = len({item.dataset for item, _ in failures}) == 1
    is_own_if_unclear = done_count > 0 or (stop is None and is_one_dataset)
    own_failures = [
        (item, outcome) for item, outcome in failures
        if outcome.verdict is WebhookVerdict.AGAIN
        or (outcome.verdict is WebhookVerdict.UNCLEAR and is_own_if_unclear)
    ]  # fmt: skip
    if stop is None and not is_own_if_unclear:
        stop = next((outcome for _, outcome in failures if outcome.verdict is WebhookVerdict.UNCLEAR), None)
    error = stop or (failures[-1][1] if failures else None)
    own_failures = [*unwritable_items, *own_failures]
    passed_count, left_over = _passage(chunk.news, {id(item) for item, _ in own_failures})
    last_place = chunk.news[passed_count - 1].source.cursor if passed_count else None
    return DeliveryResult(
        through=chunk.through if passed_count == len(chunk.news) else last_place,
        taken_count=done_count,
        settled_positions=[
            *chunk.settled_positions, *(item.source.cursor.pos for item in chunk.retries if item.is_done)
        ],
        lost_positions=chunk.lost_positions,
        postponements=[
            *(_postponement(item, outcome, chunk.turn, done_count) for item, outcome in own_failures), *left_over
        ],
        error=error.reason if error else None,
        stop=_stop(chunk.turn, error, stop, done_count, now, posts=len(chunk.seconds)),
        is_slow=bool(chunk.seconds) and sum(chunk.seconds) / len(chunk.seconds) > SLOW_SECONDS,
    )  # fmt: skip


def result_of_refusal(turn: Turn, outcome: WebhookOutcome, now: datetime) -> DeliveryResult:
    """Return what is stored where nothing can be sent: the receiver does not agree, or the log does not go on."""
    return DeliveryResult(
        through=None, taken_count=0, error=outcome.reason, stop=_stop(turn, outcome, outcome, 0, now, posts=0)
    )


def _passage(news: Sequence[Item], failed_ids: Set[int]) -> tuple[int, list[Postponement]]:
    """Return how many new events the cursor passes, and what of them is stored as not sent yet.

    It passes the last one that was sent. So what was not sent is stored only where something after it was sent.
    """
    passed_count = 0
    for n, item in enumerate(news, 1):
        if item.is_done or id(item) in failed_ids or (item.is_behind and passed_count == n - 1):
            passed_count = n
    left_over = [
        Postponement(item.source, BEHIND if item.is_behind else NOT_BEGUN, 0.0, attempts=0)
        for item in news[:passed_count] if not item.is_done and id(item) not in failed_ids
    ]  # fmt: skip
    return passed_count, left_over


def _postponement(item: Item, outcome: WebhookOutcome, turn: Turn, done_count: int) -> Postponement:
    """Return when an event that failed is sent again.

    It is a dead letter after MOST_TRIES, if the receiver said that it is the event or took another one since: while it
    takes nothing at all, events are kept. One that its format cannot write is a dead letter at once.
    """
    tries, delivered_at = item.attempts + 1, turn.subscription.delivered_at
    took_another = done_count > 0 or (
        item.tried_at is not None and delivered_at is not None and delivered_at > item.tried_at
    )
    is_dead = item.is_unwritable or (tries >= MOST_TRIES and (outcome.verdict is WebhookVerdict.AGAIN or took_another))
    seconds = max(outcome.seconds or 0.0, _growing(tries, FIRST_RETRY_SECONDS, LONGEST_RETRY_SECONDS))
    return Postponement(item.source, outcome.reason, None if is_dead else seconds)


def _stop(
    turn: Turn, error: WebhookOutcome | None, stop: WebhookOutcome | None, done_count: int, now: datetime, *, posts: int
) -> Stop:  # fmt: skip
    """Return whether and for how long nothing is sent."""
    pace = 60.0 * posts / turn.allowed_rate if turn.allowed_rate else None
    failing_since = turn.subscription.failing_since
    if stop is not None and stop.verdict is WebhookVerdict.ENDED:
        return Stop(ended_reason=stop.reason)
    if stop is not None and stop.verdict is WebhookVerdict.REFUSED:
        return Stop(paused_reason=stop.reason)
    if error is not None and not done_count and failing_since is not None and now - failing_since > MOST_FAILING:
        return Stop(paused_reason=f"the receiver took nothing for {MOST_FAILING.days} days: {error.reason}")
    if stop is None:
        return Stop(seconds=pace)
    waits = 1 if done_count else turn.waits + 1
    seconds = stop.seconds if stop.seconds is not None else _growing(waits, FIRST_WAIT_SECONDS, LONGEST_WAIT_SECONDS)
    return Stop(seconds=max(seconds, pace or 0.0), waits=waits)


def _growing(times: int, first: float, longest: float) -> float:
    """Return a pause that doubles with each time, spread so that not all come at once."""
    return min(first * 2.0 ** min(times - 1, 20), longest) * random.uniform(0.75, 1.25)  # noqa: S311
