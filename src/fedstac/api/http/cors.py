"""Cross-origin requests (the CORS protocol of the Fetch standard): a page of any origin may read every answer.

Callers bring bearer tokens, so no answer depends on the origin of the page. The console has cookies; a browser neither
sends them for a page of another origin (SameSite) nor shows it the answer (no Access-Control-Allow-Credentials). Every
answer carries the same headers, also to requests without an Origin: a cache may hand that answer to a browser later.
"""

from __future__ import annotations

from starlette.responses import Response
from starlette.types import Scope

METHODS = "GET, HEAD, POST, PUT, PATCH, DELETE, OPTIONS"
EXPOSED = (
    "Allow, Content-Location, ETag, Fedstac-Warnings, Link, Location, Preference-Applied, Retry-After,"
    " WWW-Authenticate, X-Cursor, X-Request-Id"
)
HEADERS: tuple[tuple[bytes, bytes], ...] = (
    (b"access-control-allow-origin", b"*"),
    (b"access-control-expose-headers", EXPOSED.encode()),
)
MAX_AGE = 600  # seconds that a browser keeps the answer to a preflight


def preflight(scope: Scope) -> Response | None:
    """Answer the question that a browser asks before it sends a request; None if this is no such question.

    The headers that the page wants to send are repeated: `*` would not cover Authorization.
    """
    if scope["method"] != "OPTIONS":
        return None
    fields = dict(scope["headers"])
    if b"origin" not in fields or b"access-control-request-method" not in fields:
        return None
    headers = {
        "access-control-allow-methods": METHODS,
        "access-control-max-age": str(MAX_AGE),
        "vary": "Access-Control-Request-Headers",
    }
    if header_names := fields.get(b"access-control-request-headers"):
        headers["access-control-allow-headers"] = header_names.decode("latin-1")
    return Response(status_code=204, headers=headers)
