"""Grants by the methods of Client and AsyncClient: given, checked, listed page by page, imported and withdrawn."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime
from typing import Any

import orjson
import pytest

from fedstac.client import AsyncClient, Client
from fedstac.client import grants as granting
from fedstac.client.grants import GrantImport
from tests.support.nodes import Api

UNTIL = "2999-01-01T00:00:00Z"


def wish(subject: str, **target: str) -> dict[str, Any]:
    return {"subject": subject, "valid_until": UNTIL, **(target or {"project": "CMIP6"})}


def live(url: str, token: str) -> list[str]:
    """Give grants and withdraw them; return the subjects of those that were listed."""
    with Client(url, token=token) as client:
        first = client.give_grant(wish("bert"))
        assert client.give_grant(wish("bert")) == first, "again it changes nothing"
        [listed] = client.grants({"subject": "bert"})
        assert listed["id"] == first["id"]
        reports: list[GrantImport] = []
        lines = [orjson.dumps(wish(f"person {n}")) for n in range(5)]
        done = client.import_grants([*lines, b"no JSON"], on_part=reports.append)
        assert (done.new_count, done.present_count, [each["line"] for each in done.refusals]) == (5, 0, [6])
        assert [report.new_count + len(report.refusals) for report in reports] == [2, 4, 6]
        subjects, page = [], client.grants({"project": "CMIP6"}, limit=4)
        while page:
            subjects += [each["subject"] for each in page]
            page = client.grants({"project": "CMIP6"}, after=page[-1]["id"], limit=4)
        assert client.withdraw_grant(first["id"], reason="over")["stand"] == "closed"
        assert client.withdraw_grants({"project": "CMIP6"}) == 5
        return subjects


async def test_a_client_gives_lists_imports_and_withdraws_grants(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(granting, "AT_ONCE", 2)
    subjects = await asyncio.to_thread(live, api.url, api.tokens["admin"])
    assert sorted(subjects) == ["bert", *(f"person {n}" for n in range(5))]


async def test_an_asynchronous_client_says_until_when_somebody_may_have_the_files(west: Api) -> None:
    [item] = (await west.anyone.get("/collections/CMIP6/items?limit=1")).json()["features"]
    dataset = f"CMIP6/{item['id']}"
    async with AsyncClient(west.url, token=west.tokens["admin"]) as client:
        assert await client.check_grant(dataset, subject="bert") is None
        await client.give_grant(wish("bert", dataset=dataset))
        assert await client.check_grant(dataset, subject="bert") == datetime(2999, 1, 1, tzinfo=UTC)
        assert await client.withdraw_grants({"dataset": dataset}) == 1
        assert await client.check_grant(dataset, subject="bert") is None
