"""Following: the loop of every consumer. It receives a page, applies it (page_applying.py) and acknowledges
(acknowledging.py). While a page is applied, the next one is received and judged.

What is killed in between is done again and changes nothing. What a consumer makes of an event is its handler's part.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Sequence
from contextlib import AsyncExitStack, suppress
from dataclasses import dataclass, field
from typing import Any

import structlog

from fedstac.bootstrap import Node
from fedstac.db import connections, nodes, parked
from fedstac.db.connections import Connection
from fedstac.domain import events
from fedstac.domain.events import Cursor
from fedstac.messaging import statuses
from fedstac.messaging.origin import Origin, TopicOrigin, origin_of
from fedstac.messaging.sources import (
    NO_OFFSETS,
    BehindRetention,
    EventSource,
    NotServed,
    SourceAway,
    SourceRefused,
    open_source,
)
from fedstac.messaging.sources.addresses import SourceAddress
from fedstac.messaging.sources.brokers import BrokerSource
from fedstac.runtime import supervision
from fedstac.runtime.failpoints import failpoint
from fedstac.runtime.metrics import APPLY_SECONDS
from fedstac.runtime.wakeup import Backoff, cancel, pause, unless
from fedstac.workers.acknowledging import Acknowledgements, Acknowledger
from fedstac.workers.deletion_parts import PartReporter
from fedstac.workers.page_applying import PageApplier
from fedstac.workers.pages import LONG_PAGE, ComingPage, Handler, Page, Rejection, strangers, unreadable, without

PAGE = 500  # events
LONG_POLL_SECONDS = 10
LAGGING_POLL_SECONDS = 1  # while something that is applied is not yet acknowledged
TELLING_SECONDS = 0.5  # that a page waits for the origin to be told; what takes longer goes on beside the next pages
NAME_SECONDS = 5.0  # that an origin has to say its name, where it is known from before
STAND_BY_SECONDS = 1.0
LONGEST_RETRY_SECONDS = 1.0  # of a source that is away: what comes back is found that soon
END_SECONDS = 2.0  # that a database may take to end a session
AWAY = {
    SourceAway: "the source is away; trying again",
    NotServed: "the source cannot be followed; see to its address",
    SourceRefused: "the source refuses this node; see to its token",
}
log = structlog.get_logger()


class OriginRolledBack(Exception):
    """The origin's log ends before what this node has applied of the same epoch; the text says what to do."""


class FollowedElsewhere(Exception):
    """Another process follows the origin into this database; the text says what to do."""


@dataclass(slots=True)
class Follower:
    """Follows one origin. `snapshot_first`: a new consumer starts from a snapshot instead of the log's beginning."""

    node: Node
    handler: Handler
    origin: Origin
    source: EventSource
    snapshot_first: bool = True
    name: str = "follower"  # of this part of the process
    origin_name: str = ""
    applied_cursor: Cursor = events.START
    lock: Connection | None = None  # of `run` and `rebuild`: the session by which nobody else follows
    on_page: Callable[[int], object] = lambda entries: None  # called with the size of each page that is applied
    acknowledger: Acknowledger | None = None  # None: the origin
    reporter: PartReporter | None = None  # None: nobody waits for reports on deletions
    writing: asyncio.Lock = field(default_factory=asyncio.Lock)  # of pages, and of what the reporter stores
    acknowledgements: Acknowledgements = field(init=False)
    applier: PageApplier = field(init=False)
    _ahead: asyncio.Task[ComingPage] | None = None  # the next page, while this one is applied
    _telling: asyncio.Task[None] | None = None  # tells the origin what is done here
    _reports_at_once: bool = False  # a page was applied since the last telling began

    def __post_init__(self) -> None:
        self.acknowledgements = Acknowledgements(
            self.node, self.handler, self.acknowledger or self.origin, part=f"{self.name} acknowledgements"
        )
        self.applier = PageApplier(self.node, self.handler, self.acknowledgements.add)

    async def run(self, stop: asyncio.Event) -> None:
        """Follow until `stop`. A source that is away is waited for; one that refuses is logged and tried again."""
        backoff = Backoff(least=0.2, most=LONGEST_RETRY_SECONDS, growth=1.1)

        async def step() -> bool:
            await self._follow(stop, backoff)
            return False

        await supervision.keep_trying(self.node.parts, self.name, step, stop, backoff=backoff, expected={
            OriginRolledBack: "the source has lost a part of its log; nothing is taken from it", **AWAY,
        })  # fmt: skip

    async def _follow(self, stop: asyncio.Event, backoff: Backoff) -> None:
        await self._ask_name()
        self.lock = await session(self.node)
        try:
            if not await self._stand_by(self.lock, stop):
                return
            await self.begin()
            while not stop.is_set():
                try:
                    await unless(stop, self.step(LONG_POLL_SECONDS))
                    backoff.reset()
                    self.node.parts.works(self.name)
                except BehindRetention as error:
                    await self._refuse_rolled_back()
                    log.warning("the feed does not reach back to our cursor; taking a snapshot", reason=str(error))
                    await self.take_snapshot(None)
        finally:
            await self.drop_beside()
            self.lock.terminate()

    async def _ask_name(self) -> None:
        """Ask the origin for its name. One whose events a broker brings keeps its name while it gives no answer."""
        is_known = bool(self.origin_name) and isinstance(self.source, BrokerSource)
        try:
            async with asyncio.timeout(NAME_SECONDS if is_known else None):
                self.origin_name, _ = await head_of(self.node, self.origin)
        except (SourceAway, TimeoutError):
            if not is_known:
                raise

    async def _stand_by(self, lock: Connection, stop: asyncio.Event) -> bool:
        """Wait until nobody else follows the origin for this consumer. Return False if `stop` comes first."""
        is_standing_by = False
        while not stop.is_set():
            if await nodes.follow_alone(lock, self.handler.consumer, self.origin_name):
                return True
            if not is_standing_by:
                log.info("another process follows; standing by", origin=self.origin_name)
                is_standing_by = True
            await pause(stop, STAND_BY_SECONDS)
        return False

    async def _refuse_rolled_back(self) -> None:
        """Raise OriginRolledBack where the origin's log lost what is applied here, and has no new epoch.

        Its snapshot would be no newer than what is here, so that lost datasets would stay.
        """
        _, head = await self.origin.head()
        here = self.applied_cursor
        if head < here:
            raise OriginRolledBack(
                f"{self.origin_name} is at {head}, and this node has applied {here}: the origin's database was "
                f"put back to an earlier state; its operator runs `fedstac admin new-epoch`"
            )

    async def begin(self) -> None:
        """Go to our place: where we were, in the middle of a snapshot, or at the start."""
        await self.drop_beside()
        consumer = self.handler.consumer
        async with self.node.pool.acquire() as conn:
            progress = await nodes.progress(conn, consumer, self.origin_name)
            if progress is None and not self.snapshot_first:
                await nodes.move(conn, consumer, self.origin_name, events.START)
            # a kill may have come before they were acknowledged
            self.acknowledgements.begin(await parked.exceptions(conn, consumer, self.origin_name))
        is_half_loaded = progress is not None and (progress.snapshot or "").startswith(nodes.FILES)
        if is_half_loaded or (progress is None and self.snapshot_first):  # the files are not at hand: over HTTP, then
            await self.take_snapshot(None)
        elif progress is not None and progress.snapshot is not None:
            await self.take_snapshot(progress.snapshot)
        else:
            self.applied_cursor = progress.cursor if progress else events.START
            await self.source.begin(self.applied_cursor, progress.offsets if progress else NO_OFFSETS)
        log.info("following", consumer=consumer, origin=self.origin_name, cursor=str(self.applied_cursor))

    async def step(self, wait: int) -> int:
        """Receive, apply and acknowledge a page of the feed. Return how many events and other messages it had."""
        async with self.writing:
            await self.applier.apply_requeued(self.origin_name, self.applied_cursor)
        await self._tell_origin()
        is_reporting = self.reporter is not None and self.reporter.is_waiting
        if self.acknowledgements.lag_behind(self.applied_cursor) or is_reporting:
            wait = min(wait, LAGGING_POLL_SECONDS)
        coming = await self._next_page(wait)
        page = coming.page
        if _has_news(coming, self.applied_cursor):
            if len(page.events) >= LONG_PAGE:  # there may be more
                self._look_ahead(self._receive(page.cursor, 0, is_ahead=True))
            with self.node.metrics.timing(APPLY_SECONDS, self.handler.consumer, self.origin_name):
                await self._apply(coming)
            failpoint(f"{self.handler.consumer}.applied")
        await self._tell_origin(at_once=bool(page.events))
        return len(page.events) + len(coming.rejections)

    async def _next_page(self, wait: int) -> ComingPage:
        ahead, self._ahead = self._ahead, None
        if ahead is not None and _has_news(coming := await ahead, self.applied_cursor):
            return coming
        return await self._receive(self.applied_cursor, wait)

    async def _receive(self, after: Cursor, wait: int, *, is_ahead: bool = False) -> ComingPage:
        received = await self.source.receive(after, limit=PAGE, wait=wait)
        rejections = [unreadable(message, self.origin_name) for message in received.unreadable]
        page = Page(self.origin_name, received.events, received.cursor, offsets=received.offsets)
        return await self._come(page, rejections, is_ahead=is_ahead)

    async def _come(
        self, page: Page, rejections: Sequence[Rejection] = (), *, is_ahead: bool, following: str | None = None
    ) -> ComingPage:
        """Set aside what is no event of this origin; read the others where the page comes ahead of its turn."""
        foreign = strangers(page)
        own = without(page, foreign)
        reading = await self.handler.prepare(own) if is_ahead else None
        return ComingPage(own, [*rejections, *foreign], reading, following)

    def _look_ahead(self, coming: Coroutine[Any, Any, ComingPage]) -> None:
        """Receive and read the next page meanwhile, once this process has applied one: an event that kills it stays
        alone with its page then, and can be told from the others.
        """
        if self.applier.has_applied_one:
            self._ahead = asyncio.create_task(coming)
        else:
            coming.close()

    async def _tell_origin(self, *, at_once: bool = False) -> None:
        """Tell the origin what is done here, once at a time.

        A broker that is away takes seconds to say so. Following goes on meanwhile.
        """
        self._reports_at_once |= at_once
        self._take_result()
        if self._telling is None:
            at_once, self._reports_at_once = self._reports_at_once, False
            self._telling = asyncio.create_task(self._tell(self.applied_cursor, at_once=at_once))
            await asyncio.wait((self._telling,), timeout=TELLING_SECONDS)
            self._take_result()

    def _take_result(self) -> None:
        """Take the result of what was told, if it is there. Its error is raised here."""
        if self._telling is not None and self._telling.done():
            task, self._telling = self._telling, None
            task.result()

    async def _tell(self, applied_cursor: Cursor, *, at_once: bool) -> None:
        await self.acknowledgements.send(self.origin_name, applied_cursor)
        await self._report_parts(at_once=at_once)

    async def finish(self) -> None:
        """Tell the origin what it does not know, however long that takes."""
        task, self._telling = self._telling, None
        if task is not None:
            await task
        await self._tell(self.applied_cursor, at_once=True)

    async def drop_beside(self) -> None:
        """Give up what goes on beside the steps: a page ahead of its turn, and what is being told."""
        tasks = [task for task in (self._ahead, self._telling) if task is not None]
        self._ahead = self._telling = None
        await cancel(*tasks)

    async def _report_parts(self, *, at_once: bool) -> None:
        """Tell the origin how far this consumer is with its parts of deletions."""
        if self.reporter is not None:
            part = f"{self.name} deletion reports"
            await self.reporter.report(self.origin_name, self.acknowledgements.acknowledged, part=part, at_once=at_once)

    async def take_snapshot(self, page: str | None) -> None:
        """Apply the origin's current state, page by page; a killed node goes on with the page it was at.

        `page`: None begins anew, an empty text is the first one.
        """
        if page is None:
            async with self.node.pool.acquire() as conn, conn.transaction():
                await nodes.move(conn, self.handler.consumer, self.origin_name, events.START, snapshot="")
        await self.drop_beside()
        while True:
            ahead, self._ahead = self._ahead, None
            coming = await (ahead if ahead is not None else self._receive_snapshot(page))
            following = coming.following
            if following is not None:
                self._look_ahead(self._receive_snapshot(following, is_ahead=True))
            await self._apply(coming)
            failpoint(f"{self.handler.consumer}.snapshot")
            if following is None:
                break
            page = following
        await self.source.begin(self.applied_cursor, NO_OFFSETS)

    async def _receive_snapshot(self, page: str | None, *, is_ahead: bool = False) -> ComingPage:
        snapshot = await self.origin.snapshot(page or None, limit=PAGE)
        last = snapshot.following is None
        return await self._come(
            Page(self.origin_name, snapshot.entries, snapshot.cursor, ends_snapshot=last),
            is_ahead=is_ahead, following=snapshot.following,
        )  # fmt: skip

    async def _apply(self, coming: ComingPage) -> None:
        if self.lock is not None and not connections.is_open(self.lock):
            raise ConnectionError("the session that keeps others from following is gone")
        async with self.writing:
            await self.applier.apply(coming)
        self.applied_cursor = coming.page.cursor
        self.on_page(len(coming.page.events))


def _has_news(coming: ComingPage, here: Cursor) -> bool:
    return bool(coming.page.events or coming.rejections) or coming.page.cursor != here


async def session(node: Node) -> Connection:
    """Return a connection whose lock says who follows."""
    return await connections.connect(node.settings.dsn, application=f"fedstac {node.settings.node} follower")


async def end_session(lock: Connection) -> None:
    """End a session whose lock says who follows. Where the database answers, the lock is free when this returns."""
    with suppress(Exception):
        await lock.close(timeout=END_SECONDS)
    lock.terminate()


async def head_of(node: Node, origin: Origin) -> tuple[str, Cursor]:
    """Return the origin's name and last position.

    NotServed where that is this node, whose own datasets nobody may replace.
    """
    name, head = await origin.head()
    if name == node.settings.node:
        raise NotServed(f"the source is called {name}, as this node is: it is this node, or one has to be renamed")
    return name, head


MakeHandler = Callable[[Node, Origin], Handler]


async def follow(
    node: Node, stop: asyncio.Event, *, source: SourceAddress, make_handler: MakeHandler, name: str = "follower"
) -> None:
    """Follow a source until `stop`; while another process does for the same consumer, wait."""
    async with AsyncExitStack() as stack:
        origin = await stack.enter_async_context(origin_of(source))
        events_of_origin = await stack.enter_async_context(open_source(source))
        status_address = statuses.status_address(source.feed) if source.feed is not None else None
        sender = None
        if status_address is not None:
            topic = await stack.enter_async_context(statuses.open_topic(status_address))
            sender = statuses.StatusSender(topic, node=node.settings.node, token=source.token)
        handler = make_handler(node, origin)
        snapshot_first = node.settings.snapshot_first and origin.has_snapshots
        writing = asyncio.Lock()
        reporter = None
        if not isinstance(origin, TopicOrigin):
            reporter = PartReporter(node, handler.consumer, origin, sender, writing=writing)
        follower = Follower(
            node, handler, origin, events_of_origin, snapshot_first=snapshot_first, name=name, acknowledger=sender,
            reporter=reporter, writing=writing,
        )  # fmt: skip
        await follower.run(stop)
