"""Identifiers: which ones datasets and collections may have, and those that fedstac makes itself."""

from __future__ import annotations

import hashlib
import os
import re
import unicodedata
from datetime import datetime
from typing import Final
from uuid import NAMESPACE_URL, UUID

COLLECTION_ID: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")
LONGEST_ID: Final = 512
PLAIN: Final = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9._-]{0,511}")  # nearly all ids: nothing is wrong with them
CONTROL: Final = re.compile(r"[\x00-\x1f\x7f-\x9f]")
RESERVED: Final = re.compile(r"[/?#%]")
# Default_Ignorable_Code_Point of Unicode, and what separates lines and paragraphs: nothing of it is seen
INVISIBLE: Final = re.compile(
    "[\u00ad\u034f\u061c\u115f\u1160\u17b4\u17b5\u180b-\u180f\u200b-\u200f\u2028-\u202e\u2060-\u206f\u3164"
    "\ufe00-\ufe0f\ufeff\uffa0\ufff0-\ufffb\U0001bca0-\U0001bca3\U0001d173-\U0001d17a\U000e0000-\U000e0fff]"
)
ODD_SPACE: Final = re.compile(r"[^\S ]")


def fault_of_id(item_id: str) -> str | None:
    """Say why a dataset's id cannot be a step of a URL, for dataset ids everywhere; None where it can."""
    if PLAIN.fullmatch(item_id):
        return None
    if not item_id:
        return "the id is empty"
    if len(item_id) > LONGEST_ID:
        return f"the id has {len(item_id)} characters; {LONGEST_ID} are the most"
    if item_id in (".", ".."):
        return f"the id is {item_id!r}, which a URL takes for a folder"
    if match := CONTROL.search(item_id):
        return f"the id holds the control character {_character(match)}"
    if match := RESERVED.search(item_id):
        return f"the id holds {_character(match)}, which has a meaning of its own in a URL"
    if item_id[0].isspace():
        return f"the id begins with the space {_character_name(item_id[0])}"
    return None


def fault_of_new_id(item_id: str) -> str | None:
    """Say why a new dataset may not have an id that older datasets may have; None where it may.

    Such an id can be part of a URL. It cannot be told from another one by eye, or not be searched for.
    """
    if PLAIN.fullmatch(item_id):
        return None
    if match := re.search(",", item_id):
        return f"the id holds {_character(match)}, at which GET /search?ids= ends one id and begins the next"
    if item_id[-1:].isspace():
        return f"the id ends with the space {_character_name(item_id[-1])}, which is not seen"
    if match := INVISIBLE.search(item_id):
        return f"the id holds {_character(match)}, which is not seen"
    if match := ODD_SPACE.search(item_id):
        return f"the id holds {_character(match)}, which looks like an ordinary space"
    return None


def _character(match: re.Match[str]) -> str:
    return f"{_character_name(match[0])} at place {match.start() + 1}"


def _character_name(character: str) -> str:
    """Return a character as people can look it up: U+002C (comma)."""
    name = unicodedata.name(character, "")
    suffix = f" ({name.lower()})" if name else ""
    return f"U+{ord(character):04X}{suffix}"


def uuid_of_handle(dataset_id: str) -> str:
    """Return the UUID in a dataset's persistent identifier: of version 3, of the id in the name space of URLs.

    So RFC 9562 (5.3) has it, and the library esgf-pid, by which ESGF's publishers ask for handles. Each dataset that is
    judged has one, and `uuid.uuid3` takes four times as long.
    """
    digest = bytearray(hashlib.md5(NAMESPACE_URL.bytes + dataset_id.encode(), usedforsecurity=False).digest())
    digest[6] = digest[6] & 0x0F | 0x30  # the version, 3
    digest[8] = digest[8] & 0x3F | 0x80  # the variant
    text = digest.hex()
    return f"{text[:8]}-{text[8:12]}-{text[12:16]}-{text[16:20]}-{text[20:]}"


def uuid7(moment: datetime) -> UUID:
    """Return a UUID of version 7 (RFC 9562, 5.7): milliseconds, then random bits."""
    milliseconds = int(moment.timestamp() * 1000)
    random = int.from_bytes(os.urandom(10), "big")
    value = milliseconds << 80 | 0x7 << 76 | (random >> 68 & 0xFFF) << 64 | 0b10 << 62 | random & (1 << 62) - 1
    return UUID(int=value)
