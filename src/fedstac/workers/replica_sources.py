"""What the transfers of a replica node ask of its policy: sources, their caps and calendars, budgets, folders."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path

from fedstac.db.connections import Connection, Pool
from fedstac.db.replica import claims, sources
from fedstac.db.replica.claims import UnplacedDataset
from fedstac.domain.replication import choosing
from fedstac.domain.replication.choosing import Candidate, Source
from fedstac.domain.replication.placing import Closures, Obstacle
from fedstac.domain.replication.states import RESTRICTED_TIER
from fedstac.replication.policy_file import PolicyFile
from fedstac.replication.throttle import SharedThrottle
from fedstac.workers.replica_transfers import Choices, SourceView


class PolicySurroundings:
    """The surroundings of transfers by the policy file: what it says now, and how its sources stand.

    folder: of the served tree. restricted: of files that are kept and not served.
    """

    def __init__(self, node: str, policy_file: PolicyFile, pool: Pool, *, folder: Path, restricted: Path) -> None:
        self._node, self._policy_file = node, policy_file
        self._folder, self._restricted = folder, restricted
        self._throttle = SharedThrottle(pool, lambda: policy_file.current)
        self._failures: Mapping[str, int] = {}
        self._loads: Mapping[str, float] = {}

    @property
    def throttle(self) -> SharedThrottle:
        """The caps of bandwidth."""
        return self._throttle

    async def view(self, conn: Connection, now: datetime) -> SourceView:
        """Return how the sources stand: a closed one, and a host that is away, says until when."""
        policy = self._policy_file.current
        lanes = {
            source.name: obstacle for source in policy.sources if (obstacle := closure_of(source, now)) is not None
        }
        away = await sources.away_hosts(conn)
        hosts = {
            host.host: Obstacle(f"{host.host} is away: {host.reason}", host.until) for host in away if host.until > now
        }
        counts = await claims.transfers_by_lane(conn)
        self._failures = {host.host: host.failures for host in away}
        self._loads = {source.name: counts[source.name] / (source.connections or 8) for source in policy.sources}
        caps = {source.name: source.connections for source in policy.sources if source.name not in lanes}
        return SourceView(caps, Closures(lanes, hosts))

    def choose(self, dataset: UnplacedDataset) -> Choices:
        """Return the copies of each file that has none chosen, in the order of preference."""
        candidates: dict[str, Sequence[Candidate]] = {}
        reasons: dict[str, str] = {}
        of_policy = self._policy_file.current.sources
        for asset in dataset.assets:
            choice = choosing.choose(
                dataset.document["assets"].get(asset) or {}, of_policy, home=dataset.origin, own=self._node,
                failures=self._failures, loads=self._loads,
            )  # fmt: skip
            candidates[asset] = choice.candidates
            if choice.reason:
                reasons[asset] = choice.reason
        return Choices(candidates, reasons)

    async def over_budget(self, conn: Connection, datasets: Sequence[UnplacedDataset]) -> Mapping[int, Obstacle]:
        """Return why some datasets would be too much. Call it in the transaction that admits the others."""
        budgets = self._policy_file.current.budgets
        if not datasets or (budgets.node is None and not budgets.by_rule):
            return {}
        usage = await sources.usage(conn, admitting=True)
        obstacles: dict[int, Obstacle] = {}
        for each in datasets:
            reason = budgets.obstacle(usage, each.rule, each.size)
            if reason is not None:
                obstacles[each.n] = Obstacle(reason, None)
            else:
                usage = usage.plus(each.rule, each.size)
        return obstacles

    def folder(self, tier: str) -> Path:
        """Return the folder of a tier. LookupError where the policy has none of that name any more."""
        if tier == "":
            return self._folder
        if tier == RESTRICTED_TIER:
            return self._restricted
        return Path(self._policy_file.current.tiers[tier])

    async def failed(self, conn: Connection, host: str, reason: str, pause: float) -> None:
        """Note that a host is away."""
        await sources.note_failure(conn, host, reason, pause)

    async def worked(self, conn: Connection, host: str) -> None:
        """Note that a host gave a file."""
        if host in self._failures:
            await sources.note_success(conn, host)


def closure_of(source: Source, now: datetime) -> Obstacle | None:
    """Return why a source is closed by its calendar, and until when; None where it is open."""
    until = source.calendar.closed_until(now)
    if until is None:
        return None
    reason = source.calendar.reason(now)
    return Obstacle(f"closed by the calendar of {source.name}" + (f" ({reason})" if reason else ""), until)
