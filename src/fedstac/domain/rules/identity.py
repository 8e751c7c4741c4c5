"""Rules for the id and what it says: id-agrees-with-properties, version, base-id and pid."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from datetime import date
from typing import Any, Final

from fedstac.domain.errors import Finding, Severity, pointer
from fedstac.domain.identifiers import uuid_of_handle
from fedstac.domain.vocabulary import Vocabulary
from fedstac.domain.wording import brief

Document = Mapping[str, Any]
HANDLE: Final = re.compile(r"hdl:[0-9.]+/[0-9a-fA-F]{8}(-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}")


def check(document: Document, vocabulary: Vocabulary) -> Iterator[Finding]:
    """Yield where the properties differ from the id: permission goes by the properties, the lineage by the id.

    A `base_id` or `title` that follows from the properties is no fault of its own: the property's finding says it.
    """
    match = vocabulary.id_pattern.fullmatch(document["id"])
    if match is None:  # the rule id-template says it
        return
    properties = document["properties"]
    by_properties: str | None = None  # the base id that follows from the properties, where they differ from the id
    for name, value in zip(vocabulary.id_template.names, match.groups(), strict=True):
        stated_value = properties.get(name)
        if stated_value == value or name == "version":
            continue
        if type(stated_value) is list and value in stated_value:
            continue
        demand = vocabulary.properties.get(name)
        if stated_value is None and demand is not None and demand.required and name not in properties:
            continue  # the rule required says it
        message = f"`{name}` is {brief(stated_value)}, and {value!r} in the id"
        suggestion = value if demand is None or demand.takes(value) else None  # the typo may be the id's
        yield Finding("id-agrees-with-properties", pointer("properties", name), message, suggestion=suggestion)
        by_properties = _base_by_properties(document, vocabulary)
    yield from _check_version(document, match.group(match.re.groups))
    if by_properties is None:  # else the handle may be the right one, and the id wrong
        yield from _check_pid(document, vocabulary)
    base = document["id"][: -vocabulary.base_suffix]
    for name, holder, place in (
        ("base_id", properties, "/properties/base_id"),
        ("title", properties, "/properties/title"),
        ("base_id", document, "/base_id"),  # where the published schema of CMIP6 looks for it
    ):
        value = holder.get(name, base)
        if value != base and (by_properties is None or value != by_properties):
            message = f"`{name}` is {brief(value)}; it is the id without its version, {base!r}"
            yield Finding("base-id", place, message, suggestion=base)


def properties_by_id(document: Document, vocabulary: Vocabulary) -> dict[str, Any]:
    """Return the properties, with those that the id holds as they are in the id."""
    match = vocabulary.id_pattern.fullmatch(document["id"])
    facets = zip(vocabulary.id_template.names, match.groups(), strict=True) if match else ()
    return {**document["properties"], **dict(facets)}


def _check_pid(document: Document, vocabulary: Vocabulary) -> Iterator[Finding]:
    name = f"{vocabulary.prefix}:pid"
    value = document["properties"].get(name)
    if not isinstance(value, str) or not HANDLE.fullmatch(value):  # the rule pattern says it
        return
    prefix, _, uuid = value.rpartition("/")
    expected = uuid_of_handle(document["id"])
    if uuid.lower() != expected:
        message = f"`{name}` is {brief(value)}; the handle service derives another one from the id"
        yield Finding("pid", pointer("properties", name), message, Severity.WARNING, suggestion=f"{prefix}/{expected}")


def _base_by_properties(document: Document, vocabulary: Vocabulary) -> str:
    """Return the id without its version, as the properties fill its template; "" where a property is no text."""
    properties = {**document["properties"], "version": document["id"][-8:]}
    return (vocabulary.id_template.fill(properties) or "")[: -vocabulary.base_suffix]


def _check_version(document: Document, version: str) -> Iterator[Finding]:
    for holder, place in ((document["properties"], "/properties/version"), (document, "/version")):
        value = holder.get("version", version)
        if value != version:
            message = f"`version` is {brief(value)}, and {version!r} in the id"
            yield Finding("version", place, message, suggestion=version)
    try:
        date(int(version[:4]), int(version[4:6]), int(version[6:]))
    except ValueError:
        yield Finding("version", "/id", f"the version {version!r} is no date of the calendar (YYYYMMDD)")
