"""Which datasets have which files: the marks of domain/crosschecks.py, of what this node publishes itself."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from fedstac.db.connections import Connection
from fedstac.domain.model import Record

# More datasets under one mark tell nobody more; thousands of them would make every look-up slow.
MOST_HOLDERS: Final = 8
HOLDERS: Final = """
    SELECT m.mark, m.collection, m.id, r.lineage,
           r.state IN ('published', 'retracted') AND r.access <> 'private' AS is_shown
    FROM fedstac.file_mark m JOIN fedstac.record r USING (collection, id)
    WHERE m.mark = ANY($1::bigint[]) ORDER BY m.collection, m.id"""

Marks = Mapping[int, str]  # as `crosschecks.marks` returns them


@dataclass(frozen=True, slots=True)
class Holder:
    """A dataset that has the file, or the files, of a mark. `is_shown`: everybody may know of it."""

    mark: int
    collection: str
    id: str
    lineage: str
    is_shown: bool


async def holders(conn: Connection, marks: Collection[int]) -> list[Holder]:
    """Return who has these marks, hidden datasets too, in the order of their names."""
    if not marks:
        return []
    return [Holder(**row) for row in await conn.fetch(HOLDERS, list(marks))]


async def write(conn: Connection, datasets: Sequence[tuple[Record, Marks]], others: Sequence[Holder]) -> None:
    """Store the marks of datasets whose files are new; `others` have some of them already.

    A mark that many datasets have is stored for no further one.
    """
    counts = Counter(holder.mark for holder in others)
    rows: list[tuple[int, str, str]] = []
    for record, marks in datasets:
        for mark in marks:
            counts[mark] += 1
            if counts[mark] <= MOST_HOLDERS:
                rows.append((mark, record.collection, record.id))
    if rows:
        await conn.execute(
            """INSERT INTO fedstac.file_mark (mark, collection, id)
               SELECT * FROM unnest($1::bigint[], $2::text[], $3::text[]) ORDER BY 1""",
            [mark for mark, _, _ in rows], [collection for _, collection, _ in rows], [id for _, _, id in rows],
        )  # fmt: skip


async def remove(conn: Connection, datasets: Sequence[tuple[Record, Marks]]) -> None:
    """Forget marks that datasets had before."""
    rows = [(mark, record.collection, record.id) for record, marks in datasets for mark in marks]
    if rows:
        await conn.execute(
            """DELETE FROM fedstac.file_mark m
               USING unnest($1::bigint[], $2::text[], $3::text[]) g (mark, collection, id)
               WHERE m.mark = g.mark AND m.collection = g.collection AND m.id = g.id""",
            [mark for mark, _, _ in rows], [collection for _, collection, _ in rows], [id for _, _, id in rows],
        )  # fmt: skip
