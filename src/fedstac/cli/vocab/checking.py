"""`fedstac vocab check`: ask what would still pass by a version of a vocabulary."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any

import orjson
import typer

from fedstac.cli import terminal
from fedstac.cli.options import Form, examples, form_of
from fedstac.cli.terminal import Output, out
from fedstac.cli.vocab.snapshots import Folder, Project, vocabulary_of
from fedstac.cli.vocab.tables import cells_of, plain_table, print_table
from fedstac.client import documents
from fedstac.domain.errors import Finding, errors_in
from fedstac.domain.validation import Checker
from fedstac.domain.vocabulary import Vocabulary
from fedstac.vocabularies.checker import open_checker

commands = typer.Typer()


@dataclass(slots=True)
class _Verdict:
    """How many documents a version accepts, and why not the others."""

    vocabulary: Vocabulary
    most_examples: int
    total: int = 0
    failing: int = 0
    rules: Counter[str] = field(default_factory=Counter)  # of documents, not of findings
    first: dict[str, str] = field(default_factory=dict)  # by rule
    examples: list[tuple[str, tuple[Finding, ...]]] = field(default_factory=list)

    def add(self, name: str, findings: Sequence[Finding]) -> None:
        errors = errors_in(findings)
        self.total += 1
        if errors:
            self.failing += 1
            self.rules.update({finding.rule for finding in errors})
            for finding in errors:
                self.first.setdefault(finding.rule, f"{name}: {finding.message}")
            if len(self.examples) < self.most_examples:
                self.examples.append((name, errors))

    def as_json(self) -> dict[str, Any]:
        vocabulary = self.vocabulary
        return {
            "project": vocabulary.project,
            "version": vocabulary.version,
            "checked": self.total,
            "failing": self.failing,
            "rules": dict(self.rules.most_common()),
            "examples": [
                {"id": name, "findings": [one.as_json() for one in findings]} for name, findings in self.examples
            ],
        }

    def show(self) -> None:
        table = plain_table("rule", "datasets", "for example", wrap="for example")
        for rule, count in self.rules.most_common():
            table.add_row(*cells_of(rule, count, self.first[rule]))
        if self.rules:
            print_table(table)
        vocabulary = self.vocabulary
        out(
            f"{self.total} checked by {vocabulary.project} {vocabulary.version}: {self.total - self.failing} pass, "
            f"{self.failing} do not",
            "red" if self.failing else "green",
        )


@commands.command(
    epilog=examples(
        "fedstac vocab check CMIP6 6.2.60.0 items.ndjson.gz",
        "fedstac vocab check CMIP6 6.2.60.0 --dsn postgresql://…/fedstac -o json",
        codes=True,
    )
)
def check(
    ctx: typer.Context,
    project: Project,
    version: Annotated[str, typer.Argument(help="The version to judge by.")],
    path: Annotated[str, typer.Argument(help="File or folder of items, NDJSON, each also .gz; - for stdin.")] = "",
    dsn: Annotated[str, typer.Option(help="Instead: all that a node's database holds of the project.")] = "",
    most: Annotated[int, typer.Option("--examples", min=0, help="Datasets to keep as examples.")] = 100,
    cv_folder: Folder = None,
    output: Form = None,
) -> None:
    """Count which datasets would still pass a version, by rule and with examples; exit 1 if one would not."""
    if bool(path) == bool(dsn):
        raise typer.BadParameter("say what to check: a PATH (- for stdin), or --dsn", param_hint="PATH")
    verdict = _Verdict(vocabulary_of(cv_folder, project, version), most)
    judge = open_checker(cv_folder)
    form = form_of(ctx, output)
    with terminal.bars(["checked"], form) as bars:
        if path:
            for entry in documents.read(path, project):
                _add(verdict, judge, entry)
                bars.set("checked", verdict.total, None)
        else:
            asyncio.run(_check_database(dsn, judge, verdict, lambda: bars.set("checked", verdict.total, None)))
    if form is Output.TABLE:
        verdict.show()
    else:
        terminal.dump(verdict.as_json())
    if verdict.failing:
        raise typer.Exit(terminal.REJECTED)


def _add(verdict: _Verdict, judge: Checker, entry: documents.ReadyDocument | documents.DocumentTrouble) -> None:
    if isinstance(entry, documents.DocumentTrouble):
        verdict.add(entry.id or entry.place, entry.findings or (Finding(entry.type, "", entry.detail),))
        return
    project = verdict.vocabulary.project
    document = {**orjson.loads(entry.text), "collection": project}
    verdict.add(entry.id, judge.findings(document, project, verdict.vocabulary))


async def _check_database(dsn: str, judge: Checker, verdict: _Verdict, tell: Callable[[], None]) -> None:
    from fedstac.db import opening
    from fedstac.db import vocabularies as kept

    project = verdict.vocabulary.project
    conn = await opening.connect(dsn, application="fedstac vocab check")
    try:
        async for name, text in kept.documents(conn, project):
            verdict.add(name, judge.findings_of_stored(text, project, verdict.vocabulary))
            tell()
    finally:
        await conn.close(timeout=10)
