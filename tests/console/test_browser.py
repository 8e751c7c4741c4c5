"""The console in a real browser: a person's whole way, by keyboard, on a small screen, in the dark, with no script."""

from __future__ import annotations

import json

import pytest
from playwright.async_api import Page, expect

from fedstac.domain.errors import MissingPermission
from tests.support import browsers
from tests.support.console_world import IDS, ITEMS, ConsoleWorld, focused, tab_to

pytestmark = [
    pytest.mark.asyncio(loop_scope="module"),
    pytest.mark.skipif(bool(browsers.missing()), reason=browsers.missing() or "all is here"),
]
RULES = {
    "dependencies": [{"name": "east"}, {"name": "south"}, {"name": "handles", "owns_identifier": True}],
    "grace_days": 0,
}  # fmt: skip


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


async def test_a_person_configures_waives_deletes_and_sees_the_tombstone(world: ConsoleWorld) -> None:
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


async def same_numbers(world: ConsoleWorld, page: Page) -> bool:
    """Return whether the JSON twin says what the API says, without what tells the time."""
    answer = await page.request.get("/console/deletions.json")
    twin, api = await answer.json(), (await world.api.admin.get("/deletions", params={"state": "open"})).json()
    return bool(twin == api)


async def test_it_all_works_by_keyboard(world: ConsoleWorld) -> None:
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


@pytest.mark.parametrize("scheme", ["light", "dark"])
async def test_pages_fit_a_small_screen_and_have_nothing_that_axe_finds_serious(
    world: ConsoleWorld, scheme: str
) -> None:
    id = IDS[4] if scheme == "light" else IDS[5]
    await world.api.admin.put("/deletions/rules/CMIP6", json=RULES, headers={"If-Match": "*"})
    await world.mark(id)
    await world.report("east", id, "failed", "x" * 300)
    deletion = (await world.deletion_of(id))["id"]
    paths = (
        "/console/deletions", f"/console/deletions/{deletion}", "/console/rules", "/console/rules/CMIP6",
        *(f"/console/deletions/act?id={deletion}&do={task}" for task in ("waive", "delete")),
        "/console/deletions?standing=nothing",
    )  # fmt: skip
    faults = await world.faults_of(paths, scheme)
    assert not faults, json.dumps(faults, indent=1)


async def test_without_a_script_everything_can_be_read_and_done(world: ConsoleWorld) -> None:
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


async def test_who_may_publish_only_sees_their_own_and_cannot_waive(world: ConsoleWorld) -> None:
    await world.mark(IDS[8])
    async with world.window("Nina of NCAR") as window:
        own = [id for id in await marked(world) if ".NCAR." in id]
        await expect(window.page.get_by_role("checkbox")).to_have_count(len(own))
        await window.page.goto("/console/rules")
        await expect(window.page.get_by_role("heading", level=1)).to_have_text(MissingPermission.title)


async def marked(world: ConsoleWorld) -> list[str]:
    page = (await world.api.admin.get("/deletions", params={"state": "open"})).json()
    return [each["dataset"] for each in page["deletions"]]
