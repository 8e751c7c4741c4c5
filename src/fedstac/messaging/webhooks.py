"""Webhooks: one POST, signed as Standard Webhooks 1.0 has it, to an address that was checked when it is connected to.

The name is resolved once and the connection goes to the very address that was judged, so that a name which resolves
differently a moment later leads nowhere else. Redirects are not followed, no proxy is used. Of an answer only the first
bytes are read.
"""

from __future__ import annotations

import asyncio
import functools
import socket
import ssl
import time
from collections import OrderedDict
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from types import MappingProxyType, TracebackType
from typing import Any, Self, TypeAlias

import httpcore
import httpx

from fedstac import __version__
from fedstac.domain.destinations import ONLY_LISTED_PLAIN, Network, is_within, may_lead_to, signature
from fedstac.domain.webhook_answers import WebhookAnswer

SCHEMES = ("https", "http")
MOST_AT_ONCE = 32
RESOLVING_THREADS = 32  # of a process
MOST_CONNECT_SECONDS = 5.0  # so that an address that is not reached is told from a receiver that does not answer
KEPT_SECONDS = 30.0  # that a connection stays open without a message
MOST_DRAINED = 16 << 10  # bytes of an answer that are read so that its connection can stay open
NO_HEADERS: Mapping[str, str] = MappingProxyType({})
Resolve = Callable[[str, int], Awaitable[Sequence[str]]]


class Undelivered(Exception):
    """The message did not arrive; it may, later. The text names no more than a status or a kind of failure.

    `status`: of the receiver's answer, where it answered. `was_sent`: it may have arrived, for all that is known.
    """

    def __init__(self, reason: str, status: int | None = None, *, was_sent: bool = True) -> None:
        super().__init__(reason)
        self.status, self.was_sent = status, was_sent


class Forbidden(Exception):
    """The message must not go there, or the receiver wants no more: trying again is of no use."""


async def resolve(host: str, port: int) -> Sequence[str]:
    """Resolve a name to its addresses, as the machine does.

    In threads of its own: a name server that does not answer holds a thread for half a minute, and others need theirs.
    """
    look_up = functools.partial(socket.getaddrinfo, host, port, type=socket.SOCK_STREAM)
    addresses = await asyncio.get_running_loop().run_in_executor(_resolving_threads(), look_up)
    return [str(address[0]) for *_, address in addresses]


@functools.cache
def _resolving_threads() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(RESOLVING_THREADS, thread_name_prefix="resolve")


class _CheckingBackend(httpcore.AsyncNetworkBackend):
    """Connects to public addresses and those of some networks only, unless private ones are allowed.

    scheme: of what is sent. Plain http goes to these networks only.
    """

    def __init__(self, find: Resolve, scheme: str, *, private: bool, networks: Sequence[Network]) -> None:
        self._find, self._scheme, self._private, self._networks = find, scheme, private, networks
        self._plain = httpcore.AnyIOBackend()

    async def connect_tcp(
        self, host: str, port: int, timeout: float | None = None, local_address: str | None = None,
        socket_options: Iterable[Any] | None = None,
    ) -> httpcore.AsyncNetworkStream:  # fmt: skip
        try:
            addresses = list(dict.fromkeys(await self._find(host, port)))
        except (OSError, UnicodeError) as error:  # the latter of a name that cannot be one
            raise httpcore.ConnectError(f"{host} has no address") from error
        if not self._private:
            self._judge(host, addresses)
        for address in addresses[:2]:
            try:
                return await self._plain.connect_tcp(address, port, timeout, local_address, socket_options)
            except httpcore.ConnectError:
                continue
        raise httpcore.ConnectError(f"{host} does not answer")

    def _judge(self, host: str, addresses: Iterable[str]) -> None:
        for address in addresses:
            if not is_within(address, self._networks):
                raise Forbidden(f"{host} leads to an address that is not of the internet")
            if not may_lead_to(address, self._scheme, self._networks):
                raise Forbidden(f"{host} leads to the internet: {ONLY_LISTED_PLAIN}")

    async def connect_unix_socket(self, *_: Any, **__: Any) -> httpcore.AsyncNetworkStream:
        raise Forbidden("a webhook is no socket of this machine")

    async def sleep(self, seconds: float) -> None:
        await self._plain.sleep(seconds)


@functools.cache
def _certificates() -> ssl.SSLContext:
    """Return what TLS checks receivers with. It is read once a process, in 40 ms."""
    return httpx.create_ssl_context()


OriginKey: TypeAlias = tuple[bytes, bytes, int]  # scheme, host, port


class _Connections:
    """Connections to receivers, each used by one message at a time; `keep` stay open between messages.

    A pool of httpcore looks at all of its connections for each message, and asks the system about each of them.
    """

    def __init__(self, backends: Mapping[bytes, _CheckingBackend], keep: int) -> None:
        self._backends, self._keep = backends, keep
        self._idle: dict[OriginKey, list[httpcore.AsyncHTTPConnection]] = {}
        self._by_age: OrderedDict[httpcore.AsyncHTTPConnection, OriginKey] = OrderedDict()  # of those that are idle

    @asynccontextmanager
    async def one_to(self, origin: httpcore.Origin) -> AsyncIterator[httpcore.AsyncHTTPConnection]:
        """Yield a connection for one message: one that is open, or a new one."""
        key = (origin.scheme, origin.host, origin.port)
        connection = await self._take(key) or httpcore.AsyncHTTPConnection(
            origin,
            ssl_context=_certificates(),
            keepalive_expiry=KEPT_SECONDS,
            network_backend=self._backends[origin.scheme],
        )
        try:
            yield connection
        finally:
            await self._give_back(connection, key)

    async def close(self) -> None:
        """Close those that are idle."""
        while self._by_age:
            await self._remove(next(iter(self._by_age))).aclose()

    async def _take(self, key: OriginKey) -> httpcore.AsyncHTTPConnection | None:
        while idle := self._idle.get(key):
            connection = self._remove(idle[-1])
            if connection.is_available() and not connection.has_expired():
                return connection
            await connection.aclose()
        return None

    async def _give_back(self, connection: httpcore.AsyncHTTPConnection, key: OriginKey) -> None:
        if not (self._keep and connection.is_available()):  # its answer was not read to the end, or it is closed
            await connection.aclose()
            return
        self._idle.setdefault(key, []).append(connection)
        self._by_age[connection] = key
        while self._by_age:
            oldest = next(iter(self._by_age))
            if len(self._by_age) <= self._keep and not oldest.has_expired():
                break
            await self._remove(oldest).aclose()

    def _remove(self, connection: httpcore.AsyncHTTPConnection) -> httpcore.AsyncHTTPConnection:
        key = self._by_age.pop(connection)
        self._idle[key].remove(connection)
        if not self._idle[key]:
            del self._idle[key]
        return connection


class Webhooks:
    """Sends. `private`: to addresses of the own network too, and by http; `networks`: to those of them.

    `keep`: so many connections stay open between messages. `at_once`: so many are open.
    """

    def __init__(
        self, *, private: bool, find: Resolve = resolve, keep: int = 0, networks: Sequence[Network] = (),
        at_once: int = MOST_AT_ONCE,
    ) -> None:  # fmt: skip
        self._keeps = keep > 0
        backends = {
            scheme.encode(): _CheckingBackend(find, scheme, private=private, networks=networks) for scheme in SCHEMES
        }
        self._connections = _Connections(backends, keep)
        self._room = asyncio.Semaphore(at_once)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._connections.close()

    async def send(
        self, url: str, *, id: str, secret: bytes, body: bytes, seconds: float, headers: Mapping[str, str] = NO_HEADERS
    ) -> None:
        """Send it, and return when the receiver answered 2xx. Undelivered or Forbidden otherwise."""
        status = (await self.post(url, id=id, secret=secret, body=body, seconds=seconds, headers=headers)).status
        if status == 410:
            raise Forbidden("the receiver says that it is gone (410)")
        if not 200 <= status < 300:
            raise Undelivered(f"the receiver answered {status}", status)

    async def post(
        self, url: str, *, id: str, secret: bytes, body: bytes, seconds: float, headers: Mapping[str, str] = NO_HEADERS
    ) -> WebhookAnswer:
        """Send it, and return the answer, whatever it is. Undelivered where there is none, Forbidden by its address."""
        now = int(time.time())
        fields: dict[str, str] = {
            "content-type": "application/json",
            **headers,
            "webhook-id": id,
            "webhook-timestamp": str(now),
            "webhook-signature": signature(secret, id, now, body),
        }
        return await self._exchange("POST", url, fields, body, seconds)

    async def ask_consent(self, url: str, *, origin: str, seconds: float) -> WebhookAnswer:
        """Ask a receiver whether it wants events (CloudEvents, HTTP Web Hooks, 4.1). Errors as of `post`."""
        fields = {"webhook-request-origin": origin, "webhook-request-rate": "*"}
        return await self._exchange("OPTIONS", url, fields, b"", seconds)

    async def _exchange(
        self, method: str, url: str, fields: Mapping[str, str], body: bytes, seconds: float
    ) -> WebhookAnswer:  # fmt: skip
        limits = {"read": seconds, "write": seconds, "connect": min(seconds, MOST_CONNECT_SECONDS)}
        fields = {**fields, "user-agent": f"fedstac/{__version__}"}
        target, has_begun = httpcore.URL(url), False
        try:
            async with asyncio.timeout(seconds), self._room, self._connections.one_to(target.origin) as connection:
                has_begun = True
                async with connection.stream(
                    method, target, headers=list(fields.items()), content=body, extensions={"timeout": limits}
                ) as answer:
                    begin = await _drain(answer) if self._keeps else b""
                    headers = {name.decode("latin-1").lower(): text.decode("latin-1") for name, text in answer.headers}
                    return WebhookAnswer(answer.status, headers, begin)
        except TimeoutError:
            raise Undelivered("no answer in time", was_sent=has_begun) from None
        except (httpcore.ConnectError, httpcore.ConnectTimeout) as error:
            raise Undelivered(type(error).__name__, was_sent=False) from error
        except (httpcore.NetworkError, httpcore.TimeoutException, httpcore.ProtocolError, OSError) as error:
            raise Undelivered(type(error).__name__) from error


async def _drain(answer: httpcore.Response) -> bytes:
    """Return the begin of an answer. It is read to its end, so that its connection can stay open.

    One that is long is left, which closes the connection.
    """
    begin = b""
    async for part in answer.aiter_stream():
        begin += part
        if len(begin) > MOST_DRAINED:
            break
    return begin[:MOST_DRAINED]
