"""`fedstac person`, for the operators of a node: what closes when somebody leaves a project, or leaves for good."""

from __future__ import annotations

import asyncio
import re
import sys
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from fedstac import settings as environment
from fedstac.cli import terminal
from fedstac.cli.bulk import DryRun, Yes
from fedstac.cli.options import Form, examples, form_of
from fedstac.cli.terminal import Output, for_terminal, out, say

if TYPE_CHECKING:
    from fedstac.db.people import PersonalData

LONGEST_NAME: Final = 128
PSEUDONYM: Final = re.compile(r"(person:)?[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")
ELSEWHERE: Final = (
    "groups of the identity provider, entitlements and shares of Globus are not this node's: they are taken away there"
)
commands = typer.Typer(no_args_is_help=True, help="People who leave a project, or leave for good.")
Person = Annotated[str, typer.Argument(metavar="PERSON", help="As in the logs: person:…, or a token's name.")]
Dsn = Annotated[
    str, typer.Option(help="The node's database [FEDSTAC_DELETER_DSN, FEDSTAC_OWNER_DSN].", show_default=False)
]


@commands.callback()
def together() -> None:
    """Close what people have here when they leave."""


@commands.command(
    epilog=examples(
        "fedstac person leave person:8f14e45f-ceea-467f-9575-1cd5e0d0a1b2 --project CMIP6 --dry-run",
        "fedstac person leave anna --project CMIP6",
        codes=True,
    )
)
def leave(
    ctx: typer.Context,
    person: Person,
    project: Annotated[str, typer.Option(help="The project that they leave.")],
    dry_run: DryRun = False, output: Form = None, dsn: Dsn = "",
) -> None:  # fmt: skip
    """Close what somebody has in a project: memberships of its groups, grants, and results that they wait for.

    Their datasets stay, and so does their name on them. Groups for all projects, and destinations of notifications,
    are of no project and stay too.
    """
    if not 0 < len(person) <= LONGEST_NAME or not person.isprintable():
        raise typer.BadParameter(f"a name is 1 to {LONGEST_NAME} printable characters", param_hint="PERSON")
    data = asyncio.run(_leave(_address(dsn), person, project, dry_run=dry_run))
    _show({"person": person, "project": project, "dry_run": dry_run}, data, form_of(ctx, output))


@commands.command(
    epilog=examples(
        "fedstac person erase person:8f14e45f-ceea-467f-9575-1cd5e0d0a1b2 --dry-run",
        "fedstac person erase person:8f14e45f-ceea-467f-9575-1cd5e0d0a1b2 --yes",
        codes=True,
    )
)
def erase(
    ctx: typer.Context,
    person: Annotated[str, typer.Argument(metavar="PERSON", help="The pseudonym, as in the logs: person:…")],
    dry_run: DryRun = False, yes: Yes = False, output: Form = None, dsn: Dsn = "",
) -> None:  # fmt: skip
    """Close all that a person has here, and forget who the pseudonym is. It cannot be undone.

    Datasets and logs keep the pseudonym, which names nobody from then on. Who comes back gets another one.
    """
    if not PSEUDONYM.fullmatch(person):
        raise typer.BadParameter(
            f"{person!r} is no pseudonym; it looks like person:8f14e45f-ceea-467f-9575-1cd5e0d0a1b2",
            param_hint="PERSON",
        )
    form, who = form_of(ctx, output), f"person:{person.removeprefix('person:')}"
    if not (yes or dry_run):
        _ask(who, asyncio.run(_erase(_address(dsn), who, dry_run=True)))
    data = asyncio.run(_erase(_address(dsn), who, dry_run=dry_run))
    _show({"person": who, "dry_run": dry_run}, data, form)


def _ask(who: str, data: PersonalData) -> None:
    """Show what there is, and ask for the pseudonym. Exit where it is another text."""
    if not (sys.stdin.isatty() and sys.stderr.isatty()):
        raise typer.BadParameter("erase cannot be taken back; say --yes where nobody is asked", param_hint="--yes")
    for line in _lines(data):
        say(line)
    answer = typer.prompt("erase cannot be taken back; type the pseudonym to go on", default="", show_default=False,
                          err=True)  # fmt: skip
    if answer.strip() != who:
        say("nothing is changed")
        raise typer.Exit(terminal.REJECTED)


def _show(about: dict[str, Any], data: PersonalData, form: Output) -> None:
    if form is not Output.TABLE:
        terminal.dump({**about, **data.as_json()})
        return
    who = for_terminal(about["person"])
    if data.is_empty:
        out(f"nothing of {who} is here that closes")
    else:
        out(f"{who}  {'would close' if about['dry_run'] else 'closed'}", "bold")
    for line in _lines(data):
        out(line)
    say(ELSEWHERE, "dim")


def _lines(data: PersonalData) -> list[str]:
    groups = [(each.part, f"{each.name} ({each.project})") for each in data.groups]
    rows = [
        *groups, ("awaited", data.awaited), ("grants", data.grants), ("loads", data.loads),
        ("requests", data.requests), ("bulks", data.bulks), ("cascades", data.cascades),
        ("follows", data.subscriptions), ("places", data.destinations), ("messages", data.messages),
        ("sessions", data.sessions), ("identity", "who it is" if data.mapping else ""),
        ("stay", f"{data.datasets} datasets" if data.datasets else ""),
    ]  # fmt: skip
    return [f"  {label:<10}{for_terminal(value)}" for label, value in rows if value]


def _address(dsn: str) -> str:
    settings = environment.load()
    return dsn or settings.deleter_dsn or settings.owner_dsn


async def _leave(dsn: str, who: str, project: str, *, dry_run: bool) -> PersonalData:
    from fedstac.db import opening, people

    conn = await opening.connect(dsn, application="fedstac person leave")
    try:
        return await people.leave(conn, who, project, dry_run=dry_run)
    finally:
        await conn.close(timeout=10)


async def _erase(dsn: str, who: str, *, dry_run: bool) -> PersonalData:
    from fedstac.db import opening, people

    conn = await opening.connect(dsn, application="fedstac person erase")
    try:
        return await people.erase(conn, who, dry_run=dry_run)
    finally:
        await conn.close(timeout=10)
