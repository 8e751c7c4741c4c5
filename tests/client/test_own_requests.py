"""`fedstac requests`: what one has sent."""

from __future__ import annotations

import asyncio

import pytest

from fedstac.client import AsyncClient, Client
from fedstac.client.transport import Conflict
from fedstac.demo import sample
from tests.support.clients import broken
from tests.support.commands import Fedstac, lines, to
from tests.support.nodes import Api, StartApi


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
    misspelt = await fedstac("requests", "list", "--status", "partial", **to(api))
    assert (misspelt.code, "'partly'" in misspelt.stderr) == (2, True)
    nothing = await fedstac("requests", "list", "--status", "failed", **to(api))
    assert (nothing.code, nothing.stdout, nothing.stderr) == (0, "", "none\n")
    shown = await fedstac("requests", "show", listed.lines[0]["id"], **to(api))
    assert shown.code == 1
    assert "item 1" in shown.stdout
    assert (await fedstac("requests", "list", "-o", "json", **to(api, "node:east"))).stdout == "[]\n"


async def test_a_waiting_request_is_cancelled_and_tried_again(start_api: StartApi, dsn: str, fedstac: Fedstac) -> None:
    idle = await start_api(dsn=dsn, background=False)
    await idle.admin.post("/collections", json=sample.collection())
    sent = await fedstac("publish", "-", "--no-wait", "-o", "json", stdin=lines([*sample.items(3)]), **to(idle))
    [request] = sent.lines[0]["requests"]
    cancelled = await fedstac("requests", "cancel", request["request"], **to(idle))
    assert (cancelled.code, cancelled.stdout) == (0, "3 items cancelled; the request is cancelled: 0 of 3 done\n")
    listed = await fedstac("requests", "list", "--status", "cancelled", **to(idle))
    assert listed.stdout.splitlines()[1].split()[1] == "cancelled"
    shown = await fedstac("status", request["request"], **to(idle))
    assert shown.stdout.splitlines()[0].split()[1] == "cancelled"
    again = await fedstac("requests", "cancel", request["request"], "-o", "json", **to(idle))
    assert (again.code, again.lines[0]["cancelled"]) == (0, 0)
    retried = await fedstac("requests", "retry", request["request"], **to(idle))
    assert (retried.code, retried.stdout.partition(";")[0]) == (0, "3 items sent again")
    [newest, _] = (await fedstac("requests", "list", "-o", "ndjson", **to(idle))).lines
    shown = await fedstac("requests", "show", newest["id"], "-o", "json", **to(idle))
    assert (shown.lines[0]["retry_of"], shown.lines[0]["status"]) == (request["request"], "queued")
    assert (await fedstac("requests", "cancel", "nonsense", **to(idle))).code == 3


async def test_nothing_to_try_again_is_a_conflict(api: Api, fedstac: Fedstac) -> None:
    async with AsyncClient(api.url, api.tokens["admin"]) as client:
        with Client(api.url, api.tokens["admin"]) as threaded:
            sent = await asyncio.to_thread(threaded.submit, "CMIP6", list(sample.items(1)))
            await asyncio.to_thread(list, threaded.wait(sent.id))
        assert (await client.cancel(sent.id)).status == "done"
        with pytest.raises(Conflict, match="there is nothing to try again"):
            await client.retry(sent.id)
    refused = await fedstac("requests", "retry", sent.id, **to(api))
    assert refused.code == 1
    assert "nothing to try again" in refused.stderr


async def test_what_is_refused_again_is_told(api: Api, fedstac: Fedstac) -> None:
    items = list(sample.items(2))
    sent = await fedstac("publish", "-", "-o", "json", stdin=lines([items[0], broken(items[1])]), **to(api))
    [request] = sent.lines[0]["requests"]
    refused = await fedstac("requests", "retry", request["request"], "--follow", **to(api))
    assert refused.code == 1
    assert "none of the 1 items is valid" in refused.stderr
