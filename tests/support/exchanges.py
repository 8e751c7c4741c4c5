"""The examples of the OpenAPI document: requests to a new node in their order, and their answers made comparable.

`tools/examples.py` writes them down; tests/api/test_openapi.py sends them again and compares.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final
from urllib.parse import quote

import asyncpg
import httpx
import orjson

from fedstac import __version__
from fedstac.api.http.openapi import Example
from fedstac.db import nodes
from fedstac.demo import sample
from fedstac.settings import Settings
from tests.support.nodes import running
from tests.support.waiting import until

PUBLIC_URL: Final = "https://west.example"
MOMENT: Final = "2026-11-28T12:00:00Z"
TIMES: Final = frozenset(
    ("at", "created", "updated", "finished", "since", "confirmed", "time", "published", "compared", "given_at",
     "valid_from")
)  # fmt: skip
UUID: Final = re.compile(r"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}")
CHANGING: Final = {"secret": "whsec_a2VlcCBpdA==", "digest": "0" * 16, "cursor": "1.7", "through": "1.1"}
TOKEN: Final = re.compile(r"(?<=token=)[\w-]+")

ITEMS, ITEM = "/collections/{collection_id}/items", "/collections/{collection_id}/items/{item_id}"
WAIT: Final = {"Prefer": "wait=30"}
GROUP: Final = {"name": "ncar-editors", "project": "CMIP6", "institution": "NCAR", "title": "Editors at NCAR"}
MODEL: Final = {"subscription": "model"}
PORTAL: Final = {"sink": "portal"}
RULES: Final = {
    "dependencies": [
        {"name": "east", "days": 7, "contact": "data@east.example"},
        {"name": "doi-desk", "owns_identifier": True, "days": 14},
        {"name": "west/search", "required": False},
    ],
    "grace_days": 30, "automatic": True, "schedule": "03:30",
}  # fmt: skip
NO_DELETION: Final = {"deletion": "01a2261e-0000-7000-8000-000000000001"}
MEMBER: Final = {"group": "ncar-editors", "principal": "anna"}


@dataclass(frozen=True, slots=True)
class Ask:
    """A request of the scenario. `{request}` and `{destination}` in a path are the ids of the last one of each."""

    operation: str
    summary: str
    caller: str = ""
    path: Mapping[str, str] = field(default_factory=dict)
    query: Mapping[str, str] = field(default_factory=dict)
    headers: Mapping[str, str] = field(default_factory=dict)
    body: Any = None


def _dataset() -> tuple[dict[str, Any], dict[str, Any]]:
    """Return two datasets with two assets each, so that an example can be read."""
    first, second = (dict(item) for item in sample.items(2, versions=1))
    for item in (first, second):
        assets: Mapping[str, Any] = item["assets"]
        item["assets"] = dict(list(assets.items())[:2])
    return first, second


FIRST, SECOND = _dataset()
INSTITUTION: Final = FIRST["properties"]["cmip6:institution_id"]
TOKENS: Final = {
    "admin": ["admin"], "anna": [f"publisher:{INSTITUTION}"], "east": ["node:east"], "guest": ["observer"],
}  # fmt: skip
PLACE: Final = {"collection_id": "CMIP6", "item_id": str(FIRST["id"])}
REPLICA: Final = {
    name: {"href": f"https://east.example/{name}.nc"} for name, asset in FIRST["assets"].items()
    if "file:checksum" in asset
}  # fmt: skip
VARIABLE: Final = FIRST["properties"]["cmip6:variable_id"]
FILTER: Final = {"op": "=", "args": [{"property": "cmip6:source_id"}, FIRST["properties"]["cmip6:source_id"]]}
RELEASE_OF_MANY: Final = {"action": "release", "ids": [str(FIRST["id"])], "decision": "It is harmless."}
FULL_STATE: Final = {"type": "FeatureCollection", "features": [SECOND]}
MARK_OF_MANY: Final = {"action": "mark", "collections": ["CMIP6"], "filter": FILTER, "reason": "Replaced."}
SHOWN: Final = "{digest}"  # in a body: the digest of the last preview

SCENARIO: Final = (
    Ask("POST /collections", "A new project", "admin", body=sample.collection()),
    Ask("POST /collections", "A project that is there", "admin", body=sample.collection()),
    Ask("POST /collections", "Without a token", body=sample.collection()),
    Ask("POST /collections", "Without the right", "guest", body=sample.collection()),
    Ask("GET /collections", "All projects"),
    Ask("GET /collections", "Titles of projects that have a word",
        query={"q": "CMIP6", "fields": "title,-links", "limit": "1"}),
    Ask("GET /collections", "A search that is not understood", query={"q": "CMIP6 AND"}),
    Ask("GET /children", "All children of the catalogue"),
    Ask("GET /collections/{collection_id}", "One project", path={"collection_id": "CMIP6"}),
    Ask("GET /collections/{collection_id}", "An unknown project", path={"collection_id": "CMIP99"}),
    Ask("PATCH /collections/{collection_id}", "Another title", "admin", {"collection_id": "CMIP6"},
        body={"title": "CMIP6, the sixth phase"}),
    Ask("PUT /collections/{collection_id}", "The whole document", "admin", {"collection_id": "CMIP6"},
        body=sample.collection()),
    Ask("POST " + ITEMS, "Try it", "anna", {"collection_id": "CMIP6"}, {"dry_run": "true"}, body=FIRST),
    Ask("POST " + ITEMS, "Publish a dataset and wait", "anna", {"collection_id": "CMIP6"}, headers=WAIT, body=FIRST),
    Ask("POST " + ITEMS, "A dataset that breaks a rule", "anna", {"collection_id": "CMIP6"},
        body={**FIRST, "properties": {**FIRST["properties"], "cmip6:source_id": "CESM2000"}}),
    Ask("POST " + ITEMS, "Publish several datasets", "admin", {"collection_id": "CMIP6"}, headers={"Prefer": "wait=0"},
        body={"type": "FeatureCollection", "features": [SECOND]}),
    Ask("GET /requests/{request_id}", "What became of it", "admin", {"request_id": "{request}"}),
    Ask("GET /requests/{request_id}/items", "Item by item", "admin", {"request_id": "{request}"}),
    Ask("GET /requests", "The latest request", "admin", query={"limit": "1"}),
    Ask("POST /requests/{request_id}/cancel", "Too late", "admin", {"request_id": "{request}"}),
    Ask("POST /requests/{request_id}/retry", "Nothing to retry", "admin", {"request_id": "{request}"}),
    Ask("GET /requests/{request_id}", "Somebody else's request", "guest", {"request_id": "{request}"}),
    Ask("GET " + ITEM, "A dataset", path=PLACE),
    Ask("GET " + ITEM + "/history", "What became of a dataset", path=PLACE),
    Ask("POST /datasets/status", "How datasets stand", body=[FIRST["id"], "nothing"]),
    Ask("GET " + ITEM, "An unknown dataset", path={**PLACE, "item_id": "nothing"}),
    Ask("GET " + ITEMS, "Ids and models of a project's datasets", path={"collection_id": "CMIP6"},
        query={"fields": "id,cmip6:source_id,-geometry,-bbox,-assets,-links", "limit": "1"}),
    Ask("POST /search", "Datasets of a model", body={"collections": ["CMIP6"], "filter": FILTER, "limit": 1,
        "fields": {"include": ["id", "properties.cmip6:source_id"], "exclude": ["assets", "links"]}}),
    Ask("GET /search", "Datasets that have words", query={"q": f"{VARIABLE} AND CMIP", "fields": "id", "limit": "1"}),
    Ask("GET /search", "A search that is not understood", query={"colections": "CMIP6"}),
    Ask("GET /search", "Datasets in a span of time",
        query={"collections": "CMIP6", "datetime": "1850-01-01T00:00:00Z/..", "fields": "id", "limit": "1"}),
    Ask("GET /aggregations", "What can be counted"),
    Ask("GET /collections/{collection_id}/aggregations", "Of an unknown project", path={"collection_id": "nothing"}),
    Ask("GET /aggregate", "Models", query={"aggregations": "total_count,cmip6_source_id_frequency"}),
    Ask("GET /aggregate", "A misspelt name", query={"aggregations": "cmip6_sourse_id_frequency"}),
    Ask("POST /aggregate", "Frequencies beside the chosen one", body={"filter": FILTER, "multi_select": True,
        "aggregations": ["cmip6_source_id_frequency", "cmip6_frequency_frequency"]}),
    Ask("GET /collections/{collection_id}/aggregate", "Files and bytes", path={"collection_id": "CMIP6"},
        query={"aggregations": "file_count,byte_count"}),
    Ask("POST /collections/{collection_id}/aggregate", "Nodes", path={"collection_id": "CMIP6"},
        body={"aggregations": ["node_count", "alternate_name_frequency"]}),
    Ask("PATCH " + ITEM, "A description", "anna", PLACE, headers=WAIT,
        body={"properties": {"description": "Carbon in soils."}}),
    Ask("PATCH " + ITEM, "Try operations", "anna", PLACE, {"dry_run": "true"},
        {"Content-Type": "application/json-patch+json"},
        [{"op": "add", "path": "/properties/description", "value": "Soil carbon."}]),
    Ask("PATCH " + ITEM, "Without the right", "guest", PLACE, body={"properties": {"description": "Mine."}}),
    Ask("PUT " + ITEM, "The whole document, as a dry run", "anna", PLACE, {"dry_run": "true"}, body=FIRST),
    Ask("PUT " + ITEM + "/replicas/{node}", "Where a copy is", "east", {**PLACE, "node": "east"}, headers=WAIT,
        body=REPLICA),
    Ask("DELETE " + ITEM + "/replicas/{node}", "The copy is gone, as a dry run", "east", {**PLACE, "node": "east"},
        {"dry_run": "true"}),
    Ask("POST " + ITEM + "/retract", "Not to be used", "anna", PLACE, headers=WAIT,
        body={"reason": "The units of one variable are wrong.", "errata": "https://errata.example/1", "data": "keep"}),
    Ask("POST " + ITEM + "/reinstate", "To be used again", "admin", PLACE, {"dry_run": "true"}),
    Ask("DELETE " + ITEM, "Mark it for deletion, as a dry run", "admin", PLACE,
        {"dry_run": "true", "reason": "published twice"}),
    Ask("POST " + ITEM + "/quarantine", "To be looked at, as a dry run", "admin", PLACE, {"dry_run": "true"},
        body={"reason": "It may hold personal data.", "case": "T-17", "contact": "data@west.example"}),
    Ask("POST " + ITEM + "/release", "What is not under quarantine", "admin", PLACE, {"dry_run": "true"},
        body={"decision": "It holds none."}),
    Ask("POST " + ITEM + "/delete", "What is not marked", "admin", PLACE, {"dry_run": "true"}),
    Ask("POST " + ITEM + "/purge", "What is not deleted", "admin", PLACE, {"dry_run": "true"}),
    Ask("POST " + ITEM + "/unmark", "What is not marked", "admin", PLACE, {"dry_run": "true"}),
    Ask("POST /bulk/preview", "Release many: this one is not under quarantine", "admin", body=RELEASE_OF_MANY),
    Ask("POST /bulk", "Release them, as it was shown", "admin", body={**RELEASE_OF_MANY, "digest": SHOWN}),
    Ask("GET /bulk/{bulk_id}", "It is done", "admin", {"bulk_id": "{bulk}"}),
    Ask("GET /bulk/{bulk_id}/datasets", "Dataset by dataset", "admin", {"bulk_id": "{bulk}"}),
    Ask("POST /bulk/{bulk_id}/cancel", "Too late", "admin", {"bulk_id": "{bulk}"}),
    Ask("GET /bulk", "The latest one", "admin", query={"limit": "1"}),
    Ask("POST /collections/{collection_id}/reconcile", "What a full-state load would change", "admin",
        {"collection_id": "CMIP6"}, {"dry_run": "true"}, body=FULL_STATE),
    Ask("POST /collections/{collection_id}/reconcile", "Without the right", "guest", {"collection_id": "CMIP6"},
        body=FULL_STATE),
    Ask("PUT /loads/{load_id}/parts/{n}", "Its only part again", "admin", {"load_id": "{load}", "n": "1"},
        body=FULL_STATE),
    Ask("GET /loads", "The latest one", "admin", query={"limit": "1"}),
    Ask("GET /loads/{load_id}", "It waits", "admin", {"load_id": "{load}"}),
    Ask("GET /loads/{load_id}/datasets", "What is new", "admin", {"load_id": "{load}"}, {"change": "new"}),
    Ask("POST /loads/{load_id}/apply", "Look again", "admin", {"load_id": "{load}"}, {"dry_run": "true"}),
    Ask("POST /loads/{load_id}/apply", "Another number than goes", "admin", {"load_id": "{load}"}, {"confirm": "7"}),
    Ask("POST /loads/{load_id}/apply", "Another comparison than was shown", "admin", {"load_id": "{load}"},
        {"compared": "2020-01-01T00:00:00.000000Z"}),
    Ask("POST /loads/{load_id}/cancel", "It was a try", "admin", {"load_id": "{load}"}),
    Ask("POST /bulk/preview", "Mark many, without the right", "guest", body=MARK_OF_MANY),
    Ask("POST /bulk", "Others than those that were shown", "admin",
        body={**MARK_OF_MANY, "digest": f"{'0' * 64}.1700.1700000000000000"}),
    Ask("GET /deletions/rules/{project}", "There are none yet", "admin", {"project": "CMIP6"}),
    Ask("PUT /deletions/rules/{project}", "What a change touches", "admin", {"project": "CMIP6"}, {"dry_run": "true"},
        {"If-Match": '"0"'}, RULES),
    Ask("PUT /deletions/rules/{project}", "Who has to do something", "admin", {"project": "CMIP6"},
        headers={"If-Match": '"0"'}, body=RULES),
    Ask("PUT /deletions/rules/{project}", "Somebody was faster", "admin", {"project": "CMIP6"},
        headers={"If-Match": '"0"'}, body=RULES),
    Ask("GET /deletions/rules/{project}", "The newest", "admin", {"project": "CMIP6"}),
    Ask("GET /deletions/rules", "Of all projects", "admin"),
    Ask("GET /deletions", "What is open", "admin", query={"state": "open"}),
    Ask("GET /deletions", "Without any right", "guest"),
    Ask("GET /deletions/{deletion}", "One that is not there", "admin", NO_DELETION),
    Ask("POST /deletions/{deletion}/waive", "One that is not there", "admin", NO_DELETION,
        body={"name": "east", "reason": "The node is gone."}),
    Ask("POST /deletions/{deletion}/remind", "One that is not there", "admin", NO_DELETION, body={"names": ["east"]}),
    Ask("POST /deletions/{deletion}/delete", "One that is not there", "admin", NO_DELETION),
    Ask("POST /deletions/run", "Nothing is ready", "admin", query={"dry_run": "true"}, body={"project": "CMIP6"}),
    Ask("GET /quarantines", "There are none", "admin"),
    Ask("GET /admin/tombstones", "There are none", "admin", query={"collection": "CMIP6"}),
    Ask("DELETE /collections/{collection_id}", "A project with datasets", "admin", {"collection_id": "CMIP6"}),
    Ask("DELETE /collections/{collection_id}", "What a cascade affects", "admin", {"collection_id": "CMIP6"},
        {"cascade": "true", "dry_run": "true"}),
    Ask("DELETE /collections/{collection_id}", "A cascade of another number", "admin", {"collection_id": "CMIP6"},
        {"cascade": "true", "confirm": "100", "reason": "The project has ended."}),
    Ask("GET /collections/{collection_id}/cascade", "No cascade", "admin", {"collection_id": "CMIP6"}),
    Ask("DELETE /collections/{collection_id}/cascade", "Nothing to cancel", "admin", {"collection_id": "CMIP6"}),
    Ask("GET /conformance", "All classes"),
    Ask("GET /scope", "The scope"),
    Ask("GET /.well-known/oauth-protected-resource", "Without an identity provider"),
    Ask("GET /vocabularies/{project}", "Its versions", path={"project": "CMIP7"}),
    Ask("GET /vocabularies/{project}", "An unknown project", path={"project": "CMIP99"}),
    Ask("GET /vocabularies/{project}/{version}/terms/{facet}", "The terms of a property",
        path={"project": "CMIP6", "version": "current", "facet": "nominal_resolution"}),
    Ask("POST /validate", "A dataset that breaks a rule", "guest",
        body={**FIRST, "properties": {**FIRST["properties"], "cmip6:source_id": "CESM2000"}}),
    Ask("GET /me", "A publisher", "anna"),
    Ask("GET /me", "Without a token"),
    Ask("GET /access/explain", "May the caller publish this?", "anna",
        query={"action": "publish", "item": str(FIRST["id"])}),
    Ask("POST /groups", "A new group", "admin", body=GROUP),
    Ask("GET /groups", "Groups of the caller", "admin"),
    Ask("PUT /groups/{group}/members/{principal:path}", "A new member", "admin", MEMBER),
    Ask("GET /groups/{group}", "As a member", "anna", {"group": "ncar-editors"}),
    Ask("GET /groups/{group}", "As a stranger", "guest", {"group": "ncar-editors"}),
    Ask("PUT /groups/{group}", "Another title", "admin", {"group": "ncar-editors"}, body={**GROUP, "title": "Editors"}),
    Ask("PUT /groups/{group}/managers/{principal:path}", "A new manager", "admin", MEMBER),
    Ask("DELETE /groups/{group}/managers/{principal:path}", "A manager less", "admin", MEMBER),
    Ask("DELETE /groups/{group}/members/{principal:path}", "A member less", "admin", MEMBER),
    Ask("DELETE /groups/{group}", "The group is gone", "admin", {"group": "ncar-editors"}),
    Ask("POST /notifications", "A webhook", "anna", body={"address": "https://hooks.example/x", "on": ["request"]}),
    Ask("GET /notifications", "The caller's destinations", "anna"),
    Ask("GET /notifications/{destination_id}", "One destination", "anna", {"destination_id": "{destination}"}),
    Ask("POST /notifications/{destination_id}/confirm", "A wrong code", "anna", {"destination_id": "{destination}"},
        body={"code": "ABCDEF"}),
    Ask("POST /notifications/{destination_id}/test", "Before it is confirmed", "anna",
        {"destination_id": "{destination}"}),
    Ask("DELETE /notifications/{destination_id}", "It is gone", "anna", {"destination_id": "{destination}"}),
    Ask("POST /sinks", "A webhook", "admin",
        body={"name": "portal", "address": "https://portal.example/hook", "required": False, "from": "now"}),
    Ask("POST /sinks/{sink}/pause", "The receiver moves", "admin", PORTAL, body={"reason": "the receiver moves"}),
    Ask("GET /sinks", "All sinks", "admin"),
    Ask("GET /sinks/{sink}", "One sink", "admin", PORTAL),
    Ask("POST /sinks/{sink}/seek", "A position that is not there", "admin", PORTAL, body={"to": 4711}),
    Ask("POST /sinks/{sink}/audit", "A webhook tells nothing", "admin", PORTAL),
    Ask("POST /sinks/{sink}/resume", "Without the right", "anna", PORTAL),
    Ask("DELETE /sinks/{sink}", "It is gone", "admin", PORTAL),
    Ask("PUT /subscriptions/{subscription}", "Datasets of a model", "guest", MODEL,
        body={"filter": {"collections": ["CMIP6"], "cql2": FILTER}, "from": "start", "batch": 1}),
    Ask("PUT /subscriptions/{subscription}", "A webhook on a private network", "guest", MODEL,
        body={"delivery": "webhook", "url": "http://127.0.0.1/x"}),
    Ask("GET /subscriptions", "The caller's subscriptions", "guest"),
    Ask("GET /subscriptions/{subscription}", "How far it is", "guest", MODEL),
    Ask("GET /subscriptions/{subscription}/next", "Somebody else's", "anna", MODEL),
    Ask("POST /subscriptions/{subscription}/ack", "A cursor of another log", "guest", MODEL, body={"cursor": "7.9"}),
    Ask("POST /subscriptions/{subscription}/nack", "What is not given out", "guest", MODEL,
        body={"event_id": NO_DELETION["deletion"], "reason": "The disk is full."}),
    Ask("POST /subscriptions/{subscription}/seek", "Back to the start", "guest", MODEL, body={"cursor": "start"}),
    Ask("GET /subscriptions/{subscription}/dead-letters", "There are none", "guest", MODEL),
    Ask("POST /subscriptions/{subscription}/dead-letters/{letter}/redrive", "One that is not there", "guest",
        {**MODEL, "letter": "17"}),
    Ask("DELETE /subscriptions/{subscription}", "It is gone", "guest", MODEL),
    Ask("GET /changes", "Nothing of this type", query={"since": "1.0", "types": "dataset.purged"}),
    Ask("GET /changes", "Without a place", query={}),
    Ask("POST /grants", "The files of a dataset, for somebody of another institution", "admin",
        body={"subject": "guest", "dataset": f"CMIP6/{FIRST['id']}", "valid_until": "2999-01-01T00:00:00Z"}),
    Ask("POST /grants", "Without the right", "guest", body={"subject": "guest", "project": "CMIP6",
        "valid_until": "2999-01-01T00:00:00Z"}),
    Ask("POST /grants/import", "Two lines, one of which is refused", "admin", body={"grants": [
        {"subject": "guest", "project": "CMIP6", "valid_until": "2999-01-01T00:00:00Z"},
        {"subject": "guest", "dataset": "CMIP6/nothing", "valid_until": "2999-01-01T00:00:00Z"}]}),
    Ask("GET /private", "There are none", "guest", query={"limit": "1", "collection": "CMIP6"}),
    Ask("GET /grants", "One's own", "guest", query={"limit": "1"}),
    Ask("GET /grants", "As visas", "guest", query={"format": "ga4gh", "project": "CMIP6"}),
    Ask("GET /grants/check", "A node that serves files asks", "east",
        query={"subject": "guest", "dataset": f"CMIP6/{FIRST['id']}"}),
    Ask("GET /grants/{grant}", "One that is not there", "admin", {"grant": NO_DELETION["deletion"]}),
    Ask("DELETE /grants/{grant}", "One that is not there", "admin", {"grant": NO_DELETION["deletion"]}),
    Ask("DELETE /grants", "All of a project", "admin", query={"project": "CMIP6", "reason": "the embargo is over"}),
    Ask("GET /dead-letters", "There are none", "admin"),
    Ask("GET /dead-letters/{letter}", "One that is not there", "admin", {"letter": "17"}),
    Ask("POST /dead-letters/redrive", "One that is not there", "admin", body={"ids": [17]}),
    Ask("POST /dead-letters/discard", "One that is not there", "admin", body={"ids": [17]}),
    Ask("GET /parked-events", "There are none", "admin"),
    Ask("GET /parked-events/{event}", "One that is not there", "admin", {"event": "17"}),
    Ask("POST /parked-events/requeue", "One that is not there", "admin", body={"ids": [17]}),
    Ask("POST /parked-events/discard", "One that is not there", "admin", body={"ids": [17]}),
    Ask("GET /events/head", "The last position", "east"),
    Ask("GET /events", "Events of another type", "east", query={"after": "1.0", "type": "none"}),
    Ask("GET /events", "As a person", "anna"),
    Ask("GET /events/stream", "As a person", "anna"),
    Ask("POST /events/status", "Everything so far", "east", body={"epoch": 1, "through": 1, "exceptions": []}),
    Ask("POST /deletions/reports", "A dataset that is not marked", "east",
        body={"reports": [{"collection": "CMIP6", "dataset": str(FIRST["id"]), "outcome": "ok"}]}),
    Ask("POST /deletions/reports", "For another node", "east",
        body={"reports": [{"event_id": "00000000-0000-0000-0000-000000000007", "name": "south", "outcome": "ok"}]}),
    Ask("GET /dapr/subscribe", "No topic is configured", "east"),
    Ask("POST /dapr/deletion-reports", "A service deleted what is not marked", "east",
        body={"id": "7", "time": "2026-01-01T00:00:00Z",
              "data": {"operation": "DELETE", "collection": "CMIP6", "id": FIRST["id"]}}),
    Ask("POST /dapr/deletion-reports", "No report", "east", body={"data": "hello"}),
    Ask("GET /digests", "Fingerprints", "east"),
    Ask("GET /schemas/messages/v1/{format}", "Ids and operations", path={"format": "crud"}),
    Ask("GET /schemas/messages/v1/{format}", "No format", path={"format": "xml"}),
    Ask("GET /healthcheck", "All is well"),
    Ask("GET /readiness", "Ready"),
    Ask("GET /livez", "The process is alive"),
    Ask("GET /readyz", "Ready to serve"),
    Ask("GET /federation", "One node is behind", "admin"),
    Ask("GET /_mgmt/ping", "The process runs"),
    Ask("GET /_mgmt/health", "The process runs"),
    Ask("GET /problems/{name}", "One type", path={"name": "conflict"}),
)  # fmt: skip


class Scenario:
    """Sends the requests of the scenario to a node, one after the other.

    tokens: the tokens of the callers, by their names.
    """

    def __init__(self, client: httpx.AsyncClient, tokens: Mapping[str, str]) -> None:
        self._client, self._tokens = client, tokens
        self._last = {"request": "", "destination": "", "bulk": "", "digest": "", "load": ""}
        self._stable_ids = set(UUID.findall(orjson.dumps([ask.body for ask in SCENARIO]).decode()))
        self._ids: dict[str, str] = {}

    async def exchange(self, ask: Ask) -> Example:
        """Send one request; return it with its answer, both without what differs from run to run."""
        names = {name: value.format(**self._last) for name, value in ask.path.items()}
        method, template = ask.operation.split(" ")
        if template in ("/healthcheck", "/readiness", "/readyz", "/federation"):
            await self.settle()
        path = re.sub(r"{(\w+)(?::path)?}", lambda match: quote(names[match[1]], safe=""), template)
        headers = {"Content-Type": "application/json", **ask.headers} if ask.body is not None else dict(ask.headers)
        if ask.caller:
            headers["Authorization"] = f"Bearer {self._tokens[ask.caller]}"
        content = orjson.dumps(ask.body) if ask.body is not None else None
        if content is not None:
            content = content.replace(SHOWN.encode(), self._last["digest"].encode())
        answer = await self._client.request(
            method, path, params=ask.query, headers={**headers, "X-Request-Id": "example"}, content=content
        )
        value = orjson.loads(answer.content) if answer.content else None
        await self._remember(template, value)
        return Example(
            operation=ask.operation, summary=ask.summary, status=answer.status_code, caller=ask.caller,
            path={name: self._comparable_text(value) for name, value in names.items()}, query=ask.query,
            headers=ask.headers, body=ask.body, answer=self._comparable(value),
        )  # fmt: skip

    async def settle(self) -> None:
        """Wait until the node is at rest: what it says of itself no longer changes."""

        async def is_idle() -> bool:
            health = (await self._client.get("/healthcheck")).json()
            return bool(health["status"] == "ok" and health["workers"] == "idle")

        await until(is_idle)

    async def _remember(self, template: str, value: Any) -> None:
        """Keep the id of what was made. A request is waited for: later ones ask what became of it."""
        if template == "/bulk/preview" and "digest" in value:
            self._last["digest"] = value["digest"]
        if template == "/collections/{collection_id}/reconcile" and "id" in value:
            self._last["load"] = value["id"]
        if template == "/bulk" and value.get("status") == "waiting":
            bulk = self._last["bulk"] = value["id"]

            async def is_done() -> bool:
                headers = {"Authorization": f"Bearer {self._tokens['admin']}"}
                return (await self._client.get(f"/bulk/{bulk}", headers=headers)).json()["finished"] is not None

            await until(is_done)
        if isinstance(value, dict) and template == ITEMS and value.get("status") == "queued":
            request = self._last["request"] = value["id"]
            headers = {"Authorization": f"Bearer {self._tokens['admin']}"}

            async def is_announced() -> bool:
                answer = await self._client.get(f"/requests/{request}", headers=headers)
                return answer.json()["position"] is not None

            await until(is_announced)
        if isinstance(value, dict) and template == "/notifications" and "address" in value:
            self._last["destination"] = value["id"]

    def _comparable(self, value: Any, key: str = "") -> Any:
        match value:
            case dict():
                return {name: self._comparable(member, name) for name, member in value.items()}
            case list():
                return [self._comparable(entry, key) for entry in value]
            case str() if key in TIMES and value[:2] == "20":
                return MOMENT
            case str() if key in CHANGING:
                return CHANGING[key]
            case str():
                return self._comparable_text(value)
            case float() if key.endswith("_seconds"):
                return 1.5
            case float() if key == "rate":
                return 420.0
            case int() if key == "lag_events":
                return 6
            case int() if key in ("iat", "nbf", "asserted"):
                return 1795867200  # MOMENT
        return value

    def _comparable_text(self, text: str) -> str:
        """Return a text with the ids that this run made up replaced, in the order in which they came."""

        def replaced(match: re.Match[str]) -> str:
            if match[0] in self._stable_ids:
                return match[0]
            return self._ids.setdefault(match[0], f"00000000-0000-4000-8000-{len(self._ids) + 1:012}")

        text = TOKEN.sub("dG9rZW4", text)
        return UUID.sub(replaced, text.replace(f"fedstac {__version__}", "fedstac 1.0.0"))


async def record(dsn: str) -> list[Example]:
    """Return the exchanges of the scenario with a new node on a database."""
    settings = Settings(dsn=dsn, node="west", public_url=PUBLIC_URL, _env_file=None)
    conn = await asyncpg.connect(dsn)
    try:
        tokens = {name: await nodes.issue_token(conn, name, roles) for name, roles in TOKENS.items()}
    finally:
        await conn.close()
    async with running(settings) as api:
        scenario = Scenario(api.anyone, tokens)
        await scenario.settle()
        return [await scenario.exchange(ask) for ask in SCENARIO]
