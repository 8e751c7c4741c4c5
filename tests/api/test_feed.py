"""The feed over HTTP: what a node may send, and what is no cursor, page or acknowledgement."""

from __future__ import annotations

import base64
from collections.abc import AsyncIterator

import asyncpg
import httpx
import orjson
import pytest

from tests.support.nodes import Api

BEYOND = 2**63


@pytest.fixture
async def east(api: Api) -> AsyncIterator[httpx.AsyncClient]:
    """The index node east, as west sees it."""
    bearer = {"Authorization": f"Bearer {api.tokens['node:east']}"}
    async with httpx.AsyncClient(base_url=api.url, headers=bearer, trust_env=False) as client:
        yield client


def page(*parts: object) -> str:
    return "/snapshot?page=" + base64.urlsafe_b64encode(orjson.dumps(parts)).decode()


@pytest.mark.parametrize("path", [
    f"/events?after={BEYOND}.1", f"/events?after=1.{BEYOND}", page("1.1", "x\0", "y"), page("1.1", "x", "\0"),
    page(f"{BEYOND}.1", "x", "y"), page("1.1", 1, 2), page(1, "x", "y"), page(),
])  # fmt: skip
async def test_what_no_node_was_given_is_refused(east: httpx.AsyncClient, path: str) -> None:
    answer = await east.get(path)
    assert (answer.status_code, answer.json()["type"].rpartition("/")[2]) == (400, "bad-request")


async def test_an_event_that_is_an_exception_twice_is_noted_as_the_last_word_says(
    east: httpx.AsyncClient, conn: asyncpg.Connection[asyncpg.Record]
) -> None:
    exceptions = [{"event_id": "a", "outcome": "parked", "detail": detail} for detail in ("first", "second")]
    long = {"event_id": "".join(chr(0x4E00 + n * 7919 % 20000) for n in range(2000)), "outcome": "parked"}
    answer = await east.post("/events/status", json={"epoch": 1, "through": 0, "exceptions": [*exceptions, long]})
    assert answer.status_code == 204, answer.text
    rows = await conn.fetch("SELECT event_id, detail FROM fedstac.node_exception ORDER BY event_id")
    assert [tuple(row) for row in rows] == [("a", "second"), (long["event_id"][:650], "")]


async def test_an_acknowledgement_beyond_the_log_is_answered_as_a_cursor_beyond_it(east: httpx.AsyncClient) -> None:
    for epoch, through in ((1, 4711), (7, 0)):
        answer = await east.post("/events/status", json={"epoch": epoch, "through": through})
        assert (answer.status_code, answer.json()["type"].rpartition("/")[2]) == (410, "cursor-gone")
    answer = await east.post("/events/status", json={"epoch": 1, "through": -1})
    assert answer.status_code == 400


async def test_a_snapshot_of_a_database_that_was_promoted_meanwhile_is_of_a_new_epoch(
    east: httpx.AsyncClient, conn: asyncpg.Connection[asyncpg.Record]
) -> None:
    before = (await east.get("/events/head")).json()["cursor"]
    await conn.execute("UPDATE fedstac.feed_state SET timeline = '0000FFFF'")
    snapshot = (await east.get("/snapshot")).json()
    assert int(snapshot["cursor"].partition(".")[0]) > int(before.partition(".")[0])
    assert {entry["epoch"] for entry in snapshot["entries"]} <= {int(snapshot["cursor"].partition(".")[0])}
