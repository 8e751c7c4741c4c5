"""What the transfers of a replica node have to know of its policy, its sources and its disk, as of now."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

from fedstac.db.connections import Connection
from fedstac.db.replica import claims
from fedstac.db.replica.claims import UnplacedDataset
from fedstac.domain.replication.choosing import HostPattern, HostState, choose
from fedstac.domain.replication.placing import Closures, Obstacle
from fedstac.domain.replication.policy import ReplicaPolicy
from fedstac.replication.addresses import AddressRules
from fedstac.replication.copying import Throttle
from fedstac.workers.replica_transfers import Choices, SourceView

FIRST_AWAY, LONGEST_AWAY = 10.0, 900.0  # seconds for which a host that failed is not asked


LONG_AGO = datetime(1970, 1, 1, tzinfo=UTC)


@dataclass(slots=True)
class _Failures:
    """How a host failed in this process since it last gave a file."""

    count: int = 0
    until: datetime = LONG_AGO
    reason: str = ""


@dataclass(slots=True)
class PolicySurroundings:
    """The surroundings as the policy file has them. `policy` and `folders` are asked each time: they may change.

    A host that is away is so for this process; others find out by themselves.
    """

    own: str  # this node
    policy: Callable[[], ReplicaPolicy]
    folders: Callable[[], Mapping[str, Path]]
    throttle: Throttle
    _failures: dict[str, _Failures] = field(default_factory=dict)

    async def view(self, conn: Connection, now: datetime) -> SourceView:
        """Return how the sources stand."""
        closures = {}
        caps: dict[str, int | None] = {}
        for source in self.policy().sources:
            obstacle = self.lane_obstacle(source.name, now)
            if obstacle is None:
                caps[source.name] = source.connections
            else:
                closures[source.name] = obstacle
        away = {
            host: Obstacle(f"{host} is away: {each.reason}", each.until)
            for host, each in self._failures.items()
            if each.until > now
        }
        return SourceView(caps, Closures(closures, away))

    def lane_obstacle(self, lane: str, now: datetime) -> Obstacle | None:
        """Return why a source of the policy is not asked now; None where it may be."""
        source = next((each for each in self.policy().sources if each.name == lane), None)
        if source is None:
            return Obstacle(f"the policy names no source {lane} any more", now + timedelta(seconds=FIRST_AWAY))
        end = source.calendar.closed_until(now)
        if end is None:
            return None
        reason = source.calendar.reason(now)
        words = f" ({reason})" if reason else ""
        return Obstacle(f"{lane} is closed until {end:%Y-%m-%d %H:%M} UTC{words}", end)

    def choose(self, dataset: UnplacedDataset) -> Choices:
        """Return the copies of files that may be fetched, those of well hosts first."""
        policy = self.policy()
        standings = {host: HostState(health=1 / (1 + each.count)) for host, each in self._failures.items()}
        candidates, reasons = {}, {}
        for name in dataset.assets:
            asset = dataset.document["assets"].get(name, {})
            choice = choose(asset, policy.sources, home=dataset.origin, own=self.own, standings=standings)
            candidates[name] = choice.candidates
            reasons[name] = choice.reason
        return Choices(candidates, reasons)

    async def over_budget(self, conn: Connection, datasets: Sequence[UnplacedDataset]) -> Mapping[int, Obstacle]:
        """Return why some of these datasets would be too much, those before them counted."""
        budgets = self.policy().budgets
        if not datasets or (budgets.node is None and not budgets.by_rule):
            return {}
        usage = await claims.usage(conn)
        obstacles = {}
        for each in datasets:
            if (reason := budgets.obstacle(usage, each.rule, each.size)) is not None:
                obstacles[each.n] = Obstacle(reason, None)
                continue
            of_rule = usage.by_rule.get(each.rule, 0) + each.size
            usage = replace(usage, total=usage.total + each.size, by_rule={**usage.by_rule, each.rule: of_rule})
        return obstacles

    def folder(self, tier: str) -> Path:
        """Return the folder of a tier. KeyError where the policy names none."""
        return self.folders()[tier]

    async def failed(self, conn: Connection, host: str, reason: str, pause: float) -> None:
        """Note that a host is away: it is asked again after a pause that doubles."""
        failures = self._failures.setdefault(host, _Failures())
        failures.count += 1
        seconds = max(pause, min(FIRST_AWAY * 2.0 ** min(failures.count - 1, 20), LONGEST_AWAY))
        failures.until, failures.reason = datetime.now(UTC) + timedelta(seconds=seconds), reason

    async def worked(self, conn: Connection, host: str) -> None:
        """Note that a host gave a file: it is well."""
        self._failures.pop(host, None)


def address_rules(policy: ReplicaPolicy) -> AddressRules:
    """Return which addresses may be connected to: the hosts of all sources, and those of them that may be private."""
    hosts = [(source, _pattern(host)) for source in policy.sources for host in source.hosts]
    return AddressRules(
        hosts=tuple(pattern for _, pattern in hosts),
        private=tuple(pattern for source, pattern in hosts if source.private),
    )


def _pattern(host: HostPattern) -> str:
    """Return a host pattern of the policy as the rules of addresses write it."""
    if host.scheme == "file":
        return f"file://{host.host}"
    if host.scheme not in ("http", "https"):
        return f"{host.scheme}://{host.host}"
    name = f"[{host.host}]" if ":" in host.host else host.host
    return name if host.port is None else f"{name}:{host.port}"
