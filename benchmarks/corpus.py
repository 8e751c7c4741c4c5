"""The corpus of `search`: made once for each size, and kept with its cluster in the user's cache folder.

Both servers have the same items. The peer gets them from its own loader; fedstac gets them as records, without rules,
requests and events: what is measured is reading.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from functools import cache
from itertools import islice
from pathlib import Path
from typing import Any, Final

import asyncpg
import orjson

from benchmarks import servers
from benchmarks.servers import COLLECTION, Server, say
from fedstac.db import connections, facets, records
from fedstac.demo import embedded, sample
from fedstac.domain import documents
from fedstac.domain.events import PUBLISHED
from fedstac.domain.model import Change, Record, State
from fedstac.domain.vocabulary import DatasetName, Vocabulary
from fedstac.vocabularies.checker import open_checker

SIZES: Final[Mapping[str, int]] = {"2k": 2_000, "20k": 20_000, "100k": 100_000, "1m": 1_000_000}
FORM: Final = 1  # of the corpus: another one makes all kept clusters old
SEED: Final = 11
BATCH: Final = 1000
LOADED: Final = "loaded"
DURABLE: Final = {"fsync": "on", "synchronous_commit": "on", "full_page_writes": "on", "max_wal_size": "4GB"}


def folder_of(size: str) -> Path:
    """Return where the cluster of a size is kept. PostgreSQL is no root, so root's own cache folder is no place."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    if os.geteuid() == 0:
        cache = Path("/var/cache")
    return cache / "fedstac-bench" / f"{size}-{FORM}"


def is_kept(size: str) -> bool:
    """Return whether the corpus of a size was made, and loaded."""
    return (folder_of(size) / LOADED).exists()


def items(count: int) -> Iterator[dict[str, Any]]:
    """Return the items of a corpus."""
    return sample.skewed_items(count, seed=SEED)


@contextmanager
def cluster(size: str) -> Iterator[tuple[embedded.Cluster, Path, bool]]:
    """Start the kept cluster of a size; yield it, a folder for logs, and whether it is loaded."""
    folder = folder_of(size)
    if folder.exists() and not (folder / LOADED).exists():
        shutil.rmtree(folder)  # a load that was broken off
    folder.mkdir(parents=True, exist_ok=True)
    folder.chmod(0o755)
    say(f"the corpus of {size} is kept in {folder}")
    with embedded.cluster(folder / "pg", settings=DURABLE, progress=say) as running:
        yield running, folder, (folder / LOADED).exists()


def read_files(running: embedded.Cluster) -> None:
    """Read all tables and indexes once. The system keeps them in memory, as of a server that has run for a while."""
    started, size = time.monotonic(), 0
    for path in sorted((running.data / "pgdata" / "base").rglob("*")):
        if path.is_file():
            with path.open("rb", buffering=0) as file:
                while piece := file.read(1 << 20):
                    size += len(piece)
    say(f"read {size / 1e9:.1f} GB of tables and indexes in {time.monotonic() - started:.0f} s")


def load(count: int, both_servers: Sequence[Server], running: embedded.Cluster, folder: Path) -> None:
    """Load the items into both servers, and note that it is done."""
    lines = folder / "items.ndjson"
    say(f"making {count} items")
    with lines.open("wb") as file:
        for item in items(count):
            file.write(orjson.dumps(item) + b"\n")
    for server in both_servers:
        say(f"{server.name}: loading {count} items")
        if server.name == "peer":
            servers.pypgstac_load(running, lines)
        else:
            asyncio.run(_load_records(server.dsn, lines))
        server.settle(analyze=True)
    lines.unlink()
    (folder / LOADED).touch()


async def _load_records(dsn: str, lines: Path) -> None:
    conn = await connections.connect(dsn)
    try:
        await load_records(conn, lines)
    finally:
        await conn.close()


async def load_records(conn: asyncpg.Connection[asyncpg.Record], lines: Path, *, cv_version: str | None = None) -> None:
    """Store the items of a file as published records, judged with a version of the vocabulary or none."""
    with lines.open("rb") as file:
        while batch := list(islice(file, BATCH)):
            await _load_batch(conn, [orjson.loads(line) for line in batch], cv_version)


async def _load_batch(
    conn: asyncpg.Connection[asyncpg.Record], batch: Sequence[dict[str, Any]], cv_version: str | None
) -> None:
    """Store items as published records. Versions of a lineage stand together, the latest one last."""
    now = datetime.now(UTC)
    changes = [_change(item, now, cv_version) for item in batch]
    await facets.prepare(conn, [change.draft for change in changes if change.draft])
    async with conn.transaction():
        lineages = await records.lock(conn, {change.after.lineage: "bench" for change in changes})
        leaves = await records.hold_leaves(conn, [COLLECTION])
        await records.write(conn, changes, {key: lineage.seq + 1 for key, lineage in lineages.items()}, leaves)


@cache
def _vocabulary() -> Vocabulary | None:
    return open_checker().vocabularies.current(COLLECTION)


def _change(item: dict[str, Any], now: datetime, cv_version: str | None) -> Change:
    base, _, version = item["id"].rpartition(".v")
    draft = documents.prepare(item, DatasetName(f"{COLLECTION}/{base}", int(version)), _vocabulary())
    latest: bool = item["properties"]["latest"]
    record = Record(
        collection=COLLECTION, id=item["id"], lineage=draft.lineage, origin="bench", version=draft.version,
        state=State.PUBLISHED, latest=latest, claims_latest=latest, epoch=1, seq=1, created=now, updated=now,
        document=draft.text, document_digest=draft.document_digest, files_digest=draft.files_digest, publisher="bench",
        cv_version=cv_version, replicas=draft.replicas,
    )  # fmt: skip
    return Change(PUBLISHED, None, record, draft)
