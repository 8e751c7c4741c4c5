"""`fedstac replica orphans`: at an index node, what has no complete, verified copy anywhere, or too few."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fedstac.cli import terminal
from fedstac.cli.database import with_database
from fedstac.cli.options import Form, examples, form_of
from fedstac.cli.replica_node.forms import size_in_words
from fedstac.cli.terminal import Output, for_terminal, number, out, say

if TYPE_CHECKING:
    from fedstac.db.connections import Connection
    from fedstac.db.replica.orphans import ScarceDataset

commands = typer.Typer()
COLUMNS = ("copies", "orphan files", "of   ", "size      ", "dataset")


@commands.command(
    epilog=examples("fedstac replica orphans", "fedstac replica orphans --copies 2 --collection CMIP6",
                    "fedstac replica orphans --files -o ndjson | jq -r .checksum", codes=True)
)  # fmt: skip
def orphans(
    ctx: typer.Context,
    copies: Annotated[
        int, typer.Option("--copies", min=1, help="List datasets with fewer complete copies beside the original.")
    ] = 1,
    files: Annotated[bool, typer.Option("--files", help="List each file that no node has a verified copy of.")] = False,
    collection: Annotated[str, typer.Option("--collection", "-c", help="Only of this collection.")] = "",
    retracted: Annotated[bool, typer.Option("--retracted", help="Of retracted datasets, too.")] = False,
    output: Form = None,
) -> None:
    """List, at an index node, datasets with too few verified copies and files with none; exit 1 if there are any.

    A copy counts if its node announced all files with the original's size and checksum. The original does not count:
    nobody announced that it was verified.
    """
    form = form_of(ctx, output)
    columns = ("size      ", "checksum", "file") if files else COLUMNS
    totals = {"datasets": 0, "files": 0, "bytes": 0}

    async def show(conn: Connection) -> int:
        from fedstac.db.replica import orphans as reading

        looked_at = 0
        async for page in reading.pages(conn, copies, collection=collection, include_retracted=retracted):
            looked_at += page.looked_at
            bars.set("looked at", looked_at, None)
            for dataset in page.datasets:
                totals["datasets"] += 1
                totals["files"] += len(dataset.orphans)
                totals["bytes"] += sum(file.size or 0 for file in dataset.orphans)
                for value, cells in _file_rows(dataset) if files else [_row(dataset)]:
                    listing.row(value, cells)
        return looked_at

    with terminal.bars(["looked at"], form) as bars, terminal.Listing(form, columns) as listing:
        looked_at = with_database(show)
    if form is Output.TABLE:
        out()
        out(
            f"{number(totals['datasets'], 'dataset')} of {looked_at} with fewer than "
            f"{number(copies, 'copy') if copies == 1 else f'{copies} copies'}; "
            f"{number(totals['files'], 'file')} without any, {size_in_words(totals['bytes'])}",
            "yellow" if totals["datasets"] else "green",
        )
    elif not totals["datasets"]:
        say(f"{looked_at} datasets looked at, and none has fewer copies", "dim")
    if totals["datasets"]:
        raise typer.Exit(terminal.REJECTED)


def _row(dataset: ScarceDataset) -> tuple[dict[str, Any], tuple[object, ...]]:
    value = asdict(dataset)
    del value["orphans"]
    value["orphan_files"] = len(dataset.orphans)
    value["orphan_bytes"] = sum(file.size or 0 for file in dataset.orphans)
    cells = (dataset.copies, len(dataset.orphans), dataset.files, size_in_words(dataset.bytes),
             for_terminal(f"{dataset.collection}/{dataset.id}"))  # fmt: skip
    return value, cells


def _file_rows(dataset: ScarceDataset) -> list[tuple[dict[str, Any], tuple[object, ...]]]:
    place = {"collection": dataset.collection, "id": dataset.id}
    return [
        (place | asdict(file),
         ("" if file.size is None else size_in_words(file.size), file.checksum,
          for_terminal(f"{dataset.collection}/{dataset.id}/{file.asset}")))
        for file in dataset.orphans
    ]  # fmt: skip
