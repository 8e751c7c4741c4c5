"""Datasets without a vocabulary that tests publish, rename, mark and release, to see what subscribers get of them."""

from __future__ import annotations

from typing import Any

from fedstac import publication
from fedstac.db.connections import Connection
from fedstac.domain.actions import Work
from fedstac.domain.actions.amend import Amend
from fedstac.domain.actions.target import Target
from fedstac.domain.patching import MergePatch
from tests.db import writing

# An event of a dataset and a type is no longer one that the format `overview` can write.
SPOIL = """UPDATE fedstac.outbox SET event = replace(event, '"digest":', '"was_digest":')
           WHERE dataset = $1 AND type = $2"""


def thing(number: int, title: str = "a") -> dict[str, Any]:
    """Return an item of the collection `plain`."""
    return {**writing.plain(number, title), "bbox": [number % 180, number % 90, number % 180, number % 90]}


async def publish(conn: Connection, *numbers: int) -> None:
    """Publish things with the title `a`, and sequence what was logged."""
    await writing.publish(conn, *(thing(number) for number in numbers))
    await writing.sequence_all(conn)


async def rename(conn: Connection, *numbers: int, title: str) -> None:
    """Give things another title."""
    drafts = [writing.draft(thing(number)) for number in numbers]
    patch = MergePatch({"properties": {"title": title}})
    changes = [Amend(Target("plain", draft.id, draft.lineage), writing.ANNA, patch, None) for draft in drafts]
    receipts = await publication.perform(conn, writing.RULES, [Work(change, "anna", "change") for change in changes])
    assert {receipt.problem for receipt in receipts} == {None}
    await writing.sequence_all(conn)
