"""Log in at the identity provider of a server: by device code (RFC 8628), or a browser with PKCE (RFC 7636, 8252)."""

from __future__ import annotations

import hmac
import secrets
import time
from collections.abc import Callable
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import Any
from urllib.parse import parse_qs, urlencode, urlsplit

import httpx

from fedstac.client import credentials
from fedstac.client.credentials import Away, Login
from fedstac.client.transport import NO_ANSWER, LoginFailed, NoLogin, Transport
from fedstac.domain import digests
from fedstac.domain.addresses import is_safe

DEVICE = "urn:ietf:params:oauth:grant-type:device_code"
PATIENCE_SECONDS = 600.0  # the longest that a login may take, if the provider sets no limit
PAUSE_SECONDS, LONGEST_PAUSE = 5.0, 60.0
DONE = b"<!doctype html><title>fedstac</title><p>You can close this page and go back to the terminal."


@dataclass(frozen=True, slots=True)
class Offer:
    """One way to log in at a server: its identity provider, and the client id of `fedstac login` there."""

    issuer: str
    client_id: str
    scope: str


@dataclass(frozen=True, slots=True)
class Prompt:
    """The page that a person opens to log in, and the code to type there; `url` may have the code in it already."""

    url: str
    code: str | None
    plain_url: str


Show = Callable[[Prompt], None]


def offers(server: Transport) -> list[Offer]:
    """Return the ways to log in at a server (RFC 9728)."""
    metadata = server.json("GET", "/.well-known/oauth-protected-resource")
    entries = metadata.get("fedstac_logins")
    return [
        Offer(entry["issuer"], entry["client_id"], str(entry.get("scope", "")))
        for entry in entries if isinstance(entry, dict)
        if isinstance(entry.get("issuer"), str) and isinstance(entry.get("client_id"), str)
    ] if isinstance(entries, list) else []  # fmt: skip


def choose(offers: list[Offer], issuer: str, *, server: str) -> Offer:
    """Return the offer of this issuer, or the first if `issuer` is empty. NoLogin if there is none."""
    if not offers:
        raise NoLogin(f"{server} takes no logins; ask its operators for a token and set FEDSTAC_TOKEN")
    offer = next((each for each in offers if not issuer or each.issuer.rstrip("/") == issuer.rstrip("/")), None)
    if offer is None:
        raise NoLogin(f"{server} takes no logins of {issuer}; it takes {', '.join(each.issuer for each in offers)}")
    if not is_safe(offer.issuer, of=offer.issuer):
        raise LoginFailed(f"{server} names {offer.issuer}, which is no https address; tell its operators")
    return offer


def log_in(server: str, offer: Offer, show: Show, http: httpx.Client) -> Login:
    """Ask the person at the keyboard by `show`, wait, and return the login. LoginFailed if nobody logs in."""
    metadata = credentials.metadata_of(offer.issuer, http)
    token_endpoint = credentials.endpoint_in(metadata, "token_endpoint")
    if token_endpoint is None:
        raise LoginFailed(f"{offer.issuer} names no token endpoint; tell its operators")
    login = Login(
        server, offer.issuer, offer.client_id, token_endpoint, credentials.endpoint_in(metadata, "revocation_endpoint"),
        "", None, None,
    )  # fmt: skip
    if device := credentials.endpoint_in(metadata, "device_authorization_endpoint"):
        return login.with_tokens(_by_device(login, device, offer.scope, show, http))
    if browser := credentials.endpoint_in(metadata, "authorization_endpoint"):
        return login.with_tokens(_by_browser(login, browser, offer.scope, show, http))
    raise LoginFailed(f"{offer.issuer} has neither device codes nor a page to log in; tell its operators")


def revoke(login: Login, http: httpx.Client) -> bool:
    """Revoke the tokens at the provider (RFC 7009), and return whether it did."""
    tokens = [("refresh_token", login.refresh_token), ("access_token", login.access_token)]
    if login.revocation_endpoint is None:
        return False
    revoked = True
    for kind, token in tokens:
        if token:
            form = {"token": token, "token_type_hint": kind, "client_id": login.client_id}
            try:
                revoked &= http.post(login.revocation_endpoint, data=form).is_success
            except NO_ANSWER:
                revoked = False
    return revoked


# --- device code ---


def _by_device(login: Login, endpoint: str, scope: str, show: Show, http: httpx.Client) -> dict[str, Any]:
    answer = credentials.ask(endpoint, {"client_id": login.client_id, "scope": scope}, http)
    if "error" in answer:
        raise LoginFailed(f"{login.issuer} gives no device code: {credentials.refusal_reason(answer)}")
    plain, code, device = (answer.get(name) for name in ("verification_uri", "user_code", "device_code"))
    if not (isinstance(plain, str) and isinstance(code, str) and isinstance(device, str)):
        raise LoginFailed(f"{login.issuer} answered without a device code; tell its operators")
    complete = answer.get("verification_uri_complete")
    url = complete if isinstance(complete, str) else plain
    if not all(is_safe(each, of=login.issuer) for each in (plain, url)):
        raise LoginFailed(f"{login.issuer} names a page that is no https address; tell its operators")
    show(Prompt(url, code, plain))
    form = {"grant_type": DEVICE, "device_code": device, "client_id": login.client_id}
    return _poll(login, form, _seconds(answer, "interval", PAUSE_SECONDS),
                 _seconds(answer, "expires_in", PATIENCE_SECONDS), http)  # fmt: skip


def _poll(login: Login, form: dict[str, str], pause: float, patience: float, http: httpx.Client) -> dict[str, Any]:
    """Ask for the tokens until they are there (RFC 8628, 3.5)."""
    deadline = time.monotonic() + patience
    while time.monotonic() < deadline:
        time.sleep(pause)
        try:
            answer = credentials.ask(login.token_endpoint, form, http)
        except Away:
            pause = min(pause * 2, LONGEST_PAUSE)
            continue
        match answer.get("error"):
            case None:
                return answer
            case "authorization_pending":
                pass
            case "slow_down":
                pause += 5
            case "expired_token":
                break
            case "access_denied":
                raise LoginFailed(f"{login.issuer} says that you refused; nothing was changed")
            case _:
                raise LoginFailed(f"{login.issuer} refuses: {credentials.refusal_reason(answer)}")
    raise LoginFailed("nobody logged in in time; run fedstac login again")


def _seconds(answer: dict[str, Any], name: str, default: float) -> float:
    value = answer.get(name)
    return min(float(value), 3600.0) if isinstance(value, int | float) and value > 0 else default


# --- browser ---


def _by_browser(login: Login, endpoint: str, scope: str, show: Show, http: httpx.Client) -> dict[str, Any]:
    state, verifier = secrets.token_urlsafe(32), secrets.token_urlsafe(48)
    challenge = digests.challenge_of(verifier)
    with _Listener(("127.0.0.1", 0), state) as listener:
        back = f"http://127.0.0.1:{listener.server_address[1]}/callback"
        query = urlencode({
            "response_type": "code", "client_id": login.client_id, "redirect_uri": back, "scope": scope,
            "state": state, "code_challenge": challenge, "code_challenge_method": "S256",
        })  # fmt: skip
        url = f"{endpoint}{'&' if urlsplit(endpoint).query else '?'}{query}"
        show(Prompt(url, None, url))
        callback = listener.wait()
    if callback.get("iss", login.issuer) != login.issuer:  # RFC 9207
        raise LoginFailed("the answer came from another identity provider; do not log in from pages that sent you")
    if "code" not in callback:
        raise LoginFailed(f"{login.issuer} refuses: {credentials.refusal_reason(callback)}")
    answer = credentials.ask(
        login.token_endpoint,
        {"grant_type": "authorization_code", "code": callback["code"], "redirect_uri": back,
         "client_id": login.client_id, "code_verifier": verifier},
        http,
    )  # fmt: skip
    if "error" in answer:
        raise LoginFailed(f"{login.issuer} refuses: {credentials.refusal_reason(answer)}")
    return answer


class _Listener(HTTPServer):
    """Waits on loopback for the browser to come back. A request without our state is answered with 404."""

    def __init__(self, bind: tuple[str, int], state: str) -> None:
        super().__init__(bind, _Callback)
        self._state = state
        self.answer: dict[str, str] | None = None

    def wait(self) -> dict[str, str]:
        """Return the fields that the browser brings back. LoginFailed if it does not come in time."""
        deadline = time.monotonic() + PATIENCE_SECONDS
        while self.answer is None:
            self.timeout = deadline - time.monotonic()
            if self.timeout <= 0:
                raise LoginFailed("nobody logged in in time; run fedstac login again")
            self.handle_request()
        return self.answer

    def take(self, query: str) -> bool:
        """Keep the fields of a query if it has our state, and return whether it has."""
        fields = {name: values[0] for name, values in parse_qs(query).items()}
        if not hmac.compare_digest(fields.get("state", "").encode(), self._state.encode()):
            return False
        self.answer = fields
        return True


class _Callback(BaseHTTPRequestHandler):
    server: _Listener
    timeout = 10  # a connection that says nothing does not keep the browser out

    def do_GET(self) -> None:
        parts = urlsplit(self.path)
        is_ours = parts.path == "/callback" and self.server.take(parts.query)
        self.send_response(200 if is_ours else 404)
        self.send_header("Content-Type", "text/html; charset=utf-8")
        self.send_header("Connection", "close")
        self.end_headers()
        if is_ours:
            self.wfile.write(DONE)

    def log_message(self, format: str, *args: Any) -> None:
        """Log nothing: the address has the code in it."""
