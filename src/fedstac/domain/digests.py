"""What is made of secrets that are never stored or sent themselves: digests of tokens, challenges of verifiers."""

from __future__ import annotations

import base64
import hashlib


def of_token(token: str) -> bytes:
    """Return the SHA-256 of a token: nodes store it instead of the token, and its holder signs with it."""
    return hashlib.sha256(token.encode()).digest()


def challenge_of(verifier: str) -> str:
    """Return the code challenge of a code verifier, by the method S256 (RFC 7636, 4.2)."""
    return base64.urlsafe_b64encode(hashlib.sha256(verifier.encode()).digest()).rstrip(b"=").decode()
