"""A policy for tests of transfers: every host may be fetched from, each is a source of its own; the test moves it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from fedstac.db.connections import Connection
from fedstac.db.replica.placement_queue import UnplacedDataset
from fedstac.domain.replication.placing import Closures, Obstacle
from fedstac.replication.addresses import AddressRules
from fedstac.replication.copying import NoThrottle, Throttle
from fedstac.workers.replica_surroundings import Choices, SourceView

RULES = AddressRules(hosts=("127.0.0.1",))


@dataclass(frozen=True)
class ListedCopy:
    node: str
    href: str

    @property
    def host(self) -> str:
        return urlsplit(self.href).netloc

    source = host


@dataclass
class FixedSources:
    """Lanes are `host:port`. `closures` and `budget` are what the test makes of them; `away` is what transfers told."""

    root: Path
    lanes: Mapping[str, int | None]
    closures: Closures = field(default_factory=Closures)
    budget: int | None = None
    dropped: set[str] = field(default_factory=set)  # lanes that the policy no longer names
    away: dict[str, Obstacle] = field(default_factory=dict)
    throttle: Throttle = field(default_factory=NoThrottle)

    async def view(self, conn: Connection, now: datetime) -> SourceView:
        self.away = {host: each for host, each in self.away.items() if each.until and each.until > now}
        hosts = {**self.closures.hosts, **self.away}
        caps = {lane: cap for lane, cap in self.lanes.items() if lane not in self.closures.lanes}
        return SourceView(caps, Closures(self.closures.lanes, hosts))

    def lane_obstacle(self, lane: str, now: datetime) -> Obstacle | None:
        return self.closures.lanes.get(lane)

    def choose(self, dataset: UnplacedDataset) -> Choices:
        assets: Mapping[str, Any] = dataset.document["assets"]
        copies = {asset: _copies(assets[asset]) for asset in dataset.assets}
        listed = {asset: [each for each in of if each.source not in self.dropped] for asset, of in copies.items()}
        return Choices(listed, {})

    async def over_budget(self, conn: Connection, datasets: Sequence[UnplacedDataset]) -> Mapping[int, Obstacle]:
        if self.budget is None:
            return {}
        return {each.n: Obstacle("over budget", None) for each in datasets if each.size > self.budget}

    def folder(self, tier: str) -> Path:
        return self.root

    async def failed(self, conn: Connection, host: str, reason: str, pause: float) -> None:
        now: datetime = await conn.fetchval("SELECT clock_timestamp()")
        self.away[host] = Obstacle(f"{host} is away: {reason}", now + timedelta(seconds=max(pause, 0.5)))

    async def worked(self, conn: Connection, host: str) -> None:
        self.away.pop(host, None)


def _copies(asset: Mapping[str, Any]) -> list[ListedCopy]:
    others = asset.get("alternate", {})
    return [ListedCopy("west", asset["href"]), *(ListedCopy(node, other["href"]) for node, other in others.items())]
