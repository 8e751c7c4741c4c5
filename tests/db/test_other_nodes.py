"""Metamorphic: no request of node A changes a byte of B's entries, nor of anything else that is not A's (I15)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import orjson
import pytest
from hypothesis import HealthCheck, given, note, settings
from hypothesis import strategies as st

from fedstac import publication
from fedstac.db.connections import Connection
from fedstac.demo import sample
from fedstac.domain.actions import Work
from fedstac.domain.actions.amend import Amend
from fedstac.domain.actions.target import Target
from fedstac.domain.errors import Problem
from fedstac.domain.model import Outcome
from fedstac.domain.policy import Principal
from tests.db import edits, writing
from tests.db.catalogue import Catalogue, Ground
from tests.db.edits import NODES, SentEdit
from tests.db.writing import CMIP6, Item

A, B, C = NODES
NODE_A = Principal("node A", frozenset({f"node:{A}"}))
ITEM = next(item for item in sample.items(600, seed=5) if len(item["assets"]) == 3)
OWN = (
    st.builds(edits.Replicas, st.just(A), st.integers(0, 1), st.integers(0, 1), st.booleans(), st.none() | edits.NODE)
    | st.builds(edits.ReplicaRemoval, st.just(A)) | st.builds(edits.Withdrawn, edits.NODE) | st.builds(
        edits.AssetMerge, st.sampled_from([what for what in edits.MERGES if "replica" in what]), st.integers(0, 2),
        edits.NODE, st.integers(0, 3))
)  # fmt: skip
REQUESTS = st.lists(OWN | st.builds(edits.Together, OWN, edits.PATCH) | edits.EDIT, min_size=1, max_size=4)


@pytest.mark.long
def test_no_request_of_node_a_changes_a_byte_of_bs_entries(ground: Ground) -> None:
    catalogue = ground.begin(promoting=False)
    ground.run(replicated(catalogue.conn))
    outcomes: set[Outcome] = set()

    @settings(max_examples=600, deadline=None, suppress_health_check=list(HealthCheck))
    @given(requests=REQUESTS)
    def holds(requests: Sequence[SentEdit]) -> None:
        ground.run(perform_and_roll_back(catalogue, requests, outcomes))

    holds()
    assert outcomes == {Outcome.REPLICATED, Outcome.IDENTICAL, Outcome.REJECTED}


async def replicated(conn: Connection) -> None:
    """Publish the dataset, with entries of all three nodes."""
    await writing.publish(conn, dict(ITEM))
    for node in NODES:
        operator = Principal("operator", frozenset({f"node:{node}"}))
        whole = edits.Replicas(node, moved=0, but=0, corrupt=False, also=None)
        [receipt] = await publication.perform(conn, writing.RULES, [work(whole, dict(ITEM), operator)])
        assert receipt.outcome is Outcome.REPLICATED, receipt


def work(edit: SentEdit, item: Item, principal: Principal) -> Work:
    made = writing.draft(dict(ITEM))
    version = CMIP6.version if CMIP6 else None
    target = Target("CMIP6", made.id, made.lineage)
    return Work(Amend(target, principal, edit.of(item), version), principal.name, "amend")


async def perform_and_roll_back(catalogue: Catalogue, requests: Sequence[SentEdit], outcomes: set[Outcome]) -> None:
    """Run requests of node A one after the other, and take them back at the end."""
    conn = catalogue.conn
    transaction = conn.transaction()
    await transaction.start()
    try:
        before = await stored(conn)
        for edit in requests:
            try:
                step = work(edit, await served(conn), NODE_A)
            except Problem:  # refused before anything is looked up
                continue
            [receipt] = await publication.perform(conn, catalogue.node.rules, [step])
            outcomes.add(receipt.outcome)
            note(f"{edit}: {receipt.outcome}")
            after = await stored(conn)
            assert entries(after, B) == entries(before, B)
            assert less_entries(after, A) == less_entries(before, A)
    finally:
        await transaction.rollback()


async def stored(conn: Connection) -> str:
    return str(await conn.fetchval("SELECT document FROM fedstac.record WHERE id = $1", ITEM["id"]))


async def served(conn: Connection) -> Item:
    document: Item = orjson.loads(await stored(conn))
    return document


def entries(document: str, node: str) -> dict[str, bytes]:
    """Return a node's entries, by asset, byte for byte."""
    assets = orjson.loads(document)["assets"]
    return {key: orjson.dumps(asset["alternate"][node]) for key, asset in assets.items()
            if node in asset.get("alternate", {})}  # fmt: skip


def less_entries(document: str, node: str) -> bytes:
    """Return the document without a node's entries, byte for byte, its order of members included."""
    parsed: Any = orjson.loads(document)
    for asset in parsed["assets"].values():
        if asset.get("alternate", {}).pop(node, None) is not None and not asset["alternate"]:
            del asset["alternate"]
    return orjson.dumps(parsed)
