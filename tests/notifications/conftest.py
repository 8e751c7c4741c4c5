"""A mail server and a receiver of webhooks, both real, on loopback and in the test's own event loop."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest
from aiosmtpd.smtp import SMTP

from fedstac.workers import notifier
from tests.support.nodes import Api, StartApi
from tests.support.receivers import Mailbox, Receiver, StartTelling, close, receiving


@pytest.fixture
async def receiver() -> AsyncIterator[Receiver]:
    async with receiving() as running:
        yield running


@pytest.fixture
async def mailbox() -> AsyncIterator[Mailbox]:
    box = Mailbox()
    loop = asyncio.get_running_loop()
    made: list[SMTP] = []

    def connected() -> SMTP:
        made.append(SMTP(box, hostname="mail.test", loop=loop))
        return made[-1]

    server = await loop.create_server(connected, "127.0.0.1", 0)
    box.port = server.sockets[0].getsockname()[1]
    async with server:
        yield box
    await close(made)


@pytest.fixture
def hurried(monkeypatch: pytest.MonkeyPatch) -> None:
    """Notifiers of this process look often and try again soon."""
    monkeypatch.setattr(notifier, "LOOK_SECONDS", 0.05)
    monkeypatch.setattr(notifier, "FIRST_RETRY_SECONDS", 0.1)


@pytest.fixture
async def start_telling(
    west_database: str, start_api: StartApi, dsn: str, mailbox: Mailbox, hurried: None
) -> StartTelling:
    """Starts a node with the collection CMIP6 that sends mail, and webhooks to loopback."""

    async def start(**values: Any) -> Api:
        wanted = {
            "dsn": dsn, "smtp": mailbox.url, "notify_private": True, "notify_hosts": ("127.0.0.1", "*.ncar.example"),
            "notify_window_seconds": 0, "public_url": "https://west.example", "mail_from": "stac@west.example",
        }  # fmt: skip
        return await start_api(**{**wanted, **values})

    return start
