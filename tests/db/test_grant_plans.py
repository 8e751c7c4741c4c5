"""How PostgreSQL finds grants among many that are for the same thing, and among those of others."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from datetime import UTC, datetime, timedelta

import pytest

from fedstac import publication
from fedstac.bootstrap import Node
from fedstac.db import grant_lists, grant_rights
from fedstac.db.connections import Connection
from fedstac.db.grant_lists import GrantFilter, GrantSight
from fedstac.db.grant_rights import TargetEvent
from fedstac.demo import embedded
from fedstac.domain.grants import GrantScope, GrantTarget
from tests.db import writing
from tests.support import plans
from tests.support.databases import name_in

COUNT = 30_000  # grants of the project, each of another subject, every third is closed; and of datasets, of one
FEW = 100  # rows that a statement may read for nothing
KEYS = {("plain", f"thing-{number}") for number in range(4)}
FILL = """
    INSERT INTO fedstac.access_grant (id, subject, collection, scope, target, valid_from, valid_until, given_at,
                                      given_by, closed_at, closed_by, closed_why)
    SELECT gen_random_uuid(), 'subject-' || n, 'plain', 'project', '', now() - interval '1 day',
           now() + interval '1 year', now(), 'giver-' || n % 500,
           CASE WHEN n % 3 = 0 THEN now() END, CASE WHEN n % 3 = 0 THEN 'anna' END, CASE WHEN n % 3 = 0 THEN 'x' END
    FROM generate_series(1, $1) n"""

OF_ONE = """
    INSERT INTO fedstac.access_grant (id, subject, collection, scope, target, valid_from, valid_until, given_at,
                                      given_by)
    SELECT gen_random_uuid(), 'subject-4', 'plain', 'dataset', 'other-' || n, now() - interval '1 day',
           now() + interval '1 year', now(), 'anna'
    FROM generate_series(1, $1) n"""


@pytest.fixture
async def conn(
    west: Node, cluster: embedded.Cluster, dsn: str, connect: writing.Connect, administrator: Connection
) -> Connection:
    plans.tell_plans(cluster.dsn(), name_in(dsn))
    opened: Connection = await connect()
    await publication.perform(opened, writing.RULES, writing.work(*(writing.plain(number) for number in range(4))))
    await opened.execute(FILL, COUNT)
    await opened.execute(OF_ONE, COUNT)
    await administrator.execute("ANALYZE fedstac.access_grant, fedstac.record")
    return opened


async def check(conn: Connection, run: Callable[[Connection], Awaitable[object]]) -> None:
    plans_found = await plans.plans_of(conn, run)
    assert plans_found
    for plan in plans_found:
        assert plan.wasted.get("access_grant", 0) <= FEW, plan


async def test_the_grants_of_a_few_subscribers_are_found_among_many_of_a_project(conn: Connection) -> None:
    async def ask(conn: Connection) -> None:
        an_hour_ago = datetime.now(UTC) - timedelta(hours=1)
        found = await grant_rights.covering(conn, {"subject-3", "subject-4"}, dict.fromkeys(KEYS, an_hour_ago))
        assert found.open_now == {("subject-4", *key) for key in KEYS}
        assert found.at_last.keys() == found.open_now | {("subject-3", *key) for key in KEYS}

    await check(conn, ask)


async def test_who_had_a_grant_of_a_target_is_found_among_many_who_had_one_too(conn: Connection) -> None:
    async def ask(conn: Connection) -> None:
        now = await conn.fetchval("SELECT clock_timestamp()")
        events = [
            TargetEvent(1, GrantTarget("plain", GrantScope.PROJECT), now, also_wider=False),
            TargetEvent(2, GrantTarget("plain", GrantScope.DATASET, "thing-1"), now, also_wider=True),
            TargetEvent(3, GrantTarget("plain", GrantScope.DATASET, "thing-1"), now, also_wider=False),
            TargetEvent(4, GrantTarget("plain", GrantScope.DATASET, "other-7"), now, also_wider=False),
        ]
        holders = await grant_rights.holders_of(conn, {"subject-4", "subject-5", "nobody"}, events)
        of_project = {(pos, subject) for pos in (1, 2) for subject in ("subject-4", "subject-5")}
        assert holders == of_project | {(4, "subject-4")}

    await check(conn, ask)


@pytest.mark.parametrize(
    "filter", [GrantFilter(), GrantFilter(target=GrantTarget("plain", GrantScope.PROJECT), is_open=None)]
)
async def test_a_list_of_ones_own_grants_reads_none_of_the_others(conn: Connection, filter: GrantFilter) -> None:
    async def ask(conn: Connection) -> None:
        found = await grant_lists.page(conn, filter, GrantSight(name="subject-5"), after=None, limit=50)
        assert [each.subject for each in found] == ["subject-5"]
        assert await grant_lists.page(conn, filter, GrantSight(name="nobody"), after=None, limit=50) == []

    await check(conn, ask)
