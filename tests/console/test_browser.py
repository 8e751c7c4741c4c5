"""The console in a real browser: a person's whole way, by keyboard, on a small screen, in the dark, with no script."""

from __future__ import annotations

import json
import re
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from typing import Any

import asyncpg
import httpx
import pytest
import pytest_asyncio
from playwright.async_api import Browser, Page, expect

from fedstac.db import nodes
from fedstac.demo import identity_provider, sample
from fedstac.demo.embedded import Cluster
from fedstac.domain.errors import MissingPermission
from fedstac.settings import Settings
from tests.support import browsers
from tests.support.browsers import Window
from tests.support.databases import databases
from tests.support.demo_provider import DemoProvider
from tests.support.nodes import Api, running
from tests.support.waiting import PATIENCE

pytestmark = [
    pytest.mark.asyncio(loop_scope="module"),
    pytest.mark.skipif(bool(browsers.missing()), reason=browsers.missing() or "all is here"),
]
ITEMS = "/collections/CMIP6/items"
DATASETS = list(sample.items(9, versions=1))
IDS = [str(item["id"]) for item in DATASETS]
WAIT = {"Prefer": "wait=60"}
RULES = {
    "dependencies": [{"name": "east"}, {"name": "south"}, {"name": "handles", "owns_identifier": True}],
    "grace_days": 0,
}  # fmt: skip
expect.set_options(timeout=PATIENCE * 1000)


@dataclass(frozen=True, slots=True)
class World:
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


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def world(cluster: Cluster, template: str, people: DemoProvider) -> AsyncIterator[World]:
    provider = {name.removeprefix("FEDSTAC_").lower(): value for name, value in
                identity_provider.as_settings(people.url).items()}  # fmt: skip
    async with AsyncExitStack() as stack:
        dsn = stack.enter_context(databases(cluster, template))()
        values: dict[str, Any] = {"dsn": dsn, "node": "west", "request_seconds": 120, "_env_file": None, **provider}
        settings = Settings(**values)
        api = await stack.enter_async_context(running(settings))
        assert (await api.admin.post("/collections", json=sample.collection())).status_code == 201
        body = {"type": "FeatureCollection", "features": DATASETS}
        assert (await api.admin.post(ITEMS, json=body, headers=WAIT)).json()["counts"]["done"] == len(IDS)
        conn = await asyncpg.connect(dsn)
        tokens = {name: await nodes.issue_token(conn, f"node {name}", [f"node:{name}"]) for name in
                  ("east", "south", "handles")}  # fmt: skip
        await conn.close()
        yield World(api, await stack.enter_async_context(browsers.chromium()), tokens)


async def choose_rules(page: Page) -> None:
    """Fill in the rules of CMIP6 and save them."""
    await page.get_by_role("link", name="Configuration").click()
    await page.get_by_role("link", name="CMIP6").click()
    for number, name in enumerate(("east", "south", "handles")):
        await page.locator(f"[name=dependency-{number}-name]").fill(name)
    await page.locator("[name=dependency-2-owns_identifier]").check()
    await page.locator("[name=dependency-0-contact]").fill("east@east.example")
    await page.get_by_label("Days of grace").fill("0")
    await page.get_by_role("button", name="Show what this touches").click()
    await expect(page.get_by_text("is added")).to_have_count(3)
    await expect(page.get_by_role("heading", name="Open deletions: 0")).to_be_visible()
    await page.get_by_role("button", name="Save").click()
    await expect(page.get_by_role("status")).to_have_text("Saved.")


async def test_a_person_configures_waives_deletes_and_sees_the_tombstone(world: World) -> None:
    first, second, third = IDS[:3]
    async with world.window() as window:
        page = window.page
        await choose_rules(page)
        await expect(page.get_by_text("Version 1, changed")).to_be_visible()

        await page.get_by_role("link", name="Deletions").click()
        await page.evaluate("window.isTheSamePage = true")
        await world.mark(first, second, third)
        await expect(page.get_by_role("checkbox")).to_have_count(3)
        await expect(page.get_by_text("<i>withdrawn</i>")).to_have_count(3)  # text, and no markup
        await page.get_by_label(f"Choose {second}").check()
        await world.report("east", first, "failed", "the tape <b>robot</b> is broken")
        await expect(page.get_by_text("the tape <b>robot</b> is broken")).to_be_visible()
        await world.report("east", first, "ok", "gone from tape")
        await expect(page.get_by_text("gone from tape")).to_be_visible()
        assert await page.get_by_label(f"Choose {second}").is_checked()  # what the page renews leaves it so
        assert await page.evaluate("window.isTheSamePage")
        assert await same_numbers(world, page)

        await page.get_by_role("link", name=first, exact=True).click()
        await page.get_by_role("link", name="Delete now").click()
        await page.get_by_role("textbox").fill("something else")
        await page.get_by_role("button", name="Delete").click()
        await expect(page.get_by_role("alert")).to_contain_text("nothing was deleted")
        await page.get_by_role("textbox").fill(first)
        await page.get_by_role("button", name="Delete").click()
        await expect(page.get_by_role("alert")).to_contain_text("south has not reported")
        await expect(page.get_by_role("alert")).to_contain_text("handles has not reported")

        await page.get_by_role("link", name="Back").click()
        await page.get_by_role("link", name="Waive").click()
        await page.get_by_label("Dependency").select_option("south")
        await page.get_by_label("Reason").fill("south is shut down <script>alert(1)</script>")
        await page.get_by_role("button", name="Waive").click()
        await expect(page.get_by_role("status")).to_have_text("Waived.")
        await expect(page.get_by_text("south is shut down <script>alert(1)</script>").first).to_be_visible()
        await expect(page.get_by_text("handles has not reported")).to_be_visible()
        await world.report("handles", first, "nothing to do", "")
        await expect(page.get_by_text("Nothing is missing")).to_be_visible()  # without a reload
        await page.get_by_role("link", name="Delete now").click()
        await page.get_by_role("textbox").fill(first)
        await page.get_by_role("button", name="Delete").click()
        await expect(page.get_by_role("heading", name="Tombstone")).to_be_visible()
        assert (await world.api.anyone.get(f"{ITEMS}/{first}")).status_code == 410
        await page.get_by_role("link", name="All deletions").click()
        await expect(page.get_by_role("checkbox")).to_have_count(2)


async def same_numbers(world: World, page: Page) -> bool:
    """Return whether the JSON twin says what the API says, without what tells the time."""
    answer = await page.request.get("/console/deletions.json")
    twin, api = await answer.json(), (await world.api.admin.get("/deletions", params={"state": "open"})).json()
    return bool(twin == api)


async def test_it_all_works_by_keyboard(world: World) -> None:
    await world.api.admin.put("/deletions/rules/CMIP6", json=RULES, headers={"If-Match": "*"})
    await world.mark(IDS[3])
    async with world.window() as window:
        page = window.page
        await page.get_by_role("link", name=IDS[3], exact=True).wait_for()
        await page.keyboard.press("Tab")
        assert await focused(page) == "To the content"
        await tab_to(page, IDS[3])
        await page.keyboard.press("Enter")
        await expect(page.get_by_role("heading", level=1)).to_have_text(IDS[3])
        await tab_to(page, "Remind")
        async with page.expect_response(lambda response: response.status == 304):
            pass  # it has renewed itself
        assert await focused(page) == "Remind"
        await page.keyboard.press("Enter")
        await expect(page.get_by_role("heading", level=1)).to_have_text("Remind dependencies")
        await tab_to(page, "Remind")
        await page.keyboard.press("Enter")
        await expect(page.get_by_role("status")).to_have_text("Reminded.")
    parts = (await world.deletion_of(IDS[3]))["dependencies"]
    assert [part["reminders"] for part in parts] == [1, 1, 1]


async def focused(page: Page) -> str:
    return str(await page.evaluate("document.activeElement.textContent.trim()"))


async def tab_to(page: Page, text: str) -> None:
    """Move the focus by Tab to something with this text."""
    for _ in range(60):
        await page.keyboard.press("Tab")
        if await focused(page) == text:
            return
    raise AssertionError(f"nothing with the text {text} can be reached by keyboard")


@pytest.mark.parametrize("scheme", ["light", "dark"])
async def test_pages_fit_a_small_screen_and_have_nothing_that_axe_finds_serious(world: World, scheme: str) -> None:
    id = IDS[4] if scheme == "light" else IDS[5]
    await world.api.admin.put("/deletions/rules/CMIP6", json=RULES, headers={"If-Match": "*"})
    await world.mark(id)
    await world.report("east", id, "failed", "x" * 300)
    deletion = (await world.deletion_of(id))["id"]
    faults = {}
    async with world.window(color_scheme=scheme, viewport={"width": 360, "height": 740}) as window:
        for path in (
            "/console/deletions", f"/console/deletions/{deletion}", "/console/rules", "/console/rules/CMIP6",
            *(f"/console/deletions/act?id={deletion}&do={task}" for task in ("waive", "delete")),
            "/console/deletions?standing=nothing",
        ):  # fmt: skip
            await window.page.goto(path)
            if complaints := await window.complaints():
                faults[path] = complaints
            if await window.is_too_wide():
                faults[f"{path} is too wide"] = []
            background = await window.page.evaluate("getComputedStyle(document.body).backgroundColor")
            assert (background == "rgb(255, 255, 255)") is (scheme == "light")
    assert not faults, json.dumps(faults, indent=1)


async def test_without_a_script_everything_can_be_read_and_done(world: World) -> None:
    await world.api.admin.put("/deletions/rules/CMIP6", json=RULES, headers={"If-Match": "*"})
    await world.mark(IDS[6], IDS[7])
    async with world.window(java_script_enabled=False) as window:
        page = window.page
        await page.get_by_label("Text").fill(IDS[6])
        await page.get_by_role("button", name="Show").click()
        await expect(page.get_by_role("checkbox")).to_have_count(1)
        await page.get_by_label("Text").fill("")
        await page.get_by_role("button", name="Show").click()
        for id in IDS[6:8]:
            await page.get_by_label(f"Choose {id}").check()
        await page.get_by_role("button", name="Unmark").click()
        await page.get_by_role("button", name="Unmark").click()
        await expect(page.get_by_role("heading", level=1)).to_have_text("Unmarked: 2 of 2")
    for id in IDS[6:8]:
        assert (await world.api.anyone.get(f"{ITEMS}/{id}")).status_code == 200


async def test_who_may_publish_only_sees_their_own_and_cannot_waive(world: World) -> None:
    await world.mark(IDS[8])
    async with world.window("Nina of NCAR") as window:
        own = [id for id in await marked(world) if ".NCAR." in id]
        await expect(window.page.get_by_role("checkbox")).to_have_count(len(own))
        await window.page.goto("/console/rules")
        await expect(window.page.get_by_role("heading", level=1)).to_have_text(MissingPermission.title)


async def marked(world: World) -> list[str]:
    page = (await world.api.admin.get("/deletions", params={"state": "open"})).json()
    return [each["dataset"] for each in page["deletions"]]
