"""Announcements of a replica node: tells the origins, in its own name, what it has copies of and what no more.

A cycle sends what is unsent, stores the requests that the origins made of it, and looks at those that are not final.
A process that dies between sending and storing sends again: the entries are there then, and nothing is to be done.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, TypeAlias
from uuid import UUID, uuid4

import httpx
import structlog

from fedstac.bootstrap import Node
from fedstac.client import AsyncClient
from fedstac.client.service import ServiceTokens
from fedstac.client.transport import (
    ClientError,
    Conflict,
    Failed,
    LoginFailed,
    NotFound,
    Refusal,
    TokenSource,
    Unreachable,
)
from fedstac.db import connections
from fedstac.db.connections import Connection
from fedstac.db.replica import announcements
from fedstac.db.replica.announcements import ADD, CopiedDataset, CopiedFile, OriginAnswer, ReplicaAnnouncement
from fedstac.messaging.origin import origin_of
from fedstac.messaging.sources import SourceAway, SourceRefused
from fedstac.messaging.sources.addresses import SourceAddress
from fedstac.replication import places
from fedstac.replication.policy_file import PolicyFile
from fedstac.runtime import supervision
from fedstac.runtime.failpoints import failpoint
from fedstac.runtime.wakeup import cancel, pause
from fedstac.workers import replica_identity

AT_ONCE = 64  # announcements of a cycle
CONNECTIONS = 16  # requests under way at once, of each origin
ORIGIN_SECONDS = 3.0  # that a cycle waits for the slowest origin; it goes on beside the next cycles
LOOK_SECONDS = 0.5  # between cycles that found nothing to do
ANSWER_SECONDS = 30.0
FIRST_PAUSE, LONGEST_PAUSE = 1.0, 600.0  # seconds before an origin is told again
FOLLOW_PAUSE, LONGEST_FOLLOW_PAUSE = 0.2, 5.0  # seconds between looks at a request that is not final
MOST_CONFLICTS = 15  # after which a conflict that does not end is parked
NAME_SECONDS = 2.0  # that announcements wait for the names of sources; who answers later is told in the next cycles
AWAY_SECONDS = 10.0  # for which an origin that does not answer is left alone
REPLICA_RULE = "replica"  # of a finding: another size or checksum than the original's
PART = "announcer"
log = structlog.get_logger()

HrefOf = Callable[[CopiedFile], str]
_Work: TypeAlias = "tuple[ReplicaAnnouncement, Callable[[], Awaitable[OriginAnswer]]]"  # what to do about it


class UnknownOrigin(Exception):
    """None of the sources has this name; the text says what to set."""


@dataclass(frozen=True, slots=True)
class _Absence:
    """That an origin is not asked: until when (time.monotonic), and why."""

    until: float
    reason: str


class Announcer:
    """Tells the origins. One process does at a time; the others wait for its lock."""

    def __init__(self, node: Node, sources: Sequence[SourceAddress], token: TokenSource, href_of: HrefOf) -> None:
        self.node = node
        self._sources, self._token, self._href_of = sources, token, href_of
        self._clients: dict[str, AsyncClient] = {}  # by origin
        self._addresses: set[str] = set()  # of sources whose names are known
        self._asked_at: dict[str, float] = {}  # sources without a name yet, by address (time.monotonic)
        self._asking: dict[str, asyncio.Task[None]] = {}  # for their names, by address
        self._news = asyncio.Condition()  # a source said its name, or nobody is asked any more
        self._away: dict[str, _Absence] = {}  # origins that did not answer last
        self._rooms: dict[str, asyncio.Semaphore] = {}  # for requests under way, by origin
        self._unlooked: set[str] = set()  # origins that were sent something and not looked at since: that comes first
        self._telling: dict[str, asyncio.Task[int]] = {}  # what an origin is told or asked now, by origin

    async def run(self, stop: asyncio.Event) -> None:
        """Announce until `stop`."""
        session: Connection | None = None

        async def step() -> bool:
            nonlocal session
            if session is None or not connections.is_open(session):
                await self._stop_telling()
                session = await connections.connect(
                    self.node.settings.dsn, application=f"fedstac {self.node.settings.node} announcer"
                )
            if not await announcements.lead(session):
                await self._stop_telling()
                await pause(stop, LOOK_SECONDS)
                return False
            if await self.cycle():
                return True
            await self.node.commits.pause(PART, stop, LOOK_SECONDS)
            return False

        async with self.open():
            try:
                await supervision.keep_trying(self.node.parts, PART, step, stop)
            finally:
                if session is not None:
                    session.terminate()

    @asynccontextmanager
    async def open(self) -> AsyncIterator[None]:
        """Keep the connections to the origins open."""
        async with httpx.AsyncClient(timeout=ANSWER_SECONDS) as self._http:
            try:
                yield
            finally:
                await cancel(*self._asking.values())
                await self._stop_telling()
        self._clients.clear()
        self._addresses.clear()
        self._asked_at.clear()

    async def _stop_telling(self) -> None:
        """Give up what is under way: it is another process's turn, or nobody's."""
        tasks = list(self._telling.values())
        self._telling.clear()
        await cancel(*tasks)

    async def cycle(self) -> int:
        """Send what is due, and look at what is under way. Return how many announcements moved on."""
        count = sum(self._moves())
        try:
            count += await self.send()
        finally:
            count += await self.follow()
        return count

    def _origins_left_out(self) -> set[str]:
        """Return the origins that get nothing more now: they are away, or have not answered the last yet."""
        return {*filter(self._is_away, self._away), *self._telling}

    def _is_away(self, origin: str) -> bool:
        return origin in self._away and self._away[origin].until > time.monotonic()

    # --- sending ---

    async def send(self) -> int:
        """Send what is due, and store the requests that the origins made of it. Return how many moved on."""
        async with self.node.pool.acquire() as conn:
            left_out = self._origins_left_out() | self._unlooked
            unsent = await announcements.due(conn, "queued", AT_ONCE, without=sorted(left_out))
            if not unsent:
                return 0
            async with conn.transaction():
                copies = await announcements.read_copies(conn, [each.n for each in unsent if each.kind == ADD])
        sendable = [
            replace(each, digest=copies[each.n].digest) if each.kind == ADD else each
            for each in unsent
            if each.kind != ADD or each.n in copies
        ]
        self._unlooked |= {each.origin for each in sendable}
        moved_on = await self._tell(
            "queued", [(each, partial(self._submit, each, copies.get(each.n))) for each in sendable]
        )
        return len(unsent) - len(sendable) + moved_on

    async def _submit(self, announcement: ReplicaAnnouncement, copies: CopiedDataset | None) -> OriginAnswer:
        """Send one announcement."""
        entries = None
        if announcement.kind == ADD:
            assert copies is not None
            entries = {file.asset: _entry(file, self._href_of(file)) for file in copies.files}
        client = await self._client(announcement.origin)
        request = await client.submit_replica(
            announcement.id, self.node.settings.node, entries, collection=announcement.collection, key=str(uuid4())
        )
        return (
            OriginAnswer(announcement, "done") if request is None else OriginAnswer(announcement, "sent", UUID(request))
        )

    # --- following ---

    async def follow(self) -> int:
        """Look at the requests under way. Return how many are final."""
        left_out = self._origins_left_out()
        async with self.node.pool.acquire() as conn:
            unanswered = await announcements.due(conn, "sent", AT_ONCE, without=sorted(left_out))
        if len(unanswered) < AT_ONCE:
            self._unlooked &= left_out
        else:  # there may be more, of others
            self._unlooked -= {each.origin for each in unanswered}
        if not unanswered:
            return 0
        return await self._tell("sent", [(each, partial(self._look, each)) for each in unanswered])

    async def _look(self, announcement: ReplicaAnnouncement) -> OriginAnswer:
        client = await self._client(announcement.origin)
        result = await client.look_at_change(announcement.id, str(announcement.request))
        if result is None:
            seconds = min(FOLLOW_PAUSE * 1.5 ** min(announcement.attempts, 20), LONGEST_FOLLOW_PAUSE)
            return OriginAnswer(announcement, "sent", reason="the origin works on it", pause=seconds)
        return OriginAnswer(announcement, "done")

    # --- answers ---

    async def _tell(self, before: str, works: Sequence[_Work]) -> int:
        """Do what each origin is told or asked, and store its answers. Return how many announcements moved on.

        An origin that takes long goes on beside the next cycles: the others do not wait for it.
        """
        by_origin: dict[str, list[_Work]] = {}
        for announcement, work in works:
            by_origin.setdefault(announcement.origin, []).append((announcement, work))
        for origin, own in by_origin.items():
            self._telling[origin] = asyncio.create_task(self._tell_one(before, own), name=f"telling {origin}")
        if by_origin:
            await asyncio.wait([self._telling[origin] for origin in by_origin], timeout=ORIGIN_SECONDS)
        return sum(self._moves())

    def _moves(self) -> Iterator[int]:
        """Yield how many announcements moved on, of each origin that has answered. A fault of ours is raised."""
        for origin, task in list(self._telling.items()):
            if task.done():
                del self._telling[origin]
                yield task.result()

    async def _tell_one(self, before: str, works: Sequence[_Work]) -> int:
        answers = await asyncio.gather(*(self._answer(work, announcement) for announcement, work in works))
        if before == "queued":
            failpoint("replica.submitted")
        await self._store(before, answers)
        return sum(each.state != before for each in answers)

    async def _answer(
        self, work: Callable[[], Awaitable[OriginAnswer]], announcement: ReplicaAnnouncement
    ) -> OriginAnswer:  # fmt: skip
        """Return the answer to an announcement, whatever its origin does. One that is away by now is not asked."""
        origin = announcement.origin
        async with self._rooms.setdefault(origin, asyncio.Semaphore(CONNECTIONS)):
            if self._is_away(origin):
                state = "queued" if announcement.request is None else "sent"
                return OriginAnswer(announcement, state, reason=self._away[origin].reason, pause=AWAY_SECONDS)
            try:
                answer = await work()
            except (ClientError, UnknownOrigin) as error:
                return self._answer_to(error, announcement)
        self.node.parts.works(PART)
        self._away.pop(origin, None)
        return answer

    def _answer_to(self, error: ClientError | UnknownOrigin, announcement: ReplicaAnnouncement) -> OriginAnswer:
        """Return what follows from a refusal, or from no answer at all."""
        state = "queued" if announcement.request is None else "sent"
        match error:
            case NotFound() if announcement.kind != ADD:
                return OriginAnswer(announcement, "done")  # of what is gone there is no entry
            case NotFound() if announcement.request is not None:  # it forgot the request: it is told anew
                return OriginAnswer(announcement, "queued", reason=str(error), pause=FIRST_PAUSE, counted=True)
            case Refusal() if _is_conflict(error) and announcement.conflicts < MOST_CONFLICTS:
                # a change of the dataset is on its way here: its event decides what there is to tell
                return OriginAnswer(
                    announcement, "queued", reason=str(error), pause=_pause(announcement), counted=True,
                    is_conflict=True,
                )  # fmt: skip
            case Refusal() if error.status == 401:  # the identity, which is nobody's but the operator's
                if isinstance(self._token, ServiceTokens):
                    self._token.forget()
                self._rest(announcement.origin, error)
                return OriginAnswer(announcement, state, reason=str(error), pause=AWAY_SECONDS)
            case Failed() if announcement.request is not None and error.status == 500:  # the origin gave it up
                return OriginAnswer(announcement, "queued", reason=str(error), pause=_pause(announcement), counted=True)
            case Failed() | Unreachable():
                self._rest(announcement.origin, error)
                return OriginAnswer(announcement, state, reason=str(error), pause=_pause(announcement), counted=True)
            case UnknownOrigin():
                self.node.parts.fails(PART, error)
                self._away[announcement.origin] = _Absence(time.monotonic() + AWAY_SECONDS, str(error))
                return OriginAnswer(announcement, state, reason=str(error), pause=AWAY_SECONDS)
            case LoginFailed():
                self.node.parts.fails(PART, error)
                return OriginAnswer(announcement, state, reason=str(error), pause=AWAY_SECONDS)
            case Refusal():
                return OriginAnswer(announcement, "parked", reason=_words(error))
        return OriginAnswer(announcement, state, reason=str(error), pause=_pause(announcement), counted=True)

    def _rest(self, origin: str, error: Exception) -> None:
        """Leave an origin alone for a while; the others go on."""
        if origin not in self._away:
            log.warning("an origin is not told for a while", origin=origin, reason=str(error))
        self._away[origin] = _Absence(time.monotonic() + AWAY_SECONDS, str(error))

    async def _store(self, before: str, answers: Sequence[OriginAnswer]) -> None:
        if not answers:
            return
        async with self.node.pool.acquire() as conn, conn.transaction():
            await announcements.store(conn, before, answers)
        for each in answers:
            if each.state in ("done", "parked"):
                log.info(
                    "announced" if each.state == "done" else "an announcement is refused", kind=each.announcement.kind,
                    dataset=each.announcement.id, origin=each.announcement.origin, reason=each.reason,
                )  # fmt: skip

    # --- origins ---

    async def _client(self, origin: str) -> AsyncClient:
        """Return the client of an origin. UnknownOrigin where no source has its name, or says it soon enough."""
        if origin not in self._clients and not self._is_away(origin):
            self._ask_sources()
            with suppress(TimeoutError):
                async with asyncio.timeout(NAME_SECONDS), self._news:
                    await self._news.wait_for(lambda: origin in self._clients or not self._asking)
        if origin not in self._clients:
            raise UnknownOrigin(f"no source is called {origin}: FEDSTAC_SOURCE has to name its address")
        return self._clients[origin]

    def _ask_sources(self) -> None:
        """Begin to ask the sources for their names. One that is away is asked again after a while."""
        now = time.monotonic()
        for source in self._sources:
            if source.topic_origin is not None:  # a topic of ESGF has no API
                continue
            if source.address in self._addresses or source.address in self._asking:
                continue
            if now - self._asked_at.get(source.address, -AWAY_SECONDS) < AWAY_SECONDS:
                continue
            self._asking[source.address] = asyncio.create_task(self._ask(source), name=f"name of {source.address}")

    async def _ask(self, source: SourceAddress) -> None:
        try:
            async with origin_of(source) as node:
                name, _ = await node.head()
        except (SourceRefused, SourceAway) as error:
            log.warning("a source does not say its name", address=source.address, reason=str(error))
        except Exception as error:  # a fault of ours, or of its answer
            self.node.parts.fails(PART, error)
        else:
            self._addresses.add(source.address)
            self._clients[name] = AsyncClient(
                source.address, self._token, timeout=ANSWER_SECONDS, retries=0, http=self._http
            )
        finally:
            self._asked_at[source.address] = time.monotonic()
            self._asking.pop(source.address, None)
            async with self._news:
                self._news.notify_all()


def _pause(announcement: ReplicaAnnouncement) -> float:
    """Return the seconds before the next attempt: doubling, spread so that not all come at once."""
    seconds = min(FIRST_PAUSE * 2.0 ** min(announcement.attempts, 20), LONGEST_PAUSE)
    return seconds * random.uniform(0.5, 1.5)  # noqa: S311


def _entry(file: CopiedFile, href: str) -> dict[str, Any]:
    """Return what the origin is told of a file. It refuses a copy of another version than it has now."""
    version = {"file:checksum": file.checksum, "file:size": file.size}
    return {"href": href, **{name: value for name, value in version.items() if value is not None}}


def _is_conflict(error: Refusal) -> bool:
    """Tell whether the origin has another version of the dataset, or has it in another state, than this node knows."""
    return isinstance(error, Conflict | NotFound) or any(each.rule == REPLICA_RULE for each in error.findings)


def _words(error: Refusal) -> str:
    """Return a refusal with its first findings."""
    findings = "; ".join(f"{each.pointer}: {each.message}" for each in error.findings[:3])
    return f"{error.detail} ({findings})"[:1000] if findings else error.detail[:1000]


async def run(node: Node, stop: asyncio.Event, *, policy_file: PolicyFile) -> None:
    """Announce what is complete until `stop`, in this node's own name."""
    settings = node.settings
    token, sources = replica_identity.token_source(settings), replica_identity.sources_of(settings)

    def href_of(file: CopiedFile) -> str:
        return places.address_of(settings, policy_file.current, tier=file.tier, path=file.path)

    await Announcer(node, sources, token, href_of).run(stop)
