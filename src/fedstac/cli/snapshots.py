"""`fedstac snapshot`: this node's datasets in files, from which an empty index node starts."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from fedstac import settings as environment
from fedstac.cli import terminal
from fedstac.cli.options import Form, examples, form_of
from fedstac.cli.terminal import Output, out

if TYPE_CHECKING:
    from fedstac.geoparquet.manifest import Manifest
    from fedstac.messaging.sources.addresses import SourceAddress
    from fedstac.settings import Settings

TOLD_SECONDS = 5.0  # between lines of the log

commands = typer.Typer(no_args_is_help=True, help="Write this node's datasets into files, and check such files.")


@commands.command(epilog=examples("fedstac snapshot write /srv/fedstac/snapshot"))
def write(
    ctx: typer.Context,
    folder: Annotated[
        Path | None, typer.Argument(help="Where the files are [FEDSTAC_SNAPSHOT_FOLDER].", show_default=False)
    ] = None,
    output: Form = None,
) -> None:
    """Bring the snapshot in a folder up to now: parts in GeoParquet and manifest.json.

    An interrupted command goes on when it is repeated. A later one writes what changed since as one more part, until
    that is a fifth; then it writes all parts anew. The node may serve meanwhile.
    """
    import structlog

    from fedstac import bootstrap
    from fedstac.workers import processes, snapshots

    processes.start("snapshot")
    settings = environment.load()
    target = folder or (Path(settings.snapshot_folder) if settings.snapshot_folder else None)
    if target is None:
        raise typer.BadParameter("say which folder: DIR or FEDSTAC_SNAPSHOT_FOLDER", param_hint="FOLDER")
    form, count = form_of(ctx, output), 0
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.WARNING))

    async def write_all() -> Manifest:
        nonlocal count

        def on_rows(rows: int) -> None:
            nonlocal count
            count += rows
            bars.set("written", count, None)

        async with bootstrap.node(settings) as node:
            return await snapshots.write(node, target, on_rows=on_rows)

    with terminal.bars(["written"], form) as bars:
        manifest = asyncio.run(write_all())
    rows, size = sum(part.rows for part in manifest.parts if part.groups), sum(part.size for part in manifest.parts)
    if form is Output.TABLE:
        out(f"{terminal.number(count, 'dataset')} written; {target} has {rows} in {len(manifest.parts)} files, "
            f"{size} bytes, at the cursor {manifest.cursor}")  # fmt: skip
    else:
        terminal.dump({"origin": manifest.origin, "cursor": str(manifest.cursor), "written": count, "rows": rows,
                       "files": len(manifest.parts), "bytes": size})  # fmt: skip


@commands.command(epilog=examples("fedstac snapshot check /srv/fedstac/snapshot", codes=True))
def check(
    ctx: typer.Context,
    folder: Annotated[Path, typer.Argument(help="A folder with a manifest.json.")],
    output: Form = None,
) -> None:
    """Compare each file of a snapshot with the sha-256 in its manifest; exit with 1 at the first that differs."""
    from fedstac.geoparquet import manifest as manifests

    form = form_of(ctx, output)
    try:
        manifest = manifests.read((folder / manifests.NAME).read_bytes())
        with terminal.bars(["checked"], form) as bars:
            for count, part in enumerate(manifest.parts, 1):
                manifests.check(folder / part.name, part)
                bars.set("checked", count, len(manifest.parts))
    except manifests.SnapshotBroken as error:
        terminal.complain(str(error), terminal.REJECTED)
        raise typer.Exit(terminal.REJECTED) from None
    if form is Output.TABLE:
        out(f"{len(manifest.parts)} files of {manifest.origin} at {manifest.cursor} are whole")
    else:
        terminal.dump({"origin": manifest.origin, "cursor": str(manifest.cursor), "files": len(manifest.parts)})


def load(settings: Settings, texts: Sequence[str], sources: Sequence[SourceAddress]) -> None:
    """Load snapshots into the node of these settings before it serves. Lines on standard error say how far it is."""
    import structlog

    from fedstac import bootstrap
    from fedstac.workers import snapshot_files, snapshot_loading

    log, last_line_at = structlog.get_logger(), time.monotonic()

    def on_rows(rows: int, total: int) -> None:
        nonlocal last_line_at
        if time.monotonic() - last_line_at >= TOLD_SECONDS:
            last_line_at = time.monotonic()
            log.info("loading a snapshot", rows=rows, of=total)

    async def everything() -> None:
        async with bootstrap.node(settings) as node:
            for text in texts:
                async with snapshot_files.open_files(text, sources) as files:
                    await snapshot_loading.load(node, files, on_rows=on_rows)

    asyncio.run(everything())
