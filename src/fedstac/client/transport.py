"""One server over HTTP: requests that are sent again while that is of use, and refusals as typed exceptions."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any

import httpx
import orjson

from fedstac import __version__
from fedstac.domain.errors import Finding, Severity

AGAIN = (429, 502, 503, 504)  # the server, or a proxy before it, cannot just now
FIRST_PAUSE, LONGEST_PAUSE, LONGEST_RETRY_AFTER = 0.5, 20.0, 300.0  # seconds


class ClientError(Exception):
    """The root of what the client raises; its text is one sentence for the person at the keyboard."""


class Unreachable(ClientError):
    """No answer after all tries: the address is wrong, or the network or the server is away."""


class Stalled(ClientError):
    """What was accepted made no progress for longer than one was willing to wait."""


class Refused(ClientError):
    """The server answered with a problem (RFC 9457).

    `type` is the last part of the problem's type, for example `stac-validation`; `findings` say what is wrong where,
    with JSON pointers into what was sent.
    """

    def __init__(self, status: int, type: str, detail: str, findings: tuple[Finding, ...] = ()) -> None:
        super().__init__(detail)
        self.status, self.type, self.detail, self.findings = status, type, detail, findings


class NotAuthorised(Refused):
    """401: no valid token; 403: the token's roles do not allow it."""


class NotFound(Refused):
    """404: there is no such collection, dataset or request. 410: the feed does not reach back that far."""


class Invalid(Refused):
    """Any other 4xx: what was sent is refused, and would be again."""


class LoginFailed(ClientError):
    """There is no login, it has ended, or the identity provider did not allow one."""


class NoLogin(ClientError):
    """The server takes no logins, or not the one that was asked for."""


class Failed(Refused):
    """5xx, and whatever is no answer of a STAC server; also 429 and 503 when all tries are used up."""


TokenSource = Callable[[], str]  # asked before each request; may raise ClientError


class Transport:
    """Sends requests to one server; connection errors, 429 and 502 to 504 are tried again up to `retries` times.

    The pause doubles from half a second, with jitter, and is never shorter than the server's Retry-After. Everything
    may be sent twice: a POST of items too, as the server recognises identical documents.
    """

    def __init__(
        self,
        url: str,
        token: str | TokenSource | None,
        *,
        timeout: float,
        retries: int,
        http: httpx.Client | None = None,
    ) -> None:
        if not url.startswith(("http://", "https://")):
            raise ValueError(f"{url!r} is no address of a server; it begins with http:// or https://")
        self.url = url.rstrip("/")
        self._retries, self._timeout = retries, timeout
        self._headers = {"User-Agent": f"fedstac/{__version__}"}
        self._token = token or None
        self._http = http or httpx.Client(timeout=timeout)

    def close(self) -> None:
        self._http.close()

    def json(self, method: str, path: str, **sent: Any) -> Any:
        """The JSON of a successful answer; see `send`."""
        response = self.send(method, path, **sent)
        try:
            return orjson.loads(response.content)
        except orjson.JSONDecodeError:
            raise Failed(response.status_code, "no-json", f"{self.url}{path} did not answer with JSON") from None

    def send(
        self,
        method: str,
        path: str,
        *,
        params: Mapping[str, Any] | None = None,
        content: bytes | None = None,
        headers: Mapping[str, str] | None = None,
        wait: float = 0.0,
    ) -> httpx.Response:
        """A successful answer. Unreachable or a Refused where there is none. `wait`: seconds the server may take."""
        attempt = 0
        while True:
            try:
                response = self._http.request(
                    method, self.url + path, params=params, content=content,
                    headers={**self._headers, **self._authorization(), **(headers or {})}, timeout=self._timeout + wait,
                )  # fmt: skip
            except httpx.TransportError as error:
                if attempt >= self._retries:
                    raise self._unreachable(error, attempt + 1) from error
                least = 0.0
            else:
                if response.status_code not in AGAIN or attempt >= self._retries:
                    return self._checked(response, path)
                least = retry_after(response.headers.get("retry-after", ""), datetime.now(UTC))
            longest = min(FIRST_PAUSE * 2**attempt, LONGEST_PAUSE)
            time.sleep(max(least, random.uniform(longest / 2, longest)))  # noqa: S311 -- not for secrets
            attempt += 1

    def _authorization(self) -> dict[str, str]:
        token = self._token() if callable(self._token) else self._token
        return {"Authorization": f"Bearer {token}"} if token else {}

    def _unreachable(self, error: httpx.TransportError, tries: int) -> Unreachable:
        reason = str(error) or type(error).__name__
        times = "once" if tries == 1 else f"{tries} times"
        return Unreachable(f"{self.url} does not answer (tried {times}: {reason}); is the address right, and it runs?")

    def _checked(self, response: httpx.Response, path: str) -> httpx.Response:
        if response.is_success:
            return response
        raise refusal(response, f"{self.url}{path}")


def retry_after(value: str, now: datetime) -> float:
    """Seconds of a Retry-After header (RFC 9110, 10.2.3), which is a number or a date; 0 where it is neither."""
    try:
        seconds = float(value) if value.isdecimal() else (parsedate_to_datetime(value) - now).total_seconds()
    except (ValueError, TypeError):
        return 0.0
    return max(0.0, min(seconds, LONGEST_RETRY_AFTER))


def refusal(response: httpx.Response, address: str) -> Refused:
    """The exception for an answer that is no success; a page of some proxy is never shown."""
    status = response.status_code
    try:
        body = orjson.loads(response.content)
    except orjson.JSONDecodeError:
        body = None
    if not isinstance(body, dict):
        body = {}
    kind = _kind(status)
    if not isinstance(body.get("detail"), str):
        to = f" to {response.headers['location']}; use that address" if "location" in response.headers else ""
        return kind(status, "about:blank", f"{address} answered {status} {response.reason_phrase}{to}")
    name = str(body.get("type", "about:blank")).rpartition("/")[2]
    return kind(status, name, body["detail"], findings_from(body.get("errors")))


def _kind(status: int) -> type[Refused]:
    if status in (401, 403):
        return NotAuthorised
    if status in (404, 410):
        return NotFound
    return Invalid if 400 <= status < 500 and status != 429 else Failed


def findings_from(values: object) -> tuple[Finding, ...]:
    """Findings as the server writes them; what is none is left out."""
    entries = values if isinstance(values, list) else []
    return tuple(
        Finding(
            str(entry.get("rule", "")), str(entry.get("pointer", "")), str(entry.get("message", "")),
            Severity.WARNING if entry.get("severity") == Severity.WARNING else Severity.ERROR, entry.get("suggestion"),
        )
        for entry in entries if isinstance(entry, dict)
    )  # fmt: skip
