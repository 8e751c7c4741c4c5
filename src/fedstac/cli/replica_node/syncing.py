"""`fedstac replica sync`: does what is due at a replica node, and ends when nothing is."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

import typer

from fedstac import settings as environment
from fedstac.cli import terminal
from fedstac.cli.options import Form, examples, form_of
from fedstac.cli.replica_node.forms import size_in_words
from fedstac.cli.terminal import Output, complain, for_terminal, number, say

if TYPE_CHECKING:
    from fedstac.bootstrap import Node
    from fedstac.db.replica.due import DueWork
    from fedstac.domain.events import Cursor
    from fedstac.messaging.sources.addresses import SourceAddress

commands = typer.Typer()
LOOK_SECONDS = 0.5
TELL_SECONDS = 5.0  # between lines for programs
BAR = "fetched"


@dataclass(frozen=True, slots=True)
class FeedEnds:
    """Where the feeds of the origins end now, and why others do not say it."""

    heads: Mapping[str, Cursor]
    troubles: Sequence[str]


@dataclass(frozen=True, slots=True)
class SyncResult:
    """What a run did: what was left at its end, and whether this process did the work itself."""

    work: DueWork
    troubles: Sequence[str]
    is_alone: bool
    is_late: bool
    seconds: float


@commands.command(
    epilog=examples("fedstac replica sync", "fedstac replica sync --timeout 3600 -o json",
                    "fedstac replica sync -o ndjson | jq -r .left_bytes")
)  # fmt: skip
def sync(
    ctx: typer.Context,
    timeout: Annotated[float | None, typer.Option(min=1, help="End after so many seconds, whatever is left.")] = None,
    output: Form = None,
) -> None:
    """Do what is due now, and wait until nothing is: events, files, checks, announcements, removals.

    If `fedstac replica-node` runs, it does the work and this command shows it; else this process does. What waits for a
    time, a source or room is not due; parked datasets are not either. Ctrl-C loses nothing. Exit 1 if datasets are
    parked, or if the time was too short; 5 if an origin does not answer.
    """
    import logging

    import structlog

    from fedstac.workers import processes

    processes.heed_interrupts()
    form, settings = form_of(ctx, output), environment.load()
    processes.log_lines(settings.log_format, "sync")
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.ERROR))
    result = asyncio.run(_sync(settings, form, timeout))
    _show_end(form, result)
    if result.troubles:
        raise typer.Exit(terminal.AWAY)
    if result.work.parked or result.is_late:
        raise typer.Exit(terminal.REJECTED)


async def _sync(settings: environment.Settings, form: Output, timeout: float | None) -> SyncResult:
    from fedstac import bootstrap
    from fedstac.db import health, nodes
    from fedstac.db.replica import due
    from fedstac.workers import replica_identity, roles

    started = time.monotonic()
    async with bootstrap.node(settings) as node:
        async with node.pool.acquire() as conn:
            followers = (await health.parts(conn)).followers.get(nodes.REPLICA, {})
            since = await conn.fetchval("SELECT clock_timestamp()")
        is_alone = not any(followers.values())
        parts = roles.REPLICA.parts(settings) if is_alone else ()
        if not is_alone:
            say("a replica node runs and does the work", "dim")
        ends = await _ends_of_feeds(replica_identity.sources_of(settings))
        stop = asyncio.Event()
        with terminal.bars([BAR], form, in_bytes=True) as bars:
            async with bootstrap.beside(node, parts, stop):
                told_at = 0.0
                while True:
                    async with node.pool.acquire() as conn:
                        work = await due.read(conn, ends.heads, since)
                    bars.set(BAR, work.done_bytes, work.done_bytes + work.left_bytes)
                    is_late = timeout is not None and time.monotonic() - started > timeout
                    if form is Output.NDJSON and time.monotonic() - told_at > TELL_SECONDS:
                        told_at = time.monotonic()
                        terminal.dump({"event": "progress", **_value(work)})
                    if not work.is_any or is_late or node.parts.gave_up is not None:
                        break
                    await asyncio.sleep(LOOK_SECONDS)
            _refuse_to_hide(node)
    return SyncResult(work, ends.troubles, is_alone, is_late and work.is_any, time.monotonic() - started)


def _refuse_to_hide(node: Node) -> None:
    """Raise why a part of this process gave up, if one did."""
    if node.parts.gave_up is not None:
        raise node.parts.gave_up


async def _ends_of_feeds(sources: Sequence[SourceAddress]) -> FeedEnds:
    """Ask the origins where their feeds end now."""
    from fedstac.messaging.origin import origin_of
    from fedstac.messaging.sources import SourceAway, SourceRefused

    heads: dict[str, Cursor] = {}
    troubles: list[str] = []
    for source in sources:
        try:
            async with origin_of(source) as origin:
                name, heads_cursor = await origin.head()
        except (SourceAway, SourceRefused) as error:
            troubles.append(str(error))
            continue
        heads[name] = heads_cursor
    return FeedEnds(heads, troubles)


def _value(work: DueWork) -> dict[str, int]:
    return {
        "feeds": work.feeds, "datasets": work.datasets, "announcements": work.announcements,
        "removals": work.removals, "left_bytes": work.left_bytes, "done_files": work.done_files,
        "done_bytes": work.done_bytes, "parked": work.parked, "waiting": work.waiting,
    }  # fmt: skip


def _show_end(form: Output, result: SyncResult) -> None:
    work = result.work
    value = {
        **_value(work), "seconds": round(result.seconds, 1), "alone": result.is_alone, "in_time": not result.is_late,
        "troubles": list(result.troubles),
    }  # fmt: skip
    if form is Output.NDJSON:
        terminal.dump({"event": "summary", **value})
    elif form is Output.JSON:
        terminal.dump(value)
    else:
        words = f"verified {number(work.done_files, 'file')}, {size_in_words(work.done_bytes)}"
        terminal.out(f"{words}, in {result.seconds:.0f} s", "green")
        if work.waiting:
            say(f"{number(work.waiting, 'dataset')} wait; see fedstac replica status --state waiting", "dim")
        if work.parked:
            say(f"{number(work.parked, 'dataset')} parked; see fedstac replica status --state parked", "red")
    if result.is_late:
        say(f"{number(work.datasets, 'dataset')} and {number(work.announcements, 'announcement')} are left", "yellow")
    for trouble in result.troubles:
        complain(for_terminal(trouble))
