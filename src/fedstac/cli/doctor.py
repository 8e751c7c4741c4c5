"""`fedstac doctor`: what is wrong with a node, and what to do."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Annotated

import typer

from fedstac import settings as environment
from fedstac.cli import terminal
from fedstac.cli.options import Form, examples, form_of
from fedstac.cli.terminal import Output, for_terminal, out
from fedstac.domain.diagnosis import Diagnosis, Grade

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

commands = typer.Typer()
COLOURS = {Grade.OK: "green", Grade.UNKNOWN: "dim", Grade.WARNING: "yellow", Grade.FAULT: "red"}


@commands.command(
    rich_help_panel="Node",
    epilog=examples(
        "fedstac doctor",
        "fedstac doctor --all",
        "fedstac doctor -o ndjson | jq 'select(.verdict == \"fault\")'",
        codes=True,
    ),
)
def doctor(
    ctx: typer.Context,
    everything: Annotated[bool, typer.Option("--all", help="Show the checks that found nothing too.")] = False,
    output: Form = None,
) -> None:
    """Look at what a node stands on, and say what is wrong and what to do; exit 1 if something does not work.

    Run it with the settings of the node, on its machine: settings, database, migrations, roles, disk, clocks, the queue
    and the log, background parts, sinks and their brokers, parked events, tokens, vocabularies, sources. It changes
    nothing, and says what cannot be told from here.
    """
    form = form_of(ctx, output)
    verdicts = asyncio.run(_show(form, everything))
    if form is Output.TABLE:
        faults, warnings = verdicts.count(Grade.FAULT), verdicts.count(Grade.WARNING)
        if faults or warnings:
            out(f"{terminal.number(faults, 'fault')}, {terminal.number(warnings, 'warning')}")
        else:
            out(f"{len(verdicts)} checks; nothing is wrong", "green")
    if Grade.FAULT in verdicts:
        raise typer.Exit(terminal.REJECTED)


async def _show(form: Output, everything: bool) -> list[Grade]:
    from fedstac.workers import doctor as examining

    verdicts = []
    findings: AsyncIterator[Diagnosis] = examining.examine(environment.load())
    with terminal.Listing(form, ()) as listing:
        async for each in findings:
            verdicts.append(each.verdict)
            if form is Output.TABLE:
                if everything or each.verdict is not Grade.OK:
                    _show_one(each)
            elif everything or each.verdict is not Grade.OK:
                listing.row({
                    "check": each.check, "verdict": each.verdict, "thing": each.thing, "why": each.why,
                    "remedy": each.remedy,
                }, ())  # fmt: skip
    return verdicts


def _show_one(one: Diagnosis) -> None:
    """Show a finding to people: what it is about, why, and what to do."""
    if one.verdict is Grade.OK:
        out(for_terminal(f"ok       {one.thing}"), COLOURS[one.verdict])
        return
    out(for_terminal(f"{one.verdict:<8} {one.thing}: {one.why}"), COLOURS[one.verdict])
    if one.remedy:
        out(for_terminal(f"         → {one.remedy}"))
