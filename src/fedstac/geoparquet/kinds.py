"""Kinds: which type of a Parquet column holds a JSON value, found by looking at all of them.

A value that fits no common type is kept as JSON text: one document's odd property costs the others nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Final, TypeAlias, cast

import orjson
import pyarrow as pa

MOST_MEMBERS: Final = 50  # of an object; more make it a map, as the assets that are named by their files
DEEPEST: Final = 10
LARGEST_INTEGER: Final = 2**63 - 1
LARGEST_WHOLE: Final = 2**53  # from there on a double skips integers


class Scalar(StrEnum):
    """A kind without parts. NULL: no value was seen yet. LARGE: integers that no double has. JSON: a text of JSON."""

    NULL = "null"
    BOOLEAN = "boolean"
    INTEGER = "integer"
    LARGE = "large"
    NUMBER = "number"
    TEXT = "text"
    JSON = "json"


@dataclass(frozen=True, slots=True)
class ListOf:
    """The kind of a list."""

    member: Kind


@dataclass(frozen=True, slots=True)
class ObjectOf:
    """The kind of an object: its members' kinds by name."""

    members: Mapping[str, Kind]


@dataclass(frozen=True, slots=True)
class MapOf:
    """The kind of an object of many names, whose values are of one kind."""

    value: Kind


Kind: TypeAlias = Scalar | ListOf | ObjectOf | MapOf
INTEGERS: Final = (Scalar.INTEGER, Scalar.LARGE)
NUMBERS: Final = (Scalar.INTEGER, Scalar.NUMBER)


def infer(value: object, depth: int = 0) -> Kind:
    """Return the kind of one JSON value."""
    match value:
        case None:
            return Scalar.NULL
        case str():
            return Scalar.TEXT
        case bool():
            return Scalar.BOOLEAN
        case int():
            if abs(value) <= LARGEST_WHOLE:
                return Scalar.INTEGER
            return Scalar.LARGE if abs(value) <= LARGEST_INTEGER else Scalar.JSON
        case float():
            return Scalar.NUMBER
        case list() if depth < DEEPEST:
            member: Kind = Scalar.NULL
            for each in value:
                member = merge(member, infer(each, depth + 1))
            return ListOf(member)
        case dict() if depth < DEEPEST:
            return _object_of({name: infer(each, depth + 1) for name, each in value.items()})
        case _:  # too deep
            return Scalar.JSON


def _object_of(members: Mapping[str, Kind]) -> Kind:
    if len(members) <= MOST_MEMBERS:
        return ObjectOf(members)
    return _map_of(members)


def _map_of(members: Mapping[str, Kind]) -> Kind:
    value: Kind = Scalar.NULL
    for kind in members.values():
        value = merge(value, kind)
    return value if value is Scalar.JSON else MapOf(value)


def merge(one: Kind, other: Kind) -> Kind:
    """Return the kind that holds values of both."""
    if one == other or other is Scalar.NULL:
        return one
    if one is Scalar.NULL:
        return other
    if one in NUMBERS and other in NUMBERS:
        return Scalar.NUMBER
    if one in INTEGERS and other in INTEGERS:
        return Scalar.LARGE
    if isinstance(one, ListOf) and isinstance(other, ListOf):
        return ListOf(merge(one.member, other.member))
    if isinstance(one, ObjectOf) and isinstance(other, ObjectOf):
        members = dict(one.members)
        for name, kind in other.members.items():
            members[name] = merge(members.get(name, Scalar.NULL), kind)
        return _object_of(members)
    if isinstance(one, MapOf) and isinstance(other, MapOf):
        value = merge(one.value, other.value)
        return value if value is Scalar.JSON else MapOf(value)
    if isinstance(one, MapOf) and isinstance(other, ObjectOf):
        return merge(one, _map_of(other.members))
    if isinstance(one, ObjectOf) and isinstance(other, MapOf):
        return merge(_map_of(one.members), other)
    return Scalar.JSON


def columns_of(kind: Kind) -> int:
    """Count the columns that Parquet makes of a kind."""
    match kind:
        case ListOf():
            return columns_of(kind.member)
        case ObjectOf():
            return sum(map(columns_of, kind.members.values())) or 1
        case MapOf():
            return 1 + columns_of(kind.value)
        case _:
            return 1


def arrow_type(kind: Kind) -> pa.DataType:
    """Return the type of Arrow for a kind."""
    match kind:
        case ListOf():
            return pa.list_(arrow_type(kind.member))
        case MapOf():
            return pa.map_(pa.string(), arrow_type(kind.value))
        case ObjectOf() if kind.members:
            return pa.struct([pa.field(name, arrow_type(each)) for name, each in kind.members.items()])
        case Scalar.NULL:
            return pa.null()
        case Scalar.BOOLEAN:
            return pa.bool_()
        case Scalar.INTEGER | Scalar.LARGE:
            return pa.int64()
        case Scalar.NUMBER:
            return pa.float64()
        case _:
            return pa.string()


def is_plain(kind: Kind) -> bool:
    """Return whether Arrow takes the values as they are, without `fit`."""
    match kind:
        case ListOf():
            return is_plain(kind.member)
        case ObjectOf():  # Parquet has no object without members: it is JSON text
            return bool(kind.members) and all(map(is_plain, kind.members.values()))
        case MapOf():
            return False
        case _:
            return kind is not Scalar.JSON


def fit(value: Any, kind: Kind) -> Any:
    """Return a value as a column of its kind takes it: what is JSON text there is written so."""
    if value is None:
        return None
    match kind:
        case Scalar.JSON:
            return orjson.dumps(value).decode()
        case ListOf():
            return [fit(each, kind.member) for each in cast("list[Any]", value)]
        case MapOf():
            return [(name, fit(each, kind.value)) for name, each in cast("dict[str, Any]", value).items()]
        case ObjectOf() if not kind.members:
            return orjson.dumps(value).decode()
        case ObjectOf():
            return {name: fit(each, kind.members[name]) for name, each in cast("dict[str, Any]", value).items()}
        case _:
            return value
