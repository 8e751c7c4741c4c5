"""Named places where a test lets a process die or stray. Inert unless FEDSTAC_FAILPOINTS is set by a test.

`FEDSTAC_FAILPOINTS=perform.written=kill:3` ends the process with SIGKILL at the third pass through that place. Faults
that a checker has to catch are planted the same way: `planted("naive-cursor")` is true only when named there.
"""

from __future__ import annotations

import os
import signal
from collections import Counter
from functools import cache

passes: Counter[str] = Counter()


@cache
def _configured() -> dict[str, str]:
    entries = os.environ.get("FEDSTAC_FAILPOINTS", "").split(",")
    return {name: action or "plant" for name, _, action in (entry.partition("=") for entry in entries if entry)}


def active() -> bool:
    """Whether a test asked for anything; an operator has to be told if that was no test."""
    return bool(_configured())


def read_again() -> None:
    """For tests that set FEDSTAC_FAILPOINTS while their process runs."""
    _configured.cache_clear()
    passes.clear()


def failpoint(name: str) -> None:
    """Dies here if a test asked for it."""
    action = _configured().get(name)
    if action is None:
        return
    passes[name] += 1
    kind, _, nth = action.partition(":")
    if kind == "kill" and passes[name] == int(nth or 1):
        os.kill(os.getpid(), signal.SIGKILL)


def planted(name: str) -> bool:
    """Whether a test planted this fault."""
    return _configured().get(name) == "plant"
