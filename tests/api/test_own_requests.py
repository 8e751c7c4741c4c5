"""GET /requests: one's own, the newest first, a page at a time; nobody else's."""

from __future__ import annotations

from typing import Any
from uuid import uuid4

from fedstac.demo import sample
from tests.support.nodes import Api


async def page(api: Api, role: str, **params: Any) -> Any:
    response = await api.anyone.get("/requests", params=params, headers={"Authorization": f"Bearer {api.tokens[role]}"})
    assert response.status_code == 200, response.text
    return response.json()


async def test_own_requests_are_listed_page_by_page_and_nobody_elses(api: Api) -> None:
    items = list(sample.items(7))
    sent = []
    for item in [*items, {**items[0], "geometry": {"type": "Point", "coordinates": ["x", 1]}}]:
        body = {"type": "FeatureCollection", "features": [item, items[6]]}
        response = await api.admin.post("/collections/CMIP6/items", json=body, headers={"Prefer": "wait=0"})
        sent.append(response.json()["id"])
    async with api.anyone.stream("GET", "/requests") as refused:
        assert refused.status_code == 401
    for id in sent:
        while not (await api.admin.get(f"/requests/{id}")).json()["finished"]:
            pass
    seen: list[dict[str, Any]] = []
    params: dict[str, Any] = {"limit": 3}
    while True:
        found = await page(api, "admin", **params)
        seen += found["requests"]
        if not any(link["rel"] == "next" for link in found["links"]):
            break
        params["after"] = found["requests"][-1]["id"]
    assert [one["id"] for one in seen] == sent[::-1]
    assert [one["status"] for one in seen] == ["partly", *["done"] * 6, seen[-1]["status"]]
    assert seen[0]["counts"] == {"queued": 0, "done": 1, "rejected": 1, "failed": 0}
    assert (await page(api, "node:east"))["requests"] == []
    assert (await page(api, "node:east", after=sent[3]))["requests"] == []
    assert (await page(api, "admin", after=str(uuid4())))["requests"] == []
    for wrong in ({"limit": "x"}, {"after": "x"}):
        assert (await api.admin.get("/requests", params=wrong)).status_code == 400
