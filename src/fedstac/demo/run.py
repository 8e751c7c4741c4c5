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
from fedstac.demo import brokers, embedded, identity_provider, sample
from fedstac.demo.brokers import BrokerKind
from fedstac.demo.federation import (
    INDEX_NODES,
    STREAM,
    Federation,
    PostgresServer,
    Say,
    drop_databases,
    federation,
    open_server,
    sigterm_interrupts,
)
from fedstac.demo.publishing import Publisher, number_of_datasets, wait_until_visible

PROVIDER = "identity-provider"
MADE_BY = "made-by"  # file in the folder of data: which fedstac made it, and when


def run(
    *, items: int, data_dir: Path | None, port: int, dsn: str | None, ready_file: Path | None, console: Console,
    broker: BrokerKind = BrokerKind.NONE, fresh: bool = False,
) -> None:  # fmt: skip
    """Run a publishing node and the index node east with `items` datasets until Ctrl-C.

    `broker`: its kind; the index node south then follows it. `fresh`: what is in the folder of data is thrown away
    first.
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
            provider = running.start(PROVIDER, PROVIDER)
            running.start("serve", "serve", FEDSTAC_PORT=str(port), **identity_provider.as_settings(provider.url))
            running.start_index_node("east", FEDSTAC_PORT=str(port + 1 if port else 0))
            if stream:
                running.start_index_node("south", feed=stream, FEDSTAC_PORT=str(port + 2 if port else 0))
        _fill(running, items, console)
        _introduce(running, stream, console)
        if ready_file:
            _write_ready(ready_file, running, server, stream)
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


def _claim_data(folder: Path, server: PostgresServer, *, fresh: bool, console: Console) -> None:
    """Say whose data is used again, or begin anew; then note who made what is there.

    The folder is one for all checkouts of a user, so another one's datasets may be in it.
    """
    note = folder / MADE_BY
    with psycopg.connect(server.dsn(), autocommit=True) as conn:
        names = [f"fedstac_{name}" for name in ("west", *INDEX_NODES)]
        is_used = conn.execute("SELECT 1 FROM pg_database WHERE datname = ANY (%s)", (names,)).fetchone()
    if is_used and not fresh:
        maker = note.read_text().strip() if note.is_file() else "an earlier fedstac"
        console.print(
            f"reusing the data in {folder} (made by {maker}); --fresh begins anew, --data-dir takes another folder",
            soft_wrap=True, highlight=False, markup=False,
        )  # fmt: skip
        return
    drop_databases(server, names)
    for kind in BrokerKind:
        shutil.rmtree(folder / kind, ignore_errors=True)
    here = Path(__file__).resolve().parent
    note.write_text(f"fedstac {__version__} in {here} on {datetime.now(UTC):%Y-%m-%d %H:%M} UTC\n")


def _fill(running: Federation, items: int, console: Console) -> None:
    """Publish sample data until there are `items` datasets, and wait until the index nodes show them."""
    names = [name for name in INDEX_NODES if name in running.processes]

    async def fill() -> None:
        present = (await _totals(running))["west"]
        documents = sample.items(max(0, items - present), start=present)
        total = max(items, present)
        with _bars(console) as bars:
            tasks = {name: bars.add_task(name, total=items) for name in ("published", "visible")}
            async with Publisher(
                running, lambda n: bars.update(tasks["published"], completed=present + n)
            ) as publisher:
                await publisher.send(documents)
                await publisher.settle()
            bars.update(tasks["published"], completed=total, total=total)
            await wait_until_visible(running, names, lambda part: bars.update(
                tasks["visible"], completed=round(part * total), total=total
            ))  # fmt: skip

    asyncio.run(fill())


def _bars(console: Console) -> Progress:
    columns = (TextColumn("{task.description:16}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    return Progress(*columns, console=console, disable=not console.is_terminal)


def _introduce(running: Federation, stream: str, console: Console) -> None:
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
    console.print(table)
    who = " or ".join(f"{person.subject} ({person.about})" for person in identity_provider.PEOPLE)
    if stream:
        console.print(f"{'events':<13}{stream}", soft_wrap=True, highlight=False)
    for label, line in (
        ("PostgreSQL", f"psql '{running.database_of('west')}'"),
        ("operate", f"export FEDSTAC_NODE=west FEDSTAC_DSN='{running.database_of('west')}'; {_own_command()} doctor"),
        ("search", f"curl '{running.processes['east'].url}/search?limit=1'"),
        ("log in", f"export FEDSTAC_URL={running.west}; {_own_command()} login"),
        ("", f"as {who}, on a page of {running.processes[PROVIDER].url}"),
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


def _write_ready(ready_file: Path, running: Federation, server: PostgresServer, stream: str) -> None:
    """Write addresses and tokens in one piece, readable for this user only."""
    content = {
        "api": running.west, "index": running.processes["east"].url, "dsn": running.database_of("west"),
        "issuer": running.processes[PROVIDER].url, "tokens": dict(running.tokens),
        **({"stream": stream, "stream_index": running.processes["south"].url} if stream else {}),
    }  # fmt: skip
    unfinished = ready_file.with_name(ready_file.name + ".part")
    unfinished.touch(mode=0o600)
    unfinished.write_text(json.dumps(content, indent=2))
    unfinished.replace(ready_file)
