"""Valid requests, one or more of every route, from which hostile ones are made."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from functools import cache
from typing import Any
from urllib.parse import quote

import orjson

from fedstac.api.app import TABLE
from fedstac.api.route import Access
from fedstac.demo import sample
from tests.hostile.site import CHANGES_OF_MANY, CLOSING, DATASETS, ENDED, GROUP, RULES, Names
from tests.hostile.wire import Ask

Json = dict[str, Any]
Route = tuple[str, str]
ITEMS, ITEM = "/collections/{collection_id}/items", "/collections/{collection_id}/items/{item_id}"
LEFT_OUT = ("/api.html", "/api-assets/{name}", "/events/stream")  # the last one has no end
FIRST, OTHER = list(sample.items(2))
FRESH = next(sample.items(1, start=DATASETS + 50_000))
REPLICA = {
    name: {"href": f"https://south.example/{name}.nc"} for name, asset in FIRST["assets"].items()
    if "file:checksum" in asset
}  # fmt: skip
COLLECTION = {**sample.collection("free"), "id": "another"}
FILTER: Json = {
    "op": "and",
    "args": [
        {"op": "=", "args": [{"property": "cmip6:source_id"}, "CESM2"]},
        {"op": "in", "args": [{"property": "cmip6:variable_id"}, ["tas", "pr"]]},
        {"op": "t_intersects", "args": [{"property": "datetime"}, {"interval": ["1850-01-01", "2014-12-31"]}]},
        {"op": "s_intersects", "args": [{"property": "geometry"}, {"type": "Point", "coordinates": [10, 50]}]},
        {"op": "like", "args": [{"op": "casei", "args": [{"property": "cmip6:experiment_id"}]}, "HIST%"]},
        {"op": "between", "args": [{"property": "size"}, 1, 1e12]},
    ],
}
SEARCH: Json = {
    "collections": ["CMIP6"], "filter": FILTER, "filter-lang": "cql2-json", "limit": 10,
    "sortby": [{"field": "properties.cmip6:source_id", "direction": "asc"}], "fields": {"exclude": ["assets"]},
}  # fmt: skip
FULL_STATE: Json = {"type": "FeatureCollection", "features": [FIRST, FRESH]}
BOX: Json = {"bbox": [170, -10, -170, 10], "datetime": "1900-01-01T00:00:00Z/..", "limit": 5}
TEXT = "cmip6:source_id = 'CESM2' AND size > 5 AND S_INTERSECTS(geometry, POINT(10 50))"
PATCH = [{"op": "add", "path": "/links/-", "value": {"rel": "related", "href": "https://errata.esgf.io/static/1"}}]

FOR_NODES = {(route.method, route.path) for route in TABLE if route.access is Access.NODE}
QUERIES: Mapping[Route, tuple[dict[str, str], ...]] = {
    ("GET", "/search"): (
        {"filter": TEXT, "filter-lang": "cql2-text", "sortby": "-datetime,id", "fields": "id,-assets", "limit": "10"},
        {"bbox": "-10,30,40,60", "datetime": "1850-01-01T00:00:00Z/..", "collections": "CMIP6,free"},
        {"ids": f"{FIRST['id']},{OTHER['id']}", "query": '{"cmip6:source_id":{"eq":"CESM2"}}'},
        {"intersects": '{"type":"Point","coordinates":[10,50]}'},
    ),
    ("GET", ITEMS): ({"limit": "5", "bbox": "-10,30,40,60"}, {"filter": TEXT}),
    ("GET", "/collections"): ({}, {"limit": "1"}),
    ("GET", "/events"): (
        {"after": "1.0", "limit": "10"},
        {"after": "1.0", "shard": "3/7", "types": "dataset.published"},
    ),
    ("GET", "/snapshot"): ({"limit": "10"},),
    ("GET", "/changes"): (
        {"since": "1.0", "limit": "10", "collections": "CMIP6", "types": "dataset.published", "bbox": "0,0,10,10"},
        {
            "since": "2020-01-01T00:00:00Z",
            "filter": '{"op": "=", "args": [{"property": "id"}, "x"]}',
            "filter-lang": "cql2-json",
            "format": "crud",
        },
    ),
    ("GET", "/subscriptions"): ({"limit": "5", "after": "a", "all": "true"},),
    ("GET", "/subscriptions/{subscription}/next"): ({"limit": "5", "lease": "1"},),
    ("GET", "/subscriptions/{subscription}/dead-letters"): ({"limit": "5", "after": "1"},),
    ("GET", "/requests"): ({"limit": "5"},),
    ("GET", "/requests/{request_id}/items"): ({"status": "done", "limit": "5"},),
    ("GET", "/access/explain"): (
        {"action": "publish", "item": str(FIRST["id"]), "collection": "CMIP6", "institution": "NCAR"},
        {"action": "replicate", "item": "any", "node": "south", "as": "role:admin"},
    ),
    ("DELETE", ITEM): ({"dry_run": "true"},),
    ("DELETE", "/collections/{collection_id}"): (
        {"cascade": "true", "dry_run": "true"},
        {"cascade": "true", "confirm": "0", "reason": "it has ended"},
    ),
    **{("POST", f"{ITEM}/{verb}"): ({"dry_run": "true"}, {}) for verb in ("quarantine", "release", "delete", "purge")},
    ("POST", "/collections/{collection_id}/reconcile"): (
        {"dry_run": "true"},
        {"complete": "false", "mode": "rebuild"},
    ),
    ("GET", "/loads"): ({"limit": "1"},),
    ("GET", "/loads/{load_id}/datasets"): ({"change": "removed", "limit": "5"}, {"after": "C"}),
    ("POST", "/loads/{load_id}/apply"): ({"dry_run": "true"}, {"compared": "2020-01-01T00:00:00Z"}),
    ("GET", "/bulk"): ({"limit": "1"},),
    ("GET", "/bulk/{bulk_id}/datasets"): ({"status": "done", "limit": "5"}, {"after": "1"}),
    ("GET", "/private"): ({"collection": "CMIP6", "limit": "5"}, {"token": "WyJDTUlQNiIsIngiXQ=="}),
    ("GET", "/grants"): ({"subject": "bert", "dataset": "CMIP6/x", "state": "all", "limit": "5"}, {"format": "ga4gh"}),
    ("GET", "/grants/check"): ({"dataset": "CMIP6/x", "subject": "bert"}, {"dataset": "a/b", "iss": "c", "sub": "d"}),
    ("DELETE", "/grants"): ({"project": "CMIP6", "subject": "bert", "reason": "it is over"},),
    ("DELETE", "/grants/{grant}"): ({"reason": "it is over"},),
    ("GET", "/deletions"): (
        {"project": ENDED, "state": "open", "standing": "waiting", "dependency": "east", "q": "wait", "limit": "1"},
        {"sortby": "grace_until", "limit": "2"},
    ),
    ("GET", "/deletions/rules/{project}"): ({}, {"version": "1"}),
    ("PUT", "/deletions/rules/{project}"): ({"dry_run": "true"}, {}, {"apply_to_open": "true"}),
    ("POST", "/deletions/run"): ({"dry_run": "true"}, {}),
    ("POST", "/deletions/{deletion}/delete"): ({"dry_run": "true"}, {}),
    ("GET", "/quarantines"): ({"open": "true", "q": "CMIP6", "limit": "1"}, {"open": "false"}),
    ("GET", "/admin/tombstones"): ({"collection": ENDED, "since": "2020-01-01T00:00:00Z", "limit": "1"}, {}),
    ("PATCH", ITEM): ({"dry_run": "true"}, {}),
    ("POST", ITEMS): ({"dry_run": "true"}, {}),
}
GRANT = {
    "subject": "bert", "project": "CMIP6", "valid_from": "2026-01-01T00:00:00Z", "valid_until": "2999-01-01T00:00:00Z",
}  # fmt: skip
BODIES: Mapping[Route, tuple[Any, ...]] = {
    ("POST", "/search"): (SEARCH, BOX, {"query": {"size": {"gt": 1, "lte": 1e9}}, "ids": [FIRST["id"]]}),
    ("POST", "/collections"): (COLLECTION,),
    ("PUT", "/collections/{collection_id}"): (sample.collection("free"),),
    ("PATCH", "/collections/{collection_id}"): ({"description": "changed"},),
    ("POST", ITEMS): (FRESH, {"type": "FeatureCollection", "features": [FIRST, OTHER, FRESH]}),
    ("POST", "/validate"): (FRESH, {"type": "FeatureCollection", "features": [FIRST, FRESH]}),
    ("PUT", ITEM): (FIRST,),
    ("PATCH", ITEM): (PATCH, {"properties": {"title": FIRST["properties"]["title"]}}),
    ("POST", ITEM + "/retract"): ({"reason": "wrong units", "errata": "https://errata.example/2", "data": "keep"},),
    ("PUT", ITEM + "/replicas/{node}"): (REPLICA,),
    ("POST", "/groups"): ({**GROUP, "name": "another"},),
    ("PUT", "/groups/{group}"): (GROUP,),
    ("POST", "/notifications"): ({"address": "https://hooks.example/x", "on": ["request"]},),
    ("POST", "/sinks"): ({"name": "portal", "address": "https://hooks.example/x", "key": "dataset_{id}"},),
    ("POST", "/sinks/{sink}/pause"): ({"reason": "it moves"},),
    ("POST", "/sinks/{sink}/seek"): ({"to": 0},),
    ("POST", "/sinks/{sink}/audit"): ({"full": True, "list": True},),
    ("PUT", "/subscriptions/{subscription}"): (
        {"filter": {"collections": ["CMIP6"], "types": ["dataset.updated"], "bbox": [0, 0, 10, 10],
                    "cql2": "title = 'a'"}, "from": "start", "batch": 7, "key": "x_{id}", "format": "crud"},
    ),
    ("POST", "/subscriptions/{subscription}/ack"): (
        {"cursor": "1.0", "lease": "00000000-0000-0000-0000-000000000001"},
    ),
    ("POST", "/subscriptions/{subscription}/nack"): ({"event_id": "x", "reason": "full", "retry_in": 1.5},),
    ("POST", "/subscriptions/{subscription}/seek"): ({"cursor": "start"}, {"time": "2020-01-01T00:00:00Z"}),
    **{
        ("POST", f"/{kind}/{verb}"): ({"ids": [1, 2]},)
        for kind, verb in (
            ("dead-letters", "redrive"),
            ("dead-letters", "discard"),
            ("parked-events", "requeue"),
            ("parked-events", "discard"),
        )
    },
    ("POST", "/aggregate"): ({"aggregations": ["total_count", "datetime_frequency"], **BOX},),
    ("POST", "/collections/{collection_id}/aggregate"): ({"multi_select": True},),
    ("POST", "/datasets/status"): ({"ids": [FIRST["id"], "none"], "collections": ["CMIP6"]},),
    ("POST", "/grants"): (GRANT, {**GRANT, "subject": {"iss": "https://aai.example", "sub": "x"}}),
    ("POST", "/grants/import"): ({"grants": [GRANT, {"subject": "x"}]},),
    ("POST", "/events/status"): ({"epoch": 1, "through": 0, "exceptions": []},),
    ("POST", "/deletions/reports"): (
        {"reports": [
            {"collection": collection, "dataset": id, "outcome": "failed", "comment": "later"}
            for collection, id in (("CMIP6", FIRST["id"]), (ENDED, "waits"))
        ]},
    ),
    ("POST", "/dapr/deletion-reports"): (
        {
            "time": "2026-01-01T00:00:00Z",
            "data": {"operation": "DELETE", "ids": [FIRST["id"]], "collection": "CMIP6"},
        },
    ),
    ("POST", ITEM + "/quarantine"): (
        {"reason": "to be looked at", "case": "T-17", "contact": "a@b.example", "links": ["https://x.example/17"]},
    ),
    ("POST", ITEM + "/release"): ({"decision": "it is harmless"},),
    ("POST", "/collections/{collection_id}/reconcile"): (FULL_STATE,),
    ("PUT", "/loads/{load_id}/parts/{n}"): (FULL_STATE,),
    ("POST", "/bulk/preview"): CHANGES_OF_MANY,
    ("POST", "/bulk"): CHANGES_OF_MANY,  # `asks` gives each its digest
    ("PUT", "/deletions/rules/{project}"): (RULES,),
    ("POST", "/deletions/run"): ({"project": "CMIP6"},),
    ("POST", "/deletions/{deletion}/waive"): ({"name": "east", "reason": "it is gone"},),
    ("POST", "/deletions/{deletion}/remind"): ({"names": ["east"]}, {}),
}  # fmt: skip
HEADERS: Mapping[Route, Mapping[str, str]] = {("PUT", "/deletions/rules/{project}"): {"If-Match": "*"}}
PLACES: Mapping[Route, Mapping[str, str]] = {  # what is elsewhere than FIRST
    ("GET", "/collections/{collection_id}/cascade"): {"collection_id": CLOSING},
    ("DELETE", "/collections/{collection_id}/cascade"): {"collection_id": CLOSING},
    ("POST", ITEM + "/delete"): {"collection_id": ENDED, "item_id": "ready"},
    ("POST", ITEM + "/purge"): {"collection_id": ENDED, "item_id": "done"},
    ("GET", "/deletions/rules/{project}"): {"project": ENDED},
    ("PUT", "/deletions/rules/{project}"): {"project": ENDED},
}


def routes() -> Iterator[Route]:
    """Yield every route that the application declares, but for the page of its documentation and streams."""
    for route in TABLE:
        if route.path not in LEFT_OUT and route.method != "OPTIONS":
            yield route.method, route.path


@cache
def asks(route: Route, names: Names = Names()) -> tuple[Ask, ...]:
    """Yield valid requests of a route, by somebody who may send them. `names` exist at the node."""
    method, template = route
    parts = {
        "collection_id": "free" if method in ("PUT", "DELETE", "PATCH") and template.count("/") == 2 else "CMIP6",
        "item_id": str(FIRST["id"]), "node": "south",
        "group": "another" if route == ("DELETE", "/groups/{group}") else "g", "principal": "person:6f9c",
        "request_id": names.request, "destination_id": "00000000-0000-0000-0000-000000000001", "project": "CMIP6",
        "version": names.vocabulary, "facet": "source_id", "name": "bad-request",
        "sink": "none" if method == "DELETE" else "portal", "letter": "1", "event": "1",
        "subscription": "hostile", "format": "ogc", "grant": "00000000-0000-0000-0000-000000000007",
        "part": "items-1.parquet", "deletion": names.deletion, "bulk_id": names.bulk, "load_id": names.load,
        "n": "2", **PLACES.get(route, {}),
    }  # fmt: skip
    if template.startswith("/extensions/"):
        parts |= {"name": "fedstac", "version": "v1.0.0"}
    path = re.sub(r"{(\w+)(:path)?}", lambda part: quote(parts[part[1]], safe=""), template)
    queries = QUERIES.get(route, ({},))
    documents = BODIES.get(route, ())
    if route == ("POST", "/bulk"):
        documents = tuple({**change, "digest": digest} for change, digest in zip(documents, names.digests, strict=True))
    bodies = [orjson.dumps(document) for document in documents] or [b""]
    role = "node:east" if route in FOR_NODES else "admin"
    return tuple(
        Ask(method, path, tuple(query.items()), body, HEADERS.get(route, {}), role)
        for query in queries for body in bodies
    )  # fmt: skip
