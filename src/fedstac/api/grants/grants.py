"""Grants over HTTP: giving, withdrawing, listing, checking, in bulk."""

from __future__ import annotations

from functools import partial
from typing import Any, Final
from uuid import UUID

from starlette.responses import Response

from fedstac.api.call import Call
from fedstac.api.deletions.manager import caller_of
from fedstac.api.http import links, no_store, numbers
from fedstac.api.writing.intake import LINE_TYPES
from fedstac.db.grant_lists import GrantFilter
from fedstac.domain import strict_json
from fedstac.domain.errors import BadRequest, NotFound, Problem
from fedstac.domain.grants import GrantScope, GrantTarget
from fedstac.domain.model import rfc3339
from fedstac.domain.policy import Action
from fedstac.workers import granting

DEFAULT_PAGE, MOST_PAGE = 50, 1000
VISA, NATIVE = "ga4gh", "json"
STANDS: Final = {"open": True, "closed": False, "all": None}
WITHDRAWN_BY_HAND: Final = "withdrawn"


async def post_grant(call: Call) -> Response:
    """Give somebody the files of a dataset, of all versions of a dataset, or of a project, until a time.

    `subject` is a name as in the logs, or the identity `{"iss", "sub"}` of somebody who need not have been here.
    Exactly one of `dataset` (`CMIP6/id`), `lineage` (`CMIP6/id without its version`) and `project` says what for. The
    same grant again is answered with 200. A dataset that is marked for deletion gets none: 409, with the deletion.
    """
    _require_right(call)
    wish = granting.read_wish(await call.body.read_object(*granting.MEMBERS))
    async with call.node.pool.acquire() as conn:
        [outcome] = await granting.give(conn, call.node, caller_of(call), [wish], traceparent=call.traceparent)
    if outcome.problem is not None:
        raise outcome.problem
    assert outcome.grant is not None
    location = f"{call.base_url}/grants/{outcome.grant.id}"
    return no_store.answer(granting.document_of(outcome.grant), 201 if outcome.is_new else 200, Location=location)


async def post_import(call: Call) -> Response:
    """Give many grants at once: a line of NDJSON for each, or `{"grants": […]}`, in one transaction.

    What is there already is not given again, so the same import can be sent again. A line that is refused refuses only
    itself; the answer says which, and why.
    """
    _require_right(call)
    raw = await call.body.read()
    is_lines = call.headers.get("content-type", "").partition(";")[0].strip().lower() in LINE_TYPES
    wishes, refusals = await call.services.threads.run(partial(_read_import, raw, is_lines=is_lines))
    async with call.node.pool.acquire() as conn:
        outcomes = await granting.give(
            conn, call.node, caller_of(call), list(wishes.values()), traceparent=call.traceparent
        )  # fmt: skip
    refusals += [
        _refusal(n, outcome.problem)
        for n, outcome in zip(wishes, outcomes, strict=True) if outcome.problem is not None
    ]  # fmt: skip
    return no_store.answer({
        "given": sum(outcome.is_new for outcome in outcomes),
        "present": sum(outcome.grant is not None and not outcome.is_new for outcome in outcomes),
        "refused": sorted(refusals, key=lambda each: each["line"]),
    })  # fmt: skip


def _read_import(raw: bytes, *, is_lines: bool) -> tuple[dict[int, granting.GrantWish], list[dict[str, Any]]]:
    """Return the grants that an import asks for, by their numbers, and the refusals of the others.

    BadRequest where they are too many, or no JSON.
    """
    wishes: dict[int, granting.GrantWish] = {}
    refusals: list[dict[str, Any]] = []
    for n, value in enumerate(_values(raw, is_lines=is_lines), 1):
        try:
            if isinstance(value, Problem):  # of a line that is no JSON
                raise value
            if not isinstance(value, dict):
                raise BadRequest("a grant is a JSON object")
            wishes[n] = granting.read_wish(value)
        except Problem as problem:
            refusals.append(_refusal(n, problem))
    return wishes, refusals


def _refusal(line: int, problem: Problem) -> dict[str, Any]:
    return {"line": line, "problem": problem.name, "detail": problem.detail}


def _values(raw: bytes, *, is_lines: bool) -> list[Any]:
    """Return the grants of an import as they were sent. BadRequest where they are too many, or no JSON."""
    most = granting.MOST_AT_ONCE
    if is_lines:
        values: list[Any] = strict_json.parse_lines(raw, most=most + 1)
    else:
        body = strict_json.parse(raw)
        if not (isinstance(body, dict) and isinstance(body.get("grants"), list) and len(body) == 1):
            raise BadRequest('send a line of NDJSON for each grant, or {"grants": […]}')
        values = body["grants"]
    if len(values) > most:
        raise BadRequest(f"an import has {most} grants at most; send it in parts")
    return values


async def get_grants(call: Call) -> Response:
    """List grants in the order in which they were given: one's own, those that one gave, those of a project by a right.

    With `format=ga4gh` those that are valid now come as the claims of GA4GH visas, which are not signed.
    """
    subject = _subject(call)
    state, form = call.query_params.get("state", "open"), call.query_params.get("format", NATIVE)
    if state not in STANDS:
        raise BadRequest(f"state={state[:20]!r} is not one of {', '.join(STANDS)}")
    if form not in (NATIVE, VISA):
        raise BadRequest(f"format={form[:20]!r} is not one of {NATIVE}, {VISA}")
    limit = max(numbers.whole(call.query_params, "limit", default=DEFAULT_PAGE, most=MOST_PAGE), 1)
    grant_filter = GrantFilter(subject, _target(call), STANDS[state], is_valid=form == VISA)
    async with call.node.pool.acquire() as conn:
        page = await granting.list_page(
            conn, caller_of(call), grant_filter, after=links.id_after(call.query_params), limit=limit + 1
        )
    page, has_more = page[:limit], len(page) > limit
    following = {**call.query_params, "after": str(page[-1].id)} if has_more else None
    page_links = [links.next_page(call.base_url + call.path, following)] if following else []
    if form == VISA:
        return no_store.answer({"visas": [granting.visa_of(each, call.base_url) for each in page], "links": page_links})
    return no_store.answer({"grants": [granting.document_of(each) for each in page], "links": page_links})


async def get_grant(call: Call) -> Response:
    """Return one grant."""
    async with call.node.pool.acquire() as conn:
        return no_store.answer(granting.document_of(await granting.find(conn, caller_of(call), _id(call))))


async def delete_grant(call: Call) -> Response:
    """Withdraw a grant. The answer is the grant as it is then; again it changes nothing."""
    _require_right(call)
    async with call.node.pool.acquire() as conn:
        grant = await granting.withdraw(conn, call.node, caller_of(call), _id(call), _reason(call))
    return no_store.answer(granting.document_of(grant))


async def delete_grants(call: Call) -> Response:
    """Withdraw all open grants of a dataset, lineage or project, of a subject, or of both. The answer has their count.

    Those of a dataset are the ones that name it: grants of its lineage and of its project stay.
    """
    _require_right(call)
    subject = _subject(call)
    async with call.node.pool.acquire() as conn:
        count = await granting.withdraw_matching(
            conn, call.node, caller_of(call), subject=subject, target=_target(call), reason=_reason(call)
        )
    return no_store.answer({"withdrawn": count})


async def get_check(call: Call) -> Response:
    """Tell until when somebody may have the files of a dataset by a grant; `valid_until` is null where they may not.

    For nodes that serve files, for callers with the right read-grants, and for the subject. Ask with `subject`, or with
    `iss` and `sub` of a token. While a dataset is retracted, under quarantine or marked no grant opens it.
    """
    params = call.query_params
    if "subject" in params and not ("iss" in params or "sub" in params):
        subject = granting.read_subject(params["subject"])
    else:
        subject = granting.read_subject({"iss": params.get("iss"), "sub": params.get("sub")})
    target = granting.read_target(GrantScope.DATASET, params.get("dataset"))
    async with call.node.pool.acquire() as conn:
        valid_until = await granting.check(conn, caller_of(call), subject, target)
    return no_store.answer({"dataset": str(target), "valid_until": rfc3339(valid_until) if valid_until else None})


def _require_right(call: Call) -> None:
    """Refuse a caller who could give no grant at all. Whether they may give this one, the verb says."""
    caller_of(call).require_somewhere((Action.GRANT,), granting.EVERYTHING)


def _subject(call: Call) -> str | None:
    subject = call.query_params.get("subject")
    if subject is not None and not granting.is_name(subject):
        raise BadRequest("subject is a name as in the logs, such as person:…")
    return subject


def _target(call: Call) -> GrantTarget | None:
    """Return what the query names. BadRequest where it names more than one thing."""
    scopes = [scope for scope in GrantScope if scope in call.query_params]
    if len(scopes) > 1:
        raise BadRequest("name one of dataset, lineage and project")
    return granting.read_target(scopes[0], call.query_params[scopes[0]]) if scopes else None


def _reason(call: Call) -> str:
    reason = call.query_params.get("reason", WITHDRAWN_BY_HAND)
    if not 0 < len(reason) <= granting.LONGEST_REASON or "\0" in reason:
        raise BadRequest(f"reason is a text of 1 to {granting.LONGEST_REASON} characters")
    return reason


def _id(call: Call) -> UUID:
    try:
        return UUID(call.path_params["grant"])
    except ValueError:
        raise NotFound(
            f"there is no grant {call.path_params['grant'][:40]!r}; GET /grants lists those that you may see"
        ) from None
