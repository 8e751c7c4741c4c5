"""Three dependencies of one deletion: one does its part, one fails at first, one is killed meanwhile and is reminded.

At each moment the database and GET /deletions/{id} say the same. The dataset is deleted when all have done their part,
once, though two managers run.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from fedstac.db import connections, deletion_reports, invariants, nodes
from fedstac.db.connections import Connection
from fedstac.demo import sample
from fedstac.demo.kafka import KafkaBroker
from fedstac.domain.deletion import DependencyState
from fedstac.domain.deletion_reports import DependencyReport
from fedstac.settings import Settings
from tests.messaging.relaying import add_sink
from tests.support import commands, failpoints
from tests.support.brokers import fresh_name
from tests.support.nodes import Api, StartApi, running
from tests.support.waiting import PATIENCE, until
from tests.workers.replicating import POLICY, plant, replicating, settings_of

pytestmark = pytest.mark.long
Json = dict[str, Any]
EXAMPLE = Path(__file__).resolve().parents[2] / "examples/service_node.py"
ITEMS = "/collections/CMIP6/items"
SECOND = 1 / 86_400  # in days
WAIT = {"Prefer": "wait=20"}


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
    """The deletion of one dataset, as the database and the API show it."""

    def __init__(self, api: Api, conn: Connection, id: str) -> None:
        self.api, self.conn, self.id = api, conn, id

    async def parts(self) -> dict[str, Json]:
        """Return how each dependency stands; it is the same in the database and over HTTP at one moment."""

        async def agree() -> bool:  # a report may come between the two looks
            before = await self._stored()
            shown = (await self.api.admin.get(f"/deletions/{self.id}")).json()
            after = await self._stored()
            if before == after:
                assert {
                    each["name"]: (each["state"], each["comment"] or None, each["reminders"])
                    for each in shown["dependencies"]
                } == after  # fmt: skip
                self._shown = {each["name"]: each for each in shown["dependencies"]}
            return before == after

        await until(agree)
        return self._shown

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


async def mark(api: Api, conn: Connection, id: str) -> Entry:
    answer = await api.admin.delete(f"{ITEMS}/{id}?reason=withdrawn", headers=WAIT)
    assert answer.status_code == 200, answer.text
    return Entry(api, conn, str(await conn.fetchval("SELECT id FROM fedstac.deletion WHERE dataset = $1", id)))


async def deleted_events(conn: Connection) -> int:
    return int(await conn.fetchval("SELECT count(*) FROM fedstac.outbox WHERE type = 'org.fedstac.dataset.deleted.v1'"))


async def test_three_services_on_the_feed_one_of_which_fails_and_one_is_killed(
    api: Api, conn: Connection, start_api: StartApi, dsn: str, tmp_path: Path
) -> None:
    other = await start_api(dsn=dsn)  # a second manager
    await configure(api, names := ("handles", "portal", "mirror"))
    [id] = await publish(api, 1)
    async with services(api, conn, tmp_path, *names) as (handles, portal, mirror):

        async def all_have_the_page() -> bool:
            return all((each.pages / "CMIP6" / id).exists() for each in (handles, portal, mirror))

        await until(all_have_the_page)
        await mirror.kill()
        page = portal.pages / "CMIP6" / id
        page.unlink()
        page.mkdir()  # nothing that could be unlinked
        entry = await mark(api, conn, id)
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


@pytest.mark.kafka
async def test_two_index_nodes_and_a_replica_node_behind_kafka_report_over_its_status_topic(
    api: Api, conn: Connection, start_api: StartApi, make_database: Callable[[], str], kafka_broker: KafkaBroker,
    tmp_path: Path,
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
    place, away = tmp_path / "served", tmp_path / "unmounted"
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
            await plant(own, place, id)
            await asyncio.to_thread(place.rename, away)
            entry = await mark(api, conn, id)
            await entry.wait_for(**{"east": "ok", "east/replica": "failed", "south": "pending"})
            await entry.is_refused("replica", "south")

            async def south_is_reminded() -> bool:
                return bool((await entry.parts())["south"]["reminders"])

            await until(south_is_reminded)
            await asyncio.to_thread(away.rename, place)
            await own.execute("UPDATE fedstac.replica_removal SET next_try = NULL WHERE state = 'queued'")
            await entry.wait_for(**{"east": "ok", "east/replica": "ok", "south": "pending"})
            await entry.is_refused("south")
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


STEPS = (
    "deletions.asking", "deletions.asked", "worker.claimed", "perform.locked", "perform.records", "perform.events",
    "perform.deletions", "perform.written", "perform.finished", "worker.performed", "sequencer.sequenced",
)  # fmt: skip


@pytest.mark.parametrize("steps", [
    pytest.param(("deletions.asked",), id="one"),
    pytest.param(STEPS, id="every", marks=pytest.mark.soak),
])  # fmt: skip
async def test_a_manager_that_is_killed_between_any_two_steps_deletes_once(
    dsn: str, conn: Connection, tmp_path: Path, steps: tuple[str, ...]
) -> None:
    """Nobody else runs when it dies. In the end two managers run, and each dataset was deleted once."""
    settings = Settings(dsn=dsn, node="west", default_wait_seconds=60, _env_file=None)
    async with running(settings) as api:
        assert (await api.admin.post("/collections", json=sample.collection())).status_code == 201
        await configure(api, ("handles", "portal"), automatic=True)
        ids = await publish(api, 3)
        entries = [await mark(api, conn, id) for id in ids]
        portal = [DependencyReport("portal", DependencyState.OK, dataset=id, collection="CMIP6") for id in ids]
        async with conn.transaction():
            await deletion_reports.store(conn, portal, actor="test", now=datetime.now(UTC))
        await entries[0].is_refused("handles")
    handles = [DependencyReport("handles", DependencyState.OK, dataset=id, collection="CMIP6") for id in ids]
    async with conn.transaction():
        await deletion_reports.store(conn, handles, actor="test", now=datetime.now(UTC))
    for step in steps:
        manager = Program(
            tmp_path / f"{step}.log", "-m", "fedstac.cli", "serve", FEDSTAC_DSN=dsn, FEDSTAC_NODE="west",
            FEDSTAC_PORT="0", **failpoints.environment(f"{step}=kill"),
        )  # fmt: skip
        await manager.die()
    async with running(settings) as api, running(settings):

        async def all_are_deleted() -> bool:
            count = await conn.fetchval("SELECT count(*) FROM fedstac.deletion WHERE state = 'deleted'")
            return int(count) == len(ids)

        await until(all_are_deleted)
        assert await deleted_events(conn) == len(ids)
        for id in ids:
            assert (await api.anyone.get(f"{ITEMS}/{id}")).status_code == 410
    assert await invariants.check(conn) == []
