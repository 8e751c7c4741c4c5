"""The notifier: finds what somebody wants to know, and delivers it by mail or webhook until it has arrived.

Nothing waits for it. It derives its messages from what is stored, in short transactions, and holds no connection while
it waits for the network. A process that dies leaves its messages to another once their lease is over. They keep their
ids, so that a receiver that got one twice can tell.
"""

from __future__ import annotations

import asyncio
import random
import time
from urllib.parse import urlsplit
from uuid import UUID

import orjson
import structlog

from fedstac.bootstrap import Node
from fedstac.db import notifications
from fedstac.db.connections import Connection
from fedstac.db.notifications import OPERATORS, Notification
from fedstac.domain import destinations, notices
from fedstac.domain.destinations import Channel
from fedstac.domain.errors import BadRequest
from fedstac.domain.notices import Message, Sender
from fedstac.domain.policy import DELETION_MANAGER
from fedstac.messaging import mail
from fedstac.messaging.webhooks import Forbidden, Resolve, Undelivered, Webhooks, resolve
from fedstac.runtime import supervision
from fedstac.runtime.causes import blames_nobody
from fedstac.runtime.failpoints import failpoint
from fedstac.runtime.wakeup import cancel
from fedstac.settings import Misconfigured, Settings

LOOK_SECONDS = 1.0
AT_ONCE = 16  # deliveries under way in one process
SECONDS_EACH = 15.0
FIRST_RETRY_SECONDS, LONGEST_RETRY_SECONDS = 5.0, 3600.0
GIVEN_UP_AFTER = 86_400.0
SWEEP_SECONDS = 3600.0
log = structlog.get_logger()


def check(settings: Settings) -> None:
    """Refuse wrong settings of notifications before anything runs: Misconfigured."""
    server = mail.server_of(settings.smtp)
    for text in settings.alerts:
        try:
            address = destinations.parse(text, private=True)
        except BadRequest as error:
            raise Misconfigured(f"FEDSTAC_ALERTS: {error.detail}") from None
        if address.kind is Channel.MAIL and server is None:
            raise Misconfigured(f"FEDSTAC_ALERTS names {text}, and there is no FEDSTAC_SMTP to send mail with")


def mail_from(settings: Settings) -> str:
    """Return whom mail is from."""
    return settings.mail_from or f"fedstac@{urlsplit(settings.public_url).hostname or 'localhost'}"


class Notifier:
    """One of any number; they share the work. `find` resolves names of webhooks."""

    def __init__(self, node: Node, *, find: Resolve = resolve) -> None:
        self.node, self.settings = node, node.settings
        self.sender = Sender(self.settings.node, self.settings.public_url.rstrip("/"))
        self._server = mail.server_of(self.settings.smtp)
        self._hooks = Webhooks(private=self.settings.notify_private, find=find)
        self._operators_hooks = Webhooks(private=True, find=find)
        self._under_way: set[asyncio.Task[None]] = set()
        self._swept = 0.0

    async def run(self, stop: asyncio.Event) -> None:
        """Work until `stop`."""
        operated = False

        async def step() -> None:
            nonlocal operated
            if not operated:
                async with self.node.pool.acquire() as conn, conn.transaction():
                    await notifications.operate(conn, self.settings.alerts)
                operated = True
                await self.node.commits.pause("notifier", stop, 0.0)
            async with self.node.pool.acquire() as conn:
                more = await self.step(conn)
            if not more:
                await self.node.commits.pause("notifier", stop, LOOK_SECONDS)

        async with self._hooks, self._operators_hooks:
            try:
                await supervision.keep_trying(self.node.parts, "notifier", step, stop)
            finally:
                await self._end()

    async def step(self, conn: Connection) -> bool:
        """Gather what there is to tell, and begin to deliver what is due. Return whether there is more to gather."""
        more = await notifications.gather(conn, self.settings.notify_window_seconds)
        if time.monotonic() - self._swept > SWEEP_SECONDS:
            self._swept = time.monotonic()
            await notifications.sweep(conn)
        room = AT_ONCE - len(self._under_way)
        if room > 0:
            due = await notifications.take(
                conn, room, lease=self.settings.lease_seconds, per_hour=self.settings.notify_per_hour
            )
            for each in due:
                task = asyncio.create_task(self._try(each))
                self._under_way.add(task)
                task.add_done_callback(self._under_way.discard)
        return more

    async def _end(self) -> None:
        """Give what is under way a moment to arrive. Another notifier takes the rest up once its lease is over."""
        if self._under_way:
            await asyncio.wait(self._under_way, timeout=2)
        await cancel(*self._under_way)

    async def _try(self, notification: Notification) -> None:
        """Make one attempt. A fault of ours counts like a message that did not arrive.

        If the database fails, the lease ends and somebody takes the notification up again.
        """
        parts = self.node.parts
        try:
            try:
                await self._deliver(notification)
            except Exception as error:
                if blames_nobody(error):
                    raise
                parts.fails("deliveries", error)
                await self._failed(notification, error, log.bind(notification=str(notification.id)))
            else:
                parts.works("deliveries")
        except Exception as error:
            parts.fails("deliveries", error)

    async def _deliver(self, notification: Notification) -> None:
        address = destinations.parse(notification.address, private=True)
        logger = log.bind(
            notification=str(notification.id),
            topic=notification.topic,
            destination=str(notification.destination),
            to=address.for_logs,
        )
        try:
            message = await self._message(notification)
            if message is not None:
                await self._send(notification, address, message)
            failpoint("notifier.delivered")
        except (Undelivered, Forbidden) as error:
            await self._failed(notification, error, logger)
            return
        async with self.node.pool.acquire() as conn:
            await notifications.finish(conn, notification.id, "delivered")
        logger.info("notified", attempts=notification.attempts)

    async def _failed(self, notification: Notification, error: Exception, logger: structlog.BoundLogger) -> None:
        async with self.node.pool.acquire() as conn:
            if isinstance(error, Forbidden) or notification.age > GIVEN_UP_AFTER:
                await notifications.finish(conn, notification.id, "given up")
                logger.error("a notification is given up", attempts=notification.attempts, reason=str(error))
                return
            seconds = retry_seconds(notification.attempts)
            await notifications.put_off(conn, notification.id, seconds)
        logger.warning("a notification did not arrive; trying again", reason=str(error), seconds=round(seconds, 1))

    async def _send(self, notification: Notification, address: destinations.Address, message: Message) -> None:
        seconds = min(SECONDS_EACH, self.settings.lease_seconds * 0.6)  # over before anybody else begins
        if address.kind is Channel.MAIL:
            if self._server is None:
                raise Undelivered("FEDSTAC_SMTP is not set")
            sender = mail_from(self.settings)
            composed = mail.compose(
                message, sender=sender, to=address.target, node=self.settings.node, id=str(notification.id),
                at=notification.taken, footer=_footer(notification, self.settings.node),
            )  # fmt: skip
            await mail.send(self._server, composed, sender=sender, to=address.target, seconds=seconds)
            return
        body = message.as_slack() if address.kind is Channel.SLACK else message.as_json(notification.taken)
        hooks = self._operators_hooks if notification.owner == OPERATORS else self._hooks
        await hooks.send(
            address.target,
            id=str(notification.id),
            secret=notification.secret,
            body=orjson.dumps(body),
            seconds=seconds,
        )

    async def _message(self, notification: Notification) -> Message | None:
        """Return what a notification says, the same at every attempt. None where nothing of it is left to tell."""
        if notification.topic == "test":
            return notices.of_test(self.sender)
        if notification.topic == "confirm":
            code = destinations.confirmation_code(notification.secret)
            return notices.of_confirmation(self.sender, notification.owner, str(notification.destination), code)
        async with self.node.pool.acquire() as conn:
            match notification.topic:
                case "request":
                    requests = await notifications.final_requests(conn, [UUID(each) for each in notification.about])
                    ids = [UUID(each.id) for each in requests]
                    refusals = await notifications.refused_items(conn, ids, notices.SHOWN)
                    return notices.of_requests(self.sender, requests, refusals) if requests else None
                case "dataset":
                    positions = [int(each) for each in notification.about]
                    changes = await notifications.changes(conn, positions, notices.SHOWN)
                    return notices.of_changes(self.sender, changes, len(positions))
                case "deletion":
                    due = await notifications.due_deletions(conn, notification.about, notices.SHOWN * 5)
                    return notices.of_due_deletions(self.sender, due, len(due)) if due else None
                case "subscription":
                    owner, names = notification.owner, notification.about
                    ailing = await notifications.subscription_troubles(conn, owner, names, notices.SHOWN * 5)
                    return notices.of_subscriptions(self.sender, ailing) if ailing else None
                case _:
                    troubles = await notifications.troubles(conn, notification.about)
                    return notices.of_troubles(self.sender, troubles, len(notification.about))


def retry_seconds(attempts: int) -> float:
    """Return the pause after so many attempts: doubling up to an hour, spread so that not all come at once."""
    return min(FIRST_RETRY_SECONDS * 2.0 ** min(attempts - 1, 20), LONGEST_RETRY_SECONDS) * random.uniform(0.5, 1.5)  # noqa: S311


def _footer(notification: Notification, node: str) -> str:
    if notification.owner == OPERATORS:
        return f"You get this as an operator of the node {node} (its setting FEDSTAC_ALERTS)."
    if notification.owner == DELETION_MANAGER:
        return (
            f"You get this as the contact of a dependency of deletions at the node {node}; its administrators name it."
        )
    return f"fedstac notifications remove {notification.destination}   ends these messages."


async def run(node: Node, stop: asyncio.Event) -> None:
    """Tell whoever wants to know, until `stop`."""
    await Notifier(node).run(stop)
