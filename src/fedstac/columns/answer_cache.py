"""The answers that requests for one dataset got of late: each is written once."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Generic, TypeVar

Answer = TypeVar("Answer")

LARGEST_PART = 16  # an answer that takes more than this part of the memory is not entry


@dataclass(frozen=True, slots=True)
class CachedAnswer(Generic[Answer]):
    """An answer, the row that it was made of, without the document, and the number of the dataset.

    The row has all that the answer depends on, what other rows say of the dataset too.
    """

    answer: Answer
    row: tuple[object, ...]
    number: int
    size: int  # bytes


class AnswerCache(Generic[Answer]):
    """Answers by collection and id, those that were given last; at most some bytes of them.

    Whoever takes one reads the row of the dataset again: the answer counts where that is the same. The columns let go
    of what changed, so that nothing stays here for long that is stored no more.
    """

    def __init__(self, most_bytes: int) -> None:
        self.most_bytes = most_bytes
        self.bytes = 0
        self._answers: OrderedDict[tuple[str, str], CachedAnswer[Answer]] = OrderedDict()
        self._keys: dict[int, tuple[str, str]] = {}  # by the numbers of the datasets

    def find(self, key: tuple[str, str]) -> CachedAnswer[Answer] | None:
        """Return the answer that was given last; its row may be an old one."""
        entry = self._answers.get(key)
        if entry is not None:
            self._answers.move_to_end(key)
        return entry

    def keep(self, key: tuple[str, str], entry: CachedAnswer[Answer]) -> None:
        """Keep an answer in place of an older one, and let go of those that were not given for longest."""
        older = self._answers.get(key, entry)  # of another number where a dataset went and came again
        self.drop((older.number, entry.number))
        if entry.size * LARGEST_PART > self.most_bytes:
            return
        self._answers[key], self._keys[entry.number] = entry, key
        self.bytes += entry.size
        while self.bytes > self.most_bytes:
            self.drop((next(iter(self._answers.values())).number,))

    def drop(self, numbers: Iterable[int]) -> None:
        """Let go of the answers about datasets that changed."""
        for number in numbers:
            key = self._keys.pop(number, None)
            if key is not None:
                self.bytes -= self._answers.pop(key).size

    def clear(self) -> None:
        """Let go of all."""
        self._answers.clear()
        self._keys.clear()
        self.bytes = 0
