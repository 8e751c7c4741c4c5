"""A process of a node: its log, its signals, its end with its parent where that asks for it, workers without an API."""

from __future__ import annotations

import asyncio
import ctypes
import errno
import gc
import json
import logging
import math
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from functools import partial

import orjson
import stamina.instrumentation
import structlog
import uvloop

from fedstac import __version__, bootstrap
from fedstac.bootstrap import Node, Part
from fedstac.runtime import failpoints, metrics
from fedstac.runtime.capacity import tame_allocator
from fedstac.runtime.wakeup import Backoff
from fedstac.settings import ProcessVariables, Settings, load, unknown_variables

PR_SET_PDEATHSIG = 1
ALIVE_SECONDS = 5.0  # in which an event loop turns
STEADY_SECONDS = 60.0  # after which a process that ends is started anew at once
LONGEST_PAUSE = 30.0  # seconds before a process that ends again and again is started anew
END_SECONDS = 25.0  # that processes have to end; systemd gives the parent 30
GONE_MILLISECONDS = 30_000  # without a sign of life, after which a connection with unanswered bytes is cut


def start(role: str) -> None:
    """Begin a process: heed SIGINT, log, and end with the parent if that asks for it."""
    tune_interpreter()
    variables = ProcessVariables()
    end_with_parent(variables)
    heed_interrupts()
    log_lines(load().log_format, role)
    for variable in unknown_variables():
        structlog.get_logger().warning("no setting has this name", variable=variable.name, nearest=variable.nearest)
    if variables.failpoints:
        structlog.get_logger().error("FEDSTAC_FAILPOINTS is set: this process has faults on purpose, for tests only")
        failpoints.install(variables.failpoints)


def end_with_parent(variables: ProcessVariables) -> None:
    """Let SIGTERM end this process when its parent has gone, if the variables ask for it."""
    if variables.die_with:
        ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
        if os.getppid() != variables.die_with:  # it went before the line above
            sys.exit(0)


def tune_interpreter() -> None:
    """Set what every process of a node sets: memory that goes back, short turns of threads, rare collections."""
    tame_allocator()
    sys.setswitchinterval(0.001)  # the event loop waits less for threads that judge large documents
    gc.set_threshold(100_000, 20, 20)  # a batch is a hundred thousand objects that live, and no cycle among them


def heed_interrupts() -> None:
    """End on SIGINT also where the shell started us in the background, with SIGINT ignored (POSIX, 2.11)."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def log_lines(form: str, role: str) -> None:
    """Send everything that is logged to standard error: readable on a terminal, JSON elsewhere.

    Other packages log by the standard library; their warnings and errors take the same way.
    """
    pretty = form == "console" or (form == "auto" and sys.stderr.isatty())
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.processors.format_exc_info,
            structlog.dev.ConsoleRenderer() if pretty else structlog.processors.JSONRenderer(serializer=_json),
        ],
        wrapper_class=structlog.make_filtering_bound_logger(logging.INFO),
        logger_factory=structlog.WriteLoggerFactory(sys.stderr),
    )
    structlog.contextvars.bind_contextvars(role=role)
    logging.basicConfig(handlers=[_StandardLibrary()], level=logging.WARNING, force=True)
    logging.captureWarnings(True)
    logging.getLogger("stac_fastapi").setLevel(logging.ERROR)  # it warns of settings that nobody reads
    logging.getLogger("uvicorn.error").addFilter(_is_news)
    logging.getLogger("asyncpg").setLevel(logging.ERROR)  # nor need it say that it connects anew
    stamina.instrumentation.set_on_retry_hooks([])  # who tries again logs it once (Outage)


def _is_news(record: logging.LogRecord) -> bool:
    """Return whether a record says more than the guard has logged already, of an answer that was cut off."""
    return not record.getMessage().startswith("ASGI callable returned without")


class _StandardLibrary(logging.Handler):
    """Hands the records of the standard library's loggers to structlog."""

    def emit(self, record: logging.LogRecord) -> None:
        fields = {"exc_info": record.exc_info} if record.exc_info else {}
        structlog.get_logger().log(record.levelno, record.getMessage(), logger=record.name, **fields)


def _json(line: object, **_: object) -> str:
    try:
        return orjson.dumps(line, default=repr).decode()
    except TypeError:  # a lone surrogate in a text
        return json.dumps(line, default=repr)


def log_start(event: str, settings: Settings, *, schema: int, **fields: object) -> None:
    """Log what started: its node, its version and the number of the database's last migration."""
    structlog.get_logger().info(event, node=settings.node, version=__version__, schema=schema, **fields)


class CannotListen(Exception):
    """An address cannot be listened on; the message says why, and what to do."""


def listen(host: str, port: int) -> socket.socket:
    """Return a socket that takes connections there; a free port where `port` is 0. CannotListen if that cannot be."""
    try:
        listening = socket.create_server(
            (host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET, backlog=2048
        )
    except OSError as error:
        match error.errno:
            case errno.EADDRINUSE:
                why = "is taken by another process: end that, or choose another port (FEDSTAC_PORT, demo: --port)"
            case errno.EACCES:
                why = "is not open to this user: choose a port from 1024 on (FEDSTAC_PORT, demo: --port)"
            case _:
                why = f"cannot be used ({error.strerror}): let FEDSTAC_HOST be an address of this machine"
        raise CannotListen(f"port {port} of {host} {why}") from error
    listening.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    listening.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, GONE_MILLISECONDS)
    return listening


@dataclass(frozen=True, slots=True)
class Member:
    """One of several processes of the same kind."""

    number: int  # from 0
    _ready: int  # the writing end of a pipe

    def tell_ready(self) -> None:
        """Say that this process works: should it end, another one is started."""
        os.write(self._ready, b"1")


@dataclass(frozen=True, slots=True)
class _Child:
    """A member as its parent knows it."""

    number: int
    ready: int  # the reading end of its pipe
    start: float  # by the monotonic clock


def multiply(count: int, *, before_anew: Callable[[], object] = lambda: None) -> Member:
    """Start `count` processes as copies of this one, and return in each which it is. Call it before a thread begins.

    This process stays and watches them: it starts one anew that ends, later each time if it ends soon, and ends them
    when it is told to end itself; those that do not end in END_SECONDS it kills. Where one ends by itself before it is
    ready, all end with its exit code: the next would do the same. Other children are none of its business.
    before_anew: is called in this process before it starts one anew; it leaves no thread.
    """
    signals = {signal.SIGTERM, signal.SIGINT, signal.SIGCHLD}
    signal.pthread_sigmask(signal.SIG_BLOCK, signals)
    members: dict[int, _Child] = {}  # by process id
    backoffs = [Backoff(most=LONGEST_PAUSE) for _ in range(count)]
    due = dict.fromkeys(range(count), 0.0)  # by number: when to start it
    exit_code, kill_at = 0, math.inf
    is_ending = False
    parent = os.getpid()
    while members or due:
        for number in [number for number, at in due.items() if at <= time.monotonic()]:
            if due.pop(number):
                before_anew()
            reading, writing = os.pipe()
            pid = os.fork()
            if not pid:
                ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
                signal.pthread_sigmask(signal.SIG_UNBLOCK, signals)
                if os.getppid() != parent:  # it went before the line above
                    sys.exit(0)
                os.close(reading)
                return Member(number, writing)
            os.close(writing)
            members[pid] = _Child(number, reading, time.monotonic())
        arrival = _wait_for(signals, min((*due.values(), kill_at)))
        is_told = arrival in (signal.SIGTERM, signal.SIGINT)
        for pid, code in _ended():
            child = members.pop(pid, None)
            if child is None:  # of a process that became this one
                continue
            was_ready = bool(os.read(child.ready, 1))
            os.close(child.ready)
            if is_ending or is_told:
                continue
            structlog.get_logger().error("an api process ended", number=child.number, exit_code=code)
            if code >= 0 and not was_ready:
                exit_code, is_told = code or 1, True
                continue
            if time.monotonic() - child.start >= STEADY_SECONDS:
                backoffs[child.number].reset()
            due[child.number] = time.monotonic() + backoffs[child.number].pause()
        if is_told and not is_ending:
            is_ending, kill_at = True, time.monotonic() + END_SECONDS
            due.clear()
            _send(signal.SIGTERM, members)
        if time.monotonic() >= kill_at:
            structlog.get_logger().error("api processes do not end, and are killed", pids=list(members))
            _send(signal.SIGKILL, members)
            kill_at = math.inf
    sys.exit(exit_code)


def _wait_for(signals: Iterable[signal.Signals], moment: float) -> int | None:
    """Wait for one of these signals, which are blocked, and return it; None at a moment of the monotonic clock."""
    if math.isinf(moment):
        return signal.sigwait(signals)
    arrival = signal.sigtimedwait(signals, max(moment - time.monotonic(), 0))
    return arrival.si_signo if arrival else None


def _send(number: signal.Signals, pids: Iterable[int]) -> None:
    for pid in pids:
        os.kill(pid, number)


def _ended() -> Iterator[tuple[int, int]]:
    """Yield the children that have ended, with their exit codes; minus the signal of one that was killed."""
    with suppress(ChildProcessError):
        while (child := os.waitpid(-1, os.WNOHANG))[0]:
            yield child[0], os.waitstatus_to_exitcode(child[1])


@asynccontextmanager
async def _serving_metrics(node: Node) -> AsyncIterator[None]:
    """Serve the metrics of this process, if a port is set for that. CannotListen if it cannot be used."""
    settings = node.settings
    if not settings.metrics_port:
        yield
        return
    families = metrics.ProcessFamilies(node.metrics, node.parts, node.pools.by_name())
    try:
        server, thread = metrics.serve(
            settings.host, settings.metrics_port, families, partial(_turns, asyncio.get_running_loop())
        )
    except OSError as error:
        raise CannotListen(
            f"port {settings.metrics_port} of {settings.host} cannot be used for metrics ({error.strerror}): set "
            f"FEDSTAC_METRICS_PORT to another one"
        ) from error
    try:
        yield
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def _turns(loop: asyncio.AbstractEventLoop) -> bool:
    """Return, in another thread, whether an event loop turns."""
    has_turned = threading.Event()
    try:
        loop.call_soon_threadsafe(has_turned.set)
    except RuntimeError:  # it has ended
        return False
    return has_turned.wait(ALIVE_SECONDS)


def run(settings: Settings, parts: Sequence[Part], *, on_ready: Callable[[], object]) -> None:
    """Run parts of a node until SIGTERM or SIGINT. PartGaveUp where one of them ended again and again."""

    async def everything() -> None:
        stop = asyncio.Event()
        async with bootstrap.node(settings) as node, _serving_metrics(node), bootstrap.beside(node, parts, stop):
            for number in (signal.SIGTERM, signal.SIGINT):  # until here they end the process at once
                asyncio.get_running_loop().add_signal_handler(number, stop.set)
            log_start("working", settings, schema=node.schema)
            on_ready()
            await stop.wait()
            structlog.get_logger().info("stopping")
        if node.parts.gave_up is not None:
            raise node.parts.gave_up

    uvloop.run(everything())
