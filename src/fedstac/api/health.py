"""GET /healthcheck, as ESGF's services have it: for load balancers and people, open to anybody."""

from __future__ import annotations

import asyncio
import time

import orjson
from starlette.requests import Request
from starlette.responses import Response

from fedstac import __version__
from fedstac.api import links
from fedstac.bootstrap import Node
from fedstac.db import health
from fedstac.db.connections import is_transient
from fedstac.db.health import Parts
from fedstac.domain.errors import Unavailable
from fedstac.messaging.http_feed import sources_of
from fedstac.settings import Settings

ANSWER_SECONDS = 1.5  # for the database; its connection is cut after another second
KEPT_SECONDS = 1.0  # many askers cost one look
STALLED_SECONDS = 60.0  # so long unworked, an item says that workers are missing


async def get_health(request: Request) -> Response:
    """GET /healthcheck: 200 while the database answers; Unavailable (503) while it does not.

    `sequencer`: leading or absent. `workers`: idle, working, or stalled where something waits and nobody takes it; idle
    workers leave no trace, so idle does not say that there are any. An index node says `follower` instead: following,
    partly where one of its sources is not followed just now, absent; and the same of each origin that it has anything
    of. Those do not change the status: searches go on without them.
    """
    node: Node = request.app.state.node
    kept: tuple[float, Parts] | None = getattr(request.app.state, "health", None)
    if kept is None or kept[0] < time.monotonic():
        try:
            async with asyncio.timeout(ANSWER_SECONDS), node.pool.acquire() as conn:
                found = await health.parts(conn)
        except Exception as error:
            if not (is_transient(error) or isinstance(error, Unavailable)):
                raise
            if not isinstance(error, Unavailable):  # that says that many ask
                node.outage.failed(error)
            raise Unavailable("the database does not answer; try again", retry_after=2) from None
        kept = request.app.state.health = time.monotonic() + KEPT_SECONDS, found
    body: dict[str, object] = {"status": "ok", "node": node.settings.node, "version": __version__, "database": "ok"}
    body |= _following(kept[1], node.settings) if node.settings.source else _publishing(kept[1])
    return Response(orjson.dumps(body), media_type=links.JSON, headers={"Cache-Control": "no-store"})


def _following(parts: Parts, settings: Settings) -> dict[str, object]:
    said = {True: "following", False: "absent"}
    wanted = len(sources_of(settings.source, settings.source_token))
    follower = said[parts.following > 0] if parts.following in (0, wanted) else "partly"
    return {"follower": follower, "origins": {origin: said[now] for origin, now in parts.origins.items()}}


def _publishing(parts: Parts) -> dict[str, str]:
    waiting = parts.waiting_seconds
    stalled = waiting is not None and waiting > STALLED_SECONDS and not parts.working
    return {
        "sequencer": "leading" if parts.sequencer else "absent",
        "workers": "stalled" if stalled else "idle" if waiting is None else "working",
    }
