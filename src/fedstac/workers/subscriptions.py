"""Sends subscriptions to their webhooks: one signed POST of a CloudEvent for each event, at each receiver's pace.

Every process takes subscriptions that have something to send, by a lease (db/webhook_deliveries.claim). Those that
stand close together in the log share one reading of it. Each has its own task, so that a receiver that is slow holds
up nobody else; and those that are slow or fail have a share of the tasks that they cannot exceed.

The events of one dataset are sent one after the other. One that fails is stored with the time of its next attempt, what
follows of its dataset waits behind it, and other datasets pass. What was sent is noted a chunk at a time, those of
several subscriptions in one transaction: a process that dies in between sends these chunks again, with the same ids.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Final
from urllib.parse import urlsplit
from uuid import uuid4

import structlog

from fedstac.bootstrap import Node
from fedstac.db import subscription_events, webhook_deliveries
from fedstac.db.connections import Connection
from fedstac.db.subscription_events import HeldBack
from fedstac.db.webhook_deliveries import MOST_WAITING, DeliveryResult, Note, Stop, Turn
from fedstac.domain import destinations
from fedstac.domain.errors import BadRequest, CursorGone
from fedstac.domain.events import Cursor
from fedstac.domain.policy import Principal
from fedstac.domain.subscriptions import Subscriber, SubscriberEvent
from fedstac.domain.webhook_answers import Consent, WebhookOutcome, WebhookVerdict, consent_of
from fedstac.messaging.webhooks import Forbidden, Resolve, Undelivered, Webhooks, resolve
from fedstac.runtime import commits, supervision
from fedstac.runtime.causes import Cause, cause_of
from fedstac.runtime.failpoints import failpoint
from fedstac.runtime.wakeup import Backoff, cancel, pause
from fedstac.settings import Misconfigured, Settings
from fedstac.workers import delivering, subscribing
from fedstac.workers.page_cache import PAGE_EVENTS, PageCache
from fedstac.workers.webhook_chunks import ANSWER_SECONDS, Chunk, ChunkPost, Item, result_of, result_of_refusal

PART: Final = "subscriptions"
TURNS, SLOW_TURNS = 256, 64  # subscriptions that a process has at once; those that are slow or fail have a share
POSTS, SLOW_POSTS = 96, 48  # that are under way at once
KEPT_CONNECTIONS: Final = 64  # that stay open between posts
TURN_SECONDS: Final = 15.0  # after which others get their turn
LEASE_SECONDS: Final = 15.0
LEAST_POLL_SECONDS, MOST_POLL_SECONDS = 0.02, 0.25
END_SECONDS: Final = 3.0  # that posts under way have to end, when the process stops
NOTES_AT_ONCE: Final = 100  # chunks that are noted in one transaction
RATE_SHARE: Final = 7  # chunks of a minute, for a receiver that wants so many requests a minute at most
WITHOUT_TOKEN: Final = WebhookOutcome(
    WebhookVerdict.BUSY, "its owner has no valid token of this node; issue one, or remove the subscription"
)
BEHIND_THE_LOG: Final = (
    "the log no longer has what comes next; read everything with a search, seek the place that was `head` before, "
    "which begins it anew"
)
NOTHING_HELD: Final = HeldBack(frozenset(), frozenset())
log = structlog.get_logger()


def check(settings: Settings) -> None:
    """Refuse wrong settings of webhooks before anything runs: Misconfigured."""
    try:
        destinations.networks_of(settings.webhook_networks)
    except ValueError as error:
        raise Misconfigured(f'FEDSTAC_WEBHOOK_NETWORKS: {error}; write networks as ["10.20.0.0/16"]') from None


async def run(node: Node, stop: asyncio.Event) -> None:
    """Send to every webhook whose turn it is, until `stop`."""
    await WebhookSender(node).run(stop)


class WebhookSender:
    """Sends in one process; those of all processes share the subscriptions. `find` resolves names."""

    def __init__(self, node: Node, *, find: Resolve = resolve, lease_seconds: float = LEASE_SECONDS) -> None:
        self._node, self._lease_seconds = node, lease_seconds
        public_url = node.settings.public_url.rstrip("/")
        self._feed_url = f"{public_url}/events"
        self._origin = urlsplit(public_url).hostname or node.settings.node
        networks = destinations.networks_of(node.settings.webhook_networks)
        self._hooks = Webhooks(
            private=False, find=find, networks=networks, keep=KEPT_CONNECTIONS, at_once=POSTS + SLOW_POSTS
        )
        self._pages, self._notes = PageCache(node), NoteWriter(node)
        self._posts = {False: asyncio.Semaphore(POSTS), True: asyncio.Semaphore(SLOW_POSTS)}  # by is_hindered
        self._turns: dict[asyncio.Task[None], Turn] = {}
        self._prolonged_at = time.monotonic()
        self._stop = asyncio.Event()

    async def run(self, stop: asyncio.Event) -> None:
        """Send until `stop`. What is under way has a moment to end; the leases of the rest end with this."""
        self._stop = stop
        first_event = self._node.sequenced.next()
        if not self._node.commits.has_work(PART):
            await first_event(commits.PATIENCE_SECONDS)
        idle = Backoff(least=LEAST_POLL_SECONDS, most=MOST_POLL_SECONDS)

        async def step() -> None:
            sequenced = self._node.sequenced.next()
            async with self._node.pool.acquire() as conn:
                is_busy = await self.step(conn)
            if is_busy:
                idle.reset()
                await pause(stop, LEAST_POLL_SECONDS)  # what comes in the meantime is read together
            elif self._turns:  # whose leases are to be prolonged
                await sequenced(idle.pause())
            else:
                await sequenced(self._node.commits.patience(idle.pause(), part=PART))

        async with self._hooks:
            try:
                await supervision.keep_trying(self._node.parts, PART, step, stop)
            finally:
                await self._end()

    async def step(self, conn: Connection) -> bool:
        """Begin the turns of subscriptions that have something to send. Return whether there were any."""
        await self._prolong(conn, ())
        slow_count = sum(turn.is_hindered for turn in self._turns.values())
        room, slow_room = TURNS - (len(self._turns) - slow_count), SLOW_TURNS - slow_count
        turns = await webhook_deliveries.claim(
            conn, uuid4(), self._lease_seconds, most=max(room, 0), most_slow=max(slow_room, 0)
        )
        failpoint("subscriptions.claimed")
        agreed_turns = [turn for turn in turns if turn.has_consent]
        for turn in turns:
            if not turn.has_consent:
                self._start(turn, Reading())
        owners = await subscribing.owners_of(conn, [turn.subscription for turn in agreed_turns])
        refusals = {turn.name: self._refusal(turn, owners) for turn in agreed_turns}
        for turn in agreed_turns:
            if (refusal := refusals[turn.name]) is not None:
                self._start(turn, Reading(), refusal=refusal)
        groups = groups_of([turn for turn in agreed_turns if refusals[turn.name] is None])
        for n, group in enumerate(groups):
            await self._prolong(conn, [turn for later_group in groups[n:] for turn in later_group])
            await self._begin(conn, group, owners)
        return bool(turns)

    def _refusal(self, turn: Turn, owners: Mapping[str, Principal]) -> WebhookOutcome | None:
        """Return why nothing is sent to a subscription, by the rights of its owner; None where they are known."""
        if turn.name not in owners:
            return WITHOUT_TOKEN
        days = self._node.settings.webhook_rights_days
        end = subscribing.rights_until(turn.subscription, days)
        if end is not None and end <= datetime.now(UTC):
            return WebhookOutcome(
                WebhookVerdict.REFUSED,
                f"its owner has groups of an identity provider, and put it more than {days} days ago; put it again",
            )
        return None

    async def _begin(self, conn: Connection, group: Sequence[Turn], owners: Mapping[str, Principal]) -> None:
        """Begin the turns of subscriptions that stand close together. One whose reading fails holds up no other."""
        try:
            await self._read(conn, group, owners)
        except Exception as error:
            if cause_of(error) is not Cause.OURS:
                raise
            if len(group) == 1:
                self._start(group[0], Reading(), refusal=self._fault(error))
                return
            for turn in group:
                await self._begin(conn, [turn], owners)

    async def _read(self, conn: Connection, group: Sequence[Turn], owners: Mapping[str, Principal]) -> None:
        """Read the log once for subscriptions that stand close together, and begin the turns of those with events."""
        subscribers = await subscribing.subscribers_of([turn.subscription for turn in group], owners)
        names = [each.filter.collections for each in subscribers]
        collections = None if None in names else frozenset[str]().union(*(each for each in names if each is not None))
        try:
            page = await delivering.next_deliveries(
                self._pages, conn, group[0].subscription.cursor, collections, subscribers
            )
        except CursorGone:
            refusal = WebhookOutcome(WebhookVerdict.REFUSED, BEHIND_THE_LOG)
            for turn in group:  # those further on have their turn again
                is_gone = turn.subscription.cursor == group[0].subscription.cursor
                self._start(turn, Reading(), refusal=refusal if is_gone else None)
            return
        deliveries = {
            turn.name: [
                each for each in page.by_name[turn.name] if each.source.cursor.pos > turn.subscription.pos
            ]
            for turn in group
        }  # fmt: skip
        full = {turn.name for turn in group if turn.waiting >= MOST_WAITING}  # they get only what waits
        idle = [
            turn for turn in group
            if not deliveries[turn.name] and not turn.is_due and turn.name not in full
            and page.through.pos >= turn.subscription.pos
        ]  # fmt: skip
        if idle:
            await webhook_deliveries.pass_over(conn, idle, page.through)
        for turn, subscriber in zip(group, subscribers, strict=True):
            if turn.name in full or page.through.pos < turn.subscription.pos:  # of large events a page has few
                self._start(turn, Reading(subscriber))
            elif deliveries[turn.name] or turn.is_due:
                self._start(turn, Reading(subscriber, deliveries[turn.name], page.through))

    def _start(self, turn: Turn, reading: Reading, *, refusal: WebhookOutcome | None = None) -> None:
        task = asyncio.create_task(self._take_turn(turn, reading, refusal), name=f"subscription {turn.name}")
        self._turns[task] = turn
        task.add_done_callback(self._forget)

    def _forget(self, task: asyncio.Task[None]) -> None:
        del self._turns[task]

    async def _prolong(self, conn: Connection, waiting_turns: Sequence[Turn]) -> None:
        """Let the leases of turns that are under way, or wait to begin, last longer, well before they end."""
        now = time.monotonic()
        turns = [*self._turns.values(), *waiting_turns]
        if turns and now - self._prolonged_at > self._lease_seconds / 4:
            await webhook_deliveries.prolong(conn, turns, self._lease_seconds)
            self._prolonged_at = now

    async def _end(self) -> None:
        if self._turns:
            await asyncio.wait(self._turns, timeout=END_SECONDS)
        await cancel(*self._turns)
        await self._notes.end()

    # --- the turn of one subscription ---

    async def _take_turn(self, turn: Turn, reading: Reading, refusal: WebhookOutcome | None) -> None:
        """Send what a subscription gets. If the database fails, its lease ends and it has its turn again."""
        try:
            try:
                await self._work(turn, reading, refusal)
            except Exception as error:
                if cause_of(error) is not Cause.OURS:
                    raise
                await self._work(turn, reading, self._fault(error))
            finally:
                async with self._node.pool.acquire() as conn:
                    await webhook_deliveries.release(conn, turn.lease, [turn.name])
        except Exception as error:
            self._node.parts.fails(PART, error)

    async def _work(self, turn: Turn, reading: Reading, refusal: WebhookOutcome | None) -> None:
        if refusal is not None:
            await self._note(turn, result_of_refusal(turn, refusal, datetime.now(UTC)))
        elif turn.has_consent or await self._ask_consent(turn):
            await self._send_chunks(turn, reading)

    def _fault(self, error: Exception) -> WebhookOutcome:
        """Report a fault that came with one subscription. Return what it comes to: that one waits, longer each time."""
        if isinstance(error, BadRequest):  # its filter is none by the rules of this release
            return WebhookOutcome(WebhookVerdict.REFUSED, f"{error.detail}; put it again with another filter")
        self._node.parts.fails(PART, error)
        return WebhookOutcome(WebhookVerdict.BUSY, f"a fault in fedstac: {type(error).__name__}; ask its operators")

    async def _ask_consent(self, turn: Turn) -> bool:
        """Ask the receiver whether it wants events, and store what it says. Return whether it agreed."""
        try:
            answer = await self._hooks.ask_consent(
                turn.subscription.url or "", origin=self._origin, seconds=ANSWER_SECONDS
            )
            consent = consent_of(answer, self._origin, datetime.now(UTC))
        except Forbidden as error:
            consent = WebhookOutcome(WebhookVerdict.REFUSED, str(error))
        except Undelivered as error:
            consent = WebhookOutcome(WebhookVerdict.BUSY, f"{error}, when it was asked whether it wants events")
        if isinstance(consent, Consent):
            async with self._node.pool.acquire() as conn:
                await webhook_deliveries.agree(conn, turn, consent.rate)
            log.info("a receiver agreed to get events", subscription=turn.name, rate=consent.rate)
            return True
        await self._note(turn, result_of_refusal(turn, consent, datetime.now(UTC)))
        return False

    async def _send_chunks(self, turn: Turn, reading: Reading) -> None:
        """Send what failed before and is due, and what is new, a chunk at a time until the turn's time is over."""
        subscription = turn.subscription
        encoder = subscribing.encoder_of(subscription, self._feed_url)
        size = subscription.batch
        if turn.allowed_rate is not None:
            size = min(size, max(turn.allowed_rate // RATE_SHARE, 1))
        end_of_turn, place, has_stored = time.monotonic() + TURN_SECONDS, 0, turn.has_stored
        while place == 0 or (place < len(reading.deliveries) and time.monotonic() < end_of_turn):
            news = reading.deliveries[place : place + size]
            place += max(len(news), 1)
            is_last = place >= len(reading.deliveries)
            async with self._node.pool.acquire() as conn:
                chunk = await self._chunk(
                    conn, turn, reading, news, has_stored=has_stored, most_due=size if place <= size else 0
                )
            chunk.through = reading.through if is_last else news[-1].event.cursor
            room = self._posts[turn.is_hindered]
            await ChunkPost(self._node, self._hooks, room, encoder, self._stop.is_set, chunk).send()
            failpoint("subscriptions.sent")
            result = result_of(chunk, datetime.now(UTC))
            if not await self._note(turn, result) or result.stop != Stop() or self._stop.is_set():
                return
            failpoint("subscriptions.noted")
            if result.through != chunk.through:  # not all of it was begun
                return
            has_stored = has_stored or bool(result.postponements)

    async def _chunk(
        self, conn: Connection, turn: Turn, reading: Reading, news: Sequence[SubscriberEvent], *, has_stored: bool,
        most_due: int,
    ) -> Chunk:  # fmt: skip
        """Return what is to be sent: new events, and so many of those that failed and are due."""
        events = [each.source for each in news]
        may_wait = has_stored and bool(news)
        held_back = await subscription_events.held_back(conn, turn.name, events) if may_wait else NOTHING_HELD
        items = [
            Item(each, is_behind=(each.source.collection, each.source.dataset) in held_back.datasets)
            for each in news if each.source.cursor.pos not in held_back.positions
        ]  # fmt: skip
        if not (most_due and turn.is_due) or reading.subscriber is None:
            return Chunk(turn, (), items)
        stored_events = await subscription_events.due(conn, turn.name, most_due)
        events = await subscription_events.events_at(conn, [each.pos for each in stored_events])
        deliveries = await delivering.deliveries(self._node, conn, events, [reading.subscriber])
        kept_positions = {event.cursor.pos for event in events}
        due = {each.source.cursor.pos: each for each in deliveries[turn.name]}
        return Chunk(
            turn,
            [
                Item(due[each.pos], each.attempts, each.at if each.attempts else None)
                for each in stored_events if each.pos in due
            ],
            items,
            settled_positions=[each.pos for each in stored_events if each.pos in kept_positions - due.keys()],
            lost_positions=[each.pos for each in stored_events if each.pos not in kept_positions],
        )  # fmt: skip

    async def _note(self, turn: Turn, result: DeliveryResult) -> bool:
        is_own = await self._notes.store(Note(turn, result))
        logger = log.bind(subscription=turn.name)
        if not is_own:
            logger.info("a subscription is another process's now, or was changed")
        elif (reason := result.stop.paused_reason or result.stop.ended_reason) is not None:
            logger.warning("nothing more is sent to a subscription", reason=reason)
        elif result.dead_count:
            reasons = [each.reason for each in result.postponements if each.seconds is None]
            logger.warning("events of a subscription are dead letters", count=result.dead_count, reasons=reasons[:3])
        elif result.error is not None and turn.subscription.failing_since is None:
            logger.info("a receiver does not take an event; it is sent again", reason=result.error)
        return is_own


class NoteWriter:
    """Stores what came of chunks. Those that end while others are stored go together into the next transaction."""

    def __init__(self, node: Node) -> None:
        self._node = node
        self._waiting: list[tuple[Note, asyncio.Future[bool]]] = []
        self._writer: asyncio.Task[None] | None = None

    async def store(self, note: Note) -> bool:
        """Store a note. Return whether the lease is still the turn's; where it is not, nothing is stored."""
        future: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
        self._waiting.append((note, future))
        if self._writer is None or self._writer.done():
            self._writer = asyncio.create_task(self._store_waiting(), name="notes of subscriptions")
        return await future

    async def _store_waiting(self) -> None:
        while self._waiting:
            part, self._waiting = self._waiting[:NOTES_AT_ONCE], self._waiting[NOTES_AT_ONCE:]
            await self._store(part)

    async def _store(self, part: Sequence[tuple[Note, asyncio.Future[bool]]]) -> None:
        try:
            async with self._node.pool.acquire() as conn:
                own_notes = await webhook_deliveries.note(
                    conn, [note for note, _ in part], window=self._node.settings.notify_window_seconds
                )
        except Exception as error:
            if len(part) > 1 and cause_of(error) in (Cause.OURS, Cause.REFUSED):  # one of them is at fault
                for each in part:
                    await self._store([each])
                return
            for _, future in part:
                if not future.done():  # its turn may be over
                    future.set_exception(error)
            return
        own_ids = {id(note) for note in own_notes}
        for note, future in part:
            if not future.done():
                future.set_result(id(note) in own_ids)

    async def end(self) -> None:
        """Wait until what is being stored is stored, though not for a database that does not answer."""
        if self._writer is not None:
            await asyncio.wait({self._writer}, timeout=END_SECONDS)
            await cancel(self._writer)


def groups_of(turns: Sequence[Turn]) -> list[list[Turn]]:
    """Return the turns of subscriptions that stand within half a page of each other: one reading does for them.

    Afterwards all of a group stand at one place, but for those that were held up.
    """
    groups: list[list[Turn]] = []
    for turn in sorted(turns, key=lambda each: each.subscription.cursor):
        first = groups[-1][0].subscription if groups else None
        is_close = first is not None and turn.subscription.pos <= first.pos + PAGE_EVENTS // 2
        if first is not None and is_close and turn.subscription.epoch == first.epoch:
            groups[-1].append(turn)
        else:
            groups.append([turn])
    return groups


@dataclass(frozen=True, slots=True)
class Reading:
    """What a subscription gets of a page of the log. Empty where the log was not read for it.

    through: the last place that was looked at.
    """

    subscriber: Subscriber | None = None
    deliveries: Sequence[SubscriberEvent] = ()
    through: Cursor | None = None
