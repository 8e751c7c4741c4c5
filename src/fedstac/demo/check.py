"""`fedstac demo --check`: publish through a federation while a node joins it, and compare everything."""

from __future__ import annotations

import asyncio
import gzip
import os
import shutil
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import httpx
import orjson
from rich.console import Console
from rich.table import Table

from fedstac import bootstrap
from fedstac.db import connections, invariants, sinks
from fedstac.demo import brokers, deletion, identity_provider, replica, sample, services
from fedstac.demo.brokers import BrokerKind
from fedstac.demo.federation import (
    INDEX_NODES,
    STREAM,
    WEST,
    Federation,
    drop_databases,
    federation,
    open_server,
    sigterm_interrupts,
)
from fedstac.demo.publishing import Publisher, number_of_datasets, wait_until_visible
from fedstac.messaging.origin import Origin
from fedstac.messaging.sinks import SinkTarget, open_sink
from fedstac.messaging.sources.addresses import SourceAddress
from fedstac.settings import Settings
from fedstac.workers import verifying

OPTIONAL = ("replica", "services", "deletion")  # parts of a report


@dataclass(slots=True)
class Report:
    """What the check counted and compared; `ok` only if nothing is unaccounted for."""

    submitted: int = 0
    published: int = 0
    unchanged: int = 0
    rejected: int = 0
    failed: int = 0
    unaccounted: int = 0
    visible: dict[str, int] = field(default_factory=dict)
    differences: dict[str, int] = field(default_factory=dict)
    broker: dict[str, int] = field(default_factory=dict)  # events of west in its stream: stored, missing, doubled
    replica: dict[str, int] = field(default_factory=dict)  # ReplicaFigures
    services: dict[str, int] = field(default_factory=dict)  # ServiceFigures
    deletion: dict[str, int] = field(default_factory=dict)  # DeletionCounts
    violations: list[str] = field(default_factory=list)
    seconds: float = 0.0
    rate: float = 0.0
    ok: bool = False

    def as_json(self) -> dict[str, Any]:
        """Return the figures; those of a replica node, of services and of a deletion only where there are some."""
        return {name: value for name, value in asdict(self).items() if value or name not in OPTIONAL}


def check(
    *, source: Path | None, items: int, expect_rejected: int, data_dir: Path | None, dsn: str | None,
    console: Console, broker: BrokerKind = BrokerKind.NONE, with_replica: bool = False, with_services: bool = False,
    with_deletion: bool = False,
) -> Report:  # fmt: skip
    """Publish through the API with two workers while a second index node joins, then compare everything.

    broker: its kind; the second index node then follows it. with_replica: a replica node copies the files of some
    datasets, which are published beside the others where `source` has these. with_services: example services follow,
    while some datasets are deleted and a full-state load changes others. with_deletion: some datasets are marked,
    deleted and purged before everything is compared.
    """
    with ExitStack() as stack:
        stack.enter_context(sigterm_interrupts())
        if not dsn and data_dir is None:
            data_dir = Path(tempfile.mkdtemp(prefix="fedstac-check-"))
            data_dir.chmod(0o755)
            stack.callback(shutil.rmtree, data_dir, ignore_errors=True)
        with console.status("starting") as status:
            server = stack.enter_context(open_server(data_dir, dsn, status.update))
            prefix = f"fedstac_check_{os.getpid()}_"
            if dsn or data_dir:
                stack.callback(drop_databases, server, [prefix + name for name in ("west", *INDEX_NODES, replica.NODE)])
            running = stack.enter_context(federation(server, index_nodes=INDEX_NODES, say=status.update, prefix=prefix))
            copying, logins = None, {}
            if with_replica:
                files = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="fedstac-replica-")))
                provider = replica.start_provider(running, (replica.NODE,))
                count = replica.DATASETS if source else min(items, replica.DATASETS)
                copying = replica.prepare(running, provider, files, count=count)
                logins = identity_provider.as_settings(provider.url)
            with_files = copying.items if copying else ()
            running.start("serve", "serve", FEDSTAC_PORT="0", FEDSTAC_RUN_WORKERS="false", **logins)
            running.start("worker-1", "worker")
            running.start("worker-2", "worker")
            running.start("sequencer", "sequencer")
            stream = ""
            if broker is not BrokerKind.NONE:
                folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix=f"fedstac-{broker}-")))
                stream = f"{stack.enter_context(brokers.broker(broker, folder, status.update)).url}/{STREAM}"
                running.add_sink(broker, stream)
                running.start("relay", "relay")
            running.start_index_node("east", snapshot_first=False)
            if copying:
                copying.start_node()
            status.update("publishing")
            others = _documents(source) if source else sample.items(items - len(with_files))
            report = asyncio.run(_check(
                running, [*with_files, *others], stream, copying, status.update, with_services=with_services,
                with_deletion=with_deletion,
            ))  # fmt: skip
        report.ok = (
            report.published > 0 and report.rejected == expect_rejected and not report.unaccounted
            and not report.failed and not report.violations and not any(report.differences.values())
            and not report.broker.get("missing") and not report.broker.get("doubled")
            and all(n == report.published for n in report.visible.values())
            and (copying is None or report.replica == _expected_figures(with_files))
            and (not with_services or report.services == asdict(services.expected(report.published, len(with_files))))
            and (not with_deletion or report.deletion == asdict(deletion.expected(
                min(deletion.DATASETS, report.published - len(with_files))
            )))
        )  # fmt: skip
        return report


def _expected_figures(items: Sequence[Mapping[str, Any]]) -> dict[str, int]:
    """Return the figures of a replica node that has all files of these datasets, and no others."""
    sizes = [asset["file:size"] for item in items for asset in item["assets"].values() if "file:size" in asset]
    return asdict(replica.ReplicaFigures(len(items), len(sizes), sum(sizes), len(items), len(sizes)))


def _documents(path: Path) -> Iterator[dict[str, Any]]:
    """Yield the items of an NDJSON file, gzipped or not."""
    with gzip.open(path, "rb") if path.suffix == ".gz" else path.open("rb") as lines:
        for line in lines:
            if line.strip():
                yield orjson.loads(line)


async def _check(
    running: Federation, documents: Sequence[Mapping[str, Any]], stream: str, copying: replica.ReplicaDemo | None,
    say: Callable[[str], None], *, with_services: bool, with_deletion: bool,
) -> Report:  # fmt: skip
    began = time.monotonic()
    async with Publisher(running) as publisher:
        await publisher.send(documents[: len(documents) // 2])
        joining = asyncio.create_task(asyncio.to_thread(running.start_index_node, "south", feed=stream))
        await publisher.send(documents[len(documents) // 2 :])
        await joining
        say("waiting until everything is final")
        await publisher.settle()
    say("waiting until everything is visible")
    await wait_until_visible(running, INDEX_NODES)
    seconds = time.monotonic() - began
    figures: dict[str, int] = {}
    if copying:
        say("waiting until files are copied")
        await copying.wait_until_announced()
        await wait_until_visible(running, INDEX_NODES)
        figures = asdict(await replica.measure(running, copying.place, INDEX_NODES[0]))
    counts = publisher.counts
    report = Report(
        submitted=publisher.submitted_items, published=counts["published"], unchanged=counts["unchanged"],
        rejected=counts["rejected"], failed=counts["failed"], unaccounted=publisher.submitted_items - counts.total(),
        replica=figures, seconds=round(seconds, 2), rate=round(counts["published"] / seconds, 1),
    )  # fmt: skip
    async with httpx.AsyncClient(trust_env=False, timeout=60) as client:
        report.visible = {name: await number_of_datasets(client, running.processes[name].url) for name in INDEX_NODES}
    spared = {str(item["id"]) for item in copying.items} if copying else set()
    if with_services:
        say("deleting some datasets and loading the others while services follow")
        report.services = asdict(await services.run(running, sparing=spared))
    if with_deletion:
        say("deleting some datasets")
        report.deletion = asdict(await deletion.run(running, sparing=spared))
    say("comparing digests and checking the invariants")
    for name in INDEX_NODES:
        source = SourceAddress(running.west, running.tokens[f"node:{name}"])
        async with _node(running, name) as node, Origin(source) as origin:
            report.differences[name] = len((await verifying.verify(node, origin)).differences)
    if stream:
        report.broker = await _count_stored(running, stream)
    for name in ("west", *INDEX_NODES):
        async with _node(running, name) as node, node.pool.acquire() as conn:
            broken = await invariants.check(conn)
            report.violations += [f"{name}: {one.name}: {one.statement}: {', '.join(one.examples)}" for one in broken]
    return report


async def _count_stored(running: Federation, stream: str) -> dict[str, int]:
    """Wait until the relay has sent everything. Return how many events the broker has, lacks and has twice."""
    conn = await connections.connect(running.database_of(WEST))
    try:
        head = (await sinks.feed_state(conn)).head.pos
        while min(sink.pos for sink in await sinks.every(conn)) < head:
            running.check_running()
            await asyncio.sleep(0.05)
    finally:
        await conn.close()
    async with open_sink(SinkTarget(WEST, "check", stream)) as sink:
        positions = Counter([event.cursor.pos async for event in sink.stored_events()])
    missing = head - len(positions)
    return {"stored": positions.total(), "missing": missing, "doubled": positions.total() - len(positions)}


def _node(running: Federation, name: str) -> Any:
    return bootstrap.node(Settings(_env_file=None, node=name, dsn=running.database_of(name), pool_size=2))


def show(report: Report, console: Console) -> None:
    """Print the report as a table."""
    table = Table(show_header=False)
    for name, value in report.as_json().items():
        if isinstance(value, dict):
            value = ", ".join(f"{key} {number}" for key, number in value.items())
        table.add_row(name, "\n".join(value) if isinstance(value, list) else str(value))
    console.print(table)
