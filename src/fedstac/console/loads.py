"""The tab of full-state loads: what each would change, having that done, and how far it is."""

from __future__ import annotations

from enum import StrEnum
from urllib.parse import quote

from starlette.responses import Response

from fedstac.api.writing import bulk
from fedstac.api.writing import loads as api
from fedstac.console import pages, verbs
from fedstac.console.pages import ConsolePage, PageQuery
from fedstac.console.visits import Visit
from fedstac.domain.errors import Conflict, Problem
from fedstac.domain.reconcile import LoadChange

FOLDER = "/loads"
CHANGES = (("", "any"), *((change.value, change.value) for change in LoadChange))
OPEN = ("collecting", "comparing", "compared")  # it is not applied
WORKING = ("waiting", "running")


class LoadTask(StrEnum):
    """What one can do with a load."""

    COMPARE = "compare"
    APPLY = "apply"
    CANCEL = "cancel"
    STOP = "stop"  # what is being applied


async def get_list(visit: Visit) -> Response:
    """Show the visitor's full-state loads, the newest first; to administrators those of everybody."""
    query = PageQuery.of(visit)
    document = await verbs.show(visit, api.get_loads, query={name: query.get(name) for name in ("after", "limit")})
    content = {"query": query, "next_page": verbs.next_of(document)}
    return pages.show(visit, ConsolePage("loads.html", document, content, live="loads_live.html"))


async def get_one(visit: Visit) -> Response:
    """Show a load: what it would change, or how far it is."""
    return await _page(visit)


async def _page(visit: Visit, *, confirm: str = "", problem: Problem | None = None) -> Response:
    document = await verbs.show(visit, api.get_load)
    content = {
        "outcome": PageQuery.of(visit).get("outcome"), "problem": problem, "confirm": confirm,
        "is_open": document["status"] in OPEN, "is_working": document["status"] in WORKING,
        "action": _address(visit),
    }  # fmt: skip
    status = problem.status if problem else 200
    return pages.show(visit, ConsolePage("load.html", document, content, live="load_live.html", status=status))


def _address(visit: Visit) -> str:
    return f"{visit.place.root}{FOLDER}/{quote(visit.call.path_params['load_id'], safe='')}"


async def get_datasets(visit: Visit) -> Response:
    """Show the datasets of a load, each with what becomes of it."""
    query = PageQuery.of(visit)
    asked_for = {name: query.get(name) for name in ("change", "after", "limit")}
    document = await verbs.show(visit, api.get_load_datasets, query=asked_for)
    content = {
        "query": query, "changes": CHANGES, "next_page": verbs.next_of(document), "load_address": _address(visit),
    }  # fmt: skip
    return pages.show(visit, ConsolePage("load_datasets.html", document, content))


async def post_one(visit: Visit) -> Response:
    """Compare a load again, apply what was shown, cancel it, or end it where it stands."""
    form = visit.form
    task = pages.chosen_task(LoadTask, form.get("do", ""))
    try:
        await _do(visit, task)
    except Problem as problem:
        return await pages.refuse_with(
            visit, problem, await _page(visit, confirm=form.get("confirm", ""), problem=problem.without_trace())
        )
    return pages.redirect(f"{_address(visit)}?outcome={task}")


async def _do(visit: Visit, task: LoadTask) -> None:
    match task:
        case LoadTask.COMPARE:
            await verbs.ask(visit, api.post_apply, query={"dry_run": "true"})
        case LoadTask.APPLY:
            comparison = visit.form.get("compared", "")
            if not comparison:
                raise Conflict("the page showed no changes; look at the changes, then apply them")
            await verbs.ask(
                visit, api.post_apply, query={"confirm": visit.form.get("confirm", ""), "compared": comparison}
            )
        case LoadTask.CANCEL:
            await verbs.ask(visit, api.post_cancel)
        case LoadTask.STOP:
            document = await verbs.show(visit, api.get_load)
            if document["bulk"] is None:
                raise Conflict("the load is not being applied; cancel it")
            await verbs.ask(visit, bulk.post_cancel, path_params={"bulk_id": document["bulk"]})
