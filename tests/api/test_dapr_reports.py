"""Reports on deletions that a Dapr sidecar brings: whose they are, what is dropped, which mark they count for."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import httpx
import orjson
import pytest

from fedstac.db.connections import Connection
from fedstac.demo import dapr, sample
from fedstac.demo.dapr import IN_MEMORY
from tests.support.dapr import sidecar
from tests.support.nodes import Api, StartApi
from tests.support.waiting import until

Json = dict[str, Any]
PATH = "/dapr/deletion-reports"
ITEMS = list(sample.items(3))
RULES = '{"dependencies": [{"name": "east"}, {"name": "east/downloads"}, {"name": "south"}]}'
REPORTS_TOPIC = "deletion-reports"


async def mark(api: Api, conn: Connection, *items: Json) -> list[str]:
    """Publish datasets and mark them; east, a service behind it, and south have to see to each. Return the events."""
    await conn.execute(
        """INSERT INTO fedstac.deletion_configuration (project, version, body, actor)
           VALUES ('CMIP6', 1, $1::jsonb, 'test')""",
        RULES,
    )
    for item in items:
        assert (await api.admin.post("/collections/CMIP6/items", json=item)).status_code == 201
        path = f"/collections/CMIP6/items/{item['id']}?reason=withdrawn"
        assert (await api.admin.delete(path, headers={"Prefer": "wait=20"})).status_code == 200
    rows = await conn.fetch("SELECT dataset, event_id FROM fedstac.deletion")
    by_dataset = {row["dataset"]: str(row["event_id"]) for row in rows}
    return [by_dataset[item["id"]] for item in items]


async def bring(api: Api, data: object, *, role: str = "node:east", **attributes: object) -> httpx.Response:
    """Post an event as a sidecar does, with the token that it was given for this node."""
    event = {"specversion": "1.0", "id": "7", "source": "downloads", "type": "com.dapr.event.sent", "data": data}
    headers = {"dapr-api-token": api.tokens[role], "content-type": "application/cloudevents+json"}
    return await api.anyone.post(PATH, json={**event, "time": now(), **attributes}, headers=headers)


def now(**delta: float) -> str:
    return (datetime.now(UTC) + timedelta(**delta)).isoformat()


async def standing(conn: Connection, item: Json) -> dict[str, str]:
    rows = await conn.fetch(
        """SELECT p.name, p.state FROM fedstac.deletion_dependency p JOIN fedstac.deletion d ON d.id = p.deletion
           WHERE d.dataset = $1 AND NOT owns_identifier""",
        item["id"],
    )
    return {row["name"]: row["state"] for row in rows}


async def test_what_services_tell_each_other_of_a_deletion_is_a_report_and_a_repeat_changes_nothing(
    api: Api, conn: Connection
) -> None:
    first, second, third = ITEMS
    events = await mark(api, conn, *ITEMS)
    several = {"operation": "DELETE", "ids": [first["id"], second["id"], "unknown"], "collection": "CMIP6"}
    for results in (["stored", "stored", "not asked"], ["unchanged", "unchanged", "not asked"]):
        answer = await bring(api, several)
        assert (answer.status_code, answer.json()["status"]) == (200, "SUCCESS"), answer.text
        assert [each["result"] for each in answer.json()["reports"]] == results
    behind = {"operation": "DELETE", "id": third["id"], "event_id": events[2], "name": "east/downloads"}
    failed = {"reports": [{"event_id": events[2], "outcome": "failed", "comment": "the disk is read-only"}]}
    for data in (behind, failed, {"operation": "UPDATE", "id": second["id"], "collection": "CMIP6"}):
        assert (await bring(api, data)).json()["status"] == "SUCCESS"
    assert await standing(conn, first) == {"east": "ok", "east/downloads": "pending", "south": "pending"}
    assert await standing(conn, third) == {"east": "failed", "east/downloads": "ok", "south": "pending"}


async def test_a_report_that_was_sent_before_the_mark_fulfils_no_duty_unless_it_names_the_event(
    api: Api, conn: Connection
) -> None:
    """Brokers bring messages late and twice: one of an earlier mark must not count for this one."""
    [event_id] = await mark(api, conn, ITEMS[0])
    late = {"operation": "DELETE", "id": ITEMS[0]["id"], "collection": "CMIP6"}
    answer = await bring(api, late, time=now(minutes=-5))
    assert answer.json()["status"] == "SUCCESS"
    assert [(each["result"], each["detail"]) for each in answer.json()["reports"]] == [
        ("too late", "it was sent before the dataset was marked")
    ]  # fmt: skip
    for time in (None, "yesterday", "2026-01-01T00:00:00", 7):
        assert (await bring(api, late, time=time)).json()["status"] == "DROP"
    assert (await standing(conn, ITEMS[0]))["east"] == "pending"
    answer = await bring(api, {**late, "event_id": event_id}, time=now(minutes=-5))
    assert answer.json()["reports"][0]["result"] == "stored"


async def test_a_report_in_the_second_of_the_mark_counts(api: Api, conn: Connection) -> None:
    """Dapr writes times in whole seconds: by them the report comes before the mark."""
    await mark(api, conn, ITEMS[0])
    marked_at = await conn.fetchval("UPDATE fedstac.deletion SET marked_at = marked_at + '1 us' RETURNING marked_at")
    report = {"operation": "DELETE", "id": ITEMS[0]["id"], "collection": "CMIP6"}
    for moment, result in ((marked_at - timedelta(seconds=1), "too late"), (marked_at, "stored")):
        text = moment.replace(microsecond=0).isoformat().replace("+00:00", "Z")
        answer = await bring(api, report, time=text)
        assert answer.json()["reports"][0]["result"] == result


async def test_what_this_node_published_of_a_mark_is_no_report(api: Api, conn: Connection) -> None:
    """A sink and the reports may have one topic by mistake: nobody has done anything then."""
    await mark(api, conn, ITEMS[0])
    [text] = [row["event"] for row in await conn.fetch(
        "SELECT event FROM fedstac.outbox WHERE type = 'org.fedstac.dataset.marked.v1'"
    )]  # fmt: skip
    source, time = (orjson.loads(text)[name] for name in ("source", "time"))
    own = {"operation": "DELETE", "id": ITEMS[0]["id"], "collection": "CMIP6"}
    answer = await bring(api, own, source=source, time=time)
    assert (answer.json()["status"], "published it itself" in answer.json()["detail"]) == ("DROP", True)
    assert (await standing(conn, ITEMS[0]))["east"] == "pending"


NO_REPORTS: tuple[tuple[object, str], ...] = (
    ("hello", "CloudEvent"), ({}, "operation"), ({"operation": "Delete", "id": "a"}, "operation is one of"),
    ({"operation": {"DELETE": 1}, "id": "a"}, "operation is one of"), ({"operation": ["DELETE"], "id": "a"}, "one of"),
    ({"operation": "DELETE"}, "data is"), ({"operation": "DELETE", "id": "a", "ids": ["b"]}, "data is"),
    ({"operation": "DELETE", "id": "a"}, "collection"),
    ({"operation": "DELETE", "id": 7, "collection": "c"}, "dataset"),
    ({"operation": "DELETE", "ids": "all", "collection": "c"}, "a list"),
    ({"operation": "DELETE", "ids": ["a"] * 1001, "collection": "c"}, "at most 1000"),
    ({"operation": "DELETE", "ids": ["a", "b"], "event_id": "7"}, "one dataset"),
    ({"operation": "DELETE", "id": "a", "event_id": "7"}, "event_id"),
    ({"operation": "DELETE", "id": "a", "collection": "c", "sudo": True}, "data is"),
    ({"operation": "DELETE", "id": "a", "collection": "c", "name": "south"}, "east may not report for south"),
    ({"reports": [{"event_id": "7", "outcome": "ok"}]}, "event_id"), ({"reports": {}}, "a list"),
)  # fmt: skip


async def test_what_is_no_report_of_the_caller_is_dropped_and_says_why(api: Api) -> None:
    """An answer that is no 2xx would bring it again and again."""
    for data, reason in NO_REPORTS:
        answer = await bring(api, data)
        assert (answer.status_code, answer.json()["status"]) == (200, "DROP"), answer.text
        assert reason in answer.json()["detail"], data


async def test_a_sidecar_needs_the_token_of_a_node_and_its_header_counts_on_its_own_routes_only(api: Api) -> None:
    data: Json = {"reports": []}
    assert (await bring(api, data, role="publisher:NCAR")).status_code == 403
    for headers in ({}, {"dapr-api-token": "guessed"}, {"dapr-api-token": ""}):
        assert (await api.anyone.post(PATH, json={"data": data}, headers=headers)).status_code == 401, headers
        assert (await api.anyone.get("/dapr/subscribe", headers=headers)).status_code == 401, headers
    token = {"dapr-api-token": api.tokens["admin"]}
    for path in ("/sinks", "/me", "/events/head"):
        assert (await api.anyone.get(path, headers=token)).status_code == 401, path
    garbled = {"dapr-api-token": api.tokens["node:east"]}
    answer = await api.anyone.post(PATH, content=b'{"data": ', headers=garbled)
    assert (answer.status_code, answer.json()["status"]) == (200, "DROP")


async def test_a_sidecar_is_told_the_topics_of_the_settings(start_api: StartApi, dsn: str) -> None:
    api = await start_api(dsn=dsn, dapr_reports="pubsub/deletion-reports other/a/b")
    token = {"dapr-api-token": api.tokens["node:east"]}
    assert (await api.anyone.get("/dapr/subscribe", headers=token)).json() == [
        {"pubsubname": "pubsub", "topic": "deletion-reports", "route": PATH},
        {"pubsubname": "other", "topic": "a/b", "route": PATH},
    ]


@pytest.mark.dapr
async def test_a_service_reports_through_a_real_sidecar(start_api: StartApi, dsn: str, conn: Connection) -> None:
    """The service knows its own sidecar only, and sends what it would tell any other service."""
    api = await start_api(dsn=dsn, dapr_reports=f"{dapr.PUBSUB}/{REPORTS_TOPIC}")
    assert (await api.admin.post("/collections", json=sample.collection())).status_code == 201
    await mark(api, conn, ITEMS[0])
    port = httpx.URL(api.url).port
    report = {"operation": "DELETE", "id": ITEMS[0]["id"], "collection": "CMIP6"}
    async with (
        sidecar(IN_MEMORY, app_port=port, app_token=api.tokens["node:east"]) as running,
        httpx.AsyncClient(trust_env=False) as service,
    ):
        for data in ({"operation": "DELETE"}, report):  # the first one is dropped, and does not stand in the way
            url = f"{running.url}/v1.0/publish/{dapr.PUBSUB}/{REPORTS_TOPIC}"
            assert (await service.post(url, json=data)).status_code == 204

        async def is_reported() -> bool:
            return (await standing(conn, ITEMS[0]))["east"] == "ok"

        await until(is_reported)
