"""The provider of the demonstration in a process of its own, as tests want it: fedstac/demo/identity_provider.py, bent.

Tests say through /_control what it publishes and how it answers, and see there what it was asked; DELETE
makes it new. It also introspects.
`python -m tests.identity.provider PORT` writes {"url": …} on standard output once it answers; 0 takes a free port.
"""

from __future__ import annotations

import base64
import json
import socket
import sys
from typing import Any
from urllib.parse import unquote_plus

import uvicorn
from joserfc.jwk import RSAKey
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, RedirectResponse, Response
from starlette.routing import Route

from fedstac.demo import identity_provider
from fedstac.demo.identity_provider import Person

NODE_CLIENT, NODE_SECRET = "node west", "s3cret:with colon"
ALICE = Person("alice", "Alice Example", "whoever the tests say")
SEEN_STATE = "counts", "revoked", "claims", "lifetime"  # what tests see


class Provider(identity_provider.Provider):
    """One that does what tests tell it, and remembers what it was asked."""

    def __init__(self, url: str) -> None:
        super().__init__(url, [ALICE])
        self.published: dict[str, Any] | None = None  # instead of its own keys
        self.over: dict[str, Any] = {}  # the true metadata; null removes
        self.introspection: dict[str, Any] = {}  # by token
        self.claims: dict[str, Any] = {}  # of the tokens that it issues
        self.approves: bool | None = True  # null: a login stays open
        self.redirects: dict[str, str] = {}
        self.counts: dict[str, int] = {}
        self.revoked: list[str] = []

    def metadata(self) -> dict[str, Any]:
        found = {**super().metadata(), "introspection_endpoint": f"{self.url}/introspect", **self.over}
        return {name: value for name, value in found.items() if value is not None}

    def jwks(self) -> dict[str, Any]:
        return super().jwks() if self.published is None else self.published

    def claims_of(self, subject: str) -> dict[str, Any]:
        return self.claims

    def begin_device(self, scope: str) -> dict[str, Any]:
        begun = super().begin_device(scope)
        self.answer()
        return begun

    def answer(self) -> None:
        """Confirm all logins as the person at the page, who is always the same one."""
        for device in self.devices.values():
            if device.answer is None and self.approves is not None:
                self.decide(device, ALICE.subject if self.approves else "")

    def revoke(self, token: str) -> None:
        self.revoked.append(token)
        super().revoke(token)

    def count(self, what: str) -> None:
        self.counts[what] = self.counts.get(what, 0) + 1

    def tell(self, change: dict[str, Any]) -> None:
        names = {"jwks": "published", "metadata": "over"}
        for name, value in change.items():
            if name == "key":
                self.key = RSAKey.import_key(value)
            else:
                assert hasattr(self, names.get(name, name)), name
                setattr(self, names.get(name, name), value)
        self.answer()


def of(request: Request) -> Provider:
    found: Provider = request.app.state.provider
    return found


async def introspect(request: Request) -> Response:
    scheme, _, value = request.headers.get("authorization", "").partition(" ")
    user, _, secret = base64.b64decode(value).decode().partition(":")
    if scheme != "Basic" or (unquote_plus(user), unquote_plus(secret)) != (NODE_CLIENT, NODE_SECRET):
        return JSONResponse({"error": "invalid_client"}, 401)
    form = await identity_provider.form_of(request)
    return JSONResponse(of(request).introspection.get(form["token"], {"active": False}))


async def authorize(request: Request) -> Response:
    """Answer without a page: Alice has chosen already."""
    provider, query = of(request), dict(request.query_params)
    assert provider.may_return(query)
    return RedirectResponse(provider.authorize(query, ALICE.subject if provider.approves else ""), 302)


async def token(request: Request) -> Response:
    of(request).count((await identity_provider.form_of(request))["grant_type"])
    return await identity_provider.token(request)


async def control(request: Request) -> Response:
    if request.method == "DELETE":
        request.app.state.provider = Provider(of(request).url)
    provider = of(request)
    if request.method == "POST":
        provider.tell(await request.json())
    return JSONResponse({name: getattr(provider, name) for name in SEEN_STATE})


class CountingApp:
    """Counts what is asked for, and redirects what a test wants redirected."""

    def __init__(self, app: Starlette) -> None:
        self.app = app

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        provider, path = self.app.state.provider, scope["path"]
        provider.count(path)
        if path in provider.redirects:
            await RedirectResponse(provider.redirects[path])(scope, receive, send)
        else:
            await self.app(scope, receive, send)


ROUTES = [
    Route("/introspect", introspect, methods=["POST"]),
    Route("/authorize", authorize),
    Route("/token", token, methods=["POST"]),
    Route("/_control", control, methods=["GET", "POST", "DELETE"]),
]


def main() -> None:
    listening = socket.create_server(("127.0.0.1", int(sys.argv[1])))
    url = f"http://127.0.0.1:{listening.getsockname()[1]}"
    app: Starlette = identity_provider.application(Provider(url))
    app.router.routes[:0] = ROUTES
    print(json.dumps({"url": url}), flush=True)
    server = uvicorn.Server(uvicorn.Config(CountingApp(app), log_level="error", lifespan="off"))
    server.run(sockets=[listening])


if __name__ == "__main__":
    main()
