"""The scenario of replica nodes: two of them copy from a source behind a network that cuts, stalls and is unavailable.

Sixty datasets of five files. One file is corrupt at its only source: its dataset is parked, with an alert. Another is
corrupt at one of two sources: it is taken from the other. All others end as complete, verified, announced replicas of
both nodes, visible at an index node.
"""

from __future__ import annotations

import asyncio
import os
import secrets
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import psycopg
import pytest

from fedstac.demo import embedded, identity_provider, replica
from fedstac.demo.federation import Federation, federation
from fedstac.demo.files import FileFolder, FileSizes, datasets
from fedstac.demo.replica import ReplicaPlace
from tests.scenarios import watching
from tests.scenarios.watching import Publisher, client, settle, values, wait_until
from tests.support.faulty_proxy import FaultPlan, faults_at, faulty_proxy
from tests.support.file_servers import file_server
from tests.support.forking import Forks
from tests.support.waiting import PATIENCE

pytestmark = [pytest.mark.xdist_group("replica-scenario"), pytest.mark.long]

DATASETS, FILES = 60, 5
NODES = ("blue", "green")
MIRROR = "mirror"  # a node whose copies somebody announced by hand
POLICY = """\
version: 1
rules:
  - {{name: all, action: replicate}}
sources:
  - {{name: west, hosts: ["{west}"], private: true, preference: 10}}
  - {{name: mirror, hosts: ["{mirror}"], private: true}}
"""
SMALL = FileSizes(2_000, 300_000)
LARGE = FileSizes(1_000_000, 50_000_000)
LONG_SECONDS = 3600.0  # the large one

Json = Mapping[str, Any]


@dataclass(frozen=True)
class World:
    """Everything that runs: `items` as published; the proxy's address."""

    running: Federation
    items: Sequence[Json]
    places: Sequence[ReplicaPlace]
    proxy: str

    @property
    def mirrored(self) -> str:
        """The dataset with a file that is corrupt at west and whole at the mirror."""
        return str(self.items[1]["id"])

    @property
    def lost(self) -> str:
        """The dataset with a file that is corrupt at its only source."""
        return str(self.items[0]["id"])


def files_of(item: Json) -> list[tuple[str, Json]]:
    return [(key, asset) for key, asset in item["assets"].items() if "file:checksum" in asset]


def build(stack: ExitStack, forks: Forks, folder: Path, cluster: embedded.Cluster, sizes: FileSizes) -> World:
    """Publish the datasets, and start everything but the replica nodes."""
    originals = folder / "west"
    originals.mkdir()
    served = stack.enter_context(file_server(forks.program, originals))
    drafts = list(datasets(DATASETS, FileFolder(originals, "http://draft.invalid", sizes, FILES, FILES)))
    corrupt = [files_of(item)[2][1]["file:local_path"] for item in drafts[:2]]
    stalls = 0.2 if sizes is SMALL else 5.0
    plan = FaultPlan(served, secrets.randbelow(10_000), share=0.3, stall_seconds=stalls, corrupt=corrupt)
    proxy = stack.enter_context(faulty_proxy(plan))
    items = list(datasets(DATASETS, FileFolder(originals, proxy, sizes, FILES, FILES)))
    running = stack.enter_context(federation(cluster, index_nodes=("east",), prefix=f"replicas_{os.getpid()}_"))
    provider = replica.start_provider(running, NODES)
    running.start("serve", "serve", FEDSTAC_PORT="0", **identity_provider.as_settings(provider.url))
    watching.make_collection(running)
    running.start_index_node("east")
    Publisher(running).publish(items)
    settle(running)
    entries = {key: {"href": f"{served}/{asset['file:local_path']}"} for key, asset in files_of(items[1])}
    with client(running) as http:
        path = f"/collections/CMIP6/items/{items[1]['id']}/replicas/{MIRROR}"
        http.put(path, json=entries, headers={"Prefer": "wait=30"}).raise_for_status()
    places = []
    for node in NODES:
        copies = folder / node
        copies.mkdir()
        policy = folder / f"{node}.yaml"
        policy.write_text(POLICY.format(west=proxy, mirror=served))
        places.append(ReplicaPlace(node, policy, copies, stack.enter_context(file_server(forks.program, copies))))
        replica.start_replica_node(running, places[-1], provider)
    return World(running, items, places, proxy)


@pytest.fixture(scope="module")
def world(command_forks: Forks, folder: Path, durable: embedded.Cluster) -> Iterator[World]:
    with ExitStack() as stack:
        yield build(stack, command_forks, folder, durable, SMALL)


def states(world: World, node: str) -> dict[str, tuple[str, str]]:
    """Return the state of each dataset at a replica node, and why."""
    with psycopg.connect(world.running.database_of(node)) as conn:
        rows = conn.execute("SELECT id, state, reason FROM fedstac.replica_dataset").fetchall()
    return {id: (state, reason) for id, state, reason in rows}


def wait_for_the_end(world: World, *, seconds: float = PATIENCE) -> None:
    """Wait until every dataset is announced or parked at each replica node."""

    def is_over() -> bool:
        world.running.check_running()
        return all(
            len(found := states(world, node)) == DATASETS
            and {state for state, _ in found.values()} <= {"announced", "parked"}
            for node in NODES
        )

    try:
        wait_until(is_over, seconds=seconds, what="all are announced or parked")
    except AssertionError:
        for node in NODES:
            open_ones = {id: found for id, found in states(world, node).items() if found[0] != "announced"}
            print(node, open_ones)
            print(values(world.running, "SELECT row_to_json(f)::text FROM fedstac.replica_file f"
                         " WHERE state <> 'verified'", at=node))  # fmt: skip
        raise


def check_the_end(world: World) -> None:
    """Compare catalogues, disks and the index node with what was published."""
    wait_for_the_end(world, seconds=LONG_SECONDS)
    settle(world.running)
    for place in world.places:
        parked = {id: reason for id, (state, reason) in states(world, place.node).items() if state == "parked"}
        assert parked.keys() == {world.lost}, parked
        assert "checksum" in parked[world.lost]
        figures = asyncio.run(replica.measure(world.running, place, "east"))
        assert (figures.datasets, figures.announced) == (DATASETS - 1, DATASETS - 1)
        assert figures.verified == (DATASETS - 1) * FILES
        whole = [asset["file:size"] for item in world.items for key, asset in files_of(item)
                 if key != files_of(world.items[0])[2][0]]  # fmt: skip
        assert (figures.files, figures.bytes) == (DATASETS * FILES - 1, sum(whole)), "the corrupt file is not there"


def test_every_dataset_ends_as_a_replica_of_both_nodes_whatever_the_network_does(world: World) -> None:
    check_the_end(world)
    history = faults_at(world.proxy)
    assert {"cut", "stall", "503", "corrupt"} <= history["faults"].keys()
    for node in NODES:
        sources = values(world.running, "SELECT f.source FROM fedstac.replica_file f JOIN fedstac.replica_dataset d"
                         " USING (n) WHERE d.id = %s AND f.path = %s", world.mirrored,
                         files_of(world.items[1])[2][1]["file:local_path"], at=node)  # fmt: skip
        assert sources != [world.proxy.removeprefix("http://")]
        faults = values(world.running, "SELECT DISTINCT d.id FROM fedstac.replica_source_fault f"
                        " JOIN fedstac.replica_dataset d USING (n) WHERE f.reason LIKE '%%checksum%%'",
                        at=node)  # fmt: skip
        assert {world.lost} <= set(faults) <= {world.lost, world.mirrored}, "of these files alone, if it was asked"


def test_both_nodes_keep_their_entries(world: World) -> None:
    wait_for_the_end(world)
    settle(world.running)
    with httpx.Client(base_url=world.running.address_of("east"), trust_env=False, timeout=60) as http:
        for item in world.items:
            shown = http.get(f"/collections/CMIP6/items/{item['id']}").raise_for_status().json()
            expected = set() if item["id"] == world.lost else set(NODES)
            if item["id"] == world.mirrored:
                expected.add(MIRROR)
            for key, _ in files_of(item):
                assert set(shown["assets"][key].get("alternate", {})) == expected


def test_operators_are_told_of_what_is_parked(world: World) -> None:
    wait_for_the_end(world)
    for node in NODES:
        notices = values(world.running, "SELECT row_to_json(t)::text FROM fedstac.trouble t", at=node)
        assert any(world.lost in each for each in notices), notices


@pytest.mark.soak
def test_the_same_with_files_of_1_to_50_mb(command_forks: Forks) -> None:
    """On the disk: the files and two copies of each take 20 GB and more."""
    folder = Path(tempfile.mkdtemp(prefix="fedstac-replica-", dir="/var/tmp"))
    folder.chmod(0o755)
    try:
        with embedded.cluster(folder / "pg") as cluster, ExitStack() as stack:
            check_the_end(build(stack, command_forks, folder, cluster, LARGE))
    finally:
        shutil.rmtree(folder, ignore_errors=True)
