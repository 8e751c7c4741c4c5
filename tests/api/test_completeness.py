"""How complete the replica of each node is, while replicas and files come and go: in the item, search, events."""

from __future__ import annotations

from typing import Any

import asyncpg
import orjson

from fedstac.db import invariants
from fedstac.demo import sample
from fedstac.domain import events
from fedstac.domain.events import DatasetEvent
from tests.db import writing
from tests.support.nodes import Api

Json = dict[str, Any]
ITEMS = "/collections/plain/items"


def file(name: str, digit: str) -> Json:
    return {"href": f"https://west.example/{name}", "roles": ["data"], "file:checksum": "1220" + digit * 64}


ITEM: Json = {
    **writing.plain(1),
    "bbox": [1, 1, 1, 1],
    "assets": {"a.nc": file("a.nc", "a"), "b.nc": file("b.nc", "b")},
}
PATH = f"{ITEMS}/{ITEM['id']}"
REASON = {"Fedstac-Override": "a file was forgotten"}


async def completeness(api: Api) -> Json:
    """Return what the item says of its replicas; a search and the last event, as a consumer reads it, say the same."""
    item = (await api.anyone.get(PATH)).json()
    replicas: Json = item["properties"].get("fedstac:replicas", {})
    [found] = (await api.anyone.get("/search?collections=plain")).json()["features"]
    assert found["properties"].get("fedstac:replicas", {}) == replicas
    conn = await asyncpg.connect(api.settings.dsn)
    text = await conn.fetchval("SELECT event FROM fedstac.outbox ORDER BY id DESC LIMIT 1")
    assert await invariants.check(conn) == []
    await conn.close()
    event = events.read({**orjson.loads(text), "epoch": 1}, None)
    assert isinstance(event, DatasetEvent)
    assert orjson.loads(event.record.replicas or "{}") == replicas
    return replicas


async def publish(api: Api) -> None:
    assert (await api.admin.post("/collections", json=sample.collection("plain"))).status_code == 201
    answer = await api.admin.post(ITEMS, json=ITEM)
    assert answer.status_code == 201, answer.text


async def announce(api: Api, node: str, *files: str) -> None:
    entries = {file: {"href": f"https://{node}.example/{file}"} for file in files}
    answer = await api.admin.put(f"{PATH}/replicas/{node}", json=entries)
    assert answer.status_code == 200, answer.text


async def store(api: Api, change: Any) -> None:
    """Store other files under the same version, as an exemption allows it."""
    item = (await api.admin.get(PATH)).json()
    change(item["assets"])
    answer = await api.admin.put(PATH, json=item, headers=REASON)
    assert answer.status_code == 200, answer.text


async def test_a_replica_or_a_file_that_comes_or_goes_changes_the_completeness(api: Api) -> None:
    await publish(api)
    assert await completeness(api) == {}
    await announce(api, "east", "a.nc")
    await announce(api, "south", "a.nc", "b.nc")
    part, whole = {"complete": False, "files": 1, "of": 2}, {"complete": True, "files": 2, "of": 2}
    assert await completeness(api) == {"east": part, "south": whole}
    await announce(api, "east", "a.nc", "b.nc")
    assert await completeness(api) == {"east": whole, "south": whole}

    await store(api, lambda assets: assets.update({"c.nc": file("c.nc", "c")}))
    two_of_three = {"complete": False, "files": 2, "of": 3}
    assert await completeness(api) == {"east": two_of_three, "south": two_of_three}
    await announce(api, "south", "a.nc", "b.nc", "c.nc")
    assert await completeness(api) == {"east": two_of_three, "south": {"complete": True, "files": 3, "of": 3}}
    await store(api, lambda assets: assets.pop("c.nc"))
    assert await completeness(api) == {"east": whole, "south": whole}

    await store(api, lambda assets: assets["b.nc"].update({"file:checksum": "1220" + "d" * 64}))
    assert await completeness(api) == {"east": part, "south": part}  # they have the file as it was
    assert (await api.admin.delete(f"{PATH}/replicas/south")).status_code == 200
    assert await completeness(api) == {"east": part}
    assert (await api.admin.delete(f"{PATH}/replicas/east")).status_code == 200
    assert await completeness(api) == {}


async def test_states_leave_the_completeness_as_it_is(api: Api) -> None:
    await publish(api)
    await announce(api, "east", "a.nc", "b.nc")
    before = await completeness(api)
    for there, back in (("quarantine", "release"), ("retract", "reinstate")):
        assert (await api.admin.post(f"{PATH}/{there}", json={"reason": "to be looked at"})).status_code == 200
        assert (await api.admin.post(f"{PATH}/{back}", json={})).status_code == 200
        assert await completeness(api) == before
    assert (await api.admin.delete(PATH)).status_code == 200
    assert (await api.admin.post(f"{PATH}/unmark")).status_code == 200
    assert await completeness(api) == before
