"""Which source a file is fetched from next, and why it waits or fails, as a table."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

import pytest

from fedstac.domain.replication.placing import Obstacle, place

NOON = datetime(2026, 11, 29, 12, tzinfo=UTC)
LATER = NOON + timedelta(hours=1)
WRONG = Obstacle("its checksum is wrong", None)
REFUSED = Obstacle("answered 404", NOON)
CLOSED = Obstacle("closed until 13:00", LATER)


@dataclass(frozen=True)
class At:
    node: str

    @property
    def host(self) -> str:
        return f"{self.node}.example"

    @property
    def href(self) -> str:
        return f"https://{self.host}/f.nc"


HOME, EAST = At("home"), At("east")


@pytest.mark.parametrize(
    ("faults", "closed", "host", "reason", "until"),
    [
        ({}, {}, HOME.host, None, None),
        ({HOME: WRONG}, {}, EAST.host, None, None),
        ({}, {HOME: CLOSED}, EAST.host, None, None),
        ({HOME: WRONG}, {EAST: CLOSED}, None, "closed until 13:00", LATER),
        ({HOME: REFUSED}, {EAST: CLOSED}, None, "answered 404", NOON),  # what ends first is what one waits for
        ({HOME: REFUSED, EAST: WRONG}, {}, None, "answered 404", NOON),
        ({HOME: WRONG, EAST: WRONG}, {}, None,
         "f: no source is left; home: its checksum is wrong; east: its checksum is wrong", None),
    ],
)  # fmt: skip
def test_the_first_source_that_may_be_asked(
    faults: dict[At, Obstacle], closed: dict[At, Obstacle], host: str | None, reason: str | None, until: datetime | None
) -> None:
    placement = place(
        ["f"], {"f": (HOME, EAST)}, faults={("f", at.host): why for at, why in faults.items()},
        closed={at.host: why for at, why in closed.items()}, already={},
    )  # fmt: skip
    assert placement.source == host
    assert [each.host for each in placement.places] == ([host] if host else [])
    assert placement.obstacle == (Obstacle(reason, until) if reason else None)


def test_a_file_that_no_listed_source_has_fails_and_the_others_go_on() -> None:
    placement = place(["f", "g"], {"f": (HOME,)}, faults={}, closed={}, already={})
    assert (placement.source, placement.obstacle) == (HOME.host, None)
    assert [(each.asset, each.reason) for each in placement.failed] == [("g", "the policy lists no source that has it")]


def test_most_files_decide_which_source_the_dataset_waits_at() -> None:
    candidates = {"f": (HOME,), "g": (EAST,)}
    assert place(["f", "g"], candidates, faults={}, closed={}, already={EAST.host: 3}).source == EAST.host
    assert place(["f"], candidates, faults={}, closed={EAST.host: CLOSED}, already={EAST.host: 3}).source == HOME.host
    assert place([], {}, faults={}, closed={}, already={}).obstacle is None
