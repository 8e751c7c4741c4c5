"""What pages ask the API for: its own handlers, called with the visitor as the caller.

So a page shows what the API answers and does what the API does: nothing is read or written a second way.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cache
from typing import Any, Final
from urllib.parse import urlencode

import orjson
from starlette.datastructures import Headers, QueryParams

from fedstac.api import app
from fedstac.api.call import RequestBody
from fedstac.api.http import endpoint
from fedstac.api.route import Handler, Route
from fedstac.console.visits import Visit

WAIT_SECONDS: Final = 10  # for the results of the changes of one form


@dataclass(frozen=True, slots=True)
class ApiAnswer:
    """What the API answered: the status, and the document, None for an answer without one."""

    status: int
    document: Any

    @property
    def is_queued(self) -> bool:
        """Return whether what was asked for still waits for its turn."""
        return self.status == 202


def deadline() -> float:
    """Return until when, by time.monotonic, a form that comes now waits for the results of all its changes."""
    return time.monotonic() + WAIT_SECONDS


def wait_until(deadline: float) -> dict[str, str]:
    """Return the headers of a change of a dataset whose result is waited for until then."""
    return {"prefer": f"wait={max(round(deadline - time.monotonic()), 0)}", "if-match": "*"}


@cache
def _routes() -> Mapping[Handler, Route]:
    return {route.handler: route for route in app.TABLE}


async def ask(
    visit: Visit, handler: Handler, *, query: Mapping[str, str] | None = None, body: object = None,
    headers: Mapping[str, str] | None = None, path_params: Mapping[str, str] | None = None,
) -> ApiAnswer:  # fmt: skip
    """Ask a handler of the API, and return what it answers. A Problem for what it refuses.

    query: parameters that are empty are left out, as fields of a form are that nobody filled in.
    path_params: those of the page where none are given.
    """
    call, route = visit.call, _routes()[handler]
    parameters = {name: value.strip() for name, value in (query or {}).items() if value.strip()}
    params = call.path_params if path_params is None else path_params
    endpoint.check_access(route, visit.caller, call.node.policy, params)
    content = b"" if body is None else orjson.dumps(body)

    async def read() -> bytes:
        return content

    answer = await handler(replace(
        call, method=route.method, headers=Headers({"content-type": "application/json", **(headers or {})}),
        query_params=QueryParams(parameters), query_string=urlencode(parameters), path_params=params,
        body=RequestBody(read),
    ))  # fmt: skip
    return ApiAnswer(answer.status_code, orjson.loads(answer.body) if answer.body else None)


async def show(
    visit: Visit, handler: Handler, *, query: Mapping[str, str] | None = None,
    path_params: Mapping[str, str] | None = None,
) -> Any:  # fmt: skip
    """Return the document that a handler answers a GET with."""
    return (await ask(visit, handler, query=query, path_params=path_params)).document


def next_of(document: Mapping[str, Any]) -> str:
    """Return the place after which the next page of a list begins; "" for the last page."""
    for link in document.get("links", ()):
        if link["rel"] == "next":
            return str(QueryParams(link["href"].partition("?")[2])["after"])
    return ""
