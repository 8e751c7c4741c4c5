"""Digests of secrets, by the examples of the standards: what is stored, and what others compute, depends on them."""

from __future__ import annotations

from fedstac.domain import digests


def test_a_token_is_stored_as_its_sha_256() -> None:
    """NIST's example for SHA-256, of three letters."""
    digest = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    assert digests.of_token("abc").hex() == digest


def test_the_challenge_is_that_of_the_standard() -> None:
    """RFC 7636, appendix B."""
    verifier = "dBjftJeZ4CVP-mB92K27uhbUJU1p1r_wW1gFWFOEjXk"
    challenge = "E9Melhoa2OwvFrEMTJguCHaoeK1t8URWbuGJSstw-cM"
    assert digests.challenge_of(verifier) == challenge
