"""GET /healthcheck, as ESGF's services have it: for load balancers and people, open to anybody."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from starlette.responses import Response

from fedstac import __version__
from fedstac.api.call import Call
from fedstac.api.http import no_store
from fedstac.bootstrap import Node
from fedstac.columns.memory import FacetColumns
from fedstac.db import backlog, health, nodes, schema
from fedstac.db import parts as parts_of_node
from fedstac.db.backlog import Backlog
from fedstac.db.replica import figures as replica_figures
from fedstac.db.replica.figures import ReplicaStand
from fedstac.domain.errors import Unavailable
from fedstac.runtime import budget
from fedstac.runtime.budget import Budget, Lane
from fedstac.runtime.causes import OperatorsFault, is_transient
from fedstac.settings import Settings
from fedstac.workers import roles
from fedstac.workers.roles import Outlook, Role

LOOK_SECONDS = 5.0  # for the database, which may be busy; its connection is cut after another second
KEPT_SECONDS = 1.0  # many askers cost one look
KEPT_BESIDE = 5  # times as long a look counts while the next one is under way: nobody waits for a busy database
STUCK_SECONDS = 30.0  # that an event may wait for its position
UNLED_SECONDS = 10.0  # without a sequencer, after which a publishing node is not ready


@dataclass(frozen=True, slots=True)
class Check:
    """One of the things without which a process cannot serve its role."""

    name: str
    ok: bool
    detail: str


@dataclass(frozen=True, slots=True)
class Health:
    """How a node stands: what /healthcheck says, the reasons to see to something, and what /readyz says."""

    body: Mapping[str, object]
    reasons: tuple[str, ...]
    checks: tuple[Check, ...] = ()


async def get_health(call: Call) -> Response:
    """Return how the node stands. Unavailable (503) while the database does not answer, or lacks what the node needs.

    `status` is ok or degraded, with the `reasons`. `parts`: what runs in the background of all processes, how many
    instances, and how often they were started again. `columns`: ready where searches are answered from memory, loading,
    or off. `sequencer`: leading or absent. `workers`: idle, working, stalled
    where something has waited for a minute and nobody takes it, absent where none has been alive for a minute. An index
    node says `follower` instead: following, partly where one of its sources is not followed just now, absent; and the
    same of each origin that it has anything of. Those do not change the status: searches go on without them. A replica
    node says it in `replica`, as `feed`: beside it, how many datasets are parked, wait and are under way, how many
    announcements are refused, which hosts are away, the room on its disks, and when a file was last verified.
    """
    return no_store.answer((await call.services.health.health()).body)


async def get_readiness(call: Call) -> Response:
    """Return how the node stands while everything works. Unavailable (503) with the reasons otherwise."""
    health = await call.services.health.health()
    if health.reasons:
        raise Unavailable(f"the node does not work as it should: {'; '.join(health.reasons)}", retry_after=5)
    return no_store.answer(health.body)


async def get_live(call: Call) -> Response:
    """Answer while the process is alive: its event loop turns. Nothing else is looked at.

    Who gets no answer for a while starts the process again.
    """
    return no_store.answer({"status": "UP"})


async def get_ready(call: Call) -> Response:
    """Return whether this process can serve its role (200) or not (503), check by check.

    `checks`: the database answers and is as it has to be; the columns are loaded, so that searches are fast; the
    process is not stopping; its background parts run; where datasets are published, somebody leads the sequencer, and
    partitions of the log are made ahead.
    """
    checks: tuple[Check, ...]
    try:
        checks = (Check("database", ok=True, detail="it answers"), *(await call.services.health.health()).checks)
    except Unavailable as problem:
        checks = (Check("database", ok=False, detail=problem.detail),)
    stopping = call.node.stopping.is_set()
    checks = (*checks, Check("process", ok=not stopping, detail="it stops" if stopping else "it serves"))
    is_ready = all(check.ok for check in checks)
    body = {
        "status": "ready" if is_ready else "not ready",
        "node": call.node.settings.node,
        "roles": [role.name for role in call.services.roles],
        "checks": {check.name: {"ok": check.ok, "detail": check.detail} for check in checks},
    }
    return no_store.answer(body, status=200 if is_ready else 503)


async def get_ping(call: Call) -> Response:
    """Answer, as every application of stac-fastapi does: the process runs."""
    return no_store.answer({"message": "PONG"})


async def get_up(call: Call) -> Response:
    """Answer, as every application of stac-fastapi does: the process runs. `/healthcheck` says how the node stands."""
    return no_store.answer({"status": "UP"})


class HealthLook:
    """The last look at how a node stands: many callers cost one look, and wait for one only where there is none yet."""

    def __init__(self, node: Node, process_roles: Sequence[Role], columns: FacetColumns | None) -> None:
        self._node, self._roles, self._columns = node, process_roles, columns
        self._seen_at = -math.inf
        self._health: Health | None = None
        self._fault: Exception | None = None  # of the last look
        self._next: asyncio.Task[None] | None = None
        self._led_at = time.monotonic()  # when the sequencer was last seen to be led

    async def health(self) -> Health:
        """Return how the node stands, or stood a moment ago. Unavailable where the database does not answer."""
        age = time.monotonic() - self._seen_at
        if age > KEPT_SECONDS and self._next is None:
            self._next = budget.detached(self._renew())
        if self._next is not None and age > KEPT_SECONDS * KEPT_BESIDE:
            await asyncio.shield(self._next)
        if self._fault is not None:
            raise self._fault.with_traceback(None)
        assert self._health is not None
        return self._health

    async def _renew(self) -> None:
        try:
            async with Budget(LOOK_SECONDS + 1, Lane.HEALTH, _no_answer):
                self._health, self._fault = await self._look(), None
        except Exception as error:
            self._fault = error
        finally:
            self._seen_at, self._next = time.monotonic(), None

    async def _look(self) -> Health:
        node = self._node
        log_state: LogState | None = None
        replica: ReplicaStand | None = None
        try:
            async with asyncio.timeout(LOOK_SECONDS), node.pool.acquire() as conn:
                soundness = await schema.look(conn)
                if not soundness.is_migrating:  # what a migration changes, it changes while nodes serve
                    soundness.require()
                parts = await health.parts(conn)
                elsewhere = await parts_of_node.elsewhere(conn, node.parts.process)
                if not soundness.is_migrating and any(role.name == nodes.REPLICA for role in self._roles):
                    replica = await replica_figures.stand(conn)
                if not soundness.is_migrating and not any(role.follows for role in self._roles):
                    log_state = LogState(await health.partitions_ahead(conn), await backlog.read(conn))
        except OperatorsFault as fault:
            node.parts.fails("api", fault)
            raise Unavailable(str(fault), retry_after=5) from None
        except Exception as error:
            if not (is_transient(error) or isinstance(error, Unavailable)):
                raise
            if not isinstance(error, Unavailable):  # that says that many ask
                node.parts.fails("api", error)
            raise _no_answer() from None
        if parts.sequencer:
            self._led_at = time.monotonic()
        standings = parts_of_node.everywhere(node.parts.states, elsewhere)
        outlook = Outlook(node.settings, parts, standings)
        stand = _stand_of(node, self._roles, outlook, log_state, self._checks(log_state))
        if replica is not None:
            stand = _with_replica(stand, replica)
        return replace(stand, body={**stand.body, "columns": _columns_of(self._columns)})

    def _checks(self, log_state: LogState | None) -> tuple[Check, ...]:
        missing = [name for name, state in self._node.parts.states.items() if state.running < state.wanted]
        detail = f"{', '.join(missing)} will be started again" if missing else "all run"
        checks = [Check("parts", ok=not missing, detail=detail)]
        if self._columns is not None:
            detail = "they are loaded" if self._columns.is_ready else f"{self._columns.loaded} rows are loaded so far"
            checks.append(Check("columns", ok=self._columns.is_ready, detail=detail))
        if log_state is not None:
            seconds = time.monotonic() - self._led_at
            led = "somebody leads" if seconds < KEPT_SECONDS * 2 else f"nobody has led for {seconds:.0f} s"
            waiting = max((each.seconds for each in log_state.backlogs if each.place == backlog.SEQUENCER), default=0.0)
            if waiting >= STUCK_SECONDS:
                led = f"{led}, and events have waited for their positions for {waiting:.0f} s"
            ahead = f"{log_state.partitions_ahead} partitions are ahead"
            checks.append(Check("sequencer", ok=seconds < UNLED_SECONDS and waiting < STUCK_SECONDS, detail=led))
            checks.append(Check("log", ok=log_state.partitions_ahead > 0, detail=ahead))
        return tuple(checks)


def _no_answer() -> Unavailable:
    return Unavailable("the database does not answer; try again", retry_after=2)


def _with_replica(health: Health, replica: ReplicaStand) -> Health:
    """Return how a replica node stands. What waits goes on by itself; what is parked needs somebody."""
    reasons = list(health.reasons)
    if replica.parked:
        reasons.append(f"replica: {replica.parked} datasets are parked; see fedstac replica status --state parked")
    if replica.refused_announcements:
        reasons.append(
            f"replica: origins refuse {replica.refused_announcements} announcements; see fedstac replica status --state"
            " parked"
        )
    reasons += [
        f"replica: the folder of the tier {tier} is not there; mount it, or take the tier out of the policy"
        for tier, free in replica.free_bytes.items()
        if free is None
    ]
    body = {
        **health.body, "status": "degraded" if reasons else "ok", "reasons": reasons,
        nodes.REPLICA: {
            "feed": health.body.get(nodes.REPLICA),
            "parked": replica.parked, "waiting": replica.waiting, "under_way": replica.under_way,
            "refused_announcements": replica.refused_announcements, "away_hosts": replica.away_hosts,
            "free_bytes": replica.free_bytes, "last_progress": replica.last_progress,
        },
    }  # fmt: skip
    return replace(health, body=body, reasons=tuple(reasons))


def _columns_of(columns: FacetColumns | None) -> str:
    """Return how the columns of this process stand."""
    return "off" if columns is None else "ready" if columns.is_ready else "loading"


@dataclass(frozen=True, slots=True)
class LogState:
    """How the log of a publishing node stands."""

    partitions_ahead: int
    backlogs: Sequence[Backlog]

    def warnings(self, settings: Settings) -> list[str]:
        """Return what an operator should see to."""
        warnings = [
            f"events wait: {each.describe()}"
            for each in self.backlogs
            if each.fills(settings.unsent_seconds, settings.unsent_bytes) >= backlog.WARNING_SHARE
        ]
        if self.partitions_ahead < health.LEAST_AHEAD:
            warnings.append(
                f"the log has {self.partitions_ahead} partitions ahead, and should have {health.LEAST_AHEAD}"
            )
        return warnings


def _stand_of(
    node: Node, process_roles: Sequence[Role], outlook: Outlook, log_state: LogState | None, checks: tuple[Check, ...]
) -> Health:
    standings = outlook.standings
    stand = {member: word for role in process_roles for member, word in role.stand(outlook).items()}
    reasons = [f"{name}: {trouble}" for name, standing in standings.items() for trouble in standing.troubles]
    reasons += [
        f"{name}: {standing.wanted - standing.running} of {standing.wanted} do not run"
        for name, standing in standings.items()
        if standing.running < standing.wanted and not standing.troubles
    ]
    reasons += [f"{name}: {word}" for name, word in stand.items() if word in roles.UNWELL]
    reasons += log_state.warnings(node.settings) if log_state is not None else []
    body = {
        "status": "degraded" if reasons else "ok", "node": node.settings.node, "version": __version__,
        "database": "ok", **stand, "reasons": reasons,
        "parts": {
            name: {"running": standing.running, "wanted": standing.wanted, "restarts": standing.restarts}
            for name, standing in standings.items() if standing.wanted
        },
    }  # fmt: skip
    return Health(body, tuple(reasons), checks)
