"""`fedstac replica status`: how a replica node stands, or one of its datasets, file by file."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fedstac.cli import terminal
from fedstac.cli.database import with_database
from fedstac.cli.options import Form, examples, form_of
from fedstac.cli.replica_node.forms import rate_in_words, size_in_words, time_in_words
from fedstac.cli.status import span
from fedstac.cli.terminal import Output, for_terminal, number, out, say
from fedstac.domain.errors import NotFound
from fedstac.domain.replication.states import DatasetState, FileState

if TYPE_CHECKING:
    from fedstac.db.connections import Connection
    from fedstac.db.replica.status import FileCounts, FileRow, NodeStatus, ReplicaDataset

commands = typer.Typer()
STATE_COLUMNS = ("state       ", "datasets", "files   ", "here      ", "of        ")
DATASET_COLUMNS = ("state       ", "size      ", "files ", "since           ", "dataset")
FILE_COLUMNS = ("state       ", "here      ", "of        ", "tries", "next try        ", "source          ", "file")
LISTED_FILES = 50


@commands.command(
    epilog=examples(
        "fedstac replica status",
        "fedstac replica status --state waiting --state parked",
        "fedstac replica status CMIP6.CMIP.NCAR.CESM2.….v20190401",
        "fedstac replica status CMIP6.… --file-state failed --all -o ndjson | jq -r .reason",
    )
)
def status(
    ctx: typer.Context,
    id: Annotated[str, typer.Argument(metavar="[DATASET]", help="A dataset's id; without one, the whole node.")] = "",
    collection: Annotated[str, typer.Option("--collection", "-c", help="Collection, if several have the id.")] = "",
    state: Annotated[
        list[DatasetState] | None, typer.Option("--state", help="List the datasets of this state; repeatable.")
    ] = None,
    file_state: Annotated[
        list[FileState] | None, typer.Option("--file-state", help="Only files of this state; repeatable.")
    ] = None,
    limit: Annotated[int, typer.Option(min=1, help="List so many files or datasets.")] = LISTED_FILES,
    every: Annotated[bool, typer.Option("--all", help="List all of them.")] = False,
    output: Form = None,
) -> None:  # fmt: skip
    """Show how this replica node stands: datasets by state, bytes that are here, the pace, the time left.

    Of a dataset, each file with its state, reason, source, tries and next try: those that failed first. The numbers
    come over a connection of their own; they delay no transfer.
    """
    form = form_of(ctx, output)
    if id and state:
        raise typer.BadParameter("--state lists datasets; for the files of one use --file-state", param_hint="--state")
    if not id and file_state:
        raise typer.BadParameter("--file-state needs a dataset: fedstac replica status DATASET --file-state …")

    async def show(conn: Connection) -> None:
        from fedstac.db.replica import status as reading

        if id:
            dataset = one_of(id, await reading.dataset(conn, id, collection))
            await _show_dataset(conn, form, dataset, file_state or list(FileState), None if every else limit)
        elif state:
            await _list_datasets(conn, form, state, None if every else limit)
        else:
            _show_node(form, await reading.of_node(conn))

    with_database(show)


def one_of(id: str, rows: Sequence[ReplicaDataset]) -> ReplicaDataset:
    """Return the only dataset of an id. NotFound without one, wrong usage where several collections have it."""
    if not rows:
        raise NotFound(
            f"the node's feeds have not named a dataset {id}; look at the id, or wait until the feed is read"
            " (fedstac replica sync)"
        )
    if len(rows) > 1:
        names = ", ".join(row.collection for row in rows)
        raise typer.BadParameter(f"{id} is in several collections, {names}: say --collection", param_hint="DATASET")
    return rows[0]


# --- the node ---


def _show_node(form: Output, node: NodeStatus) -> None:
    seconds_left = node.left_seconds
    value = {
        "states": {
            each.state: {"datasets": each.datasets, "files": each.files, "bytes": each.bytes,
                         "done_bytes": each.done_bytes}
            for each in node.states
        },
        "reasons": [asdict(each) for each in node.reasons],
        "bytes_a_second": round(node.bytes_a_second), "left_bytes": node.left_bytes,
        "left_seconds": None if seconds_left is None else round(seconds_left), "removals": node.removals,
        "announcements": node.announcements, "last_progress": node.last_progress,
    }  # fmt: skip
    if form is not Output.TABLE:
        terminal.dump(value)
        return
    if not node.states:
        say("no feed has named a dataset yet; is `fedstac replica-node` running?", "dim")
        return
    with terminal.Listing(form, STATE_COLUMNS) as listing:
        for each in node.states:
            here = size_in_words(each.done_bytes)
            listing.row({}, (each.state, each.datasets, each.files, here, size_in_words(each.bytes)))
    out()
    for reason in node.reasons:
        until = f", until {time_in_words(reason.until)}" if reason.until else ""
        what = number(reason.datasets, "dataset")
        out(for_terminal(f"{reason.state}: {what}: {reason.reason}{until}"), "red" if reason.state == "parked" else "")
    if node.left_bytes:
        pace = rate_in_words(node.bytes_a_second)
        out(f"to come: {size_in_words(node.left_bytes)} at {pace}, {span(seconds_left)}")
    for count, what in ((node.removals, "removal"), (node.announcements, "announcement")):
        if count:
            out(f"{number(count, what)} under way")
    if node.last_progress:
        ago = (datetime.now(UTC) - node.last_progress).total_seconds()
        out(f"the last file was verified {span(max(ago, 0))} ago", "dim")


# --- many datasets ---


async def _list_datasets(conn: Connection, form: Output, states: Sequence[DatasetState], limit: int | None) -> None:
    from fedstac.db.replica import status as reading

    after, room = 0, limit
    with terminal.Listing(form, DATASET_COLUMNS) as listing:
        while room is None or room > 0:
            page = reading.MOST_LISTED if room is None else min(room, reading.MOST_LISTED)
            rows = await reading.datasets(conn, [str(each) for each in states], after=after, limit=page)
            for row in rows:
                listing.row(dataset_value(row), (
                    row.state, size_in_words(row.size), row.files, time_in_words(row.since),
                    f"{row.collection}/{row.id}",
                ))  # fmt: skip
                if form is Output.TABLE and row.reason:
                    out(
                        for_terminal(f"    {row.reason}" + (f", until {time_in_words(row.until)}" if row.until else ""))
                    )
            if len(rows) < page:
                break
            after, room = rows[-1].n, None if room is None else room - len(rows)
    if limit is not None and listing.count == limit:
        say(f"the first {limit}; --all lists all", "dim")


def dataset_value(row: ReplicaDataset) -> dict[str, Any]:
    """Return a dataset as a row for programs."""
    value = asdict(row)
    del value["n"]
    return value


# --- one dataset ---


async def _show_dataset(
    conn: Connection, form: Output, dataset: ReplicaDataset, states: Sequence[FileState], limit: int | None
) -> None:
    from fedstac.db.replica import status as reading

    counts = await reading.count_files(conn, dataset.n)
    names = [str(each) for each in states]
    if form is Output.TABLE:
        _show_head(dataset, counts)
    head = dataset_value(dataset) | {
        "file_states": {each.state: {"files": each.files, "bytes": each.bytes, "done_bytes": each.done_bytes}
                        for each in counts}
    }  # fmt: skip
    opening = _opening_of(head)
    with terminal.Listing(form, FILE_COLUMNS, opening=opening, closing="]}") as listing:
        if limit is None:
            async for file in reading.every_file(conn, dataset.n, names):
                _show_file(listing, form, file)
        else:
            for file in await reading.first_files(conn, dataset.n, names, limit):
                _show_file(listing, form, file)
    total = sum(each.files for each in counts if each.state in names)
    if listing.count < total:
        say(f"{listing.count} of {total} files; --all lists all", "dim")


def _opening_of(head: dict[str, Any]) -> str:
    """Return the JSON of a dataset up to the bracket behind which its files follow."""
    import orjson

    return orjson.dumps(head).decode()[:-1] + ',"files_listed":['


def _show_head(dataset: ReplicaDataset, counts: Sequence[FileCounts]) -> None:
    out(for_terminal(f"{dataset.collection}/{dataset.id}"), "bold")
    until = f", until {time_in_words(dataset.until)}" if dataset.until else ""
    reason = f": {dataset.reason}" if dataset.reason else ""
    entry = "; announced" if dataset.is_announced and dataset.state != "announced" else ""
    out(for_terminal(f"  {dataset.state} since {time_in_words(dataset.since)}{reason}{until}{entry}"),
        "red" if dataset.state == "parked" else "")  # fmt: skip
    out(
        for_terminal(
            f"  from {dataset.origin}, {dataset.action}" + (f" by rule {dataset.rule}" if dataset.rule else "")
        )
    )
    for each in counts:
        files = number(each.files, "file")
        out(f"  {each.state}: {files}, {size_in_words(each.done_bytes)} of {size_in_words(each.bytes)}")
    out()


def _show_file(listing: terminal.Listing, form: Output, file: FileRow) -> None:
    listing.row(asdict(file), (
        file.state, size_in_words(file.done_bytes), "" if file.size is None else size_in_words(file.size),
        file.attempts, time_in_words(file.next_try), file.source or "", file.path,
    ))  # fmt: skip
    if form is Output.TABLE and file.reason and file.state != FileState.VERIFIED:
        out(for_terminal(f"    {file.reason}"), "red" if file.state == FileState.FAILED else "")
