"""kill -9 of everything between a publishing node and an index node; a leader that is stopped and goes on; a broker
that is away. The stream has every event once and in order, and the index node ends as its origin. Acknowledgements go
through the broker, too.
"""

from __future__ import annotations

import asyncio
import os
import random
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import pytest

from fedstac.db.feed import SEQUENCER_LOCK
from fedstac.db.sinks import SINK_LOCK
from fedstac.demo import brokers, embedded
from fedstac.demo.brokers import Broker, BrokerKind, BrokerMissing
from fedstac.demo.federation import STREAM, Federation, federation
from fedstac.messaging.sinks import SinkTarget, open_sink
from tests.scenarios.watching import (
    Publisher,
    assert_nothing_lost,
    fresh_items,
    make_collection,
    settle,
    values,
    wait_until,
)
from tests.support.waiting import PATIENCE

pytestmark = [pytest.mark.xdist_group("brokers"), pytest.mark.long]
SEED = int(os.environ.get("FEDSTAC_TEST_SEED") or random.randrange(1_000_000))
NATS, HTTP = BrokerKind.NATS, BrokerKind.NONE
SECOND_API = "serve-2"  # takes what is published: the first one serves the feed, and is away without it


@dataclass(frozen=True)
class Trial:
    """How much is published and killed. Batches go out while something is killed, stopped or away."""

    batch: int
    kills: int
    batches_each: int
    frozen_seconds: float
    frozen_batches: int
    away_seconds: float
    away_batches: int

    @property
    def events(self) -> int:
        return self.batch * (self.kills * self.batches_each + self.frozen_batches + self.away_batches)


SHORT = Trial(50, 5, 1, 0.5, 2, 0.5, 3)
LONG = Trial(100, 50, 3, 20.0, 20, 30.0, 30)  # 20 000 events; 100 a second while the broker is away


@dataclass
class Route:
    """How events come from west to east: by a broker and two relays, or by west's own feed and two sequencers."""

    running: Federation
    broker: Broker | None

    @property
    def leaders(self) -> tuple[str, str]:
        """The processes of which one leads and the other stands by."""
        return ("relay-1", "relay-2") if self.broker else ("sequencer", "sequencer-2")

    @property
    def kills(self) -> Sequence[Callable[[], Callable[[], object]]]:
        """What can be killed. Each call kills, and returns what starts it again."""
        names = [*self.leaders, "east", *(["sequencer"] if self.broker else ["serve", SECOND_API])]
        kills: list[Callable[[], Callable[[], object]]] = [partial(kill_process, self.running, name) for name in names]
        return [*kills, partial(kill_broker, self.broker)] if self.broker else kills

    def has_leader(self) -> bool:
        return bool(values(self.running, LEADER, SINK_LOCK, SEQUENCER_LOCK & 0xFFFFFFFF, self.broker is not None))

    def end_leadership(self) -> None:
        """End the session by which a process leads, as a database does with a client that is gone."""
        values(
            self.running, f"SELECT pg_terminate_backend(pid) FROM ({LEADER}) AS leader",
            SINK_LOCK, SEQUENCER_LOCK & 0xFFFFFFFF, self.broker is not None,
        )  # fmt: skip


LEADER = """SELECT pid FROM pg_locks WHERE locktype = 'advisory' AND granted
    AND database = (SELECT oid FROM pg_database WHERE datname = current_database())
    AND (objsubid, CASE objsubid WHEN 2 THEN classid ELSE objid END) IN ((2, %s::bigint::oid), (1, %s::bigint::oid))
    AND (objsubid = 2) = %s"""


@contextmanager
def route(kind: BrokerKind, durable: embedded.Cluster, folder: Path) -> Iterator[Route]:
    """Yield west as several processes, and east, which gets west's events by a broker of a kind."""
    with ExitStack() as stack:
        broker = None
        if kind is not HTTP:
            try:
                broker = stack.enter_context(brokers.broker(kind, folder / kind, print))
            except BrokerMissing as error:
                pytest.skip(str(error))
        running = stack.enter_context(federation(durable, index_nodes=("east",), prefix=f"{kind}_{time.time_ns()}_"))
        made = Route(running, broker)
        stream = f"{broker.url}/{STREAM}?status={STREAM}-status" if broker else ""
        if stream:
            running.add_sink(kind, stream)
        running.start("serve", "serve", FEDSTAC_PORT="0", FEDSTAC_RUN_WORKERS="false")
        running.start(SECOND_API, "serve", FEDSTAC_PORT="0", FEDSTAC_RUN_WORKERS="false")
        running.start("worker", "worker", FEDSTAC_BATCH="50")
        for name in ("sequencer", *made.leaders):
            if name not in running.processes:
                running.start(name, name.partition("-")[0])
        make_collection(running)
        running.start_index_node("east", feed=stream, snapshot_first=False)
        yield made


def kill_process(running: Federation, name: str) -> Callable[[], object]:
    running.processes[name].kill()
    return lambda: running.restart(name)


def kill_broker(broker: Broker) -> Callable[[], object]:
    broker.process.kill()
    return broker.process.start


@pytest.mark.parametrize(("kind", "trial"), [
    (NATS, SHORT), pytest.param(BrokerKind.KAFKA, SHORT, marks=pytest.mark.kafka),
    *(pytest.param(kind, LONG, marks=pytest.mark.soak) for kind in (HTTP, NATS, BrokerKind.KAFKA)),
])  # fmt: skip
def test_the_stream_has_every_event_once_whatever_is_killed(
    kind: BrokerKind, trial: Trial, durable: embedded.Cluster, folder: Path
) -> None:
    print(f"FEDSTAC_TEST_SEED={SEED}")
    chance = random.Random(SEED)
    with route(kind, durable, folder) as made, publishing(made.running, trial) as publisher:
        for number in range(trial.kills):
            kill = made.kills[number] if number < len(made.kills) else chance.choice(made.kills)
            publisher.go_on(trial.batches_each)
            time.sleep(chance.uniform(0, 0.4))  # not a wait for anything: the moment is what is drawn
            start_again = kill()
            time.sleep(chance.uniform(0, 0.3))
            start_again()
        stop_the_leader(made, trial, publisher)
        be_away(made, trial, publisher)
        publisher.end()
        assert sum(map(len, publisher.accepted.values())) == trial.events
        settle(made.running)
        if made.broker:
            wait_until(lambda: is_read_from_the_stream(made), what="east reads the stream again")
        assert_nothing_lost(made.running, publisher)
        if made.broker:
            assert_stream_is_whole(made)


def stop_the_leader(made: Route, trial: Trial, publisher: PacedPublisher) -> None:
    """Stop a leader's clock while it sends. Its session ends and the other one leads; then it goes on."""
    leading, standing_by = made.leaders
    start_again = kill_process(made.running, standing_by)
    wait_until(made.has_leader, what=f"{leading} leads")
    start_again()
    publisher.go_on(trial.frozen_batches)
    child = made.running.processes[leading].child
    child.send_signal(signal.SIGSTOP)
    try:
        made.end_leadership()
        wait_until(made.has_leader, what=f"{standing_by} leads")
        time.sleep(trial.frozen_seconds)
    finally:
        child.send_signal(signal.SIGCONT)


def be_away(made: Route, trial: Trial, publisher: PacedPublisher) -> None:
    """Keep the broker away while events are published at an even pace, and say how long they take to come after it.

    Without a broker, it is the API process with the feed that is away.
    """
    start_again = kill_broker(made.broker) if made.broker else kill_process(made.running, "serve")
    for _ in range(trial.away_batches):
        publisher.go_on(1)
        time.sleep(trial.away_seconds / trial.away_batches)
    start_again()
    began = time.monotonic()
    publisher.end()
    published = time.monotonic()
    settle(made.running)
    seconds = time.monotonic() - began
    print(
        f"all is there {seconds:.1f} s after {trial.away_seconds:g} s away; of these {published - began:.1f} s went "
        f"into what was still to be published"
    )


def is_read_from_the_stream(made: Route) -> bool:
    """Publish a dataset, and return whether east had it, or one before, from the stream.

    While the broker is away, all may come from west's own feed.
    """
    Publisher(made.running, process=SECOND_API).publish(fresh_items(1))
    settle(made.running)
    return values(made.running, "SELECT offsets <> '{}' FROM fedstac.consumer_cursor", at="east") == [True]


def assert_stream_is_whole(made: Route) -> None:
    """Check that the stream has the feed, and nothing twice, and that the relay knows it."""
    [head] = values(made.running, "SELECT pos FROM fedstac.feed_state")
    wait_until(lambda: values(made.running, "SELECT pos FROM fedstac.sink") == [head], what="the relay has noted it")
    assert values(made.running, "SELECT paused_reason FROM fedstac.sink") == [None]
    assert values(made.running, "SELECT event_id FROM fedstac.dead_letter") == []
    by_partition: dict[str, list[int]] = {}
    for partition, pos in stored_events(made):
        by_partition.setdefault(partition, []).append(pos)
    assert sorted(pos for positions in by_partition.values() for pos in positions) == [*range(1, head + 1)]
    assert all(positions == sorted(positions) for positions in by_partition.values())


def stored_events(made: Route) -> list[tuple[str, int]]:
    async def read() -> list[tuple[str, int]]:
        [address] = values(made.running, "SELECT address FROM fedstac.sink")
        async with open_sink(SinkTarget("west", "test", address)) as sink:
            return [(event.partition, event.cursor.pos) async for event in sink.stored_events() if not event.is_redrive]

    return asyncio.run(read())


@dataclass
class PacedPublisher(Publisher):
    """Publishes in a thread of its own, as many batches as it is told."""

    _may_go_on: threading.Semaphore = field(default_factory=lambda: threading.Semaphore(0))
    _failures: list[BaseException] = field(default_factory=list)
    _thread: threading.Thread | None = None

    def begin(self, trial: Trial) -> None:
        self._thread = threading.Thread(target=self._publish, args=(fresh_items(trial.events), trial.batch))
        self._thread.start()

    def go_on(self, batches: int) -> None:
        self._may_go_on.release(batches)

    def end(self) -> None:
        """Wait until everything that may go out has been accepted."""
        if self._thread is not None:
            self._may_go_on.release(1_000_000)
            self._thread.join()
        assert self._failures == []

    def _publish(self, items: list[dict[str, object]], batch: int) -> None:
        try:
            self.publish(items, batch=batch, before=lambda: self._may_go_on.acquire(timeout=PATIENCE))
        except BaseException as error:
            self._failures.append(error)


@contextmanager
def publishing(running: Federation, trial: Trial) -> Iterator[PacedPublisher]:
    publisher = PacedPublisher(running, process=SECOND_API)
    publisher.begin(trial)
    try:
        yield publisher
    finally:
        publisher.end()
