"""Documents: how a publisher's item is stored, digested, searched and served (docs/adr/0002).

The stored text has `stac_extensions` and `links` first and `properties` last, so that the server's extension, links and
state are spliced in: nothing is parsed on the way out.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime
from typing import Any, NamedTuple, Protocol, cast

import orjson

from fedstac.domain import facets, geometry
from fedstac.domain.errors import Finding, Severity
from fedstac.domain.model import Draft, Record, SearchCopy, rfc3339
from fedstac.domain.policy import Level
from fedstac.domain.vocabulary import DatasetName, Vocabulary

Document = Mapping[str, Any]  # a STAC Item as parsed; never mutated

SERVER_LINKS = frozenset(
    ("self", "root", "parent", "collection", "predecessor-version", "successor-version", "latest-version")
)
SERVER_PROPERTIES = frozenset(("latest", "retracted", "created", "updated"))
ACCESS = "fedstac:access"  # a property of fedstac's that publishers set (domain/access.py)
OUR_EXTENSION = "/extensions/fedstac/"  # in the URI of ours, at whatever node served the item
EXTENSION_PATH = "/extensions/fedstac/v1.0.0/schema.json"
# Members of an item as STAC has them, and relations whose links describe a dataset and lead to none of its files.
ITEM_MEMBERS = frozenset(
    ("type", "stac_version", "stac_extensions", "id", "geometry", "bbox", "properties", "links", "assets", "collection")
)
DESCRIBING_LINKS = SERVER_LINKS | {
    "replaced_by", "replaces", "license", "cite-as", "about", "describedby", "author", "copyright", "help", "errata",
    "terms-of-service", "privacy-policy", "derived_from",
}  # fmt: skip
LEVELS = tuple(Level)  # a list, as what is compared with them may have no hash
PACKED = 10  # results that `packed` always has; behind them, `open` where the document says that
EXTENSIONS, LINKS, TAIL = '{"stac_extensions":[', '"links":[', "}}"
HEADS = (EXTENSIONS, "{" + LINKS)  # how a stored text begins
ENDLESS_FRACTION = re.compile(r"(\.\d{6})\d+")
FAR_OFFSET = re.compile(r"[+-](?:1[6-9]|2[0-3]):[0-5][0-9]$")


def without_server_members(document: Document) -> Document:
    """Return the document less the members that the server owns, in the order in which it is stored.

    An access level stays where it says something: without one a dataset is open.
    """
    properties = document["properties"]
    if not SERVER_PROPERTIES.isdisjoint(properties):
        properties = {name: value for name, value in properties.items() if name not in SERVER_PROPERTIES}
    if _names_ours(properties):
        properties = {
            name: value
            for name, value in properties.items()
            if not name.startswith("fedstac:") or (name == ACCESS and value != Level.OPEN)
        }
    links = [link for link in document["links"] if not is_of_the_server(link)]
    rest = {name: value for name, value in document.items() if name not in ("stac_extensions", "links", "properties")}
    own = {"links": links, **rest, "properties": properties}
    if "stac_extensions" in document:
        extensions = [uri for uri in document["stac_extensions"] if OUR_EXTENSION not in uri]
        return {"stac_extensions": extensions, **own}
    return own


def _names_ours(properties: Mapping[str, Any]) -> bool:
    """Tell whether the name of a property has our prefix in it: most documents have none such."""
    return "fedstac:" in "\n".join(properties)


def is_of_the_server(link: Mapping[str, Any]) -> bool:
    """Tell whether a link's relation is one that the server sets: capitals make no other relation (RFC 8288, 2.1.1)."""
    return link["rel"].lower() in SERVER_LINKS


def without_files(document: Document) -> Document:
    """Return a document without the addresses of the dataset's files, for whoever may not have them.

    The assets go, and links but for those that describe the dataset. So do properties and members beside those of STAC
    that have an `href` somewhere in them, and all that has the address of a file.
    """
    files = frozenset(_addresses(document["assets"]))
    bare: dict[str, Any] = {
        "assets": {},
        "properties": {
            name: value for name, value in document["properties"].items()
            if name.startswith("fedstac:") or not _leads_to(value, files)
        },
    }  # fmt: skip
    if "links" in document:
        bare["links"] = [link for link in document["links"] if _describes(link, files)]
    return {
        name: bare.get(name, value) for name, value in document.items()
        if name in ITEM_MEMBERS or not _leads_to(value, files)
    }  # fmt: skip


def _describes(link: Mapping[str, Any], files: frozenset[str]) -> bool:
    """Tell whether a link describes its dataset, and leads to no file by another address beside its own."""
    others = {name: value for name, value in link.items() if name != "href"}
    return link["rel"].lower() in DESCRIBING_LINKS and link.get("href") not in files and not _leads_to(others, files)


def _leads_to(value: object, files: frozenset[str]) -> bool:
    """Tell whether a value has the address of one of the files, or an `href` of whatever."""
    if isinstance(value, str):
        return value in files
    if isinstance(value, dict):
        return "href" in value or any(_leads_to(each, files) for each in value.values())
    return isinstance(value, list) and any(_leads_to(each, files) for each in value)


def _addresses(value: object) -> Iterator[str]:
    """Yield every `href` in a value, at whatever depth."""
    if isinstance(value, dict):
        if isinstance(href := value.get("href"), str):
            yield href
        for each in value.values():
            yield from _addresses(each)
    elif isinstance(value, list):
        for each in value:
            yield from _addresses(each)


def warn_of_server_members(document: Document) -> tuple[Finding, ...]:
    """Return warnings for members that the server owns and a publisher sent."""
    properties = document["properties"]
    ours = (
        [name for name in properties if name.startswith("fedstac:") and name != ACCESS]
        if _names_ours(properties)
        else []
    )
    ours += [
        name for name, value in (("latest", True), ("retracted", False)) if properties.get(name, value) is not value
    ]  # fmt: skip
    return tuple(
        Finding("server-owned", f"/properties/{name}", f"{name} is set by the server; what was sent is replaced",
                Severity.WARNING)
        for name in ours
    )  # fmt: skip


def refuse_level(document: Document) -> tuple[Finding, ...]:
    """Return an error for an access level that nobody knows."""
    if ACCESS not in document["properties"] or (value := document["properties"][ACCESS]) in LEVELS:
        return ()
    message = f"`{ACCESS}` is one of {', '.join(Level)}, and not {str(value)[:80]!r}"
    return (Finding("access", f"/properties/{ACCESS}", message),)


def prepare(document: Document, name: DatasetName, vocabulary: Vocabulary | None) -> Draft:
    """Return everything that follows from a valid document alone. The document is not changed."""
    own = without_server_members(document)
    properties = cast("Mapping[str, Any]", own["properties"])
    start, end = span(properties)
    properties_text = orjson.dumps(properties)
    text = orjson.dumps({name: value for name, value in own.items() if name != "properties"})
    size, files = facets.size_of(document["assets"])
    copies, nodes = replicas(document["assets"]), own_nodes(document["assets"])
    return Draft(
        collection=document["collection"],
        id=document["id"],
        lineage=name.lineage,
        version=name.version,
        institution=_text(properties.get(vocabulary.institution)) if vocabulary else None,
        text=b"".join((text[:-1], b',"properties":', properties_text, b"}")).decode(),
        document_digest=digest(own),
        files_digest=files_digest(document["assets"]),
        search=SearchCopy(
            geometry=geometry.footprint(document["geometry"]),
            start=start,
            end=end,
            properties=properties_text.decode(),
            facets=facet_values(properties, nodes, copies, vocabulary),
            size=size,
            files=files,
        ),
        replicas=copies,
        nodes=nodes,
        states_level=ACCESS in document["properties"],
    )


def own_nodes(assets: Mapping[str, Mapping[str, Any]]) -> tuple[str, ...]:
    """Return the nodes that assets name as theirs, by name."""
    return tuple(sorted({node for asset in assets.values() if type(node := asset.get("alternate:name")) is str}))


def facet_values(
    properties: Mapping[str, Any], asset_nodes: Sequence[str], copies: str | None, vocabulary: Vocabulary | None
) -> dict[str, Any]:
    """Return what may be coded of a document: the nodes that have files, and properties; the first has the best claim.

    asset_nodes: those that its assets name as theirs. copies: the result of `replicas`.
    """
    values = facets.candidates(properties, vocabulary)
    nodes = facets.nodes_of(asset_nodes, orjson.loads(copies) if copies else ())
    if not nodes:
        return values
    values.pop(facets.NODES, None)
    return {facets.NODES: nodes, **values}


def replicas(assets: Mapping[str, Mapping[str, Any]]) -> str | None:
    """Return as JSON text how many of the files each node has among the alternates; None where there is no alternate.

    An aggregation (kerchunk) is no file; an alternate with another checksum is no replica.
    """
    counts: dict[str, int] = {}
    files = 0
    for asset in assets.values():
        if "file:checksum" not in asset or is_aggregation(asset):
            continue
        files += 1
        alternates = asset.get("alternate")
        for node, entry in alternates.items() if isinstance(alternates, dict) else ():
            if isinstance(entry, dict) and entry.get("file:checksum", asset["file:checksum"]) == asset["file:checksum"]:
                counts[node] = counts.get(node, 0) + 1
    if not counts:
        return None
    summary = {
        node: {"complete": count == files, "files": count, "of": files} for node, count in sorted(counts.items())
    }
    return orjson.dumps(summary).decode()


class ItemTexts(NamedTuple):
    """What is stored of an item that waits: its document, and the results of `packed` and `packed_facets`."""

    document: str | None
    prepared: str | None = None
    coded: str | None = None

    def read(self) -> ItemTexts:
        """Return the texts: these are in memory."""
        return self


class TextSource(Protocol):
    """The texts of an item, wherever they are."""

    def read(self) -> ItemTexts: ...


def texts_of(draft: Draft, errors: Sequence[Finding] = ()) -> ItemTexts:
    """Return what is stored of a draft until it is published."""
    return ItemTexts(draft.text, packed(draft, errors), packed_facets(draft))


def packed(draft: Draft, errors: Sequence[Finding] = ()) -> str:
    """Return the results of `prepare`, less text and name, with the errors that the stored document may excuse."""
    search = draft.search
    at = len(draft.text) - 1 - len(search.properties)
    return orjson.dumps([
        draft.institution, draft.document_digest.hex(), draft.files_digest.hex(), search.geometry, search.start,
        search.end, at, [finding.as_json() for finding in errors], draft.replicas, draft.nodes,
        *([Level.OPEN] if draft.states_level and not _has_level(search.properties) else []),
    ]).decode()  # fmt: skip


def _has_level(properties: str) -> bool:
    """Tell whether properties, as JSON text, have an access level."""
    return ACCESS in properties and ACCESS in orjson.loads(properties)


def as_stated(text: str, prepared: str) -> dict[str, Any]:
    """Return a document that was packed as its publisher stated it: with the level `open`, where that was said."""
    document: dict[str, Any] = orjson.loads(text)
    if len(orjson.loads(prepared)) > PACKED:
        document["properties"][ACCESS] = Level.OPEN.value
    return document


def digest_of_packed(prepared: str) -> bytes:
    """Return the digest of the document whose results were packed."""
    return bytes.fromhex(orjson.loads(prepared)[1])


def packed_facets(draft: Draft) -> str:
    """Return what of a draft becomes its row of codes. Apart from `packed`, which versions before this one read too."""
    return orjson.dumps([draft.search.facets, draft.search.size, draft.search.files]).decode()


def unpacked(
    text: str, prepared: str, coded: str | None, collection: str, item_id: str, name: DatasetName
) -> tuple[Draft, tuple[Finding, ...]]:
    """Return the draft again and its errors, without parsing its text if `coded` is there, of `packed_facets`."""
    institution, document_digest, files, shape, start, end, at, errors, copies, nodes, *level = orjson.loads(prepared)
    if coded is not None:
        values, size, count = orjson.loads(coded)
    else:
        document = orjson.loads(text)
        values = facet_values(document["properties"], own_nodes(document["assets"]), copies, None)
        size, count = facets.size_of(document["assets"])
    search = SearchCopy(shape, start, end, text[at:-1], values, size, count)
    draft = Draft(
        collection, item_id, name.lineage, name.version, institution, text, bytes.fromhex(document_digest),
        bytes.fromhex(files), search, copies, tuple(nodes), bool(level) or _has_level(search.properties),
    )  # fmt: skip
    return draft, tuple(Finding.from_json(finding) for finding in errors)


def digest(document: Document) -> bytes:
    """Return the sha-256 of the document with sorted keys."""
    return hashlib.sha256(orjson.dumps(document, option=orjson.OPT_SORT_KEYS)).digest()


def files_digest(assets: Mapping[str, Mapping[str, Any]]) -> bytes:
    """Return the sha-256 of the set of (checksum, size, tracking id): equal if and only if the files are the same."""
    files = {
        (str(asset.get("file:checksum", "")), str(asset.get("file:size", "")), tracking_id(asset))
        for asset in assets.values() if not is_aggregation(asset)
    } - {("", "", "")}  # fmt: skip
    return hashlib.sha256(orjson.dumps(sorted(files))).digest()


def is_aggregation(asset: Mapping[str, Any]) -> bool:
    """Tell whether an asset is an aggregation (kerchunk): it is made of files and is none."""
    return asset.get("protocol") == "kerchunk"


def tracking_id(asset: Mapping[str, Any]) -> str:
    """Return an asset's tracking id, whatever prefix it has; "" without one."""
    for name in asset:
        if name[-12:] == ":tracking_id":
            return str(asset[name])
    return ""


def span(properties: Mapping[str, Any]) -> tuple[str, str]:
    start = properties.get("start_datetime") or properties.get("datetime")
    end = properties.get("end_datetime") or properties.get("datetime")
    return to_microseconds(str(start)), to_microseconds(str(end))


def to_microseconds(moment: str) -> str:
    """Return RFC 3339 text as PostgreSQL reads it: cut to microseconds, its offset from UTC below 16 hours.

    PostgreSQL rounds longer fractions, at the end of 9999 into a year that it cannot give back. RFC 3339 has offsets up
    to 23:59; such a moment is given in UTC, and stays within years 1 to 9999.
    """
    if moment[-1:] == "Z" and "." not in moment:  # as nearly all are
        return moment
    moment = ENDLESS_FRACTION.sub(r"\1", moment)
    if FAR_OFFSET.search(moment) is None:
        return moment
    try:
        return rfc3339(datetime.fromisoformat(moment.upper()))
    except OverflowError:
        return "0001-01-01T00:00:00Z" if moment[0] == "0" else "9999-12-31T23:59:59.999999Z"


def _text(value: object) -> str | None:
    return value if isinstance(value, str) else None


def state_of(record: Record) -> dict[str, object]:
    """Return the server-owned properties of a record, as they are served and searched."""
    return (
        {
            "latest": record.latest,
            "retracted": record.is_retracted,
            "created": rfc3339(record.created),
            "updated": rfc3339(record.updated),
            "fedstac:state": record.state.value,
        }
        | ({"fedstac:cv_version": record.cv_version} if record.cv_version else {})
        | ({"fedstac:retraction": orjson.loads(record.retraction)} if record.retraction is not None else {})
        | ({"fedstac:replicas": orjson.loads(record.replicas)} if record.replicas is not None else {})
    )


def splice(text: str, *, extension: str, links: str, state: str) -> str:
    """Splice the server's extension, links and state (JSON texts without their brackets) into the stored text."""
    head, at = f"{EXTENSIONS}{extension}],{LINKS}", len(LINKS) + 1
    if text.startswith(EXTENSIONS):  # a list of strings: the first bracket that ends it outside of one
        end = text.index("]," + LINKS, len(EXTENSIONS) - 1)
        head = f"{text[:end]}{',' if end > len(EXTENSIONS) else ''}{extension}],{LINKS}"
        at = end + 2 + len(LINKS)
    first = "," if not text.startswith("]", at) else ""
    comma = "," if not text.endswith("{}}") else ""
    return f"{head}{links}{first}{text[at : -len(TAIL)]}{comma}{state}{TAIL}"
