"""The assembly of the STAC API: stac-fastapi's seams, our routes, the node's workers beside them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from functools import partial
from typing import Any

import attr
import structlog
from fastapi import FastAPI
from stac_fastapi.api.app import StacApi
from stac_fastapi.api.models import CollectionUri, EmptyRequest
from stac_fastapi.api.routes import create_async_endpoint
from stac_fastapi.extensions.transaction import TransactionExtension
from stac_fastapi.pgstac.config import Settings as StacSettings
from stac_fastapi.pgstac.core import CoreCrudClient
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Match, Route
from starlette.types import Receive, Scope, Send

from fedstac import __version__, bootstrap
from fedstac.api import vocabularies
from fedstac.api.http import budget, prefixes, problems, server
from fedstac.api.http.access_log import AccessLog
from fedstac.api.http.compression import Compression
from fedstac.api.http.guard import Guard
from fedstac.api.nodes import feed, health
from fedstac.api.people import access, identity, notifications, options, own_groups
from fedstac.api.search import reading
from fedstac.api.search.queryables import QueryableNames
from fedstac.api.writing import changes, collections, items, refusals, requests, retries
from fedstac.api.writing.admission import Admission
from fedstac.bootstrap import Node, Part
from fedstac.identity.policy_files import Policies
from fedstac.runtime.capacity import Memory, Threads
from fedstac.settings import Settings
from fedstac.workers import processes

Handler = Callable[[Request], Awaitable[Response]]
log = structlog.get_logger()

OTHER_BODY = 2 << 20  # bytes of a search, a collection, a group, …
BUSIEST = 4  # of the routes, the first

# What each asks of its caller stands in api/people/access.py, PERMISSIONS.
# Served before stac-fastapi's own routes of the same paths: its dependency injection halves the rate (performance.md).
ROUTES: tuple[tuple[str, str, Handler], ...] = (
    ("GET", "/collections/{collection_id}/items/{item_id}", reading.get_item),
    ("POST", "/search", reading.post_search),
    ("GET", "/search", reading.get_search),
    ("POST", "/collections/{collection_id}/items", items.post_items),
    # ---
    ("GET", "/collections/{collection_id}/items", reading.get_items),
    ("GET", "/", reading.landing_page),
    ("GET", "/conformance", reading.conformance),
    ("GET", "/queryables", reading.get_queryables),
    ("GET", "/collections", collections.get_collections),
    ("POST", "/collections", collections.post_collection),
    ("GET", "/collections/{collection_id}", collections.get_collection),
    ("PUT", "/collections/{collection_id}", collections.put_collection),
    ("PATCH", "/collections/{collection_id}", collections.patch_collection),
    ("DELETE", "/collections/{collection_id}", collections.delete_collection),
    ("GET", "/collections/{collection_id}/queryables", reading.get_queryables),
    ("PATCH", "/collections/{collection_id}/items/{item_id}", changes.patch_item),
    ("PUT", "/collections/{collection_id}/items/{item_id}", changes.put_item),
    ("DELETE", "/collections/{collection_id}/items/{item_id}", changes.delete_item),
    ("OPTIONS", "/collections/{collection_id}/items/{item_id}", options.options_item),
    ("OPTIONS", "/collections/{collection_id}/items", options.options_items),
    ("OPTIONS", "/collections/{collection_id}", options.options_collection),
    ("OPTIONS", "/collections", options.options_collections),
    ("POST", "/collections/{collection_id}/items/{item_id}/retract", changes.post_retract),
    ("POST", "/collections/{collection_id}/items/{item_id}/reinstate", changes.post_reinstate),
    ("POST", "/collections/{collection_id}/items/{item_id}/unmark", changes.post_unmark),
    ("PUT", "/collections/{collection_id}/items/{item_id}/replicas/{node}", changes.put_replica),
    ("DELETE", "/collections/{collection_id}/items/{item_id}/replicas/{node}", changes.delete_replica),
    ("GET", "/requests", requests.get_requests),
    ("GET", "/requests/{request_id}", requests.get_request),
    ("GET", "/requests/{request_id}/items", requests.get_request_items),
    ("POST", "/requests/{request_id}/cancel", retries.post_cancel),
    ("POST", "/requests/{request_id}/retry", retries.post_retry),
    ("GET", "/vocabularies", vocabularies.get_vocabularies),
    ("GET", "/vocabularies/{project}", vocabularies.get_project),
    ("GET", "/vocabularies/{project}/{version}", vocabularies.get_snapshot),
    ("GET", "/vocabularies/{project}/{version}/terms/{facet}", vocabularies.get_terms),
    ("POST", "/validate", vocabularies.post_validate),
    ("GET", "/extensions/{name}/{version}/schema.json", vocabularies.get_extension),
    ("GET", "/me", identity.get_me),
    ("GET", "/access/explain", access.get_explain),
    ("GET", "/groups", own_groups.get_groups),
    ("POST", "/groups", own_groups.post_group),
    ("GET", "/groups/{group}", own_groups.get_group),
    ("PUT", "/groups/{group}", own_groups.put_group),
    ("DELETE", "/groups/{group}", own_groups.delete_group),
    ("PUT", "/groups/{group}/members/{principal:path}", own_groups.put_member),
    ("DELETE", "/groups/{group}/members/{principal:path}", own_groups.delete_member),
    ("PUT", "/groups/{group}/managers/{principal:path}", own_groups.put_manager),
    ("DELETE", "/groups/{group}/managers/{principal:path}", own_groups.delete_manager),
    ("GET", "/scope", identity.get_scope),
    ("GET", "/.well-known/oauth-protected-resource", identity.get_resource),
    ("GET", "/notifications", notifications.get_destinations),
    ("POST", "/notifications", notifications.post_destination),
    ("GET", "/notifications/{destination_id}", notifications.get_destination),
    ("DELETE", "/notifications/{destination_id}", notifications.delete_destination),
    ("POST", "/notifications/{destination_id}/confirm", notifications.post_confirmation),
    ("POST", "/notifications/{destination_id}/test", notifications.post_test),
    ("GET", "/healthcheck", health.get_health),
    ("GET", "/readiness", health.get_readiness),
    ("GET", "/events", feed.get_events),
    ("GET", "/events/head", feed.get_head),
    ("POST", "/events/status", feed.post_status),
    ("GET", "/snapshot", feed.get_snapshot),
    ("GET", "/digests", feed.get_digests),
)


@attr.s
class Client(CoreCrudClient):  # type: ignore[misc]
    """stac-fastapi's client: it describes the read side for OpenAPI; the answers are ours."""

    async def landing_page(self, request: Request, **_: Any) -> Response:
        return await reading.landing_page(request)

    async def conformance(self, request: Request, **_: Any) -> Response:
        return await reading.conformance(request)

    async def all_collections(self, request: Request, **_: Any) -> Response:
        return await collections.get_collections(request)

    async def get_collection(self, request: Request, **_: Any) -> Response:
        return await collections.get_collection(request)

    async def get_item(self, request: Request, **_: Any) -> Response:
        return await reading.get_item(request)

    async def item_collection(self, request: Request, **_: Any) -> Response:
        return await reading.get_items(request)

    async def get_search(self, request: Request, **_: Any) -> Response:
        return await reading.get_search(request)

    async def post_search(self, request: Request, **_: Any) -> Response:
        return await reading.post_search(request)


@attr.s
class Transactions(TransactionExtension):  # type: ignore[misc]
    """The transaction routes with raw bodies: stac-fastapi's own parse with pydantic before our code runs."""

    def register(self, app: FastAPI) -> None:
        self.router.prefix = app.state.router_prefix
        for method, path, model, handler in (
            ("POST", "/collections/{collection_id}/items", CollectionUri, items.post_items),
            ("POST", "/collections", EmptyRequest, collections.post_collection),
            ("PUT", "/collections/{collection_id}", CollectionUri, collections.put_collection),
            ("PATCH", "/collections/{collection_id}", CollectionUri, collections.patch_collection),
            ("DELETE", "/collections/{collection_id}", CollectionUri, collections.delete_collection),
        ):
            self.router.add_api_route(
                path, create_async_endpoint(_raw(handler), model), methods=[method], response_model=None,
                summary=(handler.__doc__ or "").partition(": ")[2], openapi_extra=BODY if method != "DELETE" else None,
            )  # fmt: skip
        app.include_router(self.router, tags=["Transaction Extension"])


BODY = {"requestBody": {"required": True, "content": {"application/json": {"schema": {"type": "object"}}}}}


def _route(method: str, path: str, handler: Handler) -> Route:
    """Return a route as every one of ours is: its work is bounded, and the refusals of writes are written down."""
    return Route(path, refusals.watched(method, path, budget.bounded(method, path, handler)), methods=[method])


def _raw(handler: Handler) -> Callable[..., Awaitable[Response]]:
    async def endpoint(request: Request, **_: Any) -> Response:
        return await handler(request)

    return endpoint


def create(settings: Settings, base_url: str, *, background: Sequence[Part] = ()) -> FastAPI:
    """Return the application of a node, not yet guarded. `background` runs beside it while it serves."""

    callers = identity.finding(settings)
    policies = Policies(settings.policy, settings.globus_policy, here=settings.node)  # refused before anything runs

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        async with (
            bootstrap.node(settings, policies) as node,
            callers(node) as principals,
            refusals.recording(node) as recorder,
            bootstrap.beside(
                node,
                (*background, Part("vocabularies", bootstrap.watch_vocabularies), Part("refusals", recorder.keep)),
                asyncio.Event(),
                on_give_up=app.state.end,
            ),
        ):
            app.state.node, app.state.principals = node, principals
            app.state.refusals = recorder
            app.state.queryables = QueryableNames(node)
            app.state.admission, app.state.known = Admission(node), items.KnownCollections()
            app.state.memory, app.state.threads = Memory(settings.request_memory_bytes), Threads()
            yield
            app.state.threads.close()

    stac = StacSettings(
        _env_file=None, openapi_url="/api", docs_url="/api.html", enable_response_models=False,
        stac_fastapi_title=f"fedstac {settings.node}", stac_fastapi_version=__version__,
        stac_fastapi_description=f"Datasets at the node {settings.node}", stac_fastapi_landing_id=settings.node,
    )  # fmt: skip
    api = StacApi(
        app=FastAPI(
            title=f"fedstac {settings.node}", version=__version__, openapi_url="/api", docs_url="/api.html",
            redoc_url=None, lifespan=lifespan,
        ),
        settings=stac,
        client=Client(),
        extensions=[Transactions(client=None, settings=stac)],  # type: ignore[call-arg]
        middlewares=[],  # CORS is the guard's part
    )  # fmt: skip
    app: FastAPI = api.app
    app.state.base_url = base_url
    app.state.end = lambda: None  # of a server that ends when a background part gives up
    app.router.routes[:0] = [_route(*route) for route in ROUTES]
    app.router.routes.extend(problems.routes())
    problems.install(app)
    return app


def _limits(settings: Settings) -> Callable[[Any], int]:
    def limit(scope: Any) -> int:
        path = scope["path"]
        if scope["method"] == "POST" and path.endswith(("/items", "/validate")):
            return settings.max_batch_bytes
        return settings.max_item_bytes if "/items/" in path else min(OTHER_BODY, settings.max_item_bytes)

    return limit


def serve(settings: Settings, background: Sequence[Part], *, on_ready: Callable[[str], object] | None = None) -> None:
    """Serve a node until SIGTERM or SIGINT. `on_ready` gets the address once it answers. CannotListen if it cannot.

    PartGaveUp where a background part ended again and again.
    """
    with processes.listen(settings.host, settings.port) as listening:
        host, port = listening.getsockname()[:2]
        address = f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
        base_url = (settings.public_url or address).rstrip("/")
        app = create(settings, base_url, background=background)

        def ready(_: str) -> None:
            processes.log_start("serving", settings, schema=app.state.node.schema, address=address, public_url=base_url)
            if on_ready:
                on_ready(address)

        running_on(app, settings, base_url, on_ready=ready).run([listening])
    node: Node = app.state.node
    if node.parts.gave_up is not None:
        raise node.parts.gave_up


class Direct:
    """Takes the busiest routes past the middleware, which is a quarter of their cost; the guard answers their problems.

    Everything else goes the whole way.
    """

    def __init__(self, app: FastAPI) -> None:
        self.app = app
        self.routes = [_route(*route) for route in ROUTES[:BUSIEST]]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            for route in self.routes:
                match, matched = route.matches(scope)
                if match is Match.FULL:
                    await route.handle({**scope, **matched, "app": self.app}, receive, send)
                    return
        await self.app(scope, receive, send)


def running_on(
    app: FastAPI, settings: Settings, base_url: str, *, on_ready: Callable[[str], object] | None = None
) -> server.Server:
    """Return the server of an application, behind its guard; it ends long polls before it waits for open answers."""
    access_log = AccessLog() if settings.access_log else None
    guard = Guard(
        Compression(Direct(app)) if settings.compress else Direct(app),
        public_url=base_url,
        proxy_strips=prefixes.is_stripped(base_url, settings, app.routes),
        limit_for=_limits(settings),
        read_timeout=settings.read_timeout_seconds,
        access_log=access_log,
        on_failure=partial(problems.report, app),
    )
    config = server.Config(
        guard, public_url=base_url, header_timeout=settings.read_timeout_seconds, access_log=access_log
    )

    def stop() -> None:
        log.info("stopping")
        app.state.node.stop()

    uvicorn_server = server.Server(config, lifespan=app.router.lifespan_context(app), on_ready=on_ready, on_stop=stop)

    def end() -> None:
        uvicorn_server.should_exit = True

    app.state.end = end
    return uvicorn_server
