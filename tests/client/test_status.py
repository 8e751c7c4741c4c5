"""`fedstac status` shows a federation at a glance and says what is wrong; `fedstac alive` asks one process."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Callable
from pathlib import Path

import orjson
import pytest

from fedstac.cli.status import NodeReport, span, troubles_of
from fedstac.db import nodes, sinks
from fedstac.db.connections import Connection
from fedstac.demo import sample
from tests.support.commands import Fedstac, StartCommand, to
from tests.support.nodes import Api, StartApi
from tests.support.waiting import PATIENCE, until

SINK = sinks.NewSink("archive", "https://a.example/in", "cloudevents", "", required=True, private=False, after=0)


async def test_a_federation_that_is_well_is_shown_with_all_its_nodes(
    api: Api, start_api: StartApi, make_database: Callable[[], str], fedstac: Fedstac
) -> None:
    await api.admin.post("/collections/CMIP6/items", json=next(iter(sample.items(1))))
    east = await start_api(dsn=make_database(), node="east", source=api.url, source_token=api.tokens["node:east"])

    async def has_all() -> bool:
        answer = (await api.admin.get("/federation")).json()
        return answer["feed"]["cursor"] == "1.2" and [row["lag_events"] for row in answer["consumers"]] == [0]

    await until(has_all)
    shown = await fedstac("status", "--node", east.url, **to(api))
    assert (shown.code, shown.stderr) == (0, "")
    assert max(map(len, shown.stdout.splitlines())) <= 80
    assert [line.split()[:3] for line in shown.stdout.splitlines()[1:3]] == [
        ["west", "0.1.0", "ok"], ["east", "0.1.0", "ok"],
    ]  # fmt: skip
    assert "all is well" in shown.stdout
    answer = (await fedstac("status", "--node", east.url, "-o", "json", **to(api))).lines[0]
    assert (answer["status"], answer["troubles"]) == ("ok", [])
    west = answer["nodes"][0]
    assert (west["queue"]["items"], west["feed"]["cursor"], west["consumers"][0]["name"]) == (0, "1.2", "east")
    followed = (await fedstac("status", "-o", "json", **to(east))).lines[0]["nodes"][0]["follows"]
    assert [(each["origin"], each["through"], each["parked"]) for each in followed] == [("west", "1.2", 0)]


async def test_what_is_wrong_is_named_with_the_remedy(api: Api, conn: Connection, fedstac: Fedstac) -> None:
    await api.admin.post("/collections/CMIP6/items", json=next(iter(sample.items(1))))
    await sinks.add(conn, SINK, actor="ops")
    await sinks.pause(conn, "archive", "it is moved", actor="ops")
    await conn.execute(
        """INSERT INTO fedstac.dead_letter (sink, epoch, pos, event_id, key, collection, seq, type, reason, attempts,
                                            event) VALUES ('archive', 1, 1, 'e', 'k', 'CMIP6', 1, 't', 'r', 3, '{}')"""
    )
    await nodes.issue_token(conn, "prometheus", ["monitor"], token="fst_monitor")

    async def is_seen() -> bool:
        return bool((await api.admin.get("/federation")).json()["sinks"])

    await until(is_seen)
    away = ("http://127.0.0.1:9", "http://127.0.0.1:19")
    shown = await fedstac("status", "--node", away[0], "--node", away[1], **to(api, "fst_monitor"))
    assert shown.code == 1
    assert "sink archive: it is paused: it is moved; then: fedstac sink resume archive" in shown.stdout
    assert "1 dead letter; see fedstac dead-letter list" in shown.stdout
    assert [f"{address} does not answer" in shown.stdout for address in away] == [True, True]
    answer = (await fedstac("status", "-o", "json", **to(api))).lines[0]
    assert (answer["status"], len(answer["troubles"])) == ("troubled", 2)


async def test_only_those_who_watch_over_the_node_see_it(api: Api, fedstac: Fedstac) -> None:
    assert (await fedstac("status", **to(api, "publisher:NCAR"))).code == 4
    assert (await fedstac("status", FEDSTAC_URL="http://127.0.0.1:9", FEDSTAC_TOKEN="x")).code == 5
    assert (await fedstac("status", "--items", **to(api))).code == 2


async def test_it_looks_again_and_again_until_it_is_interrupted(
    api: Api, tmp_path: Path, start_command: StartCommand
) -> None:
    process = await start_command("status", "--watch", "-o", "ndjson", folder=tmp_path, **to(api))
    assert process.stdout is not None
    looks = [orjson.loads(await asyncio.wait_for(process.stdout.readline(), PATIENCE)) for _ in range(2)]
    process.send_signal(signal.SIGINT)
    await asyncio.wait_for(process.communicate(), PATIENCE)
    assert ([look["status"] for look in looks], process.returncode) == (["ok", "ok"], 130)


async def test_a_process_that_answers_is_alive(api: Api, fedstac: Fedstac) -> None:
    port = api.url.rpartition(":")[2]
    assert (await fedstac("alive", FEDSTAC_HOST="0.0.0.0", FEDSTAC_PORT=port)).code == 0
    dead = await fedstac("alive", FEDSTAC_PORT="9", FEDSTAC_METRICS_PORT="10")
    assert dead.code == 5
    assert "no process answers at http://127.0.0.1:9/" in dead.stderr


@pytest.mark.parametrize(
    ("seconds", "text"), [(0, "0 s"), (59.4, "59 s"), (61, "1 min"), (7_300, "2 h"), (90_000, "1 d"), (None, "-")]
)
def test_a_span_is_told_in_its_largest_unit(seconds: float | None, text: str) -> None:
    assert span(seconds) == text


def test_a_lag_is_a_trouble_from_some_age_on() -> None:
    lag = {"name": "east", "lag_events": 7, "lag_seconds": 61.0, "silent_seconds": 90.0}
    reports = [NodeReport("http://west", {"node": "west", "consumers": [lag]})]
    assert list(troubles_of(reports, 60)) == ["west: node east is 7 events, 1 min, behind; it last moved 2 min ago"]
    assert list(troubles_of(reports, 62)) == []
