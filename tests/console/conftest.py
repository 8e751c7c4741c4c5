"""A node with a console, the demonstration's identity provider, and people who log in with their browsers."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack

import pytest
import pytest_asyncio

from fedstac.demo import identity_provider, sample
from fedstac.demo.embedded import Cluster
from tests.support.console_world import ConsoleWorld, console_world
from tests.support.consoles import OpenBrowser, Visitor, visitor
from tests.support.databases import databases
from tests.support.demo_provider import DemoProvider, demo_provider
from tests.support.forking import Forks
from tests.support.nodes import Api, StartApi


@pytest.fixture(scope="module")
def people(command_forks: Forks) -> Iterator[DemoProvider]:
    """The provider of ada, who administrates, nina, who publishes, and sam, who may do nothing."""
    with demo_provider(command_forks.program, {}) as running:
        yield running


@pytest.fixture
async def west(start_api: StartApi, dsn: str, people: DemoProvider) -> Api:
    """A node with the collection CMIP6 that takes logins of the people."""
    settings = {name.removeprefix("FEDSTAC_").lower(): value for name, value in
                identity_provider.as_settings(people.url).items()}  # fmt: skip
    started = await start_api(dsn=dsn, **settings)
    assert (await started.admin.post("/collections", json=sample.collection())).status_code == 201
    return started


@pytest.fixture
async def open_browser() -> AsyncIterator[OpenBrowser]:
    """Opens browsers without a script: clients with cookies that follow no redirect by themselves."""
    async with AsyncExitStack() as stack:

        async def opened(url: str) -> Visitor:
            return await stack.enter_async_context(visitor(url))

        yield opened


@pytest.fixture
async def ada(west: Api, open_browser: OpenBrowser) -> Visitor:
    """An administrator who is logged in."""
    browser = await open_browser(west.url)
    await browser.log_in("ada")
    return browser


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def world(cluster: Cluster, template: str, people: DemoProvider) -> AsyncIterator[ConsoleWorld]:
    """A node, and a browser: one for all tests of a module."""
    with databases(cluster, template) as make:
        async with console_world(make(), people.url) as running_world:
            yield running_world
