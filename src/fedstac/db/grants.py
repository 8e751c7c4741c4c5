"""Grants: who may have the files of controlled datasets. Whether one is suspended is asked of the records.

The predicate stands once, in OPENS: a grant that is open and valid now, for a published dataset, its lineage or its
project. Events are written by the functions of migrations/0071_grants.sql.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime
from typing import Final

from fedstac.db.connections import Connection
from fedstac.domain.grants import GrantScope

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
