"""What an index node and a replica node report of deletions: by themselves, once it is done, and until it is taken."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from uuid import UUID

import orjson
import pytest

from fedstac import bootstrap
from fedstac.bootstrap import Node
from fedstac.db import own_reports
from fedstac.db.connections import Connection
from fedstac.demo import sample
from fedstac.domain.deletion import DependencyState
from fedstac.domain.events import START
from fedstac.messaging.origin import Origin
from fedstac.messaging.sources import open_source
from fedstac.messaging.sources.addresses import BrokerAddress, SourceAddress
from fedstac.messaging.statuses import StatusSender, open_topic
from fedstac.runtime import failpoints
from fedstac.settings import Settings
from fedstac.workers import deletion_parts, following
from fedstac.workers.deletion_parts import PartReporter
from fedstac.workers.index_node import IndexHandler
from tests.support.nodes import Api, StartApi
from tests.support.waiting import until
from tests.workers.replicating import POLICY, plant, replicating, settings_of

ITEMS = "/collections/CMIP6/items"
Parts = dict[str, tuple[str, str | None]]
PART = "reports"


async def ask_for(conn: Connection, *names: str, grace_days: float = 30) -> None:
    """Let deletions wait for these dependencies."""
    rules = {"dependencies": [{"name": name} for name in names], "grace_days": grace_days}
    await conn.execute(
        """INSERT INTO fedstac.deletion_configuration (project, version, body, actor)
           SELECT 'CMIP6', coalesce(max(version), 0) + 1, $1::jsonb, 'test' FROM fedstac.deletion_configuration""",
        orjson.dumps(rules).decode(),
    )


async def act(api: Api, id: str, action: str = "") -> None:
    path = f"{ITEMS}/{id}"
    wait = {"Prefer": "wait=20"}
    if action:
        answer = await api.admin.post(f"{path}/{action}", json={}, headers=wait)
    else:
        answer = await api.admin.delete(path, headers=wait)
    assert answer.status_code == 200, answer.text


async def parts_of(conn: Connection, id: str) -> Parts:
    """Return how the dependencies of a dataset's last deletion stand, and what they say; not the owner of its pid."""
    rows = await conn.fetch(
        """SELECT name, state, comment FROM fedstac.deletion_dependency
           WHERE NOT owns_identifier AND deletion = (SELECT id FROM fedstac.deletion WHERE dataset = $1
                                                     ORDER BY marked_at DESC LIMIT 1)""",
        id,
    )
    return {row["name"]: (row["state"], row["comment"]) for row in rows}


async def publish(api: Api, count: int) -> list[str]:
    documents = list(sample.items(count, versions=1))
    body = {"type": "FeatureCollection", "features": documents}
    assert (await api.admin.post(ITEMS, json=body)).status_code == 200
    return [document["id"] for document in documents]


async def open_reports(conn: Connection) -> list[tuple[str, str | None, int]]:
    rows = await conn.fetch("SELECT dataset, outcome, sends FROM fedstac.own_report ORDER BY dataset")
    return [tuple(row) for row in rows]


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """The served folder of a replica node; its policy is beside it."""
    (tmp_path / "policy.yaml").write_text(POLICY)
    (tmp_path / "served").mkdir()
    return tmp_path / "served"


@pytest.fixture
async def east(make_database: Callable[[], str]) -> AsyncIterator[Node]:
    settings = Settings(dsn=make_database(), node="east", snapshot_first=False, _env_file=None)
    async with bootstrap.node(settings) as node:
        yield node


def source_of(api: Api) -> SourceAddress:
    return SourceAddress(api.url, api.tokens["node:east"])


@asynccontextmanager
async def following_west(east: Node, api: Api) -> AsyncIterator[Connection]:
    """Let east follow; give a connection to its database."""
    stop = asyncio.Event()
    task = asyncio.create_task(
        following.follow(east, stop, source=source_of(api), make_handler=IndexHandler, name="follower")
    )
    try:
        async with east.pool.acquire() as conn:
            yield conn
    finally:
        stop.set()
        await task


async def test_an_index_node_and_a_replica_node_report_when_their_part_is_done(
    api: Api, conn: Connection, start_api: StartApi, make_database: Callable[[], str], place: Path
) -> None:
    """The files of one dataset cannot be moved at first: that is reported with the reason. Later it is done."""
    await ask_for(conn, "east", "east/replica", "south")
    index = await start_api(dsn=make_database(), node="east", source=api.url, source_token=api.tokens["node:east"])
    kept, absent = await publish(api, 2)
    away = place.with_name("unmounted")
    async with replicating(settings_of(index, api, place)) as own:

        async def is_planned() -> bool:
            query = "SELECT count(*) FROM fedstac.replica_dataset WHERE state <> 'catalogued'"
            return int(await own.fetchval(query)) == 2

        await until(is_planned)
        paths = await plant(own, place, kept)
        async with own.transaction():  # nothing of the other one is under way
            await own.execute("DELETE FROM fedstac.replica_file f USING fedstac.replica_dataset d "
                              "WHERE f.n = d.n AND d.id = $1", absent)  # fmt: skip
        await asyncio.to_thread(place.rename, away)
        for id in (kept, absent):
            await act(api, id)

        async def says_why() -> bool:
            await own.execute("UPDATE fedstac.replica_removal SET next_try = NULL WHERE state = 'queued'")
            state, comment = (await parts_of(conn, kept))["east/replica"]
            return state == "failed" and str(place) in str(comment)

        await until(says_why)
        assert (await parts_of(conn, kept))["east"] == ("ok", None)

        async def nothing_is_open_of_the_other() -> bool:
            return (await parts_of(conn, absent))["east/replica"][0] == "nothing to do"

        await until(nothing_is_open_of_the_other)
        await asyncio.to_thread(away.rename, place)

        async def is_done() -> bool:
            await own.execute("UPDATE fedstac.replica_removal SET next_try = NULL WHERE state = 'queued'")
            return (await parts_of(conn, kept))["east/replica"] == ("ok", None)

        await until(is_done)
        assert not any(path.exists() for path in paths)  # it was not reported before
        assert await parts_of(conn, kept) == {
            "east": ("ok", None),
            "east/replica": ("ok", None),
            "south": ("pending", None),
        }

        async def nothing_is_left() -> bool:
            return await open_reports(own) == []

        await until(nothing_is_left)


async def test_a_report_stays_while_the_origin_is_away_and_one_that_was_taken_and_not_noted_is_sent_again(
    api: Api, conn: Connection, east: Node
) -> None:
    await ask_for(conn, "east")
    [id] = await publish(api, 1)
    await act(api, id)

    def die(name: str) -> None:
        if name == "index.reported":
            failpoints.act(None)
            raise Died

    class Died(Exception):
        pass

    async with Origin(SourceAddress("http://127.0.0.1:9", "")) as nobody, Origin(source_of(api)) as west:
        handler = IndexHandler(east, west)
        follower = following.Follower(
            east, handler, west, open_source(source_of(api)), snapshot_first=False, origin_name="west"
        )
        async with follower.source, east.pool.acquire() as own:
            await follower.begin()
            while not await open_reports(own):
                await follower.step(1)
            assert await open_reports(own) == [(id, "nothing to do", 0)]
            away = PartReporter(east, "index", nobody)
            await away.report("west", START, part=PART)
            assert east.parts.states[PART].troubles
            assert await open_reports(own) == [(id, "nothing to do", 0)]
            failpoints.act(die)
            with pytest.raises(Died):
                await PartReporter(east, "index", west).report("west", START, part=PART)
            assert await parts_of(conn, id) == {"east": ("nothing to do", None)}
            assert await open_reports(own) == [(id, "nothing to do", 0)]
            await PartReporter(east, "index", west).report("west", START, part=PART)
            assert await open_reports(own) == []
    assert await conn.fetchval("SELECT count(*) FROM fedstac.audit WHERE action = 'report-deletion'") == 1


async def test_a_report_goes_over_http_while_the_topic_is_away(
    api: Api, conn: Connection, east: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(deletion_parts, "TOPIC_REST_SECONDS", 0.0)  # as where HTTP takes longer to fail
    await ask_for(conn, "east")
    [id] = await publish(api, 1)
    async with following_west(east, api) as own:
        await until(lambda: own.fetchval("SELECT count(*) > 0 FROM fedstac.record"))
    await act(api, id)
    topic = open_topic(BrokerAddress.parse("nats://127.0.0.1:9/west-status"))
    async with Origin(source_of(api)) as west, topic:
        sender = StatusSender(topic, node="east", token=source_of(api).token)
        follower = following.Follower(
            east, IndexHandler(east, west), west, open_source(source_of(api)), snapshot_first=False, origin_name="west"
        )
        async with follower.source, east.pool.acquire() as own:
            await follower.begin()
            while not await open_reports(own):
                await follower.step(1)
            assert await own.fetchval(
                "SELECT event_id IS NOT NULL FROM fedstac.own_report"
            )  # else HTTP is its only way
            async with Origin(SourceAddress("http://127.0.0.1:9", "")) as nobody:
                await PartReporter(east, "index", nobody, sender).report("west", START, part=PART)
            assert east.parts.states[PART].troubles
            assert await own.fetchval("SELECT sends FROM fedstac.own_report") == 0  # nothing went out
            await PartReporter(east, "index", west, sender).report("west", START, part=PART)
            assert await open_reports(own) == []
    assert await parts_of(conn, id) == {"east": ("ok", None)}


async def test_who_is_not_asked_rests_until_the_rules_name_it_or_the_mark_is_taken_back(
    api: Api, conn: Connection, east: Node
) -> None:
    first, second = await publish(api, 2)
    async with following_west(east, api) as own:

        async def knows_them() -> bool:
            return int(await own.fetchval("SELECT count(*) FROM fedstac.record")) == 2

        await until(knows_them)
        for id in (first, second):
            await act(api, id)

        async def rest() -> bool:
            return await open_reports(own) == [(id, "ok", 1) for id in sorted((first, second))]

        await until(rest)
        await conn.execute(
            """INSERT INTO fedstac.deletion_dependency (deletion, name, required, owns_identifier, due)
               SELECT id, 'east', true, false, now() FROM fedstac.deletion"""
        )
        await act(api, second, "unmark")
        await own.execute("UPDATE fedstac.own_report SET next_send = now()")

        async def nothing_is_left() -> bool:
            return await open_reports(own) == []

        await until(nothing_is_left)
        assert (await parts_of(conn, first))["east"] == ("ok", None)
        assert (await parts_of(conn, second))["east"] == ("pending", None)
        await act(api, second)  # again: a report of its own
        await conn.execute(
            """INSERT INTO fedstac.deletion_dependency (deletion, name, required, owns_identifier, due)
               SELECT id, 'east', true, false, now() FROM fedstac.deletion WHERE dataset = $1 AND state = 'open'""",
            second,
        )
        await own.execute("UPDATE fedstac.own_report SET next_send = now()")

        async def has_reported_again() -> bool:
            await own.execute("UPDATE fedstac.own_report SET next_send = now()")
            return (await parts_of(conn, second))["east"] == ("ok", None)

        await until(has_reported_again)


async def test_a_deletion_whose_mark_was_not_seen_is_reported_by_the_name_of_the_dataset(
    api: Api, conn: Connection, east: Node
) -> None:
    """East is away from before the mark until after the deletion: both come in one page, or only the tombstone does."""
    await ask_for(conn, "east", grace_days=0)
    [id] = await publish(api, 1)
    async with following_west(east, api) as own:

        async def knows_it() -> bool:
            return int(await own.fetchval("SELECT count(*) FROM fedstac.record")) == 1

        await until(knows_it)
    await act(api, id)
    await conn.execute("UPDATE fedstac.deletion_dependency SET state = 'waived'")
    await act(api, id, "delete")
    async with following_west(east, api):

        async def is_shown_as_late() -> bool:
            return (await parts_of(conn, id))["east"] == ("ok", None)

        await until(is_shown_as_late)
    assert await conn.fetchval("SELECT state FROM fedstac.deletion") == "deleted"


async def test_a_newer_event_takes_the_place_of_a_report_that_was_not_sent(east: Node) -> None:
    async with east.pool.acquire() as own, own.transaction():
        for event_id, outcome in ((UUID(int=1), DependencyState.FAILED), (UUID(int=2), None)):
            await own_reports.put(own, "replica", "west", [own_reports.OwnPart("c", "d", event_id, True, outcome)])
        rows = await own.fetch("SELECT event_id, outcome FROM fedstac.own_report")
        assert [tuple(row) for row in rows] == [(UUID(int=2), None)]


async def test_a_mark_that_was_redacted_is_no_part(east: Node) -> None:
    page = [
        {"type": f"org.fedstac.dataset.{state}.v1", "id": str(UUID(int=seq)), "epoch": 1,
         "data": {"collection": "c", "id": id, "state": state, "seq": seq, "redacted": True}}
        for seq, (id, state) in enumerate((("a", "marked"), ("b", "marked"), ("b", "deleted")))
    ]  # fmt: skip
    async with east.pool.acquire() as own:
        parts = await deletion_parts.before(own, "index", page)
    assert [(each.key, each.state) for each in parts.deletion_events] == [(("c", "b"), "deleted")]
