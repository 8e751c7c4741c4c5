"""The example services beside a node: what they have is what the catalogue has, whatever is killed."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

import pytest

from fedstac.demo import services
from fedstac.demo.federation import Federation
from fedstac.demo.services import (
    Examples,
    delete_acknowledged,
    items_of,
    wait_until_followed,
)
from tests.scenarios.watching import (
    Publisher,
    fresh_items,
    settle,
)

pytestmark = pytest.mark.long
SEED = 14  # of datasets that come while others are loaded: other lineages than those of before
_drawn: list[int] = []


@pytest.fixture
def examples(running: Federation) -> Iterator[Examples]:
    """The three examples, started at west."""
    with services.examples(running) as made:
        asyncio.run(made.start())
        yield made


def test_the_examples_have_what_is_there_though_each_is_killed(running: Federation, examples: Examples) -> None:
    publisher = Publisher(running)
    publisher.publish(fresh_items(60))
    settle(running)

    async def follow() -> None:
        async with running.client(running.tokens["admin"]) as http:
            for name in services.SCRIPTS:
                running.processes[name].kill()
            publisher.publish(fresh_items(40))
            for name in services.SCRIPTS:
                running.restart(name)
            settle(running)
            ids = sorted(await items_of(http))
            await delete_acknowledged(http, ids[:3])
            settle(running)
            await wait_until_followed(running, http)
            catalogue = await items_of(http)
            assert catalogue.keys() == set(ids[3:])
            assert examples.have(catalogue, but_not=ids[:3])

    asyncio.run(follow())
