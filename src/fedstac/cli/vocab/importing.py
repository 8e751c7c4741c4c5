"""`fedstac vocab import`: make snapshots of what projects publish."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from fedstac import settings as environment
from fedstac.cli import terminal
from fedstac.cli.options import Form, examples, form_of
from fedstac.cli.terminal import Output, complain, for_terminal, out, say
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
            build = importing.build(path, folder, project=project or None, version=version or None,
                                    tables=tables, universe=universe)  # fmt: skip
            outcome = snapshots.keep(folder, build, accept_losses=accept_losses, dry_run=dry_run)
        except VocabularyRefused as error:
            complain(f"refused: {error}")
            rows.append({"source": str(path), "state": "refused", "reason": str(error)})
            faults += 1
            continue
        faults += outcome.state == "held"
        rows.append(_imported(path, build, outcome, dry_run=dry_run))
        if form is Output.TABLE:
            _show_imported(build, outcome, dry_run=dry_run)
    if form is not Output.TABLE:
        terminal.dump({"imported": rows})
    if faults:
        raise typer.Exit(terminal.REJECTED)


def _imported(source: Path, build: snapshots.Built, outcome: snapshots.Kept, *, dry_run: bool) -> dict[str, Any]:
    vocabulary = build.vocabulary
    return {
        "source": str(source),
        "state": "would be written" if dry_run and outcome.state == "written" else outcome.state,
        "project": vocabulary.project,
        "version": vocabulary.version,
        "digest": vocabulary.digest,
        "bytes": len(build.raw),
        "terms": number_of_terms(vocabulary),
        "path": str(outcome.path),
        "warnings": list(build.warnings),
        "compared_with": outcome.against,
        "losses": list(outcome.losses),
        "difference": outcome.difference.as_json() if outcome.difference is not None else None,
    }


def _show_imported(build: snapshots.Built, outcome: snapshots.Kept, *, dry_run: bool) -> None:
    vocabulary = build.vocabulary
    state = "would be written" if dry_run and outcome.state == "written" else outcome.state
    colour = {"held": "yellow", "written": "green"}.get(state, "")
    out(f"{vocabulary.project} {vocabulary.version}  {state}: {outcome.path}", colour)
    out(f"  {number_of_terms(vocabulary)} terms, {len(build.raw)} bytes, sha-256 {vocabulary.digest[:DIGEST]}", "dim")
    for warning in build.warnings[:SHOWN_WARNINGS]:
        out(for_terminal(f"  note: {warning}"))
    if outcome.difference is not None:
        show_difference(outcome.difference, f"  compared with {outcome.against}:", limit=SHOWN_TERMS)
    for loss in outcome.losses:
        out(for_terminal(f"  {loss}"), "yellow")
    if outcome.state == "held":
        say("held: look at what is gone; if that is right, import it again with --accept-losses", "yellow")
