"""Webhooks: one POST, signed as Standard Webhooks 1.0 has it, to an address that was checked when it is connected to.

The name is resolved once and the connection goes to the very address that was judged, so that a name which resolves
differently a moment later leads nowhere else. Redirects are not followed, no proxy is used, answers are not looked at.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping, Sequence
from types import MappingProxyType, TracebackType
from typing import Self

import httpcore

from fedstac import __version__
from fedstac.domain.destinations import is_public, signature
from fedstac.messaging.pinning import PinningBackend, Resolve, certificates, resolve

MOST_AT_ONCE = 32
KEPT_SECONDS = 30.0  # that a connection stays open without a message
MOST_DRAINED = 16 << 10  # bytes of an answer that are read so that its connection can stay open
NO_HEADERS: Mapping[str, str] = MappingProxyType({})


class Undelivered(Exception):
    """The message did not arrive; it may, later. The text names no more than a status or a kind of failure.

    `status`: of the receiver's answer, where it answered.
    """

    def __init__(self, reason: str, status: int | None = None) -> None:
        super().__init__(reason)
        self.status = status


class Forbidden(Exception):
    """The message must not go there, or the receiver wants no more: trying again is of no use."""


class Webhooks:
    """Sends. `private`: to addresses of the own network too. `keep`: so many connections stay open between messages."""

    def __init__(self, *, private: bool, find: Resolve = resolve, keep: int = 0) -> None:
        def judge(host: str, port: int, addresses: Sequence[str]) -> None:
            if not private and not all(is_public(address) for address in addresses):
                raise Forbidden(f"{host} leads to an address that is not of the internet")

        self._keeps = keep > 0
        self._pool = httpcore.AsyncConnectionPool(
            ssl_context=certificates(), max_connections=MOST_AT_ONCE, max_keepalive_connections=keep,
            keepalive_expiry=KEPT_SECONDS, network_backend=PinningBackend(find, judge),
        )  # fmt: skip

    async def __aenter__(self) -> Self:
        await self._pool.__aenter__()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._pool.__aexit__(kind, error, trace)

    async def send(
        self, url: str, *, id: str, secret: bytes, body: bytes, seconds: float, headers: Mapping[str, str] = NO_HEADERS
    ) -> None:
        """Send it, and return when the receiver answered 2xx. Undelivered or Forbidden otherwise."""
        now = int(time.time())
        fields: dict[str, str] = {
            "content-type": "application/json",
            **headers,
            "user-agent": f"fedstac/{__version__}",
            "webhook-id": id,
            "webhook-timestamp": str(now),
            "webhook-signature": signature(secret, id, now, body),
        }
        limits = dict.fromkeys(("connect", "read", "write", "pool"), seconds)
        try:
            async with (
                asyncio.timeout(seconds),
                self._pool.stream(
                    "POST", url, headers=list(fields.items()), content=body, extensions={"timeout": limits}
                ) as answer,
            ):
                status = answer.status
                if self._keeps:
                    await _drain(answer)
        except TimeoutError:
            raise Undelivered("no answer in time") from None
        except (
            httpcore.NetworkError, httpcore.TimeoutException, httpcore.ProtocolError, httpcore.UnsupportedProtocol,
            OSError,
        ) as error:  # fmt: skip
            raise Undelivered(type(error).__name__) from error
        if status == 410:
            raise Forbidden("the receiver says that it is gone (410)")
        if not 200 <= status < 300:
            raise Undelivered(f"the receiver answered {status}", status)


async def _drain(answer: httpcore.Response) -> None:
    """Read an answer to its end, so that its connection can stay open; leave one that is long, which closes it."""
    size = 0
    async for part in answer.aiter_stream():
        size += len(part)
        if size > MOST_DRAINED:
            return
