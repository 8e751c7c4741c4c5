"""`fedstac requests`: the requests that a user sent."""

from __future__ import annotations

from collections import deque
from dataclasses import asdict
from enum import StrEnum
from itertools import islice
from typing import Annotated

import typer

from fedstac.cli import datasets, terminal
from fedstac.cli.options import Form, Token, Url, client_of, examples, form_of
from fedstac.cli.terminal import Output
from fedstac.client.transport import Invalid

commands = typer.Typer(no_args_is_help=True, help="Your own requests, and what became of them.")
SHOWN = 20


class RequestStanding(StrEnum):
    """How a request stands, in one word for people."""

    QUEUED = "queued"
    RUNNING = "running"
    DONE = "done"
    PARTLY = "partly"
    REJECTED = "rejected"
    FAILED = "failed"
    CANCELLED = "cancelled"


@commands.command("list", epilog=examples("fedstac requests list", "fedstac requests list -n 0 -o ndjson", codes=True))
def list_requests(
    ctx: typer.Context,
    last: Annotated[int, typer.Option("-n", "--last", min=0, help="How many; 0: all.")] = SHOWN,
    only: Annotated[
        RequestStanding | None, typer.Option("--status", help="Only with this status.", show_default=False)
    ] = None,
    output: Form = None,
    url: Url = "",
    token: Token = "",
) -> None:
    """List your own requests, newest first."""
    form = form_of(ctx, output)
    with (
        client_of(ctx, url, token) as client,
        terminal.Listing(form, ("request" + " " * 29, "status  ", "action   ", "items", "since")) as listing,
    ):
        for one in islice((each for each in client.requests() if only in (None, each.shown_status)), last or None):
            row = asdict(one)
            listing.row(row, (one.id, one.shown_status, one.action, one.total, terminal.moment(one.created)))


@commands.command(epilog=examples("fedstac requests cancel 7c1f…", codes=True))
def cancel(
    ctx: typer.Context,
    request: Annotated[str, typer.Argument(help="A request's id.")],
    output: Form = None,
    url: Url = "",
    token: Token = "",
) -> None:
    """Cancel the items of a request that still wait. What is done stays done."""
    form = form_of(ctx, output)
    with client_of(ctx, url, token) as client:
        current = client.cancel(request)
    if form is not Output.TABLE:
        terminal.dump(current.document)
        return
    cancelled = current.document["cancelled"]
    effect = f"{terminal.number(cancelled, 'item')} cancelled" if cancelled else "nothing of it was waiting"
    terminal.out(
        f"{effect}; the request is {current.shown_status}: {current.counts.get('done', 0)} of {current.total} done"
    )


@commands.command(
    epilog=examples("fedstac requests retry 7c1f…", "fedstac requests retry 7c1f… --follow -o json", codes=True)
)
def retry(
    ctx: typer.Context,
    request: Annotated[str, typer.Argument(help="A request's id.")],
    follow: Annotated[bool, typer.Option("--follow", help="Until it is final; exit 1 if items are refused.")] = False,
    output: Form = None,
    url: Url = "",
    token: Token = "",
) -> None:
    """Send the items of a request that were rejected or failed once more, as a new request."""
    form = form_of(ctx, output)
    with client_of(ctx, url, token) as client:
        try:
            new_request = client.retry(request)
        except Invalid as refusal:  # all of it, once more
            terminal.complain(str(refusal))
            raise typer.Exit(terminal.REJECTED) from None
        current = deque(client.wait(new_request), maxlen=1).pop() if follow else client.request(new_request)
    if form is not Output.TABLE:
        terminal.dump(current.document)
    elif follow:
        terminal.show_request(current)
    else:
        number = terminal.number(current.total, "item")
        terminal.out(f"{number} sent again; to follow: fedstac requests show {current.id} --follow")
    if current.is_final and current.status != "done":
        raise typer.Exit(terminal.REJECTED)


commands.command("show", epilog=examples("fedstac requests show 7c1f… --items", codes=True))(datasets.request_status)
