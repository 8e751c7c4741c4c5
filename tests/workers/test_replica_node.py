"""The replica node as a consumer: beside an index node in one database, of two origins, stopped in the middle."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import orjson
import pytest

from fedstac.bootstrap import Node
from fedstac.db import troubles
from fedstac.db.connections import Connection
from fedstac.demo import embedded, sample
from fedstac.domain.replication.policy import ReplicaPolicy
from fedstac.messaging.sources.addresses import SourcesUnclear
from fedstac.settings import Misconfigured, Settings
from fedstac.workers import replica_identity, roles
from fedstac.workers.following import Follower
from fedstac.workers.replica_node import ReplicaHandler
from tests.db.sources import Json, Source, entry
from tests.support import loads
from tests.support.dumps import dump, lines_with
from tests.support.nodes import Api, StartApi
from tests.support.waiting import until
from tests.workers.replicating import POLICY, plant, replicating, settings_of


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """The served folder of a replica node; its policy is beside it."""
    (tmp_path / "policy.yaml").write_text(POLICY)
    (tmp_path / "served").mkdir()
    return tmp_path / "served"


async def state_of(conn: Connection, id: str) -> str | None:
    state: str | None = await conn.fetchval("SELECT state FROM fedstac.replica_dataset WHERE id = $1", id)
    return state


async def acknowledged(api: Api) -> dict[str, int]:
    """Return the position through which each consumer has acknowledged at the origin."""
    headers = {"Authorization": f"Bearer {api.tokens['node:east']}"}
    body = (await api.admin.get("/events/head", headers=headers)).json()
    return {row["node"]: int(row["through"].partition(".")[2]) for row in body["nodes"]}


async def test_beside_an_index_node_files_of_a_retracted_dataset_go_before_it_is_acknowledged_though_stopped_in_between(
    api: Api, start_api: StartApi, make_database: Callable[[], str], place: Path
) -> None:
    index = await start_api(dsn=make_database(), node="east", source=api.url, source_token=api.tokens["node:east"])
    items = list(sample.items(2, versions=1))
    body = {"type": "FeatureCollection", "features": items}
    assert (await api.admin.post("/collections/CMIP6/items", json=body)).status_code == 200
    id = items[0]["id"]
    away = place.with_name("unmounted")
    async with replicating(settings := settings_of(index, api, place)) as conn:

        async def is_planned() -> bool:
            query = "SELECT count(*) FROM fedstac.replica_dataset WHERE state <> 'catalogued'"
            return int(await conn.fetchval(query)) == 2

        await until(is_planned)
        consumers = await conn.fetch("SELECT consumer FROM fedstac.consumer_cursor ORDER BY 1")
        assert [row[0] for row in consumers] == ["index", "replica"]

        async def both_have_everything() -> bool:
            through = await acknowledged(api)
            return through.get("east/replica", 0) == through.get("east", -1)

        await until(both_have_everything)
        paths = await plant(conn, place, id)
        await asyncio.to_thread(place.rename, away)  # the disk is away: nothing can be taken out of it
        before = (await acknowledged(api))["east/replica"]
        answer = await api.admin.post(
            f"/collections/CMIP6/items/{id}/retract", json={"reason": "wrong", "data": "purge"}
        )
        assert answer.status_code == 200, answer.text

        async def it_says_why_it_cannot() -> bool:
            row = await conn.fetchrow("SELECT reason, attempts FROM fedstac.replica_removal")
            return row is not None and row["attempts"] > 0 and str(place) in row["reason"]

        await until(it_says_why_it_cannot)

        async def index_is_ahead() -> bool:
            return (await acknowledged(api))["east"] > before

        await until(index_is_ahead)
        assert (await acknowledged(api))["east/replica"] == before
        assert await state_of(conn, id) == "removing"
    await asyncio.to_thread(away.rename, place)
    async with replicating(settings) as conn:
        await conn.execute("UPDATE fedstac.replica_removal SET next_try = NULL")

        async def is_gone() -> bool:
            return await state_of(conn, id) == "removed"

        await until(is_gone)
        assert not any(path.exists() for path in paths)
        await until(both_have_everything)
        shown = (await index.anyone.get(f"/collections/CMIP6/items/{items[1]['id']}")).json()
        assert shown["id"] == items[1]["id"]


async def test_of_a_purged_dataset_a_replica_node_keeps_no_file_no_name_and_no_word(
    api: Api, start_api: StartApi, make_database: Callable[[], str], place: Path, cluster: embedded.Cluster,
    conn: Connection,
) -> None:  # fmt: skip
    index = await start_api(dsn=make_database(), node="east", source=api.url, source_token=api.tokens["node:east"])
    [item] = sample.items(1, versions=1)
    item["properties"]["description"] = "qzxmark-description"
    for n, asset in enumerate(asset for asset in item["assets"].values() if "file:checksum" in asset):
        asset["href"] = f"https://127.0.0.1:9/qzxmark-{n}.nc"
    assert (await api.admin.post("/collections/CMIP6/items", json=item)).status_code == 201
    path = f"/collections/CMIP6/items/{item['id']}"
    async with replicating(settings_of(index, api, place)) as there:

        async def is_planned() -> bool:
            return await state_of(there, item["id"]) in ("queued", "transferring", "waiting")

        await until(is_planned)
        n = await there.fetchval("SELECT n FROM fedstac.replica_dataset")
        await troubles.report(there, "replica-source", place="west", detail="qzxmark-why",
                              what=f"{item['id']}, data: the file at https://127.0.0.1:9/qzxmark is wrong")  # fmt: skip
        await there.execute(
            """WITH look AS (INSERT INTO fedstac.replica_look (kind, by_checksum, sample_percent)
                             VALUES ('verify', true, 100) RETURNING id)
               INSERT INTO fedstac.replica_finding (look, fault, n, path, detail)
               SELECT id, 'missing', $1, 'qzxmark.nc', 'qzxmark-finding' FROM look""",
            n,
        )
        served = await plant(there, place, item["id"])
        assert lines_with("qzxmark", dump(cluster, index.settings.dsn))
        wait = {"Prefer": "wait=60"}
        assert (await api.admin.delete(f"{path}?reason=qzxmark-mark", headers=wait)).status_code == 200
        await conn.execute("UPDATE fedstac.deletion SET grace_until = marked_at - interval '1 second'")
        await conn.execute("UPDATE fedstac.deletion_dependency SET state = 'waived'")
        for action in ("delete", "purge"):
            assert (await api.admin.post(f"{path}/{action}", json={}, headers=wait)).status_code == 200

        async def is_purged() -> bool:
            query = """SELECT event_state = 'purged' AND state = 'removed' AND NOT EXISTS (
                           SELECT FROM fedstac.replica_removal WHERE state <> 'done') FROM fedstac.replica_dataset"""
            at_index = "SELECT state = 'purged' FROM fedstac.record"
            return bool(await there.fetchval(query)) and bool(await there.fetchval(at_index))

        await until(is_purged)
    assert not any(each.exists() for each in served)
    names = [name for _, folders, files in os.walk(place) for name in (*folders, *files)]
    assert [name for name in names if not name.startswith(".")] == []  # no folder either
    for dsn in (api.settings.dsn, index.settings.dsn):
        assert lines_with("qzxmark", dump(cluster, dsn)) == []


async def test_each_origin_has_its_own_place_and_a_dataset_stays_its_first_origins(
    node: Node, conn: Connection
) -> None:
    first, second = list(sample.items(2, versions=1))
    north = Source([entry(node, first, "6.2.60.0")])
    south = Source([entry(node, first, "6.2.60.0", origin="south"), entry(node, second, "6.2.60.0", origin="south")],
                   origin="south")  # fmt: skip
    policy = ReplicaPolicy.parse(POLICY)
    for source in (north, south):
        handler = ReplicaHandler(node, source, lambda: policy)
        follower = Follower(node, handler, source, source, origin_name=source.origin)
        await follower.take_snapshot(None)
        await follower.take_snapshot(None)  # the same again changes nothing
    rows = await conn.fetch("SELECT id, origin, state FROM fedstac.replica_dataset ORDER BY origin")
    assert [tuple(row) for row in rows] == [(first["id"], "north", "queued"), (second["id"], "south", "queued")]
    parked = await conn.fetch("SELECT consumer, origin, subject, detail FROM fedstac.parked_event")
    assert [(row["consumer"], row["origin"], row["subject"]) for row in parked] == [
        ("replica", "south", f"CMIP6/{first['id']}")
    ]
    assert "another origin's" in parked[0]["detail"]
    places = await conn.fetch("SELECT consumer, origin FROM fedstac.consumer_cursor ORDER BY 2")
    assert [tuple(row) for row in places] == [("replica", "north"), ("replica", "south")]


async def test_an_event_that_contradicts_its_vocabulary_is_parked_and_nothing_of_it_is_fetched(
    node: Node, conn: Connection
) -> None:
    sound, broken = list(sample.items(2, versions=1))
    source = Source([entry(node, sound, "6.2.60.0"), entry(node, with_wrong_experiment(broken), "6.2.60.0")])
    policy = ReplicaPolicy.parse(POLICY)
    follower = Follower(node, ReplicaHandler(node, source, lambda: policy), source, source, origin_name=source.origin)
    await follower.take_snapshot(None)
    assert [row[0] for row in await conn.fetch("SELECT id FROM fedstac.replica_dataset")] == [sound["id"]]
    detail = await conn.fetchval("SELECT detail FROM fedstac.parked_event")
    assert "it contradicts CMIP6 6.2.60.0" in detail


async def test_what_the_snapshot_of_a_newer_epoch_lists_and_cannot_be_read_here_is_not_taken_as_lost(
    node: Node, conn: Connection
) -> None:
    kept, broken, gone = list(sample.items(3, versions=1))
    policy = ReplicaPolicy.parse(POLICY)
    second = [entry(node, item, "6.2.60.0", epoch=2) for item in (kept, with_wrong_experiment(broken))]
    for source in (
        Source([entry(node, item, "6.2.60.0") for item in (kept, broken, gone)]),
        Source(second, epoch=2),
    ):
        handler = ReplicaHandler(node, source, lambda: policy)
        await Follower(node, handler, source, source, origin_name=source.origin).take_snapshot(None)
    assert await conn.fetchval("SELECT subject FROM fedstac.parked_event") == f"CMIP6/{broken['id']}"
    goals = await conn.fetch("SELECT id, epoch, goal FROM fedstac.replica_dataset")
    assert {row["id"]: (row["epoch"], row["goal"]) for row in goals} == {
        kept["id"]: (2, "serve"), broken["id"]: (1, "serve"), gone["id"]: (1, "restrict"),
    }  # fmt: skip


def with_wrong_experiment(item: Json) -> Json:
    wrong: Json = orjson.loads(orjson.dumps(item))
    wrong["properties"]["cmip6:experiment_id"] = "no such experiment"
    return wrong


def test_missing_settings_are_named_before_anything_runs(place: Path) -> None:
    good: dict[str, Any] = {"source": "http://west.invalid", "replica_policy": str(place.with_name("policy.yaml")),
            "replica_folder": str(place), "replica_url": "https://east.example", "replica_token": "t"}  # fmt: skip
    assert roles.REPLICA.parts(Settings(**good, _env_file=None))
    for missing, variable in [
        ("replica_policy", "FEDSTAC_REPLICA_POLICY"), ("replica_folder", "FEDSTAC_REPLICA_FOLDER"),
        ("replica_url", "FEDSTAC_REPLICA_URL"), ("replica_token", "FEDSTAC_REPLICA_TOKEN"),
    ]:  # fmt: skip
        with pytest.raises(Misconfigured, match=variable):
            roles.REPLICA.parts(Settings(**{**good, missing: ""}, _env_file=None))


@pytest.mark.parametrize("configured", ["", "https://west.example", "https://west.example https://east.example"])
def test_a_node_reads_several_sources_by_its_own_identity(configured: str) -> None:
    own = Settings(source=configured, replica_token="mine", _env_file=None)
    sources = ["https://west.example", "https://south.example"]
    settings = roles.with_sources(own, sources, by_identity=True)
    assert (settings.source, settings.source_token) == (" ".join(sources), "")
    read = replica_identity.sources_of(settings)
    assert [(each.address, each.token, each.token_source and each.token_source()) for each in read] == [
        (address, "", "mine") for address in sources
    ]


def test_a_node_with_tokens_needs_one_for_each_source() -> None:
    own = Settings(source_token="a", replica_token="mine", _env_file=None)
    with pytest.raises(SourcesUnclear, match="1 tokens for 2 sources"):
        roles.with_sources(own, ["https://west.example", "https://south.example"], by_identity=True)


async def test_a_mark_over_a_quarantine_is_a_mark_here(
    api: Api, start_api: StartApi, make_database: Callable[[], str], place: Path
) -> None:
    index = await start_api(dsn=make_database(), node="east", source=api.url, source_token=api.tokens["node:east"])
    [item] = sample.items(1, versions=1)
    path, wait = f"/collections/CMIP6/items/{item['id']}", {"Prefer": "wait=60"}
    assert (await api.admin.post("/collections/CMIP6/items", json=item)).status_code == 201
    async with replicating(settings_of(index, api, place)) as there:

        async def state_here() -> str:
            return str(await there.fetchval("SELECT event_state FROM fedstac.replica_dataset"))

        assert (await api.admin.post(f"{path}/quarantine", json={"reason": "doubts"}, headers=wait)).is_success
        await until(lambda: is_equal(state_here, "quarantined"))
        assert (await api.admin.delete(path, headers=wait)).is_success
        await until(lambda: is_equal(state_here, "marked"))
        assert (await api.admin.post(f"{path}/unmark", headers=wait)).is_success
        await until(lambda: is_equal(state_here, "quarantined"))


async def test_files_of_a_cleared_dataset_are_kept_and_served_again_when_a_load_brings_it_back(
    api: Api, start_api: StartApi, make_database: Callable[[], str], place: Path
) -> None:
    index = await start_api(dsn=make_database(), node="east", source=api.url, source_token=api.tokens["node:east"])
    [item] = sample.items(1, versions=1)
    path = f"/collections/CMIP6/items/{item['id']}"
    assert (await api.admin.post("/collections/CMIP6/items", json=item)).status_code == 201
    async with replicating(settings_of(index, api, place)) as there:

        async def is_planned() -> bool:
            return await state_of(there, item["id"]) in ("queued", "transferring", "waiting")

        async def is_announced_at_origin() -> bool:
            document = (await api.anyone.get(path)).json()
            files = [asset for asset in document.get("assets", {}).values() if "file:checksum" in asset]
            return bool(files) and all("east" in asset.get("alternate", {}) for asset in files)

        async def is_restricted() -> bool:
            return await state_of(there, item["id"]) == "restricted"

        await until(is_planned)
        served = await plant(there, place, item["id"])
        await there.execute("UPDATE fedstac.replica_dataset SET announced_digest = 'told before'")
        assert (await loads.load(api.admin, [item], mode="rebuild", confirm="1"))["status"] == "done"
        await until(is_announced_at_origin)
        assert all(each.exists() for each in served)

        assert (await loads.load(api.admin, [], confirm="1"))["status"] == "done"
        await until(is_restricted)
        assert not any(each.exists() for each in served)
        assert (await loads.load(api.admin, [item]))["status"] == "done"
        await until(is_announced_at_origin)
        assert all(each.exists() for each in served)


async def is_equal(read: Callable[[], Awaitable[str]], expected: str) -> bool:
    return await read() == expected


async def test_a_node_takes_its_entry_away_from_a_retracted_dataset_and_adds_none(api: Api) -> None:
    [item] = sample.items(1, versions=1)
    path = f"/collections/CMIP6/items/{item['id']}"
    entries = {
        key: {"href": f"https://east.example/{key}"}
        for key, asset in item["assets"].items()
        if "file:checksum" in asset
    }
    east = {"Authorization": f"Bearer {api.tokens['node:east']}"}
    assert (await api.admin.post("/collections/CMIP6/items", json=item)).is_success
    assert (await api.anyone.put(f"{path}/replicas/east", json=entries, headers=east)).is_success
    assert (await api.admin.post(f"{path}/retract", json={"reason": "wrong", "data": "purge"})).is_success
    answer = await api.anyone.delete(f"{path}/replicas/east", headers=east)
    assert answer.is_success, answer.text
    refused = await api.anyone.put(f"{path}/replicas/east", json=entries, headers=east)
    assert refused.status_code == 409, refused.text
    assert (await api.admin.post(f"{path}/reinstate")).is_success
    document = (await api.anyone.get(path)).json()
    assert not any("east" in asset.get("alternate", {}) for asset in document["assets"].values())
