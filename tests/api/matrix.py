"""The authorisation matrix over HTTP: who asks × what is asked × the state of the dataset, and what it comes to.

TABLE says it, in sentences about people and states; whoever is in no sentence is refused (`refused`). It is written
from design/publication.md and deletion.md, and knows nothing of how the policy decides.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Final

from fedstac.demo import sample
from fedstac.domain import strict_json
from fedstac.domain.alternates import replica_edit
from tests.api.patches import add, replace

Json = Any

# --- who ---

NOBODY = "nobody: no token"
MADE_UP = "somebody with a token that nobody gave out"
KNOWN = "somebody who is known and has no rights"
ADMIN = "an administrator"
NCAR = "a publisher of the institution"
MPI = "a publisher of another institution"
EAST = "the operator of the node east"
SOUTH = "the operator of the node south"
BOTH = "a publisher of the institution who operates east"
MEMBER = "a member of the institution's own group"
OUTSIDER = "a member of another institution's own group"
MANAGER = "a manager of the institution's own group"
GLOBUS = "a member of the institution's Globus group"
CREATOR = "the holder of EGI's CREATE for the institution, at every node"
HALF = "the holder of EGI's CREATE for the institution, at no node"
UPDATER = "the holder of EGI's UPDATE"
UPDATER_THERE = "the holder of EGI's UPDATE, at every node"
RETRACTOR = "the holder of EGI's RETRACT"
DELETER = "the holder of EGI's DELETE"
REPLICATOR = "the holder of EGI's REPLICATE at east"
ANNOTATOR = "the holder of EGI's ERRATA"


def urn(kind: str, name: str, right: str, institution: str = "") -> str:
    at = f":institution:{institution}" if institution else ""
    return f"urn:mace:egi.eu:group:esgf.vo.egi.eu:{kind}:{name}{at}:role={right}#aai.egi.eu"


ROLES: Final[Mapping[str, tuple[str, ...]]] = {  # of a token of the node's own
    KNOWN: ("observer",), ADMIN: ("admin",), NCAR: ("publisher:NCAR",), MPI: ("publisher:MPI-M",),
    EAST: ("node:east",), SOUTH: ("node:south",), BOTH: ("publisher:NCAR", "node:east"), MEMBER: ("observer",),
    OUTSIDER: ("observer",), MANAGER: ("observer",),
}  # fmt: skip
CLAIMS: Final[Mapping[str, Json]] = {  # of a token of an identity provider
    GLOBUS: {"groups": ["AAAA-1"], "eduperson_entitlement": []},
    CREATOR: {"eduperson_entitlement": [urn("project", "CMIP6", "CREATE", "NCAR"), urn("node", "*", "CREATE")]},
    HALF: {"eduperson_entitlement": [urn("project", "CMIP6", "CREATE", "NCAR")]},
    UPDATER: {"eduperson_entitlement": [urn("project", "CMIP6", "UPDATE")]},
    UPDATER_THERE: {"eduperson_entitlement": [urn("project", "CMIP6", "UPDATE"), urn("node", "*", "UPDATE")]},
    RETRACTOR: {"eduperson_entitlement": [urn("project", "*", "RETRACT", "NCAR")]},
    DELETER: {"eduperson_entitlement": [urn("project", "CMIP6", "DELETE")]},
    REPLICATOR: {"eduperson_entitlement": [urn("project", "CMIP6", "REPLICATE"), urn("node", "east", "REPLICATE")]},
    ANNOTATOR: {"eduperson_entitlement": [urn("project", "CMIP6", "ERRATA")]},
}
NO_DELETION = "01a2261e-0000-7000-8000-000000000001"
STRANGERS = (NOBODY, MADE_UP)
WHO: Final = (*STRANGERS, *ROLES, *CLAIMS)
EVERYBODY = WHO
ALL_KNOWN = (*ROLES, *CLAIMS)
PUBLISHERS = (ADMIN, NCAR, BOTH, MEMBER, GLOBUS)
CREATORS = (*PUBLISHERS, CREATOR)
UPDATERS = (*PUBLISHERS, UPDATER, UPDATER_THERE)
RETRACTORS = (*PUBLISHERS, RETRACTOR)
DELETERS = (*PUBLISHERS, DELETER)
ANNOTATORS = (*PUBLISHERS, ANNOTATOR)
EASTERNERS = (ADMIN, EAST, BOTH, REPLICATOR)
SOUTHERNERS = (ADMIN, SOUTH)
NODES = (EAST, SOUTH, BOTH, REPLICATOR)
AMENDERS = (*UPDATERS, RETRACTOR, ANNOTATOR, EAST, SOUTH, REPLICATOR)  # who may change something of it by a patch

# --- the dataset, and the state that it is in ---

ABSENT, LATEST, SUPERSEDED, RETRACTED, MARKED, REPLICATED, FOREIGN = STATES = (
    "absent", "the latest", "superseded", "retracted", "marked for deletion", "with replicas at east and south",
    "of another node",
)  # fmt: skip
HERE = (LATEST, SUPERSEDED, REPLICATED)
SEEN = (*HERE, RETRACTED)
EVERYWHERE = STATES
NO_DATASET = "no dataset is asked about"
ITEM: Json = next(item for item in sample.items(300) if item["properties"]["cmip6:institution_id"] == "NCAR")
REASON = {"reason": "wrong forcing"}


@dataclass(frozen=True)
class Dataset:
    """One of as many lineages as are wanted; they differ in the member."""

    n: int

    @cached_property
    def document(self) -> Json:
        text = json.dumps(ITEM).replace(ITEM["properties"]["cmip6:variant_label"], f"r{self.n}i1p1f1")
        return strict_json.parse(text.encode())

    @property
    def id(self) -> str:
        return str(self.document["id"])

    @property
    def files(self) -> list[str]:
        return [key for key, asset in self.document["assets"].items() if "file:checksum" in asset]

    def version(self, day: str) -> Json:
        return json.loads(json.dumps(self.document).replace(self.document["properties"]["version"], day))

    def described(self) -> Json:
        return {**self.document, "properties": {**self.document["properties"], "description": "in other words"}}

    def at(self, node: str, path: str = "file") -> dict[str, Json]:
        """Return a node's entries, by file."""
        return {key: {"href": f"https://{node}.example/{path}", "description": "HTTPServer Link", "roles": ["data"],
                      "alternate:name": node} for key in self.files}  # fmt: skip

    def replica(self, node: str, path: str = "file") -> list[Json]:
        return list(replica_edit(self.at(node, path), node))

    def without(self, node: str) -> list[Json]:
        return [{**one, "op": "remove"} for one in self.replica(node)]


# --- what is asked ---

COLLECTION = "/collections/{collection_id}"
ITEMS, PLACE = f"{COLLECTION}/items", f"{COLLECTION}/items/{{item_id}}"

READS = ("/search", "/validate", "/events/status", "/bulk/preview")  # POST, and nothing is written


@dataclass(frozen=True)
class MatrixRequest:
    """A request: a method, a route with its parts, and what goes with it."""

    method: str
    route: str
    parts: Mapping[str, str] = field(default_factory=dict)
    body: Json = None
    query: Mapping[str, str] = field(default_factory=dict)
    headers: Mapping[str, str] = field(default_factory=dict)

    @property
    def path(self) -> str:
        return self.route.replace(":path}", "}").format(**{"collection_id": "CMIP6", **self.parts})

    @property
    def writes(self) -> bool:
        """Whether a refusal of it is one of a write: it has a row in the audit log (I20)."""
        reads = self.method in ("GET", "HEAD", "OPTIONS") or self.route in READS
        return not reads and "dry_run" not in self.query


def posts(document: Callable[[Dataset], Json], **query: str) -> Callable[[Dataset], MatrixRequest]:
    return lambda dataset: MatrixRequest("POST", ITEMS, body=document(dataset), query=query)


def asks(
    method: str, body: Callable[[Dataset], Json] = lambda _: None, suffix: str = "", *, node: str = "",
    headers: Mapping[str, str] | None = None, **query: str,
) -> Callable[[Dataset], MatrixRequest]:  # fmt: skip
    """Return a request for one dataset, or for what is below it."""
    return lambda dataset: MatrixRequest(
        method, PLACE + suffix, {"item_id": dataset.id, "node": node}, body(dataset), query, headers or {}
    )


LATEST_FALSE, RETRACTED_TRUE = replace("/properties/latest", False), replace("/properties/retracted", True)
ERRATA = add("/links/-", {"rel": "related", "href": "https://errata.esgf.io/1", "title": "Errata issue",
                          "type": "text/html"})  # fmt: skip
DESCRIPTION = add("/properties/description", "in other words")


def other_file(dataset: Dataset) -> Json:
    return {"assets": {dataset.files[0]: {"file:checksum": "1220" + "0" * 64}}}


PUBLISHING: Final[Mapping[str, Callable[[Dataset], MatrixRequest]]] = {
    "publish it": posts(lambda dataset: dataset.document),
    "publish it with another description": posts(Dataset.described),
    "publish a newer version": posts(lambda dataset: dataset.version("20991231")),
    "rehearse publishing a newer version": posts(lambda dataset: dataset.version("20991231"), dry_run="true"),
}
CHANGES: Final[Mapping[str, Callable[[Dataset], MatrixRequest]]] = {
    "put it with another description": asks("PUT", Dataset.described),
    "put it as it is": asks("PUT", lambda dataset: dataset.document),
    "patch nothing": asks("PATCH", lambda _: []),
    "patch its description": asks("PATCH", lambda _: DESCRIPTION),
    "rehearse patching its description": asks("PATCH", lambda _: DESCRIPTION, dry_run="true"),
    "merge its description": asks("PATCH", lambda _: {"properties": {"description": "in other words"}}),
    "patch its description as of long ago": asks("PATCH", lambda _: DESCRIPTION, headers={"If-Match": '"0"'}),
    "patch its address": asks("PATCH", lambda dataset: replace(
        "/assets/" + dataset.files[0] + "/href", "https://moved.example/file")),
    "patch its id": asks("PATCH", lambda _: replace("/id", "x")),
    "patch its institution": asks("PATCH", lambda _: {"properties": {"cmip6:institution_id": "MPI-M"}}),
    "patch its files": asks("PATCH", other_file),
    "patch its files, with a reason": asks("PATCH", other_file, headers={"Fedstac-Override": "a better file"}),
    "patch latest to false": asks("PATCH", lambda _: LATEST_FALSE),
    "patch latest to true": asks("PATCH", lambda _: {"properties": {"latest": True}}),
    "patch retracted to true": asks("PATCH", lambda _: RETRACTED_TRUE),
    "patch retracted to true as ESGF does": asks("PATCH", lambda _: [
        *LATEST_FALSE, *RETRACTED_TRUE, *replace("/assets", {})]),
    "patch retracted to false": asks("PATCH", lambda _: {"properties": {"retracted": False}}),
    "patch a link in": asks("PATCH", lambda _: ERRATA),
    "patch east's replica in": asks("PATCH", lambda dataset: dataset.replica("east")),
    "patch south's replica in": asks("PATCH", lambda dataset: dataset.replica("south")),
    "patch south's replica away": asks("PATCH", lambda dataset: dataset.without("south")),
    "patch east's and south's replicas in": asks("PATCH", lambda dataset: [
        *dataset.replica("east", "moved"), *dataset.replica("south", "moved")]),
    "patch its description and east's replica": asks("PATCH", lambda dataset: [
        *DESCRIPTION, *dataset.replica("east", "moved")]),
    "patch a link in and retract it": asks("PATCH", lambda _: [*ERRATA, *RETRACTED_TRUE]),
    "retract it": asks("POST", lambda _: REASON, "/retract"),
    "reinstate it": asks("POST", suffix="/reinstate"),
    "say where east's replica is": asks("PUT", lambda dataset: dataset.at("east"), "/replicas/{node}", node="east"),
    "say where south's replica is": asks("PUT", lambda dataset: dataset.at("south"), "/replicas/{node}", node="south"),
    "take east's replica away": asks("DELETE", suffix="/replicas/{node}", node="east"),
    "take south's replica away": asks("DELETE", suffix="/replicas/{node}", node="south"),
    "mark it": asks("DELETE"),
    "unmark it": asks("POST", suffix="/unmark"),
    "quarantine it": asks("POST", lambda _: {"reason": "personal data"}, "/quarantine"),
    "release it": asks("POST", suffix="/release"),
    "delete it": asks("POST", suffix="/delete"),
    "purge it": asks("POST", suffix="/purge"),
}  # fmt: skip
READING: Final[Mapping[str, Callable[[Dataset], MatrixRequest]]] = {
    "get it": asks("GET"),
    "ask for its headers": asks("HEAD"),
    "ask what may be sent": asks("OPTIONS"),
    "see its history": asks("GET", suffix="/history"),
}


def fixed(method: str, route: str, body: Json = None, **parts: str) -> Callable[[Dataset], MatrixRequest]:
    return lambda _: MatrixRequest(method, route, parts, body)


def group(name: str) -> Json:
    return {"name": name, "project": "CMIP6", "institution": "NCAR", "title": ""}


def collection(name: str) -> Json:
    return {**sample.collection(), "id": name}


SOMEBODY_ELSES = "00000000-0000-4000-8000-000000000001"  # a destination, and a request, of neither of those who ask
ELSE: Final[Mapping[str, Callable[[Dataset], MatrixRequest]]] = {
    "see who one is": fixed("GET", "/me"),
    "see one's requests": fixed("GET", "/requests"),
    "see somebody else's request": fixed("GET", "/requests/{request_id}", request_id=SOMEBODY_ELSES),
    "see somebody else's results": fixed("GET", "/requests/{request_id}/items", request_id=SOMEBODY_ELSES),
    "cancel somebody else's request": fixed("POST", "/requests/{request_id}/cancel", request_id=SOMEBODY_ELSES),
    "retry somebody else's request": fixed("POST", "/requests/{request_id}/retry", request_id=SOMEBODY_ELSES),
    "validate": fixed("POST", "/validate", ITEM),
    "ask how datasets stand": fixed("POST", "/datasets/status", [ITEM["id"]]),
    "ask what one may": lambda _: MatrixRequest(
        "GET", "/access/explain", query={"action": "update", "item": ITEM["id"]}
    ),
    "ask what another may": lambda _: MatrixRequest(
        "GET", "/access/explain", query={"action": "update", "item": ITEM["id"], "as": "role:admin"}),
    "read the feed": fixed("GET", "/events"),
    "stream the feed": lambda _: MatrixRequest("GET", "/events/stream", query={"wait": "0"}),
    "read the feed's head": fixed("GET", "/events/head"),
    "read a snapshot": fixed("GET", "/snapshot"),
    "read the manifest of files": lambda _: MatrixRequest("GET", "/snapshot", query={"format": "geoparquet"}),
    "read a part of a snapshot": fixed("GET", "/snapshot/parts/{part}", part="records-1.parquet"),
    "read the digests": fixed("GET", "/digests"),
    "acknowledge": fixed("POST", "/events/status", {"epoch": 1, "through": 0}),
    "acknowledge for another node": fixed("POST", "/events/status", {"node": "north", "epoch": 1, "through": 0}),
    "report on a deletion": fixed("POST", "/deletions/reports", {"reports": []}),
    "report on a deletion for another node": fixed(
        "POST", "/deletions/reports",
        {"reports": [{"collection": "CMIP6", "dataset": "x", "name": "nowhere", "outcome": "ok"}]}),
    "ask what a sidecar brings": fixed("GET", "/dapr/subscribe"),
    "report on a deletion by a sidecar": fixed("POST", "/dapr/deletion-reports", {"data": {"reports": []}}),
    "read the metrics": fixed("GET", "/metrics"),
    "look at the federation": fixed("GET", "/federation"),
    "see the sinks": fixed("GET", "/sinks"),
    "see a sink that is not there": fixed("GET", "/sinks/{sink}", sink="none"),
    "add a sink": fixed("POST", "/sinks", {"name": "made", "address": "https://portal.example/hook", "from": "now"}),
    "remove a sink that is not there": fixed("DELETE", "/sinks/{sink}", sink="none"),
    "pause a sink that is not there": fixed("POST", "/sinks/{sink}/pause", {}, sink="none"),
    "resume a sink that is not there": fixed("POST", "/sinks/{sink}/resume", sink="none"),
    "seek a sink that is not there": fixed("POST", "/sinks/{sink}/seek", {"to": "now"}, sink="none"),
    "audit a sink that is not there": fixed("POST", "/sinks/{sink}/audit", {}, sink="none"),
    "see one's subscriptions": fixed("GET", "/subscriptions"),
    "subscribe to what is nothing": fixed(
        "PUT", "/subscriptions/{subscription}", {"delivery": "none"}, subscription="own"),
    "read what changed since no place": fixed("GET", "/changes"),
    **{
        f"{deed} somebody else's subscription": fixed(
            method, "/subscriptions/{subscription}" + path, *body, subscription="none"
        )
        for deed, method, path, *body in (
            ("see", "GET", ""), ("remove", "DELETE", ""), ("read", "GET", "/next"),
            ("acknowledge for", "POST", "/ack", {"cursor": "1.0"}), ("refuse for", "POST", "/nack", {"event_id": "x"}),
            ("seek", "POST", "/seek", {"cursor": "head"}), ("see the dead letters of", "GET", "/dead-letters"),
        )
    },
    "redrive for somebody else's subscription": fixed(
        "POST", "/subscriptions/{subscription}/dead-letters/{letter}/redrive", subscription="none", letter="1"),
    "see one's changes of many": fixed("GET", "/bulk"),
    "see somebody else's change of many": fixed("GET", "/bulk/{bulk_id}", bulk_id=SOMEBODY_ELSES),
    "see somebody else's datasets of many": fixed("GET", "/bulk/{bulk_id}/datasets", bulk_id=SOMEBODY_ELSES),
    "cancel somebody else's change of many": fixed("POST", "/bulk/{bulk_id}/cancel", bulk_id=SOMEBODY_ELSES),
    "look at a change of many": fixed(
        "POST", "/bulk/preview",
        {"action": "release", "ids": ["nothing"], "collections": ["CMIP6"]}),
    "change many with another digest": fixed(
        "POST", "/bulk",
        {"action": "release", "ids": ["nothing"], "collections": ["CMIP6"], "digest": "0" * 64 + ".1.1"}),
    "look at a load of everything": lambda _: MatrixRequest(
        "POST", "/collections/{collection_id}/reconcile", {"collection_id": "CMIP6"}, query={"dry_run": "true"}),
    "see one's loads": fixed("GET", "/loads"),
    "see somebody else's load": fixed("GET", "/loads/{load_id}", load_id=SOMEBODY_ELSES),
    "see somebody else's datasets of a load": fixed("GET", "/loads/{load_id}/datasets", load_id=SOMEBODY_ELSES),
    "send a part of somebody else's load": fixed("PUT", "/loads/{load_id}/parts/{n}", load_id=SOMEBODY_ELSES, n="2"),
    "apply somebody else's load": fixed("POST", "/loads/{load_id}/apply", load_id=SOMEBODY_ELSES),
    "cancel somebody else's load": fixed("POST", "/loads/{load_id}/cancel", load_id=SOMEBODY_ELSES),
    "see how a collection is deleted": fixed("GET", "/collections/{collection_id}/cascade", collection_id="CMIP6"),
    "let a collection stay": fixed("DELETE", "/collections/{collection_id}/cascade", collection_id="CMIP6"),
    "see the deletions": fixed("GET", "/deletions"),
    "see a deletion that is not there": fixed("GET", "/deletions/{deletion}", deletion=NO_DELETION),
    "waive for a deletion that is not there": fixed(
        "POST", "/deletions/{deletion}/waive", {"name": "east", "reason": "gone"}, deletion=NO_DELETION),
    "remind for a deletion that is not there": fixed("POST", "/deletions/{deletion}/remind", {}, deletion=NO_DELETION),
    "delete by a deletion that is not there": fixed("POST", "/deletions/{deletion}/delete", deletion=NO_DELETION),
    "try to delete what is ready": lambda _: MatrixRequest("POST", "/deletions/run", {}, {}, query={"dry_run": "true"}),
    "see all rules of deletion": fixed("GET", "/deletions/rules"),
    "see the rules of a project without": fixed("GET", "/deletions/rules/{project}", project="CMIP6"),
    "try rules of deletion": lambda _: MatrixRequest(
        "PUT", "/deletions/rules/{project}", {"project": "CMIP6"}, {}, query={"dry_run": "true"}),
    "see the cases of quarantine": fixed("GET", "/quarantines"),
    "see the tombstones": fixed("GET", "/admin/tombstones"),
    "see the private datasets": fixed("GET", "/private"),
    "see one's grants": fixed("GET", "/grants"),
    "see a grant that is not there": fixed("GET", "/grants/{grant}", grant=NO_DELETION),
    "give a grant of a project": fixed(
        "POST", "/grants", {"subject": "bert", "project": "CMIP6", "valid_until": "2999-01-01T00:00:00Z"}),
    "import no grants": fixed("POST", "/grants/import", {"grants": []}),
    "check somebody's grants": lambda _: MatrixRequest(
        "GET", "/grants/check", query={"subject": "bert", "dataset": "CMIP6/x"}),
    "withdraw a grant that is not there": fixed("DELETE", "/grants/{grant}", grant=NO_DELETION),
    "withdraw the grants of nobody": lambda _: MatrixRequest("DELETE", "/grants", query={"subject": "nobody"}),
    "see the dead letters": fixed("GET", "/dead-letters"),
    "see a dead letter that is not there": fixed("GET", "/dead-letters/{letter}", letter="7"),
    "redrive a dead letter that is not there": fixed("POST", "/dead-letters/redrive", {"ids": [7]}),
    "discard a dead letter that is not there": fixed("POST", "/dead-letters/discard", {"ids": [7]}),
    "see the parked events": fixed("GET", "/parked-events"),
    "see a parked event that is not there": fixed("GET", "/parked-events/{event}", event="7"),
    "requeue a parked event that is not there": fixed("POST", "/parked-events/requeue", {"ids": [7]}),
    "discard a parked event that is not there": fixed("POST", "/parked-events/discard", {"ids": [7]}),
    "see the groups": fixed("GET", "/groups"),
    "see the institution's group": fixed("GET", "/groups/{group}", group="ncar"),
    "see a group that is not there": fixed("GET", "/groups/{group}", group="none"),
    "make a group": fixed("POST", "/groups", group("made")),
    "change a group": fixed("PUT", "/groups/{group}", {**group("ncar"), "title": "Publishers"}, group="ncar"),
    "delete a group": fixed("DELETE", "/groups/{group}", group="spare"),
    "take a member in": lambda dataset: MatrixRequest(
        "PUT", "/groups/{group}/members/{principal:path}", {"group": "ncar", "principal": f"new {dataset.n}"}),
    "put a member out": lambda dataset: MatrixRequest(
        "DELETE", "/groups/{group}/members/{principal:path}", {"group": "ncar", "principal": f"old {dataset.n}"}),
    "name a manager": fixed("PUT", "/groups/{group}/managers/{principal:path}", group="ncar", principal="new"),
    "dismiss a manager": fixed("DELETE", "/groups/{group}/managers/{principal:path}", group="ncar", principal="old"),
    "make a collection": fixed("POST", "/collections", collection("made")),
    "change a collection": fixed("PUT", COLLECTION, {**collection("spare"), "title": "x"}, collection_id="spare"),
    "patch a collection": fixed("PATCH", COLLECTION, {"title": "y"}, collection_id="spare"),
    "delete a collection": fixed("DELETE", COLLECTION, collection_id="spare"),
    "see one's destinations": fixed("GET", "/notifications"),
    "register a mailbox where no mail is sent": fixed("POST", "/notifications", {"address": "mailto:x@west.example"}),
    "see somebody else's destination": fixed("GET", "/notifications/{destination_id}", destination_id=SOMEBODY_ELSES),
    "delete somebody else's destination": fixed(
        "DELETE", "/notifications/{destination_id}", destination_id=SOMEBODY_ELSES),
    "confirm somebody else's destination": fixed(
        "POST", "/notifications/{destination_id}/confirm", {"code": "x"}, destination_id=SOMEBODY_ELSES),
    "test somebody else's destination": fixed(
        "POST", "/notifications/{destination_id}/test", destination_id=SOMEBODY_ELSES),
}  # fmt: skip
PUBLIC: Final[Mapping[str, Callable[[Dataset], MatrixRequest]]] = {
    f"{method} {route}": fixed(method, route, {} if method == "POST" else None, **parts)
    for method, route, parts in (
        ("GET", "/", {}), ("GET", "/conformance", {}), ("GET", "/queryables", {}), ("GET", "/search", {}),
        ("POST", "/search", {}), ("GET", "/collections", {}), ("GET", "/children", {}),
        ("GET", "/collection-queryables", {}), ("GET", COLLECTION, {}),
        ("GET", COLLECTION + "/queryables", {}), ("GET", ITEMS, {}), ("GET", "/aggregate", {}),
        ("POST", "/aggregate", {}), ("GET", "/aggregations", {}), ("GET", COLLECTION + "/aggregate", {}),
        ("POST", COLLECTION + "/aggregate", {}), ("GET", COLLECTION + "/aggregations", {}),
        ("GET", "/vocabularies", {}),
        ("GET", "/vocabularies/{project}", {"project": "CMIP6"}),
        ("GET", "/vocabularies/{project}/{version}", {"project": "CMIP6", "version": "6.2.60.0"}),
        ("GET", "/vocabularies/{project}/{version}/terms/{facet}",
         {"project": "CMIP6", "version": "6.2.60.0", "facet": "cmip6:source_id"}),
        ("GET", "/extensions/{name}/{version}/schema.json", {"name": "fedstac", "version": "v1.0.0"}),
        ("GET", "/healthcheck", {}), ("GET", "/readiness", {}), ("GET", "/livez", {}), ("GET", "/readyz", {}),
        ("GET", "/scope", {}),
        ("GET", "/.well-known/oauth-protected-resource", {}),
        ("GET", "/problems", {}), ("GET", "/problems/{name}", {"name": "conflict"}), ("GET", "/api", {}),
        ("GET", "/asyncapi.json", {}), ("GET", "/schemas/messages/v1/{format}", {"format": "ogc"}),
        ("GET", "/api.html", {}), ("GET", "/api-assets/{name}", {"name": "start.js"}), ("GET", "/_mgmt/ping", {}),
        ("GET", "/_mgmt/health", {}),
    )
}  # fmt: skip
DATASETS: Final = {**PUBLISHING, **CHANGES, **READING}
DEEDS: Final = {**DATASETS, **ELSE, **PUBLIC}

# --- what it comes to: a problem's name, the outcome of a write, what may be sent, or that it is answered ---

ANSWERED, DONE = "answered", "done"
UNKNOWN, FORBIDDEN, GONE, CONFLICT = "unauthenticated", "missing-permission", "item-does-not-exist", "conflict"
FOREIGN_ORIGIN, INVALID, NOT_FOUND = "foreign-origin", "stac-validation", "not-found"
IDENTICAL = "identical"


@dataclass(frozen=True)
class Line:
    """These people, who ask this of a dataset in these states, come to that."""

    who: tuple[str, ...]
    deeds: tuple[str, ...]
    states: tuple[str, ...]
    comes_to: str


DESCRIBING = ("put it with another description", "patch its description", "rehearse patching its description",
              "merge its description")  # fmt: skip
RETRACTING = ("patch retracted to true", "patch retracted to true as ESGF does")
REMOVING = ("mark it", "unmark it", "quarantine it", "release it", "delete it", "purge it")
CHANGING = tuple(deed for deed in CHANGES if deed not in REMOVING)

TABLE: Final[tuple[Line, ...]] = (
    # publishing
    Line(CREATORS, ("publish it", "publish it with another description"), (ABSENT,), "new"),
    Line(CREATORS, ("publish it",), HERE, IDENTICAL),
    Line(PUBLISHERS, ("publish it with another description",), HERE, "updated"),
    Line(CREATORS, ("publish it", "publish it with another description"), (RETRACTED,), CONFLICT),
    Line(tuple(who for who in CREATORS if who in DELETERS), ("publish it", "publish it with another description"),
         (MARKED,), "marked-for-deletion"),
    Line(tuple(who for who in CREATORS if who not in DELETERS), ("publish it", "publish it with another description"),
         (MARKED,), CONFLICT),
    Line(CREATORS, ("publish a newer version", "rehearse publishing a newer version"), (ABSENT,), "new"),
    Line(CREATORS, ("publish a newer version", "rehearse publishing a newer version"), (*SEEN, MARKED), "newer"),
    Line(CREATORS, tuple(PUBLISHING), (FOREIGN,), FOREIGN_ORIGIN),
    # describing
    Line(UPDATERS, DESCRIBING, HERE, "updated"),
    Line(UPDATERS, DESCRIBING, (RETRACTED,), CONFLICT),
    Line((*PUBLISHERS, UPDATER_THERE), ("patch its address",), HERE, "updated"),  # needs the right at the asset's node
    Line((*PUBLISHERS, UPDATER_THERE), ("patch its address",), (RETRACTED,), CONFLICT),
    # what a dataset is known by, and its files
    Line(AMENDERS, ("patch its id", "patch its institution"), SEEN, INVALID),
    Line((ADMIN,), ("patch its files",), SEEN, CONFLICT),
    Line((ADMIN,), ("patch its files, with a reason",), HERE, "replaced"),
    Line((ADMIN,), ("patch its files, with a reason",), (RETRACTED,), CONFLICT),
    Line(ALL_KNOWN, ("patch its description as of long ago",), SEEN, "precondition-failed"),
    # what changes nothing is for those who might change something
    Line(AMENDERS, ("put it as it is", "patch nothing"), SEEN, IDENTICAL),
    Line(AMENDERS, ("patch retracted to false",), HERE, IDENTICAL),
    Line(AMENDERS, RETRACTING, (RETRACTED,), IDENTICAL),
    Line(AMENDERS, ("patch latest to false",), (SUPERSEDED, RETRACTED), IDENTICAL),
    Line(AMENDERS, ("patch latest to true",), (LATEST, REPLICATED), IDENTICAL),
    Line(AMENDERS, ("patch latest to true",), (SUPERSEDED, RETRACTED), CONFLICT),
    Line(AMENDERS, ("patch east's replica in", "patch south's replica in"), (REPLICATED,), IDENTICAL),
    Line(EASTERNERS, ("say where east's replica is",), (REPLICATED,), IDENTICAL),
    Line(SOUTHERNERS, ("say where south's replica is",), (REPLICATED,), IDENTICAL),
    Line(EASTERNERS, ("take east's replica away",), (LATEST, SUPERSEDED, RETRACTED), IDENTICAL),
    Line(SOUTHERNERS, ("take south's replica away",), (LATEST, SUPERSEDED, RETRACTED), IDENTICAL),
    Line(AMENDERS, ("patch south's replica away",), (LATEST, SUPERSEDED, RETRACTED), INVALID),
    # giving up, retracting, reinstating
    Line(UPDATERS, ("patch latest to false",), (LATEST, REPLICATED), "superseded"),
    Line(RETRACTORS, (*RETRACTING, "retract it"), HERE, "retracted"),
    Line(RETRACTORS, ("retract it",), (RETRACTED,), IDENTICAL),
    Line((ADMIN,), ("patch retracted to false", "reinstate it"), (RETRACTED,), "reinstated"),
    Line((ADMIN,), ("reinstate it",), HERE, IDENTICAL),
    # links
    Line(ANNOTATORS, ("patch a link in",), SEEN, "annotated"),
    Line(PUBLISHERS, ("patch a link in and retract it",), HERE, "retracted"),
    Line(ANNOTATORS, ("patch a link in and retract it",), (RETRACTED,), "annotated"),
    # replicas: each node's own
    Line(EASTERNERS, ("patch east's replica in", "say where east's replica is"), (LATEST, SUPERSEDED), "replicated"),
    Line(EASTERNERS, ("patch east's replica in", "say where east's replica is"), (RETRACTED,), CONFLICT),
    Line(EASTERNERS, ("take east's replica away",), (REPLICATED,), "replicated"),
    Line(SOUTHERNERS, ("patch south's replica in", "say where south's replica is"), (LATEST, SUPERSEDED), "replicated"),
    Line(SOUTHERNERS, ("patch south's replica in", "say where south's replica is"), (RETRACTED,), CONFLICT),
    Line(SOUTHERNERS, ("take south's replica away", "patch south's replica away"), (REPLICATED,), "replicated"),
    Line((ADMIN,), ("patch east's and south's replicas in",), HERE, "replicated"),
    Line((ADMIN,), ("patch east's and south's replicas in",), (RETRACTED,), CONFLICT),
    Line((ADMIN, BOTH), ("patch its description and east's replica",), HERE, "updated"),
    Line((ADMIN, BOTH), ("patch its description and east's replica",), (RETRACTED,), CONFLICT),
    # deletion: what is marked is not there but for those who may mark
    Line(DELETERS, ("mark it",), SEEN, "marked"),
    Line(DELETERS, ("mark it",), (MARKED,), IDENTICAL),
    Line(DELETERS, ("unmark it",), (MARKED,), "unmarked"),
    Line(DELETERS, ("unmark it",), SEEN, IDENTICAL),
    Line(DELETERS, tuple(deed for deed in CHANGING if deed != "patch its description as of long ago"), (MARKED,),
         "marked-for-deletion"),
    Line((ADMIN,), ("quarantine it",), SEEN, "quarantined"),
    Line((ADMIN,), ("quarantine it", "purge it"), (MARKED,), "marked-for-deletion"),
    Line((ADMIN,), ("release it",), (*SEEN, MARKED), IDENTICAL),
    Line((ADMIN,), ("delete it", "purge it"), SEEN, CONFLICT),
    Line((ADMIN,), ("delete it",), (MARKED,), "deletion-not-ready"),
    Line(tuple(who for who in DELETERS if who != ADMIN), ("quarantine it", "release it", "delete it", "purge it"),
         (MARKED,), FORBIDDEN),
    Line(DELETERS, ("patch its description as of long ago",), (MARKED,), "precondition-failed"),
    # reading is for everybody
    Line(EVERYBODY, ("get it", "ask for its headers"), (*SEEN, FOREIGN), ANSWERED),
    Line(EVERYBODY, ("get it", "ask for its headers"), (ABSENT, MARKED), GONE),
    Line((NOBODY,), ("ask what may be sent",), EVERYWHERE, "nothing"),
    Line((KNOWN, MPI, MANAGER, OUTSIDER, CREATOR, HALF), ("ask what may be sent",), (*SEEN, FOREIGN), "nothing"),
    Line(PUBLISHERS, ("ask what may be sent",), (*SEEN, FOREIGN), "PATCH, PUT, DELETE"),
    Line((UPDATER, UPDATER_THERE), ("ask what may be sent",), (*SEEN, FOREIGN), "PATCH, PUT"),
    Line((RETRACTOR, ANNOTATOR, EAST, SOUTH, REPLICATOR), ("ask what may be sent",), (*SEEN, FOREIGN), "PATCH"),
    Line((DELETER,), ("ask what may be sent",), (*SEEN, FOREIGN), "DELETE"),
    Line((NOBODY, *ALL_KNOWN), ("see its history",), (*SEEN, FOREIGN), ANSWERED),
    Line((NOBODY, *ALL_KNOWN), ("see its history",), (ABSENT,), GONE),
    Line(DELETERS, ("see its history",), (MARKED,), ANSWERED),
    Line((NOBODY, *(who for who in ALL_KNOWN if who not in DELETERS)), ("see its history",), (MARKED,), GONE),
    Line(EVERYBODY, (*PUBLIC, "ask how datasets stand"), (NO_DATASET,), ANSWERED),
    # being known is enough
    Line(ALL_KNOWN, ("see who one is", "see one's requests", "validate", "ask what one may", "see the groups",
                     "see one's destinations"), (NO_DATASET,), ANSWERED),
    Line(ALL_KNOWN, ("register a mailbox where no mail is sent",), (NO_DATASET,), "bad-request"),
    # what is somebody else's is for administrators, or for nobody
    Line((ADMIN,), ("see somebody else's request", "see somebody else's results", "cancel somebody else's request",
                    "ask what another may"), (NO_DATASET,), ANSWERED),
    Line((ADMIN,), ("retry somebody else's request",), (NO_DATASET,), INVALID),  # as it was
    Line(tuple(who for who in ALL_KNOWN if who != ADMIN),
         ("see somebody else's request", "see somebody else's results", "cancel somebody else's request",
          "retry somebody else's request"), (NO_DATASET,), "request-does-not-exist"),
    Line(ALL_KNOWN, tuple(deed for deed in ELSE if deed.endswith("somebody else's destination")), (NO_DATASET,),
         NOT_FOUND),
    # the feed is for nodes, each for itself
    Line(NODES, ("read the feed", "stream the feed", "read the feed's head", "read a snapshot", "read the digests",
                 "acknowledge", "report on a deletion", "ask what a sidecar brings",
                 "report on a deletion by a sidecar"), (NO_DATASET,), ANSWERED),
    Line(NODES, ("read the manifest of files", "read a part of a snapshot"), (NO_DATASET,), NOT_FOUND),  # none there
    # metrics are for those who watch over the node
    Line((ADMIN,), ("read the metrics", "look at the federation"), (NO_DATASET,), ANSWERED),
    # sinks are for those who may manage messaging
    Line((ADMIN,), ("see the sinks", "see the dead letters", "see the parked events"), (NO_DATASET,), ANSWERED),
    Line((ADMIN,), ("add a sink",), (NO_DATASET,), DONE),
    Line((ADMIN,), tuple(deed for deed in ELSE if re.search("(sink|dead letter|parked event) that is not there", deed)),
         (NO_DATASET,), NOT_FOUND),
    # subscriptions: one's own; those who may manage messaging see all
    Line(ALL_KNOWN, ("see one's subscriptions",), (NO_DATASET,), ANSWERED),
    Line(ALL_KNOWN, ("subscribe to what is nothing",), (NO_DATASET,), "bad-request"),
    Line(EVERYBODY, ("read what changed since no place",), (NO_DATASET,), "bad-request"),
    Line(ALL_KNOWN, tuple(deed for deed in ELSE if deed.endswith("somebody else's subscription")), (NO_DATASET,),
         NOT_FOUND),
    # grants: everybody sees their own, nodes check them, administrators give them
    Line(ALL_KNOWN, ("see one's grants",), (NO_DATASET,), ANSWERED),
    Line(ALL_KNOWN, ("see a grant that is not there",), (NO_DATASET,), NOT_FOUND),
    Line((ADMIN, *NODES), ("check somebody's grants",), (NO_DATASET,), ANSWERED),
    Line((ADMIN,), ("give a grant of a project",), (NO_DATASET,), DONE),
    Line((ADMIN,), ("import no grants", "withdraw the grants of nobody"), (NO_DATASET,), ANSWERED),
    Line((ADMIN,), ("withdraw a grant that is not there",), (NO_DATASET,), NOT_FOUND),
    # changes of many: one's own alone
    Line(ALL_KNOWN, ("see one's changes of many", "see one's loads", "see the private datasets"), (NO_DATASET,),
         ANSWERED),
    Line(ALL_KNOWN, ("see somebody else's change of many", "see somebody else's datasets of many",
                     "cancel somebody else's change of many"), (NO_DATASET,), "bulk-does-not-exist"),
    Line((ADMIN,), ("look at a change of many",), (NO_DATASET,), ANSWERED),
    Line((ADMIN,), ("change many with another digest",), (NO_DATASET,), "bulk-changed"),
    # a load says of every dataset of a collection what becomes of it
    Line((ADMIN,), ("look at a load of everything",), (NO_DATASET,), ANSWERED),
    Line(ALL_KNOWN, ("see somebody else's load", "see somebody else's datasets of a load",
                     "send a part of somebody else's load", "apply somebody else's load",
                     "cancel somebody else's load"), (NO_DATASET,), "load-does-not-exist"),
    Line((ADMIN,), ("see how a collection is deleted", "let a collection stay"), (NO_DATASET,), NOT_FOUND),
    # deletions: who may mark sees their own, a node what it has to do, who manages deletions all
    Line(tuple(who for who in ALL_KNOWN if who in (*DELETERS, *NODES, MPI, OUTSIDER)), ("see the deletions",),
         (NO_DATASET,), ANSWERED),
    Line(ALL_KNOWN, ("see a deletion that is not there",), (NO_DATASET,), NOT_FOUND),
    Line((ADMIN,), (*(deed for deed in ELSE if deed.endswith("a deletion that is not there") and deed[:3] != "see"),
                    "see the rules of a project without"), (NO_DATASET,), NOT_FOUND),
    Line((ADMIN,), ("try to delete what is ready", "see all rules of deletion", "try rules of deletion",
                    "see the cases of quarantine", "see the tombstones"), (NO_DATASET,), ANSWERED),
    # groups and collections
    Line((ADMIN, MEMBER, MANAGER), ("see the institution's group",), (NO_DATASET,), ANSWERED),
    Line(tuple(who for who in ALL_KNOWN if who not in (ADMIN, MEMBER, MANAGER)), ("see the institution's group",),
         (NO_DATASET,), NOT_FOUND),
    Line(ALL_KNOWN, ("see a group that is not there",), (NO_DATASET,), NOT_FOUND),
    Line((ADMIN, MANAGER), ("take a member in", "put a member out"), (NO_DATASET,), DONE),
    Line((ADMIN,), ("make a group", "change a group", "delete a group", "name a manager", "dismiss a manager",
                    "make a collection", "change a collection", "patch a collection", "delete a collection"),
         (NO_DATASET,), DONE),
)  # fmt: skip
CHANGED = ("new", "newer", "updated", "replaced", "superseded", "retracted", "reinstated", "annotated", "replicated",
           "marked", "unmarked", "quarantined", DONE)  # fmt: skip


@dataclass(frozen=True)
class Cell:
    who: str
    deed: str
    state: str

    def __str__(self) -> str:
        return f"{self.who} · {self.deed} · {self.state}"

    @property
    def lines(self) -> list[Line]:
        return [
            line for line in TABLE
            if self.who in line.who and self.deed in line.deeds and self.state in line.states
        ]  # fmt: skip

    @property
    def comes_to(self) -> str:
        return self.lines[0].comes_to if self.lines else refused(self)

    @property
    def changes(self) -> bool:
        """Whether something is different afterwards."""
        return self.comes_to in CHANGED and "rehearse" not in self.deed


def refused(cell: Cell) -> str:
    """Return what a caller gets who is in no line of the table."""
    if cell.who in STRANGERS:
        return UNKNOWN
    if cell.deed in PUBLISHING:
        return FORBIDDEN
    return {ABSENT: GONE, MARKED: GONE, FOREIGN: FOREIGN_ORIGIN}.get(cell.state, FORBIDDEN)


def cells() -> Iterator[Cell]:
    for who in WHO:
        for deed in DATASETS:
            yield from (Cell(who, deed, state) for state in STATES)
        yield from (Cell(who, deed, NO_DATASET) for deed in (*ELSE, *PUBLIC))
