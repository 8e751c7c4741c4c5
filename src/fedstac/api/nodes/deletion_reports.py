"""Reports of nodes and services on their part of deletions, over HTTP."""

from __future__ import annotations

from collections.abc import Sequence

from starlette.responses import Response

from fedstac.api.call import Call
from fedstac.api.http import no_store
from fedstac.domain import deletion_reports, policy, strict_json
from fedstac.domain.deletion_reports import ReportAnswer
from fedstac.domain.errors import BadRequest
from fedstac.workers import statuses


async def post_reports(call: Call) -> Response:
    """Store how far the calling node or service is with its part of deletions.

    A report names the event that announced the mark, or the dataset. The same report again changes nothing; what is
    done stays done, whatever comes late. A report for a mark that was taken back is answered `too late`, and one that
    nobody waits for `not asked`. Only the node itself can report for itself.
    """
    name = policy.require_node(call.caller)
    body = strict_json.parse(await call.body.read())
    if not isinstance(body, dict) or body.keys() != {"reports"}:
        raise BadRequest("send a JSON object with reports, a list")
    reports = deletion_reports.read(body["reports"], name)
    async with call.node.pool.acquire() as conn:
        answers = await statuses.report(conn, reports, actor=call.caller.name, correlation=call.request_id)
    return answer(answers)


def answer(answers: Sequence[ReportAnswer]) -> Response:
    """Return what became of each report, in their order."""
    return no_store.answer({"reports": [each.as_json() for each in answers]})
