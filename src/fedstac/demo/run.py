"""`fedstac demo`: a whole small federation on one machine, to look at or to check."""

from __future__ import annotations

import asyncio
import gzip
import itertools
import json
import os
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit, urlunsplit

import httpx
import orjson
import psycopg
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from fedstac import __version__, bootstrap
from fedstac.db import connections, invariants
from fedstac.demo import embedded, identity_provider, sample
from fedstac.demo.federation import Federation, Server, StartFailed, drop_databases, federation
from fedstac.messaging.origin import Origin
from fedstac.messaging.sources.addresses import SourceAddress
from fedstac.settings import Settings
from fedstac.workers import verifying

BATCH = 200
UNDER_WAY = 4  # batches that are sent before the first one's answer
DEADLINE_SECONDS = 900.0
PLACES = ("east", "south")
PROVIDER = "identity-provider"
MADE_BY = "made-by"  # file in the folder of data: which fedstac made it, and when


@dataclass(frozen=True, slots=True)
class ExistingServer:
    """A PostgreSQL of the operator's own; the DSN's user is a superuser, or may create databases and roles."""

    url: str

    def dsn(self, database: str = "postgres", *, user: str = "") -> str:
        """`user` is for servers of our own: here everything runs as the user that was given."""
        parts = urlsplit(self.url)
        return urlunsplit(parts._replace(path="/" + database)) if database != "postgres" else self.url


@dataclass(slots=True)
class Report:
    """What `--check` found; `ok` only if nothing is unaccounted for."""

    submitted: int = 0
    published: int = 0
    unchanged: int = 0
    rejected: int = 0
    failed: int = 0
    unaccounted: int = 0
    visible: dict[str, int] = field(default_factory=dict)
    differences: dict[str, int] = field(default_factory=dict)
    violations: list[str] = field(default_factory=list)
    seconds: float = 0.0
    rate: float = 0.0
    ok: bool = False

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


def _server(stack: ExitStack, data_dir: Path | None, dsn: str | None, say: Callable[[str], None]) -> Server:
    if dsn:
        return ExistingServer(dsn)
    return stack.enter_context(embedded.cluster(data_dir, progress=say))


def _claim_data(folder: Path, server: Server, *, fresh: bool, console: Console) -> None:
    """Say whose data is used again, or begin anew; then note who made what is there.

    The folder is one for all checkouts of a user, so another one's datasets may be in it.
    """
    note = folder / MADE_BY
    with psycopg.connect(server.dsn(), autocommit=True) as conn:
        names = [f"fedstac_{name}" for name in ("west", *PLACES)]
        found = conn.execute("SELECT 1 FROM pg_database WHERE datname = ANY (%s)", (names,)).fetchone()
    if found and not fresh:
        maker = note.read_text().strip() if note.is_file() else "an earlier fedstac"
        console.print(
            f"reusing the data in {folder} (made by {maker}); --fresh begins anew, --data-dir takes another folder",
            soft_wrap=True, highlight=False, markup=False,
        )  # fmt: skip
        return
    drop_databases(server, names)
    here = Path(__file__).resolve().parent
    note.write_text(f"fedstac {__version__} in {here} on {datetime.now(UTC):%Y-%m-%d %H:%M} UTC\n")


def run(
    *, items: int, data_dir: Path | None, port: int, dsn: str | None, ready_file: Path | None, console: Console,
    fresh: bool = False,
) -> None:  # fmt: skip
    """Runs a publishing node and an index node until Ctrl-C, with `items` published datasets.

    `fresh`: what is in the folder of data is thrown away first.
    """
    with ExitStack() as stack:
        stack.callback(signal.signal, signal.SIGTERM, signal.signal(signal.SIGTERM, _interrupt))
        with console.status("starting PostgreSQL") as status:
            server = _server(stack, data_dir, dsn, status.update)
            if isinstance(server, embedded.Cluster):
                _claim_data(server.data, server, fresh=fresh, console=console)
            status.update("preparing the databases")
            running = stack.enter_context(federation(server, index_nodes=PLACES, say=status.update))
            status.update("starting the nodes")
            provider = running.start(PROVIDER, PROVIDER)
            running.start("serve", "serve", FEDSTAC_PORT=str(port), **identity_provider.as_settings(provider.url))
            running.start_index_node("east", FEDSTAC_PORT=str(port + 1 if port else 0))
        _fill(running, items, console)
        _introduce(running, console)
        if ready_file:
            _write_ready(ready_file, running, server)
            stack.callback(ready_file.unlink, missing_ok=True)
        try:
            while True:
                time.sleep(0.5)
                running.check_running()
        except KeyboardInterrupt:
            console.print("\nstopping; the data stays for the next time")


def _interrupt(number: int, frame: object) -> None:
    raise KeyboardInterrupt


def _write_ready(ready_file: Path, running: Federation, server: Server) -> None:
    content = {
        "api": running.west, "index": running.processes["east"].url, "dsn": running.database_of("west"),
        "issuer": running.processes[PROVIDER].url, "tokens": dict(running.tokens),
    }  # fmt: skip
    unfinished = ready_file.with_name(ready_file.name + ".part")
    unfinished.touch(mode=0o600)
    unfinished.write_text(json.dumps(content, indent=2))
    unfinished.replace(ready_file)


def _introduce(running: Federation, console: Console) -> None:
    total = asyncio.run(_totals(running))
    table = Table(title="a federation on this machine", show_header=True, title_justify="left")
    table.add_column("node")
    table.add_column("address")
    table.add_column("datasets", justify="right")
    table.add_row("west, publishes", running.west, f"{total['west']:,}")
    table.add_row("east, index", running.processes["east"].url, f"{total['east']:,}")
    console.print(table)
    who = " or ".join(f"{person.subject} ({person.about})" for person in identity_provider.PEOPLE)
    for label, said in (
        ("PostgreSQL", f"psql '{running.database_of('west')}'"),
        ("search", f"curl '{running.processes['east'].url}/search?limit=1'"),
        ("log in", f"export FEDSTAC_URL={running.west}; {_own_command()} login"),
        ("", f"as {who}, on a page of {running.processes[PROVIDER].url}"),
        ("or a token", f"export FEDSTAC_URL={running.west} FEDSTAC_TOKEN={running.tokens['admin']}"),
    ):
        console.print(f"{label:<13}{said}", soft_wrap=True, highlight=False)
    console.print("Ctrl-C stops it all.")


def _own_command() -> str:
    """How this program is called in a terminal: by its name where that finds it."""
    here = Path(sys.executable).with_name("fedstac")
    if (found := shutil.which("fedstac")) and Path(found) == here:
        return "fedstac"
    return str(here.relative_to(Path.cwd()) if here.is_relative_to(Path.cwd()) else here)


async def _totals(running: Federation) -> dict[str, int]:
    async with httpx.AsyncClient(trust_env=False, timeout=30) as client:
        return {
            name: await _number_at(client, running.processes[process].url)
            for name, process in (("west", "serve"), ("east", "east"))
        }


async def _number_at(client: httpx.AsyncClient, url: str) -> int:
    response = await client.get(f"{url}/search", params={"limit": 1})
    response.raise_for_status()
    return int(response.json()["numberMatched"])


def _fill(running: Federation, items: int, console: Console) -> None:
    """Publishes sample data, as far as it is not there yet, and waits until the index node shows it."""

    async def fill() -> None:
        present = (await _totals(running))["west"]
        documents = sample.items(max(0, items - present), start=present)
        with _bars(console) as bars:
            shown = {name: bars.add_task(name, total=items) for name in ("published", "visible at east")}
            async with _Publisher(
                running, lambda n: bars.update(shown["published"], completed=present + n)
            ) as publisher:
                await publisher.send(documents)
                await publisher.settle()
            bars.update(shown["published"], completed=max(items, present), total=max(items, present))
            await _visible(running, ["east"], lambda part: bars.update(
                shown["visible at east"], completed=round(part * max(items, present)), total=max(items, present)
            ))  # fmt: skip

    asyncio.run(fill())


def _bars(console: Console) -> Progress:
    columns = (TextColumn("{task.description:16}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    return Progress(*columns, console=console, disable=not console.is_terminal)


class _Publisher:
    """Sends batches to west and follows every request until it is final."""

    def __init__(self, running: Federation, on_progress: Callable[[int], object] = lambda n: None) -> None:
        self.counts: Counter[str] = Counter()
        self.submitted = 0
        self._running, self._on_progress = running, on_progress
        self._requests: list[str] = []
        headers = {"Authorization": f"Bearer {running.tokens['admin']}", "Prefer": "wait=0"}
        self._client = httpx.AsyncClient(base_url=running.west, headers=headers, timeout=120, trust_env=False)

    async def __aenter__(self) -> _Publisher:
        await self._client.__aenter__()
        response = await self._client.post("/collections", json=sample.collection())
        if response.status_code not in (201, 409):
            raise StartFailed(f"the collection CMIP6 cannot be made: {response.text[:500]}")
        return self

    async def __aexit__(self, *error: Any) -> None:
        await self._client.__aexit__(*error)

    async def send(self, documents: Iterable[Mapping[str, Any]]) -> None:
        """Sends everything in batches, a few at a time."""
        waiting: set[asyncio.Task[None]] = set()
        for batch in itertools.batched(documents, BATCH) if hasattr(itertools, "batched") else _batches(documents):
            self.submitted += len(batch)
            waiting.add(asyncio.create_task(self._send(list(batch))))
            if len(waiting) >= UNDER_WAY:
                done, waiting = await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
                for task in done:
                    task.result()
        await asyncio.gather(*waiting)

    async def _send(self, batch: list[Mapping[str, Any]]) -> None:
        """One batch; what is refused as a whole is sent again in halves, so that each bad item is counted by itself."""
        lines = b"\n".join(orjson.dumps(document) for document in batch)
        response = await self._client.post(
            "/collections/CMIP6/items", content=lines, headers={"Content-Type": "application/x-ndjson"}
        )
        if response.status_code == 202:
            self._requests.append(response.json()["id"])
        elif response.status_code in (429, 503):
            await asyncio.sleep(float(response.headers.get("retry-after", 1)))
            await self._send(batch)
        elif response.status_code >= 500:
            raise StartFailed(f"west answered {response.status_code}: {response.text[:500]}")
        elif len(batch) == 1:
            self.counts["rejected"] += 1
        else:
            await self._send(batch[: len(batch) // 2])
            await self._send(batch[len(batch) // 2 :])

    async def settle(self) -> None:
        """Waits until every request is final, and counts what became of the items."""
        deadline = time.monotonic() + DEADLINE_SECONDS
        while self._requests:
            response = await self._client.get(f"/requests/{self._requests[0]}")
            response.raise_for_status()
            body = response.json()
            if body["counts"]["queued"] and time.monotonic() < deadline:
                self._running.check_running()
                await asyncio.sleep(0.05)
                continue
            self._requests.pop(0)
            unchanged = body["outcomes"].get("identical", 0)
            self.counts.update(
                published=body["counts"]["done"] - unchanged, unchanged=unchanged,
                rejected=body["counts"]["rejected"], failed=body["counts"]["failed"],
            )  # fmt: skip
            self._on_progress(self.counts.total())


def _batches(documents: Iterable[Mapping[str, Any]]) -> Iterator[tuple[Mapping[str, Any], ...]]:
    """itertools.batched, which Python has from 3.12 on."""
    iterator = iter(documents)
    while batch := tuple(itertools.islice(iterator, BATCH)):
        yield batch


async def _visible(
    running: Federation, names: Iterable[str], on_progress: Callable[[float], object] = lambda part: None
) -> None:
    """Waits until these index nodes have acknowledged everything that west has announced.

    `on_progress` is called with the part of it that all of them have.
    """
    deadline = time.monotonic() + DEADLINE_SECONDS
    async with Origin(SourceAddress(running.west, running.tokens["node:east"])) as source:
        while True:
            complete = await _sequenced(running)  # before the head is read: nothing is written any more
            head, through = await source.progress()
            positions = [through[name].pos if name in through else 0 for name in names]
            on_progress(min(positions) / head.pos if head.pos else 1.0)
            if complete and all(through.get(name) == head for name in names):
                return
            if time.monotonic() > deadline:
                raise StartFailed(f"not visible everywhere after {DEADLINE_SECONDS:.0f} s: head {head}, {through}")
            running.check_running()
            await asyncio.sleep(0.05)


async def _sequenced(running: Federation) -> bool:
    """Whether every event at west has its position."""
    conn = await connections.connect(running.database_of("west"))
    try:
        return bool(
            await conn.fetchval("SELECT (SELECT count(*) FROM fedstac.outbox) = (SELECT pos FROM fedstac.feed_state)")
        )
    finally:
        await conn.close()


def read(path: Path) -> Iterator[dict[str, Any]]:
    """Items from NDJSON, gzipped or not."""
    with gzip.open(path, "rb") if path.suffix == ".gz" else path.open("rb") as lines:
        for line in lines:
            if line.strip():
                yield orjson.loads(line)


def check(
    *, source: Path | None, items: int, expect_rejected: int, data_dir: Path | None, dsn: str | None, console: Console
) -> Report:
    """Publishes through the API with two workers while a second index node joins, then compares everything."""
    with ExitStack() as stack:
        stack.callback(signal.signal, signal.SIGTERM, signal.signal(signal.SIGTERM, _interrupt))
        if not dsn and data_dir is None:
            data_dir = Path(tempfile.mkdtemp(prefix="fedstac-check-"))
            data_dir.chmod(0o755)
            stack.callback(shutil.rmtree, data_dir, ignore_errors=True)
        with console.status("starting") as status:
            server = _server(stack, data_dir, dsn, status.update)
            prefix = f"fedstac_check_{os.getpid()}_"
            if dsn or data_dir:
                stack.callback(drop_databases, server, [prefix + name for name in ("west", *PLACES)])
            running = stack.enter_context(federation(server, index_nodes=PLACES, say=status.update, prefix=prefix))
            running.start("serve", "serve", FEDSTAC_PORT="0", FEDSTAC_RUN_WORKERS="false")
            running.start("worker-1", "worker")
            running.start("worker-2", "worker")
            running.start("sequencer", "sequencer")
            running.start_index_node("east", snapshot_first=False)
            status.update("publishing")
            documents = list(read(source)) if source else list(sample.items(items))
            report = asyncio.run(_check(running, documents, status.update))
        report.ok = (
            report.published > 0 and report.rejected == expect_rejected and not report.unaccounted
            and not report.failed and not report.violations and not any(report.differences.values())
            and all(n == report.published for n in report.visible.values())
        )  # fmt: skip
        return report


async def _check(running: Federation, documents: list[dict[str, Any]], say: Callable[[str], None]) -> Report:
    began = time.monotonic()
    async with _Publisher(running) as publisher:
        await publisher.send(documents[: len(documents) // 2])
        joining = asyncio.create_task(asyncio.to_thread(running.start_index_node, "south"))
        await publisher.send(documents[len(documents) // 2 :])
        await joining
        say("waiting until everything is final")
        await publisher.settle()
    say("waiting until everything is visible")
    await _visible(running, PLACES)
    seconds = time.monotonic() - began
    counts = publisher.counts
    report = Report(
        submitted=publisher.submitted, published=counts["published"], unchanged=counts["unchanged"],
        rejected=counts["rejected"], failed=counts["failed"], unaccounted=publisher.submitted - counts.total(),
        seconds=round(seconds, 2), rate=round(counts["published"] / seconds, 1),
    )  # fmt: skip
    async with httpx.AsyncClient(trust_env=False, timeout=60) as client:
        report.visible = {name: await _number_at(client, running.processes[name].url) for name in PLACES}
    say("comparing digests and checking the invariants")
    for name in PLACES:
        source = SourceAddress(running.west, running.tokens[f"node:{name}"])
        async with _node(running, name) as node, Origin(source) as origin:
            report.differences[name] = len((await verifying.verify(node, origin)).differences)
    for name in ("west", *PLACES):
        async with _node(running, name) as node, node.pool.acquire() as conn:
            broken = await invariants.check(conn)
            report.violations += [f"{name}: {one.name}: {one.statement}: {', '.join(one.examples)}" for one in broken]
    return report


def _node(running: Federation, name: str) -> Any:
    return bootstrap.node(Settings(_env_file=None, node=name, dsn=running.database_of(name), pool_size=2))


def show(report: Report, console: Console) -> None:
    """The report as a table."""
    table = Table(show_header=False)
    for name, value in report.as_json().items():
        if isinstance(value, dict):
            value = ", ".join(f"{key} {number}" for key, number in value.items())
        table.add_row(name, "\n".join(value) if isinstance(value, list) else str(value))
    console.print(table)
