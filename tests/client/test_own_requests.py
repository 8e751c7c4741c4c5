"""`fedstac requests`: what one has sent."""

from __future__ import annotations

from fedstac import sample
from tests.api.conftest import Api
from tests.client.conftest import Fedstac
from tests.client.test_cli import broken, lines, to


async def test_own_requests_are_listed_and_shown(api: Api, fedstac: Fedstac) -> None:
    items = list(sample.items(6))
    items[5] = broken(items[5])
    assert (await fedstac("publish", "-", "--batch", "2", stdin=lines(items), **to(api))).code == 1
    listed = await fedstac("requests", "list", "-o", "ndjson", **to(api))
    assert [(line["status"], line["total"]) for line in listed.lines] == [("partly", 2), ("done", 2), ("done", 2)]
    table = await fedstac("requests", "list", "-n", "2", **to(api))
    header, *rows = table.stdout.splitlines()
    assert header.split() == ["request", "status", "action", "items", "since"]
    assert [row.split()[:3] for row in rows] == [[line["id"], line["status"], "publish"] for line in listed.lines[:2]]
    assert max(map(len, table.stdout.splitlines())) <= 80
    only = await fedstac("requests", "list", "--status", "partly", "-o", "ndjson", **to(api))
    assert [line["id"] for line in only.lines] == [listed.lines[0]["id"]]
    shown = await fedstac("requests", "show", listed.lines[0]["id"], **to(api))
    assert shown.code == 1
    assert "item 1" in shown.stdout
    assert (await fedstac("requests", "list", "-o", "json", **to(api, "node:east"))).stdout == "[]\n"
