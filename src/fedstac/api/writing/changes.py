"""Changes of one dataset that is there: accepted here, decided again under the lock by the workers.

What a change would lead to by what is stored now is found out before the 202, so that most refusals come at once.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any
from uuid import UUID, uuid4

import orjson
from starlette.responses import Response

from fedstac import publication
from fedstac.api.call import Call
from fedstac.api.http import links, preconditions
from fedstac.api.people import identity
from fedstac.api.writing import idempotency, intake, items
from fedstac.bootstrap import Node
from fedstac.db import queue, requests, search
from fedstac.domain import patching, retraction, strict_json
from fedstac.domain.actions import ACTIONS
from fedstac.domain.actions.target import QueuedAction, may_one_of
from fedstac.domain.alternates import replica_edit
from fedstac.domain.errors import (
    BadRequest,
    Finding,
    ItemDoesNotExist,
    MissingPermission,
    PreconditionFailed,
    PreconditionRequired,
    Problem,
)
from fedstac.domain.model import Outcome
from fedstac.domain.patching import JsonPatch, Whole
from fedstac.domain.vocabulary import name_of

FEW_ENTRIES = 100  # of a replica, that become an edit in the event loop
LONGEST_TEXT = retraction.LONGEST_TEXT
ESGF_PUBLISHER = "esgf_publisher/"  # how its User-Agent begins


async def patch_item(call: Call) -> Response:
    """PATCH /collections/{collection_id}/items/{item_id}: a JSON Patch, or an object to merge."""
    body = await _body(call)
    edit = patching.read(body, call.headers.get("content-type", ""))
    return await _change(call, "amend", {"edit": patching.as_json(edit), "override": _override(call)})


async def put_item(call: Call) -> Response:
    """PUT /collections/{collection_id}/items/{item_id}: the whole document again, with other metadata.

    Other files need an exemption, whose reason the header Fedstac-Override gives.
    """
    body = await _body(call)
    if not isinstance(body, dict):
        raise BadRequest("the body is no JSON object; send the whole STAC Item")
    names = call.path_params
    whole = intake.addressed(body, id=names["item_id"], collection=names["collection_id"])
    edit = patching.as_json(Whole(whole))
    return await _change(call, "amend", {"edit": edit, "override": _override(call)})


async def delete_item(call: Call) -> Response:
    """DELETE /collections/{collection_id}/items/{item_id}: marks it for deletion; nothing is erased yet."""
    return await _change(call, "mark", {"reason": call.query_params.get("reason", "")[:LONGEST_TEXT] or None})


async def post_retract(call: Call) -> Response:
    """POST …/retract {reason, errata, replaced_by, data: keep | restrict | purge}: flagged, and every byte kept.

    The reason is needed once. A repeat changes what it names and keeps the rest.
    """
    raw = await call.body.read()
    given = retraction.read(strict_json.parse(raw) if raw.strip() else {})
    return await _change(call, "retract", {"retraction": given})


async def post_reinstate(call: Call) -> Response:
    """POST …/reinstate: takes a retraction back."""
    return await _change(call, "reinstate", {})


async def post_unmark(call: Call) -> Response:
    """POST …/unmark: takes a mark for deletion back."""
    return await _change(call, "unmark", {})


async def put_replica(call: Call) -> Response:
    """PUT …/replicas/{node}: the node's entries, by asset: {"<asset>": {"href": …}}; other nodes' stay as they are."""
    body = await _body(call)
    entries = body.get("assets", body) if isinstance(body, dict) else None
    if not isinstance(entries, dict) or not all(isinstance(entry, dict) for entry in entries.values()) or not entries:
        raise BadRequest('a replica is told as {"<asset>": {"href": "https://…"}, …}, an object for each asset')
    node = call.path_params["node"]

    def edit() -> Any:
        return patching.as_json(JsonPatch(replica_edit(entries, node)))

    threads = call.services.threads
    command = {"edit": await threads.run(edit) if len(entries) > FEW_ENTRIES else edit(), "node": node}
    return await _change(call, "amend", command)


async def delete_replica(call: Call) -> Response:
    """DELETE …/replicas/{node}: none of the node's entries any more; its having none is no fault."""
    node = call.path_params["node"]
    return await _change(call, "amend", {"edit": {"without": node}, "node": node})


async def _body(call: Call) -> Any:
    """The parsed body of a caller who is known: to anybody else nothing is said about it."""
    return await intake.json_of(call)


def _override(call: Call) -> str | None:
    """The reason in the header, which is UTF-8 whatever the name of its bytes in HTTP."""
    said = call.headers.get("fedstac-override", "").encode("latin-1").decode(errors="replace")
    return said[:LONGEST_TEXT] or None


async def _change(call: Call, action: str, body: Mapping[str, Any]) -> Response:
    """A change of the dataset that the path names."""
    dataset = call.path_params["collection_id"], call.path_params["item_id"]
    expected = _expected(call, call.node)
    return await accept(call, dataset, action, {**body, "expected": expected})


async def accept(
    call: Call, dataset: tuple[str, str], action: str, body: Mapping[str, Any], retry_of: UUID | None = None
) -> Response:
    """Accepts a change of one dataset (collection, id), in the form that the table of actions reads.

    What it comes to by now decides whether it is refused at once; the worker decides for good. What changes nothing is
    answered at once too, and leaves no request behind.
    """
    node = call.node
    principal = call.caller
    rehearsed = items.is_dry_run(call)
    collection, item_id = dataset
    await call.services.collections.require(node, collection)
    vocabulary = node.checker.vocabularies.current(collection)
    name = name_of(collection, item_id, vocabulary)
    if isinstance(name, Finding):
        raise ItemDoesNotExist(f"there is no dataset {item_id[:512]!r} in {collection}: {name.message}")
    key = await idempotency.key_of(call, principal)
    if (before := await idempotency.known(node, key)) is not None:
        return await items.respond_again(call, node, before)
    version = vocabulary.version if vocabulary else None
    text = orjson.dumps(body).decode()
    queued = QueuedAction(collection, item_id, name, principal, text, body, vocabulary=vocabulary)
    command, rules = ACTIONS[action].read(queued), node.rules
    threads = call.services.threads
    async with node.pool.acquire() as conn:
        waits = await queue.is_waiting(conn, name.lineage)
        try:
            decision = await publication.preview(conn, rules, command, run=threads.run)
        except MissingPermission:
            raise
        except Problem:
            if not waits or not may_one_of(command.target, principal, ACTIONS[action].rights, rules.world([command])):
                raise
            decision = None  # what is under way may change it
    if preconditions.wants_new(call.headers):
        raise PreconditionFailed(f"{item_id} can only be changed if it is there; send it without If-None-Match")
    if rehearsed:
        said = {"dry_run": True, "outcome": decision.outcome if decision else None,
                "findings": [finding.as_json() for finding in decision.warnings] if decision else []}  # fmt: skip
        return Response(orjson.dumps(said), media_type=links.JSON)
    if decision is not None and not decision.changes and not waits and retry_of is None:
        return await _unchanged(call, node, collection, item_id)
    accepted = requests.NewRequest(
        id=uuid4(), collection=collection, action=action, submitter=principal.name,
        roles=tuple(sorted(principal.roles)), user_agent=call.headers.get("user-agent", "")[:200] or None,
        correlation=call.request_id, cv_version=version,
        items=[requests.NewItem(name.lineage, item_id, text)], key=key,
        identity=identity.packed(principal), retry_of=retry_of,
    )  # fmt: skip
    return await items.store(call, node, accepted, single=True)


async def _unchanged(call: Call, node: Node, collection: str, item_id: str) -> Response:
    """200 for a change that changes nothing: the dataset as it is served, or its outcome where it is marked.

    ESGF's publisher (esgcet 5.5.3) takes any answer to a PATCH but 201 and 202 for a failure: it gets 202.
    """
    status = 202 if call.headers.get("user-agent", "").startswith(ESGF_PUBLISHER) else 200
    async with node.pool.acquire() as conn:
        found = await search.item(conn, collection, item_id)
    if found is None:
        body = orjson.dumps({"id": item_id, "outcome": Outcome.IDENTICAL})
        return Response(body, status, media_type=links.JSON)
    base = call.base_url
    location = {"Location": links.item_url(base, collection, item_id)}
    return Response(links.item_text(base, found[0]), status, location, media_type=links.GEOJSON)


def _expected(call: Call, node: Node) -> list[str] | None:
    """The digests that If-Match names. PreconditionRequired where the settings want one and there is none."""
    expected = preconditions.expected(call.headers)
    if expected is None and node.settings.require_if_match:
        raise PreconditionRequired("this change has no If-Match; send it with the ETag that GET gave")
    return expected
