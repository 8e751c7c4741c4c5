"""Commands of those who publish and search: they need the client only."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated, Any, TypeVar

import typer

from fedstac import settings as environment
from fedstac.cli import terminal
from fedstac.cli.options import Form, Token, Url, client_of, examples, form_of
from fedstac.cli.terminal import Output, out, say, shown
from fedstac.cli.wording import in_commands
from fedstac.client import Client, documents, publishing, rehearsal, runs
from fedstac.client.documents import Entry, Trouble
from fedstac.client.runs import Run
from fedstac.client.transport import ClientError
from fedstac.domain.errors import Severity

T = TypeVar("T")

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
    collection: Annotated[str, typer.Option("--collection", "-c", help="Where all go; else each says itself.")] = "",
    batch: Annotated[int, typer.Option(min=1, max=5000, help="Items in one request.")] = publishing.BATCH,
    wait: Annotated[bool, typer.Option(help="Until everything is final.")] = True,
    wait_visible: Annotated[list[str] | None, typer.Option(metavar="NODE", help="Until it shows them all.")] = None,
    patience: Annotated[float, typer.Option(min=0, help="Seconds to wait without any progress; 0: for ever.")] = 600,
    check: Annotated[bool, typer.Option("--check", help="Say first: new, newer, older, update, identical.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say so and send nothing.")] = False,
    run: Annotated[Path | None, typer.Option(help="File that keeps the run; if it is there, go on with it.")] = None,
    retry_failed: Annotated[Path | None, typer.Option(metavar="RUN", help="Send again what was refused then.")] = None,
    output: Form = None,
    url: Url = "",
    token: Token = "",
) -> None:  # fmt: skip
    """Publish datasets, batch by batch; say what became of each that is not published.

    Saying it again is harmless: what is there already stays as it is. With Ctrl-C, what was accepted goes on at the
    server, and its requests are named. What a run has come to is kept in a file until nothing is left of it.
    """
    form = form_of(ctx, output)
    kept = _kept(path, collection, run, retry_failed)
    going_on = _Options(ctx, kept)
    batch, wait, check = going_on.of("batch", batch), going_on.of("wait", wait), going_on.of("check", check)
    wait_visible, patience = going_on.of("wait_visible", wait_visible), going_on.of("patience", patience)
    address = going_on.address(url)
    wanted = documents.read(kept.source, kept.collection or None)
    with client_of(ctx, address, token) as server:
        if dry_run:
            _rehearse(server, wanted, batch, form)
            return
        going = publishing.Publishing(server, batch=batch, wait=wait, visible_at=wait_visible or (), patience=patience,
                                      on_accepted=kept.accepted)  # fmt: skip
        kept.options = {"url": server.url, "batch": batch, "wait": wait, "wait_visible": wait_visible or [],
                        "patience": patience, "check": check}  # fmt: skip
        report = terminal.Report(going, form, wait=wait or bool(wait_visible))
        left = _less_skipped(going, kept.left(wanted, refused_only=retry_failed is not None))
        if check:
            left = rehearsal.Rehearsal(server, report.foresee, skip=_skipping(going), batch=batch).left(left)
        _publish(going, kept, left, report, form)
    if going.counts["rejected"] or going.counts["failed"]:
        raise typer.Exit(terminal.REJECTED)


class _Options:
    """The options of a run: those that are given now, else those that it was started with."""

    def __init__(self, ctx: typer.Context, kept: Run) -> None:
        self._ctx, self._kept = ctx, kept.options

    def of(self, name: str, value: T) -> T:
        """The value of an option, which is given now or a default."""
        is_given = str(getattr(self._ctx.get_parameter_source(name), "name", "")) == "COMMANDLINE"
        kept: T = value if is_given else self._kept.get(name, value)
        return kept

    def address(self, url: str) -> str:
        """The server of the run: to go on at another one would leave each with a part."""
        before = str(self._kept.get("url", ""))
        if not before:
            return url
        now = str(url or self._ctx.obj.url or environment.load().url or before).rstrip("/")
        if now != before:
            raise typer.BadParameter(
                f"this run is one at {before}, and the server is {now} now; say --url {before}, or publish anew"
            )
        return now


def _publish(
    going: publishing.Publishing, kept: Run, left: Iterator[Entry | Trouble], report: terminal.Report, form: Output
) -> None:
    """Follows a run to its end, showing and keeping what happens."""
    kept.begin()
    for submitted in kept.open.values():
        going.follow(submitted)
    try:
        with terminal.bars(report.bar_names, form) as bars:
            for step in going.publish(left):
                kept.step(step)
                report.step(step)
                report.update(bars)
    except KeyboardInterrupt:
        report.end(interrupted=True)
        kept.close(interrupted=True)
        _say_how_to_go_on(kept)
        raise typer.Exit(terminal.INTERRUPTED) from None
    except (ClientError, documents.Unreadable):
        if going.requests:
            report.end(interrupted=True)
            _say_how_to_go_on(kept)
        kept.close(interrupted=True)
        raise
    report.end()
    kept.close()
    if kept.refused:
        say(f"when they are mended: fedstac publish --retry-failed {shlex.quote(str(kept.path))}", "dim")


def _say_how_to_go_on(kept: Run) -> None:
    if kept.sent:
        say(shown(f"go on with: fedstac publish {shlex.quote(kept.source)} --run {shlex.quote(str(kept.path))}"))


def _kept(path: str, collection: str, run: Path | None, retry_failed: Path | None) -> Run:
    """The file of the run: one to go on with, or a new one."""
    if run is not None and retry_failed is not None:
        raise typer.BadParameter("--run goes on with a run, --retry-failed sends again what was refused: one of them")
    before = retry_failed or (run if run is not None and run.exists() else None)
    if before is not None:
        kept = Run.read(before)
        kept.source, kept.collection = path or kept.source, collection or kept.collection
        return kept
    if not path:
        raise typer.BadParameter("say what to publish: a file, a folder, or - for stdin", param_hint="PATH")
    return Run(run or runs.place(), path, collection)


def _less_skipped(going: publishing.Publishing, found: Iterator[Entry | Trouble | None]) -> Iterator[Entry | Trouble]:
    skip = _skipping(going)
    for document in found:
        if document is None:
            skip()
        else:
            yield document


def _skipping(going: publishing.Publishing) -> Callable[[], None]:
    return lambda: going.counts.update(read=1, skipped=1)


def _rehearse(server: Client, wanted: Iterator[Entry | Trouble], batch: int, form: Output) -> None:
    """Says of everything what would become of it; exit 1 if something would be refused."""
    report = terminal.Report(publishing.Publishing(server), form, wait=False)
    rehearsing = rehearsal.Rehearsal(server, report.foresee, batch=batch)
    with terminal.bars(["checked"], form) as bars:
        for n, found in enumerate(rehearsing.told(wanted), 1):
            if isinstance(found, Trouble):
                report.step(found)
            bars.set("checked", n, None)
    report.end_rehearsal(rehearsing.counts)
    if rehearsing.counts["rejected"]:
        raise typer.Exit(terminal.REJECTED)


@commands.command(
    rich_help_panel="Client",
    epilog=examples(
        "fedstac status 7c1f… --follow", "fedstac status 7c1f… --items --status rejected -o ndjson", codes=True
    ),
)
def status(
    ctx: typer.Context,
    request: Annotated[str, typer.Argument(help="A request's id, as publish names it.")],
    items: Annotated[bool, typer.Option("--items", help="Each item's result.")] = False,
    only: Annotated[str, typer.Option("--status", help="Only items queued, done, rejected or failed.")] = "",
    follow: Annotated[bool, typer.Option("--follow", help="Until it is final.")] = False,
    output: Form = None,
    url: Url = "",
    token: Token = "",
) -> None:
    """Show what became of a request, and where it is visible; exit 1 if items of it were refused."""
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
                        out(in_commands(shown(f"  {result.type}: {result.detail}")))
                    for finding in result.findings if form is Output.TABLE else ():
                        sign = "warning " if finding.severity is Severity.WARNING else ""
                        out(f"    {sign}{terminal.finding_line(finding)}")
        elif form is Output.TABLE:
            terminal.show_request(current)
        else:
            terminal.dump(current.document)
    if current.is_final and current.status != "done":
        raise typer.Exit(terminal.REJECTED)


@commands.command(
    rich_help_panel="Client",
    epilog=examples(
        "fedstac search -c CMIP6 --filter 'latest = true' --limit 5",
        "fedstac search --bbox 5,45,15,55 --datetime 1990-01-01T00:00:00Z/.. -o ndjson",
        "fedstac search -c CMIP6 --matched",
    ),
)
def search(
    ctx: typer.Context,
    collection: Annotated[list[str] | None, typer.Option("--collection", "-c", help="Repeatable.")] = None,
    ids: Annotated[list[str] | None, typer.Option("--ids", help="Ids, with commas between; repeatable.")] = None,
    bbox: Annotated[str, typer.Option(help="west,south,east,north")] = "",
    datetime: Annotated[str, typer.Option(help="A moment, year, month or day, or start/end; ..: open.")] = "",
    filter: Annotated[str, typer.Option(help="CQL2 text.")] = "",
    sortby: Annotated[str, typer.Option(help="Properties with commas between, - in front: descending.")] = "",
    limit: Annotated[int, typer.Option(min=0, help="Most items in all; 0: no limit.")] = 100,
    matched: Annotated[bool, typer.Option("--matched", help="Only how many match.")] = False,
    output: Form = None,
    url: Url = "",
    token: Token = "",
) -> None:
    """Search datasets; `-o json` is a FeatureCollection, `-o ndjson` an Item a line."""
    form = form_of(ctx, output)
    with client_of(ctx, url, token) as server:
        found = server.search(
            collections=collection or (), ids=[id for text in ids or () for id in _split(text)],
            bbox=_numbers(bbox) if bbox else None, datetime=datetime or None, filter=filter or None,
            sortby=_split(sortby), limit=1 if matched else limit or None,
        )  # fmt: skip
        terminal.show_warnings(found.warnings)
        if matched:
            if form is Output.TABLE:
                out(f"{'about ' if found.is_estimated else ''}{found.matched}")
            else:
                terminal.dump({"matched": found.matched, "estimated": found.is_estimated})
            return
        opening, closing = '{"type":"FeatureCollection","features":[', "]}"
        columns = ("collection", "from", "latest", "state", "id")
        with terminal.Listing(form, columns, opening=opening, closing=closing) as listing:
            for item in found:
                listing.row(item, _item_cells(item))
                if form is Output.TABLE:
                    terminal.show_retraction(item.get("properties") or {})
        if form is Output.TABLE:
            say(f"{listing.count} of {'about ' if found.is_estimated else ''}{found.matched}", "dim")


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
    after: Annotated[str, typer.Option(help="Events after this cursor; 0.0 is the start.", show_default=False)] = "",
    last: Annotated[int, typer.Option("-n", "--last", min=0, help="Without --after: so many from the end.")] = 10,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Wait for more, until Ctrl-C.")] = False,
    collection: Annotated[str, typer.Option("--collection", "-c", help="Only of this collection.")] = "",
    type: Annotated[str, typer.Option(help="Only of this type: org.fedstac.dataset.published.v1.")] = "",
    output: Form = None,
    url: Url = "",
    token: Token = "",
) -> None:
    """Show events, oldest first. It needs a node's token."""
    form = form_of(ctx, output)
    if follow and form is Output.JSON:
        raise typer.BadParameter("an array that never ends is no JSON; use -o ndjson with --follow")
    with client_of(ctx, url, token) as server:
        if not after:
            epoch, _, pos = server.head().cursor.partition(".")
            after = f"{epoch}.{max(0, int(pos) - last)}"
        cursor = after
        with terminal.Listing(form, ("cursor", "time", "event", "subject")) as listing:
            for page in server.events(after, follow=follow, collection=collection or None, type=type or None):
                cursor = page.cursor
                for event in page.events:
                    listing.row(event, _event_cells(event))
        if form is Output.TABLE:
            say(f"the end; go on with --after {cursor}", "dim")


def _event_cells(event: Any) -> tuple[object, ...]:
    name = str(event["type"]).removeprefix("org.fedstac.").rpartition(".")[0]
    return f"{event['epoch']}.{event['pos']}", str(event["time"])[:19], name, event["subject"]
