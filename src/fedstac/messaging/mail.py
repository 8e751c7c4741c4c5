"""Mail: one plain text message over the SMTP server that the settings name."""

from __future__ import annotations

import asyncio
import ssl
from dataclasses import dataclass
from datetime import datetime
from email.headerregistry import Address
from email.message import EmailMessage
from email.policy import SMTP
from email.utils import format_datetime
from urllib.parse import unquote, urlsplit

import aiosmtplib

from fedstac.domain.notices import Message, one_line
from fedstac.messaging.webhooks import Forbidden, Undelivered
from fedstac.settings import Misconfigured

PORTS = {"smtp": 25, "smtp+starttls": 587, "smtps": 465}


@dataclass(frozen=True, slots=True)
class MailServer:
    """Where mail is handed over."""

    host: str
    port: int
    tls: bool  # from the first byte
    starttls: bool
    user: str | None
    password: str | None


def server_of(url: str) -> MailServer | None:
    """Read the setting `smtp`; None where it is empty. Misconfigured says what is wrong, and no password."""
    if not url:
        return None
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError:
        raise Misconfigured("FEDSTAC_SMTP is no URL") from None
    if parts.scheme not in PORTS or not parts.hostname:
        raise Misconfigured("FEDSTAC_SMTP is smtp://host, smtp+starttls://user:password@host or smtps://…")
    if parts.username and parts.scheme == "smtp":
        raise Misconfigured("FEDSTAC_SMTP would show a password to whoever listens: use smtp+starttls:// or smtps://")
    user = unquote(parts.username) if parts.username else None
    password = unquote(parts.password) if parts.password else None
    tls, starttls = parts.scheme == "smtps", parts.scheme == "smtp+starttls"
    return MailServer(parts.hostname, port or PORTS[parts.scheme], tls, starttls, user, password)


def compose(message: Message, *, sender: str, to: str, node: str, id: str, at: datetime, footer: str) -> EmailMessage:
    """Write a mail with the headers of mail from machines (RFC 3834, RFC 2919).

    The same id and time give the same mail.
    """
    mail = EmailMessage(policy=SMTP)
    domain = sender.rpartition("@")[2]
    mail["From"] = Address(display_name=one_line(f"fedstac {node}"), addr_spec=sender)
    mail["To"] = Address(addr_spec=to)
    mail["Subject"] = message.subject
    mail["Date"] = format_datetime(at)
    mail["Message-ID"] = f"<{id}@{domain}>"
    mail["Auto-Submitted"] = "auto-generated"
    mail["List-Id"] = f"<notifications.{node}.{domain}>"
    mail.set_content(f"{message.text}\n-- \n{footer}\n", cte="quoted-printable")
    return mail


async def send(server: MailServer, mail: EmailMessage, *, sender: str, to: str, seconds: float) -> None:
    """Send a mail through the server. Undelivered, or Forbidden where it refused the recipient for good.

    All of it takes so many seconds at most: a server may take long for each of its answers. A mail that the server took
    is sent, however the session ends.
    """
    is_taken = False
    try:
        async with asyncio.timeout(seconds), _client(server, seconds) as client:
            await client.send_message(mail, sender=sender, recipients=[to])
            is_taken = True
    except aiosmtplib.SMTPRecipientsRefused as error:
        codes = [refusal.code for refusal in error.recipients]
        if codes and all(500 <= code < 600 for code in codes):
            raise Forbidden(f"the mail server refuses the recipient ({codes[0]})") from None
        raise Undelivered(f"the mail server puts the recipient off ({codes})") from None
    except (aiosmtplib.SMTPException, OSError, TimeoutError) as error:
        if not is_taken:
            raise Undelivered(type(error).__name__) from error


def _client(server: MailServer, seconds: float) -> aiosmtplib.SMTP:
    return aiosmtplib.SMTP(
        hostname=server.host, port=server.port, username=server.user, password=server.password, use_tls=server.tls,
        start_tls=server.starttls, timeout=seconds,
        tls_context=ssl.create_default_context() if server.tls or server.starttls else None,
    )  # fmt: skip
