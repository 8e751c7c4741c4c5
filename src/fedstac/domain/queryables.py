"""Queryables: the properties that filters and orders may name, as JSON Schemas (OGC API Features, Part 3).

Any other name may be used too: a dataset may have properties that nobody declared. A name that nothing is known of is
answered with a warning, because it is mostly misspelt.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from fedstac.domain.facets import NODES
from fedstac.domain.model import State
from fedstac.domain.vocabulary import Kind, Property, Vocabulary
from fedstac.domain.wording import nearest

Schema = Mapping[str, Any]
Schemas = Mapping[str, Schema]  # of properties, by name

MOMENT: Schema = {"type": "string", "format": "date-time"}
BOOLEAN: Schema = {"type": "boolean"}
TEXT: Schema = {"type": "string"}
OF_EVERY_DATASET: Schemas = {
    "id": {"title": "Id", **TEXT},
    "collection": {"title": "Collection", **TEXT},
    "geometry": {"title": "Footprint", "format": "geometry-any"},
    "datetime": {"title": "Date and time, or start", **MOMENT},
    "start_datetime": {"title": "Start", **MOMENT},
    "end_datetime": {"title": "End", **MOMENT},
    "title": {"title": "Title", **TEXT},
    "created": {"title": "Stored here at", **MOMENT},
    "updated": {"title": "Changed here at", **MOMENT},
    "latest": {"title": "Is the latest version", **BOOLEAN},
    "retracted": {"title": "Is retracted", **BOOLEAN},
    NODES: {"title": "Nodes with files", "type": "array", "items": TEXT},
    "fedstac:state": {"title": "State", **TEXT, "enum": [State.PUBLISHED.value, State.RETRACTED.value]},
}
OF_EVERY_PROJECT: Schemas = {
    "version": {"title": "Version", **TEXT, "pattern": "^[0-9]{8}$"},
    "base_id": {"title": "Id without the version", **TEXT},
    "size": {"title": "Bytes of all files", "type": "integer", "minimum": 0},
    "access": {"title": "Ways to the files", "type": "array", "items": TEXT},
    "fedstac:cv_version": {"title": "Version of the vocabulary that judged it", **TEXT},
}
OF_EVERY_COLLECTION: Schemas = {
    "id": {"title": "Id", **TEXT},
    "title": {"title": "Title", **TEXT},
    "description": {"title": "Description", **TEXT},
    "keywords": {"title": "Keywords", "type": "array", "items": TEXT},
    "license": {"title": "Licence", **TEXT},
    "geometry": {"title": "Spatial extent", "format": "geometry-any"},
    "datetime": {"title": "Begin of the temporal extent", **MOMENT},
    "end_datetime": {"title": "End of the temporal extent", **MOMENT},
    "updated": {"title": "Changed here at", **MOMENT},
}
ANSWERED_ONLY: Schemas = {  # served with a dataset, and not searched
    "fedstac:cv_version": OF_EVERY_PROJECT["fedstac:cv_version"],
    "fedstac:retraction": {"title": "Why it is retracted", "type": "object"},
    "fedstac:replicas": {"title": "Other places of its files", "type": "object"},
}
JSON_TYPES = ("string", "number", "boolean", "array", "object")  # and null, which says nothing


def declared_by(vocabulary: Vocabulary | None) -> Schemas:
    """Return the properties that every dataset of a collection may have, with the terms of its project."""
    if vocabulary is None:
        return OF_EVERY_DATASET
    own = {name: {"title": title(name), **schema_of(each)} for name, each in vocabulary.properties.items()}
    return {**OF_EVERY_DATASET, **OF_EVERY_PROJECT, **own}


def title(name: str) -> str:
    """Return a name for people: `cmip6:source_id` is Source id."""
    words = name.rpartition(":")[2].replace("_", " ").strip() or name
    return words[:1].upper() + words[1:]


def schema_of(demand: Property) -> Schema:
    """Return the schema of a vocabulary's property."""
    match demand.kind:
        case Kind.STRING:
            return {"type": "string", **_texts(demand)}
        case Kind.STRINGS:
            return {"type": "array", "items": {"type": "string", **_texts(demand)}}
        case Kind.DATETIME:
            return MOMENT
        case Kind.BOOLEAN:
            return BOOLEAN
        case Kind.INTEGER | Kind.NUMBER:
            return {"type": demand.kind.value, **({} if demand.minimum is None else {"minimum": demand.minimum})}


def _texts(demand: Property) -> Schema:
    terms: Schema = {} if demand.terms is None else {"enum": sorted(demand.terms)}
    form: Schema = {} if demand.pattern is None else {"pattern": demand.pattern.text}
    return {"anyOf": [terms, form]} if terms and form else {**terms, **form}


def schema_of_sample(types: Iterable[str], member_types: Iterable[str], *, moments: bool) -> Schema:
    """Return the schema of a property from a sample of its values: their JSON types, and those of list members."""
    own = [name for name in JSON_TYPES if name in set(types)]
    schema: dict[str, Any] = {"type": own[0] if len(own) == 1 else own} if own else {}
    if own == ["string"] and moments:
        return MOMENT
    members = [name for name in JSON_TYPES if name in set(member_types)]
    if "array" in own and members:
        schema["items"] = {"type": members[0] if len(members) == 1 else members}
    return schema


def common_to(declarations: Sequence[Schemas]) -> Schemas:
    """Return the properties that all collections have. Where they differ in their terms, the terms of all count."""
    first, *others = declarations or [OF_EVERY_DATASET]
    return {
        name: _wider([each[name] for each in declarations]) if others else schema
        for name, schema in first.items() if all(name in each for each in others)
    }  # fmt: skip


def _wider(schemas: Sequence[Schema]) -> Schema:
    first = schemas[0]
    if all(schema == first for schema in schemas):
        return first
    common = {key: value for key, value in first.items() if all(schema.get(key) == value for schema in schemas)}
    if all("enum" in schema for schema in schemas):
        common["enum"] = sorted({term for schema in schemas for term in schema["enum"]})
    return common


def has(schemas: Schemas, name: str) -> bool:
    """Tell whether a property, or the object that a dotted name begins with, is among those."""
    return name in schemas or name.partition(".")[0] in schemas


def with_prefix(schemas: Schemas, name: str) -> str | None:
    """Return the only property that has this name after its prefix; None where there is none or more than one."""
    names = [full for full in schemas if full.rpartition(":")[2] == name]
    return names[0] if len(names) == 1 and name else None


def without_prefix(name: str) -> str | None:
    """Return a property that every dataset has and that was named with a prefix, as in `cmip6:retracted`; else None."""
    _, prefix, local = name.rpartition(":")
    return local if prefix and local in {**OF_EVERY_DATASET, **OF_EVERY_PROJECT} else None


def nearest_name(schemas: Iterable[str], name: str) -> str | None:
    """Return the property whose name is most like a misspelt one, with its prefix or without."""
    names = sorted(schemas)
    local = {full.rpartition(":")[2]: full for full in reversed(names)}
    without = nearest(name.rpartition(":")[2], local)
    return nearest(name, names) or (local[without] if without else None)
