"""Publish documents into a running federation, and wait until they are final and visible."""

from __future__ import annotations

import asyncio
import itertools
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import httpx
import orjson

from fedstac.db import connections
from fedstac.demo import sample
from fedstac.demo.federation import Federation, ProcessFailed
from fedstac.messaging.origin import Origin
from fedstac.messaging.sources.addresses import SourceAddress

BATCH = 200
UNDER_WAY = 4  # batches that are sent before the first one's answer
DEADLINE_SECONDS = 900.0


class Publisher:
    """Sends batches to west and follows every request until it is final.

    `counts`: what became of the items. `on_progress` is called with the number of items that are final.
    """

    def __init__(self, running: Federation, on_progress: Callable[[int], object] = lambda n: None) -> None:
        self.counts: Counter[str] = Counter()
        self.submitted_items = 0
        self._running, self._on_progress = running, on_progress
        self._requests: list[str] = []
        headers = {"Authorization": f"Bearer {running.tokens['admin']}", "Prefer": "wait=0"}
        self._client = httpx.AsyncClient(base_url=running.west, headers=headers, timeout=120, trust_env=False)

    async def __aenter__(self) -> Publisher:
        await self._client.__aenter__()
        response = await self._client.post("/collections", json=sample.collection())
        if response.status_code not in (201, 409):
            raise ProcessFailed(f"the collection CMIP6 cannot be made: {response.text[:500]}")
        return self

    async def __aexit__(self, *error: Any) -> None:
        await self._client.__aexit__(*error)

    async def send(self, documents: Iterable[Mapping[str, Any]]) -> None:
        """Send the documents in batches, a few at a time."""
        waiting: set[asyncio.Task[None]] = set()
        for batch in _batches(documents):
            self.submitted_items += len(batch)
            waiting.add(asyncio.create_task(self._send(batch)))
            if len(waiting) >= UNDER_WAY:
                finished_tasks, waiting = await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
                for task in finished_tasks:
                    task.result()
        await asyncio.gather(*waiting)

    async def _send(self, batch: list[Mapping[str, Any]]) -> None:
        """Send one batch. One that is refused as a whole is sent in halves, so that each bad item counts by itself."""
        lines = b"\n".join(orjson.dumps(document) for document in batch)
        response = await self._client.post(
            "/collections/CMIP6/items", content=lines, headers={"Content-Type": "application/x-ndjson"}
        )
        if response.status_code == 202:
            self._requests.append(response.json()["id"])
        elif response.status_code in (429, 503):
            await asyncio.sleep(float(response.headers.get("retry-after", 1)))
            await self._send(batch)
        elif response.status_code >= 500:
            raise ProcessFailed(f"west answered {response.status_code}: {response.text[:500]}")
        elif len(batch) == 1:
            self.counts["rejected"] += 1
        else:
            await self._send(batch[: len(batch) // 2])
            await self._send(batch[len(batch) // 2 :])

    async def settle(self) -> None:
        """Wait until every request is final, and count what became of the items."""
        deadline = time.monotonic() + DEADLINE_SECONDS
        while self._requests:
            response = await self._client.get(f"/requests/{self._requests[0]}")
            response.raise_for_status()
            body = response.json()
            if body["counts"]["queued"] and time.monotonic() < deadline:
                self._running.check_running()
                await asyncio.sleep(0.05)
                continue
            self._requests.pop(0)
            unchanged = body["outcomes"].get("identical", 0)
            self.counts.update(
                published=body["counts"]["done"] - unchanged, unchanged=unchanged,
                rejected=body["counts"]["rejected"], failed=body["counts"]["failed"],
            )  # fmt: skip
            self._on_progress(self.counts.total())


def _batches(documents: Iterable[Mapping[str, Any]]) -> Iterator[list[Mapping[str, Any]]]:
    iterator = iter(documents)
    while batch := list(itertools.islice(iterator, BATCH)):
        yield batch


async def number_of_datasets(client: httpx.AsyncClient, url: str) -> int:
    """Return how many datasets a search at a node finds."""
    response = await client.get(f"{url}/search", params={"limit": 1})
    response.raise_for_status()
    return int(response.json()["numberMatched"])


async def wait_until_visible(
    running: Federation, names: Iterable[str], on_progress: Callable[[float], object] = lambda part: None
) -> None:
    """Wait until these index nodes have acknowledged every event of west.

    `on_progress` is called with the part of the events, 0 to 1, that all of them have.
    """
    deadline = time.monotonic() + DEADLINE_SECONDS
    async with Origin(SourceAddress(running.west, running.tokens["node:east"])) as source:
        while True:
            complete = await is_sequenced(running)  # before the head is read: nothing is written any more
            head, through = await source.progress()
            positions = [through[name].pos if name in through else 0 for name in names]
            on_progress(min(positions) / head.pos if head.pos else 1.0)
            if complete and all(through.get(name) == head for name in names):
                return
            if time.monotonic() > deadline:
                raise ProcessFailed(f"not visible everywhere after {DEADLINE_SECONDS:.0f} s: head {head}, {through}")
            running.check_running()
            await asyncio.sleep(0.05)


async def is_sequenced(running: Federation) -> bool:
    """Return whether every event at west has its position."""
    conn = await connections.connect(running.database_of("west"))
    try:
        return bool(
            await conn.fetchval("SELECT (SELECT count(*) FROM fedstac.outbox) = (SELECT pos FROM fedstac.feed_state)")
        )
    finally:
        await conn.close()
