"""Paths of what a node serves, by their ids."""

from __future__ import annotations

from urllib.parse import quote


def collection_path(id: str) -> str:
    """Return the path of a collection."""
    return f"/collections/{quote(id, safe='')}"


def item_path(collection: str, id: str) -> str:
    """Return the path of a dataset."""
    return f"{collection_path(collection)}/items/{quote(id, safe='')}"
