"""Commands about sinks: the brokers and webhooks that get this node's log. They need the node's database."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import typer

from fedstac import settings as environment
from fedstac.cli import terminal
from fedstac.cli.database import with_actor, with_database
from fedstac.cli.options import Form, examples, form_of
from fedstac.cli.terminal import Output, for_terminal, out, say
from fedstac.domain.events import EventFormat

if TYPE_CHECKING:
    from fedstac.db.connections import Connection
    from fedstac.db.sinks import Sink
    from fedstac.workers.auditing import SinkAudit

T = TypeVar("T")
SHOWN_STRETCHES = 20
commands = typer.Typer(no_args_is_help=True, help="Send this node's log to brokers and webhooks.")
Name = Annotated[str, typer.Argument(help="The sink's name.")]


@commands.command(
    epilog=examples(
        "fedstac sink add archive nats://broker.example.org:4222/WEST",
        "fedstac sink add esgf 'kafka://broker.example.org:9092/esgf?partitions=6' --format esgf",
        "fedstac sink add portal https://portal.example.org/hooks/fedstac --optional --from now",
        "fedstac sink add sidecar dapr+http://127.0.0.1:3500/pubsub/fedstac",
    )
)
def add(
    ctx: typer.Context,
    name: Name,
    address: Annotated[
        str,
        typer.Argument(
            help="nats://host:port/STREAM, kafka://host:port/topic, https://… or dapr+http://host:port/pubsub/topic"
        ),
    ],
    form: Annotated[
        str, typer.Option("--format", help=f"How events are written: {', '.join(EventFormat)}.")
    ] = "cloudevents",
    key: Annotated[
        str, typer.Option(help="Key of a message, with {id}, {collection}, {lineage}, {event_id}; else the format's.")
    ] = "",
    required: Annotated[
        bool, typer.Option("--required/--optional", help="Keep in the log what it has not got.")
    ] = True,
    start: Annotated[
        str, typer.Option("--from", help="start: all that the log has; now; or a position: what comes after it.")
    ] = "start",
    output: Form = None,
) -> None:
    """Add a sink. A relay sends the log to it from now on: `fedstac serve` does, or `fedstac relay`.

    No password belongs into an address: name a file with credentials, ?config=FILE. A repeat changes nothing.
    """
    from fedstac.workers import sinking

    description = sinking.SinkDescription(
        name=name, address=address, format=form, key_template=key, required=required, private=True, start=start
    )
    node = environment.load().node
    sink = with_actor(lambda conn, actor: sinking.add(conn, description, node=node, actor=actor))
    _show(form_of(ctx, output), sink)


@commands.command("list", epilog=examples("fedstac sink list", "fedstac sink list -o ndjson | jq .pos"))
def list_all(ctx: typer.Context, output: Form = None) -> None:
    """List the sinks: how far each has come, and what ails it."""
    from fedstac.db import sinks
    from fedstac.workers import sinking

    every = with_database(lambda conn: sinks.every(conn))
    columns = ("name        ", "through   ", "sent    ", "stand   ", "address")
    with terminal.Listing(form_of(ctx, output), columns) as listing:
        for sink in every:
            cells = (sink.name, sink.cursor, sink.sent, sinking.stand_of(sink), sink.address)
            listing.row(sinking.document_of(sink), cells)


@commands.command(epilog=examples("fedstac sink show archive", "fedstac sink show portal -o json"))
def show(
    ctx: typer.Context,
    name: Name,
    secret: Annotated[bool, typer.Option("--secret", help="Show the secret that signs a webhook's messages.")] = False,
    output: Form = None,
) -> None:
    """Show one sink."""
    from fedstac.db import sinks

    _show(form_of(ctx, output), with_database(lambda conn: sinks.read(conn, name)), secret=secret)


@commands.command(epilog=examples("fedstac sink pause archive --reason 'the broker moves'"))
def pause(
    ctx: typer.Context,
    name: Name,
    reason: Annotated[str, typer.Option(help="Why, for whoever looks.")] = "an operator paused it",
    output: Form = None,
) -> None:
    """Send nothing to a sink until it is resumed. What it does not get meanwhile is kept if it is required."""
    from fedstac.db import sinks

    if not reason.strip():
        raise typer.BadParameter("say why, for whoever looks", param_hint="--reason")
    _show(form_of(ctx, output), with_actor(lambda conn, actor: sinks.pause(conn, name, reason, actor=actor)))


@commands.command(epilog=examples("fedstac sink resume archive"))
def resume(ctx: typer.Context, name: Name, output: Form = None) -> None:
    """Send to a paused sink again."""
    from fedstac.db import sinks

    _show(form_of(ctx, output), with_actor(lambda conn, actor: sinks.resume(conn, name, actor=actor)))


@commands.command(epilog=examples("fedstac sink seek archive --to now", "fedstac sink seek archive --to 4711"))
def seek(
    ctx: typer.Context,
    name: Name,
    to: Annotated[str, typer.Option("--to", help="A position: what comes after it is sent. Or: start, now.")],
    output: Form = None,
) -> None:
    """Let a sink go on after another position, also one that is paused or has lapsed.

    Back: it gets what comes after the position once more, marked as sent again. On: it does not get what lies between.
    """
    from fedstac.workers import sinking

    _show(form_of(ctx, output), with_actor(lambda conn, actor: sinking.seek(conn, name, to, actor=actor)))


@commands.command(epilog=examples("fedstac sink remove portal"))
def remove(name: Name) -> None:
    """Remove a sink with its dead letters. What the broker has stays there."""
    from fedstac.db import sinks

    with_actor(lambda conn, actor: sinks.remove(conn, name, actor=actor))
    out("removed")


@commands.command(
    epilog=examples("fedstac sink audit archive", "fedstac sink audit archive --full --list -o json", codes=True)
)
def audit(
    ctx: typer.Context,
    name: Name,
    full: Annotated[
        bool, typer.Option("--full", help="Read the whole log, also where the broker's counters prove it whole.")
    ] = False,
    only_list: Annotated[bool, typer.Option("--list", help="List what is missing, and send nothing.")] = False,
    output: Form = None,
) -> None:
    """Prove that a broker has every event, or list what is missing and have it sent again.

    It reads beside a relay and disturbs none. Exit code 1 where something is missing.
    """
    node = environment.load().node
    with terminal.bars(["read"]) as bars:

        async def work(conn: Connection, actor: str) -> SinkAudit:
            from fedstac.workers import sinking

            return await sinking.audit(
                conn, name, node=node, full=full, refills=not only_list, actor=actor,
                on_progress=lambda messages: bars.set("read", messages, None),
            )  # fmt: skip

        result = with_actor(work)
    _show_audit(form_of(ctx, output), name, result, refills=not only_list)
    if result.missing:
        raise typer.Exit(terminal.REJECTED)


def _show_audit(form: Output, name: str, result: SinkAudit, *, refills: bool) -> None:
    if form is not Output.TABLE:
        terminal.dump({"sink": name, **result.as_json()})
        return
    if not result.missing:
        proof = "its own counters prove it" if result.messages is None else f"{result.messages} messages were read"
        out(f"{for_terminal(name)} has every event through {result.through}; {proof}")
    for kind, stretches in (("missing", result.holes), ("lost", result.lost)):
        for each in stretches[:SHOWN_STRETCHES]:
            out(f"{kind:<8}{each.after + 1}" + (f" to {each.through}" if each.through > each.after + 1 else ""))
        if len(stretches) > SHOWN_STRETCHES:
            out(f"{kind:<8}and {len(stretches) - SHOWN_STRETCHES} stretches more; -o json has all")
    if result.holes:
        count = sum(each.through - each.after for each in result.holes)
        say(f"{count} events are missing; " + ("a relay sends them again" if refills else "nothing was sent"), "bold")
    if result.lost:
        say("of what is lost the log has nothing any more; consumers of this sink take a snapshot", "bold")
    if result.foreign:
        say(f"{result.foreign} messages are of events that this log has lost, or never had")


def _show(form: Output, sink: Sink, *, secret: bool = False) -> None:
    from fedstac.domain import destinations
    from fedstac.workers import sinking

    document: dict[str, Any] = sinking.document_of(sink)
    if secret:
        document["secret"] = destinations.shown_secret(sink.secret)
    if form is not Output.TABLE:
        terminal.dump(document)
        return
    out(for_terminal(sink.name), "bold")
    for label, value in document.items():
        if label != "name" and value not in (None, "", 0):
            out(f"  {label:<15}{for_terminal(str(value))}")
