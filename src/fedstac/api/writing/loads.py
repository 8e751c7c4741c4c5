"""Full-state loads over HTTP: state everything that shall exist, look at what that changes, have it done."""

from __future__ import annotations

import hashlib
from datetime import UTC, datetime
from uuid import UUID

from starlette.responses import Response

from fedstac.api.call import Call
from fedstac.api.http import links, no_store, numbers
from fedstac.api.people import identity
from fedstac.api.writing import intake
from fedstac.api.writing.options import is_dry_run, is_wanted, override_of
from fedstac.db import load_comparison, loads
from fedstac.db.connections import Connection
from fedstac.db.loads import Load, LoadPart, NewLoad, StatedDataset
from fedstac.domain.errors import BadRequest, LoadDoesNotExist, LoadNotConfirmed
from fedstac.domain.groups import ANY
from fedstac.domain.identifiers import uuid7
from fedstac.domain.model import moment
from fedstac.domain.policy import Action, Resource
from fedstac.domain.reconcile import MOST, MOST_PARTS, LoadChange, LoadMode
from fedstac.domain.texts import Text, pieces
from fedstac.workers import loading

PAGE, LARGEST_PAGE = 100, 5000
OWN_PAGE, LARGEST_OWN_PAGE = 20, 100


async def post_reconcile(call: Call) -> Response:
    """Load the full state of a collection: everything that shall exist in it.

    What is not stated is cleared. The body is NDJSON or a FeatureCollection; an empty one states nothing. With
    `dry_run=true` the answer says what would change, and `POST /loads/{id}/apply` does it; so it does where comparing
    takes longer, and the answer is 202 with the status `comparing`. With `complete=false` the body is the first part of
    several. More than a tenth of the datasets go only with `confirm`, which says how many.
    """
    node, name = call.node, call.path_params["collection_id"]
    await call.services.collections.require(node, name, publishes=True)
    _permit(call, name)
    text = await call.body.text()
    new = NewLoad(
        id=uuid7(datetime.now(UTC)), collection=name, mode=_mode(call), override=override_of(call),
        submitter=call.caller.name, roles=sorted(call.caller.roles), identity=identity.packed(call.caller),
        correlation=call.request_id, traceparent=call.traceparent,
    )  # fmt: skip
    datasets, names = await _datasets_of(call, name, text)
    is_complete = not _is_false(call, "complete")
    async with node.pool.acquire() as conn:
        await loading.begin(conn, new)
        await loading.put_part(conn, new.id, await _part(call, 1, text, datasets), datasets, names)
        if not is_complete:
            return await _answer(call, conn, new.id, 201)
        load = await loading.compare(node, conn, new.id)
        if is_dry_run(call) or load.is_comparing:
            return await _answer(call, conn, new.id, 202 if load.is_comparing else 200)
        return await _apply(call, conn, new.id, comparison_time=load.compared_at)


async def put_part(call: Call) -> Response:
    """Send a part of a load: the same again changes nothing, another body takes its place."""
    text = await call.body.text()
    n = _part_number(call.path_params["n"])
    async with call.node.pool.acquire() as conn:
        load = await _readable(call, conn)
    datasets, names = await _datasets_of(call, load.collection, text)
    async with call.node.pool.acquire() as conn:
        await loading.put_part(conn, load.id, await _part(call, n, text, datasets), datasets, names)
        return await _answer(call, conn, load.id, 200)


async def get_loads(call: Call) -> Response:
    """List the loads of the caller, the newest first; for an administrator those of everybody."""
    limit = max(1, numbers.whole(call.query_params, "limit", default=OWN_PAGE, most=LARGEST_OWN_PAGE))
    after = _load_id(call.query_params["after"]) if "after" in call.query_params else None
    submitter = None if call.caller.is_admin else call.caller.name
    async with call.node.pool.acquire() as conn:
        page = await loads.list_page(conn, submitter, after=after, limit=limit + 1)
    summaries = [{**loading.summary_of(each), "links": _links(call, each.load)} for each in page[:limit]]
    more = {"limit": limit, "after": str(page[limit - 1].load.id)} if len(page) > limit else None
    return no_store.answer({"loads": summaries, "links": links.of_page(f"{call.base_url}/loads", more)})


async def get_load(call: Call) -> Response:
    """Return a load: what has come of it, what it changes, how far it is."""
    async with call.node.pool.acquire() as conn:
        load = await _readable(call, conn)
        return await _answer(call, conn, load.id, 200)


async def get_load_datasets(call: Call) -> Response:
    """List the datasets of a load by their ids, each with what becomes of it."""
    text = call.query_params.get("change")
    if text is not None and text not in tuple(LoadChange):
        raise BadRequest(f"change={text[:20]!r} is not one of {', '.join(LoadChange)}")
    change = LoadChange(text) if text is not None else None
    limit = max(1, numbers.whole(call.query_params, "limit", default=PAGE, most=LARGEST_PAGE))
    async with call.node.pool.acquire() as conn:
        load = await _readable(call, conn)
        after = call.query_params.get("after", "")
        page = await load_comparison.datasets(conn, load, change=change, after=after, limit=limit + 1)
    url = f"{call.base_url}/loads/{load.id}/datasets"
    filters = {"change": text} if text else {}
    more = {"limit": limit, "after": page[limit - 1].id, **filters} if len(page) > limit else None
    datasets = [
        {
            "id": each.id,
            "change": each.change,
            **({"type": each.problem, "detail": each.detail} if each.problem else {}),
        }
        for each in page[:limit]
    ]
    return no_store.answer({"datasets": datasets, "links": links.of_page(url, more)})


async def post_apply(call: Call) -> Response:
    """Apply a load, or look at it again.

    With `dry_run=true` it is compared anew, and nothing changes. A large load is compared beside other work: the answer
    is 202, and `GET /loads/{id}` says how far it is. Else what the last comparison showed is done, dataset by dataset,
    beside other work; what was changed since is left as it is. `confirm` says how many datasets go, where that has to
    be said. `compared` says which comparison the caller saw: where another one counts by now, nothing is done. The same
    again is the same.
    """
    comparison_time = _comparison_time(call)
    async with call.node.pool.acquire() as conn:
        load = await _readable(call, conn)
        _permit(call, load.collection)
        if is_dry_run(call):
            load = await loading.compare(call.node, conn, load.id)
            return await _answer(call, conn, load.id, 202 if load.is_comparing else 200)
        if load.compared_at is None and comparison_time is None:
            load = await loading.compare(call.node, conn, load.id)
            comparison_time = load.compared_at  # what this request compared, and nothing that came meanwhile
        return await _apply(call, conn, load.id, comparison_time=comparison_time)


async def post_cancel(call: Call) -> Response:
    """End a load that is not applied, and remove what it stated. `POST /bulk/{id}/cancel` ends one that is applied."""
    async with call.node.pool.acquire() as conn:
        load = await _readable(call, conn)
        await loading.cancel(conn, load.id, call.caller.name, correlation=call.request_id)
        return await _answer(call, conn, load.id, 200)


# --- what is asked for ---


def _permit(call: Call, collection: str) -> None:
    """Require the rights on all datasets of a collection: a load says of each of them what becomes of it."""
    resource = Resource(f"all datasets of {collection[:128]}", collection, ANY)
    for action in (Action.PUBLISH, Action.UPDATE, Action.DELETE):
        call.node.policy.require(call.caller, action, resource)


def _mode(call: Call) -> LoadMode:
    text = call.query_params.get("mode", LoadMode.APPLY)
    if text not in tuple(LoadMode):
        raise BadRequest(f"mode={text[:20]!r} is not one of {', '.join(LoadMode)}")
    return LoadMode(text)


def _part_number(text: str) -> int:
    n = numbers.value(text) if numbers.DIGITS.fullmatch(text) else 0
    if not 1 <= n <= MOST_PARTS:
        raise BadRequest(f"{text[:20]!r} is no number of a part; parts are numbered from 1 to {MOST_PARTS}")
    return n


def _is_false(call: Call, name: str) -> bool:
    return name in call.query_params and not is_wanted(call, name)


def _confirmed(call: Call) -> int | None:
    if "confirm" not in call.query_params:
        return None
    return numbers.whole(call.query_params, "confirm", default=0, most=MOST)


def _comparison_time(call: Call) -> datetime | None:
    """Return which comparison the caller saw, by its time; None where they do not say."""
    text = call.query_params.get("compared")
    comparison_time = moment(text)
    if text is not None and comparison_time is None:
        raise BadRequest(f"compared={text[:40]!r} is no time; send what the load says in `compared`")
    return comparison_time


async def _datasets_of(call: Call, collection: str, text: Text) -> tuple[list[StatedDataset], list[str]]:
    """Judge a part. Return its datasets, refused ones too, and where each of them stands in the body."""
    if not len(text):
        return [], []
    media_type = call.headers.get("content-type", "")
    body = intake.Body(collection=collection, read=call.body.text, media_type=media_type)
    async with call.services.memory.place(intake.BATCH_MEMORY):
        body_of_part = await intake.refuse(
            call.node, await intake.judge(call.services, call.caller, body, call.progress)
        )
    datasets = [
        StatedDataset(
            item.id, item.name.lineage, item.name.version, body_of_part.cv_version, item.texts
        ) if item.problem is None and item.name is not None
        else StatedDataset(
            item.id, "", None, None, None, item.problem.name if item.problem else "",
            item.problem.detail if item.problem else "",
        )
        for item in body_of_part.items
    ]  # fmt: skip
    return datasets, [f"{body_of_part.prefix}/{n}" for n in range(len(datasets))]


async def _part(call: Call, n: int, text: Text, datasets: list[StatedDataset]) -> LoadPart:
    def digest() -> bytes:
        value = hashlib.sha256()
        for piece in pieces(text):
            value.update(piece)
        return value.digest()

    return LoadPart(n, await call.services.threads.run(digest), len(datasets))


async def _readable(call: Call, conn: Connection) -> Load:
    """Return the load that the path names, of the caller's own, or any to an administrator."""
    load = await loads.find(conn, _load_id(call.path_params["load_id"]))
    if load is None or not (call.caller.is_admin or call.caller.name == load.submitter):
        raise LoadDoesNotExist("there is no such full-state load of yours; begin one with POST …/reconcile")
    return load


def _load_id(text: str) -> UUID:
    try:
        return UUID(text)
    except ValueError:
        raise LoadDoesNotExist(f"{text[:80]!r} is no id of a full-state load") from None


async def _apply(call: Call, conn: Connection, id: UUID, *, comparison_time: datetime | None) -> Response:
    try:
        await loading.apply(
            call.node, conn, call.caller, id, confirmed=_confirmed(call), identity=identity.packed(call.caller),
            correlation=call.request_id, traceparent=call.traceparent, comparison_time=comparison_time,
        )  # fmt: skip
    except LoadNotConfirmed as problem:
        problem.load = id
        raise
    call.node.committed.wake()
    return await _answer(call, conn, id, 202)


async def _answer(call: Call, conn: Connection, id: UUID, status: int) -> Response:
    async with conn.transaction(isolation="repeatable_read", readonly=True):
        load = await loads.find(conn, id)
        assert load is not None
        view = await loading.view(conn, load)
    if status == 202 and load.bulk is None and not load.is_comparing:
        status = 200  # there was nothing to do, or it is compared by now
    return no_store.answer(
        {**view.as_json(), "links": _links(call, load)}, status, Location=f"{call.base_url}/loads/{id}"
    )


def _links(call: Call, load: Load) -> list[dict[str, str]]:
    url = f"{call.base_url}/loads/{load.id}"
    return [
        {"rel": "self", "type": links.JSON, "href": url},
        {"rel": "datasets", "type": links.JSON, "href": f"{url}/datasets"},
        *([{"rel": "bulk", "type": links.JSON, "href": f"{call.base_url}/bulk/{load.bulk}"}] if load.bulk else []),
    ]
