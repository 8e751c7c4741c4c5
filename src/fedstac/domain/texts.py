"""Long texts: bytes in memory, or a file that is mapped, of which only what is being read takes memory."""

from __future__ import annotations

import mmap
from collections.abc import Iterator
from typing import TypeAlias

Text: TypeAlias = bytes | mmap.mmap

PIECE = 1 << 20  # bytes of a mapped file that are in memory at once, or the longest record of it


def let_go(text: Text, before: int) -> int:
    """Let what stands before a place go from memory, if it is in a file; return the place. It can be read again."""
    if isinstance(text, mmap.mmap) and (length := before & -mmap.PAGESIZE):
        text.madvise(mmap.MADV_DONTNEED, 0, length)
    return before


def pieces(text: Text, start: int = 0, end: int | None = None) -> Iterator[bytes]:
    """Yield the text from start to end, PIECE bytes at a time."""
    end = len(text) if end is None else end
    for place in range(start, end, PIECE):
        yield text[place : min(place + PIECE, end)]
        let_go(text, place)


def count(text: Text, mark: bytes, start: int, end: int) -> int:
    """Return how often one byte is in the text from start to end."""
    return sum(piece.count(mark) for piece in pieces(text, start, end))
