"""A deletion in a demonstration: some datasets are marked, nodes and a service do their part, one is waived, all go."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import httpx

from fedstac.client import AsyncClient
from fedstac.client.transport import Conflict, NotFound
from fedstac.demo.federation import INDEX_NODES, Federation, ProcessFailed
from fedstac.demo.publishing import DEADLINE_SECONDS, wait_until_visible
from fedstac.domain import events
from fedstac.domain.deletion import DependencyState
from fedstac.domain.events import Cursor
from fedstac.messaging.origin import Origin
from fedstac.messaging.sources.addresses import SourceAddress
from fedstac.messaging.sources.http import HttpSource

DATASETS = 20
SERVICE = "downloads"  # a service that follows the feed and reports
REGISTRY = "handles"  # owns the identifiers, and never reports: two people waive it
COLLECTION = "CMIP6"
AT_ONCE = 8  # changes under way
REPORTED = (DependencyState.OK, DependencyState.NOTHING_TO_DO)

Json = dict[str, Any]


@dataclass(frozen=True, slots=True)
class DeletionCounts:
    """What became of the datasets that were marked. Each number is read from west after the step that it counts.

    acknowledged, waived: parts of deletions, each of one dependency for one dataset. deleted: datasets that west
    answers with 410.
    """

    marked: int = 0
    acknowledged: int = 0
    waived: int = 0
    deleted: int = 0
    purged: int = 0


def expected(datasets: int) -> DeletionCounts:
    """Return the figures of a deletion in which everybody has done their part."""
    return DeletionCounts(datasets, datasets * (len(INDEX_NODES) + 1), datasets, datasets, datasets)


async def run(running: Federation, *, sparing: Collection[str] = ()) -> DeletionCounts:
    """Mark datasets and lead them through to the purge. `sparing`: ids that are left alone.

    Required are both index nodes, a service, and the owner of the identifiers, whom two administrators waive.
    ProcessFailed where somebody does not report in time, or where what is not ready can be deleted all the same.
    """
    tokens = [running.tokens["admin"], await running.issue_token("second-admin", "admin")]
    async with (
        AsyncClient(running.west, tokens[0]) as client,
        running.client(tokens[0]) as http,
        running.client(tokens[1]) as second,
        _service(running) as service,
    ):
        await _configure(http)
        ids = await _choose(http, sparing)
        await change_each(ids, client.mark)
        marked = len(await _deletions(http, "open"))
        entries = await _wait_for_reports(running, http, service)
        await _try_early(client, ids[0])
        for administrator in (http, second):
            await change_each([entry["id"] for entry in entries], partial(_waive, administrator))
        waived = _count(await _deletions(http, "open"), (DependencyState.WAIVED,))
        await change_each(ids, client.delete)
        deleted = len(ids) - len(await _present(client, ids))
        await change_each(ids, client.purge)
        purged = len(await _deletions(http, "purged"))
    await wait_until_visible(running, INDEX_NODES)
    for node in INDEX_NODES:
        async with AsyncClient(running.address_of(node)) as reader:
            if shown_ids := await _present(reader, ids):
                raise ProcessFailed(f"{node} still shows {shown_ids[0]}, which was deleted")
    return DeletionCounts(marked, _count(entries, REPORTED), waived, deleted, purged)


async def _configure(http: httpx.AsyncClient) -> None:
    names = (*INDEX_NODES, SERVICE)
    dependencies: list[Json] = [{"name": name, "required": True, "days": 1} for name in names]
    dependencies.append({"name": REGISTRY, "required": True, "owns_identifier": True, "days": 1})
    response = await http.put(
        f"/deletions/rules/{COLLECTION}",
        json={"dependencies": dependencies, "grace_days": 0},
        headers={"If-Match": "*"},
    )
    response.raise_for_status()


async def _choose(http: httpx.AsyncClient, sparing: Collection[str]) -> list[str]:
    """Return the ids of datasets that searches find, DATASETS of them where there are so many."""
    response = await http.get("/search", params={"collections": COLLECTION, "limit": DATASETS + len(sparing)})
    response.raise_for_status()
    return [item["id"] for item in response.json()["features"] if item["id"] not in sparing][:DATASETS]


async def change_each(ids: Sequence[str], change: Callable[[str], Awaitable[object]]) -> None:
    """Make a change of each of these, a few at a time."""
    free = asyncio.Semaphore(AT_ONCE)

    async def one(id: str) -> None:
        async with free:
            await change(id)

    await asyncio.gather(*map(one, ids))


async def _deletions(http: httpx.AsyncClient, state: str) -> list[Json]:
    """Return the deletions of the demonstration that are in a state."""
    response = await http.get("/deletions", params={"project": COLLECTION, "state": state, "limit": 200})
    response.raise_for_status()
    entries: list[Json] = response.json()["deletions"]
    return entries


def _count(entries: Sequence[Json], states: Sequence[str]) -> int:
    """Return how many parts of deletions are in one of these states."""
    return sum(part["state"] in states for entry in entries for part in entry["dependencies"])


async def _wait_for_reports(running: Federation, http: httpx.AsyncClient, service: asyncio.Task[None]) -> list[Json]:
    """Return the open deletions when nobody but the owner of the identifiers has to report."""
    deadline = time.monotonic() + DEADLINE_SECONDS
    while True:
        entries = await _deletions(http, "open")
        waiting = {part["name"] for entry in entries for part in entry["dependencies"] if part["state"] not in REPORTED}
        if waiting <= {REGISTRY}:
            return entries
        if time.monotonic() > deadline:
            raise ProcessFailed(f"these have not reported on the deletions in time: {', '.join(sorted(waiting))}")
        if service.done():
            service.result()
        running.check_running()
        await asyncio.sleep(0.1)


async def _try_early(client: AsyncClient, id: str) -> None:
    """Check that a dataset is not deleted while somebody has not done their part."""
    try:
        await client.delete(id)
    except Conflict as refusal:
        if {finding.rule for finding in refusal.findings} == {"dependency"}:
            return
        raise
    raise ProcessFailed(f"{id} was deleted before {REGISTRY} had done its part, or was waived")


async def _waive(http: httpx.AsyncClient, deletion: str) -> None:
    body = {"name": REGISTRY, "reason": "the handles of the demonstration are registered nowhere"}
    (await http.post(f"/deletions/{deletion}/waive", json=body)).raise_for_status()


async def _present(client: AsyncClient, ids: Sequence[str]) -> list[str]:
    """Return those of the datasets that a node still has."""
    present = []
    for id in ids:
        try:
            await client.get(id)
        except NotFound:
            continue
        present.append(id)
    return present


@asynccontextmanager
async def _service(running: Federation) -> AsyncIterator[asyncio.Task[None]]:
    """Run the service while the block runs."""
    source = SourceAddress(running.west, await running.issue_token(SERVICE, f"node:{SERVICE}"))
    async with HttpSource(source) as feed, Origin(source) as origin:
        _, head = await origin.head()
        task = asyncio.create_task(_serve(feed, origin, head))
        try:
            yield task
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)


async def _serve(feed: HttpSource, origin: Origin, after: Cursor) -> None:
    """Follow the feed, and report on each mark. This service counts downloads: it has nothing of a new dataset."""
    while True:
        page = await feed.receive(after, limit=500, wait=5.0)
        marks = [event["id"] for event in page.events if event["type"] == events.MARKED]
        reports = [
            {"event_id": id, "name": SERVICE, "outcome": "nothing to do", "comment": "no downloads"} for id in marks
        ]
        if reports:
            await origin.report(reports)
        after = page.cursor
