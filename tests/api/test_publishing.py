"""Publishing over HTTP: what a client is promised."""

from __future__ import annotations

from fedstac.demo import sample
from tests.support.documents import written
from tests.support.nodes import Api


async def test_a_published_item_comes_back_equal_by_value(api: Api) -> None:
    [item] = sample.items(1)
    response = await api.admin.post("/collections/CMIP6/items", json=item)
    assert response.status_code == 201, response.text
    found = await api.anyone.get(f"/collections/CMIP6/items/{item['id']}")
    assert found.status_code == 200
    assert written(found.json()) == written(item)
    assert found.json()["properties"]["latest"] is True
    assert found.json()["properties"]["datetime"] is None
    again = await api.anyone.get(
        f"/collections/CMIP6/items/{item['id']}", headers={"If-None-Match": found.headers["etag"]}
    )
    assert again.status_code == 304
    for tags, status in (
        ("*", 304),
        (f'"x", W/{found.headers["etag"]}', 304),
        ('"x"', 200),
        (found.headers["etag"][:-2], 200),
    ):
        again = await api.anyone.get(found.url.path, headers={"If-None-Match": tags})
        assert again.status_code == status


async def test_a_batch_is_followed_and_searched(api: Api) -> None:
    items = list(sample.items(60))
    body = {"type": "FeatureCollection", "features": items}
    response = await api.admin.post("/collections/CMIP6/items", json=body)
    assert response.status_code == 200, response.text
    assert response.json()["status"] == "done"
    assert response.json()["counts"]["done"] == 60
    page = (await api.anyone.post("/search", json={"limit": 100})).json()
    assert page["numberMatched"] == 60
    assert {feature["id"] for feature in page["features"]} == {item["id"] for item in items}
    events = await api.anyone.get("/events", params={"after": "0.0", "limit": 2000, "wait": 5},
                                  headers={"Authorization": f"Bearer {api.tokens['node:east']}"})  # fmt: skip
    assert events.status_code == 200, events.text
    assert len(events.json()) >= 61
