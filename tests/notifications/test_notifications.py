"""Notifications end to end: a real node, a real mail server, a real receiver."""

from __future__ import annotations

import asyncio
import base64
import copy
import hashlib
import hmac
from datetime import timedelta
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import Any

import asyncpg
import pytest

from fedstac.db import notifications, troubles
from fedstac.demo import sample
from fedstac.domain import notices
from fedstac.domain.notices import Sender
from fedstac.workers import deletions
from tests.support import failpoints, loads
from tests.support.commands import Fedstac, StartCommand
from tests.support.nodes import Api
from tests.support.receivers import Mailbox, Receiver, StartTelling, receiving
from tests.support.waiting import PATIENCE, until

ITEMS = "/collections/CMIP6/items"
MAIL = "mailto:anna@hooks.ncar.example"


def broken(item: dict[str, Any]) -> dict[str, Any]:
    """Return an item with a term that the vocabulary does not have."""
    changed = copy.deepcopy(item)
    changed["properties"]["cmip6:experiment_id"] = "historcal"
    return changed


def batch(*items: dict[str, Any]) -> dict[str, Any]:
    return {"type": "FeatureCollection", "features": list(items)}


async def register(api: Api, address: str, *on: str, role: str = "admin") -> dict[str, Any]:
    response = await api.anyone.post("/notifications", json={"address": address, "on": on}, headers=bearer(api, role))
    assert response.status_code in (200, 201), response.text
    found: dict[str, Any] = response.json()
    return found


def bearer(api: Api, role: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {api.tokens[role]}"}


async def test_a_submitter_gets_one_mail_for_a_batch_with_the_findings(
    start_telling: StartTelling, mailbox: Mailbox
) -> None:
    api = await start_telling()
    first, second, third = sample.items(3)
    response = await api.admin.post(ITEMS, json=batch(first, broken(second), third), headers={"Fedstac-Notify": MAIL})
    assert response.status_code == 200, response.text
    to, mail, _ = await mailbox.next()
    assert to == ["anna@hooks.ncar.example"]
    assert mail["Subject"] == "fedstac west: request partly (2 done, 1 rejected)"
    assert mail["From"] == "fedstac west <stac@west.example>"
    assert mail["Auto-Submitted"] == "auto-generated"
    assert mail["List-Id"] == "<notifications.west.west.example>"
    assert mail["Message-ID"].endswith("@west.example>")
    assert parsedate_to_datetime(mail["Date"]).tzinfo is not None
    text = mail.get_content()
    assert f"https://west.example/requests/{response.json()['id']}" in text
    assert second["id"] in text
    assert "/properties/cmip6:experiment_id" in text
    assert "historical" in text
    assert "send them again" in text
    assert first["id"] not in text
    assert mailbox.mails.empty()


async def test_a_webhook_is_signed_and_says_the_same(start_telling: StartTelling, receiver: Receiver) -> None:
    api = await start_telling()
    found = await register(api, receiver.url, "request")
    response = await api.admin.post(ITEMS, json=batch(*sample.items(2)))
    call = await receiver.next()
    assert call.json["type"] == "fedstac.requests.final"
    assert call.json["data"]["node"] == "west"
    assert call.json["data"]["counts"] == {"done": 2, "rejected": 0, "failed": 0}
    [request] = call.json["data"]["requests"]
    assert (request["id"], request["status"]) == (response.json()["id"], "done")
    key = base64.b64decode(found["secret"].removeprefix("whsec_"))
    signed = f"{call.headers['webhook-id']}.{call.headers['webhook-timestamp']}.".encode() + call.body
    expected = base64.b64encode(hmac.new(key, signed, hashlib.sha256).digest()).decode()
    assert call.headers["webhook-signature"] == f"v1,{expected}"
    assert call.headers["webhook-timestamp"].isdecimal()
    assert call.headers["host"] == f"127.0.0.1:{receiver.port}"


async def test_slack_gets_its_own_form_in_which_no_name_is_a_command(
    start_telling: StartTelling, receiver: Receiver
) -> None:
    api = await start_telling()
    [item] = sample.items(1)
    item["id"] = "<!channel> & *x*"
    response = await api.admin.post(
        ITEMS, json=batch(item, *sample.items(1)), headers={"Fedstac-Notify": f"slack+{receiver.url}"}
    )
    assert response.status_code == 200, response.text
    body = (await receiver.next()).json
    assert set(body) == {"text", "blocks"}
    assert body["text"] == "fedstac west: request partly (1 done, 1 rejected)"
    assert {block["text"]["type"] for block in body["blocks"]} == {"plain_text"}
    assert "<!channel>" in body["blocks"][1]["text"]["text"]


async def test_requests_within_the_window_are_one_digest(
    start_telling: StartTelling, receiver: Receiver, conn: asyncpg.Connection[asyncpg.Record]
) -> None:
    api = await start_telling(notify_window_seconds=3600)
    await register(api, receiver.url, "request")
    for item in sample.items(3):
        response = await api.admin.post(ITEMS, json=item)
        assert response.status_code == 201, response.text
    await until(lambda: conn.fetchval("SELECT cardinality(about) = 3 FROM fedstac.notification"))
    assert receiver.calls.empty()
    await conn.execute("UPDATE fedstac.notification SET due = now()")  # the window ends
    call = await receiver.next()
    assert call.json["data"]["total_requests"] == 3
    assert receiver.calls.empty()


async def test_others_requests_are_not_told(start_telling: StartTelling, receiver: Receiver) -> None:
    api = await start_telling()
    await register(api, receiver.url, "request", role="publisher:NCAR")
    [item] = sample.items(1)
    await api.admin.post(ITEMS, json=item)
    mine = await register(api, receiver.url, role="publisher:NCAR")
    await api.anyone.post(f"/notifications/{mine['id']}/test", headers=bearer(api, "publisher:NCAR"))
    assert (await receiver.next()).json["type"] == "fedstac.test"


async def test_a_receiver_that_was_down_gets_it_later_under_the_same_id(start_telling: StartTelling) -> None:
    api = await start_telling()
    async with receiving() as first:
        first.answers.extend(["503 Service Unavailable", "302 Found\r\nLocation: http://127.0.0.1:1/"])
        url, port = first.url, first.port
        found = await register(api, url)
        await api.admin.post(f"/notifications/{found['id']}/test")
        ids = {(await first.next()).headers["webhook-id"]}
    await asyncio.sleep(0.3)  # nobody listens for some attempts: nothing to wait for
    async with receiving(port) as second:
        ids.add((await second.next()).headers["webhook-id"])
    assert len(ids) == 1


async def test_a_redirect_is_not_followed(start_telling: StartTelling, receiver: Receiver) -> None:
    api = await start_telling()
    async with receiving() as elsewhere:
        receiver.answers.append(f"307 Temporary Redirect\r\nLocation: {elsewhere.url}")
        found = await register(api, receiver.url)
        await api.admin.post(f"/notifications/{found['id']}/test")
        one, two = await receiver.next(), await receiver.next()
        assert one.headers["webhook-id"] == two.headers["webhook-id"]
        assert elsewhere.calls.empty()


async def test_killed_between_delivery_and_its_mark_it_comes_again_under_the_same_id(
    start_telling: StartTelling, receiver: Receiver, dsn: str, tmp_path: Path, start_command: StartCommand
) -> None:
    api = await start_telling(background=False)
    found = await register(api, receiver.url)
    await api.admin.post(f"/notifications/{found['id']}/test")
    settings = {
        "FEDSTAC_DSN": dsn, "FEDSTAC_NODE": "west", "FEDSTAC_NOTIFY_PRIVATE": "true",
    }  # fmt: skip
    dying = await start_command(
        "notifier", folder=tmp_path, **failpoints.environment("notifier.delivered=kill"), **settings
    )
    await asyncio.wait_for(dying.communicate(), PATIENCE)
    assert dying.returncode == -9
    first = await receiver.next()
    async with asyncpg.create_pool(dsn, min_size=1, max_size=1) as pool:
        await pool.execute("UPDATE fedstac.notification SET due = now()")  # the lease of the dead one ends
    another = await start_command("notifier", folder=tmp_path, **settings)
    try:
        second = await receiver.next()
        assert second.headers["webhook-id"] == first.headers["webhook-id"]
        assert second.body == first.body
        async with asyncpg.create_pool(dsn, min_size=1, max_size=1) as pool:
            await until(lambda: pool.fetchval("SELECT bool_and(outcome = 'delivered') FROM fedstac.notification"))
    finally:
        another.terminate()
        await asyncio.wait_for(another.communicate(), PATIENCE)
    assert receiver.calls.empty()


async def test_operators_are_alerted_of_failed_items_and_of_events_that_a_node_cannot_apply(
    start_telling: StartTelling, receiver: Receiver, conn: asyncpg.Connection[asyncpg.Record]
) -> None:
    api = await start_telling(alerts=(receiver.url,), notify_private=False, notify_window_seconds=1)
    head = (await api.anyone.get("/events/head", headers=bearer(api, "node:east"))).json()["cursor"]
    epoch, through = map(int, head.split("."))
    status = {"epoch": epoch, "through": through, "exceptions": [
        {"event_id": "0193", "outcome": "parked", "detail": "evil\r\nSubject: x"}]}  # fmt: skip
    response = await api.anyone.post("/events/status", json=status, headers=bearer(api, "node:east"))
    assert response.status_code == 204, response.text
    async with conn.transaction():
        request = await conn.fetchval(
            """INSERT INTO fedstac.request (id, collection, action, total, submitter, roles, correlation)
               VALUES (gen_random_uuid(), 'CMIP6', 'publish', 1, 'anna', '{}', 'x') RETURNING id"""
        )
        await conn.execute(
            """INSERT INTO fedstac.request_item (request, n, shard, dataset, status, outcome, problem, finished)
               VALUES ($1, 0, 0, 'CMIP6.broken', 'failed', 'failed', 'unknown', now())""",
            request,
        )
    troubles: list[dict[str, str]] = []
    while len(troubles) < 2:
        call = await receiver.next()
        assert call.json["type"] == "fedstac.alert"
        troubles += call.json["data"]["troubles"]
    assert {(each["kind"], each["where"], each["what"]) for each in troubles} == {
        ("item", str(request), "CMIP6.broken"), ("event", "east", "0193"),
    }  # fmt: skip


async def test_operators_are_alerted_of_troubles_that_a_part_reports_each_once(
    start_telling: StartTelling, receiver: Receiver, conn: asyncpg.Connection[asyncpg.Record]
) -> None:
    await start_telling(alerts=(receiver.url,), notify_private=False, notify_window_seconds=1)
    async with conn.transaction():
        await troubles.report(conn, "sink", place="archive", what="it is paused", detail="the receiver answered 403")
        await troubles.report(conn, "dead-letter", place="esgf", what="an event", detail="too large")
        await troubles.report(conn, "comet", place="sky", what="it falls", detail="soon")
    incidents: list[dict[str, str]] = []
    while len(incidents) < 3:
        incidents += (await receiver.next()).json["data"]["troubles"]
    assert {(each["kind"], each["where"], each["detail"]) for each in incidents} == {
        ("sink", "archive", "the receiver answered 403"), ("dead-letter", "esgf", "too large"),
        ("comet", "sky", "soon"),
    }  # fmt: skip
    message = notices.of_troubles(Sender("west", ""), await notifications.troubles(conn, ["trouble:1", "trouble:2"]), 2)
    assert message.subject == "fedstac west: dead letters: 1; sinks that get nothing: 1"
    assert "then `fedstac sink resume`" in message.text


async def test_the_publisher_of_record_is_told_when_somebody_else_changes_a_dataset(
    start_telling: StartTelling, mailbox: Mailbox
) -> None:
    api = await start_telling()
    await register(api, MAIL, "dataset", role="publisher:NCAR")
    item = next(item for item in sample.items(200) if item["properties"]["cmip6:institution_id"] == "NCAR")
    response = await api.anyone.post(ITEMS, json=item, headers=bearer(api, "publisher:NCAR"))
    assert response.status_code == 201, response.text
    changed = copy.deepcopy(item)
    changed["properties"]["description"] = "said otherwise"
    response = await api.admin.post(ITEMS, json=changed)
    assert response.status_code == 200, response.text
    to, mail, _ = await mailbox.next()
    assert to == [MAIL.removeprefix("mailto:")]
    assert f"your dataset {item['id']} was updated"[:100] in mail["Subject"]
    text = mail.get_content()
    assert f"{item['id']}: updated by admin at" in text
    assert f"https://west.example/collections/CMIP6/items/{item['id']}" in text
    why = {"reason": "wrong units", "replaced_by": "CMIP6.later", "errata": "https://errata.esgf.io/1"}
    response = await api.admin.post(f"{ITEMS}/{item['id']}/retract", json=why)
    assert response.status_code == 200, response.text
    _, mail, _ = await mailbox.next()
    assert f"{item['id']}: retracted by admin at" in mail.get_content()
    for phrase in ("wrong units", "Use instead: CMIP6.later", "explained at https://errata.esgf.io/1"):
        assert phrase in mail.get_content()
    response = await api.admin.post(
        f"{ITEMS}/{item['id']}/reinstate", json={}, headers={"Fedstac-Notify": "mailto:boss@hooks.ncar.example"}
    )
    assert response.status_code == 200, response.text
    texts = {to[0]: mail.get_content() for to, mail, _ in [await mailbox.next(), await mailbox.next()]}
    assert f"{item['id']}: reinstated by admin at" in texts[MAIL.removeprefix("mailto:")]
    assert "done: reinstate of 1 in CMIP6 (1 done)" in texts["boss@hooks.ncar.example"]


@pytest.mark.parametrize("mode", ["apply", "rebuild"])
async def test_the_publisher_of_record_is_told_when_a_full_state_load_clears_a_dataset(
    start_telling: StartTelling, mailbox: Mailbox, mode: str
) -> None:
    api = await start_telling()
    await register(api, MAIL, "dataset", role="publisher:NCAR")
    item = next(item for item in sample.items(200) if item["properties"]["cmip6:institution_id"] == "NCAR")
    response = await api.anyone.post(ITEMS, json=item, headers=bearer(api, "publisher:NCAR"))
    assert response.status_code == 201, response.text
    load = await loads.load(api.admin, [item] if mode == "rebuild" else [], mode=mode, confirm="1")
    assert load["status"] == "done", load
    _, mail, _ = await mailbox.next()
    text = mail.get_content()
    assert f"{item['id']}: cleared by admin at" in text
    if mode == "apply":
        assert "a full-state load does not state it" in text
        assert "It may be published again" in text
    else:
        assert "a full-state load builds it again" in text


async def test_the_publisher_of_record_is_told_of_a_quarantine_a_mark_and_the_deletion(
    start_telling: StartTelling, mailbox: Mailbox, conn: asyncpg.Connection[asyncpg.Record],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setattr(deletions, "RELOOK", timedelta())  # what this test waives itself is seen by the next look
    api = await start_telling()
    await register(api, MAIL, "dataset", role="publisher:NCAR")
    item = next(item for item in sample.items(200) if item["properties"]["cmip6:institution_id"] == "NCAR")
    path = f"{ITEMS}/{item['id']}"
    response = await api.anyone.post(ITEMS, json=item, headers=bearer(api, "publisher:NCAR"))
    assert response.status_code == 201, response.text
    case = {"reason": "personal data?", "case": "T-17", "contact": "data@west.example"}
    assert (await api.admin.post(f"{path}/quarantine", json=case)).status_code == 200
    _, mail, _ = await mailbox.next()
    assert f"{item['id']}: quarantined by admin at" in mail.get_content()
    assert "case T-17; ask data@west.example" in mail.get_content()
    assert (await api.admin.post(f"{path}/release", json={"decision": "it is harmless"})).status_code == 200
    _, mail, _ = await mailbox.next()
    assert f"{item['id']}: released by admin at" in mail.get_content()
    rules = {"grace_days": 0, "automatic": True}
    await api.admin.put("/deletions/rules/CMIP6", json=rules, headers={"If-Match": "*"})
    assert (await api.admin.delete(path, params={"reason": "published twice"})).status_code == 200
    _, mail, _ = await mailbox.next()
    text = mail.get_content()
    assert f"{item['id']}: marked by admin at" in text
    assert "published twice" in text
    id = await conn.fetchval("SELECT id FROM fedstac.deletion")
    assert f"https://west.example/deletions/{id}" in text
    assert f"Until then: fedstac unmark {item['id']}" in text
    await conn.execute("UPDATE fedstac.deletion_dependency SET state = 'waived'")
    _, mail, _ = await mailbox.next()  # the schedule deletes it
    assert f"{item['id']}: deleted by manager:deletions at" in mail.get_content()


async def test_the_contact_of_a_dependency_is_reminded_by_mail(
    start_telling: StartTelling, mailbox: Mailbox, conn: asyncpg.Connection[asyncpg.Record]
) -> None:
    api = await start_telling()
    item = next(sample.items(1))
    assert (await api.admin.post(ITEMS, json=item)).status_code == 201
    rules = {"dependencies": [{"name": "east", "contact": "data@hooks.east.example"}]}
    await api.admin.put("/deletions/rules/CMIP6", json=rules, headers={"If-Match": "*"})
    assert (await api.admin.delete(f"{ITEMS}/{item['id']}")).status_code == 200
    await conn.execute("UPDATE fedstac.deletion_dependency SET remind_next = clock_timestamp()")  # by the manager
    to, mail, _ = await mailbox.next()
    text = mail.get_content()
    assert to == ["data@hooks.east.example"]
    assert f"{item['id']} (east pending), due" in text
    assert f"https://west.example/deletions/{await conn.fetchval('SELECT id FROM fedstac.deletion')}" in text
    assert "contact of a dependency" in text


async def test_a_destination_that_the_node_does_not_know_has_to_confirm(
    start_telling: StartTelling, mailbox: Mailbox
) -> None:
    api = await start_telling()
    address = "mailto:anna@elsewhere.example"
    found = await register(api, address, "request")
    assert found["confirmed"] is None
    assert "secret" not in found
    _, mail, _ = await mailbox.next()
    assert mail["Subject"] == "fedstac west: confirm this destination"
    [line] = [line for line in mail.get_content().splitlines() if "notifications confirm" in line]
    code = line.split()[-1]
    named = await api.admin.post(ITEMS, json=next(sample.items(1)), headers={"Fedstac-Notify": address})
    assert named.status_code == 400
    assert "register the address first" in named.json()["detail"]
    wrong = await api.admin.post(f"/notifications/{found['id']}/confirm", json={"code": "A" * 16})
    assert wrong.status_code == 400
    stranger = await api.anyone.post(
        f"/notifications/{found['id']}/confirm", json={"code": code}, headers=bearer(api, "publisher:NCAR")
    )
    assert stranger.status_code == 404
    right = await api.admin.post(f"/notifications/{found['id']}/confirm", json={"code": code})
    assert right.status_code == 200
    assert right.json()["confirmed"]
    [item] = sample.items(1)
    response = await api.admin.post(ITEMS, json=item, headers={"Fedstac-Notify": found["id"]})
    assert response.status_code == 201, response.text
    _, mail, _ = await mailbox.next()
    assert mail["Subject"] == "fedstac west: request done (1 done)"
    assert mailbox.mails.empty()  # named and subscribed: told once


async def test_nobody_has_many_confirmations_sent(start_telling: StartTelling) -> None:
    api = await start_telling()
    for n in range(5):
        found = await register(api, f"mailto:victim{n}@elsewhere.example")
        await api.admin.delete(f"/notifications/{found['id']}")
    response = await api.admin.post("/notifications", json={"address": "mailto:victim@elsewhere.example"})
    assert response.status_code == 429


async def test_nobody_has_many_confirmations_sent_by_asking_for_them_at_once(
    start_telling: StartTelling, conn: asyncpg.Connection[asyncpg.Record]
) -> None:
    api = await start_telling(background=False)
    responses = await asyncio.gather(*(
        api.admin.post("/notifications", json={"address": f"mailto:victim{n}@elsewhere.example"}) for n in range(20)
    ))  # fmt: skip
    assert sorted(response.status_code for response in responses) == [201] * 5 + [429] * 15
    assert await conn.fetchval("SELECT count(*) FROM fedstac.notification WHERE topic = 'confirm'") == 5


async def test_a_destination_that_is_removed_at_this_moment_is_not_there(
    start_telling: StartTelling, conn: asyncpg.Connection[asyncpg.Record]
) -> None:
    api = await start_telling(background=False)
    [item] = sample.items(1)
    destination = await register(api, "https://hooks.ncar.example/here", "request")
    path = f"/notifications/{destination['id']}"
    transaction = conn.transaction()
    await transaction.start()
    await conn.execute("DELETE FROM fedstac.destination")
    requests = asyncio.gather(
        api.admin.post(f"{path}/test"),
        api.admin.post(ITEMS, json=item, headers={"Fedstac-Notify": destination["id"], "Prefer": "wait=0"}),
    )
    here = "datname = current_database()"  # the second one may wait for the first
    waiting = f"SELECT count(*) = 2 FROM pg_stat_activity WHERE {here} AND wait_event_type = 'Lock'"
    await until(lambda: conn.fetchval(waiting))
    await transaction.commit()
    assert [response.status_code for response in await requests] == [404, 400]


async def test_an_address_that_must_not_be_used_is_refused_at_once(start_telling: StartTelling) -> None:
    api = await start_telling(notify_private=False, notify_hosts=("*",), background=False)
    response = await api.admin.post("/notifications", json={"address": "https://169.254.169.254/latest/meta-data"})
    assert response.status_code == 400, response.text
    [item] = sample.items(1)
    response = await api.admin.post(ITEMS, json=item, headers={"Fedstac-Notify": "https://127.0.0.1/"})
    assert response.status_code == 400, response.text


async def test_a_name_that_leads_to_a_private_address_gets_nothing(
    start_telling: StartTelling, receiver: Receiver, conn: asyncpg.Connection[asyncpg.Record]
) -> None:
    api = await start_telling(notify_private=False, notify_hosts=("*",))
    for host in ("2130706433", "0x7f000001", "127.1", "ip6-localhost"):
        found = await register(api, f"https://{host}:{receiver.port}/hook")
        await api.admin.post(f"/notifications/{found['id']}/test")

    async def done() -> bool:
        return not await conn.fetchval("SELECT EXISTS (SELECT FROM fedstac.notification WHERE attempts = 0)")

    await until(done)
    outcomes = await conn.fetch("SELECT DISTINCT outcome FROM fedstac.notification WHERE outcome IS NOT NULL")
    assert "delivered" not in {row["outcome"] for row in outcomes}
    assert receiver.calls.empty()


async def test_a_hostile_name_adds_no_header_and_no_line(start_telling: StartTelling, mailbox: Mailbox) -> None:
    api = await start_telling()
    [good] = sample.items(1)
    hostile = {**copy.deepcopy(good), "id": "x\u2028Bcc: eve@x.example\u202e" + "y" * 900}
    response = await api.admin.post(ITEMS, json=batch(good, hostile), headers={"Fedstac-Notify": MAIL})
    assert response.status_code == 200, response.text
    to, mail, raw = await mailbox.next()
    assert to == ["anna@hooks.ncar.example"]
    assert mail["Bcc"] is None
    assert "\u2028" not in mail.get_content()
    assert "\u202e" not in mail.get_content()
    assert all(len(line) <= 998 for line in raw.split(b"\r\n"))


async def test_mail_that_is_refused_for_good_is_given_up_and_what_is_put_off_is_not(
    start_telling: StartTelling, mailbox: Mailbox, conn: asyncpg.Connection[asyncpg.Record]
) -> None:
    api = await start_telling()
    mailbox.refusals.extend(["451 later", "550 no such user"])
    found = await register(api, MAIL)
    await api.admin.post(f"/notifications/{found['id']}/test")

    async def given_up() -> bool:
        return bool(await conn.fetchval("SELECT outcome = 'given up' AND attempts = 2 FROM fedstac.notification"))

    await until(given_up)
    assert mailbox.mails.empty()


async def test_the_commands(start_telling: StartTelling, receiver: Receiver, fedstac: Fedstac) -> None:
    api = await start_telling()
    who = {"FEDSTAC_URL": api.url, "FEDSTAC_TOKEN": api.tokens["admin"]}
    added = await fedstac("notifications", "add", receiver.url, "--on", "dataset", "-o", "json", **who)
    assert added.code == 0, added.stderr
    [found] = added.lines
    assert found["on"] == ["dataset"]
    assert found["secret"].startswith("whsec_")
    assert (await fedstac("notifications", "test", found["id"], **who)).code == 0
    assert (await receiver.next()).json["type"] == "fedstac.test"
    listed = await fedstac("notifications", "list", "-o", "ndjson", **who)
    assert [each["id"] for each in listed.lines] == [found["id"]]
    assert "secret" not in listed.lines[0]
    assert (await fedstac("notifications", "remove", found["id"], **who)).code == 0
    assert (await fedstac("notifications", "show", found["id"], **who)).code == 3


async def test_a_message_that_this_node_cannot_make_is_given_up_and_holds_up_no_other(
    start_telling: StartTelling, receiver: Receiver, conn: asyncpg.Connection[asyncpg.Record],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    def wrong(*_: object) -> None:
        raise KeyError("a fault of ours")

    monkeypatch.setattr(notices, "of_test", wrong)
    api = await start_telling()
    found = await register(api, receiver.url, "request")
    await api.admin.post(f"/notifications/{found['id']}/test")

    async def is_put_off() -> bool:
        due = "SELECT bool_and(attempts >= 2 AND due > taken) FROM fedstac.notification WHERE topic = 'test'"
        return bool(await conn.fetchval(due))

    await until(is_put_off)
    await api.admin.post(ITEMS, json=next(sample.items(1)))
    assert (await receiver.next()).json["data"]["total_requests"] == 1
    await conn.execute(
        "UPDATE fedstac.notification SET taken = taken - interval '2 days', due = now() WHERE topic = 'test'"
    )

    async def is_given_up() -> bool:
        return bool(await conn.fetchval("SELECT outcome = 'given up' FROM fedstac.notification WHERE topic = 'test'"))

    await until(is_given_up)
