"""Answers to writes: a request to follow, or its result where the caller waits for it."""

from __future__ import annotations

import re
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Final, assert_never
from uuid import UUID

import orjson
from starlette.responses import Response

from fedstac.api.call import Call
from fedstac.api.http import links
from fedstac.api.search import views
from fedstac.api.writing.admission import AcceptedRequest, EarlierRequest
from fedstac.api.writing.requests import request_document
from fedstac.bootstrap import Node
from fedstac.db import requests, search
from fedstac.domain.errors import (
    InternalError,
    MarkedForDeletion,
    Problem,
    RequestDoesNotExist,
    Unavailable,
    problems,
)
from fedstac.domain.model import Outcome
from fedstac.domain.policy import Level
from fedstac.runtime import budget
from fedstac.runtime.wakeup import Backoff

WAIT: Final = re.compile(r"(?:^|[,;\s])wait\s*=\s*(\d+)", re.IGNORECASE)
LONGEST_WAIT: Final = 60.0
RETRY_AFTER: Final = "1"
PROBLEMS: Final = {problem.name: problem for problem in problems()}
ESGF_PUBLISHER: Final = "esgf_publisher/"  # how its User-Agent begins


@dataclass(frozen=True, slots=True)
class DryRun:
    """What a write would lead to, as it is shown. Nothing was stored."""

    result: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class NoChange:
    """A change that changes nothing. It leaves no request behind."""

    collection: str
    id: str


async def answer(call: Call, outcome: AcceptedRequest | EarlierRequest | DryRun | NoChange) -> Response:
    """Return the answer to a write. A caller who waits for a result gets it if it comes in time."""
    match outcome:
        case DryRun(result):
            return Response(orjson.dumps(result), media_type=links.JSON)
        case NoChange():
            return await _unchanged(call, outcome)
        case AcceptedRequest():
            call.body.forget()  # a wait for a result holds no memory
            return await _to_accepted(call, outcome)
        case EarlierRequest(id):
            call.body.forget()
            return await _to_earlier(call, id)
        case _:
            assert_never(outcome)


async def _to_accepted(call: Call, request: AcceptedRequest) -> Response:
    """Return 202 and a request to follow, or its result."""
    call.progress.is_accepted = True  # what is refused from here on is in the audit log already
    seconds = _wait_seconds(call)
    if seconds:
        with suppress(Unavailable):  # the request is stored: its caller can follow it
            summary = await _final(call.node, request.id, seconds)
            if summary.is_final:
                return await _result(call, summary, is_single=request.is_single)
    return _handle(call, request.id, request.total, request.refused_items)


async def _to_earlier(call: Call, request: UUID) -> Response:
    """Return the same handle, or result, as when the request was accepted."""
    seconds = _wait_seconds(call)
    summary = await _final(call.node, request, seconds)
    if summary.is_final and seconds:
        return await _result(call, summary, is_single=summary.total == 1)
    return _handle(call, request, summary.total, summary.counts.get("rejected", 0))


async def _unchanged(call: Call, dataset: NoChange) -> Response:
    """Return the dataset as it is served, or its outcome where it is marked.

    ESGF's publisher (esgcet 5.5.3) takes any answer to a PATCH but 201 and 202 for a failure: it gets 202.
    """
    status = 202 if call.headers.get("user-agent", "").startswith(ESGF_PUBLISHER) else 200
    async with call.node.pool.acquire() as conn:
        row = await search.item(conn, dataset.collection, dataset.id)
    if row is None:
        body = orjson.dumps({"id": dataset.id, "outcome": Outcome.IDENTICAL})
        return Response(body, status, media_type=links.JSON)
    location = {"Location": links.item_url(call.base_url, dataset.collection, dataset.id)}
    text = links.item_text(call.base_url, row[0], shows_files=await _shows_files(call, row[0]))
    return Response(text, status, location, media_type=links.GEOJSON)


def _wait_seconds(call: Call) -> float:
    """Return the seconds of `Prefer: wait=N` (RFC 7240), else those of the setting."""
    preference = WAIT.search(call.headers.get("prefer", ""))
    return min(float(preference[1]), LONGEST_WAIT) if preference else call.node.settings.default_wait_seconds


async def _final(node: Node, request: UUID, seconds: float) -> requests.Summary:
    """Return the request once it is final, or as it stands when the time is up."""
    budget.extend(seconds)
    deadline, backoff = time.monotonic() + seconds, Backoff(least=0.02)
    while True:
        next_settled = node.settled.next()
        async with node.pool.acquire() as conn:
            summary = await requests.summary(conn, request)
        if summary is None:
            raise RequestDoesNotExist(f"the request {request} is gone; send it again")
        remaining = deadline - time.monotonic()
        if summary.is_final or remaining <= 0 or node.stopping.is_set():
            return summary
        await next_settled(min(node.commits.patience(backoff.pause()), remaining))


def _handle(call: Call, request: UUID, total: int, refused_items: int) -> Response:
    """Return 202 with the request to follow."""
    url = links.request_url(call.base_url, request)
    body = {
        "id": str(request),
        "status": "queued",
        "total": total,
        "rejected": refused_items,
        "links": [
            {"rel": "self", "type": links.JSON, "href": url},
            {"rel": "items", "type": links.JSON, "href": url + "/items"},
        ],
    }
    return Response(orjson.dumps(body), 202, {"Location": url, "Retry-After": RETRY_AFTER}, media_type=links.JSON)


async def _result(call: Call, summary: requests.Summary, *, is_single: bool) -> Response:
    """Return the final answer that `Prefer: wait` asked for. The problem of a single item is raised."""
    base = call.base_url
    url = links.request_url(base, summary.id)
    headers = {"Preference-Applied": "wait", "Link": f'<{url}>; rel="monitor"'}
    async with call.node.pool.acquire() as conn:
        if not is_single:
            body = await request_document(conn, base, summary)
            return Response(orjson.dumps(body), 200, headers | {"Content-Location": url}, media_type=links.JSON)
        [result] = await requests.results(conn, summary.id, status=None, after=-1, limit=1)
        if result.problem:
            raise _stored_problem(result)
        row = await search.item(conn, summary.collection, result.dataset)
        shows_files = row is not None and await _shows_files(call, row[0])
        if row is None or (row[0].access is Level.PRIVATE and not shows_files):  # marked for deletion, or private
            body = await request_document(conn, base, summary)
            return Response(orjson.dumps(body), 200, headers | {"Content-Location": url}, media_type=links.JSON)
    created = result.outcome in (Outcome.NEW, Outcome.NEWER, Outcome.OLDER)
    location = links.item_url(base, summary.collection, result.dataset)
    text = links.item_text(base, row[0], shows_files=shows_files)
    return Response(text, 201 if created else 200, headers | {"Location": location}, media_type=links.GEOJSON)


async def _shows_files(call: Call, item: search.ServedItem) -> bool:
    """Tell whether the caller sees the files of a dataset that was changed, though not everybody does.

    Those of what is retracted or under quarantine are for those who ask for them.
    """
    if item.access is Level.OPEN or item.state != "published":
        return False
    return (item.collection, item.id) in await views.shown_to(call, call.caller, (item,))


def _stored_problem(result: requests.StoredResult) -> Problem:
    problem = PROBLEMS.get(result.problem or "", InternalError)(result.detail or "", findings=result.findings_read())
    if isinstance(problem, MarkedForDeletion):
        problem.deletion = result.deletion
    return problem
