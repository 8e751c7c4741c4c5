"""Commands for the operators of a node: `fedstac admin …`."""

from __future__ import annotations

import asyncio
import json
import re
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.table import Table

from fedstac import settings as environment
from fedstac.cli import terminal
from fedstac.cli.options import Form, examples, form_of
from fedstac.cli.terminal import NOT_FOUND, Output, complain

if TYPE_CHECKING:
    from fedstac.db.invariants import Violation
    from fedstac.workers.leveling import LevelCounts

PSEUDONYM = re.compile(r"(person:)?[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")
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
    """Check the invariants of a node's database in one snapshot: silent if all hold, else exit code 1 and a list.

    On a terminal a bar shows how far it is.
    """
    violations = asyncio.run(_check(dsn or environment.load().dsn))
    rows = [{"name": one.name, "statement": one.statement, "examples": list(one.examples)} for one in violations]
    match form_of(ctx, output):
        case Output.JSON:
            typer.echo(json.dumps({"violations": rows}, indent=2))
        case Output.NDJSON:
            for row in rows:
                typer.echo(json.dumps(row))
        case Output.TABLE:
            if violations:
                Console().print(_table(violations))
    if violations:
        raise typer.Exit(1)


@commands.command(
    "erase-person",
    epilog=examples("fedstac admin erase-person person:8f14e45f-ceea-467f-9575-1cd5e0d0a1b2"),
)
def erase_person(
    who: Annotated[str, typer.Argument(help="The pseudonym, as it stands in logs: person:…")],
    dsn: Annotated[
        str, typer.Option(help="The node's database [FEDSTAC_DELETER_DSN, FEDSTAC_OWNER_DSN].", show_default=False)
    ] = "",
) -> None:
    """Forget who a pseudonym is, as `fedstac person erase` does, without a question. It cannot be undone."""
    if not PSEUDONYM.fullmatch(who):
        raise typer.BadParameter(f"{who!r} is no pseudonym; it looks like person:8f14e45f-ceea-467f-9575-1cd5e0d0a1b2")
    settings = environment.load()
    if not asyncio.run(_erase(dsn or settings.deleter_dsn or settings.owner_dsn, who)):
        complain(f"nobody has the pseudonym {who} here")
        raise typer.Exit(NOT_FOUND)
    typer.echo(f"{who} names nobody any more")


@commands.command("new-epoch", epilog=examples("fedstac admin new-epoch"))
def new_epoch(
    dsn: Annotated[str, typer.Option(help="The node's database; empty: that of the settings.")] = "",
) -> None:
    """Start a new epoch of the log after the database's disk was put back; every node that follows takes a snapshot.

    A restore with pg_restore, or from a base backup, needs no command: the node notices it when it starts.
    """
    number = asyncio.run(_start_epoch(dsn or environment.load().dsn))
    typer.echo(f"the log goes on in the epoch {number}; every node that follows takes a snapshot now")


@commands.command(
    "apply-levels",
    epilog=examples("fedstac admin apply-levels CMIP6 --dry-run", "fedstac admin apply-levels CMIP6 -o json"),
)
def apply_levels(
    ctx: typer.Context,
    project: Annotated[str, typer.Argument(help="The project, which is the name of its collection.")],
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only count what would be changed.")] = False,
    output: Form = None,
) -> None:
    """Bring the stored datasets of a project to the access level that the policy file asks for.

    New datasets have it from their publication on. Stopped anywhere, it goes on when it is called again.
    """
    counts = asyncio.run(_apply_levels(project, is_rehearsal=dry_run))
    row = {"project": project, "datasets": counts.datasets, "changed": counts.changed, "refused": counts.refused}
    match form_of(ctx, output):
        case Output.JSON:
            typer.echo(json.dumps(row, indent=2))
        case Output.NDJSON:
            typer.echo(json.dumps(row))
        case Output.TABLE:
            verb = "would have" if dry_run else "have"
            typer.echo(f"{counts.changed} of {counts.datasets} datasets of {project} {verb} another level now")
    if counts.refused:
        complain(f"{counts.refused} datasets could not be changed; the audit log says why")
        raise typer.Exit(1)


async def _apply_levels(project: str, *, is_rehearsal: bool) -> LevelCounts:
    from fedstac import bootstrap
    from fedstac.domain.policy import ADMIN, Principal
    from fedstac.workers import leveling

    with terminal.bars(["looked at"]) as bars:
        async with bootstrap.node(environment.load()) as node, node.pool.acquire() as conn:
            return await leveling.apply_levels(
                conn, node.rules, project, Principal("fedstac admin", frozenset((ADMIN,))), is_rehearsal=is_rehearsal,
                say=lambda counts: bars.set("looked at", counts.datasets, None),
            )  # fmt: skip


async def _start_epoch(dsn: str) -> int:
    from fedstac.db import feed, opening

    conn = await opening.connect(dsn, application="fedstac admin new-epoch")
    try:
        return await feed.start_epoch(conn)
    finally:
        await conn.close(timeout=10)


async def _erase(dsn: str, who: str) -> bool:
    from fedstac.db import opening, people

    conn = await opening.connect(dsn, application="fedstac admin erase-person")
    try:
        return (await people.erase(conn, who)).mapping
    finally:
        await conn.close(timeout=10)


async def _check(dsn: str) -> list[Violation]:
    from fedstac.db import invariants, opening

    count_of_checks = 0
    with terminal.bars(["checked"]) as bars:

        def count(name: str, statement: str) -> None:
            nonlocal count_of_checks
            count_of_checks += 1
            bars.set("checked", count_of_checks, None)

        conn = await opening.connect(dsn, application="fedstac admin check")
        try:
            return await invariants.check(conn, say=count)
        finally:
            await conn.close(timeout=10)


def _table(violations: list[Violation]) -> Table:
    table = Table("invariant", "does not hold", "for example", show_lines=True)
    for violation in violations:
        table.add_row(violation.name, violation.statement, "\n".join(violation.examples))
    return table
