"""What is asked of many deletions: the list and its counts, the figures, and what is ready to be deleted."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from enum import StrEnum
from uuid import UUID

from fedstac.db import deletions
from fedstac.db.connections import Connection
from fedstac.db.deletions import AWAITS_NEWER, COLUMNS
from fedstac.domain.deletion import Deletion, DeletionState

ASKING_LOCK = 0x66656416  # of whoever asks for the deletions that are ready; the second key is the hash of the project


class ListOrder(StrEnum):
    """The orders of the list of deletions."""

    MARKED = "marked_at"
    GRACE = "grace_until"
    DATASET = "dataset"


class OpenStand(StrEnum):
    """How open deletions stand, beside their state: several may hold for one."""

    WAITING = "waiting"  # something is missing
    READY = "ready"  # nothing is: it can be deleted
    LATE = "late"  # a dependency has not done its part, and was due
    FAILED = "failed"  # a dependency reports a failure


@dataclass(frozen=True, slots=True)
class Sight:
    """Which deletions somebody may see: all; else of these projects and institutions, and what waits for a node.

    places: projects with an institution; None where the dataset names none.
    """

    sees_all: bool = False
    places: tuple[tuple[str, str | None], ...] = ()
    node: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class DeletionFilter:
    """Which deletions; None: any. text: a part of the dataset's id, of the reason, or of who marked it.

    For a node text is a part of the id alone, and dependency and stand are of its own parts.
    """

    project: str | None = None
    state: DeletionState | None = None
    stand: OpenStand | None = None
    dependency: str | None = None
    text: str | None = None


@dataclass(slots=True)
class _Choice:
    """Deletions that somebody asks for, in SQL over `d`. values: of the parameters.

    is_whole: whether a deletion is seen whole. Who sees one as a node alone finds nothing out that its document hides,
    neither by a filter nor by a count. own: which parts are the node's; None where nothing is seen as a node.
    """

    values: list[object] = field(default_factory=list)
    conditions: list[str] = field(default_factory=list)
    is_whole: str = "true"
    own: str | None = None

    def place(self, value: object) -> str:
        """Return the parameter of a value."""
        self.values.append(value)
        return f"${len(self.values)}"

    def source(self, *, one_by_one: bool) -> str:
        """Return the table, with what the parts of the node come to where something is seen as a node.

        one_by_one: of each deletion by itself, for a page; else of all of them in one pass.
        """
        if self.own is None:
            return "fedstac.deletion d"
        lateral, of_one = ("LATERAL", "AND p.deletion = d.id") if one_by_one else ("", "")
        return f"""fedstac.deletion d LEFT JOIN {lateral} (
            SELECT p.deletion, bool_or(p.required AND p.state IN ('pending', 'failed')) AS is_blocked,
                   bool_or(p.state = 'failed') AS has_failed,
                   min(p.due) FILTER (WHERE p.state IN ('pending', 'failed')) AS late_after
            FROM fedstac.deletion_dependency p WHERE {self.own} {of_one} GROUP BY 1) part ON part.deletion = d.id"""

    @property
    def is_seen(self) -> str:
        return self.is_whole if self.own is None else f"({self.is_whole} OR part.deletion IS NOT NULL)"

    def of_parts(self, column: str) -> str:
        """Return a column that fedstac.sum_up_deletions keeps, of the parts that are seen."""
        if self.own is None:
            return f"d.{column}"
        return f"CASE WHEN {self.is_whole} THEN d.{column} ELSE part.{column} END"


def _choose(sight: Sight, filter: DeletionFilter) -> _Choice:
    """Return the choice of deletions, whatever their state and standing."""
    choice = _Choice()
    if not sight.sees_all:
        projects = choice.place([project for project, _ in sight.places])
        institutions = choice.place([institution for _, institution in sight.places])
        choice.is_whole = f"""EXISTS (
            SELECT FROM unnest({projects}::text[], {institutions}::text[]) s (project, institution)
            WHERE s.project = d.collection AND s.institution IS NOT DISTINCT FROM d.institution)"""
        if sight.node is not None:
            node = choice.place(sight.node)
            choice.own = f"(p.name = {node} OR starts_with(p.name, {node} || '/'))"
    if filter.project is not None:
        choice.conditions.append(f"d.collection = {choice.place(filter.project)}")
    if filter.dependency is not None:
        name = choice.place(filter.dependency)
        limit_to_seen = "" if choice.own is None else f"AND ({choice.is_whole} OR {choice.own})"
        choice.conditions.append(f"""EXISTS (SELECT FROM fedstac.deletion_dependency p
                                             WHERE p.deletion = d.id AND p.name = {name} {limit_to_seen})""")
    if filter.text is not None:
        text = choice.place(filter.text)
        limit_to_seen = "" if choice.own is None else f"AND {choice.is_whole}"
        choice.conditions.append(f"""(
            strpos(lower(d.dataset), lower({text})) > 0
            OR (strpos(lower(d.reason), lower({text})) > 0 OR strpos(lower(d.actor), lower({text})) > 0)
               {limit_to_seen})""")
    return choice


# The next two mirror Deletion.missing: tests/db/test_deletion_manager.py compares them.


def _is_waiting(choice: _Choice, at: str) -> str:
    """Return SQL: something is missing of an open deletion. A node does not see that identifiers have no owner."""
    return f"(d.grace_until > {at} OR {choice.of_parts('is_blocked')} OR {AWAITS_NEWER})"


def _is_ready(choice: _Choice, at: str) -> str:
    """Return SQL: nothing is missing of an open deletion."""
    return f"(d.grace_until <= {at} AND NOT {choice.of_parts('is_blocked')} AND NOT {AWAITS_NEWER})"


_ORDERS = {
    (order, descending): f"d.{order} {'DESC' if descending else ''}, d.id {'DESC' if descending else ''}"
    for order in ListOrder for descending in (False, True)
}  # fmt: skip


async def page(
    conn: Connection, sight: Sight, filter: DeletionFilter, *, order: ListOrder, descending: bool, after: UUID | None,
    limit: int, now: datetime,
) -> list[Deletion]:  # fmt: skip
    """Return deletions in an order, those after a deletion of that order."""
    choice = _choose(sight, filter)
    conditions = [choice.is_seen, *choice.conditions]
    if choice.own is not None and not sight.places:  # a node that has no part of anything is told so at once
        conditions.append(f"EXISTS (SELECT FROM fedstac.deletion_dependency p WHERE {choice.own})")
    if filter.state is not None:  # a text of ours: it tells which index has them
        conditions.append(f"d.state = '{filter.state}'")
    if filter.stand is not None:
        conditions.append("d.state = 'open'")
    match filter.stand:
        case OpenStand.WAITING:
            conditions.append(_is_waiting(choice, choice.place(now)))
        case OpenStand.READY:
            conditions.append(_is_ready(choice, choice.place(now)))
        case OpenStand.LATE:
            conditions.append(f"{choice.of_parts('late_after')} < {choice.place(now)}")
        case OpenStand.FAILED:
            conditions.append(choice.of_parts("has_failed"))
        case None:
            pass
    if after is not None:
        conditions.append(f"""(d.{order}, d.id) {"<" if descending else ">"} (
            SELECT l.{order}, l.id FROM fedstac.deletion l WHERE l.id = {choice.place(after)})""")
    rows = await conn.fetch(
        f"""SELECT {COLUMNS} FROM {choice.source(one_by_one=True)} WHERE {" AND ".join(conditions)}
            ORDER BY {_ORDERS[order, descending]} LIMIT {choice.place(limit)}""",
        *choice.values,
    )
    return await deletions.with_dependencies(conn, rows)


async def counts(conn: Connection, sight: Sight, filter: DeletionFilter, *, now: datetime) -> dict[str, int]:
    """Count deletions by state, and the open ones by standing; state and standing of the filter do not count.

    They are counted by place first: of hundreds of thousands an index has all that is asked, and who may see a place
    and whether its rules are being changed is asked once for each.
    """
    choice = _choose(sight, filter)
    at = choice.place(now)
    blocked, failed, late_after = map(choice.of_parts, ("is_blocked", "has_failed", "late_after"))
    is_seen, is_seen_place = ("true", choice.is_seen) if choice.own is None else (choice.is_seen, "true")
    where = " AND ".join((is_seen, *choice.conditions))
    row = await conn.fetchrow(
        f"""SELECT o.open, o.waiting, o.open - o.waiting AS ready, o.late, o.failed, e.unmarked, e.deleted, e.purged
            FROM (SELECT coalesce(sum(d.n), 0)::bigint AS open,
                         coalesce(sum(CASE WHEN {AWAITS_NEWER} THEN d.n ELSE d.waiting END), 0)::bigint AS waiting,
                         coalesce(sum(d.late), 0)::bigint AS late, coalesce(sum(d.failed), 0)::bigint AS failed
                  FROM (SELECT d.collection, d.institution, d.configuration, count(*) AS n,
                               count(*) FILTER (WHERE d.grace_until > {at} OR {blocked}) AS waiting,
                               count(*) FILTER (WHERE {late_after} < {at}) AS late,
                               count(*) FILTER (WHERE {failed}) AS failed
                        FROM {choice.source(one_by_one=False)} WHERE d.state = 'open' AND {where} GROUP BY 1, 2, 3) d
                  WHERE {is_seen_place}) o,
                 (SELECT coalesce(sum(d.n) FILTER (WHERE d.state = 'unmarked'), 0)::bigint AS unmarked,
                         coalesce(sum(d.n) FILTER (WHERE d.state = 'deleted'), 0)::bigint AS deleted,
                         coalesce(sum(d.n) FILTER (WHERE d.state = 'purged'), 0)::bigint AS purged
                  FROM (SELECT d.collection, d.institution, d.state, count(*) AS n
                        FROM {choice.source(one_by_one=False)} WHERE d.state <> 'open' AND {where} GROUP BY 1, 2, 3) d
                  WHERE {is_seen_place}) e""",
        *choice.values,
    )
    assert row is not None
    return dict(row)


async def places(conn: Connection) -> list[tuple[str, str | None]]:
    """Return each project with each institution that deletions are of."""
    rows = await conn.fetch("SELECT DISTINCT collection, institution FROM fedstac.deletion")
    return [(row["collection"], row["institution"]) for row in rows]


@dataclass(frozen=True, slots=True)
class DeletionFigures:
    """How many deletions are open, and how they stand."""

    open: int
    waiting: int
    ready: int
    late: int
    failed: int
    oldest_seconds: float


async def figures(conn: Connection) -> DeletionFigures:
    """Read the figures."""
    moment = await deletions.now(conn)
    numbers = await counts(conn, Sight(sees_all=True), DeletionFilter(), now=moment)
    oldest = await conn.fetchval("SELECT min(marked_at) FROM fedstac.deletion WHERE state = 'open'")
    return DeletionFigures(
        numbers["open"], numbers["waiting"], numbers["ready"], numbers["late"], numbers["failed"],
        (moment - oldest).total_seconds() if oldest else 0.0,
    )  # fmt: skip


# --- for the schedule, and for whoever deletes all that is ready ---


@dataclass(frozen=True, slots=True)
class AutomaticRules:
    """A version of rules by which the schedule deletes, and for which deletions are open."""

    project: str
    version: int
    schedule: str


async def automatic_rules(conn: Connection) -> list[AutomaticRules]:
    """Return the rules by which the schedule deletes open deletions whose grace is over, by project and version."""
    rows = await conn.fetch(
        """SELECT d.project, d.version, coalesce(c.body ->> 'schedule', '') AS schedule
           FROM (SELECT DISTINCT collection AS project, configuration AS version FROM fedstac.deletion
                 WHERE state = 'open' AND automatic AND grace_until <= clock_timestamp()) d
           LEFT JOIN fedstac.deletion_configuration c USING (project, version) ORDER BY 1, 2"""
    )
    return [AutomaticRules(**dict(row)) for row in rows]


@dataclass(frozen=True, slots=True)
class ScheduleInputs:
    """What decides whether the schedule finds something: the newest of all that changes deletions, the next grace."""

    newest: tuple[datetime | None, ...]  # mark, report, waiver, rules
    next_grace: datetime | None  # that ends after now


async def schedule_inputs(conn: Connection, *, now: datetime) -> ScheduleInputs:
    """Read what decides whether the schedule finds something. Each is one look at the end of an index."""
    row = await conn.fetchrow(
        """SELECT (SELECT max(marked_at) FROM fedstac.deletion) AS mark,
                  (SELECT max(reported_at) FROM fedstac.deletion_dependency) AS report,
                  (SELECT max(at) FROM fedstac.deletion_waiver) AS waiver,
                  (SELECT max(at) FROM fedstac.deletion_configuration) AS rules,
                  (SELECT min(grace_until) FROM fedstac.deletion
                   WHERE state = 'open' AND automatic AND grace_until > $1) AS next_grace""",
        now,
    )
    assert row is not None
    *newest, next_grace = row.values()
    return ScheduleInputs(tuple(newest), next_grace)


async def ready_projects(conn: Connection, sight: Sight, *, project: str | None, now: datetime) -> dict[str, int]:
    """Count the open deletions that are ready, by project."""
    choice = _choose(sight, DeletionFilter(project=project))
    is_ready = _is_ready(choice, choice.place(now))
    rows = await conn.fetch(
        f"""SELECT d.collection, count(*) AS n FROM fedstac.deletion d
            WHERE {" AND ".join(("d.state = 'open'", is_ready, choice.is_whole, *choice.conditions))}
            GROUP BY 1 ORDER BY 1""",
        *choice.values,
    )
    return {row["collection"]: row["n"] for row in rows}


@dataclass(frozen=True, slots=True)
class ReadyDeletion:
    """A deletion that is ready, and the request by which somebody asked for it before, which came to nothing."""

    id: UUID
    dataset: str
    lineage: str
    earlier_request: UUID | None


ASK_AGAIN = timedelta(days=1)  # for a deletion that was refused, where nobody has reported or waived since


async def take_ready(
    conn: Connection, sight: Sight, project: str, *, moments: Mapping[int, datetime] | None, now: datetime, limit: int,
    asked_before: datetime | None = None,
) -> list[ReadyDeletion]:  # fmt: skip
    """Lock and return deletions of a project that are ready, and for which no request waits. Call it in a transaction.

    moments: of the schedule, by version of the rules: those that were ready before their moment, and that are not
    under quarantine, about which people decide. None: all. asked_before: those that were not asked for since then, so
    that what is refused meanwhile is not asked for again and again. What nobody has asked for comes first.
    """
    # One after the other: a row that another one asked for meanwhile is read anew, the items of its request are not.
    await conn.execute("SELECT pg_advisory_xact_lock($1, hashtext($2))", ASKING_LOCK, project)
    choice = _choose(sight, DeletionFilter(project=project))
    at = choice.place(now)
    versions = choice.place(list(moments) if moments is not None else None)
    times = choice.place(list(moments.values()) if moments is not None else None)
    before = choice.place(asked_before)
    rows = await conn.fetch(
        f"""SELECT d.id, d.dataset, r.lineage, d.delete_request AS earlier_request
            FROM fedstac.deletion d JOIN fedstac.record r ON r.collection = d.collection AND r.id = d.dataset
            CROSS JOIN LATERAL (
                SELECT greatest((SELECT max(p.reported_at) FROM fedstac.deletion_dependency p
                                 WHERE p.deletion = d.id AND p.required),
                                (SELECT max(w.at) FROM fedstac.deletion_waiver w WHERE w.deletion = d.id)) AS at) last
            WHERE {" AND ".join(("d.state = 'open'", _is_ready(choice, at), choice.is_whole, *choice.conditions))}
              AND ({versions}::integer[] IS NULL OR d.automatic AND r.quarantine IS NULL AND EXISTS (
                  SELECT FROM unnest({versions}, {times}::timestamptz[]) m (version, moment)
                  WHERE m.version = d.configuration AND greatest(d.grace_until, d.marked_at, last.at) <= m.moment))
              AND (d.delete_request IS NULL
                   OR ({versions} IS NULL OR last.at > d.delete_asked_at
                       OR d.delete_asked_at < {at} - {choice.place(ASK_AGAIN)}::interval)
                      AND NOT EXISTS (SELECT FROM fedstac.request_item i WHERE i.request = d.delete_request
                                      AND i.dataset = d.dataset AND i.status = 'queued'))
              AND ({before}::timestamptz IS NULL OR d.delete_asked_at IS NULL OR d.delete_asked_at < {before})
            ORDER BY d.delete_asked_at NULLS FIRST, d.grace_until, d.id LIMIT {choice.place(limit)}
            FOR UPDATE OF d SKIP LOCKED""",
        *choice.values,
    )
    return [ReadyDeletion(**dict(row)) for row in rows]


async def note_quarantined(conn: Connection, project: str, *, now: datetime, limit: int) -> list[str]:
    """Note deletions that are ready and that the schedule leaves to people, as their datasets are under quarantine.

    Return the ids of the datasets, each once.
    """
    rows = await conn.fetch(
        f"""WITH ready AS (
                SELECT d.id FROM fedstac.deletion d
                JOIN fedstac.record r ON r.collection = d.collection AND r.id = d.dataset
                WHERE d.collection = $2 AND d.state = 'open' AND {_is_ready(_Choice(), "$1")} AND d.automatic
                  AND d.delete_asked_at IS NULL AND r.quarantine IS NOT NULL ORDER BY d.id LIMIT $3)
            UPDATE fedstac.deletion d SET delete_asked_at = $1 FROM ready
            WHERE d.id = ready.id AND d.delete_asked_at IS NULL RETURNING d.dataset""",
        now, project, limit,
    )  # fmt: skip
    return sorted(row["dataset"] for row in rows)


async def ask(conn: Connection, ids: Sequence[UUID], request: UUID, *, now: datetime) -> None:
    """Note the request that was made to delete the datasets of deletions. They are locked."""
    await conn.execute(
        "UPDATE fedstac.deletion SET delete_request = $2, delete_asked_at = $3 WHERE id = ANY ($1::uuid[])",
        ids, request, now,
    )  # fmt: skip
