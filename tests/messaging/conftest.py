"""What the tests of sinks and relays share: a receiver of each kind."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from tests.support.sinks import Receiver, hook, kafka_topic, nats_stream

KAFKA = pytest.param("kafka", marks=pytest.mark.kafka)


@pytest.fixture(params=["webhook", "nats", KAFKA])
async def receiver(request: pytest.FixtureRequest) -> AsyncIterator[Receiver]:
    """Where a sink sends to, of each kind."""
    if request.param == "webhook":
        async with hook() as made:
            yield made
    else:
        async for log in _log(request):
            yield log


@pytest.fixture(params=["nats", KAFKA])
async def broker_log(request: pytest.FixtureRequest) -> AsyncIterator[Receiver]:
    """A log of each kind of broker."""
    async for log in _log(request):
        yield log


async def _log(request: pytest.FixtureRequest) -> AsyncIterator[Receiver]:
    if request.param == "nats":
        async with nats_stream(request.getfixturevalue("nats_server")) as stream:
            yield stream
    else:
        yield kafka_topic(request.getfixturevalue("kafka_broker"))
