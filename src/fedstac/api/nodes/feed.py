"""The HTTP feed: the log itself, served to nodes; snapshots, digests and acknowledgements."""

from __future__ import annotations

import base64
import time
from collections.abc import Iterable

import orjson
from starlette.responses import Response

from fedstac.api.call import Call
from fedstac.api.http import links, no_store, numbers
from fedstac.api.http.media_types import Accept
from fedstac.api.nodes import deletion_reports, snapshots
from fedstac.bootstrap import fork_if_restored
from fedstac.db import collections, feed, nodes
from fedstac.db.connections import Connection
from fedstac.db.feed import EventFilter
from fedstac.domain import events, policy, strict_json
from fedstac.domain.errors import BadRequest
from fedstac.domain.events import Cursor
from fedstac.domain.policy import Action, Policy, Principal, Resource
from fedstac.runtime import budget
from fedstac.runtime.wakeup import Backoff, pause
from fedstac.workers import statuses

BATCH, LINES = "application/cloudevents-batch+json", "application/x-ndjson"
PAGE, LARGEST_PAGE = 500, 2000
LONGEST_WAIT = 60.0
PORTION_SECONDS = 0.1  # between looks at events that a filter leaves out
ALL_GRANTS = Resource("all grants", "*", "*")
MOST_NAMED = 100  # datasets whose state is asked for by their ids


async def get_events(call: Call) -> Response:
    """Return events in the order of the log, the oldest first.

    X-Cursor is where to go on. It advances also over events that the filters leave out, and over those about grants,
    which are for callers with the right read-grants on all projects. With `wait` an answer without
    events comes only when the time is up.
    """
    node = call.node
    after = Cursor.parse(call.query_params.get("after", str(events.START)))
    limit = numbers.whole(call.query_params, "limit", default=PAGE, most=LARGEST_PAGE)
    wait = numbers.whole(call.query_params, "wait", default=0, most=int(LONGEST_WAIT))
    event_filter = filter_of(call)
    budget.extend(wait)
    deadline, backoff = time.monotonic() + wait, Backoff()
    while True:
        sequenced = node.sequenced.next()
        async with node.pool.acquire() as conn:
            after = await feed.resume(conn, after)
            page = await feed.look(conn, after.pos, max(limit, 1), event_filter)
        advance, after = page.through - after.pos, Cursor(after.epoch, page.through)
        seconds = deadline - time.monotonic()
        if page.entries or seconds <= 0 or node.stopping.is_set():
            break
        if advance:  # over events that are left out: where many come, they are looked at in portions
            await pause(node.stopping, 0 if advance == feed.SCANNED else min(PORTION_SECONDS, seconds))
        else:
            await sequenced(min(node.commits.patience(backoff.pause()), seconds))
    return _answer(call, (positioned(entry) for entry in page.entries), after)


def positioned(entry: feed.Entry) -> str:
    """Return the text of an event with its place."""
    return events.positioned(entry.event, Cursor(entry.epoch, entry.pos))


def filter_of(call: Call) -> EventFilter:
    """Return which events a caller asks for. BadRequest where the share is none."""
    index, slash, count = call.query_params.get("shard", "0/1").partition("/")
    if not (slash and _is_digits(index, count) and len(count) < 6 and numbers.value(index) < int(count)):
        shard = call.query_params["shard"][:20]
        raise BadRequest(f"shard={shard!r} is not i/n with i from 0 to n-1")
    return EventFilter(
        call.query_params.get("collection"), call.query_params.get("type"), share=int(index), shares=int(count),
        grants=may_read_grants(call.node.policy, call.caller),
    )  # fmt: skip


def may_read_grants(rules: Policy, caller: Principal) -> bool:
    """Return whether the events about grants are for a caller: by the right read-grants on all projects."""
    return rules.verdict(caller, Action.READ_GRANTS, ALL_GRANTS).allowed


def _is_digits(*texts: str) -> bool:
    return all(map(numbers.DIGITS.fullmatch, texts))


def _answer(call: Call, texts: Iterable[str], cursor: Cursor) -> Response:
    """Return a page of events, or of what a snapshot has, as bytes at once: each copy of a page is of megabytes."""
    headers = {"X-Cursor": str(cursor), "Cache-Control": "private, no-store"}
    if Accept(call.headers).asks_for(LINES, instead_of=(BATCH, links.JSON)):
        lines = (piece for text in texts for piece in (text.encode(), b"\n"))
        return Response(b"".join(lines), headers=headers, media_type=LINES)
    members = (piece for text in texts for piece in (b",", text.encode()))
    next(members, None)
    return Response(b"".join((b"[", *members, b"]")), headers=headers, media_type=BATCH)


async def get_head(call: Call) -> Response:
    """Return the last position of the log, and what each node has acknowledged."""
    node = call.node
    async with node.pool.acquire() as conn:
        head = await feed.head(conn)
        statuses = await nodes.statuses(conn)
    body = {
        "origin": node.settings.node,
        "cursor": str(head),
        "nodes": [{"node": row["node"], "through": f"{row['epoch']}.{row['through']}"} for row in statuses],
    }
    return no_store.answer(body)


async def get_snapshot(call: Call) -> Response:
    """Return a page of the current state of all datasets that this node is the origin of, tombstones included.

    The cursor is that of the feed before the first page. Go on from it when the last page is applied. With a collection
    and ids the one page has these datasets, as far as they are here: with them a node mends what it lacks.

    With `format=geoparquet` the answer is the manifest of the snapshot in files, if the operator had one written.
    """
    node = call.node
    if (form := call.query_params.get("format", "json")) == snapshots.GEOPARQUET:
        return await snapshots.manifest_answer(call)
    if form != "json":
        raise BadRequest(f"format={form[:40]!r} is no format of a snapshot; there are json and {snapshots.GEOPARQUET}")
    if "collection" in call.query_params or "id" in call.query_params:
        return await _get_named(call)
    limit = max(numbers.whole(call.query_params, "limit", default=PAGE, most=LARGEST_PAGE), 1)
    async with node.pool.acquire() as conn:
        page = call.query_params.get("page")
        if page is None:  # the database may have been promoted since this process started
            await fork_if_restored(conn)
        cursor, after = _read_page(page) if page else (await feed.head(conn), None)
        entries = [] if after else await _collections(conn, node.settings.node, cursor.epoch)
        records = await feed.snapshot_page(conn, node.settings.node, after or ("", ""), limit)
    entries += [events.current(record, cursor.epoch, node.checker.vocabularies.digest_of) for record in records]
    following = _write_page(cursor, records[-1].collection, records[-1].id) if records else None
    return _snapshot(call, cursor, entries, following)


async def _get_named(call: Call) -> Response:
    """Return the current state of the datasets that the parameters name."""
    node, collection, ids = call.node, call.query_params.get("collection"), call.query_params.getlist("id")
    if collection is None or not 0 < len(ids) <= MOST_NAMED:
        raise BadRequest(f"name one collection, and one id or up to {MOST_NAMED}: ?collection=CMIP6&id=…&id=…")
    async with node.pool.acquire() as conn, conn.transaction(isolation="repeatable_read", readonly=True):
        cursor = await feed.head(conn)
        records = await feed.current_of(conn, node.settings.node, collection, ids)
    entries = [events.current(record, cursor.epoch, node.checker.vocabularies.digest_of) for record in records]
    return _snapshot(call, cursor, entries, None)


def _snapshot(call: Call, cursor: Cursor, entries: list[str], following: str | None) -> Response:
    envelope = {"origin": call.node.settings.node, "cursor": str(cursor), "next": following}
    text = f'{orjson.dumps(envelope).decode()[:-1]},"entries":[{",".join(entries)}]}}'
    headers = {"X-Cursor": str(cursor), "Cache-Control": "private, no-store"}
    return Response(text, headers=headers, media_type=links.JSON)


async def _collections(conn: Connection, origin: str, epoch: int) -> list[str]:
    return [
        events.current_collection(
            entry.id, entry.origin, epoch, entry.seq, document=entry.document, digest=entry.digest
        )
        for entry in await collections.of_origin(conn, origin)
    ]


def _write_page(cursor: Cursor, collection: str, item_id: str) -> str:
    return base64.urlsafe_b64encode(orjson.dumps([str(cursor), collection, item_id])).decode()


def _read_page(text: str) -> tuple[Cursor, tuple[str, str]]:
    try:
        cursor, collection, item_id = orjson.loads(base64.urlsafe_b64decode(text))
        if "\0" in collection + item_id:
            raise ValueError
        return Cursor.parse(cursor), (collection, item_id)
    except (ValueError, TypeError, AttributeError):
        raise BadRequest("page is not one that this server gave; begin without it") from None


async def get_digests(call: Call) -> Response:
    """Return fingerprints by collection and bucket. With a collection and a bucket, return the records of that one."""
    node = call.node
    collection = call.query_params.get("collection")
    async with node.pool.acquire() as conn, conn.transaction(isolation="repeatable_read", readonly=True):
        cursor = await feed.head(conn)
        if collection is None:
            rows = await feed.digests(conn, node.settings.node)
        else:
            bucket = numbers.whole(call.query_params, "bucket", default=0, most=255)
            rows = await feed.bucket(conn, node.settings.node, collection, bucket)
    body = {"origin": node.settings.node, "cursor": str(cursor), "entries": [dict(row) for row in rows]}
    return no_store.answer(body)


async def post_status(call: Call) -> Response:
    """Store that a consumer of the calling node has everything through a position, but for the exceptions.

    Without `consumer` it is the node's index. Only the node itself can report for itself. With `reports` it also says
    how far the node is with its part of deletions, as to POST /deletions/reports.
    """
    node, name = call.node, policy.require_node(call.caller)
    status = statuses.read_status(strict_json.parse(await call.body.read()), name)
    async with node.pool.acquire() as conn:
        answers = await statuses.store(conn, status, actor=call.caller.name, correlation=call.request_id)
    return deletion_reports.answer(answers) if status.reports else Response(status_code=204)
