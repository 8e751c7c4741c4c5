"""Summaries of collections: what their published datasets have, as searches may find them."""

from __future__ import annotations

from typing import Any

import pytest

from fedstac.api.call import Services
from fedstac.api.search import summaries
from fedstac.demo import sample
from fedstac.domain import aggregating
from tests.support.nodes import Api

ITEMS = "/collections/free/items"
WAIT = {"Prefer": "wait=30"}


def item(name: str, **properties: Any) -> dict[str, Any]:
    return {
        "type": "Feature", "stac_version": "1.1.0", "id": name, "collection": "free", "geometry": None, "links": [],
        "assets": {}, "properties": {"datetime": "2000-01-01T00:00:00Z", **properties},
    }  # fmt: skip


async def shown(api: Api) -> dict[str, Any]:
    """Return the summaries of the collection, which are the same in the list."""
    own = (await api.anyone.get("/collections/free")).json()
    listed = (await api.anyone.get("/collections")).json()["collections"]
    assert [each["summaries"] for each in listed if each["id"] == "free"] == [own["summaries"]]
    found: dict[str, Any] = own["summaries"]
    return found


@pytest.fixture
async def free(api: Api) -> Api:
    document = {**sample.collection("free"), "summaries": {"x:own": [1], "x:kind": ["of old"]}}
    assert (await api.admin.post("/collections", json=document)).status_code < 300
    return api


async def test_summaries_follow_the_datasets_and_hidden_ones_do_not_count(free: Api) -> None:
    before = await free.anyone.get("/collections/free")
    assert before.json()["summaries"] == {"x:own": [1], "x:kind": ["of old"]}
    values = {"a": ("rain", ["sun", "fog"]), "hidden": ("snow", ["ice"]), "retracted": ("hail", ["fog"])}
    for name, (kind, tags) in values.items():
        document = item(name, **{"x:kind": kind, "x:tags": tags, "x:n": len(name), "x:flag": True})
        assert (await free.admin.post(ITEMS, json=document, headers=WAIT)).status_code == 201
    full = await shown(free)
    assert full["x:kind"] == ["hail", "rain", "snow"]
    assert full["x:tags"] == ["fog", "ice", "sun"]
    assert (full["x:n"], full["x:flag"], full["x:own"]) == ([1, 6, 9], [True], [1])
    assert (await free.admin.delete(f"{ITEMS}/hidden")).status_code == 200
    reason = {"reason": "wrong forcing"}
    answer = await free.admin.post(f"{ITEMS}/retracted/retract", json=reason, headers=WAIT)
    assert answer.status_code < 300, answer.text
    left = await shown(free)
    assert (left["x:kind"], left["x:tags"], left["x:n"]) == (["rain"], ["fog", "sun"], [1])


async def test_no_connection_is_held_while_values_are_counted(free: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    users: list[int] = []

    async def of_collections(services: Services) -> dict[str, dict[str, list[Any]]]:
        users.append(services.node.pool.users)
        return {}

    monkeypatch.setattr(summaries, "of_collections", of_collections)
    for path in ("/collections", "/collections/free"):
        assert (await free.anyone.get(path)).status_code == 200
    assert users == [0, 0]


async def test_a_page_that_is_kept_is_asked_for_again_when_the_values_are_others(free: Api) -> None:
    first = await free.anyone.get("/collections/free")
    condition = {"If-None-Match": first.headers["etag"]}
    assert (await free.anyone.get("/collections/free", headers=condition)).status_code == 304
    await free.admin.post(ITEMS, json=item("a", **{"x:kind": "rain"}), headers=WAIT)
    second = await free.anyone.get("/collections/free", headers=condition)
    assert (second.status_code, second.json()["summaries"]["x:kind"]) == (200, ["rain"])
    match = {"If-Match": second.headers["etag"]}
    assert (await free.admin.patch("/collections/free", json={"title": "t"}, headers=match)).status_code == 200
    assert (await free.admin.patch("/collections/free", json={"title": "u"}, headers=match)).status_code == 412


async def test_a_property_with_very_many_values_has_no_summary(free: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(summaries, "MOST_VALUES", 3)
    features = [item(f"i{n}", **{"x:many": f"v{n}", "x:few": n % 3}) for n in range(9)]
    await free.admin.post(ITEMS, json={"type": "FeatureCollection", "features": features}, headers=WAIT)
    found = await shown(free)
    assert "x:many" not in found
    assert found["x:few"] == [0, 1, 2]


def test_members_are_in_order_whatever_their_types() -> None:
    assert aggregating.members([["b", "a"], "a", 2, 1.5, True, None, {"x": 1}]) == [1.5, 2, True, "a", "b"]
