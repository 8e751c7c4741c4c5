"""Commands about dead letters: events that a sink refused for ever. They need the node's database."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated

import typer

from fedstac.cli import terminal
from fedstac.cli.database import with_actor, with_database
from fedstac.cli.options import Form, examples, form_of
from fedstac.cli.terminal import Output, say

if TYPE_CHECKING:
    from fedstac.db.connections import Connection
    from fedstac.db.dead_letters import DeadLetter

commands = typer.Typer(no_args_is_help=True, help="Look after events that a sink refused.")
Ids = Annotated[list[int], typer.Argument(metavar="ID…", help="Ids from the list.")]


@commands.command("list", epilog=examples("fedstac dead-letter list", "fedstac dead-letter list --sink esgf -o ndjson"))
def list_all(
    ctx: typer.Context,
    sink: Annotated[str, typer.Option(help="Of this sink only.")] = "",
    limit: Annotated[int, typer.Option(min=0, help="At most so many; 0: all.")] = 100,
    output: Form = None,
) -> None:
    """List the events that sinks refused, the oldest first, and why."""
    from fedstac.db import dead_letters

    most = min(limit, dead_letters.LARGEST_ID) or None
    letters = with_database(lambda conn: dead_letters.every(conn, sink or None, most))
    _show(form_of(ctx, output), letters)


@commands.command(epilog=examples("fedstac dead-letter show 17", "fedstac dead-letter show 17 -o json | jq .event"))
def show(
    ctx: typer.Context,
    id: Annotated[int, typer.Argument(help="The id from the list.")],
    output: Form = None,
) -> None:
    """Show one dead letter with its event."""
    from fedstac.db import dead_letters

    whole = with_database(lambda conn: dead_letters.read(conn, id))
    terminal.show_with_event(form_of(ctx, output), dead_letters.document_of(whole.letter), whole.event)


@commands.command(epilog=examples("fedstac dead-letter redrive 17 18", codes=True))
def redrive(ctx: typer.Context, ids: Ids, output: Form = None) -> None:
    """Send events to their sinks again, once what was wrong is mended; all of those named, or none.

    An event is refused after which its dataset changed again: the sink has, or gets, the later one.
    """
    from fedstac.db import dead_letters

    async def work(conn: Connection, actor: str) -> list[DeadLetter]:
        return await dead_letters.redrive(conn, ids, actor=actor)

    letters = with_actor(work)
    _show(form_of(ctx, output), letters)
    say("a relay sends them again; what the sink takes leaves the list")


@commands.command(epilog=examples("fedstac dead-letter discard 17"))
def discard(ctx: typer.Context, ids: Ids, output: Form = None) -> None:
    """Delete dead letters for good: their sinks never get these events. All of those named, or none."""
    from fedstac.db import dead_letters

    async def work(conn: Connection, actor: str) -> list[DeadLetter]:
        return await dead_letters.discard(conn, ids, actor=actor)

    _show(form_of(ctx, output), with_actor(work))


def _show(form: Output, letters: Sequence[DeadLetter]) -> None:
    from fedstac.db import dead_letters

    with terminal.Listing(form, ("id    ", "sink      ", "place   ", "dataset", "reason")) as listing:
        for each in letters:
            document = dead_letters.document_of(each)
            cells = (each.id, each.sink, document["place"], each.dataset or each.collection, each.reason)
            listing.row(document, cells)
