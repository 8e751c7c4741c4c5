"""GET /federation: how this node, its sinks and the nodes that follow it stand, for people and `fedstac status`."""

from __future__ import annotations

import math
from collections.abc import Mapping

from starlette.responses import Response

from fedstac.api.call import Call
from fedstac.api.http import no_store
from fedstac.api.nodes.metrics import Look
from fedstac.domain.errors import Unavailable
from fedstac.messaging.sinks import shown_address


async def get_federation(call: Call) -> Response:
    """Return how this node stands, how far its sinks and the nodes that follow it are, and what it follows itself.

    For administrators and tokens with the role monitor. The numbers are at most five seconds old. A lag counts the
    events of the feed that somebody has not got, and the age of the oldest of them. `clear_seconds` is how long the lag
    takes at the pace since the look before; null while it stands still. Unavailable (503) while the database does not
    answer.
    """
    health = await call.services.health.health()
    look = await call.services.figures.look()
    if look is None:
        raise Unavailable("the database does not answer; try again", retry_after=2)
    body = {**health.body, "roles": [role.name for role in call.services.roles], **_numbers(look)}
    return no_store.answer(body)


def _numbers(look: Look) -> Mapping[str, object]:
    figures = look.figures
    return {
        "queue": {"items": figures.queued, "oldest_seconds": _seconds(figures.oldest_seconds)},
        "feed": {
            "cursor": f"{figures.epoch}.{figures.position}", "earliest": figures.outbox.earliest,
            "waiting": figures.outbox.unsequenced, "waiting_seconds": _seconds(figures.outbox.unsequenced_seconds),
            "partitions_ahead": figures.outbox.partitions_ahead,
        },
        "sinks": [
            {
                "name": sink.name, "address": shown_address(sink.address), "required": sink.required,
                "through": f"{sink.epoch}.{sink.position}", "lag_events": sink.events,
                "lag_seconds": _seconds(sink.seconds), "clear_seconds": _seconds(look.sink_clear_seconds[sink.name]),
                "dead_letters": sink.dead_letters, "errors": sink.errors,
                "failing_seconds": _seconds(sink.failing_seconds), "last_error": sink.last_error,
                "paused": sink.paused_reason, "lapsed": sink.has_lapsed,
            }
            for sink in figures.sinks
        ],
        "consumers": [
            {
                "name": lag.reporter, "through": f"{lag.epoch}.{lag.through}", "lag_events": lag.events,
                "lag_seconds": _seconds(lag.seconds),
                "clear_seconds": _seconds(look.consumer_clear_seconds[lag.reporter]),
                "silent_seconds": _seconds(lag.silent_seconds),
            }
            for lag in figures.lags
        ],
        "follows": [
            {
                "consumer": place.consumer, "origin": place.origin, "through": f"{place.epoch}.{place.position}",
                "parked": place.parked, "idle_seconds": _seconds(place.idle_seconds),
            }
            for place in figures.places
        ],
    }  # fmt: skip


def _seconds(value: float) -> float | None:
    return None if math.isinf(value) else round(value, 1)
