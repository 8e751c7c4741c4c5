"""Changes of datasets and looks at them, as exchanges: what is said to the server, whoever says it.

Client and AsyncClient are made of these functions; each is documented here. `collection` may be left out if an id
begins with it, as CMIP6's do. A change returns a ChangeResult when it is final, or raises the Refusal. It carries an
Idempotency-Key, so that it is done once, also if it is sent again after a broken connection.

`dry_run`: everything is judged and nothing done. `if_match`: an ETag; Conflict where the dataset has changed since.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache
from http import HTTPStatus
from typing import Any
from urllib.parse import quote
from uuid import uuid4

import httpx
import orjson

from fedstac.client.paths import collection_path, item_path
from fedstac.client.transport import (
    JSON_BODY,
    LINES_BODY,
    Exchange,
    Failed,
    NotFound,
    Pause,
    Refusal,
    ServerCall,
    findings_from,
    json_of,
    kind_of,
)
from fedstac.client.values import ChangeResult, Dataset, DocumentVerdict, DryRunResult, Replica, Request
from fedstac.domain.errors import problems

PATCH, MERGE = "application/json-patch+json", "application/merge-patch+json"
SERVER_WAITS = 20  # seconds, before it answers with a request to follow
FIRST_LOOK, LONGEST_LOOK = 0.1, 2.0  # seconds between looks at what is not final yet
MOST_VERSIONS = 500
DELETIONS_AT_ONCE = 200
LONGEST_TEXT = 200  # characters that the list of deletions is searched for

Json = Mapping[str, Any]


# --- looks ---


def get(id: str, *, collection: str | None = None) -> Exchange[Dataset]:
    """Return one dataset: its document and its ETag. NotFound if there is none."""
    response = yield ServerCall("GET", _path(id, collection))
    return Dataset(json_of(response), response.headers.get("etag"))


def history(id: str, *, collection: str | None = None) -> Exchange[list[Dataset]]:
    """Return all versions of a dataset that can be seen, the oldest first; of an id, or of one without its version.

    A version under quarantine is among them where it is asked for by its id. NotFound where there is none.
    """
    base, first = id, None
    try:
        first = yield from get(id, collection=collection)
        base = first.base_id or ""
    except NotFound as error:
        missing = error
    if not base:
        return [first] if first else []
    body = {"collections": [collection or collection_of(id)], "limit": MOST_VERSIONS,
            "retracted": "include", "filter-lang": "cql2-text",
            "filter": "base_id = '" + base.replace("'", "''") + "'"}  # fmt: skip
    response = yield ServerCall("POST", "/search", content=orjson.dumps(body), headers=JSON_BODY)
    datasets = [Dataset(item, None) for item in json_of(response)["features"]]
    if not datasets and first is None:
        raise missing
    if first is not None and all(one.id != first.id for one in datasets):  # searches find none under quarantine
        datasets.append(first)
    return sorted(datasets, key=lambda one: (len(one.version), one.version))


def events_of(id: str, *, collection: str | None = None) -> Exchange[list[Json]]:
    """Return the events of a dataset and its other versions, the newest first. NotFound if there is no such dataset."""
    events: list[Json] = []
    parameters = {"limit": "1000"}
    while True:
        page = json_of((yield ServerCall("GET", _path(id, collection) + "/history", parameters)))
        events += page["events"]
        if not any(link["rel"] == "next" for link in page["links"]):
            return events
        parameters["before"] = page["events"][-1]["event"]


def statuses(ids: Sequence[str]) -> Exchange[list[Json]]:
    """Return how datasets stand, in the order of their ids, at most 10 000: published, retracted or unknown."""
    response = yield ServerCall("POST", "/datasets/status", content=orjson.dumps(list(ids)), headers=JSON_BODY)
    datasets: list[Json] = json_of(response)["datasets"]
    return datasets


def last_deletion(id: str) -> Exchange[Json | None]:
    """Return the deletion that the last mark of a dataset opened, if the caller may see it; None without one."""
    parameters: dict[str, Any] = {"q": id[:LONGEST_TEXT], "limit": DELETIONS_AT_ONCE}
    while True:
        page = json_of((yield ServerCall("GET", "/deletions", parameters)))
        for entry in page["deletions"]:
            if entry["dataset"] == id:
                last: Json = entry
                return last
        if not page["links"]:
            return None
        parameters["after"] = page["deletions"][-1]["id"]


def list_replicas(id: str, *, collection: str | None = None) -> Exchange[list[Replica]]:
    """Return the nodes that have copies of a dataset's files, and where. NotFound if there is no such dataset."""
    dataset = yield from get(id, collection=collection)
    return dataset.replicas


def validate(documents: Sequence[Json], *, cv_version: str | None = None) -> Exchange[list[DocumentVerdict]]:
    """Return the server's judgement of each document, as of the collection that it names; nothing is stored."""
    params = {"cv_version": cv_version} if cv_version else None
    response = yield ServerCall("POST", "/validate", params, lines_of(documents), LINES_BODY)
    return [
        DocumentVerdict(entry["id"], entry["valid"], entry["cv_version"], findings_from(entry["findings"]))
        for entry in json_of(response)["items"]
    ]


def rehearse(collection: str, documents: Sequence[Json | bytes]) -> Exchange[list[DryRunResult]]:
    """Return what would become of each document if it were published now.

    Invalid if the batch cannot be read at all.
    """
    path = f"{collection_path(collection)}/items"
    response = yield ServerCall("POST", path, {"dry_run": "true"}, lines_of(documents), LINES_BODY)
    return [
        DryRunResult(
            entry["id"],
            entry["outcome"],
            entry.get("problem"),
            entry.get("detail"),
            findings_from(entry["findings"]),
            tuple(entry.get("changed", ())),
            entry.get("last_change"),
        )
        for entry in json_of(response)["items"]
    ]


# --- requests ---


def cancel(request: str) -> Exchange[Request]:
    """Take back what still waits of a request; what is done stays done. Return the request as it is then.

    NotFound where there is none, or it is somebody else's.
    """
    path = f"/requests/{quote(request, safe='')}/cancel"
    response = yield ServerCall("POST", path)
    return Request.read(json_of(response))


def retry(request: str) -> Exchange[str]:
    """Send what was rejected or failed of a request once more, as of now. Return the id of the new request.

    Conflict where there is nothing to try again, or the request is under way; Invalid where all of it is refused again.
    """
    path = f"/requests/{quote(request, safe='')}/retry"
    headers = {"Prefer": "respond-async, wait=0", "Idempotency-Key": f'"{uuid4()}"'}
    response = yield ServerCall("POST", path, headers=headers)
    return _request_of(response, path)


# --- changes ---


def patch(
    id: str, edit: Json | Sequence[Json], *, collection: str | None = None, if_match: str | None = None,
    override: str | None = None, dry_run: bool = False,
) -> Exchange[ChangeResult]:  # fmt: skip
    """Apply a JSON Patch (a sequence of operations) or a merge patch (a mapping) to what is stored.

    `override`: the reason for other files under the same version, of those who may.
    """
    kind = MERGE if isinstance(edit, Mapping) else PATCH
    call = ServerCall("PATCH", _path(id, collection), content=orjson.dumps(edit), headers={"Content-Type": kind})
    return (yield from _change(id, call, if_match, dry_run, override))


def put(
    document: Json, *, collection: str | None = None, if_match: str | None = None, override: str | None = None,
    dry_run: bool = False,
) -> Exchange[ChangeResult]:  # fmt: skip
    """Put a whole document in the place of the one that is there; see `patch`."""
    id, own_collection = str(document.get("id", "")), document.get("collection")
    path = _path(id, collection or (own_collection if isinstance(own_collection, str) else None))
    call = ServerCall("PUT", path, content=orjson.dumps(document), headers=JSON_BODY)
    return (yield from _change(id, call, if_match, dry_run, override))


def retract(
    id: str, *, reason: str | None = None, errata: str | None = None, replaced_by: str | None = None,
    data: str | None = None, collection: str | None = None, if_match: str | None = None, dry_run: bool = False,
) -> Exchange[ChangeResult]:  # fmt: skip
    """Retract a dataset; nothing is erased. `data` (keep, restrict, purge) tells the nodes what to do with copies."""
    retraction = {"reason": reason, "errata": errata, "replaced_by": replaced_by, "data": data}
    content = orjson.dumps({name: value for name, value in retraction.items() if value is not None})
    call = ServerCall("POST", _path(id, collection) + "/retract", content=content, headers=JSON_BODY)
    return (yield from _change(id, call, if_match, dry_run))


def reinstate(
    id: str, *, collection: str | None = None, if_match: str | None = None, dry_run: bool = False
) -> Exchange[ChangeResult]:
    """Take a retraction back."""
    return (yield from _change(id, ServerCall("POST", _path(id, collection) + "/reinstate"), if_match, dry_run))


def mark(
    id: str, *, reason: str | None = None, collection: str | None = None, if_match: str | None = None,
    dry_run: bool = False,
) -> Exchange[ChangeResult]:  # fmt: skip
    """Mark a dataset for deletion: it is hidden, and nothing is erased yet."""
    params = {"reason": reason} if reason else None
    return (yield from _change(id, ServerCall("DELETE", _path(id, collection), params), if_match, dry_run))


def unmark(
    id: str, *, collection: str | None = None, if_match: str | None = None, dry_run: bool = False
) -> Exchange[ChangeResult]:
    """Take a mark for deletion back."""
    return (yield from _change(id, ServerCall("POST", _path(id, collection) + "/unmark"), if_match, dry_run))


def quarantine(
    id: str, *, reason: str, case: str | None = None, contact: str | None = None, links: Sequence[str] = (),
    collection: str | None = None, if_match: str | None = None, dry_run: bool = False,
) -> Exchange[ChangeResult]:  # fmt: skip
    """Put a dataset under quarantine: readers find it by its id alone, without files. Nothing is erased.

    Readers see `contact` and `case`, the number of the case; `reason` and `links` are for those who decide.
    """
    body = {"reason": reason, "case": case, "contact": contact, "links": list(links) or None}
    content = orjson.dumps({name: value for name, value in body.items() if value is not None})
    call = ServerCall("POST", _path(id, collection) + "/quarantine", content=content, headers=JSON_BODY)
    return (yield from _change(id, call, if_match, dry_run))


def release(
    id: str, *, decision: str | None = None, collection: str | None = None, if_match: str | None = None,
    dry_run: bool = False,
) -> Exchange[ChangeResult]:  # fmt: skip
    """End the quarantine of a dataset: every byte is as it was. `decision` says why."""
    content = orjson.dumps({"decision": decision} if decision else {})
    call = ServerCall("POST", _path(id, collection) + "/release", content=content, headers=JSON_BODY)
    return (yield from _change(id, call, if_match, dry_run))


def delete(
    id: str, *, collection: str | None = None, if_match: str | None = None, dry_run: bool = False
) -> Exchange[ChangeResult]:
    """Delete a marked dataset for good; a tombstone stays. Conflict names in its findings what is missing before."""
    return (yield from _change(id, ServerCall("POST", _path(id, collection) + "/delete"), if_match, dry_run))


def purge(id: str, *, collection: str | None = None, dry_run: bool = False) -> Exchange[ChangeResult]:
    """Remove what the server still has of a deleted or cleared dataset in its log, requests and messages."""
    return (yield from _change(id, ServerCall("POST", _path(id, collection) + "/purge"), None, dry_run))


def put_replica(
    id: str, node: str, entries: Mapping[str, Json], *, collection: str | None = None, if_match: str | None = None,
    dry_run: bool = False,
) -> Exchange[ChangeResult]:  # fmt: skip
    """Say where a node has copies, by asset: {"<asset>": {"href": …}}. Other nodes' entries stay as they are."""
    return (yield from _change(id, _replica_call(id, node, entries, collection), if_match, dry_run))


def remove_replica(
    id: str, node: str, *, collection: str | None = None, if_match: str | None = None, dry_run: bool = False
) -> Exchange[ChangeResult]:
    """Say that a node has no copies any more."""
    return (yield from _change(id, _replica_call(id, node, None, collection), if_match, dry_run))


def submit_replica(
    id: str, node: str, entries: Mapping[str, Json] | None, *, collection: str | None = None, key: str
) -> Exchange[str | None]:
    """Set a node's entries as `put_replica` does, or with None remove them, without waiting for the result.

    Return the request that `look_at_change` asks for; None where nothing was to be done. The same `key` with the same
    entries is the same request, however often it is sent: a program that died meanwhile sends it again.
    """
    call = _replica_call(id, node, entries, collection)
    headers = {**(call.headers or {}), "Prefer": "respond-async, wait=0", "Idempotency-Key": f'"{key}"'}
    response = yield ServerCall(call.method, call.path, call.params, call.content, headers)
    if response.status_code == HTTPStatus.OK and "monitor" not in response.links:
        return None
    return _request_of(response, call.path)


def look_at_change(id: str, request: str) -> Exchange[ChangeResult | None]:
    """Return what became of a request of one item; None while it is not final. A Refusal where it was refused."""
    response = yield ServerCall("GET", f"/requests/{quote(request, safe='')}/items", {"limit": 1})
    [entry] = json_of(response)["items"]
    if entry["status"] == "queued":
        return None
    findings = findings_from(entry.get("findings"))
    if entry["status"] == "done":
        return ChangeResult(id, entry["outcome"], request, findings)
    raise refusal_of(entry.get("type") or "unknown", entry.get("detail") or "", findings)


def _replica_call(id: str, node: str, entries: Mapping[str, Json] | None, collection: str | None) -> ServerCall:
    path = f"{_path(id, collection)}/replicas/{quote(node, safe='')}"
    if entries is None:
        return ServerCall("DELETE", path)
    return ServerCall("PUT", path, content=orjson.dumps(entries), headers=JSON_BODY)


def collection_of(id: str) -> str:
    """Return what an id begins with: for CMIP6 that is its collection."""
    return id.partition(".")[0]


def _path(id: str, collection: str | None) -> str:
    return item_path(collection or collection_of(id), id)


def lines_of(documents: Sequence[Json | bytes]) -> bytes:
    """Return documents as NDJSON. Bytes are JSON without line breaks."""
    lines = [document if isinstance(document, bytes) else orjson.dumps(document) for document in documents]
    return b"\n".join(lines) + b"\n"


def _change(
    id: str, call: ServerCall, if_match: str | None, dry_run: bool, override: str | None = None
) -> Exchange[ChangeResult]:
    headers = dict(call.headers or {}) | ({"If-Match": if_match} if if_match else {})
    headers |= {"Fedstac-Override": override} if override else {}
    if dry_run:
        params = {**(call.params or {}), "dry_run": "true"}
        response = yield ServerCall(call.method, call.path, params, call.content, headers)
        body = json_of(response)
        return ChangeResult(id, body["outcome"], None, findings_from(body["findings"]), dry_run=True)
    headers |= {"Prefer": f"wait={SERVER_WAITS}", "Idempotency-Key": f'"{uuid4()}"'}
    response = yield ServerCall(call.method, call.path, call.params, call.content, headers, wait=SERVER_WAITS)
    if response.status_code == HTTPStatus.OK and "monitor" not in response.links:
        return ChangeResult(id, "identical", None)  # nothing was to be done, and no request was made of it
    return (yield from _result_of(id, _request_of(response, call.path)))


def _request_of(response: httpx.Response, path: str) -> str:
    """Return the request that an answer is of: in its body while it is under way, else in a link."""
    if response.status_code == 202:
        body = json_of(response)
        request = body.get("id") if isinstance(body, dict) else None
    else:
        request = response.links.get("monitor", {}).get("url", "").rpartition("/")[2]
    if not isinstance(request, str) or not request:
        raise Failed(response.status_code, "no-request", f"{path} was answered without a request to follow")
    return request


def _result_of(id: str, request: str) -> Exchange[ChangeResult]:
    """Return what became of a request of one item, once it is final."""
    pause = FIRST_LOOK
    while (result := (yield from look_at_change(id, request))) is None:
        yield Pause(pause)
        pause = min(pause * 1.5, LONGEST_LOOK)
    return result


def refusal_of(type: str, detail: str, findings: Any) -> Refusal:
    """Return the exception for what a request tells of a refused item."""
    status = _statuses().get(type, 500)
    return kind_of(status)(status, type, detail, findings)


@cache
def _statuses() -> Mapping[str, int]:
    return {problem.name: problem.status for problem in problems()}
