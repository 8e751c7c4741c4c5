"""Changes of many datasets, as exchanges: look first, then have done what was shown, and follow it.

A wish is what the server takes: {"action": "mark", "filter": "…", "collections": […]}. Client and AsyncClient are made
of these functions, as of those in client/changes.py.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any
from urllib.parse import quote

import orjson

from fedstac.client.transport import JSON_BODY, Exchange, ServerCall, object_of

PAGE = 1000

Json = Mapping[str, Any]


def preview_bulk(wish: Json) -> Exchange[dict[str, Any]]:
    """Return what a change of many datasets would do; its `digest` is for `start_bulk`. Nothing is stored."""
    return (yield from object_of(ServerCall("POST", "/bulk/preview", content=orjson.dumps(wish), headers=JSON_BODY)))


def start_bulk(wish: Json, digest: str) -> Exchange[dict[str, Any]]:
    """Begin the change that was shown. The same again is the same change.

    Conflict where the datasets are no longer those that were shown.
    """
    content = orjson.dumps({**wish, "digest": digest})
    return (yield from object_of(ServerCall("POST", "/bulk", content=content, headers=JSON_BODY)))


def bulk(id: str) -> Exchange[dict[str, Any]]:
    """Return a change of many datasets as it stands. NotFound where there is none, or it is somebody else's."""
    return (yield from object_of(ServerCall("GET", _path(id))))


def bulks(*, limit: int = 20) -> Exchange[list[dict[str, Any]]]:
    """Return the latest changes of many datasets, the newest first; of everybody, for an administrator."""
    page = yield from object_of(ServerCall("GET", "/bulk", {"limit": limit}))
    return list(page["bulks"])


def bulk_datasets(id: str, *, status: str | None = None, after: int = 0) -> Exchange[Sequence[dict[str, Any]]]:
    """Return the next datasets of a change after a number, with what became of them; of one status if given."""
    params = {"limit": PAGE, "after": after, **({"status": status} if status else {})}
    page = yield from object_of(ServerCall("GET", _path(id) + "/datasets", params))
    return list(page["datasets"])


def cancel_bulk(id: str) -> Exchange[dict[str, Any]]:
    """End a change where it stands; what is done stays done. Conflict where it is finished."""
    return (yield from object_of(ServerCall("POST", _path(id) + "/cancel")))


def _path(id: str) -> str:
    return f"/bulk/{quote(id, safe='')}"
