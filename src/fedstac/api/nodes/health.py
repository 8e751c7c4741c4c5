"""GET /healthcheck, as ESGF's services have it: for load balancers and people, open to anybody."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import orjson
from starlette.responses import Response

from fedstac import __version__
from fedstac.api.call import Call
from fedstac.api.http import links
from fedstac.bootstrap import Node
from fedstac.db import health, schema
from fedstac.db import parts as parts_of_node
from fedstac.domain.errors import Unavailable
from fedstac.runtime.causes import OperatorsFault, is_transient
from fedstac.workers import roles
from fedstac.workers.roles import Outlook, Role

ANSWER_SECONDS = 1.5  # for the database; its connection is cut after another second
KEPT_SECONDS = 1.0  # many askers cost one look


@dataclass(frozen=True, slots=True)
class Health:
    """How a node stands: what /healthcheck says, and the reasons for which it is not ready."""

    body: Mapping[str, object]
    reasons: tuple[str, ...]


async def get_health(call: Call) -> Response:
    """Return how the node stands. Unavailable (503) while the database does not answer, or lacks what the node needs.

    `status` is ok or degraded, with the `reasons`. `parts`: what runs in the background of all processes, how many
    instances, and how often they were started again. `sequencer`: leading or absent. `workers`: idle, working, stalled
    where something has waited for a minute and nobody takes it, absent where none has been alive for a minute. An index
    node says `follower` instead: following, partly where one of its sources is not followed just now, absent; and the
    same of each origin that it has anything of. Those do not change the status: searches go on without them.
    """
    return _answer((await call.services.health.health()).body)


async def get_readiness(call: Call) -> Response:
    """Return how the node stands while everything works. Unavailable (503) with the reasons otherwise."""
    health = await call.services.health.health()
    if health.reasons:
        raise Unavailable(f"the node does not work as it should: {'; '.join(health.reasons)}", retry_after=5)
    return _answer(health.body)


async def get_ping(call: Call) -> Response:
    """Answer, as every application of stac-fastapi does: the process runs."""
    return _answer({"message": "PONG"})


async def get_up(call: Call) -> Response:
    """Answer, as every application of stac-fastapi does: the process runs. `/healthcheck` says how the node stands."""
    return _answer({"status": "UP"})


def _answer(body: Mapping[str, object]) -> Response:
    return Response(orjson.dumps(body), media_type=links.JSON, headers={"Cache-Control": "no-store"})


class HealthLook:
    """The last look at how a node stands: many callers cost one look."""

    def __init__(self, node: Node, process_roles: Sequence[Role]) -> None:
        self._node, self._roles = node, process_roles
        self._until = 0.0
        self._health: Health | None = None

    async def health(self) -> Health:
        """Return how the node stands, or stood a moment ago. Unavailable where the database does not answer."""
        if self._health is None or self._until < time.monotonic():
            self._health, self._until = await _look(self._node, self._roles), time.monotonic() + KEPT_SECONDS
        return self._health


async def _look(node: Node, process_roles: Sequence[Role]) -> Health:
    try:
        async with asyncio.timeout(ANSWER_SECONDS), node.pool.acquire() as conn:
            soundness = await schema.look(conn)
            if not soundness.is_migrating:  # what a migration changes, it changes while nodes serve
                soundness.require()
            parts = await health.parts(conn)
            elsewhere = await parts_of_node.elsewhere(conn, node.parts.process)
    except OperatorsFault as fault:
        node.parts.fails("api", fault)
        raise Unavailable(str(fault), retry_after=5) from None
    except Exception as error:
        if not (is_transient(error) or isinstance(error, Unavailable)):
            raise
        if not isinstance(error, Unavailable):  # that says that many ask
            node.parts.fails("api", error)
        raise Unavailable("the database does not answer; try again", retry_after=2) from None
    standings = parts_of_node.everywhere(node.parts.states, elsewhere)
    return _stand_of(node, process_roles, Outlook(node.settings, parts, standings))


def _stand_of(node: Node, process_roles: Sequence[Role], outlook: Outlook) -> Health:
    standings = outlook.standings
    stand = {member: word for role in process_roles for member, word in role.stand(outlook).items()}
    reasons = [f"{name}: {trouble}" for name, standing in standings.items() for trouble in standing.troubles]
    reasons += [
        f"{name}: {standing.wanted - standing.running} of {standing.wanted} do not run"
        for name, standing in standings.items()
        if standing.running < standing.wanted and not standing.troubles
    ]
    reasons += [f"{name}: {word}" for name, word in stand.items() if word in roles.UNWELL]
    body = {
        "status": "degraded" if reasons else "ok", "node": node.settings.node, "version": __version__,
        "database": "ok", **stand, "reasons": reasons,
        "parts": {
            name: {"running": standing.running, "wanted": standing.wanted, "restarts": standing.restarts}
            for name, standing in standings.items() if standing.wanted
        },
    }  # fmt: skip
    return Health(body, tuple(reasons))
