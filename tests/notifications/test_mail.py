"""Handing mail over: TLS, login, and what the setting may say."""

from __future__ import annotations

import asyncio
import ipaddress
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from email.message import EmailMessage
from pathlib import Path

import pytest
from aiosmtpd.smtp import SMTP, AuthResult, Envelope, LoginPassword, Session
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from fedstac.domain.notices import Sender, of_test
from fedstac.messaging import mail
from fedstac.messaging.webhooks import Undelivered
from fedstac.settings import Misconfigured
from tests.support.receivers import Mailbox, close, listening
from tests.support.waiting import PATIENCE

AT = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
TO = "anna@ncar.example"


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A certificate of 127.0.0.1 that signs itself, with its key in the same file."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "mail.test")])
    now = datetime.now(UTC)
    made = (
        x509.CertificateBuilder().subject_name(name).issuer_name(name).public_key(key.public_key())
        .serial_number(x509.random_serial_number()).not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )  # fmt: skip
    path = tmp_path_factory.mktemp("tls") / "mail.pem"
    private = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    path.write_bytes(made.public_bytes(serialization.Encoding.PEM) + private)
    return path


def only_fedstac(server: SMTP, session: Session, envelope: Envelope, mechanism: str, data: object) -> AuthResult:
    is_right = isinstance(data, LoginPassword) and (data.login, data.password) == (b"fed stac", b"s:cr@t")
    return AuthResult(success=is_right, handled=False)


@asynccontextmanager
async def serving(certificate: Path, *, starttls: bool) -> AsyncIterator[Mailbox]:
    box, loop, made = Mailbox(), asyncio.get_running_loop(), list[SMTP]()
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(certificate)

    def connected() -> SMTP:
        made.append(SMTP(
            box, hostname="mail.test", loop=loop, tls_context=context if starttls else None, require_starttls=starttls,
            auth_required=True, authenticator=only_fedstac, auth_require_tls=starttls,
        ))  # fmt: skip
        return made[-1]

    server = await loop.create_server(connected, "127.0.0.1", 0, ssl=None if starttls else context)
    box.port = server.sockets[0].getsockname()[1]
    async with server:
        yield box
    await close(made)


def composed() -> EmailMessage:
    message = of_test(Sender("west", ""))
    return mail.compose(message, sender="stac@west.example", to=TO, node="west", id="1", at=AT, footer="–")


async def hand_over(url: str, seconds: float = PATIENCE) -> None:
    server = mail.server_of(url)
    assert server is not None
    await mail.send(server, composed(), sender="stac@west.example", to=TO, seconds=seconds)


@pytest.mark.filterwarnings("ignore:Requiring AUTH while not requiring TLS")  # aiosmtpd, which sees no TLS around it
@pytest.mark.parametrize("starttls", [True, False])
async def test_mail_goes_over_tls_with_a_login(
    certificate: Path, starttls: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    scheme = "smtp+starttls" if starttls else "smtps"
    async with serving(certificate, starttls=starttls) as box:
        with pytest.raises(Undelivered):  # nobody here vouches for that certificate
            await hand_over(f"{scheme}://fed%20stac:s%3Acr%40t@127.0.0.1:{box.port}")
        monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
        with pytest.raises(Undelivered, match="Authentication"):
            await hand_over(f"{scheme}://fed%20stac:wrong@127.0.0.1:{box.port}")
        await hand_over(f"{scheme}://fed%20stac:s%3Acr%40t@127.0.0.1:{box.port}")
        to, received, _ = await box.next()
    assert to == [TO]
    assert received["Message-ID"] == "<1@west.example>"


async def test_a_server_without_tls_gets_nothing_where_tls_is_asked_for(mailbox: Mailbox) -> None:
    with pytest.raises(Undelivered):
        await hand_over(f"smtp+starttls://127.0.0.1:{mailbox.port}")
    assert mailbox.mails.empty()


@asynccontextmanager
async def slow_server(seconds: float, *, silent_at: bytes) -> AsyncIterator[tuple[str, list[bytes]]]:
    """Run a mail server that answers each line after so many seconds, and from a command on never again.

    Yield its address, and the commands that come.
    """
    commands: list[bytes] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"220 mail.test\r\n")
        while line := await reader.readline():
            commands.append(line.strip().upper())
            if commands[-1].startswith(silent_at):
                await reader.read()
                return
            await asyncio.sleep(seconds)
            if commands[-1] == b"DATA":
                writer.write(b"354 go on\r\n")
                await reader.readuntil(b"\r\n.\r\n")
            writer.write(b"250 mail.test\r\n")

    async with listening(serve) as port:
        yield f"smtp://127.0.0.1:{port}", commands


async def test_a_server_that_is_slow_with_each_answer_takes_no_longer_than_allowed() -> None:
    """Else the lease of the message ends meanwhile, and another notifier sends it too."""
    async with slow_server(0.1, silent_at=b"RSET") as (url, commands):
        with pytest.raises(Undelivered, match="TimeoutError"):
            await hand_over(url, seconds=0.25)
    assert b"DATA" not in commands


async def test_a_mail_that_the_server_took_is_sent_though_the_session_does_not_end() -> None:
    async with slow_server(0, silent_at=b"QUIT") as (url, commands):
        await hand_over(url, seconds=2)
    assert commands[-1] == b"QUIT"


def test_the_same_message_is_the_same_mail() -> None:
    assert composed().as_bytes() == composed().as_bytes()


@pytest.mark.parametrize("url", [
    "mail.example", "http://mail.example", "smtp://", "smtp://user:secret@mail.example", "smtp://mail.example:port",
])  # fmt: skip
def test_a_setting_that_cannot_be_used_is_refused_and_not_repeated(url: str) -> None:
    with pytest.raises(Misconfigured) as refused:
        mail.server_of(url)
    assert "secret" not in str(refused.value)
