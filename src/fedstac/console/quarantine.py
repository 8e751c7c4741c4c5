"""The tab of quarantine: the cases, putting a dataset under quarantine, and what is decided: release it, or mark it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from urllib.parse import urlencode

from starlette.responses import Response

from fedstac.api.deletions import manager
from fedstac.api.writing import changes
from fedstac.console import pages, verbs
from fedstac.console.pages import ConsolePage, PageQuery, TaskResult
from fedstac.console.visits import Visit
from fedstac.db import collections
from fedstac.domain.errors import BadRequest, Problem
from fedstac.domain.policy import Action
from fedstac.workers.deleting import EVERYTHING

FOLDER = "/quarantine"
MOST_AT_ONCE = 50
MOST_NAMES = 200  # projects that the form offers
OPEN, CLOSED, ANY = "open", "closed", "any"
STATES = ((OPEN, "open"), (CLOSED, "closed"), (ANY, "any"))
IS_OPEN = {OPEN: "true", CLOSED: "false", ANY: ""}
FIELDS = ("collection", "dataset", "reason", "case", "contact", "links")  # of the form for a new case
TEXTS = ("reason", "case", "contact")


class CaseTask(StrEnum):
    """How a case ends."""

    RELEASE = "release"
    MARK = "mark"


@dataclass(frozen=True, slots=True)
class CaseDataset:
    """A dataset that cases are of, as forms name it: CMIP6/its id."""

    collection: str
    id: str

    def __str__(self) -> str:
        return f"{self.collection}/{self.id}"

    @property
    def path_params(self) -> dict[str, str]:
        """Return its names in the paths of the API."""
        return {"collection_id": self.collection, "item_id": self.id}


async def get_list(visit: Visit) -> Response:
    """Show the cases of quarantine: of what is under quarantine now, or those of before."""
    query = PageQuery.of(visit)
    state = query.get("state") or OPEN
    if state not in IS_OPEN:
        raise BadRequest(f"state={state[:20]!r} is not one of {', '.join(IS_OPEN)}")
    asked_for = {"open": IS_OPEN[state], **{name: query.get(name) for name in ("q", "after", "limit")}}
    document = await verbs.show(visit, manager.get_quarantines, query=asked_for)
    content = {
        "query": query, "state": state, "states": STATES, "next_page": verbs.next_of(document),
        "outcome": query.get("outcome"),
    }  # fmt: skip
    return pages.show(visit, ConsolePage("quarantine.html", document, content, live="quarantine_live.html"))


# --- a new case ---


async def get_form(visit: Visit) -> Response:
    """Show the form that puts a dataset under quarantine."""
    return await _form_page(visit, {name: PageQuery.of(visit).get(name) for name in FIELDS})


async def _form_page(visit: Visit, fields: dict[str, str], problem: Problem | None = None) -> Response:
    manager.caller_of(visit.call).require_somewhere((Action.QUARANTINE,), EVERYTHING)
    async with visit.call.node.pool.acquire() as conn:
        projects = (await collections.names(conn))[:MOST_NAMES]
    content = {"fields": fields, "projects": projects, "problem": problem}
    status = problem.status if problem else 200
    return pages.show(visit, ConsolePage("quarantine_form.html", {}, content, status=status))


async def post_form(visit: Visit) -> Response:
    """Put a dataset under quarantine."""
    fields = {name: visit.form.get(name, "").strip() for name in FIELDS}
    body = {name: fields[name] for name in TEXTS if fields[name]}
    try:
        answer = await verbs.ask(
            visit, changes.post_quarantine, body={**body, "links": fields["links"].split()},
            headers=verbs.wait_until(verbs.deadline()),
            path_params=CaseDataset(fields["collection"], fields["dataset"]).path_params,
        )  # fmt: skip
    except Problem as problem:
        return await pages.refuse_with(visit, problem, await _form_page(visit, fields, problem.without_trace()))
    return _to_list(visit, "queued" if answer.is_queued else "quarantine")


def _to_list(visit: Visit, outcome: str) -> Response:
    return pages.redirect(f"{visit.place.root}{FOLDER}?{urlencode({'outcome': outcome})}")


# --- the end of cases ---


async def get_task(visit: Visit) -> Response:
    """Show what would be done with the datasets that were chosen, and ask for what it needs."""
    parameters = visit.call.query_params
    return _task_page(
        visit, pages.chosen_task(CaseTask, parameters.get("do", "")), _datasets(parameters.getlist("dataset"))
    )


def _task_page(
    visit: Visit, task: CaseTask, datasets: Sequence[CaseDataset], *, text: str = "", problem: Problem | None = None
) -> Response:
    document = {"datasets": [{"collection": each.collection, "id": each.id} for each in datasets]}
    content = {"task": task, "datasets": datasets, "text": text, "problem": problem}
    status = problem.status if problem else 200
    return pages.show(visit, ConsolePage("quarantine_task.html", document, content, status=status))


async def post_task(visit: Visit) -> Response:
    """Release the datasets that were chosen, or mark them for deletion, and show what became of each."""
    form = visit.form
    task, datasets = pages.chosen_task(CaseTask, form.get("do", "")), _datasets(form.getlist("dataset"))
    text = form.get("text", "").strip()
    deadline = verbs.deadline()
    results = [await _do(visit, task, each, text, deadline=deadline) for each in datasets]
    if len(results) > 1:
        return pages.show_results(visit, task, results, folder=FOLDER, list_name="All cases")
    if results[0].problem is not None:
        return _task_page(visit, task, datasets, text=text, problem=results[0].problem)
    return _to_list(visit, "queued" if results[0].is_queued else task.value)


async def _do(visit: Visit, task: CaseTask, dataset: CaseDataset, text: str, *, deadline: float) -> TaskResult:
    about = {"collection": dataset.collection, "dataset": dataset.id}
    visit.call.progress.is_accepted = False  # each is a change of its own
    try:
        match task:
            case CaseTask.RELEASE:
                answer = await verbs.ask(
                    visit, changes.post_release, body={"decision": text or None},
                    headers=verbs.wait_until(deadline), path_params=dataset.path_params,
                )  # fmt: skip
            case CaseTask.MARK:
                answer = await verbs.ask(
                    visit, changes.delete_item, query={"reason": text},
                    headers=verbs.wait_until(deadline), path_params=dataset.path_params,
                )  # fmt: skip
    except Problem as problem:
        await pages.note_refusal(visit, problem)
        return TaskResult(about, problem.without_trace())
    return TaskResult(about, is_queued=answer.is_queued)


def _datasets(texts: Sequence[str]) -> list[CaseDataset]:
    if not 0 < len(texts) <= MOST_AT_ONCE:
        raise BadRequest(f"choose 1 to {MOST_AT_ONCE} cases in the list, then what to do with them")
    names = [text.partition("/") for text in dict.fromkeys(texts)]
    return [CaseDataset(collection, id) for collection, _, id in names]
