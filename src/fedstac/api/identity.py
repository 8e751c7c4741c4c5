"""Who is calling: bearer tokens, looked up by their hash. Deny by default."""

from __future__ import annotations

import time

from starlette.requests import Request

from fedstac.bootstrap import Node
from fedstac.db import nodes
from fedstac.domain import policy
from fedstac.domain.errors import Unauthenticated
from fedstac.domain.policy import Principal

KEPT_SECONDS = 10.0  # a withdrawn token works no longer than this
KEPT_MOST = 1024
MAX_TOKEN = 8192


class Principals:
    """Tokens seen lately, so that a busy publisher costs no query a request."""

    def __init__(self) -> None:
        self._kept: dict[str, tuple[float, Principal | None]] = {}

    async def of(self, node: Node, token: str) -> Principal | None:
        known = self._kept.get(token)
        if known and known[0] > time.monotonic():
            return known[1]
        async with node.pool.acquire() as conn:
            principal = await nodes.principal(conn, token)
        if len(self._kept) >= KEPT_MOST:
            self._kept.clear()
        self._kept[token] = (time.monotonic() + KEPT_SECONDS, principal)
        return principal


async def principal(request: Request) -> Principal:
    """The caller; Unauthenticated where there is no valid token."""
    scheme, _, token = request.headers.get("authorization", "").partition(" ")
    token = token.strip()
    if scheme.lower() != "bearer" or not token:
        raise Unauthenticated("send the header `Authorization: Bearer <token>`")
    known: Principals = request.app.state.principals
    found = await known.of(request.app.state.node, token) if len(token) <= MAX_TOKEN else None
    if found is None:
        raise Unauthenticated("this token is not known here; ask the operators of this node for a new one")
    return found


async def node_name(request: Request) -> str:
    """The node that is calling; MissingPermission for anybody else."""
    return policy.require_node(await principal(request))
