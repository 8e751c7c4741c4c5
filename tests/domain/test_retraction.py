"""What a retraction says, and when it is refused."""

from __future__ import annotations

import json
from typing import Any

import pytest

from fedstac.domain import retraction
from fedstac.domain.errors import BadRequest, Severity, StacInvalid
from fedstac.domain.model import State

ID = "CMIP6.a.v20200101"


@pytest.mark.parametrize(
    "value", [{}, {"reason": "x"}, {"data": "purge"}, {"errata": "https://x", "replaced_by": "CMIP6.b.v20200101"}]
)
def test_what_is_well_formed_is_taken_as_it_is(value: dict[str, str]) -> None:
    assert retraction.read(value) == value


@pytest.mark.parametrize(
    ("value", "pointer"),
    [
        ({"because": "x"}, "/because"), ({"reason": 5}, "/reason"), ({"reason": " "}, "/reason"),
        ({"reason": "x" * 2001}, "/reason"), ({"data": "burn"}, "/data"), ({"errata": "javascript:x"}, "/errata"),
        ({"replaced_by": "a b"}, "/replaced_by"), ({"replaced_by": ""}, "/replaced_by"), ({"reason": None}, "/reason"),
    ],
)  # fmt: skip
def test_what_is_not_is_refused_with_its_place(value: dict[str, Any], pointer: str) -> None:
    with pytest.raises(StacInvalid) as refusal:
        retraction.read(value)
    assert [finding.pointer for finding in refusal.value.findings] == [pointer]


def test_only_an_object_is_a_retraction() -> None:
    with pytest.raises(BadRequest, match="a retraction is a JSON object"):
        retraction.read([])


@pytest.mark.parametrize(
    ("before", "change", "whole"),
    [
        (None, {"reason": "x"}, {"reason": "x"}),
        ("{}", {"reason": "x"}, {"reason": "x"}),
        ('{"reason": "x", "data": "keep"}', {}, {"reason": "x", "data": "keep"}),
        ('{"reason": "x"}', {"errata": "https://x"}, {"reason": "x", "errata": "https://x"}),
        ('{"reason": "x", "data": "keep"}', {"reason": "y"}, {"reason": "y", "data": "keep"}),
    ],
)
def test_a_change_keeps_what_it_does_not_name(
    before: str | None, change: dict[str, str], whole: dict[str, str]
) -> None:
    assert retraction.completed(before, change, ID) == whole
    text = retraction.text_of(whole)
    assert json.loads(text) == whole
    assert retraction.text_of(retraction.completed(text, {}, ID)) == text


@pytest.mark.parametrize(
    ("before", "change", "pointer"),
    [
        (None, {}, "/reason"), ("{}", {"data": "keep"}, "/reason"),
        ('{"reason": "x"}', {"replaced_by": ID}, "/replaced_by"),
    ],
)  # fmt: skip
def test_there_is_a_reason_and_another_dataset(before: str | None, change: dict[str, str], pointer: str) -> None:
    with pytest.raises(StacInvalid) as refusal:
        retraction.completed(before, change, ID)
    assert refusal.value.findings[0].pointer == pointer


@pytest.mark.parametrize(
    ("change", "state", "words"),
    [
        ({}, None, None),
        ({"replaced_by": "b"}, State.PUBLISHED, None),
        ({"replaced_by": "b"}, None, "there is no dataset 'b' in CMIP6"),
        ({"replaced_by": "b"}, State.MARKED, "there is no dataset 'b' in CMIP6"),  # hidden, so it is not told apart
        ({"replaced_by": "b"}, State.RETRACTED, "b is retracted too"),
    ],
)
def test_a_doubtful_replacement_is_a_warning(change: dict[str, str], state: State | None, words: str | None) -> None:
    found = retraction.warnings(change, "CMIP6", state)
    assert [words in finding.message for finding in found if words] == ([True] if words else [])
    assert all(finding.severity is Severity.WARNING for finding in found)
    assert bool(found) is bool(words)
