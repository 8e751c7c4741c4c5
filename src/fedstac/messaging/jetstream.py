"""NATS JetStream, as sinks, sources and status topics use it: an address, a connection, requests, and a reader.

A connection that breaks is not mended: whoever has it opens another one, and asks the server where things stand.
"""

from __future__ import annotations

import asyncio
import base64
import re
import secrets
import ssl
import time
from collections import deque
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nats.errors
import orjson
from nats.aio.client import Client
from nats.aio.msg import Msg
from nats.aio.subscription import Subscription

from fedstac.messaging.sources.addresses import BrokerAddress

CONNECT_SECONDS, ANSWER_SECONDS, CLOSE_SECONDS = 5.0, 10.0, 1.0
PING_SECONDS, MOST_PINGS = 5, 2  # without an answer, after which the connection counts as broken
HEARTBEAT_SECONDS = 5.0  # of a server that has nothing to send
SILENCE_SECONDS = 3 * HEARTBEAT_SECONDS  # after which it counts as away
REQUEST_SECONDS = 60.0  # that the server keeps a request for messages open
UNUSED_SECONDS = 120.0  # after which it removes a reader that nobody uses
FLUSH_BYTES = 256 << 10  # the server works on a batch while the rest of it is being written
LARGEST_REQUEST_BYTES = 16 << 20
LARGEST_MESSAGE = 8_912_896  # bytes: an event of 8 MiB and its headers
UNSAFE = re.compile(r"[^A-Za-z0-9_-]+")

CREDENTIALS = ("user", "password", "token", "creds", "nkey", "ca", "cert", "key")  # members of a file

# codes of JetStream's errors
STREAM_MISSING, NO_MESSAGE = 10059, 10037
WRONG_LAST_SEQUENCE, DUPLICATE, BATCH_TOO_LARGE, NO_BATCHES = 10071, 10201, 10199, 10174
JETSTREAM_OFF = (10039, 10076)  # for the account, or at all


class ServerAway(Exception):
    """The server does not answer, or fails for the moment."""


class ServerRefused(Exception):
    """The server refuses this client, or is not set up for it: an operator has to see to it."""


class ApiFault(Exception):
    """JetStream answers a request with an error. `code` is its err_code."""

    def __init__(self, code: int, description: str) -> None:
        super().__init__(f"{description} ({code})")
        self.code = code


@dataclass(frozen=True, slots=True)
class StreamAddress:
    """A stream of a server or a cluster. `config`: a file with credentials, as the command `nats context` writes it."""

    servers: tuple[str, ...]  # nats://host:port
    stream: str
    config: Path | None = None

    @property
    def server(self) -> str:
        """The servers, for messages."""
        return ", ".join(self.servers)


def stream_of(address: BrokerAddress) -> StreamAddress:
    """Return the stream of an address."""
    config = address.options.get("config")
    servers = tuple(f"nats://{server}" for server in address.servers)
    return StreamAddress(servers, address.name, Path(config) if config else None)


def subject_token(text: str) -> str:
    """Return a text as one token of a subject: letters, digits, - and _."""
    return UNSAFE.sub("_", text) or "_"


class Connection:
    """A connection to a server. Its methods raise ServerAway or ServerRefused."""

    def __init__(self) -> None:
        self.client = Client()
        self.error: ServerAway | ServerRefused | None = None  # once set, the connection is of no more use
        self._watchers: list[Callable[[], object]] = []

    async def open(self, address: StreamAddress) -> None:
        """Connect. Close it afterwards, also where this raises."""
        options = _read_config(address.config)
        latest: list[Exception] = []

        async def note(error: Exception) -> None:
            latest.append(error)
            if "permissions violation" in str(error).lower():
                self._fail(ServerRefused(f"{address.server} refuses it: {_text_of(error)}"))

        async def lost() -> None:
            reason = _text_of(self.client.last_error) if self.client.last_error else "the connection broke"
            self._fail(ServerAway(f"{address.server}: {reason}"))

        try:
            async with asyncio.timeout(CONNECT_SECONDS):
                await self.client.connect(
                    list(address.servers), name="fedstac", allow_reconnect=False, max_reconnect_attempts=1,
                    reconnect_time_wait=0, connect_timeout=int(CONNECT_SECONDS), ping_interval=PING_SECONDS,
                    max_outstanding_pings=MOST_PINGS, pending_size=FLUSH_BYTES, error_cb=note, closed_cb=lost,
                    **options,
                )  # fmt: skip
        except (OSError, TimeoutError, ValueError, nats.errors.Error) as error:
            reason = _text_of(latest[-1] if latest else error)
            if "authorization" in reason.lower() or isinstance(error, ValueError | ssl.SSLError):
                raise ServerRefused(f"{address.server} does not let this node in: {reason}") from error
            raise ServerAway(f"{address.server} cannot be reached: {reason}") from error
        except Exception as error:  # of the client and its library of keys: they fail in many ways on a wrong key
            if address.config is None:
                raise
            raise ServerRefused(_unusable(address.config, error)) from error

    async def close(self) -> None:
        """Close the connection, or what there is of it."""
        with suppress(Exception):  # whatever the other end makes of it
            async with asyncio.timeout(CLOSE_SECONDS):
                await self.client.close()

    def watch(self, notice: Callable[[], object]) -> None:
        """Call `notice` when the connection is of no more use."""
        self._watchers.append(notice)

    def unwatch(self, notice: Callable[[], object]) -> None:
        """Call `notice` no more."""
        with suppress(ValueError):
            self._watchers.remove(notice)

    async def request(
        self, subject: str, payload: bytes = b"", *, headers: dict[str, str] | None = None,
        seconds: float = ANSWER_SECONDS,
    ) -> Msg:  # fmt: skip
        """Send a request and return the answer; not later than the connection breaks."""
        self.check()
        broken = asyncio.Event()
        self.watch(broken.set)
        answer = asyncio.ensure_future(self.client.request(subject, payload, timeout=seconds, headers=headers))
        end = asyncio.ensure_future(broken.wait())
        try:
            await asyncio.wait((answer, end), return_when=asyncio.FIRST_COMPLETED)
            if answer.done():
                return answer.result()
            self.check()
            raise AssertionError("a connection broke without a reason")
        except (OSError, TimeoutError, nats.errors.Error) as error:
            self.check()
            raise ServerAway(f"no answer of the server to {subject}: {_text_of(error)}") from error
        finally:
            self.unwatch(broken.set)
            for task in (answer, end):
                task.cancel()
            await asyncio.gather(answer, end, return_exceptions=True)

    async def ask(self, verb: str, body: Mapping[str, object] | None = None) -> dict[str, Any]:
        """Return the answer of JetStream's API, such as STREAM.INFO.NAME. ApiFault where it is an error."""
        message = await self.request(f"$JS.API.{verb}", orjson.dumps(body) if body is not None else b"")
        return read_answer(message.data)

    def check(self) -> None:
        """Raise what broke the connection, if it is broken."""
        if self.error is not None:
            raise self.error

    def _fail(self, error: ServerAway | ServerRefused) -> None:
        self.error = self.error or error
        for notice in self._watchers:
            notice()


def read_answer(data: bytes) -> dict[str, Any]:
    """Read an answer of JetStream. ApiFault where it is an error; ServerAway where the error is the server's own."""
    try:
        answer = orjson.loads(data)
        fault = answer.get("error")
    except (ValueError, AttributeError) as error:
        raise ServerAway(f"the server's answer cannot be read: {data[:100]!r}") from error
    if fault is None:
        return dict(answer)
    code, description = int(fault.get("err_code", 0)), str(fault.get("description", "no reason"))
    if code in JETSTREAM_OFF:
        raise ServerRefused(f"{description} ({code}): switch JetStream on at the server, for this account")
    if fault.get("code") == 503:
        raise ServerAway(f"{description} ({code})")
    raise ApiFault(code, description)


def _read_config(path: Path | None) -> dict[str, Any]:
    """Return the options for a client that a file of credentials says. ServerRefused where it cannot be used."""
    if path is None:
        return {}
    try:
        config = {
            name: value for name, value in orjson.loads(path.read_bytes()).items() if name in CREDENTIALS and value
        }
        if not all(isinstance(value, str) for value in config.values()):
            raise TypeError("a member is no text")
        options = {name: config[name] for name in ("user", "password", "token") if name in config}
        for name, option in (("creds", "user_credentials"), ("nkey", "nkeys_seed")):
            if name in config:
                Path(config[name]).read_bytes()  # else the client would say that the server is away
                options[option] = config[name]
        if {"ca", "cert", "key"} & config.keys():
            options["tls"] = tls = ssl.create_default_context(cafile=config.get("ca"))
            if "cert" in config:
                tls.load_cert_chain(config["cert"], config.get("key"))
    except (OSError, ValueError, AttributeError, TypeError) as error:
        raise ServerRefused(_unusable(path, error)) from error
    return options


def _unusable(path: Path, error: Exception) -> str:
    """Return what to say of a file of credentials; never its content."""
    return (
        f"the file of credentials {path}, or one that it names, cannot be used ({type(error).__name__}); it is a JSON "
        f"object with some of {', '.join(CREDENTIALS)}, as `nats context` writes it"
    )


def _text_of(error: Exception) -> str:
    return " ".join(str(error).split())[:300] or type(error).__name__


# --- reading a stream


@dataclass(frozen=True, slots=True)
class StreamMessage:
    """A message of a stream; `pending`: how many come after it."""

    sequence: int
    headers: Mapping[str, str]
    data: bytes
    pending: int


async def stored_message(connection: Connection, stream: str, which: Mapping[str, object]) -> StreamMessage | None:
    """Return a message of a stream; None where there is none.

    which: {"seq": n}, {"seq": n, "next_by_subj": pattern} for the first from there on, or {"last_by_subj": pattern}.
    """
    try:
        message = (await connection.ask(f"STREAM.MSG.GET.{stream}", which))["message"]
    except ApiFault as fault:
        if fault.code == NO_MESSAGE:
            return None
        raise
    lines = base64.b64decode(message.get("hdrs", "")).decode(errors="replace").split("\r\n")[1:]
    headers = {name: value.strip() for name, colon, value in (line.partition(":") for line in lines) if colon}
    return StreamMessage(message["seq"], headers, base64.b64decode(message.get("data", "")), 0)


class StreamReader:
    """Reads a stream in its order. The server sends up to `limit` messages for a request, of which one is open."""

    def __init__(self, connection: Connection, stream: str) -> None:
        self._connection, self._stream = connection, stream
        self._name = f"fedstac-{secrets.token_hex(8)}"
        self._inbox = connection.client.new_inbox()
        self._subscription: Subscription | None = None
        self._messages: deque[StreamMessage] = deque()
        self._due = 0  # messages of the open request; 0: none is open
        self._limit = 1
        self._error: ServerAway | None = None
        self._last_sign = time.monotonic()
        self._wake = asyncio.Event()

    async def open(self, *, first: int, headers_only: bool = False) -> None:
        """Begin at a sequence number, or at the next one that is kept. ApiFault STREAM_MISSING where there is none."""
        configuration = {
            "name": self._name, "deliver_policy": "by_start_sequence", "opt_start_seq": max(first, 1),
            "ack_policy": "none", "headers_only": headers_only, "mem_storage": True, "num_replicas": 1,
            "inactive_threshold": int(UNUSED_SECONDS * 1e9),
        }  # fmt: skip
        verb = f"CONSUMER.CREATE.{self._stream}.{self._name}"
        await self._connection.ask(verb, {"stream_name": self._stream, "config": configuration, "action": "create"})
        self._connection.watch(self._wake.set)
        try:
            self._subscription = await self._connection.client.subscribe(self._inbox, cb=self._take)
        except nats.errors.Error as error:
            raise ServerAway(_text_of(error)) from error

    async def close(self) -> None:
        """Remove the reader at the server, if that answers; else it goes by itself after a while."""
        self._connection.unwatch(self._wake.set)
        if self._subscription is not None:
            with suppress(nats.errors.Error):  # the connection may be broken
                await self._subscription.unsubscribe()
        with suppress(ServerAway, ServerRefused, ApiFault):
            await self._connection.ask(f"CONSUMER.DELETE.{self._stream}.{self._name}")

    async def receive(self, *, limit: int, wait: float) -> list[StreamMessage]:
        """Return the next messages, after up to `wait` seconds; fewer than `limit` where no more are there.

        ServerAway also where the server is silent, or has lost the reader: open another one.
        """
        self._limit = limit
        deadline = time.monotonic() + wait
        while not self._is_ready():
            self._check()
            if not self._due:
                await self._ask_for_more(limit)
            self._wake.clear()
            if self._is_ready() or self._connection.error is not None:
                continue
            now = time.monotonic()
            if now >= deadline:
                break
            with suppress(TimeoutError):
                await asyncio.wait_for(self._wake.wait(), min(deadline - now, HEARTBEAT_SECONDS))
        return [self._messages.popleft() for _ in range(min(limit, len(self._messages)))]

    def _is_ready(self) -> bool:
        if not self._messages:
            return False
        return len(self._messages) >= self._limit or not self._due or self._messages[-1].pending == 0

    def _check(self) -> None:
        self._connection.check()
        if self._error is not None:
            raise self._error.with_traceback(None)
        if self._due and time.monotonic() - self._last_sign > SILENCE_SECONDS:
            raise ServerAway(f"the server has been silent for {SILENCE_SECONDS:g} s")

    async def _ask_for_more(self, limit: int) -> None:
        request = {
            "batch": limit, "max_bytes": LARGEST_REQUEST_BYTES, "expires": int(REQUEST_SECONDS * 1e9),
            "idle_heartbeat": int(HEARTBEAT_SECONDS * 1e9),
        }  # fmt: skip
        self._due, self._last_sign = limit, time.monotonic()
        subject = f"$JS.API.CONSUMER.MSG.NEXT.{self._stream}.{self._name}"
        try:
            await self._connection.client.publish(subject, orjson.dumps(request), reply=self._inbox)
        except nats.errors.Error as error:
            self._connection.check()
            raise ServerAway(_text_of(error)) from error

    async def _take(self, message: Msg) -> None:
        """Take a message in, or what the server says of the request."""
        self._last_sign = time.monotonic()
        headers = message.headers or {}
        if status := headers.get("Status") if not message.reply.startswith("$JS.ACK.") else None:
            self._take_status(status, str(headers.get("Description", "")))
        else:
            tokens = message.reply.split(".")
            place = 5 if len(tokens) == 9 else 7  # names of domain and account come before
            self._messages.append(StreamMessage(int(tokens[place]), headers, message.data, int(tokens[place + 3])))
            self._due -= 1
        if self._error or self._is_ready():
            self._wake.set()

    def _take_status(self, status: str, description: str) -> None:
        is_over = status in ("404", "408") or "MaxBytes" in description or "Batch Completed" in description
        if is_over:
            self._due = 0
            self._wake.set()
        elif status != "100":
            self._error = ServerAway(f"the server ends the reading: {description or status}")
