"""Free text (`q` of the STAC API's free-text extension), read and checked: words and phrases, joined by AND, OR, NOT.

What is checked here becomes SQL by db/words.py. A dataset has words in its facets, which are looked up in the
vocabulary and become a filter; in its title, description and keywords; and in its id as a whole.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, NoReturn

from fedstac.domain import filters
from fedstac.domain.errors import BadRequest
from fedstac.domain.vocabulary import Pattern, Vocabulary

LONGEST: Final = 1000  # characters of q
MOST_TERMS: Final = 20
DEEPEST: Final = 16  # parentheses
TOKEN: Final = re.compile(
    r"""\s*(?: "(?P<phrase>[^"]*)" | (?P<sign>[(),]) | (?P<mark>[+-])(?=[^\s,)]) | (?P<word>[^\s(),"]+)
        | (?P<end>\Z) )""",
    re.VERBOSE,
)
NOT_IN_A_WORD: Final = re.compile(r"[\W_]+")
JOINTS: Final = ("AND", "OR", "NOT")

Expression = dict[str, Any]


def plain(text: str) -> str:
    """Return a text as it is compared: case folded, one space for whatever is neither a letter nor a digit."""
    return NOT_IN_A_WORD.sub(" ", filters.FUNCTIONS["casei"](text)).strip()


def read(value: object) -> Expression:
    """Return what `q` asks for: {"op": "and" | "or" | "not", "args": […]} of {"op": "words", "args": [plain, text]}.

    A list, and commas, are alternatives. Words one after the other are a phrase. BadRequest says what is wrong.
    """
    texts: list[Any] = value if isinstance(value, list) else [value]
    if not texts or not all(isinstance(text, str) for text in texts):
        raise BadRequest("q is a list of texts to search for, or one text")
    if sum(map(len, texts)) > LONGEST or len(texts) > MOST_TERMS:
        raise BadRequest(f"q has over {LONGEST} characters or {MOST_TERMS} terms, the most; ask for less at once")
    expression = _any([_Reader(text).everything() for text in texts])
    if _terms(expression) > MOST_TERMS:
        raise BadRequest(f"q has over {MOST_TERMS} terms, the most; ask for less at once")
    return expression


def _terms(expression: Expression) -> int:
    return 1 if expression["op"] == "words" else sum(map(_terms, expression["args"]))


def _any(parts: Sequence[Expression]) -> Expression:
    return parts[0] if len(parts) == 1 else {"op": "or", "args": list(parts)}


def _all(parts: Sequence[Expression]) -> Expression:
    return parts[0] if len(parts) == 1 else {"op": "and", "args": list(parts)}


class _Reader:
    """Goes through the tokens once. A method for each kind of expression, the loosest first."""

    def __init__(self, text: str) -> None:
        self._tokens: list[tuple[str, str]] = []
        self._next = 0
        self._depth = 0
        place = 0
        while not self._tokens or self._tokens[-1][0] != "end":
            match = TOKEN.match(text, place)
            if match is None:
                raise BadRequest("q has a quote that is not closed")
            self._tokens.append((str(match.lastgroup), match[str(match.lastgroup)]))
            place = match.end()

    def everything(self) -> Expression:
        expression = self._either()
        if self._tokens[self._next][0] != "end":
            self._refuse()
        return expression

    def _takes(self, *tokens: tuple[str, str]) -> bool:
        if self._tokens[self._next] not in tokens:
            return False
        self._next += 1
        return True

    def _refuse(self) -> NoReturn:
        kind, text = self._tokens[self._next]
        where = "ends too early" if kind == "end" else f"is not understood at {text[:40]!r}"
        raise BadRequest(f'q {where}; there are words, "phrases", AND, OR, NOT, + and - before a word, commas, ( and )')

    def _either(self) -> Expression:
        parts = [self._both()]
        while self._takes(("sign", ","), ("word", "OR")):
            parts.append(self._both())
        return _any(parts)

    def _both(self) -> Expression:
        parts = [self._sequence()]
        while self._takes(("word", "AND")):
            parts.append(self._sequence())
        return _all(parts)

    def _sequence(self) -> Expression:
        """Read what stands side by side: something to find, with what must (`+`) and must not (`-`, NOT) be there."""
        optional: list[Expression] = []
        necessary: list[Expression] = []
        unwanted: list[Expression] = []
        while True:
            if self._takes(("mark", "+")):
                necessary.append(self._term(one_word=True))
            elif self._takes(("mark", "-")):
                unwanted.append(self._term(one_word=True))
            elif self._takes(("word", "NOT")):
                unwanted.append(self._term())
            elif self._begins_term():
                optional.append(self._term())
            else:
                break
        if not (optional or necessary or unwanted):
            self._refuse()
        if len(optional) > 1 and not necessary and not unwanted:
            raise BadRequest("q has two terms side by side; write AND, OR or a comma between them")
        parts = [*necessary, *([_any(optional)] if optional and not necessary else [])]
        return _all([*parts, *({"op": "not", "args": [each]} for each in unwanted)])

    def _begins_term(self) -> bool:
        kind, text = self._tokens[self._next]
        return kind == "phrase" or (kind == "word" and text not in JOINTS) or (kind, text) == ("sign", "(")

    def _term(self, *, one_word: bool = False) -> Expression:
        if not self._begins_term():
            self._refuse()
        if self._takes(("sign", "(")):
            self._depth += 1
            if self._depth > DEEPEST:
                raise BadRequest(f"q is nested deeper than {DEEPEST}; write it flatter")
            inside = self._either()
            self._depth -= 1
            if not self._takes(("sign", ")")):
                self._refuse()
            return inside
        kind, text = self._tokens[self._next]
        self._next += 1
        while kind == "word" and not one_word and self._tokens[self._next][0] == "word" and self._begins_term():
            text += " " + self._tokens[self._next][1]
            self._next += 1
        if not (words := plain(text)):
            raise BadRequest(f"q: {text[:40]!r} has no letter and no digit to search for")
        return {"op": "words", "args": [words, text]}


@dataclass(frozen=True, slots=True)
class FacetWords:
    """The words that the facets of a project's datasets can have."""

    terms: Mapping[
        str, Sequence[tuple[str, str]]
    ]  # by property: each term plain, with a space at both ends, and itself
    patterns: Mapping[str, Pattern]  # of properties whose values fit one

    @classmethod
    def of(cls, vocabulary: Vocabulary | None) -> FacetWords:
        """Return those that a vocabulary declares."""
        properties = vocabulary.properties.values() if vocabulary else ()
        return cls(
            {each.name: [(f" {plain(term)} ", term) for term in each.terms] for each in properties if each.terms},
            {each.name: each.pattern for each in properties if each.pattern},
        )

    def having(self, words: str, text: str) -> Iterator[Expression]:
        """Yield filters of the facets whose values have the words side by side."""
        for name, terms in self.terms.items():
            if values := [term for plain_term, term in terms if f" {words} " in plain_term]:
                yield {"op": "in", "args": [{"property": name}, values]}
        for name, pattern in self.patterns.items():
            if pattern.fits(text):
                yield {"op": "=", "args": [{"property": name}, text]}


def with_facets(expression: Expression, facets: Sequence[FacetWords]) -> Expression:
    """Return the expression for datasets: words have a third argument, the filter of the facets that have them.

    BadRequest if so many terms have one of the words that their filter would be too large.
    """
    result = _with_facets(expression, facets)
    if _values(result) > filters.MOST_VALUES:
        raise BadRequest(
            f"q: over {filters.MOST_VALUES} terms of the vocabulary have its words; search for more of each"
        )
    return result


def _with_facets(expression: Expression, facets: Sequence[FacetWords]) -> Expression:
    op, args = expression["op"], expression["args"]
    if op != "words":
        return {"op": op, "args": [_with_facets(arg, facets) for arg in args]}
    parts = [part for each in facets for part in each.having(*args)]
    return {"op": op, "args": [*args, {"op": "or", "args": parts} if parts else False]}


def _values(expression: Expression) -> int:
    """Count the values of facets that an expression names."""
    op, args = expression["op"], expression["args"]
    if op != "words":
        return sum(map(_values, args))
    return sum(len(part["args"][1]) if part["op"] == "in" else 1 for part in args[2]["args"]) if args[2] else 0


def texts_of(expression: Expression) -> list[str]:
    """Return the words that an expression looks for, plain."""
    if expression["op"] == "words":
        return [expression["args"][0]]
    return [text for arg in expression["args"] for text in texts_of(arg)]


def as_filter(expression: Expression, keys: Mapping[str, Sequence[tuple[str, str]]]) -> Expression:
    """Return the filter that an expression with facets amounts to.

    `keys`: by plain words, the (collection, id) of the datasets that have them in a text of their own.
    """
    op, args = expression["op"], expression["args"]
    if op != "words":
        return {"op": op, "args": [as_filter(arg, keys) for arg in args]}
    words, text, facets = args
    # a facet that is missing does not have the words: that is false, and not unknown
    parts = [_all([_is_there(part["args"][0]), part]) for part in (facets["args"] if facets else [])]
    ids_by_collection: dict[str, list[str]] = {}
    for collection, item_id in keys[words]:
        ids_by_collection.setdefault(collection, []).append(item_id)
    parts += [
        _all([_comparison("=", "collection", collection), _comparison("in", "id", ids)])
        for collection, ids in sorted(ids_by_collection.items())
    ]
    return _any([*parts, _comparison("=", "id", text)])


def _comparison(op: str, name: str, value: object) -> Expression:
    return {"op": op, "args": [{"property": name}, value]}


def _is_there(operand: Expression) -> Expression:
    return {"op": "not", "args": [{"op": "isnull", "args": [operand]}]}
