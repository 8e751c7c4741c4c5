"""A publishing node in processes of its own, whose memory and state tests look at from outside."""

from __future__ import annotations

import json
import os
import shutil
import signal
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple
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
ENDED, CLOSING = "ended", "closing"  # of datasets that are marked or deleted; of a collection that is being deleted
FREE_ITEM: dict[str, Any] = {
    "type": "Feature", "stac_version": "1.1.0", "geometry": None, "links": [], "assets": {},
    "properties": {"datetime": "2020-01-01T00:00:00Z"},
}  # fmt: skip
RULES = {
    "dependencies": [
        {"name": "east", "days": 7, "contact": "the desk of east"}, {"name": "west/search", "required": False},
    ],
    "grace_days": 0, "automatic": False, "schedule": "03:30",
}  # fmt: skip
_SAMPLE = [str(item["id"]) for item in sample.items(12)][3:]
CHANGES_OF_MANY: tuple[dict[str, Any], ...] = (
    {
        "action": "mark", "collections": ["CMIP6"], "reason": "replaced",
        "filter": {"op": "in", "args": [{"property": "id"}, _SAMPLE[:3]]},
    },
    {"action": "release", "ids": _SAMPLE[3:6], "decision": "it is harmless"},
    {"action": "quarantine", "ids": _SAMPLE[6:], "quarantine": {"reason": "?", "links": ["https://x.example/1"]}},
)  # fmt: skip
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
    for name in ("CMIP6", "free", ENDED, CLOSING):
        _send(running, "POST", "/collections", sample.collection(name))
    _send(running, "POST", "/groups", GROUP)
    lines = b"\n".join(json.dumps(item).encode() for item in sample.items(DATASETS))
    _send(running, "POST", "/collections/CMIP6/items", lines, {"Content-Type": "application/x-ndjson"})
    _delete(running)
    change = {"action": "release", "ids": _SAMPLE[:3]}
    look = _send(running, "POST", "/bulk/preview", change)
    _send(running, "POST", "/bulk", {**change, "digest": look["digest"]})


def _delete(running: Federation) -> None:
    """Make deletions of each kind: one that is done, one that is ready, one that waits, and that of a collection."""
    names = {ENDED: ("done", "ready", "waits"), CLOSING: ("first", "second")}
    for collection, ids in names.items():
        features = [{**FREE_ITEM, "id": id, "collection": collection} for id in ids]
        body = {"type": "FeatureCollection", "features": features}
        _send(running, "POST", f"/collections/{collection}/items", body)
    items, rules = f"/collections/{ENDED}/items", f"/deletions/rules/{ENDED}"
    _send(running, "PUT", rules, {"grace_days": 0}, {"If-Match": "*"})
    _send(running, "DELETE", f"{items}/done")
    _send(running, "DELETE", f"{items}/ready")
    _send(running, "POST", f"{items}/done/delete")
    _send(running, "PUT", rules, RULES, {"If-Match": "*"})
    _send(running, "DELETE", f"{items}/waits")
    _send(running, "DELETE", f"/collections/{CLOSING}?cascade=true&confirm={len(names[CLOSING])}&reason=it+ends")


def _send(
    running: Federation, method: str, path: str, body: Any = None, headers: Mapping[str, str] | None = None
) -> Any:  # fmt: skip
    """Send a request of the administrator, wait for what comes of it, and return the answer."""
    content = body if isinstance(body, bytes) else None if body is None else json.dumps(body).encode()
    headers = {
        "Authorization": f"Bearer {running.tokens['admin']}", "Content-Type": "application/json", "Prefer": "wait=60",
        **(headers or {}),
    }  # fmt: skip
    request = Request(running.west + path, content, headers, method=method)
    with build_opener(ProxyHandler({})).open(request, timeout=120) as answer:
        return json.loads(answer.read())


SEED = int(os.environ.get("FEDSTAC_TEST_SEED", "8"))


class Names(NamedTuple):
    """What the node made up itself: requests of the corpus name it. digests: of CHANGES_OF_MANY."""

    request: str = ""
    vocabulary: str = ""  # the newest version of CMIP6's
    deletion: str = ""
    bulk: str = ""
    digests: tuple[str, ...] = ("",) * len(CHANGES_OF_MANY)
    load: str = ""


async def names(node: Site) -> Names:
    """Return the names of what the administrator made, and of what the previews show now."""
    line = node.line()

    async def ask(method: str, path: str, body: Any = None, **query: str) -> Any:
        content = orjson.dumps(body) if body else b""
        data = Ask(method, path, tuple(query.items()), content, role="admin").to_bytes(node.host, node.running.tokens)
        return orjson.loads((await line.ask(data)).body or b"null")

    for load in (await ask("GET", "/loads", limit="100"))["loads"]:  # a person may have few open ones
        if load["status"] in ("collecting", "comparing", "compared"):
            await ask("POST", f"/loads/{load['id']}/cancel")
    names_made = Names(
        (await ask("GET", "/requests"))["requests"][0]["id"],
        (await ask("GET", "/vocabularies/CMIP6"))["vocabularies"][-1]["version"],
        (await ask("GET", "/deletions", project=ENDED, q="waits"))["deletions"][0]["id"],
        (await ask("GET", "/bulk"))["bulks"][-1]["id"],
        tuple([(await ask("POST", "/bulk/preview", change))["digest"] for change in CHANGES_OF_MANY]),
        (await ask("POST", "/collections/CMIP6/reconcile", complete="false"))["id"],
    )
    line.close()
    return names_made


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
