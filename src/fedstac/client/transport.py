"""One server over HTTP: requests that are sent again while that is of use, and refusals as typed exceptions."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Generator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from http import HTTPStatus
from typing import Any, Final, TypeAlias, TypeVar

import httpx
import orjson

from fedstac import __version__
from fedstac.domain.errors import Finding, Severity

AGAIN = (429, 502, 503, 504)  # the server, or a proxy before it, cannot just now
FIRST_PAUSE, LONGEST_PAUSE, LONGEST_RETRY_AFTER = 0.5, 20.0, 300.0  # seconds

T = TypeVar("T")
Http = TypeVar("Http", httpx.Client, httpx.AsyncClient)
NO_ANSWER: Final = (httpx.TransportError, httpx.DecodingError)


class ClientError(Exception):
    """The root of what the client raises; its text is one sentence for the person at the keyboard."""


class Unreachable(ClientError):
    """No answer after all tries: the address is wrong, or the network or the server is away."""


class EnvironmentBroken(ClientError):
    """The environment names a proxy, or certificates, with which no request can be sent."""


class Stalled(ClientError):
    """What was accepted made no progress for longer than one was willing to wait."""


class Refusal(ClientError):
    """The server answered with a problem (RFC 9457).

    `type` is the last part of the problem's type, for example `stac-validation`; `findings` say what is wrong where,
    with JSON pointers into what was sent.
    """

    def __init__(self, status: int, type: str, detail: str, findings: tuple[Finding, ...] = ()) -> None:
        super().__init__(detail)
        self.status, self.type, self.detail, self.findings = status, type, detail, findings


class NotAuthorised(Refusal):
    """401: no valid token; 403: the token's roles do not allow it."""


class NotFound(Refusal):
    """404: there is no such collection, dataset or request. 410: the feed does not reach back that far."""


class Invalid(Refusal):
    """Any other 4xx: what was sent is refused, and would be again."""


class Conflict(Invalid):
    """409: not as things stand, for example other files under the same version; 412: somebody else changed it."""


class LoginFailed(ClientError):
    """There is no login, it has ended, or the identity provider did not allow one."""


class NoLogin(ClientError):
    """The server takes no logins, or not the one that was asked for."""


class Failed(Refusal):
    """5xx, and whatever is no answer of a STAC server; also 429 and 503 when all tries are used up."""


JSON_BODY: Final[Mapping[str, str]] = {"Content-Type": "application/json"}
LINES_BODY: Final[Mapping[str, str]] = {"Content-Type": "application/x-ndjson"}
TokenSource = Callable[[], str]  # asked before each request; may raise ClientError
OnRetry = Callable[[str, float], None]  # why a request is sent again, and after how many seconds


@dataclass(frozen=True, slots=True)
class ServerCall:
    """A request to the server. `wait`: seconds the server may take before it answers."""

    method: str
    path: str
    params: Mapping[str, Any] | None = None
    content: bytes | None = None
    headers: Mapping[str, str] | None = None
    wait: float = 0.0


@dataclass(frozen=True, slots=True)
class Pause:
    """Seconds to wait before the next call."""

    seconds: float


# The calls of one command, whoever sends them. It gets the successful answer of each, or its ClientError.
Exchange: TypeAlias = Generator[ServerCall | Pause, httpx.Response, T]


def object_of(call: ServerCall) -> Exchange[dict[str, Any]]:
    """Send a call, and return the JSON object of its answer."""
    response = yield call
    return json_of(response)


def no_notice(reason: str, seconds: float) -> None:
    """Say nothing about a request that is sent again."""


class Tries:
    """Decides how often and when one call is sent again, for every kind of transport."""

    def __init__(self, url: str, retries: int, on_retry: OnRetry = no_notice) -> None:
        self._url, self._retries, self._attempt, self._on_retry = url, retries, 0, on_retry

    def after_error(self, error: httpx.RequestError) -> float:
        """Return seconds to the next try. Unreachable if all are used up, or none would help."""
        hopeless = isinstance(error, httpx.LocalProtocolError | httpx.UnsupportedProtocol)
        reason = str(error) or type(error).__name__
        trouble, question = "does not answer", "is the address right, and does it run?"
        if isinstance(error, httpx.DecodingError):
            trouble, question = "sends a compressed answer that is damaged", "is there a proxy on the way?"
        if hopeless or self._attempt >= self._retries:
            tries = self._attempt + 1
            times = "once" if tries == 1 else f"{tries} times"
            raise Unreachable(f"{self._url} {trouble} (tried {times}: {reason}); {question}") from error
        return self._pause(0.0, f"{self._url} {trouble} ({reason})")

    def after(self, response: httpx.Response, path: str) -> float | None:
        """Return seconds to the next try; None if this is a successful answer. A Refusal where it is final and none."""
        if response.is_success:
            return None
        if response.status_code not in AGAIN or self._attempt >= self._retries:
            raise refusal(response, f"{self._url}{path}")
        least = retry_after(response.headers.get("retry-after", ""), datetime.now(UTC))
        return self._pause(least, f"{self._url} answers {response.status_code} {response.reason_phrase}")

    def _pause(self, least: float, reason: str) -> float:
        longest = min(FIRST_PAUSE * 2**self._attempt, LONGEST_PAUSE)
        self._attempt += 1
        seconds = max(least, random.uniform(longest / 2, longest))  # noqa: S311 -- not for secrets
        self._on_retry(f"{reason}; try {self._attempt + 1} of {self._retries + 1}", seconds)
        return seconds


def checked_address(url: str) -> str:
    """Return the address of a server without a slash at its end. ValueError for what is none."""
    if not url.startswith(("http://", "https://")):
        raise ValueError(f"{url!r} is no address of a server; it begins with http:// or https://")
    try:
        host = httpx.URL(url).host
    except (httpx.InvalidURL, UnicodeError) as error:
        raise ValueError(f"{url!r} is no address of a server: {error}") from None
    if not host or ("%" in host and ":" not in host):  # what no host may have is escaped there
        raise ValueError(f"{url!r} is no address of a server; it names none")
    return url.rstrip("/")


def headers_of(call: ServerCall, token: str | None) -> dict[bytes, bytes]:
    """Return the headers in UTF-8. Invalid for what no header may hold. The text stays out: it may be a secret."""
    bearer = {"Authorization": f"Bearer {token.strip()}"} if token else {}
    texts = {"User-Agent": f"fedstac/{__version__}", **bearer, **(call.headers or {})}
    for name, text in texts.items():
        if not text.isprintable():
            what = "the token" if name == "Authorization" else f"what goes into the header {name}"
            raise Invalid(400, "bad-request", f"{what} holds a line break or a control character; leave it out")
    return {name.encode(): text.encode("utf-8", "replace") for name, text in texts.items()}


def too_long(call: ServerCall) -> Invalid:
    """Return why httpx refuses an address: ids are a part of it."""
    return Invalid(414, "uri-too-long", f"{call.path[:80]}… is too long an address; no id is as long")


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
        on_retry: OnRetry = no_notice,
    ) -> None:
        self.url = checked_address(url)
        self._retries, self._timeout, self._on_retry = retries, timeout, on_retry
        self._token = token or None
        self._http = http or open_http(httpx.Client, timeout=timeout)

    def close(self) -> None:
        self._http.close()

    def json(self, method: str, path: str, **options: Any) -> JsonObject:
        """Return the JSON object of a successful answer; see `send`."""
        return json_of(self.send(method, path, **options))

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
        """Return a successful answer.

        Unreachable or a Refusal if there is none. `wait`: seconds the server may take.
        """
        return self.answer(ServerCall(method, path, params, content, headers, wait))

    def answer(self, call: ServerCall) -> httpx.Response:
        tries = Tries(self.url, self._retries, self._on_retry)
        while True:
            token = self._token() if callable(self._token) else self._token
            try:
                response = self._http.request(
                    call.method, self.url + call.path, params=call.params, content=call.content,
                    headers=headers_of(call, token), timeout=self._timeout + call.wait,
                )  # fmt: skip
                pause = tries.after(response, call.path)
            except httpx.InvalidURL:
                raise too_long(call) from None
            except NO_ANSWER as error:
                pause = tries.after_error(error)
            if pause is None:
                return response
            time.sleep(pause)

    def perform(self, exchange: Exchange[T]) -> T:
        """Go through an exchange to its end."""
        try:
            step = next(exchange)
            while True:
                if isinstance(step, Pause):
                    time.sleep(step.seconds)
                    step = next(exchange)
                    continue
                try:
                    answer = self.answer(step)
                except ClientError as error:
                    step = exchange.throw(error)
                else:
                    step = exchange.send(answer)
        except StopIteration as end:
            result: T = end.value
            return result


class JsonObject(dict[str, Any]):
    """The object of an answer. A member that it lacks is no KeyError: then it was no node that answered.

    Gateways, and servers of another kind, say 200 to whatever they are asked. refuse: makes the error of a sentence.
    """

    def __init__(self, members: Mapping[str, Any], address: str, refuse: Callable[[str], Exception]) -> None:
        super().__init__(members)
        self._address, self._refuse = address, refuse

    def __missing__(self, name: str) -> Any:
        raise self._refuse(f"{self._address} answered without {name!r}; is it the address of a fedstac node?")


def no_node(detail: str) -> Failed:
    """Return the error of an answer that no node gives."""
    return Failed(HTTPStatus.OK, "no-node", detail)


def json_of(response: httpx.Response) -> JsonObject:
    """Return the JSON object of an answer. Failed if it is none."""
    value = value_of(response)
    if not isinstance(value, dict):
        raise Failed(response.status_code, "no-json", f"{request_url_of(response)} did not answer with a JSON object")
    return JsonObject(value, request_url_of(response), no_node)


def value_of(response: httpx.Response) -> Any:
    """Return the JSON of an answer, of whatever kind. Failed if it is none."""
    try:
        return orjson.loads(response.content)
    except orjson.JSONDecodeError:
        detail = f"{request_url_of(response)} did not answer with JSON"
        raise Failed(response.status_code, "no-json", detail) from None


def request_url_of(response: httpx.Response) -> str:
    """Return what was asked, without its parameters."""
    return str(response.url.copy_with(query=None))


def open_http(kind: Callable[..., Http], **options: Any) -> Http:
    """Return a client of httpx. EnvironmentBroken where it cannot use the proxy or certificates of the environment."""
    try:
        return kind(**options)
    except (ImportError, ValueError, OSError, httpx.InvalidURL) as error:
        from fedstac import settings  # pydantic takes long to import, and few need it here

        variables = ", ".join(settings.network_variables()) or "the proxy and the certificates"
        socks = "; for a SOCKS proxy: pip install 'httpx[socks]'" if isinstance(error, ImportError) else ""
        reason = "socksio is not installed" if socks else str(error)
        raise EnvironmentBroken(f"no request can be sent ({reason}); see to {variables}{socks}") from error


def retry_after(value: str, now: datetime) -> float:
    """Return seconds of a Retry-After header (RFC 9110, 10.2.3), which is a number or a date; 0 if it is neither."""
    try:
        seconds = float(value) if value.isdecimal() else (parsedate_to_datetime(value) - now).total_seconds()
    except (ValueError, TypeError, OverflowError):
        return 0.0
    return max(0.0, min(seconds, LONGEST_RETRY_AFTER))


def refusal(response: httpx.Response, address: str) -> Refusal:
    """Return the exception for an answer that is no success; a page of some proxy is never shown."""
    status = response.status_code
    try:
        body = orjson.loads(response.content)
    except orjson.JSONDecodeError:
        body = None
    if not isinstance(body, dict):
        body = {}
    kind = kind_of(status)
    if not isinstance(body.get("detail"), str):
        to = f" to {response.headers['location']}; use that address" if "location" in response.headers else ""
        return kind(status, "about:blank", f"{address} answered {status} {response.reason_phrase}{to}")
    name = str(body.get("type", "about:blank")).rpartition("/")[2]
    return kind(status, name, body["detail"], findings_from(body.get("errors")))


def kind_of(status: int) -> type[Refusal]:
    """Return the exception for a status."""
    if status in (401, 403):
        return NotAuthorised
    if status in (404, 410):
        return NotFound
    if status in (409, 412):
        return Conflict
    return Invalid if 400 <= status < 500 and status != 429 else Failed


def findings_from(values: object) -> tuple[Finding, ...]:
    """Return findings as the server writes them; what is none is left out."""
    entries = values if isinstance(values, list) else []
    return tuple(
        Finding(
            str(entry.get("rule", "")), str(entry.get("pointer", "")), str(entry.get("message", "")),
            Severity.WARNING if entry.get("severity") == Severity.WARNING else Severity.ERROR, entry.get("suggestion"),
        )
        for entry in entries if isinstance(entry, dict)
    )  # fmt: skip
