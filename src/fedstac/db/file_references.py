"""Which datasets have which files: the marks of domain/shared_files.py, of what this node publishes itself."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

from fedstac.db.connections import Connection

DatasetName = tuple[str, str]  # collection and id


async def write(conn: Connection, marks: Mapping[DatasetName, Sequence[int]]) -> None:
    """Store the marks of datasets. Those that have the same already are left as they are."""
    if not marks:
        return
    await conn.execute(
        """INSERT INTO fedstac.file_reference AS f (collection, id, marks)
           SELECT collection, id, marks::bigint[]
           FROM unnest($1::text[], $2::text[], $3::text[]) m (collection, id, marks) ORDER BY collection, id
           ON CONFLICT (collection, id) DO UPDATE SET marks = EXCLUDED.marks
           WHERE f.marks IS DISTINCT FROM EXCLUDED.marks""",
        [collection for collection, _ in marks], [id for _, id in marks],
        ["{" + ",".join(map(str, each)) + "}" for each in marks.values()],
    )  # fmt: skip


async def remove(conn: Connection, datasets: Sequence[DatasetName]) -> None:
    """Forget the marks of datasets that are deleted."""
    if datasets:
        await conn.execute(
            """DELETE FROM fedstac.file_reference f USING unnest($1::text[], $2::text[]) d (collection, id)
               WHERE f.collection = d.collection AND f.id = d.id""",
            [collection for collection, _ in datasets], [id for _, id in datasets],
        )  # fmt: skip


async def held_beside(conn: Connection, marks: Collection[int], datasets: Sequence[DatasetName]) -> set[int]:
    """Return those of the marks that other datasets have than these.

    Whoever deletes waits here for others who delete: of two that have the last references to a file, the second one
    sees that the first is gone.
    """
    await conn.execute("SELECT pg_advisory_xact_lock(hashtext('fedstac.file_reference'))")
    rows = await conn.fetch(
        """SELECT m.mark FROM unnest($1::bigint[]) m (mark)
           WHERE EXISTS (SELECT FROM fedstac.file_reference f
                         WHERE f.marks @> ARRAY[m.mark]
                           AND NOT EXISTS (SELECT FROM unnest($2::text[], $3::text[]) d (collection, id)
                                           WHERE d.collection = f.collection AND d.id = f.id))""",
        list(marks), [collection for collection, _ in datasets], [id for _, id in datasets],
    )  # fmt: skip
    return {row["mark"] for row in rows}
