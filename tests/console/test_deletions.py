"""The tabs of deletions and of their rules, over HTTP: they say what the API says, and do what it does."""

from __future__ import annotations

import html
import re
from typing import Any

import asyncpg
import pytest
from starlette.responses import Response

from fedstac.api.call import Call
from fedstac.api.writing import answers
from fedstac.console import verbs
from fedstac.db import nodes
from fedstac.demo import sample
from tests.support.consoles import Fields, OpenBrowser, Visitor, csrf_of
from tests.support.nodes import Api

ITEMS, LIST, ACT = "/collections/CMIP6/items", "/console/deletions", "/console/deletions/act"
RULES = "/console/rules/CMIP6"
DATASETS = list(sample.items(3, versions=1))
IDS = [str(item["id"]) for item in DATASETS]
ATTACK = "<script>alert('x')</script><img src=x onerror=alert(1)>\"'&{{7*7}}"


@pytest.fixture
async def marked(west: Api) -> dict[str, str]:
    """Marks three datasets that wait for the node east; the ids of the deletions by those of the datasets."""
    body = {"type": "FeatureCollection", "features": DATASETS}
    assert (await west.admin.post(ITEMS, json=body)).json()["counts"]["done"] == len(IDS)
    rules = {"dependencies": [{"name": "east"}], "grace_days": 0}
    assert (await west.admin.put("/deletions/rules/CMIP6", json=rules, headers={"If-Match": "*"})).status_code == 200
    for id in IDS:
        answer = await west.admin.delete(f"{ITEMS}/{id}", params={"reason": ATTACK})
        assert answer.status_code == 200, answer.text
    page = (await west.admin.get("/deletions")).json()
    return {each["dataset"]: each["id"] for each in page["deletions"]}


async def report(west: Api, dataset: str, outcome: str, comment: str) -> None:
    body = {"collection": "CMIP6", "dataset": dataset, "name": "east", "outcome": outcome, "comment": comment}
    bearer = {"Authorization": f"Bearer {west.tokens['node:east']}"}
    answer = await west.anyone.post("/deletions/reports", json={"reports": [body]}, headers=bearer)
    assert answer.json()["reports"][0]["result"] == "stored", answer.text


async def api_says(west: Api, **query: str) -> dict[str, Any]:
    """Return what the API lists, with the links of the console's twin."""
    page: dict[str, Any] = (await west.admin.get("/deletions", params=query)).json()
    for link in page["links"]:
        link["href"] = link["href"].replace("/deletions?", f"{LIST}.json?")
    return page


async def test_the_twin_of_a_page_says_what_the_api_says(ada: Visitor, west: Api, marked: dict[str, str]) -> None:
    await report(west, IDS[0], "failed", "no tape")
    assert await ada.json(LIST) == await api_says(west, state="open")
    assert await ada.json(f"{LIST}.json?state=any&q=&project=") == await api_says(west)
    paged = await ada.json(f"{LIST}.json?limit=1&sortby=dataset")
    assert paged == await api_says(west, limit="1", sortby="dataset", state="open")
    assert (await ada.json(f"{LIST}?standing=failed"))["deletions"][0]["dataset"] == IDS[0]
    one = marked[IDS[0]]
    assert await ada.json(f"{LIST}/{one}") == (await west.admin.get(f"/deletions/{one}")).json()
    assert await ada.json("/console/rules") == (await west.admin.get("/deletions/rules")).json()
    assert await ada.json(f"{RULES}.json") == (await west.admin.get("/deletions/rules/CMIP6")).json()
    for path, status in (
        (f"{LIST}/{'0' * 8}", 404), ("/console/rules/none", 404), (f"{LIST}?sortby=x", 400), ("/console/nothing", 404),
        (f"{LIST}/{one}/more", 404),
    ):  # fmt: skip
        page = await ada.get(path)
        assert (page.status_code, page.headers["content-type"][:9]) == (status, "text/html")
    nothing = await ada.get("/console/nothing.json")
    assert (nothing.status_code, nothing.headers["content-type"]) == (404, "application/problem+json")


async def test_pages_lead_from_one_to_the_next(ada: Visitor, marked: dict[str, str]) -> None:
    path, datasets = f"{LIST}?limit=1&sortby=dataset", []
    while True:
        page = await ada.get(path)
        datasets += re.findall(r'aria-label="Choose ([^"]+)"', page.text)
        following = re.search(r'id="page-next" href="([^"]+)"', page.text)
        if following is None:
            break
        path = LIST + html.unescape(following[1])
    assert datasets == sorted(IDS)


async def test_a_page_that_polls_is_told_that_nothing_changed(ada: Visitor, west: Api, marked: dict[str, str]) -> None:
    for path in (LIST, f"{LIST}/{marked[IDS[0]]}"):
        poll = await ada.get(path, **{"HX-Request": "true"})
        assert poll.status_code == 200
        assert poll.text.startswith('<div id="live"')
        again = await ada.get(path, **{"HX-Request": "true", "If-None-Match": poll.headers["etag"]})
        assert (again.status_code, again.content) == (304, b"")
        await report(west, IDS[0], "failed", f"not yet at {path[-8:]}")
        changed = await ada.get(path, **{"HX-Request": "true", "If-None-Match": poll.headers["etag"]})
        assert changed.status_code == 200
        assert f"not yet at {path[-8:]}" in changed.text
        whole = await ada.get(path)
        assert poll.headers["etag"] != whole.headers["etag"]
        assert (whole.headers["cache-control"], poll.headers["cache-control"]) == ("no-store", "private, no-cache")
        assert (await ada.get(path, **{"If-None-Match": whole.headers["etag"]})).status_code == 304


async def test_what_others_wrote_stays_text(ada: Visitor, west: Api, marked: dict[str, str]) -> None:
    await report(west, IDS[0], "failed", ATTACK)
    one = marked[IDS[0]]
    proof = await ada.csrf(LIST)
    await ada.post(ACT, {"csrf": proof, "do": "waive", "id": one, "name": "east", "reason": ATTACK})
    for path in (
        LIST, f"{LIST}/{one}", f"{ACT}?do=delete&id={one}", f"{LIST}?q=<script>alert(1)</script>",
        f"{ACT}?do=<script>&id={one}", "/console/rules/<script>", f"{LIST}/<script>", f"{LIST}/{one}?outcome=<script>",
    ):  # fmt: skip
        page = await ada.get(path)
        assert not re.search(r"<script(?! src=)|<img", page.text), path
        assert "49" not in re.findall(r"&(\d+)", page.text)
    assert "&lt;script&gt;alert(&#39;x&#39;)" in (await ada.get(f"{LIST}/{one}")).text


async def test_many_are_done_at_once_and_each_is_answered(ada: Visitor, west: Api, marked: dict[str, str]) -> None:
    ids = list(marked.values())
    proof = await ada.csrf(LIST)
    assert (await ada.post(ACT, {"csrf": proof, "do": "waive"})).status_code == 400
    assert (await ada.post(ACT, {"csrf": proof, "do": "nothing", "id": ids})).status_code == 400
    assert (await ada.post(ACT, {"csrf": proof, "do": "remind", "id": ids * 20})).status_code == 400  # too many
    waived = await ada.post(ACT, {"csrf": proof, "do": "waive", "id": ids[:2], "name": "east", "reason": "shut"})
    assert "Waived: 2 of 2" in waived.text
    early = await ada.post(ACT, {"csrf": proof, "do": "delete", "id": ids, "confirmation": "delete 2"})
    assert early.status_code == 400  # it names another number
    deleted = await ada.post(ACT, {"csrf": proof, "do": "delete", "id": ids, "confirmation": "delete 3"})
    assert "Deleted: 0 of 3" in deleted.text  # the owner of the identifiers has not reported
    assert "two people can waive" in deleted.text
    unmarked = await ada.post(ACT, {"csrf": proof, "do": "unmark", "id": ids})
    assert "Unmarked: 3 of 3" in unmarked.text
    for id in IDS:
        assert (await west.anyone.get(f"{ITEMS}/{id}")).status_code == 200


@pytest.mark.parametrize("at", ["deletions", "quarantine"])
async def test_many_wait_together_no_longer_than_one_and_what_waits_is_not_called_done(
    ada: Visitor, west: Api, marked: dict[str, str], monkeypatch: pytest.MonkeyPatch, at: str
) -> None:
    waits: list[str] = []
    answer_in_time = answers.answer

    async def answer(call: Call, *rest: Any) -> Response:
        waits.append(call.headers["prefer"])
        return await answer_in_time(call, *rest)

    fields: Fields = {"do": "unmark", "id": list(marked.values())}
    if at == "quarantine":
        fields = {"do": "mark", "dataset": [f"CMIP6/{id}" for id in IDS]}
        for id in IDS:
            assert (await west.admin.post(f"{ITEMS}/{id}/unmark")).status_code == 200
    conn = await asyncpg.connect(west.settings.dsn)
    async with conn.transaction():
        await conn.execute("LOCK TABLE fedstac.outbox IN SHARE ROW EXCLUSIVE MODE")  # the workers wait at their events
        proof = await ada.csrf(LIST)
        monkeypatch.setattr(answers, "answer", answer)
        monkeypatch.setattr(verbs, "WAIT_SECONDS", 1)
        page = await ada.post(f"/console/{at}/act", {**fields, "csrf": proof})
        assert re.findall(r"<h1>\w+: (\d of \d)</h1>", page.text) == ["0 of 3"]
        assert page.text.count('<span class="state wait">accepted</span>') == 3
        assert waits == ["wait=1", "wait=0", "wait=0"]
    await conn.close()


async def test_a_page_of_the_mark_before_changes_nothing(ada: Visitor, west: Api, marked: dict[str, str]) -> None:
    await west.admin.post(f"{ITEMS}/{IDS[0]}/unmark")
    await west.admin.delete(f"{ITEMS}/{IDS[0]}")
    proof = await ada.csrf(LIST)
    for do in ("unmark", "delete"):
        answer = await ada.post(ACT, {"csrf": proof, "do": do, "id": marked[IDS[0]], "confirmation": IDS[0]})
        assert (answer.status_code, "was marked again since then" in answer.text) == (409, True)
    assert (await west.anyone.get(f"{ITEMS}/{IDS[0]}")).status_code == 404  # it is marked all the same


async def test_a_form_without_its_proof_changes_nothing(ada: Visitor, west: Api, marked: dict[str, str]) -> None:
    one = marked[IDS[0]]
    answer = await ada.post(ACT, {"do": "unmark", "id": one})
    assert answer.status_code == 403
    assert (await ada.post(RULES, {"version": "1", "step": "save"})).status_code == 403
    assert (await west.admin.get(f"/deletions/{one}")).json()["state"] == "open"
    conn = await asyncpg.connect(west.settings.dsn)
    actor = await conn.fetchval("SELECT actor FROM fedstac.audit WHERE action = 'console' ORDER BY id DESC LIMIT 1")
    await conn.close()
    assert actor  # the refusal is in the audit log


async def test_a_right_that_was_withdrawn_works_no_longer(
    api: Api, open_browser: OpenBrowser, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fedstac.api.people.identity.KEPT_SECONDS", 0.0)
    browser = await open_browser(api.url)
    conn = await asyncpg.connect(api.settings.dsn)
    token = await nodes.issue_token(conn, "visitor", ["admin"])
    fields = {"csrf": csrf_of(await browser.get("/console/login")), "token": token}
    assert (await browser.post("/console/login", fields)).status_code == 303
    page = await browser.get(LIST)
    assert page.status_code == 200
    await nodes.revoke_tokens(conn, "visitor")
    assert (await browser.get(LIST)).status_code == 303
    assert (await browser.post("/console/logout", {"csrf": csrf_of(page)})).status_code == 303
    assert await conn.fetchval("SELECT count(*) FROM fedstac.console_session") == 0
    await conn.close()


# --- rules ---


def fields_of(page_text: str) -> dict[str, str]:
    """Return what the form of the rules would send as it is shown."""
    fields = {}
    for tag in re.findall(r"<input [^>]+>", page_text):
        attributes = dict(re.findall(r'(\w+)="([^"]*)"', tag))
        if "name" in attributes and (attributes.get("type") != "checkbox" or " checked" in tag):
            fields[attributes["name"]] = html.unescape(attributes.get("value", "on"))
    return fields


async def test_rules_are_shown_with_what_they_touch_before_they_are_saved(
    ada: Visitor, west: Api, marked: dict[str, str]
) -> None:
    fields = fields_of((await ada.get(RULES)).text)
    assert fields["dependency-0-name"] == "east"
    changed = {**fields, "dependency-1-name": "archive", "dependency-0-remove": "on", "grace_days": "2"}
    preview = await ada.post(RULES, {**changed, "step": "preview"})
    assert "Open deletions: 3" in preview.text
    assert all(id in preview.text for id in IDS)
    assert (await west.admin.get("/deletions/rules/CMIP6")).json()["version"] == 1  # nothing is stored
    back = await ada.post(RULES, {**changed, "step": "change"})
    assert fields_of(back.text)["dependency-0-name"] == "archive"
    saved = await ada.post(RULES, {**fields_of(preview.text), "step": "save", "apply_to_open": "on"})
    assert saved.status_code == 303
    rules = (await west.admin.get("/deletions/rules/CMIP6")).json()
    assert [each["name"] for each in rules["rules"]["dependencies"]] == ["archive"]
    assert (rules["version"], rules["rules"]["grace_days"]) == (2, 2.0)
    one = (await west.admin.get(f"/deletions/{marked[IDS[0]]}")).json()
    assert "archive" in [each["name"] for each in one["dependencies"]]
    again = await ada.post(RULES, {**fields_of(preview.text), "step": "save"})
    assert again.status_code == 412  # somebody else changed them since the form was loaded
    assert "version 2" in again.text


@pytest.mark.parametrize(
    ("name", "value"), [("grace_days", "many"), ("schedule", "25:00"), ("dependency-1-name", "a b"),
                        ("dependency-0-days", "-1"), ("version", "x"), ("grace_days", "nan")]
)  # fmt: skip
async def test_rules_that_are_wrong_are_shown_again_with_the_reason(
    ada: Visitor, west: Api, marked: dict[str, str], name: str, value: str
) -> None:
    fields = {**fields_of((await ada.get(RULES)).text), name: value, "step": "preview"}
    page = await ada.post(RULES, fields)
    assert page.status_code == 400
    assert 'role="alert"' in page.text
    if name != "version":
        assert fields_of(page.text)[name] == value
