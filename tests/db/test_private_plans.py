"""How PostgreSQL finds the few private datasets that somebody may read, among very many of others."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import pytest

from fedstac.bootstrap import Node
from fedstac.db import private
from fedstac.db.connections import Connection
from fedstac.db.private import START, PrivatePlaces
from fedstac.demo import embedded
from tests.db import writing
from tests.support import plans
from tests.support.databases import name_in

COUNT, OTHERS = 100_000, 40  # private datasets of others, and their institutions
OWN = 30
PAGE = 10
FEW = 100  # rows that a statement may read for nothing
BLOCKS = 1_000  # pages: a hundred thousand rows have several thousands
FILL = """
    INSERT INTO fedstac.record (collection, id, lineage, origin, state, latest, claims_latest, epoch, seq, created,
                                updated, document, document_digest, files_digest, digest, publisher, access,
                                institution)
    SELECT 'plain', kind || '-' || lpad(n::text, 6, '0'), 'plain/' || kind || n, 'west', 'published', false, false, 1,
           1, now(), now(), '{"properties": {}}', '', '', '', 'anna', 'private', whose
    FROM (SELECT n, 'other' AS kind, 'OTHER-' || n % $2 AS whose FROM generate_series(1, $1) n
          UNION ALL SELECT n, 'own', 'OWN' FROM generate_series(1, $3) n) each"""


@pytest.fixture
async def conn(
    west: Node, cluster: embedded.Cluster, dsn: str, connect: writing.Connect, administrator: Connection
) -> Connection:
    await administrator.execute(FILL, COUNT, OTHERS, OWN)
    await administrator.execute("ANALYZE fedstac.record")
    plans.tell_plans(cluster.dsn(), name_in(dsn))
    opened: Connection = await connect()
    return opened


async def check(conn: Connection, run: Callable[[Connection], Awaitable[object]]) -> None:
    plans_found = await plans.plans_of(conn, run)
    assert plans_found
    for plan in plans_found:
        assert plan.wasted.get("record", 0) <= FEW, plan
        assert plan.blocks <= BLOCKS, plan


async def test_nobody_reads_past_the_private_datasets_of_other_institutions(conn: Connection) -> None:
    ids: list[str] = []

    async def all_pages(conn: Connection) -> None:
        pairs = await private.institutions(conn, ["CMIP6", "plain"])
        assert pairs == sorted([*(("plain", f"OTHER-{n}") for n in range(OTHERS)), ("plain", "OWN")])
        places, place = PrivatePlaces(institutions=[("CMIP6", "OWN"), ("plain", "OWN")]), START
        while page := await private.after(conn, places, place, PAGE):
            ids.extend(each.id for each in page)
            place = page[-1].collection, page[-1].id

    await check(conn, all_pages)
    assert ids == [f"own-{n:06}" for n in range(1, OWN + 1)]


async def test_of_several_institutions_the_datasets_come_in_one_order(conn: Connection) -> None:
    async def one_page(conn: Connection) -> None:
        places = PrivatePlaces(institutions=[("plain", "OTHER-1"), ("plain", "OTHER-2"), ("plain", "OWN")])
        page = await private.after(conn, places, ("plain", "other-099000"), PAGE)
        assert [each.id for each in page] == [f"other-{n:06}" for n in range(99_001, 100_001) if n % OTHERS in (1, 2)][
            :PAGE
        ]

    await check(conn, one_page)
