"""Receivers of subscriptions' webhooks, real servers on loopback: what came, and the answers that a test wants."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from typing import Any

import orjson

from fedstac.bootstrap import Node
from fedstac.db import nodes, subscriptions
from fedstac.db.connections import Connection
from fedstac.db.subscriptions import NewSubscription, Subscription
from fedstac.domain.events import START, Cursor
from fedstac.domain.policy import Principal
from fedstac.workers.subscriptions import WebhookSender
from tests.support.receivers import listening
from tests.support.waiting import until

ANYBODY = Principal("ben", frozenset())

AGREES = "200 OK\r\nWebHook-Allowed-Origin: *"
TAKEN = "204 No Content"


@dataclass(frozen=True)
class Request:
    """One request that arrived, and when (time.monotonic)."""

    method: str
    path: str
    headers: dict[str, str]
    body: bytes
    at: float

    @property
    def event(self) -> dict[str, Any]:
        """The event, in CloudEvents' structured form."""
        event: dict[str, Any] = orjson.loads(self.body)
        return event

    @property
    def dataset(self) -> str:
        """The id of the event's dataset; empty in one of a collection."""
        return str(self.event["data"].get("id", ""))


def with_status(status: str) -> str:
    """Return an answer 200 whose body says a status."""
    return f"200 OK\n{orjson.dumps({'status': status}).decode()}"


async def agree(request: Request) -> str:
    """Take every event."""
    return TAKEN


@dataclass
class Subscriber:
    """An HTTP server of a few lines that keeps connections.

    respond: the status line and headers of an answer to an event, after a line feed its body. consent: those of the
    answer to OPTIONS. keeps_requests: for as many as a test can hold. taken: events that were answered 2xx without a
    body, in their order.
    """

    port: int = 0
    consent: str = AGREES
    respond: Callable[[Request], Awaitable[str]] = agree
    keeps_requests: bool = True
    handshakes: list[Request] = field(default_factory=list)
    requests: list[Request] = field(default_factory=list)
    taken: list[Request] = field(default_factory=list)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/events"

    def positions(self) -> list[int]:
        """Return the positions in the log of what was taken."""
        return [int(request.headers["fedstac-pos"]) for request in self.taken]

    @property
    def datasets(self) -> list[str]:
        """The ids of the datasets of what was taken."""
        return [request.dataset for request in self.taken]

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(asyncio.IncompleteReadError, ConnectionError):
            while True:
                first, *lines = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
                method, path, _ = first.split()
                headers = {name.lower(): text for name, _, text in (line.partition(": ") for line in lines if line)}
                body = await reader.readexactly(int(headers.get("content-length", 0)))
                request = Request(method, path, headers, body, time.monotonic())
                if method == "OPTIONS":
                    self.handshakes.append(request)
                    answer = self.consent
                else:
                    self.requests += [request] if self.keeps_requests else []
                    answer = await self.respond(request)
                    self.taken += [request] if self.keeps_requests and answer == TAKEN else []
                head, _, text = answer.partition("\n{")
                content = b"{" + text.encode() if text else b""
                writer.write(f"HTTP/1.1 {head}\r\nContent-Length: {len(content)}\r\n\r\n".encode() + content)
                await writer.drain()


@asynccontextmanager
async def subscriber() -> AsyncIterator[Subscriber]:
    """Serve a receiver on a free port."""
    receiver = Subscriber()
    async with listening(receiver.serve) as port:
        receiver.port = port
        yield receiver


async def subscribe(
    conn: Connection, url: str, name: str = "one", *, filter: Mapping[str, object] | None = None,
    owner: Principal = ANYBODY, format: str = "cloudevents", batch: int = 50, after: Cursor = START,
) -> Subscription:  # fmt: skip
    """Store a subscription that is sent to a webhook, and a token of its owner's."""
    await nodes.issue_token(conn, owner.name, sorted(owner.roles), token=f"of {owner.name}")
    new = NewSubscription(
        name=name, owner=owner, delivery="webhook", url=url, format=format, key_template="",
        filter=orjson.dumps(filter or {}).decode(), batch=batch, after=after,
    )  # fmt: skip
    async with conn.transaction():
        return (await subscriptions.put(conn, new, actor=owner.name)).subscription


@asynccontextmanager
async def sending(node: Node, *, lease_seconds: float = 15.0) -> AsyncIterator[WebhookSender]:
    """Send to webhooks until the end of the block, which fails where the sender did."""
    stop = asyncio.Event()
    sender = WebhookSender(node, lease_seconds=lease_seconds)
    task = asyncio.create_task(sender.run(stop))
    try:
        yield sender
    finally:
        stop.set()
        node.sequenced.wake()
        await task


async def subscription_that(
    conn: Connection, condition: Callable[[Subscription], bool], name: str = "one"
) -> Subscription:  # fmt: skip
    """Wait until a subscription is as a condition wants it."""

    async def look() -> Subscription | None:
        stored = await subscriptions.find(conn, name)
        return stored if stored is not None and condition(stored) else None

    subscription = await until(look)
    assert subscription is not None
    return subscription
