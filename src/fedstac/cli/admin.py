"""Commands for the operators of a node: `fedstac admin …`."""

from __future__ import annotations

import asyncio
import json
import time
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.table import Table

from fedstac import settings as environment
from fedstac.cli.options import Form, examples, form_of
from fedstac.cli.terminal import Output

if TYPE_CHECKING:
    from fedstac.db.invariants import Violation

commands = typer.Typer(no_args_is_help=True, help="Look after a node.")


@commands.callback()
def together() -> None:
    """Look after a node."""


@commands.command(epilog=examples("fedstac admin check", "fedstac admin check -o json --dsn postgresql://…/fedstac"))
def check(
    ctx: typer.Context,
    dsn: Annotated[str, typer.Option(help="The node's database; empty: that of the settings.")] = "",
    output: Form = None,
) -> None:
    """Check the invariants of a node's database in one snapshot; exit code 1 if one does not hold."""
    found = asyncio.run(_check(dsn or environment.load().dsn))
    rows = [{"name": one.name, "statement": one.statement, "examples": list(one.examples)} for one in found]
    match form_of(ctx, output):
        case Output.JSON:
            typer.echo(json.dumps({"violations": rows}, indent=2))
        case Output.NDJSON:
            for row in rows:
                typer.echo(json.dumps(row))
        case Output.TABLE:
            Console().print(_table(found) if found else "every invariant holds")
    if found:
        raise typer.Exit(1)


async def _check(dsn: str) -> list[Violation]:
    from fedstac.db import connections, invariants

    progress, began = Console(stderr=True, highlight=False), time.monotonic()

    def say(name: str, statement: str) -> None:
        progress.print(f"{time.monotonic() - began:8.1f} s  {name:4} {statement}", soft_wrap=True, markup=False)

    conn = await connections.connect(dsn, application="fedstac admin check")
    try:
        return await invariants.check(conn, say=say)
    finally:
        await conn.close(timeout=10)


def _table(found: list[Violation]) -> Table:
    table = Table("invariant", "does not hold", "for example", show_lines=True)
    for violation in found:
        table.add_row(violation.name, violation.statement, "\n".join(violation.examples))
    return table
