"""The callers of a node, by their bearer tokens: tokens of ours, kept as hashes, or those of an identity provider."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import replace
from datetime import UTC, datetime

from starlette.datastructures import Headers

from fedstac.bootstrap import Node
from fedstac.db import nodes, own_groups, people
from fedstac.db.connections import Connection
from fedstac.domain import digests
from fedstac.domain.errors import InvalidToken, Unauthenticated
from fedstac.domain.model import rfc3339
from fedstac.domain.policy import ADMIN, Principal
from fedstac.identity import oidc
from fedstac.identity.issuers import issuers_of
from fedstac.identity.oidc import Providers
from fedstac.settings import Settings

KEPT_SECONDS = 10.0  # a withdrawn token works no longer than this
KEPT_MOST = 1024
SIDECAR_HEADER = "dapr-api-token"


class Principals:
    """The holders of tokens. Recent ones are kept by the token's hash: a busy publisher costs no query a request."""

    def __init__(self, node: Node, providers: Providers) -> None:
        self._node, self.providers = node, providers
        self.issuers = providers.configured
        self._recent: dict[bytes, tuple[float, Principal | None]] = {}

    async def identify(self, headers: Headers, *, sidecar: bool = False) -> Principal:
        """Return the caller who sends the headers.

        sidecar: the token may be in the header that a Dapr sidecar sends, which knows no Authorization.
        Unauthenticated where there is no valid token, Unavailable where that cannot be told just now.
        """
        scheme, _, token = headers.get("authorization", "").partition(" ")
        token = token.strip()
        if sidecar and not scheme and SIDECAR_HEADER in headers:
            scheme, token = "bearer", headers[SIDECAR_HEADER].strip()
        if scheme.lower() != "bearer" or not token:
            raise Unauthenticated(
                "this needs a bearer token; log in and send the header `Authorization: Bearer <token>`"
            )
        if len(token) > oidc.MAX_TOKEN:
            raise Unauthenticated(f"the token has over {oidc.MAX_TOKEN} characters; ask for one with fewer claims")
        principal = await self.of(token)
        if principal is None:
            raise Unauthenticated("this token is not known here; ask the operators of this node for a new one")
        return principal

    async def of(self, token: str) -> Principal | None:
        """Return the holder of a token; None for a token that nobody issued.

        The Problems of Providers.identify for a token that is refused.
        """
        digest = digests.of_token(token)
        entry = self._recent.get(digest)
        if entry and entry[0] > time.monotonic():
            return entry[1]
        principal, seconds = await self._look_up(token)
        if len(self._recent) >= KEPT_MOST:
            self._recent.clear()
        self._recent[digest] = time.monotonic() + seconds, principal
        return principal

    async def _look_up(self, token: str) -> tuple[Principal | None, float]:
        """Return the holder of a token, and for how many seconds the answer may be kept."""
        async with self._node.pool.acquire() as conn:
            issued = await nodes.principal(conn, token)
            if issued:
                seconds = issued.expires.timestamp() - time.time() if issued.expires else KEPT_SECONDS
                if issued.expires and seconds <= 0:
                    ended = rfc3339(issued.expires)
                    raise InvalidToken(f"this token ended at {ended}; ask the operators of this node for a new one")
                return await _member(conn, issued), min(seconds, KEPT_SECONDS)
        proof = await self.providers.identify(token)
        if proof is None:
            return None, KEPT_SECONDS
        who, settings = proof.identity, self._node.settings
        async with self._node.pool.acquire() as conn:
            name = await people.pseudonym(conn, who)
            roles = frozenset((ADMIN,) if settings.admin_group and settings.admin_group in who.groups else ())
            principal = await _member(conn, Principal(name, roles, who, expires=_moment(proof.expires)))
        seconds = KEPT_SECONDS if proof.expires is None else proof.expires - time.time()
        return principal, min(seconds, KEPT_SECONDS)

    def forget(self) -> None:
        """Ask the database again for every caller: somebody came into a group, or left it."""
        self._recent.clear()


def _moment(seconds: float | None) -> datetime | None:
    """Return the time of a number of seconds since 1970; None for one that is beyond every calendar."""
    try:
        return None if seconds is None else datetime.fromtimestamp(seconds, UTC)
    except (OverflowError, ValueError, OSError):
        return None


async def _member(conn: Connection, principal: Principal) -> Principal:
    """Return the principal with the groups of this node that they belong to."""
    memberships = await own_groups.memberships(conn, (principal.name,))
    return replace(principal, memberships=memberships[principal.name]) if memberships else principal


PrincipalsFactory = Callable[[Node], AbstractAsyncContextManager[Principals]]


def principals_factory(settings: Settings) -> PrincipalsFactory:
    """Return what opens the callers of a node. Misconfigured, before anything runs, where the settings are wrong."""
    configured = issuers_of(settings.issuers, settings.audience)

    @asynccontextmanager
    async def principals(node: Node) -> AsyncIterator[Principals]:
        claim, leeway = settings.groups_claim, settings.token_leeway_seconds
        async with oidc.providers(configured, groups_claim=claim, leeway=leeway) as providers:
            yield Principals(node, providers)

    return principals


def packed(principal: Principal) -> str | None:
    """Return a caller's identity as a request keeps it: the rights are judged again when it is performed."""
    return principal.identity.packed() if principal.identity else None
