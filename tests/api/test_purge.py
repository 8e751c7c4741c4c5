"""Purging: a dataset full of words that are nowhere else goes through everything, and then no word of it is left."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any

import asyncpg
import httpx
import pytest

from fedstac.db import audit, dead_letters, invariants, nodes, parked, purging, troubles
from fedstac.demo import embedded, sample
from fedstac.domain.events import Cursor, LoggedEvent
from fedstac.settings import Settings
from tests.support import loads
from tests.support.databases import name_in
from tests.support.dumps import dump, lines_with
from tests.support.manager_process import PURGE_STEPS, ends_of
from tests.support.nodes import Api, StartApi, running
from tests.support.waiting import until

Json = dict[str, Any]
MARKER = "qzxmark"  # in each text of the dataset and of what was said about it
ITEMS = "/collections/plain/items"
PATH = f"{ITEMS}/thing-1"
UNUSED = f"SELECT NOT EXISTS (SELECT FROM fedstac.term WHERE content::text LIKE '%{MARKER}%')"
SINK = """INSERT INTO fedstac.sink (name, address, format, required, private, secret, starts_after, epoch, pos,
                                    previous_pos, paused_reason, paused_at)
          VALUES ('kafka', 'kafka://127.0.0.1:9/f', 'cloudevents', false, false, '', 0, 1, 0, 0, 'a test', now())"""


def item(n: int, word: str, **properties: object) -> Json:
    return {
        "type": "Feature", "stac_version": "1.1.0", "id": f"thing-{n}", "collection": "plain", "bbox": [n, n, n, n],
        "geometry": {"type": "Point", "coordinates": [n, n]},
        "properties": {"datetime": "2020-01-01T00:00:00Z", "title": f"{word}-title", "station": f"{word}-station",
                       **properties},
        "links": [{"rel": "cite-as", "href": f"https://doi.org/10.5555/{word}-doi"}],
        "assets": {"data": {"href": f"https://files.example/{word}-href.nc"}},
    }  # fmt: skip


@pytest.fixture
async def west(start_api: StartApi, dsn: str) -> Api:
    """With the dataset, and another one."""
    started = await start_api(dsn=dsn)
    await prepare(started)
    return started


async def prepare(api: Api) -> None:
    """Publish the dataset, and another one."""
    assert (await api.admin.post("/collections", json=sample.collection("plain"))).status_code == 201
    for each in (item(1, MARKER), item(2, "other")):
        response = await api.admin.post(ITEMS, json=each)
        assert response.status_code == 201, response.text


@pytest.fixture
async def conn(dsn: str) -> AsyncIterator[asyncpg.Connection]:
    opened = await asyncpg.connect(dsn)
    yield opened
    await asyncio.wait_for(opened.close(), 10)


async def act(api: Api, action: str, body: Json | None = None) -> httpx.Response:
    answer = await api.admin.post(f"{PATH}/{action}", json=body or {}, headers={"Prefer": "wait=60"})
    assert answer.status_code == 200, (action, answer.text)
    return answer


async def live(api: Api) -> None:
    """Let the dataset live a whole life, up to the mark."""
    title = {"properties": {"title": f"{MARKER}-second"}}
    assert (await api.admin.patch(PATH, json=title)).status_code == 200
    await act(api, "retract", {"reason": f"{MARKER}-retraction", "errata": f"https://a.example/{MARKER}-errata"})
    await act(api, "reinstate")
    await act(api, "quarantine", {
        "reason": f"{MARKER}-quarantine", "case": f"{MARKER}-case", "contact": f"{MARKER}-contact",
        "links": [f"https://a.example/{MARKER}-link"],
    })  # fmt: skip
    await act(api, "release", {"decision": f"{MARKER}-decision"})
    wish = {"action": "quarantine", "collections": ["plain"], "filter": f"title = '{MARKER}-second'",
            "quarantine": {"reason": "one of many"}}  # fmt: skip
    shown = (await api.admin.post("/bulk/preview", json=wish)).json()
    assert shown["total"] == 1, shown
    begun = await api.admin.post("/bulk", json={**wish, "digest": shown["digest"]})
    assert begun.status_code == 202, begun.text

    async def is_done() -> bool:
        return bool((await api.admin.get(f"/bulk/{begun.json()['id']}")).json()["finished"])

    await until(is_done)
    await act(api, "release", {"decision": f"{MARKER}-decision"})
    again = {"type": "FeatureCollection", "features": [item(1, f"{MARKER}-other-files")]}
    refused = await api.admin.post(ITEMS, json=again, headers={"Prefer": "wait=60"})
    assert refused.json()["counts"]["rejected"] == 1, refused.text
    marked = await api.admin.delete(f"{PATH}?reason={MARKER}-mark", headers={"Prefer": "wait=60"})
    assert marked.status_code == 200, marked.text


async def end_grace(conn: asyncpg.Connection) -> None:
    await conn.execute("UPDATE fedstac.deletion SET grace_until = marked_at - $1::interval", timedelta(seconds=1))
    await conn.execute("UPDATE fedstac.deletion_dependency SET state = 'waived', comment = $1", f"{MARKER}-comment")
    await conn.execute(
        "INSERT INTO fedstac.deletion_waiver SELECT deletion, name, 'anna', $1 FROM fedstac.deletion_dependency",
        f"{MARKER}-waiver",
    )


async def leave_traces(conn: asyncpg.Connection) -> None:
    """Leave what other parts of a node leave: a dead letter, what a node reports, a parked event."""
    row = await conn.fetchrow(
        """SELECT f.pos, o.* FROM fedstac.feed f JOIN fedstac.outbox o USING (id)
           WHERE o.dataset = 'thing-1' ORDER BY f.pos LIMIT 1"""
    )
    assert row is not None
    event = LoggedEvent(
        Cursor(1, row["pos"]), str(row["event_id"]), row["key"], "plain", "thing-1", row["seq"], row["type"],
        row["event"],
    )  # fmt: skip
    await conn.execute(SINK)
    async with conn.transaction():
        await dead_letters.keep(conn, "kafka", event, reason=f"{MARKER}-refusal", attempts=3)
        await nodes.acknowledge(conn, "east", event.cursor, exceptions_of(event.event_id))


def exceptions_of(event_id: str) -> list[dict[str, str]]:
    """Return what a node says of an event of the dataset, and of its entry in a snapshot."""
    return [
        {"event_id": each, "outcome": "parked", "detail": f"{MARKER}-exception"}
        for each in (event_id, "snapshot:plain/thing-1")
    ]


async def feed_of(api: Api) -> list[Json]:
    answer = await api.anyone.get("/events?limit=1000", headers={"Authorization": f"Bearer {api.tokens['node:east']}"})
    events: list[Json] = answer.json()
    return events


async def digests(conn: asyncpg.Connection) -> Mapping[str, bytes]:
    rows = await conn.fetch("SELECT collection || '/' || id AS name, digest FROM fedstac.record ORDER BY 1")
    return {row["name"]: row["digest"] for row in rows}


async def agree(here: asyncpg.Connection, there: asyncpg.Connection) -> bool:
    return await digests(here) == await digests(there)


async def test_from_its_deletion_on_the_log_says_nothing_of_a_dataset_and_can_be_replayed_from_zero(
    west: Api, conn: asyncpg.Connection, start_api: StartApi, make_database: Callable[[], str]
) -> None:
    await live(west)
    await end_grace(conn)
    assert MARKER in (await west.anyone.get(
        "/events?limit=1000", headers={"Authorization": f"Bearer {west.tokens['node:east']}"})).text  # fmt: skip
    await act(west, "delete")
    await until(lambda: conn.fetchval("SELECT count(*) = max(f.pos) FROM fedstac.feed f"))
    own = [event for event in await feed_of(west) if event["subject"] == "plain/thing-1"]
    assert [event["type"].split(".")[-2] for event in own] == [
        "published", "updated", "retracted", "reinstated", *["quarantined", "released"] * 2, "marked", "deleted",
    ]  # fmt: skip
    assert [event["data"].get("redacted") for event in own] == [True] * 9 + [None]
    left = {"document", "changes", "retraction", "quarantine"}
    assert not any(left & event["data"].keys() for event in own)
    assert MARKER not in str(own[:-1])
    assert own[-1]["data"]["reason"] == f"{MARKER}-mark"  # why it was deleted goes with the purge

    for snapshot_first in (False, True):
        east = await start_api(
            dsn=make_database(), node="east", source=west.url, source_token=west.tokens["node:east"],
            snapshot_first=snapshot_first,
        )  # fmt: skip
        there = await asyncpg.connect(east.settings.dsn)
        await until(lambda there=there: agree(conn, there))  # type: ignore[misc]
        assert await there.fetchval("SELECT count(*) FROM fedstac.parked_event") == 0
        assert (await east.anyone.get(PATH)).status_code == 410
        await there.close()
    assert await invariants.check(conn) == []


async def test_after_a_purge_no_word_of_a_dataset_is_left(
    west: Api, conn: asyncpg.Connection, cluster: embedded.Cluster, start_api: StartApi,
    make_database: Callable[[], str], capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    east = await start_api(
        dsn=make_database(), node="east", source=west.url, source_token=west.tokens["node:east"], snapshot_first=False
    )
    there = await asyncpg.connect(east.settings.dsn)
    await live(west)
    await until(lambda: agree(conn, there))
    await leave_traces(conn)
    event = '{"data":{"document":"' + MARKER + '"}}'
    async with there.transaction():
        await parked.park(there, "index", "west", 1, [
            parked.ParkedEvent("e", "plain/thing-1", 1, 1, f"{MARKER}-why", event)
        ])  # fmt: skip
        await parked.park(there, "index", "south", 1, [
            parked.ParkedEvent("e", "plain/thing-1", 1, 1, "another origin's", event.replace(MARKER, "another's"))
        ])  # fmt: skip
        await troubles.report(there, "parked", place="index of west", what="plain/thing-1", detail=f"{MARKER}-trouble")
    assert lines_with(MARKER, dump(cluster, west.settings.dsn))
    assert lines_with(MARKER, dump(cluster, east.settings.dsn))
    await end_grace(conn)
    await conn.execute("UPDATE fedstac.sink SET sent = 1")
    await act(west, "delete")
    await until(lambda: conn.fetchval("SELECT count(*) = (SELECT pos FROM fedstac.feed_state) FROM fedstac.outbox"))
    capsys.readouterr()
    answer = await act(west, "purge")
    results = (await west.admin.get(f"/requests/{answer.json()['id']}/items")).text
    assert "the sink kafka to kafka://127.0.0.1:9/f, and stay there until that log's own retention" in results
    await until(lambda: agree(conn, there))
    left = await there.fetch("DELETE FROM fedstac.parked_event RETURNING origin")
    assert [row["origin"] for row in left] == ["south"]
    exceptions = await conn.fetch("SELECT event_id, detail FROM fedstac.node_exception ORDER BY 1")
    async with conn.transaction():  # as a topic of acknowledgements brings it at each start
        [again] = [row["event_id"] for row in exceptions if not row["event_id"].startswith("snapshot:")]
        await nodes.acknowledge(conn, "east", Cursor(1, 1), exceptions_of(again))
    assert await conn.fetch("SELECT event_id, detail FROM fedstac.node_exception ORDER BY 1") == exceptions
    for each in (conn, there):  # by housekeeping
        await until(lambda each=each: each.fetchval(UNUSED))  # type: ignore[misc]
    assert lines_with(MARKER, dump(cluster, west.settings.dsn)) == []
    assert lines_with(MARKER, dump(cluster, east.settings.dsn)) == []
    assert "other-title" in dump(cluster, east.settings.dsn)
    assert (await west.anyone.get(PATH)).status_code == 410
    assert await invariants.check(conn) == []
    again = item(3, "third", station=f"{MARKER}-station")  # whoever has the code in memory does not use it again
    assert (await west.admin.post(ITEMS, json=again)).status_code == 201
    await until(lambda: agree(conn, there))
    for each in (conn, there):
        assert await invariants.check(each) == []
    [bulk] = (await west.admin.get("/bulk")).json()["bulks"]
    assert bulk["selection"] == {"removed": purging.PURGED_TEXT}
    await is_refused_at_the_door(west, conn)
    assert await conn.fetchval("SELECT count(*) FROM fedstac.request_item WHERE document IS NOT NULL") == 0
    await until(lambda: conn.fetchval("SELECT count(*) = max(pos) FROM fedstac.audit_chain"))
    assert (await audit.verify(conn)).pos > 0
    logs = capsys.readouterr()
    assert "published" in logs.out  # what the nodes log since the purge
    assert MARKER not in logs.out + logs.err
    await there.close()


async def test_after_a_purge_no_word_of_a_cleared_dataset_is_left(
    west: Api, conn: asyncpg.Connection, cluster: embedded.Cluster, start_api: StartApi,
    make_database: Callable[[], str],
) -> None:  # fmt: skip
    east = await start_api(
        dsn=make_database(), node="east", source=west.url, source_token=west.tokens["node:east"], snapshot_first=False
    )
    there = await asyncpg.connect(east.settings.dsn)
    await live(west)
    await conn.execute("UPDATE fedstac.deletion_dependency SET comment = $1", f"{MARKER}-comment")
    await act(west, "unmark")
    waiting = await reconcile(west, [item(1, f"{MARKER}-stated"), item(2, "other")], dry_run="true")
    cleared = await reconcile(west, [item(2, "other")], confirm="1")
    assert (await loads.end_of(west.admin, cleared["id"]))["status"] == "done"
    assert (await west.anyone.get(PATH)).status_code == 404
    await leave_traces(conn)
    await until(lambda: agree(conn, there))
    assert MARKER in str(await feed_of(west)), "a load cuts nothing"
    refused = await west.anyone.post(f"{PATH}/purge")
    assert refused.status_code == 401
    await act(west, "purge")
    await until(lambda: agree(conn, there))
    for each in (conn, there):  # by housekeeping
        await until(lambda each=each: each.fetchval(UNUSED))  # type: ignore[misc]
    assert lines_with(MARKER, dump(cluster, west.settings.dsn)) == []
    assert lines_with(MARKER, dump(cluster, east.settings.dsn)) == []
    assert "other-title" in dump(cluster, east.settings.dsn)
    assert (await west.anyone.get(PATH)).status_code == 410
    tombstone = (await west.admin.get(f"{PATH}?deleted=include")).json()
    assert (tombstone["state"], tombstone["deleted_by"]) == ("purged", None)
    late = await west.admin.post(f"/loads/{waiting['id']}/apply", params={"dry_run": "true"})
    assert late.json()["changes"]["held"] == 1, "its id is never used again"
    for each in (conn, there):
        assert await invariants.check(each) == []
    await there.close()


async def reconcile(api: Api, items: Sequence[Json], **parameters: str) -> Json:
    """State everything that shall exist; return the load."""
    answer = await api.admin.post(
        "/collections/plain/reconcile", content=loads.lines(items), headers=loads.LINES, params=parameters
    )
    assert answer.status_code in (200, 202), answer.text
    load: Json = answer.json()
    return load


async def is_refused_at_the_door(api: Api, conn: asyncpg.Connection) -> None:
    """Send the purged dataset again, alone and among others, with a key and without: nothing of it is stored."""
    before = await conn.fetchval("SELECT count(*) FROM fedstac.request")
    again = item(1, MARKER)
    for body, headers, status in (
        (again, {}, 409), (again, {"Idempotency-Key": "k"}, 409), (again, {"If-None-Match": "*"}, 412),
        ({"type": "FeatureCollection", "features": [again]}, {}, 409),
    ):  # fmt: skip
        refused = await api.admin.post(ITEMS, json=body, headers={"Prefer": "wait=0", **headers})
        assert refused.status_code == status, refused.text
        assert "thing-1" in refused.json()["detail"]
    assert await conn.fetchval("SELECT count(*) FROM fedstac.request") == before
    both = {"type": "FeatureCollection", "features": [again, item(4, "fourth")]}
    accepted = await api.admin.post(ITEMS, json=both, headers={"Prefer": "wait=60"})
    assert accepted.json()["counts"] | {"rejected": 1, "done": 1} == accepted.json()["counts"], accepted.text
    put = await api.admin.put(PATH, json=again, headers={"Prefer": "wait=0"})
    assert put.status_code in (404, 409, 410), put.text


async def test_a_purge_that_is_killed_between_any_two_steps_happens_once(
    dsn: str, conn: asyncpg.Connection, cluster: embedded.Cluster
) -> None:
    settings = Settings(dsn=dsn, node="west", default_wait_seconds=60, _env_file=None)
    async with running(settings) as api:
        await prepare(api)
        await live(api)
        await end_grace(conn)
        await act(api, "delete")
    async with running(settings, background=False) as api:
        accepted = await api.admin.post(f"{PATH}/purge", json={}, headers={"Prefer": "wait=0"})
        assert accepted.status_code == 202, accepted.text
    words = [f"{step}=kill" for step in PURGE_STEPS]
    assert await ends_of(dsn, *words, "-") == [*[-signal.SIGKILL] * len(words), 0]
    async with running(settings) as api:
        assert (await api.admin.get(f"/requests/{accepted.json()['id']}")).json()["counts"]["done"] == 1
        await until(lambda: conn.fetchval(UNUSED))
    assert await conn.fetchval("SELECT count(*) FROM fedstac.outbox WHERE type LIKE '%.purged.v1'") == 1
    assert await conn.fetchval("SELECT count(*) FROM fedstac.audit WHERE action = 'purge' AND outcome = 'purged'") == 1
    assert lines_with(MARKER, dump(cluster, dsn)) == []
    assert (await audit.verify(conn)).pos > 0
    assert await invariants.check(conn) == []


async def test_after_the_steps_that_the_documents_name_no_file_of_postgresql_has_a_word_of_it(
    dsn: str, conn: asyncpg.Connection, cluster: embedded.Cluster
) -> None:
    """docs/deletion.md, "What a purge cannot remove": freed space of tables, and the write-ahead log."""
    settings = Settings(dsn=dsn, node="west", default_wait_seconds=60, _env_file=None)
    async with running(settings) as api:
        await prepare(api)
        await live(api)
        await end_grace(conn)
        await act(api, "delete")
        await act(api, "purge")
        await until(lambda: conn.fetchval(UNUSED))
    superuser = await asyncpg.connect(cluster.dsn(name_in(dsn)))
    try:
        assert files_with(MARKER, cluster.data), "it would not be found where it is"
        await superuser.execute("ALTER SYSTEM SET wal_recycle = off")
        await superuser.execute("SELECT pg_reload_conf()")
        await until(lambda: superuser.fetchval("SELECT current_setting('wal_recycle') = 'off'"))
        await superuser.execute("VACUUM (FULL, ANALYZE)")
        await superuser.execute("CHECKPOINT")
        for _ in range(await superuser.fetchval("SELECT count(*) FROM pg_ls_waldir()")):
            await superuser.execute("SELECT pg_switch_wal()")
            await superuser.execute("CHECKPOINT")
        assert files_with(MARKER, cluster.data) == []
    finally:
        await superuser.execute("ALTER SYSTEM RESET wal_recycle")
        await superuser.execute("SELECT pg_reload_conf()")
        await superuser.close()


def files_with(word: str, folder: Path) -> list[str]:
    """Return the files under a folder that have the bytes of a word."""
    return sorted(
        str(file.relative_to(folder)) for file in folder.rglob("*")
        if file.is_file() and word.encode() in file.read_bytes()
    )  # fmt: skip


async def test_nobody_changes_the_log_but_by_redacting_what_is_deleted(west: Api, conn: asyncpg.Connection) -> None:
    before = await conn.fetch("SELECT id, event FROM fedstac.outbox ORDER BY id")
    writer = await asyncpg.connect(west.settings.dsn)
    for column in ("event = ''", "digest = ''", "type = ''", "dataset = ''"):
        with pytest.raises(asyncpg.InsufficientPrivilegeError):
            await writer.execute(f"UPDATE fedstac.outbox SET {column}")
    assert await writer.fetchval("SELECT fedstac.redact_events('{plain}', '{thing-1}')") == 0
    assert await conn.fetch("SELECT id, event FROM fedstac.outbox ORDER BY id") == before
    await writer.close()
