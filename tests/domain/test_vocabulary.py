"""Snapshots that would harm whoever judges with them are refused when they are read."""

from __future__ import annotations

import copy
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import orjson
import pytest

from fedstac.domain.vocabulary import VocabularyBroken, parse
from fedstac.settings import folder

Json = dict[str, Any]
SOUND: Json = orjson.loads((folder("cv") / "CMIP6" / "6.2.60.0.json").read_bytes())


def attribute(value: object) -> Callable[[Json], object]:
    """Return every attribute that a relation goes by has that value."""

    def change(content: Json) -> None:
        for relation in content["relations"]:
            for about in content["terms"][relation["terms"]].values() if "attribute" in relation else ():
                about[relation["attribute"]] = value

    return change


def between(separator: str) -> Callable[[Json], object]:
    parts = separator.join(f"{{cmip6:x{n}}}" for n in range(8))
    return lambda content: content.update(id_template=f"CMIP6.{parts}.v{{version}}")


def without_property(content: Json) -> None:
    content["relations"].append({"rule": "x", "of": [], "terms": "source_id", "holds": "exists"})


def endless(content: Json) -> None:
    content["properties"].update({f"p{n}": {"type": "string"} for n in range(1001)})


HOSTILE: dict[str, tuple[Callable[[Json], object], str]] = {
    "ids that can be read in many ways": (between(""), "id template"),
    "the same, with what facets are made of": (between("-"), "id template"),
    "a relation of nothing": (without_property, "no property"),
    "an attribute that is a number": (attribute(5), "list of strings"),
    "an attribute that lists numbers": (attribute([5]), "a string is expected"),
    "an attribute that is an object": (attribute({"a": 1}), "list of strings"),
    "thousands of properties": (endless, "1000 are the most"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_snapshot_that_would_harm_is_refused(name: str) -> None:
    change, reason = HOSTILE[name]
    content = copy.deepcopy(SOUND)
    change(content)
    with pytest.raises(VocabularyBroken, match=reason):
        parse(orjson.dumps(content))


@pytest.mark.parametrize("raw", [b"", b"[]", b"{}", b"null", b"[" * 2000, b'{"format":2}', orjson.dumps({"format": 1})])
def test_what_is_no_snapshot_is_refused(raw: bytes) -> None:
    with pytest.raises(VocabularyBroken):
        parse(raw)


@pytest.mark.parametrize("member", SOUND)
@pytest.mark.parametrize("value", [None, 5, "x", [], {}, [5], {"a": 5}, [{}], True])
def test_a_member_of_another_kind_is_refused_or_does_no_harm(member: str, value: object) -> None:
    """Whatever is in a snapshot: the only thing that reading it can raise is VocabularyBroken."""
    with suppress(VocabularyBroken):
        parse(orjson.dumps(SOUND | {member: value}))
