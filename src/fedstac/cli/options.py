"""Options that many commands share, and what follows from them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import typer

from fedstac import settings as environment
from fedstac.cli.terminal import Output
from fedstac.client import Client

Form = Annotated[Output | None, typer.Option("-o", "--output", help="Form of the results.", show_default="table")]
Url = Annotated[str, typer.Option(help="Address of the server [FEDSTAC_URL].", show_default=False)]
Token = Annotated[str, typer.Option(help="Bearer token; better in [FEDSTAC_TOKEN].", show_default=False)]
Source = Annotated[str, typer.Option(help="Publishing node to follow [FEDSTAC_SOURCE].", show_default=False)]
CODES = (
    "[bold]Exit codes[/bold]: 0 done · 1 some items rejected or failed, or differences found · 2 wrong usage · "
    "3 not found · 4 not authorised · 5 server unreachable or failing after all tries · 130 interrupted"
)


@dataclass(slots=True)
class Options:
    """What was said before the command; what a command says itself comes first."""

    output: Output | None = None
    url: str = ""
    token: str = ""


def form_of(ctx: typer.Context, output: Output | None) -> Output:
    return output or ctx.obj.output or Output.TABLE


def client_of(ctx: typer.Context, url: str, token: str) -> Client:
    """A client of the server that was named, or that the settings name."""
    settings = environment.load()
    address = url or ctx.obj.url or settings.url
    if not address:
        raise typer.BadParameter("say which server: --url https://… or FEDSTAC_URL")
    try:
        return Client(address, token or ctx.obj.token or settings.token or None, retries=settings.retries)
    except ValueError as error:
        raise typer.BadParameter(str(error)) from None


def examples(*lines: str, codes: bool = False) -> str:
    """The end of a command's help."""
    shown = ["[bold]Examples[/bold]", *(f"  {line}" for line in lines)]
    return "\n\n".join(shown) + ("\n\n\n\n" + CODES if codes else "")
