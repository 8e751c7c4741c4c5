"""What became of datasets: the history of one, and how thousands stand at once."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from dataclasses import replace
from typing import Any, Final
from uuid import UUID

import orjson
from starlette.responses import Response

from fedstac.api.call import Call
from fedstac.api.http import links, numbers
from fedstac.api.http.media_types import Accept
from fedstac.api.http.streaming import StreamedAnswer
from fedstac.api.search import views
from fedstac.api.writing import intake
from fedstac.api.writing.collections import existing
from fedstac.db import history
from fedstac.db.history import EventRow, StatusRow, VersionRow
from fedstac.domain import events, strict_json, visibility
from fedstac.domain.access import DatasetAccess, View
from fedstac.domain.errors import BadRequest, ItemDoesNotExist, TakesTooLong
from fedstac.domain.events import PREFIX
from fedstac.domain.model import State, rfc3339
from fedstac.domain.policy import Level, Principal, Resource
from fedstac.runtime import budget
from fedstac.runtime.budget import Budget

DEFAULT_EVENTS, MOST_EVENTS = 100, 1000
MOST_IDS: Final = 10_000
TOGETHER: Final = 500  # ids of one look
ID_BYTES: Final = 600  # that an id takes while its answer is written
LINES: Final = "application/x-ndjson"
HIDING: Final = (State.QUARANTINED, State.MARKED)  # states that cover another one


async def get_history(call: Call) -> Response:
    """Return the versions of a dataset and the events that they had, the newest first.

    Events are there for as long as the log is kept, and at the node where the dataset was published: `origin` names it.
    Who did it is shown to those who may mark the dataset for deletion; so are a marked dataset, its marks, and the
    events of its quarantine.
    """
    node = call.node
    collection, item_id = call.path_params["collection_id"], call.path_params["item_id"]
    limit = max(numbers.whole(call.query_params, "limit", default=DEFAULT_EVENTS, most=MOST_EVENTS), 1)
    before = _event_id(call.query_params.get("before"))
    caller = await call.find_caller()
    vocabulary = node.checker.vocabularies.current(collection)
    naming = vocabulary.institution if vocabulary is not None else None
    # what the caller may not see in any case is not read, so that the time tells nothing
    may_keep = visibility.may_see_hidden_somewhere(node.policy, caller, collection)
    states = history.SHOWN_TO_MANAGERS if may_keep else history.BY_ID
    with_private = await views.may_read_some_private(call, collection)
    async with node.search_pool.acquire() as conn:
        versions = await history.versions(
            conn, collection, item_id, states, naming=naming, with_private=with_private, with_document=may_keep
        )
    versions = await _readable(call, caller, versions)
    sees_hidden = bool(may_keep and versions) and await _sees_hidden(call, caller, collection, item_id, versions)
    if not sees_hidden:
        versions = [
            version for version in versions
            if version.state in (history.BY_ID if version.id == item_id else history.SHOWN)
        ]  # fmt: skip
    if not any(version.id == item_id for version in versions):
        async with node.search_pool.acquire() as conn:
            await existing(conn, collection)
        raise ItemDoesNotExist(f"there is no dataset {item_id[:512]!r} in {collection}; a search lists those there are")
    async with node.search_pool.acquire() as conn:
        page = await history.events(
            conn, versions[0].lineage, [version.id for version in versions], before=before, limit=limit,
            with_hiding=sees_hidden,
        )  # fmt: skip
    if page is None:
        raise BadRequest(f"before={before} is no event of this dataset that is kept; begin again without it")
    own = f"{links.item_url(call.base_url, collection, item_id)}/history"
    page_links = [
        {"rel": "self", "type": links.JSON, "href": own},
        {"rel": "item", "type": links.GEOJSON, "href": links.item_url(call.base_url, collection, item_id)},
    ]
    if page.has_more:
        page_links.append(links.next_page(own, {"limit": limit, "before": page.events[-1].event_id}))
    body = {
        "collection": collection, "id": item_id, "versions": [_version(call, collection, each) for each in versions],
        "events": [_event(each, sees_hidden=sees_hidden) for each in page.events], "links": page_links,
    }  # fmt: skip
    return Response(orjson.dumps(body), headers=views.PRIVATE, media_type=links.JSON)


async def _readable(call: Call, caller: Principal | None, versions: Sequence[VersionRow]) -> list[VersionRow]:
    """Return the versions less the private ones that the caller may not read."""
    private = [version for version in versions if version.access == Level.PRIVATE]
    if not private:
        return list(versions)
    collection = call.path_params["collection_id"]
    readable = await views.views_on(call, caller, [
        DatasetAccess(Resource(each.id, collection, each.institution), State(each.state), Level.PRIVATE)
        for each in private
    ])  # fmt: skip
    return [
        version for version in versions
        if version.access != Level.PRIVATE or readable[collection, version.id] > View.NOTHING
    ]  # fmt: skip


def _event_id(text: str | None) -> UUID | None:
    try:
        return UUID(text) if text else None
    except ValueError:
        raise BadRequest(f"before={str(text)[:40]!r} is no id of an event; take that of the link `next`") from None


async def _sees_hidden(
    call: Call, caller: Principal | None, collection: str, item_id: str, versions: Sequence[VersionRow]
) -> bool:
    own = next((version for version in versions if version.id == item_id), versions[0])
    institution = await views.institution_of(call, collection, own.cv_version, own.document)
    return visibility.may_see_hidden(call.node.policy, caller, Resource(item_id, collection, institution))


def _version(call: Call, collection: str, version: VersionRow) -> dict[str, Any]:
    return {
        "id": version.id, "version": str(version.version) if version.version is not None else None,
        "state": version.state, "latest": version.latest, "created": rfc3339(version.created),
        "updated": rfc3339(version.updated), "origin": version.origin, **_retraction(version.retraction),
        "href": links.item_url(call.base_url, collection, version.id),
    }  # fmt: skip


def _event(event: EventRow, *, sees_hidden: bool) -> dict[str, Any]:
    """Return an event. Its reason may name a hidden dataset: `latest again: … is marked`.

    What was retracted or changed under quarantine is told to outsiders as if there had been none.
    """
    if not sees_hidden:
        event = replace(event, state=_uncovered(event), previous_state=_uncovered_before(event))
    return {
        "event": str(event.event_id), "time": event.time, "id": event.dataset,
        "type": event.type.removeprefix(PREFIX + "dataset.").rpartition(".")[0], "state": event.state,
        "previous_state": event.previous_state, "latest": event.latest, **_retraction(event.retraction),
        **({"actor": event.actor, "reason": event.reason} if sees_hidden else {}),
    }  # fmt: skip


def _uncovered(event: EventRow) -> str:
    if event.state not in HIDING:
        return event.state
    return State.PUBLISHED if event.retraction is None else State.RETRACTED


def _uncovered_before(event: EventRow) -> str | None:
    if event.previous_state not in HIDING:
        return event.previous_state
    match event.type:
        case events.RETRACTED:
            return State.PUBLISHED
        case events.REINSTATED:
            return State.RETRACTED
    return _uncovered(event)


def _retraction(text: str | None) -> dict[str, Any]:
    return {"retraction": orjson.loads(text)} if text is not None else {}


# --- many at once


async def post_status(call: Call) -> Response:
    """Tell how datasets stand: published, retracted and why, what to use instead, under quarantine, the latest version.

    An id that is unknown and one that is hidden look the same. The answer has the ids in their order; with
    `Accept: application/x-ndjson` a line each.
    """
    raw = await call.body.read()
    services = call.services
    ids, collections = await services.threads.run(lambda: _read(call, raw))
    as_lines = Accept(call.headers).asks_for(LINES, instead_of=(links.JSON,))
    reply = _StatusReply(call, ids, collections, as_lines=as_lines)
    first = await reply.read_some()
    media_type = LINES if as_lines else links.JSON
    if reply.is_done:
        return Response(reply.beginning + first + reply.end, media_type=media_type)
    share = services.memory.share(budget.lane())
    share.take(ID_BYTES * len(ids))
    patience = services.node.settings.read_timeout_seconds
    return StreamedAnswer(reply.pieces(first), share=share, patience=patience, media_type=media_type, headers=None)


def _read(call: Call, raw: bytes) -> tuple[list[str], list[str] | None]:
    kind = call.headers.get("content-type", "").partition(";")[0].strip().lower()
    collections = None
    if kind in intake.LINE_TYPES:
        ids: object = strict_json.parse_lines(raw, most=MOST_IDS + 1)
    else:
        ids = strict_json.parse(raw)
        if isinstance(ids, dict):
            if not set(ids) <= {"ids", "collections"}:
                raise BadRequest("the body has `ids`, and `collections` if you like")
            collections, ids = ids.get("collections"), ids.get("ids")
    return _texts("ids", ids), None if collections is None else _texts("collections", collections)


def _texts(name: str, value: object) -> list[str]:
    if not isinstance(value, list) or not all(isinstance(entry, str) for entry in value):
        raise BadRequest(f'{name} is a list of strings: ["…", "…"], or a string on each line')
    if len(value) > MOST_IDS:
        raise BadRequest(f"{name} has over {MOST_IDS} entries, which are the most; ask several times")
    return value


class _StatusReply:
    """The answer about many ids, some of them at a time."""

    def __init__(self, call: Call, ids: Sequence[str], collections: Sequence[str] | None, *, as_lines: bool) -> None:
        self._call, self._ids, self._collections, self._as_lines = call, ids, collections, as_lines
        self._lane = budget.lane()
        self._next = 0
        self.beginning, self.end = (b"", b"") if as_lines else (b'{"datasets":[', b"]}")

    @property
    def is_done(self) -> bool:
        return self._next >= len(self._ids)

    async def read_some(self) -> bytes:
        """Return what is to be said of the next ids."""
        ids = self._ids[self._next : self._next + TOGETHER]
        if not ids:
            return b""
        async with self._call.node.search_pool.acquire() as conn:
            rows = await history.statuses(conn, ids, self._collections)
        entries = [orjson.dumps(_status(self._call, row)) for row in rows]
        comma = b"," if self._next and not self._as_lines else b""
        self._next += len(ids)
        return b"".join(entry + b"\n" for entry in entries) if self._as_lines else comma + b",".join(entries)

    async def pieces(self, first: bytes) -> AsyncGenerator[bytes, None]:
        yield self.beginning + first
        services = self._call.services
        seconds = services.node.settings.request_seconds
        reason = TakesTooLong(f"a part of the answer took over {seconds:g} s", retry_after=1)
        while not self.is_done:
            async with Budget(seconds, self._lane, lambda: reason, among=services.open_budgets):
                piece = await self.read_some()
            yield piece
        yield self.end


def _status(call: Call, row: StatusRow) -> dict[str, Any]:
    if row.collection is None or row.updated is None:
        return {"id": row.id, "state": "unknown"}
    entry = {
        "id": row.id, "state": row.state, "collection": row.collection, "latest": row.latest,
        "updated": rfc3339(row.updated), "href": links.item_url(call.base_url, row.collection, row.id),
    }  # fmt: skip
    if row.latest_id is not None and row.latest_id != row.id:
        entry["latest_version"] = row.latest_id
    return {**entry, **(orjson.loads(row.retraction) if row.retraction is not None else {})}
