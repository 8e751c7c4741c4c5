"""SQL for free text. A text matches where its words stand side by side in it, whatever is between them and their case.

The words come checked and made plain from api/search/words.py; `fedstac.plain` does the same to a stored text.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from fedstac.db import conditions


def predicate(expression: Any, test: Callable[[str], str]) -> str:
    """Return SQL for a checked expression; `test` returns SQL that tells whether words are there."""
    op, args = expression["op"], expression["args"]
    if op == "words":
        return test(args[0])
    parts = [predicate(arg, test) for arg in args]
    return f"(NOT {parts[0]})" if op == "not" else "(" + f" {op.upper()} ".join(parts) + ")"


def in_collection(expression: Any) -> str:
    """Return SQL that tests a row of collections, whose column `words` is its plain text with a space at both ends."""
    return predicate(expression, lambda text: f"(strpos(words, {conditions.literal(f' {text} ')}) > 0)")
