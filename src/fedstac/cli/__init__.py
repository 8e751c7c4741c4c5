"""The command line. Commands that run a node import the server's parts when they run; the rest need the client only."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Annotated

import typer

from fedstac import __version__
from fedstac import settings as environment
from fedstac.cli import (
    access,
    admin,
    audit,
    bulk_changes,
    changes,
    collections,
    datasets,
    dead_letters,
    deletions,
    doctor,
    download_check,
    facets,
    files,
    grants,
    identity,
    notifications,
    operations,
    own_requests,
    parked,
    people,
    reconciling,
    removals,
    replicas,
    scanning,
    sinks,
    snapshots,
    status,
    subscribing,
    validating,
    vocab,
)
from fedstac.cli.faults import PROCESSES, Commands
from fedstac.cli.options import CODES, Form, Options, Sources, Token, Url, examples
from fedstac.cli.terminal import AWAY, complain, prepare_streams, show_warnings
from fedstac.demo.brokers import BrokerKind
from fedstac.demo.embedded import default_folder

LOGGING = (*PROCESSES, "verify", "rebuild")  # commands that log which variables have no effect

app = typer.Typer(
    cls=Commands, no_args_is_help=True, rich_markup_mode="rich", pretty_exceptions_enable=False, epilog=CODES,
    context_settings={"help_option_names": ["-h", "--help"]},
)  # fmt: skip
app.add_typer(datasets.commands)
app.add_typer(facets.commands)
app.add_typer(status.commands)
app.add_typer(files.commands)
app.add_typer(download_check.commands)
app.add_typer(changes.commands)
app.add_typer(removals.commands)
app.add_typer(replicas.commands, name="replica", rich_help_panel="Client")
app.add_typer(collections.commands, name="collections", rich_help_panel="Client")
app.add_typer(deletions.commands, name="deletion", rich_help_panel="Client")
app.add_typer(reconciling.commands)
app.add_typer(grants.commands, name="grant", rich_help_panel="Client")
app.add_typer(bulk_changes.commands, name="bulk", rich_help_panel="Client")
app.add_typer(reconciling.load_commands, name="load", rich_help_panel="Client")
app.add_typer(subscribing.commands, name="subscription", rich_help_panel="Client")
app.add_typer(subscribing.changes)
app.add_typer(own_requests.commands, name="requests", rich_help_panel="Client")
app.add_typer(identity.commands)
app.add_typer(notifications.commands, name="notifications", rich_help_panel="Client")
app.add_typer(access.commands, name="access", rich_help_panel="Client")
app.add_typer(access.groups, name="groups", rich_help_panel="Client")
app.add_typer(validating.commands)
app.add_typer(scanning.commands)
app.add_typer(vocab.commands, name="vocab", rich_help_panel="Client")
app.add_typer(operations.commands)
app.add_typer(snapshots.commands, name="snapshot", rich_help_panel="Node")
app.add_typer(parked.commands, name="parked", rich_help_panel="Node")
app.add_typer(doctor.commands)
app.add_typer(admin.commands, name="admin", rich_help_panel="Node")
app.add_typer(people.commands, name="person", rich_help_panel="Node")
app.add_typer(audit.commands, name="audit", rich_help_panel="Node")
app.add_typer(sinks.commands, name="sink", rich_help_panel="Node")
app.add_typer(dead_letters.commands, name="dead-letter", rich_help_panel="Node")


def _demo_folder() -> str:
    """Return the folder that `fedstac demo` uses if none is named, for its help; "" for a user without a home."""
    try:
        return str(default_folder())
    except environment.NoHome:
        return ""


Processes = Annotated[
    int | None,
    typer.Option(
        "--processes",
        min=1,
        max=64,
        help="API processes that share the port (FEDSTAC_PROCESSES); the first runs the rest.",
    ),
]
ReadyFile = Annotated[Path | None, typer.Option(help="Write JSON with the address here once it answers.")]


def main() -> None:
    """Run the `fedstac` script."""
    prepare_streams()
    app()


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"fedstac {__version__}")
        raise typer.Exit


@app.callback()
def everywhere(
    ctx: typer.Context,
    output: Form = None,
    url: Url = "",
    token: Token = "",
    version: Annotated[bool, typer.Option("--version", callback=_version, is_eager=True, help="Show it.")] = False,
) -> None:
    """STAC for data federations: publish datasets, search them, run the nodes that serve them."""
    ctx.obj = Options(output, url, token)
    if ctx.invoked_subcommand not in LOGGING:
        show_warnings([str(variable) for variable in environment.unknown_variables()])


# --- the processes of a node ---


def _with_processes(settings: environment.Settings, number: int | None) -> environment.Settings:
    return settings if number is None else settings.model_copy(update={"processes": number})


def _tell(ready_file: Path | None, content: dict[str, str]) -> None:
    """Write a ready file in one piece: whoever waits for it never reads half of it."""
    if ready_file is None:
        return
    unfinished = ready_file.with_name(ready_file.name + ".part")
    unfinished.write_text(json.dumps(content))
    unfinished.replace(ready_file)


@app.command(rich_help_panel="Node", epilog=examples("FEDSTAC_NODE=west FEDSTAC_DSN=postgresql://… fedstac serve"))
def serve(number: Processes = None, ready_file: ReadyFile = None) -> None:
    """Serve a publishing node: API, console, publish workers and sequencer. Settings come from FEDSTAC_… variables."""
    from fedstac.workers import processes

    processes.start("serve")
    from fedstac.api import app as api
    from fedstac.console.routes import CONSOLE
    from fedstac.workers import roles

    settings = _with_processes(environment.load(), number)
    api.serve(
        settings, [roles.PUBLISH], on_ready=lambda url: _tell(ready_file, {"url": url}),
        undescribed=[CONSOLE] if settings.console else [],
    )  # fmt: skip


@app.command(
    name="index-node",
    rich_help_panel="Node",
    epilog=examples(
        "fedstac index-node --source https://west.example",
        "FEDSTAC_SOURCE=https://west.example fedstac index-node",
        "fedstac index-node --source https://west.example --from-snapshot /srv/snapshot/manifest.json",
    ),
)
def index_node(
    source: Sources = None,
    from_snapshot: Annotated[
        list[str] | None,
        typer.Option(
            "--from-snapshot", metavar="FILE|URL",
            help="Start an empty node from this snapshot in files, then follow; repeatable, one for each source.",
        ),
    ] = None,
    number: Processes = None,
    ready_file: ReadyFile = None,
) -> None:  # fmt: skip
    """Serve an index node: follow publishing nodes' feeds into a database of its own, and answer searches.

    With --from-snapshot an empty node loads the files first; what is interrupted goes on when it starts again. A node
    that has its place in the feed needs none. A URL is a node's /snapshot?format=geoparquet, or a manifest.json.
    """
    from fedstac.workers import processes

    processes.start("index-node")
    from fedstac.api import app as api
    from fedstac.workers import roles

    settings = _with_processes(environment.load(), number)
    settings = roles.with_sources(settings, source or ())
    nodes = [each for each in roles.addresses(settings) if each.topic_origin is None]
    if from_snapshot:
        snapshots.load(settings, from_snapshot, nodes)
    api.serve(settings, [roles.INDEX], on_ready=lambda url: _tell(ready_file, {"url": url}))


@app.command(
    name="replica-node",
    rich_help_panel="Node",
    epilog=examples(
        "fedstac replica-node --source https://west.example",
        "fedstac replica policy check policy.yaml",
        "fedstac replica status",
    ),
)
def replica_node(source: Sources = None, number: Processes = None, ready_file: ReadyFile = None) -> None:
    """Run a replica node: follow publishing nodes' feeds, copy the files that its policy wants, and announce them.

    It needs FEDSTAC_SOURCE or --source, FEDSTAC_REPLICA_POLICY, FEDSTAC_REPLICA_FOLDER, FEDSTAC_REPLICA_URL, and an
    identity: FEDSTAC_REPLICA_TOKEN, or FEDSTAC_REPLICA_ISSUER, _CLIENT_ID and _CLIENT_SECRET. It may share a
    database with an index node. What it does with each event is in docs/replication.md.
    """
    from fedstac.workers import processes

    processes.start("replica-node")
    from fedstac.api import app as api
    from fedstac.workers import roles

    settings = _with_processes(environment.load(), number)
    if source:
        settings = roles.with_sources(settings, source, by_identity=True)
    api.serve(settings, [roles.REPLICA], on_ready=lambda url: _tell(ready_file, {"url": url}))


@app.command(rich_help_panel="Node", epilog=examples("fedstac worker"))
def worker(ready_file: ReadyFile = None) -> None:
    """Run publish workers in a process of their own (set FEDSTAC_RUN_WORKERS=false for the api processes).

    They work off changes of many datasets and full-state loads, manage deletions, and drop what is old of the log, too.
    """
    from fedstac.workers import processes, roles

    processes.start("worker")
    settings = environment.load()
    parts = [*([roles.PUBLISHER] * settings.workers), roles.BULK, roles.LOADS, roles.RETENTION, roles.DELETIONS]
    processes.run(settings, parts, on_ready=lambda: _tell(ready_file, {"pid": str(os.getpid())}))


@app.command(rich_help_panel="Node", epilog=examples("fedstac sequencer"))
def sequencer(ready_file: ReadyFile = None) -> None:
    """Run the sequencer in a process of its own; a second one stands by."""
    from fedstac.workers import processes, roles

    processes.start("sequencer")
    settings = environment.load()
    settings = settings.model_copy(update={"dsn": settings.sequencer_dsn or settings.dsn})
    processes.run(settings, [roles.SEQUENCER], on_ready=lambda: _tell(ready_file, {"pid": str(os.getpid())}))


@app.command(rich_help_panel="Node", epilog=examples("fedstac relay"))
def relay(ready_file: ReadyFile = None) -> None:
    """Send the log to the sinks from a process of its own; of several, one at a time sends to each sink.

    It also reads the acknowledgements that come back through a broker.
    """
    from fedstac.workers import processes, roles

    processes.start("relay")
    settings = environment.load()
    processes.run(
        settings, [roles.RELAY, roles.STATUSES], on_ready=lambda: _tell(ready_file, {"pid": str(os.getpid())})
    )


@app.command(rich_help_panel="Node", epilog=examples("fedstac notifier"))
def notifier(ready_file: ReadyFile = None) -> None:
    """Send notifications from a process of its own; several share the work."""
    from fedstac.workers import notifier as telling
    from fedstac.workers import processes, roles

    processes.start("notifier")
    settings = environment.load()
    telling.check(settings)
    processes.run(settings, [roles.NOTIFIER], on_ready=lambda: _tell(ready_file, {"pid": str(os.getpid())}))


@app.command(name="identity-provider", rich_help_panel="Node", epilog=examples("fedstac identity-provider --port 8090"))
def identity_provider(
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port to listen on; 0: a free one.")] = 0,
    ready_file: ReadyFile = None,
) -> None:
    """Serve the identity provider of the demonstration: OpenID Connect for sample people, on loopback only.

    It asks for no passwords: whoever opens its page says who they are.
    """
    from fedstac.demo import identity_provider as provider
    from fedstac.workers import processes

    processes.start("identity-provider")
    replica_secrets = environment.ProcessVariables().replica_secrets
    provider.serve(port=port, replica_secrets=replica_secrets, on_ready=lambda url: _tell(ready_file, {"url": url}))


@app.command(
    name="file-server", rich_help_panel="Node", epilog=examples("fedstac file-server /data/replica --port 8091")
)
def file_server(
    folder: Annotated[Path, typer.Argument(exists=True, file_okay=False, help="The folder with the files.")],
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port to listen on; 0: a free one.")] = 0,
    ready_file: ReadyFile = None,
) -> None:
    """Serve the files of a folder for the demonstration: with ranges, without listings, on loopback only."""
    from fedstac.demo import file_server as server
    from fedstac.workers import processes

    processes.start("file-server")
    server.serve(folder, port=port, on_ready=lambda url: _tell(ready_file, {"url": url}))


@app.command(
    rich_help_panel="Node",
    epilog=examples(
        "fedstac demo --items 200 --port 0",
        "fedstac demo --fresh --data-dir /var/tmp/my-demo",
        "fedstac demo --broker nats",
        "fedstac demo --replica",
        "fedstac demo --check --broker kafka",
        "fedstac demo --check --deletion -o json",
        "fedstac demo --check --services -o json",
        codes=True,
    ),
)
def demo(
    items: Annotated[int | None, typer.Option(min=1, help="Datasets to publish: 1000, or 5000 with --check.")] = None,
    data_dir: Annotated[
        Path | None, typer.Option(help="Where PostgreSQL keeps its data.", show_default=_demo_folder())
    ] = None,
    fresh: Annotated[bool, typer.Option("--fresh", help="Throw away what an earlier demo left in the folder.")] = False,
    port: Annotated[int, typer.Option(min=0, max=65534, help="Port of west; east has the next. 0: free ones.")] = 8080,
    broker: Annotated[
        BrokerKind, typer.Option(help="A broker that the events go to, too; the index node south follows it.")
    ] = BrokerKind.NONE,
    replica: Annotated[
        bool, typer.Option("--replica", help="Some datasets have files, and a replica node copies them.")
    ] = False,
    deletion: Annotated[
        bool, typer.Option("--deletion", help="With --check: mark, delete and purge some datasets.")
    ] = False,
    services: Annotated[
        bool, typer.Option("--services", help="With --check: services follow a deletion and a full-state load.")
    ] = False,
    dsn: Annotated[str, typer.Option(help="Use this PostgreSQL: URL of a user who may create databases.")] = "",
    ready_file: ReadyFile = None,
    check: Annotated[bool, typer.Option("--check", help="Publish, compare everything, print figures, stop.")] = False,
    source: Annotated[
        Path | None, typer.Option("--input", exists=True, dir_okay=False, help="With --check: NDJSON(.gz) to publish.")
    ] = None,
    expect_rejected: Annotated[int, typer.Option(min=0, help="With --check: how many items must be refused.")] = 0,
    output: Annotated[str, typer.Option("--output", "-o", help="With --check: table or json.")] = "table",
) -> None:
    """Run a small federation on this machine: a publishing node, an index node, and a PostgreSQL of their own.

    With --broker, the events go to a stream or topic too, and a second index node follows it. With --replica, a file
    server has small files for some of the datasets, and a replica node copies, verifies and announces them.

    The data stays for the next time, when a line says that it is used again and who made it.
    """
    if fresh and (dsn or check):
        raise typer.BadParameter("only data of the demo's own PostgreSQL is thrown away; leave out --dsn and --check")
    if deletion and not check:
        raise typer.BadParameter("--deletion goes with --check; marks stay until somebody deletes what is ready")
    if services and not check:
        raise typer.BadParameter("--services goes with --check; docs/services.md says how to run them at any node")
    if replica and dsn and not check and data_dir is None:
        raise typer.BadParameter("with --dsn, --replica needs --data-dir: the folder where files and copies stay")
    from rich.console import Console

    from fedstac.db.migrations import MigrationRefused
    from fedstac.demo import check as checking
    from fedstac.demo import embedded
    from fedstac.demo import run as federation
    from fedstac.demo.brokers import BrokerFailed, BrokerMissing
    from fedstac.demo.federation import ProcessFailed
    from fedstac.workers import processes

    processes.heed_interrupts()
    console = Console(stderr=check and output == "json")
    try:
        if not check:
            federation.run(
                items=items or 1000, data_dir=data_dir, port=port, dsn=dsn, ready_file=ready_file, console=console,
                broker=broker, fresh=fresh, with_replica=replica,
            )  # fmt: skip
            return
        report = checking.check(
            source=source,
            items=items or 5000,
            expect_rejected=expect_rejected,
            data_dir=data_dir,
            dsn=dsn,
            console=console,
            broker=broker,
            with_replica=replica,
            with_services=services,
            with_deletion=deletion,
        )
    except MigrationRefused as error:
        complain(f"{error}; or throw the data of the earlier demo away: --fresh", AWAY)
        raise typer.Exit(AWAY) from None
    except (embedded.ClusterError, ProcessFailed, BrokerMissing, BrokerFailed) as error:
        typer.echo(str(error), err=True)
        raise typer.Exit(5) from None
    if output == "json":
        typer.echo(json.dumps(report.as_json()))
    else:
        checking.show(report, console)
    raise typer.Exit(0 if report.ok else 1)


@app.command(
    rich_help_panel="Node",
    epilog=examples(
        "FEDSTAC_OWNER_DSN=postgresql://… fedstac migrate", "fedstac migrate --print-setup | psql -d fedstac"
    ),
)
def migrate(
    print_setup: Annotated[bool, typer.Option("--print-setup", help="Print what a superuser runs once.")] = False,
) -> None:
    """Bring the database up to date: pgstac to its pinned version, then fedstac's own migrations."""
    from fedstac.db import migrations

    if print_setup:
        typer.echo(migrations.SETUP)
        return
    settings = environment.load()
    steps = migrations.migrate(settings.owner_dsn, environment.folder("migrations"), say=typer.echo)
    typer.echo(f"up to date; {len(steps)} steps were run" if steps else "up to date; nothing to do")
