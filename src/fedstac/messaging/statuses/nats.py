"""Acknowledgements in a stream of NATS JetStream."""

from __future__ import annotations

from types import TracebackType
from typing import Self

from fedstac.messaging import jetstream
from fedstac.messaging.jetstream import ApiFault, Connection, ServerAway, ServerRefused
from fedstac.messaging.sources import SourceAway, SourceRefused
from fedstac.messaging.sources.addresses import BrokerAddress

MOST_MESSAGES, KEPT_SECONDS = 100_000, 7 * 86_400


def open_topic(address: BrokerAddress) -> NatsStatuses:
    """Return the stream of an address, not yet connected."""
    return NatsStatuses(address)


class NatsStatuses:
    """A stream that takes acknowledgements. A connection that broke is made anew with the next one."""

    def __init__(self, address: BrokerAddress) -> None:
        self._address = address
        self._connection: Connection | None = None

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._close()

    async def make(self) -> None:
        """Make the stream, if it is not there."""
        await self._do(None)

    async def send(self, value: bytes) -> None:
        """Store a message."""
        await self._do(value)

    async def _do(self, value: bytes | None) -> None:
        try:
            connection = self._connection or await self._connect()
            if value is not None:
                answer = await connection.request(f"{self._address.name}.status", value)
                jetstream.read_answer(answer.data)
        except (ServerAway, ApiFault) as error:
            await self._close()
            raise SourceAway(f"{self._address}: {error}") from error
        except ServerRefused as error:
            await self._close()
            raise SourceRefused(str(error)) from error

    async def _connect(self) -> Connection:
        connection, name = Connection(), self._address.name
        try:
            await connection.open(jetstream.stream_of(self._address))
            await connection.ask(f"STREAM.CREATE.{name}", {
                "name": name, "subjects": [f"{name}.>"], "storage": "file", "retention": "limits", "discard": "old",
                "max_msgs": MOST_MESSAGES, "max_age": KEPT_SECONDS * 1_000_000_000, "allow_direct": True,
            })  # fmt: skip
        except BaseException:  # cancelled too: nobody would use it as an open one
            await connection.close()
            raise
        self._connection = connection
        return connection

    async def _close(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            await connection.close()
