"""Every rule with examples: what breaks it, where the finding points, and what it suggests."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from dataclasses import replace
from typing import Any
from uuid import NAMESPACE_URL, uuid3

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedstac.demo import sample
from fedstac.domain import crosschecks, validation
from fedstac.domain.errors import Finding, Severity, StacInvalid, errors_in, pointer
from fedstac.domain.rules import RULES, relations
from fedstac.domain.rules.properties import check_value
from fedstac.domain.vocabulary import Kind, Property, Vocabulary
from fedstac.domain.wording import nearest
from fedstac.vocabularies.checker import open_checker

Json = dict[str, Any]
Change = Callable[[Json], object]
CHECKER = open_checker()
CMIP6 = CHECKER.vocabularies.current("CMIP6")
assert CMIP6 is not None
VOCABULARY: Vocabulary = CMIP6
[ITEM] = sample.items(1)
FILE = next(key for key, asset in ITEM["assets"].items() if "file:checksum" in asset)
AT_FILE = pointer("assets", FILE)


def findings(document: Json) -> tuple[Finding, ...]:
    return CHECKER.findings(document, "CMIP6", CMIP6)


def changed(change: Change) -> Json:
    document = copy.deepcopy(ITEM)
    change(document)
    return document


def sets(name: str, value: Any) -> Change:
    return lambda document: document["properties"].__setitem__(name, value)


def drops(name: str) -> Change:
    return lambda document: document["properties"].pop(name)


def in_file(name: str, value: Any) -> Change:
    return lambda document: document["assets"][FILE].__setitem__(name, value)


def at(name: str, value: Any) -> Change:
    return lambda document: document.__setitem__(name, value)


def renames(document: Json) -> None:
    document["assets"]["tas.nc"] = document["assets"].pop(FILE)


def repeats(document: Json) -> None:
    document["assets"]["other.nc"] = copy.deepcopy(document["assets"][FILE])


def alternate(**members: Any) -> Change:
    entry = {"href": "https://east.example/f.nc", "alternate:name": "east", **members}
    return in_file("alternate", {"east": entry})


def p(name: str) -> str:
    return f"/properties/{name}"


# rule: (what is changed, where it is told, what is suggested or None)
EXAMPLES: dict[str, list[tuple[Change, str, str | None]]] = {
    "shape": [
        (lambda d: d.pop("properties"), "", None),
        (at("links", {}), "/links", None),
        (at("type", "Item"), "/type", None),
    ],
    "collection": [(at("collection", "CMIP7"), "/collection", None)],
    "id": [(at("id", "a/b"), "/id", None), (at("id", ""), "/id", None)],
    "id-template": [(at("id", "CMIP6.CMIP.v20200101"), "/id", None), (at("id", ITEM["id"] + "0"), "/id", None)],
    "stac-core": [
        (lambda d: d.pop("bbox"), "", None),
        (at("stac_extensions", "x"), "/stac_extensions", None),
    ],
    "stac-version": [
        (at("stac_version", "1.0"), "/stac_version", "1.1.0"),
        (at("stac_version", "1.0.0-rc.1"), "/stac_version", "1.1.0"),
    ],
    "file": [(in_file("file:size", "7"), AT_FILE + "/file:size", None)],
    "alternate-assets": [(in_file("alternate", []), AT_FILE + "/alternate", None)],
    "geometry": [
        (at("geometry", {"type": "Point", "coordinates": [400, 0]}), "/geometry/coordinates", None),
        (at("bbox", [0, 10, 1, -10]), "/bbox", None),
    ],
    "longitude": [(at("geometry", {"type": "Point", "coordinates": [359.5, 0]}), "/geometry/coordinates", None)],
    "datetime": [
        (sets("end_datetime", "1800-01-01T00:00:00Z"), p("start_datetime"), None),
        (sets("start_datetime", "1850"), p("start_datetime"), None),
    ],
    "server-owned": [(sets("retracted", True), p("retracted"), None)],
    "access": [(sets("fedstac:access", value), p("fedstac:access"), None) for value in ("secret", 1)],
    "extension": [
        (lambda d: d["stac_extensions"].append("https://example.org/x.json"), "/stac_extensions/3", None),
        (lambda d: d["stac_extensions"].pop(0), "/stac_extensions", ITEM["stac_extensions"][0]),
    ],
    "required": [(drops("cmip6:realm"), "/properties", None)],
    "unknown": [(sets("cmip6:sourceid", "x"), p("cmip6:sourceid"), "cmip6:source_id")],
    "type": [
        (sets("cmip6:frequency", ["mon"]), p("cmip6:frequency"), None),
        (sets("cmip6:realm", "atmos"), p("cmip6:realm"), None),
        (sets("cmip6:realm", []), p("cmip6:realm"), None),
        (sets("size", -1), p("size"), None),
        (sets("cmip6:table_id", None), p("cmip6:table_id"), None),
    ],
    "term": [
        (sets("cmip6:experiment_id", "historcal"), p("cmip6:experiment_id"), "historical"),
        (sets("cmip6:source_id", "NOPE"), p("cmip6:source_id"), None),
        (sets("cmip6:realm", ["atmos", "Land"]), p("cmip6:realm") + "/1", "land"),
    ],
    "pattern": [(sets("cmip6:variant_label", "r1i1p1"), p("cmip6:variant_label"), None)],
    "id-agrees-with-properties": [
        (sets("cmip6:grid_label", "gr9"), p("cmip6:grid_label"), ITEM["properties"]["cmip6:grid_label"])
    ],
    "base-id": [
        (sets("base_id", "CMIP6.x"), p("base_id"), ITEM["id"][:-10]),
        (at("base_id", "CMIP6.x"), "/base_id", ITEM["id"][:-10]),
    ],
    "version": [
        (sets("version", "20991231"), p("version"), ITEM["properties"]["version"]),
        (at("version", "20991231"), "/version", ITEM["properties"]["version"]),
        (at("id", ITEM["id"][:-8] + "20200230"), "/id", None),
    ],
    "pid": [
        (
            sets("cmip6:pid", "hdl:21.14100/72b735c3-e374-30b1-00d6-16064121f3c0"),
            p("cmip6:pid"),
            f"hdl:21.14100/{uuid3(NAMESPACE_URL, ITEM['id'])}",
        )
    ],
    "file-name": [
        (renames, "/assets/tas.nc", None),
        (in_file("file:local_path", "CMIP6/other.nc"), AT_FILE + "/file:local_path", None),
    ],
    "directory": [(in_file("file:local_path", f"CMIP6/{FILE}"), AT_FILE + "/file:local_path", None)],
    "source-institution": [(sets("cmip6:institution_id", "DKRZ"), p("cmip6:institution_id"), None)],
    "source-activity": [(sets("cmip6:activity_id", ["VolMIP"]), p("cmip6:activity_id"), None)],
    "experiment-activity": [(sets("cmip6:activity_id", ["OMIP"]), p("cmip6:activity_id"), None)],
    "sub-experiment": [(sets("cmip6:sub_experiment_id", "s1960"), p("cmip6:sub_experiment_id"), None)],
    "model-components": [(sets("cmip6:source_type", ["LAND"]), p("cmip6:source_type"), None)],
    "table-variable": [
        (sets("cmip6:variable_id", "zostoga"), p("cmip6:variable_id"), None),
        (sets("cmip6:variable_units", "1e-06"), p("cmip6:variable_units"), None),
    ],
    "member-id": [(sets("cmip6:variant_label", "r99i1p1f1"), p("cmip6:member_id"), "r99i1p1f1")],
    "checksum": [
        (in_file("file:checksum", "abcd"), AT_FILE + "/file:checksum", None),
        (in_file("file:checksum", "1220" + "A" * 64), AT_FILE + "/file:checksum", None),
        (in_file("file:checksum", "1220" + "a" * 62), AT_FILE + "/file:checksum", None),
        (in_file("file:checksum", "1221" + "a" * 64), AT_FILE + "/file:checksum", None),
        (in_file("file:checksum", "7f20" + "a" * 64), AT_FILE + "/file:checksum", None),
        (alternate(**{"file:checksum": "00"}), AT_FILE + "/alternate/east/file:checksum", None),
    ],
    "size-sum": [(sets("size", 1), p("size"), None)],
    "tracking-id": [(repeats, "/assets/other.nc/cmip6:tracking_id", None)],
    "cite-as": [
        (at("links", []), "/links", None),
        (lambda d: d["links"][0].__setitem__("href", "https://example.org/"), "/links/0/href", None),
    ],
    "link": [
        (lambda d: d["links"].append({"rel": "related", "href": "https://example.org/"}), "/links/1/href", None)
    ],
    "href": [
        (in_file("href", "javascript:alert(1)"), AT_FILE + "/href", None),
        (in_file("href", "\tJava\nScript:alert(1)"), AT_FILE + "/href", None),
        (alternate(href="data:text/html,x"), AT_FILE + "/alternate/east/href", None),
        (lambda d: d["links"].append({"rel": "about", "href": "vbscript:x"}), "/links/1/href", None),
    ],
    "protocol": [
        (in_file("protocol", "htps"), AT_FILE + "/protocol", "https"),
        (lambda d: d["assets"][FILE].pop("protocol"), AT_FILE, None),
    ],
    "alternate-name": [
        (lambda d: d["assets"][FILE].pop("alternate:name"), AT_FILE, None),
        (alternate(**{"alternate:name": "west"}), AT_FILE + "/alternate/east", "east"),
    ],
}  # fmt: skip
# rules that CMIP6 has no use for: (properties, where it is told, what is suggested)
OF_CORDEX: dict[str, tuple[Json, str, str]] = {
    "domain": (
        {"cordex-cmip6:domain_id": "EUR-12", "cordex-cmip6:domain": "Africa"}, p("cordex-cmip6:domain"), "Europe",
    ),
}  # fmt: skip
CASES = [(rule, *case) for rule, cases in EXAMPLES.items() for case in cases]


def test_a_sample_has_no_findings() -> None:
    assert findings(ITEM) == ()


def test_the_link_to_a_folder_may_have_a_tracking_id() -> None:
    """As ESGF's publisher (esgcet 5.5.3) sends it: the dataset's."""
    document = copy.deepcopy(ITEM)
    document["assets"]["globus"]["cmip6:tracking_id"] = document["properties"]["cmip6:pid"]
    document["assets"]["globus"]["file:local_path"] = document["id"].replace(".", "/")
    assert findings(document) == ()


@pytest.mark.parametrize(("rule", "change", "where", "suggestion"), CASES, ids=[rule for rule, *_ in CASES])
def test_a_fault_is_found_where_it_is(rule: str, change: Change, where: str, suggestion: str | None) -> None:
    found = [finding for finding in findings(changed(change)) if finding.rule == rule]
    assert where in [finding.pointer for finding in found], findings(changed(change))
    assert CMIP6 is not None
    for finding in (finding for finding in found if finding.pointer == where):
        assert finding.severity is CMIP6.rules.get(rule, RULES[rule].severity)
        assert suggestion is None or finding.suggestion == suggestion
        assert finding.message[-1] not in ". "


@pytest.mark.parametrize("rule", OF_CORDEX)
def test_a_fault_of_cordex_is_found_where_it_is(rule: str) -> None:
    cordex = CHECKER.vocabularies.current("CORDEX-CMIP6")
    assert cordex is not None
    given, where, suggestion = OF_CORDEX[rule]
    [found] = [finding for finding in relations.check({"properties": given}, cordex) if finding.rule == rule]
    assert (found.pointer, found.suggestion) == (where, suggestion)
    name = where.rpartition("/")[2]
    assert list(relations.check({"properties": {**given, name: suggestion}}, cordex)) == []
    assert list(relations.check({"properties": {**given, name: "no term"}}, cordex)) == []  # which is told elsewhere


def test_every_rule_has_examples() -> None:
    assert set(EXAMPLES) | set(OF_CORDEX) | set(crosschecks.RULES) == set(RULES)
    assert not set(EXAMPLES) & set(OF_CORDEX)


def test_every_rule_of_a_snapshot_is_documented() -> None:
    for snapshot in CHECKER.vocabularies:
        vocabulary = CHECKER.vocabularies.at(snapshot.project, snapshot.version)
        named = {relation.rule for relation in vocabulary.relations} | {made.rule for made in vocabulary.compositions}
        assert named <= set(RULES)
        assert set(vocabulary.rules) <= set(RULES)


def test_all_faults_are_found_at_once() -> None:
    document = changed(sets("cmip6:source_id", "NOPE"))
    sets("size", 1)(document)
    in_file("file:checksum", "abcd")(document)
    assert {found.rule for found in findings(document)} == {"term", "size-sum", "checksum"}


def test_a_fault_is_not_told_twice() -> None:
    """A model that is not registered has no institution and no activity that it could contradict."""
    found = {finding.rule for finding in findings(changed(sets("cmip6:source_id", "NOPE")))}
    assert found.isdisjoint({"source-institution", "source-activity"})


def folder_and_files(text: str) -> Change:
    """Return the same change in the properties, and in the names and folders of the files."""

    def change(document: Json) -> None:
        document["assets"] = json.loads(json.dumps(document["assets"]).replace(FACET, text))
        document["properties"] |= {"cmip6:experiment_id": text}

    return change


FACET = ITEM["properties"]["cmip6:experiment_id"]
AT = "/properties/cmip6:experiment_id"
IN_ID = f"he id has `{FACET}`"


def in_id(document: Json) -> None:
    document["id"] = document["id"].replace(FACET, "histroical")


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (sets("cmip6:experiment_id", "histroical"), [("term", AT, IN_ID)]),
        (sets("cmip6:experiment_id", 5), [("type", AT, IN_ID)]),
        (folder_and_files("histroical"), [("term", AT, IN_ID)]),
        (in_id, [("id-agrees-with-properties", AT, "'histroical' in the id")]),
        (sets("cmip6:activity_id", ["NOMIP"]), [("term", "/properties/cmip6:activity_id/0", "he id has")]),
    ],
    ids=["a typo", "no text", "a typo in the files too", "a typo in the id", "a typo in a list"],
)
def test_one_cause_is_told_once(change: Change, expected: list[tuple[str, str, str]]) -> None:
    found = findings(changed(change))
    assert [(finding.rule, finding.pointer) for finding in found] == [each[:2] for each in expected]
    assert all(words in finding.message for finding, (*_, words) in zip(found, expected, strict=True))
    with pytest.raises(StacInvalid) as refused:
        CHECKER.draft(changed(change), "CMIP6", CMIP6)
    assert refused.value.findings == found


def test_a_typo_in_the_id_is_nobodys_suggestion() -> None:
    [found] = findings(changed(in_id))
    assert found.suggestion is None


def test_what_is_told_once_still_refuses_for_every_reason() -> None:
    """Where a project takes unknown terms, the id's disagreement with the properties is told, and refuses."""
    assert CMIP6 is not None
    lax = replace(CMIP6, rules={**CMIP6.rules, "term": Severity.WARNING})
    document = changed(sets("cmip6:institution_id", "NCARR"))
    found = CHECKER.findings(document, "CMIP6", lax)
    assert [finding.rule for finding in errors_in(found)] == ["id-agrees-with-properties"]
    with pytest.raises(StacInvalid):
        CHECKER.draft(document, "CMIP6", lax)


@pytest.mark.parametrize(
    ("value", "terms", "expected"),
    [
        ("historcal", ["historical", "historical-ext"], "historical"),
        ("MON", ["mon", "monC", "day"], "mon"),
        ("xyzzy", ["mon", "day"], None),
        ("x" * 5000, ["mon"], None),
    ],
)
def test_the_nearest_term_is_suggested(value: str, terms: list[str], expected: str | None) -> None:
    assert nearest(value, terms) == expected


def test_only_rules_that_are_not_fixed_can_be_switched() -> None:
    import dataclasses

    assert CMIP6 is not None
    lenient = dataclasses.replace(
        CMIP6, rules={"size-sum": Severity.WARNING, "base-id": None, "id-template": None, "checksum": Severity.WARNING}
    )
    document = changed(sets("size", 1))
    sets("base_id", "x")(document)
    document["id"] += "0"
    found = {finding.rule: finding.severity for finding in CHECKER.findings(document, "CMIP6", lenient)}
    assert found["size-sum"] is Severity.WARNING
    assert "base-id" not in found
    assert found["id-template"] is Severity.ERROR


def test_what_every_stored_document_needs_refuses_at_once() -> None:
    with pytest.raises(StacInvalid) as caught:
        CHECKER.draft(changed(at("id", "x")), "CMIP6", CMIP6)
    assert caught.value.findings[0].rule == "id-template"


def test_what_terms_say_is_held_until_the_stored_document_is_known() -> None:
    draft, found = CHECKER.draft(changed(sets("cmip6:nominal_resolution", "3 km")), "CMIP6", CMIP6)
    assert draft.id == ITEM["id"]
    assert [finding.rule for finding in errors_in(found)] == ["term"]


def test_a_fault_that_the_stored_document_has_too_becomes_a_warning() -> None:
    errors = findings(changed(sets("cmip6:nominal_resolution", "3 km")))
    assert [finding.severity for finding in validation.excused(errors, errors)] == [Severity.WARNING]
    other = findings(changed(sets("cmip6:nominal_resolution", "4 km")))
    assert [finding.severity for finding in validation.excused(errors, other)] == [Severity.ERROR]


JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=12),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)  # fmt: skip
PATHS = st.sampled_from([
    *(("properties", name) for name in ITEM["properties"]), *(("assets", FILE, name) for name in ITEM["assets"][FILE]),
    *((name,) for name in ITEM if name != "collection"), ("links", 0, "href"), ("links", 0), ("assets", FILE),
    ("properties", "cmip6:new"), ("assets", FILE, "alternate"), ("stac_extensions", 0),
])  # fmt: skip


@given(st.lists(st.tuples(PATHS, JSON_VALUES), max_size=4), st.randoms(use_true_random=False))
def test_the_same_document_gives_the_same_findings_byte_for_byte(changes: list[tuple[Any, Any]], random: Any) -> None:
    """However its members are ordered, and whichever checker judges; and nothing that comes makes a rule fail."""
    document = copy.deepcopy(ITEM)
    for path, value in changes:
        target: Any = document
        for step in path[:-1]:
            target = (
                target.get(step) if isinstance(target, dict) else target[step] if isinstance(target, list) else None
            )
        if isinstance(target, dict) or (isinstance(target, list) and path[-1] < len(target)):
            target[path[-1]] = value
    expected = orjson.dumps([found.as_json() for found in findings(document)])
    elsewhere = bootstrap_elsewhere().findings(orjson.loads(orjson.dumps(document)), "CMIP6", CMIP6)
    assert orjson.dumps([found.as_json() for found in elsewhere]) == expected


SAMPLES = list(sample.items(40))


@given(st.sampled_from(SAMPLES), st.sampled_from(SAMPLES), st.lists(st.tuples(st.sampled_from(
    [*CMIP6.properties, *(name for relation in CMIP6.relations for name in relation.of)]), JSON_VALUES | st.none()
), max_size=3), st.randoms(use_true_random=False))  # fmt: skip
def test_relations_are_judged_at_once_as_one_by_one(
    one: Json, other: Json, changes: list[tuple[str, Any]], random: Any
) -> None:
    """Whatever was judged before, and whatever the values are."""
    mixed = {
        name: (value if random.random() < 0.8 else other["properties"].get(name))
        for name, value in one["properties"].items()
    }
    properties = {**mixed, **dict(changes)}
    one_by_one = [
        found for group in VOCABULARY.relation_groups
        for found in relations._check_group(group, properties, VOCABULARY)
    ]  # fmt: skip
    assert list(relations.check({"properties": properties}, VOCABULARY)) == one_by_one


@given(st.sampled_from([*CMIP6.properties.values(), *CMIP6.assets.values()]), st.data())
def test_a_value_that_is_taken_at_once_has_no_fault(demand: Property, data: st.DataObject) -> None:
    words = st.sampled_from(sorted(demand.terms)) if demand.terms else st.text(max_size=3)
    texts = words | st.sampled_from([str(each["properties"].get(demand.name)) for each in SAMPLES])
    value = data.draw(texts | st.lists(texts, max_size=3) | st.integers(-2, 2) | JSON_VALUES)
    faults = list(check_value(demand, value, "", VOCABULARY))
    assert not (demand.is_met_by(value) and faults)
    if demand.kind in (Kind.STRING, Kind.STRINGS, Kind.INTEGER):
        assert demand.is_met_by(value) == (not faults)


_SECOND: list[validation.Checker] = []


def bootstrap_elsewhere() -> validation.Checker:
    """Return a checker as another node has it."""
    if not _SECOND:
        _SECOND.append(open_checker())
    return _SECOND[0]
