"""The tabs of quarantine, loads, subscriptions and grants, over HTTP: they say and do what the API does."""

from __future__ import annotations

import re
from functools import partial
from typing import Any

import asyncpg
import pytest

from fedstac.demo import sample
from tests.support import loads
from tests.support.consoles import Fields, OpenBrowser, Visitor
from tests.support.nodes import Api
from tests.support.waiting import until

Json = dict[str, Any]
ITEMS = "/collections/CMIP6/items"
DATASETS = list(sample.items(12, versions=1))
IDS = [str(item["id"]) for item in DATASETS]
WAIT = {"Prefer": "wait=60"}
ATTACK = "<script>alert('x')</script><img src=x onerror=alert(1)>\"'&{{7*7}}"
UNTIL = "2099-01-31"
SUBSCRIPTIONS, GRANTS, LOADS, QUARANTINE = (
    "/console/subscriptions", "/console/grants", "/console/loads", "/console/quarantine",
)  # fmt: skip


@pytest.fixture
async def west(west: Api) -> Api:
    """A node with some datasets."""
    body = {"type": "FeatureCollection", "features": DATASETS}
    assert (await west.admin.post(ITEMS, json=body, headers=WAIT)).json()["counts"]["done"] == len(IDS)
    return west


@pytest.fixture
async def sam(west: Api, open_browser: OpenBrowser) -> Visitor:
    """Somebody without a right who is logged in."""
    browser = await open_browser(west.url)
    await browser.log_in("sam")
    return browser


# --- subscriptions ---


async def subscribe(west: Api, name: str = "mine", **members: Any) -> Json:
    answer = await west.admin.put(f"/subscriptions/{name}", json={"from": "start", **members})
    assert answer.status_code == 201, answer.text
    document: Json = answer.json()
    return document


async def refuse_all(west: Api, name: str = "mine") -> list[str]:
    """Refuse what a subscription gives out until it is dead, and return the ids of the datasets."""
    datasets = []
    for _ in range(10):
        page = (await west.admin.get(f"/subscriptions/{name}/next", params={"wait": 20, "limit": 2})).json()
        for event in page["events"]:
            body = {"event_id": event["event_id"], "reason": ATTACK, "retry_in": 0}
            answer = await west.admin.post(f"/subscriptions/{name}/nack", json=body)
            assert answer.status_code == 200, answer.text
            if answer.json()["dead_at"]:
                datasets.append(answer.json()["dataset"])
        body = {"cursor": page["cursor"], "lease": page["lease"]}
        await west.admin.post(f"/subscriptions/{name}/ack", json=body)
    return datasets


async def test_subscriptions_are_shown_as_the_api_has_them(ada: Visitor, west: Api) -> None:
    await subscribe(west, "first", filter={"collections": ["CMIP6"]})
    await subscribe(west, "second")
    api = (await west.admin.get("/subscriptions", params={"all": "true"})).json()
    assert await ada.json(f"{SUBSCRIPTIONS}.json") == api  # to who manages messaging
    assert (await ada.json(f"{SUBSCRIPTIONS}.json?owner=mine"))["subscriptions"] == []
    page = await ada.get(SUBSCRIPTIONS)
    assert [name in page.text for name in ("first", "second")] == [True, True]
    one = await ada.json(f"{SUBSCRIPTIONS}/first.json")
    assert one == (await west.admin.get("/subscriptions/first")).json()
    assert re.search(r"<b>\d+</b> behind", page.text)


async def test_a_dead_letter_is_redriven_in_the_console(ada: Visitor, west: Api) -> None:
    await subscribe(west, filter={"types": ["dataset.published"]})
    dead_ids = await refuse_all(west)
    assert len(dead_ids) == 2
    page = await ada.get(f"{SUBSCRIPTIONS}/mine")
    assert all(id in page.text for id in dead_ids)
    assert not re.search(r"<script(?! src=)|<img", page.text)
    letters = re.findall(r'name="letter" value="(\d+)"', page.text)
    proof = await ada.csrf(f"{SUBSCRIPTIONS}/mine")
    done = await ada.post(f"{SUBSCRIPTIONS}/mine", {"csrf": proof, "do": "redrive", "letter": letters[0]})
    assert (done.status_code, done.headers["location"]) == (303, f"{SUBSCRIPTIONS}/mine?outcome=redrive")
    assert (await west.admin.get("/subscriptions/mine")).json()["dead_letters"] == 1
    again = await ada.post(f"{SUBSCRIPTIONS}/mine", {"csrf": proof, "do": "redrive", "letter": letters[0]})
    assert again.status_code == 404
    assert 'role="alert"' in again.text


async def test_a_subscription_goes_on_from_another_place_and_ends(ada: Visitor, west: Api) -> None:
    await subscribe(west)
    one, proof = f"{SUBSCRIPTIONS}/mine", await ada.csrf(SUBSCRIPTIONS)
    wrong = await ada.post(one, {"csrf": proof, "do": "seek", "place": "", "cursor": "nowhere"})
    assert wrong.status_code == 400
    assert (await ada.post(one, {"csrf": proof, "do": "seek", "place": "head"})).status_code == 303
    head = (await west.admin.get("/subscriptions/mine")).json()["cursor"]
    assert head != "0.0"
    assert (await ada.post(one, {"csrf": proof, "do": "seek", "place": "start"})).status_code == 303
    assert (await west.admin.get("/subscriptions/mine")).json()["cursor"] != head
    assert (await ada.post(one, {"csrf": proof, "do": "end", "confirmation": "yours"})).status_code == 400
    assert (await ada.post(one, {"csrf": proof, "do": "nothing"})).status_code == 400
    assert (await ada.post(one, {"do": "end", "confirmation": "mine"})).status_code == 403  # no proof
    assert (await west.admin.get("/subscriptions/mine")).status_code == 200
    assert (await ada.post(one, {"csrf": proof, "do": "end", "confirmation": "mine"})).status_code == 303
    assert (await west.admin.get("/subscriptions/mine")).status_code == 404


async def test_others_see_their_own_subscriptions_alone(sam: Visitor, west: Api) -> None:
    await subscribe(west)
    assert (await sam.get("/console")).headers["location"] == SUBSCRIPTIONS
    page = await sam.get(SUBSCRIPTIONS)
    assert (page.status_code, "There is none" in page.text) == (200, True)
    assert (await sam.get(f"{SUBSCRIPTIONS}?owner=all")).status_code == 403
    proof = await sam.csrf(SUBSCRIPTIONS)
    for do in ("seek", "redrive", "end"):
        fields = {"csrf": proof, "do": do, "place": "head", "letter": "1", "confirmation": "mine"}
        answer = await sam.post(f"{SUBSCRIPTIONS}/mine", fields)
        missing = await sam.post(f"{SUBSCRIPTIONS}/none", {**fields, "confirmation": "none"})
        assert (answer.status_code, missing.status_code) == (404, 404)
        assert answer.text.replace("mine", "none") == missing.text  # nothing tells that it is there
    conn = await asyncpg.connect(west.settings.dsn)
    assert await conn.fetchval("SELECT count(*) FROM fedstac.audit WHERE action = 'console'") == 6  # one for each
    await conn.close()
    assert (await west.admin.get("/subscriptions/mine")).status_code == 200


# --- grants ---


async def give(west: Api, subject: str, **target: str) -> Json:
    body = {"subject": subject, **target, "valid_until": f"{UNTIL}T00:00:00Z"}
    answer = await west.admin.post("/grants", json=body)
    assert answer.status_code == 201, answer.text
    document: Json = answer.json()
    return document


async def test_a_grant_is_given_shown_and_withdrawn(ada: Visitor, west: Api) -> None:
    proof = await ada.csrf(f"{GRANTS}/give")
    fields = {"csrf": proof, "subject": "person:1", "scope": "dataset", "target": f"CMIP6/{IDS[0]}", "until": UNTIL}
    for name, value in (("until", "2001-01-31"), ("until", ""), ("scope", "all"), ("target", "CMIP6/none"),
                        ("subject", ""), ("from", "tomorrow")):  # fmt: skip
        refused = await ada.post(f"{GRANTS}/give", {**fields, name: value})
        assert refused.status_code in (400, 404), (name, value)
        assert 'role="alert"' in refused.text
    given = await ada.post(f"{GRANTS}/give", fields)
    assert given.status_code == 303
    assert given.headers["location"].endswith("?outcome=given")
    again = await ada.post(f"{GRANTS}/give", fields)
    assert again.headers["location"] == given.headers["location"].replace("given", "present")
    one = given.headers["location"].partition("?")[0]
    assert await ada.json(f"{one}.json") == (await west.admin.get(one.removeprefix("/console"))).json()
    for query in ("subject=person:1", f"dataset=CMIP6/{IDS[0]}", "subject=person:1&lineage=&project="):
        assert len((await ada.json(f"{GRANTS}.json?{query}"))["grants"]) == 1
    assert (await ada.json(f"{GRANTS}.json?subject=person:2"))["grants"] == []
    assert (await ada.get(f"{GRANTS}?dataset=CMIP6/x&project=CMIP6")).status_code == 400
    assert (await ada.post(one, {"csrf": proof, "reason": " "})).status_code == 400
    assert (await ada.post(one, {"reason": "left"})).status_code == 403  # no proof
    assert (await ada.post(one, {"csrf": proof, "reason": ATTACK})).status_code == 303
    page = await ada.get(one)
    assert "&lt;script&gt;alert(&#39;x&#39;)" in page.text
    assert not re.search(r"<script(?! src=)|<img", page.text)
    document = (await west.admin.get(one.removeprefix("/console"))).json()
    assert (document["stand"], document["closed_why"]) == ("closed", ATTACK)


async def test_somebody_who_was_never_here_gets_a_grant_by_issuer_and_subject(ada: Visitor, west: Api) -> None:
    fields = {"csrf": await ada.csrf(f"{GRANTS}/give"), "subject": "eve", "issuer": "https://idp.example",
              "scope": "project", "target": "CMIP6", "until": UNTIL}  # fmt: skip
    assert (await ada.post(f"{GRANTS}/give", fields)).status_code == 303
    [grant] = (await west.admin.get("/grants", params={"project": "CMIP6"})).json()["grants"]
    assert grant["subject"].startswith("person:")


async def test_all_grants_of_somebody_are_withdrawn_together(ada: Visitor, west: Api) -> None:
    for id in IDS[:3]:
        await give(west, "person:1", dataset=f"CMIP6/{id}")
    await give(west, "person:2", dataset=f"CMIP6/{IDS[0]}")
    page = await ada.get(f"{GRANTS}?subject=person:1")
    assert f'href="{GRANTS}/withdraw?subject=person%3A1"' in page.text
    look = await ada.get(f"{GRANTS}/withdraw?subject=person:1")
    assert "You see <b>3</b> of them" in look.text
    fields = {"csrf": await ada.csrf(GRANTS), "subject": "person:1", "reason": "left the project"}
    assert (await ada.post(f"{GRANTS}/withdraw", fields)).status_code == 400  # not confirmed
    nobody = {**fields, "subject": "", "confirmation": "withdraw"}
    assert (await ada.post(f"{GRANTS}/withdraw", nobody)).status_code == 400
    done = await ada.post(f"{GRANTS}/withdraw", {**fields, "confirmation": "withdraw"})
    assert done.status_code == 303
    grants = (await west.admin.get("/grants", params={"state": "open"})).json()["grants"]
    assert [each["subject"] for each in grants] == ["person:2"]


async def test_a_grant_is_suspended_with_its_dataset_and_only_who_may_know_sees_it(
    ada: Visitor, west: Api, open_browser: OpenBrowser
) -> None:
    await give(west, "person:1", dataset=f"CMIP6/{IDS[0]}")
    await give(west, "person:1", project="CMIP6")
    assert "suspended</span>" not in (await ada.get(GRANTS)).text
    assert (await west.admin.delete(f"{ITEMS}/{IDS[0]}", headers=WAIT)).status_code == 200
    assert (await ada.get(GRANTS)).text.count("suspended</span>") == 1
    assert (await west.admin.post(f"{ITEMS}/{IDS[0]}/unmark", headers=WAIT)).status_code == 200
    assert "suspended</span>" not in (await ada.get(GRANTS)).text


async def test_grants_of_others_are_not_there_for_who_has_no_right(sam: Visitor, west: Api) -> None:
    grant = await give(west, "person:1", dataset=f"CMIP6/{IDS[0]}")
    page = await sam.get(GRANTS)
    assert (page.status_code, IDS[0] in page.text, "Give a grant" in page.text) == (200, False, False)
    assert (await sam.get(f"{GRANTS}/{grant['id']}")).status_code == 404
    assert (await sam.get(f"{GRANTS}/give")).status_code == 403
    proof = await sam.csrf(GRANTS)
    fields = {"csrf": proof, "subject": "person:2", "scope": "dataset", "target": f"CMIP6/{IDS[0]}", "until": UNTIL}
    assert (await sam.post(f"{GRANTS}/give", fields)).status_code == 403
    assert (await sam.post(f"{GRANTS}/{grant['id']}", {"csrf": proof, "reason": "x"})).status_code in (403, 404)
    everything = {"csrf": proof, "subject": "person:1", "reason": "x", "confirmation": "withdraw"}
    assert (await sam.post(f"{GRANTS}/withdraw", everything)).status_code == 403
    assert (await west.admin.get(f"/grants/{grant['id']}")).json()["stand"] == "valid"


# --- loads ---


async def test_a_load_is_looked_at_confirmed_and_applied(ada: Visitor, west: Api) -> None:
    load = await loads.compared_load(west.admin, DATASETS[:6])
    one = f"{LOADS}/{load['id']}"
    assert await ada.json(f"{LOADS}.json") == (await west.admin.get("/loads")).json()
    assert await ada.json(f"{one}.json") == (await west.admin.get(f"/loads/{load['id']}")).json()
    page = await ada.get(one)
    assert "Type <b>6</b>" in page.text
    listed = await ada.json(f"{one}/datasets.json?change=removed")
    assert len(listed["datasets"]) == 6
    fields = {"csrf": await ada.csrf(one), "do": "apply", "compared": load["compared"]}
    for confirm, status in (("", 409), ("5", 409), ("many", 400)):
        refused = await ada.post(one, {**fields, "confirm": confirm})
        assert (refused.status_code, 'role="alert"' in refused.text) == (status, True)
    other_look = await ada.post(one, {**fields, "confirm": "6", "compared": "2020-01-01T00:00:00Z"})
    assert (other_look.status_code, "compared again since" in other_look.text) == (409, True)
    not_shown = await ada.post(one, {**fields, "confirm": "6", "compared": ""})
    assert (not_shown.status_code, "showed no changes" in not_shown.text) == (409, True)
    assert (await west.admin.get(f"/loads/{load['id']}")).json()["status"] == "compared"
    assert (await ada.post(one, {**fields, "confirm": "6"})).status_code == 303
    again = await ada.post(one, {"csrf": fields["csrf"], "do": "cancel"})
    assert again.status_code == 409  # it is applied


async def test_a_load_is_compared_again_and_cancelled(ada: Visitor, west: Api) -> None:
    load = await loads.compared_load(west.admin, DATASETS[:11])
    one = f"{LOADS}/{load['id']}"
    proof = await ada.csrf(one)
    assert (await ada.post(one, {"csrf": proof, "do": "compare"})).status_code == 303
    await loads.compared_again(west.admin, load["id"], before=load["compared"])
    assert (await ada.post(one, {"csrf": proof, "do": "stop"})).status_code == 409
    assert (await ada.post(one, {"do": "cancel"})).status_code == 403  # no proof
    assert (await ada.post(one, {"csrf": proof, "do": "cancel"})).status_code == 303
    assert (await west.admin.get(f"/loads/{load['id']}")).json()["status"] == "cancelled"
    assert 'value="apply"' not in (await ada.get(one)).text


async def test_loads_of_others_are_not_there(sam: Visitor, west: Api) -> None:
    load = await loads.compared_load(west.admin, DATASETS)
    assert (await sam.json(f"{LOADS}.json"))["loads"] == []
    one = f"{LOADS}/{load['id']}"
    proof = await sam.csrf(LOADS)
    for path in (one, f"{one}/datasets", f"{LOADS}/x"):
        assert (await sam.get(path)).status_code == 404
    for do in ("compare", "apply", "cancel", "stop"):
        assert (await sam.post(one, {"csrf": proof, "do": do})).status_code == 404
    assert (await west.admin.get(f"/loads/{load['id']}")).json()["status"] in ("compared", "done")


# --- quarantine ---


async def test_a_dataset_goes_under_quarantine_and_comes_back(ada: Visitor, west: Api) -> None:
    before = (await west.anyone.get(f"{ITEMS}/{IDS[0]}")).json()
    proof = await ada.csrf(f"{QUARANTINE}/new")
    fields = {"csrf": proof, "collection": "CMIP6", "dataset": IDS[0], "reason": ATTACK, "case": "T-1041",
              "contact": "data@a.example", "links": "https://a.example/1\nmailto:x@a.example"}  # fmt: skip
    for name, value in (("reason", ""), ("dataset", "none"), ("links", "javascript:alert(1)"), ("collection", "")):
        refused = await ada.post(f"{QUARANTINE}/new", {**fields, name: value})
        assert (refused.status_code in (400, 404), 'role="alert"' in refused.text) == (True, True), (name, value)
    done = await ada.post(f"{QUARANTINE}/new", fields)
    assert (done.status_code, done.headers["location"]) == (303, f"{QUARANTINE}?outcome=quarantine")
    assert (await ada.json(f"{QUARANTINE}.json")) == {
        **(await west.admin.get("/quarantines", params={"open": "true"})).json()
    }
    page = await ada.get(QUARANTINE)
    assert "&lt;script&gt;alert(&#39;x&#39;)" in page.text
    assert not re.search(r"<script(?! src=)|<img|javascript:", page.text)
    assert (await ada.get(f"{QUARANTINE}?state=closed&q={IDS[0]}")).text.count("T-1041") == 0
    assert (await ada.get(f"{QUARANTINE}?state=x")).status_code == 400
    released = await ada.post(f"{QUARANTINE}/act", {
        "csrf": proof, "do": "release", "dataset": f"CMIP6/{IDS[0]}", "text": "nothing personal"})  # fmt: skip
    assert (released.status_code, released.headers["location"]) == (303, f"{QUARANTINE}?outcome=release")
    assert (await west.anyone.get(f"{ITEMS}/{IDS[0]}")).json()["assets"] == before["assets"]
    assert "nothing personal" in (await ada.get(f"{QUARANTINE}?state=closed")).text


async def test_several_cases_are_decided_at_once(ada: Visitor, west: Api) -> None:
    for id in IDS[:3]:
        answer = await west.admin.post(f"{ITEMS}/{id}/quarantine", json={"reason": "licence"}, headers=WAIT)
        assert answer.status_code == 200, answer.text
    names = [f"CMIP6/{id}" for id in IDS[:3]]
    look = await ada.get(f"{QUARANTINE}/act?do=mark&" + "&".join(f"dataset={name}" for name in names))
    assert look.text.count('name="dataset"') == 3
    proof = await ada.csrf(QUARANTINE)
    assert (await ada.post(f"{QUARANTINE}/act", {"csrf": proof, "do": "mark"})).status_code == 400
    assert (await ada.post(f"{QUARANTINE}/act", {"csrf": proof, "do": "x", "dataset": names})).status_code == 400
    assert (await ada.post(f"{QUARANTINE}/act", {"do": "mark", "dataset": names})).status_code == 403  # no proof
    chosen_names = [*names[:2], "CMIP6/none"]
    fields: Fields = {"csrf": proof, "do": "mark", "dataset": chosen_names, "text": "no licence"}
    marked = await ada.post(f"{QUARANTINE}/act", fields)
    assert "Marked: 2 of 3" in marked.text
    deletions = (await west.admin.get("/deletions", params={"state": "open"})).json()["deletions"]
    assert {each["dataset"] for each in deletions} == set(IDS[:2])
    released = await ada.post(f"{QUARANTINE}/act", {"csrf": proof, "do": "release", "dataset": names})
    assert "Released: 1 of 3" in released.text  # what is marked is unmarked first


async def test_who_may_not_quarantine_sees_no_case(sam: Visitor, west: Api) -> None:
    await west.admin.post(f"{ITEMS}/{IDS[0]}/quarantine", json={"reason": "licence"}, headers=WAIT)
    for path in (QUARANTINE, f"{QUARANTINE}.json", f"{QUARANTINE}/new"):
        answer = await sam.get(path)
        assert (answer.status_code, IDS[0] in answer.text) == (403, False)
    proof = await sam.csrf(SUBSCRIPTIONS)
    fields = {"csrf": proof, "do": "release", "dataset": f"CMIP6/{IDS[0]}", "text": ""}
    assert (await sam.post(f"{QUARANTINE}/act", fields)).status_code == 409  # as the API: it is found by its id
    assert (await west.admin.get("/quarantines", params={"open": "true"})).json()["quarantines"]


async def test_pages_that_poll_are_told_that_nothing_changed(ada: Visitor, west: Api) -> None:
    async def is_told_of_nothing(path: str) -> bool:
        poll = await ada.get(path, **{"HX-Request": "true"})
        assert (poll.status_code, poll.text[:14]) == (200, '<div id="live"'), path
        again = await ada.get(path, **{"HX-Request": "true", "If-None-Match": poll.headers["etag"]})
        return (again.status_code, again.content) == (304, b"")

    load = await loads.compared_load(west.admin, DATASETS)
    await subscribe(west)
    await give(west, "person:1", project="CMIP6")
    for path in (SUBSCRIPTIONS, f"{SUBSCRIPTIONS}/mine", GRANTS, LOADS, f"{LOADS}/{load['id']}", QUARANTINE):
        await until(partial(is_told_of_nothing, path))  # the log goes on with what was just given
