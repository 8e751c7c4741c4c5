"""What grants open: who may have the files of which controlled datasets, now and lately.

The predicate stands once, in OPENS: a grant that is open and valid now, for a published dataset, its lineage or its
project. Whether one is suspended is asked of the records.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Final

from fedstac.db.connections import Connection
from fedstac.domain.grants import GrantScope, GrantTarget

# The grants of the subject $1 that open the dataset of a row r of fedstac.record, as rows g. Three looks into an index.
OPENS: Final = """
    (VALUES ('dataset', r.id), ('lineage', r.lineage), ('project', '')) covering (scope, target)
    JOIN fedstac.access_grant g ON g.subject = $1 AND g.collection = r.collection AND g.scope = covering.scope
         AND g.target = covering.target AND g.closed_at IS NULL AND g.valid_until > clock_timestamp()
         AND g.valid_from <= clock_timestamp() AND r.state = 'published'"""


async def open_to(conn: Connection, subject: str, keys: Iterable[tuple[str, str]]) -> set[tuple[str, str]]:
    """Return those of the datasets, by collection and id, whose files a subject may have now by a grant.

    The grant may be for the dataset, its lineage or its project. One of a dataset that is retracted, in quarantine or
    marked opens nothing. One query for all.
    """
    names = list(keys)
    if not names:
        return set()
    rows = await conn.fetch(
        f"""SELECT r.collection, r.id FROM unnest($2::text[], $3::text[]) d (collection, id)
            JOIN fedstac.record r ON r.collection = d.collection AND r.id = d.id
            WHERE EXISTS (SELECT FROM {OPENS})""",
        subject, [collection for collection, _ in names], [id for _, id in names],
    )  # fmt: skip
    return {(row["collection"], row["id"]) for row in rows}


@dataclass(frozen=True, slots=True)
class CoveringGrants:
    """For which datasets subjects have grants, as (subject, collection, id).

    open_now: those that open the dataset. at_last: also those that are suspended by its state, or that ended lately,
    with the moment from which on one of them was valid, and given.
    """

    open_now: frozenset[tuple[str, str, str]] = frozenset()
    at_last: Mapping[tuple[str, str, str], datetime] = field(default_factory=dict)


async def covering(
    conn: Connection, subjects: Collection[str], datasets: Mapping[tuple[str, str], datetime]
) -> CoveringGrants:
    """Return the grants of many subjects for many datasets, by collection and id. One query for all; none for nobody.

    datasets: with a moment each. A grant that was closed, or ran out, later than that counts among those `at_last`.
    """
    if not subjects or not datasets:
        return CoveringGrants()
    rows = await conn.fetch(
        """WITH dataset AS MATERIALIZED (
               SELECT r.collection, r.id, r.lineage, r.state, d.since
               FROM unnest($2::text[], $3::text[], $4::timestamptz[]) d (collection, id, since)
               JOIN fedstac.record r ON r.collection = d.collection AND r.id = d.id),
           covering AS (
               SELECT d.collection, d.id, d.state, d.since, c.scope, c.target FROM dataset d CROSS JOIN LATERAL (
                   VALUES ('dataset', d.id), ('lineage', d.lineage), ('project', '')) c (scope, target)),
           wanted AS MATERIALIZED (
               SELECT collection, scope, target, min(since) AS since FROM covering GROUP BY collection, scope, target),
           holder AS MATERIALIZED (
               SELECT s.subject FROM unnest($1::text[]) s (subject) CROSS JOIN LATERAL (
                   SELECT FROM fedstac.access_grant g WHERE g.subject = s.subject AND g.closed_at IS NULL LIMIT 1) one),
           valid AS (
               SELECT h.subject, w.collection, w.scope, w.target, longest.valid_until AS ends,
                      greatest(longest.valid_from, longest.given_at) AS begins,
                      longest.valid_until > clock_timestamp() AS is_open
               FROM holder h CROSS JOIN wanted w CROSS JOIN LATERAL (
                   SELECT g.valid_until, g.valid_from, g.given_at FROM fedstac.access_grant g
                   WHERE g.subject = h.subject AND g.collection = w.collection AND g.scope = w.scope
                     AND g.target = w.target AND g.closed_at IS NULL AND g.valid_from <= clock_timestamp()
                     AND g.valid_until > w.since ORDER BY g.valid_until DESC LIMIT 1) longest
               UNION ALL
               SELECT g.subject, g.collection, g.scope, g.target, least(g.closed_at, g.valid_until),
                      greatest(g.valid_from, g.given_at), false
               FROM fedstac.access_grant g
               WHERE g.subject = ANY ($1::text[]) AND g.closed_at > (SELECT min(since) FROM dataset)
                 AND g.valid_from < g.closed_at)
           SELECT v.subject, c.collection, c.id, bool_or(v.is_open AND c.state = 'published') AS is_open,
                  min(v.begins) AS begins
           FROM valid v JOIN covering c USING (collection, scope, target) WHERE v.ends > c.since
           GROUP BY v.subject, c.collection, c.id""",
        list(subjects), [collection for collection, _ in datasets], [id for _, id in datasets],
        list(datasets.values()),
    )  # fmt: skip
    return CoveringGrants(
        frozenset((row["subject"], row["collection"], row["id"]) for row in rows if row["is_open"]),
        {(row["subject"], row["collection"], row["id"]): row["begins"] for row in rows},
    )


@dataclass(frozen=True, slots=True)
class TargetEvent:
    """An event about all grants of a target, which names no subject. pos: where it is in the log.

    also_wider: it is about the grants of the dataset's lineage and project too.
    """

    pos: int
    target: GrantTarget
    time: datetime
    also_wider: bool


async def holders_of(
    conn: Connection, subjects: Collection[str], events: Sequence[TargetEvent]
) -> frozenset[tuple[int, str]]:
    """Return which subjects had one of the grants that events are about, as (pos, subject); one query for all.

    A grant that was closed by the event itself counts, and so does one that was closed up to a minute before.
    """
    if not subjects or not events:
        return frozenset()
    rows = await conn.fetch(
        """WITH wanted AS MATERIALIZED (
               SELECT e.pos, e.collection, c.scope, c.target, e.time
               FROM unnest($2::bigint[], $3::text[], $4::text[], $5::text[], $6::timestamptz[], $7::boolean[])
                    e (pos, collection, scope, target, time, also_wider)
               LEFT JOIN fedstac.record r ON e.also_wider AND r.collection = e.collection AND r.id = e.target
               CROSS JOIN LATERAL (
                   SELECT e.scope, e.target UNION ALL
                   SELECT w.* FROM (VALUES ('lineage', r.lineage), ('project', '')) w WHERE r.id IS NOT NULL
               ) c (scope, target)),
           holder AS MATERIALIZED (
               SELECT s.subject FROM unnest($1::text[]) s (subject) CROSS JOIN LATERAL (
                   SELECT FROM fedstac.access_grant g WHERE g.subject = s.subject AND g.closed_at IS NULL LIMIT 1) one),
           closed AS MATERIALIZED (  -- by subject: those of a target may be very many
               SELECT subject, collection, scope, target, closed_at, valid_from, valid_until FROM fedstac.access_grant
               WHERE subject = ANY ($1::text[]) AND closed_at > (SELECT min(time) FROM wanted) - interval '1 minute')
           SELECT w.pos, h.subject FROM holder h CROSS JOIN wanted w CROSS JOIN LATERAL (
               SELECT g.valid_until FROM fedstac.access_grant g
               WHERE g.subject = h.subject AND g.collection = w.collection AND g.scope = w.scope
                 AND g.target = w.target AND g.closed_at IS NULL AND g.valid_until > w.time AND g.valid_from <= w.time
               ORDER BY g.valid_until DESC LIMIT 1) longest
           UNION
           SELECT w.pos, c.subject FROM closed c JOIN wanted w USING (collection, scope, target)
           WHERE c.closed_at > w.time - interval '1 minute' AND c.valid_until > w.time AND c.valid_from <= w.time""",
        list(subjects), [each.pos for each in events], [each.target.collection for each in events],
        [each.target.scope for each in events], [each.target.name for each in events],
        [each.time for each in events], [each.also_wider for each in events],
    )  # fmt: skip
    return frozenset((row["pos"], row["subject"]) for row in rows)


async def open_until(conn: Connection, subject: str, collection: str, dataset: str) -> datetime | None:
    """Return until when a subject may have the files of a dataset by the grants of now; None where they may not.

    Of several grants the longest counts.
    """
    value: datetime | None = await conn.fetchval(
        f"""SELECT max(g.valid_until) FROM fedstac.record r CROSS JOIN LATERAL (SELECT g.valid_until FROM {OPENS}) g
            WHERE r.collection = $2 AND r.id = $3""",
        subject, collection, dataset,
    )  # fmt: skip
    return value


@dataclass(frozen=True, slots=True)
class Holdings:
    """What a subject has grants for that are open and valid now. lineages: keys. datasets: by collection and id.

    Whether a dataset is published is not looked at: ask `open_to` before files are shown.
    """

    projects: frozenset[str]
    lineages: frozenset[str]
    datasets: frozenset[tuple[str, str]]


async def holdings(conn: Connection, subject: str, *, most: int) -> Holdings | None:
    """Return what a subject has grants for now; None where there are more than `most`, which are too many to list."""
    rows = await conn.fetch(
        """SELECT DISTINCT collection, scope, target FROM fedstac.access_grant
           WHERE subject = $1 AND closed_at IS NULL AND valid_until > clock_timestamp()
             AND valid_from <= clock_timestamp() LIMIT $2""",
        subject, most + 1,
    )  # fmt: skip
    if len(rows) > most:
        return None
    return Holdings(
        frozenset(row["collection"] for row in rows if row["scope"] == GrantScope.PROJECT),
        frozenset(row["target"] for row in rows if row["scope"] == GrantScope.LINEAGE),
        frozenset((row["collection"], row["target"]) for row in rows if row["scope"] == GrantScope.DATASET),
    )


async def collections_of(conn: Connection, subject: str) -> frozenset[str]:
    """Return the collections in which a subject has grants that are open and valid now."""
    rows = await conn.fetch(
        """SELECT DISTINCT collection FROM fedstac.access_grant
           WHERE subject = $1 AND closed_at IS NULL AND valid_until > clock_timestamp()
             AND valid_from <= clock_timestamp()""",
        subject,
    )
    return frozenset(row["collection"] for row in rows)
