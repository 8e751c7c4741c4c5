"""An OpenID Connect provider for demonstrations and tests: real tokens for sample people, no passwords, on loopback.

Discovery, keys, device codes (RFC 8628), codes with PKCE (RFC 7636, 8252), refresh tokens that work once, revocation
(RFC 7009), and tokens for services that have a secret (RFC 6749, 4.4). Whoever opens its page chooses there who to be;
so it listens on 127.0.0.1 and nowhere else. What it has given out is in memory, and ends with the process.
"""

from __future__ import annotations

import base64
import html
import json
import secrets
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import parse_qsl, unquote_plus, urlencode

import uvicorn
from joserfc import jwt
from joserfc.jwk import RSAKey
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, RedirectResponse, Response
from starlette.routing import Route

from fedstac.domain import digests
from fedstac.domain.addresses import is_safe
from fedstac.workers import processes

CLIENT = "fedstac-cli"  # the only client of people; it is public (RFC 8252, 8.4)
AUDIENCE = "fedstac-demo"  # of access tokens
ADMINISTRATORS = "demo-administrators"  # a group
DEVICE = "urn:ietf:params:oauth:grant-type:device_code"
DEVICE_SECONDS, CODE_SECONDS = 600.0, 60.0
LETTERS = "BCDFGHJKLMNPQRSTVWXZ"  # of codes that people type (RFC 8628, 6.1)


@dataclass(frozen=True, slots=True)
class Person:
    """Somebody whom one can be here: `about` is for the page, `claims` are said of them in tokens."""

    subject: str
    name: str
    about: str
    claims: Mapping[str, Any] = field(default_factory=dict)


def _entitled(*places: str) -> list[str]:
    """Return everything that a publisher does at these places, in EGI's words (esgf-wire, Identity)."""
    rights = ("CREATE", "UPDATE", "RETRACT", "DELETE", "CITATION", "ERRATA")
    vo = "urn:mace:egi.eu:group:esgf.vo.egi.eu"
    return [f"{vo}:{place}:role={right}#aai.egi.eu" for place in places for right in rights]


@dataclass(frozen=True, slots=True)
class Service:
    """A program with an identity of its own, and the secret by which it proves it."""

    client_id: str
    secret: str = field(repr=False)
    claims: Mapping[str, Any] = field(default_factory=dict)


def replica_client_of(node: str) -> str:
    """Return the client id of a replica node."""
    return f"replica-node:{node}"


def replica_service(client_id: str, secret: str) -> Service:
    """Return the identity of a replica node: it may write its own node's entries of CMIP6, and nothing else."""
    node = client_id.partition(":")[2]
    vo = "urn:mace:egi.eu:group:esgf.vo.egi.eu"
    places = ("project:CMIP6", f"node:{node}")
    return Service(client_id, secret, {
        "name": f"replica node {node}",
        "eduperson_entitlement": [f"{vo}:{place}:role=REPLICATE#aai.egi.eu" for place in places],
    })  # fmt: skip


PEOPLE = (
    Person("ada", "Ada Admin", "administrator", {"groups": [ADMINISTRATORS]}),
    Person("nina", "Nina of NCAR", "publishes CMIP6 for NCAR",
           {"eduperson_entitlement": _entitled("project:CMIP6:institution:NCAR", "node:*")}),
    Person("sam", "Sam Stranger", "has no rights"),
)  # fmt: skip


class OAuthRefusal(Exception):
    """An error by its name in RFC 6749, 5.2, or RFC 8628, 3.5."""


@dataclass(frozen=True, slots=True)
class Grant:
    """What somebody has agreed to."""

    subject: str
    scope: str
    nonce: str = ""


@dataclass(slots=True)
class Device:
    """A login that was device in a terminal, and what became of it: None while nobody has answered."""

    user_code: str
    scope: str
    ends: float  # time.monotonic
    answer: Grant | OAuthRefusal | None = None


@dataclass(frozen=True, slots=True)
class Code:
    """A login in a browser on its way back to the client, which proves that it began it."""

    grant: Grant
    redirect_uri: str
    challenge: str
    ends: float


class Provider:
    """Its key, its people, and what it has given out and not had back."""

    def __init__(self, url: str, people: Sequence[Person], services: Sequence[Service] = ()) -> None:
        self.url = url
        self.people = {person.subject: person for person in people}
        self.services = {service.client_id: service for service in services}
        self.key = RSAKey.generate_key(2048, {"kid": secrets.token_hex(8)})
        self.lifetime = 3600.0  # of access tokens, seconds
        self.devices: dict[str, Device] = {}
        self.codes: dict[str, Code] = {}
        self.refresh_tokens: dict[str, Grant] = {}

    def metadata(self) -> dict[str, Any]:
        """Return the metadata of OpenID Connect Discovery 1.0, section 3."""
        places = {
            "authorization_endpoint": "authorize", "device_authorization_endpoint": "device", "jwks_uri": "jwks",
            "revocation_endpoint": "revoke", "token_endpoint": "token",
        }  # fmt: skip
        return {
            "issuer": self.url,
            **{name: f"{self.url}/{path}" for name, path in places.items()},
            "response_types_supported": ["code"],
            "grant_types_supported": [DEVICE, "authorization_code", "refresh_token", "client_credentials"],
            "subject_types_supported": ["public"],
            "id_token_signing_alg_values_supported": ["RS256"],
            "code_challenge_methods_supported": ["S256"],
            "token_endpoint_auth_methods_supported": ["none", "client_secret_basic"],
            "scopes_supported": ["openid", "profile", "email", "offline_access"],
        }

    def jwks(self) -> dict[str, Any]:
        return {"keys": [{**self.key.as_dict(private=False), "use": "sig", "alg": "RS256"}]}

    def claims_of(self, subject: str) -> dict[str, Any]:
        """Return what tokens say of somebody, and whom access tokens are for."""
        person = self.people[subject]
        return {"aud": AUDIENCE, "sub": subject, "name": person.name, "email": f"{subject}@demo.example",
                **person.claims}  # fmt: skip

    # --- logins ---

    def begin_device(self, scope: str) -> dict[str, Any]:
        """Return a code to poll with and one for somebody to confirm (RFC 8628, 3.2)."""
        now, device = time.monotonic(), secrets.token_urlsafe(24)
        letters = "".join(secrets.choice(LETTERS) for _ in range(8))
        user_code = f"{letters[:4]}-{letters[4:]}"
        self.devices = {code: device for code, device in self.devices.items() if device.ends > now}
        self.devices[device] = Device(user_code, scope, now + DEVICE_SECONDS)
        page = f"{self.url}/activate"
        return {
            "device_code": device, "user_code": user_code, "verification_uri": page, "interval": 1,
            "verification_uri_complete": f"{page}?user_code={user_code}", "expires_in": int(DEVICE_SECONDS),
        }  # fmt: skip

    def waiting(self, user_code: str) -> Device | None:
        """Return the login that waits for this code to be confirmed."""
        for device in self.devices.values():
            if device.user_code == user_code and device.answer is None and device.ends > time.monotonic():
                return device
        return None

    def decide(self, device: Device, subject: str) -> None:
        """Confirm a login, or refuse it if the subject is nobody's."""
        device.answer = Grant(subject, device.scope) if subject in self.people else OAuthRefusal("access_denied")

    def authorize(self, parameters: Mapping[str, str], subject: str) -> str:
        """Return where the browser goes back to, with a code or an error (RFC 6749, 4.1.2; RFC 9207)."""
        back = {"state": parameters.get("state", ""), "iss": self.url}
        if subject in self.people:
            grant = Grant(subject, parameters.get("scope", ""), parameters.get("nonce", ""))
            back["code"] = secrets.token_urlsafe(24)
            ends = time.monotonic() + CODE_SECONDS
            self.codes[back["code"]] = Code(grant, parameters["redirect_uri"], parameters["code_challenge"], ends)
        else:
            back["error"] = "access_denied"
        return f"{parameters['redirect_uri']}?{urlencode(back)}"

    def may_return(self, parameters: Mapping[str, str]) -> bool:
        """Return whether an authorization request is one of our client's, with PKCE, from a process on this machine."""
        back = parameters.get("redirect_uri", "")
        return (
            (parameters.get("client_id"), parameters.get("response_type")) == (CLIENT, "code")
            and (parameters.get("code_challenge_method"), bool(parameters.get("code_challenge"))) == ("S256", True)
            and back.startswith("http://") and "?" not in back and is_safe(back, of=self.url)
        )  # fmt: skip

    # --- tokens ---

    def tokens(self, form: Mapping[str, str]) -> dict[str, Any]:
        """Return the answer of the token endpoint. OAuthRefusal says what is wrong."""
        if form.get("client_id") != CLIENT:
            raise OAuthRefusal("invalid_client")
        match form.get("grant_type"):
            case str(kind) if kind == DEVICE:
                grant = self._by_device(form.get("device_code", ""))
            case "authorization_code":
                grant = self._by_code(form)
            case "refresh_token":
                grant = self.refresh_tokens.pop(form.get("refresh_token", ""), None)
            case _:
                raise OAuthRefusal("unsupported_grant_type")
        if grant is None:
            raise OAuthRefusal("invalid_grant")
        return self._issue(grant)

    def service_token(self, client_id: str, secret: str, scope: str) -> dict[str, Any]:
        """Return the answer to a service: an access token, and none to renew it with (RFC 6749, 4.4.3)."""
        service = self.services.get(client_id)
        if service is None or not secrets.compare_digest(service.secret.encode(), secret.encode()):
            raise OAuthRefusal("invalid_client")
        now = time.time()
        access = {
            "iss": self.url, "iat": int(now), "exp": now + self.lifetime, "aud": AUDIENCE, "sub": client_id,
            **service.claims, "client_id": client_id, "scope": scope, "jti": secrets.token_hex(8),
        }  # fmt: skip
        return {
            "access_token": self._signed("at+jwt", access), "token_type": "Bearer", "expires_in": self.lifetime,
            "scope": scope,
        }  # fmt: skip

    def revoke(self, token: str) -> None:
        """Revoke a refresh token. Access tokens end by themselves."""
        self.refresh_tokens.pop(token, None)

    def _by_device(self, code: str) -> Grant | None:
        device = self.devices.get(code)
        if device is None:
            return None
        if device.answer is None:
            raise OAuthRefusal("authorization_pending" if device.ends > time.monotonic() else "expired_token")
        del self.devices[code]
        if isinstance(device.answer, OAuthRefusal):
            raise device.answer
        return device.answer

    def _by_code(self, form: Mapping[str, str]) -> Grant | None:
        code = self.codes.pop(form.get("code", ""), None)
        proof = digests.challenge_of(form.get("code_verifier", ""))
        if code is None or code.ends < time.monotonic() or code.redirect_uri != form.get("redirect_uri"):
            return None
        return code.grant if secrets.compare_digest(proof.encode(), code.challenge.encode()) else None

    def _issue(self, grant: Grant) -> dict[str, Any]:
        """Return an access token (RFC 9068), an ID token (OpenID Connect Core 1.0, section 2), a refresh token."""
        now, refresh = time.time(), secrets.token_urlsafe(24)
        common = {"iss": self.url, "iat": int(now), "exp": now + self.lifetime, **self.claims_of(grant.subject)}
        access = {**common, "client_id": CLIENT, "scope": grant.scope, "jti": secrets.token_hex(8)}
        identity = {**common, "aud": CLIENT} | ({"nonce": grant.nonce} if grant.nonce else {})
        self.refresh_tokens[refresh] = grant
        return {
            "access_token": self._signed("at+jwt", access), "id_token": self._signed("JWT", identity),
            "token_type": "Bearer", "expires_in": self.lifetime, "refresh_token": refresh, "scope": grant.scope,
        }  # fmt: skip

    def _signed(self, kind: str, claims: dict[str, Any]) -> str:
        return jwt.encode({"alg": "RS256", "kid": self.key.kid, "typ": kind}, claims, self.key)


# --- over HTTP ---


def _of(request: Request) -> Provider:
    provider: Provider = request.app.state.provider
    return provider


async def form_of(request: Request) -> dict[str, str]:
    return dict(parse_qsl((await request.body()).decode(errors="replace")))


def _answer(content: Mapping[str, Any], status: int = 200) -> Response:
    return JSONResponse(content, status, {"Cache-Control": "no-store"})


def refusal_response(error: str) -> Response:
    return _answer({"error": error, "error_description": f"refused: {error}"}, 400)


async def metadata(request: Request) -> Response:
    return JSONResponse(_of(request).metadata())


async def jwks(request: Request) -> Response:
    return JSONResponse(_of(request).jwks())


async def device(request: Request) -> Response:
    form = await form_of(request)
    if form.get("client_id") != CLIENT:
        return refusal_response("invalid_client")
    return _answer(_of(request).begin_device(form.get("scope", "")))


async def token(request: Request) -> Response:
    form = await form_of(request)
    try:
        if form.get("grant_type") == "client_credentials":
            client_id, secret = _basic(request.headers.get("authorization", ""))
            return _answer(_of(request).service_token(client_id, secret, form.get("scope", "")))
        return _answer(_of(request).tokens(form))
    except OAuthRefusal as error:
        return refusal_response(str(error))


def _basic(header: str) -> tuple[str, str]:
    """Return the client id and the secret of a header Authorization (RFC 6749, 2.3.1). OAuthRefusal without them."""
    kind, _, encoded = header.partition(" ")
    try:
        client_id, separator, secret = base64.b64decode(encoded, validate=True).decode().partition(":")
    except ValueError:
        separator = ""
    if kind.lower() != "basic" or not separator:
        raise OAuthRefusal("invalid_client")
    return unquote_plus(client_id), unquote_plus(secret)


async def revoke(request: Request) -> Response:
    _of(request).revoke((await form_of(request)).get("token", ""))
    return Response(status_code=200)


async def activate(request: Request) -> Response:
    """Return the page on which a login in a terminal is confirmed."""
    provider, code = _of(request), request.query_params.get("user_code", "").strip().upper()
    if not code:
        return _page("Log in", '<form><label>The code in your terminal <input name="user_code"></label></form>')
    device = provider.waiting(code)
    if device is None:
        return _page("No such code", "<p>It was used, or its time is up: run fedstac login again.", 404)
    if request.method == "GET":
        return _choice(provider, f"<p>The code in your terminal has to be <b>{html.escape(code)}</b>.")
    provider.decide(device, (await form_of(request)).get("subject", ""))
    return _page("Done", "<p>You can close this page and go back to the terminal.")


async def authorize(request: Request) -> Response:
    """Return the page on which a login in a browser is confirmed."""
    provider, parameters = _of(request), dict(request.query_params)
    if not provider.may_return(parameters):
        return _page(
            "Not for this provider", "<p>Only fedstac login is known here, on this machine and with PKCE.", 400
        )
    if request.method == "GET":
        return _choice(provider, "")
    subject = (await form_of(request)).get("subject", "")
    return RedirectResponse(provider.authorize(parameters, subject), 303)


def _choice(provider: Provider, answer: str) -> Response:
    """Return a button for everybody whom one can be, and one for nobody; it is answered at the address of the page."""
    buttons = "".join(
        f'<p><button name="subject" value="{html.escape(person.subject)}">{html.escape(person.name)}</button>'
        f" {html.escape(person.about)}"
        for person in provider.people.values()
    )
    refuse = '<p><button name="subject" value="">Refuse</button>'
    return _page("Who are you?", f'{answer}<form method="post">{buttons}{refuse}</form>')


def _page(title: str, content: str, status: int = 200) -> Response:
    text = f'<!doctype html><html lang="en"><title>{title}</title><h1>{title}</h1>{content}</html>'
    return HTMLResponse(text, status, {"Cache-Control": "no-store"})


ROUTES = (
    Route("/.well-known/openid-configuration", metadata),
    Route("/jwks", jwks),
    Route("/device", device, methods=["POST"]),
    Route("/activate", activate, methods=["GET", "POST"]),
    Route("/authorize", authorize, methods=["GET", "POST"]),
    Route("/token", token, methods=["POST"]),
    Route("/revoke", revoke, methods=["POST"]),
)


def application(provider: Provider) -> Starlette:
    app = Starlette(routes=list(ROUTES))
    app.state.provider = provider
    return app


def serve(*, port: int, replica_secrets: Mapping[str, str], on_ready: Callable[[str], object]) -> None:
    """Serve the sample people until SIGTERM or SIGINT; `on_ready` gets the address once it takes connections.

    `replica_secrets`: the secrets of replica nodes by their client id.
    """
    services = [replica_service(client_id, secret) for client_id, secret in replica_secrets.items()]
    listening = processes.listen("127.0.0.1", port)
    url = f"http://127.0.0.1:{listening.getsockname()[1]}"
    config = uvicorn.Config(
        application(Provider(url, PEOPLE, services)), lifespan="off", log_config=None, access_log=False
    )
    on_ready(url)
    uvicorn.Server(config).run([listening])


def as_settings(url: str) -> dict[str, str]:
    """Return the variables with which a node takes the logins of a provider at this address."""
    return {
        "FEDSTAC_ISSUERS": json.dumps([{"issuer": url, "login_client_id": CLIENT}]),
        "FEDSTAC_AUDIENCE": AUDIENCE,
        "FEDSTAC_ADMIN_GROUP": ADMINISTRATORS,
    }
