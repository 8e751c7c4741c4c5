"""A stream of NATS JetStream as the log of a broker. It is read in its order by a reader that the server forgets."""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from types import TracebackType
from typing import Self

from fedstac.domain.events import Cursor
from fedstac.messaging import jetstream
from fedstac.messaging.jetstream import ApiFault, Connection, ServerAway, ServerRefused, StreamAddress, StreamReader
from fedstac.messaging.sinks import tail_after
from fedstac.messaging.sources import Offsets, SourceAway, SourceRefused
from fedstac.messaging.sources.addresses import BrokerAddress
from fedstac.messaging.sources.chain import LogMessage

PARTITION = ""  # a stream has one
MOST_STRANGE_MESSAGES = 20  # in a row, that no relay wrote, and that a search steps over


@dataclass(frozen=True, slots=True)
class StreamPlace:
    """How far the feed has come at a message of the stream."""

    sequence: int
    cursor: Cursor


def open_log(address: BrokerAddress) -> NatsLog:
    """Return the log of a stream, not yet connected."""
    return NatsLog(jetstream.stream_of(address))


class NatsLog:
    """Reads a stream. Every `seek` begins anew: with a new connection where the last one broke."""

    def __init__(self, address: StreamAddress) -> None:
        self._address, self._stream = address, address.stream
        self._connection: Connection | None = None
        self._reader: StreamReader | None = None
        self.identity = ""  # when the stream was made

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._close()

    async def seek(self, after: Cursor, offsets: Offsets) -> Collection[str]:
        """Go to the first message after a cursor."""
        with _as_source_errors():
            connection = await self._connect()
            info = await connection.ask(f"STREAM.INFO.{self._stream}")
            self.identity = str(info["created"])
            if self._reader is not None:
                await self._reader.close()
                self._reader = None
            offset = offsets.get(PARTITION)
            if offset is None or not await self._is_before(connection, offset, after):
                offset = await self._search(connection, info["state"], after)
            reader = StreamReader(connection, self._stream)
            await reader.open(first=offset)
            self._reader = reader
        return (PARTITION,)

    async def read(self, limit: int, wait: float, *, without: Collection[str]) -> Sequence[LogMessage]:
        """Return the next messages, after up to `wait` seconds."""
        if self._reader is None:
            raise SourceAway(f"the stream {self._stream} is not read yet")
        if PARTITION in without:
            await asyncio.sleep(wait)
            return ()
        with _as_source_errors():
            messages = await self._reader.receive(limit=limit, wait=wait)
        return [LogMessage(PARTITION, message.sequence, message.headers, message.data) for message in messages]

    async def _connect(self) -> Connection:
        """Return a connection that works, as far as one can tell."""
        if self._connection is not None and self._connection.error is None:
            return self._connection
        await self._close()
        self._connection = Connection()
        try:
            await self._connection.open(self._address)
        except BaseException:
            await self._close()
            raise
        return self._connection

    async def _close(self) -> None:
        connection, self._connection, self._reader = self._connection, None, None
        if connection is not None:
            await connection.close()

    async def _is_before(self, connection: Connection, offset: int, after: Cursor) -> bool:
        """Return whether the message before an offset is there, and none of the events after a cursor."""
        place = await self._place_from(connection, offset - 1) if offset > 1 else None
        return place is not None and place.sequence == offset - 1 and place.cursor <= after

    async def _search(self, connection: Connection, state: Mapping[str, int], after: Cursor) -> int:
        """Return where to begin for a cursor, by halving: a stream is in the order of the feed.

        It is the first message after the cursor, or one before that where messages that no relay wrote hide it.
        """
        low, high = int(state["first_seq"]), int(state["last_seq"]) + 1
        while low < high:
            middle = (low + high) // 2
            place = await self._place_from(connection, middle)
            if place is None or place.cursor > after:
                high = middle
            else:
                low = place.sequence + 1
        return low

    async def _place_from(self, connection: Connection, sequence: int) -> StreamPlace | None:
        """Return the place of the first message from a sequence number on that a relay wrote."""
        for _ in range(MOST_STRANGE_MESSAGES):
            which = {"seq": sequence, "next_by_subj": f"{self._stream}.>"}
            message = await jetstream.stored_message(connection, self._stream, which)
            if message is None:
                return None
            with suppress(LookupError, ValueError):
                return StreamPlace(message.sequence, tail_after(message.headers))
            sequence = message.sequence + 1
        return None


@contextmanager
def _as_source_errors() -> Iterator[None]:
    """Raise the errors of a connection as those of sources."""
    try:
        yield
    except (ServerAway, ApiFault) as error:
        raise SourceAway(str(error)) from error
    except ServerRefused as error:
        raise SourceRefused(str(error)) from error
