"""Grants: how they are given, how they follow the states of datasets, and how they are withdrawn.

What grants open is asked in grant_rights.py, and which there are in grant_lists.py. Events are written by the functions
of migrations/0071_grants.sql, in the transaction of the change.

Locks, in this order: the lineages or collections, then the rows of fedstac.grant_target by their keys, then grants.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from itertools import groupby
from operator import attrgetter
from typing import Any, Final
from uuid import UUID

import orjson

from fedstac.db import audit, outbox
from fedstac.db.connections import Connection, Row
from fedstac.domain import grants as rules
from fedstac.domain.grants import AccessGrant, GrantScope, GrantTarget, TargetState
from fedstac.domain.identifiers import uuid7
from fedstac.domain.model import State, rfc3339

MOMENT: Final = timedelta(microseconds=1)
COLUMNS: Final = """id, subject, collection, scope, target, valid_from, valid_until, given_at, given_by, closed_at,
                    closed_by, closed_why, cause"""


def from_row(row: Row | Mapping[str, Any]) -> AccessGrant:
    """Return a grant from a row of COLUMNS."""
    values = dict(row)
    target = GrantTarget(values.pop("collection"), GrantScope(values.pop("scope")), values.pop("target"))
    return AccessGrant(**values, target=target)


# --- giving ---


async def target_states(
    conn: Connection, targets: Sequence[GrantTarget], institutions: Mapping[str, str], *, locking: bool = False
) -> dict[GrantTarget, TargetState]:
    """Return what targets are here. institutions: the property that names the institution, by collection.

    A lineage whose versions name several institutions is of none: who gives grants of it has the right for all.
    locking: the datasets and collections stay in their states until the transaction ends.
    """
    if locking:
        await _lock(conn, targets)
    rows = await conn.fetch(
        """SELECT t.n, coalesce(r.origin, c.origin) AS origin, coalesce(r.states, '{}') AS states, r.institution,
                  r.marked, d.id AS deletion
           FROM unnest($1::text[], $2::text[], $3::text[], $4::text[]) WITH ORDINALITY
                t (collection, scope, name, property, n)
           LEFT JOIN LATERAL (
               SELECT min(origin) AS origin, array_agg(state) AS states,
                      CASE WHEN count(DISTINCT institution) = 1 THEN min(institution) END AS institution,
                      min(id) FILTER (WHERE state = 'marked') AS marked
               FROM (SELECT id, origin, state, document::jsonb -> 'properties' ->> t.property AS institution FROM (
                         SELECT * FROM fedstac.record
                         WHERE collection = t.collection AND id = CASE t.scope WHEN 'dataset' THEN t.name END
                         UNION ALL
                         SELECT * FROM fedstac.record WHERE lineage = CASE t.scope WHEN 'lineage' THEN t.name END) r
                     OFFSET 0) datasets
               HAVING count(*) > 0) r ON true
           LEFT JOIN LATERAL (
               SELECT c.origin FROM fedstac.collection c
               WHERE t.scope = 'project' AND c.id = t.collection AND c.document IS NOT NULL
               ORDER BY c.origin <> (SELECT origin FROM fedstac.feed_state), c.origin LIMIT 1) c ON true
           LEFT JOIN fedstac.deletion d ON d.collection = t.collection AND d.dataset = r.marked AND d.state = 'open'""",
        [each.collection for each in targets], [each.scope for each in targets], [each.name for each in targets],
        [institutions.get(each.collection) for each in targets],
    )  # fmt: skip
    return {
        targets[row["n"] - 1]: TargetState(
            row["origin"], tuple(map(State, row["states"])), row["institution"], row["marked"], row["deletion"]
        )
        for row in rows
    }


async def _lock(conn: Connection, targets: Sequence[GrantTarget]) -> None:
    """Keep what targets are as it is until the transaction ends, as `perform` locks lineages: in the order of keys."""
    datasets = [each for each in targets if each.scope is GrantScope.DATASET]
    await conn.execute(
        """SELECT FROM fedstac.lineage WHERE key IN (
               SELECT r.lineage FROM unnest($1::text[], $2::text[]) d (collection, id)
               JOIN fedstac.record r ON r.collection = d.collection AND r.id = d.id
               UNION SELECT unnest($3::text[])) ORDER BY key FOR SHARE""",
        [each.collection for each in datasets], [each.name for each in datasets],
        [each.name for each in targets if each.scope is GrantScope.LINEAGE],
    )  # fmt: skip
    projects = sorted({each.collection for each in targets if each.scope is GrantScope.PROJECT})
    if projects:
        await conn.execute(
            "SELECT FROM fedstac.collection WHERE id = ANY ($1::text[]) ORDER BY id, origin FOR SHARE", projects
        )
    await _lock_targets(conn, targets)


async def _lock_targets(conn: Connection, targets: Sequence[GrantTarget]) -> None:
    await conn.execute(
        """INSERT INTO fedstac.grant_target AS t (key, seq) SELECT key, 0 FROM unnest($1::text[]) key ORDER BY key
           ON CONFLICT (key) DO UPDATE SET seq = t.seq""",
        sorted({each.key for each in targets}),
    )


@dataclass(frozen=True, slots=True)
class NewGrant:
    """A grant that is asked for. valid_from None: at once."""

    subject: str
    target: GrantTarget
    valid_from: datetime | None
    valid_until: datetime


@dataclass(frozen=True, slots=True)
class GivenGrant:
    """A grant that is there now. is_new False: it was there before."""

    grant: AccessGrant
    is_new: bool


async def give(
    conn: Connection, new: Sequence[NewGrant], *, actor: str, correlation: str | None = None,
    traceparent: str | None = None,
) -> list[GivenGrant]:  # fmt: skip
    """Give grants, with their events and audit rows; those that are there already stay as they are.

    Join the caller's transaction, which has asked `target_states` with locks.
    """
    _, now = await outbox.begin(conn)
    present = await _present(conn, new, now)
    by_wish: dict[NewGrant, AccessGrant] = {}
    result: list[GivenGrant] = []
    for place, wish in enumerate(new):
        grant = present.get(place) or by_wish.get(wish)
        if grant is None:
            start = wish.valid_from or min(now, wish.valid_until - MOMENT)  # this clock may be ahead of the caller's
            grant = by_wish[wish] = AccessGrant(
                uuid7(now), wish.subject, wish.target, start, wish.valid_until, now, actor
            )  # fmt: skip
            result.append(GivenGrant(grant, is_new=True))
        else:
            result.append(GivenGrant(grant, is_new=False))
    new_grants = list(by_wish.values())
    await conn.copy_records_to_table(
        "access_grant", schema_name="fedstac",
        columns=("id", "subject", "collection", "scope", "target", "valid_from", "valid_until", "given_at", "given_by"),
        records=[
            (each.id, each.subject, each.target.collection, each.target.scope.value, each.target.name, each.valid_from,
             each.valid_until, each.given_at, each.given_by)
            for each in new_grants
        ],
    )  # fmt: skip
    await _announce(conn, rules.GIVEN, actor, [
        _Announcement({
            **_data_of(each.target), "subject": each.subject, "grant": str(each.id), "grants": 1,
            "valid_from": rfc3339(each.valid_from), "valid_until": rfc3339(each.valid_until),
        })
        for each in new_grants
    ], correlation=correlation, traceparent=traceparent)  # fmt: skip
    await audit.append(conn, [
        audit.NewRow(
            actor, "give-grant", each.target.collection, f"grant/{each.id}", None, "done", None, None,
            correlation=correlation, detail=orjson.dumps({
                "subject": each.subject, each.target.scope.value: str(each.target),
                "valid_from": rfc3339(each.valid_from), "valid_until": rfc3339(each.valid_until),
            }).decode(),
        )
        for each in new_grants
    ])  # fmt: skip
    return result


async def _present(conn: Connection, new: Sequence[NewGrant], now: datetime) -> dict[int, AccessGrant]:
    """Return the open grants that say what is asked for already, by the places of the wishes."""
    rows = await conn.fetch(
        f"""SELECT DISTINCT ON (w.n) w.n, {", ".join(f"g.{name.strip()}" for name in COLUMNS.split(","))}
            FROM unnest($1::text[], $2::text[], $3::text[], $4::text[], $5::timestamptz[], $6::timestamptz[])
                 WITH ORDINALITY w (subject, collection, scope, target, valid_from, valid_until, n)
            JOIN fedstac.access_grant g ON g.subject = w.subject AND g.collection = w.collection AND g.scope = w.scope
                 AND g.target = w.target AND g.valid_until = w.valid_until AND g.closed_at IS NULL
                 AND (g.valid_from = w.valid_from OR w.valid_from IS NULL AND g.valid_from <= $7)
            ORDER BY w.n, g.valid_from""",
        [each.subject for each in new], [each.target.collection for each in new], [each.target.scope for each in new],
        [each.target.name for each in new], [each.valid_from for each in new], [each.valid_until for each in new], now,
    )  # fmt: skip
    return {row["n"] - 1: from_row({name: value for name, value in row.items() if name != "n"}) for row in rows}


# --- events ---


@dataclass(frozen=True, slots=True)
class _Announcement:
    """An event about grants: its data, with the key of the target, and the event that it follows from."""

    data: Mapping[str, Any]
    cause: UUID | None = None


def _data_of(target: GrantTarget) -> dict[str, Any]:
    return {
        "key": target.key, "collection": target.collection, "scope": target.scope, "dataset": target.dataset,
        "lineage": target.lineage,
    }  # fmt: skip


async def _announce(
    conn: Connection, event_type: str, actor: str, announcements: Sequence[_Announcement], *,
    correlation: str | None = None, traceparent: str | None = None,
) -> None:  # fmt: skip
    if announcements:
        await conn.execute(
            "SELECT fedstac.announce_grants($1, $2, $3::jsonb[], $4::uuid[], $5, $6)",
            event_type, actor, [orjson.dumps(each.data).decode() for each in announcements],
            [each.cause for each in announcements], correlation, traceparent,
        )  # fmt: skip


@dataclass(frozen=True, slots=True)
class StateStep:
    """A change of a dataset that its grants follow. type: what becomes of them (domain/grants.py, event_of)."""

    type: str
    collection: str
    dataset: str
    lineage: str  # its key
    event_id: UUID
    actor: str
    reason: str

    @property
    def target(self) -> GrantTarget:
        return GrantTarget(self.collection, GrantScope.DATASET, self.dataset)


async def follow(conn: Connection, steps: Sequence[StateStep], *, traceparent: str | None = None) -> None:
    """Let grants follow changes of datasets, in their order: those of deleted ones close, and each step is announced.

    One event for each dataset that has grants, whoever has them; it names the change as its cause. Whether a grant is
    suspended is not stored. Join the transaction of the changes, which has the locks of the lineages.
    """
    for (event_type, actor), group in groupby(steps, key=attrgetter("type", "actor")):
        part = list(group)
        also_wider = event_type != rules.WITHDRAWN
        counts = await _counts(conn, part, also_wider=also_wider)
        if not counts:
            continue
        await _lock_targets(conn, list(counts))
        counts = await _counts(conn, part, also_wider=also_wider)  # some may have been withdrawn in the meantime
        affected = [each for each in part if each.target in counts]
        if not affected:
            continue
        if event_type == rules.WITHDRAWN:
            await _close(conn, affected)
            await audit.append(conn, [
                audit.NewRow(actor, "withdraw-grants", each.collection, each.dataset, None, "done", None, None,
                             items=counts[each.target], detail=_audited(each.target, each.reason))
                for each in affected
            ])  # fmt: skip
        await _announce(conn, event_type, actor, [
            _Announcement(
                {**_data_of(each.target), "subject": None, "grant": None, "grants": counts[each.target],
                 "reason": each.reason},
                each.event_id,
            )
            for each in affected
        ], traceparent=traceparent)  # fmt: skip


async def _counts(conn: Connection, steps: Sequence[StateStep], *, also_wider: bool) -> dict[GrantTarget, int]:
    """Return how many open grants the datasets of steps have of their own; those without any are left out.

    also_wider: not those that are covered by a grant of their lineage or project.
    """
    rows = await conn.fetch(
        """SELECT * FROM (
               SELECT s.collection, s.dataset,
                      (SELECT count(*) FROM fedstac.access_grant g WHERE g.collection = s.collection
                       AND g.scope = 'dataset' AND g.target = s.dataset AND g.closed_at IS NULL) AS own,
                      $4 AND EXISTS (
                          SELECT FROM (VALUES ('lineage', s.lineage), ('project', '')) wider (scope, target)
                          JOIN fedstac.access_grant g ON g.collection = s.collection AND g.scope = wider.scope
                               AND g.target = wider.target AND g.closed_at IS NULL) AS is_covered
               FROM (SELECT DISTINCT * FROM unnest($1::text[], $2::text[], $3::text[])
                     d (collection, dataset, lineage)) s) counted
           WHERE own > 0 OR is_covered""",
        [each.collection for each in steps], [each.dataset for each in steps], [each.lineage for each in steps],
        also_wider,
    )  # fmt: skip
    return {GrantTarget(row["collection"], GrantScope.DATASET, row["dataset"]): row["own"] for row in rows}


async def _close(conn: Connection, steps: Sequence[StateStep]) -> None:
    await conn.execute(
        """UPDATE fedstac.access_grant g SET closed_at = clock_timestamp(), closed_by = s.actor, closed_why = s.reason,
                  cause = s.event_id
           FROM unnest($1::text[], $2::text[], $3::uuid[], $4::text[], $5::text[])
                s (collection, dataset, event_id, actor, reason)
           WHERE g.collection = s.collection AND g.scope = 'dataset' AND g.target = s.dataset
             AND g.closed_at IS NULL""",
        [each.collection for each in steps], [each.dataset for each in steps], [each.event_id for each in steps],
        [each.actor for each in steps], [each.reason for each in steps],
    )  # fmt: skip


async def close_of_collection(conn: Connection, collection: str, *, actor: str, cause: UUID) -> int:
    """Close what is open of a collection that was just deleted, and return how many: of lineages, and of the project.

    They are announced together. Join the transaction that deletes the collection; cause: its event.
    """
    target = GrantTarget(collection, GrantScope.PROJECT)
    return await _close_all(
        conn, target, "collection = $1 AND $4 = $4 AND $5 = $5", actor=actor, reason="the collection was deleted",
        cause=cause,
    )  # fmt: skip


async def withdraw_of_target(
    conn: Connection, target: GrantTarget, *, actor: str, reason: str, correlation: str | None = None
) -> int:
    """Close all open grants of a target, whoever has them, with one event; return how many. Join the transaction.

    Those of a dataset's lineage and of its project stay.
    """
    return await _close_all(
        conn, target, "collection = $1 AND scope = $4 AND target = $5", actor=actor, reason=reason,
        correlation=correlation,
    )  # fmt: skip


async def _close_all(
    conn: Connection, target: GrantTarget, condition: str, *, actor: str, reason: str, cause: UUID | None = None,
    correlation: str | None = None,
) -> int:  # fmt: skip
    await _lock_targets(conn, [target])
    count = int(await conn.fetchval(
        f"""WITH closed AS (
               UPDATE fedstac.access_grant
               SET closed_at = clock_timestamp(), closed_by = $2, closed_why = $3, cause = $6
               WHERE {condition} AND closed_at IS NULL RETURNING 1)
            SELECT count(*) FROM closed""",
        target.collection, actor, reason, target.scope, target.name, cause,
    ))  # fmt: skip
    if count:
        data = {**_data_of(target), "subject": None, "grant": None, "grants": count, "reason": reason}
        await _announce(conn, rules.WITHDRAWN, actor, [_Announcement(data, cause)], correlation=correlation)
        await audit.append(conn, [
            audit.NewRow(actor, "withdraw-grants", target.collection, str(target), None, "done", None, None,
                         items=count, correlation=correlation, detail=_audited(target, reason))
        ])  # fmt: skip
    return count


def _audited(target: GrantTarget, reason: str) -> str:
    """Return what the audit log says of a withdrawal of all grants of a target: enough to do it again."""
    return orjson.dumps({"reason": reason, target.scope.value: str(target)}).decode()


async def withdraw(
    conn: Connection, ids: Sequence[UUID], *, actor: str, reason: str, correlation: str | None = None
) -> int:
    """Close grants, each with its event and audit row; return how many were open. Join the caller's transaction."""
    open_grants = f"SELECT {COLUMNS} FROM fedstac.access_grant WHERE id = ANY ($1::uuid[]) AND closed_at IS NULL"
    await _lock_targets(conn, [from_row(row).target for row in await conn.fetch(open_grants, ids)])
    rows = await conn.fetch(f"{open_grants} ORDER BY id", ids)
    count = int(await conn.fetchval("SELECT fedstac.close_grants($1, $2, $3, $4)", ids, actor, reason, correlation))
    if count:
        await audit.append(conn, [
            audit.NewRow(actor, "withdraw-grant", row["collection"], f"grant/{row['id']}", None, "done", None, None,
                         correlation=correlation, detail=orjson.dumps({"reason": reason}).decode())
            for row in rows
        ])  # fmt: skip
    return count
