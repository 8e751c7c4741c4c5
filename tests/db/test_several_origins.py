"""An index node that follows several publishing nodes: shared collections, lineages of one origin each."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Any

import orjson
import pytest

from fedstac import applying, bootstrap, collection_writing
from fedstac.bootstrap import Node
from fedstac.db import collections, connections, feed, invariants, nodes, parked
from fedstac.db.connections import Connection
from fedstac.demo import sample
from fedstac.domain import errors
from fedstac.domain.events import CollectionEvent, Cursor
from fedstac.messaging.origin import Origin
from fedstac.messaging.sources import NotServed, open_source
from fedstac.messaging.sources.addresses import SourceAddress
from fedstac.settings import Settings
from fedstac.workers import index_node, pages
from tests.db.sources import Source, digest_of, entry, follow
from tests.support.waiting import PATIENCE

Json = dict[str, Any]
CMIP6 = "6.2.60.0"


@pytest.fixture
async def east(make_database: Callable[[], str]) -> AsyncIterator[Node]:
    async with bootstrap.node(Settings(dsn=make_database(), node="east", _env_file=None)) as running:
        yield running


@pytest.fixture
async def conn(east: Node) -> AsyncIterator[Connection]:
    async with east.pool.acquire() as connection:
        yield connection


def source(node: Node, origin: str, items: Sequence[Json], *, epoch: int = 1) -> Source:
    """Return a publishing node with these datasets, and a collection of its own making."""
    entries = [entry(node, item, CMIP6, origin=origin, epoch=epoch) for item in items]
    return Source(entries, origin=origin, epoch=epoch, document=titled(origin))


def titled(title: str) -> str:
    return orjson.dumps({**sample.collection(), "title": title}).decode()


def announcement(origin: str, title: str | None, seq: int = 1, *, collection: str = "CMIP6") -> CollectionEvent:
    document = orjson.dumps({**sample.collection(), "id": collection, "title": title}).decode() if title else None
    return CollectionEvent(
        event_id=f"{origin} {seq}", cursor=None, change="set" if title else "deleted", collection=collection,
        origin=origin, epoch=1, seq=seq, document=document, digest=digest_of(document) if document else b"",
    )  # fmt: skip


async def apply(conn: Connection, *page: CollectionEvent) -> int:
    async with conn.transaction():
        return (await applying.apply(conn, page)).applied_count


async def shown(conn: Connection) -> str | None:
    """Return the title of CMIP6 as it is shown; pgstac has to know the same."""
    stored = await collections.get(conn, "CMIP6")
    title: str | None = orjson.loads(stored.document)["title"] if stored and stored.document else None
    assert await conn.fetchval("SELECT content->>'title' FROM pgstac.collections WHERE id = 'CMIP6'") == title
    assert [each.id for each in await collections.every(conn)] == (["CMIP6"] if title else [])
    return title


async def ids_by_origin(conn: Connection) -> dict[str, list[str]]:
    """Return ids of the datasets by origin; all of them can be found."""
    rows = await conn.fetch(
        """SELECT r.origin, r.id FROM fedstac.record r
           JOIN pgstac.items i ON i.id = r.id AND i.collection = r.collection ORDER BY 1, 2"""
    )
    return {
        origin: [row["id"] for row in group] for origin, group in itertools.groupby(rows, lambda row: row["origin"])
    }


# --- a collection of several ---


async def test_which_document_is_shown_does_not_depend_on_the_order(conn: Connection) -> None:
    everything = [
        announcement("west", "first", 1),
        announcement("west", "second", 2),
        announcement("north", "north's"),
        announcement("south", "x"),
    ]
    for order in itertools.permutations(everything):
        trial = conn.transaction()
        await trial.start()
        for event in order:
            await apply(conn, event)
        assert await shown(conn) == "north's"
        assert {each.origin: each.seq for each in await collections.lock(conn, "CMIP6")} == {
            "west": 2, "north": 1, "south": 1,
        }  # fmt: skip
        await trial.rollback()


async def test_what_one_deletes_the_others_still_have(conn: Connection) -> None:
    await apply(conn, announcement("west", "west's"), announcement("north", "north's"))
    assert await apply(conn, announcement("north", None, 2)) == 1
    assert await shown(conn) == "west's"
    assert await apply(conn, announcement("north", "late", 1)) == 0
    assert await shown(conn) == "west's"
    await apply(conn, announcement("north", "again", 3))
    assert await shown(conn) == "again"
    await apply(conn, announcement("west", None, 2), announcement("north", None, 4))
    assert await shown(conn) is None


async def test_the_same_again_changes_nothing(conn: Connection) -> None:
    page = (announcement("west", "west's"), announcement("north", "north's"))
    assert await apply(conn, *page) == 2
    assert await apply(conn, *page, *page) == 0


async def test_a_node_announces_its_own_word_only(east: Node, conn: Connection) -> None:
    await apply(conn, announcement("west", "west's"), announcement("north", "north's"))
    assert [each.origin for each in await collections.of_origin(conn, "west")] == ["west"]
    assert await collections.of_origin(conn, "east") == []
    writer = collection_writing.CollectionWriter(conn, "east", "anna", east.collection_schema)
    with pytest.raises(errors.ForeignOrigin, match="north, west"):
        await writer.replace("CMIP6", sample.collection())


# --- datasets ---


async def test_datasets_of_both_are_found_and_their_digests_are_kept_apart(east: Node, conn: Connection) -> None:
    first, second, third = sample.items(3)
    await follow(east, source(east, "west", [first]))
    await follow(east, source(east, "north", [second, third]))
    assert await ids_by_origin(conn) == {"north": sorted([second["id"], third["id"]]), "west": [first["id"]]}
    assert [sum(row["n"] for row in await feed.digests(conn, origin)) for origin in ("west", "north", "east")] == [
        1,
        2,
        0,
    ]
    assert await feed.snapshot_page(conn, "east", ("", ""), 10) == []
    assert await invariants.check(conn) == []


async def test_a_lineage_has_one_origin_and_the_claim_of_another_is_parked(east: Node, conn: Connection) -> None:
    common, other = sample.items(2)
    await follow(east, source(east, "west", [common]))
    follower = await follow(east, source(east, "north", [common, other]))
    assert await ids_by_origin(conn) == {"north": [other["id"]], "west": [common["id"]]}
    assert [each["outcome"] for each in follower.acknowledgements.exceptions] == ["parked"]
    assert await parked.exceptions(conn, nodes.INDEX, "west") == []
    assert "another origin's" in (await parked.exceptions(conn, nodes.INDEX, "north"))[0]["detail"]


async def test_two_that_come_at_once_share_no_lineage(east: Node, conn: Connection) -> None:
    items = list(sample.items(60, versions=1))
    sources = {"west": items[:40], "north": items[20:]}
    await asyncio.gather(*(follow(east, source(east, origin, datasets)) for origin, datasets in sources.items()))
    found = await ids_by_origin(conn)
    for origin, datasets in sources.items():
        rows = await conn.fetch(
            "SELECT split_part(subject, '/', 2) FROM fedstac.parked_event WHERE origin = $1", origin
        )
        assert sorted([*found[origin], *(row[0] for row in rows)]) == sorted(item["id"] for item in datasets)
    assert {item["id"] for item in items} == {*found["west"], *found["north"]}
    assert not set(found["west"]) & set(found["north"])
    assert [broken.name for broken in await invariants.check(conn)] == ["I23"]  # which tells what is parked


async def test_collections_that_several_origins_announce_at_once_are_all_here(east: Node) -> None:
    async def follow_origin(origin: str) -> None:
        async with east.pool.acquire() as conn:
            for n in range(8):
                await apply(conn, *(announcement(origin, origin, n + 1, collection=f"c{n + k}") for k in (1, 0)))

    async def rebuild() -> None:
        async with east.pool.acquire() as conn:
            await apply(
                conn,
                announcement("south", "south's", collection="c3"),
                announcement("south", "south's", collection="own"),
            )
            await applying.forget(conn, "south", before_epoch=2)

    await asyncio.gather(follow_origin("west"), follow_origin("north"), rebuild())
    async with east.pool.acquire() as conn:
        assert [each.id for each in await collections.every(conn)] == sorted(f"c{n}" for n in range(9))
        assert await conn.fetchval("SELECT count(*) FROM pgstac.collections") == 9


# --- one origin's part is taken anew ---


async def test_forgetting_one_origin_leaves_what_is_the_others(east: Node, conn: Connection) -> None:
    first, second = sample.items(2)
    await follow(east, source(east, "west", [first]))
    await follow(east, source(east, "north", [second]))
    await applying.forget(conn, "north", before_epoch=pages.BEYOND_ALL)
    assert await ids_by_origin(conn) == {"west": [first["id"]]}
    assert await shown(conn) == "west"
    await follow(east, source(east, "north", [second]))
    await applying.forget(conn, "west", before_epoch=pages.BEYOND_ALL)
    assert await ids_by_origin(conn) == {"north": [second["id"]]}
    assert await shown(conn) == "north"
    await applying.forget(conn, "north", before_epoch=pages.BEYOND_ALL)
    assert (await ids_by_origin(conn), await shown(conn)) == ({}, None)


async def test_the_partition_stays_for_datasets_whose_origin_has_not_told_of_the_collection(
    east: Node, conn: Connection
) -> None:
    first, second = sample.items(2)
    await follow(east, source(east, "west", [first]))
    quiet = source(east, "north", [second])
    quiet.entries.pop(0)
    await follow(east, quiet)
    await applying.forget(conn, "west", before_epoch=pages.BEYOND_ALL)
    assert await ids_by_origin(conn) == {"north": [second["id"]]}
    await follow(east, source(east, "west", [first]))
    assert await shown(conn) == "west"
    assert await invariants.check(conn) == []


async def test_an_epoch_of_one_origin_is_no_matter_of_another(east: Node, conn: Connection) -> None:
    first, second, third = sample.items(3)
    await follow(east, source(east, "west", [first, second]))
    await follow(east, source(east, "north", [third]))
    await follow(east, source(east, "west", [second], epoch=2))
    assert await ids_by_origin(conn) == {"north": [third["id"]], "west": [second["id"]]}
    assert await shown(conn) == "north"


async def test_an_origin_is_forgotten_part_by_part(
    east: Node, conn: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its datasets go in transactions of a few lineages each; the others' stay."""
    monkeypatch.setattr(applying, "PART_RECORDS", 7)
    items = list(sample.items(40, versions=1))
    await follow(east, source(east, "west", items[:30]))
    await follow(east, source(east, "north", items[30:]))
    await applying.forget_in_parts(conn, "west", before_epoch=pages.BEYOND_ALL)
    assert list(await ids_by_origin(conn)) == ["north"]
    changes = await conn.fetchval("SELECT count(DISTINCT changed) FROM fedstac.facet WHERE shown = 0")
    assert changes == 5
    await applying.forget(conn, "west", before_epoch=pages.BEYOND_ALL)
    assert await invariants.check(conn) == []


async def test_a_lineage_that_its_origin_has_lost_is_the_next_ones(east: Node, conn: Connection) -> None:
    common, other = sample.items(2)
    await follow(east, source(east, "west", [common, other]))
    await follow(east, source(east, "north", [common]))
    assert len(await parked.exceptions(conn, nodes.INDEX, "north")) == 1
    await follow(east, source(east, "west", [other], epoch=2))  # restored to before `common`
    await follow(east, source(east, "north", [common]))
    assert await ids_by_origin(conn) == {"north": [common["id"]], "west": [other["id"]]}
    assert await parked.exceptions(conn, nodes.INDEX, "north") == []
    assert await invariants.check(conn) == []


async def test_a_lineage_may_be_forgotten_while_another_origin_waits_for_it(east: Node, conn: Connection) -> None:
    [common] = sample.items(1)
    await follow(east, source(east, "west", [common]))
    watching = await connections.connect(east.settings.dsn)
    async with conn.transaction():
        await applying.forget(conn, "west", before_epoch=pages.BEYOND_ALL)
        waiting = asyncio.create_task(follow(east, source(east, "north", [common])))
        async with asyncio.timeout(PATIENCE):
            while not await watching.fetchval("SELECT count(*) FROM pg_locks WHERE NOT granted"):  # noqa: ASYNC110
                await asyncio.sleep(0.02)
    await waiting
    await watching.close()
    assert await ids_by_origin(conn) == {"north": [common["id"]]}
    assert await invariants.check(conn) == []


async def test_origins_that_are_taken_anew_at_the_same_time_do_not_hold_up_each_other(
    east: Node, conn: Connection
) -> None:
    items = list(sample.items(120, versions=1))
    sources = {"west": items[:60], "north": items[60:], "south": []}

    async def take_anew(origin: str) -> None:
        for epoch in range(1, 9):
            async with east.pool.acquire() as own:
                await applying.forget(own, origin, before_epoch=pages.BEYOND_ALL)
            await follow(east, source(east, origin, sources[origin], epoch=epoch))

    await asyncio.gather(*map(take_anew, sources))
    assert await conn.fetchval("SELECT deadlocks FROM pg_stat_database WHERE datname = current_database()") == 0
    assert {origin: len(ids) for origin, ids in (await ids_by_origin(conn)).items()} == {"north": 60, "west": 60}
    assert await invariants.check(conn) == []


# --- whom to follow ---


class NamedOrigin(Origin):
    """A source that says what it is called."""

    def __init__(self, name: str) -> None:
        super().__init__(SourceAddress("http://source.invalid", ""))
        self.name = name

    async def head(self) -> tuple[str, Cursor]:
        return self.name, Cursor(1, 0)


async def test_a_node_neither_follows_nor_rebuilds_itself(east: Node, conn: Connection) -> None:
    [item] = sample.items(1)
    await follow(east, source(east, "north", [item]))
    await conn.execute("UPDATE fedstac.record SET origin = 'east'")
    named, feed_of_named = NamedOrigin("east"), open_source(SourceAddress("http://source.invalid", ""))
    with pytest.raises(NotServed, match="as this node is"):
        await index_node.rebuild(east, named, feed_of_named, from_snapshot=True, on_page=lambda entries: None)
    assert await ids_by_origin(conn) == {"east": [item["id"]]}


async def test_the_document_of_another_collection_is_no_announcement(east: Node, conn: Connection) -> None:
    lying = source(east, "north", [])
    lying.entries[0]["data"]["collection"] = "CMIP7"
    await follow(east, lying)
    assert await collections.every(conn) == []
    assert len(await parked.exceptions(conn, nodes.INDEX, "north")) == 1


@pytest.mark.parametrize("document", [
    {}, {"extent": 1}, {"extent": {"spatial": {"bbox": [["x"]]}, "temporal": {"interval": [["never", None]]}}},
    {"title": "x\0"}, {"title": "x" * 200_000}, {"links": None}, {"summaries": [[]]}, {"item_assets": 7},
], ids=str)  # fmt: skip
async def test_an_announcement_that_no_node_would_make_stops_no_other(
    east: Node, conn: Connection, document: Json
) -> None:
    [item] = sample.items(1)
    await follow(east, source(east, "west", []))
    spoilt = source(east, "north", [item])
    spoilt.entries[0]["data"]["document"] = {"id": "CMIP6", **document}
    await follow(east, spoilt)
    assert await ids_by_origin(conn) == {"north": [item["id"]]}
