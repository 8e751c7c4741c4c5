"""GET /metrics: who may read them, and that each number is the one it says it is."""

from __future__ import annotations

import asyncio
import math
import os
import re
import subprocess
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families

from fedstac.api.nodes.metrics import clear_seconds
from fedstac.db import nodes, sinks
from fedstac.db.connections import Connection
from fedstac.demo import sample
from fedstac.runtime import metrics
from fedstac.runtime.metrics import FAMILIES, REQUEST_SECONDS, MetricKind, Metrics
from fedstac.runtime.outages import Outage
from fedstac.runtime.supervision import Parts
from fedstac.workers import processes
from tests.support.forking import Forks
from tests.support.nodes import Api, StartApi
from tests.support.waiting import PATIENCE, until


async def samples(api: Api, **labels: str) -> dict[str, float]:
    """Return the values whose labels include these, by name; of several, the sum."""
    answer = await api.admin.get("/metrics")
    assert answer.status_code == 200, answer.text
    values: dict[str, float] = {}
    for family in text_string_to_metric_families(answer.text):
        for each in family.samples:
            if labels.items() <= each.labels.items():
                values[each.name] = values.get(each.name, 0.0) + each.value
    return values


async def test_metrics_are_for_administrators_and_tokens_that_monitor(api: Api, conn: Connection) -> None:
    token = await nodes.issue_token(conn, "prometheus", ["monitor"])
    by_monitor = await api.anyone.get("/metrics", headers={"Authorization": f"Bearer {token}"})
    assert (by_monitor.status_code, by_monitor.headers["content-type"][:10]) == (200, "text/plain")
    assert (await api.anyone.get("/metrics")).status_code == 401
    node = {"Authorization": f"Bearer {api.tokens['node:east']}"}
    assert (await api.anyone.get("/metrics", headers=node)).status_code == 403
    assert (await api.anyone.get("/requests", headers={"Authorization": f"Bearer {token}"})).json()["requests"] == []


async def test_requests_are_counted_by_route_and_not_by_path(api: Api) -> None:
    for name in ("a", "b", "c"):
        assert (await api.anyone.get(f"/collections/CMIP6/items/{name}")).status_code == 404
    assert (await api.anyone.get("/nothing/of/this/name")).status_code == 404
    item = "/collections/{collection_id}/items/{item_id}"
    found = await samples(api, route=item, code="404", method="GET", le="+Inf")
    assert found == {"fedstac_http_request_duration_seconds_bucket": 3.0}
    found = await samples(api, route="none", code="404", method="none")
    assert found["fedstac_http_request_duration_seconds_count"] == 1.0


async def test_items_the_feed_and_a_consumers_lag_are_counted(api: Api) -> None:
    items = list(sample.items(5, versions=1))
    body = {"type": "FeatureCollection", "features": items}
    assert (await api.admin.post("/collections/CMIP6/items", json=body)).status_code == 200
    assert (await samples(api, outcome="new")) == {"fedstac_items_total": 5.0}
    node = {"Authorization": f"Bearer {api.tokens['node:east']}"}

    async def head() -> int:
        return int((await api.anyone.get("/events/head", headers=node)).json()["cursor"].partition(".")[2])

    async def is_sequenced() -> bool:
        return await head() == 6

    await until(is_sequenced)
    status = {"epoch": 1, "through": 4, "exceptions": []}
    assert (await api.anyone.post("/events/status", json=status, headers=node)).status_code == 204
    status |= {"consumer": "replica", "through": 1}
    assert (await api.anyone.post("/events/status", json=status, headers=node)).status_code == 204

    async def is_looked_at_again() -> bool:
        return (await samples(api, epoch="1")).get("fedstac_feed_position") == 6.0 and bool(
            await samples(api, consumer="east/replica")
        )

    await until(is_looked_at_again)
    lags = await samples(api, consumer="east")
    assert (lags["fedstac_consumer_lag_events"], lags["fedstac_consumer_lag_seconds"] > 0) == (2.0, True)
    assert (await samples(api, consumer="east/replica"))["fedstac_consumer_lag_events"] == 5.0
    everything = await samples(api)
    assert everything["fedstac_queue_items"] == everything["fedstac_queue_oldest_seconds"] == 0.0
    assert everything["fedstac_notifications_waiting"] == 0.0
    assert everything["fedstac_outbox_waiting_events"] == 0.0
    assert everything["fedstac_feed_earliest_position"] == 1.0
    assert everything["fedstac_outbox_partitions_ahead"] >= 3.0
    for name in ("process_resident_memory_bytes", "fedstac_request_memory_limit_bytes", "fedstac_part_restarts_total"):
        assert name in everything


async def test_every_metric_is_of_the_table_with_its_kind_and_labels(api: Api) -> None:
    shown = {each.name: each for each in text_string_to_metric_families((await api.admin.get("/metrics")).text)}
    names = {name + ("_total" if each.type == "counter" else "") for name, each in shown.items()}
    ours = {name for name in names if name.startswith("fedstac_")}
    assert ours == {family.name for family in FAMILIES.values()}
    for family in FAMILIES.values():
        each = shown[family.name.removesuffix("_total")]
        assert (each.type, each.documentation) == (family.kind, family.meaning)
        assert all(set(one.labels) - {"le"} == set(family.labels) for one in each.samples), family.name


def test_names_follow_the_conventions_of_prometheus() -> None:
    for family in FAMILIES.values():
        assert family.name.startswith("fedstac_")
        assert (family.kind is MetricKind.COUNTER) == family.name.endswith("_total"), family.name
        assert family.kind is not MetricKind.HISTOGRAM or family.name.endswith("_seconds")
        assert family.meaning.endswith("."), family.name


async def test_batches_positions_and_findings_are_counted(api: Api) -> None:
    good, bad = sample.items(2, versions=1)
    bad["properties"]["cmip6:source_id"] = "NO-SUCH-MODEL"
    body = {"type": "FeatureCollection", "features": [good, bad]}
    await api.admin.post("/collections/CMIP6/items", json=body)

    async def are_counted() -> bool:
        values = await samples(api)
        return values.get("fedstac_sequenced_events_total", 0) >= 1 and (
            values.get("fedstac_batch_duration_seconds_count", 0) >= 1
        )

    await until(are_counted)
    values = await samples(api)
    assert values["fedstac_sequencing_duration_seconds_count"] >= 1
    assert (await samples(api, severity="error"))["fedstac_findings_total"] >= 1


async def test_a_sink_is_told_of_with_its_lag_and_its_dead_letters(api: Api, conn: Connection) -> None:
    await api.admin.post("/collections/CMIP6/items", json=next(iter(sample.items(1))))
    new = sinks.NewSink(
        "archive", "https://archive.example/in", "cloudevents", "", required=False, private=False, after=0
    )
    assert await sinks.lead(conn, "archive")  # the node's own relay stands by
    await sinks.add(conn, new, actor="ops")
    await sinks.fail(conn, "archive", "it does not answer")
    await conn.execute(
        """INSERT INTO fedstac.dead_letter (sink, epoch, pos, event_id, key, collection, seq, type, reason, attempts,
                                            event) VALUES ('archive', 1, 1, 'e', 'k', 'CMIP6', 1, 't', 'r', 3, '{}')"""
    )

    async def is_told_of() -> bool:
        return (await samples(api, sink="archive")).get("fedstac_sink_errors_total") == 1.0

    await until(is_told_of)
    values = await samples(api, sink="archive")
    assert values["fedstac_sink_lag_events"] >= 1
    assert values["fedstac_sink_lag_seconds"] > 0
    assert values["fedstac_sink_clear_seconds"] == math.inf
    assert values["fedstac_sink_failing_seconds"] > 0
    assert (values["fedstac_dead_letters"], values["fedstac_sink_paused"]) == (1.0, 0.0)


async def test_subscriptions_are_counted_by_delivery_and_stand_without_their_names(api: Api, conn: Connection) -> None:
    await api.admin.post("/collections/CMIP6/items", json=next(iter(sample.items(1))))
    for name in ("sent", "slow", "broken"):
        assert (await api.admin.put(f"/subscriptions/{name}", json={"from": "start"})).status_code == 201
    await conn.execute("UPDATE fedstac.subscription SET failing_since = now() WHERE name = 'slow'")
    await conn.execute("UPDATE fedstac.subscription SET paused_reason = 'it is moved' WHERE name = 'broken'")
    await conn.execute(
        """INSERT INTO fedstac.subscription_event (subscription, epoch, pos, event_id, key, collection, type, attempts,
                                                   reason, retry_at, dead_at)
           SELECT 'broken', 1, n, n, 'k', 'CMIP6', 't', 1, 'no', now(), CASE WHEN n > 1 THEN now() END
           FROM generate_series(1, 3) n"""
    )

    async def are_counted() -> bool:
        return (await samples(api, delivery="pull", stand="paused")).get("fedstac_subscriptions") == 1.0

    await until(are_counted)
    for stand in ("active", "failing"):
        values = await samples(api, delivery="pull", stand=stand)
        assert values["fedstac_subscriptions"] == 1.0
        assert values["fedstac_subscription_lag_events"] >= 1
        assert values["fedstac_subscription_lag_seconds"] > 0
    assert "fedstac_subscription_lag_events" not in await samples(api, delivery="pull", stand="paused")
    assert (await samples(api, state="waiting"))["fedstac_subscription_events"] == 1.0
    assert (await samples(api, state="dead"))["fedstac_subscription_events"] == 2.0


@pytest.mark.parametrize(
    ("lag", "progress", "expected"), [(0, 0, 0.0), (10, 0, math.inf), (10, -3, math.inf), (10, 5, 4.0)]
)
def test_the_time_to_clear_follows_from_the_pace(lag: int, progress: int, expected: float) -> None:
    assert clear_seconds(lag, progress, 2.0) == expected


async def test_parts_and_pools_are_told_of(api: Api) -> None:
    assert (await samples(api, part="sequencer"))["fedstac_part_running"] == 1.0
    work = await samples(api, lane="work")
    assert work["fedstac_pool_connections"] == api.settings.pool_size
    assert 0 <= work["fedstac_pool_users"] <= 10


async def test_an_index_node_tells_where_it_is(api: Api, start_api: StartApi, make_database: Callable[[], str]) -> None:
    east = await start_api(dsn=make_database(), node="east", source=api.url, source_token=api.tokens["node:east"])

    async def has_acknowledged() -> bool:
        place = await samples(east, consumer="index", origin="west")
        return (
            place.get("fedstac_acknowledgement_duration_seconds_count", 0) >= 1 and "fedstac_cursor_position" in place
        )

    await until(has_acknowledged)
    place = await samples(east, consumer="index", origin="west")
    assert place["fedstac_parked_events"] == 0.0
    assert {"fedstac_cursor_position", "fedstac_cursor_idle_seconds"} <= place.keys()


def test_a_process_without_an_api_serves_its_own(dsn: str, tmp_path: Path, command_forks: Forks) -> None:
    ready = tmp_path / "ready"
    environment = {**os.environ, "FEDSTAC_DSN": dsn, "FEDSTAC_NODE": "west", "FEDSTAC_METRICS_PORT": "0"}
    listening = httpx.URL(f"http://127.0.0.1:{_free_port()}/metrics")
    environment["FEDSTAC_METRICS_PORT"] = str(listening.port)
    process = subprocess.Popen(
        [*command_forks.program, "worker", "--ready-file", str(ready)], env=environment,
        stderr=subprocess.DEVNULL,
    )  # fmt: skip
    try:
        deadline = time.monotonic() + PATIENCE
        while not ready.exists():
            assert process.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.05)
        text = httpx.get(listening, trust_env=False).text
        alive = httpx.get(listening.copy_with(path="/livez"), trust_env=False)
    finally:
        process.terminate()
        process.wait()
    assert re.search(r'^fedstac_part_running\{part="publisher"\} 2\.0$', text, re.MULTILINE)
    assert (alive.status_code, alive.json()) == (200, {"status": "UP"})


async def test_a_process_whose_event_loop_stands_still_is_not_alive(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(processes, "ALIVE_SECONDS", 0.1)
    families = metrics.ProcessFamilies(Metrics(), Parts(Outage("the database")), ())
    is_alive = partial(processes._turns, asyncio.get_running_loop())
    server, thread = metrics.serve("127.0.0.1", 0, families, is_alive)
    try:
        address = f"http://127.0.0.1:{server.server_port}/livez"
        assert (await asyncio.to_thread(httpx.get, address, trust_env=False)).status_code == 200
        assert httpx.get(address, trust_env=False).status_code == 503  # noqa: ASYNC210 - it holds the loop
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def _free_port() -> int:
    import socket

    with socket.create_server(("127.0.0.1", 0)) as listening:
        return int(listening.getsockname()[1])


@pytest.mark.parametrize(("seconds", "bucket"), [(0.001, 0), (0.005, 0), (0.0051, 1), (9.0, 10), (60.0, 11)])
def test_a_duration_counts_in_the_bucket_that_holds_it(seconds: float, bucket: int) -> None:
    metrics = Metrics()
    metrics.observe_request("GET", "/search", 200, seconds)
    [durations] = metrics.durations(REQUEST_SECONDS).values()
    assert durations.counts.index(1) == bucket
    assert durations.seconds == seconds


def test_made_up_methods_and_paths_take_no_memory() -> None:
    metrics = Metrics()
    for n in range(1000):
        metrics.observe_request(f"M{n}", None, 404, 0.1)
    assert len(metrics.durations(REQUEST_SECONDS)) == 1
