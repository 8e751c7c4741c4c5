"""Changes of many datasets in one go: show what it comes to, ask, begin, follow. `fedstac bulk` looks at them."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Annotated, Any

import typer

from fedstac.cli import terminal
from fedstac.cli.bulk import ChangeOptions, ids_of
from fedstac.cli.options import Form, Token, Url, client_of, examples, form_of
from fedstac.cli.terminal import Output, for_terminal, number, out, say
from fedstac.client import Client

commands = typer.Typer(no_args_is_help=True, help="Changes of many datasets in one go: how far they are.")
FIRST_LOOK, LONGEST_LOOK = 0.2, 2.0  # seconds between looks
MANY = 100  # ids of a file; so many are changed one by one
SHOWN_NAMES = 5
SHOWN_TROUBLES = 20
FINAL = ("done", "partly", "rejected", "failed", "cancelled")

Filter = Annotated[
    str, typer.Option("--filter", metavar="CQL2", help="All datasets that a filter finds, after a look at them.")
]
Digest = Annotated[str, typer.Option("--digest", help="Of the look before, for scripts: with --yes it is not asked.")]
BulkId = Annotated[str, typer.Argument(metavar="BULK", help="The id of a change of many datasets.")]
Json = dict[str, Any]


@dataclass(frozen=True, slots=True)
class ManyOptions:
    """The options of a change of many datasets, and those of every change."""

    change: ChangeOptions
    filter: str
    digest: str

    @property
    def is_wanted(self) -> bool:
        """Whether the datasets are to be changed in one go: by a filter, a digest, or a long file of ids."""
        if self.filter or self.digest:
            return True
        is_file = self.change.ids_from not in ("", "-")
        return is_file and sum(1 for _ in islice(ids_of(self.change), MANY + 1)) > MANY


def run(action: str, members: Mapping[str, Any], options: ManyOptions) -> None:
    """Show what a change comes to, ask, begin it and follow it; exit 1 unless all of it is done.

    `members`: what the wish says beside the datasets.
    """
    change = options.change
    form = form_of(change.ctx, change.output)
    wish = _wish(action, members, options)
    if change.yes and not (options.digest or change.dry_run):
        raise typer.BadParameter("--yes needs the digest of what you saw: --dry-run shows it", param_hint="--digest")
    with client_of(change.ctx, change.url, change.token) as client:
        digest = options.digest
        if change.dry_run or not change.yes:
            preview = client.preview_bulk(wish)
            _show_preview(preview, form, dry_run=change.dry_run)
            if change.dry_run:
                return
            _ask(action, preview, digest)
            digest = preview["digest"]
        job = client.start_bulk(wish, digest)
        follow_to_end(client, job, form)


def _wish(action: str, members: Mapping[str, Any], options: ManyOptions) -> Json:
    change = options.change
    wish: Json = {"action": action, **members}
    if options.filter:
        if change.ids or change.ids_from:
            raise typer.BadParameter("say a filter or ids, not both", param_hint="--filter")
        wish |= {"filter": options.filter, "filter-lang": "cql2-text"}
    else:
        wish["ids"] = list(ids_of(change))
    if change.collection:
        wish["collections"] = [change.collection]
    return wish


def _show_preview(preview: Json, form: Output, *, dry_run: bool) -> None:
    """Show what a change would do: as a result of a dry run, else on standard error."""
    if dry_run and form is not Output.TABLE:
        terminal.dump(preview)
        return
    show = out if dry_run else say
    show(f"{preview['action']} {number(preview['total'], 'dataset')}", "bold")
    for label in ("collections", "institutions", "publishers", "states"):
        show(for_terminal(f"  {label:<20}{_names(preview[label])}"))
    for label, name in (
        ("marked already", "marked"), ("nothing to change", "unchanged"), ("will be refused", "refused"),
        ("with copies", "with_replicas"), ("a newer version", "with_newer_version"),
        ("with an identifier", "with_identifier"), ("ids not here", "missing"),
    ):  # fmt: skip
        if preview.get(name):
            show(f"  {label:<20}{preview[name]}")
    for id in preview["ids"][:SHOWN_NAMES]:
        show(for_terminal(f"    {id}"), "dim")
    if preview["total"] > SHOWN_NAMES:
        show(f"    and {preview['total'] - SHOWN_NAMES} more", "dim")
    terminal.show_warnings([finding["message"] for finding in preview["warnings"]])
    if dry_run:
        show(f"  {'digest':<20}{preview['digest']}")


def _names(counts: Mapping[str, int]) -> str:
    texts = [f"{name or 'none'} ({count})" for name, count in list(counts.items())[:SHOWN_NAMES]]
    more = [f"{len(counts) - SHOWN_NAMES} more"] if len(counts) > SHOWN_NAMES else []
    return ", ".join([*texts, *more]) or "none"


def _ask(action: str, preview: Json, digest: str) -> None:
    """Ask for the number of datasets, on a terminal. BadParameter where there is none, and nothing is changed."""
    if digest and digest.partition(".")[0] != preview["digest"].partition(".")[0]:
        say("these are no longer the datasets of that digest; look at them, and say the new one", "red")
        raise typer.Exit(terminal.REJECTED)
    if not preview["total"]:
        say("there is nothing to change")
        raise typer.Exit(terminal.REJECTED)
    if not (sys.stdin.isatty() and sys.stderr.isatty()):
        raise typer.BadParameter(
            f"nobody can be asked here; say --yes --digest {preview['digest']}", param_hint="--yes"
        )
    answer = typer.prompt(f"type the number of datasets to {action} them", err=True, default="", show_default=False)
    if answer.strip() != str(preview["total"]):
        say("nothing is changed")
        raise typer.Exit(terminal.REJECTED)


def follow_to_end(client: Client, job: Json, form: Output) -> None:
    """Show how far a change is until it ends, then what became of it."""
    pause, last = FIRST_LOOK, -1
    try:
        with terminal.bars([job["action"]], form) as bars:
            while job["status"] not in FINAL:
                count = job["total"] - job["counts"]["waiting"]
                bars.set(job["action"], count, job["total"])
                pause = FIRST_LOOK if count != last else min(pause * 2, LONGEST_LOOK)
                last = count
                time.sleep(pause)
                job = client.bulk(job["id"])
    except KeyboardInterrupt:
        id = job["id"]
        say(f"it goes on; to follow it: fedstac bulk show {id} --follow; to end it: fedstac bulk cancel {id}")
        raise
    _show(client, job, form)
    if job["status"] != "done":
        raise typer.Exit(terminal.REJECTED)


def _show(client: Client, job: Json, form: Output) -> None:
    if form is not Output.TABLE:
        terminal.dump(job)
        return
    counts = ", ".join(f"{count} {status}" for status, count in job["counts"].items() if count)
    out(for_terminal(f"{job['action']} {number(job['total'], 'dataset')}: {job['status']} ({counts})"), "bold")
    if job["status"] not in FINAL:
        end = f", {job['seconds_left']:.0f} s left" if job["seconds_left"] is not None else ""
        out(f"  {job['rate'] or 0:.0f} datasets a second{end}")
    for status in ("rejected", "failed"):
        if job["counts"][status]:
            _show_troubles(client.bulk_datasets(job["id"], status=status), job["counts"][status])
    if job["counts"]["rejected"] + job["counts"]["failed"] > SHOWN_TROUBLES:
        say(f"all of them: fedstac bulk datasets {job['id']} --status rejected", "dim")


def _show_troubles(rows: Iterable[Json], count: int) -> None:
    for row in list(rows)[: min(SHOWN_TROUBLES, count)]:
        terminal.show_trouble("", row["id"], row["status"], row["type"], row["detail"], ())


# --- fedstac bulk ---


@commands.command("list", epilog=examples("fedstac bulk list", "fedstac bulk list -o json", codes=True))
def list_bulks(
    ctx: typer.Context,
    last: Annotated[int, typer.Option("-n", "--last", min=1, max=100, help="How many.")] = 20,
    output: Form = None, url: Url = "", token: Token = "",
) -> None:  # fmt: skip
    """List your changes of many datasets, the newest first; those of everybody, for an administrator."""
    form = form_of(ctx, output)
    columns = ("bulk" + " " * 32, "action    ", "status   ", "datasets", "done", "since")
    with client_of(ctx, url, token) as client, terminal.Listing(form, columns) as listing:
        for job in client.bulks(limit=last):
            since = terminal.moment(job["created"])
            cells = (job["id"], job["action"], job["status"], job["total"], job["counts"]["done"], since)
            listing.row(job, cells)


@commands.command(epilog=examples("fedstac bulk show 0198…", "fedstac bulk show 0198… --follow", codes=True))
def show(
    ctx: typer.Context,
    bulk: BulkId,
    follow: Annotated[bool, typer.Option("--follow", help="Until it ends; exit 1 unless all is done.")] = False,
    output: Form = None, url: Url = "", token: Token = "",
) -> None:  # fmt: skip
    """Show a change of many datasets: how far it is, how fast, and what was refused."""
    form = form_of(ctx, output)
    with client_of(ctx, url, token) as client:
        job = client.bulk(bulk)
        if follow:
            follow_to_end(client, job, form)
        else:
            _show(client, job, form)


@commands.command(epilog=examples("fedstac bulk datasets 0198… --status rejected -o ndjson", codes=True))
def datasets(
    ctx: typer.Context,
    bulk: BulkId,
    status: Annotated[str, typer.Option(help="waiting, done, rejected, failed or cancelled.")] = "",
    output: Form = None, url: Url = "", token: Token = "",
) -> None:  # fmt: skip
    """List what became of each dataset of a change, in the order of the work."""
    form = form_of(ctx, output)
    with (
        client_of(ctx, url, token) as client,
        terminal.Listing(form, ("status   ", "outcome    ", "dataset", "why")) as listing,
    ):
        page: Sequence[Json] = client.bulk_datasets(bulk, status=status or None)
        while page:
            for row in page:
                listing.row(row, (row["status"], row["outcome"] or "", row["id"], row.get("detail", "")))
            page = client.bulk_datasets(bulk, status=status or None, after=page[-1]["n"])


@commands.command(epilog=examples("fedstac bulk cancel 0198…", codes=True))
def cancel(ctx: typer.Context, bulk: BulkId, output: Form = None, url: Url = "", token: Token = "") -> None:
    """End a change where it stands. What is done stays done."""
    form = form_of(ctx, output)
    with client_of(ctx, url, token) as client:
        _show(client, client.cancel_bulk(bulk), form)
