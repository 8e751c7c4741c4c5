"""Sinks: where the log goes, how far each has come, and the log as a relay reads it."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime

import orjson

from fedstac.db import audit, troubles
from fedstac.db.connections import Connection, Row
from fedstac.domain.errors import Conflict, NotFound
from fedstac.domain.events import DELETED, PURGED, REDACTED_END, Cursor, LoggedEvent
from fedstac.domain.relaying import FeedState, LogPlace

SINK_LOCK = 0x66656403  # advisory locks of the relays; the second key is the hash of the sink's name
PAGE_EVENTS, PAGE_BYTES = 1000, 8 << 20  # of one reading of the log
LAPSED = "it was behind for too long, and the log is no longer kept for it; seek it anew"


@dataclass(frozen=True, slots=True)
class PartitionEnd:
    """Where a partition of a broker's log ended when that was noted."""

    offset: int
    cursor: Cursor


@dataclass(frozen=True, slots=True)
class Sink:
    """A sink as it is stored."""

    name: str
    address: str
    format: str
    key_template: str
    required: bool
    private: bool
    secret: bytes = field(repr=False)
    starts_after: int
    epoch: int
    pos: int
    previous_pos: int
    identity: str
    partitions: Mapping[str, PartitionEnd]
    sent: int
    sent_at: datetime | None
    paused_reason: str | None
    lapsed_at: datetime | None
    errors: int
    failing_since: datetime | None
    last_error: str | None
    version: int
    created: datetime

    @property
    def cursor(self) -> Cursor:
        return Cursor(self.epoch, self.pos)

    @property
    def place(self) -> LogPlace:
        """What was noted of the broker's log."""
        ends = {name: end.cursor for name, end in self.partitions.items()}
        return LogPlace(self.identity, self.cursor, self.previous_pos, ends)


COLUMNS = """name, address, format, key_template, required, private, secret, starts_after, epoch, pos, previous_pos,
    identity, partitions, sent, sent_at, paused_reason, lapsed_at, errors, failing_since, last_error, version,
    created"""


def _sink(row: Row) -> Sink:
    ends = {
        name: PartitionEnd(offset, Cursor(epoch, pos))
        for name, (offset, epoch, pos) in orjson.loads(row["partitions"]).items()
    }
    return Sink(**{**dict(row), "secret": bytes(row["secret"]), "partitions": ends})


async def every(conn: Connection) -> list[Sink]:
    """Return all sinks, by name."""
    return [_sink(row) for row in await conn.fetch(f"SELECT {COLUMNS} FROM fedstac.sink ORDER BY name")]


async def read(conn: Connection, name: str) -> Sink:
    """Return a sink. NotFound where there is none of the name."""
    sink = await find(conn, name)
    if sink is None:
        raise NotFound(f"there is no sink {name[:100]!r}; see fedstac sink list")
    return sink


async def find(conn: Connection, name: str) -> Sink | None:
    """Return a sink; None where there is none of the name."""
    row = await conn.fetchrow(f"SELECT {COLUMNS} FROM fedstac.sink WHERE name = $1", name)
    return _sink(row) if row else None


# --- what operators do; each in one transaction with its row in the audit log ---


@dataclass(frozen=True, slots=True)
class NewSink:
    """A sink that is added. `after`: it gets what comes after this position."""

    name: str
    address: str
    format: str
    key_template: str
    required: bool
    private: bool
    after: int


async def add(conn: Connection, new: NewSink, *, actor: str, correlation: str | None = None) -> Sink:
    """Add a sink. Conflict where another one has the name; the same one again changes nothing."""
    async with conn.transaction():
        row = await conn.fetchrow(
            f"""INSERT INTO fedstac.sink (name, address, format, key_template, required, private, secret, starts_after,
                                          previous_pos, pos, epoch)
                SELECT $1, $2, $3, $4, $5, $6, $7, $8, $8, $8,
                       coalesce((SELECT max(n) FROM fedstac.epoch WHERE forked_at_pos < $8), 0)
                ON CONFLICT DO NOTHING RETURNING {COLUMNS}""",
            new.name, new.address, new.format, new.key_template, new.required, new.private, os.urandom(32), new.after,
        )  # fmt: skip
        if row is None:
            there = await read(conn, new.name)
            if (there.address, there.format, there.key_template, there.required) != (
                new.address, new.format, new.key_template, new.required,
            ):  # fmt: skip
                requirement = "required" if there.required else "optional"
                raise Conflict(
                    f"there is a sink {new.name!r} already, {requirement}: it sends to {there.address} as "
                    f"{there.format}; to change it, fedstac sink remove {new.name}, and add it anew"
                )
            return there
        await _audit(conn, actor, correlation, "add-sink", new.name, {"address": new.address, "format": new.format})
        return _sink(row)


async def remove(conn: Connection, name: str, *, actor: str, correlation: str | None = None) -> None:
    """Remove a sink with its dead letters. NotFound where there is none of the name."""
    async with conn.transaction():
        status = await conn.execute("DELETE FROM fedstac.sink WHERE name = $1", name)
        if status != "DELETE 1":
            raise NotFound(f"there is no sink {name[:100]!r}; see fedstac sink list")
        await _audit(conn, actor, correlation, "remove-sink", name, {})


async def pause(conn: Connection, name: str, reason: str, *, actor: str, correlation: str | None = None) -> Sink:
    """Stop sending to a sink. One that is paused stays so, with its reason."""
    async with conn.transaction():
        sink = await _locked(conn, name)
        if sink.paused_reason is None:
            await conn.execute(
                """UPDATE fedstac.sink SET paused_reason = $2, paused_at = clock_timestamp(), version = version + 1
                   WHERE name = $1""",
                name, reason,
            )  # fmt: skip
            await _audit(conn, actor, correlation, "pause-sink", name, {"reason": reason})
        return await read(conn, name)


async def resume(conn: Connection, name: str, *, actor: str, correlation: str | None = None) -> Sink:
    """Send to a paused sink again. Conflict where it has lapsed: the log may not be there any more."""
    async with conn.transaction():
        sink = await _locked(conn, name)
        if sink.lapsed_at is not None:
            raise Conflict(f"the sink {name!r} has lapsed: say from where it goes on, fedstac sink seek {name} --to …")
        if sink.paused_reason is not None:
            await conn.execute(f"UPDATE fedstac.sink SET {_RUNS} WHERE name = $1", name)
            await _audit(conn, actor, correlation, "resume-sink", name, {})
        return await read(conn, name)


_RUNS = """paused_reason = NULL, paused_at = NULL, lapsed_at = NULL, failing_since = NULL, version = version + 1"""


async def seek(conn: Connection, name: str, after: int, *, actor: str, correlation: str | None = None) -> Sink:
    """Let a sink go on after a position, and run. What lies before its place it gets once more.

    What it passes over is not missed by an audit. Conflict where the log has no such position, or no longer.
    """
    async with conn.transaction():
        sink = await _locked(conn, name)
        bounds = await conn.fetchrow(
            "SELECT pos AS head, (SELECT pos + 1 FROM fedstac.forgotten) AS earliest FROM fedstac.feed_state"
        )
        assert bounds is not None
        first, last = (bounds["earliest"] or 1) - 1, bounds["head"]
        if not first <= after <= last:
            raise Conflict(f"the log reaches from {first} to {last}; {after} is not in it")
        if after >= sink.pos:
            await conn.execute(
                f"""WITH again AS (DELETE FROM fedstac.sink_resend WHERE sink = $1 RETURNING after, through),
                         unsent AS (SELECT range_agg(int8range(after + 1, through + 1)) AS stretches FROM again)
                    UPDATE fedstac.sink SET pos = $2::bigint, previous_pos = $2::bigint,
                           waits_since = clock_timestamp(), {_RUNS},
                           skipped = skipped + int8multirange(int8range(pos + 1, $2::bigint + 1))
                                     + coalesce((SELECT stretches FROM unsent), '{{}}'),
                           epoch = coalesce((SELECT max(n) FROM fedstac.epoch WHERE forked_at_pos < $2), 0)
                    WHERE name = $1""",
                name, after,
            )  # fmt: skip
        else:
            await conn.execute(
                f"""UPDATE fedstac.sink SET waits_since = clock_timestamp(), {_RUNS},
                           skipped = skipped - int8multirange(int8range($2::bigint + 1, NULL)) WHERE name = $1""",
                name, after,
            )  # fmt: skip
            await resend(conn, name, [Stretch(after, sink.pos)])
        await _audit(conn, actor, correlation, "seek-sink", name, {"from": sink.pos, "to": after})
        return await read(conn, name)


async def _locked(conn: Connection, name: str) -> Sink:
    row = await conn.fetchrow(f"SELECT {COLUMNS} FROM fedstac.sink WHERE name = $1 FOR UPDATE", name)
    if row is None:
        raise NotFound(f"there is no sink {name[:100]!r}; see fedstac sink list")
    return _sink(row)


async def _audit(
    conn: Connection, actor: str, correlation: str | None, action: str, name: str, detail: Mapping[str, object]
) -> None:
    """Write the row of what somebody did with a sink."""
    await audit.append_act(conn, actor, correlation, action, f"sink/{name}", detail)


# --- what a relay does; on its own connection, which has the lock ---


async def lead(conn: Connection, name: str) -> bool:
    """Return whether this session is the one that sends to a sink; the lock goes with the session.

    The session's commits need not be durable: what a relay notes is a hint, and what it repeats is harmless.
    """
    await conn.execute("SET synchronous_commit = off")
    return bool(await conn.fetchval("SELECT pg_try_advisory_lock($1, hashtext($2))", SINK_LOCK, name))


async def feed_state(conn: Connection) -> FeedState:
    """Return where the feed ends, and where its epochs began."""
    row = await conn.fetchrow(
        """SELECT epoch, pos, (SELECT json_object_agg(n, forked_at_pos)::text FROM fedstac.epoch) AS forks
           FROM fedstac.feed_state"""
    )
    assert row is not None
    forks = {int(epoch): fork for epoch, fork in orjson.loads(row["forks"]).items()}
    return FeedState(Cursor(row["epoch"], row["pos"]), forks)


async def events_after(conn: Connection, after: int) -> list[LoggedEvent]:
    """Return a page of events after a position in the order of the log; of large ones the first few, at least one."""
    rows = await conn.fetch(page_of("SELECT pos, id FROM fedstac.feed WHERE pos > $1"), after)
    return [logged_event(row) for row in rows]


def page_of(positions: str, limit: int = PAGE_EVENTS) -> str:
    """Return the statement that reads the first events of these positions. Its limits are literal, for its plan."""
    return f"""
        SELECT epoch, pos, event_id::text, key, collection, dataset, seq, type, event FROM (
            SELECT *, sum(octet_length(event)) OVER (ORDER BY pos) - octet_length(event) AS before FROM (
                SELECT (SELECT max(n) FROM fedstac.epoch WHERE forked_at_pos < f.pos) AS epoch,
                       f.pos, o.event_id, o.key, o.collection, o.dataset, o.seq, o.type, o.event
                FROM ({positions} ORDER BY pos LIMIT {limit}) f JOIN fedstac.outbox o ON o.id = f.id) limited
            ) sized
        WHERE before < {PAGE_BYTES} ORDER BY pos"""


def logged_event(row: Row) -> LoggedEvent:
    """Return the event of a row that `page_of` selects."""
    return LoggedEvent(
        Cursor(row["epoch"], row["pos"]), row["event_id"], row["key"], row["collection"], row["dataset"],
        row["seq"], row["type"], row["event"],
    )  # fmt: skip


@dataclass(frozen=True, slots=True)
class SinkPlace:
    """How far a sink has come, with the end of the broker's log; `count` events were sent on the way."""

    cursor: Cursor
    previous_pos: int
    identity: str
    partitions: Mapping[str, PartitionEnd]
    count: int = 0


async def move(conn: Connection, sink: Sink, place: SinkPlace) -> int | None:
    """Note how far a sink has come. Return its version; None where it was removed, or sought beyond this place.

    What an operator has done since the sink was read stays: another sink of the same name, a place that was sought.
    """
    ends = {key: (end.offset, end.cursor.epoch, end.cursor.pos) for key, end in place.partitions.items()}
    version = await conn.fetchval(
        """UPDATE fedstac.sink SET epoch = $2, pos = $3, previous_pos = $4, identity = $5, partitions = $6,
                  waits_since = CASE WHEN $3 < pos THEN clock_timestamp() ELSE waits_since END,
                  sent = sent + $7, sent_at = CASE WHEN $7 > 0 THEN clock_timestamp() ELSE sent_at END,
                  failing_since = NULL, last_error = NULL
           WHERE name = $1 AND created = $8 AND (version = $9 OR pos <= $3) RETURNING version""",
        sink.name, place.cursor.epoch, place.cursor.pos, place.previous_pos, place.identity,
        orjson.dumps(ends).decode(), place.count, sink.created, sink.version,
    )  # fmt: skip
    return None if version is None else int(version)


async def version(conn: Connection, sink: Sink) -> int | None:
    """Return the version of a sink; None where it was removed since it was read."""
    value = await conn.fetchval(
        "SELECT version FROM fedstac.sink WHERE name = $1 AND created = $2", sink.name, sink.created
    )
    return None if value is None else int(value)


async def fail(conn: Connection, name: str, reason: str) -> None:
    """Note that a sink does not take events just now."""
    await conn.execute(
        """UPDATE fedstac.sink SET errors = errors + 1, last_error = $2,
                  failing_since = coalesce(failing_since, clock_timestamp()) WHERE name = $1""",
        name, reason[:500],
    )  # fmt: skip


async def work(conn: Connection, name: str) -> None:
    """Note that a sink takes events again."""
    await conn.execute(
        """UPDATE fedstac.sink SET failing_since = NULL, last_error = NULL
           WHERE name = $1 AND failing_since IS NOT NULL""",
        name,
    )


async def stop(conn: Connection, sink: Sink, reason: str) -> None:
    """Pause a sink that refuses this node, and tell operators."""
    async with conn.transaction():
        status = await conn.execute(
            """UPDATE fedstac.sink SET paused_reason = $2, paused_at = clock_timestamp(), errors = errors + 1,
                      last_error = $2, version = version + 1
               WHERE name = $1 AND created = $3 AND paused_reason IS NULL""",
            sink.name, reason[:500], sink.created,
        )  # fmt: skip
        if status == "UPDATE 1":
            await troubles.report(conn, "sink", place=sink.name, what="it is paused", detail=reason)


# --- stretches of the log ---


@dataclass(frozen=True, slots=True)
class Stretch:
    """Positions of the log: those after one, through another."""

    after: int
    through: int


async def earliest(conn: Connection) -> int:
    """Return the first position that the log has; the next one of an empty log."""
    return int(await conn.fetchval(
        "SELECT coalesce((SELECT min(pos) FROM fedstac.feed), (SELECT pos + 1 FROM fedstac.feed_state))"
    ))  # fmt: skip


_IN_STRETCHES = """FROM unnest($1::bigint[], $2::bigint[]) s (after, through)
    JOIN fedstac.feed f ON f.pos > s.after AND f.pos <= s.through JOIN fedstac.outbox o ON o.id = f.id"""


async def skips(conn: Connection, name: str) -> list[Stretch]:
    """Return what operators have let a sink pass over, in order."""
    rows = await conn.fetch(
        """SELECT lower(stretch) - 1 AS after, upper(stretch) - 1 AS through
           FROM fedstac.sink, unnest(skipped) stretch WHERE name = $1 ORDER BY 1""",
        name,
    )
    return [Stretch(row["after"], row["through"]) for row in rows]


def without(stretches: Sequence[Stretch], others: Sequence[Stretch]) -> list[Stretch]:
    """Return what is left of stretches once others are cut out; both in order, none overlaps another of its kind."""
    rest: list[Stretch] = []
    for each in stretches:
        after = each.after
        for other in others:
            if other.after < each.through and other.through > after:
                if other.after > after:
                    rest.append(Stretch(after, other.after))
                after = max(after, other.through)
        if after < each.through:
            rest.append(Stretch(after, each.through))
    return rest


async def types_of(conn: Connection, stretches: Sequence[Stretch]) -> list[str]:
    """Return the types of the events in stretches of the log."""
    rows = await conn.fetch(
        f"SELECT DISTINCT o.type {_IN_STRETCHES}",
        [each.after for each in stretches], [each.through for each in stretches],
    )  # fmt: skip
    return [row["type"] for row in rows]


async def positions_of_type(conn: Connection, event_type: str, stretches: Sequence[Stretch]) -> set[int]:
    """Return where in stretches of the log the events of a type are."""
    rows = await conn.fetch(
        f"SELECT f.pos {_IN_STRETCHES} WHERE o.type = $3",
        [each.after for each in stretches], [each.through for each in stretches], event_type,
    )  # fmt: skip
    return {row["pos"] for row in rows}


async def positions_left_blank(conn: Connection, stretches: Sequence[Stretch]) -> set[int]:
    """Return where in stretches of the log the events are that say nothing any more: of deleted datasets."""
    rows = await conn.fetch(
        f"""SELECT f.pos {_IN_STRETCHES} WHERE o.event LIKE '%' || $3 AND o.type <> ALL ($4::text[])""",
        [each.after for each in stretches], [each.through for each in stretches], REDACTED_END, [DELETED, PURGED],
    )  # fmt: skip
    return {row["pos"] for row in rows}


async def positions_untold(conn: Connection, stretches: Sequence[Stretch]) -> set[int]:
    """Return where in stretches of the log the events are of which outsiders get nothing (domain/outsiders.py).

    Those are events of private datasets, less those by which they became so, and events that show a dataset which is
    private or marked by now.
    """
    rows = await conn.fetch(
        f"""SELECT f.pos {_IN_STRETCHES}
            LEFT JOIN fedstac.record r ON r.collection = o.collection AND r.id = o.dataset
                 AND (r.access = 'private' OR r.state = 'marked')
            WHERE CASE WHEN o.event LIKE '%,"access":"private","digest":"%'
                       THEN o.event NOT LIKE '%,"previous_access":"%'
                       WHEN r.id IS NOT NULL
                       THEN o.event::jsonb #>> '{{data,state}}' IN ('published', 'retracted') END""",
        [each.after for each in stretches], [each.through for each in stretches],
    )  # fmt: skip
    return {row["pos"] for row in rows}


async def refill(
    conn: Connection, name: str, stretches: Sequence[Stretch], *, actor: str, correlation: str | None = None
) -> None:
    """Let a sink get what an audit found to be missing, as redrives."""
    async with conn.transaction():
        await _locked(conn, name)
        await resend(conn, name, stretches)
        missing = sum(each.through - each.after for each in stretches)
        await _audit(conn, actor, correlation, "refill-sink", name, {"missing": missing})


async def resend(conn: Connection, name: str, stretches: Sequence[Stretch]) -> None:
    """Let a sink get stretches of the log once more, as redrives. Call it in a transaction that has locked the sink."""
    await conn.execute("UPDATE fedstac.sink SET version = version + 1 WHERE name = $1", name)
    rows = await conn.fetch("DELETE FROM fedstac.sink_resend WHERE sink = $1 RETURNING after, through", name)
    separate = merge([*stretches, *(Stretch(row["after"], row["through"]) for row in rows)])
    await conn.execute(
        "INSERT INTO fedstac.sink_resend (sink, after, through) SELECT $1, * FROM unnest($2::bigint[], $3::bigint[])",
        name, [each.after for each in separate], [each.through for each in separate],
    )  # fmt: skip


def merge(stretches: Sequence[Stretch]) -> list[Stretch]:
    """Return stretches in their order, so that none overlaps or touches another one."""
    separate: list[Stretch] = []
    for each in sorted(stretches, key=lambda stretch: stretch.after):
        if separate and each.after <= separate[-1].through:
            separate[-1] = Stretch(separate[-1].after, max(separate[-1].through, each.through))
        else:
            separate.append(each)
    return separate


async def next_resends(conn: Connection, name: str) -> list[Stretch]:
    """Return what is to be sent again next: stretches with the events of a page, the last one cut."""
    rows = await conn.fetch(
        """SELECT after, least(through, after + $2) AS through FROM (
               SELECT after, through, sum(through - after) OVER (ORDER BY after) - (through - after) AS before
               FROM (SELECT after, through FROM fedstac.sink_resend WHERE sink = $1
                     ORDER BY after LIMIT $2) first) summed
           WHERE before < $2 ORDER BY after""",
        name, PAGE_EVENTS,
    )  # fmt: skip
    return [Stretch(row["after"], row["through"]) for row in rows]


async def events_in(conn: Connection, stretches: Sequence[Stretch]) -> list[LoggedEvent]:
    """Return the first events in stretches of the log, as `events_after` does."""
    rows = await conn.fetch(
        page_of(
            f"""SELECT each.pos, each.id FROM unnest($1::bigint[], $2::bigint[]) s (after, through)
                CROSS JOIN LATERAL (SELECT pos, id FROM fedstac.feed WHERE pos > s.after AND pos <= s.through
                                    ORDER BY pos LIMIT {PAGE_EVENTS}) each"""
        ),
        [each.after for each in stretches], [each.through for each in stretches],
    )  # fmt: skip
    return [logged_event(row) for row in rows]


async def shorten(conn: Connection, name: str, through: int) -> None:
    """Note that everything through a position was sent again. Joins the caller's transaction."""
    await conn.execute("DELETE FROM fedstac.sink_resend WHERE sink = $1 AND through <= $2", name, through)
    await conn.execute(
        "UPDATE fedstac.sink_resend SET after = $2 WHERE sink = $1 AND after < $2 AND through > $2", name, through
    )


# --- retention ---


async def lowest_required(conn: Connection) -> int | None:
    """Return the position after which the log is kept for required sinks that have not lapsed; None: for none."""
    value = await conn.fetchval(
        """SELECT min(least(s.pos, coalesce((SELECT min(r.after) FROM fedstac.sink_resend r WHERE r.sink = s.name),
                                            s.pos)))
           FROM fedstac.sink s WHERE s.required AND s.lapsed_at IS NULL"""
    )
    return None if value is None else int(value)


ANY = "EXISTS (SELECT FROM fedstac.sink)"


async def lapse(conn: Connection, days: float) -> list[str]:
    """Let required sinks lapse for which an event waits for longer than this; tell operators. Return their names."""
    async with conn.transaction():
        rows = await conn.fetch(
            """UPDATE fedstac.sink s SET lapsed_at = clock_timestamp(), version = version + 1,
                      paused_reason = coalesce(paused_reason, $2), paused_at = coalesce(paused_at, clock_timestamp())
               WHERE s.required AND s.lapsed_at IS NULL
                 AND s.waits_since < clock_timestamp() - make_interval(secs => $1 * 86400) AND EXISTS (
                   SELECT FROM (SELECT id FROM fedstac.feed f WHERE f.pos > s.pos ORDER BY f.pos LIMIT 1) next
                   JOIN fedstac.outbox o ON o.id = next.id
                   WHERE o.at < clock_timestamp() - make_interval(secs => $1 * 86400))
               RETURNING name""",
            days, LAPSED,
        )  # fmt: skip
        names = [row["name"] for row in rows]
        for name in names:
            await troubles.report(conn, "sink", place=name, what="it has lapsed", detail=LAPSED)
        return names
