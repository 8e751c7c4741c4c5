"""Is a document valid? All findings at once, each with its place. Rules are pure; schemas are compiled by the caller.

So far: the shape that everything else relies on, the STAC core schema on the item as it will be served, geometry,
dates, the id template and the project's extensions. The vocabulary's rules (terms, relations) join `RULES`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from functools import lru_cache
from itertools import islice
from typing import Any

import jsonschema_rs

from fedstac.domain import documents, geometry
from fedstac.domain.errors import Finding, StacInvalid, errors_in
from fedstac.domain.model import Draft
from fedstac.domain.vocabulary import FACET, DatasetName, Project, name_of

Rule = Callable[[Mapping[str, Any], Project | None], Iterator[Finding]]

MAX_ID = 512
MOST_FINDINGS = 100  # of one kind and document: a body of 64 MiB can hold millions of faults
ITEM_ID = re.compile(r"(?!\.{1,2}$)[^\x00-\x1f\x7f-\x9f/?#%\s][^\x00-\x1f\x7f-\x9f/?#%]*")  # a step of a URL
DATES = ("datetime", "start_datetime", "end_datetime")
RFC3339 = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?(Z|[+-]\d\d:\d\d)", re.IGNORECASE | re.ASCII)
SHAPE: tuple[tuple[str, type, str], ...] = (
    ("type", str, 'the string "Feature"'),
    ("stac_version", str, 'a string, "1.1.0"'),
    ("id", str, "a string"),
    ("properties", dict, "an object"),
    ("links", list, "an array"),
    ("assets", dict, "an object"),
)


@dataclass(frozen=True, slots=True)
class Checker:
    """The rules with their compiled schema; one per process, shared."""

    item_schema: jsonschema_rs.Validator
    projects: Mapping[str, Project]

    def draft(self, document: object, collection: str) -> tuple[Draft, tuple[Finding, ...]]:
        """The document made ready for `collection`, and warnings. StacInvalid, with all findings, refuses it."""
        findings = [*islice(_shape(document, collection), MOST_FINDINGS)]
        if not findings and isinstance(document, dict):
            project = self.projects.get(collection)
            findings += islice((finding for rule in RULES for finding in rule(document, project)), MOST_FINDINGS)
            findings += islice(self._schema(document), MOST_FINDINGS)
            name = name_of(collection, document["id"], project)
            if isinstance(name, DatasetName) and not errors_in(findings):
                return documents.prepare(document, name, project), (*findings, *documents.replaced(document))
        raise StacInvalid(_summary(document, findings), findings=tuple(dict.fromkeys(findings)))

    def _schema(self, document: Mapping[str, Any]) -> Iterator[Finding]:
        as_served = {**document, "collection": document["collection"], "links": [*document["links"], COLLECTION_LINK]}
        if self.item_schema.is_valid(as_served):
            return
        for error in self.item_schema.iter_errors(as_served):
            for cause in _causes(error):
                pointer = "".join(f"/{str(step).replace('~', '~0').replace('/', '~1')}" for step in cause.instance_path)
                yield Finding("stac-core", pointer, _message(cause))


COLLECTION_LINK = {"rel": "collection", "href": "../", "type": "application/json"}  # the server adds one when serving


def _causes(error: jsonschema_rs.ValidationError) -> Iterator[jsonschema_rs.ValidationError]:
    """Of alternatives, what the nearest one lacks: that none fits says nothing to anybody."""
    alternatives = getattr(error.kind, "context", None)
    if not alternatives:
        yield error
        return
    for cause in min(alternatives, key=len):
        yield from _causes(cause)


def _message(error: jsonschema_rs.ValidationError) -> str:
    if type(error.kind).__name__ == "Not":
        return "this is not allowed here"
    return error.message if len(error.message) < 300 else f"{error.message[:120]} … {error.message[-120:]}"


def _summary(document: object, findings: list[Finding]) -> str:
    name = document.get("id") if isinstance(document, dict) else None
    what = f"The item {str(name)[:MAX_ID]!r}" if isinstance(name, str) else "The item"
    first = errors_in(findings)[0]
    more = f" ({len(errors_in(findings)) - 1} more findings)" if len(errors_in(findings)) > 1 else ""
    return f"{what} is not valid: {first.pointer or 'the document'}: {first.message}{more}"


def _shape(document: object, collection: str) -> Iterator[Finding]:
    """What every other rule takes for granted."""
    if not isinstance(document, dict):
        yield Finding("shape", "", "a STAC Item is expected, a JSON object")
        return
    for name, kind, wanted in SHAPE:
        if name not in document:
            yield Finding("shape", "", f"the member `{name}` is missing; it has to be {wanted}")
        elif not isinstance(document[name], kind):
            yield Finding("shape", f"/{name}", f"`{name}` has to be {wanted}")
    if document.get("type", "Feature") != "Feature":
        yield Finding("shape", "/type", f'{document["type"]!r} is not "Feature"')
    if "geometry" not in document:
        yield Finding("shape", "", "the member `geometry` is missing; use null where there is none")
    if document.get("collection") != collection:
        message = f"{document.get('collection')!r} is not the collection {collection!r} that it was sent to"
        yield Finding("collection", "/collection", message)
    yield from _shape_of_members(document)


def _shape_of_members(document: Mapping[str, Any]) -> Iterator[Finding]:
    links, assets = document.get("links"), document.get("assets")
    for n, link in enumerate(links if isinstance(links, list) else ()):
        if not (isinstance(link, dict) and isinstance(link.get("rel"), str) and isinstance(link.get("href"), str)):
            yield Finding("shape", f"/links/{n}", "a link needs `rel` and `href`, both strings")
    for key, asset in assets.items() if isinstance(assets, dict) else ():
        if not isinstance(asset, dict):
            yield Finding("shape", f"/assets/{key.replace('~', '~0').replace('/', '~1')}", "an asset is an object")


def _id(document: Mapping[str, Any], project: Project | None) -> Iterator[Finding]:
    item_id = document["id"]
    if len(item_id) > MAX_ID or not ITEM_ID.fullmatch(item_id):
        yield Finding("id", "/id", f"an id has 1 to {MAX_ID} characters, none of them a control character, / ? # or %")
        return
    name = name_of(document["collection"], item_id, project)
    if isinstance(name, Finding):
        yield name


def _identity(document: Mapping[str, Any], project: Project | None) -> Iterator[Finding]:
    """The facets in the id are those of the properties: permission goes by the one, the lineage by the other."""
    match = _id_with_facets(project.id_template).fullmatch(document["id"]) if project else None
    if project is None or match is None:  # the latter is said elsewhere
        return
    properties = document["properties"]
    for name, value in zip(FACET.findall(project.id_template), match.groups(), strict=True):
        stated = properties.get(name, value if name == "version" else None)
        if stated != value and not (isinstance(stated, list) and value in stated):
            message = f"{name} is {str(stated)[:80]!r}, and {value!r} in the id" if stated else f"{name} is missing"
            yield Finding("id-facets", f"/properties/{name}", message, suggestion=value)


@lru_cache
def _id_with_facets(template: str) -> re.Pattern[str]:
    literals = FACET.split(template)[0::2]
    return re.compile("([A-Za-z0-9-]+)".join(re.escape(literal) for literal in literals))


def _geometry(document: Mapping[str, Any], project: Project | None) -> Iterator[Finding]:
    shape = document["geometry"]
    if isinstance(shape, dict) and shape.get("type") == "GeometryCollection":
        yield Finding("geometry", "/geometry/type", "STAC does not take collections of geometries; use a Multi… type")
        return
    yield from geometry.check(shape)


def _dates(document: Mapping[str, Any], project: Project | None) -> Iterator[Finding]:
    """RFC 3339 in years 1 to 9999, and a start that is not after the end."""
    moments: dict[str, datetime] = {}
    properties = document["properties"]
    for name in DATES:
        value = properties.get(name)
        if value is None:
            continue
        instant = moment(value)
        if instant is None:
            yield Finding("datetime", f"/properties/{name}", f"{str(value)[:64]!r} is no date and time as in RFC 3339")
        else:
            moments[name] = instant
    start, end = moments.get("start_datetime"), moments.get("end_datetime")
    if start and end and start > end:
        yield Finding("datetime", "/properties/start_datetime", "start_datetime is after end_datetime")
    if "datetime" not in properties:
        yield Finding(
            "datetime", "/properties", "`datetime` is missing; use null beside start_datetime and end_datetime"
        )
    elif properties["datetime"] is None and not (properties.get("start_datetime") and properties.get("end_datetime")):
        yield Finding("datetime", "/properties", "`datetime` is null: start_datetime and end_datetime are needed")


def moment(value: object) -> datetime | None:
    """A date and time as in RFC 3339, years 1 to 9999; None where it is none."""
    if not isinstance(value, str) or not RFC3339.fullmatch(value):
        return None
    try:
        return datetime.fromisoformat(value.upper())
    except ValueError:
        return None


def _extensions(document: Mapping[str, Any], project: Project | None) -> Iterator[Finding]:
    """Only the project's extensions; a URI is compared, never fetched."""
    if project is None:
        return
    uris = document.get("stac_extensions") or ()
    for n, uri in enumerate(uris if isinstance(uris, list) else ()):
        if not str(uri).startswith(project.extensions):
            accepted = ", ".join(project.extensions)
            yield Finding("extension", f"/stac_extensions/{n}",
                          f"{str(uri)[:200]!r} is not accepted by {project.name}; accepted are {accepted}")  # fmt: skip


RULES: tuple[Rule, ...] = (_id, _identity, _geometry, _dates, _extensions)
