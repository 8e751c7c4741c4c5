"""Logging in at the identity provider of a server: device code (RFC 8628), or a browser with PKCE (RFC 7636, 8252)."""

from __future__ import annotations

import base64
import hashlib
import hmac
import secrets
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import Any
from urllib.parse import parse_qs, urlencode, urlsplit

import httpx
import orjson

from fedstac.client import credentials
from fedstac.client.credentials import Away, Login
from fedstac.client.transport import LoginFailed, NoLogin, Transport
from fedstac.domain.addresses import is_safe

DEVICE = "urn:ietf:params:oauth:grant-type:device_code"
PATIENCE_SECONDS = 600.0  # longest that somebody may take, where the provider says nothing
PAUSE_SECONDS, LONGEST_PAUSE = 5.0, 60.0
DONE = b"<!doctype html><title>fedstac</title><p>You can close this page and go back to the terminal."


@dataclass(frozen=True, slots=True)
class Offer:
    """How one logs in at a server: its identity provider, and the client that it knows us by."""

    issuer: str
    client_id: str
    scope: str


@dataclass(frozen=True, slots=True)
class Prompt:
    """What somebody has to open, and the code to type in there; `url` may have the code in it already."""

    url: str
    code: str | None
    plain_url: str


Show = Callable[[Prompt], None]


def offers(server: Transport) -> list[Offer]:
    """The logins that a server takes (RFC 9728)."""
    found = server.json("GET", "/.well-known/oauth-protected-resource")
    entries = found.get("fedstac_logins") if isinstance(found, dict) else None
    return [
        Offer(entry["issuer"], entry["client_id"], str(entry.get("scope", "")))
        for entry in entries if isinstance(entry, dict)
        if isinstance(entry.get("issuer"), str) and isinstance(entry.get("client_id"), str)
    ] if isinstance(entries, list) else []  # fmt: skip


def choose(found: list[Offer], issuer: str, *, server: str) -> Offer:
    """The one that was asked for, or the first. NoLogin where there is none."""
    if not found:
        raise NoLogin(f"{server} takes no logins; ask its operators for a token and set FEDSTAC_TOKEN")
    chosen = [offer for offer in found if not issuer or offer.issuer.rstrip("/") == issuer.rstrip("/")]
    if not chosen:
        raise NoLogin(f"{server} takes no logins of {issuer}; it takes {', '.join(each.issuer for each in found)}")
    if not is_safe(chosen[0].issuer, of=chosen[0].issuer):
        raise LoginFailed(f"{server} names {chosen[0].issuer}, which is no https address; tell its operators")
    return chosen[0]


def log_in(server: str, offer: Offer, show: Show, http: httpx.Client) -> Login:
    """Asks the person at the keyboard, by `show`, and waits. LoginFailed where it comes to nothing."""
    metadata = _metadata(offer, http)
    token_endpoint = _endpoint(offer, metadata, "token_endpoint")
    if token_endpoint is None:
        raise LoginFailed(f"{offer.issuer} names no token endpoint; tell its operators")
    login = Login(
        server, offer.issuer, offer.client_id, token_endpoint, _endpoint(offer, metadata, "revocation_endpoint"),
        "", None, None,
    )  # fmt: skip
    if device := _endpoint(offer, metadata, "device_authorization_endpoint"):
        return login.renewed(_by_device(login, device, offer.scope, show, http))
    if browser := _endpoint(offer, metadata, "authorization_endpoint"):
        return login.renewed(_by_browser(login, browser, offer.scope, show, http))
    raise LoginFailed(f"{offer.issuer} has neither device codes nor a page to log in; tell its operators")


def revoke(login: Login, http: httpx.Client) -> bool:
    """Takes the tokens back at the provider (RFC 7009); whether it did."""
    tokens = [("refresh_token", login.refresh_token), ("access_token", login.access_token)]
    if login.revocation_endpoint is None:
        return False
    done = True
    for kind, token in tokens:
        if token:
            form = {"token": token, "token_type_hint": kind, "client_id": login.client_id}
            try:
                done &= http.post(login.revocation_endpoint, data=form).is_success
            except httpx.TransportError:
                done = False
    return done


def _metadata(offer: Offer, http: httpx.Client) -> dict[str, Any]:
    url = offer.issuer.rstrip("/") + "/.well-known/openid-configuration"
    found = None
    try:
        response = http.get(url)
        with suppress(orjson.JSONDecodeError):
            found = orjson.loads(response.content)
    except httpx.TransportError as error:
        raise Away(f"{offer.issuer} does not answer: {str(error) or type(error).__name__}; try again later") from error
    if not isinstance(found, dict) or found.get("issuer") != offer.issuer:
        raise LoginFailed(f"{url} is not the metadata of {offer.issuer}; tell the operators of the server")
    return found


def _endpoint(offer: Offer, metadata: dict[str, Any], name: str) -> str | None:
    url = metadata.get(name)
    if url is None:
        return None
    if not isinstance(url, str) or not is_safe(url, of=offer.issuer):
        raise LoginFailed(f"{offer.issuer} names a {name} that is no https address; tell its operators")
    return url


# --- device code ---


def _by_device(login: Login, endpoint: str, scope: str, show: Show, http: httpx.Client) -> dict[str, Any]:
    given = credentials.ask(endpoint, {"client_id": login.client_id, "scope": scope}, http)
    if "error" in given:
        raise LoginFailed(f"{login.issuer} gives no device code: {credentials.said(given)}")
    plain, code, device = (given.get(name) for name in ("verification_uri", "user_code", "device_code"))
    if not (isinstance(plain, str) and isinstance(code, str) and isinstance(device, str)):
        raise LoginFailed(f"{login.issuer} answered without a device code; tell its operators")
    complete = given.get("verification_uri_complete")
    url = complete if isinstance(complete, str) else plain
    if not all(is_safe(each, of=login.issuer) for each in (plain, url)):
        raise LoginFailed(f"{login.issuer} names a page that is no https address; tell its operators")
    show(Prompt(url, code, plain))
    form = {"grant_type": DEVICE, "device_code": device, "client_id": login.client_id}
    return _poll(login, form, _seconds(given, "interval", PAUSE_SECONDS),
                 _seconds(given, "expires_in", PATIENCE_SECONDS), http)  # fmt: skip


def _poll(login: Login, form: dict[str, str], pause: float, patience: float, http: httpx.Client) -> dict[str, Any]:
    """Asks for the tokens until they are there (RFC 8628, 3.5)."""
    deadline = time.monotonic() + patience
    while time.monotonic() < deadline:
        time.sleep(pause)
        try:
            granted = credentials.ask(login.token_endpoint, form, http)
        except Away:
            pause = min(pause * 2, LONGEST_PAUSE)
            continue
        match granted.get("error"):
            case None:
                return granted
            case "authorization_pending":
                pass
            case "slow_down":
                pause += 5
            case "expired_token":
                break
            case "access_denied":
                raise LoginFailed(f"{login.issuer} says that you refused; nothing was changed")
            case _:
                raise LoginFailed(f"{login.issuer} refuses: {credentials.said(granted)}")
    raise LoginFailed("nobody logged in in time; run fedstac login again")


def _seconds(given: dict[str, Any], name: str, default: float) -> float:
    value = given.get(name)
    return min(float(value), 3600.0) if isinstance(value, int | float) and value > 0 else default


# --- browser ---


def _by_browser(login: Login, endpoint: str, scope: str, show: Show, http: httpx.Client) -> dict[str, Any]:
    state, verifier = secrets.token_urlsafe(32), secrets.token_urlsafe(48)
    challenge = base64.urlsafe_b64encode(hashlib.sha256(verifier.encode()).digest()).rstrip(b"=").decode()
    with _Listener(("127.0.0.1", 0), state) as listener:
        back = f"http://127.0.0.1:{listener.server_address[1]}/callback"
        query = urlencode({
            "response_type": "code", "client_id": login.client_id, "redirect_uri": back, "scope": scope,
            "state": state, "code_challenge": challenge, "code_challenge_method": "S256",
        })  # fmt: skip
        url = f"{endpoint}{'&' if urlsplit(endpoint).query else '?'}{query}"
        show(Prompt(url, None, url))
        answer = listener.wait()
    if answer.get("iss", login.issuer) != login.issuer:  # RFC 9207
        raise LoginFailed("the answer came from another identity provider; do not log in from pages that sent you")
    if "code" not in answer:
        raise LoginFailed(f"{login.issuer} refuses: {credentials.said(answer)}")
    granted = credentials.ask(
        login.token_endpoint,
        {"grant_type": "authorization_code", "code": answer["code"], "redirect_uri": back,
         "client_id": login.client_id, "code_verifier": verifier},
        http,
    )  # fmt: skip
    if "error" in granted:
        raise LoginFailed(f"{login.issuer} refuses: {credentials.said(granted)}")
    return granted


class _Listener(HTTPServer):
    """Waits on loopback for the browser to come back; what does not bring our state is not for us."""

    def __init__(self, bind: tuple[str, int], state: str) -> None:
        super().__init__(bind, _Callback)
        self._state = state
        self.answer: dict[str, str] | None = None

    def wait(self) -> dict[str, str]:
        deadline = time.monotonic() + PATIENCE_SECONDS
        while self.answer is None:
            self.timeout = deadline - time.monotonic()
            if self.timeout <= 0:
                raise LoginFailed("nobody logged in in time; run fedstac login again")
            self.handle_request()
        return self.answer

    def take(self, query: str) -> bool:
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
        taken = parts.path == "/callback" and self.server.take(parts.query)
        self.send_response(200 if taken else 404)
        self.send_header("Content-Type", "text/html; charset=utf-8")
        self.send_header("Connection", "close")
        self.end_headers()
        if taken:
            self.wfile.write(DONE)

    def log_message(self, format: str, *args: Any) -> None:
        """Nothing: the address has the code in it."""
