"""Which members differ between two documents."""

from __future__ import annotations

import json
from typing import Any

import pytest

from fedstac.domain.difference import MOST, changed_members

DOCUMENT: dict[str, Any] = {
    "id": "x", "properties": {"a": 1, "b/c": [1]}, "links": [],
    "assets": {"psl.nc": {"href": "https://a", "file:size": 1}},
}  # fmt: skip


@pytest.mark.parametrize(
    ("after", "expected"),
    [
        (DOCUMENT, ()),
        ({**DOCUMENT, "properties": {"a": 1.0, "b/c": [1]}}, ("/properties/a",)),
        ({**DOCUMENT, "properties": {"b/c": [1], "d": None}}, ("/properties/a", "/properties/d")),
        ({**DOCUMENT, "properties": {"a": 1, "b/c": [2]}}, ("/properties/b~1c",)),
        ({**DOCUMENT, "links": [{}], "bbox": [0]}, ("/links", "/bbox")),
        ({**DOCUMENT, "assets": {"psl.nc": {"href": "https://b", "file:size": 1}}}, ("/assets/psl.nc/href",)),
        ({**DOCUMENT, "assets": {}}, ("/assets/psl.nc",)),
    ],
)
def test_members_that_differ_are_named(after: dict[str, Any], expected: tuple[str, ...]) -> None:
    assert changed_members(json.dumps(DOCUMENT), json.dumps(after)) == expected


def test_there_is_an_end_to_what_is_named() -> None:
    many = {**DOCUMENT, "properties": {str(n): n for n in range(1000)}}
    assert len(changed_members(json.dumps(DOCUMENT), json.dumps(many))) == MOST
