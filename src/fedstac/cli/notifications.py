"""Commands about notifications: where one is told what became of one's requests and datasets."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated, Any
from urllib.parse import quote

import orjson
import typer

from fedstac.cli import terminal
from fedstac.cli.options import Form, Token, Url, examples, form_of, server_of
from fedstac.cli.terminal import Output, for_terminal, out, say
from fedstac.client.transport import JSON_BODY, Transport

commands = typer.Typer(no_args_is_help=True, help="Be told, by mail or webhook, what became of requests and datasets.")
Id = Annotated[str, typer.Argument(help="The destination's id, from the list.")]


class On(StrEnum):
    """What one can be told of without asking each time."""

    REQUEST = "request"
    DATASET = "dataset"
    SUBSCRIPTION = "subscription"


def _path(id: str) -> str:
    return f"/notifications/{quote(id, safe='')}"


def _post(server: Transport, path: str, body: object) -> Any:
    return server.json("POST", path, content=orjson.dumps(body), headers=JSON_BODY)


@commands.command(
    epilog=examples(
        "fedstac notifications add mailto:anna@ncar.example",
        "fedstac notifications add slack+https://hooks.slack.com/services/… --on request --on dataset",
        "fedstac notifications add mailto:anna@ncar.example --on subscription",
        codes=True,
    )
)
def add(
    ctx: typer.Context,
    address: Annotated[str, typer.Argument(help="mailto:…, https://… or slack+https://…")],
    on: Annotated[
        list[On] | None,
        typer.Option(
            "--on",
            help="request: one of yours is final; dataset: somebody else changed one of yours; subscription: one of "
            "yours is paused or ended, or has dead letters.",
            show_default="request",
        ),
    ] = None,
    output: Form = None,
    url: Url = "",
    token: Token = "",
) -> None:  # fmt: skip
    """Register a mailbox or a webhook. Unless the node knows it, a code is sent there: confirm with it.

    A webhook's answer shows the secret that its messages are signed with (Standard Webhooks).
    """
    with server_of(ctx, url, token) as server:
        destination = _post(
            server, "/notifications", {"address": address, "on": [each.value for each in on or [On.REQUEST]]}
        )
    _show(form_of(ctx, output), destination)
    if not destination["confirmed"]:
        say(
            f"a code was sent there; then: fedstac notifications confirm {for_terminal(destination['id'])} <code>",
            "bold",
        )


@commands.command("list", epilog=examples("fedstac notifications list", "fedstac notifications list -o ndjson"))
def list_all(ctx: typer.Context, output: Form = None, url: Url = "", token: Token = "") -> None:
    """List where you are told; administrators see the operators' destinations too."""
    with server_of(ctx, url, token) as server:
        destinations = server.json("GET", "/notifications")["destinations"]
    with terminal.Listing(form_of(ctx, output), ("id", "address", "on", "confirmed")) as listing:
        for each in destinations:
            confirmed = (each["confirmed"] or "no")[:10]
            listing.row(each, (each["id"], each["address"], " ".join(each["on"]), confirmed))


@commands.command(epilog=examples("fedstac notifications show 5f2c8a90-…"))
def show(ctx: typer.Context, id: Id, output: Form = None, url: Url = "", token: Token = "") -> None:
    """Show one destination, with the secret of a webhook."""
    with server_of(ctx, url, token) as server:
        destination = server.json("GET", _path(id))
    _show(form_of(ctx, output), destination)


@commands.command(epilog=examples("fedstac notifications confirm 5f2c8a90-… MZXW6YTBOI", codes=True))
def confirm(
    ctx: typer.Context,
    id: Id,
    code: Annotated[str, typer.Argument(help="The code that arrived there.")],
    output: Form = None,
    url: Url = "",
    token: Token = "",
) -> None:
    """Say the code that was sent to a destination; from then on it is told."""
    with server_of(ctx, url, token) as server:
        destination = _post(server, _path(id) + "/confirm", {"code": code})
    _show(form_of(ctx, output), destination)


@commands.command(epilog=examples("fedstac notifications remove 5f2c8a90-…"))
def remove(ctx: typer.Context, id: Id, url: Url = "", token: Token = "") -> None:
    """Take a destination away; nothing more is sent there."""
    with server_of(ctx, url, token) as server:
        server.send("DELETE", _path(id))
    out("removed")


@commands.command("test", epilog=examples("fedstac notifications test 5f2c8a90-…"))
def send_test(ctx: typer.Context, id: Id, url: Url = "", token: Token = "") -> None:
    """Send a test message there."""
    with server_of(ctx, url, token) as server:
        _post(server, _path(id) + "/test", {})
    out("a test message is on its way")


def _show(form: Output, destination: dict[str, Any]) -> None:
    if form is not Output.TABLE:
        terminal.dump(destination)
        return
    out(for_terminal(destination["id"]), "bold")
    for label in ("address", "confirmed", "secret"):
        if destination.get(label):
            out(f"  {label:<11}{for_terminal(destination[label])}")
    out(f"  {'told of':<11}{for_terminal(' '.join(destination['on']) or 'requests that name it in Fedstac-Notify')}")
