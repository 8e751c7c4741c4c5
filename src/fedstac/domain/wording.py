"""Words of findings: the term that somebody may have meant, and values that are cut to what a person reads."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

from rapidfuzz import fuzz, process, utils

NEAR: Final = 72.0  # of 100: how alike a suggestion is at least
LONGEST_MISSPELLING: Final = 200  # characters; nobody meant a term by more
MOST_SHOWN: Final = 8  # alternatives in a message


def nearest(value: str, terms: Sequence[str] | Mapping[str, object]) -> str | None:
    """Return the term that is most like a value; None if none is near, the first by name of several."""
    if len(value) > LONGEST_MISSPELLING:
        return None
    matches = process.extract(value, list(terms), scorer=fuzz.ratio, processor=utils.default_process,
                              score_cutoff=NEAR, limit=5)  # fmt: skip
    if not matches:
        return None
    return min(matches, key=lambda match: (-match[1], -fuzz.ratio(value, match[0]), match[0]))[0]


def asking(sentence: str, suggestion: str | None) -> str:
    """Return the sentence, with a question for the suggestion if there is one."""
    return f"{sentence}; did you mean `{suggestion}`?" if suggestion else sentence


def enumerated(values: Sequence[str], most: int = MOST_SHOWN) -> str:
    """Return the first values of a list, and how many more there are."""
    more = f" and {len(values) - most} more" if len(values) > most else ""
    return ", ".join(values[:most]) + more


def brief(value: object) -> str:
    """Return a value as Python writes it, cut to 80 characters."""
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}…"
