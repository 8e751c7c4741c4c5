"""`fedstac demo`: a whole small federation on one machine, to look at."""

from __future__ import annotations

import asyncio
import json
import shutil
import sys
import tempfile
import time
from contextlib import ExitStack
from datetime import UTC, datetime
from pathlib import Path

import httpx
import psycopg
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from fedstac import __version__
from fedstac.demo import brokers, embedded, identity_provider, replica, sample
from fedstac.demo.brokers import BrokerKind
from fedstac.demo.federation import (
    INDEX_NODES,
    STREAM,
    Federation,
    PostgresServer,
    ProcessFailed,
    Say,
    drop_databases,
    federation,
    open_server,
    sigterm_interrupts,
)
from fedstac.demo.publishing import Publisher, number_of_datasets, wait_until_visible

MADE_BY = "made-by"  # file in the folder of data: which fedstac made it, and when


def run(
    *, items: int, data_dir: Path | None, port: int, dsn: str | None, ready_file: Path | None, console: Console,
    broker: BrokerKind = BrokerKind.NONE, fresh: bool = False, with_replica: bool = False,
) -> None:  # fmt: skip
    """Run a publishing node and the index node east with `items` datasets until Ctrl-C.

    `broker`: its kind; the index node south then follows it. `fresh`: what is in the folder of data is thrown away
    first. `with_replica`: some datasets have files, and a replica node copies them.
    """
    with ExitStack() as stack:
        stack.enter_context(sigterm_interrupts())
        with console.status("starting PostgreSQL") as status:
            server = stack.enter_context(open_server(data_dir, dsn, status.update))
            if isinstance(server, embedded.Cluster):
                _claim_data(server.data, server, fresh=fresh, console=console)
            status.update("preparing the databases")
            stream = "" if broker is BrokerKind.NONE else _start_broker(stack, broker, server, status.update)
            running = stack.enter_context(federation(server, index_nodes=INDEX_NODES, say=status.update))
            if stream:
                running.add_sink(broker, stream)  # first: the relay would look for the broker of the last time
            status.update("starting the nodes")
            provider = replica.start_provider(running, (replica.NODE,) if with_replica else ())
            running.start("serve", "serve", FEDSTAC_PORT=str(port), **identity_provider.as_settings(provider.url))
            running.start_index_node("east", FEDSTAC_PORT=str(port + 1 if port else 0))
            if stream:
                running.start_index_node("south", feed=stream, FEDSTAC_PORT=str(port + 2 if port else 0))
            copying = None
            if with_replica:
                folder = _folder_of_files(server, data_dir)
                copying = replica.prepare(running, provider, folder, port=port + 3 if port else 0)
                copying.start_node()
        _fill(running, items, copying, console)
        _introduce(running, stream, copying, console)
        if ready_file:
            _write_ready(ready_file, running, stream, copying)
            stack.callback(ready_file.unlink, missing_ok=True)
        try:
            while True:
                time.sleep(0.5)
                running.check_running()
        except KeyboardInterrupt:
            console.print("\nstopping; the data stays for the next time")


def _start_broker(stack: ExitStack, kind: BrokerKind, server: PostgresServer, say: Say) -> str:
    """Start a broker that ends with the stack. Return the address of west's stream there.

    Its data stays beside the database's, where that is ours.
    """
    if isinstance(server, embedded.Cluster):
        folder = server.data / kind
    else:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix=f"fedstac-{kind}-")))
    running = stack.enter_context(brokers.broker(kind, folder, say))
    return f"{running.url}/{STREAM}"


def _folder_of_files(server: PostgresServer, data_dir: Path | None) -> Path:
    """Return the folder for files and copies: beside the data of PostgreSQL where that is ours, else the one named."""
    if isinstance(server, embedded.Cluster):
        return server.data / replica.NODE
    assert data_dir is not None
    return data_dir / replica.NODE


def _claim_data(folder: Path, server: PostgresServer, *, fresh: bool, console: Console) -> None:
    """Say whose data is used again, or begin anew; then note who made what is there.

    The folder is one for all checkouts of a user, so another one's datasets may be in it.
    """
    note = folder / MADE_BY
    with psycopg.connect(server.dsn(), autocommit=True) as conn:
        names = [f"fedstac_{name}" for name in ("west", *INDEX_NODES, replica.NODE)]
        is_used = conn.execute("SELECT 1 FROM pg_database WHERE datname = ANY (%s)", (names,)).fetchone()
    if is_used and not fresh:
        maker = note.read_text().strip() if note.is_file() else "an earlier fedstac"
        console.print(
            f"reusing the data in {folder} (made by {maker}); --fresh begins anew, --data-dir takes another folder",
            soft_wrap=True, highlight=False, markup=False,
        )  # fmt: skip
        return
    drop_databases(server, names)
    for name in (*BrokerKind, replica.NODE):
        shutil.rmtree(folder / name, ignore_errors=True)
    here = Path(__file__).resolve().parent
    note.write_text(f"fedstac {__version__} in {here} on {datetime.now(UTC):%Y-%m-%d %H:%M} UTC\n")


def _fill(running: Federation, items: int, copying: replica.ReplicaDemo | None, console: Console) -> None:
    """Publish sample data until there are `items` datasets, and wait until the index nodes show them.

    Datasets with files come first, and are there beside the others; their replicas are waited for.
    """
    names = [name for name in INDEX_NODES if name in running.processes]
    with_files = copying.items if copying else ()

    async def fill() -> None:
        async with Publisher(running) as publisher:  # what is there already is unchanged
            await publisher.send(with_files)
            await publisher.settle()
            if unpublished := publisher.counts["rejected"] + publisher.counts["failed"]:
                raise ProcessFailed(f"west took {unpublished} datasets with files not; begin anew: --fresh")
        present = (await _totals(running))["west"]
        documents = sample.items(max(0, items - present), start=max(0, present - len(with_files)))
        total = max(items, present)
        with _bars(console) as bars:
            tasks = {name: bars.add_task(name, total=items) for name in ("published", "visible")}
            if copying:
                tasks["replicated"] = bars.add_task("replicated", total=len(with_files))
            async with Publisher(
                running, lambda n: bars.update(tasks["published"], completed=present + n)
            ) as publisher:
                await publisher.send(documents)
                await publisher.settle()
            bars.update(tasks["published"], completed=total, total=total)
            if copying:
                await copying.wait_until_announced(lambda n: bars.update(tasks["replicated"], completed=n))
            await wait_until_visible(running, names, lambda part: bars.update(
                tasks["visible"], completed=round(part * total), total=total
            ))  # fmt: skip

    asyncio.run(fill())


def _bars(console: Console) -> Progress:
    columns = (TextColumn("{task.description:16}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    return Progress(*columns, console=console, disable=not console.is_terminal)


def _introduce(running: Federation, stream: str, copying: replica.ReplicaDemo | None, console: Console) -> None:
    """Print the addresses of the nodes, and commands to try."""
    total = asyncio.run(_totals(running))
    table = Table(title="a federation on this machine", show_header=True, title_justify="left")
    table.add_column("node")
    table.add_column("address")
    table.add_column("datasets", justify="right")
    table.add_row("west, publishes", running.west, f"{total['west']:,}")
    for name in INDEX_NODES:
        if name in total:
            follows = f", follows {stream.partition(':')[0]}" if stream and name == "south" else ""
            table.add_row(f"{name}, index{follows}", running.processes[name].url, f"{total[name]:,}")
    if copying:
        figures = asyncio.run(replica.measure(running, copying.place, "east"))
        table.add_row("replica, copies files", copying.place.url, f"{figures.datasets:,}")
    console.print(table)
    if copying:
        console.print(
            f"{figures.files} files of {figures.datasets} datasets were copied, {figures.bytes:,} bytes; east shows "
            f"{figures.announced} replicas, and {figures.verified} files were read and are right",
            soft_wrap=True, highlight=False,
        )  # fmt: skip
    who = " or ".join(f"{person.subject} ({person.about})" for person in identity_provider.PEOPLE)
    if stream:
        console.print(f"{'events':<13}{stream}", soft_wrap=True, highlight=False)
    for label, line in (
        ("PostgreSQL", f"psql '{running.database_of('west')}'"),
        ("operate", f"export FEDSTAC_NODE=west FEDSTAC_DSN='{running.database_of('west')}'; {_own_command()} doctor"),
        *((("replica", f"{copying.settings_line()} {_own_command()} replica status"),) if copying else ()),
        ("search", f"curl '{running.processes['east'].url}/search?limit=1'"),
        ("console", f"{running.west}/console; the identity provider of the demonstration logs you in"),
        ("log in", f"export FEDSTAC_URL={running.west}; {_own_command()} login"),
        ("", f"as {who}, on a page of {running.processes[replica.PROVIDER].url}"),
        ("or a token", f"export FEDSTAC_URL={running.west} FEDSTAC_TOKEN={running.tokens['admin']}"),
    ):
        console.print(f"{label:<13}{line}", soft_wrap=True, highlight=False)
    console.print("Ctrl-C stops it all.")


def _own_command() -> str:
    """Return how this program is called in a terminal: by its name if that finds it, else by its path."""
    here = Path(sys.executable).with_name("fedstac")
    if (on_path := shutil.which("fedstac")) and Path(on_path) == here:
        return "fedstac"
    return str(here.relative_to(Path.cwd()) if here.is_relative_to(Path.cwd()) else here)


async def _totals(running: Federation) -> dict[str, int]:
    """Return the number of datasets at each node."""
    processes = {"west": "serve", **{name: name for name in INDEX_NODES if name in running.processes}}
    async with httpx.AsyncClient(trust_env=False, timeout=30) as client:
        return {
            name: await number_of_datasets(client, running.processes[process].url)
            for name, process in processes.items()
        }


def _write_ready(ready_file: Path, running: Federation, stream: str, copying: replica.ReplicaDemo | None) -> None:
    """Write addresses and tokens in one piece, readable for this user only."""
    content = {
        "api": running.west, "console": f"{running.west}/console", "index": running.processes["east"].url,
        "dsn": running.database_of("west"),
        "issuer": running.processes[replica.PROVIDER].url, "tokens": dict(running.tokens),
        **({"stream": stream, "stream_index": running.processes["south"].url} if stream else {}),
        **({"replica": copying.place.url, "replica_dsn": running.database_of(replica.NODE)} if copying else {}),
    }  # fmt: skip
    unfinished = ready_file.with_name(ready_file.name + ".part")
    unfinished.touch(mode=0o600)
    unfinished.write_text(json.dumps(content, indent=2))
    unfinished.replace(ready_file)
