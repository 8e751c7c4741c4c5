"""Full-state loads over HTTP: what is shown before, what is done, what is left alone, and what has to be confirmed."""

from __future__ import annotations

import copy
from typing import Any

import asyncpg
import pytest

from fedstac.db import invariants
from fedstac.demo import sample
from tests.support import loads
from tests.support.nodes import Api

Json = dict[str, Any]
ITEMS = "/collections/CMIP6/items"
DATASETS = tuple(sample.items(40))
NEW = tuple(sample.items(4, seed=77))
WAIT = {"Prefer": "wait=60"}
NOTHING = {"new": 0, "changed": 0, "unchanged": 0, "removed": 0, "held": 0, "invalid": 0}


def titled(item: Json, title: str) -> Json:
    changed = copy.deepcopy(item)
    changed["properties"]["description"] = title
    return changed


@pytest.fixture
async def west(api: Api) -> Api:
    """With some datasets."""
    response = await api.admin.post(ITEMS, json={"type": "FeatureCollection", "features": DATASETS}, headers=WAIT)
    assert response.json()["counts"]["done"] == len(DATASETS), response.text
    return api


def is_latest(item: Json) -> bool:
    return item["properties"]["latest"] is True


async def catalogue(api: Api) -> dict[str, Json]:
    features = (await api.anyone.get(f"{ITEMS}?limit=1000")).json()["features"]
    return {each["id"]: each for each in features}


async def log(api: Api) -> list[tuple[str, str]]:
    """Return type and dataset of each event, in their order."""
    conn = await asyncpg.connect(api.settings.dsn)
    try:
        rows = await conn.fetch("SELECT type, dataset FROM fedstac.outbox WHERE dataset IS NOT NULL ORDER BY id")
        assert await invariants.check(conn) == []
        return [(row["type"].split(".")[-2], row["dataset"]) for row in rows]
    finally:
        await conn.close()


async def test_the_difference_is_applied(west: Api) -> None:
    removed, changed, kept = DATASETS[:4], DATASETS[4:8], DATASETS[8:]
    items = [*(titled(item, "better") for item in changed), *kept, *NEW]
    before, start = await catalogue(west), len(await log(west))
    load = await loads.load(west.admin, items)
    assert load["status"] == "done", load
    assert load["changes"] == {**NOTHING, "new": 4, "changed": 4, "unchanged": 32, "removed": 4}
    assert load["counts"]["done"] == 12
    after = await catalogue(west)
    assert after.keys() == {item["id"] for item in items}
    assert {after[item["id"]]["properties"]["description"] for item in changed} == {"better"}
    promoted_ids = [id for id in after if id in before and is_latest(after[id]) and not is_latest(before[id])]
    assert promoted_ids, "where the latest was removed, the version before is the latest"
    unchanged_ids = {item["id"] for item in kept} - set(promoted_ids)
    assert all(after[id] == before[id] for id in unchanged_ids)
    later = (await log(west))[start:]
    assert sorted(later) == sorted(
        [("cleared", item["id"]) for item in removed] + [("updated", item["id"]) for item in changed]
        + [("published", item["id"]) for item in NEW] + [("updated", id) for id in promoted_ids]
    )  # fmt: skip
    gone = await west.anyone.get(f"{ITEMS}/{removed[0]['id']}")
    assert gone.status_code == 404


async def test_the_same_state_again_changes_nothing(west: Api) -> None:
    events = await log(west)
    load = await loads.load(west.admin, DATASETS)
    assert (load["status"], load["changes"]) == ("done", {**NOTHING, "unchanged": 40})
    assert await log(west) == events


async def test_a_dry_run_shows_what_apply_does(west: Api) -> None:
    items = [titled(DATASETS[0], "better"), *DATASETS[2:], *NEW]
    shown = await loads.state(west.admin, items, dry_run="true")
    assert shown.status_code == 200, shown.text
    load = shown.json()
    assert (load["status"], load["changes"]) == (
        "compared", {**NOTHING, "new": 4, "changed": 1, "unchanged": 38, "removed": 1}
    )  # fmt: skip
    assert load["examples"]["removed"] == [DATASETS[1]["id"]]
    assert len(await catalogue(west)) == 40
    listed = (await west.admin.get(f"/loads/{load['id']}/datasets?change=new&limit=3")).json()
    assert [each["change"] for each in listed["datasets"]] == ["new"] * 3
    assert (await west.admin.post(f"/loads/{load['id']}/apply")).status_code == 202
    assert (await loads.end_of(west.admin, load["id"]))["status"] == "done"
    again = await west.admin.post(f"/loads/{load['id']}/apply")
    assert (again.status_code, again.json()["status"]) == (202, "done")
    assert len(await catalogue(west)) == 43


async def test_many_datasets_go_only_where_their_number_is_confirmed(west: Api) -> None:
    refused = await loads.state(west.admin, DATASETS[:35])
    assert refused.status_code == 409
    problem = refused.json()
    assert (problem["type"].rpartition("/")[2], problem["cleared"]) == ("load-not-confirmed", 5)
    id = problem["load"].rpartition("/")[2]
    assert (await west.admin.post(f"/loads/{id}/apply?confirm=4")).status_code == 409
    assert len(await catalogue(west)) == 40
    assert (await west.admin.post(f"/loads/{id}/apply?confirm=5")).status_code == 202
    assert (await loads.end_of(west.admin, id))["status"] == "done"
    assert len(await catalogue(west)) == 35


async def test_an_empty_load_is_refused_unless_it_is_confirmed(west: Api) -> None:
    refused = await loads.state(west.admin, [])
    assert refused.status_code == 409, refused.text
    assert "empty" in refused.json()["detail"]
    assert (await loads.load(west.admin, [], confirm="40"))["status"] == "done"
    assert await catalogue(west) == {}
    assert (await loads.load(west.admin, DATASETS))["counts"]["done"] == 40
    assert len(await catalogue(west)) == 40


async def test_a_rebuild_clears_each_dataset_right_before_it_is_published_again(west: Api) -> None:
    items, start = [*DATASETS[2:], *NEW], len(await log(west))
    load = await loads.load(west.admin, items, mode="rebuild", confirm="40")
    assert (load["status"], load["cleared"]) == ("done", 40)
    later = (await log(west))[start:]
    for item in DATASETS[2:]:
        place = later.index(("cleared", item["id"]))
        assert later[place + 1] == ("published", item["id"])
    assert len(later) == 38 * 2 + 2 + 4
    after = await catalogue(west)
    assert after.keys() == {item["id"] for item in items}


async def test_what_is_under_quarantine_or_retracted_is_left_alone(west: Api) -> None:
    suspect, retracted = DATASETS[0], DATASETS[1]
    quarantine = {"reason": "personal data?", "case": "T-1", "contact": "data@west.example"}
    for id, action, body in (
        (suspect["id"], "quarantine", quarantine),
        (retracted["id"], "retract", {"reason": "wrong"}),
    ):
        response = await west.admin.post(f"{ITEMS}/{id}/{action}", json=body, headers=WAIT)
        assert response.status_code == 200, response.text
    load = await loads.load(west.admin, [titled(suspect, "better"), titled(retracted, "better"), *DATASETS[2:]])
    assert load["changes"] == {**NOTHING, "held": 2, "unchanged": 38}
    without = await loads.state(west.admin, DATASETS[2:], dry_run="true")
    assert without.json()["changes"] == {**NOTHING, "unchanged": 38, "removed": 1}


async def test_what_is_not_valid_is_shown_and_changes_nothing(west: Api) -> None:
    broken = copy.deepcopy(DATASETS[0])
    broken["properties"]["cmip6:experiment_id"] = "nonsense"
    load = await loads.load(west.admin, [broken, *DATASETS[1:]])
    assert load["changes"] == {**NOTHING, "unchanged": 39, "invalid": 1}
    [shown] = (await west.admin.get(f"/loads/{load['id']}/datasets?change=invalid")).json()["datasets"]
    assert (shown["id"], shown["type"]) == (broken["id"], "stac-validation")
    assert len(await catalogue(west)) == 40


async def test_what_has_no_id_refuses_the_part_because_nobody_can_tell_what_it_states(west: Api) -> None:
    response = await west.admin.post(loads.RECONCILE, content=loads.lines(DATASETS) + b"{broken\n", headers=loads.LINES)
    assert response.status_code == 400, response.text
    twice = await loads.state(west.admin, [*DATASETS, DATASETS[3]])
    assert twice.status_code == 400
    assert twice.json()["errors"][0]["pointer"] == "/40"
    assert len(await catalogue(west)) == 40


async def test_a_load_comes_in_parts_and_each_may_be_sent_again(west: Api) -> None:
    response = await loads.state(west.admin, DATASETS[:20], complete="false")
    assert response.status_code == 201, response.text
    id = response.json()["id"]
    address = f"/loads/{id}/parts/2"
    for part in (DATASETS[20:], DATASETS[20:30], DATASETS[20:], DATASETS[20:]):
        answer = await west.admin.put(address, content=loads.lines(part), headers=loads.LINES)
        assert (answer.status_code, answer.json()["stated"]) == (200, 20 + len(part))
    overlap = await west.admin.put(f"/loads/{id}/parts/3", content=loads.lines(DATASETS[:1]), headers=loads.LINES)
    assert overlap.status_code == 409
    assert (await west.admin.post(f"/loads/{id}/apply?dry_run=true")).json()["changes"] == {**NOTHING, "unchanged": 40}
    late = await west.admin.put(f"/loads/{id}/parts/3", content=loads.lines(NEW), headers=loads.LINES)
    assert late.json()["compared"] is None
    await west.admin.post(f"/loads/{id}/apply")
    load = await loads.end_of(west.admin, id)
    assert load["changes"] == {**NOTHING, "unchanged": 40, "new": 4}
    closed = await west.admin.put(f"/loads/{id}/parts/4", content=b"", headers=loads.LINES)
    assert closed.status_code == 409


async def test_a_load_that_is_not_applied_can_be_cancelled(west: Api) -> None:
    id = (await loads.state(west.admin, DATASETS, dry_run="true")).json()["id"]
    for _ in range(2):
        assert (await west.admin.post(f"/loads/{id}/cancel")).json()["status"] == "cancelled"
    assert (await west.admin.post(f"/loads/{id}/apply")).status_code == 409
    conn = await asyncpg.connect(west.settings.dsn)
    count = await conn.fetchval(
        "SELECT count(*) FROM fedstac.audit WHERE action = 'cancel-load' AND dataset = $1", f"load/{id}"
    )
    await conn.close()
    assert count == 1, "the second one changed nothing"


async def test_a_change_since_the_comparison_stays_and_is_refused_to_the_load(west: Api) -> None:
    items = [titled(DATASETS[0], "of the load"), *DATASETS[2:], *NEW]
    id = (await loads.state(west.admin, items, dry_run="true")).json()["id"]
    for item in (titled(DATASETS[0], "of somebody"), titled(DATASETS[1], "of somebody")):
        response = await west.admin.put(f"{ITEMS}/{item['id']}", json=item, headers=WAIT)
        assert response.status_code == 200, response.text
    await west.admin.post(f"/loads/{id}/apply")
    load = await loads.end_of(west.admin, id)
    assert (load["status"], load["counts"]["rejected"], load["counts"]["done"]) == ("partly", 2, 4)
    after = await catalogue(west)
    assert {after[item["id"]]["properties"]["description"] for item in DATASETS[:2]} == {"of somebody"}


async def test_only_who_may_delete_all_of_a_collection_loads_it(west: Api) -> None:
    publisher = {"Authorization": f"Bearer {west.tokens['publisher:NCAR']}"}
    body = loads.lines(DATASETS)
    refused = await west.anyone.post(loads.RECONCILE, content=body, headers={**loads.LINES, **publisher})
    assert refused.status_code == 403, refused.text
    assert (await loads.state(west.anyone, DATASETS)).status_code == 401
    id = (await loads.state(west.admin, DATASETS, dry_run="true")).json()["id"]
    assert (await west.anyone.get(f"/loads/{id}", headers=publisher)).status_code == 404


async def test_a_load_of_which_a_part_is_missing_is_not_compared(west: Api) -> None:
    load = (await loads.state(west.admin, DATASETS[:20], complete="false")).json()
    await west.admin.put(f"/loads/{load['id']}/parts/3", content=loads.lines(DATASETS[20:38]), headers=loads.LINES)
    for dry_run in ("true", "false"):
        refusal = await west.admin.post(f"/loads/{load['id']}/apply?dry_run={dry_run}")
        assert (refusal.status_code, "part 2 is missing" in refusal.json()["detail"]) == (409, True)
    await west.admin.put(f"/loads/{load['id']}/parts/2", content=b"", headers=loads.LINES)
    compared = await west.admin.post(f"/loads/{load['id']}/apply?dry_run=true")
    assert compared.json()["changes"]["removed"] == 2


async def test_a_load_that_was_compared_before_another_one_was_applied_is_compared_again(west: Api) -> None:
    """Else both would be applied in part, to a state that nobody stated."""
    first = (await loads.state(west.admin, DATASETS[:39], dry_run="true")).json()
    second = (await loads.state(west.admin, [*DATASETS[1:], *NEW], dry_run="true")).json()
    assert (await west.admin.post(f"/loads/{second['id']}/apply")).status_code == 202
    refusal = await west.admin.post(f"/loads/{first['id']}/apply")
    assert (refusal.status_code, second["id"] in refusal.json()["detail"]) == (409, True), refusal.text
    assert (await loads.end_of(west.admin, second["id"]))["status"] == "done"
    assert (await west.admin.post(f"/loads/{first['id']}/apply")).status_code == 409, "it was compared before"
    again = await west.admin.post(f"/loads/{first['id']}/apply?dry_run=true")
    assert (again.json()["changes"]["removed"], again.json()["changes"]["new"]) == (5, 1)
    confirm = again.json()["to_confirm"]
    await west.admin.post(f"/loads/{first['id']}/apply", params={"confirm": confirm} if confirm is not None else {})
    assert (await loads.end_of(west.admin, first["id"]))["status"] == "done"
    assert (await catalogue(west)).keys() == {item["id"] for item in DATASETS[:39]}


async def test_only_the_comparison_that_the_caller_saw_is_applied(west: Api) -> None:
    load = (await loads.state(west.admin, [*DATASETS[1:], *NEW], dry_run="true")).json()
    address, seen = f"/loads/{load['id']}/apply", load["compared"]
    again = await west.admin.post(address, params={"dry_run": "true"})
    assert again.json()["compared"] != seen
    refusal = await west.admin.post(address, params={"compared": seen})
    assert (refusal.status_code, "compared again since" in refusal.json()["detail"]) == (409, True), refusal.text
    assert (await west.admin.post(address, params={"compared": "now"})).status_code == 400
    part = await west.admin.put(f"/loads/{load['id']}/parts/2", content=b"", headers=loads.LINES)
    assert part.json()["compared"] is None
    refusal = await west.admin.post(address, params={"compared": again.json()["compared"]})
    assert refusal.status_code == 409, "it is not compared by the way"
    seen = (await west.admin.post(address, params={"dry_run": "true"})).json()["compared"]
    for _ in range(2):
        assert (await west.admin.post(address, params={"compared": seen})).status_code == 202
    assert (await loads.end_of(west.admin, load["id"]))["status"] == "done"
    assert (await catalogue(west)).keys() == {item["id"] for item in (*DATASETS[1:], *NEW)}


async def test_a_load_that_says_nothing_of_levels_opens_nothing(west: Api) -> None:
    """Neither in either mode, nor after it was cleared; and it is no change. What says `open` is opened."""
    controlled, private = DATASETS[0]["id"], DATASETS[1]["id"]
    for id, level in ((controlled, "controlled"), (private, "private")):
        change = {"properties": {"fedstac:access": level}}
        assert (await west.admin.patch(f"{ITEMS}/{id}", json=change)).status_code == 200

    async def levels() -> list[str]:
        answers = [await west.admin.get(f"{ITEMS}/{id}?access=full") for id in (controlled, private)]
        assert (await west.anyone.get(f"{ITEMS}/{private}")).status_code == 404
        return [each.json()["properties"]["fedstac:access"] for each in answers]

    load = await loads.load(west.admin, DATASETS)
    assert load["changes"] == {**NOTHING, "unchanged": 40}, load
    for parameters in ({}, {"mode": "rebuild", "confirm": "40"}):
        changed = [titled(item, f"mode {parameters}") for item in DATASETS[:2]]
        load = await loads.load(west.admin, [*changed, *DATASETS[2:]], **parameters)
        assert load["status"] == "done", load
        assert await levels() == ["controlled", "private"]
    await loads.load(west.admin, DATASETS[2:])
    await loads.load(west.admin, DATASETS)
    assert await levels() == ["controlled", "private"]
    opened = [{**item, "properties": {**item["properties"], "fedstac:access": "open"}} for item in DATASETS[:2]]
    load = await loads.load(west.admin, [*opened, *DATASETS[2:]])
    assert load["changes"] == {**NOTHING, "changed": 2, "unchanged": 38}, load
    for id in (controlled, private):
        assert (await west.anyone.get(f"{ITEMS}/{id}")).json()["assets"]
    load = await loads.load(west.admin, [*opened, *DATASETS[2:]])
    assert load["changes"] == {**NOTHING, "unchanged": 40}, load
    await log(west)
