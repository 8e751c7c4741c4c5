"""The tab of deletions: the list of what is marked, one deletion with its history, and what one can do with them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from enum import StrEnum
from typing import Any
from urllib.parse import parse_qs, urlsplit
from uuid import UUID

from starlette.datastructures import Headers, QueryParams
from starlette.responses import Response

from fedstac.api.call import Call
from fedstac.api.deletions import manager
from fedstac.api.writing import answers, changes
from fedstac.api.writing.changes import DatasetAction
from fedstac.api.writing.options import options_of
from fedstac.console import pages, verbs
from fedstac.console.pages import ConsolePage, PageQuery, TaskResult
from fedstac.console.visits import Visit
from fedstac.db import collections
from fedstac.domain.deletion import DeletionState
from fedstac.domain.errors import BadRequest, Finding, Problem
from fedstac.workers import deleting

MOST_AT_ONCE = 50
MOST_NAMES = 200  # projects that the filter offers
ANY = "any"
FOLDER = "/deletions"
ORDERS = (
    ("-marked_at", "newest mark first"), ("marked_at", "oldest mark first"), ("grace_until", "end of grace"),
    ("dataset", "dataset"),
)  # fmt: skip
STATES = (*((state.value, state.value) for state in DeletionState), (ANY, "any"))
STANDINGS = (("", "any"), ("waiting", "waiting"), ("ready", "ready"), ("late", "late"), ("failed", "failed"))


class DeletionTask(StrEnum):
    """What one can do with deletions."""

    WAIVE = "waive"
    REMIND = "remind"
    UNMARK = "unmark"
    DELETE = "delete"


# --- looking ---


async def get_list(visit: Visit) -> Response:
    """Show the datasets that are marked for deletion, or were."""
    query = PageQuery.of(visit)
    document = await manager.list_document(_without_empty_fields(visit.call))
    async with visit.call.node.pool.acquire() as conn:
        projects = (await collections.names(conn))[:MOST_NAMES]
    following = [parse_qs(urlsplit(link["href"]).query) for link in document["links"] if link["rel"] == "next"]
    content = {
        "query": query, "projects": projects, "orders": ORDERS, "states": STATES, "standings": STANDINGS,
        "state": query.get("state") or DeletionState.OPEN.value,
        "next_page": following[0]["after"][0] if following else "",
    }  # fmt: skip
    return pages.show(visit, ConsolePage("deletions.html", document, content, live="deletions_live.html"))


def _without_empty_fields(call: Call) -> Call:
    """Return the call with the query as the API takes it: fields of the form that are empty choose nothing."""
    parameters = {name: value.strip() for name, value in call.query_params.items() if value.strip()}
    parameters.setdefault("state", DeletionState.OPEN.value)
    if parameters["state"] == ANY:
        del parameters["state"]
    return replace(call, query_params=QueryParams(parameters))


async def get_one(visit: Visit) -> Response:
    """Show one deletion: what is missing, who has done their part, and what happened."""
    id = manager.deletion_id(visit.call.path_params["deletion"])
    [document] = await _documents(visit, [id])
    content = {"outcome": PageQuery.of(visit).get("outcome")}
    return pages.show(visit, ConsolePage("deletion.html", document, content, live="deletion_live.html"))


async def _documents(visit: Visit, ids: Sequence[UUID]) -> list[dict[str, Any]]:
    """Return deletions as the API shows them. NotFound where the caller sees one of them not."""
    caller = manager.caller_of(visit.call)
    async with visit.call.node.pool.acquire() as conn:
        return [deleting.document_for(await deleting.show(conn, caller, id), caller) for id in ids]


# --- doing ---


async def get_task(visit: Visit) -> Response:
    """Show what would be done with the deletions that were chosen, and ask for what it needs."""
    parameters = visit.call.query_params
    task, ids = pages.chosen_task(DeletionTask, parameters.get("do", "")), _ids(parameters.getlist("id"))
    return await _task_page(visit, task, ids, name=parameters.get("name", ""))


async def _task_page(
    visit: Visit,
    task: DeletionTask,
    ids: Sequence[UUID],
    *,
    name: str,
    reason: str = "",
    problem: Problem | None = None,
) -> Response:
    documents = await _documents(visit, ids)
    names = sorted({
        part["name"] for each in documents for part in each["dependencies"] if part["state"] in ("pending", "failed")
    })  # fmt: skip
    content = {
        "task": task, "names": names, "name": name, "reason": reason, "problem": problem,
        "expected": _expected(documents), "action": f"{visit.place.root}{FOLDER}/act",
    }  # fmt: skip
    status = problem.status if problem else 200
    return pages.show(visit, ConsolePage("task.html", {"deletions": documents}, content, status=status))


def _expected(documents: Sequence[dict[str, Any]]) -> str:
    """Return what somebody has to type before datasets are deleted."""
    return str(documents[0]["dataset"]) if len(documents) == 1 else f"delete {len(documents)}"


async def post_task(visit: Visit) -> Response:
    """Do something with the deletions that were chosen, and show what became of each."""
    form = visit.form
    task, ids = pages.chosen_task(DeletionTask, form.get("do", "")), _ids(form.getlist("id"))
    name, reason = form.get("name", ""), form.get("reason", "").strip()
    documents = await _documents(visit, ids)
    if task is DeletionTask.DELETE and form.get("confirmation", "").strip() != _expected(documents):
        problem = BadRequest(f"nothing was deleted: type {_expected(documents)} to confirm it")
        return await _task_page(visit, task, ids, name=name, problem=problem)
    deadline = verbs.deadline()
    results = [
        await _do(visit, task, id, document["dataset"], name=name, reason=reason, deadline=deadline)
        for id, document in zip(ids, documents, strict=True)
    ]
    if len(results) > 1:
        return pages.show_results(visit, task, results, folder=FOLDER, list_name="All deletions")
    if results[0].problem is not None:
        return await _task_page(visit, task, ids, name=name, reason=reason, problem=results[0].problem)
    outcome = "queued" if results[0].is_queued else task.value
    return pages.redirect(f"{visit.place.root}{FOLDER}/{ids[0]}?outcome={outcome}")


async def _do(
    visit: Visit, task: DeletionTask, id: UUID, dataset: str, *, name: str, reason: str, deadline: float
) -> TaskResult:  # fmt: skip
    call, about = visit.call, {"id": str(id), "dataset": dataset}
    caller = manager.caller_of(call)
    is_queued, call.progress.is_accepted = False, False
    try:
        match task:
            case DeletionTask.WAIVE:
                async with call.node.pool.acquire() as conn:
                    await deleting.waive(conn, caller, id, name=name, reason=reason)
            case DeletionTask.REMIND:
                async with call.node.pool.acquire() as conn:
                    await deleting.remind(conn, caller, id, [name] if name else None)
            case DeletionTask.UNMARK | DeletionTask.DELETE:
                is_queued = await _change(call, task, id, deadline)
    except Problem as problem:
        await pages.note_refusal(visit, problem)
        return TaskResult(about, problem.without_trace())
    return TaskResult(about, is_queued=is_queued)


async def _change(call: Call, task: DeletionTask, id: UUID, deadline: float) -> bool:
    """Change the dataset of a deletion as the API does. Return whether that still waits for its turn at a moment."""
    async with call.node.pool.acquire() as conn:
        entry = (await deleting.show(conn, manager.caller_of(call), id)).deletion
    waiting = replace(call, headers=Headers({"prefer": verbs.wait_until(deadline)["prefer"]}))
    body = {"expected": None, "deletion": str(id)}
    change = DatasetAction(entry.collection, entry.dataset, task.value, body)
    outcome = await changes.accept(call.services, call.caller, change, options_of(waiting))
    return (await answers.answer(waiting, outcome)).status_code == 202


def _ids(texts: Sequence[str]) -> list[UUID]:
    if not 0 < len(texts) <= MOST_AT_ONCE:
        message = f"choose 1 to {MOST_AT_ONCE} deletions in the list, then what to do with them"
        raise BadRequest(message, findings=[Finding("console", "", f"{len(texts)} were chosen")])
    return [manager.deletion_id(text) for text in dict.fromkeys(texts)]
