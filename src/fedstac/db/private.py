"""Private datasets, which have no search copy: the places to look for those that somebody has a right to."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Final

from fedstac.db.connections import Connection
from fedstac.db.search import STATE_COLUMNS, ServedItem, from_row

Place = tuple[str, str]  # collection and id
START: Final[Place] = ("", "")
SERVED: Final = "access = 'private' AND state IN ('published', 'retracted', 'quarantined')"
NAMES_NONE: Final = ""  # in place of an institution
UNSAID: Final = "*"  # in place of an institution: the dataset was stored before anybody noted it


@dataclass(frozen=True, slots=True)
class PrivatePlaces:
    """Where to look: whole collections, institutions of collections, lineages by their keys, single datasets."""

    collections: Sequence[str] = ()
    institutions: Sequence[tuple[str, str]] = ()
    lineages: Sequence[str] = ()
    datasets: Sequence[Place] = ()


async def institutions(conn: Connection, collections: Collection[str]) -> list[tuple[str, str]]:
    """Return each of the collections with each institution that has private datasets there.

    One look into an index for each, whatever they have. The institution may be NAMES_NONE or UNSAID.
    """
    rows = await conn.fetch(
        """WITH RECURSIVE each (collection, institution) AS (
               SELECT c.id, (SELECT min(r.institution) FROM fedstac.record r
                             WHERE r.access = 'private' AND r.collection = c.id)
               FROM unnest($1::text[]) c (id)
               UNION ALL
               SELECT e.collection, (SELECT min(r.institution) FROM fedstac.record r
                                     WHERE r.access = 'private' AND r.collection = e.collection
                                       AND r.institution > e.institution)
               FROM each e WHERE e.institution IS NOT NULL)
           SELECT collection, institution FROM each WHERE institution IS NOT NULL ORDER BY 1, 2""",
        sorted(collections),
    )
    return [(row["collection"], row["institution"]) for row in rows]


async def after(conn: Connection, places: PrivatePlaces, place: Place, limit: int) -> list[ServedItem]:
    """Return the next private datasets behind a place, by collection and id. Who may read each is not asked here."""
    rows = await conn.fetch(
        f"""SELECT {STATE_COLUMNS} FROM (
                (SELECT collection, id FROM fedstac.record
                 WHERE {SERVED} AND collection = ANY ($1::text[]) AND (collection, id) > ($5, $6)
                 ORDER BY collection, id LIMIT $7)
                UNION
                (SELECT n.collection, n.id FROM unnest($8::text[], $9::text[]) i (collection, institution)
                 CROSS JOIN LATERAL (
                     SELECT r.collection, r.id FROM fedstac.record r
                     WHERE {SERVED} AND r.collection = i.collection AND r.institution = i.institution
                       AND r.id > CASE WHEN i.collection = $5 THEN $6 ELSE '' END
                     ORDER BY r.id LIMIT $7) n
                 WHERE i.collection >= $5 ORDER BY n.collection, n.id LIMIT $7)
                UNION
                (SELECT collection, id FROM fedstac.record
                 WHERE {SERVED} AND lineage = ANY ($2::text[]) AND (collection, id) > ($5, $6)
                 ORDER BY collection, id LIMIT $7)
                UNION
                (SELECT collection, id FROM fedstac.record JOIN unnest($3::text[], $4::text[]) d (collection, id)
                 USING (collection, id) WHERE {SERVED} AND (collection, id) > ($5, $6)
                 ORDER BY collection, id LIMIT $7)) place
            JOIN fedstac.record r USING (collection, id) ORDER BY collection, id LIMIT $7""",
        list(places.collections), list(places.lineages), [collection for collection, _ in places.datasets],
        [id for _, id in places.datasets], *place, limit, [collection for collection, _ in places.institutions],
        [institution for _, institution in places.institutions],
    )  # fmt: skip
    return [from_row(row) for row in rows]
