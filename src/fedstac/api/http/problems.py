"""Refusals as clients see them: RFC 9457 problem documents.

The members `code` and `description` are for STAC clients, `status_code` for those of ESGF; they repeat the others.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from http import HTTPStatus
from types import MappingProxyType

import orjson
import structlog
from fastapi.exceptions import RequestValidationError, ResponseValidationError
from stac_fastapi.types import errors as stac_errors
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Match
from starlette.types import Scope

from fedstac.api.call import services_of
from fedstac.api.http import links
from fedstac.domain import errors
from fedstac.domain.errors import Finding, Problem
from fedstac.runtime.causes import Cause, blames_nobody, cause_of, statement_of
from fedstac.runtime.outages import reason_of

MEDIA_TYPE = "application/problem+json"
log = structlog.get_logger()
_NOT_IN_DESCRIPTION = re.compile(r"[^ !#-\[\]-~]")  # RFC 6750, 3

_BY_STATUS: Mapping[int, type[Problem]] = {
    problem.status: problem
    for problem in (
        errors.BadRequest,
        errors.Unauthenticated,
        errors.MissingPermission,
        errors.NotFound,
        errors.MethodNotAllowed,
        errors.BodyTimeout,
        errors.Conflict,
        errors.BodyTooLarge,
        errors.UnsupportedMediaType,
        errors.TooManyRequests,
        errors.HeadersTooLarge,
        errors.Unavailable,
    )
}


def body(problem: Problem, *, base_url: str, instance: str) -> bytes:
    """Return the document of a problem. Its type is a URL that this server answers with the explanation."""
    return _document(
        kind=f"{base_url}/problems/{problem.name}",
        code=problem.name,
        title=problem.title,
        status=problem.status,
        detail=problem.detail,
        instance=instance,
        findings=problem.findings,
        members=_members(problem, base_url),
    )


def explanation(problem: type[Problem]) -> str:
    """Return the sentence that explains a type of problem."""
    return " ".join((problem.__doc__ or "").split())


def _members(problem: Problem, base_url: str) -> Mapping[str, object]:
    """Return the members that a problem has beside those that all have."""
    if isinstance(problem, errors.Misdirected) and problem.home:
        return {"home": {"node": problem.node, "href": problem.home}}
    if isinstance(problem, errors.MarkedForDeletion) and problem.deletion is not None:
        return {"deletion": links.deletion_url(base_url, problem.deletion)}
    if isinstance(problem, errors.CollectionClosing) and problem.cascade is not None:
        return {"cascade": f"{base_url}/collections/{problem.collection}/cascade"}
    if isinstance(problem, errors.BulkChanged):
        return {"difference": {"shown": problem.shown_count, "now": problem.count, "changed": problem.changed_count}}
    if isinstance(problem, errors.LoadNotConfirmed):
        load = {"load": f"{base_url}/loads/{problem.load}"} if problem.load is not None else {}
        return {"cleared": problem.cleared, **load}
    if isinstance(problem, errors.CursorGone) and problem.earliest:
        return {"earliest": problem.earliest, "snapshot": f"{base_url}/snapshot"}
    return {}


def response(problem: Problem, scope: Scope, *, headers: Mapping[str, str] | None = None) -> Response:
    """Return the answer that refuses a request. The guard closes the connection after a body that is not read."""
    fields = dict(headers or {})
    if problem.retry_after is not None:
        fields["retry-after"] = str(problem.retry_after)
    if problem.status == 401:
        fields.setdefault("www-authenticate", _challenge(problem, scope))
    content = body(problem, base_url=base_url(scope), instance=_instance(scope))
    return _response(content, problem.status, fields)


def _challenge(problem: Problem, scope: Scope) -> str:
    """Return how to come back with a token (RFC 6750, section 3; RFC 9728, section 5.1).

    No error is named to a caller who sends no token.
    """
    metadata = f'resource_metadata="{base_url(scope)}/.well-known/oauth-protected-resource"'
    authorization = next((value for name, value in scope["headers"] if name == b"authorization"), b"")
    if authorization[:7].lower() != b"bearer ":
        return f'Bearer realm="fedstac", {metadata}'
    description = _NOT_IN_DESCRIPTION.sub("'", problem.detail)
    return f'Bearer realm="fedstac", error="invalid_token", error_description="{description}", {metadata}'


def base_url(scope: Scope) -> str:
    """Return where this server is for its clients, without a slash at the end."""
    return str(Request(scope).base_url).rstrip("/")


def install(app: Starlette) -> None:
    """Let everything that the application refuses, or fails at, be answered as a problem.

    After stac-fastapi's application is built: its own handlers, some of which show internal texts, are replaced.
    """
    app.add_exception_handler(Problem, _refuse)
    app.add_exception_handler(HTTPException, _refuse_with_status)
    app.add_exception_handler(RequestValidationError, _refuse_parameters)
    for kind, problem in _OF_STAC_FASTAPI.items():
        app.add_exception_handler(kind, _refuse_as(problem))
    for kind in (stac_errors.DatabaseError, ResponseValidationError):
        app.add_exception_handler(kind, _fail)
    app.add_exception_handler(Exception, _answer_failure)


def _response(content: bytes, status: int, headers: Mapping[str, str]) -> Response:
    fields = {"cache-control": "no-store", **headers}
    return Response(content, status_code=status, headers=fields, media_type=MEDIA_TYPE)


def _document(
    *,
    kind: str,
    code: str,
    title: str,
    status: int,
    detail: str,
    instance: str,
    findings: Sequence[Finding] = (),
    members: Mapping[str, object] = MappingProxyType({}),
) -> bytes:
    document = {
        "type": kind,
        "title": title,
        "status": status,
        "status_code": status,
        "code": code,
        "description": detail,
        "detail": detail,
        "instance": instance,
        "errors": [finding.as_json() | {"detail": finding.message} for finding in findings],
        **members,
    }
    try:
        return orjson.dumps(document)
    except TypeError:  # a lone surrogate in a text: a refusal must not fail over it
        return json.dumps(document).encode()


def _instance(scope: Scope) -> str:
    """Return the path as it was sent, cut: it may be what is wrong."""
    raw: bytes = scope.get("raw_path") or scope["path"].encode()
    return raw[:1024].decode("ascii", "replace")


# --- handlers ---


async def _refuse(request: Request, error: Exception) -> Response:
    assert isinstance(error, Problem)
    return response(error, request.scope)


async def _refuse_with_status(request: Request, error: Exception) -> Response:
    """Answer an HTTPException of Starlette or FastAPI by its status.

    The type is about:blank where no class of ours has that status.
    """
    assert isinstance(error, HTTPException)
    status, headers = error.status_code, error.headers or {}
    if status < 400:
        return Response(status_code=status, headers=headers)
    if error.detail == HTTPStatus(status).phrase and status in (404, 405):  # the router's own, which say nothing
        return _unrouted(request)
    if problem := _BY_STATUS.get(status):
        detail = str(error.detail) if status < 500 else problem.title
        return response(problem(detail), request.scope, headers=headers)
    if status == 500:
        return await _answer_failure(request, error)
    phrase = HTTPStatus(status).phrase
    content = _document(
        kind="about:blank",
        code=phrase.lower().replace(" ", "-"),
        title=phrase,
        status=status,
        detail=str(error.detail) if status < 500 else phrase,
        instance=_instance(request.scope),
    )
    return _response(content, status, headers)


def _unrouted(request: Request) -> Response:
    """Answer what no route takes: 404, or 405 with the methods of all routes of that path (RFC 9110, 15.5.6)."""
    matching = (route for route in request.app.router.routes if route.matches(request.scope)[0] is not Match.NONE)
    methods = ", ".join(sorted({method for route in matching for method in getattr(route, "methods", None) or ()}))
    path = _instance(request.scope)
    if not methods:
        return response(errors.NotFound(f"there is nothing at {path}; GET / has links to what there is"), request.scope)
    problem = errors.MethodNotAllowed(f"{path} does not take {request.method}; it takes {methods}")
    return response(problem, request.scope, headers={"allow": methods})


async def _refuse_parameters(request: Request, error: Exception) -> Response:
    """Answer with what FastAPI finds in parameters and bodies, without repeating the values."""
    assert isinstance(error, RequestValidationError)
    findings = []
    for fault in error.errors():
        place, *path = (str(part) for part in fault["loc"])
        pointer = "".join("/" + part.replace("~", "~0").replace("/", "~1") for part in path) if place == "body" else ""
        prefix = "" if place == "body" else f"{place} parameter {'.'.join(path)}: "
        findings.append(Finding(str(fault["type"]).replace("_", "-"), pointer, f"{prefix}{fault['msg']}"))
    detail = "; ".join(finding.message for finding in findings)
    return response(errors.BadRequest(detail, findings=findings), request.scope)


_OF_STAC_FASTAPI: Mapping[type[Exception], type[Problem]] = {
    stac_errors.NotFoundError: errors.NotFound,
    stac_errors.ConflictError: errors.Conflict,
    stac_errors.ForeignKeyError: errors.CollectionDoesNotExist,
    stac_errors.InvalidQueryParameter: errors.BadRequest,
}


def _refuse_as(problem: type[Problem]):  # type: ignore[no-untyped-def]
    async def handler(request: Request, error: Exception) -> Response:
        return response(problem(str(error)), request.scope)

    return handler


async def _fail(request: Request, error: Exception) -> Response:
    """Raise a fault of ours again, whatever its class: the outermost handler answers it, the guard logs it once."""
    raise error


async def _answer_failure(request: Request, error: Exception) -> Response:
    return response(failure(error), request.scope)


def report(app: Starlette, error: Exception, scope: Scope) -> None:
    """Log a request that failed by our fault. What all requests meet at once is logged when it begins and ends.

    A page that began, and then had to wait too long for a connection or its time, is cut off; that is no fault.
    """
    if isinstance(error.__cause__, errors.Problem):
        log.warning("an answer was cut off", method=scope["method"], path=scope["path"], reason=str(error.__cause__))
        return
    if blames_nobody(error) or cause_of(error) is Cause.SCHEMA:
        services_of(app).node.parts.fails("api", error)
    else:
        log_failure(error, scope)


def log_failure(error: Exception, scope: Scope) -> None:
    """Log a request that failed by a fault of ours, with the traceback and the statement of the database."""
    log.error(
        "request failed", method=scope["method"], path=scope["path"], reason=reason_of(error),
        statement=statement_of(error), exc_info=error,
    )  # fmt: skip


def failure(error: Exception) -> errors.Problem:
    """Return what a caller reads of a fault of ours: to come again, if that may help."""
    match cause_of(error):
        case Cause.AWAY | Cause.CONFLICT:
            return errors.Unavailable("the database is away or overloaded just now; try again", retry_after=2)
        case Cause.OPERATORS | Cause.SCHEMA:
            detail = "the server lacks something that its operators have to see to; it is logged. Try again later"
            return errors.Unavailable(detail, retry_after=30)
    return errors.InternalError(
        "the server failed; the fault is logged under this answer's x-request-id. Try again later, and report it"
        " with that id if it stays"
    )
