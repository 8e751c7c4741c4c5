"""The node as an application beside a Dapr sidecar, which brings it reports on deletions from the topics of a broker.

A sidecar sends no header Authorization: its token comes in `dapr-api-token`, and is one that this node issued. An
answer that is no 2xx makes Dapr send a message again, without an end. What will never be taken is answered with DROP.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Final

import structlog
from starlette.responses import Response

from fedstac.api.call import Call
from fedstac.api.http import no_store
from fedstac.domain import deletion_reports, policy, strict_json
from fedstac.domain.errors import BadRequest, BodyTooLarge, MalformedJson, MissingPermission
from fedstac.runtime.metrics import STATUS_MESSAGES
from fedstac.workers import statuses

REPORTS_PATH: Final = "/dapr/deletion-reports"
CLOUD_EVENT: Final = "application/cloudevents+json"
log = structlog.get_logger()


class DaprStatus(StrEnum):
    """What a sidecar is told to do with a message."""

    SUCCESS = "SUCCESS"
    DROP = "DROP"  # it goes to the topic of dead letters, if the sidecar has one


async def get_subscriptions(call: Call) -> Response:
    """List the topics that a Dapr sidecar brings here. The sidecar asks for them when it starts."""
    topics = [topic.partition("/") for topic in call.node.settings.dapr_reports.split()]
    body = [{"pubsubname": pubsub, "topic": topic, "route": REPORTS_PATH} for pubsub, _, topic in topics]
    return no_store.answer(body)


async def post_reports(call: Call) -> Response:
    """Store the reports on deletions that a Dapr sidecar brings in a CloudEvent.

    The data is `reports`, as for POST /deletions/reports, or a message of the format `crud` whose `operation` is
    `DELETE`: the caller has done its part of these deletions. The sidecar's token names the node that reports. A report
    that names no event and was sent before the dataset was marked is too late. What is no report, or was published by
    this node itself, is answered with DROP, which ends it; what cannot be stored just now is refused, and Dapr brings
    it again.
    """
    name = policy.require_node(call.caller)
    try:
        event = strict_json.parse(await call.body.read())
        _refuse_own(event, call.node.settings.node)
        reports = deletion_reports.read_event(event, name)
    except (BadRequest, MalformedJson, BodyTooLarge, MissingPermission) as problem:
        log.warning("a message of a sidecar is no report, and dropped", node=name, reason=problem.detail)
        call.node.metrics.count(STATUS_MESSAGES, "refused")
        return _answer(DaprStatus.DROP, detail=problem.detail)
    async with call.node.pool.acquire() as conn:
        answers = await statuses.report(conn, reports, actor=call.caller.name, correlation=call.request_id)
    call.node.metrics.count(STATUS_MESSAGES, "stored")
    return _answer(DaprStatus.SUCCESS, reports=[each.as_json() for each in answers])


def _refuse_own(event: object, node: str) -> None:
    """Raise BadRequest for what a sink of this node published: a mark would count as a part that is done."""
    if isinstance(event, dict) and event.get("source") == node:
        raise BadRequest(f"/source: {node} published it itself; name topics of services in FEDSTAC_DAPR_REPORTS")


def _answer(outcome: DaprStatus, **more: object) -> Response:
    return no_store.answer({"status": outcome, **more})
