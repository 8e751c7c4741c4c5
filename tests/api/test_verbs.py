"""What a console or another program calls: the verbs, given a node, a caller, a command and options, and no HTTP."""

from __future__ import annotations

import asyncio
import copy
from collections.abc import AsyncIterator
from typing import Any
from uuid import UUID, uuid4

import orjson
import pytest

from fedstac.api import app
from fedstac.api.call import Services
from fedstac.api.search import query as queries
from fedstac.api.search.reading import find
from fedstac.api.writing import changes, intake, items, requests, retries
from fedstac.api.writing.admission import AcceptedRequest, EarlierRequest
from fedstac.api.writing.answers import DryRun, NoChange
from fedstac.api.writing.changes import DatasetAction
from fedstac.api.writing.options import WriteOptions
from fedstac.collection_writing import CollectionWriter
from fedstac.db.requests import Key
from fedstac.demo import sample
from fedstac.domain.errors import MissingPermission, StacInvalid
from fedstac.domain.policy import Principal
from fedstac.settings import Settings
from fedstac.workers import publisher, roles

Json = dict[str, Any]
ROOT = Principal("root", frozenset({"admin"}))
READER = Principal("reader", frozenset())
ITEM, OTHER = sample.items(2)
RETRACTION = {"retraction": {"reason": "wrong forcing"}, "expected": None}


@pytest.fixture
async def services(dsn: str) -> AsyncIterator[Services]:
    """The services of a node that nobody serves, with the collection CMIP6."""
    application = app.create(
        Settings(dsn=dsn, node="west", run_workers=False, _env_file=None), "https://west.example", roles=[roles.PUBLISH]
    )
    async with application.router.lifespan_context(application):
        made: Services = application.state.services
        async with made.node.pool.acquire() as conn:
            await CollectionWriter(conn, "west", "root", made.node.collection_schema).create(sample.collection())
        yield made


def body_of(*documents: Json) -> intake.Body:
    async def read() -> bytes:
        return b"\n".join(orjson.dumps(document) for document in documents)

    return intake.Body("CMIP6", read, "application/x-ndjson" if len(documents) > 1 else "application/json")


async def work(services: Services) -> None:
    """Let the worker perform what waits."""
    async with services.node.pool.acquire() as conn:
        await publisher.work_once(services.node, conn, "worker")


async def publish(services: Services, *documents: Json, **options: Any) -> AcceptedRequest:
    accepted = await items.publish(services, ROOT, body_of(*documents), WriteOptions(**options))
    assert isinstance(accepted, AcceptedRequest)
    await work(services)
    return accepted


async def ids_found(services: Services, **conditions: Any) -> list[str]:
    query = queries.from_body(conditions, services.node.settings)
    return [item.id for item in (await find(services, query)).items.items]


async def test_a_dataset_is_published_found_and_retracted(services: Services) -> None:
    accepted = await publish(services, ITEM, OTHER)
    assert (accepted.total, accepted.refused_items, accepted.is_single) == (2, 0, False)
    assert sorted(await ids_found(services)) == sorted((ITEM["id"], OTHER["id"]))
    summary = await requests.readable(services.node, ROOT, str(accepted.id))
    assert summary.status == "done"
    retraction = DatasetAction("CMIP6", ITEM["id"], "retract", RETRACTION)
    assert isinstance(await changes.accept(services, ROOT, retraction, WriteOptions()), AcceptedRequest)
    await work(services)
    assert await changes.accept(services, ROOT, retraction, WriteOptions()) == NoChange("CMIP6", ITEM["id"])
    filter = {"op": "=", "args": [{"property": "retracted"}, True]}
    assert await ids_found(services, filter=filter) == [ITEM["id"]]


async def test_a_dry_run_stores_nothing(services: Services) -> None:
    outcome = await items.publish(services, ROOT, body_of(ITEM), WriteOptions(dry_run=True))
    assert isinstance(outcome, DryRun)
    assert [item["outcome"] for item in outcome.result["items"]] == ["new"]
    await work(services)
    assert await ids_found(services) == []


async def test_the_same_key_is_the_same_request(services: Services) -> None:
    async def key() -> Key:
        return Key("root", "console", "monday", b"digest")

    accepted = await publish(services, ITEM, find_key=key)
    again = await items.publish(services, ROOT, body_of(ITEM), WriteOptions(find_key=key))
    assert again == EarlierRequest(accepted.id)


async def test_refused_items_are_sent_again(services: Services) -> None:
    wrong = copy.deepcopy(OTHER)
    wrong["properties"]["cmip6:experiment_id"] = "historcal"
    accepted = await publish(services, ITEM, wrong)
    assert accepted.refused_items == 1
    summary = await requests.readable(services.node, ROOT, str(accepted.id))
    with pytest.raises(StacInvalid, match="historcal"):
        await retries.retry(services, ROOT, summary, WriteOptions())


async def test_a_request_that_waits_is_cancelled(services: Services) -> None:
    accepted = await items.publish(services, ROOT, body_of(ITEM), WriteOptions())
    assert isinstance(accepted, AcceptedRequest)
    assert await retries.cancel(services.node, ROOT, accepted.id) == 1
    await work(services)
    assert await ids_found(services) == []


async def test_permission_is_a_matter_of_the_caller(services: Services) -> None:
    with pytest.raises(MissingPermission):
        await items.publish(services, READER, body_of(ITEM), WriteOptions())
    await publish(services, ITEM)
    with pytest.raises(MissingPermission):
        await changes.accept(
            services, READER, DatasetAction("CMIP6", ITEM["id"], "retract", RETRACTION), WriteOptions()
        )


async def test_requests_that_come_together_are_all_durable(services: Services) -> None:
    documents = list(sample.items(12, start=20))
    outcomes = await asyncio.gather(
        *(items.publish(services, ROOT, body_of(document), WriteOptions()) for document in documents)
    )
    numbers = {outcome.id for outcome in outcomes if isinstance(outcome, AcceptedRequest)}
    assert len(numbers) == len(documents)
    await work(services)
    assert sorted(await ids_found(services, limit=100)) == sorted(document["id"] for document in documents)


def test_options_of_a_retry_name_the_request() -> None:
    request: UUID = uuid4()
    options = WriteOptions(user_agent="console").retrying(request, only_new=True)
    assert (options.retry_of, options.only_new, options.user_agent) == (request, True, "console")
