"""Looks and changes of the Python client against a running node, synchronous and asynchronous."""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import partial
from typing import Any

import httpx
import pytest

from fedstac.client import AsyncClient, Client
from fedstac.client.transport import Conflict, Invalid, NotAuthorised, NotFound
from fedstac.demo import sample
from tests.support.clients import FILES, ID, ITEM, broken, newer, with_client
from tests.support.nodes import Api
from tests.support.waiting import until


async def test_a_dataset_and_its_versions_are_got(west: Api) -> None:
    def work(client: Client) -> None:
        found = client.get(ID)
        assert (found.id, found.collection, found.state, found.is_latest) == (ID, "CMIP6", "published", False)
        assert found.etag
        base = found.base_id
        assert base
        for name in (ID, base):
            assert [one.version for one in client.history(name)] == [ITEM["properties"]["version"], "20991231"]
        with pytest.raises(NotFound):
            client.get(ID[:-8] + "20010101")
        with pytest.raises(NotFound):
            client.history("CMIP6.nothing")

    await with_client(west, "admin", work)


async def test_a_dataset_is_retracted_and_reinstated(west: Api) -> None:
    def work(client: Client) -> None:
        tried = client.retract(ID, reason="wrong forcing", dry_run=True)
        assert (tried.outcome, tried.request, tried.dry_run) == ("retracted", None, True)
        assert client.get(ID).state == "published"
        done = client.retract(ID, reason="wrong forcing", errata="https://errata.esgf.io/x", data="restrict")
        assert (done.outcome, done.dry_run) == ("retracted", False)
        assert done.request
        assert client.request(done.request).status == "done"
        found = client.get(ID)
        assert (found.state, found.properties["fedstac:retraction"]["data"]) == ("retracted", "restrict")
        again = client.retract(ID, reason="wrong forcing", errata="https://errata.esgf.io/x", data="restrict")
        assert again.outcome == "identical"
        with pytest.raises(Conflict, match="is retracted; reinstate it"):
            client.patch(ID, {"properties": {"cmip6:grid": "x"}})
        assert client.reinstate(ID).outcome == "reinstated"
        assert client.get(ID).state == "published"
        assert [one.state for one in client.history(ID)] == ["published", "published"]

    await with_client(west, "admin", work)


async def test_refusals_are_typed_and_carry_findings(west: Api) -> None:
    def work(client: Client) -> None:
        with pytest.raises(Invalid) as refused:
            client.patch(ID, [{"op": "replace", "path": "/properties/cmip6:nominal_resolution", "value": "100km"}])
        [finding] = [one for one in refused.value.findings if one.pointer.endswith("resolution")]
        assert (refused.value.type, finding.pointer) == ("stac-validation", "/properties/cmip6:nominal_resolution")
        assert finding.suggestion == "100 km"
        other = copy.deepcopy(ITEM)
        other["assets"][FILES[0]]["file:checksum"] = "1220" + "a" * 64
        with pytest.raises(Conflict, match="files never change"):
            client.put(other)
        etag = client.get(ID).etag
        assert client.patch(ID, {"properties": {"cmip6:grid": "one"}}, if_match=etag).outcome == "updated"
        with pytest.raises(Conflict) as late:
            client.patch(ID, {"properties": {"cmip6:grid": "two"}}, if_match=etag)
        assert late.value.status == 412
        assert client.put(ITEM).outcome == "updated"
        assert client.put(ITEM).outcome == "identical"
        with pytest.raises(NotFound, match="there is no"):
            client.retract("CMIP6.nothing")

    def stranger(client: Client) -> None:
        with pytest.raises(NotAuthorised):
            client.retract(ID)

    await with_client(west, "admin", work)
    await with_client(west, "node:south", stranger)


async def test_marking_hides_until_it_is_taken_back(west: Api) -> None:
    def work(client: Client) -> None:
        assert client.mark(ID, reason="by mistake").outcome == "marked"
        with pytest.raises(NotFound):
            client.get(ID)
        assert [one.version for one in client.history(ID.rpartition(".v")[0])] == ["20991231"]
        assert client.unmark(ID).outcome == "unmarked"
        assert client.get(ID).id == ID

    await with_client(west, "admin", work)


async def test_a_quarantine_is_put_and_released(west: Api) -> None:
    async with AsyncClient(west.url, west.tokens["admin"]) as client:
        before = (await client.get(ID)).document
        done = await client.quarantine(ID, reason="licence?", case="T-1", contact="data@a.example")
        assert done.outcome == "quarantined"
        assert (await client.get(ID)).document["assets"] == {}
        assert (await client.release(ID, decision="it is free")).outcome == "released"
        assert (await client.get(ID)).document["assets"] == before["assets"]
        with pytest.raises(Conflict, match="mark it first"):
            await client.delete(ID)
        await client.mark(ID)
        with pytest.raises(Conflict) as early:
            await client.delete(ID)
        assert early.value.type == "deletion-not-ready"
        assert "grace" in {finding.rule for finding in early.value.findings}
        with pytest.raises(Conflict, match="not deleted"):
            await client.purge(ID)


async def test_replicas_are_told_and_taken_away(west: Api) -> None:
    entries = {key: {"href": f"https://east.example/{key}"} for key in FILES}

    def work(client: Client) -> None:
        assert client.put_replica(ID, "east", entries).outcome == "replicated"
        [replica] = client.list_replicas(ID)
        assert (replica.node, replica.files, replica.of, replica.is_complete) == ("east", len(FILES), len(FILES), True)
        assert replica.hrefs == {key: entry["href"] for key, entry in entries.items()}
        with pytest.raises(NotAuthorised):
            client.put_replica(ID, "south", entries)
        assert client.remove_replica(ID, "east").outcome == "replicated"
        assert client.list_replicas(ID) == []

    await with_client(west, "node:east", work)


async def test_replicas_are_submitted_and_looked_at_by_a_program_that_may_die_between(west: Api) -> None:
    entries = {key: {"href": f"https://east.example/{key}"} for key in FILES}
    async with AsyncClient(west.url, west.tokens["node:east"]) as client:
        request = await client.submit_replica(ID, "east", entries, key="east 1")
        assert request
        assert await client.submit_replica(ID, "east", entries, key="east 1") == request
        result = await until(partial(client.look_at_change, ID, request))
        assert result
        assert (result.id, result.outcome, result.request) == (ID, "replicated", request)
        assert await client.submit_replica(ID, "east", entries, key="east 2") is None
        removal = await client.submit_replica(ID, "east", None, key="east 3")
        assert removal
        await until(partial(client.look_at_change, ID, removal))
        assert await client.list_replicas(ID) == []
        assert await client.submit_replica(ID, "east", None, key="east 4") is None


async def test_documents_are_judged_and_rehearsed(west: Api) -> None:
    items = [ITEM, newer(ITEM, "20991231"), newer(ITEM, "20991232"), broken(next(sample.items(1, start=7)))]
    described = copy.deepcopy(ITEM)
    described["properties"]["description"] = "told better"

    def work(client: Client) -> None:
        assert [one.valid for one in client.validate(items)] == [True, True, False, False]
        found = client.rehearse("CMIP6", [*items, newer(ITEM, "21000101"), *sample.items(1, start=9)])
        assert [one.outcome for one in found] == ["identical", "identical", "rejected", "rejected", "newer", "new"]
        assert (found[3].type, bool(found[3].findings)) == ("stac-validation", True)
        assert [one.outcome for one in client.rehearse("CMIP6", [described])] == ["updated"]
        assert client.get(ID).properties.get("description") != "told better"

    await with_client(west, "admin", work)


async def test_the_same_without_blocking(west: Api) -> None:
    http = httpx.AsyncClient(trust_env=False)
    async with AsyncClient(west.url, west.tokens["admin"], retries=1, http=http) as client:
        assert (await client.get(ID)).id == ID
        assert (await client.retract(ID, reason="x")).outcome == "retracted"
        assert (await client.reinstate(ID)).outcome == "reinstated"
        assert len(await client.history(ID)) == 2
        with pytest.raises(NotFound):
            await client.get("CMIP6.nothing")
        assert [one.valid for one in await client.validate([ITEM])] == [True]


async def test_both_clients_have_the_same_looks_and_changes() -> None:
    both = {name for name in vars(AsyncClient) if not name.startswith("_")} - {"aclose", "perform"}
    assert both <= set(vars(Client))
    for name in both:
        method: Callable[..., Any] = getattr(AsyncClient, name)
        assert method.__doc__ == getattr(Client, name).__doc__
