"""Years, months and days as intervals."""

from __future__ import annotations

import pytest

from fedstac.client.intervals import interval


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("2000", "2000-01-01T00:00:00Z/2000-12-31T23:59:59.999999Z"),
        ("2000-02", "2000-02-01T00:00:00Z/2000-02-29T23:59:59.999999Z"),
        ("1900-02", "1900-02-01T00:00:00Z/1900-02-28T23:59:59.999999Z"),
        ("2000-02-03", "2000-02-03T00:00:00Z/2000-02-03T23:59:59.999999Z"),
        ("1850/2014", "1850-01-01T00:00:00Z/2014-12-31T23:59:59.999999Z"),
        ("2000/2001-06", "2000-01-01T00:00:00Z/2001-06-30T23:59:59.999999Z"),
        ("2000/..", "2000-01-01T00:00:00Z/.."),
        ("../2000-06", "../2000-06-30T23:59:59.999999Z"),
        ("/2000", "/2000-12-31T23:59:59.999999Z"),
        ("2000-01-01T00:00:00Z/2001", "2000-01-01T00:00:00Z/2001-12-31T23:59:59.999999Z"),
        ("0001", "0001-01-01T00:00:00Z/0001-12-31T23:59:59.999999Z"),
    ],
)
def test_a_period_is_the_interval_from_its_first_moment_to_its_last(text: str, expected: str) -> None:
    assert interval(text) == expected


@pytest.mark.parametrize(
    "text",
    ["2000-01-01T00:00:00Z", "2000-01-01T00:00:00Z/..", "..", "../..", "", "soon", "2000-13", "20000", "2000/1/2"],
)
def test_what_is_no_period_stays_for_the_node_to_judge(text: str) -> None:
    assert interval(text) == text
