"""Loading: a snapshot in files into an empty node, beside stock pypgstac's own loader with the same items.

Processor time is that of all processes of PostgreSQL and of the loader; it counts on a busy machine too.
"""

from __future__ import annotations

import asyncio
import os
import time
from pathlib import Path

import asyncpg
import orjson

from benchmarks import corpus, report, servers
from benchmarks.servers import COLLECTION, say
from fedstac import bootstrap, collection_writing
from fedstac.demo import embedded, sample
from fedstac.settings import Settings
from fedstac.workers import processes, snapshot_files, snapshot_loading, snapshots

CV_VERSION = "6.2.60.0"  # as of datasets of a real node


def run(*, count: int, rounds: int) -> None:
    """Measure both in turn; print the medians' lines."""
    processes.tune_interpreter()
    with servers.cluster() as (running, folder):
        lines = folder / "items.ndjson"
        with lines.open("wb") as file:
            for item in corpus.items(count):
                file.write(orjson.dumps(item) + b"\n")
        files = folder / "snapshot"
        west = servers.make_node_database(running, "west")
        say(f"writing a snapshot of {count} datasets")
        asyncio.run(_write(west, lines, files))
        results: list[tuple[float, float, float]] = []
        for number in range(max(rounds, 1)):
            with servers.peer(running, folder, f"peer{number}"):
                peer_seconds = servers.pypgstac_load(running, lines, f"peer{number}")
            dsn = servers.make_node_database(running, f"east{number}")
            seconds, processor = asyncio.run(_load(dsn, files, running))
            say(f"round {number}: {count / seconds:.0f} records/s, pypgstac {count / peer_seconds:.0f}")
            results.append((seconds, processor, peer_seconds))
        seconds, processor, peer_seconds = sorted(results)[len(results) // 2]
        size = sum(path.stat().st_size for path in files.iterdir())
        detail = {"records": count, "bytes_of_files": size, "load": os.getloadavg()[0]}
        report.line(
            "snapshot in files", count / seconds, "records/s", count / peer_seconds, peer_name="pypgstac load",
            detail=detail,
        )  # fmt: skip
        report.line("snapshot in files, processor", processor / count * 1e6, "us/item", detail=detail)


async def _write(dsn: str, lines: Path, files: Path) -> None:
    async with bootstrap.node(Settings(dsn=dsn, node="bench", _env_file=None)) as node:
        async with node.pool.acquire() as conn:
            writer = collection_writing.CollectionWriter(conn, "bench", "bench", node.collection_schema)
            await writer.create(sample.collection(COLLECTION))
        conn = await asyncpg.connect(dsn)
        try:
            await corpus.load_records(conn, lines, cv_version=CV_VERSION)
        finally:
            await conn.close()
        await snapshots.write(node, files)


async def _load(dsn: str, files: Path, running: embedded.Cluster) -> tuple[float, float]:
    """Return the seconds of a load into an empty node, and the processor's."""
    async with bootstrap.node(Settings(dsn=dsn, node="east", _env_file=None)) as node:
        processor = servers.database_seconds(running.pid) + time.process_time()
        began = time.monotonic()
        async with snapshot_files.open_files(str(files), ()) as opened:
            await snapshot_loading.load(node, opened)
        seconds = time.monotonic() - began
        return seconds, servers.database_seconds(running.pid) + time.process_time() - processor
