"""A session outlives its access token: the provider's refresh token renews it, here and never in the browser."""

from __future__ import annotations

import asyncio
import html
import re

import asyncpg
import pytest

from tests.support.consoles import OpenBrowser, Visitor, csrf_of
from tests.support.identity import Provider, StartNode
from tests.support.nodes import Api
from tests.support.waiting import StoppedClock

PAGE = "/console/subscriptions"
HOUR = 3600.0  # seconds


@pytest.fixture
async def node(start_node: StartNode) -> Api:
    return await start_node()


@pytest.fixture
async def alice(
    node: Api, open_browser: OpenBrowser, provider: Provider, monkeypatch: pytest.MonkeyPatch
) -> Visitor:  # fmt: skip
    """Somebody who is logged in with a token that has ended; the next one lives longer."""
    clock = StoppedClock()
    for module in ("fedstac.identity.oidc", "fedstac.identity.provider_answers", "fedstac.api.people.identity"):
        monkeypatch.setattr(f"{module}.time", clock)
    provider.set(lifetime=HOUR)
    browser = await open_browser(node.url)
    page = await browser.get("/console/login")
    [start] = re.findall(r'href="(/console/login/start[^"]*)"', page.text)
    away = await browser.get(html.unescape(start))
    back = await browser.get(away.headers["location"])
    assert (await browser.get(back.headers["location"])).status_code == 303
    provider.set(lifetime=10 * HOUR)
    clock.advance(2 * HOUR)
    return browser


def renewals(provider: Provider) -> int:
    return int(provider.state["counts"].get("refresh_token", 0))


async def sessions_of(node: Api) -> list[asyncpg.Record]:
    conn = await asyncpg.connect(node.settings.dsn)
    try:
        return list(await conn.fetch("SELECT * FROM fedstac.console_session"))
    finally:
        await conn.close()


async def test_many_pages_at_once_renew_a_session_once(alice: Visitor, node: Api, provider: Provider) -> None:
    [before] = await sessions_of(node)
    pages = await asyncio.gather(*(alice.get(PAGE) for _ in range(6)))
    assert [page.status_code for page in pages] == [200] * 6
    assert renewals(provider) == 1
    [after] = await sessions_of(node)
    assert (after["id"], after["ends_at"], after["renewing_until"]) == (before["id"], before["ends_at"], None)
    assert (after["sealed"] != before["sealed"], after["renewal"] != before["renewal"]) == (True, True)
    assert after["renewal"].count(".") == 4  # a JWE: it is sealed as the token is
    assert alice.cookie_names == {"fedstac-session-west"}
    assert (await alice.get(PAGE)).status_code == 200
    assert renewals(provider) == 1


async def test_a_login_that_the_provider_ended_ends_the_session(alice: Visitor, node: Api, provider: Provider) -> None:
    provider.begin_anew()  # it knows no refresh token any more
    answer = await alice.get(PAGE)
    assert (answer.status_code, answer.headers["location"].partition("?")[0]) == (303, "/console/login")
    assert await sessions_of(node) == []


async def test_while_the_provider_is_away_the_session_stays(alice: Visitor, node: Api, provider: Provider) -> None:
    provider.set(redirects={"/token": "/elsewhere"})
    away = await alice.get(PAGE)
    assert (away.status_code, away.headers["retry-after"]) == (503, "10")
    provider.set(redirects={})
    assert (await alice.get(PAGE)).status_code == 200


async def test_a_token_of_somebody_else_ends_the_session(alice: Visitor, node: Api, provider: Provider) -> None:
    claims = provider.state["claims"]
    provider.set(claims={**claims, "sub": "mallory"})
    assert (await alice.get(PAGE)).status_code == 303
    assert await sessions_of(node) == []


async def test_a_request_that_died_while_it_renewed_stops_no_other(
    alice: Visitor, node: Api, provider: Provider, monkeypatch: pytest.MonkeyPatch
) -> None:
    conn = await asyncpg.connect(node.settings.dsn)
    renewing = "UPDATE fedstac.console_session SET renewing_until = now() + interval '1 hour'"
    await conn.execute(renewing)
    monkeypatch.setattr("fedstac.console.visits.RENEWAL_SECONDS", 0.2)
    assert (await alice.get(PAGE)).status_code == 503  # another one has it
    await conn.execute("UPDATE fedstac.console_session SET renewing_until = now()")
    assert (await alice.get(PAGE)).status_code == 200
    await conn.close()


async def test_a_logout_takes_the_refresh_token_back(alice: Visitor, provider: Provider) -> None:
    proof = csrf_of(await alice.get(PAGE))
    assert (await alice.post("/console/logout", {"csrf": proof})).status_code == 303
    assert len(provider.state["revoked"]) == 1
