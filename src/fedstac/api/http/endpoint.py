"""What stands between a route and its handler: access, budget, memory for the body, and the record of refusals.

Every route passes here. The token is checked before the body is read. A right that depends on the body or on the
stored dataset is checked by the handler.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from contextlib import suppress
from functools import lru_cache
from ipaddress import ip_address
from typing import Any, assert_never

from starlette import routing
from starlette.datastructures import Headers, QueryParams
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from fedstac.api.call import Call, CallProgress, QueryParameters, RequestBody, Services, services_of
from fedstac.api.http.bodies import BODY_FACTOR, IDS_FACTOR, SMALL_ANSWER, LargeAnswer, Peer
from fedstac.api.route import DRY_RUN, Access, Route, Size
from fedstac.api.writing import refusals
from fedstac.domain import policy
from fedstac.domain.errors import BadRequest, Problem, TakesTooLong
from fedstac.domain.policy import Policy, Principal, Resource
from fedstac.runtime.budget import Budget, Lane

TOKEN_SECONDS = 1.0  # that it may take to find out whose token it is, where the lane depends on it
RETRY_AFTER = 5
LONGEST_ADDRESS = 45  # characters
_NO_PARAMETERS = QueryParameters()


def starlette_route(route: Route) -> routing.Route:
    """Return a declared route as Starlette serves it."""
    return routing.Route(route.path, Endpoint(route), methods=[route.method], name=route.handler.__name__)


class Endpoint:
    """The ASGI application of one route."""

    def __init__(self, route: Route) -> None:
        self._route = route
        self._handler = route.handler
        self._lane = route.fixed_lane
        self._takes_batch = route.takes_batch
        self._factor = IDS_FACTOR if route.body is not None and route.body.size is Size.IDS else BODY_FACTOR
        self._is_public = route.access is Access.PUBLIC
        self._refusals_as = route.refusals_as
        self._refuses_dry_run = route.refusals_as is not None and not route.has_dry_run

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        services = services_of(scope["app"])
        scope["state"]["route"] = self._route.path  # for the metrics of the guard, which has the same dictionary
        progress = CallProgress()
        try:
            answer = await self._answer(services, progress, scope, receive)
        except Problem as problem:
            if self._refusals_as is not None:
                await self._record(services, progress, scope, problem)
            raise
        await answer(scope, receive, send)

    async def _answer(self, services: Services, progress: CallProgress, scope: Scope, receive: Receive) -> Response:
        """Run the handler under one deadline for all of its work. It is cancelled when its client leaves.

        TakesTooLong at the deadline.
        """
        settings = services.node.settings
        headers, query = Headers(scope=scope), scope["query_string"]
        seconds = settings.request_seconds
        async with Budget(
            seconds, self._lane or Lane.WORK, lambda: _too_long(seconds), among=services.open_budgets
        ) as budget:
            peer = Peer(
                headers, receive, budget=budget, memory=services.memory,
                most_items=settings.max_batch_items if self._takes_batch else None, factor=self._factor,
            )  # fmt: skip
            try:
                if self._lane is None:
                    budget.lane = await _lane_of_reader(services, headers, progress)
                    budget.client = progress.caller.name if progress.caller else client_of(scope, headers)
                if not self._is_public:
                    await self._check_access(services, headers, progress, scope)
                call = Call(
                    services=services,
                    headers=headers,
                    query_params=QueryParameters(query) if query else _NO_PARAMETERS,
                    path_params=scope["path_params"],
                    body=RequestBody(peer.read_body, peer.forget_body),
                    method=scope["method"],
                    path=scope["path"],
                    query_string=query.decode("latin-1"),
                    request_id=scope["state"]["request_id"],
                    traceparent=scope["state"]["traceparent"],
                    progress=progress,
                )
                if self._refuses_dry_run and query:
                    self._check_dry_run(call)
                answer = await self._handler(call)
            finally:
                peer.close()
            return answer if len(answer.body) <= SMALL_ANSWER else LargeAnswer(answer, services.memory, budget.lane)

    async def _check_access(self, services: Services, headers: Headers, progress: CallProgress, scope: Scope) -> None:
        """Find the caller and check what the route declares. Unauthenticated or MissingPermission."""
        route, caller = self._route, progress.caller
        if caller is None:
            caller = progress.caller = await services.principals.identify(headers, sidecar=route.is_for_sidecar)
        check_access(route, caller, services.node.policy, scope["path_params"])

    def _check_dry_run(self, call: Call) -> None:
        """Refuse to do for real what is asked for as a dry run: only changes of datasets can be tried."""
        if call.query_params.get(DRY_RUN, "false").lower() not in ("", "false"):
            route = self._route
            raise BadRequest(
                f"{route.method} {route.path} cannot be tried without doing it; leave dry_run out to do it"
            )

    async def _record(self, services: Services, progress: CallProgress, scope: Scope, problem: Problem) -> None:
        """Write a refusal down, unless it is of a dry run, or of what is accepted already."""
        if progress.is_accepted or (self._route.has_dry_run and _is_dry_run(scope["query_string"])):
            return
        entry = refusals.entry(
            self._refusals_as or "", problem, progress, path_params=scope["path_params"],
            request_id=scope["state"]["request_id"],
        )  # fmt: skip
        await services.refusals.note(entry)


def check_access(
    route: Route, caller: Principal, policy_of_node: Policy, path_params: Mapping[str, Any]
) -> None:  # fmt: skip
    """Check what a route declares of its callers. MissingPermission for somebody whom it is not for."""
    match route.access:
        case Access.PUBLIC | Access.AUTHENTICATED | Access.ACTION:  # ACTION: decided where the dataset is read
            pass
        case Access.NODE:
            policy.require_node(caller)
        case Access.MONITOR:
            policy.require_monitor(caller)
        case Access.RIGHT:
            collection: str | None = path_params.get("collection_id")
            if route.right is not None and collection is not None:
                policy_of_node.require(caller, route.right, Resource.of_collection(collection))
            # else the body names what the right is for, and the handler asks (tests/contracts/test_permissions.py)
        case _:
            assert_never(route.access)


async def _lane_of_reader(services: Services, headers: Headers, progress: CallProgress) -> Lane:
    """Return the lane of the caller of a read; `progress` gets the caller where the token is valid."""
    if "authorization" in headers:
        with suppress(Problem, TimeoutError):
            async with asyncio.timeout(TOKEN_SECONDS):
                progress.caller = await services.principals.identify(headers)
                return Lane.READER
    return Lane.ANONYMOUS


def client_of(scope: Scope, headers: Headers) -> str:
    """Return the network that a request without a token comes from: an address, of IPv6 its first half.

    Behind a proxy, which has an address that is not public, it is the last one that the proxy was told or adds.
    """
    peer = scope.get("client")
    host = str(peer[0]) if peer else ""
    if not _is_public(host):
        host = headers.get("x-forwarded-for", host).rpartition(",")[2].strip()[:LONGEST_ADDRESS]
    return ":".join(host.split(":")[:4]) if ":" in host else host


@lru_cache(maxsize=1024)
def _is_public(host: str) -> bool:
    try:
        return ip_address(host).is_global
    except ValueError:
        return False


def _is_dry_run(query: bytes) -> bool:
    return bool(query) and QueryParams(query).get(DRY_RUN, "").lower() == "true"


def _too_long(seconds: float) -> TakesTooLong:
    return TakesTooLong(
        f"this took over {seconds:g} s, which is all that a request has; ask for less at once", retry_after=RETRY_AFTER
    )
