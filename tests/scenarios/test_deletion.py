"""Three dependencies of one deletion: one does its part, one fails at first, one is killed meanwhile and is reminded.

At each moment the database, GET /deletions/{id} and both pages of the console say the same. The dataset is deleted when
all have done their part, once, though two managers run.
"""

from __future__ import annotations

import asyncio
import html
import os
import signal
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from fedstac.db import connections, deletion_reports, invariants, nodes
from fedstac.db.connections import Connection
from fedstac.demo import identity_provider, sample
from fedstac.demo.kafka import KafkaBroker
from fedstac.domain.deletion import DependencyState
from fedstac.domain.deletion_reports import DependencyReport
from fedstac.settings import Settings
from tests.messaging.relaying import add_sink
from tests.support import commands, failpoints
from tests.support.brokers import fresh_name
from tests.support.consoles import ShownPart, Visitor, parts_of, visitor
from tests.support.demo_provider import DemoProvider, demo_provider
from tests.support.forking import Forks
from tests.support.manager_process import STEPS, ends_of
from tests.support.nodes import Api, StartApi, running
from tests.support.waiting import PATIENCE, until
from tests.workers.replicating import POLICY, plant, replicating, settings_of

pytestmark = pytest.mark.long
Json = dict[str, Any]
EXAMPLE = Path(__file__).resolve().parents[2] / "examples/service_node.py"
ITEMS = "/collections/CMIP6/items"
SECOND = 1 / 86_400  # in days
WAIT = {"Prefer": "wait=20"}
AWAY = pytest.mark.parametrize(
    "away", [pytest.param(1.0, id="a second"), pytest.param(60.0, id="a minute", marks=pytest.mark.soak)]
)  # for so many seconds at least one of the three is not there


@pytest.fixture(scope="module")
def people(command_forks: Forks) -> Iterator[DemoProvider]:
    """The provider of ada, who administrates."""
    with demo_provider(command_forks.program, {}) as provider:
        yield provider


@pytest.fixture
async def api(start_api: StartApi, dsn: str, people: DemoProvider) -> Api:
    """A publishing node with the collection CMIP6 that takes logins at its console."""
    settings = {name.removeprefix("FEDSTAC_").lower(): value for name, value in
                identity_provider.as_settings(people.url).items()}  # fmt: skip
    started = await start_api(dsn=dsn, **settings)
    assert (await started.admin.post("/collections", json=sample.collection())).status_code == 201
    return started


@pytest.fixture
async def ada(api: Api) -> AsyncIterator[Visitor]:
    """An administrator who is logged in at the console."""
    async with visitor(api.url) as browser:
        await browser.log_in("ada")
        yield browser


class Program:
    """A process that is started, killed, and started again."""

    def __init__(self, log: Path, *arguments: str, **environment: str) -> None:
        self._log, self._arguments = log, (sys.executable, "-W", "error", *arguments)
        self._environment = commands.environment(**environment)
        self._process: asyncio.subprocess.Process | None = None

    async def start(self) -> None:
        with self._log.open("ab") as log:
            self._process = await asyncio.create_subprocess_exec(
                *self._arguments, env=self._environment, stdout=log, stderr=log
            )

    async def kill(self) -> None:
        if self._process is not None and self._process.returncode is None:
            os.kill(self._process.pid, signal.SIGKILL)
            await self._process.wait()

    async def die(self) -> None:
        """Start, and wait until it has killed itself."""
        await self.start()
        assert self._process is not None
        assert await asyncio.wait_for(self._process.wait(), PATIENCE) == -signal.SIGKILL, self._log.read_text()[-2000:]


class ServiceNode(Program):
    """The example."""

    def __init__(self, api: Api, name: str, token: str, folder: Path) -> None:
        self.pages = folder / name
        super().__init__(
            folder / f"{name}.log", str(EXAMPLE), f"{folder / name}.db", str(self.pages), FEDSTAC_URL=api.url,
            FEDSTAC_TOKEN=token,
        )  # fmt: skip


@asynccontextmanager
async def services(api: Api, conn: Connection, folder: Path, *names: str) -> AsyncIterator[list[ServiceNode]]:
    """Run service nodes of these names; those that are left are killed in the end."""
    made = []
    try:
        for name in names:
            token = await nodes.issue_token(conn, name, [f"node:{name}"])
            made.append(ServiceNode(api, name, token, folder))
            await made[-1].start()
        yield made
    finally:
        for each in made:
            await each.kill()


class Entry:
    """The deletion of one dataset, as the database, the API and the console show it."""

    def __init__(self, api: Api, conn: Connection, ada: Visitor, id: str) -> None:
        self.api, self.conn, self.ada, self.id = api, conn, ada, id

    async def parts(self) -> dict[str, Json]:
        """Return how each dependency stands; it is the same at one moment wherever one looks."""

        async def agree() -> bool:  # a report may come between two looks
            before, shown = await self._stored(), await self._shown_by_api()
            pages = [await self.ada.get("/console/deletions"), await self.ada.get(f"/console/deletions/{self.id}")]
            twin = await self.ada.json(f"/console/deletions/{self.id}.json")
            if (before, shown) != (await self._stored(), await self._shown_by_api()):
                return False
            assert twin == shown
            parts = {
                each["name"]: ShownPart(each["state"], each["late"], each["comment"] or None, each["reminders"])
                for each in shown["dependencies"]
            }
            assert {name: (each.state, each.comment, each.reminders) for name, each in parts.items()} == before
            assert [parts_of(page) for page in pages] == [parts, parts]
            self._shown = {each["name"]: each for each in shown["dependencies"]}
            return True

        await until(agree)
        return self._shown

    async def _shown_by_api(self) -> Json:
        shown: Json = (await self.api.admin.get(f"/deletions/{self.id}")).json()
        return shown

    async def _stored(self) -> dict[str, tuple[Any, ...]]:
        rows = await self.conn.fetch(
            """SELECT name, state, nullif(comment, '') AS comment, reminders FROM fedstac.deletion_dependency
               WHERE deletion = $1""",
            self.id,
        )
        return {row["name"]: (row["state"], row["comment"], row["reminders"]) for row in rows}

    async def states(self) -> dict[str, str]:
        return {name: each["state"] for name, each in (await self.parts()).items()}

    async def wait_for(self, **states: str) -> None:
        """Wait until dependencies have these states."""

        async def has_come() -> bool:
            return (await self.states()).items() >= states.items()

        await until(has_come)

    async def is_refused(self, *missing: str) -> None:
        """Try to delete: 409, and exactly these are missing."""
        answer = await self.api.admin.post(f"/deletions/{self.id}/delete", json={}, headers=WAIT)
        assert answer.status_code == 409, answer.text
        assert {error["pointer"].rpartition("/")[2] for error in answer.json()["errors"]} == set(missing)
        refusal = await self._delete_at_console()
        assert refusal.status_code == 409, refusal.text
        for error in answer.json()["errors"]:
            assert html.escape(error["message"]) in refusal.text

    async def _delete_at_console(self) -> httpx.Response:
        path = f"/console/deletions/act?do=delete&id={self.id}"
        dataset = (await self._shown_by_api())["dataset"]
        form = {"csrf": await self.ada.csrf(path), "do": "delete", "id": self.id, "confirmation": dataset}
        return await self.ada.post("/console/deletions/act", form)

    async def stays_away(self, name: str, until_time: float, **states: str) -> None:
        """Look again and again that a dependency is missing and the others stand as they are, up to a moment."""

        async def is_over() -> bool:
            assert (await self.states()).items() >= {name: "pending", **states}.items()
            return asyncio.get_running_loop().time() >= until_time

        await until(is_over, until_time)


async def configure(api: Api, names: tuple[str, ...], *, automatic: bool = False) -> None:
    """Let deletions wait for these: late after a second, the first owns the identifiers, no grace."""
    rules = {
        "dependencies": [{"name": name, "days": SECOND, "owns_identifier": name == names[0]} for name in names],
        "grace_days": 0, "automatic": automatic,
    }  # fmt: skip
    answer = await api.admin.put("/deletions/rules/CMIP6", json=rules, headers={"If-Match": '"0"'})
    assert answer.status_code == 200, answer.text


async def publish(api: Api, count: int) -> list[str]:
    documents = list(sample.items(count, versions=1))
    body = {"type": "FeatureCollection", "features": documents}
    assert (await api.admin.post(ITEMS, json=body)).status_code == 200
    return [document["id"] for document in documents]


async def mark(api: Api, conn: Connection, ada: Visitor, id: str) -> Entry:
    return Entry(api, conn, ada, await mark_dataset(api, conn, id))


async def mark_dataset(api: Api, conn: Connection, id: str) -> str:
    """Mark a dataset, and return the id of its deletion."""
    answer = await api.admin.delete(f"{ITEMS}/{id}?reason=withdrawn", headers=WAIT)
    assert answer.status_code == 200, answer.text
    return str(await conn.fetchval("SELECT id FROM fedstac.deletion WHERE dataset = $1", id))


async def deleted_events(conn: Connection) -> int:
    return int(await conn.fetchval("SELECT count(*) FROM fedstac.outbox WHERE type = 'org.fedstac.dataset.deleted.v1'"))


@AWAY
async def test_three_services_on_the_feed_one_of_which_fails_and_one_is_killed(
    api: Api, conn: Connection, ada: Visitor, start_api: StartApi, dsn: str, tmp_path: Path, away: float
) -> None:
    other = await start_api(dsn=dsn)  # a second manager
    await configure(api, names := ("handles", "portal", "mirror"))
    [id] = await publish(api, 1)
    async with services(api, conn, tmp_path, *names) as (handles, portal, mirror):

        async def all_have_the_page() -> bool:
            return all((each.pages / "CMIP6" / id).exists() for each in (handles, portal, mirror))

        await until(all_have_the_page)
        await mirror.kill()
        back_at = asyncio.get_running_loop().time() + away
        page = portal.pages / "CMIP6" / id
        page.unlink()
        page.mkdir()  # nothing that could be unlinked
        entry = await mark(api, conn, ada, id)
        await entry.wait_for(handles="ok", portal="failed", mirror="pending")
        assert (await entry.parts())["portal"]["comment"] == "Is a directory"
        await entry.is_refused("portal", "mirror")

        async def both_are_reminded() -> bool:
            parts = await entry.parts()
            return all(parts[name]["reminders"] >= 1 and parts[name]["late"] for name in ("portal", "mirror"))

        await until(both_are_reminded)
        assert (await entry.parts())["handles"]["reminders"] == 0
        page.rmdir()
        page.write_text("it can go now")
        await entry.wait_for(handles="ok", portal="ok", mirror="pending")
        await entry.is_refused("mirror")
        await entry.stays_away("mirror", back_at, handles="ok", portal="ok")
        await mirror.start()
        await entry.wait_for(handles="ok", portal="ok", mirror="ok")
        assert not (mirror.pages / "CMIP6" / id).exists()
        answers = await asyncio.gather(
            *(each.admin.post(f"/deletions/{entry.id}/delete", json={}, headers=WAIT) for each in (api, other, api))
        )
    assert {answer.status_code for answer in answers} <= {200, 409, 404, 410}, [each.text for each in answers]
    assert 200 in {answer.status_code for answer in answers}
    assert await deleted_events(conn) == 1
    shown = (await api.admin.get(f"/deletions/{entry.id}")).json()
    assert shown["state"] == "deleted"
    assert await ada.json(f"/console/deletions/{entry.id}.json") == shown
    assert "Tombstone" in (await ada.get(f"/console/deletions/{entry.id}")).text


@pytest.mark.kafka
@AWAY
async def test_two_index_nodes_and_a_replica_node_behind_kafka_report_over_its_status_topic(
    api: Api, conn: Connection, ada: Visitor, start_api: StartApi, make_database: Callable[[], str],
    kafka_broker: KafkaBroker, tmp_path: Path, away: float,
) -> None:  # fmt: skip
    """East does its part, its replica node fails while its disk is away, and south is killed meanwhile."""
    name = fresh_name()
    await add_sink(conn, f"{kafka_broker.url}/{name}?partitions=3&status={name}-acks")
    feed = f"{kafka_broker.url}/{name}?status={name}-acks"
    await configure(api, ("east", "east/replica", "south"))
    index = await start_api(
        dsn=make_database(), node="east", source=api.url, source_token=api.tokens["node:east"], source_feed=feed
    )
    south_dsn = make_database()
    south = Program(
        tmp_path / "south.log", "-m", "fedstac.cli", "index-node", FEDSTAC_DSN=south_dsn, FEDSTAC_NODE="south",
        FEDSTAC_SOURCE=api.url, FEDSTAC_SOURCE_TOKEN=api.tokens["node:south"], FEDSTAC_SOURCE_FEED=feed,
        FEDSTAC_PORT="0",
    )  # fmt: skip
    place, unmounted = tmp_path / "served", tmp_path / "unmounted"
    place.mkdir()
    place.with_name("policy.yaml").write_text(POLICY)
    [id] = await publish(api, 1)
    other = await connections.connect(south_dsn)
    try:
        await south.start()
        async with replicating(settings_of(index, api, place)) as own:

            async def all_have_it() -> bool:
                count = "SELECT count(*) FROM fedstac.{} WHERE id = $1"
                return bool(
                    await own.fetchval(count.format("replica_file JOIN fedstac.replica_dataset USING (n)"), id)
                    and await own.fetchval(count.format("record"), id)
                    and await other.fetchval(count.format("record"), id)
                )

            await until(all_have_it)
            await south.kill()
            back_at = asyncio.get_running_loop().time() + away
            await plant(own, place, id)
            await asyncio.to_thread(place.rename, unmounted)
            entry = await mark(api, conn, ada, id)
            await entry.wait_for(**{"east": "ok", "east/replica": "failed", "south": "pending"})
            await entry.is_refused("replica", "south")

            async def south_is_reminded() -> bool:
                return bool((await entry.parts())["south"]["reminders"])

            await until(south_is_reminded)
            await asyncio.to_thread(unmounted.rename, place)
            await own.execute("UPDATE fedstac.replica_removal SET next_try = NULL WHERE state = 'queued'")
            await entry.wait_for(**{"east": "ok", "east/replica": "ok", "south": "pending"})
            await entry.is_refused("south")
            await entry.stays_away("south", back_at, **{"east": "ok", "east/replica": "ok"})
            await south.start()
            await entry.wait_for(**{"east": "ok", "east/replica": "ok", "south": "ok"})
            answer = await api.admin.post(f"/deletions/{entry.id}/delete", json={}, headers=WAIT)
            assert answer.status_code == 200, answer.text
    finally:
        await south.kill()
        other.terminate()
    assert await deleted_events(conn) == 1
    rows = await conn.fetch("SELECT DISTINCT actor FROM fedstac.audit WHERE action = 'report-deletion'")
    assert {row["actor"] for row in rows} == {"node:east", "node:south"}  # over HTTP they are the names of tokens


@pytest.mark.parametrize("processes", [
    pytest.param(False, id="children"),
    pytest.param(True, id="processes", marks=pytest.mark.soak),
])  # fmt: skip
async def test_a_manager_that_is_killed_between_any_two_steps_deletes_once(
    dsn: str, conn: Connection, tmp_path: Path, processes: bool
) -> None:
    """Nobody else runs when it dies. In the end two managers run, and each dataset was deleted once.

    processes: each manager is a whole `fedstac serve`.
    """
    settings = Settings(dsn=dsn, node="west", default_wait_seconds=60, _env_file=None)
    async with running(settings) as api:
        assert (await api.admin.post("/collections", json=sample.collection())).status_code == 201
        await configure(api, ("handles", "portal"), automatic=True)
        ids = await publish(api, 3)
        marks = [await mark_dataset(api, conn, id) for id in ids]
        await report(conn, "portal", ids)
        answer = await api.admin.post(f"/deletions/{marks[0]}/delete", json={}, headers=WAIT)
        assert (answer.status_code, answer.json()["errors"][0]["pointer"]) == (409, "/dependencies/handles")
    await remind_again(conn)
    await report(conn, "handles", ids[:2])
    words = [f"{step}=kill" for step in STEPS]
    if processes:
        for step, word in zip(STEPS, words, strict=True):
            manager = Program(
                tmp_path / f"{step}.log", "-m", "fedstac.cli", "serve", FEDSTAC_DSN=dsn, FEDSTAC_NODE="west",
                FEDSTAC_PORT="0", **failpoints.environment(word),
            )  # fmt: skip
            await manager.die()
    else:
        assert await ends_of(dsn, *words) == [-signal.SIGKILL] * len(words)
    assert await invariants.check(conn) == []
    await report(conn, "handles", ids[2:])
    async with running(settings) as api, running(settings):

        async def all_are_deleted() -> bool:
            count = await conn.fetchval("SELECT count(*) FROM fedstac.deletion WHERE state = 'deleted'")
            return int(count) == len(ids)

        await until(all_are_deleted)
        assert await deleted_events(conn) == len(ids)
        for id in ids:
            assert (await api.anyone.get(f"{ITEMS}/{id}")).status_code == 410
    assert await conn.fetchval("SELECT max(reminders) FROM fedstac.deletion_dependency") == 1
    assert await invariants.check(conn) == []


async def report(conn: Connection, name: str, ids: list[str]) -> None:
    reports = [DependencyReport(name, DependencyState.OK, dataset=id, collection="CMIP6") for id in ids]
    async with conn.transaction():
        await deletion_reports.store(conn, reports, actor="test")


async def remind_again(conn: Connection) -> None:
    """Let every reminder that is due now be the first one."""
    await conn.execute(
        """UPDATE fedstac.deletion_dependency SET reminders = 0, reminded_at = NULL, alerted_at = NULL,
                  remind_next = clock_timestamp() - interval '1 minute', due = clock_timestamp() - interval '1 minute'
           WHERE state = 'pending'"""
    )
