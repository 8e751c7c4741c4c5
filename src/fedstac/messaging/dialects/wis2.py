"""WMO's WIS2 Notification Message v04: a GeoJSON feature of at most 8 192 bytes that says where the data are.

One link has the relation canonical, update or deletion. It leads to the file of a dataset that has one, with its
`integrity`; else to the dataset's item. The link with the relation item always leads there: who fetches it has the
state of the catalogue. Where the dataset's id is so long that two links are too large, the one with the relation of
the change alone leads there. `pubtime` is the time of the change: it is the same however often a message is sent.
"""

from __future__ import annotations

import hashlib
from base64 import b64encode
from collections.abc import Sequence
from datetime import UTC
from typing import Any, Final

import orjson

from fedstac.domain.events import LoggedEvent
from fedstac.domain.model import moment, rfc3339
from fedstac.domain.multihashes import Multihash
from fedstac.messaging.dialects import (
    Delivery,
    Json,
    Operation,
    ParsedEvent,
    TooLarge,
    WireMessage,
    item_address,
    parse_event,
)
from fedstac.messaging.dialects.ogc import GEOJSON

CONFORMS_TO: Final = ("http://wis.wmo.int/spec/wnm/1/conf/core",)
VERSION: Final = "v04"
LARGEST: Final = 8192  # bytes of a message
LARGEST_GEOMETRY: Final = 2048  # bytes; of a larger one the box is sent
LONGEST_ID: Final = 1024  # bytes of a dataset's id that a notification repeats; of a longer one it has the sha-256
RELATIONS: Final = {Operation.CREATE: "canonical", Operation.UPDATE: "update", Operation.DELETE: "deletion"}
GEOMETRIES: Final = ("Point", "Polygon")
METHODS: Final = {"sha2-256": "sha256", "sha2-384": "sha384", "sha2-512": "sha512"}  # by the names of multihashes
FETCHED: Final = ("http://", "https://", "ftp://", "sftp://")


def write(event: LoggedEvent, delivery: Delivery) -> WireMessage:
    """Return an event as a WIS2 notification.

    What makes it too large is left out: the geometry, then the file, then the second link.
    """
    change = parse_event(event, delivery)
    geometry = None if change.is_gone else _geometry(change.data["document"])
    file = None if change.is_gone else _only_file(change)
    contents = ((geometry, file, 2), (None, file, 2), (None, None, 2), (None, None, 1))
    for shown_geometry, shown_file, link_count in contents:
        value = orjson.dumps(_notification(change, shown_geometry, shown_file, delivery, link_count))
        if len(value) <= min(LARGEST, delivery.largest_value):
            return WireMessage({"content-type": GEOJSON}, value)
    raise TooLarge(f"a notification of {len(value)} bytes is too large for WIS2, which takes {LARGEST}")


def _notification(
    change: ParsedEvent, geometry: Json | None, file: Json | None, delivery: Delivery, link_count: int
) -> Json:
    address = item_address(delivery, change.collection, change.id)
    item = {"href": address, "rel": "item", "type": GEOJSON}
    relation = RELATIONS[change.operation]
    links: list[Json] = [{**(_file_link(file) if file is not None else item), "rel": relation}]
    if not change.is_gone and link_count > 1:
        links.append(item)
    document_properties = {} if change.is_gone else change.data["document"]["properties"]
    return {
        "id": change.envelope["id"],
        "conformsTo": CONFORMS_TO,
        "version": VERSION,
        "type": "Feature",
        "geometry": geometry,
        "properties": {
            "data_id": f"{change.collection}/{_name(change.id)}",
            "metadata_id": f"urn:wmo:md:{change.envelope['source']}:{change.collection}",
            "pubtime": change.envelope["time"],
            **_times(document_properties),
            "cache": False,
            **(_integrity(file) if file is not None else {}),
        },
        "links": links,
    }


def _name(id: str) -> str:
    """Return a dataset's id, or a short text in place of a long one: the same in every event of the dataset."""
    octets = id.encode()
    return id if len(octets) <= LONGEST_ID else f"sha-256:{hashlib.sha256(octets).hexdigest()}"


def _times(properties: Json) -> Json:
    """Return a time or a span of time; never both, and null where there is none."""
    begin, end = (_utc(properties.get(name)) for name in ("start_datetime", "end_datetime"))
    if begin is not None and end is not None:
        return {"start_datetime": begin, "end_datetime": end}
    return {"datetime": _utc(properties.get("datetime"))}


def _utc(value: Any) -> str | None:
    instant = moment(value) if isinstance(value, str) else None
    return rfc3339(instant.astimezone(UTC)) if instant is not None else None


def _geometry(document: Json) -> Json | None:
    """Return a point or a polygon: the item's, or else that of its box. None where its box is none of a polygon."""
    geometry = document.get("geometry")
    if geometry is None:
        return None
    if geometry["type"] in GEOMETRIES and len(orjson.dumps(geometry)) <= LARGEST_GEOMETRY:
        return {"type": geometry["type"], "coordinates": geometry["coordinates"]}
    box: Sequence[float] = document.get("bbox") or ()
    if len(box) not in (4, 6):
        return None
    west, south, east, north = box[0], box[1], box[len(box) // 2], box[len(box) // 2 + 1]
    if west > east:  # it crosses the antimeridian
        return None
    ring = [[west, south], [east, south], [east, north], [west, north], [west, south]]
    return {"type": "Polygon", "coordinates": [ring]}


def _only_file(change: ParsedEvent) -> Json | None:
    """Return the file of a dataset that has one which can be fetched."""
    assets = change.item["assets"]
    if len(assets) != 1:
        return None
    [asset] = assets.values()
    return asset if str(asset.get("href", "")).startswith(FETCHED) else None


def _file_link(file: Json) -> Json:
    media_type = {"type": file["type"]} if isinstance(file.get("type"), str) else {}
    length = {"length": file["file:size"]} if isinstance(file.get("file:size"), int) else {}
    return {"href": file["href"], **media_type, **length}


def _integrity(file: Json) -> Json:
    try:
        checksum = Multihash.parse(file["file:checksum"])
        method = METHODS[checksum.function]
    except (LookupError, ValueError, TypeError):
        return {}
    return {"integrity": {"method": method, "value": b64encode(checksum.digest).decode()}}
