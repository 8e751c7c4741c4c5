"""`fedstac parked …`: events that this node could not apply, in its own database."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import typer

from fedstac.cli import terminal
from fedstac.cli.database import with_actor, with_database
from fedstac.cli.options import Form, examples, form_of
from fedstac.cli.terminal import Output, say

if TYPE_CHECKING:
    from fedstac.db.connections import Connection
    from fedstac.db.parked import ParkedRow

T = TypeVar("T")
COLUMNS = ("id    ", "since           ", "origin    ", "subject", "why")
LONGEST_WHY = 100  # characters in a table

commands = typer.Typer(
    no_args_is_help=True, help="Look at the events that this node could not apply; have them tried again."
)
Ids = Annotated[list[int] | None, typer.Argument(help="Ids, as the list shows them.", show_default=False)]
All = Annotated[bool, typer.Option("--all", help="All of them.")]


@commands.command(
    "list", epilog=examples("fedstac parked list", "fedstac parked list -o ndjson | jq -r .detail | sort | uniq -c")
)
def list_parked(ctx: typer.Context, output: Form = None) -> None:
    """List the parked events: what they are about, and why they could not be applied."""
    from fedstac.db import parked

    _show(form_of(ctx, output), with_database(parked.every))


@commands.command(epilog=examples("fedstac parked show 12", "fedstac parked show 12 -o json | jq .event.data"))
def show(
    ctx: typer.Context, id: Annotated[int, typer.Argument(help="The id, as the list shows it.")], output: Form = None
) -> None:
    """Show one parked event with its whole text."""
    from fedstac.db import parked

    whole = with_database(lambda conn: parked.read(conn, id))
    terminal.show_with_event(form_of(ctx, output), parked.document_of(whole.row), whole.event)


@commands.command(epilog=examples("fedstac parked requeue 12 13", "fedstac parked requeue --all"))
def requeue(ctx: typer.Context, ids: Ids = None, every: All = False, output: Form = None) -> None:
    """Ask for another try of parked events by the process that follows, within ten seconds or so.

    Mend the reason first: update fedstac, import the vocabulary. An event that is stale is refused: its dataset is
    further already. What fails again stays parked.
    """
    from fedstac.db import parked

    _change(form_of(ctx, output), ids, every, parked.requeue, "will be tried again")


@commands.command(epilog=examples("fedstac parked discard 12", "fedstac parked discard --all"))
def discard(ctx: typer.Context, ids: Ids = None, every: All = False, output: Form = None) -> None:
    """Forget parked events. Their datasets stay as they are here, until a later event or fedstac verify --repair."""
    from fedstac.db import parked

    _change(form_of(ctx, output), ids, every, parked.discard, "discarded")


def _change(
    form: Output, ids: list[int] | None, every: bool, verb: Callable[..., Awaitable[Any]], result_words: str
) -> None:
    """Do something with the events of these ids, or with all."""
    from fedstac.db import parked

    if bool(ids) is every:
        raise typer.BadParameter("say which: ids from fedstac parked list, or --all")

    async def change(conn: Connection, actor: str) -> list[ParkedRow]:
        event_ids = ids or [row.id for row in await parked.every(conn)]
        rows: list[ParkedRow] = await verb(conn, event_ids, actor=actor) if event_ids else []
        return rows

    rows = with_actor(change)
    _show(form, rows)
    say(f"{len(rows)} {result_words}", "dim")


def _show(form: Output, rows: list[ParkedRow]) -> None:
    from fedstac.db import parked

    with terminal.Listing(form, COLUMNS) as listing:
        for row in rows:
            why = row.detail if len(row.detail) <= LONGEST_WHY else row.detail[:LONGEST_WHY] + "…"
            since = row.at.isoformat(timespec="minutes")[:16]
            listing.row(parked.document_of(row), (row.id, since, row.origin, row.subject, why))
