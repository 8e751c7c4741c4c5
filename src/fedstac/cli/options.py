"""Options that many commands share: the form of the results, the server, the token."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Annotated

import typer

from fedstac import settings as environment
from fedstac.cli.terminal import Output, for_terminal, say
from fedstac.client import Client
from fedstac.client.credentials import Session, Store
from fedstac.client.transport import TokenSource, Transport, checked_address

Form = Annotated[Output | None, typer.Option("-o", "--output", help="Form of the results.", show_default="table")]
Url = Annotated[str, typer.Option(help="Address of the server [FEDSTAC_URL].", show_default=False)]
Token = Annotated[str, typer.Option(help="Bearer token; better in [FEDSTAC_TOKEN].", show_default=False)]
Sources = Annotated[
    list[str] | None,
    typer.Option("--source", help="Publishing node to follow [FEDSTAC_SOURCE]; repeatable.", show_default=False),
]
CODES = (
    "[bold]Exit codes[/bold]: 0 done · 1 some items rejected or failed, or differences found · 2 wrong usage · "
    "3 not found · 4 not authorised · 5 server, database or system unreachable, failing after all tries, or a process "
    "that cannot start · 70 a fault in fedstac itself · 130 interrupted · 141 the reader of the output has gone"
)


@dataclass(slots=True)
class Options:
    """The options before the command. Those of the command itself come first."""

    output: Output | None = None
    url: str = ""
    token: str = ""


def form_of(ctx: typer.Context, output: Output | None) -> Output:
    """Return the form of the results."""
    return output or ctx.obj.output or Output.TABLE


def address_of(ctx: typer.Context, url: str) -> str:
    """Return the server's address: that of the option, or of the settings."""
    address = str(url or ctx.obj.url or environment.load().url)
    if not address:
        raise typer.BadParameter("say which server: --url https://… or FEDSTAC_URL")
    try:
        checked_address(address)
    except ValueError as error:
        raise typer.BadParameter(str(error)) from None
    return address


def logins() -> Store:
    """Return the logins of this user."""
    return Store(environment.config_folder())


def token_of(ctx: typer.Context, token: str, address: str) -> str | TokenSource | None:
    """Return the token of the option or the settings, else that of the login at this server, renewed in time."""
    bearer = str(token or ctx.obj.token or environment.load().token)
    if bearer:
        return bearer
    try:
        store = logins()
    except environment.NoHome:  # nor a login, then
        return None
    login = store.read(address)
    return Session(store, login) if login else None


@contextmanager
def server_of(ctx: typer.Context, url: str, token: str) -> Iterator[Transport]:
    """Yield the server of a command, for requests that no method of the client makes."""
    address = address_of(ctx, url)
    retries = environment.load().retries
    bearer = token_of(ctx, token, address)
    transport = Transport(address, bearer, timeout=60, retries=retries, on_retry=say_retry)
    try:
        yield transport
    finally:
        transport.close()


def client_of(ctx: typer.Context, url: str, token: str) -> Client:
    """Return a client of the server that the option or the settings name."""
    address = address_of(ctx, url)
    retries = environment.load().retries
    return Client(address, token_of(ctx, token, address), retries=retries, on_retry=say_retry)


def say_retry(reason: str, seconds: float) -> None:
    """Tell people that a request is sent again, and why, before they wait for it."""
    say(for_terminal(f"{reason} in {max(1, round(seconds))} s"), "dim")


def examples(*lines: str, codes: bool = True) -> str:
    """Return the end of a command's help: examples, and what its exit codes mean."""
    paragraphs = ["[bold]Examples[/bold]", *(f"  {line}" for line in lines)]
    return "\n\n".join(paragraphs) + ("\n\n\n\n" + CODES if codes else "")
