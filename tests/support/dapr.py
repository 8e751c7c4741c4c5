"""Dapr in tests: a sidecar, and an application beside it that subscribes to topics and answers as a test says."""

from __future__ import annotations

import asyncio
import shutil
import tempfile
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import orjson

from fedstac.demo import dapr
from fedstac.demo.dapr import Component, Sidecar
from tests.support.receivers import Call, listening
from tests.support.waiting import until

TOPIC = "fedstac"
SUCCESS = {"status": "SUCCESS"}


@asynccontextmanager
async def sidecar(
    *components: Component, app_port: int | None = None, api_token: str = "", app_token: str = ""
) -> AsyncIterator[Sidecar]:
    """Run a sidecar, for a test that is marked `dapr`."""
    folder = Path(tempfile.mkdtemp(prefix="fedstac-dapr-"))
    try:
        with dapr.sidecar(folder, components, app_port=app_port, api_token=api_token, app_token=app_token) as running:

            async def works() -> bool:
                return await asyncio.to_thread(dapr.is_healthy, running.process.port)

            await until(works)
            yield running
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@dataclass
class Application:
    """An HTTP server of a few lines: a service beside a sidecar, or a sidecar's own API.

    `respond`: the status and the body of the answer to a POST.
    """

    topics: Sequence[str] = (TOPIC,)
    port: int = 0
    posts: list[Call] = field(default_factory=list)
    respond: Callable[[Call], tuple[int, Any]] = lambda call: (200, SUCCESS)

    @property
    def events(self) -> list[dict[str, Any]]:
        """The events that were posted, in their order."""
        return [orjson.loads(post.body) for post in self.posts]

    async def has(self, count: int) -> list[dict[str, Any]]:
        """Wait until so many events were posted, and return them."""

        async def look() -> bool:
            return len(self.posts) >= count

        await until(look)
        return self.events

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(asyncio.IncompleteReadError, ConnectionError):
            while True:
                first, *lines = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
                method, path, _ = first.split(" ")
                fields = {name.lower(): value for name, _, value in (line.partition(": ") for line in lines if line)}
                call = Call(path, fields, await reader.readexactly(int(fields.get("content-length", 0))))
                status, body = self._answer(method, call)
                content = orjson.dumps(body)
                head = (
                    f"HTTP/1.1 {status} -\r\nContent-Type: application/json\r\nContent-Length: {len(content)}\r\n\r\n"
                )
                writer.write(head.encode() + content)
                await writer.drain()

    def _answer(self, method: str, call: Call) -> tuple[int, Any]:
        if method == "GET":
            subscriptions = [{"pubsubname": dapr.PUBSUB, "topic": name, "route": "/events"} for name in self.topics]
            return (200, subscriptions) if call.path == "/dapr/subscribe" else (404, {})
        self.posts.append(call)
        return self.respond(call)


@asynccontextmanager
async def application(*topics: str) -> AsyncIterator[Application]:
    """Serve an application at a free port."""
    app = Application(topics or (TOPIC,))
    async with listening(app.serve) as port:
        app.port = port
        yield app
