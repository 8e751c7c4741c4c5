"""A publisher who does not give up, waiting for conditions, and what has to be true once everything has settled."""

from __future__ import annotations

import asyncio
import itertools
import json
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import httpx
import orjson
import psycopg

from fedstac import bootstrap
from fedstac.db import connections, feed, invariants
from fedstac.demo import sample
from fedstac.demo.federation import Federation
from fedstac.messaging.origin import Origin
from fedstac.messaging.sources.addresses import SourceAddress
from fedstac.settings import Settings
from fedstac.workers import verifying
from tests.support.waiting import PATIENCE

Documents = Sequence[Mapping[str, Any]]
_taken = itertools.count()


def fresh_items(count: int) -> list[dict[str, Any]]:
    """Sample datasets that no other test has had."""
    start = next(_taken)
    for _ in range(count - 1):
        next(_taken)
    return list(sample.items(count, start=start))


def wait_until(condition: Callable[[], Any], *, seconds: float = PATIENCE, what: str = "") -> Any:
    """Return the condition's value once it is true; an AssertionError after `seconds`."""
    deadline = time.monotonic() + seconds
    while not (value := condition()):
        assert time.monotonic() < deadline, f"not after {seconds:g} s: {what or condition}"
        time.sleep(0.02)
    return value


def items_not_done(running: Federation, count: int = 5) -> list[str]:
    """Return some of the requests' items that did not end well, whole, for the message of a test that fails."""
    statement = """SELECT (to_jsonb(i) - '{prepared,document}'::text[])::text FROM fedstac.request_item i
                   WHERE status <> 'done' LIMIT %s"""
    return values(running, statement, count)


def client(running: Federation, role: str = "admin", *, node: str = "west", process: str = "") -> httpx.Client:
    """Return a client of a node: of this API process of it, or of its first one."""
    address = running.processes[process].url if process else running.address_of(node)
    headers = {"Authorization": f"Bearer {running.issued[node][role]}", "Prefer": "wait=0"}
    return httpx.Client(base_url=address, headers=headers, timeout=PATIENCE, trust_env=False)


def make_collection(running: Federation, node: str = "west") -> None:
    with client(running, node=node) as http:
        http.post("/collections", json=sample.collection()).raise_for_status()


@dataclass
class Publisher:
    """Sends batches again until they are accepted, as a careful client does. `accepted`: ids of datasets by request."""

    running: Federation
    accepted: dict[str, list[str]] = field(default_factory=dict)
    unanswered: int = 0
    node: str = "west"
    process: str = ""  # the API process that the batches go to; the node's first one where it is empty

    def publish(self, documents: Documents, *, batch: int = 100, before: Callable[[], object] = lambda: None) -> None:
        with client(self.running, node=self.node, process=self.process) as http:
            for start in range(0, len(documents), batch):
                before()
                self._send(http, documents[start : start + batch])

    def _send(self, http: httpx.Client, batch: Documents) -> None:
        lines = b"\n".join(orjson.dumps(document) for document in batch)
        deadline = time.monotonic() + PATIENCE
        while True:
            try:
                response = http.post(
                    "/collections/CMIP6/items", content=lines, headers={"Content-Type": "application/x-ndjson"}
                )
            except httpx.TransportError:
                self.unanswered += 1
            else:
                if response.status_code == 202:
                    self.accepted[response.json()["id"]] = [str(document["id"]) for document in batch]
                    return
                assert response.status_code >= 500, response.text
                self.unanswered += 1
            assert time.monotonic() < deadline, "nobody takes this batch"
            time.sleep(0.05)


def database(running: Federation, node: str = "west") -> psycopg.Connection[tuple[Any, ...]]:
    return psycopg.connect(running.database_of(node), autocommit=True)


def values(running: Federation, statement: str, *parameters: Any, at: str = "west") -> list[Any]:
    """Return the first column of what a query finds at a node."""
    with database(running, at) as conn:
        return [row[0] for row in conn.execute(statement, parameters)]


def settle(running: Federation, nodes: Iterable[str] = ("east",), *, at: str = "west") -> None:
    """Wait until all that a publishing node accepted is final, has its place in the feed, and these nodes have it."""
    state: list[Any] = []

    def settled() -> bool:
        with database(running, at) as conn:
            [queued, unsequenced, head] = conn.execute(
                """SELECT (SELECT count(*) FROM fedstac.request_item WHERE status = 'queued'),
                          (SELECT count(*) FROM fedstac.outbox) - (SELECT count(*) FROM fedstac.feed),
                          (SELECT pos FROM fedstac.feed_state)"""
            ).fetchone() or (1, 1, 0)
            through = dict(conn.execute("SELECT node, max(through) FROM fedstac.node_status GROUP BY 1").fetchall())
        state[:] = [queued, unsequenced, head, through]
        return not queued and not unsequenced and all(through.get(name) == head for name in nodes)

    try:
        wait_until(settled)
    except AssertionError:
        ended = [name for name, process in running.processes.items() if not process.is_running]
        raise AssertionError(f"queued, unsequenced, head, acknowledged: {state}; not running: {ended}") from None


def assert_nothing_lost(running: Federation, publisher: Publisher, nodes: Iterable[str] = ("east",)) -> None:
    """Check that what was accepted is final and there, once; that the log is whole; that the nodes agree."""
    __tracebackhide__ = True
    accepted = publisher.accepted
    assert accepted
    final = values(
        running, "SELECT request::text FROM fedstac.request_item GROUP BY 1 HAVING bool_and(status = 'done')"
    )
    assert accepted.keys() - set(final) == set(), f"accepted, and not done: {items_not_done(running)}"
    there = values(running, "SELECT id FROM fedstac.record WHERE state = 'published' AND document IS NOT NULL")
    missing = {dataset for datasets in accepted.values() for dataset in datasets} - set(there)
    assert missing == set(), "accepted, done, and not in the records"
    assert_log_whole(running)
    for what, statement in _UNWANTED.items():
        assert values(running, statement) == [], what
    for name in ("west", *nodes):
        assert violations(running, name) == [], f"invariants at {name}"
    for name in nodes:
        assert differences(running, name) == []
        found = httpx.get(f"{running.processes[name].url}/search?limit=1", trust_env=False)
        assert found.json()["numberMatched"] == len(there)


def assert_log_whole(running: Federation) -> None:
    """Check that west's log has the events of each lineage and each record once, in their order."""
    __tracebackhide__ = True
    for what, statement in _LOG_FAULTS.items():
        assert values(running, statement) == [], what


_UNWANTED = {
    "doubled events": """SELECT collection || '/' || dataset FROM fedstac.outbox
        WHERE type = 'org.fedstac.dataset.published.v1' GROUP BY collection, dataset HAVING count(*) > 1""",
    "doubled audit rows": """SELECT collection || '/' || dataset FROM fedstac.audit
        WHERE digest_before IS NULL AND digest_after IS NOT NULL GROUP BY collection, dataset HAVING count(*) > 1""",
    "lineages without one latest": """SELECT lineage FROM fedstac.record GROUP BY lineage
        HAVING count(*) FILTER (WHERE latest) <> 1 OR
               max(version) FILTER (WHERE latest) <> max(version)""",
}  # fmt: skip
_LOG_FAULTS = {
    "records without their event": """SELECT id FROM fedstac.record r WHERE NOT EXISTS (
        SELECT 1 FROM fedstac.outbox o WHERE o.dataset = r.id AND o.collection = r.collection AND o.seq = r.seq)""",
    "gaps in a lineage": """SELECT key FROM fedstac.outbox WHERE dataset IS NOT NULL GROUP BY key
        HAVING (min(seq), max(seq), count(DISTINCT seq)) <> (1, count(*), count(*))""",
    "lineages at odds with their events": """SELECT key FROM fedstac.lineage l
        WHERE seq <> (SELECT count(*) FROM fedstac.outbox o WHERE o.key = l.key)""",
    "lineages out of order": """SELECT key FROM (
        SELECT o.key, o.seq, lag(o.seq) OVER (PARTITION BY o.key ORDER BY f.pos) AS before
        FROM fedstac.outbox o JOIN fedstac.feed f ON f.id = o.id) e WHERE seq <> coalesce(before, 0) + 1""",
    "gaps in the feed": "SELECT max(pos) - count(*) FROM fedstac.feed HAVING max(pos) <> count(*)",
}  # fmt: skip


def violations(running: Federation, name: str) -> list[invariants.Violation]:
    """Return what the invariants say about a node's database."""

    async def check() -> list[invariants.Violation]:
        conn = await connections.connect(running.database_of(name))
        try:
            return await invariants.check(conn)
        finally:
            await conn.close()

    return asyncio.run(check())


def differences(running: Federation, name: str, origin: str = "west") -> Sequence[verifying.DatasetDifference]:
    """Return datasets on which an index node and one that it follows do not agree."""
    source = SourceAddress(running.address_of(origin), running.issued[origin][f"node:{name}"])

    async def compare() -> Sequence[verifying.DatasetDifference]:
        async with _node(running, name) as node, Origin(source) as client:
            comparison = await verifying.verify(node, client, patience=PATIENCE)
            assert comparison.compared
            return comparison.differences

    return asyncio.run(compare())


def _node(running: Federation, name: str) -> Any:
    return bootstrap.node(Settings(_env_file=None, node=name, dsn=running.database_of(name), pool_size=2))


def digests(running: Federation, name: str) -> dict[tuple[str, int], tuple[int, str]]:
    """Return what a node has of west, as fingerprints by collection and bucket."""

    async def read() -> dict[tuple[str, int], tuple[int, str]]:
        conn = await connections.connect(running.database_of(name))
        try:
            rows = await feed.digests(conn, "west")
            return {(row["collection"], row["bucket"]): (row["n"], row["digest"]) for row in rows}
        finally:
            await conn.close()

    return asyncio.run(read())


def matched(running: Federation, name: str = "east") -> int:
    response = httpx.get(f"{running.processes[name].url}/search?limit=1", trust_env=False)
    assert response.status_code == 200, response.text
    return int(response.json()["numberMatched"])


def log_lines(running: Federation, name: str, event: str) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in running.processes[name].log.read_text().splitlines() if line.startswith("{")]
    return [line for line in lines if line["event"] == event]


def parked(running: Federation) -> list[str]:
    """Return the subjects of what east has set aside."""
    with psycopg.connect(running.database_of("east")) as conn:
        return [row[0] for row in conn.execute("SELECT subject FROM fedstac.parked_event")]
