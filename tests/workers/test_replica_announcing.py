"""Announcements of a replica node at a real origin: what is told, when it is refused, and P2."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from itertools import pairwise
from typing import Any

import httpx
import pytest

from fedstac import bootstrap
from fedstac.bootstrap import Node
from fedstac.client import AsyncClient
from fedstac.db import connections
from fedstac.db.connections import Connection
from fedstac.db.replica import announcements
from fedstac.db.replica.announcements import CopiedFile
from fedstac.demo import sample
from fedstac.messaging.sources.addresses import SourceAddress
from fedstac.settings import Settings
from fedstac.workers import replica_announcing
from fedstac.workers.replica_announcing import Announcer
from tests.support.byte_server import checksum
from tests.support.nodes import Api, StartApi
from tests.support.receivers import listening
from tests.support.replica_rows import add_dataset, states
from tests.support.waiting import PATIENCE, until

FILES = {"f": "f-100.bin", "g": "g-200.bin"}


def item(id: str) -> dict[str, Any]:
    assets = {
        asset: {"href": f"https://west.example/{name}", "file:size": int(name[2:5]), "file:checksum": checksum(name)}
        for asset, name in FILES.items()
    }
    return {
        "type": "Feature", "stac_version": "1.1.0", "id": id, "collection": "data", "geometry": None, "links": [],
        "stac_extensions": ["https://stac-extensions.github.io/file/v2.1.0/schema.json"],
        "properties": {"datetime": "2026-11-29T00:00:00Z"}, "assets": assets,
    }  # fmt: skip


@pytest.fixture(autouse=True)
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """A cycle ends with the answers of all origins, however slow this machine is."""
    monkeypatch.setattr(replica_announcing, "ORIGIN_SECONDS", PATIENCE)


@pytest.fixture
async def west(start_api: StartApi, make_database: Callable[[], str]) -> Api:
    """The origin, with three datasets."""
    west = await start_api(dsn=make_database())
    assert (await west.admin.post("/collections", json=sample.collection("data"))).status_code == 201
    body = {"type": "FeatureCollection", "features": [item(f"d{n}") for n in range(3)]}
    answer = await west.admin.post("/collections/data/items", json=body)
    assert answer.json()["counts"]["done"] == 3, answer.text
    return west


@pytest.fixture
async def east(make_database: Callable[[], str]) -> AsyncIterator[Node]:
    """The replica node: copies of all datasets are complete."""
    async with bootstrap.node(Settings(dsn=make_database(), node="east", _env_file=None)) as node:
        yield node


@pytest.fixture
async def conn(east: Node) -> AsyncIterator[Connection]:
    opened = await connections.connect(east.settings.dsn)
    yield opened
    await opened.close()


async def complete(conn: Connection, *ids: str) -> list[int]:
    """Store datasets whose files are here, as transfers would."""
    numbers = []
    for id in ids:
        n = await add_dataset(conn, id, {asset: (f"https://west.example/{name}",) for asset, name in FILES.items()})
        await conn.execute("UPDATE fedstac.replica_file SET state = 'verified' WHERE n = $1", n)
        await conn.execute("UPDATE fedstac.replica_dataset SET state = 'complete' WHERE n = $1", n)
        numbers.append(n)
    await announcements.request(conn, numbers)
    return numbers


def href_of(file: CopiedFile) -> str:
    return f"https://east.example/{file.path}"


@asynccontextmanager
async def announcing(east: Node, west: Api, *, role: str = "node:east") -> AsyncIterator[Announcer]:
    """Make an announcer as a process that begins has it; its cycles are the test's."""
    source = SourceAddress(west.url, west.tokens["node:east"])
    announcer = Announcer(east, [source], lambda: west.tokens[role], href_of)
    async with announcer.open():
        yield announcer


async def settled(conn: Connection, announcer: Announcer) -> list[str]:
    """Go on until nothing is queued or under way; return how the announcements stand."""

    async def look() -> list[str]:
        await announcer.cycle()
        rows = await conn.fetch("SELECT state FROM fedstac.replica_announcement ORDER BY n")
        return [row["state"] for row in rows] if not {row["state"] for row in rows} & {"queued", "sent"} else []

    return await until(look)


async def entries(west: Api, id: str) -> dict[str, str]:
    document = (await west.anyone.get(f"/collections/data/items/{id}")).json()
    return {
        asset: entry["alternate"]["east"]["href"]
        for asset, entry in document["assets"].items() if "east" in entry.get("alternate", {})
    }  # fmt: skip


async def test_what_is_complete_is_announced_and_removed_again(east: Node, west: Api, conn: Connection) -> None:
    numbers = await complete(conn, "d0", "d1", "d2")
    async with announcing(east, west) as announcer:
        assert await settled(conn, announcer) == ["done"] * 3
        assert set((await states(conn)).values()) == {"announced"}
        expected = {asset: f"https://east.example/data/d1/{name}" for asset, name in FILES.items()}
        assert await entries(west, "d1") == expected
        await announcements.request(conn, numbers[:1])  # the very entry is there already
        assert await settled(conn, announcer) == ["done"] * 3
        await conn.execute("UPDATE fedstac.replica_announcement SET kind = 'remove', state = 'queued' WHERE n = 2")
        assert await settled(conn, announcer) == ["done"] * 3
    assert await entries(west, "d1") == {}
    assert [
        row["announced_digest"] is None
        for row in await conn.fetch("SELECT announced_digest FROM fedstac.replica_dataset ORDER BY n")
    ] == [False, True, False]


async def test_a_request_is_stored_before_it_is_followed_and_the_next_process_follows_it(
    east: Node, west: Api, conn: Connection
) -> None:
    await complete(conn, "d0")
    async with announcing(east, west) as announcer:
        await announcer.send()
    row = await conn.fetchrow("SELECT state, request FROM fedstac.replica_announcement")
    assert row is not None
    assert row["state"] == "sent"
    assert row["request"] == await conn.fetchval("SELECT request FROM fedstac.replica_dataset")
    async with announcing(east, west) as successor:
        assert await settled(conn, successor) == ["done"]
    assert await states(conn) == {"d0": "announced"}
    assert len(await entries(west, "d0")) == 2


async def test_what_is_not_complete_any_more_is_not_announced(east: Node, west: Api, conn: Connection) -> None:
    await complete(conn, "d0", "d1")
    await conn.execute("UPDATE fedstac.replica_file SET state = 'queued' WHERE n = 1 AND asset = 'g'")
    async with announcing(east, west) as announcer:
        assert await settled(conn, announcer) == ["done", "done"]
    assert await states(conn) == {"d0": "complete", "d1": "announced"}
    assert await entries(west, "d0") == {}
    reason = await conn.fetchval("SELECT reason FROM fedstac.replica_announcement WHERE n = 1")
    assert reason == "the dataset is not complete any more"


async def test_a_refusal_parks_the_dataset_with_its_reason_and_operators_are_told(
    east: Node, west: Api, conn: Connection
) -> None:
    await complete(conn, "d0")
    async with announcing(east, west, role="node:south") as announcer:
        assert await settled(conn, announcer) == ["parked"]
    row = await conn.fetchrow("SELECT state, reason FROM fedstac.replica_dataset")
    assert row is not None
    assert row["state"] == "parked"
    assert "south" in row["reason"]
    assert await conn.fetchval("SELECT detail FROM fedstac.trouble") == row["reason"]
    assert await conn.fetchval("SELECT count(*) FROM fedstac.replica_file WHERE state = 'verified'") == 2


async def test_a_conflict_is_tried_again_and_ends_with_what_caused_it(
    east: Node, west: Api, conn: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fedstac.workers.replica_announcing.FIRST_PAUSE", 0.01)
    await complete(conn, "d0")
    retract = "/collections/data/items/d0/retract"
    assert (await west.admin.post(retract, json={"reason": "wrong"})).status_code == 200
    async with announcing(east, west) as announcer:

        async def is_tried_again() -> bool:
            await announcer.cycle()
            return bool(await conn.fetchval("SELECT attempts > 1 FROM fedstac.replica_announcement"))

        await until(is_tried_again)
        assert await states(conn) == {"d0": "complete"}
        assert "retracted" in await conn.fetchval("SELECT reason FROM fedstac.replica_announcement")
        assert (await west.admin.post("/collections/data/items/d0/reinstate")).status_code == 200
        assert await settled(conn, announcer) == ["done"]
    assert await states(conn) == {"d0": "announced"}


async def test_old_copies_are_not_announced_as_a_new_version(
    east: Node, west: Api, conn: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The origin has another file by now, and its event has not come yet."""
    monkeypatch.setattr("fedstac.workers.replica_announcing.FIRST_PAUSE", 0.01)
    await complete(conn, "d0")
    old = checksum("h-100.bin")
    await conn.execute("UPDATE fedstac.replica_file SET checksum = $1 WHERE asset = 'f'", old)
    async with announcing(east, west) as announcer:

        async def is_tried_again() -> bool:
            await announcer.cycle()
            return bool(await conn.fetchval("SELECT attempts > 1 FROM fedstac.replica_announcement"))

        await until(is_tried_again)
        assert await entries(west, "d0") == {}
        assert await states(conn) == {"d0": "complete"}
        assert old in await conn.fetchval("SELECT reason FROM fedstac.replica_announcement")
        await conn.execute("UPDATE fedstac.replica_file SET checksum = $1 WHERE asset = 'f'", checksum("f-100.bin"))
        assert await settled(conn, announcer) == ["done"]
    assert len(await entries(west, "d0")) == 2


async def test_an_answer_to_an_old_announcement_is_none_to_the_new_one(
    east: Node, west: Api, conn: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The dataset is complete anew while the origin answers."""
    [n] = await complete(conn, "d0")
    send = httpx.AsyncClient.send

    async def request_anew(self: Any, request: httpx.Request, **options: Any) -> httpx.Response:
        response = await send(self, request, **options)
        if request.method == "PUT":
            await announcements.request(conn, [n])
        return response

    async with announcing(east, west) as announcer:
        with monkeypatch.context() as patch:
            patch.setattr(httpx.AsyncClient, "send", request_anew)
            await announcer.send()
        row = await conn.fetchrow("SELECT state, request, digest FROM fedstac.replica_announcement")
        assert row is not None
        assert tuple(row) == ("queued", None, None)
        assert await settled(conn, announcer) == ["done"]
    assert await conn.fetchval("SELECT announced_digest FROM fedstac.replica_dataset") is not None


async def test_an_origin_that_is_away_is_told_when_it_is_back(
    east: Node, west: Api, conn: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fedstac.workers.replica_announcing.AWAY_SECONDS", 0.05)
    monkeypatch.setattr("fedstac.workers.replica_announcing.FIRST_PAUSE", 0.01)
    await complete(conn, "d0")
    send = httpx.AsyncClient.send
    is_away = True

    async def refuse(self: Any, request: httpx.Request, **options: Any) -> httpx.Response:
        if is_away and request.method == "PUT":
            raise httpx.ConnectError("no route")
        return await send(self, request, **options)

    monkeypatch.setattr(httpx.AsyncClient, "send", refuse)
    async with announcing(east, west) as announcer:

        async def is_noted() -> bool:
            await announcer.cycle()
            await asyncio.sleep(0.01)
            return bool(await conn.fetchval("SELECT attempts > 1 FROM fedstac.replica_announcement"))

        await until(is_noted)
        assert await states(conn) == {"d0": "complete"}
        is_away = False
        assert await settled(conn, announcer) == ["done"]


async def test_failures_of_an_origin_do_not_count_as_conflicts(
    east: Node, west: Api, conn: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The outage was long; then the dataset is retracted for a while."""
    monkeypatch.setattr("fedstac.workers.replica_announcing.FIRST_PAUSE", 0.01)
    await complete(conn, "d0")
    await conn.execute("UPDATE fedstac.replica_announcement SET attempts = 40")
    retract = "/collections/data/items/d0/retract"
    assert (await west.admin.post(retract, json={"reason": "wrong"})).status_code == 200
    async with announcing(east, west) as announcer:

        async def is_refused() -> bool:
            await announcer.cycle()
            return bool(await conn.fetchval("SELECT conflicts > 0 FROM fedstac.replica_announcement"))

        await until(is_refused)
        assert await states(conn) == {"d0": "complete"}
        await conn.execute("UPDATE fedstac.replica_announcement SET conflicts = 15, next_try = NULL")
        assert await settled(conn, announcer) == ["parked"]


async def test_a_source_that_does_not_answer_holds_up_its_own_announcements_only(
    east: Node, west: Api, conn: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fedstac.workers.replica_announcing.NAME_SECONDS", 0.5)
    monkeypatch.setattr("fedstac.workers.replica_announcing.AWAY_SECONDS", 60.0)
    await complete(conn, "d0", "d1", "d2")
    await conn.execute("UPDATE fedstac.replica_dataset SET origin = 'far' WHERE id <> 'd2'")
    connections = 0

    async def be_silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal connections
        connections += 1
        await reader.read()
        writer.close()

    async with listening(be_silent) as port:
        sources = [
            SourceAddress(f"http://127.0.0.1:{port}", ""),
            SourceAddress(west.url, west.tokens["node:east"]),
        ]
        announcer = Announcer(east, sources, lambda: west.tokens["node:east"], href_of)
        async with announcer.open(), asyncio.timeout(20):
            while (await states(conn))["d2"] != "announced":
                await announcer.cycle()
            await conn.execute("UPDATE fedstac.replica_announcement SET next_try = NULL WHERE n < 3")
            assert await announcer.cycle() == 0
    assert connections == 1
    rows = await conn.fetch("SELECT state, attempts FROM fedstac.replica_announcement WHERE n < 3")
    assert {tuple(row) for row in rows} == {("queued", 0)}


async def test_an_origin_that_hangs_holds_up_no_other(
    east: Node, west: Api, conn: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(replica_announcing, "ORIGIN_SECONDS", 0.1)
    await complete(conn, "d0", "d1", "d2")
    await conn.execute("UPDATE fedstac.replica_dataset SET origin = 'far' WHERE id <> 'd2'")

    async def be_silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()

    async with listening(be_silent) as port, announcing(east, west) as announcer:
        address = f"http://127.0.0.1:{port}"
        announcer._clients["far"] = AsyncClient(address, "x", timeout=900.0, retries=0, http=announcer._http)
        async with asyncio.timeout(PATIENCE):
            while (await states(conn))["d2"] != "announced" or [*announcer._telling] != ["far"]:
                await announcer.cycle()
        await announcer.send()
        assert [*announcer._telling] == ["far"]  # it has not answered the last
        await announcer._stop_telling()  # as where another process leads
        assert announcer._telling == {}
    assert await conn.fetchval("SELECT bool_and(state = 'queued') FROM fedstac.replica_announcement WHERE n < 3")


async def test_a_cycle_in_which_nothing_is_left_to_be_sent_is_no_fault(east: Node, west: Api, conn: Connection) -> None:
    await complete(conn, "d0")
    await conn.execute("UPDATE fedstac.replica_file SET state = 'queued' WHERE asset = 'g'")
    async with announcing(east, west) as announcer:
        assert await announcer.cycle() == 1
    assert await conn.fetchval("SELECT state FROM fedstac.replica_announcement") == "done"


async def test_an_origin_is_looked_at_before_it_is_sent_more(
    east: Node, west: Api, conn: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However long it takes for its answers."""
    monkeypatch.setattr(replica_announcing, "ORIGIN_SECONDS", 0.0)
    monkeypatch.setattr(replica_announcing, "AT_ONCE", 1)
    await complete(conn, "d0", "d1", "d2")
    steps: list[str] = []
    due = announcements.due

    async def note(conn: Any, state: str, count: int, *, without: Any) -> Any:
        found = await due(conn, state, count, without=without)
        if state == "sent" and "west" not in without:
            steps.append("look")
        elif state == "queued" and found:
            steps.append("send")
        return found

    monkeypatch.setattr(announcements, "due", note)
    async with announcing(east, west) as announcer:
        assert await settled(conn, announcer) == ["done", "done", "done"]
    sends = [n for n, step in enumerate(steps) if step == "send"]
    assert len(sends) == 3
    assert all("look" in steps[one:other] for one, other in pairwise(sends))


async def test_an_unknown_origin_waits_and_says_which_setting_is_missing(
    east: Node, west: Api, conn: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(replica_announcing, "CONNECTIONS", 1)  # the second one finds that its origin is away
    await complete(conn, "d0", "d1", "d2")
    await conn.execute("UPDATE fedstac.replica_dataset SET origin = 'far' WHERE id <> 'd1'")
    async with announcing(east, west) as announcer:

        async def is_told() -> bool:
            await announcer.cycle()
            return (await states(conn))["d1"] == "announced"

        await until(is_told)
    rows = await conn.fetch("SELECT DISTINCT reason FROM fedstac.replica_announcement WHERE n <> 2")
    assert [row[0] for row in rows] == ["no source is called far: FEDSTAC_SOURCE has to name its address"]
    assert await states(conn) == {"d0": "complete", "d1": "announced", "d2": "complete"}


async def test_one_process_announces_at_a_time(east: Node) -> None:
    first, second = [await connections.connect(east.settings.dsn) for _ in range(2)]
    try:
        assert await announcements.lead(first)
        assert not await announcements.lead(second)
        first.terminate()

        async def is_free() -> bool:
            return await announcements.lead(second)

        assert await until(is_free)
    finally:
        first.terminate()
        await second.close()
