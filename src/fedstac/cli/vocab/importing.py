"""`fedstac vocab import`: make snapshots of what projects publish."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from fedstac import settings as environment
from fedstac.cli import terminal
from fedstac.cli.options import Form, examples, form_of
from fedstac.cli.terminal import Output, complain, out, say, shown
from fedstac.cli.vocab.browsing import SHOWN_TERMS, show_difference
from fedstac.cli.vocab.snapshots import DIGEST, number_of_terms
from fedstac.vocabularies import importing, snapshots
from fedstac.vocabularies.sources import VocabularyRefused

commands = typer.Typer()
SHOWN_WARNINGS = 20


@commands.command(
    "import",
    epilog=examples(
        "fedstac vocab import CMIP6_CVs/6.2.60.0 --tables table_variables.json --out cv",
        "fedstac vocab import CMIP7-CVs.tar.gz --universe WCRP-universe.tar.gz --dry-run",
        "fedstac vocab import CORDEX-CMIP6 --version 2026.11.24",
        codes=True,
    ),
)
def import_(
    ctx: typer.Context,
    source: Annotated[list[Path], typer.Argument(help="Folder or .tar.gz as the project publishes it. Repeatable.")],
    project: Annotated[str, typer.Option(help="Refuse a source that is another project's.")] = "",
    version: Annotated[str, typer.Option(help="Its version, where the source does not say it, or a second one.")] = "",
    tables: Annotated[Path | None, typer.Option(help="CMIP6: table_variables.json.")] = None,
    universe: Annotated[Path | None, typer.Option(help="CMIP7: the WCRP universe, folder or .tar.gz.")] = None,
    to: Annotated[Path | None, typer.Option("--out", help="Folder of snapshots, with <project>/project.json.")] = None,
    accept_losses: Annotated[
        bool, typer.Option("--accept-losses", help="Write it although half of the terms of a vocabulary are gone.")
    ] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Do all but write it.")] = False,
    output: Form = None,
) -> None:
    """Make a snapshot of what a project publishes; which layout it has is seen from what is there.

    A source that cannot be trusted is refused. One that lost half of its terms is held, until a person says otherwise.
    """
    folder, form, faults = to or environment.folder("cv"), form_of(ctx, output), 0
    rows = []
    for path in source:
        try:
            built = importing.build(path, folder, project=project or None, version=version or None,
                                    tables=tables, universe=universe)  # fmt: skip
            kept = snapshots.keep(folder, built, accept_losses=accept_losses, dry_run=dry_run)
        except VocabularyRefused as error:
            complain(f"refused: {error}")
            rows.append({"source": str(path), "state": "refused", "reason": str(error)})
            faults += 1
            continue
        faults += kept.state == "held"
        rows.append(_imported(path, built, kept, dry_run=dry_run))
        if form is Output.TABLE:
            _show_imported(built, kept, dry_run=dry_run)
    if form is not Output.TABLE:
        terminal.dump({"imported": rows})
    if faults:
        raise typer.Exit(terminal.REJECTED)


def _imported(source: Path, built: snapshots.Built, kept: snapshots.Kept, *, dry_run: bool) -> dict[str, Any]:
    made = built.vocabulary
    return {
        "source": str(source), "state": "would be written" if dry_run and kept.state == "written" else kept.state,
        "project": made.project, "version": made.version, "digest": made.digest, "bytes": len(built.raw),
        "terms": number_of_terms(made), "path": str(kept.path), "warnings": list(built.warnings),
        "compared_with": kept.against, "losses": list(kept.losses),
        "difference": kept.difference.as_json() if kept.difference is not None else None,
    }  # fmt: skip


def _show_imported(built: snapshots.Built, kept: snapshots.Kept, *, dry_run: bool) -> None:
    made = built.vocabulary
    state = "would be written" if dry_run and kept.state == "written" else kept.state
    colour = {"held": "yellow", "written": "green"}.get(state, "")
    out(f"{made.project} {made.version}  {state}: {kept.path}", colour)
    out(f"  {number_of_terms(made)} terms, {len(built.raw)} bytes, sha-256 {made.digest[:DIGEST]}", "dim")
    for warning in built.warnings[:SHOWN_WARNINGS]:
        out(shown(f"  note: {warning}"))
    if kept.difference is not None:
        show_difference(kept.difference, f"  compared with {kept.against}:", limit=SHOWN_TERMS)
    for loss in kept.losses:
        out(shown(f"  {loss}"), "yellow")
    if kept.state == "held":
        say("held: look at what is gone; if that is right, import it again with --accept-losses", "yellow")
