"""Changes of one dataset: accepted here, decided again under the lock by the workers.

The decision by what is stored now comes before the 202, so that most refusals come at once.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

import orjson
from starlette.responses import Response

from fedstac import publication
from fedstac.api.call import Call, Services
from fedstac.api.writing import admission, answers, idempotency, intake
from fedstac.api.writing.admission import AcceptedRequest, EarlierRequest
from fedstac.api.writing.answers import DryRun, NoChange
from fedstac.api.writing.options import WriteOptions, options_of_change
from fedstac.db import queue
from fedstac.db.connections import Connection
from fedstac.domain import patching, retraction, strict_json
from fedstac.domain.actions import ACTIONS, quarantine
from fedstac.domain.actions.target import QueuedAction, may_one_of
from fedstac.domain.alternates import replica_edit
from fedstac.domain.errors import (
    BadRequest,
    Finding,
    ItemDoesNotExist,
    MissingPermission,
    PreconditionFailed,
    Problem,
)
from fedstac.domain.model import Decision
from fedstac.domain.patching import Edit, JsonPatch, Whole, WithoutNode
from fedstac.domain.policy import Principal
from fedstac.domain.vocabulary import name_of

FEW_ENTRIES: Final = 100  # of a replica, that become an edit in the event loop


async def patch_item(call: Call) -> Response:
    """Change a dataset by a JSON Patch, or by an object to merge."""
    body = await intake.json_of(call)
    return await _amend(call, patching.read(body, call.headers.get("content-type", "")))


async def put_item(call: Call) -> Response:
    """Replace the metadata of a dataset by a whole document.

    Other files need an exemption, whose reason the header Fedstac-Override gives.
    """
    body = await intake.json_of(call)
    if not isinstance(body, dict):
        raise BadRequest("the body is no JSON object; send the whole STAC Item")
    names = call.path_params
    return await _amend(call, Whole(intake.addressed(body, id=names["item_id"], collection=names["collection_id"])))


async def delete_item(call: Call) -> Response:
    """Mark a dataset for deletion. Nothing is erased yet."""
    return await _change(
        call, "mark", {"reason": call.query_params.get("reason", "")[: retraction.LONGEST_TEXT] or None}
    )


async def post_retract(call: Call) -> Response:
    """Retract a dataset: {reason, errata, replaced_by, data: keep | restrict | purge}. Every byte is kept.

    The reason is needed once. A repeat changes what it names and keeps the rest.
    """
    raw = await call.body.read()
    return await _change(
        call, "retract", {"retraction": retraction.read(strict_json.parse(raw) if raw.strip() else {})}
    )


async def post_reinstate(call: Call) -> Response:
    """Take a retraction back."""
    return await _change(call, "reinstate", {})


async def post_unmark(call: Call) -> Response:
    """Take a mark for deletion back."""
    return await _change(call, "unmark", {})


async def post_quarantine(call: Call) -> Response:
    """Put a dataset under quarantine: {reason, case, contact, links}. It is hidden at once, and nothing is erased."""
    raw = await call.body.read()
    body = quarantine.read_quarantine(strict_json.parse(raw) if raw.strip() else {})
    return await _change(call, "quarantine", {"quarantine": body})


async def post_release(call: Call) -> Response:
    """End the quarantine of a dataset: {decision}. Every byte is as it was before."""
    raw = await call.body.read()
    decision = quarantine.read_decision(strict_json.parse(raw) if raw.strip() else {})
    return await _change(call, "release", {"decision": decision})


async def post_delete(call: Call) -> Response:
    """Delete a marked dataset for good. 409 names what is missing, until everybody has done their part."""
    return await _change(call, "delete", {})


async def post_purge(call: Call) -> Response:
    """Remove what this server still has of a deleted or cleared dataset in its log, requests and messages."""
    return await _change(call, "purge", {})


async def put_replica(call: Call) -> Response:
    """Set a node's entries of a dataset, by asset: {"<asset>": {"href": …}}. Other nodes' entries stay as they are."""
    body = await intake.json_of(call)
    entries = body.get("assets", body) if isinstance(body, dict) else None
    if not isinstance(entries, dict) or not all(isinstance(entry, dict) for entry in entries.values()) or not entries:
        raise BadRequest('a replica is told as {"<asset>": {"href": "https://…"}, …}, an object for each asset')
    node = call.path_params["node"]

    def edit() -> Edit:
        return JsonPatch(replica_edit(entries, node))

    is_large = len(entries) > FEW_ENTRIES
    return await _amend(call, await call.services.threads.run_if(is_large, edit), node=node)


async def delete_replica(call: Call) -> Response:
    """Remove a node's entries of a dataset. That it has none is no fault."""
    node = call.path_params["node"]
    return await _amend(call, WithoutNode(node), node=node)


async def _amend(call: Call, edit: Edit, *, node: str | None = None) -> Response:
    """Answer a change by an edit, which is about one node's replicas alone where `node` is given."""
    options = options_of_change(call)
    own = {"node": node} if node is not None else {"override": options.override}
    return await _answer(call, "amend", {"edit": patching.as_json(edit), **own}, options)


async def _change(call: Call, action: str, body: Mapping[str, Any]) -> Response:
    return await _answer(call, action, body, options_of_change(call))


async def _answer(call: Call, action: str, body: Mapping[str, Any], options: WriteOptions) -> Response:
    """Change the dataset that the path names, and answer."""
    change = DatasetAction(
        call.path_params["collection_id"], call.path_params["item_id"], action, {**body, "expected": options.expected}
    )
    return await answers.answer(call, await accept(call.services, call.caller, change, options))


@dataclass(frozen=True, slots=True)
class DatasetAction:
    """An action on one dataset. `body` is what waits in the queue: the table of actions reads it."""

    collection: str
    id: str
    action: str
    body: Mapping[str, Any]


async def accept(
    services: Services, caller: Principal, change: DatasetAction, options: WriteOptions
) -> AcceptedRequest | EarlierRequest | DryRun | NoChange:
    """Accept a change. A Problem where the stored state refuses it, and nothing that waits can change that.

    The decision by what is stored now refuses at once; the worker decides for good. A change without effect leaves no
    request behind.
    """
    node = services.node
    await services.collections.require(node, change.collection, purges=change.action == "purge")
    vocabulary = node.checker.vocabularies.current(change.collection)
    name = name_of(change.collection, change.id, vocabulary)
    if isinstance(name, Finding):
        raise ItemDoesNotExist(f"there is no dataset {change.id[:512]!r} in {change.collection}: {name.message}")
    key = await options.find_key()
    if (earlier := await idempotency.earlier(node, key)) is not None:
        return EarlierRequest(earlier)
    text = orjson.dumps(change.body).decode()
    action = QueuedAction(change.collection, change.id, name, caller, text, change.body, vocabulary=vocabulary)
    async with node.pool.acquire() as conn:
        waits = await queue.is_waiting(conn, name.lineage)
        decision = await _preview(conn, services, change.action, action, waits=waits)
    if options.only_new:
        raise PreconditionFailed(f"{change.id} can only be changed if it is there; send it without If-None-Match")
    if options.dry_run:
        return DryRun({
            "dry_run": True, "outcome": decision.outcome if decision else None,
            "findings": [finding.as_json() for finding in decision.warnings] if decision else [],
        })  # fmt: skip
    if decision is not None and not decision.changes and not waits and options.retry_of is None:
        return NoChange(change.collection, change.id)
    return await admission.admit_change(services, change.action, action, options, key)


async def _preview(
    conn: Connection, services: Services, name: str, action: QueuedAction, *, waits: bool
) -> Decision | None:
    """Decide by what is stored now; None where a refusal may be overtaken by what waits."""
    row, rules = ACTIONS[name], services.node.rules
    command = row.read(action)
    try:
        return await publication.preview(conn, rules, command, run=services.threads.run)
    except MissingPermission:
        raise
    except Problem:
        if not waits or not may_one_of(command.target, action.principal, row.rights, rules.world([command])):
            raise
        return None
