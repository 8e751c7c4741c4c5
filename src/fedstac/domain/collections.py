"""Collections: their rules, and what of them is stored."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Final

import jsonschema_rs
import orjson

from fedstac.domain import stac_versions, strict_json
from fedstac.domain.errors import BodyTooLarge, CollectionDoesNotExist, Finding, StacInvalid
from fedstac.domain.identifiers import COLLECTION_ID
from fedstac.domain.patching import JsonPatch, MergePatch
from fedstac.domain.vocabulary import Vocabulary

QUERYABLES = "http://www.opengis.net/def/rel/ogc/1.0/queryables"
SERVER_LINKS = frozenset(("self", "root", "parent", "items", "item", QUERYABLES))
WARNINGS: Final = "fedstac:warnings"  # in the answer to a write only
MOST_BYTES: Final = 4 << 20
NEEDED: Final = frozenset(
    (name,) for name in ("type", "stac_version", "id", "description", "license", "extent", "links")
)


def titled(document: Mapping[str, Any]) -> dict[str, Any]:
    """Return the collection as it is served: its id is its title where it has none."""
    return {"title": document["id"], **document}


def patched(document: Mapping[str, Any], edit: JsonPatch | MergePatch) -> Any:
    """Return a stored collection after a patch of it as it is served. StacInvalid where the patch does not fit.

    In a merge patch, null for a member that a collection needs says nothing.
    """
    if isinstance(edit, MergePatch):
        edit = replace(edit, kept_by_null=NEEDED)
    result = edit.apply(titled(document))
    if isinstance(result, dict) and "title" not in document and result.get("title") == document["id"]:
        result = {name: value for name, value in result.items() if name != "title"}
    text = orjson.dumps(result)
    if len(text) > MOST_BYTES:
        raise BodyTooLarge(f"the patch makes {len(text)} bytes of the collection; {MOST_BYTES} are the most")
    strict_json.parse(text)  # as deep as what is posted, and no deeper
    return result


def fresh(id: str, vocabulary: Vocabulary | None) -> dict[str, Any]:
    """Return the document that a new collection begins with: global and open in time.

    The title is the id, as ESGF's clients look for it.
    """
    about = f"Datasets of the project {vocabulary.title}" if vocabulary else id
    return {
        "type": "Collection", "stac_version": stac_versions.CURRENT, "stac_extensions": [], "id": id, "title": id,
        "description": about, "license": "other",
        "extent": {
            "spatial": {"bbox": [[-180.0, -90.0, 180.0, 90.0]]},
            "temporal": {"interval": [["0001-01-01T00:00:00Z", None]]},
        },
        "links": [],
    }  # fmt: skip


def missing(id: str, contact: str = "") -> CollectionDoesNotExist:
    """Return the problem of a collection that is not here; it names who can create it."""
    ask = contact or "whoever runs this node"
    return CollectionDoesNotExist(
        f"there is no collection {id[:128]!r} here; GET /collections lists those there are. An administrator "
        f"creates others with POST /collections: ask {ask}"
    )


@dataclass(frozen=True, slots=True)
class CheckedCollection:
    """A collection as it is stored, and warnings about what was changed in it."""

    document: dict[str, Any]
    warnings: tuple[Finding, ...]


def check(document: object, schema: jsonschema_rs.Validator, path_name: str | None) -> CheckedCollection:
    """Return the collection less what the server adds to it. StacInvalid with all findings if it is refused.

    A collection of STAC 1.0.0 becomes one of 1.1.0, with warnings.
    """
    if not isinstance(document, dict):
        raise StacInvalid(
            "the body is no JSON object; send a STAC Collection", findings=(Finding("shape", "", "not a JSON object"),)
        )
    collection: dict[str, Any]
    collection, warnings = stac_versions.upgraded(document)
    findings = list(stac_versions.check(collection))
    findings += [
        Finding("stac-core", "".join(f"/{step}" for step in error.instance_path), error.message[:300])
        for error in schema.iter_errors({**collection, "stac_version": stac_versions.CURRENT})
    ]
    name = collection.get("id")
    if not isinstance(name, str) or not COLLECTION_ID.fullmatch(name):
        findings.append(
            Finding("id", "/id", "a collection's id has 1 to 128 letters, digits, dots, hyphens and underscores")
        )
    elif path_name is not None and name != path_name:
        findings.append(Finding("id", "/id", f"{name!r} is not the collection {path_name!r} that is addressed"))
    if findings:
        raise StacInvalid(f"the collection is not valid: {findings[0].message}", findings=tuple(findings))
    result = {name: member for name, member in collection.items() if name != WARNINGS}
    result["links"] = [link for link in collection["links"] if link["rel"] not in SERVER_LINKS]
    return CheckedCollection(result, warnings)
