"""Addresses that credentials may be sent to."""

from __future__ import annotations

import ipaddress
from urllib.parse import urlsplit


def is_safe(url: str, *, of: str) -> bool:
    """Tell whether an identity provider's address may be used: https, or http between addresses of the loopback.

    `of` is the issuer that names it. No address may carry a user's name.
    """
    try:
        parts = urlsplit(url)
        _ = parts.port
    except ValueError:
        return False
    if not parts.hostname or parts.username is not None:
        return False
    return parts.scheme == "https" or (parts.scheme == "http" and _is_loopback(url) and _is_loopback(of))


def _is_loopback(url: str) -> bool:
    host = urlsplit(url).hostname or ""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
