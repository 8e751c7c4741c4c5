"""`fedstac replica import`: adopts files that are on the disk of a replica node already."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from fedstac.cli import terminal
from fedstac.cli.database import with_database
from fedstac.cli.options import Form, examples, form_of
from fedstac.cli.replica_node import setting
from fedstac.cli.replica_node.forms import size_in_words
from fedstac.cli.replica_node.verifying import COLUMNS, list_findings
from fedstac.cli.terminal import number, say

if TYPE_CHECKING:
    from fedstac.db.connections import Connection
    from fedstac.db.replica.looks import DiskLook
    from fedstac.workers.replica_verifying import LookProgress

commands = typer.Typer()


@commands.command(
    "import",
    epilog=examples("fedstac replica import /srv/fedstac/files", "fedstac replica import /srv/fedstac/files/CMIP6",
                    "fedstac replica import /srv/fedstac/files -o ndjson | jq -r 'select(.fault == \"unknown\").path'"),
)  # fmt: skip
def import_folder(
    ctx: typer.Context,
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="A folder of this node, or one below it.")],
    afresh: Annotated[
        bool, typer.Option("--afresh", help="Begin anew, though an earlier run was interrupted.")
    ] = False,
    threads: Annotated[int | None, typer.Option(min=1, max=256, help="Files that are read at once.")] = None,
    output: Form = None,
) -> None:
    """Adopt files of a folder that have the checksum of a dataset that this node wants. Exit 1 if any is wrong.

    They are adopted where they are; no file is moved or changed. Those that are recorded as verified are not read
    again. Listed is what is not adopted: unknown files, which no wanted dataset has, and wrong ones, which a transfer
    replaces by a verified copy. What is interrupted goes on where it was. The node may run meanwhile.
    """
    from fedstac.replication.surveying import DiskAway
    from fedstac.workers import replica_importing

    form, node = form_of(ctx, output), setting.load()
    place = replica_importing.place_of(node.tiers, folder)

    async def work(conn: Connection) -> tuple[DiskLook, dict[str, int]]:
        from fedstac.db.replica import looks

        look = await looks.begin(
            conn, looks.IMPORT, by_checksum=True, folder=str(place.folder / place.prefix), afresh=afresh
        )
        if look.on_disk:
            say(f"goes on with the import of {look.started:%Y-%m-%d %H:%M}; --afresh begins a new one", "dim")
        count = look.on_disk

        def show_progress(progress: LookProgress) -> None:
            nonlocal count
            count += progress.files
            bars.set("files", count, None)

        importer = replica_importing.Importer(conn, node.tiers, on_progress=show_progress)
        if threads:
            importer.threads = threads
        look = await importer.run(look, place)
        await list_findings(conn, listing, form, look)
        return look, await looks.count_faults(conn, look.id)

    try:
        with terminal.bars(["files"], form) as bars, terminal.Listing(form, COLUMNS) as listing:
            look, faults = with_database(work)
    except DiskAway as error:
        terminal.complain(str(error), terminal.AWAY)
        raise typer.Exit(terminal.AWAY) from None
    unknown = faults.pop("unknown", 0)
    wrong = sum(faults.values())
    here = look.on_disk - look.adopted - unknown - wrong
    say(
        f"adopted {number(look.adopted, 'file')} ({size_in_words(look.bytes)} read), {here} were verified already, "
        f"{unknown} unknown, {wrong} wrong",
        "red" if wrong else "green",
    )
    if wrong:
        raise typer.Exit(terminal.REJECTED)
