"""The rules of changes of many datasets: who may, what is hidden, and what the digest stands for."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from fedstac.domain import bulk
from fedstac.domain.bulk import BulkAction, BulkPreview, BulkWish, DatasetGroup, GroupKey, ShownDigest
from fedstac.domain.errors import BulkChanged, MissingPermission, UnderQuarantine
from fedstac.domain.model import State
from fedstac.domain.policy import Policy, Principal

NOW = datetime(2026, 11, 29, 8, tzinfo=UTC)
ADMIN = Principal("ada", frozenset(("admin",)))
ANNA = Principal("anna", frozenset(("publisher:NCAR",)))
POLICY = Policy()
OWN = DatasetGroup(GroupKey("CMIP6", "1", "NCAR", State.PUBLISHED, False), "anna", 3, 1, 1, 3, 0, b"1" * 32, ("a",))


def of(state: State, institution: str = "NCAR", *, quarantined: bool = False) -> DatasetGroup:
    return replace(OWN, key=GroupKey("CMIP6", "1", institution, state, quarantined))


def test_what_may_not_be_seen_counts_as_never_there() -> None:
    hidden = [of(State.MARKED, "MPI-M"), of(State.QUARANTINED, "MPI-M", quarantined=True)]
    for action in (BulkAction.MARK, BulkAction.UNMARK):
        assert bulk.permit([OWN, *hidden], action, ANNA, POLICY, named=False) == ([OWN], [each.key for each in hidden])
    assert bulk.permit([OWN, *hidden], BulkAction.RELEASE, ADMIN, POLICY, named=False) == ([OWN, *hidden], [])


@pytest.mark.parametrize(("group", "action", "problem"), [
    (of(State.PUBLISHED, "MPI-M"), BulkAction.MARK, MissingPermission),
    (OWN, BulkAction.QUARANTINE, MissingPermission),
    (OWN, BulkAction.RELEASE, MissingPermission),
    (of(State.QUARANTINED, quarantined=True), BulkAction.MARK, UnderQuarantine),
    (of(State.MARKED, quarantined=True), BulkAction.UNMARK, UnderQuarantine),
])  # fmt: skip
def test_one_that_may_not_be_changed_refuses_the_whole(
    group: DatasetGroup, action: BulkAction, problem: type[Exception]
) -> None:
    with pytest.raises(problem, match=r"\ba\b"):
        bulk.permit([OWN, group], action, ANNA, POLICY, named=True)


def test_the_digest_stands_for_the_action_and_every_dataset() -> None:
    wish = BulkWish(BulkAction.MARK, {"reason": "x"})
    preview = BulkPreview(wish, [OWN, of(State.RETRACTED)], NOW)
    digest = ShownDigest.read(preview.digest)
    assert (digest.total, digest.at) == (6, NOW)
    digest.require(replace(preview, at=NOW + timedelta(hours=1)))
    digest.require(replace(preview, groups=preview.groups[::-1]))
    others: list[dict[str, Any]] = [
        {"groups": preview.groups[:1]}, {"wish": BulkWish(BulkAction.MARK, {"reason": "y"})},
        {"wish": BulkWish(BulkAction.UNMARK, {"reason": "x"})},
        {"groups": [replace(OWN, digest=b"2" * 32), preview.groups[1]]},
    ]  # fmt: skip
    for other in others:
        with pytest.raises(BulkChanged):
            digest.require(replace(preview, **other))
