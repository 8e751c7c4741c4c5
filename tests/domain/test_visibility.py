"""What a search finds of retracted datasets, and who sees their files, as tables."""

from __future__ import annotations

import pytest

from fedstac.domain import visibility
from fedstac.domain.policy import ROLES, Principal, Resource
from fedstac.domain.visibility import Visibility

DATASET = Resource("CMIP6.a", "CMIP6", "NCAR")


@pytest.mark.parametrize(
    ("choice", "names", "found"),
    [
        (None, (), Visibility.EXCLUDE),
        (None, ("latest", "cmip6:source_id", "x:retracted", "retracted.x"), Visibility.EXCLUDE),
        (None, ("latest", "retracted"), Visibility.INCLUDE),
        (None, ("fedstac:state",), Visibility.INCLUDE),
        (None, ("fedstac:retraction.reason",), Visibility.INCLUDE),
        (Visibility.EXCLUDE, ("retracted",), Visibility.EXCLUDE),
        (Visibility.ONLY, (), Visibility.ONLY),
        (Visibility.INCLUDE, (), Visibility.INCLUDE),
    ],
)
def test_what_a_search_finds(choice: Visibility | None, names: tuple[str, ...], found: Visibility) -> None:
    assert visibility.of_search(choice, names) is found


@pytest.mark.parametrize(
    ("role", "may"), [("admin", True), ("publisher:NCAR", True), ("publisher:IPSL", False), ("node:east", False)]
)
def test_who_sees_the_files_of_a_retracted_dataset(role: str, may: bool) -> None:
    assert visibility.may_see_files(ROLES, Principal("somebody", frozenset((role,))), DATASET) is may
