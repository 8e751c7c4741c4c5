"""JSON as it comes from outside, refused unless what is stored and given back is equal to what was sent.

Refused: what is not JSON (RFC 8259), nesting too deep, keys that are there twice, NaN and Infinity, numbers that a
double does not hold, U+0000 (PostgreSQL cannot store it), lone surrogates (nobody can read them back).
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from decimal import Decimal
from itertools import islice
from typing import NamedTuple, TypeAlias

import orjson

from fedstac.domain import texts
from fedstac.domain.errors import BodyTooLarge, Finding, MalformedJson
from fedstac.domain.texts import Text

MAX_DEPTH = 64
MOST_VALUES = 400_000  # in a text that is parsed at once
BEFORE_VALUES = (b",", b"[", b"{")  # one of them stands before every value but the first
EXACT = 2**53  # up to here every integer is a double, and no two of them are the same double
_MAX_FINDINGS = 50

_Container: TypeAlias = dict[str, object] | list[object]


def parse(raw: bytes, *, max_depth: int = MAX_DEPTH) -> object:
    """Return the value of one JSON text, normalised: 1.0, 1e0 and 1 are all the integer 1 (up to 2**53), -0.0 is 0.

    So values that are equal are equal as text too, once serialised. Strings are left as they are. Raises MalformedJson
    with all findings (at most 50); a fault of syntax hides the others, and has its line and column in the message.
    """
    value, faults = _read(raw, max_depth)
    if faults:
        raise _malformed([fault.finding() for fault in faults])
    return value


def parse_lines(raw: bytes, *, max_depth: int = MAX_DEPTH, most: int = sys.maxsize) -> list[object]:
    """Return the values of newline-delimited JSON, one a line; blank lines are skipped.

    Also of a GeoJSON text sequence (RFC 8142), where 0x1e precedes each record and a record may span lines. In place of
    a record that is not JSON stands its MalformedJson, whose messages begin with the line. MalformedJson is raised only
    where there is no record at all. After `most` records reading ends.
    """
    values = list(islice(iterate_lines(raw, max_depth=max_depth), most))
    if not values:
        raise _malformed([_EMPTY.finding()])
    return values


def iterate_lines(raw: bytes, *, max_depth: int = MAX_DEPTH) -> Iterator[object]:
    """Yield the same, one after the other, so that one at a time is in memory; nothing where there is none."""
    for line, record in _records(raw):
        yield _value_of_line(line, record, max_depth)


def _value_of_line(line: int, record: bytes, max_depth: int) -> object:
    value, faults = _read(record, max_depth)
    return _malformed([fault.finding(first_line=line) for fault in faults]) if faults else value


def _values(raw: bytes) -> int:
    return sum(raw.count(mark) for mark in BEFORE_VALUES)


def _refusal(raw: Text, start: int, end: int, most: int) -> BodyTooLarge | None:
    """Return why a record is not parsed; None where it is."""
    if end - start > most:
        return BodyTooLarge(f"the item has {end - start} bytes; {most} are the most")
    if end - start > MOST_VALUES and _values(raw[start:end]) > MOST_VALUES:
        return BodyTooLarge(f"the item has over {MOST_VALUES} values, which are the most")
    return None


@dataclass(frozen=True, slots=True)
class PartedObject:
    """A JSON object whose member is a list of objects that are not parsed yet: its other members, and their places.

    In place of an object of over `most_bytes` stands a BodyTooLarge.
    """

    raw: Text
    member: str
    rest: dict[str, object]  # the member is an empty list in it
    spans: Sequence[tuple[int, int]]
    most_bytes: int = sys.maxsize

    def __iter__(self) -> Iterator[object]:
        """Yield the objects of the list, each parsed in its turn. MalformedJson, with its place, for a broken one."""
        read = 0
        for n, (start, end) in enumerate(self.spans):
            yield self._value(n, start, end)
            if end - read > texts.PIECE:
                read = texts.let_go(self.raw, end)

    def _value(self, n: int, start: int, end: int) -> object:
        if (refusal := _refusal(self.raw, start, end, self.most_bytes)) is not None:
            return refusal
        value, faults = _read(self.raw[start:end], MAX_DEPTH - 2)
        if faults:
            raise _malformed([self._at_place(fault, n, start).finding() for fault in faults])
        return value

    def __len__(self) -> int:
        return len(self.spans)

    def _at_place(self, fault: _Fault, n: int, start: int) -> _Fault:
        pointer = f"/{self.member}/{n}{fault.pointer}"
        if fault.line is None or fault.column is None:
            return replace(fault, pointer=pointer)
        before = self.raw.rfind(b"\n", 0, start) + 1
        column = fault.column + (start - before if fault.line == 1 else 0)
        return replace(fault, pointer=pointer, line=fault.line + texts.count(self.raw, b"\n", 0, start), column=column)


_STRUCTURE = re.compile(
    rb'"(?:[^"\\]++|\\.)*+(?:"|\Z)|[\[\]{}]', re.DOTALL
)  # one that is not closed ends with the text
_OPENS_LIST = re.compile(rb"[ \t\r\n]*:[ \t\r\n]*\[")


def part(raw: Text, member: str, *, most: int, most_rest: int, most_bytes: int = sys.maxsize) -> PartedObject | None:
    """Take a JSON object apart at a member that is a list of objects; None where it is no such thing.

    A caller who iterates has one object in memory at a time. At most `most` + 1 of them are looked for. None also where
    there are over `most_rest` bytes beside the list, which are parsed at once. Objects of over `most_bytes` are not
    parsed at all.
    """
    key = orjson.dumps(member)
    spans: list[tuple[int, int]] = []
    depth, opened, start, last, read = 0, -1, -1, -1, 0
    for match in _STRUCTURE.finditer(raw):
        if match.start() - read > texts.PIECE:
            read = texts.let_go(raw, match.start())
        mark = raw[match.start()]
        if mark == 0x22:
            if opened < 0 and depth == 1 and match[0] == key and (bracket := _OPENS_LIST.match(raw, match.end())):
                opened = last = bracket.end()
        elif mark in b"[{":
            depth += 1
            if depth == 3 and opened >= 0 and match.start() >= opened:
                if mark == 0x5B or raw[last : match.start()].strip(b" \t\r\n") != (b"," if spans else b""):
                    return None
                start = match.start()
        else:
            depth -= 1
            if depth == 2 and start >= 0:
                spans.append((start, last := match.end()))
                start = -1
                if len(spans) > most:
                    return PartedObject(raw, member, {}, spans, most_bytes)
            elif depth == 1 and match.start() >= opened >= 0:
                if mark != 0x5D:  # a bracket of one of the objects is missing: which one, its parsing tells
                    for _ in PartedObject(raw, member, {}, spans, most_bytes):
                        pass
                    return None
                if raw[last : match.start()].strip(b" \t\r\n") or len(raw) - match.start() + opened > most_rest:
                    return None
                rest, faults = _read(raw[:opened] + raw[match.start() :], MAX_DEPTH)
                if faults:
                    raise _malformed([fault.finding() for fault in faults])
                return PartedObject(raw, member, rest, spans, most_bytes) if isinstance(rest, dict) else None
    return None


_SEQUENCE = re.compile(rb"[ \t\r\n]*\x1e")


def _records(raw: Text) -> Iterator[tuple[int, bytes]]:
    for line, start, end in _places(raw):
        record = raw[start:end]
        if record and not record.isspace():
            yield line, record


def _places(raw: Text) -> Iterator[tuple[int, int, int]]:
    """Yield the first line of each record, and where it begins and ends; blank ones too."""
    # Neither byte can be inside a string, where JSON has control characters escaped, so splitting is safe.
    separator = b"\x1e" if _SEQUENCE.match(raw) else b"\n"
    line, start, read = 1, 0, 0
    while start < len(raw):
        end = raw.find(separator, start)
        if end < 0:
            end = len(raw)
        yield line, start, end
        line += 1 if separator == b"\n" else texts.count(raw, b"\n", start, end)
        start = end + 1
        if start - read > texts.PIECE:
            read = texts.let_go(raw, start)


@dataclass(frozen=True, slots=True)
class Lines:
    """Newline-delimited JSON that is parsed record by record: one record at a time is in memory.

    In place of a record of over `most_bytes` stands a BodyTooLarge.
    """

    raw: Text
    most_bytes: int = sys.maxsize

    def __iter__(self) -> Iterator[object]:
        for line, start, end in _places(self.raw):
            if (refusal := _refusal(self.raw, start, end, self.most_bytes)) is not None:
                yield refusal
            elif self.raw[start:end].strip():
                yield _value_of_line(line, self.raw[start:end], MAX_DEPTH)

    def __len__(self) -> int:
        places = _places(self.raw)
        return sum(end - start > self.most_bytes or bool(self.raw[start:end].strip()) for _, start, end in places)


def _malformed(findings: list[Finding]) -> MalformedJson:
    more = f" (and {len(findings) - 1} more)" if len(findings) > 1 else ""
    return MalformedJson(f"{findings[0].message}; {findings[0].suggestion}{more}", findings=findings)


# --- the fast path ---
#
# orjson is exact about syntax, UTF-8, surrogates, NaN and overflow, but takes duplicate keys (the last one wins),
# \u0000, 1 024 levels, and numbers that it changes. It is believed when one of two proofs holds; otherwise _explain
# reads the text again with the standard library, which shows every member and every literal. A proof may fail for a
# sound document (which then costs three times as much); it must never hold for a faulty one.
#
# Proof 1: the value serialises to the very text that was sent. Serialised text has no duplicate keys, and a number
# with a point or exponent in it is the shortest literal of its double. Compact JSON of most writers passes.
#
# Proof 2, in two parts.
# Keys: every member in the text has a `"`, maybe whitespace, and `:`. Such places are at least as many as the members
# (a string may hold `\":` too), and the members at least as many as the keys in the tree. If the number of places is
# that of the keys, no two members shared a key.
# Numbers: a literal of at most 15 digits is the shortest literal of its double, because no two decimals of 15 digits
# share a double (DBL_DIG), unless it underflows. A literal of more digits, in mantissa or exponent, has 16 of [0-9.]
# in a row; then each run of number characters that long, and bounded as literals are, has to be one that is held, be
# it in a string or not. An underflow leaves a value that is 0 or below 1e-290, and with so few digits in the mantissa
# it comes from an exponent of three digits or more.
#
# In both: integers beyond 2**53 and depth are seen in the tree, and U+0000 can only be written \u0000.

_SHAPE = bytes.maketrans(b"0123456789.E\t\r\n", b"00000000000e   ")
_LONG = b"0" * 16
_SPACED_KEY = re.compile(rb'"[ \t\r\n]+:')
_NUMBER_RUN = re.compile(rb"(?<![^\[:, \t\r\n])(?=[-+0-9.eE]{16})[-+0-9.eE]+(?![^\]}, \t\r\n])")
_LITERAL = re.compile(r"-?(?:0|[1-9][0-9]*)(\.[0-9]+)?([eE][-+]?[0-9]+)?")
_TINY = 1e-290


def _read(raw: bytes, max_depth: int) -> tuple[object, list[_Fault]]:
    try:
        value = orjson.loads(raw)
    except orjson.JSONDecodeError as error:
        faults = _explain(raw, max_depth)
        if not faults or faults[0].rule == "json-syntax":  # of the same fault orjson speaks more clearly
            faults = [_syntax(error)]
        return None, faults
    try:
        same = orjson.dumps(value) == raw
    except orjson.JSONEncodeError:  # it reads 1 024 levels and writes 254
        same = False
    top = [value]
    tree = _normalise(top, max_depth)
    if not tree.is_shallow:
        return None, _explain(raw, max_depth) or [_too_deep("", max_depth)]
    is_believed = tree.keys is not None and (same or _is_unchanged(raw, keys=tree.keys, tiny=tree.has_tiny))
    if is_believed and b"\\u0000" not in raw:
        return top[0], []
    return top[0], _explain(raw, max_depth)


def _is_unchanged(raw: bytes, *, keys: int, tiny: bool) -> bool:
    """Try proof 2."""
    shape = raw.translate(_SHAPE)
    members = raw.count(b'":')
    if b" :" in shape:
        members += len(_SPACED_KEY.findall(raw))
    if members != keys or (tiny and b"e-000" in shape):
        return False
    return _LONG not in shape or all(_is_exact(run.decode()) for run in _NUMBER_RUN.findall(raw))


class _Tree(NamedTuple):
    """What a walk through a value shows."""

    is_shallow: bool  # nested within the depth
    keys: int | None  # None: there is an integer beyond 2**53
    has_tiny: bool  # a number is 0 or tiny


def _normalise(top: list[object], max_depth: int) -> _Tree:
    """Make integral floats integers, in place, and return what the walk shows."""
    # One level of the tree at a time: no recursion, and nothing kept per node. This loop is most of the cost of parse.
    level: list[_Container] = [top]
    keys, depth, tiny, exact = 0, -1, False, True
    while level:
        depth += 1
        if depth > max_depth:
            return _Tree(is_shallow=False, keys=None, has_tiny=tiny)
        below: list[_Container] = []
        for node in level:
            if type(node) is dict:
                keys += len(node)
                for key, value in node.items():
                    kind = type(value)
                    if kind is str:
                        continue
                    if kind is dict or kind is list:
                        below.append(value)  # type: ignore[arg-type]
                    elif kind is float:
                        if -EXACT <= value <= EXACT:  # type: ignore[operator]
                            whole = int(value)  # type: ignore[call-overload]
                            if whole == value:
                                node[key] = whole  # of a key that is there: does not disturb the iteration
                            if not whole and -_TINY < value < _TINY:  # type: ignore[operator]
                                tiny = True
                    elif kind is int and not -EXACT <= value <= EXACT:  # type: ignore[operator]
                        exact = False
            else:
                for place, value in enumerate(node):
                    kind = type(value)
                    if kind is str:
                        continue
                    if kind is dict or kind is list:
                        below.append(value)  # type: ignore[arg-type]
                    elif kind is float:
                        if -EXACT <= value <= EXACT:  # type: ignore[operator]
                            whole = int(value)  # type: ignore[call-overload]
                            if whole == value:
                                node[place] = whole  # type: ignore[index]
                            if not whole and -_TINY < value < _TINY:  # type: ignore[operator]
                                tiny = True
                    elif kind is int and not -EXACT <= value <= EXACT:  # type: ignore[operator]
                        exact = False
        level = below
    return _Tree(is_shallow=True, keys=keys if exact else None, has_tiny=tiny)


def _is_exact(literal: str) -> bool:
    """Tell whether a double holds this number, so that it can be written as this number again."""
    match = _LITERAL.fullmatch(literal)
    if match is None:
        return False
    if match.lastindex is None:
        return len(literal) <= 17 and abs(int(literal)) <= EXACT
    double = float(literal)
    if repr(double) == literal:
        return True
    if double == 0:
        return not literal.lower().partition("e")[0].strip("-0.")
    if double in (float("inf"), float("-inf")):
        return False
    # %.17g: some writers print 17 digits always; the double itself: some print all its digits
    number = Decimal(literal)
    return number in (Decimal(repr(double)), Decimal(f"{double:.17g}"), Decimal(double))


# --- the slow path: decides exactly, and finds the places ---


@dataclass(frozen=True, slots=True)
class _Fault:
    """What is wrong and where; not yet a Finding, because a record does not know at which line it begins."""

    rule: str
    pointer: str
    message: str
    suggestion: str
    line: int | None = None
    column: int | None = None

    def finding(self, *, first_line: int | None = None) -> Finding:
        """Return the fault as a finding. `first_line`: the line of a longer body at which the record begins."""
        message = self.message
        if self.line is not None:
            message = f"line {self.line + (first_line or 1) - 1}, column {self.column}: {message}"
        elif first_line is not None:
            message = f"line {first_line}: {message}"
        return Finding(self.rule, self.pointer, message, suggestion=self.suggestion)


_EMPTY = _Fault("json-empty", "", "the body is empty", "send a JSON document")
_BOM = _Fault(
    "json-encoding", "", "a byte order mark stands before the JSON", "send UTF-8 without a byte order mark", 1, 1
)


def _syntax(error: json.JSONDecodeError) -> _Fault:
    remedy = "send JSON as RFC 8259 has it"
    return _Fault("json-syntax", "", f"not JSON: {error.msg}", remedy, error.lineno, error.colno)


def _too_deep(pointer: str, max_depth: int, line: int | None = None, column: int | None = None) -> _Fault:
    message = f"nested deeper than {max_depth} levels"
    return _Fault("json-depth", pointer, message, f"nest at most {max_depth} levels", line, column)


@dataclass(frozen=True, slots=True)
class _Unusable:
    """Stands in the tree for a number that is not one, or is not held."""

    literal: str


class _RepeatingObject(dict[str, object]):
    """An object with keys that are there more than once."""

    twice: frozenset[str]


def _object(members: list[tuple[str, object]]) -> dict[str, object]:
    tree = dict(members)
    if len(tree) == len(members):
        return tree
    repeating = _RepeatingObject(tree)
    earlier: set[str] = set()
    repeating.twice = frozenset(key for key, _ in members if key in earlier or earlier.add(key))  # type: ignore[func-returns-value]
    return repeating


def _integer(literal: str) -> object:
    return int(literal) if _is_exact(literal) else _Unusable(literal)


def _decimal(literal: str) -> object:
    return float(literal) if _is_exact(literal) else _Unusable(literal)


_DECODER = json.JSONDecoder(
    object_pairs_hook=_object, parse_int=_integer, parse_float=_decimal, parse_constant=_Unusable
)


def _explain(raw: bytes, max_depth: int) -> list[_Fault]:
    """Return all faults of the text; none, if it is sound."""
    if not raw or raw.isspace():
        return [_EMPTY]
    if raw.startswith(b"\xef\xbb\xbf"):
        return [_BOM]
    try:
        text = raw.decode()
    except UnicodeDecodeError as error:
        line, column = _line_and_column(raw[: error.start].decode())
        message = f"not UTF-8: {error.reason} (byte 0x{raw[error.start]:02x})"
        return [_Fault("json-encoding", "", message, "send the body as UTF-8", line, column)]
    try:
        tree = _DECODER.decode(text)
    except json.JSONDecodeError as error:
        return [_syntax(error)]
    except RecursionError:
        return [_too_deep("", max_depth, *_line_and_column(text[: _offset_of_depth(text, max_depth)]))]
    # without an escape, a string cannot hold what decoding the UTF-8 did not refuse
    return list(islice(_faults_in(tree, max_depth, texts=b"\\u" in raw), _MAX_FINDINGS))


def _faults_in(tree: object, max_depth: int, *, texts: bool) -> Iterator[_Fault]:
    """Yield the faults in the order of the document; strings and keys are looked at if `texts`."""
    worth_a_look = (dict, list, _Unusable, str) if texts else (dict, list, _Unusable)
    pending: list[tuple[str, int, object]] = [("", 1, tree)]
    while pending:
        pointer, depth, value = pending.pop()
        members: list[tuple[str, int, object]] = []
        match value:
            case str():
                yield from _faults_of_text(value, "string", pointer)
            case _Unusable(literal):
                yield _number_fault(literal, pointer)
            case dict() | list() if depth > max_depth:
                yield _too_deep(pointer, max_depth)
            case dict():
                twice = value.twice if isinstance(value, _RepeatingObject) else ()
                for key, member in value.items():
                    if texts:
                        yield from _faults_of_text(key, "key", f"{pointer}/{_token(key)}")
                    if key in twice:
                        message = f"the key {_quoted(key)} is there more than once"
                        yield _Fault("json-duplicate-key", f"{pointer}/{_token(key)}", message, "keep one of them")
                    if isinstance(member, worth_a_look):
                        members.append((f"{pointer}/{_token(key)}", depth + 1, member))
            case list():
                for place, member in enumerate(value):
                    if isinstance(member, worth_a_look):
                        members.append((f"{pointer}/{place}", depth + 1, member))
            case _:
                pass
        pending += reversed(members)


def _faults_of_text(text: str, what: str, pointer: str) -> Iterator[_Fault]:
    if "\0" in text:
        yield _Fault(
            "json-nul", pointer, f"the {what} {_quoted(text)} holds U+0000, which cannot be stored", "remove it"
        )
    if not text.isascii() and any("\ud800" <= character <= "\udfff" for character in text):
        message = f"the {what} {_quoted(text)} holds half of a surrogate pair, which is no character"
        yield _Fault("json-surrogate", pointer, message, "write the pair, or the character itself")


def _number_fault(literal: str, pointer: str) -> _Fault:
    number = literal if len(literal) <= 40 else f"{literal[:32]}… ({len(literal)} characters)"
    if literal in ("NaN", "Infinity", "-Infinity"):
        return _Fault("json-number", pointer, f"{number} is not JSON", "use null, or leave the member out")
    message = f"the number {number} is not held by a double (IEEE 754), so it would be read as another"
    return _Fault("json-number", pointer, message, "write at most 15 digits, within ±1e308, or a string")


def _token(key: str) -> str:
    """Return the key as a part of a JSON pointer (RFC 6901), cut, and so that it can itself be sent and stored."""
    return _printable(key, 200).replace("~", "~0").replace("/", "~1")


def _quoted(text: str) -> str:
    return f'"{_printable(text, 60)}"'


def _printable(text: str, limit: int) -> str:
    cut = text if len(text) <= limit else text[:limit] + "…"
    return cut.replace("\0", "\\u0000").encode(errors="backslashreplace").decode()


def _line_and_column(before: str) -> tuple[int, int]:
    return before.count("\n") + 1, len(before) - before.rfind("\n")


_BRACKET_OR_STRING = re.compile(r'"(?:[^"\\]++|\\.)*+"|([\[{])|[\]}]', re.DOTALL)


def _offset_of_depth(text: str, max_depth: int) -> int:
    depth = 0
    for match in _BRACKET_OR_STRING.finditer(text):
        if match[1]:
            depth += 1
            if depth > max_depth:
                return match.start()
        elif text[match.start()] != '"':
            depth -= 1
    return len(text)
