"""Whole numbers in parameters."""

from __future__ import annotations

import pytest
from starlette.datastructures import QueryParams

from fedstac.api.http import media_types, numbers
from fedstac.domain.errors import BadRequest
from fedstac.domain.events import Cursor
from tests.support.nodes import Api


@pytest.mark.parametrize(("text", "number"), [("0", 0), ("7", 7), ("007", 7), ("51", 50), ("9" * 5000, 50)])
def test_a_number_above_the_most_is_the_most(text: str, number: int) -> None:
    assert numbers.whole(QueryParams(f"limit={text}"), "limit", default=10, most=50) == number


def test_a_number_that_is_not_there_has_a_default() -> None:
    assert numbers.whole(QueryParams(""), "limit", default=10, most=50) == 10


@pytest.mark.parametrize("text", ["1_0", "+1", "-1", "%201", "1.0", "", "%D9%A3", "%C2%B2", "0x1"])
def test_what_is_not_ascii_digits_is_no_number(text: str) -> None:
    with pytest.raises(BadRequest, match="limit="):
        numbers.whole(QueryParams(f"limit={text}"), "limit", default=10, most=50)


@pytest.mark.parametrize("text", ["٣.1", "1.٣", "²", "1.²"])
def test_a_cursor_is_of_ascii_digits(text: str) -> None:
    with pytest.raises(BadRequest):
        Cursor.parse(text)


async def test_an_odd_preference_among_media_types_fails_nothing(api: Api) -> None:
    for accept in ("text/html;q=²", "text/html;q=1.", "text/html;q=nan", "text/html;q=9e9"):
        response = await api.anyone.get("/problems", headers={b"Accept": accept.encode("latin-1")})
        assert response.status_code in (200, 400), accept
    assert media_types.QUALITY.fullmatch("0.5")
