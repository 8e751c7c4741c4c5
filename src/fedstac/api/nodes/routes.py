"""The routes for other nodes and for those who watch over this one."""

from __future__ import annotations

from fedstac.api.capability import Capability
from fedstac.api.nodes import feed, health
from fedstac.api.route import JSON, Access, BodyFormat, Route, Size
from fedstac.runtime.budget import Lane

FEED = Capability(
    name="feed",
    description="The log of this node, for the other nodes of the federation.",
    routes=(
        Route(method="GET", path="/events", handler=feed.get_events, access=Access.NODE),
        Route(method="GET", path="/events/head", handler=feed.get_head, access=Access.NODE),
        Route(
            method="POST", path="/events/status", handler=feed.post_status, access=Access.NODE,
            body=BodyFormat(Size.SMALL, {JSON: ("Acknowledgement",)}), logs_refusals=False,
        ),
        Route(method="GET", path="/snapshot", handler=feed.get_snapshot, access=Access.NODE),
        Route(method="GET", path="/digests", handler=feed.get_digests, access=Access.NODE),
    ),
)  # fmt: skip

HEALTH = Capability(
    name="health",
    description="How this node stands.",
    routes=(
        Route(
            method="GET", path="/healthcheck", handler=health.get_health, access=Access.PUBLIC, lane=Lane.HEALTH
        ),
        Route(
            method="GET", path="/readiness", handler=health.get_readiness, access=Access.PUBLIC, lane=Lane.HEALTH
        ),
        Route(method="GET", path="/_mgmt/ping", handler=health.get_ping, access=Access.PUBLIC, lane=Lane.HEALTH),
        Route(method="GET", path="/_mgmt/health", handler=health.get_up, access=Access.PUBLIC, lane=Lane.HEALTH),
    ),
)  # fmt: skip
CAPABILITIES = (FEED, HEALTH)
