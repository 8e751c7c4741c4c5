"""`fedstac replica verify` without ids: the node's disk, its records and the federation's entries, compared."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import typer

from fedstac.cli import terminal
from fedstac.cli.database import with_database
from fedstac.cli.replica_node import setting
from fedstac.cli.replica_node.forms import size_in_words
from fedstac.cli.terminal import Output, for_terminal, number, out, say

if TYPE_CHECKING:
    from fedstac.db.connections import Connection
    from fedstac.db.replica.looks import DiskLook, FindingRow
    from fedstac.workers.replica_verifying import LookProgress

COLUMNS = ("fault            ", "outcome", "file")
LISTED = 100  # findings in a table
PAGE = 1000


@dataclass(frozen=True, slots=True)
class NodeVerification:
    """What the options of the command say. `sample` in percent."""

    by_checksum: bool
    sample: float
    repairs: bool
    is_forced: bool
    removes_dark: bool
    afresh: bool
    threads: int | None
    brake_percent: float
    dark_days: float


@dataclass(frozen=True, slots=True)
class NodeFindings:
    """What a verification found: how many things, and of those that are not mended, how many by fault."""

    look: DiskLook
    open_counts: dict[str, int]
    count: int


def verify_node(form: Output, options: NodeVerification) -> None:
    """Compare, mend if that is asked for, and show what was found. Exit 1 if something is left."""
    from fedstac.replication.surveying import DiskAway
    from fedstac.workers.replica_verifying import VerificationLimits, Verifier

    node = setting.load()
    limits = VerificationLimits(
        brake_percent=options.brake_percent, is_forced=options.is_forced, removes_dark=options.removes_dark,
        dark_days=options.dark_days,
    )  # fmt: skip

    async def work(conn: Connection) -> NodeFindings:
        from fedstac.db.replica import looks

        look = await looks.begin(
            conn, looks.VERIFY, by_checksum=options.by_checksum, sample_percent=options.sample, afresh=options.afresh
        )
        if look.files or look.phase != "files":
            say(f"goes on with the verification of {look.started:%Y-%m-%d %H:%M}; --afresh begins a new one", "dim")
        expected_files = await looks.count_recorded(conn)
        totals = {"files": round(expected_files * options.sample / 100), "entries": 0, "disk": 0}
        counts = {"files": look.files, "entries": look.entries, "disk": look.on_disk}

        def show_progress(progress: LookProgress) -> None:
            counts[progress.phase] += progress.files
            bars.set(NAMES[progress.phase], counts[progress.phase], totals[progress.phase] or None)

        verifier = Verifier(conn, node.settings.node, node.tiers, limits, on_progress=show_progress)
        if options.threads:
            verifier.threads = options.threads
        look = await verifier.look(look)
        if options.repairs:
            await verifier.mend(look)
            look = await looks.read(conn, look.id)
        open_counts = await looks.count_faults(conn, look.id, open_only=True)
        return NodeFindings(look, open_counts, await list_findings(conn, listing, form, look))

    try:
        with (
            terminal.bars(list(NAMES.values()), form) as bars,
            terminal.Listing(form, COLUMNS) as listing,
        ):
            findings = with_database(work)
    except DiskAway as error:
        terminal.complain(str(error), terminal.AWAY)
        raise typer.Exit(terminal.AWAY) from None
    _show_end(form, findings, repairs=options.repairs)
    if findings.open_counts:
        raise typer.Exit(terminal.REJECTED)


NAMES = {"files": "files", "entries": "entries", "disk": "names on disk"}


async def list_findings(conn: Connection, listing: terminal.Listing, form: Output, look: DiskLook) -> int:
    """Show the findings of a look, and return how many there are."""
    from fedstac.db.replica import looks

    after = 0
    count = 0
    while rows := await looks.findings(conn, look.id, after=after, limit=PAGE):
        for row in rows:
            count += 1
            if form is not Output.TABLE or count <= LISTED:
                listing.row(finding_value(row), (row.fault, row.outcome, _name_of(row)))
                if form is Output.TABLE:
                    out(for_terminal(f"    {row.detail}" + (f"; {row.note}" if row.note else "")))
        after = rows[-1].id
    return count


def finding_value(row: FindingRow) -> dict[str, Any]:
    """Return a finding as a row for programs."""
    value = asdict(row)
    for name in ("n", "id"):
        del value[name]
    return value


def _name_of(row: FindingRow) -> str:
    place = f"{row.tier}: {row.path}" if row.tier else row.path
    return place if row.path else f"{row.dataset}/{row.asset}"


def _show_end(form: Output, findings: NodeFindings, *, repairs: bool) -> None:
    look, open_counts, count = findings.look, findings.open_counts, findings.count
    if form is Output.TABLE:
        if count > LISTED:
            say(f"the first {LISTED} of {count} findings; -o ndjson lists all", "dim")
        out()
    what = f", {size_in_words(look.bytes)} read" if look.by_checksum else ", by size"
    summary = f"{number(look.files, 'file')}{what}, {look.entries} entries, {look.on_disk} names on disk"
    say(summary)
    if look.brake:
        say(f"nothing is mended: {for_terminal(look.brake)}; when you know why: --repair --force", "red")
    names = ", ".join(f"{fault} {number_of}" for fault, number_of in open_counts.items())
    if not open_counts:
        say("all is well" if not count else f"{number(count, 'finding')}, all mended", "green")
    elif repairs or look.brake:
        say(f"left: {names}", "yellow")
    else:
        say(f"found: {names}; --repair mends what may be mended", "yellow")
