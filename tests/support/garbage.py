"""What is kept by nothing is gone at once, without the garbage collector."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TypeVar

T = TypeVar("T")


@contextmanager
def uncollected() -> Iterator[None]:
    """Collect what is garbage by now, and nothing more until the end of the context."""
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


def objects_of(kind: type[T]) -> list[T]:
    """Return the objects of a class that are there, also those that only the collector would remove."""
    return [each for each in gc.get_objects() if isinstance(each, kind)]
