"""Commands about subscriptions, and what changed since a place of the log."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable
from contextlib import suppress
from typing import Annotated, Any, Final

import orjson
import typer

from fedstac.cli import terminal
from fedstac.cli.options import Form, Token, Url, client_of, examples, form_of
from fedstac.cli.terminal import Output, for_terminal, out, say
from fedstac.client import Client
from fedstac.domain.events import EventFormat

commands = typer.Typer(no_args_is_help=True, help="Follow the log with a filter; the server keeps your place.")
changes = typer.Typer(rich_markup_mode="rich")
Name = Annotated[str, typer.Argument(help="The subscription's name.")]
Cql2 = Annotated[str, typer.Option("--filter", metavar="CQL2", help="Datasets that fit before or after a change.")]
Collections = Annotated[
    list[str] | None, typer.Option("--collection", help="Of this collection; repeatable.", show_default="all")
]
Types = Annotated[
    list[str] | None,
    typer.Option("--type", help="Of this type: dataset.updated, dataset.left; repeatable.", show_default="all"),
]
Box = Annotated[str, typer.Option("--bbox", metavar="W,S,E,N", help="Datasets that touch a box.")]
Format = Annotated[str, typer.Option("--format", help=f"How events are written: {', '.join(EventFormat)}.")]
LONG_POLL: Final = 20
EVENT_COLUMNS: Final = ("place    ", "kind    ", "type                     ", "dataset")
REST_SECONDS: Final = 1.0  # between looks while another reader has the lease
Json = dict[str, Any]


def _conditions(cql2: str, collections: list[str] | None, types: list[str] | None, bbox: str) -> Json:
    """Return the members of a filter that the options name."""
    members: Json = {"cql2": cql2, "collections": collections, "types": types, "bbox": _box(bbox)}
    return {name: value for name, value in members.items() if value}


def _box(text: str) -> list[float]:
    try:
        return [float(number) for number in text.split(",")] if text else []
    except ValueError:
        raise typer.BadParameter("write four numbers: west,south,east,north", param_hint="--bbox") from None


@commands.command(
    epilog=examples(
        "fedstac subscription put maps --collection CMIP6 --filter \"cmip6:variable_id = 'tas'\"",
        "fedstac subscription put portal --webhook https://portal.example.org/hook --format overview --from start",
    )
)
def put(
    ctx: typer.Context,
    name: Name,
    cql2: Cql2 = "",
    collection: Collections = None,
    event_type: Types = None,
    bbox: Box = "",
    webhook: Annotated[str, typer.Option(metavar="URL", help="Send events there; without it they are pulled.")] = "",
    form: Format = "cloudevents",
    key: Annotated[str, typer.Option(help="Key, with {id}, {collection}, {lineage}; else the format's.")] = "",
    batch: Annotated[int, typer.Option(min=1, max=1000, help="Events at once.")] = 100,
    start: Annotated[
        str, typer.Option("--from", help="Of a new one: head, start, a cursor or a moment.")
    ] = "head",
    output: Form = None,
    url: Url = "",
    token: Token = "",
) -> None:  # fmt: skip
    """Make a subscription, or change one of yours; it keeps its place then.

    The answer to a new webhook has the secret that signs what it gets.
    """
    wish = {
        "delivery": "webhook" if webhook else "pull", "url": webhook or None, "format": form, "key": key,
        "filter": _conditions(cql2, collection, event_type, bbox), "batch": batch, "from": start,
    }  # fmt: skip
    with client_of(ctx, url, token) as client:
        _show(form_of(ctx, output), client.put_subscription(name, wish))


@commands.command("list", epilog=examples("fedstac subscription list", "fedstac subscription list --all -o ndjson"))
def list_all(
    ctx: typer.Context,
    everybodys: Annotated[bool, typer.Option("--all", help="Those of everybody; for managers of messaging.")] = False,
    output: Form = None,
    url: Url = "",
    token: Token = "",
) -> None:
    """List your subscriptions: how far each is, and what it has not taken."""
    columns = ("name          ", "delivery", "place   ", "stand  ", "waiting", "dead", "filter")
    with client_of(ctx, url, token) as client, terminal.Listing(form_of(ctx, output), columns) as listing:
        for each in client.subscriptions(everybodys=everybodys):
            condition = orjson.dumps(each["filter"]).decode()
            cells = (each["name"], each["delivery"], each["cursor"], each["stand"], each["waiting"],
                     each["dead_letters"], condition)  # fmt: skip
            listing.row(each, cells)


@commands.command(epilog=examples("fedstac subscription show maps", "fedstac subscription show maps -o json"))
def show(ctx: typer.Context, name: Name, output: Form = None, url: Url = "", token: Token = "") -> None:
    """Show one subscription."""
    with client_of(ctx, url, token) as client:
        _show(form_of(ctx, output), client.subscription(name))


@commands.command(epilog=examples("fedstac subscription remove maps"))
def remove(ctx: typer.Context, name: Name, url: Url = "", token: Token = "") -> None:
    """Remove a subscription with its place and its dead letters."""
    with client_of(ctx, url, token) as client:
        client.delete_subscription(name)
    out("removed")


@commands.command(
    epilog=examples(
        "fedstac subscription follow maps -o ndjson | jq -r '[.kind, .value.subject] | @tsv'",
        "fedstac subscription follow maps --once",
    )
)
def follow(
    ctx: typer.Context,
    name: Name,
    once: Annotated[bool, typer.Option("--once", help="End when there is nothing more.")] = False,
    output: Form = None,
    url: Url = "",
    token: Token = "",
) -> None:
    """Take events as they come, and acknowledge each batch once it is written. Ctrl-C ends it and loses nothing."""
    with (
        client_of(ctx, url, token) as client,
        terminal.Listing(form_of(ctx, output), EVENT_COLUMNS) as listing,
        suppress(KeyboardInterrupt),
    ):
        while True:
            batch = client.next_events(name, wait=0 if once else LONG_POLL)
            if batch["events"]:
                _write(listing, batch["events"])
                sys.stdout.flush()
                client.ack_events(name, batch["cursor"], batch["lease"])
            elif once:
                break
            else:
                time.sleep(REST_SECONDS)


@commands.command("next", epilog=examples("fedstac subscription next maps --lease 300 -o json"))
def take_next(
    ctx: typer.Context,
    name: Name,
    limit: Annotated[int, typer.Option(min=0, max=1000, help="Events at most; 0: its batch.")] = 0,
    lease: Annotated[int, typer.Option(min=1, max=3600, help="Seconds for which nobody else gets them.")] = 60,
    output: Form = None,
    url: Url = "",
    token: Token = "",
) -> None:
    """Take the next events under a lease. Then acknowledge them: fedstac subscription ack."""
    form = form_of(ctx, output)
    with client_of(ctx, url, token) as client:
        batch = client.next_events(name, limit=limit or None, lease=lease)
    if form is Output.JSON:
        terminal.dump(batch)
        return
    with terminal.Listing(form, EVENT_COLUMNS) as listing:
        _write(listing, batch["events"])
    if batch["events"]:
        say(for_terminal(f"then: fedstac subscription ack {name} {batch['cursor']} --lease {batch['lease']}"), "bold")


@commands.command(epilog=examples("fedstac subscription ack maps 1.4711 --lease 5f2c8a90-…"))
def ack(
    ctx: typer.Context,
    name: Name,
    cursor: Annotated[str, typer.Argument(help="Everything through there was taken.")],
    lease: Annotated[str, typer.Option(help="Of the answer to `next`.")] = "",
    output: Form = None,
    url: Url = "",
    token: Token = "",
) -> None:
    """Acknowledge events that were taken."""
    with client_of(ctx, url, token) as client:
        place = client.ack_events(name, cursor, lease or None)
    if form_of(ctx, output) is Output.TABLE:
        out(for_terminal(place["cursor"]))
    else:
        terminal.dump(place)


@commands.command(epilog=examples("fedstac subscription nack maps 01a2261e-… --reason 'the disk is full'"))
def nack(
    ctx: typer.Context,
    name: Name,
    event_id: Annotated[str, typer.Argument(help="The event's id.")],
    reason: Annotated[str, typer.Option(help="Why it could not be taken.")],
    retry_in: Annotated[
        float | None, typer.Option(min=0, help="Seconds until it is given again.", show_default="by attempts")
    ] = None,
    output: Form = None,
    url: Url = "",
    token: Token = "",
) -> None:  # fmt: skip
    """Say that an event could not be taken. It is given again, and later ones of its dataset wait behind it."""
    with client_of(ctx, url, token) as client:
        _show_letters(form_of(ctx, output), [client.nack_event(name, event_id, reason, retry_in=retry_in)])


@commands.command(
    epilog=examples(
        "fedstac subscription seek maps --to start", "fedstac subscription seek maps --to 2026-11-29T10:00:00Z"
    )
)
def seek(
    ctx: typer.Context,
    name: Name,
    to: Annotated[str, typer.Option("--to", help="head, start, a cursor such as 1.4711, or a moment.")],
    output: Form = None,
    url: Url = "",
    token: Token = "",
) -> None:
    """Let a subscription go on after another place. What waits to be given again is dropped."""
    with client_of(ctx, url, token) as client:
        _show(form_of(ctx, output), client.seek_subscription(name, cursor=to))


@commands.command("dead-letters", epilog=examples("fedstac subscription dead-letters maps"))
def list_dead_letters(ctx: typer.Context, name: Name, output: Form = None, url: Url = "", token: Token = "") -> None:
    """List what a subscription refused for good, the oldest first, and why."""
    with client_of(ctx, url, token) as client:
        _show_letters(form_of(ctx, output), _every_letter(client, name))


def _every_letter(client: Client, name: str) -> Iterable[Json]:
    after = 0
    while page := client.subscription_dead_letters(name, after=after):
        yield from page
        after = page[-1]["id"]


@commands.command(epilog=examples("fedstac subscription redrive maps 17"))
def redrive(
    ctx: typer.Context,
    name: Name,
    id: Annotated[int, typer.Argument(help="The id from the list of dead letters.")],
    output: Form = None,
    url: Url = "",
    token: Token = "",
) -> None:
    """Give a dead letter out again. Refused where its dataset changed since: the later event says more."""
    with client_of(ctx, url, token) as client:
        _show_letters(form_of(ctx, output), [client.redrive_dead_letter(name, id)])


@changes.command(
    "changes", rich_help_panel="Client",
    epilog=examples(
        "fedstac changes --since start --collection CMIP6 -o ndjson > changes.ndjson",
        "fedstac changes --since 1.4711 --filter \"cmip6:variable_id = 'tas'\"",
    ),
)  # fmt: skip
def list_changes(
    ctx: typer.Context,
    since: Annotated[str, typer.Option(help="A cursor, start, or a moment to begin with.")],
    cql2: Cql2 = "",
    collection: Collections = None,
    event_type: Types = None,
    bbox: Box = "",
    form: Format = "cloudevents",
    output: Form = None,
    url: Url = "",
    token: Token = "",
) -> None:
    """List what changed since a place of the log, deletions included, to its end. The last line says where to go on.

    A cursor is exact; a moment is not: what was written before it and committed after it may be missing.
    """
    conditions: Json = {"format": form, "limit": 1000}
    conditions |= {"filter": cql2} if cql2 else {}
    conditions |= {"collections": ",".join(collection)} if collection else {}
    conditions |= {"types": ",".join(event_type)} if event_type else {}
    conditions |= {"bbox": bbox} if _box(bbox) else {}
    with client_of(ctx, url, token) as client, terminal.Listing(form_of(ctx, output), EVENT_COLUMNS) as listing:
        page = client.changes_since(since, conditions)
        _write_changes(listing, page)
        while any(link["rel"] == "next" for link in page["links"]):
            page = client.changes_since(page["cursor"], conditions)
            _write_changes(listing, page)
    say(for_terminal(f"go on with: fedstac changes --since {page['cursor']}"), "bold")


def _write_changes(listing: terminal.Listing, page: Json) -> None:
    _write(listing, page["changes"])
    for each in page.get("unwritable", ()):
        dataset = each["dataset"] or each["collection"]
        say(for_terminal(f"the change of {dataset} at {each['cursor']} is left out: {each['reason']}"), "yellow")


def _write(listing: terminal.Listing, events: Iterable[Json]) -> None:
    for each in events:
        listing.row(each, (each["cursor"], each["kind"], each["type"].removeprefix("org.fedstac."), each["key"]))


def _show_letters(form: Output, letters: Iterable[Json]) -> None:
    with terminal.Listing(form, ("id    ", "place   ", "attempts", "dataset", "reason")) as listing:
        for each in letters:
            dataset = each["dataset"] or each["collection"]
            listing.row(each, (each["id"], each["place"], each["attempts"], dataset, each["reason"]))


def _show(form: Output, subscription: Json) -> None:
    if form is not Output.TABLE:
        terminal.dump(subscription)
        return
    out(for_terminal(subscription["name"]), "bold")
    for label, value in subscription.items():
        if label != "name" and value not in (None, "", 0, {}):
            text = orjson.dumps(value).decode() if isinstance(value, dict) else str(value)
            out(f"  {label:<15}{for_terminal(text)}")
