"""What a published vocabulary says, whatever its layout: the importers make it, `snapshots` takes it."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from math import inf
from typing import Any, Final

from fedstac.domain.vocabulary import MOST_PATTERN, VocabularyBroken
from fedstac.domain.vocabulary import pattern as compiled
from fedstac.vocabularies.sources import VocabularyRefused

MOST_TERM: Final = 2000  # characters: institutions are named by their addresses
SHOWN: Final = 5  # of many, in a message
CONTROLS: Final = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\u200b-\u200f\u202a-\u202e\u2066-\u2069\ufeff]")
STEP: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+-]{0,127}")  # what can stand in an id, a path and a file name
MOST_REPEATS: Final = 1000  # of a counted repetition, all nested ones together
MOST_WIDE: Final = 3  # times that `.*` stands in a pattern
MOST_WAYS: Final = 50_000  # in which a pattern can match: an engine that back-tracks may try them all
ENDLESS_WAYS: Final = 4.0

Attributes = dict[str, Any]
Collection = dict[str, Attributes]  # a vocabulary: each term with its attributes; "title" is for people


@dataclass(frozen=True, slots=True)
class Facts:
    """A published vocabulary."""

    project: str
    version: str | None  # None: its publisher does not number it
    terms: Mapping[str, Collection]
    patterns: Mapping[str, str] = field(default_factory=dict)  # of collections that are described and not listed
    properties: Mapping[str, Attributes] = field(default_factory=dict)  # where the source names them
    assets: Mapping[str, Attributes] = field(default_factory=dict)
    links: Sequence[Attributes] = ()
    templates: Mapping[str, Sequence[str]] = field(default_factory=dict)  # id, file_name, directory: their parts
    fill: Mapping[str, str] = field(default_factory=dict)  # what stands in brackets in project.json: `[catalog]`
    warnings: Sequence[str] = ()


def title_of(text: object) -> Attributes:
    """Return the attributes of a term that has a title, or none."""
    if type(text) is not str or not text.strip():
        return {}
    return {"title": " ".join(CONTROLS.sub(" ", text).split())}


def check_term(term: str, place: str, *, as_step: bool = False) -> str:
    """Return the term, if it can be one; `as_step`: a part of ids, folders and file names."""
    if type(term) is not str or CONTROLS.search(term) or len(term) > MOST_TERM or term != term.strip():
        form = f"{MOST_TERM} characters at most, none of them a control character, no space around them"
        raise VocabularyRefused(f"{place}: {str(term)[:60]!r} is no term: {form}; have it repaired at its publisher")
    if as_step and not STEP.fullmatch(term):
        form = "letters, digits, . _ + - only, 128 at most"
        raise VocabularyRefused(f"{place}: {term[:60]!r} stands in ids and paths and has {form}; have it repaired")
    return term


def strings(value: object, place: str) -> list[str]:
    """Return a list of texts without the empty ones, or one text as a list."""
    texts = [value] if type(value) is str else value
    if type(texts) is not list or not all(type(entry) is str for entry in texts):
        raise VocabularyRefused(f"{place} has to be a list of strings, and is {str(value)[:60]!r}; have it repaired")
    return [entry for entry in texts if entry]


def some(values: Sequence[str]) -> str:
    """Return the first few, and how many more."""
    more = f" and {len(values) - SHOWN} more" if len(values) > SHOWN else ""
    return ", ".join(map(repr, values[:SHOWN])) + more


# --- regular expressions ---

TOKEN: Final = re.compile(
    r"(?P<escape>\\.)|(?P<set>\[\^?\]?(?:\\.|[^]\\])*\])|(?P<open>\((?:\?:)?)|(?P<close>\))"
    r"|(?P<repeat>(?:[*+?]|\{[0-9]{1,4}(?:,[0-9]{0,4})?\})\??)|(?P<bar>\|)|(?P<anchor>[\^$])|(?P<plain>.)",
    re.DOTALL,
)
COUNTS: Final = re.compile(r"\{([0-9]+)(,?)([0-9]*)\}")


def check_pattern(text: object, place: str) -> str:
    """Return a regular expression as a snapshot has it: anchored, `\\d` spelled out, and safe in engines that back-
    track.

    Ours takes linear time whatever it is given; but the project's schemas carry the pattern to others, which do not.
    The check is conservative: it refuses some that are harmless, and lets none pass that is exponential.
    """
    if type(text) is not str or len(text) > MOST_PATTERN:
        raise VocabularyRefused(
            f"{place}: a pattern is a string of {MOST_PATTERN} characters at most; have it repaired"
        )
    body = text.removeprefix("^")
    body = body[:-1] if body.endswith("$") and not body.endswith("\\$") else body
    tokens = [(str(match.lastgroup), match[0]) for match in TOKEN.finditer(body)]
    reason = _danger(tokens)
    if reason:
        advice = "write it so that there is one way to match only"
        raise VocabularyRefused(f"{place}: the pattern {text[:80]!r} {reason}; {advice}")
    anchored = "".join(_spell(kind, part) for kind, part in tokens)
    anchored = f"^(?:{anchored})$" if _splits(tokens) else f"^{anchored}$"
    try:
        compiled(anchored)
    except VocabularyBroken as error:
        raise VocabularyRefused(f"{place}: {error}; have it repaired at its publisher") from error
    return anchored


def either(patterns: Sequence[str]) -> str:
    """Return one pattern that fits what one of these fits."""
    if len(patterns) == 1:
        return patterns[0]
    return "^(?:" + "|".join(pattern.removeprefix("^").removesuffix("$") for pattern in patterns) + ")$"


def _spell(kind: str, part: str) -> str:
    """Return a part with `\\d` spelled out, which is any digit of any script in some engines."""
    if kind == "set":
        return part.replace("\\d", "0-9")
    return "[0-9]" if part == "\\d" else part


def _splits(tokens: Sequence[tuple[str, str]]) -> bool:
    depth = 0
    for kind, _ in tokens:
        depth += (kind == "open") - (kind == "close")
        if kind == "bar" and depth == 0:
            return True
    return False


@dataclass(slots=True)
class _Part:
    """An atom or a group while a pattern is looked at."""

    text: str = ""  # of an atom
    after: str = ""  # the atom directly before it, if that is repeated without end
    endless: bool = False  # something in it is repeated without end
    copies: float = 1  # that counted repetitions make of it
    ways: float = 1  # in which it can match at most; for a group while it is open: its present alternative
    others: float = 0  # ways of the alternatives before


def _danger(tokens: Sequence[tuple[str, str]]) -> str | None:
    """Return what makes the pattern dangerous, if anything."""
    groups, last, wide = [_Part()], _Part(), 0
    for kind, part in tokens:
        match kind:
            case "open":
                groups.append(_Part())
                last = _Part()
            case "close" if len(groups) == 1:
                return "closes a bracket that is not open"
            case "close":
                last = groups.pop()
                last.text, last.ways = "()", last.ways + last.others
                _adopt(groups[-1], last, last.ways)
            case "bar":
                group = groups[-1]
                group.others, group.ways, last = group.others + group.ways, 1, _Part()
            case "anchor":
                return "has an anchor within"
            case "escape" if part[1] in "123456789kbBAZzpPX":
                return f"uses {part}"
            case "repeat":
                least, most = _bounds(part)
                wide += most == inf and last.text == "."
                reason = _excess(last, most) or (f"has .* more than {MOST_WIDE} times" if wide > MOST_WIDE else None)
                if reason:
                    return reason
                before, last.ways = last.ways, _ways_of_repetition(last.ways, least, most)
                last.endless = last.endless or most == inf
                last.copies *= 1 if most == inf else max(most, 1)
                _adopt(groups[-1], last, last.ways / before)
            case _:
                last = _Part(part, after=last.text if last.endless else "")
        if groups[-1].ways > MOST_WAYS:
            return f"can match in more than {MOST_WAYS} ways"
    return "leaves a bracket open" if len(groups) > 1 else None


def _excess(part: _Part, most: float) -> str | None:
    """Return what is wrong with repeating this part up to that often."""
    if not part.text:
        return "repeats nothing, or looks around"
    if most > 1 and part.endless:
        return "repeats a repetition"
    if most == inf and part.ways > 1:
        return "repeats alternatives without end"
    if most == inf and part.after and (part.text == part.after or "." in (part.text, part.after)):
        return "has two endless repetitions side by side"
    if most != inf and part.copies * most > MOST_REPEATS:
        return f"counts to more than {MOST_REPEATS}"
    return None


def _ways_of_repetition(ways: float, least: int, most: float) -> float:
    """Return in how many ways a repetition can match. One without end counts as a few: what follows is another text."""
    if most == inf:
        return ENDLESS_WAYS
    try:
        return max(float((most - least + 1) * ways**most), 1)
    except OverflowError:
        return inf


def _adopt(group: _Part, part: _Part, ways: float) -> None:
    """Give a group what it inherits from a part inside it."""
    group.endless |= part.endless
    group.copies = max(group.copies, part.copies)
    group.ways *= ways


def _bounds(repeat: str) -> tuple[int, float]:
    """Return how often at least and at most."""
    match = COUNTS.match(repeat)
    if match is None:
        return int(repeat[0] == "+"), 1 if repeat[0] == "?" else inf
    low, comma, high = match.groups()
    return int(low), (int(high) if high else inf) if comma else int(low)
