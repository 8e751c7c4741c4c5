"""Many subscriptions with filters of their own, sent beside changes by processes that are killed."""

from __future__ import annotations

import asyncio
import logging
import random
import resource
import time
from collections import Counter, defaultdict
from contextlib import AsyncExitStack
from dataclasses import dataclass, field

import orjson
import pytest

from fedstac.bootstrap import Node
from fedstac.db.connections import Connection
from fedstac.domain import events
from tests.db import writing
from tests.support.filtered_changes import RandomChanges, wishes
from tests.support.subscribers import ANYBODY, TAKEN, Request, subscribe, subscriber, with_status
from tests.support.waiting import until
from tests.support.webhook_process import sending_processes

log = logging.getLogger(__name__)
PLACES = ("subscriptions.claimed", "subscriptions.sent", "subscriptions.noted")


@dataclass(frozen=True)
class Scale:
    """How much a test does. kills: of each of the processes that send."""

    subscriptions: int
    changes: int
    things: int
    processes: int
    kills: int
    most_passes: int  # of a failpoint before a kill
    batch: int


@dataclass
class Arrivals:
    """What one subscription took: the number and the type of each dataset's events, as they first came."""

    types: dict[tuple[str, int], str] = field(default_factory=dict)
    ids: dict[tuple[str, int], str] = field(default_factory=dict)
    order: dict[str, list[int]] = field(default_factory=lambda: defaultdict(list))
    repeats: int = 0

    def take(self, event_id: str, event_type: str, dataset: str, seq: int) -> None:
        key = (dataset, seq)
        if key in self.types:
            assert (self.ids[key], self.types[key]) == (event_id, event_type)
            self.repeats += 1
            return
        self.ids[key], self.types[key] = event_id, event_type
        self.order[dataset].append(seq)

    def members(self) -> set[str]:
        """Return the datasets that are there by what was taken."""
        return {dataset for dataset, seqs in self.order.items() if self.types[dataset, seqs[-1]] != events.LEFT}


def is_stranger(n: int) -> bool:
    """Tell whether a subscription is of somebody who may not see what is marked for deletion."""
    return n % 4 == 3


@pytest.mark.parametrize("scale", [
    pytest.param(Scale(24, 600, 120, 1, 2, 3, 60), id="small"),
    pytest.param(Scale(200, 50_000, 8000, 2, 12, 100, 250), id="large", marks=pytest.mark.soak),
])  # fmt: skip
async def test_each_of_many_filtered_subscriptions_gets_what_brute_force_says_beside_kills(
    node: Node, conn: Connection, dsn: str, scale: Scale
) -> None:
    seed = random.randrange(1 << 30)
    print(f"{seed=}")
    chance = random.Random(seed)
    changes, wanted = RandomChanges(seed, scale.things), list(wishes(scale.subscriptions, seed))
    arrivals = {f"s{n}": Arrivals() for n in range(scale.subscriptions)}
    posts: Counter[str] = Counter()

    async def respond(request: Request) -> str:
        name = request.path.rpartition("/")[2]
        posts["all"] += 1
        if chance.random() < 0.003:
            posts["RETRY"] += 1
            return with_status("RETRY")
        event = orjson.loads(request.body)
        if event["type"].startswith("org.fedstac.dataset."):
            data = event["data"]
            arrivals[name].take(event["id"], event["type"], data["id"], data["seq"])
        return TAKEN

    def words() -> list[str]:
        return [f"{chance.choice(PLACES)}=kill:{chance.randrange(1, scale.most_passes)}" for _ in range(scale.kills)]

    await writing.create_collections(node, "plain")
    begin, own_begin = time.monotonic(), time.process_time()
    async with AsyncExitStack() as stack:
        receiver = await stack.enter_async_context(subscriber())
        receiver.keeps_requests = False
        receiver.respond = respond
        for n, wish in enumerate(wanted):
            owner = ANYBODY if is_stranger(n) else writing.ANNA
            await subscribe(conn, f"{receiver.url}/s{n}", f"s{n}", filter=wish.filter, owner=owner, batch=100)
        kills = [await stack.enter_async_context(sending_processes(dsn, words())) for _ in range(scale.processes)]
        for _ in range(scale.changes // scale.batch):
            await changes.make(conn, scale.batch)
            await asyncio.sleep(0)  # the receiver has its turn
        changed = time.monotonic() - begin

        async def have_all() -> bool:
            behind = await conn.fetchval(
                """SELECT count(*) FROM fedstac.subscription s WHERE s.pos < (SELECT pos FROM fedstac.feed_state)
                   OR EXISTS (SELECT FROM fedstac.subscription_event e
                              WHERE e.subscription = s.name AND e.dead_at IS NULL)"""
            )
            return bool(behind == 0)

        await until(have_all, 3600)
    children = resource.getrusage(resource.RUSAGE_CHILDREN)
    count = sum(len(each.types) for each in arrivals.values())
    left = sum(each == events.LEFT for own in arrivals.values() for each in own.types.values())
    log.info(
        "%d changes in %.0f s, %d subscriptions took %d events, %d of them left, %d repeated, %d asked again, "
        "%d kills, in %.0f s; processor seconds: senders %.0f, this test %.0f",
        len(changes.steps), changed, scale.subscriptions, count, left, sum(each.repeats for each in arrivals.values()),
        posts["RETRY"], sum(map(len, kills)), time.monotonic() - begin, children.ru_utime + children.ru_stime,
        time.process_time() - own_begin,
    )  # fmt: skip
    assert left > scale.subscriptions
    assert sum(map(len, kills)) >= scale.kills
    for n, wish in enumerate(wanted):
        own = arrivals[f"s{n}"]
        assert all(seqs == sorted(seqs) for seqs in own.order.values()), wish.filter
        if is_stranger(n):  # what is hidden from them when an event is sent, they do not get
            assert own.members() == wish.members(changes.things), wish.filter
        else:
            assert own.types == wish.expected(changes.steps), wish.filter
