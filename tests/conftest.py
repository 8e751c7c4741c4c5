"""A real PostgreSQL for every test run: one private cluster per pytest process, a fresh database per test."""

from __future__ import annotations

import asyncio
import functools
import gc
import json
import os
import shutil
import subprocess
import tempfile
from collections.abc import AsyncIterator, Generator, Iterator, Mapping
from contextlib import AsyncExitStack, ExitStack
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import asyncpg
import hypothesis
import pytest
import pytest_asyncio
from httpx._transports import default as httpx_transports

from fedstac import bootstrap
from fedstac.demo import dapr, embedded
from fedstac.demo import federation as federations
from fedstac.demo.identity_provider import CLIENT
from fedstac.identity import provider_answers
from fedstac.settings import Settings
from fedstac.vocabularies import extensions, registry
from tests.support import builtin_types, containers
from tests.support.commands import Fedstac, Result, StartCommand, environment, start
from tests.support.databases import TEMPLATE, MakeDatabase, copied_clusters, databases, prepared_cluster
from tests.support.forking import Forks, end_shared, shared
from tests.support.identity import AUDIENCE, Provider, StartNode
from tests.support.nodes import Api, StartApi, catalogue_of_west, running
from tests.support.places import REPOSITORY, SHARED, use_memory_for_temporary_files
from tests.support.waiting import PATIENCE

use_memory_for_temporary_files()
pytest_plugins = ("tests.support.brokers",)

# the same examples in every run, for a green run to mean something; FEDSTAC_TEST_RANDOM=1 looks for new ones
hypothesis.settings.register_profile("fedstac", derandomize=not os.environ.get("FEDSTAC_TEST_RANDOM"), deadline=None)
hypothesis.settings.load_profile("fedstac")

# What every node and client of a test would make anew, at up to a tenth of a second each, is made once: vocabularies
# are read from the same bytes, extensions from the same folder, and no test changes the certificates of the system.
MADE_ONCE = ((registry, "parse"), (extensions, "item_validator"), (httpx_transports, "create_ssl_context"))
for module, name in MADE_ONCE:
    setattr(module, name, functools.cache(getattr(module, name)))
builtin_types.ask_once()


MAY_BE_MISSING = ("shared", "history", "image", "dapr")  # markers of what even CI may be without
WHERE_NOT = {
    "shared": "../shared is not here: only the developers have it",
    "image": "there is no image of the checkout as it is: make image",
    "dapr": "there is no daprd of docker/daprd: make dapr",
    "history": "the history of the repository is not here: git fetch --unshallow",
}


def shares_with_its_module(item: pytest.Item) -> bool:
    """Return whether a test uses a fixture that is made once for its module."""
    made = item._fixtureinfo.name2fixturedefs.values() if isinstance(item, pytest.Function) else ()
    return any(each[-1].scope == "module" for each in made)


def is_missing(marker: str) -> bool:
    match marker:
        case "shared":
            return not SHARED.is_dir()
        case "image":
            return not containers.is_built()
        case "dapr":
            return not dapr.is_built()
        case _:
            command = ["git", "rev-parse", "--is-shallow-repository"]
            result = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=False)
            return result.stdout.strip() != "false"


@pytest.hookimpl(tryfirst=True)  # before pytest-xdist reads the groups
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip what cannot run here; keep a module that shares something in one process.

    What takes long begins first, and then what stays together: single tests are left for the end, when a process that
    has nothing to do takes the next, and none waits for a whole module of the other's.
    """
    for item in items:
        if not item.get_closest_marker("xdist_group") and shares_with_its_module(item):
            item.add_marker(pytest.mark.xdist_group(item.path.relative_to(REPOSITORY).as_posix()))
        if item.get_closest_marker("soak"):
            item.add_marker(pytest.mark.timeout(0))
    items.sort(key=lambda item: [item.get_closest_marker(name) is None for name in ("long", "xdist_group")])
    for marker in MAY_BE_MISSING:
        marked = [item for item in items if item.get_closest_marker(marker)]
        if marked and is_missing(marker):
            for item in marked:
                item.add_marker(pytest.mark.skip(reason=WHERE_NOT[marker]))


@pytest.fixture(autouse=True)
def _leaves_nothing_open() -> Iterator[None]:
    """Collect garbage when a test ends, for what it left open to fail itself and no later one.

    What is still in use then is left out of later collections, which take a millisecond so, and not 200.
    """
    yield
    gc.collect()
    gc.freeze()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Fail a test on CI that would be skipped, and say what is missing; but for MAY_BE_MISSING."""
    report = yield
    if report.skipped and os.environ.get("CI") and not any(map(item.get_closest_marker, MAY_BE_MISSING)):
        report.outcome = "failed"
        report.longrepr = f"nothing is skipped on CI: {report.longrepr}"
    return report


@pytest.fixture(scope="session")
def prepared() -> Iterator[Path]:
    """The folder of a cluster that others are copies of; it is stopped."""
    with prepared_cluster() as folder:
        yield folder


@pytest.fixture(scope="module")
def copied(prepared: Path) -> Iterator[None]:
    """Clusters that fixtures make, and databases of federations, are copies."""
    with copied_clusters(prepared):
        yield


@pytest.fixture(scope="session")
def cluster(prepared: Path) -> Iterator[embedded.Cluster]:
    """A private cluster; durability off, because no test asks what a crash of this one leaves."""
    folder = Path(tempfile.mkdtemp(prefix="fedstac-test-"))
    folder.chmod(0o755)
    settings = {"fsync": "off", "full_page_writes": "off", "shared_preload_libraries": "plpgsql, postgis-3"}
    try:
        with ExitStack() as stack:
            with copied_clusters(prepared):
                running = stack.enter_context(embedded.cluster(folder / "pg", settings=settings))
            yield running
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="session")
def template() -> str:
    """A migrated database that tests copy."""
    return TEMPLATE


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def west_database(cluster: embedded.Cluster, template: str) -> AsyncIterator[str]:
    """A database that tests copy: that of a publishing node `west` with the collection CMIP6.

    To make a collection takes more processor time than to start a node. Where a fixture of a test has this one among
    its arguments, `dsn` is such a copy.
    """
    async with catalogue_of_west(cluster, template) as name:
        yield name


@pytest.fixture
def make_database(cluster: embedded.Cluster, template: str) -> Iterator[MakeDatabase]:
    """Makes migrated databases that go with the test."""
    with databases(cluster, template) as make:
        yield make


@pytest.fixture
def dsn(request: pytest.FixtureRequest, make_database: MakeDatabase) -> str:
    """The database of the test's node."""
    return make_database(request.getfixturevalue("west_database") if "west_database" in request.fixturenames else None)


@pytest.fixture
async def node(dsn: str) -> AsyncIterator[bootstrap.Node]:
    """A node named `west` on a database of its own."""
    config = Settings(dsn=dsn, node="west", _env_file=None)
    async with bootstrap.node(config) as running:
        yield running


@pytest.fixture
async def conn(dsn: str) -> AsyncIterator[asyncpg.Connection[asyncpg.Record]]:
    connection = await asyncpg.connect(dsn)
    yield connection
    await asyncio.wait_for(connection.close(), PATIENCE)


@pytest.fixture
async def administrator(cluster: embedded.Cluster, dsn: str) -> AsyncIterator[asyncpg.Connection[asyncpg.Record]]:
    """A superuser's connection to the database of `dsn` that no trigger hinders: it can spoil what nodes cannot."""
    connection = await asyncpg.connect(cluster.dsn(urlsplit(dsn).path.lstrip("/")))
    await connection.execute("SET session_replication_role = replica")
    yield connection
    await asyncio.wait_for(connection.close(), PATIENCE)


@pytest.fixture
async def start_api(make_database: MakeDatabase) -> AsyncIterator[StartApi]:
    """Starts nodes that end with the test, and before their databases."""
    async with AsyncExitStack() as stack:

        async def start(*, background: bool = True, **values: Any) -> Api:
            settings = Settings(
                **{"node": "west", "default_wait_seconds": 60, "request_seconds": 120, "_env_file": None, **values}
            )
            return await stack.enter_async_context(running(settings, background=background))

        yield start


@pytest.fixture
async def api(west_database: str, start_api: StartApi, dsn: str) -> Api:
    """A publishing node `west` with the collection CMIP6."""
    return await start_api(dsn=dsn)


@pytest.fixture(scope="session", autouse=True)
def _end_forks() -> Iterator[None]:
    yield
    end_shared()


@pytest.fixture(scope="session")
def command_forks() -> Forks:
    """The process that forks commands."""
    return shared()


@pytest.fixture(scope="module")
def forked_federations(command_forks: Forks) -> Iterator[None]:
    """The processes of federations are forked, but for those of other code than this."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(federations, "_spawn", functools.partial(command_forks.spawn, federations._spawn))
        yield


@pytest.fixture
def fedstac(command_forks: Forks, tmp_path: Path) -> Fedstac:
    """Runs a command and returns how it ended."""

    async def run_command(*arguments: str, stdin: bytes = b"", **variables: str) -> Result:
        if "PYTHONPATH" in variables:  # other modules than those of the fork
            process = await start(*arguments, folder=tmp_path, **variables)
            try:
                stdout, stderr = await asyncio.wait_for(process.communicate(stdin), PATIENCE)
            finally:
                if process.returncode is None:
                    process.kill()
            assert process.returncode is not None
            return Result(process.returncode, stdout.decode(), stderr.decode())
        own = environment(**{"XDG_STATE_HOME": str(tmp_path / "state"), **variables})
        running = command_forks.run(arguments, folder=tmp_path, environment=own, stdin=stdin)
        code, stdout, stderr = await asyncio.wait_for(running, PATIENCE)
        return Result(code, stdout.decode(), stderr.decode())

    return run_command


@pytest.fixture
def start_command(command_forks: Forks) -> StartCommand:
    """Starts a command in a process that is forked."""
    return functools.partial(start, program=command_forks.program)


@pytest.fixture(scope="session")
def provider_process() -> Iterator[Provider]:
    running = Provider()
    try:
        yield running
    finally:
        running.close()


@pytest.fixture
def provider(provider_process: Provider) -> Provider:
    """An identity provider that knows nothing of the tests before."""
    provider_process.begin_anew()
    return provider_process


@pytest.fixture
def no_rest(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a provider said, or failed to say, holds for the moment only."""
    monkeypatch.setattr(provider_answers, "REFETCH_SECONDS", 0.0)
    monkeypatch.setattr(provider_answers, "REST_SECONDS", 0.0)


@pytest.fixture
async def start_node(west_database: str, dsn: str, provider: Provider, start_api: StartApi) -> StartNode:
    """Starts a node with the collection CMIP6 that takes the provider's tokens.

    Members of its issuer and settings may be named.
    """

    async def start(issuer: Mapping[str, Any] | None = None, **values: Any) -> Api:
        configured = {"issuer": provider.url, "login_client_id": CLIENT, **(issuer or {})}
        defaults = {"issuers": json.dumps([configured]), "audience": AUDIENCE, "admin_group": "esgf-admins"}
        return await start_api(dsn=dsn, **{**defaults, **values})

    return start
