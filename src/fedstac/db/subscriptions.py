"""Subscriptions as their owners have them: put, sought, removed. What they get of the log is in subscription_events."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from datetime import datetime
from typing import Final
from urllib.parse import urlsplit
from uuid import UUID

import orjson

from fedstac.db import audit
from fedstac.db.connections import Connection, Row
from fedstac.domain.errors import Conflict, NotFound, TooManyRequests
from fedstac.domain.events import Cursor
from fedstac.domain.policy import Principal

MOST_SUBSCRIPTIONS: Final = 5000
MOST_OF_OWNER: Final = 500
PUTTING_LOCK: Final = 0x666564_18  # advisory lock of whoever makes one: they are counted, and names are taken

COLUMNS = """name, owner, roles, identity, delivery, url, secret, format, key_template, filter, batch, epoch,
    pos, lease, leased_until, leased_epoch, leased_through, paused_reason, ended_reason, delivered, delivered_at,
    errors, failing_since, last_error, version, created, updated, rights_at"""


# In one word, how a subscription `s` stands, as workers/subscribing.stand_of has it.
STAND: Final = """CASE WHEN s.ended_reason IS NOT NULL THEN 'ended' WHEN s.paused_reason IS NOT NULL THEN 'paused'
    WHEN s.failing_since IS NOT NULL THEN 'failing' ELSE 'active' END"""


@dataclass(frozen=True, slots=True)
class Subscription:
    """A subscription as it is stored. filter: JSON text, as it was sent. lease: of who has the next events now.

    rights_at: when its owner last put it, with the roles and the identity that stand here.
    """

    name: str
    owner: str
    roles: tuple[str, ...]
    identity: str | None
    delivery: str
    url: str | None
    secret: bytes = field(repr=False)
    format: str
    key_template: str
    filter: str
    batch: int
    epoch: int
    pos: int
    lease: UUID | None
    leased_until: datetime | None
    leased_epoch: int | None
    leased_through: int | None
    paused_reason: str | None
    ended_reason: str | None
    delivered: int
    delivered_at: datetime | None
    errors: int
    failing_since: datetime | None
    last_error: str | None
    version: int
    created: datetime
    updated: datetime
    rights_at: datetime

    @property
    def cursor(self) -> Cursor:
        return Cursor(self.epoch, self.pos)

    @property
    def leased_cursor(self) -> Cursor | None:
        """The last place that the present lease gave out."""
        if self.leased_epoch is None or self.leased_through is None:
            return None
        return Cursor(self.leased_epoch, self.leased_through)


def subscription_of(row: Row) -> Subscription:
    """Return the subscription of a row that has COLUMNS, among others."""
    values = {each.name: row[each.name] for each in fields(Subscription)}
    return Subscription(**{**values, "roles": tuple(row["roles"]), "secret": bytes(row["secret"])})


async def find(conn: Connection, name: str) -> Subscription | None:
    """Return a subscription; None where there is none of the name."""
    row = await conn.fetchrow(f"SELECT {COLUMNS} FROM fedstac.subscription WHERE name = $1", name)
    return subscription_of(row) if row else None


async def lock(conn: Connection, name: str) -> Subscription | None:
    """Return a subscription that stays as it is until the caller's transaction ends; None where there is none."""
    row = await conn.fetchrow(f"SELECT {COLUMNS} FROM fedstac.subscription WHERE name = $1 FOR UPDATE", name)
    return subscription_of(row) if row else None


async def every(conn: Connection, *, owner: str | None, after: str, limit: int) -> list[Subscription]:
    """Return subscriptions by name: those of an owner, or of all."""
    rows = await conn.fetch(
        f"""SELECT {COLUMNS} FROM fedstac.subscription WHERE name > $2 AND ($1::text IS NULL OR owner = $1)
            ORDER BY name LIMIT $3""",
        owner, after, limit,
    )  # fmt: skip
    return [subscription_of(row) for row in rows]


async def filters_of(conn: Connection, owner: str) -> list[str]:
    """Return the filters of somebody's subscriptions that have not ended, as JSON, each once."""
    rows = await conn.fetch(
        "SELECT DISTINCT filter FROM fedstac.subscription WHERE owner = $1 AND ended_reason IS NULL ORDER BY filter",
        owner,
    )
    return [row["filter"] for row in rows]


def missing(name: str) -> NotFound:
    """Return the refusal of a name that is no subscription of the caller's."""
    return NotFound(f"there is no subscription {name[:100]!r} of yours; see fedstac subscription list")


# --- what owners do; each in one transaction with its row in the audit log ---


@dataclass(frozen=True, slots=True, kw_only=True)
class NewSubscription:
    """A subscription as its owner wants it. after: a new one gets what comes after this place."""

    name: str
    owner: Principal
    delivery: str
    url: str | None
    format: str
    key_template: str
    filter: str
    batch: int
    after: Cursor


@dataclass(frozen=True, slots=True)
class PutOutcome:
    """A subscription that was put: new, or changed, or the same as before.

    is_new_webhook: it has an address now, and its owner was not given the secret yet.
    """

    subscription: Subscription
    is_new: bool
    is_new_webhook: bool = False


async def put(conn: Connection, new: NewSubscription, *, actor: str, correlation: str | None = None) -> PutOutcome:
    """Store a subscription. One of the name keeps its place, its secret and its dead letters. Join a transaction.

    Conflict where the name is another owner's. TooManyRequests where there are too many.
    """
    current = await lock(conn, new.name)
    if current is None:  # the same may be asked for twice at once
        await conn.execute("SELECT pg_advisory_xact_lock($1)", PUTTING_LOCK)
        current = await lock(conn, new.name)
    if current is not None and current.owner != new.owner.name:
        raise Conflict(f"the name {new.name!r} is taken; choose another one")
    identity = new.owner.identity.packed() if new.owner.identity else None
    roles = sorted(new.owner.roles)
    detail = {"delivery": new.delivery, "format": new.format, "filter": orjson.loads(new.filter)}
    if new.url is not None:
        detail["host"] = urlsplit(new.url).hostname  # the path of a webhook is often a secret
    if current is None:
        await _refuse_too_many(conn, new.owner.name)
        row = await conn.fetchrow(
            f"""INSERT INTO fedstac.subscription (name, owner, roles, identity, delivery, url, secret, format,
                                                  key_template, filter, batch, epoch, pos)
                VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13)
                ON CONFLICT DO NOTHING RETURNING {COLUMNS}""",
            new.name, new.owner.name, roles, identity, new.delivery, new.url, os.urandom(32), new.format,
            new.key_template, new.filter, new.batch, new.after.epoch, new.after.pos,
        )  # fmt: skip
        if row is None:
            raise Conflict(f"the name {new.name!r} was taken a moment ago; choose another one")
        await write_audit(conn, actor, correlation, "add-subscription", new.name, detail)
        return PutOutcome(subscription_of(row), is_new=True, is_new_webhook=new.url is not None)
    settings = (new.delivery, new.url, new.format, new.key_template, new.filter, new.batch)
    current_settings = (
        current.delivery, current.url, current.format, current.key_template, current.filter,
        current.batch,
    )  # fmt: skip
    has_stopped = current.ended_reason is not None or current.paused_reason is not None
    is_same = settings == current_settings and (list(current.roles), current.identity) == (roles, identity)
    if is_same and not has_stopped:
        row = await conn.fetchrow(
            f"UPDATE fedstac.subscription SET rights_at = clock_timestamp() WHERE name = $1 RETURNING {COLUMNS}",
            new.name,
        )
        assert row is not None  # it is locked
        return PutOutcome(subscription_of(row), is_new=False)
    row = await conn.fetchrow(
        f"""UPDATE fedstac.subscription SET roles = $2, identity = $3, delivery = $4, url = $5,
                   format = $6, key_template = $7, filter = $8, batch = $9, {unleased("$4 <> 'webhook'")}, {UNSTOPPED},
                   version = version + 1, updated = clock_timestamp(), rights_at = clock_timestamp()
            WHERE name = $1 RETURNING {COLUMNS}""",
        new.name, roles, identity, *settings,
    )  # fmt: skip
    assert row is not None  # it is locked
    if settings != current_settings or has_stopped:
        await write_audit(conn, actor, correlation, "change-subscription", new.name, detail)
    is_new_webhook = current.url is None and new.url is not None
    return PutOutcome(subscription_of(row), is_new=False, is_new_webhook=is_new_webhook)


UNSTOPPED = """ended_reason = NULL, paused_reason = NULL, wait_until = NULL, waits = 0, failing_since = NULL,
    last_error = NULL"""
UNLEASED = "lease = NULL, leased_until = NULL, leased_epoch = NULL, leased_through = NULL"


def unleased(is_pulled: str) -> str:
    """Return what ends a lease, but one of a process that is sending to the webhook: it ends it when it is done.

    Else another one would send later events of a dataset meanwhile. is_pulled: of the subscription as it will be.
    """
    columns = ("lease", "leased_until", "leased_epoch", "leased_through")
    return ", ".join(
        f"{name} = CASE WHEN delivery <> 'webhook' OR {is_pulled} THEN NULL ELSE {name} END" for name in columns
    )


async def _refuse_too_many(conn: Connection, owner: str) -> None:
    counts = await conn.fetchrow(
        "SELECT count(*) AS every, count(*) FILTER (WHERE owner = $1) AS own FROM fedstac.subscription", owner
    )
    assert counts is not None  # of aggregates
    if counts["own"] >= MOST_OF_OWNER:
        raise TooManyRequests(f"you have {counts['own']} subscriptions, which are the most; delete one")
    if counts["every"] >= MOST_SUBSCRIPTIONS:
        raise TooManyRequests(f"this node has {counts['every']} subscriptions, which are the most; ask its operators")


async def remove(conn: Connection, name: str, *, actor: str, correlation: str | None = None) -> None:
    """Remove a subscription with its dead letters. Join a transaction."""
    await conn.execute("DELETE FROM fedstac.subscription WHERE name = $1", name)
    await write_audit(conn, actor, correlation, "remove-subscription", name, {})


async def seek(conn: Connection, name: str, to: Cursor, *, actor: str, correlation: str | None = None) -> Subscription:
    """Let a locked subscription go on after a place. What waits to be given again is forgotten: so is its lease.

    Dead letters stay, but for those that come again. Join a transaction.
    """
    row = await conn.fetchrow(
        f"""WITH stored AS (DELETE FROM fedstac.subscription_event
                            WHERE subscription = $1 AND (dead_at IS NULL OR pos > $3))
            UPDATE fedstac.subscription SET epoch = $2, pos = $3, {unleased("false")}, {UNSTOPPED},
                   version = version + 1, updated = clock_timestamp()
            WHERE name = $1 RETURNING {COLUMNS}""",
        name, to.epoch, to.pos,
    )  # fmt: skip
    assert row is not None  # it is locked
    await write_audit(conn, actor, correlation, "seek-subscription", name, {"to": str(to)})
    return subscription_of(row)


async def write_audit(
    conn: Connection, actor: str, correlation: str | None, action: str, name: str, detail: Mapping[str, object]
) -> None:
    """Write the row of what somebody did with a subscription."""
    await audit.append_act(conn, actor, correlation, action, f"subscription/{name}", detail)
