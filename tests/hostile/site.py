"""A publishing node in processes of its own, whose memory and state tests look at from outside."""

from __future__ import annotations

import json
import os
import shutil
import signal
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit
from urllib.request import ProxyHandler, Request, build_opener

import orjson
import psycopg

from fedstac.demo import embedded, sample
from fedstac.demo.federation import Federation, federation
from tests.hostile.wire import Answer, Ask, Line
from tests.support.processes import children, processor_seconds, shared_memory

DATASETS = 200
GROUP = {"name": "g", "project": "CMIP6", "institution": "NCAR", "title": "a group"}
ROLES = ("", "admin", "publisher:NCAR", "node:east", "a-token-that-nobody-issued")


@dataclass(frozen=True, slots=True)
class Site:
    """The node west: its API process (with workers inside), its PostgreSQL, its tokens by role."""

    running: Federation
    cluster: embedded.Cluster

    @property
    def host(self) -> str:
        return urlsplit(self.running.west).netloc

    @property
    def pid(self) -> int:
        return self.running.processes["serve"].child.pid

    def line(self) -> Line:
        """Return a connection to the node."""
        url = urlsplit(self.running.west)
        return Line(str(url.hostname), int(url.port or 0))

    def memory(self) -> int:
        """Return bytes of memory of the API process and its children; pages that they share count by share (Pss)."""
        return sum(shared_memory(pid) for pid in (self.pid, *children(self.pid)))

    def processor_seconds(self) -> float:
        """Return seconds of processor time that the API and all of PostgreSQL have used."""
        pids = (self.pid, *children(self.pid), self.cluster.pid, *children(self.cluster.pid))
        return sum(map(processor_seconds, pids))

    def faults(self) -> list[str]:
        """Return the log lines in which the node reports a fault of its own."""
        lines = self.running.processes["serve"].log.read_text(errors="replace").splitlines()
        return [line for line in lines if '"level":"error"' in line.replace(" ", "") or "Traceback" in line]

    def count(self, statement: str) -> int:
        """Return the number that a query of the node's database gives."""
        with psycopg.connect(self.running.database_of("west"), autocommit=True) as conn:
            row = conn.execute(statement.encode()).fetchone()
        return int(row[0]) if row else 0


@contextmanager
def site(**settings: str) -> Iterator[Site]:
    """Yield a node with a cluster of its own, the collections CMIP6 and free, and DATASETS datasets."""
    folder = Path(tempfile.mkdtemp(prefix="fedstac-hostile-"))
    folder.chmod(0o755)
    try:
        with embedded.cluster(folder / "pg") as cluster:
            with federation(cluster, index_nodes=("east",)) as running:
                running.start("serve", "serve", FEDSTAC_PORT="0", FEDSTAC_READ_TIMEOUT_SECONDS="2", **settings)
                _fill(running)
                yield Site(running, cluster)
            os.kill(cluster.pid, signal.SIGQUIT)  # at once: its data is removed
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _fill(running: Federation) -> None:
    for name in ("CMIP6", "free"):
        _post(running, "/collections", json.dumps(sample.collection(name)).encode(), "application/json")
    _post(running, "/groups", json.dumps(GROUP).encode(), "application/json")
    lines = b"\n".join(json.dumps(item).encode() for item in sample.items(DATASETS))
    _post(running, "/collections/CMIP6/items", lines, "application/x-ndjson")


def _post(running: Federation, path: str, body: bytes, media_type: str) -> None:
    headers = {
        "Authorization": f"Bearer {running.tokens['admin']}", "Content-Type": media_type, "Prefer": "wait=60"
    }  # fmt: skip
    with build_opener(ProxyHandler({})).open(Request(running.west + path, body, headers), timeout=120) as answer:
        answer.read()


SEED = int(os.environ.get("FEDSTAC_TEST_SEED", "8"))


async def names(node: Site) -> tuple[str, str]:
    """Return the id of a request that the administrator made, and the newest version of CMIP6's vocabulary."""
    line = node.line()
    listed = await line.ask(Ask("GET", "/requests", role="admin").to_bytes(node.host, node.running.tokens))
    shown = await line.ask(Ask("GET", "/vocabularies/CMIP6").to_bytes(node.host, node.running.tokens))
    line.close()
    return orjson.loads(listed.body)["requests"][0]["id"], orjson.loads(shown.body)["vocabularies"][-1]["version"]


def is_fault(answer: Answer) -> bool:
    """Return whether an answer is one that the node has no right to give: 5xx, but for 503 that says when to come
    again.
    """
    return answer.status >= 500 and not (answer.status == 503 and "retry-after" in answer.headers)


async def keeps_its_promises(node: Site) -> None:
    """Check that nothing hangs, nothing failed, every invariant holds, and a publisher publishes."""
    fresh = next(sample.items(1, start=90_000))
    body = orjson.dumps(fresh)
    ask = Ask("POST", "/collections/CMIP6/items", (), body, {"Prefer": "wait=60"}, "admin")
    line = node.line()
    answer = await line.ask(ask.to_bytes(node.host, node.running.tokens))
    line.close()
    assert answer.status in (200, 201), answer.body
    assert node.count("SELECT count(*) FROM fedstac.request_item WHERE status = 'failed'") == 0
    faults = node.faults()
    assert not faults, "\n".join(faults)[:5000]
