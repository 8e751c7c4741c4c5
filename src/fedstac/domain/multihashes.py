"""Multihashes, which `file:checksum` of the STAC file extension is written in: the function, the length, the digest."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final

# https://github.com/multiformats/multicodec (facts): code → name and length of the digest in bytes
MULTIHASHES: Final = {
    0x11: ("sha1", 20), 0x12: ("sha2-256", 32), 0x13: ("sha2-512", 64), 0x14: ("sha3-512", 64),
    0x15: ("sha3-384", 48), 0x16: ("sha3-256", 32), 0x17: ("sha3-224", 28), 0x1E: ("blake3", 32),
    0x20: ("sha2-384", 48), 0xD5: ("md5", 16), 0xB220: ("blake2b-256", 32), 0xB240: ("blake2b-512", 64),
}  # fmt: skip
HEXADECIMAL: Final = re.compile(r"([0-9a-f]{2})+")


@dataclass(frozen=True, slots=True)
class Multihash:
    """A digest and the function that gives it, by its name in MULTIHASHES."""

    function: str
    digest: bytes

    @classmethod
    def parse(cls, text: str) -> Multihash:
        """Read lower-case hexadecimal. ValueError, with a sentence about the fault, where it is no multihash."""
        if not HEXADECIMAL.fullmatch(text):
            raise ValueError("is no multihash: pairs of the digits 0-9 a-f; sha-256 is 1220 and its 64 digits")
        raw = bytes.fromhex(text)
        code, at = _varint(raw, 0)
        length, at = _varint(raw, at)
        function = MULTIHASHES.get(code)
        if function is None:
            raise ValueError(f"begins with no hash function that is known here (0x{code:x})")
        name, size = function
        if length != size or len(raw) - at != size:
            raise ValueError(f"has {len(raw) - at} bytes of {name}, which has {size}")
        return cls(name, raw[at:])


def _varint(raw: bytes, at: int) -> tuple[int, int]:
    """Return an unsigned LEB128 number of at most four bytes, and where it ends; −1 where there is none."""
    number = 0
    for n in range(4):
        if at + n >= len(raw):
            return -1, at
        number |= (raw[at + n] & 0x7F) << (7 * n)
        if not raw[at + n] & 0x80:
            return number, at + n + 1
    return -1, at
