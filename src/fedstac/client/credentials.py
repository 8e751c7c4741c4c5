"""Logins at servers: kept in the keyring if there is one that works, else in files that only their owner can read."""

from __future__ import annotations

import asyncio
import contextvars
import hashlib
import importlib
import os
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx
import orjson
from filelock import FileLock

from fedstac.client.transport import NO_ANSWER, ClientError, LoginFailed, TokenSource, open_http
from fedstac.domain.addresses import is_safe

SERVICE = "fedstac"  # in the keyring
EARLY_SECONDS = 60.0  # an access token that ends sooner is renewed
ANSWER_SECONDS = 30.0
TOKEN_THREADS = 16


@dataclass(frozen=True, slots=True)
class Login:
    """A login at a server: its tokens, and where they are renewed and revoked."""

    server: str
    issuer: str
    client_id: str
    token_endpoint: str
    revocation_endpoint: str | None
    access_token: str = field(repr=False)
    refresh_token: str | None = field(repr=False)
    expires: float | None  # when the access token ends, as time.time() counts; None: nobody says

    def lasts(self, seconds: float) -> bool:
        """Return whether the access token is good for that long."""
        return self.expires is None or self.expires - time.time() > seconds

    def with_tokens(self, answer: dict[str, Any]) -> Login:
        """Return this login with the tokens of a token endpoint's answer (RFC 6749, 5.1).

        Without a new refresh token the old one stays.
        """
        access, lifetime = answer.get("access_token"), answer.get("expires_in")
        refresh = answer.get("refresh_token", self.refresh_token)
        if not isinstance(access, str) or not access or str(answer.get("token_type", "")).lower() != "bearer":
            raise LoginFailed(f"{self.issuer} answered without a bearer token; tell its operators")
        expires = time.time() + lifetime if isinstance(lifetime, int | float) else None
        return replace(self, access_token=access, refresh_token=refresh, expires=expires)


async def fetch_token(source: TokenSource) -> str:
    """Return the token of a source, which may wait for an identity provider.

    It waits in threads that do nothing else: a provider that hangs keeps no other work from the process's threads.
    """
    context = contextvars.copy_context()
    return await asyncio.get_running_loop().run_in_executor(_token_threads(), context.run, source)


@cache
def _token_threads() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(TOKEN_THREADS, thread_name_prefix="token")


def address(url: str) -> str:
    """Return a server's address in the one spelling under which its login is kept."""
    parts = urlsplit(url)
    return f"{parts.scheme.lower()}://{parts.netloc.lower()}{parts.path.rstrip('/')}"


class Store:
    """The logins of this user. `folder` holds a lock for each server, and the logins that no keyring takes."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def read(self, server: str) -> Login | None:
        """Return the login at a server; None if there is none, or it cannot be read."""
        path = self._path(server, "json")
        try:
            text = path.read_bytes() if path.exists() else _from_keyring(address(server))
            return Login(**orjson.loads(text)) if text else None
        except (OSError, orjson.JSONDecodeError, TypeError):
            return None

    def write(self, login: Login) -> str:
        """Keep a login in place of the earlier one, and return where. Call it under `lock` if others may renew it."""
        text, path = orjson.dumps(asdict(login)).decode(), self._path(login.server, "json")
        if _into_keyring(address(login.server), text):
            path.unlink(missing_ok=True)
            return "the keyring"
        self._make_folder()
        unfinished = path.with_suffix(f".{os.getpid()}.part")
        try:
            with open(os.open(unfinished, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as file:
                os.fchmod(file.fileno(), 0o600)
                file.write(text)
                file.flush()
                os.fsync(file.fileno())
            unfinished.replace(path)
        except OSError as error:
            raise ClientError(f"the login cannot be kept: {error}") from None
        return str(path)

    def forget(self, server: str) -> None:
        """Remove the login at a server; nothing happens if there is none."""
        self._path(server, "json").unlink(missing_ok=True)
        if backend := _keyring():
            with suppress(Exception):  # whatever a backend raises where there is nothing to delete
                backend.delete_password(SERVICE, address(server))

    @contextmanager
    def lock(self, server: str) -> Iterator[None]:
        """Wait until no other process of this user renews the login at a server, and keep the others out."""
        self._make_folder()
        with FileLock(self._path(server, "lock"), mode=0o600):
            yield

    def _make_folder(self) -> None:
        try:
            self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        except OSError as error:
            raise ClientError(f"logins cannot be kept: {error}; use FEDSTAC_TOKEN") from None

    def _path(self, server: str, kind: str) -> Path:
        name = hashlib.sha256(address(server).encode()).hexdigest()[:16]
        return self._folder / f"login-{name}.{kind}"


def _keyring() -> Any | None:
    """Return the module keyring if it is installed (`pip install 'fedstac[keyring]'`)."""
    try:
        return importlib.import_module("keyring")
    except ImportError:
        return None


def _from_keyring(name: str) -> str | None:
    """Return the keyring's text; None also where the keyring does not work, as on a machine without a desktop."""
    try:
        return backend.get_password(SERVICE, name) if (backend := _keyring()) else None
    except Exception:  # backends raise what they like
        return None


def _into_keyring(name: str, text: str) -> bool:
    """Put a text into the keyring, and return whether it is there now."""
    try:
        if (backend := _keyring()) is None:
            return False
        backend.set_password(SERVICE, name, text)
        return bool(backend.get_password(SERVICE, name) == text)
    except Exception:  # as above
        return False


class Session:
    """The access token of a login, renewed in time; a TokenSource for Client."""

    def __init__(self, store: Store, login: Login, *, http: httpx.Client | None = None) -> None:
        self._store, self._login, self._http = store, login, http

    def __call__(self) -> str:
        """Return a token that lasts. LoginFailed if it has ended and cannot be renewed."""
        if not self._login.lasts(EARLY_SECONDS):
            self._login = self._renew()
        return self._login.access_token

    def _renew(self) -> Login:
        """Return a login that lasts. Another process may renew it while this one waits: a refresh token works once."""
        with self._store.lock(self._login.server):
            login = self._store.read(self._login.server) or self._login
            if login.lasts(EARLY_SECONDS):
                return login
            try:
                renewed = self._refresh(login)
            except ClientError:
                if login.lasts(0):  # still good for this request
                    return login
                raise
            self._store.write(renewed)
            return renewed

    def _refresh(self, login: Login) -> Login:
        """Return the login with new tokens of the identity provider (RFC 6749, 6)."""
        if login.refresh_token is None:
            raise self._ended("it cannot be renewed")
        form = {"grant_type": "refresh_token", "refresh_token": login.refresh_token, "client_id": login.client_id}
        answer = ask(login.token_endpoint, form, self._http)
        if "error" in answer:
            raise self._ended(refusal_reason(answer))
        return login.with_tokens(answer)

    def _ended(self, why: str) -> LoginFailed:
        server = self._login.server
        return LoginFailed(f"your login at {server} has ended ({why}); log in again: fedstac login --url {server}")


def metadata_of(issuer: str, http: httpx.Client) -> dict[str, Any]:
    """Fetch the metadata of an identity provider (OpenID Connect Discovery 1.0).

    LoginFailed if it has none, Away if it does not answer.
    """
    url = issuer.rstrip("/") + "/.well-known/openid-configuration"
    metadata = None
    try:
        response = http.get(url)
        with suppress(orjson.JSONDecodeError):
            metadata = orjson.loads(response.content)
    except NO_ANSWER as error:
        raise Away(f"{issuer} does not answer: {str(error) or type(error).__name__}; try again later") from error
    if not isinstance(metadata, dict) or metadata.get("issuer") != issuer:
        raise LoginFailed(f"{url} is not the metadata of {issuer}; tell the operators of the server")
    return metadata


def endpoint_in(metadata: dict[str, Any], name: str) -> str | None:
    """Return an endpoint of an issuer's metadata; None if it names none. LoginFailed for one without https."""
    url, issuer = metadata.get(name), metadata["issuer"]
    if url is None:
        return None
    if not isinstance(url, str) or not is_safe(url, of=issuer):
        raise LoginFailed(f"{issuer} names a {name} that is no https address; tell its operators")
    return url


def ask(
    url: str, form: dict[str, str], http: httpx.Client | None = None, *, headers: Mapping[str, str] | None = None
) -> dict[str, Any]:
    """Send a form to an endpoint of an identity provider and return its answer; a refusal has the member error.

    LoginFailed for any other answer, Away for none.
    """
    try:
        if http is not None:
            response = http.post(url, data=form, headers=headers)
        else:
            with open_http(httpx.Client, timeout=ANSWER_SECONDS) as own:
                response = own.post(url, data=form, headers=headers)
        answer = orjson.loads(response.content)
    except NO_ANSWER as error:
        raise Away(f"{url} does not answer: {str(error) or type(error).__name__}; try again later") from error
    except orjson.JSONDecodeError:
        answer = None
    if not isinstance(answer, dict) or (response.status_code != 200 and not isinstance(answer.get("error"), str)):
        raise LoginFailed(f"{url} answered {response.status_code} and not as a token endpoint does; tell its operators")
    return answer


def refusal_reason(answer: dict[str, Any]) -> str:
    """Return the reason in an error answer (RFC 6749, 5.2)."""
    return str(answer.get("error_description") or answer.get("error"))[:300]


class Away(ClientError):
    """The identity provider does not answer."""
