"""Is a document valid? All findings at once, each with its place, as the document will be served.

`Checker` puts together what every STAC item has to be (shape, the compiled schemas, geometry, dates) and what its
project's vocabulary asks (domain/rules). Pure: schemas are compiled and snapshots read by the caller.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from functools import lru_cache
from itertools import islice
from typing import Any, Final

import jsonschema_rs
import orjson

from fedstac.domain import documents, geometry, stac_versions
from fedstac.domain.errors import Finding, Severity, StacInvalid, errors_in, pointer
from fedstac.domain.identifiers import LONGEST_ID, fault_of_id, fault_of_new_id
from fedstac.domain.model import Draft, Judge, Record, moment
from fedstac.domain.rules import CHECKS, RULES
from fedstac.domain.rules.links import check_addresses
from fedstac.domain.vocabulary import DatasetName, Vocabulary, name_of

MOST_FINDINGS: Final = 100  # of one kind and document: a body of 64 MiB can hold millions of faults
DATES: Final = ("datetime", "start_datetime", "end_datetime")
SHAPE: Final[tuple[tuple[str, type, str], ...]] = (
    ("type", str, 'the string "Feature"'),
    ("stac_version", str, 'a string, "1.1.0"'),
    ("id", str, "a string"),
    ("properties", dict, "an object"),
    ("links", list, "an array"),
    ("assets", dict, "an object"),
)
SCHEMAS: Final = ("stac-core", "file", "alternate-assets")  # the rules of the parts of a project's item schema
BY_ID: Final = "id-agrees-with-properties"
OF_VALUE: Final = frozenset(("term", "pattern", "type"))  # rules of a property's value by itself
COLLECTION_LINK: Final = {"rel": "collection", "href": "../", "type": "application/json"}  # added when it is served


@dataclass(frozen=True, slots=True)
class Checker:
    """The rules with their compiled schemas; one per process, which threads share."""

    core: jsonschema_rs.Validator  # of a STAC item
    item: jsonschema_rs.Validator  # and with the file and alternate-assets extensions: an allOf in the order of SCHEMAS

    def draft(
        self, document: object, collection: str, vocabulary: Vocabulary | None
    ) -> tuple[Draft, tuple[Finding, ...]]:
        """Return the document made ready for `collection`, and its findings.

        StacInvalid, with all findings, where one is an error of a fixed rule. Errors of other rules come back with the
        draft: whether they refuse it depends on what is stored (see `excuse`).
        """
        document, changes = stac_versions.upgraded(document)
        findings = (*changes, *_of_new(document), *(lasting := self.lasting(document, collection, vocabulary)))
        if not any(is_fixed(finding) for finding in errors_in(lasting)):
            assert isinstance(document, dict)
            name = name_of(collection, document["id"], vocabulary)
            assert isinstance(name, DatasetName)
            return documents.prepare(document, name, vocabulary), findings
        raise refusal(document, findings)

    def findings(self, document: object, collection: str, vocabulary: Vocabulary | None) -> tuple[Finding, ...]:
        """Return all findings of a document, in the order of the rules; the same for the same version."""
        document, changes = stac_versions.upgraded(document)
        return merged_for_people((*changes, *_of_new(document), *self.lasting(document, collection, vocabulary)))

    def lasting(self, document: object, collection: str, vocabulary: Vocabulary | None) -> tuple[Finding, ...]:
        """Return the findings, less those that refuse new datasets only: nodes judge each other's datasets by these."""
        findings = tuple(islice(_shape(document, collection), MOST_FINDINGS))
        if findings or not isinstance(document, dict):
            return findings
        findings = (
            *islice(_general(document, vocabulary), MOST_FINDINGS),
            *islice(self._schema(document, vocabulary), MOST_FINDINGS),
        )
        if vocabulary is not None:
            for check in CHECKS:
                findings += tuple(islice(check(document, vocabulary), MOST_FINDINGS))
        findings += documents.warn_of_server_members(document) + documents.refuse_level(document)
        if not findings:
            return findings
        return tuple(dict.fromkeys(_with_severities(findings, vocabulary)))

    def findings_of_stored(self, text: str, collection: str, vocabulary: Vocabulary | None) -> tuple[Finding, ...]:
        """Return the findings of a document that is stored here, by a version that may be newer than its own."""
        document = orjson.loads(text)
        return (*_of_new(document), *self.lasting(document, collection, vocabulary))

    def _schema(self, document: Mapping[str, Any], vocabulary: Vocabulary | None) -> Iterator[Finding]:
        schema = self.core if vocabulary is None else self.item
        as_served = _as_served(document)
        if schema.is_valid(as_served):
            return
        for error in schema.iter_errors(as_served):
            part = error.evaluation_path[1] if vocabulary is not None else 0
            rule = SCHEMAS[part if isinstance(part, int) else 0]
            for cause in _causes(error):
                yield Finding(rule, pointer(*cause.instance_path), _message(cause))


def _as_served(document: Mapping[str, Any]) -> dict[str, Any]:
    """Return the document with the server's members in place of those that were sent; links keep their places."""
    links = [COLLECTION_LINK if documents.is_of_the_server(link) else link for link in document["links"]]
    properties = dict(document["properties"])
    for name in documents.SERVER_PROPERTIES:
        properties.pop(name, None)
    version = {"stac_version": stac_versions.CURRENT}  # the rule stac-version speaks of it
    return {**document, **version, "links": [*links, COLLECTION_LINK], "properties": properties}


def is_fixed(finding: Finding) -> bool:
    """Tell whether the finding's rule is one that everything else relies on; no stored document excuses it."""
    rule = RULES.get(finding.rule)
    return rule is not None and rule.fixed


def excuse(
    errors: Sequence[Finding], record: Record, vocabulary: Vocabulary | None, judge: Judge
) -> tuple[Finding, ...]:
    """Return the errors of a new document as warnings. StacInvalid where the stored one does not have them all.

    An old dataset must not freeze when terms move.
    """
    if not errors:
        return ()
    findings = excused(errors, judge.findings_of_stored(record.document or "", record.collection, vocabulary))
    if errors_in(findings):
        raise refusal_of(record.id, findings)
    return tuple(finding for finding in findings if finding.severity is Severity.WARNING)


def excused(errors: Sequence[Finding], stored_findings: Sequence[Finding]) -> tuple[Finding, ...]:
    """Return the errors, as warnings those which are among the findings of the stored document too."""
    old = {(finding.rule, finding.pointer, finding.message) for finding in stored_findings}
    return tuple(
        replace(finding, severity=Severity.WARNING)
        if (finding.rule, finding.pointer, finding.message) in old
        else finding
        for finding in errors
    )


def excusal(warnings: Sequence[Finding]) -> str | None:
    """Return what a record keeps of excused errors: JSON text, [[rule, pointer], …]; None without any."""
    return orjson.dumps([[finding.rule, finding.pointer] for finding in warnings]).decode() if warnings else None


def refusal(document: object, findings: Sequence[Finding]) -> StacInvalid:
    """Return the problem of a document: the first finding in its sentence, all of them beside."""
    name = document.get("id") if isinstance(document, dict) else None
    return refusal_of(name if isinstance(name, str) else None, findings)


def merged_for_people(findings: Sequence[Finding]) -> tuple[Finding, ...]:
    """Return the findings for people: a refused value is not refused again for its difference from the id.

    The one finding says what the id has, where that is another value than the suggestion. Decisions take all findings.
    """
    by_id = {finding.pointer: finding for finding in findings if finding.rule == BY_ID}
    if not by_id:
        return tuple(findings)
    result: list[Finding] = []
    covered_places = set()
    for finding in findings:
        place = next((place for place in by_id if f"{finding.pointer}/".startswith(f"{place}/")), None)
        if place is not None and finding.rule in OF_VALUE and finding.severity is Severity.ERROR:
            covered_places.add(place)
            finding = _naming(finding, by_id[place].suggestion)
        result.append(finding)
    return tuple(finding for finding in result if finding.rule != BY_ID or finding.pointer not in covered_places)


def _naming(finding: Finding, in_id: str | None) -> Finding:
    """Return the finding of a property's value, which also says what the id has."""
    if in_id is None or in_id == finding.suggestion:
        return finding
    joint = "? The" if finding.message.endswith("?") else "; the"
    message = f"{finding.message.removesuffix('?')}{joint} id has `{in_id}`"
    return replace(finding, message=message, suggestion=finding.suggestion or in_id)


def refusal_of(name: str | None, findings: Sequence[Finding]) -> StacInvalid:
    """Return the problem of an item of that name; None where it has no name."""
    findings = merged_for_people(findings)
    errors = errors_in(findings)
    what = f"The item {name[:LONGEST_ID]!r}" if name is not None else "The item"
    more = f" ({len(errors) - 1} more findings)" if len(errors) > 1 else ""
    where = errors[0].pointer or "the document"
    return StacInvalid(f"{what} is not valid: {where}: {errors[0].message}{more}", findings=tuple(findings))


def _with_severities(findings: Sequence[Finding], vocabulary: Vocabulary | None) -> Iterator[Finding]:
    """Yield the findings as the project has their rules: a warning, an error, or off."""
    switched = vocabulary.rules if vocabulary is not None else {}
    for finding in findings:
        if finding.rule not in switched or is_fixed(finding):
            yield finding
        elif (severity := switched[finding.rule]) is not None:
            yield replace(finding, severity=severity)


def _causes(error: jsonschema_rs.ValidationError) -> Iterator[jsonschema_rs.ValidationError]:
    """Yield what the nearest of several alternatives lacks: that none fits helps nobody."""
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


# --- what every item has to be ---


def _shape(document: object, collection: str) -> Iterator[Finding]:
    """Yield the faults that break every other rule."""
    if not isinstance(document, dict):
        yield Finding("shape", "", "a STAC Item is expected, a JSON object")
        return
    for name, kind, description in SHAPE:
        if name not in document:
            yield Finding("shape", "", f"the member `{name}` is missing; it has to be {description}")
        elif not isinstance(document[name], kind):
            yield Finding("shape", f"/{name}", f"`{name}` has to be {description}")
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
            yield Finding("shape", pointer("assets", key), "an asset is an object")


def _general(document: Mapping[str, Any], vocabulary: Vocabulary | None) -> Iterator[Finding]:
    yield from stac_versions.check(document)
    yield from _id(document, vocabulary)
    yield from _geometry(document)
    yield from _dates(document)
    yield from check_addresses(document)


def _of_new(document: object) -> Iterator[Finding]:
    """Yield why a new dataset may not have its id; one that is stored under such an id keeps it."""
    item_id = document.get("id") if isinstance(document, dict) else None
    if isinstance(item_id, str) and (fault := fault_of_new_id(item_id)) and not fault_of_id(item_id):
        yield Finding("id", "/id", fault)


def _id(document: Mapping[str, Any], vocabulary: Vocabulary | None) -> Iterator[Finding]:
    item_id = document["id"]
    if fault := fault_of_id(item_id):
        yield Finding("id", "/id", fault)
        return
    name = name_of(document["collection"], item_id, vocabulary)
    if isinstance(name, Finding):
        yield name


def _geometry(document: Mapping[str, Any]) -> Iterator[Finding]:
    text = orjson.dumps(document["geometry"])
    yield from _of_footprint(text) if len(text) <= geometry.LONGEST_KEPT else _of_geometry(text)
    yield from geometry.check_box(document.get("bbox"))


def _of_geometry(text: bytes) -> tuple[Finding, ...]:
    shape = orjson.loads(text)
    if isinstance(shape, dict) and shape.get("type") == "GeometryCollection":
        message = "STAC does not take collections of geometries; use a Multi… type"
        return (Finding("geometry", "/geometry/type", message),)
    faults = tuple(islice(geometry.check(shape), MOST_FINDINGS))
    return faults if faults or shape is None else (*geometry.beyond(shape), *geometry.complexity(shape))


_of_footprint = lru_cache(maxsize=4096)(_of_geometry)  # a model's datasets share a handful of footprints


def _dates(document: Mapping[str, Any]) -> Iterator[Finding]:
    """Yield dates that are not RFC 3339 in years 1 to 9999, and a start that is after the end."""
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
