"""Commands about one's own requests."""

from __future__ import annotations

from dataclasses import asdict
from itertools import islice
from typing import Annotated

import typer

from fedstac.cli import datasets, terminal
from fedstac.cli.options import Form, Token, Url, client_of, examples, form_of

commands = typer.Typer(no_args_is_help=True, help="What one has sent, and what became of it.")
SHOWN = 20


@commands.command("list", epilog=examples("fedstac requests list", "fedstac requests list -n 0 -o ndjson", codes=True))
def list_requests(
    ctx: typer.Context,
    last: Annotated[int, typer.Option("-n", "--last", min=0, help="How many; 0: all.")] = SHOWN,
    only: Annotated[str, typer.Option("--status", help="Only queued, running, done, partly, rejected or failed.")] = "",
    output: Form = None,
    url: Url = "",
    token: Token = "",
) -> None:
    """List one's own requests, the newest first."""
    form = form_of(ctx, output)
    with (
        client_of(ctx, url, token) as client,
        terminal.Listing(form, ("request" + " " * 29, "status  ", "action   ", "items", "since")) as listing,
    ):
        for one in islice((each for each in client.requests() if only in ("", each.status)), last or None):
            row = asdict(one)
            listing.row(row, (one.id, one.status, one.action, one.total, one.created[5:16].replace("T", " ")))


commands.command("show", epilog=examples("fedstac requests show 7c1f… --items", codes=True))(datasets.status)
