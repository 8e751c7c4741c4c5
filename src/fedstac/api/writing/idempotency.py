"""Idempotency-Key: the same body under the same key is the same request, however often it is sent.

After draft-ietf-httpapi-idempotency-key-header: scoped to the caller and the route, kept for some days.
"""

from __future__ import annotations

import hashlib
from uuid import UUID

from fedstac.api.call import Call
from fedstac.bootstrap import Node
from fedstac.db import requests
from fedstac.db.requests import Key
from fedstac.domain.errors import BadRequest, IdempotencyKeyReused
from fedstac.domain.policy import Principal

LONGEST = 255


async def key_of(call: Call, principal: Principal) -> Key | None:
    """The key that the caller gave, with the digest of the body; None without one."""
    said = call.headers.get("idempotency-key")
    if said is None:
        return None
    said = said.strip().strip('"')
    if not said or len(said) > LONGEST or not said.isprintable():
        raise BadRequest(f"an Idempotency-Key has 1 to {LONGEST} printable characters")
    body = hashlib.sha256(await call.body.read()).digest()
    return Key(principal.name, f"{call.method} {call.path}?{call.query_string}"[:2000], said, body)


async def known(node: Node, key: Key | None) -> UUID | None:
    """The request that was accepted under the key. IdempotencyKeyReused where that had another body."""
    if key is None:
        return None
    async with node.pool.acquire() as conn:
        found = await requests.under_key(conn, key)
    if found is None:
        return None
    if found[1] != key.digest:
        raise IdempotencyKeyReused(f"another body was sent under the Idempotency-Key {key.key!r}; take a new key")
    return found[0]
