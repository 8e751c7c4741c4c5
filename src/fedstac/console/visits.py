"""A visit: a request of somebody's browser to a page, with their session, and what a form of ours may send.

A session is a cookie with a secret. The database has the secret's hash, and the caller's tokens sealed with it; so a
copy of the database opens nothing. Each visit asks whose token it is as the API does with a bearer token: a right, a
group or a token that was withdrawn works no longer here than there. Once the access token has ended, the provider's
refresh token brings another one; where the provider refuses that, the session ends.
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
import hmac
import re
import secrets
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import timedelta
from urllib.parse import parse_qsl, quote, urlsplit

import orjson
import structlog
from joserfc import jwe
from joserfc.errors import JoseError
from joserfc.jwk import OctKey
from starlette.datastructures import ImmutableMultiDict
from starlette.requests import cookie_parser

from fedstac.api.call import Call
from fedstac.db import sessions
from fedstac.db.sessions import StoredSession
from fedstac.domain.errors import BadRequest, InvalidToken, MissingPermission, Unauthenticated, Unavailable
from fedstac.domain.policy import Principal
from fedstac.identity.oidc import LoginTokens
from fedstac.runtime import budget
from fedstac.runtime.wakeup import Backoff, pause

LONGEST, IDLE = timedelta(hours=12), timedelta(hours=1)  # of a session
RENEWAL_SECONDS = 15.0  # that a request has to renew a token; longer than a provider's answer may take
FOLDER = "/console"
SECRET = re.compile(r"[A-Za-z0-9_-]{43}", re.ASCII)
RETURN_PATH = re.compile(r"/[A-Za-z0-9._~!$&'()*+,;=:@%/?-]*", re.ASCII)
MOST_FIELDS = 2000  # of a form
FORM = "application/x-www-form-urlencoded"
CSRF = "csrf"  # the field of every form
log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class ConsolePlace:
    """Where the console is for its visitors."""

    base_url: str  # of the node
    node: str

    @property
    def root(self) -> str:
        """The path of the console, without a slash at the end."""
        return urlsplit(self.base_url).path.rstrip("/") + FOLDER

    @property
    def origin(self) -> str:
        """The origin of the console's pages, as browsers write it (RFC 6454, 6.2)."""
        parts = urlsplit(self.base_url)
        host = f"[{parts.hostname}]" if ":" in (parts.hostname or "") else parts.hostname
        port = f":{parts.port}" if parts.port not in (None, 443 if parts.scheme == "https" else 80) else ""
        return f"{parts.scheme}://{host}{port}"

    @property
    def is_https(self) -> bool:
        return self.base_url.startswith("https://")

    def cookie_name(self, kind: str) -> str:
        """Return the name of a cookie. Cookies of one host are shared by all ports, so the node's name is in it."""
        return f"{'__Host-' if self.is_https else ''}fedstac-{kind}-{self.node}"

    def cookie(self, kind: str, value: str, *, seconds: float) -> str:
        """Return a header Set-Cookie; without seconds it takes the cookie away."""
        path = "/" if self.is_https else self.root  # __Host- needs /
        secure = "; Secure" if self.is_https else ""
        name = self.cookie_name(kind)
        return f"{name}={value}; Path={path}; Max-Age={int(seconds)}; HttpOnly; SameSite=Lax{secure}"

    def return_path(self, path: str) -> str:
        """Return a path of the console to go to after a login; that of its first page for any other."""
        is_ours = path == self.root or path.startswith((f"{self.root}/", f"{self.root}?"))
        if is_ours and RETURN_PATH.fullmatch(path) and "//" not in path.partition("?")[0] and ".." not in path:
            return path
        return self.root


@dataclass(frozen=True, slots=True)
class ConsoleSession:
    """A session that is open. csrf: what its forms have to send."""

    id: bytes
    csrf: str
    principal: Principal


@dataclass(frozen=True, slots=True)
class Visit:
    """A request to a page, by somebody who may be logged in."""

    call: Call
    place: ConsolePlace
    session: ConsoleSession | None
    form: ImmutableMultiDict[str, str] = field(default_factory=ImmutableMultiDict)

    @property
    def caller(self) -> Principal:
        """Return the caller of a page that needs a session."""
        assert self.session is not None, "the page is for callers with a session"
        return self.session.principal

    @property
    def is_poll(self) -> bool:
        """Return whether a page of ours asks for its newest content by itself."""
        return self.call.headers.get("hx-request") == "true"

    @property
    def address(self) -> str:
        """Return the path and query of this page for its visitors."""
        return quote(self.call.path) + (f"?{self.call.query_string}" if self.call.query_string else "")


def place_of(call: Call) -> ConsolePlace:
    """Return where the console is."""
    return ConsolePlace(call.base_url, call.node.settings.node)


def cookies_of(call: Call) -> Mapping[str, str]:
    """Return the cookies of a request."""
    return cookie_parser(call.headers.get("cookie", ""))


# --- sessions ---


def _id(secret: str) -> bytes:
    return hashlib.sha256(b"id:" + secret.encode()).digest()


def _key(secret: str) -> OctKey:
    return OctKey.import_key(hashlib.sha256(b"seal:" + secret.encode()).digest())


def _csrf(secret: str) -> str:
    return _encoded(hmac.digest(secret.encode(), b"csrf", "sha256"))


def _encoded(value: bytes) -> str:
    return base64.urlsafe_b64encode(value).rstrip(b"=").decode()


def _sealed(value: str, secret: str) -> str:
    return jwe.encrypt_compact({"alg": "dir", "enc": "A256GCM"}, value, _key(secret))


def _opened(sealed: str, secret: str) -> str:
    """Return what was sealed with a secret. JoseError or ValueError for anything else."""
    return (jwe.decrypt_compact(sealed, _key(secret), algorithms=["dir", "A256GCM"]).plaintext or b"").decode()


def _sealed_renewal(issuer: str, tokens: LoginTokens, secret: str) -> str | None:
    if tokens.refresh is None:
        return None
    return _sealed(orjson.dumps({"issuer": issuer, "refresh": tokens.refresh}).decode(), secret)


async def open_session(call: Call, tokens: LoginTokens, *, issuer: str = "") -> tuple[str, Principal]:
    """Open a session with a token that the node takes. Return the cookie's secret, and whose token it is.

    issuer: of the tokens; "" for a token of this node. Unauthenticated where it is nobody's; a session that the browser
    has is ended.
    """
    principal = await call.services.principals.of(tokens.access)
    if principal is None:
        raise Unauthenticated("this token is not known here; ask the operators of this node for a new one")
    secret = secrets.token_urlsafe(32)
    async with call.node.pool.acquire() as conn, conn.transaction():
        if before := _secret_of(call):
            await sessions.remove(conn, _id(before))
        await sessions.add(
            conn, _id(secret), sealed=_sealed(tokens.access, secret), renewal=_sealed_renewal(issuer, tokens, secret),
            actor=principal.name, longest=LONGEST, idle=IDLE,
        )  # fmt: skip
    return secret, principal


async def close_session(call: Call) -> None:
    """End the session of a request, if it has one."""
    if secret := _secret_of(call):
        async with call.node.pool.acquire() as conn:
            await sessions.remove(conn, _id(secret))


async def log_out(call: Call) -> None:
    """End the session of a request, and take its refresh token back at the provider."""
    if secret := _secret_of(call):
        async with call.node.pool.acquire() as conn:
            row = await sessions.find(conn, _id(secret), idle=IDLE)
            await sessions.remove(conn, _id(secret))
        if row is not None and row.renewal is not None:
            renewal = orjson.loads(_opened(row.renewal, secret))
            await call.services.principals.providers.revoke(renewal["issuer"], renewal["refresh"])


async def find_session(call: Call) -> ConsoleSession | None:
    """Return the session of a request; None without one. One whose token is not valid any more is renewed, or ended.

    Unavailable where that cannot be told just now.
    """
    secret = _secret_of(call)
    if secret is None:
        return None
    id = _id(secret)
    async with call.node.pool.acquire() as conn:
        row = await sessions.find(conn, id, idle=IDLE)
        if row is not None and row.is_stale and call.headers.get("hx-request") != "true":
            await sessions.touch(conn, id)  # a page that only looks by itself does not keep a session open
    if row is None:
        return None
    principal = await _holder(call, row, secret)
    if principal is None and row.renewal is not None:
        principal = await _renewed_holder(call, row, secret)
    if principal is None:
        await close_session(call)
        return None
    call.progress.caller = principal
    return ConsoleSession(id, _csrf(secret), principal)


async def _holder(call: Call, row: StoredSession, secret: str) -> Principal | None:
    """Return whose token a session has; None where it is not valid any more."""
    try:
        return await call.services.principals.of(_opened(row.sealed, secret))
    except (JoseError, ValueError, InvalidToken, Unauthenticated, MissingPermission):
        return None


# --- tokens that end before their session ---


async def _renewed_holder(call: Call, row: StoredSession, secret: str) -> Principal | None:
    """Return whose session it is by a newer token; None where the provider gives none. Unavailable where it is away.

    A refresh token works once: one request of all processes asks, and the others wait for what it stores.
    """
    id, backoff = _id(secret), Backoff()
    deadline = time.monotonic() + RENEWAL_SECONDS
    while time.monotonic() < deadline:
        async with call.node.pool.acquire() as conn:
            is_ours = await sessions.claim_renewal(conn, id, sealed=row.sealed, seconds=RENEWAL_SECONDS)
        if is_ours:  # what the provider gives is stored, also where the browser does not wait for the page
            await asyncio.shield(budget.detached(_renew(call, row, secret)))
        else:
            await pause(call.node.stopping, backoff.pause())
        async with call.node.pool.acquire() as conn:
            newer = await sessions.find(conn, id, idle=IDLE)
        if newer is None:
            return None
        if newer.sealed != row.sealed:
            return await _holder(call, newer, secret)
    raise Unavailable("your login is being renewed; try again", retry_after=2)


async def _renew(call: Call, row: StoredSession, secret: str) -> None:
    """Store newer tokens of a session; end it where the provider gives none, or those of somebody else."""
    id, principals = _id(secret), call.services.principals
    renewal = orjson.loads(_opened(row.renewal or "", secret))
    try:
        tokens = await principals.providers.renew(renewal["issuer"], renewal["refresh"])
        holder = await principals.of(tokens.access)
    except (InvalidToken, Unauthenticated, MissingPermission):
        holder = None
    except Unavailable:
        async with call.node.pool.acquire() as conn:
            await sessions.release_renewal(conn, id)
        raise
    async with call.node.pool.acquire() as conn:
        if holder is None or holder.name != row.actor:
            await sessions.remove(conn, id)
            log.info("console session ended", actor=row.actor, reason="the provider renewed no token of theirs")
            return
        await sessions.renew(
            conn, id, sealed=_sealed(tokens.access, secret),
            renewal=_sealed_renewal(renewal["issuer"], tokens, secret),
        )  # fmt: skip


def _secret_of(call: Call) -> str | None:
    secret = cookies_of(call).get(place_of(call).cookie_name("session"), "")
    return secret if SECRET.fullmatch(secret) else None


# --- forms ---


async def read_form(call: Call) -> ImmutableMultiDict[str, str]:
    """Return the fields of a form. BadRequest for any other body."""
    if call.headers.get("content-type", "").partition(";")[0].strip().lower() != FORM:
        raise BadRequest(f"send the fields of a form ({FORM})")
    try:
        text = (await call.body.read()).decode()
        fields = parse_qsl(text, keep_blank_values=True, max_num_fields=MOST_FIELDS, errors="strict")
    except ValueError:
        raise BadRequest(f"the form cannot be read; send UTF-8 and at most {MOST_FIELDS} fields") from None
    if any("\x00" in part for field in fields for part in field):
        raise BadRequest("the form holds the character U+0000; leave it out")
    return ImmutableMultiDict(fields)


def check_source(call: Call, form: ImmutableMultiDict[str, str], expected: str) -> None:
    """Refuse a form that is not of a page of ours: MissingPermission."""
    place, origin = place_of(call), call.headers.get("origin")
    site = call.headers.get("sec-fetch-site", "same-origin")
    is_ours = (origin is None or origin == place.origin) and site in ("same-origin", "none")
    if not is_ours or not hmac.compare_digest(form.get(CSRF, "").encode(), expected.encode()):
        raise MissingPermission("this form is not of a page of this session; load the page again, then send it")
