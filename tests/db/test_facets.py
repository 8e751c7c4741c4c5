"""Rows of codes: what they say is what the records and the search copies say, whoever wrote them and however."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import orjson
import psycopg
import pytest

from fedstac import applying, publication, settings
from fedstac.bootstrap import Node
from fedstac.db import connections, facets, feed, migrations
from fedstac.db.connections import Connection
from fedstac.demo import embedded, sample
from fedstac.domain.actions import Command, Work
from fedstac.domain.actions.mark import Mark, Unmark
from fedstac.domain.actions.retract import Reinstate, Retract
from fedstac.domain.actions.target import Target
from fedstac.domain.facets import NODES, PLACES
from tests.db import writing
from tests.db.writing import Connect
from tests.support.databases import TEMPLATE, name_in

# What a row says, in words: found again from its codes.
SAID = """
    SELECT r.id, f.shown, f.starts, f.ends, f.updated, ST_AsText(g.geometry) AS geometry, f.size, f.files, coalesce((
               SELECT jsonb_object_agg(s.property, t.content->'properties'->s.property) FROM fedstac.facet_slot s
               JOIN fedstac.term t ON t.code = f.codes[s.slot + 1] AND t.facet = s.property
               WHERE s.collection = r.collection), '{}') AS properties
    FROM fedstac.facet f JOIN fedstac.record r USING (n) JOIN fedstac.footprint g ON g.code = f.footprint
    WHERE f.shown > 0 ORDER BY r.id"""
IS = """
    SELECT i.id, (CASE r.state WHEN 'published' THEN 1 ELSE 2 END
                  + CASE WHEN r.latest THEN 4 ELSE 0 END)::int2 AS shown,
           i.datetime AS starts, i.end_datetime AS ends, r.updated, ST_AsText(i.geometry) AS geometry,
           (SELECT coalesce(sum((value->>'file:size')::bigint), 0) FROM jsonb_each(r.document::jsonb->'assets')
            WHERE value->>'protocol' IS DISTINCT FROM 'kerchunk')::bigint AS size,
           (SELECT count(*) FROM jsonb_each(r.document::jsonb->'assets')
            WHERE value ? 'file:size' AND value->>'protocol' IS DISTINCT FROM 'kerchunk')::int AS files,
           coalesce((SELECT jsonb_object_agg(s.property, i.content->'properties'->s.property) FROM fedstac.facet_slot s
                     WHERE s.collection = i.collection AND i.content->'properties' ? s.property), '{}') AS properties
    FROM pgstac.items i JOIN fedstac.record r USING (collection, id) ORDER BY i.id"""


async def agree(conn: Connection) -> list[dict[str, Any]]:
    """Return the rows in words, which are what they have to be."""
    rows = [dict(row) for row in await conn.fetch(SAID)]
    assert rows == [dict(row) for row in await conn.fetch(IS)]
    return [{**row, "properties": orjson.loads(row["properties"])} for row in rows]


async def perform(conn: Connection, *commands: Command) -> None:
    work = [Work(command, "anna", "test") for command in commands]
    for receipt in await publication.perform(conn, writing.RULES, work):
        assert receipt.problem is None, receipt.problem


async def test_rows_follow_a_dataset_through_its_life(connect: Connect) -> None:
    conn = await connect()
    items = list(sample.items(20, versions=2))
    await writing.publish(conn, *items, writing.plain(1))
    assert len(await agree(conn)) == 21
    await writing.publish(conn, writing.titled(items[0], "another"), writing.version(items[1], 20990101))
    assert len(await agree(conn)) == 22
    drafts = [writing.draft(item) for item in items[2:5]]
    targets = [Target(draft.collection, draft.id, draft.lineage) for draft in drafts]
    await perform(conn, *(Retract(target, writing.ANNA, {"reason": "wrong"}) for target in targets))
    assert sum(row["shown"] & facets.RETRACTED for row in await agree(conn)) == 3 * facets.RETRACTED
    await perform(
        conn, Reinstate(targets[0], writing.ANNA), Mark(targets[1], writing.ANNA), Mark(targets[2], writing.ANNA)
    )
    assert len(await agree(conn)) == 20
    await perform(conn, Unmark(targets[1], writing.ANNA))
    assert len(await agree(conn)) == 21
    assert await conn.fetchval("SELECT count(*) FROM fedstac.facet") == 22


async def test_what_was_stored_before_gets_the_same_rows(connect: Connect, cluster: embedded.Cluster, dsn: str) -> None:
    conn = await connect()
    await writing.publish(conn, *sample.items(40, versions=2), *map(writing.plain, range(30)))
    before = await agree(conn)
    codes = "SELECT n, codes, footprint FROM fedstac.facet ORDER BY n"
    rows = await conn.fetch(codes)
    with psycopg.connect(cluster.dsn(name_in(dsn)), autocommit=True) as owner:
        owner.execute("DELETE FROM fedstac.facet WHERE n % 3 = 0")
        owner.execute("UPDATE fedstac.facet SET shown = 0 WHERE n % 3 = 1")
    migrations.migrate(cluster.dsn(name_in(dsn), user="fedstac_owner", password="owner"), settings.folder("migrations"))
    assert await agree(conn) == before
    assert await conn.fetch(codes) == rows


async def test_numbers_that_a_crash_took_back_are_not_given_twice(
    connect: Connect, cluster: embedded.Cluster, dsn: str
) -> None:
    conn = await connect()
    await writing.publish(conn, *sample.items(1))
    before = await conn.fetchval("SELECT nextval('fedstac.record_n')")
    transaction = conn.transaction()
    await transaction.start()
    await facets.draw(conn, 2 * facets.NUMBERS_AT_ONCE)
    await transaction.rollback()
    with psycopg.connect(cluster.dsn(name_in(dsn)), autocommit=True) as owner:
        owner.execute("SELECT setval('fedstac.record_n', %s)", [before])  # what a crash does to it
        rows = owner.execute("SELECT nextval('fedstac.record_n') FROM generate_series(1, 5000)").fetchall()
    ours = await facets.draw(conn, facets.NUMBERS_AT_ONCE // 2)
    assert not {number for [number] in rows} & set(ours)


async def test_a_catalogue_of_a_version_before_gets_rows(connect: Connect, cluster: embedded.Cluster, dsn: str) -> None:
    conn = await connect()
    await writing.publish(conn, *sample.items(40, versions=2), *map(writing.plain, range(30)))
    with psycopg.connect(cluster.dsn(name_in(dsn)), autocommit=True) as owner:
        for table in ("facet", "facet_slot", "facet_lost", "term", "footprint"):
            owner.execute(f"TRUNCATE fedstac.{table}")
        owner.execute("SET fedstac.columns = 'on'; UPDATE fedstac.record SET n = NULL")
        owner.execute("UPDATE pgstac.items SET content = content #- '{properties,alternate:name}'")
    migrations.migrate(cluster.dsn(name_in(dsn), user="fedstac_owner", password="owner"), settings.folder("migrations"))
    rows = await agree(conn)
    assert len(rows) == 70
    assert {"cmip6:source_id", "cmip6:variable_id", "cmip6:variant_label"} <= set().union(
        *(row["properties"] for row in rows)
    )
    nodes = {row["id"]: row["properties"].get(NODES) for row in rows}
    for item in sample.items(40, versions=2):
        assert nodes[item["id"]] == sorted({asset["alternate:name"] for asset in item["assets"].values()})


async def test_what_a_version_before_writes_has_its_row_when_it_commits(connect: Connect) -> None:
    conn = await connect()
    await writing.publish(conn, *sample.items(3))
    await conn.execute("SET fedstac.columns = ''")
    await writing.publish(conn, *sample.items(20, versions=2, seed=3))
    await agree(conn)
    await conn.execute("DELETE FROM pgstac.items WHERE id = (SELECT min(id) FROM fedstac.record)")
    await conn.execute("DELETE FROM fedstac.record WHERE id = (SELECT min(id) FROM fedstac.record)")
    await agree(conn)


async def test_a_property_of_too_many_or_too_long_values_has_no_place(
    connect: Connect, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(facets, "MOST_TERMS", 5)
    conn = await connect()

    def thing(number: int, **properties: object) -> writing.Item:
        item = writing.plain(number)
        return {**item, "properties": {**item["properties"], **properties}}

    await writing.publish(
        conn, *(thing(n, few=n % 2, many=n, word="short", odd=[n % 2, {"a": None}]) for n in range(9))
    )
    await writing.publish(conn, thing(9, many=1, few=True, word="x" * 600, none=None))
    await writing.publish(conn, thing(10, many=77, few=1.0, word="short"))
    rows = await agree(conn)
    assert {name for row in rows for name in row["properties"]} == {"few", "odd", "none"}
    await writing.publish(conn, thing(11, **{f"p{n}": n for n in range(30)}))
    rows = await agree(conn)
    assert len({name for row in rows for name in row["properties"]}) == PLACES - 2
    taken = {name for row in rows for name in row["properties"]}
    noted = "SELECT array_agg(property ORDER BY property) FROM fedstac.facet_lost WHERE property ~ '^[pq]'"
    lacking = sorted({f"p{n}" for n in range(30)} - taken)
    assert await conn.fetchval(noted) == lacking
    monkeypatch.setattr(facets, "MOST_LOST", len(lacking) + 4)  # with the two that lost theirs
    await writing.publish(conn, thing(12, **{f"q{n}": n for n in range(30)}))
    assert len(await conn.fetchval(noted)) == len(lacking) + 2
    await agree(conn)


async def test_a_batch_that_is_rolled_back_leaves_no_code_in_memory(connect: Connect) -> None:
    conn = await connect()
    drafts = [writing.draft(item) for item in sample.items(5)]
    work = writing.work(*drafts)
    await publication.rehearse(conn, writing.RULES, [one.command.target for one in work], work.__getitem__)
    assert await conn.fetchval("SELECT count(*) FROM fedstac.term") == 0
    await writing.publish(conn, *drafts)
    assert len(await agree(conn)) == 5


async def test_rows_of_forgotten_datasets_go_and_say_so(west: Node, connect: Connect) -> None:
    conn = await connect()
    await writing.publish(conn, *sample.items(5))
    assert await applying.forget(conn, "west", before_epoch=2) == 5
    unseen = "SELECT count(*) FROM fedstac.facet WHERE shown = 0"
    assert (await conn.fetchval(unseen), await facets.remove_forgotten(conn)) == (5, 0)
    before = await conn.fetchval("SELECT pg_current_snapshot()::text")
    for removed in (0, 5):
        await conn.execute("UPDATE fedstac.facet_removed SET looked = looked - interval '2 hours'")
        assert await facets.remove_forgotten(conn) == removed
    late = "SELECT through >= pg_snapshot_xmin($1::text::pg_snapshot) FROM fedstac.facet_removed"
    assert await conn.fetchval(late, "1:1:")
    assert not await conn.fetchval(late, before)


async def test_after_a_restore_nothing_lies_ahead_of_now(connect: Connect) -> None:
    conn = await connect()
    await writing.publish(conn, *sample.items(5))
    await feed.establish(conn, "west", b"")
    await conn.execute("UPDATE fedstac.facet SET changed = '9999999999'::xid8")
    await conn.execute("UPDATE fedstac.feed_state SET system_id = 'another'")
    assert await feed.fork_if_restored(conn) is not None
    ahead = "SELECT count(*) FROM fedstac.facet WHERE NOT pg_visible_in_snapshot(changed, pg_current_snapshot())"
    assert await conn.fetchval(ahead) == 0
    assert len(await agree(conn)) == 5


@pytest.fixture
def folder() -> Iterator[Path]:
    """A folder that the account of PostgreSQL can enter."""
    made = Path(tempfile.mkdtemp(prefix="fedstac-copies-"))
    made.chmod(0o755)
    yield made
    shutil.rmtree(made)


@pytest.mark.usefixtures("copied")
async def test_what_is_known_of_a_database_is_not_taken_for_that_of_a_copy_of_its_files(folder: Path) -> None:
    names, codes = [], []
    with embedded.cluster(folder / "one") as one, embedded.cluster(folder / "other") as other:
        for cluster in (one, other):
            conn = await connections.connect(cluster.dsn(TEMPLATE))
            names.append(
                await conn.fetchrow(
                    """SELECT system_identifier, (SELECT oid FROM pg_database WHERE datname = current_database())
                       FROM pg_control_system()"""
                )
            )
            codes.append(await facets._codes_of(conn))
            await conn.close()
    assert names[0] == names[1]
    assert codes[0] is not codes[1]
