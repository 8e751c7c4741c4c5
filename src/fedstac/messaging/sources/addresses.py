"""The settings that name sources: which nodes are followed, and with which token each."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field

import httpx

TOKEN = re.compile(r"[!-~]*")  # what a header takes
SCHEMES = ("http", "https")


class SourcesUnclear(Exception):
    """The settings do not say which nodes are followed, or with which tokens; the message says what to set."""


@dataclass(frozen=True, slots=True)
class SourceAddress:
    """A publishing node that is followed, and this node's token there."""

    address: str
    token: str = field(repr=False)


def read_addresses(setting: str, tokens: str, overrides: Sequence[str] = ()) -> tuple[SourceAddress, ...]:
    """Return the sources that `source` and `source_token` name: the first token is for the first address, and so on.

    `overrides`: these addresses alone. If the settings do not have them all, they take the tokens in their order.
    SourcesUnclear where that does not come out even: a token must not be shown to another node than its own.
    """
    configured = [address.rstrip("/") for address in _split(setting)]
    addresses = [address.rstrip("/") for address in overrides] or configured
    if not addresses:
        raise SourcesUnclear("say which node is followed: --source https://… or FEDSTAC_SOURCE")
    for address in addresses:
        if not _is_address(address):
            raise SourcesUnclear(f"{address!r} is no address of a node; it begins with http:// or https://")
        if addresses.count(address) > 1:
            raise SourcesUnclear(f"{address} is named twice; a node is followed once")
    strangers = set(addresses) - set(configured)
    paired = addresses if strangers else configured
    token_list = _split(tokens) or ([""] if len(paired) == 1 else [])
    if len(token_list) != len(paired):
        raise SourcesUnclear(
            f"FEDSTAC_SOURCE_TOKEN has {len(token_list)} tokens for {len(paired)} sources; it needs one for each of "
            f"{', '.join(paired)}, in this order, with spaces between"
        )
    if strangers and strangers != set(addresses) and len(token_list) == len(configured):
        raise SourcesUnclear(
            f"FEDSTAC_SOURCE has some of those named, and not {', '.join(sorted(strangers))}: it cannot be told whose "
            f"the tokens are"
        )
    pairs = list(zip(paired, token_list, strict=True))
    if odd := [address for address, token in pairs if not TOKEN.fullmatch(token)]:
        raise SourcesUnclear(f"the token for {odd[0]} has characters that no token has; copy it again")
    token_of = dict(pairs)
    return tuple(SourceAddress(address, token_of[address]) for address in addresses)


def _is_address(text: str) -> bool:
    try:
        url = httpx.URL(text)
    except httpx.InvalidURL:
        return False
    return url.scheme in SCHEMES and bool(url.host)


def _split(text: str) -> list[str]:
    return [part for part in re.split(r"[\s,]+", text) if part]
