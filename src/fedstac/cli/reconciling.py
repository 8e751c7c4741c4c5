"""`fedstac reconcile`: load the full state of a collection; what the source does not have is cleared."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, Final

import typer

from fedstac import settings as environment
from fedstac.cli import terminal
from fedstac.cli.bulk_changes import follow_to_end
from fedstac.cli.options import Form, Token, Url, client_of, examples, form_of, say_retry
from fedstac.cli.terminal import Output, for_terminal, number, out, say
from fedstac.client import Client, collections_elsewhere
from fedstac.client import documents as reading
from fedstac.client.documents import DocumentTrouble, ReadyDocument
from fedstac.client.loads import SourceBroken, StatePart, load_parts

commands = typer.Typer()
load_commands = typer.Typer(no_args_is_help=True, help="Full-state loads: those that wait, are applied, or have ended.")
LoadId = Annotated[str, typer.Argument(metavar="LOAD", help="The id of a full-state load.")]
Json = dict[str, Any]
SHOWN_IDS: Final = 3
LABELS: Final[Mapping[str, str]] = {
    "new": "new", "changed": "changed", "unchanged": "as they are", "removed": "not in the load: cleared",
    "held": "left alone", "invalid": "not valid: left as they are",
}  # fmt: skip


@commands.command(
    rich_help_panel="Client",
    epilog=examples(
        "fedstac reconcile items/ -c CMIP6 --dry-run", "fedstac reconcile items.ndjson.gz -c CMIP6",
        "fedstac reconcile --from-collection https://stac.example.org/collections/CMIP6 -c CMIP6 --yes",
        "fedstac reconcile CMIP6.parquet -c CMIP6 --mode rebuild --confirm 4700",
        "fedstac reconcile items/ --load 0198…   [dim]# goes on after an interruption[/dim]",
    ),
)  # fmt: skip
def reconcile(
    ctx: typer.Context,
    source: Annotated[
        str, typer.Argument(metavar="SOURCE", help="A folder or file of items, NDJSON, GeoParquet, or - for stdin.",
                            show_default=False)
    ] = "",
    collection: Annotated[str, typer.Option("--collection", "-c", help="The collection that is loaded.")] = "",
    from_collection: Annotated[
        str, typer.Option("--from-collection", metavar="URL", help="Read the items of a collection at a STAC API.")
    ] = "",
    mode: Annotated[
        str, typer.Option(help="apply: change what differs; rebuild: clear every dataset and publish it again.")
    ] = "apply",
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show what would change; change nothing.")] = False,
    confirm: Annotated[
        int, typer.Option(help="How many datasets go, where many do: the dry run says it.", show_default=False)
    ] = -1,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask before the change.")] = False,
    override: Annotated[str, typer.Option(help="Why files may change under the same version.")] = "",
    load: Annotated[str, typer.Option("--load", metavar="LOAD", help="Go on with a load that was begun before.")] = "",
    output: Form = None, url: Url = "", token: Token = "",
) -> None:  # fmt: skip
    """State everything that shall exist in a collection, and have the server make it so.

    What changes is shown first. A dataset that the source does not have is cleared: it is gone, and may be published
    again. Nothing is cleared unless the whole source could be read.
    """
    form = form_of(ctx, output)
    if source and from_collection:
        raise typer.BadParameter("say a file or --from-collection, not both", param_hint="SOURCE")
    if not (source or from_collection or load):
        raise typer.BadParameter("say what shall exist: SOURCE, --from-collection, or --load", param_hint="SOURCE")
    if mode not in ("apply", "rebuild"):
        raise typer.BadParameter(f"{mode!r} is not one of apply, rebuild", param_hint="--mode")
    with client_of(ctx, url, token) as client:
        present = client.load(load) if load else None
        if not collection and present is not None:
            collection = present["collection"]
        if not collection:
            raise typer.BadParameter("say which collection is loaded", param_hint="--collection")
        if source or from_collection:
            documents = _documents(source, from_collection, collection)
            present = _send(client, documents, collection, present, mode=mode, override=override, form=form)
        assert present is not None
        if not (source or from_collection) and present["status"] == "collecting":
            raise typer.BadParameter(
                f"not all of the load {present['id']} was sent, and what is missing would be cleared; say its source",
                param_hint="SOURCE",
            )
        present = present if present["bulk"] else client.compare_load(present["id"])
        _show(present, form, dry_run=dry_run)
        if dry_run:
            return
        if present["status"] == "done" and not present["bulk"]:  # there is nothing to do; the server forgets it
            present = client.apply_load(present["id"], comparison=present["compared"])
        elif not present["bulk"]:
            _ask(present, yes=yes, confirm=confirm)
            number_to_confirm = confirm if confirm >= 0 else present["to_confirm"]
            present = client.apply_load(
                present["id"], confirm=number_to_confirm, comparison=present["compared"]
            )  # fmt: skip
        if present["bulk"]:
            follow_to_end(client, client.bulk(present["bulk"]), form)
        elif form is not Output.TABLE:
            terminal.dump(present)
        if present["changes"]["invalid"]:
            raise typer.Exit(terminal.REJECTED)


def _documents(source: str, address: str, collection: str) -> Iterable[ReadyDocument | DocumentTrouble]:
    if address:
        retries = environment.load().retries
        return collections_elsewhere.read(address, collection, retries=retries, on_retry=say_retry)
    if source.endswith((".parquet", ".geoparquet")):
        return _of_parquet(Path(source), collection)
    return reading.read(source, collection)


def _of_parquet(path: Path, collection: str) -> Iterator[ReadyDocument | DocumentTrouble]:
    try:
        from fedstac.geoparquet.reading import NoItems, read
    except ImportError:
        raise SourceBroken("GeoParquet needs pyarrow: pip install 'fedstac[parquet]'") from None
    try:
        for n, item in enumerate(read(path), 1):
            yield reading.entry(item, None, f"{path}, row {n}", collection)
    except (NoItems, OSError) as error:
        raise SourceBroken(str(error)) from error


def _send(
    client: Client, documents: Iterable[ReadyDocument | DocumentTrouble], collection: str, present: Json | None, *,
    mode: str, override: str, form: Output,
) -> Json:  # fmt: skip
    """Send what the server does not have yet of a load; return the load. On Ctrl-C, say how to go on."""
    here = {part["n"]: part["digest"] for part in present["parts"]} if present else {}
    count, n = 0, 0
    try:
        with terminal.bars(["sent"], form) as bars:
            for n, part in enumerate(load_parts(documents), 1):
                if present is None:
                    present = client.begin_load(collection, part, mode=mode, override=override)
                elif here.get(n) != part.digest:
                    if n in here:  # the source is another one from here on: later parts may state what this one states
                        present = _empty(client, present, [place for place in here if place > n])
                        here = {place: digest for place, digest in here.items() if place < n}
                    present = client.put_load_part(present["id"], n, part)
                count += part.count
                bars.set("sent", count, None)
            if present is None:  # an empty source
                present = client.begin_load(collection, mode=mode, override=override)
            present = _empty(client, present, [place for place in here if place > n])
    except BaseException:
        if present is not None:
            say(f"nothing is changed; to go on: fedstac reconcile … --load {present['id']}")
        raise
    return present


def _empty(client: Client, load: Json, parts: Iterable[int]) -> Json:
    """Take what parts of a load state out of it; return the load."""
    for n in sorted(parts):
        load = client.put_load_part(load["id"], n, StatePart(b"", 0))
    return load


def _show(load: Json, form: Output, *, dry_run: bool) -> None:
    """Show what a load changes: as a result of a dry run, else on standard error."""
    if form is not Output.TABLE:
        if dry_run:
            terminal.dump(load)
        return
    show = out if dry_run else say
    show(for_terminal(f"{load['mode']} {number(load['stated'], 'dataset')} to {load['collection']}, "
                      f"which has {load['current']}"), "bold")  # fmt: skip
    for change, label in LABELS.items():
        if count := load["changes"][change]:
            show(f"  {label:<28}{count}")
            for id in load["examples"].get(change, ())[:SHOWN_IDS]:
                show(for_terminal(f"    {id}"), "dim")
    if load["mode"] == "rebuild" and load["cleared"]:
        show(f"  {'cleared in all':<28}{load['cleared']}")
    show(f"  {'load':<28}{load['id']}", "dim")
    if dry_run and load["status"] == "compared":
        more = f" --confirm {load['to_confirm']}" if load["to_confirm"] is not None else ""
        say(f"to have it done: fedstac reconcile --load {load['id']}{more}", "dim")


def _ask(load: Json, *, yes: bool, confirm: int) -> None:
    """Ask before the change. Where many datasets go, --yes is not enough: the number has to be said."""
    to_confirm = load["to_confirm"]
    if confirm >= 0 or (yes and to_confirm is None):
        return
    is_terminal = sys.stdin.isatty() and sys.stderr.isatty()
    if not is_terminal or (yes and to_confirm is not None):
        option = f"--confirm {to_confirm}" if to_confirm is not None else "--yes"
        raise typer.BadParameter(
            f"nobody was asked; look at the changes and say: --load {load['id']} {option}", param_hint=option.split()[0]
        )
    expected = str(to_confirm) if to_confirm is not None else "yes"
    question = f"{to_confirm} datasets go; type the number to go on" if to_confirm is not None else "type yes to go on"
    if typer.prompt(question, err=True, default="", show_default=False).strip() != expected:
        say(f"nothing is changed; the load {load['id']} can be taken up with --load for a week")
        raise typer.Exit(terminal.REJECTED)


# --- fedstac load ---


@load_commands.command("list", epilog=examples("fedstac load list", "fedstac load list -o json", codes=True))
def list_loads(
    ctx: typer.Context,
    last: Annotated[int, typer.Option("-n", "--last", min=1, max=100, help="How many.")] = 20,
    output: Form = None, url: Url = "", token: Token = "",
) -> None:  # fmt: skip
    """List your full-state loads, the newest first; those of everybody, for an administrator."""
    form = form_of(ctx, output)
    columns = ("load" + " " * 32, "collection", "mode   ", "status    ", "stated", "since")
    with client_of(ctx, url, token) as client, terminal.Listing(form, columns) as listing:
        for load in client.loads(limit=last):
            since = terminal.moment(load["created"])
            cells = (load["id"], load["collection"], load["mode"], load["status"], load["stated"], since)
            listing.row(load, cells)


@load_commands.command(epilog=examples("fedstac load show 0198…", codes=True))
def show(ctx: typer.Context, load: LoadId, output: Form = None, url: Url = "", token: Token = "") -> None:
    """Show a full-state load: how far it is, and what it changes."""
    form = form_of(ctx, output)
    with client_of(ctx, url, token) as client:
        present = client.load(load)
    if form is not Output.TABLE:
        terminal.dump(present)
        return
    out(for_terminal(f"{present['status']}"), "bold")
    if present["changes"] is not None:
        _show(present, form, dry_run=True)
    else:
        out(f"  {'stated':<28}{present['stated']}")
        for label, count in (present["progress"] or {}).items():
            out(f"  {'compared, ' + label:<28}{count}")


@load_commands.command(epilog=examples("fedstac load cancel 0198…", codes=True))
def cancel(ctx: typer.Context, load: LoadId, output: Form = None, url: Url = "", token: Token = "") -> None:
    """End a full-state load that is not applied; nothing is changed. `fedstac bulk cancel` ends one that is applied."""
    form = form_of(ctx, output)
    with client_of(ctx, url, token) as client:
        present = client.cancel_load(load)
    if form is not Output.TABLE:
        terminal.dump(present)
    else:
        out(for_terminal(f"the load {present['id']} is cancelled"))
