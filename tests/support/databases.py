"""Databases of tests."""

from __future__ import annotations

from urllib.parse import unquote, urlsplit


def name_in(dsn: str) -> str:
    """Return the name of the database that a DSN leads to."""
    return unquote(urlsplit(dsn).path.lstrip("/"))
