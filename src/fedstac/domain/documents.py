"""Documents: what a publisher wrote, how it is stored, digested, searched and served (docs/adr/0002).

The stored text has `links` first and `properties` last, so that the server's links and state are spliced in at fixed
places: nothing is parsed on the way out.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from typing import Any, cast

import orjson

from fedstac.domain import geometry
from fedstac.domain.errors import Finding, Severity
from fedstac.domain.model import Draft, Record, SearchCopy, State, rfc3339
from fedstac.domain.vocabulary import DatasetName, Project

Document = Mapping[str, Any]  # a STAC Item as parsed; never mutated

SERVER_LINKS = frozenset(
    ("self", "root", "parent", "collection", "predecessor-version", "successor-version", "latest-version")
)
SERVER_PROPERTIES = frozenset(("latest", "retracted", "created", "updated"))
HEAD, TAIL = '{"links":[', "}}"
ENDLESS_FRACTION = re.compile(r"(\.\d{6})\d+")


def owned(document: Document) -> Document:
    """The document less what the server owns, in the order in which it is stored."""
    properties = {
        name: value
        for name, value in document["properties"].items()
        if name not in SERVER_PROPERTIES and not name.startswith("fedstac:")
    }
    links = [link for link in document["links"] if link["rel"] not in SERVER_LINKS]
    rest = {name: value for name, value in document.items() if name not in ("links", "properties")}
    return {"links": links, **rest, "properties": properties}


def replaced(document: Document) -> tuple[Finding, ...]:
    """Warnings for what a publisher says about members that the server owns."""
    ours = [name for name in document["properties"] if name.startswith("fedstac:")]
    ours += [
        name for name, value in (("latest", True), ("retracted", False))
        if document["properties"].get(name, value) is not value
    ]  # fmt: skip
    return tuple(
        Finding("server-owned", f"/properties/{name}", f"{name} is set by the server; what was sent is replaced",
                Severity.WARNING)
        for name in ours
    )  # fmt: skip


def prepare(document: Document, name: DatasetName, project: Project | None) -> Draft:
    """Everything that follows from a valid document alone. The document is not changed."""
    kept = owned(document)
    properties = cast("Mapping[str, Any]", kept["properties"])
    start, end = _span(properties)
    written = orjson.dumps(properties)
    text = orjson.dumps({name: value for name, value in kept.items() if name != "properties"})
    return Draft(
        collection=document["collection"],
        id=document["id"],
        lineage=name.lineage,
        version=name.version,
        institution=_text(properties.get(project.institution)) if project else None,
        text=b"".join((text[:-1], b',"properties":', written, b"}")).decode(),
        document_digest=digest(kept),
        files_digest=files_digest(document["assets"]),
        search=SearchCopy(
            geometry=geometry.searchable(document["geometry"]),
            start=start,
            end=end,
            properties=written.decode(),
        ),
    )


def packed(draft: Draft) -> str:
    """What `prepare` found out, less the text and the name."""
    search = draft.search
    at = len(draft.text) - 1 - len(search.properties)
    return orjson.dumps([
        draft.institution, draft.document_digest.hex(), draft.files_digest.hex(), search.geometry, search.start,
        search.end, at,
    ]).decode()  # fmt: skip


def unpacked(text: str, prepared: str, collection: str, item_id: str, name: DatasetName) -> Draft:
    """The draft again, without parsing its text."""
    institution, document_digest, files, shape, start, end, at = orjson.loads(prepared)
    search = SearchCopy(geometry=shape, start=start, end=end, properties=text[at:-1])
    return Draft(
        collection, item_id, name.lineage, name.version, institution, text, bytes.fromhex(document_digest),
        bytes.fromhex(files), search,
    )  # fmt: skip


def digest(document: Document) -> bytes:
    """sha-256 of the document with sorted keys."""
    return hashlib.sha256(orjson.dumps(document, option=orjson.OPT_SORT_KEYS)).digest()


def files_digest(assets: Mapping[str, Mapping[str, Any]]) -> bytes:
    """sha-256 of the set of (checksum, size, tracking id): equal if and only if the files are the same."""
    files = {
        (str(asset.get("file:checksum", "")), str(asset.get("file:size", "")), _tracking_id(asset))
        for asset in assets.values()
    } - {("", "", "")}
    return hashlib.sha256(orjson.dumps(sorted(files))).digest()


def _tracking_id(asset: Mapping[str, Any]) -> str:
    for name in asset:
        if name[-12:] == ":tracking_id":
            return str(asset[name])
    return ""


def _span(properties: Mapping[str, Any]) -> tuple[str, str]:
    start = properties.get("start_datetime") or properties.get("datetime")
    end = properties.get("end_datetime") or properties.get("datetime")
    return to_microseconds(str(start)), to_microseconds(str(end))


def to_microseconds(moment: str) -> str:
    """RFC 3339 text cut to what PostgreSQL keeps: it rounds, at the end of 9999 into a year it cannot give back."""
    return ENDLESS_FRACTION.sub(r"\1", moment)


def _text(value: object) -> str | None:
    return value if isinstance(value, str) else None


def state_of(record: Record) -> dict[str, object]:
    """The server-owned properties of a record, as they are served and searched."""
    return {
        "latest": record.latest,
        "retracted": record.state is State.RETRACTED,
        "created": rfc3339(record.created),
        "updated": rfc3339(record.updated),
    }


def served(text: str, *, state: str, links: str) -> str:
    """The stored text with the server's state and links (JSON texts without their brackets) spliced in."""
    first = "," if not text.startswith("]", len(HEAD)) else ""
    comma = "," if not text.endswith("{}}") else ""
    return f"{HEAD}{links}{first}{text[len(HEAD) : -len(TAIL)]}{comma}{state}{TAIL}"
