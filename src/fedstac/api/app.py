"""The assembly of the API: every capability with its routes, behind the guard, the node's workers beside them."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from functools import partial
from types import SimpleNamespace

import attr
import structlog
from fastapi import FastAPI
from stac_fastapi.api.app import StacApi
from stac_fastapi.pgstac.config import Settings as StacSettings

from fedstac import __version__, bootstrap
from fedstac.api import vocabulary_routes
from fedstac.api.call import Services, services_of
from fedstac.api.capability import Capability
from fedstac.api.deletions import routes as deletion_routes
from fedstac.api.grants import routes as grant_routes
from fedstac.api.http import asyncapi, limits, openapi, prefixes, problems, server
from fedstac.api.http import routes as http_routes
from fedstac.api.http.access_log import AccessLog
from fedstac.api.http.compression import Compression
from fedstac.api.http.fast_path import FastPath
from fedstac.api.http.files import OpenFiles
from fedstac.api.http.guard import Guard
from fedstac.api.http.openapi import Description
from fedstac.api.nodes import routes as node_routes
from fedstac.api.nodes.health import HealthLook
from fedstac.api.nodes.metrics import FiguresLook
from fedstac.api.nodes.stream import WAITING_READERS, OpenStreams
from fedstac.api.people import identity
from fedstac.api.people import routes as people_routes
from fedstac.api.route import Route
from fedstac.api.search import routes as search_routes
from fedstac.api.search.queryables import QueryableNames
from fedstac.api.subscriptions import routes as subscription_routes
from fedstac.api.writing import refusals
from fedstac.api.writing import routes as writing_routes
from fedstac.api.writing.admission import Admission, KnownCollections
from fedstac.api.writing.backlog import BacklogLook
from fedstac.bootstrap import Part
from fedstac.columns import forking
from fedstac.columns.memory import FacetColumns
from fedstac.db.pools import Pools
from fedstac.domain.errors import Unavailable
from fedstac.identity.policy_files import Policies
from fedstac.messaging.hubs import Hub, read_hubs
from fedstac.runtime.budget import Lane
from fedstac.runtime.capacity import Memory, Threads
from fedstac.runtime.shares import FairShares
from fedstac.settings import Misconfigured, Settings
from fedstac.workers import processes
from fedstac.workers.page_cache import PageCache
from fedstac.workers.processes import Member
from fedstac.workers.roles import Role

SHARED_PAGES_BYTES = 4 << 20  # of the log, that readers of changes and of subscriptions share
YOUNG_OBJECTS, YOUNG_LOOKS = 30_000, 10  # after which Python looks among them, or older ones: some 30 ms, or 100
STOP_SECONDS = 2.5  # that requests have to end by themselves when the process stops; then they are answered with 503
log = structlog.get_logger()

CAPABILITIES: tuple[Capability, ...] = (
    *search_routes.CAPABILITIES,
    *writing_routes.CAPABILITIES,
    *deletion_routes.CAPABILITIES,
    *grant_routes.CAPABILITIES,
    *vocabulary_routes.CAPABILITIES,
    *people_routes.CAPABILITIES,
    *subscription_routes.CAPABILITIES,
    *node_routes.CAPABILITIES,
    *http_routes.CAPABILITIES,
)
TABLE: tuple[Route, ...] = tuple(route for capability in CAPABILITIES for route in capability.routes)
"""Every route of the application: what it is, and who may call it."""


@attr.s
class Application(StacApi):  # type: ignore[misc]
    """stac-fastapi's application whose core is a capability like the others, described by its own OpenAPI document."""

    app: FastAPI = attr.ib(kw_only=True)
    client: object = attr.ib(factory=SimpleNamespace, kw_only=True)  # stac-fastapi names the application on it

    def register_core(self) -> None:
        """Leave the core routes to the capability that declares them."""

    def add_health_check(self) -> None:
        """Leave the routes of health to the capability that declares them."""


def create(
    settings: Settings, base_url: str, *, roles: Sequence[Role], columns: FacetColumns | None = None,
    undescribed: Sequence[Capability] = (),
) -> FastAPI:  # fmt: skip
    """Return the application of a node, not yet guarded. The parts of its roles run beside it while it serves.

    columns: that this process has from its parent; else it makes its own.
    undescribed: what the node can do beside the API, and what OpenAPI says nothing of: pages.
    """
    inherited = columns
    background = [part for role in roles for part in role.parts(settings)]
    callers = identity.principals_factory(settings)
    policies = Policies(settings.policy, settings.globus_policy, here=settings.node)  # refused before anything runs
    title = f"fedstac {settings.node}"
    conformance = tuple(uri for capability in CAPABILITIES for uri in capability.conformance_classes)
    hubs, about = _hubs(settings), {"title": title, "version": __version__, "base_url": base_url}

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        async with (
            bootstrap.node(settings, policies) as node,
            callers(node) as principals,
            refusals.recording(node) as recorder,
            columns_of(settings, inherited) as columns,
            bootstrap.beside(
                node,
                (
                    *background,
                    Part("vocabularies", bootstrap.watch_vocabularies),
                    Part("refusals", recorder.keep),
                    *([Part("columns", lambda node, stop: columns.keep_loaded(node.parts, stop))] if columns else []),
                ),
                asyncio.Event(),
                on_give_up=app.state.end,
            ),
        ):
            services = Services(
                node=node, base_url=base_url, conformance=conformance,
                openapi=Description(partial(openapi.document, CAPABILITIES, **about)),
                asyncapi=Description(partial(asyncapi.document, **about, hubs=hubs)), hubs=hubs, principals=principals,
                refusals=recorder, queryables=QueryableNames(node), columns=columns, admission=Admission(node),
                collections=KnownCollections(), memory=Memory(settings.request_memory_bytes), threads=Threads(),
                shares=FairShares(_places(node.pools, has_columns=columns is not None)),
                health=HealthLook(node, roles, columns), figures=FiguresLook(node), roles=roles,
                streams=OpenStreams(settings.event_streams),
                waiting_readers=OpenStreams(settings.event_streams, WAITING_READERS),
                pages=PageCache(node, most_bytes=SHARED_PAGES_BYTES),
                open_files=OpenFiles(), open_budgets=set(), backlog=BacklogLook(node),
            )  # fmt: skip
            app.state.services = services
            yield
            services.threads.close()

    application = Application(  # type: ignore[call-arg]
        app=FastAPI(title=title, version=__version__, openapi_url=None, lifespan=lifespan),
        settings=StacSettings(
            _env_file=None, enable_response_models=False, stac_fastapi_title=title, stac_fastapi_version=__version__,
            stac_fastapi_description=f"Datasets at the node {settings.node}", stac_fastapi_landing_id=settings.node,
        ),
        extensions=[*CAPABILITIES, *undescribed],
        middlewares=[],  # CORS is the guard's part
    )  # fmt: skip
    app: FastAPI = application.app
    app.state.end = lambda: None  # of a server that ends when a background part gives up
    problems.install(app)
    return app


def _hubs(settings: Settings) -> tuple[Hub, ...]:
    try:
        return read_hubs(settings.hubs)
    except ValueError as error:
        raise Misconfigured(f"FEDSTAC_HUBS: {error}") from None


def _places(pools: Pools, *, has_columns: bool) -> Mapping[Lane, int]:
    """Return how many searches may be PostgreSQL's at once: half of a lane's connections, all of them without columns.

    The others are for searches that are quick, and publishing has the rest of the processors.
    """
    sizes = {lane: pools.lanes[lane].size for lane in (Lane.READER, Lane.ANONYMOUS)}
    return {lane: max(1, size // 2) if has_columns else size for lane, size in sizes.items()}


@asynccontextmanager
async def columns_of(settings: Settings, inherited: FacetColumns | None) -> AsyncIterator[FacetColumns | None]:
    """Yield the columns of a process, loaded only if it has them from its parent; None where it has none."""
    if not settings.columns:
        yield None
        return
    columns = inherited or _new_columns(settings)
    try:
        yield columns
    finally:
        await columns.close()


def _new_columns(settings: Settings) -> FacetColumns:
    dsn = settings.read_dsn or settings.dsn
    return FacetColumns(dsn, f"fedstac {settings.node}", cache_bytes=settings.document_cache_bytes)


def serve(
    settings: Settings, roles: Sequence[Role], *, on_ready: Callable[[str], object] | None = None,
    undescribed: Sequence[Capability] = (),
) -> None:  # fmt: skip
    """Serve a node until SIGTERM or SIGINT. `on_ready` gets the address once it answers. CannotListen if it cannot.

    Of several processes each takes connections of the one socket, and the first one runs the parts of the roles. They
    share the columns, which are loaded before they are forked.
    PartGaveUp where a background part ended again and again.
    """
    with processes.listen(settings.host, settings.port) as listening:
        host, port = listening.getsockname()[:2]
        address = f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
        base_url = (settings.public_url or address).rstrip("/")
        member, columns = None, None
        if settings.processes > 1:
            columns = _new_columns(settings) if settings.columns else None
            member = _multiplied(settings.processes, columns)
        if member is not None and member.number > 0:
            roles = [replace(role, parts=_no_parts) for role in roles]  # the first one runs them
            on_ready = None
        app = create(settings, base_url, roles=roles, columns=columns, undescribed=undescribed)

        def ready(_: str) -> None:
            gc.collect()
            gc.freeze()  # what is there now stays: later collections, which hold the event loop, pass it by
            gc.set_threshold(YOUNG_OBJECTS, YOUNG_LOOKS, gc.get_threshold()[2])
            processes.log_start(
                "serving", settings, schema=services_of(app).node.schema, address=address, public_url=base_url
            )
            if member is not None:
                member.tell_ready()
            if on_ready:
                on_ready(address)

        running_on(app, settings, base_url, on_ready=ready).run([listening])
    services = services_of(app)
    if services.node.parts.gave_up is not None:
        raise services.node.parts.gave_up


def _multiplied(count: int, columns: FacetColumns | None) -> Member:
    if columns is None:
        return processes.multiply(count)
    refresh = partial(forking.refresh, columns)
    refresh()
    return processes.multiply(count, before_anew=refresh)


def _no_parts(_: Settings) -> Sequence[Part]:
    return ()


def running_on(
    app: FastAPI, settings: Settings, base_url: str, *, on_ready: Callable[[str], object] | None = None
) -> server.HttpServer:
    """Return the server of an application, behind its guard; it ends long polls before it waits for open answers."""
    access_log = AccessLog() if settings.access_log else None
    fast_path = FastPath(app, TABLE)

    def on_answer(method: str, route: str | None, status: int | None, seconds: float) -> None:
        app.state.services.node.metrics.observe_request(method, route, status, seconds)

    guard = Guard(
        Compression(fast_path) if settings.compress else fast_path,
        public_url=base_url,
        proxy_strips=prefixes.is_stripped(base_url, settings, app.routes),
        limit_for=limits.of_bodies(TABLE, settings),
        read_timeout=settings.read_timeout_seconds,
        access_log=access_log,
        on_answer=on_answer,
        on_failure=partial(problems.report, app),
        is_stopping=lambda: app.state.services.node.stopping.is_set(),
    )
    config = server.Config(
        guard, public_url=base_url, header_timeout=settings.read_timeout_seconds, access_log=access_log
    )

    def stop() -> None:
        log.info("stopping")
        services = services_of(app)
        services.node.stop()
        asyncio.get_running_loop().call_later(STOP_SECONDS, end_requests, services)

    def end_requests(services: Services) -> None:
        for budget in tuple(services.open_budgets):
            budget.end(Unavailable("this process ends; send the request again", retry_after=1))

    uvicorn_server = server.HttpServer(
        config, lifespan=app.router.lifespan_context(app), on_ready=on_ready, on_stop=stop
    )

    def end() -> None:
        uvicorn_server.should_exit = True

    app.state.end = end
    return uvicorn_server
