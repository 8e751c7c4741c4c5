"""Messages as ESGF's publisher has them sent, for tests of whoever follows them."""

from __future__ import annotations

import copy
import json
from typing import Any

from fedstac.demo import sample

Json = dict[str, Any]
[ITEM] = sample.items(1)
ID = str(ITEM["id"])
FILE = next(key for key, asset in ITEM["assets"].items() if "file:checksum" in asset)
FILES = [key for key, asset in ITEM["assets"].items() if "file:checksum" in asset]
NODE = "dkrz.example"
RETRACT = [
    {"op": "replace", "path": "/properties/latest", "value": False},
    {"op": "replace", "path": "/properties/retracted", "value": True},
    {"op": "replace", "path": "/assets", "value": {}},
]
SUPERSEDE = [{"op": "replace", "path": "/properties/latest", "value": False}]
REPLICATE = [
    {"op": "add", "path": f"/assets/{key}/alternate/{NODE}", "value": {"href": f"https://{NODE}/{key}"}}
    for key in FILES
]  # fmt: skip
UNREPLICATE = [{"op": "remove", "path": f"/assets/{key}/alternate/{NODE}"} for key in FILES]
AGGREGATE = [{
    "op": "add", "path": "/assets/reference_file", "value": {
        "href": "https://dkrz.example/r.json", "type": "application/json", "roles": ["reference"],
        "protocol": "kerchunk", "alternate:name": NODE, "description": "Aggregation",
        "created": "2026-01-01T00:00:00Z", "updated": "2026-01-01T00:00:00Z",
    },
}]  # fmt: skip
ERRATA = {"rel": "related", "href": "https://errata.esgf.io/1", "title": "Errata issue", "type": "text/html"}
ANNOTATE = [{"op": "add", "path": "/links/-", "value": ERRATA}]


def version(day: int) -> Json:
    item: Json = copy.deepcopy(ITEM)
    item["id"] = f"{ID.rpartition('.v')[0]}.v{day}"
    item["properties"] |= {"version": str(day)}
    for asset in item["assets"].values():
        if "file:checksum" in asset:
            asset["file:checksum"] = f"1220{day:064}"
    return item


LATER = version(20300101)


def message(payload: Json, number: int, **metadata: object) -> bytes:
    """Return a message as ESGF's publisher has it sent."""
    about = {
        "auth": {"auth_policy_id": None, "requester_data": {"client_id": "c", "iss": "i", "sub": "someone"}},
        "event_id": f"{number:032x}", "publisher": {"package": "esgf_publisher", "version": "5.5.3"},
        "request_id": "r", "time": f"2026-01-01T{number // 60:02}:{number % 60:02}:00Z", "schema_version": "1.0.0",
    }  # fmt: skip
    return json.dumps({"data": {"type": "STAC", "payload": payload}, "metadata": about | metadata}).encode()


def post(item: Json, number: int) -> bytes:
    sent = {**item, "properties": {**item["properties"], "latest": True, "retracted": False}}
    return message({"collection_id": "CMIP6", "method": "POST", "item": sent}, number)


def patch(body: object, number: int, item_id: str = ID) -> bytes:
    return message({"collection_id": "CMIP6", "method": "PATCH", "item_id": item_id, "patch": body}, number)
