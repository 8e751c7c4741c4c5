"""The checkers are checked: a sequencer with a planted fault loses events, and that is seen."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest

from fedstac import bootstrap, publication
from fedstac.db import connections, facets
from fedstac.demo.federation import Federation
from fedstac.domain.actions import Work
from fedstac.domain.actions.publish import Publish
from fedstac.domain.policy import Principal
from fedstac.settings import Settings
from tests.scenarios.watching import (
    Publisher,
    assert_nothing_lost,
    differences,
    fresh_items,
    settle,
    values,
    violations,
    wait_until,
)
from tests.support import failpoints

pytestmark = [pytest.mark.xdist_group("planted"), pytest.mark.long]
PUBLISHED = "SELECT true FROM fedstac.request_item HAVING bool_and(status = 'done')"
READ_TO_THE_END = """SELECT true FROM fedstac.feed_state
    WHERE (SELECT max(id) FROM fedstac.feed) = (SELECT max(id) FROM fedstac.outbox)
      AND pos = (SELECT max(through) FROM fedstac.node_status WHERE node = 'east')"""
ADMIN = Principal("admin", frozenset({"admin"}))


@asynccontextmanager
async def held_open(running: Federation, documents: list[dict[str, Any]]) -> AsyncIterator[None]:
    """Publish datasets in a transaction that has drawn the ids of its events, and commit it at the end."""
    settings = Settings(_env_file=None, node="west", dsn=running.database_of("west"), pool_size=2)
    async with bootstrap.node(settings) as node:
        vocabulary = node.checker.vocabularies.current("CMIP6")
        assert vocabulary is not None
        drafts = [node.checker.draft(document, "CMIP6", vocabulary)[0] for document in documents]
        work = [Work(Publish(draft, ADMIN, cv_version=vocabulary.version), "admin", "publish") for draft in drafts]
        conn = await connections.connect(settings.dsn)
        try:
            await facets.prepare(conn, drafts)  # as a worker does, for nobody to wait for the codes of these
            async with conn.transaction():
                receipts = await publication.perform(conn, node.rules, work)
                assert all(receipt.changes for receipt in receipts)
                yield
        finally:
            await conn.close()


def commit_out_of_order(running: Federation, settle: Callable[[], None]) -> tuple[Publisher, set[str]]:
    """Give places to events with high ids before those with lower ids are committed. Return the late datasets' ids.

    `settle` waits until what is committed so far has its places.
    """
    early, late = fresh_items(1000)[:10], fresh_items(200)  # so far apart that no lineage is in both
    publisher = Publisher(running)

    async def publish() -> None:
        async with held_open(running, early):
            publisher.publish(late)
            settle()

    asyncio.run(publish())
    return publisher, {str(document["id"]) for document in early}


def test_events_that_commit_after_later_ones_are_not_lost(running: Federation) -> None:
    publisher, late = commit_out_of_order(running, lambda: settle(running))
    settle(running)
    assert late <= set(values(running, "SELECT id FROM fedstac.record"))
    assert_nothing_lost(running, publisher)


def test_a_sequencer_that_reads_on_from_the_last_id_is_caught(running: Federation) -> None:
    """The last one here: what is lost stays lost. Two of its own publications may commit out of order as well."""

    def read_to_the_end() -> None:
        wait_until(lambda: values(running, PUBLISHED) and values(running, READ_TO_THE_END))

    running.processes["sequencer"].kill()
    running.restart("sequencer", **failpoints.environment("naive-cursor"))
    _, lost = commit_out_of_order(running, read_to_the_end)
    Publisher(running).publish(fresh_items(100))  # and it goes on as if nothing were
    read_to_the_end()
    missing = {difference.id for difference in differences(running, "east") if difference.kind == "missing here"}
    assert lost <= missing
    assert {violation.name for violation in violations(running, "west")} & {"I2", "I5", "I6", "I8"}
