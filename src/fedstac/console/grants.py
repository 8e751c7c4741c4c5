"""The tab of grants: who may have the files of controlled datasets, giving them and taking them back.

A grant is suspended while its dataset is retracted, under quarantine or marked. Nobody does that to a grant itself.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any
from urllib.parse import urlencode
from uuid import UUID

from starlette.responses import Response

from fedstac.api.deletions import manager
from fedstac.api.grants import grants as api
from fedstac.console import pages, verbs
from fedstac.console.pages import ConsolePage, PageQuery
from fedstac.console.visits import Visit
from fedstac.domain.errors import BadRequest, MissingPermission, Problem
from fedstac.domain.grants import GrantScope
from fedstac.domain.policy import Action
from fedstac.workers import granting

FOLDER = "/grants"
STATES = (("open", "open"), ("closed", "closed"), ("all", "any"))
SCOPES = (
    (GrantScope.DATASET, "one dataset: CMIP6/its id"),
    (GrantScope.LINEAGE, "all versions: CMIP6/the id without its version"),
    (GrantScope.PROJECT, "a whole project: CMIP6"),
)  # fmt: skip
TARGETS = tuple(scope.value for scope in GrantScope)
QUERY = ("subject", *TARGETS, "state", "after", "limit")  # that the list takes
FIELDS = ("subject", "issuer", "scope", "target", "from", "until")  # of the form for a new one
SEEN_AT_ONCE = 1000


async def get_list(visit: Visit) -> Response:
    """Show the grants that the visitor may see: their own, those that they gave, those of projects by a right."""
    query = PageQuery.of(visit)
    document = await verbs.show(visit, api.get_grants, query={name: query.get(name) for name in QUERY})
    content = {
        "query": query, "states": STATES, "may_give": _may_give(visit), "next_page": verbs.next_of(document),
        "suspended": await _suspended(visit, document["grants"]), "is_of_all": _is_of_all(query),
        "outcome": query.get("outcome"),
    }  # fmt: skip
    return pages.show(visit, ConsolePage("grants.html", document, content, live="grants_live.html"))


def _may_give(visit: Visit) -> bool:
    """Return whether the visitor could give some grant. Which ones, the verb says."""
    try:
        manager.caller_of(visit.call).require_somewhere((Action.GRANT,), granting.EVERYTHING)
    except MissingPermission:
        return False
    return True


def _is_of_all(query: PageQuery) -> bool:
    """Return whether the list is of all open grants of somebody, or of something, which can be withdrawn together."""
    return query.get("state") in ("", "open") and any(query.get(name) for name in ("subject", *TARGETS))


async def _suspended(visit: Visit, documents: Sequence[dict[str, Any]]) -> set[str]:
    async with visit.call.node.pool.acquire() as conn:
        ids = [UUID(each["id"]) for each in documents]
        return {str(id) for id in await granting.suspended(conn, manager.caller_of(visit.call), ids)}


async def get_one(visit: Visit) -> Response:
    """Show one grant."""
    return await _page(visit)


async def _page(visit: Visit, *, reason: str = "", problem: Problem | None = None) -> Response:
    document = await verbs.show(visit, api.get_grant)
    content = {
        "suspended": await _suspended(visit, [document]), "may_give": _may_give(visit), "reason": reason,
        "problem": problem, "outcome": PageQuery.of(visit).get("outcome"),
    }  # fmt: skip
    status = problem.status if problem else 200
    return pages.show(visit, ConsolePage("grant.html", document, content, status=status))


async def post_one(visit: Visit) -> Response:
    """Withdraw a grant, with a reason."""
    reason = visit.form.get("reason", "").strip()
    try:
        await verbs.ask(visit, api.delete_grant, query={"reason": _reason_of(reason)})
    except Problem as problem:
        return await pages.refuse_with(
            visit, problem, await _page(visit, reason=reason, problem=problem.without_trace())
        )
    id = visit.call.path_params["grant"]
    return pages.redirect(f"{visit.place.root}{FOLDER}/{id}?outcome=withdrawn")


def _reason_of(reason: str) -> str:
    """Return the reason of a form. BadRequest without one."""
    if not reason:
        raise BadRequest("say why the grant is withdrawn; who has it reads that")
    return reason


# --- giving ---


async def get_form(visit: Visit) -> Response:
    """Show the form for a new grant."""
    return _form_page(visit, {name: PageQuery.of(visit).get(name) for name in FIELDS})


def _form_page(visit: Visit, fields: dict[str, str], problem: Problem | None = None) -> Response:
    manager.caller_of(visit.call).require_somewhere((Action.GRANT,), granting.EVERYTHING)
    content = {"fields": fields, "scopes": SCOPES, "problem": problem}
    status = problem.status if problem else 200
    return pages.show(visit, ConsolePage("grant_form.html", {}, content, status=status))


async def post_form(visit: Visit) -> Response:
    """Give a grant."""
    fields = {name: visit.form.get(name, "").strip() for name in FIELDS}
    try:
        answer = await verbs.ask(visit, api.post_grant, body=_wish(fields))
    except Problem as problem:
        return await pages.refuse_with(visit, problem, _form_page(visit, fields, problem.without_trace()))
    outcome = "given" if answer.status == 201 else "present"
    return pages.redirect(f"{visit.place.root}{FOLDER}/{answer.document['id']}?outcome={outcome}")


def _wish(fields: dict[str, str]) -> dict[str, Any]:
    """Return the body that asks the API for the grant of a form."""
    if fields["scope"] not in TARGETS:
        raise BadRequest("choose what the grant is for")
    issuer, subject = fields["issuer"], fields["subject"]
    return {
        "subject": {"iss": issuer, "sub": subject} if issuer else subject,
        fields["scope"]: fields["target"],
        "valid_from": _midnight(fields["from"]), "valid_until": _midnight(fields["until"]),
    }  # fmt: skip


def _midnight(day: str) -> str | None:
    """Return the beginning of a day in UTC; None for no day. What is no day is left for the API to refuse."""
    return f"{day}T00:00:00Z" if day else None


# --- withdrawing many ---


async def get_withdrawal(visit: Visit) -> Response:
    """Show which grants of somebody, or of something, would be withdrawn together."""
    return await _withdrawal_page(visit, _filter_of(visit.call.query_params))


def _filter_of(values: Any) -> dict[str, str]:
    """Return the filter that chooses grants, without what is empty."""
    filter = {name: str(values.get(name, "")).strip() for name in ("subject", *TARGETS)}
    return {name: value for name, value in filter.items() if value}


async def _withdrawal_page(
    visit: Visit, filter: dict[str, str], *, reason: str = "", problem: Problem | None = None
) -> Response:  # fmt: skip
    document = await verbs.show(visit, api.get_grants, query={**filter, "limit": str(SEEN_AT_ONCE)})
    content = {
        "filter": filter, "count": len(document["grants"]), "has_more": bool(verbs.next_of(document)), "reason": reason,
        "problem": problem, "names": {"subject": "Person", **{scope: scope.capitalize() for scope in TARGETS}},
    }  # fmt: skip
    status = problem.status if problem else 200
    return pages.show(visit, ConsolePage("grants_withdrawal.html", document, content, status=status))


async def post_withdrawal(visit: Visit) -> Response:
    """Withdraw all open grants of somebody, or of something, with a reason."""
    form = visit.form
    filter, reason = _filter_of(form), form.get("reason", "").strip()
    try:
        if form.get("confirmation", "").strip() != "withdraw":
            raise BadRequest("nothing was withdrawn: type withdraw to confirm it")
        await verbs.ask(visit, api.delete_grants, query={**filter, "reason": _reason_of(reason)})
    except Problem as problem:
        return await pages.refuse_with(
            visit, problem, await _withdrawal_page(visit, filter, reason=reason, problem=problem.without_trace())
        )
    query = urlencode({**filter, "state": "closed", "outcome": "withdrawn"})
    return pages.redirect(f"{visit.place.root}{FOLDER}?{query}")
