"""The index node: follows the feeds of one origin or several into its own database, and serves search from there.

One loop for each: receive, apply and move the cursor in one transaction, acknowledge. What is killed in between is done
again and changes nothing.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import orjson
import structlog

from fedstac import publication
from fedstac.bootstrap import Node
from fedstac.db import collections, connections, feed, nodes, outbox, schema, vocabularies
from fedstac.db.connections import Cause, Connection, Row, blames_nobody, cause_of, is_refusal
from fedstac.domain import events
from fedstac.domain.errors import BadRequest, Finding, errors_in
from fedstac.domain.events import Cursor, DatasetEvent, Event
from fedstac.domain.validation import is_fixed
from fedstac.domain.vocabulary import Vocabulary, VocabularyBroken
from fedstac.messaging.sources.http import (
    BehindRetention,
    HttpFeed,
    NotServed,
    Source,
    SourceAway,
    SourceRefused,
    sources_of,
)
from fedstac.runtime import supervision
from fedstac.runtime.failpoints import failpoint
from fedstac.runtime.wakeup import Backoff, pause, unless
from fedstac.settings import Settings
from fedstac.vocabularies.registry import Snapshot, Vocabularies, snapshot_of

PAGE = 500
TOLD_AT_ONCE = 1000  # exceptions; the source takes 2 000
LONGEST_NAME, LONGEST_DETAIL = 650, 2000  # characters; of a name what fits into an index
LONG_POLL_SECONDS = 20
STAND_BY_SECONDS = 1.0
BEYOND_ALL = 2**63 - 1  # an epoch
log = structlog.get_logger()

ATTEMPTS = 3  # of an event, alone, after which it is parked
Pair = tuple[Mapping[str, Any], Event]  # an event as it came, and as it was read
Broken = tuple[Mapping[str, Any], str]  # an event that cannot be applied, and why
Named = tuple[str, str, str | None]  # a vocabulary as an event names it: project, version, digest


@dataclass(slots=True)
class Follower:
    """Follows one origin. `snapshot_first`: a new node starts from a snapshot instead of the log's beginning."""

    node: Node
    source: HttpFeed
    snapshot_first: bool = True
    name: str = "follower"  # of this part of the process
    origin: str = ""
    cursor: Cursor = events.START
    told: Cursor = events.START
    exceptions: list[dict[str, str]] = field(default_factory=list)
    lock: Connection | None = None  # of `run` and `rebuild`: the session by which nobody else follows
    on_page: Callable[[int], object] = lambda entries: None  # told of each page that is applied

    async def run(self, stop: asyncio.Event) -> None:
        """Follow until `stop`. A source that is away is waited for; one that refuses is logged and tried again."""
        backoff = Backoff(least=0.2, most=10.0)

        async def step() -> bool:
            await self._follow(stop, backoff)
            return False

        await supervision.keep_trying(self.node.parts, self.name, step, stop, backoff=backoff, expected={
            SourceAway: "the source is away; trying again",
            OriginRolledBack: "the source has lost a part of its log; nothing is taken from it",
            NotServed: "the source cannot be followed; see to its address",
            SourceRefused: "the source refuses this node; see to its token",
        })  # fmt: skip

    async def _follow(self, stop: asyncio.Event, backoff: Backoff) -> None:
        self.origin, _ = await _head(self.node, self.source)
        self.lock = await _session(self.node)
        try:
            if not await _stand_by(self.lock, self.origin, stop):
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
            self.lock.terminate()

    async def _refuse_rolled_back(self) -> None:
        """Raise OriginRolledBack where the origin's log lost what is applied here, and has no new epoch.

        Its snapshot would be no newer than what is here, so that lost datasets would stay.
        """
        _, head = await self.source.head()
        if head.epoch <= self.cursor.epoch and (head.epoch, head.pos) < (self.cursor.epoch, self.cursor.pos):
            raise OriginRolledBack(
                f"{self.origin} is at {head}, and this node has applied {self.cursor}: the origin's database was put "
                f"back to an earlier state; its operator runs `fedstac admin new-epoch`"
            )

    async def begin(self) -> None:
        """Finds our place: where we were, in the middle of a snapshot, or at the start."""
        async with self.node.pool.acquire() as conn:
            known = await nodes.progress(conn, self.origin)
            self.exceptions = await nodes.parked(conn, self.origin)  # a kill may have come before they were told
        if known is None and self.snapshot_first:
            await self.take_snapshot(None)
        elif known is not None and known.snapshot is not None:
            await self.take_snapshot(known.snapshot or None)
        else:
            self.cursor = known.cursor if known else events.START
        log.info("following", origin=self.origin, cursor=str(self.cursor))

    async def step(self, wait: int) -> int:
        """One page of the feed: received, applied, acknowledged. How many events it had."""
        await self._acknowledge()
        page = await self.source.events(self.cursor, limit=PAGE, wait=wait)
        if page.cursor != self.cursor:
            await self._apply(page.events, page.cursor, None)
            failpoint("index.applied")
        await self._acknowledge()
        return len(page.events)

    async def _acknowledge(self) -> None:
        """Tells the source how far we are, if it does not know."""
        while self.told != self.cursor or self.exceptions:
            await self.source.acknowledge(self.cursor, self.exceptions[:TOLD_AT_ONCE])
            self.told, self.exceptions = self.cursor, self.exceptions[TOLD_AT_ONCE:]

    async def take_snapshot(self, page: str | None) -> None:
        """The origin's current state, page by page; each page is kept, so that a killed node goes on with the next."""
        if page is None:
            async with self.node.pool.acquire() as conn, conn.transaction():
                await nodes.move(conn, self.origin, events.START, "")
        while True:
            held = await self.source.snapshot(page, limit=PAGE)
            await self._apply(held.entries, held.cursor, held.following, ends_snapshot=held.following is None)
            failpoint("index.snapshot")
            if held.following is None:
                break
            page = held.following

    async def _apply(
        self, raw: Sequence[Mapping[str, Any]], cursor: Cursor, snapshot: str | None, *, ends_snapshot: bool = False
    ) -> None:
        """Applies a page and moves the cursor in one transaction; what cannot be applied is parked."""
        if self.lock is not None and self.lock.is_closed():
            raise ConnectionError("the session that keeps others from following is gone")
        absent = await self._fetch_vocabularies(raw)
        readable, broken = self._read(raw, absent)
        async with self.node.pool.acquire() as conn:
            try:
                await self._commit(conn, readable, broken, cursor, snapshot, ends_snapshot)
            except Exception as error:
                if not readable or not await _may_be_of_an_event(conn, error):
                    raise
                failed = await self._apply_apart(conn, readable, cursor)
                await self._commit(conn, [], [*broken, *failed], cursor, snapshot, ends_snapshot)
        self.cursor = cursor
        self.on_page(len(raw))

    async def _fetch_vocabularies(self, raw: Sequence[Mapping[str, Any]]) -> dict[Named, str]:
        """Gets the vocabularies that events name and this node lacks; why, of those that cannot be had."""
        absent: dict[Named, str] = {}
        for named in {name for event in raw if (name := events.vocabulary_named(event)) is not None}:
            project, version, digest = named
            try:
                known = self.vocabularies.find(project, version) or await self._fetch(project, version, digest)
                self.vocabularies.at(project, version)  # a file here may be damaged
            except (VocabularyBroken, NotServed) as error:
                absent[named] = f"its vocabulary {project} {version} cannot be had: {error}"
                continue
            if digest is not None and known.digest != digest:
                absent[named] = f"{self.origin} judged it with another vocabulary {project} {version}"
        return absent

    @property
    def vocabularies(self) -> Vocabularies:
        return self.node.checker.vocabularies

    async def _fetch(self, project: str, version: str, digest: str | None) -> Snapshot:
        """One version from the source, kept here from then on. VocabularyBroken where it is another, NotServed if none.

        What does not have the event's digest is not kept: a version never changes, the right one could not come later.
        """
        async with self.node.pool.acquire() as conn:
            await self.node.shelf.look(conn)
        known = self.vocabularies.find(project, version)
        if known is not None:
            return known
        raw = await self.source.vocabulary(project, version)
        snapshot = snapshot_of(raw)
        if (snapshot.project, snapshot.version) != (project, version):
            raise VocabularyBroken(f"{self.origin} gave {snapshot.project} {snapshot.version} for it")
        if digest is not None and snapshot.digest != digest:
            raise VocabularyBroken(f"{self.origin} gave one with the sha-256 {snapshot.digest} for {digest[:64]}")
        async with self.node.pool.acquire() as conn:
            await vocabularies.install(conn, raw, self.origin)
            await self.node.shelf.look(conn)  # what stays here judges: another follower may have been first
        known = self.vocabularies.find(project, version)
        if known is None:
            raise VocabularyBroken("what the database keeps under this name cannot be used")
        log.info("vocabulary fetched", origin=self.origin, project=project, version=version, digest=known.digest)
        return known

    def _read(self, raw: Sequence[Mapping[str, Any]], absent: Mapping[Named, str]) -> tuple[list[Pair], list[Broken]]:
        readable, broken = [], []
        for event in raw:
            try:
                if event.get("source") != self.origin:
                    raise BadRequest(f"{self.origin} announced what {str(event.get('source'))[:63]} is the origin of")
                readable.append((event, self._judged(event, absent)))
            except BadRequest as error:
                broken.append((event, error.detail))
            except Exception as error:  # one event's own: nothing but this event is read here
                log.exception("an event cannot be read", origin=self.origin, event_id=_event_id(event))
                broken.append((event, f"this node cannot read it: {error!r}"[:300]))
        return readable, broken

    def _judged(self, raw: Mapping[str, Any], absent: Mapping[Named, str]) -> Event:
        """An event, its document judged again with the very version that it was published under."""
        named = events.vocabulary_named(raw)
        if named is not None and named in absent:
            raise BadRequest(absent[named])
        vocabulary = self.vocabularies.at(*named[:2]) if named else None
        event = events.read(raw, vocabulary)
        if isinstance(event, DatasetEvent) and event.draft is not None:
            findings = self._findings(raw["data"]["document"], event.record.collection, vocabulary)
            excused = {(rule, place) for rule, place in orjson.loads(event.record.cv_excused or "[]")}
            # what is fixed is excused for nobody: no publishing node takes it
            errors = [
                found for found in errors_in(findings) if is_fixed(found) or (found.rule, found.pointer) not in excused
            ]
            if errors:
                where = errors[0].pointer or "the document"
                what = f"{named[0]} {named[1]}" if named else "what every item has to be"
                raise BadRequest(f"it contradicts {what}: {where}: {errors[0].message}")
        return event

    def _findings(self, document: object, collection: str, vocabulary: Vocabulary | None) -> tuple[Finding, ...]:
        """As everywhere; a document that the rules themselves fail on is parked too, and does not block the others."""
        try:
            return self.node.checker.lasting(document, collection, vocabulary)
        except (LookupError, TypeError, ValueError, AttributeError, ArithmeticError, RecursionError) as error:
            log.exception("the rules fail on a document", origin=self.origin, collection=collection)
            raise BadRequest(f"the rules here fail on it: {error!r}"[:300]) from error

    async def _commit(
        self, conn: Connection, readable: Sequence[Pair], broken: Sequence[Broken], cursor: Cursor,
        snapshot: str | None, ends_snapshot: bool,
    ) -> None:  # fmt: skip
        async with conn.transaction():
            parked = await self._write(conn, readable, broken, cursor, ends_snapshot)
            failpoint("index.written")
            await nodes.move(conn, self.origin, cursor, snapshot)
        self._report(parked)

    async def _write(
        self, conn: Connection, readable: Sequence[Pair], broken: Sequence[Broken], cursor: Cursor, ends_snapshot: bool
    ) -> list[nodes.Parked]:
        """Apply events and park the others; joins the caller's transaction. Return what is parked."""
        applied = await publication.apply(conn, [event for _, event in readable])
        if ends_snapshot:  # what the snapshot of a newer epoch did not list is gone at the origin
            gone = await publication.forget(conn, self.origin, before_epoch=cursor.epoch)
            await nodes.forget_parked(conn, self.origin, before_epoch=cursor.epoch)
            log.info("snapshot complete", origin=self.origin, cursor=str(cursor), datasets_gone=gone)
        foreign = {id(event) for event in applied.foreign}
        strangers = [raw for raw, event in readable if id(event) in foreign]
        why = "its lineage is another origin's, or its collection is not here"
        parked = [_set_aside(raw, detail) for raw, detail in (*broken, *((raw, why) for raw in strangers))]
        if parked:
            await nodes.park(conn, self.origin, cursor.pos, parked)
        done = [(_subject(raw), *_place(raw)) for raw, event in readable if id(event) not in foreign]
        await nodes.unpark(conn, self.origin, done)
        if applied.applied:
            log.info("applied", origin=self.origin, events=applied.applied, ignored=applied.ignored, cursor=str(cursor))
        return parked

    def _report(self, parked: Sequence[nodes.Parked]) -> None:
        for one in parked:
            log.error("an event is parked", event_id=one.event_id, subject=one.subject, detail=one.detail)
            self.exceptions.append({"event_id": one.event_id, "outcome": "parked", "detail": one.detail})

    async def _apply_apart(self, conn: Connection, pairs: Sequence[Pair], cursor: Cursor) -> list[Broken]:
        """Apply the events of a page that fails as a whole; return those that fail alone, and why.

        The cursor stays where it is: what is applied here changes nothing when it comes again. Where every event fails
        by a fault of ours, that is raised: none of them is to blame, and nothing is parked for it.
        """
        failed = await self._halve(conn, pairs, cursor)
        ours = [error for _, error in failed if not is_refusal(error)]
        if ours and len(failed) == len(pairs):
            raise ours[0]
        return [
            (raw, "the database here refuses it" if is_refusal(error) else f"this node fails on it: {error!r}"[:300])
            for raw, error in failed
        ]

    async def _halve(
        self, conn: Connection, pairs: Sequence[Pair], cursor: Cursor
    ) -> list[tuple[Mapping[str, Any], Exception]]:
        """Apply a page by halves, in its order, down to the events that fail alone, ATTEMPTS times."""
        for attempt in range(1, (ATTEMPTS if len(pairs) == 1 else 1) + 1):
            try:
                async with conn.transaction():
                    parked = await self._write(conn, pairs, [], cursor, ends_snapshot=False)
            except Exception as error:
                if not await _may_be_of_an_event(conn, error):
                    raise
                if len(pairs) == 1 and (attempt == ATTEMPTS or is_refusal(error)):
                    return [(pairs[0][0], error)]
            else:
                self._report(parked)
                return []
        middle = len(pairs) // 2
        return await self._halve(conn, pairs[:middle], cursor) + await self._halve(conn, pairs[middle:], cursor)


async def _may_be_of_an_event(conn: Connection, error: Exception) -> bool:
    """Return whether an event may be to blame for an error. OperatorsFault where the database explains it."""
    if cause_of(error) is Cause.SCHEMA:
        await schema.check(conn)
    return not blames_nobody(error)


def _subject(raw: Mapping[str, Any]) -> str:
    """What an event, or a snapshot's entry, is about; broken ones too have to be called something."""
    data = raw.get("data")
    named = [str(data[name]) for name in ("collection", "id") if name in data] if isinstance(data, dict) else []
    return _storable(str(raw.get("subject") or "/".join(named)), LONGEST_NAME)


def _event_id(raw: Mapping[str, Any]) -> str:
    return _storable(str(raw.get("id") or f"snapshot:{_subject(raw)}"), LONGEST_NAME)


def _storable(text: str, most: int) -> str:
    """A text from outside as every database takes it, here and at the source."""
    return text.replace("\0", "\ufffd")[:most]


def _place(raw: Mapping[str, Any]) -> tuple[int, int]:
    """Epoch and seq of an event; 0 where a broken one has none."""
    data = raw.get("data")
    said = (raw.get("epoch"), data.get("seq") if isinstance(data, dict) else None)
    epoch, seq = (value if type(value) is int and 0 <= value < BEYOND_ALL else 0 for value in said)
    return epoch, seq


def _set_aside(raw: Mapping[str, Any], detail: str) -> nodes.Parked:
    epoch, seq = _place(raw)
    said = _storable(detail, LONGEST_DETAIL)
    return nodes.Parked(_event_id(raw), _subject(raw), epoch, seq, said, orjson.dumps(raw).decode())


async def _session(node: Node) -> Connection:
    return await connections.connect(node.settings.dsn, application=f"fedstac {node.settings.node} follower")


async def _stand_by(lock: Connection, origin: str, stop: asyncio.Event) -> bool:
    """Waits until nobody else follows the origin into this database; False if `stop` comes first."""
    told = False
    while not stop.is_set():
        if await nodes.follow_alone(lock, origin):
            return True
        if not told:
            log.info("another process follows; standing by", origin=origin)
            told = True
        await pause(stop, STAND_BY_SECONDS)
    return False


async def _head(node: Node, source: HttpFeed) -> tuple[str, Cursor]:
    """The origin's name and last position. NotServed where that is this node, whose own datasets nobody may replace."""
    origin, head = await source.head()
    if origin == node.settings.node:
        raise NotServed(f"the source is called {origin}, as this node is: it is this node, or one has to be renamed")
    return origin, head


def sources(settings: Settings, named: Sequence[str] = ()) -> tuple[Source, ...]:
    """What the settings say to follow, or these addresses. SourcesUnclear where they do not say it."""
    return sources_of(settings.source, settings.source_token, named)


async def follow(node: Node, stop: asyncio.Event, *, source: Source, name: str = "follower") -> None:
    """Follow a source until `stop`; while another process does, wait."""
    async with HttpFeed(source.address, source.token) as origin:
        await Follower(node, origin, snapshot_first=node.settings.snapshot_first, name=name).run(stop)


async def keep_house(node: Node, stop: asyncio.Event, *, every_seconds: float = 5.0) -> None:
    """Do what the sequencer does at a publishing node: sum tallies up, make partitions ahead."""

    async def step() -> None:
        async with node.pool.acquire() as conn, conn.transaction():
            await outbox.extend(conn)
            await collections.sum_up(conn)
        await pause(stop, every_seconds)

    await supervision.keep_trying(node.parts, "housekeeping", step, stop)


class OriginRolledBack(Exception):
    """The origin's log ends before what this node has applied of the same epoch; the text says what to do."""


class FollowedElsewhere(Exception):
    """Another process follows the origin into this database; the text says what to do."""


async def rebuild(node: Node, source: HttpFeed, *, from_snapshot: bool, on_page: Callable[[int], object]) -> Cursor:
    """Forgets everything of the source's origin and takes it anew, from a snapshot or the log's beginning.

    What came from other origins stays. FollowedElsewhere while an index node follows; BehindRetention, with nothing
    forgotten, where the log has lost its beginning. What is killed in between is gone on with by the index node, or by
    another rebuild.
    """
    origin, head = await _head(node, source)
    if not from_snapshot:
        await source.events(events.START, limit=1, wait=0)
    lock = await _session(node)
    try:
        if not await nodes.follow_alone(lock, origin):
            raise FollowedElsewhere(
                f"a process follows {origin} into this database; stop the index node first (`fedstac index-node`)"
            )
        follower = Follower(node, source, origin=origin, lock=lock, on_page=on_page)
        async with node.pool.acquire() as conn, conn.transaction():
            await publication.forget(conn, origin, before_epoch=BEYOND_ALL)
            await nodes.forget_progress(conn, origin)
            await nodes.move(conn, origin, events.START, "" if from_snapshot else None)
        if from_snapshot:
            await follower.take_snapshot(None)
        while await follower.step(0) and follower.cursor.pos < head.pos:
            continue
        return follower.cursor
    finally:
        lock.terminate()


@dataclass(frozen=True, slots=True)
class Difference:
    """One dataset on which a node and its source do not agree."""

    collection: str
    id: str
    kind: str  # missing here, extra here, or different


async def verify(node: Node, source: HttpFeed, *, patience: float = 30.0) -> tuple[Cursor, int, list[Difference]]:
    """Compares every record's digest with the source's: our cursor, how many were compared, and where they differ.

    Buckets are compared by a fingerprint; those that differ are compared again, record by record, once this node has
    what the source had announced by then, so that what is merely on its way is no difference. A node that does not get
    there within `patience` seconds is compared as it is.
    """
    origin, _ = await source.head()
    _, theirs = await source.digests()
    others = {(row["collection"], row["bucket"]): (row["n"], row["digest"]) for row in theirs}
    async with node.pool.acquire() as conn:
        rows = await feed.digests(conn, origin)
        mine = {(row["collection"], row["bucket"]): (row["n"], row["digest"]) for row in rows}
        unlike = [key for key in sorted(mine.keys() | others.keys()) if mine.get(key) != others.get(key)]
        found: list[Difference] = []
        for collection, bucket in unlike:
            entries = await source.bucket(collection, bucket)
            _, head = await source.head()
            await _reach(conn, origin, head, patience)
            differing = _compare(collection, entries, await feed.bucket(conn, origin, collection, bucket))
            new = {row["id"] for row in await source.bucket(collection, bucket)} if differing else set()
            found += [one for one in differing if one.kind != "extra here" or one.id not in new]
        known = await nodes.progress(conn, origin)
    return known.cursor if known else events.START, sum(n for n, _ in others.values()), found


async def _reach(conn: Connection, origin: str, head: Cursor, patience: float) -> None:
    """Waits until everything up to a position is applied here."""
    deadline, backoff = time.monotonic() + patience, Backoff()
    while time.monotonic() < deadline:
        known = await nodes.progress(conn, origin)
        if known and known.snapshot is None and (known.cursor.epoch, known.cursor.pos) >= (head.epoch, head.pos):
            return
        await asyncio.sleep(backoff.pause())


def _compare(collection: str, entries: Sequence[Mapping[str, Any]], rows: Sequence[Row]) -> list[Difference]:
    """What differs in a bucket; a record that is newer here than the source's list is no difference."""
    theirs, mine = {row["id"]: row for row in entries}, {row["id"]: row for row in rows}
    found = [Difference(collection, item, "missing here") for item in sorted(theirs.keys() - mine.keys())]
    found += [Difference(collection, item, "extra here") for item in sorted(mine.keys() - theirs.keys())]
    for item in sorted(theirs.keys() & mine.keys()):
        if theirs[item]["digest"] != mine[item]["digest"] and theirs[item]["seq"] >= mine[item]["seq"]:
            found.append(Difference(collection, item, "different"))
    return found
