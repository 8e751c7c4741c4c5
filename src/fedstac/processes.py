"""A process of a node: logs, an end that comes with the parent's where asked, and workers without an API."""

from __future__ import annotations

import asyncio
import ctypes
import gc
import logging
import os
import signal
import sys
from collections.abc import Callable, Sequence

import structlog
import uvloop

from fedstac import bootstrap, failpoints
from fedstac.bootstrap import Background
from fedstac.settings import Settings, load

PR_SET_PDEATHSIG = 1
DIE_WITH = "FEDSTAC_DIE_WITH"  # set by `fedstac demo` for its children: the pid to end with


def start(role: str) -> None:
    """What every process does first: it writes log lines, and ends with its parent if that asks for it."""
    gc.set_threshold(100_000, 20, 20)  # a batch is a hundred thousand objects that live, and no cycle among them
    parent = os.environ.get(DIE_WITH)
    if parent:
        ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
        if os.getppid() != int(parent):  # it went before the line above
            sys.exit(0)
    log_lines(load().log_format, role)
    if failpoints.active():
        structlog.get_logger().error("FEDSTAC_FAILPOINTS is set: this process has faults on purpose, for tests only")


def log_lines(form: str, role: str) -> None:
    """structlog to standard error: readable on a terminal, JSON elsewhere."""
    pretty = form == "console" or (form == "auto" and sys.stderr.isatty())
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.processors.format_exc_info,
            structlog.dev.ConsoleRenderer() if pretty else structlog.processors.JSONRenderer(),
        ],
        wrapper_class=structlog.make_filtering_bound_logger(logging.INFO),
        logger_factory=structlog.WriteLoggerFactory(sys.stderr),
    )
    structlog.contextvars.bind_contextvars(role=role)


def run(settings: Settings, parts: Sequence[Background], *, on_ready: Callable[[], object]) -> None:
    """Runs parts of a node until SIGTERM or SIGINT."""

    async def everything() -> None:
        stop = asyncio.Event()
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, stop.set)
        async with bootstrap.node(settings) as node, bootstrap.beside(node, parts, stop):
            on_ready()
            await stop.wait()

    uvloop.run(everything())
