"""Federations of real processes on a durable PostgreSQL of their own: one of each for a module."""

from __future__ import annotations

import os
import shutil
import signal
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from fedstac.demo import embedded
from fedstac.demo.federation import Federation, federation
from tests.scenarios import watching

INDEX_NODES = ("east", "south", "north")  # those that get a token; a test starts what it needs


@pytest.fixture(scope="module", autouse=True)
def _forked(forked_federations: None) -> None:
    """Every federation here is of processes that are forked."""


@pytest.fixture(scope="module")
def folder() -> Iterator[Path]:
    """A folder that the account of PostgreSQL can enter."""
    made = Path(tempfile.mkdtemp(prefix="fedstac-scenario-"))
    made.chmod(0o755)
    yield made
    shutil.rmtree(made)


@pytest.fixture(scope="module")
def durable(folder: Path, copied: None) -> Iterator[embedded.Cluster]:
    """A cluster that keeps what it has committed when it is killed."""
    with embedded.cluster(folder / "pg") as cluster:
        yield cluster
        os.kill(cluster.pid, signal.SIGQUIT)  # at once: its data is removed, and a last checkpoint takes seconds


@pytest.fixture(scope="module")
def running(durable: embedded.Cluster) -> Iterator[Federation]:
    """West as four processes, with the collection CMIP6, and the index node east."""
    with federation(durable, index_nodes=INDEX_NODES) as made:
        made.start("serve", "serve", FEDSTAC_PORT="0", FEDSTAC_RUN_WORKERS="false")
        for name in ("worker-1", "worker-2"):
            made.start(name, "worker", FEDSTAC_BATCH="50")
        made.start("sequencer", "sequencer")
        watching.make_collection(made)
        made.start_index_node("east", snapshot_first=False)
        yield made
