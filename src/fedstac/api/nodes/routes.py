"""The routes for other nodes and for those who watch over this one."""

from __future__ import annotations

from typing import Any

from fedstac.api import parameters
from fedstac.api.capability import Capability
from fedstac.api.nodes import (
    dapr,
    deletion_reports,
    federation,
    feed,
    health,
    metrics,
    parked,
    sinks,
    snapshots,
    stream,
)
from fedstac.api.route import Access, Answer, BodyFormat, Handler, Route, Size
from fedstac.domain.errors import Conflict, CursorGone, NotFound, TooManyRequests, Unavailable
from fedstac.domain.policy import Action
from fedstac.runtime.budget import Lane

_CURSOR = ("X-Cursor",)
_HEALTH = Answer.of(200, "How the node stands.", "Health")

FEED = Capability(
    name="feed",
    description="The log of this node, for the other nodes of the federation.",
    routes=(
        Route(
            method="GET", path="/events", handler=feed.get_events, access=Access.NODE, parameters=parameters.EVENTS,
            answers=(
                Answer(
                    200, "Events, the oldest first. `X-Cursor` is where to go on.",
                    {feed.BATCH: "Events", feed.LINES: "Lines"}, headers=_CURSOR,
                ),
            ),
            problems=(CursorGone,),
        ),
        Route(
            method="GET", path="/events/stream", handler=stream.get_stream, access=Access.NODE,
            parameters=parameters.STREAM,
            answers=(
                Answer(200, "Events, the oldest first, and on.", {stream.SERVER_SENT: "Stream", feed.LINES: "Lines"}),
            ),
            problems=(CursorGone, TooManyRequests),
        ),
        Route(
            method="GET", path="/events/head", handler=feed.get_head, access=Access.NODE,
            answers=(Answer.of(200, "The last position, and what each node has acknowledged.", "Head"),),
        ),
        Route(
            method="POST", path="/events/status", handler=feed.post_status, access=Access.NODE,
            body=BodyFormat.of("Acknowledgement"),
            answers=(
                Answer(204, "Written down."),
                Answer.of(200, "Written down, and what became of each report.", "DeletionReportAnswers"),
            ),
            problems=(CursorGone,), logs_refusals=False,
        ),
        Route(
            method="POST", path="/deletions/reports", handler=deletion_reports.post_reports, access=Access.NODE,
            body=BodyFormat.of("DeletionReports"),
            answers=(Answer.of(200, "What became of each report.", "DeletionReportAnswers"),),
        ),
        Route(
            method="GET", path="/snapshot", handler=feed.get_snapshot, access=Access.NODE,
            parameters=parameters.SNAPSHOT,
            answers=(Answer.of(200, "A page of datasets, or a manifest.", "SnapshotOrManifest", headers=_CURSOR),),
            problems=(NotFound,),
        ),
        Route(
            method="GET", path="/snapshot/parts/{part}", handler=snapshots.get_part, access=Access.NODE,
            parameters=(parameters.RANGE,),
            answers=(
                Answer(200, "The part.", dict.fromkeys(snapshots.MEDIA_TYPES.values(), "File")),
                Answer(206, "The range.", dict.fromkeys(snapshots.MEDIA_TYPES.values(), "File")),
            ),
            problems=(NotFound, Unavailable),
        ),
        Route(
            method="GET", path="/digests", handler=feed.get_digests, access=Access.NODE,
            parameters=parameters.DIGESTS,
            answers=(Answer.of(200, "Fingerprints, or records of a bucket.", "Digests"),),
        ),
    ),
)  # fmt: skip

_SINK, _LETTER = "/sinks/{sink}", "/dead-letters/{letter}"
_ONE_SINK = Answer.of(200, "The sink.", "Sink")
_LETTERS = Answer.of(200, "Dead letters.", "DeadLetters")


def _managing(method: str, path: str, handler: Handler, *answers: Answer, **values: Any) -> Route:
    """Return a route for those who may manage messaging."""
    return Route(
        method=method, path=path, handler=handler, access=Access.RIGHT, right=Action.MESSAGING, answers=answers,
        **values,
    )  # fmt: skip


SINKS = Capability(
    name="sinks",
    description="The brokers and webhooks that get the log of this node, and what they refused.",
    routes=(
        _managing("GET", "/sinks", sinks.get_sinks, Answer.of(200, "All sinks.", "Sinks")),
        _managing(
            "POST", "/sinks", sinks.post_sink, Answer.of(201, "The new sink.", "Sink", headers=("Location",)),
            Answer.of(200, "The sink, which was there already.", "Sink", headers=("Location",)),
            body=BodyFormat.of("NewSink"), problems=(Conflict,),
        ),
        _managing("GET", _SINK, sinks.get_sink, _ONE_SINK, problems=(NotFound,)),
        _managing("DELETE", _SINK, sinks.delete_sink, Answer(204, "The sink is gone."), problems=(NotFound,)),
        _managing(
            "POST", _SINK + "/pause", sinks.post_pause, _ONE_SINK, body=BodyFormat.of("Pause", is_required=False),
            problems=(NotFound,),
        ),
        _managing("POST", _SINK + "/resume", sinks.post_resume, _ONE_SINK, problems=(NotFound, Conflict)),
        _managing(
            "POST", _SINK + "/seek", sinks.post_seek, _ONE_SINK, body=BodyFormat.of("Seek"),
            problems=(NotFound, Conflict),
        ),
        _managing(
            "POST", _SINK + "/audit", sinks.post_audit, Answer.of(200, "What is missing.", "SinkAudit"),
            body=BodyFormat.of("SinkAuditWish", is_required=False), problems=(NotFound, Conflict),
        ),
        _managing("GET", "/dead-letters", sinks.get_dead_letters, _LETTERS, parameters=parameters.DEAD_LETTERS),
        _managing(
            "GET", _LETTER, sinks.get_dead_letter, Answer.of(200, "The dead letter.", "DeadLetter"),
            problems=(NotFound,),
        ),
        _managing(
            "POST", "/dead-letters/redrive", sinks.post_redrive, _LETTERS, body=BodyFormat.of("LetterIds"),
            problems=(NotFound, Conflict),
        ),
        _managing(
            "POST", "/dead-letters/discard", sinks.post_discard, _LETTERS, body=BodyFormat.of("LetterIds"),
            problems=(NotFound,),
        ),
    ),
)  # fmt: skip

_PARKED = Answer.of(200, "Parked events.", "ParkedEvents")
PARKED = Capability(
    name="parked-events",
    description="What this node follows and could not apply.",
    routes=(
        _managing("GET", "/parked-events", parked.get_parked_events, _PARKED, parameters=parameters.PARKED_EVENTS),
        _managing(
            "GET", "/parked-events/{event}", parked.get_parked_event,
            Answer.of(200, "The parked event.", "ParkedEvent"), problems=(NotFound,),
        ),
        _managing(
            "POST", "/parked-events/requeue", parked.post_requeue, _PARKED, body=BodyFormat.of("LetterIds"),
            problems=(NotFound, Conflict),
        ),
        _managing(
            "POST", "/parked-events/discard", parked.post_discard, _PARKED, body=BodyFormat.of("LetterIds"),
            problems=(NotFound,),
        ),
    ),
)  # fmt: skip

DAPR = Capability(
    name="dapr",
    description="What a Dapr sidecar asks of this node, and brings it.",
    routes=(
        Route(
            method="GET", path="/dapr/subscribe", handler=dapr.get_subscriptions, access=Access.NODE,
            is_for_sidecar=True, parameters=(parameters.SIDECAR_TOKEN,),
            answers=(Answer.of(200, "The topics, and where their messages go.", "DaprSubscriptions"),),
        ),
        Route(
            method="POST", path=dapr.REPORTS_PATH, handler=dapr.post_reports, access=Access.NODE, is_for_sidecar=True,
            parameters=(parameters.SIDECAR_TOKEN,),
            body=BodyFormat(Size.SMALL, {dapr.CLOUD_EVENT: ("DaprReports",)}),
            answers=(Answer.of(200, "What Dapr is to do with the message, and what became of it.", "DaprAnswer"),),
        ),
    ),
)  # fmt: skip

HEALTH = Capability(
    name="health",
    description="How this node stands.",
    routes=(
        Route(
            method="GET", path="/healthcheck", handler=health.get_health, access=Access.PUBLIC, lane=Lane.HEALTH,
            answers=(_HEALTH,),
        ),
        Route(
            method="GET", path="/readiness", handler=health.get_readiness, access=Access.PUBLIC, lane=Lane.HEALTH,
            answers=(_HEALTH,),
        ),
        Route(
            method="GET", path="/livez", handler=health.get_live, access=Access.PUBLIC, lane=Lane.HEALTH,
            answers=(Answer.of(200, "The process is alive.", "Up"),),
        ),
        Route(
            method="GET", path="/readyz", handler=health.get_ready, access=Access.PUBLIC, lane=Lane.HEALTH,
            answers=(
                Answer.of(200, "The process can serve.", "Ready"), Answer.of(503, "It cannot, and why.", "Ready"),
            ),
        ),
        Route(
            method="GET", path="/metrics", handler=metrics.get_metrics, access=Access.MONITOR, lane=Lane.HEALTH,
            answers=(Answer(200, "The metrics.", {"text/plain": "Metrics"}),),
        ),
        Route(
            method="GET", path="/federation", handler=federation.get_federation, access=Access.MONITOR,
            lane=Lane.HEALTH,
            answers=(Answer.of(200, "How this node and those around it stand.", "Federation"),),
        ),
        Route(
            method="GET", path="/_mgmt/ping", handler=health.get_ping, access=Access.PUBLIC, lane=Lane.HEALTH,
            answers=(Answer.of(200, "The process runs.", "Pong"),),
        ),
        Route(
            method="GET", path="/_mgmt/health", handler=health.get_up, access=Access.PUBLIC, lane=Lane.HEALTH,
            answers=(Answer.of(200, "The process runs.", "Up"),),
        ),
    ),
)  # fmt: skip
CAPABILITIES = (FEED, SINKS, PARKED, DAPR, HEALTH)
