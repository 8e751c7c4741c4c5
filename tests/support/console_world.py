"""A node with datasets and people at its console in a real browser."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Iterable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from typing import Any

import asyncpg
import httpx
from playwright.async_api import Browser, Page, expect

from fedstac.db import nodes
from fedstac.demo import identity_provider, sample
from fedstac.settings import Settings
from tests.support import browsers
from tests.support.browsers import Window
from tests.support.nodes import Api, running
from tests.support.waiting import PATIENCE

ITEMS = "/collections/CMIP6/items"
DATASETS = list(sample.items(12, versions=1))
IDS = [str(item["id"]) for item in DATASETS]
WAIT = {"Prefer": "wait=60"}
expect.set_options(timeout=PATIENCE * 1000)


@dataclass(frozen=True, slots=True)
class ConsoleWorld:
    """A node with datasets, a browser, and the tokens of nodes by their names."""

    api: Api
    browser: Browser
    tokens: dict[str, str]

    async def mark(self, *ids: str) -> None:
        for id in ids:
            answer = await self.api.admin.delete(f"{ITEMS}/{id}", params={"reason": "<i>withdrawn</i>"}, headers=WAIT)
            assert answer.status_code == 200, answer.text

    async def report(self, name: str, id: str, outcome: str, comment: str) -> None:
        body = {"collection": "CMIP6", "dataset": id, "name": name, "outcome": outcome, "comment": comment}
        async with httpx.AsyncClient(base_url=self.api.url, trust_env=False, timeout=PATIENCE) as http:
            bearer = {"Authorization": f"Bearer {self.tokens[name]}"}
            answer = await http.post("/deletions/reports", json={"reports": [body]}, headers=bearer)
            assert answer.json()["reports"][0]["result"] == "stored", answer.text

    async def deletion_of(self, id: str) -> dict[str, Any]:
        page = (await self.api.admin.get("/deletions", params={"q": id})).json()
        found: dict[str, Any] = page["deletions"][0]
        return found

    async def faults_of(self, paths: Iterable[str], scheme: str) -> dict[str, list[str]]:
        """Return by path what is wrong with pages on a small screen, in light or in the dark."""
        faults = {}
        async with self.window(color_scheme=scheme, viewport={"width": 360, "height": 740}) as window:
            for path in paths:
                await window.page.goto(path)
                if complaints := await window.complaints():
                    faults[path] = complaints
                if await window.is_too_wide():
                    faults[f"{path} is too wide"] = []
                background = await window.page.evaluate("getComputedStyle(document.body).backgroundColor")
                assert (background == "rgb(255, 255, 255)") is (scheme == "light")
        return faults

    @asynccontextmanager
    async def window(self, person: str = "Ada Admin", **options: object) -> AsyncIterator[Window]:
        """Open a window of somebody who is logged in; nothing that they do asks another host."""
        async with browsers.window(self.browser, self.api.url, **options) as opened:
            page = opened.page
            await page.goto("/console")
            await page.get_by_role("link", name=re.compile("Log in with")).click()
            await page.get_by_role("button", name=person).click()
            await expect(page.get_by_role("heading", level=1)).to_have_text("Datasets marked for deletion")
            yield opened
            assert opened.hosts == {"127.0.0.1"}
            assert opened.errors == []


@asynccontextmanager
async def console_world(dsn: str, provider_url: str) -> AsyncIterator[ConsoleWorld]:
    """Run a node that takes the logins of a provider, and a browser."""
    provider = {name.removeprefix("FEDSTAC_").lower(): value for name, value in
                identity_provider.as_settings(provider_url).items()}  # fmt: skip
    async with AsyncExitStack() as stack:
        values: dict[str, Any] = {"dsn": dsn, "node": "west", "request_seconds": 120, "_env_file": None, **provider}
        api = await stack.enter_async_context(running(Settings(**values)))
        assert (await api.admin.post("/collections", json=sample.collection())).status_code == 201
        body = {"type": "FeatureCollection", "features": DATASETS}
        assert (await api.admin.post(ITEMS, json=body, headers=WAIT)).json()["counts"]["done"] == len(IDS)
        conn = await asyncpg.connect(dsn)
        tokens = {name: await nodes.issue_token(conn, f"node {name}", [f"node:{name}"]) for name in
                  ("east", "south", "handles")}  # fmt: skip
        await conn.close()
        yield ConsoleWorld(api, await stack.enter_async_context(browsers.chromium()), tokens)


async def focused(page: Page) -> str:
    return str(await page.evaluate("document.activeElement.textContent.trim()"))


async def tab_to(page: Page, text: str) -> None:
    """Move the focus by Tab to something with this text."""
    for _ in range(60):
        await page.keyboard.press("Tab")
        if await focused(page) == text:
            return
    raise AssertionError(f"nothing with the text {text} can be reached by keyboard")
