"""Titles of queryables: made of whatever name a stored dataset has."""

from __future__ import annotations

import pytest

from fedstac.domain import queryables


@pytest.mark.parametrize(
    ("name", "title"),
    [("cmip6:source_id", "Source id"), ("size", "Size"), ("", ""), (":", ":"), ("_", "_"), ("日本", "日本")],
)
def test_a_title_is_made_of_any_name(name: str, title: str) -> None:
    assert queryables.title(name) == title
