"""Named places in the write path and in the workers at which a test acts: it ends the process there, or counts.

The product has the places only. What happens at them, and every fault that a checker has to find, is in a module of the
tests: `FEDSTAC_FAILPOINTS=MODULE:WORDS` makes a process import it and call its `install(WORDS)`.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable

_action: Callable[[str], None] | None = None


def failpoint(name: str) -> None:
    """Let a test act at this place. Nothing happens in any other process."""
    if _action is not None:
        _action(name)


def act(action: Callable[[str], None] | None) -> None:
    """Call this with the name of every place that is passed from now on; None: nothing any more."""
    global _action
    _action = action


def install(text: str) -> None:
    """Import the module of `MODULE:WORDS` and let it install what the words say."""
    module, _, words = text.partition(":")
    importlib.import_module(module).install(words)
