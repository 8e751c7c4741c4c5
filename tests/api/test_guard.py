"""The guard and the server, as a client on a socket sees them. Run as a program: the server of the memory tests."""

from __future__ import annotations

import asyncio
import contextlib
import gzip
import hashlib
import itertools
import json
import os
import queue
import random
import re
import select
import signal
import socket
import subprocess
import sys
import threading
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

import pytest
from fastapi import FastAPI
from stac_fastapi.types import errors as stac_errors
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route
from structlog.testing import capture_logs

from fedstac.api.app import TABLE
from fedstac.api.http import limits, problems
from fedstac.api.http.guard import Guard
from fedstac.api.http.server import Config, HttpServer, run
from fedstac.domain import errors
from fedstac.settings import Settings
from tests.support.places import REPOSITORY
from tests.support.processes import peak_memory
from tests.support.waiting import PATIENCE

MB = 10**6

# --- the application behind the guard ---


async def digest(request: Request) -> Response:
    size, sha = 0, hashlib.sha256()
    async for chunk in request.stream():
        assert len(chunk) <= 512 * 1024
        size += len(chunk)
        sha.update(chunk)
    return JSONResponse({"size": size, "sha256": sha.hexdigest(), "headers": sorted(request.headers.keys())})


async def swallow(request: Request) -> Response:
    with contextlib.suppress(Exception):
        await request.body()
    return JSONResponse({"fine": True})


async def unread(request: Request) -> Response:
    raise errors.Unauthenticated("send a token")


async def pauses(request: Request) -> Response:
    async for _ in request.stream():
        await asyncio.sleep(0.3)
    return JSONResponse({})


async def fails(request: Request) -> Response:
    raise RuntimeError("secret internals")


async def fails_late(request: Request) -> Response:
    async def pieces() -> Any:
        yield b"some"
        raise RuntimeError("secret internals")

    return StreamingResponse(pieces())


async def busy(request: Request) -> Response:
    raise errors.TooManyRequests("too much under way", retry_after=7)


async def invalid(request: Request) -> Response:
    raise errors.StacInvalid("bad", findings=[errors.Finding("terms", "/properties/x", "x is unknown")])


async def teapot(request: Request) -> Response:
    raise HTTPException(418, "short and stout")


async def where(request: Request) -> Response:
    return JSONResponse({"url": str(request.url), "base": str(request.base_url), "id": request.state.request_id})


def application() -> Starlette:
    app = Starlette(
        routes=[
            Route("/digest", digest, methods=["POST"]),
            Route("/collections/c/items", digest, methods=["POST"]),
            Route("/swallow", swallow, methods=["POST"]),
            Route("/unread", unread, methods=["POST"]),
            Route("/pauses", pauses, methods=["POST"]),
            Route("/fails", fails),
            Route("/fails-late", fails_late),
            Route("/busy", busy),
            Route("/invalid", invalid),
            Route("/teapot", teapot),
            Route("/where", where),
            Route("/items/{id}", where),
        ]
    )
    problems.install(app)
    return app


def guarded(app: Any, **options: Any) -> Guard:
    """Return an application behind the guard, with the limits that production has."""
    return Guard(app, limit_for=limits.of_bodies(TABLE, Settings(_env_file=None)), **options)


@contextlib.contextmanager
def serving(app: Any, **options: Any) -> Iterator[str]:
    ready: queue.Queue[str] = queue.Queue()
    server = HttpServer(Config(app, **options), on_ready=ready.put)
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        yield ready.get(timeout=PATIENCE)
    finally:
        server.should_exit = True
        thread.join(timeout=PATIENCE)


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    with serving(guarded(application())) as url:
        yield url


@pytest.fixture(scope="module")
def impatient() -> Iterator[str]:
    """Deadlines of tenths of a second."""
    with serving(guarded(application(), read_timeout=0.25, min_rate=1024, linger=0.1), header_timeout=0.25) as url:
        yield url


# --- the client ---


@dataclass(frozen=True)
class Answer:
    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)


class Connection:
    def __init__(self, url: str) -> None:
        parts = urlsplit(url)
        self.socket = socket.create_connection((parts.hostname, parts.port), timeout=PATIENCE)
        self._buffer = b""

    def __enter__(self) -> Connection:
        return self

    def __exit__(self, *_: object) -> None:
        self.socket.close()

    def send(self, data: bytes) -> None:
        self.socket.sendall(data)

    def has_answer(self, within: float) -> bool:
        return bool(select.select([self.socket], [], [], within)[0])

    def is_closed(self) -> bool:
        """Wait until the server closes. Return whether it said anything more before."""
        try:
            while self.socket.recv(65536):
                pass
        except ConnectionResetError:
            pass
        return True

    def answer(self) -> Answer:
        while b"\r\n\r\n" not in self._buffer:
            self._fill()
        head, _, self._buffer = self._buffer.partition(b"\r\n\r\n")
        first, *lines = head.decode().split("\r\n")
        headers = dict(line.lower().split(": ", 1) for line in lines)
        size = int(headers["content-length"])
        while len(self._buffer) < size:
            self._fill()
        body, self._buffer = self._buffer[:size], self._buffer[size:]
        return Answer(int(first.split()[1]), headers, body)

    def _fill(self) -> None:
        data = self.socket.recv(65536)
        if not data:
            raise EOFError(self._buffer)
        self._buffer += data


def head(method: str, path: str, **headers: object) -> bytes:
    fields = {"host": "test", **{name.replace("_", "-"): value for name, value in headers.items()}}
    return "".join([f"{method} {path} HTTP/1.1\r\n", *(f"{k}: {v}\r\n" for k, v in fields.items()), "\r\n"]).encode()


def chunked(pieces: Iterable[bytes]) -> Iterator[bytes]:
    for piece in pieces:
        yield b"%x\r\n%s\r\n" % (len(piece), piece)
    yield b"0\r\n\r\n"


def ask(url: str, request: bytes, body: Iterable[bytes] = ()) -> Answer:
    """Send one request and return the answer. The body goes out until the server wants no more, as good clients do."""
    with Connection(url) as connection:
        connection.send(request)

        def send() -> None:
            with contextlib.suppress(OSError):
                for piece in body:
                    connection.send(piece)

        sender = threading.Thread(target=send)
        sender.start()
        try:
            return connection.answer()
        finally:
            with contextlib.suppress(OSError):
                connection.socket.shutdown(socket.SHUT_RDWR)
            sender.join(timeout=PATIENCE)


def post(url: str, path: str, body: bytes, **headers: object) -> Answer:
    return ask(url, head("POST", path, content_length=len(body), **headers), [body])


def get(url: str, path: str, **headers: object) -> Answer:
    return ask(url, head("GET", path, **headers))


def refused(answer: Answer, problem: type[errors.Problem]) -> bool:
    """Return whether the answer is that problem, in full."""
    document = answer.json
    assert answer.headers["content-type"] == "application/problem+json"
    assert document["status"] == document["status_code"] == answer.status
    assert document["description"] == document["detail"]
    assert document["type"].endswith(f"/problems/{document['code']}")
    assert answer.headers["x-request-id"]
    return (answer.status, document["code"], document["title"]) == (problem.status, problem.name, problem.title)


# --- sizes ---


@pytest.mark.parametrize(
    ("method", "path", "most"),
    [("POST", "/collections/c/items", 64 << 20), ("POST", "/validate", 64 << 20),
     ("PUT", "/collections/c/items/i", 4 << 20), ("PATCH", "/collections/c/items/i", 4 << 20),
     ("POST", "/search", 2 << 20), ("PUT", "/collections/c", 2 << 20), ("POST", "/nothing", 2 << 20),
     ("POST", "/stac/collections/c/items", 64 << 20)],
)  # fmt: skip
def test_how_large_a_body_may_be_follows_from_its_route(method: str, path: str, most: int) -> None:
    limit = limits.of_bodies(TABLE, Settings(_env_file=None))
    root = "/stac" if path.startswith("/stac") else ""
    assert limit({"type": "http", "method": method, "path": path, "root_path": root}) == most


def test_a_body_within_the_limits_arrives_as_it_was_sent(url: str) -> None:
    body = os.urandom(2 * MB)
    expected = hashlib.sha256(body).hexdigest()
    assert post(url, "/digest", body).json["sha256"] == expected
    pieces = [body[at : at + 70_000] for at in range(0, len(body), 70_000)]
    assert ask(url, head("POST", "/digest", transfer_encoding="chunked"), chunked(pieces)).json["sha256"] == expected


@pytest.fixture(scope="module")
def process() -> Iterator[tuple[str, int]]:
    """A server in a process of its own: its URL and process id."""
    with subprocess.Popen(
        [sys.executable, "-m", "tests.api.test_guard"], cwd=REPOSITORY, stdout=subprocess.PIPE, text=True
    ) as server:
        assert server.stdout is not None
        yield server.stdout.readline().strip(), server.pid
        server.send_signal(signal.SIGTERM)
        assert server.wait(timeout=PATIENCE) == 0


def hundred_megabytes() -> Iterator[bytes]:
    return itertools.repeat(b" " * 100_000, 1000)


def bomb() -> Iterator[bytes]:
    """Yield ten gigabytes of zeros in ten megabytes, made as they are sent."""
    packer = zlib.compressobj(9, wbits=31)
    for _ in range(10_000):
        yield packer.compress(b"\0" * MB)
    yield packer.flush()


FLOODS = {
    "with its length": (head("POST", "/digest", content_length=100 * MB), hundred_megabytes),
    "in chunks": (head("POST", "/digest", transfer_encoding="chunked"), lambda: chunked(hundred_megabytes())),
    "on a batch route": (
        head("POST", "/collections/c/items", content_length=100 * MB),
        hundred_megabytes,
    ),
    "without end": (
        head("POST", "/digest", transfer_encoding="chunked"),
        lambda: chunked(itertools.repeat(b"x" * 100_000)),
    ),
    "a bomb": (
        head("POST", "/collections/c/items", content_encoding="gzip", transfer_encoding="chunked"),
        lambda: chunked(filter(None, bomb())),
    ),
}


@pytest.mark.parametrize("flood", FLOODS)
def test_a_flood_is_refused_and_never_in_memory(flood: str, process: tuple[str, int]) -> None:
    url, pid = process
    assert post(url, "/digest", b"x" * MB).status == 200  # what one request needs anyway
    before = peak_memory(pid)
    request, body = FLOODS[flood]
    answer = ask(url, request, body())
    assert refused(answer, errors.BodyTooLarge)
    assert answer.headers["connection"] == "close"
    assert peak_memory(pid) - before < 20 * MB


def test_a_batch_may_be_larger_and_is_not_held_in_memory(process: tuple[str, int]) -> None:
    url, pid = process
    before = peak_memory(pid)
    assert (
        ask(url, head("POST", "/collections/c/items", content_length=50 * MB), [b"x" * MB] * 50).json["size"] == 50 * MB
    )
    assert peak_memory(pid) - before < 20 * MB


def test_a_client_that_sends_all_before_it_reads_gets_the_refusal_too(url: str) -> None:
    with Connection(url) as connection:
        connection.send(head("POST", "/digest", content_length=8 * MB) + b"x" * 8 * MB)
        assert refused(connection.answer(), errors.BodyTooLarge)
        assert connection.is_closed()


def test_the_limit_holds_whatever_the_application_makes_of_it(url: str) -> None:
    request = head("POST", "/swallow", transfer_encoding="chunked")
    assert refused(ask(url, request, chunked(hundred_megabytes())), errors.BodyTooLarge)


@pytest.mark.parametrize("header", ["X: " + "a" * 60_000 + "\r\n", "X: a\r\n" * 101])
def test_headers_that_are_too_large_are_refused(url: str, header: str) -> None:
    assert refused(ask(url, f"GET /where HTTP/1.1\r\nHost: test\r\n{header}\r\n".encode()), errors.HeadersTooLarge)


@pytest.mark.parametrize("piece", [b"a" * 10_000, b"a: b\r\n" * 2_000])
def test_headers_without_end_are_refused(url: str, piece: bytes) -> None:
    assert refused(ask(url, b"GET /where HTTP/1.1\r\nX: ", itertools.repeat(piece)), errors.HeadersTooLarge)


@pytest.mark.parametrize("start", [b"1\r\nx\r\n0\r\nX: ", b"1\r\nx\r\n5;x="])
def test_trailers_and_chunk_extensions_without_end_are_cut_off(url: str, start: bytes) -> None:
    request = head("POST", "/digest", transfer_encoding="chunked") + start
    assert refused(ask(url, request, itertools.repeat(b"a" * 10_000)), errors.HeadersTooLarge)


def test_a_long_url_is_refused(url: str) -> None:
    assert refused(get(url, "/where?q=" + "a" * 17_000), errors.BadRequest)


# --- encodings ---


@pytest.mark.parametrize("encoding", ["gzip", "GZIP", "x-gzip"])
def test_gzip_is_inflated_and_the_application_does_not_notice(url: str, encoding: str) -> None:
    body = os.urandom(MB) + b"a" * MB
    packed = gzip.compress(body[: MB // 2]) + gzip.compress(body[MB // 2 :])  # of two members
    answer = post(url, "/digest", packed, content_encoding=encoding)
    assert answer.json["sha256"] == hashlib.sha256(body).hexdigest()
    assert not {"content-encoding", "content-length"} & set(answer.json["headers"])


def test_an_empty_gzip_body_is_an_empty_body(url: str) -> None:
    assert post(url, "/digest", b"", content_encoding="gzip").json["size"] == 0
    assert post(url, "/digest", gzip.compress(b""), content_encoding="gzip").json["size"] == 0


def test_identity_is_no_encoding(url: str) -> None:
    assert post(url, "/digest", b"abc", content_encoding="identity").json["size"] == 3


@pytest.mark.parametrize("encoding", ["br", "gzip, gzip", "deflate"])
def test_another_encoding_is_refused(url: str, encoding: str) -> None:
    assert refused(post(url, "/digest", b"abc", content_encoding=encoding), errors.UnsupportedMediaType)


@pytest.mark.parametrize(
    "body",
    [
        b"no gzip",
        gzip.compress(b"abc", mtime=0)[:-1],
        gzip.compress(b"abc", mtime=0) + b"rest",
        gzip.compress(random.Random(0).randbytes(MB), mtime=0)[:-9],
    ],
)
def test_what_is_not_gzip_is_refused(url: str, body: bytes) -> None:
    assert refused(post(url, "/digest", body, content_encoding="gzip"), errors.BadRequest)


def test_the_limit_holds_after_inflating_too(url: str) -> None:
    body = b"".join(b'{"id":"%d"}\n' % number for number in range(500_000))
    packed = gzip.compress(body)
    assert len(packed) < 2 * MB < len(body) < 20 * len(packed)
    answer = post(url, "/digest", packed, content_encoding="gzip")
    assert refused(answer, errors.BodyTooLarge)
    assert "inflates to over 2097152 bytes" in answer.json["detail"]


# --- time ---


def test_slow_headers_end_the_connection(impatient: str) -> None:
    with Connection(impatient) as connection:
        connection.send(b"GET /where HTTP/1.1\r\nHo")
        assert refused(connection.answer(), errors.BodyTimeout)
        assert connection.is_closed()


def test_a_trickle_of_headers_is_no_progress(impatient: str) -> None:
    with Connection(impatient) as connection:
        connection.send(b"GET /where HTTP/1.1\r\nX: ")
        while not connection.has_answer(within=0.02):
            connection.send(b"a")
        assert refused(connection.answer(), errors.BodyTimeout)


def test_a_connection_that_says_nothing_is_closed_without_an_answer(impatient: str) -> None:
    with Connection(impatient) as connection, pytest.raises(EOFError, match="b''"):
        connection.answer()


def test_the_clock_runs_for_every_request_of_a_connection(impatient: str) -> None:
    with Connection(impatient) as connection:
        for _ in range(2):
            connection.send(head("GET", "/where"))
            assert connection.answer().status == 200
        connection.send(b"GET /whe")
        assert refused(connection.answer(), errors.BodyTimeout)


@pytest.mark.parametrize("framing", [{"content_length": 1000}, {"transfer_encoding": "chunked"}])
@pytest.mark.parametrize("path", ["/digest", "/swallow"])
def test_a_body_that_never_comes_is_not_waited_for(impatient: str, path: str, framing: dict[str, object]) -> None:
    with Connection(impatient) as connection:
        connection.send(head("POST", path, **framing))
        assert refused(connection.answer(), errors.BodyTimeout)
        assert connection.is_closed()


def test_a_trickle_of_body_ends(impatient: str) -> None:
    with Connection(impatient) as connection:
        connection.send(head("POST", "/digest", transfer_encoding="chunked"))
        while not connection.has_answer(within=0.02):
            connection.send(b"1\r\nx\r\n")
        assert refused(connection.answer(), errors.BodyTimeout)
        assert connection.is_closed()


def test_the_rest_of_an_answered_body_is_not_read_for_ever(impatient: str) -> None:
    with Connection(impatient) as connection, contextlib.suppress(ConnectionError):
        connection.send(head("POST", "/unread", content_length=60_000))  # small enough to keep the connection
        answer = connection.answer()
        assert "connection" not in answer.headers
        while not connection.has_answer(within=0.02):
            connection.send(b"x")
        assert connection.is_closed()


def test_the_applications_own_pauses_are_not_the_clients(impatient: str) -> None:
    assert post(impatient, "/pauses", b"x" * 200_000).status == 200


def test_an_answer_may_take_its_time(impatient: str) -> None:
    with Connection(impatient) as connection:
        connection.send(head("POST", "/pauses", content_length=1) + b"x")
        assert connection.answer().status == 200


def test_a_client_that_leaves_is_no_fault(url: str) -> None:
    with capture_logs() as logs:
        with Connection(url) as connection:
            connection.send(head("POST", "/digest", content_length=1000) + b"x")
        assert get(url, "/where").status == 200
    assert logs == []


# --- connections ---


def test_a_connection_serves_many_requests(url: str) -> None:
    with Connection(url) as connection:
        for body in (b"x", b"y" * 100_000):
            connection.send(head("POST", "/digest", content_length=len(body)) + body)
            assert connection.answer().json["size"] == len(body)


def test_a_small_unread_body_does_not_cost_the_connection(url: str) -> None:
    with Connection(url) as connection:
        connection.send(head("POST", "/unread", content_length=5) + b"hello" + head("GET", "/where"))
        answer = connection.answer()
        assert refused(answer, errors.Unauthenticated)
        assert answer.headers["www-authenticate"].startswith("bearer ")
        assert connection.answer().status == 200


def test_a_large_unread_body_does(url: str) -> None:
    with Connection(url) as connection:
        connection.send(head("POST", "/unread", content_length=MB))
        answer = connection.answer()
        assert refused(answer, errors.Unauthenticated)
        assert answer.headers["connection"] == "close"
        connection.send(b"x" * MB)
        assert connection.is_closed()


def test_the_server_does_not_say_what_it_is(url: str) -> None:
    assert "server" not in get(url, "/where").headers


@pytest.mark.parametrize(
    "garbage", [b"hello\r\n\r\n", b"\x16\x03\x01\x02\x00", b"GET / HTTP/1.1\r\nContent-Length: -1\r\n\r\n"]
)
def test_what_is_not_http_is_refused(url: str, garbage: bytes) -> None:
    assert refused(ask(url, garbage), errors.BadRequest)


# --- where a message ends (RFC 9112, section 6) ---

CHUNKS = b"5\r\nhello\r\n0\r\n\r\n"
UNCLEAR: dict[str, tuple[list[str], bytes]] = {
    "a length of 4 400 zeros": (["Host: a", "Content-Length: " + "0" * 4400], b""),
    "a length with zeros in front": (["Host: a", "Content-Length: " + "0" * 20 + "5"], b"hello"),
    "a length beyond 64 bits": (["Host: a", "Content-Length: " + "9" * 20], b"hello"),
    "a signed length": (["Host: a", "Content-Length: +5"], b"hello"),
    "a length in hexadecimal": (["Host: a", "Content-Length: 0x5"], b"hello"),
    "a list of lengths": (["Host: a", "Content-Length: 5, 5"], b"hello"),
    "no length": (["Host: a", "Content-Length:"], b"hello"),
    "the length twice": (["Host: a", "Content-Length: 5", "Content-Length: 5"], b"hello"),
    "two lengths": (["Host: a", "Content-Length: 5", "Content-Length: 6"], b"hello"),
    "a space before the colon": (["Host: a", "Content-Length : 5"], b"hello"),
    "a length and chunks": (["Host: a", "Content-Length: 5", "Transfer-Encoding: chunked"], CHUNKS),
    "chunks and a length": (["Host: a", "Transfer-Encoding: chunked", "Content-Length: 5"], CHUNKS),
    "another coding before chunks": (["Host: a", "Transfer-Encoding: gzip, chunked"], CHUNKS),
    "another coding on its own line": (["Host: a", "Transfer-Encoding: gzip", "Transfer-Encoding: chunked"], CHUNKS),
    "chunks twice": (["Host: a", "Transfer-Encoding: chunked", "Transfer-Encoding: chunked"], CHUNKS),
    "chunks before another coding": (["Host: a", "Transfer-Encoding: chunked, identity"], CHUNKS),
    "chunks with a parameter": (["Host: a", "Transfer-Encoding: chunked;q=1"], CHUNKS),
    "what only ends like chunks": (["Host: a", "Transfer-Encoding: xchunked"], CHUNKS),
    "another coding": (["Host: a", "Transfer-Encoding: gzip"], b"hello"),
    "no coding": (["Host: a", "Transfer-Encoding:"], CHUNKS),
    "a folded header": (["Host: a", "Transfer-Encoding:\r\n chunked"], CHUNKS),
    "a bare line feed in a chunk": (["Host: a", "Transfer-Encoding: chunked"], b"5\nhello\n0\n\n"),
    "a chunk of a negative size": (["Host: a", "Transfer-Encoding: chunked"], b"-5\r\nhello\r\n0\r\n\r\n"),
    "a chunk of a boundless size": (["Host: a", "Transfer-Encoding: chunked"], b"f" * 17 + b"\r\nhello\r\n"),
    "a length in the trailer": (["Host: a", "Transfer-Encoding: chunked"], CHUNKS[:-2] + b"Content-Length: 9\r\n\r\n"),
    "no host": (["Content-Length: 5"], b"hello"),
    "the host twice": (["Host: a", "Host: a", "Content-Length: 5"], b"hello"),
    "a host with a space": (["Host: a b", "Content-Length: 5"], b"hello"),
    "a host with a path": (["Host: a/b", "Content-Length: 5"], b"hello"),
    "a host with a user": (["Host: u@a", "Content-Length: 5"], b"hello"),
}  # fmt: skip


@pytest.mark.parametrize("kind", UNCLEAR)
def test_a_message_that_two_readers_could_end_differently_is_refused(url: str, kind: str) -> None:
    lines, body = UNCLEAR[kind]
    sent = "\r\n".join(["POST /digest HTTP/1.1", *lines, "", ""]).encode() + body
    with capture_logs() as logs, Connection(url) as connection:
        connection.send(sent + head("GET", "/where"))
        answer = connection.answer()
        assert refused(answer, errors.BadRequest)
        assert answer.headers["connection"] == "close"
        with pytest.raises(EOFError, match="b''"):  # what follows is nobody's request
            connection.answer()
    assert not [log for log in logs if log["log_level"] in ("error", "critical")]


@pytest.mark.parametrize("version", ["HTTP/0.9", "HTTP/2.0", "HTTP/1.2", "http/1.1"])
def test_another_version_of_http_is_refused(url: str, version: str) -> None:
    assert refused(ask(url, f"GET /where {version}\r\nHost: a\r\n\r\n".encode()), errors.BadRequest)


def test_http_1_0_needs_no_host_and_has_no_chunks(url: str) -> None:
    assert ask(url, b"GET /where HTTP/1.0\r\n\r\n").status == 200
    chunks = b"POST /digest HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n" + CHUNKS
    assert refused(ask(url, chunks), errors.BadRequest)


@pytest.mark.parametrize("host", ["", "a", "a.example:8080", "127.0.0.1", "[::1]:80"])
def test_hosts_of_every_form_are_served(url: str, host: str) -> None:
    assert get(url, "/where", host=host).status == 200


def test_an_offer_of_http_2_costs_neither_the_body_nor_the_connection(url: str) -> None:
    offer = {"connection": "Upgrade, HTTP2-Settings", "upgrade": "h2c", "http2_settings": "AAMAAABkAAQCAAAAAAIAAAAA"}
    with Connection(url) as connection:
        whole = head("POST", "/digest", content_length=5, **offer) + b"hello" + head("GET", "/where", **offer)
        for at in range(0, len(whole), 50):
            connection.send(whole[at : at + 50])
        assert connection.answer().json["size"] == 5
        assert connection.answer().status == 200
        connection.send(head("POST", "/digest", transfer_encoding="chunked", **offer) + CHUNKS)
        assert connection.answer().json["size"] == 5
        connection.send(head("GET", "/where", **{**offer, "connection": "Upgrade, close"}))
        assert connection.answer().headers["connection"] == "close"
        assert connection.is_closed()


@pytest.mark.parametrize("request_line", ["CONNECT a:80 HTTP/1.1", "GET a:80 HTTP/1.1", "GET /\xe9 HTTP/1.1"])
def test_a_target_that_is_no_path_is_refused(url: str, request_line: str) -> None:
    assert refused(ask(url, f"{request_line}\r\nHost: a\r\n\r\n".encode("latin-1")), errors.BadRequest)


def test_who_sends_on_after_a_refusal_before_any_route_gets_to_read_it(url: str) -> None:
    with Connection(url) as connection:
        connection.send(b"GET /where HTTP/1.1\r\nX: " + b"a" * 8 * MB)
        answer = connection.answer()
        assert refused(answer, errors.HeadersTooLarge)
        assert answer.headers["access-control-allow-origin"] == "*"
        assert connection.is_closed()


# --- characters ---


@pytest.mark.parametrize(
    "path", ["/items/a%00b", "/items/a%0Ab", "/items/a%7f", "/items/a%c2%85", "/where?q=%00", "/where?q=a%0d"]
)
def test_control_characters_in_the_url_are_refused(url: str, path: str) -> None:
    answer = get(url, path)
    assert refused(answer, errors.BadRequest)
    assert answer.json["instance"] == path.partition("?")[0]


@pytest.mark.parametrize("value", [b"a\x00b", b"a\x07b", b"a\x7fb"])
def test_control_characters_in_headers_are_refused(url: str, value: bytes) -> None:
    assert refused(ask(url, b"GET /where HTTP/1.1\r\nHost: a\r\nX: " + value + b"\r\n\r\n"), errors.BadRequest)


@pytest.mark.parametrize("path", ["/items/%C3%A9%20%2B", "/where?q=%E2%82%AC&r=%25"])
def test_other_characters_are_not(url: str, path: str) -> None:
    assert get(url, path).status == 200


# --- names ---


def test_the_request_id_is_kept(url: str) -> None:
    answer = get(url, "/where", x_request_id="abc-1.2:3_X")
    assert (answer.headers["x-request-id"], answer.json["id"]) == ("abc-1.2:3_x", "abc-1.2:3_X")
    assert get(url, "/nothing", x_request_id="abc").headers["x-request-id"] == "abc"


@pytest.mark.parametrize("given", ["", "a b", "a" * 65, "é", "<script>"])
def test_a_request_id_of_another_form_is_replaced(url: str, given: str) -> None:
    assert re.fullmatch(r"[0-9a-f]{32}", get(url, "/where", x_request_id=given).headers["x-request-id"])


@pytest.mark.parametrize("path", ["/where", "/stac/where"])
def test_links_are_made_of_the_public_url_and_never_of_the_host_header(path: str) -> None:
    with serving(guarded(application(), public_url="https://catalogue.example:8443/stac/")) as url:
        found = get(url, path, host="evil.example", x_forwarded_host="evil.example").json
        assert found["base"] == "https://catalogue.example:8443/stac/"
        assert found["url"] == "https://catalogue.example:8443/stac/where"
        problem = get(url, "/nothing", host="evil.example").json
        assert problem["type"] == "https://catalogue.example:8443/stac/problems/not-found"
        assert problem["instance"] == "/stac/nothing"


# --- faults ---


def test_a_fault_is_logged_once_under_the_requests_id_and_not_shown(url: str) -> None:
    with capture_logs() as logs:
        answer = get(url, "/fails", x_request_id="one")
    assert refused(answer, errors.InternalError)
    assert b"secret" not in answer.body
    assert [(log["event"], log["path"], log["log_level"]) for log in logs] == [("request failed", "/fails", "error")]


def test_a_fault_without_handlers_is_answered_alike() -> None:
    with (
        serving(guarded(Starlette(routes=[Route("/fails", fails)], debug=False).router)) as url,
        capture_logs() as logs,
    ):
        answer = get(url, "/fails")
        assert refused(answer, errors.InternalError)
        assert b"secret" not in answer.body
        assert len(logs) == 1


def test_an_application_without_an_answer_is_a_fault() -> None:
    async def silent(scope: Any, receive: Any, send: Any) -> None:
        return

    with serving(guarded(silent), keep_alive=1) as url, capture_logs() as logs:
        assert refused(get(url, "/"), errors.InternalError)
        assert logs[-1]["event"] == "request failed"


def test_a_fault_in_the_middle_of_an_answer_cuts_it_off(url: str) -> None:
    with capture_logs() as logs, Connection(url) as connection:
        connection.send(head("GET", "/fails-late"))
        received = b""
        while data := connection.socket.recv(65536):
            received += data
        assert b"some" in received
        assert b"secret" not in received
        assert not received.endswith(b"0\r\n\r\n")
    assert len(logs) == 1


# --- problems ---


def test_a_problem_carries_what_the_caller_needs(url: str) -> None:
    assert get(url, "/busy").headers["retry-after"] == "7"
    answer = get(url, "/invalid")
    assert refused(answer, errors.StacInvalid)
    assert answer.json["errors"] == [
        {"rule": "terms", "pointer": "/properties/x", "message": "x is unknown", "detail": "x is unknown",
         "severity": "error"}
    ]  # fmt: skip
    assert answer.json["instance"] == "/invalid"


def test_what_the_router_refuses_is_a_problem(url: str) -> None:
    assert refused(get(url, "/nothing"), errors.NotFound)
    answer = post(url, "/where", b"")
    assert refused(answer, errors.MethodNotAllowed)
    assert "get" in answer.headers["allow"]


def test_a_status_without_a_class_is_a_problem_without_a_type(url: str) -> None:
    answer = get(url, "/teapot")
    assert answer.headers["content-type"] == "application/problem+json"
    assert (answer.json["type"], answer.json["detail"]) == ("about:blank", "short and stout")


def test_what_fastapi_and_stac_fastapi_refuse_is_a_problem_and_says_nothing_internal() -> None:
    app = FastAPI()

    @app.get("/limited")
    async def limited(limit: int) -> dict[str, int]:
        return {"limit": limit}

    @app.get("/stac/{name}")
    async def stac(name: str) -> None:
        raise getattr(stac_errors, name)("secret" if name == "DatabaseError" else "no such item")

    problems.install(app)
    with serving(guarded(app)) as url, capture_logs() as logs:
        answer = get(url, "/limited?limit=secret")
        assert refused(answer, errors.BadRequest)
        assert "query parameter limit" in answer.json["detail"]
        assert b"secret" not in answer.body
        for name, status in [("NotFoundError", 404), ("ConflictError", 409), ("InvalidQueryParameter", 400)]:
            answer = get(url, f"/stac/{name}")
            assert (answer.status, answer.json["detail"]) == (status, "no such item")
        assert logs == []
        answer = get(url, "/stac/DatabaseError")
        assert refused(answer, errors.InternalError)
        assert b"secret" not in answer.body
        assert len(logs) == 1


if __name__ == "__main__":
    run(guarded(application()), on_ready=lambda url: print(url, flush=True))
