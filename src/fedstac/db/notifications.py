"""Notifications: their destinations, their content, and their delivery.

A notification is a digest for one destination and topic. It grows until a notifier takes it up, which fixes its
content. From then on it is sent again under the same id until the receiver has it or a day has passed.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from uuid import UUID

import orjson

from fedstac.db.connections import Connection, Row
from fedstac.domain import events
from fedstac.domain.errors import Finding
from fedstac.domain.notices import (
    DatasetChange,
    DueDeletion,
    FinalRequest,
    Incident,
    RefusedItem,
    SubscriptionTrouble,
)
from fedstac.domain.policy import DELETION_MANAGER

OPERATORS = ""  # the owner of the destinations that the settings name
ROUTINE = (events.REPLICATED,)  # others do it every day: publishers get no message about it
SETTLED_AT_ONCE, EVENTS_AT_ONCE = 5000, 2000
KEPT_DAYS, ORPHANED_DAYS = 7, 1
REGISTERING_LOCK = 0x66656419  # advisory locks of who registers destinations; the second key is the hash of the owner


@dataclass(frozen=True, slots=True)
class Destination:
    """Where somebody's notifications go: a mailbox or a webhook."""

    id: UUID
    owner: str
    address: str
    topics: tuple[str, ...]
    secret: bytes
    confirmed: datetime | None
    created: datetime


COLUMNS = "id, owner, address, topics, secret, confirmed, created"


def _destination(row: Row) -> Destination:
    values = {name: row[name] for name in COLUMNS.split(", ")}
    return Destination(**{**values, "topics": tuple(values["topics"]), "secret": bytes(values["secret"])})


async def register(
    conn: Connection, owner: str, address: str, topics: Sequence[str], *, confirmed: bool
) -> tuple[Destination, bool]:
    """Store a destination and return it, and whether it is new. One that is there gets these topics from now on."""
    row = await conn.fetchrow(
        f"""INSERT INTO fedstac.destination (owner, address, topics, secret, confirmed)
            VALUES ($1, $2, $3, $4, CASE WHEN $5 THEN clock_timestamp() END)
            ON CONFLICT (owner, address) DO UPDATE SET topics = EXCLUDED.topics,
                confirmed = coalesce(destination.confirmed, EXCLUDED.confirmed)
            RETURNING {COLUMNS}, xmax = 0 AS made""",
        owner, address, list(topics), os.urandom(32), confirmed,
    )  # fmt: skip
    assert row is not None
    return _destination(row), row["made"]


async def hold_owner(conn: Connection, owner: str) -> None:
    """Let nobody else register a destination of an owner before this transaction ends: they are counted."""
    await conn.execute("SELECT pg_advisory_xact_lock($1, hashtext($2))", REGISTERING_LOCK, owner)


async def destinations(conn: Connection, owner: str) -> list[Destination]:
    """Return somebody's destinations, the oldest first."""
    rows = await conn.fetch(f"SELECT {COLUMNS} FROM fedstac.destination WHERE owner = $1 ORDER BY created, id", owner)
    return [_destination(row) for row in rows]


async def destination(conn: Connection, id: UUID) -> Destination | None:
    """Return a destination; None where there is none."""
    row = await conn.fetchrow(f"SELECT {COLUMNS} FROM fedstac.destination WHERE id = $1", id)
    return _destination(row) if row else None


async def find(conn: Connection, owner: str, address: str) -> Destination | None:
    """Return somebody's destination of an address; None where there is none."""
    row = await conn.fetchrow(
        f"SELECT {COLUMNS} FROM fedstac.destination WHERE owner = $1 AND address = $2", owner, address
    )
    return _destination(row) if row else None


async def hold(conn: Connection, id: UUID) -> bool:
    """Let nobody remove a destination before this transaction ends. Return whether it is still there."""
    return bool(await conn.fetchval("SELECT true FROM fedstac.destination WHERE id = $1 FOR KEY SHARE", id))


async def remove(conn: Connection, id: UUID) -> None:
    """Delete a destination, with whatever was on its way there."""
    await conn.execute("DELETE FROM fedstac.destination WHERE id = $1", id)


async def confirm(conn: Connection, id: UUID) -> None:
    """Confirm a destination: its owner agreed."""
    await conn.execute("UPDATE fedstac.destination SET confirmed = clock_timestamp() WHERE id = $1", id)


async def confirmations(conn: Connection, owner: str) -> int:
    """Count the confirmations that somebody requested within an hour."""
    return int(await conn.fetchval(
        """SELECT count(*) FROM fedstac.confirmation
           WHERE owner = $1 AND at > clock_timestamp() - interval '1 hour'""",
        owner,
    ) or 0)  # fmt: skip


async def ask_confirmation(conn: Connection, owner: str, id: UUID) -> None:
    """Send the code to a destination. Call it in a transaction."""
    await conn.execute("INSERT INTO fedstac.confirmation (owner) VALUES ($1)", owner)
    await tell(conn, id, "confirm", ["confirm"])


async def operate(conn: Connection, addresses: Sequence[str]) -> None:
    """Make the operators' destinations those that the settings name. Call it in a transaction."""
    await conn.execute(
        "DELETE FROM fedstac.destination WHERE owner = $1 AND address <> ALL ($2::text[])", OPERATORS, list(addresses)
    )
    for address in addresses:
        await register(conn, OPERATORS, address, ["alert"], confirmed=True)


async def wish(conn: Connection, request: UUID, destination: UUID) -> None:
    """Store that a destination gets the result of a request; before the request is stored."""
    await conn.execute(
        "INSERT INTO fedstac.awaited (request, destination) VALUES ($1, $2) ON CONFLICT DO NOTHING",
        request,
        destination,
    )


# --- what there is to tell ---

UNTOLD_ITEMS = """
    SELECT 'item:' || i.id AS about FROM fedstac.request_item i
    WHERE i.status = 'failed' AND NOT EXISTS (SELECT FROM fedstac.alerted a WHERE a.about = 'item:' || i.id)"""
UNTOLD_EVENTS = """
    SELECT 'event:' || e.node || ' ' || e.event_id AS about FROM fedstac.node_exception e
    WHERE NOT EXISTS (SELECT FROM fedstac.alerted a WHERE a.about = 'event:' || e.node || ' ' || e.event_id)"""

# An open digest takes more in; one that is being taken up at this moment is left, and another one is begun. Digests are
# locked in the order of their destinations.
GATHER = """ON CONFLICT (destination, topic) WHERE taken IS NULL
            DO UPDATE SET about = notification.about || EXCLUDED.about"""


async def tell(conn: Connection, destination: UUID, topic: str, about: Sequence[str], *, after: float = 0) -> None:
    """Put something into the open digest of a destination. A digest that begins with it is due in so many seconds."""
    await conn.execute(
        f"""INSERT INTO fedstac.notification (destination, topic, about, due)
            VALUES ($1, $2, $3, clock_timestamp() + make_interval(secs => $4)) {GATHER}""",
        destination, topic, list(about), after,
    )  # fmt: skip


async def tell_owners(conn: Connection, topic: str, about: Mapping[str, Sequence[str]], *, after: float) -> None:
    """Put something into the open digests of people's destinations that want the topic. Join a transaction.

    about: by owner. What a digest has already it does not get again.
    """
    if not about:
        return
    pairs = [(owner, text) for owner, texts in about.items() for text in texts]
    await conn.execute(
        f"""INSERT INTO fedstac.notification (destination, topic, about, due)
            SELECT d.id, $1, array_agg(a.text ORDER BY a.n), clock_timestamp() + make_interval(secs => $2)
            FROM unnest($3::text[], $4::text[]) WITH ORDINALITY a (owner, text, n)
            JOIN fedstac.destination d ON d.owner = a.owner
            LEFT JOIN fedstac.notification o ON o.destination = d.id AND o.topic = $1 AND o.taken IS NULL
            WHERE $1 = ANY (d.topics) AND d.confirmed IS NOT NULL AND NOT a.text = ANY (coalesce(o.about, '{{}}'))
            GROUP BY d.id ORDER BY d.id
            {GATHER} WHERE NOT notification.about @> EXCLUDED.about""",
        topic, after, [owner for owner, _ in pairs], [text for _, text in pairs],
    )  # fmt: skip


async def tell_contacts(conn: Connection, about: Sequence[tuple[str, str]]) -> None:
    """Put reminders into the open digests of contacts, given as address and what it is about. Call it in a transaction.

    Contacts are destinations of the deletion manager: who configures deletions names them.
    """
    if not about:
        return
    addresses = sorted({address for address, _ in about})
    await conn.execute(
        """INSERT INTO fedstac.destination (owner, address, topics, secret, confirmed)
           SELECT $1, address, '{}', secret, clock_timestamp()
           FROM unnest($2::text[], $3::bytea[]) c (address, secret) ON CONFLICT (owner, address) DO NOTHING""",
        DELETION_MANAGER, addresses, [os.urandom(32) for _ in addresses],
    )  # fmt: skip
    await conn.execute(
        f"""INSERT INTO fedstac.notification (destination, topic, about, due)
            SELECT d.id, 'deletion', array_agg(c.about ORDER BY c.about), clock_timestamp()
            FROM unnest($2::text[], $3::text[]) c (address, about)
            JOIN fedstac.destination d ON d.owner = $1 AND d.address = c.address
            GROUP BY d.id ORDER BY d.id {GATHER}""",
        DELETION_MANAGER, [address for address, _ in about], [text for _, text in about],
    )  # fmt: skip


# Now, or within a minute.
ANYTHING_TO_TELL = f"""(
    EXISTS (SELECT FROM fedstac.notification
            WHERE finished IS NULL AND due <= statement_timestamp() + interval '1 minute')
    OR EXISTS (SELECT FROM fedstac.awaited)
    OR EXISTS (SELECT FROM fedstac.trouble WHERE NOT told)
    OR EXISTS (SELECT FROM fedstac.feed WHERE pos > (SELECT pos FROM fedstac.told))
    OR EXISTS ({UNTOLD_ITEMS}) OR EXISTS ({UNTOLD_EVENTS}))"""


async def gather(conn: Connection, window: float) -> bool:
    """Derive what there is to tell, and put it into digests; return whether there may be more at once."""
    async with conn.transaction():
        await _final_requests(conn, window)
        await _alerts(conn, window)
        return await _changes(conn, window)


async def _final_requests(conn: Connection, window: float) -> None:
    """Put requests that are final into the digests of those who wait for them."""
    await conn.execute(
        f"""WITH final AS MATERIALIZED (
                SELECT a.request, a.destination FROM fedstac.awaited a
                WHERE EXISTS (SELECT FROM fedstac.request_item i WHERE i.request = a.request)
                  AND NOT EXISTS (SELECT FROM fedstac.request_item i
                                  WHERE i.request = a.request AND i.status = 'queued')
                ORDER BY a.at LIMIT {SETTLED_AT_ONCE} FOR UPDATE SKIP LOCKED),
            gone AS (
                DELETE FROM fedstac.awaited a USING final f
                WHERE a.request = f.request AND a.destination = f.destination)
            INSERT INTO fedstac.notification (destination, topic, about, due)
            SELECT destination, 'request', array_agg(request::text ORDER BY request),
                   clock_timestamp() + make_interval(secs => $1)
            FROM final GROUP BY destination ORDER BY destination {GATHER}""",
        window,
    )


async def _alerts(conn: Connection, window: float) -> None:
    """Put what operators have to see to into their digests.

    That is items that failed by our fault, events that a node could not apply, and troubles that a part reported.
    """
    await conn.execute(
        f"""WITH known AS MATERIALIZED ({UNTOLD_ITEMS} UNION ALL {UNTOLD_EVENTS} LIMIT {SETTLED_AT_ONCE}),
            reported AS (
                UPDATE fedstac.trouble SET told = true WHERE id IN (
                    SELECT id FROM fedstac.trouble WHERE NOT told ORDER BY id LIMIT {SETTLED_AT_ONCE}
                    FOR UPDATE SKIP LOCKED)
                RETURNING 'trouble:' || id AS about),
            fresh AS (
                INSERT INTO fedstac.alerted (about) SELECT about FROM known ON CONFLICT DO NOTHING RETURNING about)
            INSERT INTO fedstac.notification (destination, topic, about, due)
            SELECT d.id, 'alert', array_agg(f.about), clock_timestamp() + make_interval(secs => $1)
            FROM (SELECT about FROM fresh UNION ALL SELECT about FROM reported) f
            CROSS JOIN fedstac.destination d WHERE 'alert' = ANY (d.topics)
            GROUP BY d.id ORDER BY d.id {GATHER}""",
        window,
    )


async def _changes(conn: Connection, window: float) -> bool:
    """Put datasets changed by somebody else than their publisher of record into digests, for any event but ROUTINE."""
    through = await conn.fetchval("SELECT pos FROM fedstac.told FOR UPDATE SKIP LOCKED")
    if through is None:  # another process is at it
        return False
    last = await conn.fetchval(
        "SELECT max(pos) FROM (SELECT pos FROM fedstac.feed WHERE pos > $1 ORDER BY pos LIMIT $2) page",
        through, EVENTS_AT_ONCE,
    )  # fmt: skip
    if last is None:
        return False
    await conn.execute("UPDATE fedstac.told SET pos = $1", last)
    if not await conn.fetchval("SELECT EXISTS (SELECT FROM fedstac.destination WHERE 'dataset' = ANY (topics))"):
        return False  # nobody asks: events need not be read
    await conn.execute(
        f"""WITH page AS MATERIALIZED (
                SELECT f.pos, o.type, o.event::jsonb -> 'data' AS data
                FROM fedstac.feed f JOIN fedstac.outbox o ON o.id = f.id
                WHERE f.pos > $1 AND f.pos <= $2 AND o.dataset IS NOT NULL)
            INSERT INTO fedstac.notification (destination, topic, about, due)
            SELECT d.id, 'dataset', array_agg(p.pos::text ORDER BY p.pos), clock_timestamp() + make_interval(secs => $3)
            FROM page p JOIN fedstac.destination d ON d.owner = p.data ->> 'publisher'
            WHERE p.data ->> 'actor' <> p.data ->> 'publisher' AND p.type <> ALL ($4::text[])
              AND 'dataset' = ANY (d.topics) AND d.confirmed IS NOT NULL
            GROUP BY d.id ORDER BY d.id {GATHER}""",
        through, last, window, list(ROUTINE),
    )  # fmt: skip
    return bool(last - through >= EVENTS_AT_ONCE)


# --- delivery ---


@dataclass(frozen=True, slots=True)
class Notification:
    """A message on its way; its content is fixed."""

    id: UUID
    destination: UUID
    owner: str
    address: str
    secret: bytes
    topic: str
    about: tuple[str, ...]
    attempts: int
    taken: datetime
    age: float  # seconds since the first attempt


async def take(conn: Connection, limit: int, *, lease: float, per_hour: int) -> list[Notification]:
    """Take up notifications that are due; nobody else gets them before the lease is over. At most one a destination.

    Those that were not tried yet come first: receivers that are down do not hold up the others. A destination that has
    had its share of the hour waits, and its digest grows meanwhile; a retry was counted already.
    """
    rows = await conn.fetch(
        """WITH due AS MATERIALIZED (
               SELECT n.id, n.destination, n.due, least(n.attempts, 3) AS tried FROM fedstac.notification n
               WHERE n.finished IS NULL AND n.due <= clock_timestamp()
                 AND (n.taken IS NOT NULL OR n.topic = 'confirm' OR $3 > (
                     SELECT count(*) FROM fedstac.notification sent
                     WHERE sent.destination = n.destination AND sent.taken > clock_timestamp() - interval '1 hour'))
               ORDER BY tried, n.due LIMIT $1 * 4 FOR UPDATE SKIP LOCKED),
           wanted AS (
               SELECT id FROM (
                   SELECT DISTINCT ON (destination) id, due, tried FROM due ORDER BY destination, tried, due) each
               ORDER BY tried, due LIMIT $1)
           UPDATE fedstac.notification n
           SET attempts = attempts + 1, taken = coalesce(taken, clock_timestamp()),
               due = clock_timestamp() + make_interval(secs => $2)
           FROM wanted w, fedstac.destination d WHERE n.id = w.id AND d.id = n.destination
           RETURNING n.id, d.id AS destination, d.owner, d.address, d.secret, n.topic, n.about, n.attempts, n.taken,
                     extract(epoch FROM clock_timestamp() - n.taken)::float8 AS age""",
        limit, lease, per_hour,
    )  # fmt: skip
    return [Notification(**{**dict(row), "about": tuple(row["about"]), "secret": bytes(row["secret"])}) for row in rows]


async def finish(conn: Connection, notification: UUID, outcome: str) -> None:
    """Finish a notification as `delivered` or `given up`; one that is finished stays as it is."""
    await conn.execute(
        """UPDATE fedstac.notification SET finished = clock_timestamp(), outcome = $2
           WHERE id = $1 AND finished IS NULL""",
        notification, outcome,
    )  # fmt: skip


async def put_off(conn: Connection, notification: UUID, seconds: float) -> None:
    """Put a notification off: it is tried again later."""
    await conn.execute(
        """UPDATE fedstac.notification SET due = clock_timestamp() + make_interval(secs => $2)
           WHERE id = $1 AND finished IS NULL""",
        notification, seconds,
    )  # fmt: skip


async def sweep(conn: Connection) -> int:
    """Delete old notifications that are finished, and wishes whose request never came; return how many."""
    swept = 0
    for statement in (
        f"DELETE FROM fedstac.notification WHERE finished < clock_timestamp() - interval '{KEPT_DAYS} days'",
        f"""DELETE FROM fedstac.awaited a WHERE a.at < clock_timestamp() - interval '{ORPHANED_DAYS} days'
            AND NOT EXISTS (SELECT FROM fedstac.request r WHERE r.id = a.request)""",
        "DELETE FROM fedstac.confirmation WHERE at < clock_timestamp() - interval '1 day'",
        f"DELETE FROM fedstac.trouble WHERE told AND at < clock_timestamp() - interval '{KEPT_DAYS} days'",
        """DELETE FROM fedstac.destination
           WHERE confirmed IS NULL AND created < clock_timestamp() - interval '7 days'""",
    ):
        swept += int((await conn.execute(statement)).rpartition(" ")[2])
    return swept


# --- what a notification says ---


async def final_requests(conn: Connection, ids: Sequence[UUID]) -> list[FinalRequest]:
    """Return requests that are final, those with troubles first, then as they were accepted."""
    rows = await conn.fetch(
        """SELECT r.id::text, r.collection, r.action, r.total,
                  count(*) FILTER (WHERE i.status = 'done') AS done,
                  count(*) FILTER (WHERE i.status = 'rejected') AS rejected,
                  count(*) FILTER (WHERE i.status = 'failed') AS failed
           FROM fedstac.request r JOIN fedstac.request_item i ON i.request = r.id
           WHERE r.id = ANY ($1::uuid[]) GROUP BY r.id
           ORDER BY count(*) FILTER (WHERE i.status <> 'done') = 0, r.created, r.id""",
        list(ids),
    )
    requests = []
    for row in rows:
        counts = {name: row[name] for name in ("done", "rejected", "failed")}
        requests.append(FinalRequest(row["id"], row["collection"], row["action"], row["total"], counts))
    return requests


async def refused_items(conn: Connection, ids: Sequence[UUID], limit: int) -> list[RefusedItem]:
    """Return the first items of these requests that were not done."""
    rows = await conn.fetch(
        """SELECT request::text, dataset, status, coalesce(problem, '') AS problem, coalesce(detail, '') AS detail,
                  findings::text AS findings
           FROM fedstac.request_item WHERE request = ANY ($1::uuid[]) AND status <> 'done'
           ORDER BY array_position($1::uuid[], request), n LIMIT $2""",
        list(ids), limit,
    )  # fmt: skip
    return [
        RefusedItem(
            **{**dict(row), "findings": [Finding.from_json(each) for each in orjson.loads(row["findings"] or "[]")]}
        )
        for row in rows
    ]


async def troubles(conn: Connection, about: Sequence[str]) -> list[Incident]:
    """Return the troubles that an alert is about."""
    rows = await conn.fetch(
        """SELECT 'item' AS kind, request::text AS where, dataset AS what, coalesce(detail, '') AS detail
           FROM fedstac.request_item WHERE id = ANY ($2::bigint[])
           UNION ALL
           SELECT 'event', node, event_id, detail FROM fedstac.node_exception
           WHERE 'event:' || node || ' ' || event_id = ANY ($1::text[])
           UNION ALL
           SELECT kind, place, what, detail FROM fedstac.trouble WHERE id = ANY ($3::bigint[])
           ORDER BY 1 DESC, 2, 3""",
        list(about), _numbers(about, "item:"), _numbers(about, "trouble:"),
    )  # fmt: skip
    return [Incident(**dict(row)) for row in rows]


def _numbers(about: Sequence[str], prefix: str) -> list[int]:
    return [int(each.removeprefix(prefix)) for each in about if each.startswith(prefix)]


async def changes(conn: Connection, positions: Sequence[int], limit: int) -> list[DatasetChange]:
    """Return the events at these positions of the feed, in their order; the first few."""
    rows = await conn.fetch(
        """SELECT o.type, o.collection, o.dataset, o.event, o.at, d.id AS deletion, d.grace_until
           FROM fedstac.feed f JOIN fedstac.outbox o ON o.id = f.id
           LEFT JOIN fedstac.deletion d ON d.event_id = o.event_id AND d.state = 'open'
           WHERE f.pos = ANY ($1::bigint[]) AND o.dataset IS NOT NULL ORDER BY f.pos LIMIT $2""",
        list(positions), limit,
    )  # fmt: skip
    events_read = []
    for row in rows:
        data = orjson.loads(row["event"])["data"]
        events_read.append(DatasetChange(
            type=row["type"], collection=row["collection"], dataset=row["dataset"], state=data["state"],
            actor=data["actor"], reason=data.get("reason"), at=row["at"], retraction=data.get("retraction") or {},
            quarantine=(data.get("quarantine") or {}) if row["type"] == events.QUARANTINED else {},
            deletion=str(row["deletion"]) if row["deletion"] else None, grace_until=row["grace_until"],
        ))  # fmt: skip
    return events_read


async def due_deletions(conn: Connection, about: Sequence[str], limit: int) -> list[DueDeletion]:
    """Return what a contact is reminded of and has not done yet, the first few; `about` is as tell_contacts has it."""
    pairs = [each.partition(" ") for each in dict.fromkeys(about)]
    rows = await conn.fetch(
        """SELECT d.id, d.collection, d.dataset, d.event_id, p.name, p.due, p.state, p.comment, p.reminders
           FROM unnest($1::uuid[], $2::text[]) WITH ORDINALITY a (deletion, name, n)
           JOIN fedstac.deletion d ON d.id = a.deletion AND d.state = 'open'
           JOIN fedstac.deletion_dependency p ON p.deletion = a.deletion AND p.name = a.name
           WHERE p.state IN ('pending', 'failed') ORDER BY a.n LIMIT $3""",
        [id for id, _, _ in pairs], [name for _, _, name in pairs], limit,
    )  # fmt: skip
    return [DueDeletion(**{**dict(row), "id": str(row["id"]), "event_id": str(row["event_id"])}) for row in rows]


async def subscription_troubles(
    conn: Connection, owner: str, names: Sequence[str], limit: int
) -> list[SubscriptionTrouble]:  # fmt: skip
    """Return what ails these subscriptions of an owner now, the first few; without those that nothing ails any more."""
    rows = await conn.fetch(
        """SELECT s.name, coalesce(s.ended_reason, s.paused_reason) AS reason, s.ended_reason IS NOT NULL AS has_ended,
                  letters.count AS dead_letters, letters.reason AS last_reason
           FROM fedstac.subscription s CROSS JOIN LATERAL (
               SELECT count(*) AS count, (array_agg(e.reason ORDER BY e.dead_at DESC))[1] AS reason
               FROM fedstac.subscription_event e WHERE e.subscription = s.name AND e.dead_at IS NOT NULL) letters
           WHERE s.owner = $1 AND s.name = ANY ($2::text[])
             AND (s.ended_reason IS NOT NULL OR s.paused_reason IS NOT NULL OR letters.count > 0)
           ORDER BY s.name LIMIT $3""",
        owner, list(names), limit,
    )  # fmt: skip
    return [SubscriptionTrouble(**dict(row)) for row in rows]
