"""The access log: one line for each request, when its answer is out."""

from __future__ import annotations

import asyncio
import select
import time
from collections.abc import Iterable, Iterator
from urllib.parse import unquote_to_bytes

import structlog
from starlette.types import Scope

from fedstac.api.http import tracing

WRITE_SECONDS = 0.05  # after which lines are written at the latest
LONGEST = 500  # characters of what a client may have made up
PRIVATE = frozenset((b"reason", b"code", b"state", b"q", b"filter"))  # parameters that are logged by their names alone


class AccessLog:
    """The lines of a process. They are written together, many times a second: alone, each costs four times as much."""

    def __init__(self) -> None:
        self._lines: list[dict[str, object]] = []

    def record(self, scope: Scope, *, request_id: str, began: float, status: int | None, size: int) -> None:
        """Take a request with its answer.

        began: by time.perf_counter. status: None where the client left before its answer. size: bytes of the answer's
        body.
        """
        path: bytes = scope.get("raw_path") or scope["path"].encode()
        line: dict[str, object] = {"method": scope["method"], "path": _text(path)}
        if scope["query_string"]:
            line["query"] = _text(_without_values(scope["query_string"]))
        for name, value in scope["headers"]:
            if name == b"x-forwarded-for":  # what a proxy says, or anybody else
                line["forwarded_for"] = _text(value[-LONGEST:])  # the nearest proxy adds its word at the end
        milliseconds = round((time.perf_counter() - began) * 1000, 1)
        client = _address(scope.get("client"))
        line |= {"status": status, "bytes": size, "client": client, "milliseconds": milliseconds}
        line["trace"] = tracing.trace_of(scope["state"]["traceparent"])
        self._add(line, request_id)

    def record_refusal(self, client: tuple[str, int] | None, *, request_id: str, status: int, problem: str) -> None:
        """Take what was refused before it was a request."""
        self._add({"status": status, "problem": problem, "client": _address(client)}, request_id)

    def write(self) -> None:
        """Write the lines that wait, some at once: what is short enough stays whole beside those of other processes."""
        lines, self._lines = self._lines, []
        texts = _Texts()
        log = structlog.wrap_logger(texts).bind()
        for line in lines:
            log.info("request", **line)
        output = structlog.get_config()["logger_factory"]()
        for piece in _pieces(texts):
            output.info(piece)

    def _add(self, line: dict[str, object], request_id: str) -> None:
        if not self._lines:
            asyncio.get_running_loop().call_later(WRITE_SECONDS, self.write)
        self._lines.append({**line, "request_id": request_id})


class _Texts(list[str]):
    """What structlog takes for a logger: it gathers the texts that the lines become."""

    def info(self, text: str) -> None:
        self.append(text)


def _pieces(texts: Iterable[str]) -> Iterator[str]:
    """Yield texts, as many at once as a pipe takes in one go."""
    piece, size = "", 0
    for text in texts:
        length = 1 + (len(text) if text.isascii() else len(text.encode(errors="replace")))  # bytes, with its line break
        if piece and size + length > select.PIPE_BUF:
            yield piece
            piece, size = "", 0
        piece, size = f"{piece}\n{text}" if piece else text, size + length
    if piece:
        yield piece


def _without_values(query: bytes) -> bytes:
    """Return a query without the values of the parameters that may say what is secret, or of whom."""
    parts = (part.partition(b"=") for part in query.split(b"&"))
    return b"&".join(
        name if unquote_to_bytes(name) in PRIVATE else name + equals + value for name, equals, value in parts
    )


def _text(content: bytes) -> str:
    return content[:LONGEST].decode("latin-1")


def _address(client: tuple[str, int] | None) -> str | None:
    return client[0] if client else None
