"""`fedstac validate`: the server's rules on files, offline."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import orjson
import typer

from fedstac.cli import terminal
from fedstac.cli.options import Form, examples, form_of
from fedstac.cli.terminal import Output, out, say
from fedstac.client import documents
from fedstac.client.documents import DocumentTrouble
from fedstac.domain import crosschecks
from fedstac.domain.crosschecks import Batch
from fedstac.domain.errors import Finding, errors_in
from fedstac.domain.vocabulary import DatasetName, UnknownVersion, VocabularyBroken, name_of

if TYPE_CHECKING:
    from fedstac.vocabularies.checker import VocabularyChecker

commands = typer.Typer()
SHOWN_ITEMS = {False: 20, True: 5}  # by valid: warnings do not crowd out what is refused

Cv = Annotated[
    list[str] | None,
    typer.Option("--cv", metavar="PROJECT=VERSION", help="Judge with this version; else the newest. Repeatable."),
]


@commands.command(
    rich_help_panel="Client",
    epilog=examples(
        "fedstac validate items.ndjson.gz",
        "fedstac validate datasets/ --cv CMIP6=6.2.58.60 --all",
        "fedstac scan /data/CMIP6 | fedstac validate - -o ndjson | jq 'select(.valid | not)'",
        codes=True,
    ),
)
def validate(
    ctx: typer.Context,
    path: Annotated[str, typer.Argument(help="Item, FeatureCollection, NDJSON, each also .gz; a folder; - for stdin.")],
    collection: Annotated[str, typer.Option("--collection", "-c", help="Judge all as of this one.")] = "",
    cv: Cv = None,
    cv_folder: Annotated[Path | None, typer.Option(help="Folder of snapshots instead of the installed ones.")] = None,
    every: Annotated[
        bool, typer.Option("--all", help="Show every item that has findings, not just the first.")
    ] = False,
    output: Form = None,
) -> None:
    """Judge datasets by the rules of the server, offline, each also beside those before it; exit 1 if one is not valid.

    Findings name the rule, the place and, where one is near, what was probably meant.
    """
    form = form_of(ctx, output)
    checker = _checker(cv or [], cv_folder)
    report, batch = _Report(form, every=every), Batch()
    with terminal.bars(["checked"], form) as bars, report.listing:
        for n, entry in enumerate(documents.read(path, collection or None), 1):
            report.add(entry.place, _line_of(entry, checker, collection, batch))
            if n % 100 == 0:
                bars.set("checked", n, None)
    report.end()
    if report.invalid:
        raise typer.Exit(terminal.REJECTED)


def _checker(versions: Sequence[str], folder: Path | None) -> VocabularyChecker:
    from fedstac.vocabularies.checker import open_checker

    pins: dict[str, str] = {}
    for text in versions:
        project, equals, version = text.partition("=")
        if not equals or not project or not version:
            raise typer.BadParameter(f"{text!r} is not of the form PROJECT=VERSION", param_hint="--cv")
        pins[project] = version
    checker = open_checker(folder, pins=pins)
    try:
        for project, version in pins.items():
            checker.vocabularies.at(project, version)
    except (UnknownVersion, VocabularyBroken) as error:
        raise typer.BadParameter(f"{error}; `fedstac vocab list` shows what there is", param_hint="--cv") from None
    return checker


def _line_of(
    entry: documents.ReadyDocument | DocumentTrouble, checker: VocabularyChecker, collection: str, batch: Batch
) -> dict[str, Any]:
    """Return one line of the report; a valid dataset joins the batch."""
    if isinstance(entry, DocumentTrouble):
        findings = entry.findings or (Finding(entry.type, "", entry.detail),)
        return _line(entry.id, None, findings)
    document = orjson.loads(entry.text)
    if collection:
        document["collection"] = collection
    vocabulary = checker.vocabularies.current(entry.collection)
    findings_of_item = checker.findings(document, entry.collection, vocabulary)
    name = name_of(entry.collection, entry.id, vocabulary)
    if not errors_in(findings_of_item) and isinstance(name, DatasetName):
        beside = batch.compare(orjson.dumps(document).decode(), entry.id, name.lineage, name.version)
        findings_of_item += tuple(finding for finding in beside if crosschecks.is_on(finding.rule, vocabulary))
    return _line(entry.id, vocabulary.version if vocabulary else None, findings_of_item)


def _line(name: str, version: str | None, findings: Sequence[Finding]) -> dict[str, Any]:
    return {"id": name, "valid": not errors_in(findings), "cv_version": version,
            "findings": [finding.as_json() for finding in findings]}  # fmt: skip


class _Report:
    """What the command shows while it goes on, and at its end."""

    def __init__(self, form: Output, *, every: bool) -> None:
        self._form, self._every = form, every
        self.listing = terminal.Listing(form, ())
        self.total = self.invalid = self.with_warnings = self.plain = 0
        self._shown_items = {False: 0, True: 0}
        self._rules: dict[str, int] = {}

    def add(self, place: str, line: dict[str, Any]) -> None:
        self.total += 1
        self.invalid += not line["valid"]
        self.with_warnings += line["valid"] and bool(line["findings"])
        self.plain += line["valid"] and line["cv_version"] is None
        for finding in line["findings"]:
            self._rules[finding["rule"]] = self._rules.get(finding["rule"], 0) + 1
        if self._form is not Output.TABLE:
            self.listing.row(line, ())
        elif line["findings"] and (self._every or self._shown_items[line["valid"]] < SHOWN_ITEMS[line["valid"]]):
            self._shown_items[line["valid"]] += 1
            self._show(place, line)

    def _show(self, place: str, line: dict[str, Any]) -> None:
        out(terminal.for_terminal(f"{place}  {line['id']}"), "" if line["valid"] else "red")
        findings = [Finding.from_json(finding) for finding in line["findings"]]
        for finding in sorted(findings, key=terminal.sign_of)[: terminal.SHOWN_FINDINGS]:  # errors first
            out(f"  {terminal.sign_of(finding)}{finding.rule}  {terminal.finding_line(finding)}")
        if len(findings) > terminal.SHOWN_FINDINGS:
            out(f"  and {len(findings) - terminal.SHOWN_FINDINGS} more findings; -o ndjson shows all")

    def end(self) -> None:
        if self._form is Output.TABLE:
            hidden = self.invalid + self.with_warnings - sum(self._shown_items.values())
            if hidden > 0:
                out(f"and {hidden} more items with findings; --all or -o ndjson shows them")
        counts = ", ".join(f"{rule} {count}" for rule, count in sorted(self._rules.items(), key=lambda pair: -pair[1]))
        say(
            f"{self.total} checked: {self.total - self.invalid} valid, {self.invalid} not valid"
            + (f", {self.with_warnings} with warnings only" if self.with_warnings else "")
            + (f" ({counts})" if counts else ""),
            "red" if self.invalid else "green",
        )
        if self.plain:
            say(
                f"{self.plain} of the valid ones were judged by STAC's own rules alone: their collections have no "
                "vocabulary here (`fedstac vocab list` shows which have)",
                "yellow",
            )
