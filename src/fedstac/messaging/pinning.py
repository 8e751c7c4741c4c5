"""Connections that go to the very address that was judged.

A name that resolves differently a moment later leads nowhere else.
"""

from __future__ import annotations

import asyncio
import functools
import socket
import ssl
from collections.abc import Awaitable, Callable, Iterable, Sequence
from typing import Any

import httpcore
import httpx

MOST_ADDRESSES = 2  # of a name that are tried
Resolve = Callable[[str, int], Awaitable[Sequence[str]]]
Judge = Callable[[str, int, Sequence[str]], None]  # host, port, its addresses; raises where it must not be connected to


async def resolve(host: str, port: int) -> Sequence[str]:
    """Resolve a name to its addresses, as the machine does."""
    addresses = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return [str(address[0]) for *_, address in addresses]


class PinningBackend(httpcore.AsyncNetworkBackend):
    """Resolves a name once, lets all its addresses be judged, and connects to one of those."""

    def __init__(self, find: Resolve, judge: Judge) -> None:
        self._find, self._judge, self._plain = find, judge, httpcore.AnyIOBackend()

    async def connect_tcp(
        self, host: str, port: int, timeout: float | None = None, local_address: str | None = None,
        socket_options: Iterable[Any] | None = None,
    ) -> httpcore.AsyncNetworkStream:  # fmt: skip
        try:
            addresses = list(dict.fromkeys(await self._find(host, port)))
        except (OSError, UnicodeError) as error:
            raise httpcore.ConnectError(f"{host} has no address") from error
        self._judge(host, port, addresses)
        for address in addresses[:MOST_ADDRESSES]:
            try:
                return await self._plain.connect_tcp(address, port, timeout, local_address, socket_options)
            except httpcore.ConnectError:
                continue
        raise httpcore.ConnectError(f"{host} does not answer")

    async def connect_unix_socket(self, *_: Any, **__: Any) -> httpcore.AsyncNetworkStream:
        raise httpcore.ConnectError("a socket of this machine is never connected to")

    async def sleep(self, seconds: float) -> None:
        await self._plain.sleep(seconds)


@functools.cache
def certificates() -> ssl.SSLContext:
    """Return what TLS checks the other side with. It is read once a process, in 40 ms."""
    return httpx.create_ssl_context()
