"""Identifiers that fedstac makes itself."""

from __future__ import annotations

import os
import re
from datetime import datetime
from uuid import UUID

COLLECTION_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")


def uuid7(moment: datetime) -> UUID:
    """A UUID of version 7 (RFC 9562, 5.7): milliseconds, then random bits."""
    milliseconds = int(moment.timestamp() * 1000)
    random = int.from_bytes(os.urandom(10), "big")
    value = milliseconds << 80 | 0x7 << 76 | (random >> 68 & 0xFFF) << 64 | 0b10 << 62 | random & (1 << 62) - 1
    return UUID(int=value)
