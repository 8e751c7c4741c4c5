"""GET /changes: what changed since a place of the log, deletions and departures included, read page by page."""

from __future__ import annotations

from contextlib import ExitStack
from typing import Any, Final

from starlette.responses import Response

from fedstac.api.call import Call
from fedstac.api.http import links, numbers
from fedstac.api.subscriptions.subscriptions import LONGEST_WAIT, events_answer
from fedstac.domain import strict_json
from fedstac.domain.errors import BadRequest
from fedstac.domain.events import EventFormat
from fedstac.domain.subscriptions import SubscriptionFilter
from fedstac.messaging.formats import Encoder
from fedstac.runtime import budget
from fedstac.workers import delivering, subscribing

PAGE: Final = 100
CQL2_JSON, CQL2_TEXT = "cql2-json", "cql2-text"
KEPT: Final = ("filter", "filter-lang", "collections", "types", "bbox", "format", "limit")  # from page to page


async def get_changes(call: Call) -> Response:
    """Return what changed after a place of the log, as the caller may see it; deletions are there too.

    `since` is a cursor, `start`, `head` or a moment. From cursor to cursor nothing is missed and nothing comes twice,
    whatever is written meanwhile. A moment is a place to begin with and no more: the log is in the order of commits,
    and what was written before the moment and committed after it may be missing. A dataset that no longer fits,
    or that the caller may no longer see, gives one change of the kind `left`. `unwritable` lists changes that the
    format cannot write, and why: read these datasets themselves.
    """
    parameters = call.query_params
    if not (since := parameters.get("since")):
        raise BadRequest("since=<cursor> is needed: that of the last answer, or start, head or a moment to begin with")
    limit = max(numbers.whole(parameters, "limit", default=PAGE, most=subscribing.MOST_EVENTS), 1)
    wait = numbers.whole(parameters, "wait", default=0, most=LONGEST_WAIT)
    name = parameters.get("format", EventFormat.CLOUDEVENTS.value)
    if name not in set(EventFormat):
        raise BadRequest(f"format={name[:40]!r} is no format; there are {', '.join(EventFormat)}")
    encoder = Encoder(EventFormat(name), feed_url=f"{call.base_url}/events")
    condition = SubscriptionFilter.parse(_condition(call))
    reader = await call.find_caller()
    budget.extend(wait)
    with ExitStack() as stack:
        if wait and reader is None:
            stack.enter_context(call.services.waiting_readers.place())
        page = await delivering.changes_since(
            call.services.pages, since, condition, reader=reader, encoder=encoder, limit=limit, wait=wait,
            run=call.services.threads.run,
        )  # fmt: skip
    cursor = str(page.cursor)
    following = {key: parameters[key] for key in KEPT if key in parameters} | {"since": cursor}
    next_parameters = following if page.has_more else None
    own = f"{call.base_url}/changes"
    head = {
        "cursor": cursor, "links": links.of_page(own, next_parameters),
        "unwritable": [
            {
                "cursor": str(each.event.cursor), "event_id": each.event.event_id, "collection": each.event.collection,
                "dataset": each.event.dataset, "reason": each.reason,
            }
            for each in page.unwritable
        ],
    }  # fmt: skip
    return await events_answer(call, head, "changes", page.events)


def _condition(call: Call) -> dict[str, Any]:
    """Return the filter that the parameters make."""
    parameters = call.query_params
    condition: dict[str, Any] = {
        name: parameters[name].split(",") for name in ("collections", "types") if parameters.get(name)
    }
    if bbox := parameters.get("bbox"):
        try:
            condition["bbox"] = [float(number) for number in bbox.split(",")]
        except ValueError:
            raise BadRequest("bbox is four numbers: west,south,east,north") from None
    if text := parameters.get("filter"):
        language = parameters.get("filter-lang", CQL2_TEXT)
        if language not in (CQL2_TEXT, CQL2_JSON):
            raise BadRequest(f"filter-lang={language[:30]!r} is neither {CQL2_JSON} nor {CQL2_TEXT}")
        condition["cql2"] = text if language == CQL2_TEXT else strict_json.parse(text.encode())
    return condition
