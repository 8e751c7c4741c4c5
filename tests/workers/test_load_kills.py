"""A full-state load while others search and publish, and kill -9 of the process that applies it.

Nobody misses a dataset that is before and after, each change is announced once, in the order of the log, and grants
follow: those of what is cleared close, the others stay.
"""

from __future__ import annotations

import asyncio
import copy
import random
from collections import Counter
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from typing import Any
from uuid import UUID

import asyncpg
import orjson
import pytest

from fedstac import applying, bootstrap, publication
from fedstac.db import feed, grant_rights, invariants, load_comparison
from fedstac.db import loads as stored_loads
from fedstac.db.loads import LoadPart, StatedDataset
from fedstac.demo import sample
from fedstac.domain import strict_json
from fedstac.domain.actions import Work
from fedstac.domain.actions.publish import Publish
from fedstac.settings import Settings
from fedstac.workers import load_steps
from tests.db import writing
from tests.support import failpoints, loads, workers
from tests.support.forking import Forks
from tests.support.nodes import Api, StartApi
from tests.support.waiting import PATIENCE

Json = dict[str, Any]
SEED = 14
SETTLED = "SELECT NOT EXISTS (SELECT FROM fedstac.request_item WHERE status = 'queued')"


@dataclass(frozen=True)
class Sizes:
    """How many datasets are there, and how many of them a load removes, changes and brings; at which pass it dies."""

    here: int
    removed: int
    changed: int
    new: int
    passes: int
    places: Sequence[str]


SMALL = Sizes(300, 30, 30, 12, 1, ("perform.events", "bulk.committed"))
LARGE = Sizes(5_000, 500, 500, 200, 3, ("bulk.begun", "perform.events", "bulk.performed", "bulk.committed"))


@dataclass(frozen=True)
class States:
    """What a collection has before a load, and what the load states."""

    before: Sequence[Json]
    removed: Sequence[Json]
    changed: Sequence[Json]
    new: Sequence[Json]
    kept: Sequence[Json]

    @classmethod
    def draw(cls, sizes: Sizes) -> States:
        """Return states in which versions of a lineage may have any fate, drawn from SEED."""
        chance = random.Random(SEED)
        before = list(sample.items(sizes.here, versions=2, seed=SEED))
        order = chance.sample(before, len(before))
        removed, changed = order[: sizes.removed], order[sizes.removed : sizes.removed + sizes.changed]
        return cls(
            before, removed, [_titled(item) for item in changed], list(sample.items(sizes.new, seed=SEED + 1)),
            order[sizes.removed + sizes.changed :],
        )  # fmt: skip

    @property
    def after(self) -> Sequence[Json]:
        return [*self.kept, *self.changed, *self.new]


def _titled(item: Json) -> Json:
    changed = copy.deepcopy(item)
    changed["properties"]["description"] = "as the load states it"
    return changed


def _ids(items: Sequence[Json]) -> set[str]:
    return {str(item["id"]) for item in items}


@asynccontextmanager
async def reading(api: Api, states: States, *, may_miss: int) -> AsyncIterator[Counter[str]]:
    """Search all the while: nobody finds fewer than both states have. Yields the number of looks, and the least."""
    seen: Counter[str] = Counter(least=len(states.before))
    stays = sorted(_ids(states.before) - _ids(states.removed))
    chance = random.Random(SEED)

    async def look() -> None:
        while True:
            matched = (await api.anyone.get("/search?collections=CMIP6&limit=1")).json()["numberMatched"]
            seen["least"] = min(seen["least"], matched)
            assert matched >= len(states.before) - may_miss
            some = chance.sample(stays, min(50, len(stays)))
            found = (await api.anyone.post("/search", json={"ids": some, "limit": 100})).json()
            assert {each["id"] for each in found["features"]} == set(some)
            seen["looks"] += 1
            await asyncio.sleep(0.1)

    task = asyncio.create_task(look())
    try:
        yield seen
    finally:
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task


@asynccontextmanager
async def publishing(api: Api, items: Sequence[Json]) -> AsyncIterator[tuple[list[str], asyncio.Task[None]]]:
    """Publish datasets all the while, which the load does not state: they came after it was compared.

    Yield the ids of those that were accepted, and the task, which ends with the last one.
    """
    accepted_ids: list[str] = []

    async def publish() -> None:
        for item in items:
            answer = await api.admin.post("/collections/CMIP6/items", json=item, headers={"Prefer": "wait=0"})
            assert answer.status_code == 202, answer.text
            accepted_ids.append(item["id"])
            await asyncio.sleep(0.02)

    task = asyncio.create_task(publish())
    try:
        yield accepted_ids, task
    finally:
        await task


async def _publish(conn: asyncpg.Connection, items: Sequence[Json]) -> None:
    """Publish datasets as they would come through the API: judged, and with the version of the vocabulary."""
    vocabulary = writing.CMIP6
    assert vocabulary is not None
    drafts = [writing.CHECKER.draft(strict_json.parse(orjson.dumps(item)), "CMIP6", vocabulary)[0] for item in items]
    work = [Work(Publish(draft, writing.ANNA, vocabulary.version), writing.ANNA.name, "publish") for draft in drafts]
    await publication.perform(conn, writing.RULES, work)


async def _give_grants(conn: asyncpg.Connection, ids: Sequence[str]) -> None:
    await conn.executemany(
        """INSERT INTO fedstac.access_grant (id, subject, collection, scope, target, valid_from, valid_until, given_at,
                                             given_by)
           VALUES (gen_random_uuid(), 'bert', 'CMIP6', 'dataset', $1, now() - interval '1 day',
                   now() + interval '1 day', now(), 'anna')""",
        [(id,) for id in ids],
    )


async def _scenario(
    start_api: StartApi, dsn: str, make_database: Callable[[], str], command_forks: Forks, sizes: Sizes, mode: str
) -> None:  # fmt: skip
    print(f"seed {SEED}")
    states = States.draw(sizes)
    others = list(sample.items(40, seed=SEED + 2))
    api = await start_api(dsn=dsn, background=False)
    await api.admin.post("/collections", json=sample.collection())
    conn = await asyncpg.connect(dsn)
    try:
        for start in range(0, sizes.here, 500):
            await _publish(conn, states.before[start : start + 500])
        await _give_grants(conn, sorted(_ids(states.before)))
        last_id = await conn.fetchval("SELECT max(id) FROM fedstac.outbox")
        answer = await loads.state(api.admin, states.after, dry_run="true", mode=mode)
        assert answer.status_code == 200, answer.text
        load = answer.json()
        assert load["changes"] == {
            "new": sizes.new, "changed": sizes.changed, "removed": sizes.removed, "held": 0, "invalid": 0,
            "unchanged": sizes.here - sizes.removed - sizes.changed,
        }  # fmt: skip
        confirm = f"?confirm={load['to_confirm']}" if load["to_confirm"] is not None else ""
        async with (
            reading(api, states, may_miss=sizes.removed) as seen,
            publishing(api, others) as (accepted_ids, publisher),
        ):
            begun = await api.admin.post(f"/loads/{load['id']}/apply{confirm}")
            assert begun.status_code == 202, begun.text
            for place in sizes.places:
                words = failpoints.environment(f"{place}=kill:{sizes.passes}")
                with workers.worker(command_forks, api, **words) as process:
                    assert await asyncio.to_thread(process.wait, PATIENCE) < 0
            with workers.worker(command_forks, api):
                load = await loads.end_of(api.admin, load["id"])
                assert load["status"] == "done", load
                await publisher  # what it sends later nobody would publish
                await writing.until(conn, SETTLED)
        print(f"looks {seen['looks']}, the least that was found {seen['least']}")
        assert seen["looks"] > 0
        rows = await conn.fetch(
            """SELECT dataset, type FROM fedstac.outbox WHERE id > $1 AND dataset IS NOT NULL
               AND event NOT LIKE '%"actions":["promote"]%' ORDER BY id""",
            last_id,
        )  # where the latest is cleared, the version before is the latest again
        log = [(row["dataset"], row["type"].split(".")[-2]) for row in rows if row["dataset"] not in set(accepted_ids)]
        _check_log(log, states, mode)
        await _check_catalogue(api, conn, _ids(states.after) | set(accepted_ids))
        await _check_grants(conn, states, mode)
        await _check_consumer(conn, make_database())
        assert await invariants.check(conn) == []
    finally:
        await conn.close()


def _check_log(log: Sequence[tuple[str, str]], states: States, mode: str) -> None:
    """Check that each dataset has each of its events once, a clearing right before the publication that follows it."""
    by_dataset: dict[str, list[str]] = {}
    for dataset, kind in log:
        by_dataset.setdefault(dataset, []).append(kind)
    expected: Mapping[str, Sequence[str]] = {
        **{id: ["cleared"] for id in _ids(states.removed)},
        **{id: ["published"] for id in _ids(states.new)},
        **({id: ["updated"] for id in _ids(states.changed)} if mode == "apply"
           else {id: ["cleared", "published"] for id in _ids([*states.changed, *states.kept])}),
    }  # fmt: skip
    own = {
        dataset: [kind for kind in kinds if kind != "superseded"] for dataset, kinds in by_dataset.items()
    }  # a new latest demotes the one before
    assert {dataset: kinds for dataset, kinds in own.items() if kinds} == expected
    if mode == "rebuild":
        for place, (dataset, kind) in enumerate(log):
            if kind == "cleared" and dataset not in _ids(states.removed):
                assert log[place + 1][0] == dataset or log[place + 1][1] == "superseded"


async def _check_catalogue(api: Api, conn: asyncpg.Connection, expected: set[str]) -> None:
    assert set(await writing.searched(conn)) == expected
    matched = (await api.anyone.get("/search?collections=CMIP6&limit=1")).json()["numberMatched"]
    assert matched == len(expected)


async def _check_grants(conn: asyncpg.Connection, states: States, mode: str) -> None:
    """Check that the grants of what was cleared are closed, and the others are as they were given."""
    open_keys = await grant_rights.open_to(conn, "bert", {("CMIP6", id) for id in _ids(states.before)})
    stays = _ids(states.before) - _ids(states.removed) if mode == "apply" else set()
    assert {id for _, id in open_keys} == stays
    closed = await conn.fetchval("SELECT count(*) FROM fedstac.access_grant WHERE closed_at IS NOT NULL")
    assert closed == len(states.before) - len(stays)


async def _check_consumer(conn: asyncpg.Connection, dsn: str) -> None:
    """Check that whoever follows the log, in pages of any size, ends as its origin."""
    await writing.sequence_all(conn)
    log = await writing.whole_feed(conn)
    chance = random.Random(SEED)
    async with bootstrap.node(Settings(dsn=dsn, node="east", _env_file=None)) as east, east.pool.acquire() as there:
        start = 0
        while start < len(log):
            end = start + chance.choice((1, 7, 100, 500))
            async with there.transaction():
                await applying.apply(there, log[start:end])
            start = end
        assert await writing.stored(there) == await writing.stored(conn)
        assert set(await writing.searched(there)) == set(await writing.searched(conn))
        assert await feed.digests(there, "west") == await feed.digests(conn, "west")


@pytest.mark.long
async def test_a_killed_load_is_applied_once_while_others_search_and_publish(
    start_api: StartApi, dsn: str, make_database: Callable[[], str], command_forks: Forks
) -> None:
    await _scenario(start_api, dsn, make_database, command_forks, SMALL, "apply")


@pytest.mark.long
async def test_a_comparison_goes_on_where_the_worker_was_killed(
    start_api: StartApi, dsn: str, command_forks: Forks
) -> None:  # fmt: skip
    api = await start_api(dsn=dsn, background=False)
    await api.admin.post("/collections", json=sample.collection())
    conn = await asyncpg.connect(dsn)
    try:
        await _publish(conn, list(sample.items(20, seed=SEED)))
        id = UUID((await loads.state(api.admin, [], complete="false")).json()["id"])
        async with conn.transaction():
            for n in range(2, 5):
                datasets = [StatedDataset(f"d{n}-{i:05}", "l", None, None, None) for i in range(load_steps.AT_ONCE)]
                await stored_loads.put_part(conn, id, LoadPart(n, b"", len(datasets)), datasets)
            await load_comparison.begin_comparison(conn, id)
        progress = []
        for place in ("load.step", "load.stepped"):  # before and after the second step is stored
            with workers.worker(command_forks, api, **failpoints.environment(f"{place}=kill:2")) as process:
                assert await asyncio.to_thread(process.wait, PATIENCE) < 0
            load = (await api.admin.get(f"/loads/{id}")).json()
            assert (load["status"], load["changes"]) == ("comparing", None)
            progress.append(load["progress"])
        assert progress == [{"stated": 5_000, "here": 0}, {"stated": 15_000, "here": 0}]
        assert (await api.admin.post(f"/loads/{id}/apply?confirm=20")).json()["status"] == "waiting"
        with workers.worker(command_forks, api):
            await writing.until(conn, "SELECT is_listed FROM fedstac.bulk")
        load = (await api.admin.get(f"/loads/{id}")).json()
        assert {change: count for change, count in load["changes"].items() if count} == {"new": 15_000, "removed": 20}
        assert await conn.fetchval("SELECT count(*) FROM fedstac.bulk_dataset") == 15_020
    finally:
        await conn.close()


@pytest.mark.soak
@pytest.mark.parametrize("mode", ["apply", "rebuild"])
async def test_five_thousand_datasets_are_loaded_through_kills(
    start_api: StartApi, dsn: str, make_database: Callable[[], str], command_forks: Forks, mode: str
) -> None:
    await _scenario(start_api, dsn, make_database, command_forks, LARGE, mode)
