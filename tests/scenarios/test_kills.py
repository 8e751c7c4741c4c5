"""kill -9 of every part while datasets are published: nothing accepted is lost, nothing is doubled."""

from __future__ import annotations

import os
import random
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial

import httpx
import psycopg
import pytest

from fedstac.demo import embedded
from fedstac.demo.federation import Federation
from tests.scenarios.watching import (
    Publisher,
    assert_nothing_lost,
    client,
    fresh_items,
    settle,
    values,
    wait_until,
)
from tests.support import failpoints
from tests.support.waiting import PATIENCE

pytestmark = [pytest.mark.xdist_group("kills"), pytest.mark.long]
SEED = int(os.environ.get("FEDSTAC_TEST_SEED") or random.randrange(1_000_000))
BATCHES_EACH = 3


def kill_process(running: Federation, name: str) -> Callable[[], object]:
    """Kill a process. Return what starts it again."""
    running.processes[name].kill()
    return lambda: running.restart(name)


def kill_postmaster(cluster: embedded.Cluster) -> Callable[[], object]:
    os.kill(cluster.pid, signal.SIGKILL)
    return cluster.restart


def kill_backend(cluster: embedded.Cluster, chance: random.Random) -> Callable[[], object]:
    """Kill one connection's backend; the postmaster then ends all of them and recovers by itself."""
    with psycopg.connect(cluster.dsn()) as conn:
        rows = conn.execute(
            "SELECT pid FROM pg_stat_activity WHERE datname = 'fedstac_west' AND backend_type = 'client backend'"
        ).fetchall()
    os.kill(chance.choice(sorted(pid for [pid] in rows)), signal.SIGKILL)
    return lambda: wait_until(lambda: accepts_connections(cluster))


def accepts_connections(cluster: embedded.Cluster) -> bool:
    try:
        psycopg.connect(cluster.dsn()).close()
    except psycopg.OperationalError:
        return False
    return True


def test_nothing_accepted_is_lost_or_doubled_whatever_is_killed(running: Federation, durable: embedded.Cluster) -> None:
    print(f"FEDSTAC_TEST_SEED={SEED}")
    chance = random.Random(SEED)
    kills: list[Callable[[], Callable[[], object]]] = [
        *(partial(kill_process, running, name) for name in running.processes),
        lambda: kill_postmaster(durable),
        lambda: kill_backend(durable, chance),
    ]
    chance.shuffle(kills)
    items = fresh_items(2000)
    publisher, failures = Publisher(running), []
    may_go_on = threading.Semaphore(0)  # so that batches are under way at every kill

    def publish() -> None:
        try:
            publisher.publish(items, before=lambda: may_go_on.acquire(timeout=PATIENCE))
        except BaseException as error:
            failures.append(error)

    publishing = threading.Thread(target=publish)
    publishing.start()
    for kill in kills:
        may_go_on.release(BATCHES_EACH)
        time.sleep(chance.uniform(0, 0.4))  # not a wait for anything: the moment is what is drawn
        start_again = kill()
        time.sleep(chance.uniform(0, 0.3))
        start_again()
    may_go_on.release(len(items))
    publishing.join()
    assert failures == []
    assert sum(len(datasets) for datasets in publisher.accepted.values()) == len(items)
    settle(running)
    assert_nothing_lost(running, publisher)


@pytest.mark.parametrize("failpoint", [
    "worker.claimed=kill", "perform.locked=kill:2", "perform.records=kill:2", "perform.events=kill:2",
    "perform.written=kill:2", "perform.finished=kill:2", "worker.performed=kill:2",
])  # fmt: skip
def test_a_worker_that_dies_between_two_steps_leaves_its_work_to_another(running: Federation, failpoint: str) -> None:
    die_at(running, "worker-1", failpoint)
    publisher = Publisher(running)
    with stopped(running, "worker-2"):
        publisher.publish(fresh_items(200))
        wait_until(lambda: not running.processes["worker-1"].is_running, what=f"the worker passes {failpoint}")
    settle(running)
    assert_nothing_lost(running, publisher)


@pytest.mark.parametrize("kills", [8, pytest.param(500, marks=pytest.mark.soak)])
def test_workers_that_die_at_every_claim_fail_no_item(running: Federation, kills: int) -> None:
    publisher = Publisher(running)
    with stopped(running, "worker-2"):
        running.processes["worker-1"].kill()
        publisher.publish(fresh_items(20))
        for _ in range(kills):
            running.restart("worker-1", **failpoints.environment("worker.claimed=kill"))
            wait_until(lambda: not running.processes["worker-1"].is_running, what="the worker claims something")
        running.restart("worker-1")
        settle(running)
    assert_nothing_lost(running, publisher)


@pytest.mark.parametrize(("name", "failpoint"), [
    ("sequencer", "sequencer.sequenced=kill:2"), ("east", "index.written=kill"), ("east", "index.applied=kill"),
])  # fmt: skip
def test_a_follower_of_the_log_that_dies_between_two_steps_goes_on(
    running: Federation, name: str, failpoint: str
) -> None:
    die_at(running, name, failpoint)
    publisher = Publisher(running)
    publisher.publish(fresh_items(200))
    wait_until(lambda: not running.processes[name].is_running, what=f"{name} passes {failpoint}")
    running.restart(name)
    settle(running)
    assert_nothing_lost(running, publisher)


@pytest.mark.parametrize(("failpoint", "cancelled"), [("cancel.written=kill", 0), ("cancel.committed=kill", 60)])
def test_a_server_that_dies_while_it_cancels_has_cancelled_all_or_nothing(
    running: Federation, failpoint: str, cancelled: int
) -> None:
    publisher = Publisher(running)
    die_at(running, "serve", failpoint)
    with stopped(running, "worker-1"), stopped(running, "worker-2"):
        publisher.publish(fresh_items(60))
        [(request, datasets)] = publisher.accepted.items()
        with client(running) as http, pytest.raises(httpx.TransportError):
            http.post(f"/requests/{request}/cancel")
        wait_until(lambda: not running.processes["serve"].is_running, what=f"the server passes {failpoint}")
        running.restart("serve")
        refused = "SELECT count(*) FROM fedstac.request_item WHERE request = %s AND problem = 'cancelled'"
        assert values(running, refused, request) == [cancelled]
    settle(running)
    if cancelled:
        publisher.accepted = {retried(running, request): datasets}
        settle(running)
    assert_nothing_lost(running, publisher)


def retried(running: Federation, request: str) -> str:
    """Retry a request: the server dies when it has it, and the client, who has no answer, repeats."""
    die_at(running, "serve", "admission.stored=kill")
    with client(running) as http:
        path, key = f"/requests/{request}/retry", {"Idempotency-Key": f"again {request}"}
        with pytest.raises(httpx.TransportError):
            http.post(path, headers=key)
        wait_until(lambda: not running.processes["serve"].is_running, what="the server has stored it")
        running.restart("serve")
        answer = http.post(path, headers=key)
    assert answer.status_code == 202, answer.text
    assert values(running, "SELECT id::text FROM fedstac.request WHERE retry_of = %s", request) == [answer.json()["id"]]
    return str(answer.json()["id"])


def die_at(running: Federation, name: str, failpoint: str) -> None:
    """Start a process that will die there."""
    running.processes[name].kill()
    running.restart(name, **failpoints.environment(failpoint))


@contextmanager
def stopped(running: Federation, name: str) -> Iterator[None]:
    """Pause a process, as SIGSTOP does."""
    child = running.processes[name].child
    child.send_signal(signal.SIGSTOP)
    try:
        yield
    finally:
        child.send_signal(signal.SIGCONT)
