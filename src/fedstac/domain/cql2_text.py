"""CQL2 text (OGC 21-065r2, 8) as CQL2 JSON, read in one pass.

The time that it takes grows with the length of the text and with nothing else. The cql2 package, whose parser is
exponential in parentheses, is what tests compare this one with. Arithmetic is left out, because no search takes it.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any, Final, NoReturn

from fedstac.domain import geometry

DEEPEST: Final = 64  # parentheses and `not`; a filter has 16 levels at most
TOKEN: Final = re.compile(
    r"""\s*(?:
        (?P<text>'(?:[^']|'')*')
      | (?P<quoted>"(?:[^"]|"")+")
      | (?P<number>[-+]?(?:[0-9]+(?:\.[0-9]*)?|\.[0-9]+)(?:[eE][-+]?[0-9]+)?)
      | (?P<name>[^\W\d][\w:.]*|_[\w:.]*)
      | (?P<sign><>|!=|<=|>=|[<>=(),])
      | (?P<end>\Z)
    )""",
    re.VERBOSE,
)
COMPARISONS: Final = {"=": "=", "<>": "<>", "!=": "<>", "<": "<", "<=": "<=", ">": ">", ">=": ">="}
CONSTANTS: Final = {"true": True, "false": False, "null": None}
GEOMETRIES: Final = {name.upper(): (name, depth) for name, depth in geometry.DEPTH.items()}
COLLECTION: Final = "GEOMETRYCOLLECTION"
INSTANTS: Final = ("date", "timestamp")

Json = Any


class NotCql2(ValueError):
    """The text is not CQL2; says why, and at which character."""


@dataclass(frozen=True, slots=True)
class _Token:
    kind: str
    text: str
    place: int

    @property
    def word(self) -> str:
        """What it is in capitals and not: keywords and functions have no case."""
        return self.text.lower() if self.kind == "name" else ""


def parse(text: str) -> Json:
    """Return the expression in the text. NotCql2 if it is none."""
    reader = _Reader(_tokens(text))
    expression = reader.either()
    reader.expect_end()
    return expression


def _tokens(text: str) -> list[_Token]:
    tokens: list[_Token] = []
    place = 0
    while not tokens or tokens[-1].kind != "end":
        match = TOKEN.match(text, place)
        if match is None:
            place += len(text[place:]) - len(text[place:].lstrip())
            raise NotCql2(_what_is_odd(text, place))
        kind = match.lastgroup or ""
        tokens.append(_Token(kind, match[kind], match.start(kind)))
        place = match.end()
    return tokens


def _what_is_odd(text: str, place: int) -> str:
    character = text[place]
    if character in "'\"":
        return f"the quote at character {place + 1} is not closed"
    if character in "+-*/^%":
        return f"{character!r} at character {place + 1}: arithmetic is not taken; quote a name that has it"
    return f"{character!r} at character {place + 1} is not understood"


class _Reader:
    """Goes through the tokens once. A method for each kind of expression, the loosest first."""

    def __init__(self, tokens: list[_Token]) -> None:
        self._tokens = tokens
        self._next = 0
        self._depth = 0

    # --- tokens ---

    @property
    def _token(self) -> _Token:
        return self._tokens[self._next]

    def _take(self) -> _Token:
        token = self._token
        self._next += 1
        return token

    def _takes(self, *words: str) -> bool:
        """Pass the next tokens if they are these words or signs; tell whether they are."""
        following = self._tokens[self._next : self._next + len(words)]
        if tuple(token.word or token.text for token in following if token.kind in ("name", "sign")) != words:
            return False
        self._next += len(words)
        return True

    def _expect(self, sign: str, opened: _Token | None = None) -> None:
        if self._takes(sign):
            return
        if opened is not None and self._token.kind == "end":
            raise NotCql2(f"the parenthesis at character {opened.place + 1} is not closed")
        self._refuse(f"expected {sign!r}")

    def expect_end(self) -> None:
        if self._token.kind != "end":
            if self._token.word == "div" or (self._token.kind == "number" and self._token.text[0] in "+-"):
                self._refuse("arithmetic is not taken")
            self._refuse("expected `and`, `or` or the end")

    def _refuse(self, why: str) -> NoReturn:
        token = self._token
        if token.kind == "end":
            raise NotCql2(f"the text ends too early: {why}")
        raise NotCql2(f"{token.text[:40]!r} at character {token.place + 1}: {why}")

    def _deeper(self) -> None:
        self._depth += 1
        if self._depth > DEEPEST:
            raise NotCql2(f"it is nested deeper than {DEEPEST}; write it flatter")

    # --- what is true or false ---

    def either(self) -> Json:
        return self._join("or", self._both)

    def _both(self) -> Json:
        return self._join("and", self._negated)

    def _join(self, op: str, part: Any) -> Json:
        """Return one part, or several joined by the operator. Nested parts with the same operator become one list."""
        parts = [part()]
        while self._takes(op):
            parts.append(part())
        if len(parts) == 1:
            return parts[0]
        args: list[Json] = []
        for each in parts:
            args += each["args"] if isinstance(each, dict) and each.get("op") == op else [each]
        return {"op": op, "args": args}

    def _negated(self) -> Json:
        if not self._takes("not"):
            return self._predicate()
        self._deeper()
        negated = _not(self._negated())
        self._depth -= 1
        return negated

    def _predicate(self) -> Json:
        left = self._operand()
        if self._token.kind == "sign" and self._token.text in COMPARISONS:
            op = COMPARISONS[self._take().text]
            return {"op": op, "args": [left, self._operand()]}
        if self._takes("is", "not", "null"):
            return _not({"op": "isNull", "args": [left]})
        if self._takes("is", "null") or self._takes("isnull"):
            return {"op": "isNull", "args": [left]}
        if self._takes("not", "like"):
            return _not(self._like(left))
        if self._takes("like"):
            return self._like(left)
        if self._takes("not", "in"):
            return _not(self._in(left))
        if self._takes("in"):
            return self._in(left)
        if self._takes("not", "between"):
            return _not(self._between(left))
        if self._takes("between"):
            return self._between(left)
        return left

    def _like(self, left: Json) -> Json:
        return {"op": "like", "args": [left, self._operand()]}

    def _in(self, left: Json) -> Json:
        if self._token.text != "(":
            self._refuse("expected '(' and the values after `in`")
        return {"op": "in", "args": [left, self._list()]}

    def _between(self, left: Json) -> Json:
        low = self._operand()
        if not self._takes("and"):
            self._refuse("expected `and` after the lower bound of `between`")
        return {"op": "between", "args": [left, low, self._operand()]}

    # --- what has a value ---

    def _operand(self) -> Json:
        token = self._token
        match token.kind:
            case "text":
                return self._take().text[1:-1].replace("''", "'")
            case "number":
                return _number(self._take().text)
            case "quoted":
                return {"property": self._take().text[1:-1].replace('""', '"')}
            case "name":
                return self._by_name(self._take())
            case "sign" if token.text == "(":
                return self._in_parentheses()
        self._refuse("expected a property, a value or '('")

    def _in_parentheses(self) -> Json:
        opened = self._take()
        self._deeper()
        inside = self.either()
        self._depth -= 1
        self._expect(")", opened)
        return inside

    def _by_name(self, name: _Token) -> Json:
        if name.text.upper() in (*GEOMETRIES, COLLECTION) and self._begins_geometry():
            return self._geometry(name)
        if self._token.text == "(" and self._token.kind == "sign":
            return self._function(name)
        if name.word in CONSTANTS:
            return CONSTANTS[name.word]
        return {"property": name.text}

    def _function(self, name: _Token) -> Json:
        if name.word.startswith("a_"):
            return {"op": name.word, "args": self._list(of=self._list_or_operand)}
        if name.word == "interval":
            return {"interval": self._list()}
        args = self._list(of=self.either)
        if name.word == "bbox":
            return {"bbox": args}
        if name.word in INSTANTS and len(args) == 1:
            return {name.word: args[0]}
        return {"op": "isNull" if name.word == "isnull" else name.word, "args": args}

    def _list_or_operand(self) -> Json:
        return self._list() if self._token.text == "(" else self._operand()

    def _list(self, of: Any = None) -> list[Json]:
        """Return what is between parentheses, with commas."""
        opened = self._token
        self._expect("(")
        self._deeper()
        members = [(of or self._operand)()]
        while self._takes(","):
            members.append((of or self._operand)())
        self._depth -= 1
        self._expect(")", opened)
        return members

    # --- geometries in well-known text ---

    def _begins_geometry(self) -> bool:
        return self._token.text == "(" or (self._token.word == "z" and self._tokens[self._next + 1].text == "(")

    def _geometry(self, name: _Token) -> Json:
        self._takes("z")
        if name.text.upper() == COLLECTION:
            return {"type": "GeometryCollection", "geometries": self._list(of=self._member)}
        kind, depth = GEOMETRIES[name.text.upper()]
        if depth == 0:
            [position] = self._positions(1)
            return {"type": kind, "coordinates": position}
        return {"type": kind, "coordinates": self._positions(depth)}

    def _member(self) -> Json:
        name = self._take()
        if name.text.upper() not in GEOMETRIES or not self._begins_geometry():
            self._next -= 1
            self._refuse("expected a geometry, such as POINT(1 2)")
        return self._geometry(name)

    def _positions(self, depth: int) -> list[Json]:
        """Read positions, in lists of lists down to the depth."""
        return self._list(of=self._position if depth == 1 else lambda: self._positions(depth - 1))

    def _position(self) -> list[Json]:
        opened = self._token
        if self._takes("("):  # as MULTIPOINT may have it
            position = self._position()
            self._expect(")", opened)
            return position
        position = []
        while self._token.kind == "number":
            position.append(_number(self._take().text))
        if not 2 <= len(position) <= 3:
            self._refuse("a position has two or three numbers")
        return position


def _not(expression: Json) -> Json:
    return {"op": "not", "args": [expression]}


def _number(text: str) -> int | float:
    digits = text.lstrip("+-")
    return int(text) if digits.isdecimal() and len(digits) <= 15 else float(text)
