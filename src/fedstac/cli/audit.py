"""The audit log for those who have to answer for it: `fedstac audit …`."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import orjson
import typer

from fedstac import settings as environment
from fedstac.cli import terminal
from fedstac.cli.options import Form, examples, form_of
from fedstac.cli.terminal import Output, complain, for_terminal, out, say
from fedstac.domain import audit as chained
from fedstac.domain.audit import ChainBroken, ChainHead, NotAnExport, Row
from fedstac.domain.model import Outcome

if TYPE_CHECKING:
    from fedstac.db.connections import Connection

T = TypeVar("T")
WIDEST = 80
OUTCOMES = (*Outcome, "done")  # done: of what is no dataset
commands = typer.Typer(no_args_is_help=True, help="Read the audit log, and tell whether it was tampered with.")

Dsn = Annotated[str, typer.Option(help="The node's database [FEDSTAC_AUDITOR_DSN].", show_default=False)]
Since = Annotated[str, typer.Option(help="From this time on, RFC 3339: 2026-03-01 or 2026-03-01T12:00:00Z.")]


def _with_log(dsn: str, work: Callable[[Connection], Awaitable[T]]) -> T:
    """Run work on a connection as the auditor, and return its result."""
    from fedstac.db import opening

    settings = environment.load()

    async def connected() -> T:
        conn = await opening.connect(dsn or settings.auditor_dsn or settings.dsn, application="fedstac audit")
        try:
            return await work(conn)
        finally:
            await conn.close(timeout=10)

    return asyncio.run(connected())


def _moment(text: str) -> datetime | None:
    if not text:
        return None
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        raise typer.BadParameter(f"{text!r} is no time; write 2026-03-01 or 2026-03-01T12:00:00Z") from None
    return moment if moment.tzinfo else moment.replace(tzinfo=UTC)


@commands.command(
    "list",
    epilog=examples(
        "fedstac audit list --since 2026-03-01 --outcome rejected",
        "fedstac audit list --who person:8f14e45f-… -o ndjson --limit 0",
    ),
)
def list_rows(
    ctx: typer.Context,
    who: Annotated[str, typer.Option(help="A name as it stands in the log.")] = "",
    dataset: Annotated[str, typer.Option(help="A dataset's id.")] = "",
    since: Since = "",
    outcome: Annotated[str, typer.Option(help="new, newer, identical, …, rejected, failed.")] = "",
    limit: Annotated[int, typer.Option(min=0, help="At most so many; 0: all.")] = 50,
    output: Form = None,
    dsn: Dsn = "",
) -> None:
    """List who did what, or was refused it: newest first."""
    from fedstac.db import audit

    if outcome and outcome not in OUTCOMES:
        raise typer.BadParameter(f"{outcome!r} is not one of {', '.join(OUTCOMES)}", param_hint="--outcome")
    row_filter = audit.RowFilter(who or None, dataset or None, _moment(since), outcome or None, limit or None)
    form = form_of(ctx, output)

    async def show(conn: Connection) -> None:
        with terminal.Listing(form, ()) as listing:
            async for row in audit.rows(conn, row_filter):
                if form is Output.TABLE:
                    _show(row)
                else:
                    listing.row({**row.as_json(), "decision": row.decision}, ())

    _with_log(dsn, show)


def _show(row: Row) -> None:
    """Show one row to people: two lines or more, none wider than a terminal."""
    many = f" ×{row.items}" if row.items > 1 else ""
    colour = {"refused": "yellow", "failed": "red"}.get(row.decision, "")
    place = "-" if row.pos is None else str(row.pos)
    out(f"{place:>8}  {row.at[:19]}Z  {row.decision:<8} {for_terminal(row.action)}{many}"[:WIDEST], colour)
    result = f"{row.outcome}, {row.rule}" if row.rule else row.outcome
    who = f"{row.actor} ({row.issuer})" if row.issuer else row.actor
    for text in (f"{row.collection} {row.dataset}".strip(), f"{result}, by {who}"):
        if text:
            out("          " + for_terminal(text)[: WIDEST - 10])


@commands.command(
    epilog=examples(
        "fedstac audit verify",
        "fedstac audit verify --file audit-2026.ndjson           # an export by itself, no database",
        "fedstac audit verify --against audit-2026.ndjson        # does the log still hold what it held?",
    )
)
def verify(
    ctx: typer.Context,
    file: Annotated[Path | None, typer.Option(exists=True, dir_okay=False, help="Verify this export.")] = None,
    against: Annotated[
        Path | None, typer.Option(exists=True, dir_okay=False, help="The log has to go on from this export.")
    ] = None,
    output: Form = None,
    dsn: Dsn = "",
) -> None:
    """Follow the chain of the audit log; exit code 1 and the first broken position if it was tampered with.

    Somebody who may change everything in the database can cut the log off and write its head anew. Only an export that
    is kept elsewhere tells of that: --against.
    """
    form = form_of(ctx, output)
    try:
        if file is not None:
            _say_whole(form, _verified(file))
            return
        earlier = _verified(against) if against is not None else None
        _say_whole(form, _with_log(dsn, lambda conn: _verify(conn, earlier)))
    except ChainBroken as broken:
        if form is not Output.TABLE:
            terminal.dump({"whole": False, "position": broken.pos, "reason": broken.what})
        complain(broken)
        raise typer.Exit(terminal.REJECTED) from None
    except NotAnExport as error:
        complain(f"{file or against}: {error}")
        raise typer.Exit(terminal.REJECTED) from None


def _verified(file: Path) -> chained.VerifiedExport:
    with file.open("rb") as lines:
        return chained.verify_export(lines, key=environment.load().audit_key)


async def _verify(conn: Connection, earlier: chained.VerifiedExport | None) -> ChainHead:
    from fedstac.db import audit

    if earlier is not None:
        before = earlier.closing.head
        if await audit.at(conn, before.pos) != before:
            raise ChainBroken(before.pos, f"it is not the log that was exported at {earlier.closing.at}, or is cut off")
    return await audit.verify(conn)


def _say_whole(form: Output, whole: ChainHead | chained.VerifiedExport) -> None:
    head = whole if isinstance(whole, ChainHead) else whole.closing.head
    signed = None if isinstance(whole, ChainHead) else bool(whole.closing.signature and environment.load().audit_key)
    if form is not Output.TABLE:
        answer: dict[str, Any] = {"whole": True, "position": head.pos, "hash": head.hash.hex()}
        terminal.dump(answer if signed is None else {**answer, "signature": signed})
        return
    out(f"the audit log is whole up to position {head.pos}", "green")
    out(f"  {head.hash.hex()}")
    if signed is False:
        say("its signature was not checked: FEDSTAC_AUDIT_KEY is not set, or was not at the export", "dim")


@commands.command(
    epilog=examples(
        "fedstac audit export > audit-2026.ndjson",
        "fedstac audit export --since 2026-03-01 > march.ndjson",
    )
)
def export(since: Since = "", dsn: Dsn = "") -> None:
    """Write the log as NDJSON with a checkpoint at its end, to be kept where nobody of this node can change it."""
    from fedstac.db import audit

    moment, key = _moment(since), environment.load().audit_key

    async def write(conn: Connection) -> int:
        count = 0
        async for each in audit.export(conn, moment):
            match each:
                case ChainHead():
                    line: dict[str, Any] = {"begins": {"pos": each.pos, "hash": each.hash.hex()}}
                case Row():
                    line, count = each.as_json(), count + 1
                case chained.Checkpoint():
                    line = each.signed(key).as_json()
            sys.stdout.buffer.write(orjson.dumps(line) + b"\n")
        sys.stdout.buffer.flush()
        return count

    count = _with_log(dsn, write)
    say(f"{count} rows" + ("" if key else "; the checkpoint is not signed: FEDSTAC_AUDIT_KEY is not set"), "dim")
