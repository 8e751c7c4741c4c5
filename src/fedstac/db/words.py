"""SQL for free text, which comes checked from api/search/words.py: words side by side, joined by AND, OR, NOT.

`fedstac.plain` makes a stored text as plain as they are: case folded, one space for all that is no letter and no digit.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any


def predicate(expression: Any, test: Callable[[Sequence[Any]], str]) -> str:
    """Return SQL for an expression; `test` returns SQL for the arguments of words: are they there?"""
    op, args = expression["op"], expression["args"]
    if op == "words":
        return test(args)
    parts = [predicate(arg, test) for arg in args]
    return f"(NOT {parts[0]})" if op == "not" else "(" + f" {op.upper()} ".join(parts) + ")"
