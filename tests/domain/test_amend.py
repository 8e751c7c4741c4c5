"""What an edit of a stored dataset comes to: what random actions (tests/db/test_actions_stateful.py) found."""

from __future__ import annotations

import copy
from contextlib import suppress
from typing import Any

import pytest

from fedstac.domain import documents, patching
from fedstac.domain.actions.amend import Amend
from fedstac.domain.actions.publish import Publish
from fedstac.domain.actions.target import Target
from fedstac.domain.errors import Conflict, ItemAlreadyExists, MissingPermission, Problem, StacInvalid
from fedstac.domain.model import Decision, Lineage, Outcome
from fedstac.domain.patching import Whole
from fedstac.domain.policy import Principal
from tests.support.amending import CHECKER, ITEM, ROOT, VERSION, VOCABULARY, WORLD

Json = Any
FILE = next(key for key, asset in ITEM["assets"].items() if "file:checksum" in asset)
OTHER = "1220" + "f" * 64
PAUL = Principal("paul", frozenset({f"publisher:{ITEM['properties']['cmip6:institution_id']}"}))
TIMES = {"created": "2024-01-01T00:00:00Z", "updated": "2024-01-01T00:00:00Z"}
REPLICA = {"href": "https://b.example/f.nc", "description": "HTTPServer Link", "roles": ["data"]}
ADD_REPLICA = [{"op": "add", "path": f"/assets/{FILE}/alternate/b.example", "value": REPLICA}]


def publish(item: Json, lineage: Lineage | None = None, principal: Principal = PAUL) -> tuple[Lineage, Decision]:
    draft, _ = CHECKER.draft(item, "CMIP6", VOCABULARY)
    lineage = lineage or Lineage(draft.lineage, "west", 0, {})
    decision = Publish(draft, principal, VERSION).decide(lineage, WORLD)
    return lineage.after(decision.changes), decision


def amend(
    lineage: Lineage, body: Json, principal: Principal = ROOT, *, whole: bool = False, override: str | None = None
) -> tuple[Lineage, Decision]:
    target = Target("CMIP6", str(ITEM["id"]), lineage.key)
    edit = Whole(body) if whole else patching.read(body)
    decision = Amend(target, principal, edit, VERSION, override).decide(lineage, WORLD)
    return lineage.after(decision.changes), decision


@pytest.fixture
def published() -> Lineage:
    return publish(ITEM)[0]


@pytest.fixture
def replicated(published: Lineage) -> Lineage:
    return amend(published, ADD_REPLICA, Principal("b", frozenset({"node:b.example"})))[0]


def with_asset(**members: object) -> Json:
    changed = copy.deepcopy(ITEM)
    changed["assets"][FILE] |= members
    return changed


def test_publishing_again_cannot_change_what_another_node_says(replicated: Lineage) -> None:
    theirs = {"b.example": {**REPLICA, "alternate:name": "b.example", "href": "https://evil.example/f.nc"}}
    with pytest.raises(MissingPermission, match="node:b"):
        publish(with_asset(alternate=theirs), replicated)


def test_publishing_again_under_another_file_name_is_another_file(replicated: Lineage) -> None:
    renamed = copy.deepcopy(ITEM)
    renamed["assets"]["other.nc"] = renamed["assets"].pop(FILE)
    with pytest.raises(ItemAlreadyExists):
        publish(renamed, replicated)


def test_publishing_says_nothing_in_the_name_of_another_node() -> None:
    theirs = {"b.example": {**REPLICA, "alternate:name": "b.example"}}
    with pytest.raises(MissingPermission, match="node:b"):
        publish(with_asset(alternate=theirs))
    own = Principal("paul", PAUL.roles | {"node:b.example"})
    _, decision = publish(with_asset(alternate=theirs), principal=own)
    assert '"file:checksum"' in (decision.changes[0].after.document or "").split('"alternate":')[1].split("}")[0]


def test_publishing_again_needs_the_permission_for_what_it_changes(published: Lineage) -> None:
    changed = copy.deepcopy(ITEM)
    changed["properties"]["description"] = "better"
    _, decision = publish(changed, published)
    assert decision.outcome is Outcome.UPDATED


def test_latest_is_claimed_only_where_it_comes_to_be_so(published: Lineage) -> None:
    retracted, _ = amend(published, {"properties": {"retracted": True}})
    with pytest.raises(Conflict, match="not the latest"):
        amend(retracted, {"properties": {"latest": True}})
    _, decision = amend(retracted, {"properties": {"latest": True, "retracted": False}})
    assert (decision.outcome, decision.changes[0].after.latest) == (Outcome.REINSTATED, True)
    assert amend(published, {"properties": {"latest": True}})[1].outcome is Outcome.IDENTICAL


def test_a_merge_patch_says_nothing_of_a_date_that_is_null(published: Lineage) -> None:
    """Every CMIP6 document has that null, and whoever merges what they read sends it back."""
    assert ITEM["properties"]["datetime"] is None
    assert amend(published, {"properties": ITEM["properties"]})[1].outcome is Outcome.IDENTICAL


@pytest.mark.parametrize("value", [[1], None, "x", [None], {}])
def test_extensions_that_are_no_list_of_strings_are_refused(published: Lineage, value: Json) -> None:
    with pytest.raises(StacInvalid):
        amend(published, [{"op": "add", "path": "/stac_extensions", "value": value}])


def test_one_and_true_are_not_the_same(published: Lineage) -> None:
    lineage, _ = amend(published, {"properties": {"note": 1}})
    lineage, decision = amend(lineage, {"properties": {"note": True}})
    assert decision.outcome is Outcome.UPDATED
    assert amend(lineage, {"properties": {"note": True}})[1].outcome is Outcome.IDENTICAL


@pytest.mark.parametrize("path", ["/links/-", "/links"])
def test_a_link_is_added_once(published: Lineage, path: str) -> None:
    """`/links` is how ESGF's publisher (esgcet 5.5.3) writes it."""
    errata = {"rel": "related", "href": "https://errata.esgf.io/1", "title": "Errata issue", "type": "text/html"}
    lineage, decision = amend(published, [{"op": "add", "path": path, "value": errata}], PAUL)
    assert decision.outcome is Outcome.ANNOTATED
    assert (decision.changes[0].after.document or "").count("errata.esgf.io") == 1
    assert amend(lineage, [{"op": "add", "path": path, "value": errata}], PAUL)[1].outcome is Outcome.IDENTICAL


def test_a_file_does_not_change_by_way_of_an_aggregation(published: Lineage) -> None:
    """Called an aggregation, changed, and called a file again: three steps, none of which is about files."""
    with pytest.raises(Conflict, match="files never change"):
        amend(published, {"assets": {FILE: {"protocol": "kerchunk"}}})


def test_an_aggregation_with_a_size_is_no_file(published: Lineage) -> None:
    aggregation = {"href": "https://b.example/a.json", "type": "application/kerchunk", "alternate:name": "b.example",
                   "description": "Kerchunk", "protocol": "kerchunk", "file:size": 3, **TIMES}  # fmt: skip
    [before] = published.records.values()
    lineage, decision = amend(published, [{"op": "add", "path": "/assets/reference_file", "value": aggregation}], PAUL)
    assert decision.outcome is Outcome.UPDATED
    assert lineage.records[before.id].files_digest == before.files_digest


def test_replacing_a_file_twice_with_its_old_replicas_changes_nothing_again(replicated: Lineage) -> None:
    """The document as it was got, with another checksum: the replica in it is of the old file."""
    document = patching.JsonPatch(ADD_REPLICA).apply(with_asset())
    document["assets"][FILE]["alternate"]["b.example"] |= {
        "alternate:name": "b.example", "file:checksum": document["assets"][FILE]["file:checksum"],
    }  # fmt: skip
    document["assets"][FILE]["file:checksum"] = OTHER
    lineage, first = amend(replicated, document, whole=True, override="a better file")
    assert first.outcome is Outcome.REPLACED
    assert '"alternate":' not in (first.changes[0].after.document or "")
    assert amend(lineage, document, whole=True, override="a better file")[1].outcome is Outcome.IDENTICAL


@pytest.mark.parametrize("alternate", [None, [], "x", {"a": None}, {"a": True}, {"a": []}])
def test_alternates_of_another_shape_are_no_replicas(alternate: Json) -> None:
    assert documents.replicas({"f": {"file:checksum": OTHER, "alternate": alternate}}) is None


@pytest.mark.parametrize("value", [None, True, 1, "x", [], [None], [[]], {}, {"a": None}, {"alternate": "x"}])
def test_nothing_ends_in_an_error_of_python(published: Lineage, value: Json) -> None:
    for path in ("/assets", "/links", "/properties", "/stac_extensions", "/geometry", "/bbox", f"/assets/{FILE}", ""):
        with suppress(Problem):
            amend(published, [{"op": "replace", "path": path, "value": value}])
