"""Idempotency-Key: the same body under the same key is the same request, however often it is sent.

After draft-ietf-httpapi-idempotency-key-header: scoped to the caller and the route, kept for some days.
"""

from __future__ import annotations

import hashlib
from functools import partial
from typing import Final
from uuid import UUID

from fedstac.api.call import Call
from fedstac.bootstrap import Node
from fedstac.db import requests
from fedstac.db.requests import Key
from fedstac.domain import texts
from fedstac.domain.errors import BadRequest, IdempotencyKeyReused
from fedstac.domain.texts import Text

HEADER: Final = "idempotency-key"
LONGEST: Final = 255


async def key_of(call: Call) -> Key | None:
    """Return the key of the header, with the digest of the body; None without the header."""
    header = call.headers.get(HEADER)
    if header is None:
        return None
    text = header.strip().strip('"')
    if not text or len(text) > LONGEST or not text.isprintable():
        raise BadRequest(f"an Idempotency-Key has 1 to {LONGEST} printable characters")
    body = await call.body.text()
    is_long = len(body) > texts.PIECE
    digest = await call.services.threads.run_if(is_long, partial(_digest, body))
    return Key(call.caller.name, f"{call.method} {call.path}?{call.query_string}"[:2000], text, digest)


def _digest(body: Text) -> bytes:
    digest = hashlib.sha256()
    for piece in texts.pieces(body):
        digest.update(piece)
    return digest.digest()


async def earlier(node: Node, key: Key | None) -> UUID | None:
    """Return the request that was accepted under the key. IdempotencyKeyReused where that had another body."""
    if key is None:
        return None
    async with node.pool.acquire() as conn:
        row = await requests.under_key(conn, key)
    if row is None:
        return None
    request, digest = row
    if digest != key.digest:
        raise IdempotencyKeyReused(f"another body was sent under the Idempotency-Key {key.key!r}; take a new key")
    return request
