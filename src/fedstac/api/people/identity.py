"""Who is calling: bearer tokens of ours, known by their hash, or of an identity provider. Deny by default."""

from __future__ import annotations

import hashlib
import time
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import orjson
from starlette.requests import Request
from starlette.responses import Response

from fedstac.api.http import links
from fedstac.bootstrap import Node
from fedstac.db import nodes, own_groups, people
from fedstac.db.connections import Connection
from fedstac.domain import policy
from fedstac.domain.errors import InvalidToken, Unauthenticated
from fedstac.domain.model import rfc3339
from fedstac.domain.policy import ADMIN, PolicyRule, Principal
from fedstac.identity import oidc
from fedstac.identity.oidc import Issuer, Providers
from fedstac.settings import Settings

KEPT_SECONDS = 10.0  # a withdrawn token works no longer than this
KEPT_MOST = 1024


class Principals:
    """Who holds which token; those seen lately are known by hash, so that a busy publisher costs no query a request."""

    def __init__(self, node: Node, providers: Providers) -> None:
        self._node, self._providers = node, providers
        self.issuers = providers.configured
        self._kept: dict[bytes, tuple[float, Principal | None]] = {}

    async def of(self, token: str) -> Principal | None:
        """None for a token that nobody knows; the Problems of Providers.identify for one that is refused."""
        name = hashlib.sha256(token.encode()).digest()
        known = self._kept.get(name)
        if known and known[0] > time.monotonic():
            return known[1]
        found, seconds = await self._find(token)
        if len(self._kept) >= KEPT_MOST:
            self._kept.clear()
        self._kept[name] = time.monotonic() + seconds, found
        return found

    async def _find(self, token: str) -> tuple[Principal | None, float]:
        """Who holds a token, and for how many seconds that is known."""
        async with self._node.pool.acquire() as conn:
            issued = await nodes.principal(conn, token)
            if issued:
                left = issued.expires.timestamp() - time.time() if issued.expires else KEPT_SECONDS
                if issued.expires and left <= 0:
                    ended = rfc3339(issued.expires)
                    raise InvalidToken(f"this token ended at {ended}; ask the operators of this node for a new one")
                return await _member(conn, issued), min(left, KEPT_SECONDS)
        proven = await self._providers.identify(token)
        if proven is None:
            return None, KEPT_SECONDS
        who, settings = proven.identity, self._node.settings
        async with self._node.pool.acquire() as conn:
            name = await people.pseudonym(conn, who)
            roles = frozenset((ADMIN,) if settings.admin_group and settings.admin_group in who.groups else ())
            found = await _member(conn, Principal(name, roles, who, expires=_moment(proven.expires)))
        left = KEPT_SECONDS if proven.expires is None else proven.expires - time.time()
        return found, min(left, KEPT_SECONDS)

    def forget(self) -> None:
        """What was known of callers is asked again: somebody came into a group, or left it."""
        self._kept.clear()


def _moment(seconds: float | None) -> datetime | None:
    """Return the time of a number of seconds since 1970; None for one that is beyond every calendar."""
    try:
        return None if seconds is None else datetime.fromtimestamp(seconds, UTC)
    except (OverflowError, ValueError, OSError):
        return None


async def _member(conn: Connection, principal: Principal) -> Principal:
    memberships = await own_groups.memberships(conn, (principal.name,))
    return replace(principal, memberships=memberships[principal.name]) if memberships else principal


Finding = Callable[[Node], AbstractAsyncContextManager[Principals]]


def finding(settings: Settings) -> Finding:
    """How a node will find its callers. Misconfigured, before anything runs, where the settings are wrong."""
    configured = oidc.issuers(settings.issuers, settings.audience)

    @asynccontextmanager
    async def principals(node: Node) -> AsyncIterator[Principals]:
        claim, leeway = settings.groups_claim, settings.token_leeway_seconds
        async with oidc.providers(configured, groups_claim=claim, leeway=leeway) as providers:
            yield Principals(node, providers)

    return principals


async def principal(request: Request) -> Principal:
    """The caller; Unauthenticated where there is no valid token, Unavailable where that cannot be told just now."""
    scheme, _, token = request.headers.get("authorization", "").partition(" ")
    token = token.strip()
    if scheme.lower() != "bearer" or not token:
        raise Unauthenticated("this needs a bearer token; log in and send the header `Authorization: Bearer <token>`")
    if len(token) > oidc.MAX_TOKEN:
        raise Unauthenticated(f"the token has over {oidc.MAX_TOKEN} characters; ask for one with fewer claims")
    known: Principals = request.app.state.principals
    found = await known.of(token)
    if found is None:
        raise Unauthenticated("this token is not known here; ask the operators of this node for a new one")
    return found


def packed(principal: Principal) -> str | None:
    """What is kept of a caller's identity with a request, so that rights are judged again when it is performed."""
    return principal.identity.packed() if principal.identity else None


async def node_name(request: Request) -> str:
    """The node that is calling; MissingPermission for anybody else."""
    return policy.require_node(await principal(request))


# --- what clients ask about identity ---


async def get_me(request: Request) -> Response:
    """GET /me: whom this node takes the caller for. `name` is what its logs say."""
    caller = await principal(request)
    body: dict[str, Any] = {"name": caller.name, "roles": sorted(caller.roles), "issuer": None, "subject": None}
    body["expires"] = rfc3339(caller.expires) if caller.expires else None
    if who := caller.identity:
        body |= {
            "issuer": who.issuer, "subject": who.subject, "full_name": who.name or None, "email": who.email,
            "client_id": who.client_id or None, "scopes": sorted(who.scopes),
        }  # fmt: skip
    body["groups"] = sorted(who.groups) if who else []
    current = request.app.state.node.policy
    if caller.is_admin:
        body["policy_error"] = request.app.state.node.policies.error  # of a file that is there and not used
    body["own_groups"] = sorted(each.group for each in caller.memberships)
    body["rights"] = [_right(grant) for grant in current.rules_of(caller)]
    body["entitlements"] = [
        {"kind": each.kind, "id": each.id, "institution": each.institution, "role": each.role}
        for each in (who.entitlements if who else ())
    ]
    return Response(orjson.dumps(body), media_type=links.JSON, headers={"Cache-Control": "no-store"})


def _right(grant: PolicyRule) -> dict[str, Any]:
    """A rule that says something of the caller; for what of it, what they hold may say more closely."""
    return {"rule": grant.name, "actions": sorted(grant.actions), "projects": sorted(grant.projects),
            "institutions": sorted(grant.institutions), "nodes": sorted(grant.nodes)}  # fmt: skip


async def get_resource(request: Request) -> Response:
    """GET /.well-known/oauth-protected-resource: where tokens for this node come from (RFC 9728, section 2).

    `fedstac_logins` is ours, as section 2 allows: the public client that `fedstac login` uses at each issuer.
    """
    settings: Settings = request.app.state.node.settings
    configured: tuple[Issuer, ...] = request.app.state.principals.issuers
    body: dict[str, Any] = {
        "resource": request.app.state.base_url,
        "resource_name": f"fedstac {settings.node}",
        "bearer_methods_supported": ["header"],
    }
    if configured:
        body["authorization_servers"] = [each.issuer for each in configured]
    if settings.scope:
        body["scopes_supported"] = settings.scope.split()
    body["fedstac_logins"] = [
        {"issuer": each.issuer, "client_id": each.login_client_id, "scope": each.login_scope}
        for each in configured if each.login_client_id
    ]  # fmt: skip
    return Response(orjson.dumps(body), media_type=links.JSON, headers={"Cache-Control": "public, max-age=300"})


async def get_scope(request: Request) -> Response:
    """GET /scope: what ESGF's publisher asks for when it logs in (esgf-wire, Publisher)."""
    settings: Settings = request.app.state.node.settings
    return Response(orjson.dumps({"scope": settings.scope}), media_type=links.JSON)
