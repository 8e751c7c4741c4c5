"""Acknowledgements in a topic of Apache Kafka, of one partition."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from functools import partial
from types import TracebackType
from typing import Any, Self

from confluent_kafka import KafkaError, KafkaException, Producer

from fedstac.messaging import kafka
from fedstac.messaging.kafka import SLICE_SECONDS, Brokers, KafkaAway, KafkaRefused, OwnThread
from fedstac.messaging.sources import SourceAway, SourceRefused
from fedstac.messaging.sources.addresses import BrokerAddress

SEND_SECONDS = 10.0


def open_topic(address: BrokerAddress) -> KafkaStatuses:
    """Return the topic of an address, not yet connected."""
    return KafkaStatuses(address)


class KafkaStatuses:
    """A topic that takes acknowledgements. The producer lives in a thread of its own."""

    def __init__(self, address: BrokerAddress) -> None:
        self._address = address
        self._thread = OwnThread()
        self._producer: Producer | None = None

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._thread.close(self._release)

    async def make(self) -> None:
        """Make the topic, if it is not there."""
        await self._do(self._open)

    async def send(self, value: bytes) -> None:
        """Store a message."""
        await self._do(partial(self._send, value))

    async def _do(self, work: Callable[[], object]) -> None:
        try:
            await self._thread.run(work)
        except KafkaAway as error:
            raise SourceAway(str(error)) from error
        except KafkaRefused as error:
            raise SourceRefused(str(error)) from error

    # --- in the thread of the producer

    def _send(self, value: bytes) -> None:
        outcomes: list[KafkaError | None] = []

        def note(error: KafkaError | None, _message: Any) -> None:
            outcomes.append(error)

        try:
            producer = self._producer or self._open()
            producer.produce(self._address.name, value, on_delivery=note)
            self._wait_for(outcomes, producer)
        except KafkaException as error:
            raise kafka.as_fault(kafka.error_of(error), self._address) from error
        if not outcomes:
            producer.purge()
            raise KafkaAway(f"{self._address} does not take an acknowledgement within {SEND_SECONDS:.0f} s")
        if outcomes[0] is not None:
            raise kafka.as_fault(outcomes[0], self._address)

    def _wait_for(self, outcomes: Sequence[KafkaError | None], producer: Producer) -> None:
        """Return when a message has an outcome, or after SEND_SECONDS. KafkaAway if the topic is closed meanwhile."""
        deadline = time.monotonic() + SEND_SECONDS
        while not outcomes and (seconds := deadline - time.monotonic()) > 0:
            self._thread.check()
            producer.flush(min(seconds, SLICE_SECONDS))

    def _open(self) -> Producer:
        properties = kafka.read_properties(self._address)
        brokers = Brokers(self._address, properties, self._thread)
        if brokers.topic() is None:
            brokers.make_topic(1)
        self._producer = Producer({
            **properties, "enable.idempotence": True, "message.timeout.ms": int(SEND_SECONDS * 1000),
        })  # fmt: skip
        return self._producer

    def _release(self) -> None:
        self._producer = None
