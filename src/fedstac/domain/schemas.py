"""A project's STAC extension as JSON Schema (draft-07), made from a snapshot of its vocabulary.

It says of an item, as it is served, what a schema can say: the id's form; properties, members of assets and links that
have to be there, and their types, terms and patterns; the extensions that have to be declared, and that no others are.
What ties values together (relations, compositions, sums, the id against the properties) is domain/rules's alone.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any, Final

from fedstac.domain.documents import OUR_EXTENSION
from fedstac.domain.strict_json import EXACT
from fedstac.domain.vocabulary import ANY_RELATION, MOST_CHECKED, Extension, Kind, LinkRule, Property, Vocabulary

Schema = dict[str, Any]

DRAFT: Final = "http://json-schema.org/draft-07/schema#"
SPECIAL: Final = re.compile(r"[\\^$.*+?()\[\]{}|/]")  # of ECMA 262's patterns
MOST_OF_ID: Final = 512  # characters
SERVED: Final[Mapping[str, Schema]] = {  # what the server sets itself, in every item that it serves
    "created": {"$ref": "#/definitions/moment"},
    "latest": {"type": "boolean"},
    "retracted": {"type": "boolean"},
    "updated": {"$ref": "#/definitions/moment"},
}
MOMENT: Final[Schema] = {
    "type": "string",
    "format": "date-time",
    "pattern": r"^(000[1-9]|00[1-9][0-9]|0[1-9][0-9]{2}|[1-9][0-9]{3})-[0-9]{2}-[0-9]{2}[Tt]"
    r"[0-9]{2}:[0-9]{2}:[0-5][0-9](\.[0-9]+)?([Zz]|[+-][0-9]{2}:[0-9]{2})$",  # no year 0, no leap second
}


def schema_of(vocabulary: Vocabulary) -> Schema:
    """Return the schema; of the same snapshot always the same, members and all. It refers to nothing outside of itself.

    `$id` is relative: the schema's name is the address at which it is served.
    """
    required = [name for name in vocabulary.properties if vocabulary.properties[name].required]
    prefixed = sorted(name for name in vocabulary.properties if name.startswith(vocabulary.prefix + ":"))
    return {
        "$schema": DRAFT,
        "$id": "schema.json",
        "title": f"{vocabulary.title} extension, vocabulary {vocabulary.version}",
        "description": f"What {vocabulary.project} asks of an item, by snapshot sha-256 {vocabulary.digest}.",
        "type": "object",
        "required": ["type", "stac_extensions", "id", "collection", "properties", "links", "assets"],
        "properties": {
            "type": {"const": "Feature"},
            "stac_extensions": _extensions(vocabulary.extensions),
            "id": {"type": "string", "maxLength": MOST_OF_ID, "pattern": _id_pattern(vocabulary)},
            "collection": {"const": vocabulary.project},
            "properties": {
                "type": "object",
                "required": sorted({*SERVED, *required}),
                "propertyNames": {"if": {"pattern": f"^{_escaped(vocabulary.prefix)}:"}, "then": {"enum": prefixed}},
                "properties": {**_members(vocabulary.properties), **SERVED},
            },
            "links": _links(vocabulary.links),
            "assets": {
                "type": "object",
                "additionalProperties": {
                    "type": "object",
                    "required": sorted(name for name, demand in vocabulary.assets.items() if demand.required),
                    "properties": _members(vocabulary.assets),
                },
            },
        },
        "definitions": {
            "moment": MOMENT,
            **{f"terms-{name}": {"enum": sorted(vocabulary.terms[name])} for name in _in_use(vocabulary)},
        },
    }


def _escaped(literal: str) -> str:
    return SPECIAL.sub(r"\\\g<0>", literal)


def _id_pattern(vocabulary: Vocabulary) -> str:
    """Return Vocabulary.id_pattern in the syntax of ECMA 262."""
    ids = vocabulary.id_template
    parts = [_escaped(ids.literals[0])]
    for name, literal in zip(ids.names, ids.literals[1:], strict=True):
        parts += ("[0-9]{8}" if name == "version" else "[A-Za-z0-9-]+", _escaped(literal))
    return f"^{''.join(parts)}$"


def _extensions(extensions: Iterable[Extension]) -> Schema:
    uris = [uri for extension in extensions for uri in extension.uris]
    ours = {"pattern": _escaped(OUR_EXTENSION)}
    required = [{"contains": {"enum": list(extension.uris)}} for extension in extensions if extension.required]
    schema = {"type": "array", "uniqueItems": True, "items": {"type": "string", "anyOf": [{"enum": uris}, ours]}}
    return schema | ({"allOf": required} if required else {})


def _in_use(vocabulary: Vocabulary) -> list[str]:
    demands = (*vocabulary.properties.values(), *vocabulary.assets.values())
    return sorted({one.vocabulary for one in demands if one.vocabulary is not None})


def _members(demands: Mapping[str, Property]) -> dict[str, Schema]:
    return {name: _value(demands[name]) for name in sorted(demands)}


def _value(demand: Property) -> Schema:
    match demand.kind:
        case Kind.STRING:
            return {"type": "string"} | _values(demand)
        case Kind.STRINGS:
            entries = {"type": "string"} | _values(demand)
            return {"type": "array", "minItems": 1, "uniqueItems": True, "items": entries}
        case Kind.INTEGER | Kind.NUMBER:
            least = {} if demand.minimum is None else {"minimum": _plain(demand.minimum)}
            most = {"maximum": EXACT} if demand.kind is Kind.INTEGER else {}
            return {"type": demand.kind.value} | least | most
        case Kind.BOOLEAN:
            return {"type": "boolean"}
        case Kind.DATETIME:
            return {"$ref": "#/definitions/moment"}


def _plain(number: float) -> float:
    return int(number) if number.is_integer() else number


def _values(demand: Property) -> Schema:
    """Return the schema of the values that Property.takes."""
    terms = {"$ref": f"#/definitions/terms-{demand.vocabulary}"} if demand.vocabulary is not None else None
    form = {"maxLength": MOST_CHECKED, "pattern": demand.pattern.text} if demand.pattern is not None else None
    if terms is not None and form is not None:
        return {"anyOf": [terms, form]}
    # beside a $ref nothing counts in draft-07
    return {"allOf": [terms]} if terms is not None else form or {}


def _links(rules: Iterable[LinkRule]) -> Schema:
    links: Schema = {"type": "array"}
    required = [{"contains": _has_rel(rule.rel)} for rule in rules if rule.required]
    conditions = [
        {"properties": _link(rule)}
        if rule.rel == ANY_RELATION
        else {"if": _has_rel(rule.rel), "then": {"properties": _link(rule)}}
        for rule in rules
    ]
    if conditions:
        links["items"] = {"allOf": conditions}
    return links | ({"allOf": required} if required else {})


def _has_rel(rel: str) -> Schema:
    return {"type": "object", "required": ["rel"], "properties": {"rel": {"const": rel}}}


def _link(rule: LinkRule) -> Schema:
    members: Schema = {}
    for name, value in (("type", rule.type), ("title", rule.title)):
        if value is not None:
            members[name] = {"const": value}
    if rule.pattern is not None:
        members["href"] = {"maxLength": MOST_CHECKED, "pattern": rule.pattern.text}
    return members
