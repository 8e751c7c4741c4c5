"""Links, all from the configured public URL; the Host header has no say."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from urllib.parse import quote, urlencode
from uuid import UUID

import orjson

from fedstac.db.search import ServedItem
from fedstac.domain import collections, documents
from fedstac.domain.errors import BadRequest
from fedstac.domain.model import rfc3339
from fedstac.domain.policy import Level
from fedstac.messaging.hubs import Hub

GEOJSON, JSON = "application/geo+json", "application/json"
OPENAPI = "application/vnd.oai.openapi+json;version=3.1"
ASYNCAPI, ASYNCAPI_PATH = "application/asyncapi+json", "/asyncapi.json"
VERSIONS = ("predecessor-version", "successor-version", "latest-version")  # STAC version extension


def of_channels(base: str, hubs: Sequence[Hub]) -> list[dict[str, str]]:
    """Return the links of the landing page to what tells of changes (OGC API Publish-Subscribe, draft 25-030).

    hub: what is subscribed to, with the channel there. channel: its description in the AsyncAPI document.
    """
    document = base + ASYNCAPI_PATH
    brokers = [
        {"rel": "hub", "href": hub.url, "channel": hub.channel, "title": f"The log at a broker, as {hub.format}"}
        for hub in hubs
    ]
    names = {"subscription": "Subscriptions that are pulled", "webhook": "Webhooks", "changes": "Changes since a place"}
    names |= {f"hub-{n}": "The log at a broker" for n in range(1, len(hubs) + 1)}
    return [
        {"rel": "service-desc", "type": ASYNCAPI, "title": "Channels and messages (AsyncAPI)", "href": document},
        {"rel": "hub", "type": JSON, "title": "Subscriptions", "href": base + "/subscriptions"},
        *brokers,
        *({"rel": "channel", "type": ASYNCAPI, "title": title, "href": f"{document}#/channels/{name}"}
          for name, title in names.items()),
    ]  # fmt: skip


def item_url(base: str, collection: str, item_id: str) -> str:
    return f"{base}/collections/{quote(collection)}/items/{quote(item_id)}"


def request_url(base: str, request: object) -> str:
    return f"{base}/requests/{request}"


def deletion_url(base: str, deletion: object) -> str:
    return f"{base}/deletions/{deletion}"


def entity_tag(item: ServedItem, digest: bytes, *, shows_files: bool = False) -> str:
    """Return the ETag of a dataset: its digest, and a digest of what else is served with it.

    It follows from what the reader sees. What is hidden, a version marked for deletion, leaves no trace in it.
    """
    members = [item.latest, item.cv_version, item.versions, item.replaced_by, item.replaces]
    beside = orjson.dumps([*members, "files"] if shows_files else members)
    return f'"{digest[:16].hex()}-{hashlib.sha256(beside).hexdigest()[:16]}"'


def item_text(base: str, item: ServedItem, *, shows_files: bool = False) -> str:
    """Return a dataset as it is served: the stored text with state and links spliced in.

    shows_files: of a dataset that is retracted, under quarantine or not open, whose files are left out for everybody
    else.
    """
    own = item_url(base, item.collection, item.id)
    parent = f"{base}/collections/{quote(item.collection)}"
    links = (
        f'{{"rel":"self","type":"{GEOJSON}","href":{_json(own)}}},'
        f'{{"rel":"root","type":"{JSON}","href":{_json(base + "/")}}},'
        f'{{"rel":"parent","type":"{JSON}","href":{_json(parent)}}},'
        f'{{"rel":"collection","type":"{JSON}","href":{_json(parent)}}}'
    )
    for rel, other in zip(VERSIONS, item.versions, strict=True):
        if other is not None and other != item.id:
            links += f',{{"rel":"{rel}","type":"{GEOJSON}","href":{_json(item_url(base, item.collection, other))}}}'
    replacement = [("replaced_by", item.replaced_by)] if item.replaced_by else []
    for rel, other in [*replacement, *(("replaces", id) for id in item.replaces)]:
        links += f',{{"rel":"{rel}","type":"{GEOJSON}","href":{_json(item_url(base, item.collection, other))}}}'
    state = (
        f'"latest":{"true" if item.latest else "false"},"retracted":{"true" if _is_retracted(item) else "false"},'
        f'"created":"{rfc3339(item.created)}","updated":"{rfc3339(item.updated)}","fedstac:state":"{item.state}"'
    )
    members = (("cv_version", item.cv_version and _json(item.cv_version)), ("retraction", item.retraction),
            ("access", _json(item.access) if item.access is not Level.OPEN else None),
            ("replicas", item.replicas), ("quarantine", _notice(item, whole=shows_files)))  # fmt: skip
    state += "".join(f',"fedstac:{name}":{text}' for name, text in members if text is not None)
    extension = _json(base + documents.EXTENSION_PATH)
    text = documents.splice(item.document, extension=extension, links=links, state=state)
    if item.has_hidden_files and not shows_files:  # known and explained, and not to be had
        return orjson.dumps(documents.without_files(orjson.loads(text))).decode()
    return text if item.access is Level.OPEN else orjson.dumps(orjson.loads(text)).decode()  # its own level goes


def _is_retracted(item: ServedItem) -> bool:
    return item.state == "retracted" or (item.state in ("quarantined", "marked") and item.retraction is not None)


def _notice(item: ServedItem, *, whole: bool) -> str | None:
    """Return what a dataset under quarantine says of it: the number of the case and whom to ask; or the whole."""
    if item.quarantine is None or whole:
        return item.quarantine
    quarantine = orjson.loads(item.quarantine)
    return orjson.dumps({name: quarantine[name] for name in ("case", "contact") if name in quarantine}).decode()


def _json(text: str) -> str:
    return orjson.dumps(text).decode()


def next_page(own: str, parameters: Mapping[str, object]) -> dict[str, str]:
    """Return the link to the next page of a list, whose address is `own`."""
    return {"rel": "next", "type": JSON, "href": f"{own}?{urlencode(parameters)}"}


def id_after(parameters: Mapping[str, str]) -> UUID | None:
    """Return the id after which a page of a list begins (`after`); None for the first one. BadRequest for no id."""
    text = parameters.get("after")
    try:
        return UUID(text) if text else None
    except ValueError:
        raise BadRequest(f"after={str(text)[:40]!r} is no id; take that of the link `next`") from None


def of_page(own: str, following: Mapping[str, object] | None) -> list[dict[str, str]]:
    """Return the links of a page of a list: its own, and the next one with these parameters where there is one."""
    return [{"rel": "self", "type": JSON, "href": own}, *([next_page(own, following)] if following else [])]


def of_aggregation(own: str) -> list[dict[str, object]]:
    """Return the links from the root or from a collection to its counts."""
    return [
        {"rel": "aggregate", "type": JSON, "method": "GET", "href": own + "/aggregate"},
        {"rel": "aggregate", "type": JSON, "method": "POST", "href": own + "/aggregate"},
        {"rel": "aggregations", "type": JSON, "href": own + "/aggregations"},
    ]


def collection(base: str, document: dict[str, object]) -> dict[str, object]:
    """Return a collection as it is served."""
    own = f"{base}/collections/{quote(str(document['id']))}"
    links = [
        {"rel": "self", "type": JSON, "href": own},
        {"rel": "root", "type": JSON, "href": base + "/"},
        {"rel": "parent", "type": JSON, "href": base + "/"},
        {"rel": "items", "type": GEOJSON, "href": own + "/items"},
        {"rel": "http://www.opengis.net/def/rel/ogc/1.0/queryables", "type": "application/schema+json",
         "title": "Queryables", "href": own + "/queryables"},
        *of_aggregation(own),
    ]  # fmt: skip
    own_links = document.get("links")
    return {**collections.titled(document), "links": links + (own_links if isinstance(own_links, list) else [])}
