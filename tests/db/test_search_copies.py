"""Search copies: written by COPY or by a statement, they are the same."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from datetime import UTC, datetime

import pytest

from fedstac.bootstrap import Node
from fedstac.db import records, search_copies
from fedstac.db.connections import Connection
from fedstac.demo import sample
from fedstac.domain.events import PUBLISHED
from fedstac.domain.model import Change, Record, State
from tests.db import writing
from tests.db.writing import Item

[ITEM] = sample.items(1)
ID = str(ITEM["id"])
MOMENT = datetime(2026, 11, 1, tzinfo=UTC)
PROPERTIES: dict[str, dict[str, object]] = {
    "no title": {},
    "the id as title": {"title": ID},
    "the beginning of the id": {"title": ID[:20]},
    "an empty title": {"title": ""},
    "a title of its own": {"title": "Great rivers"},
    "the id and more": {"title": f"{ID} again"},
    "a title with a quote": {"title": f'{ID[:8]}" of'},
    "a title with a backslash": {"title": f"{ID[:8]}\\"},
    "a title that is null": {"title": None},
    "a title that is a number": {"title": 1},
    "a title that is a list": {"title": [ID]},
    "titles within": {"fedstac_test:parts": {"title": ID[:5], "more": {"title": "Great rivers"}}},
    "a title within, and one of its own": {"fedstac_test:parts": {"title": ID[:5]}, "title": "Great rivers"},
    "a description": {"description": "of rivers"},
    "keywords": {"keywords": ["rivers"]},
    "a description within": {"fedstac_test:parts": {"description": "of rivers"}},
    "what is no word": {"fedstac_test:text": '"title":"Great rivers","description":'},
    "letters of other alphabets": {"title": "Ströme – 河流"},
}  # fmt: skip


@pytest.mark.parametrize("cv_version", [None, "6.2.60.0"])
@pytest.mark.parametrize("properties", PROPERTIES.values(), ids=PROPERTIES)
async def test_a_copy_is_the_same_by_both_ways(
    west: Node, monkeypatch: pytest.MonkeyPatch, properties: Mapping[str, object], cv_version: str | None
) -> None:
    """A new record's copy goes by COPY where it has no words; the statement's is what it ought to be."""
    monkeypatch.setattr(search_copies, "MANY", 1)
    change = new(ITEM | {"properties": ITEM["properties"] | properties}, cv_version=cv_version)
    async with west.pool.acquire() as conn, conn.transaction():
        leaves = await records.hold_leaves(conn, ["CMIP6"])
        await search_copies.write(conn, [change], leaves)
        first = await row_of(conn, change)
        await conn.execute(f"DELETE FROM {leaves['CMIP6']} WHERE id = $1", change.after.id)
        await search_copies.write(conn, [replace(change, before=change.after)], leaves)
        assert first == await row_of(conn, change)
        words = "fedstac.words_of(id, content -> 'properties', $2)"
        assert await conn.fetchval(
            f"SELECT private IS NOT DISTINCT FROM {words} FROM pgstac.items WHERE id = $1", change.after.id,
            cv_version is not None,
        )  # fmt: skip


async def test_a_copy_that_is_there_although_its_record_was_lost_is_written_anew(west: Node) -> None:
    items = list(sample.items(search_copies.MANY + 1))
    changes = [new(item, cv_version="6.2.60.0") for item in items]
    async with west.pool.acquire() as conn, conn.transaction():
        leaves = await records.hold_leaves(conn, ["CMIP6"])
        await search_copies.write(conn, changes, leaves)
        rows = [await row_of(conn, change) for change in changes]
        await conn.execute(f"DELETE FROM {leaves['CMIP6']} WHERE id <> $1", changes[7].after.id)
        await conn.execute(f"UPDATE {leaves['CMIP6']} SET content = '{{}}'")
        await search_copies.write(conn, changes, leaves)
        assert [await row_of(conn, change) for change in changes] == rows


def new(item: Item, *, cv_version: str | None) -> Change:
    draft = writing.draft(item)
    record = Record(
        collection=draft.collection, id=draft.id, lineage=draft.lineage, origin="west", version=draft.version,
        state=State.PUBLISHED, latest=True, claims_latest=True, epoch=1, seq=1, created=MOMENT, updated=MOMENT,
        document=draft.text, document_digest=draft.document_digest, files_digest=draft.files_digest, publisher="anna",
        cv_version=cv_version,
    )  # fmt: skip
    return Change(PUBLISHED, None, record, draft)


async def row_of(conn: Connection, change: Change) -> dict[str, object]:
    [row] = await conn.fetch("SELECT * FROM pgstac.items WHERE id = $1", change.after.id)
    return dict(row)
