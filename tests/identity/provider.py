"""An identity provider in a process of its own, on loopback: discovery, keys, introspection, device and code logins.

Tests say through /_control what it publishes and how it answers, and see there what it was asked.
`python -m tests.identity.provider PORT` writes {"url": …} on standard output once it answers; 0 takes a free port.
"""

from __future__ import annotations

import base64
import hashlib
import json
import secrets
import socket
import sys
import time
from typing import Any
from urllib.parse import parse_qsl, unquote_plus, urlencode

import uvicorn
from joserfc import jwt
from joserfc.jwk import import_key
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, RedirectResponse, Response
from starlette.routing import Route

CLIENT = "fedstac-cli"
NODE_CLIENT, NODE_SECRET = "node west", "s3cret:with colon"
DEVICE = "urn:ietf:params:oauth:grant-type:device_code"


class State:
    """What the provider does, as far as tests change it, and what it was asked."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.keys: list[dict[str, Any]] = []  # private; the first one signs
        self.jwks: object = None  # instead of the keys' public parts
        self.metadata: dict[str, Any] = {}  # over the true one; null removes
        self.introspection: dict[str, Any] = {}  # by token
        self.claims: dict[str, Any] = {}  # of the tokens that it issues
        self.lifetime = 3600.0
        self.approves = True  # null: a device login stays open
        self.redirects: dict[str, str] = {}
        self.asked: dict[str, int] = {}
        self.revoked: list[str] = []
        self.devices: dict[str, str] = {}  # device code → scope
        self.codes: dict[str, dict[str, str]] = {}
        self.refresh_tokens: dict[str, str] = {}  # → scope


def issued(state: State, scope: str) -> JSONResponse:
    now = time.time()
    claims = {
        "iss": state.url, "iat": int(now), "exp": now + state.lifetime, "client_id": CLIENT, "scope": scope,
        "jti": secrets.token_hex(8), **state.claims,
    }  # fmt: skip
    key = import_key(state.keys[0])
    header = {"alg": "ES256", "kid": state.keys[0]["kid"], "typ": "at+jwt"}
    refresh = secrets.token_urlsafe(24)
    state.refresh_tokens[refresh] = scope
    return JSONResponse({
        "access_token": jwt.encode(header, claims, key), "token_type": "Bearer", "expires_in": state.lifetime,
        "refresh_token": refresh, "scope": scope,
    })  # fmt: skip


def refused(error: str) -> JSONResponse:
    return JSONResponse({"error": error, "error_description": f"refused: {error}"}, 400)


async def form_of(request: Request) -> dict[str, str]:
    return dict(parse_qsl((await request.body()).decode()))


async def metadata(request: Request) -> Response:
    state: State = request.app.state.provider
    url = state.url
    found = {
        "issuer": url, "jwks_uri": f"{url}/jwks", "token_endpoint": f"{url}/token",
        "authorization_endpoint": f"{url}/authorize", "introspection_endpoint": f"{url}/introspect",
        "device_authorization_endpoint": f"{url}/device", "revocation_endpoint": f"{url}/revoke",
        "code_challenge_methods_supported": ["S256"], **state.metadata,
    }  # fmt: skip
    return JSONResponse({name: value for name, value in found.items() if value is not None})


async def jwks(request: Request) -> Response:
    state: State = request.app.state.provider
    if state.jwks is not None:
        return JSONResponse(state.jwks)
    return JSONResponse({"keys": [{k: v for k, v in key.items() if k != "d"} for key in state.keys]})


async def introspect(request: Request) -> Response:
    state: State = request.app.state.provider
    scheme, _, value = request.headers.get("authorization", "").partition(" ")
    user, _, secret = base64.b64decode(value).decode().partition(":")
    if scheme != "Basic" or (unquote_plus(user), unquote_plus(secret)) != (NODE_CLIENT, NODE_SECRET):
        return JSONResponse({"error": "invalid_client"}, 401)
    form = await form_of(request)
    return JSONResponse(state.introspection.get(form["token"], {"active": False}))


async def device(request: Request) -> Response:
    state: State = request.app.state.provider
    form = await form_of(request)
    if form.get("client_id") != CLIENT:
        return refused("invalid_client")
    code = secrets.token_urlsafe(16)
    state.devices[code] = form.get("scope", "")
    return JSONResponse({
        "device_code": code, "user_code": "WDJB-MJHT", "verification_uri": f"{state.url}/activate",
        "verification_uri_complete": f"{state.url}/activate?user_code=WDJB-MJHT", "expires_in": 60, "interval": 1,
    })  # fmt: skip


async def authorize(request: Request) -> Response:
    state: State = request.app.state.provider
    asked = dict(request.query_params)
    back = {"state": asked["state"], "iss": state.url}
    if state.approves:
        code = secrets.token_urlsafe(16)
        state.codes[code] = asked
        back["code"] = code
    else:
        back["error"] = "access_denied"
    return RedirectResponse(f"{asked['redirect_uri']}?{urlencode(back)}", 302)


async def token(request: Request) -> Response:
    state: State = request.app.state.provider
    form = await form_of(request)
    state.asked[form["grant_type"]] = state.asked.get(form["grant_type"], 0) + 1
    if form.get("client_id") != CLIENT:
        return refused("invalid_client")
    match form["grant_type"]:
        case str(kind) if kind == DEVICE:
            if form["device_code"] not in state.devices:
                return refused("invalid_grant")
            if state.approves is None:
                return refused("authorization_pending")
            scope = state.devices.pop(form["device_code"])
            return issued(state, scope) if state.approves else refused("access_denied")
        case "refresh_token":
            if form["refresh_token"] not in state.refresh_tokens:
                return refused("invalid_grant")  # each works once
            return issued(state, state.refresh_tokens.pop(form["refresh_token"]))
        case "authorization_code":
            asked = state.codes.pop(form["code"], None)
            digest = hashlib.sha256(form["code_verifier"].encode()).digest()
            proof = base64.urlsafe_b64encode(digest).rstrip(b"=").decode()
            if asked is None or asked["code_challenge"] != proof or asked["redirect_uri"] != form["redirect_uri"]:
                return refused("invalid_grant")
            return issued(state, asked["scope"])
    return refused("unsupported_grant_type")


async def revoke(request: Request) -> Response:
    state: State = request.app.state.provider
    gone = (await form_of(request))["token"]
    state.revoked.append(gone)
    state.refresh_tokens.pop(gone, None)
    return Response(status_code=200)


async def control(request: Request) -> Response:
    state: State = request.app.state.provider
    if request.method == "POST":
        for name, value in (await request.json()).items():
            assert hasattr(state, name), name
            setattr(state, name, value)
    return JSONResponse({**vars(state)})


class Counted:
    """Counts what is asked for, and redirects what a test wants redirected."""

    def __init__(self, app: Any, state: State) -> None:
        self.app, self.state = app, state

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "http":
            path = scope["path"]
            self.state.asked[path] = self.state.asked.get(path, 0) + 1
            if path in self.state.redirects:
                await RedirectResponse(self.state.redirects[path])(scope, receive, send)
                return
        await self.app(scope, receive, send)


ROUTES = [
    Route("/.well-known/openid-configuration", metadata),
    Route("/jwks", jwks),
    Route("/introspect", introspect, methods=["POST"]),
    Route("/device", device, methods=["POST"]),
    Route("/authorize", authorize),
    Route("/token", token, methods=["POST"]),
    Route("/revoke", revoke, methods=["POST"]),
    Route("/_control", control, methods=["GET", "POST"]),
]


def main() -> None:
    listening = socket.create_server(("127.0.0.1", int(sys.argv[1])))
    url = f"http://127.0.0.1:{listening.getsockname()[1]}"
    app = Starlette(routes=ROUTES)
    app.state.provider = State(url)
    print(json.dumps({"url": url}), flush=True)
    server = uvicorn.Server(uvicorn.Config(Counted(app, app.state.provider), log_level="error", lifespan="off"))
    server.run(sockets=[listening])


if __name__ == "__main__":
    main()
