"""The access log: one line for each request, when its answer is out."""

from __future__ import annotations

import time

import structlog
from starlette.types import Scope

LONGEST = 500  # characters of what a client may have made up

_log = structlog.get_logger()


def record(scope: Scope, *, began: float, status: int | None, size: int) -> None:
    """Log a request with its answer. The request's id is bound already.

    began: by time.perf_counter. status: None where the client left before its answer. size: bytes of the answer's body.
    """
    path: bytes = scope.get("raw_path") or scope["path"].encode()
    fields: dict[str, object] = {"method": scope["method"], "path": _text(path)}
    if scope["query_string"]:
        fields["query"] = _text(scope["query_string"])
    for name, value in scope["headers"]:
        if name == b"x-forwarded-for":  # what a proxy says, or anybody else
            fields["forwarded_for"] = _text(value)
    _log.info(
        "request", **fields, status=status, bytes=size, client=_address(scope.get("client")),
        milliseconds=round((time.perf_counter() - began) * 1000, 1),
    )  # fmt: skip


def record_refusal(client: tuple[str, int] | None, *, request_id: str, status: int, problem: str) -> None:
    """Log what was refused before it was a request."""
    _log.info("request", status=status, problem=problem, client=_address(client), request_id=request_id)


def _text(text: bytes) -> str:
    return text[:LONGEST].decode("latin-1")


def _address(client: tuple[str, int] | None) -> str | None:
    return client[0] if client else None
