"""Which copy of a file is tried first, and which never is."""

from __future__ import annotations

from typing import Any

import pytest

from fedstac.domain.replication.budgets import Budgets, Usage, read_rate, read_size
from fedstac.domain.replication.choosing import HostPattern, Source, choose, place_of

ASSET: dict[str, Any] = {
    "href": "https://data.west.example/a.nc", "alternate:name": "west",
    "alternate": {
        "east": {"href": "https://east.example/a.nc"}, "south": {"href": "https://south.example/a.nc"},
        "me": {"href": "https://me.example/a.nc"}, "odd": {"href": "gopher://odd.example/a.nc"}, "broken": "text",
    },
}  # fmt: skip


def source(name: str, *hosts: str, **more: Any) -> Source:
    patterns = [HostPattern.parse(host) for host in hosts]
    assert all(patterns)
    return Source(name, tuple(pattern for pattern in patterns if pattern), **more)


WEST, EAST, SOUTH = (
    source("w", "*.west.example"), source("e", "east.example"), source("s", "south.example", preference=5)
)  # fmt: skip


def nodes(*sources: Source, **more: Any) -> list[str]:
    return [each.node for each in choose(ASSET, sources, home="home", own="me", **more).candidates]


def test_copies_are_tried_by_preference_then_health_then_load_and_the_original_first() -> None:
    assert nodes(WEST, EAST, SOUTH) == ["south", "west", "east"]
    assert nodes(WEST, EAST) == ["west", "east"]
    assert nodes(WEST, EAST, failures={"data.west.example": 2}) == ["east", "west"]
    assert nodes(WEST, EAST, loads={"w": 0.9, "e": 0.1}) == ["east", "west"]
    assert nodes(WEST, EAST, failures={"east.example": 1}, loads={"w": 0.9}) == ["west", "east"]
    assert nodes(WEST, EAST, disqualified={("west", "data.west.example")}) == ["east"]


def test_a_candidate_says_its_host_and_the_source_whose_caps_hold() -> None:
    [first, *_] = choose(ASSET, [WEST], home="home").candidates
    assert (first.host, first.source, first.href) == ("data.west.example", "w", "https://data.west.example/a.nc")


def test_a_host_that_is_not_listed_is_never_a_candidate_and_the_reason_says_so() -> None:
    choice = choose(ASSET, [source("x", "x.example")], home="home", own="me")
    assert choice.candidates == ()
    assert "west: the policy does not list data.west.example; add it to `hosts` of a source" in choice.reason
    assert "odd: its address is none that files are fetched from" in choice.reason
    assert "me:" not in choice.reason
    assert choose({"href": "https://me.example/a.nc", "alternate:name": "me"}, [], home="x", own="me").reason == (
        "no copy of it is known but our own"
    )


def test_a_source_of_other_nodes_is_none_for_this_one() -> None:
    choice = choose(ASSET, [source("e", "*.west.example", "east.example", nodes=frozenset(("east",)))], home="home")
    assert [each.node for each in choice.candidates] == ["east"]
    assert "add this one to `nodes` of that source" in next(
        each.reason for each in choice.refusals if each.node == "west"
    )


@pytest.mark.parametrize(
    ("pattern", "href", "fits"),
    [
        ("a.example", "https://a.example/x", True), ("a.example", "https://A.example:443/x", True),
        ("a.example", "http://a.example/x", False), ("a.example", "https://a.example:8443/x", False),
        ("a.example:*", "https://a.example:8443/x", True), ("a.example:8443", "https://a.example/x", False),
        ("*.a.example", "https://b.c.a.example/x", True), ("*.a.example", "https://a.example/x", False),
        ("*.a.example", "https://evila.example/x", False), ("a.example", "https://a.example.evil.com/x", False),
        ("a.example", "https://a.example@evil.com/x", False), ("a.example", "https://evil.com\\@a.example/x", False),
        ("a.example", "https://a.example./x", True), ("http://10.0.0.7:8080", "http://10.0.0.7:8080/x", True),
        ("[::1]", "https://[::1]/x", True), ("s3://bucket", "s3://bucket/key", True),
        ("s3://bucket", "s3://other/key", False), ("file:///data", "file:///data/a.nc", True),
        ("file:///data", "file:///data2/a.nc", False), ("file:///data", "file:///data/../etc/passwd", False),
        ("file:///data", "file:///data/%2e%2e/etc/passwd", False), ("file:///data", "file://host/data/a.nc", False),
    ],
)  # fmt: skip
def test_a_pattern_fits_its_hosts_and_nothing_that_only_looks_like_them(pattern: str, href: str, fits: bool) -> None:
    listed = HostPattern.parse(pattern)
    assert listed is not None
    place = place_of(href)
    assert (place is not None and listed.fits(place)) is fits


@pytest.mark.parametrize("text", ["*", "*.com", "https://", "a b", "a.example/path", "ftp://a.example", "s3://*.x",
                                  "file://", "file:///..", "a.example:0", "a.example:99999", "u@a.org"])  # fmt: skip
def test_what_is_no_pattern_is_none(text: str) -> None:
    assert HostPattern.parse(text) is None


@pytest.mark.parametrize(
    ("text", "size"),
    [("1 B", 1), ("1.5 TB", 15 * 10**11), ("20GiB", 20 << 30), ("2 PB", 2 * 10**15), ("0 B", None), ("5", None),
     ("-1 B", None), ("1 tb", None), ("9999999 PB", None)],
)  # fmt: skip
def test_sizes_have_units(text: str, size: int | None) -> None:
    assert read_size(text) == size
    assert read_rate(f"{text}/s") == size
    assert read_rate(text) is None


def test_a_budget_says_whose_it_is_and_what_is_missing() -> None:
    budgets = Budgets(100, {"a": 50})
    usage = Usage().plus("a", 40).plus("b", 30)
    assert budgets.obstacle(usage, "a", 10) is None
    assert "the rule 'a': 40 B of 50 B are taken, and this needs 11 B" in (budgets.obstacle(usage, "a", 11) or "")
    assert "the node: 70 B of 100 B are taken" in (budgets.obstacle(usage, "b", 31) or "")
    assert budgets.obstacle(usage, "b", 30) is None
    assert Budgets().obstacle(usage, "a", 1 << 60) is None
