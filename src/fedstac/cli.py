"""The command line. Commands that run a node import the server's parts when they run; the rest need the client only."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Annotated

import typer

from fedstac import settings as environment

app = typer.Typer(no_args_is_help=True, rich_markup_mode="rich", pretty_exceptions_enable=False)

ReadyFile = Annotated[Path | None, typer.Option(help="Write JSON with the address here once it answers.")]


def main() -> None:
    """The entry point of the `fedstac` script."""
    app()


def _tell(ready_file: Path | None, content: dict[str, str]) -> None:
    """Writes a ready file in one piece: whoever waits for it never reads half of it."""
    if ready_file is None:
        return
    unfinished = ready_file.with_name(ready_file.name + ".part")
    unfinished.write_text(json.dumps(content))
    unfinished.replace(ready_file)


@app.command()
def serve(ready_file: ReadyFile = None) -> None:
    """Serve a publishing node: API, publish workers and sequencer. Settings come from FEDSTAC_… variables."""
    from fedstac import processes
    from fedstac.api import app as api

    processes.start("serve")
    settings = environment.load()
    api.serve(settings, api.publishing(settings), on_ready=lambda url: _tell(ready_file, {"url": url}))


@app.command(name="index-node")
def index_node(
    source: Annotated[str, typer.Option(help="Address of the publishing node to follow.")] = "",
    ready_file: ReadyFile = None,
) -> None:
    """Serve an index node: follow a publishing node's feed into a database of its own, and answer searches."""
    from fedstac import processes
    from fedstac.api import app as api
    from fedstac.workers import index_node as follower

    processes.start("index-node")
    settings = environment.load()
    if source:
        settings = settings.model_copy(update={"source": source})
    api.serve(settings, (follower.run,), on_ready=lambda url: _tell(ready_file, {"url": url}))


@app.command()
def worker(ready_file: ReadyFile = None) -> None:
    """Run publish workers in a process of their own (set FEDSTAC_RUN_WORKERS=false for the api processes)."""
    from fedstac import processes
    from fedstac.workers import publisher

    processes.start("worker")
    settings = environment.load()
    processes.run(
        settings, [publisher.run] * settings.workers, on_ready=lambda: _tell(ready_file, {"pid": str(os.getpid())})
    )


@app.command()
def sequencer(ready_file: ReadyFile = None) -> None:
    """Run the sequencer in a process of its own; a second one stands by."""
    from fedstac import processes
    from fedstac.workers import sequencer as sequencing

    processes.start("sequencer")
    processes.run(environment.load(), [sequencing.run], on_ready=lambda: _tell(ready_file, {"pid": str(os.getpid())}))


@app.command()
def migrate(
    print_setup: Annotated[bool, typer.Option("--print-setup", help="Print what a superuser runs once.")] = False,
) -> None:
    """Bring the database up to date: pgstac to its pinned version, then fedstac's own migrations."""
    from fedstac.db import migrations

    if print_setup:
        typer.echo(migrations.SETUP)
        return
    settings = environment.load()
    done = migrations.migrate(settings.owner_dsn, environment.folder("migrations"), say=typer.echo)
    typer.echo(f"up to date; {len(done)} steps were run" if done else "up to date; nothing to do")


if __name__ == "__main__":
    main()
