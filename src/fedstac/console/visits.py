"""A visit: a request of somebody's browser to a page, with their session, and what a form of ours may send.

A session is a cookie with a secret. The database has the secret's hash, and the caller's token sealed with it; so a
copy of the database opens nothing. Each visit asks whose token it is as the API does with a bearer token: a right, a
group or a token that was withdrawn works no longer here than there.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import re
import secrets
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import timedelta
from urllib.parse import parse_qsl, quote, urlsplit

from joserfc import jwe
from joserfc.errors import JoseError
from joserfc.jwk import OctKey
from starlette.datastructures import ImmutableMultiDict
from starlette.requests import cookie_parser

from fedstac.api.call import Call
from fedstac.db import sessions
from fedstac.domain.errors import BadRequest, InvalidToken, MissingPermission, Unauthenticated
from fedstac.domain.policy import Principal

LONGEST, IDLE = timedelta(hours=12), timedelta(hours=1)  # of a session
FOLDER = "/console"
SECRET = re.compile(r"[A-Za-z0-9_-]{43}", re.ASCII)
RETURN_PATH = re.compile(r"/[A-Za-z0-9._~!$&'()*+,;=:@%/?-]*", re.ASCII)
MOST_FIELDS = 2000  # of a form
FORM = "application/x-www-form-urlencoded"
CSRF = "csrf"  # the field of every form


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


async def open_session(call: Call, token: str) -> tuple[str, Principal]:
    """Open a session with a token that the node takes. Return the cookie's secret, and whose token it is.

    Unauthenticated where it is nobody's; a session that the browser has is ended.
    """
    principal = await call.services.principals.of(token)
    if principal is None:
        raise Unauthenticated("this token is not known here; ask the operators of this node for a new one")
    secret = secrets.token_urlsafe(32)
    sealed = jwe.encrypt_compact({"alg": "dir", "enc": "A256GCM"}, token, _key(secret))
    async with call.node.pool.acquire() as conn, conn.transaction():
        if before := _secret_of(call):
            await sessions.remove(conn, _id(before))
        await sessions.add(conn, _id(secret), sealed=sealed, actor=principal.name, longest=LONGEST, idle=IDLE)
    return secret, principal


async def close_session(call: Call) -> None:
    """End the session of a request, if it has one."""
    if secret := _secret_of(call):
        async with call.node.pool.acquire() as conn:
            await sessions.remove(conn, _id(secret))


async def find_session(call: Call) -> ConsoleSession | None:
    """Return the session of a request; None without one. One whose token is not valid any more is ended.

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
    try:
        token = jwe.decrypt_compact(row.sealed, _key(secret), algorithms=["dir", "A256GCM"]).plaintext or b""
        principal = await call.services.principals.of(token.decode())
    except (JoseError, ValueError, InvalidToken, Unauthenticated, MissingPermission):
        principal = None
    if principal is None:
        await close_session(call)
        return None
    call.progress.caller = principal
    return ConsoleSession(id, _csrf(secret), principal)


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
