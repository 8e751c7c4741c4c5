"""`fedstac replica retry` and `fedstac replica purge`: what a person orders at a replica node."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fedstac.cli import terminal
from fedstac.cli.database import with_actor, with_database
from fedstac.cli.options import Form, examples, form_of
from fedstac.cli.replica_node.forms import size_in_words
from fedstac.cli.replica_node.status import one_of
from fedstac.cli.terminal import Output, number, say

if TYPE_CHECKING:
    from fedstac.db.connections import Connection
    from fedstac.db.replica.orders import OpenRemoval, OrderedDataset

commands = typer.Typer()
COLUMNS = ("before      ", "size      ", "files ", "dataset")
PURGE_COLUMNS = ("what         ", "size      ", "files ", "dataset")


@commands.command(
    epilog=examples("fedstac replica retry CMIP6.CMIP.NCAR.CESM2.….v20190401", "fedstac replica retry --parked")
)
def retry(
    ctx: typer.Context,
    ids: Annotated[list[str] | None, typer.Argument(metavar="DATASET", help="Ids of datasets.")] = None,
    every: Annotated[bool, typer.Option("--parked", help="All datasets that are parked.")] = False,
    collection: Annotated[str, typer.Option("--collection", "-c", help="Collection, if several have the id.")] = "",
    output: Form = None,
) -> None:
    """Try again what stands still, at once (files, announcements, removals); exit 1 if none of those named does.

    Mend the reason first: fedstac replica status DATASET names it. A source that was disqualified for a file is asked
    again. Datasets that wait are looked at now; a source that is closed, or a full disk, makes them wait again.
    """
    if bool(ids) is every:
        raise typer.BadParameter("say which: ids of datasets, or --parked", param_hint="DATASET")
    form = form_of(ctx, output)

    async def change(conn: Connection, actor: str) -> list[OrderedDataset]:
        from fedstac.db.replica import orders
        from fedstac.db.replica import status as reading

        if not every:
            numbers = [one_of(id, await reading.dataset(conn, id, collection)).n for id in ids or ()]
            return await orders.retry(conn, numbers, actor=actor)
        rows: list[OrderedDataset] = []
        after = 0
        while numbers := await orders.parked(conn, after=after):
            rows += await orders.retry(conn, numbers, actor=actor)
            after = numbers[-1]
        return rows

    rows = with_actor(change)
    with terminal.Listing(form, COLUMNS) as listing:
        for row in rows:
            listing.row(_value(row), (row.state, size_in_words(row.bytes), row.files, f"{row.collection}/{row.id}"))
    say(f"{number(len(rows), 'dataset')} tried again" if rows else "nothing stands still", "dim")
    if not rows and not every:
        raise typer.Exit(terminal.REJECTED)


@commands.command(epilog=examples("fedstac replica purge --dry-run", "fedstac replica purge --yes"))
def purge(
    ctx: typer.Context,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show what would go, and change nothing.")] = False,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Order it.")] = False,
    output: Form = None,
) -> None:
    """Delete the copies that the policy does not want any more: no rule fits, or one ignores them.

    Nothing of them goes by itself when a policy changes. Removals that events have ordered are shown, too: the node
    does them by itself. The origin is told, and the bytes go; fedstac replica status says how far that is.
    """
    if dry_run is yes:
        raise typer.BadParameter("say either --dry-run or --yes", param_hint="--dry-run")
    form = form_of(ctx, output)
    totals = {"datasets": 0, "files": 0, "bytes": 0}

    async def show(conn: Connection, actor: str) -> None:
        from fedstac.db.replica import orders

        after = 0
        while removals := await orders.open_removals(conn, after=after):
            for removal in removals:
                listing.row(_removal_value(removal), _cells("under way", removal))
            after = removals[-1].n
        after = 0
        while rows := await orders.unwanted(conn, after=after):
            ordered_rows = await orders.purge(conn, rows, actor=actor) if yes else rows
            for row in ordered_rows:
                what = "ordered" if yes else "would go"
                listing.row({"what": what, **_value(row)}, _cells(what, row))
                totals["datasets"] += 1
                totals["files"] += row.files
                totals["bytes"] += row.bytes
            after = rows[-1].n

    with terminal.Listing(form, PURGE_COLUMNS) as listing:
        if yes:
            with_actor(show)
        else:
            with_database(lambda conn: show(conn, ""))
    what = f"{number(totals['datasets'], 'dataset')}, {number(totals['files'], 'file')}, "
    what += size_in_words(totals["bytes"])
    say(f"{what}: {'ordered; a running node does it' if yes else 'nothing was changed'}",
        "dim" if form is not Output.TABLE else "")  # fmt: skip


def _cells(what: str, row: OrderedDataset | OpenRemoval) -> tuple[object, ...]:
    return what, size_in_words(row.bytes), row.files, f"{row.collection}/{row.id}"


def _value(row: OrderedDataset) -> dict[str, Any]:
    value = asdict(row)
    del value["n"]
    return value


def _removal_value(row: OpenRemoval) -> dict[str, Any]:
    value = asdict(row)
    del value["n"]
    return {"what": "under way", **value}
