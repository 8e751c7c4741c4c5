"""The tabs of quarantine, loads, subscriptions and grants in a real browser."""

from __future__ import annotations

import json

import pytest
from playwright.async_api import Page, expect

from tests.support import browsers, loads
from tests.support.console_world import DATASETS, IDS, ITEMS, WAIT, ConsoleWorld, tab_to

pytestmark = [
    pytest.mark.asyncio(loop_scope="module"),
    pytest.mark.skipif(bool(browsers.missing()), reason=browsers.missing() or "all is here"),
]
MARKUP = "<b>not</b> theirs <script>alert(1)</script>"


async def open_tab(page: Page, name: str, heading: str) -> None:
    await page.get_by_role("navigation", name="Tabs").get_by_role("link", name=name).click()
    await expect(page.get_by_role("heading", level=1)).to_have_text(heading)


async def subscribe_and_refuse(world: ConsoleWorld, name: str, reason: str = MARKUP) -> None:
    """Make a subscription of a dataset that nothing else changes, and refuse its event for good."""
    admin = world.api.admin
    wish = {"from": "start", "filter": {"types": ["dataset.published"], "cql2": f"id = '{IDS[7]}'"}}
    assert (await admin.put(f"/subscriptions/{name}", json=wish)).status_code == 201
    for _ in range(10):
        page = (await admin.get(f"/subscriptions/{name}/next", params={"wait": 60, "limit": 1})).json()
        refusal = {"event_id": page["events"][0]["event_id"], "reason": reason, "retry_in": 0}
        assert (await admin.post(f"/subscriptions/{name}/nack", json=refusal)).status_code == 200
        place = {"cursor": page["cursor"], "lease": page["lease"]}
        assert (await admin.post(f"/subscriptions/{name}/ack", json=place)).status_code == 200


async def test_a_dataset_goes_under_quarantine_and_comes_back(world: ConsoleWorld) -> None:
    async with world.window() as window:
        page = window.page
        await open_tab(page, "Quarantine", "Cases of quarantine")
        await page.get_by_role("link", name="Put a dataset under quarantine").click()
        await page.get_by_label("Project").fill("CMIP6")
        await page.get_by_label("Dataset", exact=True).fill("nothing")
        await page.get_by_label("Reason").fill(MARKUP)
        await page.get_by_label("Number of the case").fill("T-1041")
        await page.get_by_role("button", name="Put under quarantine").click()
        await expect(page.get_by_role("alert")).to_be_visible()
        await page.get_by_label("Dataset", exact=True).fill(IDS[0])  # the rest is still there
        await page.get_by_role("button", name="Put under quarantine").click()
        await expect(page.get_by_role("status")).to_have_text("Under quarantine.")
        await expect(page.get_by_text(MARKUP)).to_be_visible()  # text, and no markup
        assert (await world.api.anyone.get(f"{ITEMS}/{IDS[0]}")).json()["assets"] == {}
        await page.evaluate("window.isTheSamePage = true")
        await world.api.admin.post(f"{ITEMS}/{IDS[1]}/quarantine", json={"reason": "licence"}, headers=WAIT)
        await expect(page.get_by_role("checkbox")).to_have_count(2)  # without a reload
        assert await page.evaluate("window.isTheSamePage")
        for id in IDS[:2]:
            await page.get_by_label(f"Choose {id}").check()
        await page.get_by_role("button", name="Release").click()
        await page.get_by_label("Decision").fill("nothing personal in it")
        await page.get_by_role("button", name="Release").click()
        await expect(page.get_by_role("heading", level=1)).to_have_text("Released: 2 of 2")
        await page.get_by_role("link", name="All cases").click()
        await page.get_by_label("State").select_option("closed")
        await page.get_by_role("button", name="Show").click()
        await expect(page.get_by_text("nothing personal in it").first).to_be_visible()
    assert (await world.api.anyone.get(f"{ITEMS}/{IDS[0]}")).json()["assets"]


async def test_a_load_is_confirmed_and_followed_to_its_end(world: ConsoleWorld) -> None:
    id = (await loads.compared_load(world.api.admin, DATASETS[:-2]))["id"]
    async with world.window() as window:
        page = window.page
        await open_tab(page, "Loads", "Full-state loads")
        await page.locator(f"#show-{id}").click()
        await expect(page.get_by_role("heading", level=1)).to_have_text("Load of CMIP6")
        await page.get_by_label("the number of those that go").fill("7")
        await page.get_by_role("button", name="Apply what is shown").click()
        await expect(page.get_by_role("alert")).to_contain_text("confirm=2")
        await page.get_by_label("the number of those that go").fill("2")
        async with page.expect_response(lambda response: response.status in (200, 304)):
            pass  # it has renewed itself, and what is typed stays
        await page.get_by_role("button", name="Apply what is shown").click()
        await expect(page.get_by_text("2 of 2")).to_be_visible()
        await expect(page.get_by_text("done", exact=True).first).to_be_visible()  # without a reload
        await page.locator("#change-removed").click()
        await expect(page.get_by_text(IDS[-1])).to_be_visible()
    assert (await world.api.anyone.get(f"{ITEMS}/{IDS[-1]}")).status_code == 404


async def test_grants_and_dead_letters_are_worked_off_by_keyboard(world: ConsoleWorld) -> None:
    await subscribe_and_refuse(world, "maps")
    async with world.window() as window:
        page = window.page
        await tab_to(page, "Subscriptions")
        await page.keyboard.press("Enter")
        await expect(page.get_by_role("heading", level=1)).to_have_text("Subscriptions")
        await tab_to(page, "maps")
        await page.keyboard.press("Enter")
        await expect(page.get_by_text(MARKUP)).to_be_visible()
        await expect(page.get_by_role("heading", name="Dead letters: 1")).to_be_visible()
        await tab_to(page, "Redrive")
        async with page.expect_response(lambda response: response.status == 304):
            pass  # it has renewed itself, and the focus stays
        await page.keyboard.press("Enter")
        await expect(page.get_by_role("status")).to_have_text("The dead letter is given out again.")
        await expect(page.get_by_role("heading", name="Dead letters: 0")).to_be_visible()

        await tab_to(page, "Grants")
        await page.keyboard.press("Enter")
        await expect(page.get_by_role("heading", level=1)).to_have_text("Grants")
        await tab_to(page, "Give a grant")
        await page.keyboard.press("Enter")
        await expect(page.get_by_role("heading", level=1)).to_have_text("Give a grant")
        await page.get_by_label("Person").focus()
        await page.keyboard.type("person:somebody")
        await page.get_by_label("Name", exact=True).focus()
        await page.keyboard.type(f"CMIP6/{IDS[2]}")
        await page.get_by_label("Until").fill("2099-01-31")
        await tab_to(page, "Give")
        await page.keyboard.press("Enter")
        await expect(page.get_by_role("status")).to_have_text("Given.")
        await page.get_by_label("Reason").focus()
        await page.keyboard.type(MARKUP)
        await tab_to(page, "Withdraw")
        await page.keyboard.press("Enter")
        await expect(page.get_by_role("status")).to_have_text("Withdrawn.")
        await expect(page.get_by_text(MARKUP)).to_be_visible()


@pytest.mark.parametrize("scheme", ["light", "dark"])
async def test_pages_fit_a_small_screen_and_have_nothing_that_axe_finds_serious(
    world: ConsoleWorld, scheme: str
) -> None:  # fmt: skip
    admin, number = world.api.admin, 3 if scheme == "light" else 4
    await subscribe_and_refuse(world, f"portal-{scheme}")
    grant = {"subject": "person:" + "x" * 200, "dataset": f"CMIP6/{IDS[number]}", "valid_until": "2099-01-31T00:00:00Z"}
    given = (await admin.post("/grants", json=grant)).json()
    case = {
        "reason": "y" * 300,
        "case": "T-1",
        "contact": "data@a.example",
        "links": ["https://a.example/" + "z" * 200],
    }
    await admin.post(f"{ITEMS}/{IDS[number]}/quarantine", json=case, headers=WAIT)
    load = (await loads.compared_load(world.api.admin, DATASETS[5:]))["id"]
    paths = (
        "/console/subscriptions", f"/console/subscriptions/portal-{scheme}", "/console/grants", "/console/grants/give",
        f"/console/grants/{given['id']}", "/console/grants/withdraw?project=CMIP6", "/console/loads",
        f"/console/loads/{load}", f"/console/loads/{load}/datasets", "/console/quarantine", "/console/quarantine/new",
        "/console/quarantine?state=closed",
        *(f"/console/quarantine/act?do={task}&dataset=CMIP6/{IDS[number]}" for task in ("release", "mark")),
    )  # fmt: skip
    faults = await world.faults_of(paths, scheme)
    assert not faults, json.dumps(faults, indent=1)


async def test_without_a_script_everything_can_be_read_and_done(world: ConsoleWorld) -> None:
    for id in IDS[5:7]:
        await world.api.admin.post(f"{ITEMS}/{id}/quarantine", json={"reason": "licence"}, headers=WAIT)
    load = (await loads.compared_load(world.api.admin, DATASETS[:3]))["id"]
    async with world.window(java_script_enabled=False) as window:
        page = window.page
        await page.goto("/console/quarantine")
        for id in IDS[5:7]:
            await page.get_by_label(f"Choose {id}").check()
        await page.get_by_role("button", name="Release").click()
        await page.get_by_role("button", name="Release").click()
        await expect(page.get_by_role("heading", level=1)).to_have_text("Released: 2 of 2")
        await page.goto(f"/console/loads/{load}")
        await page.get_by_role("button", name="Cancel").click()
        await expect(page.get_by_role("status")).to_have_text("Cancelled.")
    for id in IDS[5:7]:
        assert (await world.api.anyone.get(f"{ITEMS}/{id}")).json()["assets"]
