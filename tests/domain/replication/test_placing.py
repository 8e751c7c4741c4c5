"""Which source a file is fetched from next, and why it waits or fails, as a table."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

import pytest

from fedstac.domain.replication.placing import Closures, Obstacle, place

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
    def source(self) -> str:
        return f"the source {self.node}"

    @property
    def href(self) -> str:
        return f"https://{self.host}/f.nc"


def by_lane(hosts: dict[str, Obstacle]) -> Closures:
    return Closures({f"the source {host.partition('.')[0]}": why for host, why in hosts.items()})


HOME, EAST = At("home"), At("east")


@pytest.mark.parametrize("closing", [lambda hosts: Closures(hosts=hosts), by_lane])
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
    closing: Callable[[dict[str, Obstacle]], Closures],
    faults: dict[At, Obstacle],
    closed: dict[At, Obstacle],
    host: str | None,
    reason: str | None,
    until: datetime | None,
) -> None:
    placement = place(
        ["f"], {"f": (HOME, EAST)}, faults={("f", at.host): why for at, why in faults.items()},
        closures=closing({at.host: why for at, why in closed.items()}), already={}, reasons={},
    )  # fmt: skip
    assert placement.lane == (f"the source {host.partition('.')[0]}" if host else None)
    assert [each.host for each in placement.places] == ([host] if host else [])
    assert placement.obstacle == (Obstacle(reason, until) if reason else None)


def test_a_file_that_no_listed_source_has_fails_and_the_others_go_on() -> None:
    reasons = {"g": "the policy does not list far.example"}
    placement = place(["f", "g"], {"f": (HOME,)}, faults={}, closures=Closures(), already={}, reasons=reasons)
    assert (placement.lane, placement.obstacle) == (HOME.source, None)
    assert [(each.asset, each.reason) for each in placement.failed] == [("g", "the policy does not list far.example")]


def test_most_files_decide_where_the_dataset_waits() -> None:
    candidates = {"f": (HOME,), "g": (EAST,)}
    closed = Closures({EAST.source: CLOSED})

    def lane(assets: list[str], closures: Closures = Closures(), *, already: int) -> str | None:
        placement = place(assets, candidates, faults={}, closures=closures, already={EAST.source: already}, reasons={})
        return placement.lane

    assert lane(["f", "g"], already=3) == EAST.source
    assert lane(["f"], closed, already=3) == HOME.source
    assert lane([], closed, already=3) is None
