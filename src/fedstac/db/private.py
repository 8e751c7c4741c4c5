"""Private datasets, which have no search copy: the places to look for those that somebody has a right to."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from fedstac.db.connections import Connection
from fedstac.db.search import STATE_COLUMNS, ServedItem, from_row

Place = tuple[str, str]  # collection and id
START: Final[Place] = ("", "")
SERVED: Final = "access = 'private' AND state IN ('published', 'retracted', 'quarantined')"


@dataclass(frozen=True, slots=True)
class PrivatePlaces:
    """Where to look: whole collections, lineages by their keys, single datasets."""

    collections: Sequence[str] = ()
    lineages: Sequence[str] = ()
    datasets: Sequence[Place] = ()


async def after(conn: Connection, places: PrivatePlaces, place: Place, limit: int) -> list[ServedItem]:
    """Return the next private datasets behind a place, by collection and id. Who may read each is not asked here."""
    rows = await conn.fetch(
        f"""SELECT {STATE_COLUMNS} FROM (
                (SELECT collection, id FROM fedstac.record
                 WHERE {SERVED} AND collection = ANY ($1::text[]) AND (collection, id) > ($5, $6)
                 ORDER BY collection, id LIMIT $7)
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
        [id for _, id in places.datasets], *place, limit,
    )  # fmt: skip
    return [from_row(row) for row in rows]
