"""`fedstac vocab`: import what projects publish, look at it, compare versions, ask what would still pass. Offline."""

from __future__ import annotations

import typer

from fedstac.cli.vocab import browsing, checking, importing, installing

commands = typer.Typer(no_args_is_help=True)


@commands.callback()
def together() -> None:
    """Import, compare and look at the vocabularies that datasets are judged by."""


for part in (importing, browsing, installing, checking):
    commands.add_typer(part.commands)
