"""What identity providers answer: fetched within limits, and kept for a while.

While a provider is away, keys that were fetched before go on working for a day.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

import httpx
from joserfc import jwk
from joserfc.errors import JoseError

from fedstac.domain import digests, strict_json
from fedstac.domain.errors import MalformedJson

MAX_ANSWER = 1 << 20  # bytes of any answer of a provider's
ANSWER_SECONDS = 5.0  # for an answer as a whole
KEYS_FRESH_SECONDS, KEYS_KEPT_SECONDS = 3600.0, 86_400.0
REFETCH_SECONDS = 10.0  # least time between two fetches of one issuer's keys, whatever kids tokens name
INTROSPECTED_SECONDS = 30.0  # with identity.KEPT_SECONDS less than the minute in which a withdrawal takes effect
INTROSPECTIONS_KEPT, INTROSPECTIONS_AT_ONCE = 4096, 16
REST_SECONDS = 2.0  # after an introspection that failed, nobody else waits for the same
LEAST_RSA_BITS = 2048
_KEY_TYPES = {"RS": "RSA", "PS": "RSA", "ES": "EC", "Ed": "OKP"}  # by the beginning of an algorithm's name


class ProviderAway(Exception):
    """A provider does not answer, or not with what it should. status: of its answer, where that is all it has."""

    def __init__(self, message: str, status: int | None = None) -> None:
        super().__init__(message)
        self.status = status


async def fetch(http: httpx.AsyncClient, method: str, url: str, **options: Any) -> dict[str, Any]:
    """Return the JSON object that an address answers with.

    ProviderAway for anything else, and for an answer that is slow or large.
    """
    try:
        async with asyncio.timeout(ANSWER_SECONDS), http.stream(method, url, **options) as response:
            if response.status_code != 200:
                raise ProviderAway(f"{url} answered {response.status_code}", response.status_code)
            if response.headers.get("content-encoding", "identity") != "identity":
                raise ProviderAway(f"{url} answered compressed")
            body = bytearray()
            async for piece in response.aiter_raw():
                body += piece
                if len(body) > MAX_ANSWER:
                    raise ProviderAway(f"{url} answered with over {MAX_ANSWER} bytes")
        answer = strict_json.parse(bytes(body))
    except (httpx.HTTPError, httpx.InvalidURL, TimeoutError) as error:
        raise ProviderAway(f"{url}: {str(error) or type(error).__name__}") from None
    except MalformedJson:
        raise ProviderAway(f"{url} did not answer with JSON") from None
    if not isinstance(answer, dict):
        raise ProviderAway(f"{url} did not answer with a JSON object")
    return answer


class SigningKeys:
    """An issuer's keys. One caller fetches them while the others wait: every hour, and for a key that is not here."""

    def __init__(self, fetch: Callable[[], Awaitable[list[jwk.Key]]]) -> None:
        self._fetch = fetch
        self._keys: list[jwk.Key] = []
        self._fetch_time = self._last_try = float("-inf")
        self._failure: ProviderAway | None = None
        self._fetching: asyncio.Task[None] | None = None

    async def of(self, kid: str | None, algorithm: str) -> list[jwk.Key]:
        """Return the keys that may have signed. ProviderAway if there are none and none can be fetched."""
        age = time.monotonic() - self._fetch_time
        if age > KEYS_KEPT_SECONDS:
            self._keys = []
        if not self._keys:
            await self.renew()
            if not self._keys:
                self._raise_failure()
                raise ProviderAway("its keys could not be fetched a moment ago")
        elif age > KEYS_FRESH_SECONDS:
            self._start()  # beside the request: what is here still works
        return [key for key in self._keys if None in (kid, key.kid) or kid == key.kid if _fits(key, algorithm)]

    async def renew(self) -> bool:
        """Fetch the keys, at most once in REFETCH_SECONDS. Return whether they are newer now.

        ProviderAway if that failed.
        """
        before = self._fetch_time
        if not self._start():
            self._raise_failure()
        if self._fetching is not None:
            await asyncio.shield(self._fetching)
        self._raise_failure()
        return self._fetch_time > before

    def _raise_failure(self) -> None:
        """Raise what the last try ended with, if it failed, without what earlier requests did: they raised it too."""
        if self._failure:
            raise self._failure.with_traceback(None)

    def _start(self) -> bool:
        """Start a fetch unless one is under way or just was. Return whether one is under way."""
        if self._fetching is not None and not self._fetching.done():
            return True
        if time.monotonic() - self._last_try < REFETCH_SECONDS:
            return False
        self._last_try = time.monotonic()
        self._fetching = asyncio.create_task(self._renew())
        return True

    async def _renew(self) -> None:
        try:
            self._keys = await self._fetch()
            self._fetch_time, self._failure = time.monotonic(), None
        except ProviderAway as error:
            self._failure = error
        finally:
            self._last_try = time.monotonic()


def read_key(entry: object) -> jwk.Key | None:
    """Return the public key of a JWK (RFC 7517) that verifies signatures; None for any other."""
    if not isinstance(entry, dict) or entry.get("kty") not in _KEY_TYPES.values() or "d" in entry:
        return None
    operations = entry.get("key_ops", ["verify"])
    if entry.get("use", "sig") != "sig" or not isinstance(operations, list) or "verify" not in operations:
        return None
    if entry["kty"] == "RSA" and len(str(entry.get("n", ""))) * 6 < LEAST_RSA_BITS:
        return None
    try:
        return jwk.import_key(entry)
    except (JoseError, ValueError, TypeError, KeyError):
        return None


def _fits(key: jwk.Key, algorithm: str) -> bool:
    """Return whether a key is one for an algorithm: by its member alg, and by its type and curve."""
    return key.get("alg") in (None, algorithm) and key.key_type == _KEY_TYPES[algorithm[:2]]


class Introspections:
    """An issuer's answers about tokens, for a short time, by the tokens' hashes; one question a token at once."""

    def __init__(self) -> None:
        self._answers: dict[bytes, tuple[float, Mapping[str, Any] | None]] = {}
        self._asking: dict[bytes, asyncio.Task[Mapping[str, Any] | None]] = {}
        self._at_once = asyncio.Semaphore(INTROSPECTIONS_AT_ONCE)
        self._failure: tuple[float, ProviderAway] | None = None

    async def of(
        self, token: str, ask: Callable[[str], Awaitable[Mapping[str, Any] | None]]
    ) -> Mapping[str, Any] | None:
        """Return the claims that `ask` answers, or answered a moment ago; None for a token that is not active."""
        name = digests.of_token(token)
        answer = self._answers.get(name)
        if answer and answer[0] > time.monotonic():
            return answer[1]
        if name not in self._asking:
            self._asking[name] = asyncio.create_task(self._ask(name, token, ask))
        return await asyncio.shield(self._asking[name])

    async def _ask(
        self, name: bytes, token: str, ask: Callable[[str], Awaitable[Mapping[str, Any] | None]]
    ) -> Mapping[str, Any] | None:
        try:
            async with self._at_once:
                if self._failure and self._failure[0] > time.monotonic():
                    raise self._failure[1].with_traceback(None)
                try:
                    claims = await ask(token)
                except ProviderAway as error:
                    self._failure = time.monotonic() + REST_SECONDS, error
                    raise
            ends = claims.get("exp") if claims else None
            lasts = ends - time.time() if isinstance(ends, int | float) else INTROSPECTED_SECONDS
            if len(self._answers) >= INTROSPECTIONS_KEPT:
                self._answers.clear()
            self._answers[name] = time.monotonic() + min(lasts, INTROSPECTED_SECONDS), claims
            return claims
        finally:
            del self._asking[name]
