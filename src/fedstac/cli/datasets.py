"""`fedstac publish`, `search` and `feed tail`; the state of a request."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Callable, Iterable, Iterator
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any, TypeVar

import orjson
import typer

from fedstac import settings as environment
from fedstac.cli import downloads, ready_code, terminal
from fedstac.cli.downloads import FileForm
from fedstac.cli.options import Form, Token, Url, client_of, examples, form_of
from fedstac.cli.terminal import Output, for_terminal, out, say
from fedstac.cli.wording import in_commands
from fedstac.client import Client, documents, publishing, rehearsal, runs
from fedstac.client.documents import DocumentTrouble, ReadyDocument
from fedstac.client.runs import Run
from fedstac.client.searching import Search
from fedstac.client.transport import ClientError
from fedstac.client.values import Dataset

T = TypeVar("T")


class SearchForm(StrEnum):
    """The forms of what a search finds."""

    TABLE = "table"
    JSON = "json"
    NDJSON = "ndjson"
    PARQUET = "parquet"
    WGET = "wget"
    ARIA2 = "aria2"
    PYTHON = "python"
    CURL = "curl"


commands = typer.Typer()
feed = typer.Typer(no_args_is_help=True, help="Read a node's feed of events.")
commands.add_typer(feed, name="feed", rich_help_panel="Client")


@commands.command(
    rich_help_panel="Client",
    epilog=examples(
        "fedstac publish items.ndjson.gz --collection CMIP6",
        "fedstac publish datasets/ --wait-visible east",
        "fedstac publish items.ndjson --dry-run",
        "make-items | fedstac publish - -o ndjson > results.ndjson",
        codes=True,
    ),
)
def publish(
    ctx: typer.Context,
    path: Annotated[str, typer.Argument(help="Item, FeatureCollection, NDJSON, each also .gz; a folder; - for stdin.")]
    = "",
    collection: Annotated[str, typer.Option("--collection", "-c", help="Of all; else each item names its own.")] = "",
    batch: Annotated[int, typer.Option(min=1, max=5000, help="Items in one request.")] = publishing.BATCH,
    wait: Annotated[bool, typer.Option(help="Wait until everything is final.")] = True,
    wait_visible: Annotated[list[str] | None, typer.Option(metavar="NODE", help="Until this node shows all.")] = None,
    patience: Annotated[float, typer.Option(min=0, help="Give up after seconds without progress; 0: never.")] = 600,
    check: Annotated[bool, typer.Option("--check", help="Say first: new, newer, older, update, identical.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="The same as --check, and send nothing.")] = False,
    run: Annotated[Path | None, typer.Option(help="File of the run. If it exists, go on with that run.")] = None,
    retry_failed: Annotated[Path | None, typer.Option(metavar="RUN", help="Send again what was refused then.")] = None,
    output: Form = None,
    url: Url = "",
    token: Token = "",
) -> None:  # fmt: skip
    """Publish datasets in batches, and list each one that is refused, with the reason.

    Repeating the command is harmless: a dataset that is there already stays as it is. After Ctrl-C the server goes on
    with what it accepted, and the command names those requests. The state of a run is kept in a file until nothing is
    left to do; with --run the next command goes on from there.
    """
    form = form_of(ctx, output)
    run_file = _run_of(path, collection, run, retry_failed)
    options = _Options(ctx, run_file)
    batch, wait, check = options.of("batch", batch), options.of("wait", wait), options.of("check", check)
    wait_visible, patience = options.of("wait_visible", wait_visible), options.of("patience", patience)
    address = options.address(url)
    entries = documents.read(run_file.source, run_file.collection or None)
    with client_of(ctx, address, token) as server:
        if dry_run:
            _rehearse(server, entries, batch, form)
            return
        publication = publishing.Publishing(
            server, batch=batch, wait=wait, visible_at=wait_visible or (), patience=patience,
            on_accepted=run_file.add_accepted,
        )  # fmt: skip
        run_file.options = {"url": server.url, "batch": batch, "wait": wait, "wait_visible": wait_visible or [],
                        "patience": patience, "check": check}  # fmt: skip
        report = terminal.PublishReport(publication, form, wait=wait or bool(wait_visible))
        unsent = _count_skipped(publication, run_file.unsent(entries, refused_only=retry_failed is not None))
        if check:
            rehearsing = rehearsal.Rehearsal(server, report.foresee, skip=_skip_in(publication), batch=batch)
            unsent = rehearsing.unpublished(unsent)
        _publish(publication, run_file, unsent, report, form)
    if publication.counts["rejected"] or publication.counts["failed"]:
        raise typer.Exit(terminal.REJECTED)


class _Options:
    """The options of a run: those of this command line, else those that the run was started with."""

    def __init__(self, ctx: typer.Context, run: Run) -> None:
        self._ctx, self._kept_options = ctx, run.options

    def of(self, name: str, value: T) -> T:
        """Return an option of the run. `value`: that of this command line, or the default."""
        is_given = str(getattr(self._ctx.get_parameter_source(name), "name", "")) == "COMMANDLINE"
        chosen_value: T = value if is_given else self._kept_options.get(name, value)
        return chosen_value

    def address(self, url: str) -> str:
        """Return the server of the run. BadParameter for another one: each would have a part of the datasets."""
        before = str(self._kept_options.get("url", ""))
        if not before:
            return url
        now = str(url or self._ctx.obj.url or environment.load().url or before).rstrip("/")
        if now != before:
            raise typer.BadParameter(
                f"this run publishes at {before}, and the server is {now} now; use --url {before}, or start a new run"
            )
        return now


def _publish(
    publication: publishing.Publishing,
    run: Run,
    unsent: Iterator[ReadyDocument | DocumentTrouble],
    report: terminal.PublishReport,
    form: Output,
) -> None:
    """Publish to the end. Each step is shown, and kept in the file of the run."""
    try:
        run.begin()
        for request in run.open.values():
            publication.follow(request)
        with terminal.bars(report.bar_names, form) as bars:
            for step in publication.publish(unsent):
                run.step(step)
                report.step(step)
                report.update(bars)
    except KeyboardInterrupt:
        report.end(interrupted=True)
        run.close(interrupted=True)
        _say_how_to_go_on(run)
        raise typer.Exit(terminal.INTERRUPTED) from None
    except (ClientError, documents.Unreadable):
        if publication.requests:
            report.end(interrupted=True)
            _say_how_to_go_on(run)
        if run.is_begun:  # else the file may be another process's
            run.close(interrupted=True)
        raise
    report.end()
    run.close()
    if run.refusals:
        say(f"when they are corrected: fedstac publish --retry-failed {shlex.quote(str(run.path))}", "dim")


def _say_how_to_go_on(run: Run) -> None:
    if run.sent_digests:
        say(for_terminal(f"go on with: fedstac publish {shlex.quote(run.source)} --run {shlex.quote(str(run.path))}"))


def _run_of(path: str, collection: str, run: Path | None, retry_failed: Path | None) -> Run:
    """Return the run to go on with, or a new one."""
    if run is not None and retry_failed is not None:
        raise typer.BadParameter("--run goes on with a run, --retry-failed sends what was refused: use one of them")
    before = retry_failed or (run if run is not None and run.exists() else None)
    if before is not None:
        earlier = Run.read(before)
        earlier.source, earlier.collection = path or earlier.source, collection or earlier.collection
        return earlier
    if not path:
        raise typer.BadParameter("say what to publish: a file, a folder, or - for stdin", param_hint="PATH")
    return Run(run or runs.place(), path, collection)


def _count_skipped(
    publication: publishing.Publishing, entries: Iterator[ReadyDocument | DocumentTrouble | None]
) -> Iterator[ReadyDocument | DocumentTrouble]:
    """Yield the entries, and count each None as a document that was skipped."""
    skip = _skip_in(publication)
    for document in entries:
        if document is None:
            skip()
        else:
            yield document


def _skip_in(publication: publishing.Publishing) -> Callable[[], None]:
    return lambda: publication.counts.update(read=1, skipped=1)


def _rehearse(server: Client, entries: Iterator[ReadyDocument | DocumentTrouble], batch: int, form: Output) -> None:
    """Show what would become of each document; exit with 1 if one would be refused."""
    report = terminal.PublishReport(publishing.Publishing(server), form, wait=False)
    rehearsing = rehearsal.Rehearsal(server, report.foresee, batch=batch)
    with terminal.bars(["checked"], form) as bars:
        for n, entry in enumerate(rehearsing.forecasts(entries), 1):
            if isinstance(entry, DocumentTrouble):
                report.step(entry)
            bars.set("checked", n, None)
    report.end_rehearsal(rehearsing.counts)
    if rehearsing.counts["rejected"]:
        raise typer.Exit(terminal.REJECTED)


def request_status(
    ctx: typer.Context,
    request: Annotated[str, typer.Argument(help="The request's id, as `fedstac publish` shows it.")],
    items: Annotated[bool, typer.Option("--items", help="Show the result of each item.")] = False,
    only: Annotated[
        str, typer.Option("--status", help="Only items with this status: queued, done, rejected or failed.")
    ] = "",
    follow: Annotated[bool, typer.Option("--follow", help="Wait until it is final.")] = False,
    output: Form = None,
    url: Url = "",
    token: Token = "",
) -> None:
    """Show the state of a request, and at which nodes its items are visible; exit 1 if items were refused."""
    form = form_of(ctx, output)
    with client_of(ctx, url, token) as server:
        current = server.request(request)
        if follow:
            with terminal.bars(["final"], form) as bars:
                for current in server.wait(request):
                    bars.set("final", current.total - current.counts.get("queued", 0), current.total)
        if items or only:
            with terminal.Listing(form, ("n", "status", "outcome", "id")) as listing:
                for result in server.results(request, status=only or None):
                    row = {"n": result.n, "id": result.id, "status": result.status, "outcome": result.outcome,
                           "type": result.type, "detail": result.detail,
                           "findings": [finding.as_json() for finding in result.findings]}  # fmt: skip
                    listing.row(row, (result.n, result.shown_status, result.outcome, result.id))
                    if form is Output.TABLE and result.detail:
                        out(in_commands(for_terminal(f"  {result.type}: {result.detail}")))
                    for finding in result.findings if form is Output.TABLE else ():
                        out(f"    {terminal.sign_of(finding)}{terminal.finding_line(finding)}")
        elif form is Output.TABLE:
            terminal.show_request(current)
        else:
            terminal.dump(current.document)
    if current.is_final and current.status != "done":
        raise typer.Exit(terminal.REJECTED)


class WithRetracted(StrEnum):
    """Which retracted datasets a search finds."""

    INCLUDE = "include"
    ONLY = "only"


@commands.command(
    rich_help_panel="Client",
    epilog=examples(
        "fedstac search -c CMIP6 --filter 'latest = true' --limit 5",
        "fedstac search --bbox 5,45,15,55 --datetime 1990-01-01T00:00:00Z/.. -o ndjson",
        "fedstac search -c CMIP6 --matched",
        "fedstac search -q 'precipitation AND historical' --limit 5",
        "fedstac search -c CMIP6 --filter \"cmip6:variable_id = 'tas'\" --limit 0 -o wget > fetch.sh && sh fetch.sh",
        "fedstac search -c CMIP6 --limit 0 -o parquet --to cmip6.parquet",
        "fedstac search -c CMIP6 --retracted only",
    ),
)
def search(
    ctx: typer.Context,
    collection: Annotated[
        list[str] | None, typer.Option("--collection", "-c", help="Search in this collection. Repeatable.")
    ] = None,
    ids: Annotated[list[str] | None, typer.Option("--ids", help="Ids, separated by commas. Repeatable.")] = None,
    bbox: Annotated[str, typer.Option(help="west,south,east,north in degrees.")] = "",
    datetime: Annotated[str, typer.Option(help="A time, year, month or day, or START/END; .. for an open end.")] = "",
    filter: Annotated[str, typer.Option(help="A filter in CQL2 text.")] = "",
    q: Annotated[
        str,
        typer.Option("--query-text", "--q", "-q", metavar="WORDS", help='Free text: words, "phrases", AND, OR, NOT.'),
    ] = "",
    sortby: Annotated[str, typer.Option(help="Properties, separated by commas; a - in front: descending.")] = "",
    retracted: Annotated[
        WithRetracted | None, typer.Option(help="Find retracted datasets too, or only those.", show_default=False)
    ] = None,
    limit: Annotated[int, typer.Option(min=0, help="Show at most so many items; 0: all.")] = 100,
    matched: Annotated[bool, typer.Option("--matched", help="Show only how many match.")] = False,
    output: Annotated[
        SearchForm | None, typer.Option("-o", "--output", help="Form of the results.", show_default="table")
    ] = None,
    to: Annotated[Path | None, typer.Option("--to", metavar="FILE", help="With -o parquet: the file to write.")] = None,
    url: Url = "",
    token: Token = "",
) -> None:
    """Search datasets. `-o json` writes a FeatureCollection, `-o ndjson` one Item a line.

    `-o wget` is a script that fetches the files, `-o aria2` a list for aria2c, both with all copies and checksums.
    `-o parquet --to FILE` writes GeoParquet. `-o python` and `-o curl` show the search as code. Retracted datasets are
    left out unless --retracted asks for them, or the filter names `retracted`; every form says why they are.
    """
    search_form = output or SearchForm(form_of(ctx, None))
    if (search_form is SearchForm.PARQUET) is not (to is not None):
        raise typer.BadParameter("-o parquet and --to FILE belong together", param_hint="--to")
    form = Output(search_form) if search_form.value in [each.value for each in Output] else Output.NDJSON
    with client_of(ctx, url, token) as server:
        results = server.search(
            collections=collection or (), ids=[id for text in ids or () for id in _split(text)],
            bbox=_numbers(bbox) if bbox else None, datetime=datetime or None, filter=filter or None,
            q=q or None, sortby=_split(sortby), retracted=retracted, limit=1 if matched else limit or None,
        )  # fmt: skip
        if search_form in (SearchForm.PYTHON, SearchForm.CURL):
            write = ready_code.python if search_form is SearchForm.PYTHON else ready_code.curl
            sys.stdout.write(write(server.url, results.body, limit or None))
            return
        terminal.show_warnings(results.warnings)
        if matched:
            if form is Output.TABLE:
                out(f"{'about ' if results.is_estimated else ''}{results.matched}")
            else:
                terminal.dump({"matched": results.matched, "estimated": results.is_estimated})
            return
        if to is not None:
            write_parquet(results, to)
            return
        if search_form.value in [each.value for each in FileForm]:
            _write_files(results, FileForm(search_form))
            return
        opening, closing = '{"type":"FeatureCollection","features":[', "]}"
        columns = ("collection", "from", "latest", "state", "id")
        with terminal.Listing(form, columns, opening=opening, closing=closing, if_empty="") as listing:
            for item in results:
                listing.row(item, _item_cells(item))
                if form is Output.TABLE:
                    terminal.show_notices(item.get("properties") or {})
        if form is Output.TABLE:
            say(f"{listing.count} of {'about ' if results.is_estimated else ''}{results.matched}", "dim")


def _write_files(results: Search, form: FileForm) -> None:
    """Write the files of what a search finds for a downloader; exit with 1 if some cannot be written."""
    total = size = faults = 0
    sys.stdout.write(downloads.head_of(form))
    with terminal.bars(["datasets"], Output.NDJSON) as bars:
        for count, item in enumerate(results, 1):
            dataset = Dataset(item)
            if (reason := downloads.retraction_of(dataset)) is not None:
                sys.stdout.write(f"# {reason}\n")
                continue
            for file, mirrors in downloads.group(dataset.files):
                text = downloads.text(file, mirrors, form)
                if text is None:
                    faults += 1
                    sys.stdout.write(f"# {for_terminal(f'{dataset.id}: {file.asset}')} cannot be fetched this way\n")
                    say(for_terminal(f"{file.href or file.asset}: cannot be written as {form}"), "yellow")
                    continue
                sys.stdout.write(text)
                total, size = total + 1, size + (downloads.size_of(file) or 0)
            sys.stdout.flush()
            bars.set("datasets", count, None)
    sys.stdout.write(downloads.end_of(form))
    say(f"{terminal.number(total, 'file')}, {size / 1e9:.1f} GB", "dim")
    if faults:
        raise typer.Exit(terminal.REJECTED)


def write_parquet(results: Iterable[dict[str, Any]], target: Path) -> None:
    """Write what a search finds as GeoParquet. The file is there when all of it is, also after Ctrl-C."""
    from fedstac.geoparquet import items

    lines, unfinished = target.with_name(f"{target.name}.lines.part"), target.with_name(f"{target.name}.part")
    try:
        with terminal.bars(["fetched", "written"], Output.NDJSON) as bars:
            with lines.open("wb") as file:
                for count, item in enumerate(results, 1):
                    file.write(orjson.dumps(item, option=orjson.OPT_APPEND_NEWLINE))
                    bars.set("fetched", count, None)
            total = items.write(lines, unfinished, on_items=lambda rows: bars.set("written", rows, None))
        unfinished.replace(target)
    finally:
        lines.unlink(missing_ok=True)
        unfinished.unlink(missing_ok=True)
    say(f"{terminal.number(total, 'item')} in {target}", "dim")


def _item_cells(item: dict[str, Any]) -> tuple[object, ...]:
    properties = item.get("properties") or {}
    start = properties.get("start_datetime") or properties.get("datetime") or ""
    latest = {"True": "yes", "False": "no"}.get(str(properties.get("latest")), "")
    return item.get("collection"), start[:10], latest, properties.get("fedstac:state", ""), item.get("id")


def _split(text: str) -> list[str]:
    return [part.strip() for part in text.split(",") if part.strip()]


def _numbers(text: str) -> list[float]:
    try:
        return [float(number) for number in _split(text)]
    except ValueError:
        raise typer.BadParameter(f"{text!r} is not west,south,east,north in degrees", param_hint="--bbox") from None


@feed.command(
    epilog=examples("fedstac feed tail --follow", "fedstac feed tail --after 0.0 --collection CMIP6 -o ndjson")
)
def tail(
    ctx: typer.Context,
    after: Annotated[
        str, typer.Option(help="Show the events after this cursor; 0.0 is the start.", show_default=False)
    ] = "",
    last: Annotated[int, typer.Option("-n", "--last", min=0, help="Without --after: the last so many events.")] = 10,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Wait for more, until Ctrl-C.")] = False,
    collection: Annotated[str, typer.Option("--collection", "-c", help="Only events of this collection.")] = "",
    type: Annotated[
        str, typer.Option(help="Only events of this type, for example org.fedstac.dataset.published.v1.")
    ] = "",
    output: Form = None,
    url: Url = "",
    token: Token = "",
) -> None:
    """Show events, oldest first. It needs the token of a node."""
    form = form_of(ctx, output)
    if follow and form is Output.JSON:
        raise typer.BadParameter("an array that never ends is no JSON; use -o ndjson with --follow")
    with client_of(ctx, url, token) as server:
        if not after:
            epoch, _, pos = server.head().cursor.partition(".")
            after = f"{epoch}.{max(0, int(pos) - last)}"
        cursor = after
        with terminal.Listing(form, ("cursor", "time", "event", "subject"), if_empty="") as listing:
            for page in server.events(after, follow=follow, collection=collection or None, type=type or None):
                cursor = page.cursor
                for event in page.events:
                    listing.row(event, _event_cells(event))
        if form is Output.TABLE:
            say(f"the end; go on with --after {cursor}", "dim")


def _event_cells(event: Any) -> tuple[object, ...]:
    name = str(event["type"]).removeprefix("org.fedstac.").rpartition(".")[0]
    return f"{event['epoch']}.{event['pos']}", str(event["time"])[:19], name, event["subject"]
