"""How transfers share a process: which source gets how many of them, and which dataset the next one.

A transfer is one worker's: a connection that fetches a batch of files of one dataset from one source of the policy.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

LEFT_FREE: Final = 0.25  # of the transfers that one source never gets while the policy names others
BATCH_FILES, BATCH_BYTES = 200, 64 << 20  # of one transfer; a larger file is a transfer of its own


def free_transfers(
    most: int, own: Mapping[str, int], everywhere: Mapping[str, int], caps: Mapping[str, int | None],
    last_turns: Mapping[str, float],
) -> dict[str, int]:  # fmt: skip
    """Return how many more transfers each source may get in this process, of `most` in all.

    own: its transfers under way, by source. everywhere: those of all processes. caps: the connections that a source
    may have from all processes, None where the policy sets no limit; it names every source that may be asked now.
    last_turns: when each source got its last one, by any clock.

    One source never has all transfers while there are others: a slow one would end up with each of them. What it
    leaves is for sources whose files come later. The source with the fewest transfers is named first, and gets the next
    one; of several, whose turn was longest ago. Else two that stall would have all of them, and a third none.
    """
    room = most - sum(own.values())
    share = most if len(caps) == 1 else max(1, most - max(1, math.floor(most * LEFT_FREE)))
    free = {}
    for source, cap in sorted(caps.items(), key=lambda each: (own.get(each[0], 0), last_turns.get(each[0], 0.0))):
        of_cap = math.inf if cap is None else cap - everywhere.get(source, 0)
        count = min(room, share - own.get(source, 0), of_cap)
        if count > 0:
            free[source] = int(count)
    return free


@dataclass(frozen=True, slots=True)
class QueuedDataset:
    """A dataset that has files to fetch from a source now; `batches` of them at the most."""

    n: int
    source: str
    priority: int
    batches: int


def share_out(room: int, free: Mapping[str, int], candidates: Sequence[QueuedDataset]) -> dict[int, int]:
    """Return how many transfers each dataset gets now, by its number; a dataset that gets none is left out.

    `candidates` stand in the order in which they are served: of one source by priority, and those of one priority by
    the time since their last turn. Sources take turns. Of one source the datasets of the highest priority get all
    that it has free, in turns, so that the largest dataset gets no more than a small one.
    """
    queues: dict[str, list[int]] = {}
    for source in free:
        of_source = [each for each in candidates if each.source == source]
        queues[source] = _turns(of_source)[: free[source]]
    counts: Counter[int] = Counter()
    while room > 0 and any(queues.values()):
        for queue in queues.values():
            if queue and room > 0:
                counts[queue.pop(0)] += 1
                room -= 1
    return dict(counts)


def _turns(candidates: Sequence[QueuedDataset]) -> list[int]:
    """Return the numbers of datasets in the order of their turns: a number stands there once for each batch."""
    turns = []
    for priority in sorted({each.priority for each in candidates}, reverse=True):
        peers = [each for each in candidates if each.priority == priority]
        for turn in range(max(each.batches for each in peers)):
            turns += [each.n for each in peers if each.batches > turn]
    return turns


def batches_of(sizes: Sequence[int], *, files: int = BATCH_FILES, most_bytes: int = BATCH_BYTES) -> list[range]:
    """Return which files, by their index, are fetched by one transfer each, in their order."""
    batches, start, total = [], 0, 0
    for index, size in enumerate(sizes):
        if index > start and (index - start == files or total + size > most_bytes):
            batches.append(range(start, index))
            start, total = index, 0
        total += size
    return [*batches, range(start, len(sizes))] if sizes else []
