"""ESGF's format: the value of a KafkaEvent (esgf-core-utils), keyed by the item's id.

A first publication is a POST with the whole item. Every other change is a PATCH in the forms of ESGF's publisher. Its
operations set a part of the item to the new state, whatever it was before. So a PATCH that comes twice, or after one
that got lost, ends in the same item. What has no place in ESGF's events is under `metadata`; its models ignore it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any, Final, cast
from uuid import UUID

import orjson

from fedstac import __version__
from fedstac.domain import documents, events, strict_json
from fedstac.domain.alternates import alternates_of
from fedstac.domain.errors import Problem, pointer
from fedstac.domain.esgf import EPOCH, place_of
from fedstac.domain.events import LoggedEvent
from fedstac.domain.policy import Action
from fedstac.messaging.dialects import JSON_TYPE, Delivery, Json, WireMessage, flags, served_assets
from fedstac.messaging.sources import RawEvent

SCHEMA_VERSION: Final = "1.0.0"
LONGEST_BROKEN: Final = 100_000  # bytes that are kept of a message that cannot be read
PLAIN_MEMBERS: Final = ("stac_version", "stac_extensions", "geometry", "bbox")
ACTIONS: Final = {
    events.SUPERSEDED: Action.SUPERSEDE,
    events.REPLACED: Action.REPLACE,
    events.RETRACTED: Action.RETRACT,
    events.REINSTATED: Action.REINSTATE,
    events.REPLICATED: Action.REPLICATE,
    events.ANNOTATED: Action.ANNOTATE,
    events.MARKED: Action.MARK,
    events.UNMARKED: Action.UNMARK,
    events.QUARANTINED: Action.QUARANTINE,
    events.RELEASED: Action.QUARANTINE,
    events.DELETED: Action.DELETE,
    events.PURGED: Action.PURGE,
    events.CLEARED: Action.DELETE,
}
GONE_FLAGS: Final = {"latest": False, "retracted": True}
WHOLE: Final = frozenset((Action.UPDATE, Action.REPLACE))  # actions that may change any member
STATE: Final = frozenset(
    (Action.RETRACT, Action.REINSTATE, Action.MARK, Action.UNMARK, Action.QUARANTINE, Action.DELETE, Action.PURGE)
)  # files go, or come back
SECRET: Final = frozenset((events.QUARANTINED, events.RELEASED))  # why a quarantine begins or ends, only nodes are told
KNOWN: Final = frozenset((*WHOLE, *STATE, Action.SUPERSEDE, Action.REPLICATE, Action.ANNOTATE, "promote"))
FACTS: Final = ("cv", "seq", "digest", "state")
BESIDE: Final = (
    "base_id", "version", "latest", "created", "updated", "publisher", "retraction", "superseded", "previous_state",
    "reason", "actions", "access", "unreferenced", "still_referenced",
)  # fmt: skip


def write(event: LoggedEvent, delivery: Delivery) -> WireMessage:
    """Return a dataset's event as ESGF's consumers read it."""
    text = orjson.loads(event.text)
    data = {"updated": text["time"], **text["data"]}
    value = {
        "data": {"type": "STAC", "payload": _payload(event, data)},
        "metadata": _metadata(text, data, event.cursor.epoch),
    }
    return WireMessage({"content-type": JSON_TYPE}, orjson.dumps(value))


def _payload(event: LoggedEvent, data: Json) -> Json:
    if event.type == events.PUBLISHED and data.get("document") is not None:
        return {"collection_id": data["collection"], "method": "POST", "item": _item(data)}
    patch = _operations(event, data)
    return {"collection_id": data["collection"], "method": "PATCH", "item_id": data["id"], "patch": patch}


def _item(data: Json) -> dict[str, Any]:
    """Return the publisher's item with the server's state, less its files where it is not to be used."""
    document = data["document"]
    return {**document, "properties": {**document["properties"], **flags(data)}, "assets": served_assets(data)}


def _flags(data: Json) -> dict[str, Any]:
    """Return the flags of a dataset's item; of one that is gone for this reader, those of one that is retracted."""
    return flags(data) if data.get("document") is not None else GONE_FLAGS | {"updated": data["updated"]}


def _operations(event: LoggedEvent, data: Json) -> Sequence[Json]:
    """Return the operations that lead to the event's state, those of the flags first, as ESGF's publisher has them."""
    actions = _actions(event, data)
    state, document = _flags(data), data.get("document")
    if document is None or not actions <= KNOWN:  # gone, or an action that ESGF does not know
        actions |= STATE
    item = _item(data) if document is not None else {"properties": state, "assets": {}}
    if document is not None and actions & WHOLE:
        members = [_set(item, name) for name in PLAIN_MEMBERS]
        return [operation for each in members for operation in each] + [
            _replace(item[name], name) for name in ("properties", "links", "assets")
        ]
    operations = []
    if actions - {Action.REPLICATE, Action.ANNOTATE}:
        operations.append(_replace(state["latest"], "properties", "latest"))
    if actions & STATE:
        operations.append(_replace(state["retracted"], "properties", "retracted"))
        operations.append(_replace(item["assets"], "assets"))
    elif Action.REPLICATE in actions:
        operations += [operation for key, asset in item["assets"].items() for operation in _replicas(key, asset)]
    if Action.ANNOTATE in actions and document is not None:
        operations.append(_replace(item["links"], "links"))
    return [*operations, _add(state["updated"], "properties", "updated")]


def _actions(event: LoggedEvent, data: Json) -> frozenset[str]:
    """Return what the event's change did: its event may name several actions; else its type says it."""
    return frozenset(data.get("actions") or (ACTIONS.get(event.type, Action.UPDATE),))


def _replicas(key: str, asset: Json) -> Sequence[Json]:
    """Return operations after which an asset has its alternates and no other ones, whatever it had."""
    alternates = alternates_of(asset)
    if not alternates and documents.is_aggregation(asset):
        return ()
    parent = ("assets", key, "alternate")
    own = [_add(entry, *parent, node) for node, entry in alternates.items()]
    return [_add({}, *parent), *(own or [{"op": "remove", "path": pointer(*parent)}])]


def _set(item: Json, name: str) -> Sequence[Json]:
    if name in item:
        return (_add(item[name], name),)
    return (_add(None, name), {"op": "remove", "path": pointer(name)})  # also where there is none


def _add(value: object, *steps: str) -> Json:
    return {"op": "add", "path": pointer(*steps), "value": value}


def _replace(value: object, *steps: str) -> Json:
    return {"op": "replace", "path": pointer(*steps), "value": value}


def _metadata(event: Json, data: Json, epoch: int) -> Json:
    hidden = ("reason",) if event["type"] in SECRET else ()
    beside = {name: data[name] for name in BESIDE if name in data and name not in hidden}
    return {
        "auth": {
            "auth_policy_id": None,
            "requester_data": {"client_id": "fedstac", "iss": event["source"], "sub": data.get("actor", "")},
        },
        "event_id": UUID(event["id"]).hex,
        "publisher": {"package": "fedstac", "version": __version__},
        "request_id": event.get("correlationid", ""),
        "time": event["time"],
        "schema_version": SCHEMA_VERSION,
        **{name: data[name] for name in FACTS if name in data},
        "fedstac": {
            "type": event["type"], "source": event["source"], "lineage": event.get("partitionkey"), "epoch": epoch,
            **({"traceparent": event["traceparent"]} if "traceparent" in event else {}), **beside,
        },
    }  # fmt: skip


# --- reading ---


def raw_event(value: bytes | None, *, origin: str, place: str, count: int) -> RawEvent:
    """Return a message of a topic as a consumer takes events. One that cannot be read says so under `fault`.

    `place` is where it stands (topic/partition/offset), `count` how many messages this node has read, with this one.
    """
    event: dict[str, Any] = {"id": place, "source": origin, "subject": place, "epoch": EPOCH, "pos": count}
    try:
        message = cast("Json", strict_json.parse(value or b""))
        payload = message["data"]["payload"]
        item_id = payload["item"]["id"] if payload["method"] == "POST" else payload["item_id"]
        collection, event_id = payload["collection_id"], message["metadata"].get("event_id")
        if not isinstance(item_id, str) or not isinstance(collection, str):
            raise TypeError("the item and its collection have no names")
        at = place_of(message, item_id, count)
    except (LookupError, TypeError, ValueError, AttributeError, Problem) as error:
        fault = error.detail if isinstance(error, Problem) else f"this is no event of ESGF: {error!r}"
        text = (value or b"")[:LONGEST_BROKEN].decode(errors="replace")
        return {**event, "fault": fault[:300], "text": text, "data": {"seq": count}}
    names = {"collection": collection, "id": item_id}
    # a patch has a subject of its own, so that it does not take the place of a parked POST, which may be tried again
    kind = "" if payload["method"] == "POST" else f" ({str(payload['method'])[:5]})"
    event |= {"subject": f"{collection}/{item_id}{kind}", "epoch": at.epoch, "data": {"seq": at.seq, **names}}
    if isinstance(event_id, str) and event_id:
        # the same id with other content is another event: some programs give all of theirs the same
        sameness = orjson.dumps([event_id, message["data"]], option=orjson.OPT_SORT_KEYS)
        event |= {"id": event_id, "sameness": hashlib.sha256(sameness).hexdigest()[:32]}
    own = message["metadata"].get("fedstac")
    trace = {"traceparent": own["traceparent"]} if isinstance(own, dict) and "traceparent" in own else {}
    return {**event, **trace, "message": message}
