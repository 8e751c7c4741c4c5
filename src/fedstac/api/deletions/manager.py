"""The deletion manager over HTTP: what waits to be deleted and for whom, waivers, reminders, rules, cases."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, Final, TypeVar
from uuid import UUID

from starlette.responses import Response

from fedstac.api.call import Call
from fedstac.api.http import links, no_store, numbers
from fedstac.api.people import identity
from fedstac.api.writing import answers, changes
from fedstac.api.writing.changes import DatasetAction
from fedstac.api.writing.options import LONGEST_USER_AGENT, is_dry_run, is_wanted, options_of_change
from fedstac.db import deletion_lists, deletions
from fedstac.db.deletion_lists import DeletionFilter, ListOrder, OpenStand
from fedstac.domain import deletion, strict_json
from fedstac.domain.deletion import DeletionState
from fedstac.domain.errors import BadRequest, NotFound, PreconditionRequired
from fedstac.domain.policy import Action, Resource
from fedstac.workers import deleting
from fedstac.workers.deleting import Caller
from fedstac.workers.deletions import DeleteRequest, Submitter, ask_to_delete

DEFAULT_PAGE: Final = 50
MOST_NAMES: Final = 50
MOST_REQUESTS: Final = 20  # that one run by hand makes
LONGEST_FILTER: Final = 200
VERSION_TAG: Final = re.compile(r'"([0-9]{1,9})"')
Choice = TypeVar("Choice", DeletionState, OpenStand, ListOrder)


def caller_of(call: Call) -> Caller:
    """Return who calls, as the verbs take it."""
    return Caller(call.caller, call.node.policy, call.request_id)


def _uuid(text: str, thing: str) -> UUID:
    try:
        return UUID(text)
    except ValueError:
        raise NotFound(f"there is no {thing} {text[:40]!r}; {deleting.SEE_LIST}") from None


def _choice(call: Call, name: str, choices: type[Choice]) -> Choice | None:
    text = call.query_params.get(name)
    if text is None:
        return None
    try:
        return choices(text)
    except ValueError:
        raise BadRequest(f"{name}={text[:20]!r} is not one of {', '.join(choices)}") from None


def _text(call: Call, name: str) -> str | None:
    text = call.query_params.get(name)
    if text is not None and len(text) > LONGEST_FILTER:
        raise BadRequest(f"{name} has over {LONGEST_FILTER} characters, which are the most")
    return text or None


def _next_link(call: Call, after: UUID | None) -> list[dict[str, str]]:
    if after is None:
        return []
    return [links.next_page(call.base_url + call.path, {**call.query_params, "after": after})]


# --- deletions ---


def filter_of(call: Call) -> DeletionFilter:
    """Return the filter that the query names. BadRequest where a value is none of those that there are."""
    return DeletionFilter(
        project=_text(call, "project"), state=_choice(call, "state", DeletionState),
        stand=_choice(call, "standing", OpenStand), dependency=_text(call, "dependency"), text=_text(call, "q"),
    )  # fmt: skip


async def get_deletions(call: Call) -> Response:
    """List the datasets that are or were marked for deletion, and for whom each waits.

    Whoever manages deletions sees all of them, others those of the datasets that they may mark; a node sees what it has
    to do itself. `counts` are those of all that the filters choose, but `state` and `standing`.
    """
    return no_store.answer(await list_document(call))


async def list_document(call: Call) -> dict[str, Any]:
    """Return the page of deletions that a query asks for, in JSON. The console shows the same."""
    text = call.query_params.get("sortby", "-marked_at")
    names = [each.value for each in ListOrder]
    name = text[1:] if text[:1] in ("-", "+") else text
    if name not in names:
        raise BadRequest(f"sortby={text[:20]!r} is not one of {', '.join(names)}, or one with - in front of it")
    limit = max(numbers.whole(call.query_params, "limit", default=DEFAULT_PAGE, most=deleting.MOST_PAGE), 1)
    caller = caller_of(call)
    async with call.node.pool.acquire() as conn:
        page = await deleting.list_page(
            conn, caller, filter_of(call), order=ListOrder(name), descending=text.startswith("-"),
            after=links.id_after(call.query_params), limit=limit,
        )  # fmt: skip
    return {
        "deletions": [deleting.document_for(each, caller) for each in page.entries],
        "counts": page.counts,
        "links": _next_link(call, page.next),
    }


async def get_deletion(call: Call) -> Response:
    """Return one deletion: who has done their part, what is missing, and what happened."""
    caller = caller_of(call)
    async with call.node.pool.acquire() as conn:
        view = await deleting.show(conn, caller, _id(call))
    return no_store.answer(deleting.document_for(view, caller))


def deletion_id(text: str) -> UUID:
    """Return the id of a deletion. NotFound where the text is none."""
    return _uuid(text, "deletion")


def _id(call: Call) -> UUID:
    return deletion_id(call.path_params["deletion"])


async def post_waive(call: Call) -> Response:
    """Let a deletion not wait for a dependency: {name, reason}.

    Two different people waive one that owns identifiers.
    """
    caller_of(call).require_somewhere((Action.DELETIONS,), deleting.EVERYTHING)
    body = await call.body.read_object("name", "reason")
    name, reason = body.get("name"), body.get("reason")
    if not isinstance(name, str) or not isinstance(reason, str):
        raise BadRequest('send {"name": "…", "reason": "…"}: the dependency, and why the deletion does not wait for it')
    async with call.node.pool.acquire() as conn:
        view = await deleting.waive(conn, caller_of(call), _id(call), name=name, reason=reason)
    return no_store.answer(deleting.document_for(view, caller_of(call)))


async def post_remind(call: Call) -> Response:
    """Send reminders to dependencies of a deletion that have not done their part: {names}; without names, to all."""
    caller_of(call).require_somewhere((Action.DELETIONS,), deleting.EVERYTHING)
    names = (await call.body.read_object("names")).get("names")
    is_list = isinstance(names, list) and len(names) <= MOST_NAMES and all(isinstance(each, str) for each in names)
    if names is not None and not is_list:
        raise BadRequest(f'send {{"names": ["…"]}}, at most {MOST_NAMES}, or {{}} for all')
    async with call.node.pool.acquire() as conn:
        view = await deleting.remind(conn, caller_of(call), _id(call), names)
    return no_store.answer(deleting.document_for(view, caller_of(call)))


async def post_delete(call: Call) -> Response:
    """Delete the dataset of a deletion now. 409 names what is missing, until everybody has done their part."""
    caller_of(call).require_somewhere((Action.DELETE,), deleting.EVERYTHING)
    async with call.node.pool.acquire() as conn:
        entry = (await deleting.show(conn, caller_of(call), _id(call))).deletion
    options = options_of_change(call)
    body = {"expected": options.expected, "deletion": str(entry.id)}
    change = DatasetAction(entry.collection, entry.dataset, "delete", body)
    return await answers.answer(call, await changes.accept(call.services, call.caller, change, options))


async def post_run(call: Call) -> Response:
    """Delete all that is ready now and that the caller may delete, of a project or of all: {project}.

    The answer names the requests that were made, each of up to 500 datasets, and each dataset once. `more` says that
    there may be further ones: ask again, until you have asked for as many as were ready. With `dry_run=true` it only
    counts, by project.
    """
    caller = caller_of(call)
    caller.require_somewhere((Action.DELETE,), deleting.EVERYTHING)
    project = (await call.body.read_object("project")).get("project")
    if project is not None and not isinstance(project, str):
        raise BadRequest('send {"project": "…"}, or {} for all')
    requests: list[DeleteRequest] = []
    async with call.node.pool.acquire() as conn:
        sight = await deleting.deletable(conn, caller)
        beginning = await deletions.now(conn)
        ready = await deletion_lists.ready_projects(conn, sight, project=project, now=beginning)
        for name in () if is_dry_run(call) else ready:
            while len(requests) < MOST_REQUESTS and (
                request := await ask_to_delete(call.node, conn, _submitter(call), sight, name, asked_before=beginning)
            ):
                requests.append(request)
    return no_store.answer({
        "ready": [{"project": name, "count": count} for name, count in ready.items()],
        "requests": [{"id": str(each.id), "project": each.project, "total": each.total} for each in requests],
        "more": len(requests) == MOST_REQUESTS, "dry_run": is_dry_run(call),
    })  # fmt: skip


def _submitter(call: Call) -> Submitter:
    caller = call.caller
    return Submitter(
        caller.name, tuple(sorted(caller.roles)), identity.packed(caller),
        call.headers.get("user-agent", "")[:LONGEST_USER_AGENT] or None, call.request_id, call.traceparent,
    )  # fmt: skip


# --- rules ---


async def get_all_rules(call: Call) -> Response:
    """List the newest rules of deletion of each project that has some."""
    async with call.node.pool.acquire() as conn:
        return no_store.answer({"rules": [
            deleting.rules_document(each) for each in await deleting.all_rules(conn, caller_of(call))
        ]})  # fmt: skip


async def get_rules(call: Call) -> Response:
    """Return the rules of deletion of a project, the newest or a version, and who changed them when.

    The ETag is the version: If-Match takes it.
    """
    project = call.path_params["project"]
    text = call.query_params.get("version")
    version = numbers.whole(call.query_params, "version", default=0, most=10**9) if text is not None else None
    caller = caller_of(call)
    async with call.node.pool.acquire() as conn:
        own_rules = await deleting.rules(conn, caller, project, version)
        versions = await deleting.versions(conn, caller, project)
    history = [
        {name: value for name, value in deleting.rules_document(each).items() if name != "rules"} for each in versions
    ]
    return no_store.answer(
        {**deleting.rules_document(own_rules), "versions": history}, ETag=f'"{own_rules.rules.version}"'
    )


async def put_rules(call: Call) -> Response:
    """Store other rules of deletion of a project. They hold for marks made from now on.

    If-Match names the version that was read, `"0"` where there is none yet. With `apply_to_open=true` the deletions
    that are open get them too: who has reported keeps their state. With `dry_run=true` nothing is stored, and the
    answer says what would be.
    """
    project, caller = call.path_params["project"], caller_of(call)
    caller.require(Action.DELETIONS, Resource.of_collection(project))
    wish = deletion.read_rules(strict_json.parse(await call.body.read()))
    applies = is_wanted(call, "apply_to_open")
    async with call.node.pool.acquire() as conn:
        if is_dry_run(call):
            affected = await deleting.affected_by(conn, caller, project, wish)
            return no_store.answer({**deleting.affected_document(affected, project), "dry_run": True})
        affected = await deleting.configure(
            conn, caller, project, wish, expected=_expected_version(call.headers), apply_to_open=applies
        )
    return no_store.answer(
        {**deleting.affected_document(affected, project), "dry_run": False}, ETag=f'"{affected.after.version}"'
    )


def _expected_version(headers: Mapping[str, str]) -> int | None:
    text = headers.get("if-match", "").strip()
    if not text:
        raise PreconditionRequired('send If-Match with the ETag that GET gave, "0" where there are no rules yet')
    if text == "*":
        return None
    match = VERSION_TAG.fullmatch(text)
    if match is None:
        raise BadRequest(f'If-Match: {text[:20]} is no version; GET gives it as ETag: "3"')
    return int(match[1])


# --- cases of quarantine ---


async def get_quarantines(call: Call) -> Response:
    """List the cases of quarantine: who, when, why, the correspondence, and the decision."""
    limit = max(numbers.whole(call.query_params, "limit", default=DEFAULT_PAGE, most=deleting.MOST_PAGE), 1)
    is_open = is_wanted(call, "open") if "open" in call.query_params else None
    async with call.node.pool.acquire() as conn:
        cases = await deleting.cases(
            conn,
            caller_of(call),
            is_open=is_open,
            text=_text(call, "q"),
            after=links.id_after(call.query_params),
            limit=limit + 1,
        )
    return no_store.answer({
        "quarantines": [deleting.case_document(each) for each in cases[:limit]],
        "links": _next_link(call, cases[limit - 1].id if len(cases) > limit else None),
    })  # fmt: skip
