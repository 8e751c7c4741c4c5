"""What the transfers of a replica node have to know of its policy, its sources and its disk, as of now."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from pathlib import Path
from typing import Protocol

from fedstac.db.connections import Connection
from fedstac.db.replica import claims, placement_queue, sources
from fedstac.db.replica.placement_queue import UnplacedDataset
from fedstac.domain.replication.budgets import written_size
from fedstac.domain.replication.choosing import choose
from fedstac.domain.replication.placing import Closures, FileSource, Obstacle
from fedstac.domain.replication.policy import ReplicaPolicy
from fedstac.replication.copying import Throttle

AGAIN_SECONDS = 10.0  # after which a source is looked for again that the policy names no more
HELD_SECONDS = 300.0  # after which datasets are looked at again that wait for a budget that another one found reached
USUAL_CONNECTIONS = 8  # of a source without a cap, when its load is compared with others


@dataclass(frozen=True, slots=True)
class SourceView:
    """How the sources stand now.

    caps: how many connections each lane may have that may be asked; None: no limit. closures: why others are not asked.
    """

    caps: Mapping[str, int | None]
    closures: Closures


@dataclass(frozen=True, slots=True)
class Choices:
    """The copies of files by asset, in the order in which they are tried, and why an asset has none."""

    candidates: Mapping[str, Sequence[FileSource]]
    reasons: Mapping[str, str]


class Surroundings(Protocol):
    """What the transfers have to know of the policy, the sources and the disk. All of it may change at any time."""

    @property
    def throttle(self) -> Throttle: ...

    async def view(self, conn: Connection, now: datetime) -> SourceView:
        """Return how the sources stand."""
        ...

    def lane_obstacle(self, lane: str, now: datetime) -> Obstacle | None:
        """Return why a source of the policy is not asked now; None where it may be."""
        ...

    def choose(self, dataset: UnplacedDataset) -> Choices:
        """Return the copies of each file that has none chosen, in the order of preference."""
        ...

    async def over_budget(self, conn: Connection, datasets: Sequence[UnplacedDataset]) -> Mapping[int, Obstacle]:
        """Return why some of these datasets, by their number, would be too much; hold others that would be."""
        ...

    def folder(self, tier: str) -> Path:
        """Return the folder of a tier."""
        ...

    async def failed(self, conn: Connection, host: str, reason: str, pause: float) -> None:
        """Note that a source is away."""
        ...

    async def worked(self, conn: Connection, host: str) -> None:
        """Note that a source gave a file."""
        ...


@dataclass(slots=True)
class PolicySurroundings:
    """The surroundings as the policy file has them. `policy` and `folders` are asked each time: they may change.

    A host that is away is so for all processes of the node.
    """

    own: str  # this node
    policy: Callable[[], ReplicaPolicy]
    folders: Callable[[], Mapping[str, Path]]
    throttle: Throttle
    _failures: Mapping[str, int] = field(default_factory=dict)  # of hosts in a row, as last seen
    _loads: Mapping[str, float] = field(default_factory=dict)  # of sources: transfers as a share of the cap

    async def view(self, conn: Connection, now: datetime) -> SourceView:
        """Return how the sources stand."""
        policy = self.policy()
        closures = {}
        caps: dict[str, int | None] = {}
        for source in policy.sources:
            obstacle = self.lane_obstacle(source.name, now)
            if obstacle is None:
                caps[source.name] = source.connections
            else:
                closures[source.name] = obstacle
        away = await sources.away_hosts(conn)
        counts = await claims.transfers_by_lane(conn)
        self._failures = {each.host: each.failures for each in away}
        self._loads = {
            each.name: counts[each.name] / (each.connections or USUAL_CONNECTIONS) for each in policy.sources
        }
        hosts = {
            each.host: Obstacle(f"{each.host} is away: {each.reason}", each.until) for each in away if each.until > now
        }
        return SourceView(caps, Closures(closures, hosts))

    def lane_obstacle(self, lane: str, now: datetime) -> Obstacle | None:
        """Return why a source of the policy is not asked now; None where it may be."""
        source = next((each for each in self.policy().sources if each.name == lane), None)
        if source is None:
            return Obstacle(f"the policy names no source {lane} any more", now + timedelta(seconds=AGAIN_SECONDS))
        end = source.calendar.closed_until(now)
        if end is None:
            return None
        reason = source.calendar.reason(now)
        words = f" ({reason})" if reason else ""
        return Obstacle(f"{lane} is closed until {end:%Y-%m-%d %H:%M} UTC{words}", end)

    def choose(self, dataset: UnplacedDataset) -> Choices:
        """Return the copies of files that may be fetched, in the order in which they are tried."""
        policy = self.policy()
        candidates, reasons = {}, {}
        for name in dataset.assets:
            asset = dataset.document["assets"].get(name, {})
            choice = choose(
                asset, policy.sources, home=dataset.origin, own=self.own, failures=self._failures, loads=self._loads
            )
            candidates[name] = choice.candidates
            reasons[name] = choice.reason
        return Choices(candidates, reasons)

    async def over_budget(self, conn: Connection, datasets: Sequence[UnplacedDataset]) -> Mapping[int, Obstacle]:
        """Return why some of these datasets would be too much, those before them counted.

        All others that a budget which is reached has no room for are held at once: whoever fits comes next.
        """
        budgets = self.policy().budgets
        if not datasets or (budgets.node is None and not budgets.by_rule):
            return {}
        await conn.execute(placement_queue.ADMITTING)
        usage = await placement_queue.usage(conn)
        obstacles = {}
        full_budgets = {}
        for each in datasets:
            if (budget := budgets.full_budget(usage, each.rule, each.size)) is not None:
                obstacles[each.n] = Obstacle(budget.reason(written_size(each.size)), None)
                full_budgets[budget.rule] = budget  # the last one has the least room
                continue
            usage = usage.plus(each.rule, each.size)
        for budget in full_budgets.values():
            await placement_queue.hold_larger(conn, budget.room, budget.rule, budget.reason(), HELD_SECONDS)
        return obstacles

    def folder(self, tier: str) -> Path:
        """Return the folder of a tier. KeyError where the policy names none."""
        return self.folders()[tier]

    async def failed(self, conn: Connection, host: str, reason: str, pause: float) -> None:
        """Note that a host is away: it is asked again after a pause that doubles."""
        await sources.note_failure(conn, host, reason, pause)

    async def worked(self, conn: Connection, host: str) -> None:
        """Note that a host gave a file: it is well."""
        if host in self._failures:
            await sources.note_success(conn, host)
