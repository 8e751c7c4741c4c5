"""Webhooks: one POST, signed as Standard Webhooks 1.0 has it, to an address that was checked when it is connected to.

The name is resolved once and the connection goes to the very address that was judged, so that a name which resolves
differently a moment later leads nowhere else. Redirects are not followed, no proxy is used, answers are not looked at.
"""

from __future__ import annotations

import asyncio
import functools
import socket
import ssl
import time
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from types import MappingProxyType, TracebackType
from typing import Any, Self

import httpcore
import httpx

from fedstac import __version__
from fedstac.domain.destinations import is_public, signature

MOST_AT_ONCE = 32
KEPT_SECONDS = 30.0  # that a connection stays open without a message
MOST_DRAINED = 16 << 10  # bytes of an answer that are read so that its connection can stay open
NO_HEADERS: Mapping[str, str] = MappingProxyType({})
Resolve = Callable[[str, int], Awaitable[Sequence[str]]]


class Undelivered(Exception):
    """The message did not arrive; it may, later. The text names no more than a status or a kind of failure.

    `status`: of the receiver's answer, where it answered.
    """

    def __init__(self, reason: str, status: int | None = None) -> None:
        super().__init__(reason)
        self.status = status


class Forbidden(Exception):
    """The message must not go there, or the receiver wants no more: trying again is of no use."""


async def resolve(host: str, port: int) -> Sequence[str]:
    """Resolve a name to its addresses, as the machine does."""
    addresses = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return [str(address[0]) for *_, address in addresses]


class _CheckingBackend(httpcore.AsyncNetworkBackend):
    """Connects to public addresses only, unless private ones are allowed."""

    def __init__(self, find: Resolve, *, private: bool) -> None:
        self._find, self._private, self._plain = find, private, httpcore.AnyIOBackend()

    async def connect_tcp(
        self, host: str, port: int, timeout: float | None = None, local_address: str | None = None,
        socket_options: Iterable[Any] | None = None,
    ) -> httpcore.AsyncNetworkStream:  # fmt: skip
        try:
            addresses = list(dict.fromkeys(await self._find(host, port)))
        except OSError as error:
            raise httpcore.ConnectError(f"{host} has no address") from error
        if not self._private and not all(is_public(address) for address in addresses):
            raise Forbidden(f"{host} leads to an address that is not of the internet")
        for address in addresses[:2]:
            try:
                return await self._plain.connect_tcp(address, port, timeout, local_address, socket_options)
            except httpcore.ConnectError:
                continue
        raise httpcore.ConnectError(f"{host} does not answer")

    async def connect_unix_socket(self, *_: Any, **__: Any) -> httpcore.AsyncNetworkStream:
        raise Forbidden("a webhook is no socket of this machine")

    async def sleep(self, seconds: float) -> None:
        await self._plain.sleep(seconds)


@functools.cache
def _certificates() -> ssl.SSLContext:
    """Return what TLS checks receivers with. It is read once a process, in 40 ms."""
    return httpx.create_ssl_context()


class Webhooks:
    """Sends. `private`: to addresses of the own network too. `keep`: so many connections stay open between messages."""

    def __init__(self, *, private: bool, find: Resolve = resolve, keep: int = 0) -> None:
        self._keeps = keep > 0
        self._pool = httpcore.AsyncConnectionPool(
            ssl_context=_certificates(), max_connections=MOST_AT_ONCE, max_keepalive_connections=keep,
            keepalive_expiry=KEPT_SECONDS, network_backend=_CheckingBackend(find, private=private),
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
