"""Rules for properties by themselves: required, unknown, type, term and pattern."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final

from fedstac.domain.documents import SERVER_PROPERTIES
from fedstac.domain.errors import Finding, pointer
from fedstac.domain.model import moment
from fedstac.domain.vocabulary import Kind, Property, Vocabulary
from fedstac.domain.wording import asking, brief, nearest

KINDS: Final[Mapping[Kind, tuple[tuple[type, ...], str]]] = {
    Kind.STRING: ((str,), "a string"),
    Kind.STRINGS: ((list,), "a list of strings"),
    Kind.INTEGER: ((int,), "a whole number"),
    Kind.NUMBER: ((int, float), "a number"),
    Kind.BOOLEAN: ((bool,), "true or false"),
    Kind.DATETIME: ((str,), "a date and time as in RFC 3339"),
}


def check(document: Mapping[str, Any], vocabulary: Vocabulary) -> Iterator[Finding]:
    """Yield the faults of each property that the project asks for, and of each that has its prefix and no place."""
    properties = document["properties"]
    for name, demand in vocabulary.properties.items():
        value = properties.get(name)
        if demand.is_met_by(value):
            continue
        if value is None and name not in properties:
            if demand.required:
                yield Finding("required", "/properties", f"{vocabulary.project} needs the property `{name}`")
            continue
        if name not in SERVER_PROPERTIES and not is_date(demand, value):
            yield from check_value(demand, value, pointer("properties", name), vocabulary)
    prefix = vocabulary.prefix + ":"
    others = properties.keys() - vocabulary.properties.keys()
    if not any(name.startswith(prefix) for name in others):
        return
    for name in properties:
        if name.startswith(prefix) and name in others:
            suggestion = nearest(name, vocabulary.properties)
            message = asking(f"{vocabulary.project} knows no property `{name[:80]}`", suggestion)
            yield Finding("unknown", pointer("properties", name), message, suggestion=suggestion)


def is_date(demand: Property, value: object) -> bool:
    """Tell whether a value is the date and time that is asked for: most that `is_met_by` does not know are."""
    return demand.kind is Kind.DATETIME and moment(value) is not None


def check_value(demand: Property, value: object, place: str, vocabulary: Vocabulary) -> Iterator[Finding]:
    """Yield the faults of one property's value, or of one member of an asset. `place` is its JSON pointer."""
    kinds, description = KINDS[demand.kind]
    if type(value) not in kinds or (demand.kind is Kind.DATETIME and moment(value) is None):
        yield Finding("type", place, f"`{demand.name}` has to be {description}, not {brief(value)}")
        return
    if demand.kind in (Kind.INTEGER, Kind.NUMBER):
        if demand.minimum is not None and value < demand.minimum:  # type: ignore[operator]
            yield Finding("type", place, f"`{demand.name}` has to be {demand.minimum:g} or more, not {brief(value)}")
    elif demand.kind is Kind.STRING:
        yield from _check_text(demand, str(value), place, vocabulary)
    elif isinstance(value, list):
        if not value:
            yield Finding("type", place, f"`{demand.name}` has to list one value at least")
        for n, entry in enumerate(value):
            if type(entry) is not str:
                yield Finding("type", f"{place}/{n}", f"`{demand.name}` lists strings, not {brief(entry)}")
            elif entry in value[:n]:
                yield Finding("type", f"{place}/{n}", f"`{demand.name}` lists {brief(entry)} twice")
            else:
                yield from _check_text(demand, entry, f"{place}/{n}", vocabulary)


def are_valid(names: Sequence[str], properties: Mapping[str, Any], vocabulary: Vocabulary) -> bool:
    """Tell whether the value of each of the named properties is one that the property takes."""
    for name in names:
        demand, value = vocabulary.properties.get(name), properties.get(name)
        if demand is None or value is None:
            continue
        if any(check_value(demand, value, "", vocabulary)):
            return False
    return True


def _check_text(demand: Property, value: str, place: str, vocabulary: Vocabulary) -> Iterator[Finding]:
    if demand.takes(value):
        return
    short = demand.name.rpartition(":")[2]
    if demand.terms is not None:
        suggestion = nearest(value, demand.terms)
        rule = "protocol" if demand.name == "protocol" else "term"
        message = asking(f"{vocabulary.project} has no {short} `{value[:80]}`", suggestion)
        yield Finding(rule, place, message, suggestion=suggestion)
    elif demand.pattern is not None:
        message = f"`{demand.name}` is {brief(value)}, which is not of the form {demand.pattern.text}"
        yield Finding("pattern", place, message)
