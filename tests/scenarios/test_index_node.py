"""Index nodes: the same state however they began, and search that goes on whatever is wrong with the source."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import datetime
from typing import Any

import psycopg
import pytest

from fedstac.demo import embedded
from fedstac.demo.federation import Federation, ProcessFailed
from tests.scenarios.watching import (
    Publisher,
    assert_nothing_lost,
    client,
    differences,
    digests,
    fresh_items,
    log_lines,
    matched,
    parked,
    settle,
    values,
    wait_until,
)
from tests.support import failpoints

pytestmark = [pytest.mark.xdist_group("index-node"), pytest.mark.long]


@contextmanager
def publishing(running: Federation, count: int) -> Iterator[Publisher]:
    """Publish datasets meanwhile."""
    publisher, failures = Publisher(running), []
    items = fresh_items(count)

    def publish() -> None:
        try:
            publisher.publish(items, batch=20)
        except BaseException as error:
            failures.append(error)

    thread = threading.Thread(target=publish)
    thread.start()
    try:
        yield publisher
    finally:
        thread.join()
    assert failures == []


def test_nodes_that_began_with_the_log_with_a_snapshot_or_with_half_of_one_agree(running: Federation) -> None:
    before = Publisher(running)
    before.publish(fresh_items(1200))
    settle(running)  # so that the snapshot has three pages
    with publishing(running, 600) as meanwhile:
        with suppress(ProcessFailed):  # it may die before it listens
            running.start_index_node(
                "north", sources=("west",), snapshot_first=True, **failpoints.environment("index.snapshot=kill:2")
            )
        wait_until(lambda: not running.processes["north"].is_running, what="north passes the failpoint")
        running.start_index_node("south")
        running.restart("north")
    nodes = ("east", "south", "north")
    try:
        settle(running, nodes)
        meanwhile.accepted |= before.accepted
        assert_nothing_lost(running, meanwhile, nodes)
        assert digests(running, "east") == digests(running, "south") == digests(running, "north")
        assert digests(running, "east") == digests(running, "west")
        assert [len(log_lines(running, name, "snapshot complete")) for name in nodes] == [0, 1, 1]
    finally:
        for name in ("south", "north"):
            running.processes.pop(name).kill()


def test_a_request_tells_since_when_a_node_shows_it(running: Federation) -> None:
    publisher = Publisher(running)
    publisher.publish(fresh_items(20))
    settle(running)
    [request] = publisher.accepted
    with client(running) as http:
        body = http.get(f"/requests/{request}").json()
    assert body["status"] == "done"
    since = {entry["node"]: entry["since"] for entry in body["visible"]}
    assert datetime.fromisoformat(since["east"]) >= datetime.fromisoformat(body["finished"])


def test_a_node_whose_source_is_away_serves_search_and_catches_up(running: Federation) -> None:
    settle(running)
    shown = matched(running)
    publisher = Publisher(running)
    publisher.publish(fresh_items(100))
    running.processes["serve"].kill()
    wait_until(lambda: log_lines(running, "east", "the source is away; trying again"))
    assert running.processes["east"].is_running
    assert matched(running) >= shown
    running.restart("serve")
    settle(running)
    assert matched(running) >= shown + 100
    assert_nothing_lost(running, publisher)


def test_a_node_that_is_refused_says_so_and_tries_again_and_serves_search(running: Federation) -> None:
    settle(running)
    shown = matched(running)
    running.processes["east"].kill()
    running.restart("east", FEDSTAC_SOURCE_TOKEN="fst_of_nobody")
    wait_until(lambda: log_lines(running, "east", "the source refuses this node; see to its token"))

    def refusals() -> int:
        return sum(line["status"] == 401 for line in log_lines(running, "serve", "request"))

    before = refusals()
    wait_until(lambda: refusals() > before, what="it tries again")
    assert matched(running) == shown
    publisher = Publisher(running)
    publisher.publish(fresh_items(20))
    running.processes["east"].kill()
    running.restart("east", FEDSTAC_SOURCE_TOKEN=running.tokens["node:east"])
    settle(running)
    assert matched(running) >= shown + 20


def test_an_event_that_cannot_be_applied_is_parked_and_replaced_by_a_later_one(
    running: Federation, durable: embedded.Cluster
) -> None:
    first, second, others = two_versions(running)
    settle(running)
    running.processes["east"].kill()
    Publisher(running).publish([*others, first])
    settle(running, nodes=())
    with planted_digest(durable, str(first["id"])) as event:
        running.restart("east")
        settle(running)
        exceptions = "SELECT event_id FROM fedstac.node_exception WHERE node = 'east' AND outcome = 'parked'"
        assert values(running, exceptions) == [event]
        assert parked(running) == [f"CMIP6/{first['id']}"]
        assert [(found.id, found.kind) for found in differences(running, "east")] == [(first["id"], "missing here")]
        publisher = Publisher(running)
        publisher.publish([second])
        settle(running)
    assert parked(running) == []
    assert_nothing_lost(running, publisher)


def two_versions(running: Federation) -> tuple[dict[str, Any], dict[str, Any], list[dict[str, Any]]]:
    """Return a dataset, its next version, and ten of other lineages. West has no version; the next makes it old."""
    items = fresh_items(400)
    lineages_of_west = {key.partition("/")[2] for key in values(running, "SELECT key FROM fedstac.lineage")}
    for n, first in enumerate(items):
        base = first["id"].rpartition(".v")[0]
        versions = [item for item in items if item["id"].startswith(base + ".v")]
        later = [item for item in items[n:] if item["id"] > first["id"] and item in versions]
        if base not in lineages_of_west and later and max(versions, key=lambda item: str(item["id"])) is later[0]:
            return first, later[0], [item for item in items if item not in versions][:10]
    raise AssertionError("no new lineage has two versions in the order of their dates")


@contextmanager
def planted_digest(cluster: embedded.Cluster, dataset: str) -> Iterator[str]:
    """Change the text of a dataset's one event. Return the event's id."""
    where = "WHERE dataset = %s AND type = 'org.fedstac.dataset.published.v1'"
    with psycopg.connect(cluster.dsn("fedstac_west"), autocommit=True) as conn:
        conn.execute("SET session_replication_role = replica")  # the log cannot be changed otherwise
        [[event, text]] = conn.execute(
            f"SELECT event_id::text, event FROM fedstac.outbox {where}", (dataset,)
        ).fetchall()
        head, *document = text.partition(',"document":')
        wrong = '"digest":"00'.join(head.rsplit('"digest":"', 1)) + "".join(document)
        conn.execute(f"UPDATE fedstac.outbox SET event = %s {where}", (wrong, dataset))
        try:
            yield event
        finally:
            conn.execute(f"UPDATE fedstac.outbox SET event = %s {where}", (text, dataset))
