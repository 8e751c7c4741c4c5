"""Trace context (W3C Recommendation, level 1): the trace that a request belongs to, or begins.

It goes with a change: into the request, its events, the headers of brokers' messages, and the log of the nodes that
apply them.
"""

from __future__ import annotations

import re
import secrets

_TRACEPARENT = re.compile(rb"([0-9a-f]{2})-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})(-.*)?", re.DOTALL)
_NO_TRACE, _NO_PARENT = b"0" * 32, b"0" * 16
_SAMPLED = 1


def traceparent_of(header: bytes) -> str:
    """Return the traceparent of what a request leads to: its trace, as a child of ours. Begin one if it has none."""
    match = _TRACEPARENT.fullmatch(header) if header else None
    if match is None or not _is_valid(match):
        digits = secrets.token_hex(24)
        return f"00-{digits[16:]}-{digits[:16]}-01"
    return f"00-{match[2].decode()}-{secrets.token_hex(8)}-0{int(match[4], 16) & _SAMPLED}"


def _is_valid(match: re.Match[bytes]) -> bool:
    """Return whether the fields may be used: those of a later version may have more behind them."""
    version, trace, parent, _, more = match.groups()
    return version != b"ff" and trace != _NO_TRACE and parent != _NO_PARENT and (version != b"00" or more is None)


def trace_of(traceparent: str) -> str:
    """Return the id of the trace, as it stands in logs."""
    return traceparent[3:35]
