"""Schemas that are made: a project's from its vocabulary, the item's from three parts."""

from __future__ import annotations

import copy
import json
from typing import Any

import jsonschema_rs
import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedstac import settings
from fedstac.domain.errors import Finding
from fedstac.domain.rules import links, properties
from fedstac.domain.schemas import schema_of
from fedstac.domain.validation import SCHEMAS
from fedstac.domain.vocabulary import Vocabulary, parse
from fedstac.vocabularies import extensions
from fedstac.vocabularies.checker import shipped
from fedstac.vocabularies.registry import Snapshot
from tests.extensions import corpus

SNAPSHOT: dict[str, Any] = {
    "format": 1, "project": "TOY", "version": "1.0", "title": "Toy", "sources": [], "prefix": "to_y",
    "id_template": "T(1).{to_y:model}.v{version}", "file_name_template": None, "directory_template": None,
    "institution": "to_y:model", "facets": [],
    "extensions": [
        {"name": "toy", "uris": ["https://toy.example.org/a", "https://toy.example.org/b"], "required": True},
        {"name": "file", "uris": ["https://file.example.org/"]},
    ],
    "properties": {
        "to_y:model": {"type": "string", "required": True, "terms": "model"},
        "to_y:models": {"type": "strings", "terms": "model", "pattern": "^x[0-9]+$"},
        "to_y:label": {"type": "string", "pattern": "^[a-z/]{1,3}$"},
        "to_y:count": {"type": "integer", "minimum": 0},
        "to_y:share": {"type": "number", "minimum": 0.5},
        "to_y:real": {"type": "boolean"},
        "to_y:since": {"type": "datetime"},
    },
    "assets": {"protocol": {"type": "string", "required": True, "terms": "protocol"}, "created": {"type": "datetime"}},
    "links": [
        {"rel": "*", "pattern": "^https:.*$"},
        {"rel": "cite-as", "required": True, "type": "text/html", "title": "Cite"},
    ],
    "terms": {"model": {"B": {}, "A": {"title": "first"}}, "protocol": {"https": {}}},
    "relations": [], "compositions": [], "rules": {},
}  # fmt: skip
ITEM: dict[str, Any] = {
    "type": "Feature", "stac_version": "1.1.0", "stac_extensions": ["https://toy.example.org/b"],
    "id": "T(1).A.v20200101", "collection": "TOY", "geometry": None,
    "properties": {"datetime": "2020-01-01T00:00:00Z", "created": "2020-01-01T00:00:00Z", "to_y:model": "A",
                   "updated": "2020-01-01T00:00:00Z", "latest": True, "retracted": False},
    "links": [{"rel": "cite-as", "href": "https://a.example.org/"}],
    "assets": {"a": {"href": "https://a.example.org/a", "protocol": "https"}},
}  # fmt: skip
SHIPPED = shipped(settings.folder("cv"))
FOLDER = settings.folder("extensions")


def toy(**changes: Any) -> Vocabulary:
    """Return a vocabulary of a snapshot that is written by hand."""
    return parse(orjson.dumps(SNAPSHOT | changes))


def judge(vocabulary: Vocabulary) -> jsonschema_rs.Validator:
    return jsonschema_rs.validator_for(schema_of(vocabulary), validate_formats=True)


def with_property(name: str, value: object) -> dict[str, Any]:
    item = copy.deepcopy(ITEM)
    item["properties"][name] = value
    return item


def findings(item: dict[str, Any], vocabulary: Vocabulary) -> list[Finding]:
    checks = (links.check_extensions, properties.check, links.check)
    return [finding for check in checks for finding in check(item, vocabulary)]


def places(item: dict[str, Any]) -> set[str]:
    return {"".join(f"/{step}" for step in error.instance_path) for error in judge(toy()).iter_errors(item)}


@pytest.mark.parametrize("snapshot", SHIPPED, ids=lambda one: f"{one.project} {one.version}")
def test_every_vocabulary_that_ships_has_a_schema(snapshot: Snapshot) -> None:
    schema = schema_of(parse(snapshot.read()))
    jsonschema_rs.meta.validate(schema)
    assert orjson.dumps(schema) == orjson.dumps(schema_of(parse(snapshot.read())))
    assert "http" not in json.dumps(schema["definitions"]["moment"])
    assert set(_references(schema)) <= {f"#/definitions/{name}" for name in schema["definitions"]}


def _references(value: object) -> list[str]:
    if isinstance(value, dict):
        own = [value["$ref"]] if isinstance(value.get("$ref"), str) else []
        return own + [each for member in value.values() for each in _references(member)]
    return [each for member in value for each in _references(member)] if isinstance(value, list) else []


def test_a_sound_item_passes() -> None:
    assert places(ITEM) == set()
    assert findings(ITEM, toy()) == []


@pytest.mark.parametrize(
    ("pointer", "value"),
    [
        ("/id", "T(1).A.v2020"), ("/id", "T(1)xA.v20200101"), ("/id", "T1.A.v20200101"), ("/collection", "CMIP6"),
        ("/properties/to_y:model", "C"), ("/properties/to_y:models", []), ("/properties/to_y:models", ["A", "A"]),
        ("/properties/to_y:models", "A"), ("/properties/to_y:label", "abcd"), ("/properties/to_y:count", -1),
        ("/properties/to_y:count", 0.5), ("/properties/to_y:share", 0.4), ("/properties/to_y:real", "true"),
        ("/properties/to_y:since", "2020"), ("/properties/latest", None), ("/properties/created", "yesterday"),
        ("/assets/a/protocol", "http"), ("/assets/a/created", 1), ("/links/0/href", "http://a.example.org/"),
        ("/links/0/title", "cite"), ("/links/0/type", "text/plain"), ("/stac_extensions/0", "https://toy.example.org/c"),
    ],
)  # fmt: skip
def test_a_fault_is_told_at_its_place(pointer: str, value: object) -> None:
    item = copy.deepcopy(ITEM)
    *steps, last = pointer.split("/")[1:]
    holder: Any = item
    for step in steps:
        holder = holder[int(step)] if isinstance(holder, list) else holder[step]
    holder[int(last) if isinstance(holder, list) else last] = value
    found = places(item)
    assert found <= {pointer, "/stac_extensions"}
    assert pointer in found


def test_what_has_the_prefix_is_known() -> None:
    assert places(with_property("to_y:other", 1)) == {"/properties"}


def test_ours_may_be_declared_beside() -> None:
    item = copy.deepcopy(ITEM)
    item["stac_extensions"].append("http://localhost:8080/extensions/fedstac/v1.0.0/schema.json")
    assert places(item) == set()


@pytest.mark.parametrize("without", ["type", "stac_extensions", "id", "collection", "properties", "links", "assets"])
def test_what_an_item_needs_is_needed(without: str) -> None:
    assert places({name: value for name, value in ITEM.items() if name != without}) == {""}


VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**53), 2**53)
    | st.floats(allow_nan=False, allow_infinity=False).filter(lambda number: not number.is_integer())
    | st.sampled_from(["A", "B", "x1", "x", "abc", "a/b", "", "A\n", "2020-01-01T00:00:00Z", "0000-01-01T00:00:00Z"])
    | st.text(max_size=5).filter(lambda text: text.isprintable()),
    lambda inner: st.lists(inner, max_size=3),
    max_leaves=4,
)


@given(name=st.sampled_from(sorted(SNAPSHOT["properties"])), value=VALUES)
def test_the_schema_says_what_the_rules_say(name: str, value: object) -> None:
    item, vocabulary = with_property(name, value), toy()
    assert judge(vocabulary).is_valid(item) == (not findings(item, vocabulary))


def test_an_error_tells_which_part_of_the_item_it_is_of() -> None:
    [item] = corpus.generated(1)
    name = next(iter(item["assets"]))
    item["links"].append({"rel": "collection", "href": "../"})
    validator = extensions.item_validator(FOLDER)
    assert validator.is_valid(item)
    item["assets"][name] |= {"file:size": -1, "alternate": {"x": {}}, "roles": "data"}
    found = [(SCHEMAS[error.evaluation_path[1]], list(error.instance_path)[2]) for error in validator.iter_errors(item)]  # type: ignore[index]
    assert {("stac-core", "roles"), ("file", "file:size"), ("alternate-assets", "alternate")} == set(found)
