"""The example services beside a node: what they have is what the catalogue has, whatever is killed."""

from __future__ import annotations

import asyncio
import itertools
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any

import httpx
import pytest

from fedstac.demo import sample, services
from fedstac.demo.federation import Federation
from fedstac.demo.services import (
    Examples,
    apply_load,
    compare_load,
    delete_acknowledged,
    give_grants,
    items_of,
    open_grants,
    stated_item,
    wait_until_followed,
    wait_until_loaded,
)
from fedstac.domain.events import CLEARED, PUBLISHED, UPDATED
from tests.scenarios.watching import (
    Publisher,
    assert_log_whole,
    database,
    differences,
    fresh_items,
    settle,
    values,
    wait_until,
)
from tests.support.waiting import PATIENCE

pytestmark = pytest.mark.long
SEED = 14  # of datasets that come while others are loaded
_drawn = itertools.count()


@pytest.fixture
def examples(running: Federation) -> Iterator[Examples]:
    """The three examples, started at west."""
    with services.examples(running) as made:
        asyncio.run(made.start())
        yield made


def test_the_examples_have_what_is_there_though_each_is_killed(running: Federation, examples: Examples) -> None:
    """They show what everybody may see: no files of a controlled dataset, and nothing of a private one."""
    publisher = Publisher(running)
    publisher.publish(fresh_items(60))
    settle(running)

    async def follow() -> None:
        async with running.client(running.tokens["admin"]) as http:
            for name in services.SCRIPTS:
                running.processes[name].kill()
            publisher.publish(fresh_items(40))
            for name in services.SCRIPTS:
                running.restart(name)
            settle(running)
            ids = sorted(await items_of(http))
            await delete_acknowledged(http, ids[:3])
            controlled, private = ids[3:5]
            await set_level(http, controlled, "controlled")
            await set_level(http, private, "private")
            settle(running)
            await wait_until_followed(running, http)
            catalogue = await items_of(http)
            assert catalogue.keys() == {*ids[3:]} - {private}
            assert catalogue[controlled]["assets"] == {}
            assert examples.have(catalogue, but_not=ids[:3])
            for id in (controlled, private):
                await set_level(http, id, None)
            settle(running)
            await wait_until_followed(running, http)
            catalogue = await items_of(http)
            assert catalogue.keys() == {*ids[3:]}
            assert examples.have(catalogue, but_not=ids[:3])

    asyncio.run(follow())


async def set_level(http: httpx.AsyncClient, id: str, level: str | None) -> None:
    """Set who may have a dataset; None: everybody."""
    change = {"properties": {"fedstac:access": level}}
    headers = {"Content-Type": "application/merge-patch+json", "Prefer": "wait=20"}
    answer = await http.patch(f"/collections/CMIP6/items/{id}", json=change, headers=headers)
    assert answer.status_code == 200, answer.text


@dataclass(frozen=True)
class LoadSizes:
    """Datasets before a full-state load, and those that it removes, changes and adds; those published meanwhile.

    kills: processes that are killed together, and started again.
    """

    before: int
    kills: tuple[tuple[str, ...], ...]

    @property
    def removed(self) -> int:
        return self.before // 10

    @property
    def changed(self) -> int:
        return self.before // 10

    @property
    def new(self) -> int:
        return self.before // 25

    @property
    def meanwhile(self) -> int:
        return self.before // 25


SMALL = LoadSizes(200, (("worker-1", "downloads"), ("serve",)))
FOUR_KILLS = (("worker-1", "worker-2"), ("serve", "downloads"), ("sequencer", "search"), ("worker-1", "identifiers"))
LARGE = [LoadSizes(before, FOUR_KILLS) for before in (600, 1500, 5000)]


class Reader(threading.Thread):
    """Somebody who looks again and again how many datasets searches find at a node, while it answers."""

    def __init__(self, running: Federation, process: str) -> None:
        super().__init__()
        self.running, self.process = running, process
        self.counts: list[int] = []
        self.is_done = threading.Event()

    def run(self) -> None:
        with httpx.Client(trust_env=False, timeout=PATIENCE) as http:
            while not self.is_done.is_set():
                with suppress(httpx.TransportError, FileNotFoundError):
                    answer = http.get(f"{self.running.processes[self.process].url}/search?collections=CMIP6&limit=1")
                    if answer.status_code == 200:
                        self.counts.append(answer.json()["numberMatched"])
                self.is_done.wait(0.02)


@contextmanager
def readers(running: Federation) -> Iterator[list[Reader]]:
    """Look at west and at the index node east while the block runs."""
    threads = [Reader(running, process) for process in ("serve", "east")]
    for thread in threads:
        thread.start()
    try:
        yield threads
    finally:
        for thread in threads:
            thread.is_done.set()
            thread.join()


@pytest.mark.parametrize(
    "sizes", [SMALL, *(pytest.param(sizes, marks=pytest.mark.soak) for sizes in LARGE)],
    ids=lambda sizes: str(sizes.before),
)  # fmt: skip
def test_a_full_state_load_is_killed(running: Federation, examples: Examples, sizes: LoadSizes) -> None:
    """Readers never see fewer datasets than both states have; services and grants end as the catalogue is."""
    Publisher(running).publish(fresh_items(sizes.before))
    settle(running)
    asyncio.run(load_and_compare(running, examples, sizes))
    assert_log_whole(running)
    assert differences(running, "east") == []


async def load_and_compare(running: Federation, examples: Examples, sizes: LoadSizes) -> None:
    async with running.client(running.tokens["admin"]) as http:
        before = await items_of(http)
        ids = sorted(before)
        removed, kept = ids[: sizes.removed], ids[sizes.removed :]
        changed, unchanged = kept[: sizes.changed], kept[sizes.changed :]
        others = fresh_lineages(sizes.new + sizes.meanwhile, before)
        new, meanwhile = others[: sizes.new], others[sizes.new :]
        subject = f"reader-{sizes.before}"
        still_granted = unchanged[: sizes.removed]
        await give_grants(http, subject, [*removed, *still_granted])
        [head] = values(running, "SELECT pos FROM fedstac.feed_state")
        loaded = f"loaded {sizes.before}"  # other tests have loaded into this federation too
        documents = [stated_item(before[id], description=loaded if id in changed else None) for id in kept]
        load = await compare_load(http, [*documents, *new])
        expected = {"removed": len(removed), "changed": len(changed), "new": len(new), "unchanged": len(unchanged)}
        assert {name: load["changes"][name] for name in expected} == expected
        publisher = Publisher(running)
        publishing = threading.Thread(target=publisher.publish, args=[meanwhile], kwargs={"batch": 5})
        with readers(running) as threads:
            await apply_load(http, load)
            publishing.start()
            total = len(removed) + len(changed) + len(new)
            for n, names in enumerate(sizes.kills, 1):
                wait_until_applied(running, n * total // (len(sizes.kills) + 1))
                kill_and_restart(running, names)
            publishing.join()
            assert (await wait_until_loaded(http, load))["counts"]["done"] == total
            settle(running)
        for thread in threads:
            assert thread.counts
            assert len(kept) <= min(thread.counts), f"seen at {thread.process}"
            assert max(thread.counts) <= len(before) + sizes.new + sizes.meanwhile
        await wait_until_followed(running, http)
        catalogue = await items_of(http)
        new_ids = [str(item["id"]) for item in new]
        assert catalogue.keys() == {*kept, *new_ids, *(item["id"] for item in meanwhile)}
        described = {id for id, item in catalogue.items() if item["properties"].get("description") == loaded}
        assert described.issuperset(changed)
        assert described.isdisjoint(unchanged)
        assert examples.have(catalogue, but_not=removed)
        assert await open_grants(http, subject) == set(still_granted)
    assert_events(running, head, {CLEARED: removed, UPDATED: changed, PUBLISHED: new_ids}, silent=unchanged)


def assert_events(running: Federation, head: int, types: Mapping[str, Sequence[str]], *, silent: Sequence[str]) -> None:
    """Check that after a place of the log each dataset has exactly the one event of its type, and others have none."""
    with database(running) as conn:
        rows = conn.execute(
            """SELECT o.dataset, array_agg(o.type ORDER BY f.pos)
               FROM fedstac.feed f JOIN fedstac.outbox o ON o.id = f.id
               WHERE f.pos > %s AND o.dataset IS NOT NULL GROUP BY 1""",
            [head],
        ).fetchall()
    seen: dict[str, list[str]] = dict(rows)
    for event_type, ids in types.items():
        assert {id: seen.get(id) for id in ids} == {id: [event_type] for id in ids}
    assert seen.keys().isdisjoint(silent)


def wait_until_applied(running: Federation, count: int) -> None:
    """Wait until so many datasets of the newest load are done."""
    newest = "SELECT through FROM fedstac.bulk ORDER BY created DESC LIMIT 1"
    wait_until(lambda: values(running, newest)[0] >= count, what=f"{count} datasets are done")


def kill_and_restart(running: Federation, names: Sequence[str]) -> None:
    """Kill processes and start them again. A process ends with the thread that starts it."""
    for name in names:
        running.processes[name].kill()
    for name in names:
        running.restart(name)


def fresh_lineages(count: int, before: Iterable[str]) -> list[dict[str, Any]]:
    """Return datasets that no other test has had, one of each lineage, none of it a lineage of those before.

    Two seeds share lineages: of 400 datasets some 2 are versions of others among 5 000, and supersede them.
    """
    lineages = {lineage_of(id) for id in before}
    items = (item for number in _drawn for item in sample.items(1, seed=SEED, versions=1, start=number))
    return list(itertools.islice((item for item in items if lineage_of(str(item["id"])) not in lineages), count))


def lineage_of(id: str) -> str:
    """Return the id of a dataset without its version."""
    return id.rpartition(".v")[0]
