"""Datasets of which too few copies exist, as the documents of an index node say it.

A copy of a dataset is a node among its alternates that has all files, with the size and checksum of the original: nodes
announce what they have verified. The original is a copy too, though nobody announced that it was verified.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass

import orjson

from fedstac.db.connections import Connection

PAGE = 2000  # records that one statement looks at


@dataclass(frozen=True, slots=True)
class OrphanFile:
    """A file of which no node announced a verified copy. `size` in bytes."""

    asset: str
    size: int | None
    checksum: str


@dataclass(frozen=True, slots=True)
class ScarceDataset:
    """A dataset of which there are too few copies."""

    collection: str
    id: str
    state: str
    copies: int  # complete ones, at other nodes than the original's
    partial_nodes: Sequence[str]  # that have some of the files
    files: int
    bytes: int
    orphans: Sequence[OrphanFile]  # files without any verified copy


@dataclass(frozen=True, slots=True)
class OrphanPage:
    """What one statement found, and how many records it looked at."""

    looked_at: int
    datasets: Sequence[ScarceDataset]


async def pages(
    conn: Connection, least_copies: int, *, collection: str = "", include_retracted: bool = False
) -> AsyncIterator[OrphanPage]:
    """Yield datasets with fewer than `least_copies` complete verified copies beside the original, by collection and id.

    A statement looks at PAGE records. Only of those with too few copies is the document read.
    """
    states = ["published", "retracted"] if include_retracted else ["published"]
    place = ("", "")
    while True:
        rows = await conn.fetch(
            """WITH page AS MATERIALIZED (
                   SELECT r.collection, r.id, r.state, r.replicas, r.document FROM fedstac.record r
                   WHERE (r.collection, r.id) > ($1, $2) AND ($3 = '' OR r.collection = $3)
                   ORDER BY r.collection, r.id LIMIT $4),
               counted AS MATERIALIZED (
                   SELECT p.*, (SELECT count(*) FROM json_each(p.replicas::json) WHERE (value ->> 'complete')::boolean)
                              AS copies
                   FROM page p WHERE p.state = ANY ($5::text[]) AND p.document IS NOT NULL),
               scarce AS MATERIALIZED (SELECT * FROM counted WHERE copies < $6),
               file AS MATERIALIZED (
                   SELECT s.collection, s.id, a.key AS asset, a.value ->> 'file:checksum' AS checksum,
                          CASE WHEN jsonb_typeof(a.value -> 'file:size') = 'number'
                               THEN (a.value ->> 'file:size')::numeric::bigint END AS size,
                          EXISTS (SELECT FROM jsonb_each(CASE WHEN jsonb_typeof(a.value -> 'alternate') = 'object'
                                                              THEN a.value -> 'alternate' END) e
                                  WHERE coalesce(e.value ->> 'file:checksum', a.value ->> 'file:checksum')
                                        = a.value ->> 'file:checksum'
                                    AND coalesce(e.value -> 'file:size', a.value -> 'file:size', 'null')
                                        = coalesce(a.value -> 'file:size', 'null')) AS has_copy
                   FROM scarce s CROSS JOIN LATERAL jsonb_each(s.document::jsonb -> 'assets') a
                   WHERE a.value ? 'file:checksum' AND a.value ->> 'protocol' IS DISTINCT FROM 'kerchunk')
               SELECT (SELECT count(*) FROM page) AS looked_at, p.collection, p.id, NULL AS state, NULL AS copies,
                      NULL AS partial_nodes, NULL AS files, NULL AS bytes, NULL AS orphans
               FROM (SELECT * FROM page ORDER BY collection DESC, id DESC LIMIT 1) p
               UNION ALL
               SELECT 0, s.collection, s.id, s.state, s.copies,
                      ARRAY(SELECT key FROM json_each(s.replicas::json)
                            WHERE NOT (value ->> 'complete')::boolean ORDER BY key),
                      count(f.asset), coalesce(sum(f.size), 0)::bigint,
                      coalesce(json_agg(json_build_array(f.asset, f.size, f.checksum) ORDER BY f.asset)
                               FILTER (WHERE NOT f.has_copy), '[]')::text
               FROM scarce s LEFT JOIN file f USING (collection, id)
               GROUP BY s.collection, s.id, s.state, s.copies, s.replicas
               ORDER BY looked_at DESC, collection, id""",
            *place, collection, PAGE, states, least_copies,
        )  # fmt: skip
        if not rows:
            return
        place = (rows[0]["collection"], rows[0]["id"])
        yield OrphanPage(
            rows[0]["looked_at"],
            [
                ScarceDataset(
                    row["collection"], row["id"], row["state"], row["copies"], row["partial_nodes"], row["files"],
                    row["bytes"], [OrphanFile(*file) for file in orjson.loads(row["orphans"])],
                )
                for row in rows[1:] if row["files"]
            ],
        )  # fmt: skip
