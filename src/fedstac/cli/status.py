"""`fedstac status`: a request, or the whole federation at a glance; `fedstac alive`: does this process answer?"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from queue import Queue
from threading import Thread
from typing import Annotated, Any

import httpx
import typer

from fedstac import settings as environment
from fedstac.cli import datasets, terminal
from fedstac.cli.options import Form, Token, Url, address_of, examples, form_of, logins, token_of
from fedstac.cli.terminal import Output, PipeConsole, complain, for_terminal, out
from fedstac.client.credentials import Session
from fedstac.client.transport import ClientError, NotAuthorised, NotFound, TokenSource, Transport, checked_address

commands = typer.Typer()

LATE_SECONDS = 60  # so old, an event that somebody has not got is a trouble
LOOK_SECONDS = 2.0  # between looks with --watch
PATIENCE_SECONDS = 5.0  # for the answer of a node
END_SECONDS = 3.0  # that threads have after Ctrl-C
UNITS = ((86_400, "d"), (3_600, "h"), (60, "min"), (1, "s"))
Json = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class NodeReport:
    """What a node says of itself; `problem` instead where it does not answer."""

    address: str
    state: Json | None
    problem: str = ""

    @property
    def name(self) -> str:
        return str(self.state["node"]) if self.state else self.address


@commands.command(
    rich_help_panel="Client",
    epilog=examples(
        "fedstac status                                          # the federation, as FEDSTAC_URL sees it",
        "fedstac status --node https://east.example --watch",
        "fedstac status -o json | jq .troubles",
        "fedstac status 7c1f… --follow                           # a request",
        "fedstac status 7c1f… --items --status rejected -o ndjson",
        codes=True,
    ),
)
def status(
    ctx: typer.Context,
    request: Annotated[
        str, typer.Argument(help="A request's id, as `fedstac publish` shows it. Without it: the federation.")
    ] = "",
    node: Annotated[
        list[str] | None, typer.Option("--node", metavar="URL", help="Ask this node too, of its health. Repeatable.")
    ] = None,
    late: Annotated[int, typer.Option(min=1, help="Seconds from which a lag is a trouble.")] = LATE_SECONDS,
    watch: Annotated[bool, typer.Option("--watch", "-w", help="Look again and again, until Ctrl-C.")] = False,
    items: Annotated[bool, typer.Option("--items", help="Of a request: show the result of each item.")] = False,
    only: Annotated[
        str, typer.Option("--status", help="Of a request: only items queued, done, rejected or failed.")
    ] = "",
    follow: Annotated[bool, typer.Option("--follow", help="Of a request: wait until it is final.")] = False,
    output: Form = None,
    url: Url = "",
    token: Token = "",
) -> None:
    """Show how a federation stands, or a request.

    Of the federation: each node with its version and health, the queue and the feed, how far every sink and every node
    is behind, dead letters and parked events. It needs the token of an administrator, or one with the role monitor;
    exit 1 if something is wrong. With a request's id: its state, and where its items are visible; exit 1 if items were
    refused.
    """
    if request:
        if node or watch:
            raise typer.BadParameter("--node and --watch are for the federation; a request has --follow")
        datasets.request_status(
            ctx, request, items=items, only=only, follow=follow, output=output, url=url, token=token
        )
        return
    if items or only or follow:
        raise typer.BadParameter("--items, --status and --follow are for a request: say which")
    form = form_of(ctx, output)
    if watch and form is Output.JSON:
        raise typer.BadParameter("what never ends is no JSON document; use -o ndjson with --watch")
    address = address_of(ctx, url)
    with _asking(address, token_of(ctx, token, address)) as first:
        while True:
            reports = _reports(first, node or (), is_watching=watch)
            troubles = list(troubles_of(reports, late))
            _show(form, reports, troubles, is_watching=watch)
            if not watch:
                break
            time.sleep(LOOK_SECONDS)
    if troubles:
        raise typer.Exit(terminal.REJECTED)


@contextmanager
def _asking(address: str, token: str | TokenSource | None) -> Iterator[Transport]:
    transport = Transport(address, token, timeout=PATIENCE_SECONDS, retries=0)
    try:
        yield transport
    finally:
        transport.close()


def _reports(first: Transport, others: Sequence[str], *, is_watching: bool) -> list[NodeReport]:
    """Return what the first node says, and the others. ClientError where the first one fails, unless we watch."""
    try:
        reports = [NodeReport(first.url, first.json("GET", "/federation"))]
    except ClientError as error:
        if not is_watching or isinstance(error, NotAuthorised | NotFound):
            raise
        reports = [NodeReport(first.url, None, str(error))]
    return reports + _reports_of(others)


def _reports_of(addresses: Sequence[str]) -> list[NodeReport]:
    """Return what other nodes say, in their order. They are asked at once: each that is away takes seconds.

    The threads are daemons, so that Ctrl-C ends the command whatever a node does; soon, for one may renew a login.
    """
    for address in addresses:
        try:
            checked_address(address)
        except ValueError as error:
            raise typer.BadParameter(str(error), param_hint="--node") from None
    answers: Queue[tuple[int, NodeReport | BaseException]] = Queue()

    def ask(number: int, address: str, login: TokenSource | None) -> None:
        try:
            answers.put((number, _report_of(address, login)))
        except BaseException as error:
            answers.put((number, error))

    threads = [
        Thread(target=ask, args=(number, address, _login_at(address)), daemon=True)
        for number, address in enumerate(addresses)
    ]
    try:
        for thread in threads:
            thread.start()
        reports = dict(answers.get() for _ in addresses)
    except KeyboardInterrupt:
        until = time.monotonic() + END_SECONDS
        for thread in filter(Thread.is_alive, threads):
            thread.join(max(until - time.monotonic(), 0.0))
        raise
    for report in reports.values():
        if isinstance(report, BaseException):
            raise report
    return [report for _, report in sorted(reports.items()) if isinstance(report, NodeReport)]


def _report_of(address: str, login: TokenSource | None) -> NodeReport:
    """Return what another node says: all of it to who is logged in there, else its public health.

    The token of the first node is not shown to it.
    """
    with _asking(address, login) as transport:
        try:
            if login is not None:
                try:
                    return NodeReport(transport.url, transport.json("GET", "/federation"))
                except (NotAuthorised, NotFound):
                    pass
            return NodeReport(transport.url, transport.json("GET", "/healthcheck"))
        except ClientError as error:
            return NodeReport(transport.url, None, str(error))


def _login_at(address: str) -> TokenSource | None:
    try:
        store = logins()
    except environment.NoHome:
        return None
    login = store.read(address)
    return Session(store, login) if login else None


# --- what is wrong ---


def troubles_of(reports: Sequence[NodeReport], late: float) -> Iterator[str]:
    """Yield what is wrong in a federation, a sentence each."""
    for report in reports:
        if report.state is None:
            yield report.problem
            continue
        yield from (f"{report.name}: {trouble}" for trouble in _troubles_of_node(report.state, late))


def _troubles_of_node(state: Json, late: float) -> Iterator[str]:
    yield from state.get("reasons", ())
    waiting = state.get("feed", {}).get("waiting_seconds", 0)
    if waiting > late:
        yield f"events have waited {span(waiting)} for a position; is a sequencer running?"
    for sink in state.get("sinks", ()):
        yield from (f"sink {sink['name']}: {trouble}" for trouble in _troubles_of_sink(sink, late))
    for consumer in state.get("consumers", ()):
        if consumer["lag_seconds"] > late:
            silence = span(consumer["silent_seconds"])
            yield f"node {consumer['name']} is {_lag(consumer)} behind; it last moved {silence} ago"
    for place in state.get("follows", ()):
        if place["parked"]:
            yield f"{terminal.number(place['parked'], 'event')} of {place['origin']} parked by the {place['consumer']}"


def _troubles_of_sink(sink: Json, late: float) -> Iterator[str]:
    name = sink["name"]
    if sink["lapsed"]:
        yield f"it has lapsed; say from where it goes on: fedstac sink seek {name}"
    elif sink["paused"]:
        yield f"it is paused: {sink['paused']}; then: fedstac sink resume {name}"
    elif sink["failing_seconds"] > late:
        yield f"it has been failing for {span(sink['failing_seconds'])}: {sink['last_error']}"
    elif sink["lag_seconds"] > late:
        yield f"it is {_lag(sink)} behind"
    if sink["dead_letters"]:
        yield f"{terminal.number(sink['dead_letters'], 'dead letter')}; see fedstac dead-letter list"


def _lag(row: Json) -> str:
    return f"{terminal.number(row['lag_events'], 'event')}, {span(row['lag_seconds'])},"


def span(seconds: float | None) -> str:
    """Return a span of time in its largest unit: 35 s, 2 min, 3 h; for None, which stands for endless, a dash."""
    if seconds is None:
        return "-"
    size, unit = next(((size, unit) for size, unit in UNITS if seconds >= size), UNITS[-1])
    return f"{seconds / size:.0f} {unit}"


# --- how it is shown ---


def _show(form: Output, reports: Sequence[NodeReport], troubles: Sequence[str], *, is_watching: bool) -> None:
    if form is not Output.TABLE:
        nodes = [report.state or {"address": report.address, "problem": report.problem} for report in reports]
        terminal.dump({"status": "troubled" if troubles else "ok", "troubles": troubles, "nodes": nodes})
        return
    if is_watching and sys.stdout.isatty():
        PipeConsole().clear()
    with terminal.Listing(form, ("node      ", "version ", "state    ", "roles  ", "address")) as listing:
        for report in reports:
            listing.row({}, _node_cells(report))
    for report in reports:
        if report.state and "feed" in report.state:
            _show_numbers(report.state)
    out()
    for trouble in troubles:
        out(for_terminal(f"! {trouble}"), "red")
    out("something is wrong" if troubles else "all is well", "" if troubles else "green")


def _node_cells(report: NodeReport) -> tuple[object, ...]:
    state = report.state
    if state is None:
        return report.address, "", "no answer", "", ""
    return report.name, state["version"], state["status"], " ".join(state.get("roles", ())), report.address


def _show_numbers(state: Json) -> None:
    """Show the queue and the feed of a node, how far its sinks and its followers are, and how far it follows itself."""
    queue, feed = state["queue"], state["feed"]
    out()
    waiting = f", the oldest for {span(queue['oldest_seconds'])}" if queue["items"] else ""
    unsequenced = f", {feed['waiting']} events without a position" if feed["waiting"] else ""
    items = terminal.number(queue["items"], "item")
    out(for_terminal(f"{state['node']}: {items} in the queue{waiting}"))
    out(f"  the feed ends at {feed['cursor']}{unsequenced}")
    takers = [("sink", row) for row in state["sinks"]] + [("node", row) for row in state["consumers"]]
    if takers:
        columns = ("to  ", "name            ", "through     ", "behind  ", "age    ", "clear in", "letters")
        with terminal.Listing(Output.TABLE, columns) as listing:
            for kind, row in takers:
                behind = row["lag_events"]
                listing.row({}, (
                    kind, row["name"], row["through"], behind, span(row["lag_seconds"]) if behind else "",
                    span(row["clear_seconds"]) if behind else "", row.get("dead_letters", ""),
                ))  # fmt: skip
    if state["follows"]:
        with terminal.Listing(
            Output.TABLE, ("from", "name            ", "through     ", "parked  ", "idle")
        ) as listing:
            for place in state["follows"]:
                listing.row({}, (
                    place["consumer"][:5], place["origin"], place["through"], place["parked"],
                    span(place["idle_seconds"]),
                ))  # fmt: skip


# --- does it answer? ---


@commands.command(rich_help_panel="Node", epilog=examples("fedstac alive || systemctl restart fedstac", codes=True))
def alive() -> None:
    """Ask the process of this machine whether it answers; exit 5 if not. For containers and supervisors.

    A process with an API is asked at FEDSTAC_PORT, one without at FEDSTAC_METRICS_PORT. Nothing is said of the
    database: a process that waits for it is alive. `fedstac doctor` says what is wrong.
    """
    settings = environment.load()
    host = {"0.0.0.0": "127.0.0.1", "::": "[::1]"}.get(settings.host, settings.host)  # noqa: S104
    metrics = (f"http://{host}:{settings.metrics_port}/livez",) if settings.metrics_port else ()
    addresses = (f"http://{host}:{settings.port}/livez", *metrics)
    for address in addresses:
        try:
            if httpx.get(address, timeout=PATIENCE_SECONDS, trust_env=False).is_success:
                return
        except httpx.HTTPError:
            continue
    complain(f"no process answers at {' or '.join(addresses)}", terminal.AWAY)
    raise typer.Exit(terminal.AWAY)
