"""What publishers write, and what the server adds to it."""

from __future__ import annotations

import copy
from typing import Any

SERVER_LINKS = ("self", "root", "parent", "collection", "predecessor-version", "successor-version", "latest-version")


OWNED = {"latest", "retracted", "created", "updated"}


def written(document: dict[str, Any]) -> dict[str, Any]:
    """Return what the publisher wrote: the document less what the server owns."""
    kept = copy.deepcopy(document)
    kept["properties"] = {
        name: value
        for name, value in kept["properties"].items()
        if name not in OWNED and not name.startswith("fedstac:")
    }
    extensions = kept.pop("stac_extensions", [])
    kept["stac_extensions"] = [uri for uri in extensions if "/extensions/fedstac/" not in uri]
    kept["links"] = [link for link in kept["links"] if link["rel"] not in SERVER_LINKS]
    return kept
