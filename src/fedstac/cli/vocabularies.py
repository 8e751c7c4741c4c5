"""`fedstac vocab`: import what projects publish, look at it, compare versions, ask what would still pass. Offline."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import orjson
import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from fedstac import settings as environment
from fedstac.cli import terminal
from fedstac.cli.options import Form, examples, form_of
from fedstac.cli.terminal import Output, complain, out, say, shown
from fedstac.client import documents
from fedstac.domain import schemas
from fedstac.domain.errors import Finding, errors_in
from fedstac.domain.validation import Checker
from fedstac.domain.vocabulary import UnknownVersion, Vocabulary, VocabularyBroken, parse
from fedstac.vocabularies import browsing, importing, snapshots
from fedstac.vocabularies.checker import open_checker, shipped
from fedstac.vocabularies.compare import Difference, between
from fedstac.vocabularies.registry import Vocabularies, snapshot_of
from fedstac.vocabularies.sources import VocabularyRefused

commands = typer.Typer(no_args_is_help=True)
SHOWN_CHANGES, SHOWN_TERMS, SHOWN_WARNINGS, DIGEST = 40, 12, 20, 12

Folder = Annotated[Path | None, typer.Option("--cv-folder", help="Folder of snapshots; else the installed ones.")]
Project = Annotated[str, typer.Argument(help="A project, such as CMIP6.")]
Version = Annotated[str, typer.Option("--version", help="Version of the vocabulary; else the newest.")]


@commands.callback()
def together() -> None:
    """Import, compare and look at the vocabularies that datasets are judged by."""


def _at_hand(folder: Path | None) -> Vocabularies:
    return Vocabularies(shipped(folder or environment.folder("cv")))


def _vocabulary(folder: Path | None, project: str, version: str = "") -> Vocabulary:
    """One version, the newest where none is named; exit 3 where it is not there."""
    known = _at_hand(folder)
    try:
        found = known.at(project, version) if version else known.current(project)
    except (UnknownVersion, VocabularyBroken) as error:
        raise _stop(f"{error}; `fedstac vocab list` shows what there is", terminal.NOT_FOUND) from None
    if found is None:
        raise _stop(f"no project {project!r}; there is: {', '.join(known.projects())}", terminal.NOT_FOUND)
    return found


def _stop(sentence: str, code: int) -> typer.Exit:
    complain(sentence)
    return typer.Exit(code)


def _print(table: Table) -> None:
    Console(highlight=False).print(table)


def _table(*columns: str, wrap: str = "") -> Table:
    """A plain table; the column named by `wrap` takes what is left of the line."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    for name in columns:
        table.add_column(name, no_wrap=name != wrap, overflow="fold", ratio=1 if name == wrap else None)
    return table


def _cells(*values: object) -> list[Text]:
    return [Text(shown(value)) for value in values]


# --- import ---


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
        "terms": _count(made), "path": str(kept.path), "warnings": list(built.warnings),
        "compared_with": kept.against, "losses": list(kept.losses),
        "difference": kept.difference.as_json() if kept.difference is not None else None,
    }  # fmt: skip


def _show_imported(built: snapshots.Built, kept: snapshots.Kept, *, dry_run: bool) -> None:
    made = built.vocabulary
    state = "would be written" if dry_run and kept.state == "written" else kept.state
    colour = {"held": "yellow", "written": "green"}.get(state, "")
    out(f"{made.project} {made.version}  {state}: {kept.path}", colour)
    out(f"  {_count(made)} terms, {len(built.raw)} bytes, sha-256 {made.digest[:DIGEST]}", "dim")
    for warning in built.warnings[:SHOWN_WARNINGS]:
        out(shown(f"  note: {warning}"))
    if kept.difference is not None:
        _show_difference(kept.difference, f"  compared with {kept.against}:", limit=SHOWN_TERMS)
    for loss in kept.losses:
        out(shown(f"  {loss}"), "yellow")
    if kept.state == "held":
        say("held: look at what is gone; if that is right, import it again with --accept-losses", "yellow")


def _count(vocabulary: Vocabulary) -> int:
    return sum(map(len, vocabulary.terms.values()))


# --- list, show ---


@commands.command("list", epilog=examples("fedstac vocab list", "fedstac vocab list -o json"))
def list_snapshots(ctx: typer.Context, cv_folder: Folder = None, output: Form = None) -> None:
    """List the snapshots: version, source, number of terms, digest, size; `*` is the one that judges.

    Exit 1 if one cannot be used.
    """
    known, broken = _at_hand(cv_folder), False
    rows: list[dict[str, Any]] = []
    for snapshot in known:
        try:
            made = known.at(snapshot.project, snapshot.version)
        except (UnknownVersion, VocabularyBroken) as error:
            complain(f"{snapshot.project} {snapshot.version} cannot be used: {error}")
            broken = True
            continue
        sources = [{"name": one.name, "version": one.version, "licence": one.licence} for one in made.sources]
        rows.append({
            "project": made.project, "version": made.version, "terms": _count(made),
            "current": snapshot is known.of(snapshot.project)[-1],
            "bytes": len(snapshot.read()), "digest": made.digest, "sources": sources,
        })  # fmt: skip
    if form_of(ctx, output) is not Output.TABLE:
        terminal.dump({"snapshots": rows})
    else:
        _show_snapshots(rows)
    if broken:
        raise typer.Exit(terminal.REJECTED)


def _show_snapshots(rows: Sequence[dict[str, Any]]) -> None:
    table = _table("", "project", "version", "terms", "kB", "sha-256", "source", wrap="source")
    for row in rows:
        said = "\n".join(f"{shown(one['name'])} {shown(one['version'])}" for one in row["sources"])
        cells = _cells("*" if row["current"] else "", row["project"], row["version"], row["terms"],
                       row["bytes"] // 1000, row["digest"][:DIGEST])  # fmt: skip
        table.add_row(*cells, Text(said))
    _print(table)


@commands.command(
    epilog=examples(
        "fedstac vocab show CMIP6",
        "fedstac vocab show CMIP6 institution_id",
        "fedstac vocab show CMIP6 NorESM2-LM --version 6.2.58.60",
        "fedstac vocab show CMIP6 Amon.tas -o json",
        codes=True,
    )
)
def show(
    ctx: typer.Context,
    project: Project,
    name: Annotated[str, typer.Argument(help="A term, or a facet; without it, the project.")] = "",
    version: Version = "",
    cv_folder: Folder = None,
    output: Form = None,
) -> None:
    """Show a project, the terms of a facet, or a term: what it says, and which terms speak of it."""
    made, form = _vocabulary(cv_folder, project, version), form_of(ctx, output)
    vocabulary = browsing.facet(made, name) if name else None
    entries = browsing.find(made, name) if name and vocabulary is None else []
    if not name:
        _show_project(made, form)
    elif vocabulary is not None:
        _show_facet(made, vocabulary, form)
    elif entries:
        _show_term(made, entries, form)
    else:
        near = sorted((pair for terms in made.terms.values() for pair in browsing.suggestions(terms, name, 1)),
                      key=lambda pair: -pair[1])  # fmt: skip
        hint = f"; did you mean {near[0][0]!r}?" if near else ""
        raise _stop(f"{project} {made.version} has no term or facet {name!r}{hint}", terminal.NOT_FOUND)


def _show_project(made: Vocabulary, form: Output) -> None:
    facets = {name: len(terms) for name, terms in browsing.facets(made).items()}
    rules = sorted({one.rule for one in made.relations} | {one.rule for one in made.compositions})
    sources = [{"name": one.name, "version": one.version, "licence": one.licence, "url": one.url}
               for one in made.sources]  # fmt: skip
    if form is not Output.TABLE:
        terminal.dump({
            "project": made.project, "version": made.version, "digest": made.digest, "sources": sources,
            "id_template": made.id_template.text, "institution": made.institution, "facets": facets, "rules": rules,
            "required": [one.name for one in made.properties.values() if one.required],
            "extensions": [list(one.uris) for one in made.extensions],
        })  # fmt: skip
        return
    out(f"{made.project} {made.version}", "bold")
    for source in sources:
        out(shown(f"  {source['name']} {source['version']}, {source['licence']}, {source['url']}"), "dim")
    out(shown(f"  {made.id_template.text}"))
    out(f"  rules: {', '.join(rules)}")
    table = _table("facet", "terms", "for example", wrap="for example")
    for name, terms in browsing.facets(made).items():
        table.add_row(*_cells(name, len(terms), browsing.lines([term or "(empty)" for term in terms], 3)[:200]))
    _print(table)


def _show_facet(made: Vocabulary, vocabulary: str, form: Output) -> None:
    terms = made.terms[vocabulary]
    if form is not Output.TABLE:
        terminal.dump({"project": made.project, "version": made.version, "facet": vocabulary,
                       "properties": browsing.properties_of(made, vocabulary), "terms": terms})  # fmt: skip
        return
    table = _table("term", "title", wrap="title")
    for term, said in terms.items():
        table.add_row(*_cells(term, said.get("title", "")))
    _print(table)


def _show_term(made: Vocabulary, entries: Sequence[browsing.Entry], form: Output) -> None:
    found = [(entry, browsing.properties_of(made, entry.vocabulary), browsing.uses(made, entry)) for entry in entries]
    if form is not Output.TABLE:
        terminal.dump({"project": made.project, "version": made.version, "found": [
            {"vocabulary": entry.vocabulary, "properties": properties, "term": entry.term,
             "attributes": entry.attributes,
             "used": [{"vocabulary": use.vocabulary, "attribute": use.attribute, "rule": use.rule,
                       "terms": list(use.terms)} for use in uses]}
            for entry, properties, uses in found]})  # fmt: skip
        return
    for entry, properties, uses in found:
        out(shown(f"{entry.term}  {', '.join(properties) or entry.vocabulary}"), "bold")
        if entry.title:
            out(shown(f"  {entry.title}"))
        for name, value in entry.attributes.items():
            if name != "title":
                out(shown(f"  {name}: {', '.join(value) if isinstance(value, list) else value}"))
        for use in uses:
            by = f"by {use.attribute}" if use.attribute else "in its name"
            out(shown(f"  used by {len(use.terms)} of {use.vocabulary} ({by}): "
                      f"{browsing.lines(use.terms, SHOWN_TERMS)}"), "dim")  # fmt: skip


# --- diff, suggest ---


@commands.command(
    epilog=examples("fedstac vocab diff CMIP6 6.2.58.60 6.2.60.0", "fedstac vocab diff CMIP7 1.2.6 1.2.16 -o json",
                    codes=True)
)  # fmt: skip
def diff(
    ctx: typer.Context,
    project: Project,
    before: Annotated[str, typer.Argument(help="One version.")],
    after: Annotated[str, typer.Argument(help="Another.")],
    cv_folder: Folder = None,
    output: Form = None,
) -> None:
    """Show what is different between two versions: terms, what they say, properties, rules. Exit 1 if something is."""
    folder = cv_folder or environment.folder("cv")
    contents = []
    for version in (before, after):
        _vocabulary(folder, project, version)
        contents.append(orjson.loads((folder / project / f"{version}.json").read_bytes()))
    found = between(*contents)
    if form_of(ctx, output) is Output.TABLE:
        _show_difference(found, f"{project} {before} → {after}", limit=None)
    else:
        terminal.dump({"project": project, "before": before, "after": after, **found.as_json()})
    if found:
        raise typer.Exit(terminal.REJECTED)


def _show_difference(found: Difference, title: str, *, limit: int | None) -> None:
    """Line by line, as `diff` does: + came, - went, ~ says something else."""
    rows = list(_changes(found))
    out(shown(f"{title}" + ("" if rows else " nothing is different")), "bold" if limit is None else "")
    table = Table(box=None, pad_edge=False, show_header=False)
    table.add_column(no_wrap=True)
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold", ratio=1)
    colours = {"+": "green", "-": "red"}
    for sign, name, text in rows[:limit]:
        table.add_row(*(Text(shown(cell), style=colours.get(sign, "")) for cell in (sign, name, text)))
    if rows:
        _print(table)
    if limit is not None and len(rows) > limit:
        out(f"  and {len(rows) - limit} more; `fedstac vocab diff` shows all")


def _changes(found: Difference) -> Iterator[tuple[str, str, str]]:
    for name in sorted({*found.added, *found.removed, *found.changed}):
        yield from (("+", name, term) for term in found.added.get(name, ()))
        yield from (("-", name, term) for term in found.removed.get(name, ()))
        for term, changes in found.changed.get(name, {}).items():
            for attribute, (old, new) in changes.items():
                yield "~", name, f"{term} {attribute}: {_step(old, new)}"
    for name, (old, new) in {**found.properties, **found.other}.items():
        yield "~", name, _step(old, new)


def _step(old: Any, new: Any) -> str:
    """What is other in a value: of lists what came and went."""
    if isinstance(old, list) and isinstance(new, list) and all(isinstance(one, str) for one in (*old, *new)):
        steps = [f"+{one}" for one in new if one not in old] + [f"-{one}" for one in old if one not in new]
        return " ".join(steps) or "in another order"
    return " → ".join("nothing" if one is None else one if isinstance(one, str) else orjson.dumps(one).decode()
                      for one in (old, new))  # fmt: skip


@commands.command(
    epilog=examples("fedstac vocab suggest CMIP6 experiment_id historcal",
                    "fedstac vocab suggest CMIP6 source_id noresm", codes=True)
)  # fmt: skip
def suggest(
    ctx: typer.Context,
    project: Project,
    facet: Annotated[str, typer.Argument(help="A property or vocabulary: experiment_id.")],
    text: Annotated[str, typer.Argument(help="What somebody wrote.")],
    limit: Annotated[int, typer.Option(min=1, max=100, help="How many at most.")] = 5,
    version: Version = "",
    cv_folder: Folder = None,
    output: Form = None,
) -> None:
    """Suggest terms for what somebody wrote, by name and by title; exit 3 if none is near."""
    made = _vocabulary(cv_folder, project, version)
    vocabulary = browsing.facet(made, facet)
    if vocabulary is None:
        raise _stop(f"{project} has no facet {facet!r}; `fedstac vocab show {project}` lists them", terminal.NOT_FOUND)
    terms = made.terms[vocabulary]
    near = browsing.suggestions(terms, text[:200], limit)
    if form_of(ctx, output) is Output.TABLE:
        table = _table("term", "alike", "title", wrap="title")
        for term, score in near:
            table.add_row(*_cells(term, f"{score:.0f} %", terms[term].get("title", "")))
        if near:
            _print(table)
    else:
        rows = [{"term": term, "score": score, "title": terms[term].get("title")} for term, score in near]
        terminal.dump({"project": project, "version": made.version, "facet": vocabulary, "text": text,
                       "suggestions": rows})  # fmt: skip
    if not near:
        raise _stop(f"no term of {facet} is near {text!r}", terminal.NOT_FOUND)


# --- install ---


@commands.command(
    epilog=examples("fedstac vocab install cv/CMIP6/6.2.60.0.json", "fedstac vocab install CMIP7/*.json --dsn postgresql://…",
                    codes=True)
)  # fmt: skip
def install(
    ctx: typer.Context,
    files: Annotated[list[Path], typer.Argument(help="Snapshots, as `vocab import` writes them.")],
    accept_losses: Annotated[
        bool, typer.Option("--accept-losses", help="Also one that has lost half of the terms of a vocabulary.")
    ] = False,
    dsn: Annotated[str, typer.Option(help="The node's database [FEDSTAC_DSN].", show_default=False)] = "",
    output: Form = None,
) -> None:
    """Give a node new versions while it serves: they are judged with within seconds.

    Requests that were accepted keep the version they were accepted with. All are installed, or none.
    """
    form = form_of(ctx, output)
    raws = [_read(path) for path in files]
    try:
        made = [parse(raw) for raw in raws]
        held = asyncio.run(_install(dsn or environment.load().dsn, raws, accept_losses))
    except VocabularyBroken as error:
        raise _stop(f"refused: {error}", terminal.REJECTED) from None
    if held:
        for sentence in held:
            complain(sentence)
        raise _stop("nothing is installed; look at it with `fedstac vocab diff`, then --accept-losses",
                    terminal.REJECTED)  # fmt: skip
    rows = [{"project": one.project, "version": one.version, "digest": one.digest} for one in made]
    if form is not Output.TABLE:
        terminal.dump({"installed": rows})
    else:
        for one in made:
            out(f"installed  {one.project} {one.version}  {one.digest[:DIGEST]}")


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise _stop(f"{path} cannot be read: {error.strerror or error}", terminal.USAGE) from None


async def _install(dsn: str, raws: Sequence[bytes], accept_losses: bool) -> list[str]:
    """Installs all, with an audit row each, and says nothing; or why it installed none. VocabularyBroken refuses."""
    from fedstac.db import audit, connections
    from fedstac.db import vocabularies as kept

    conn = await connections.connect(dsn, application="fedstac vocab install")
    try:
        async with conn.transaction():
            known = _at_hand(Path(folder) if (folder := environment.load().cv_folder) else None)
            here = {kept.SnapshotKey(one.project, one.version, one.digest) for one in known}
            for key, raw in await kept.beyond(conn, here):
                if known.find(key.project, key.version) is None:
                    known.install(snapshot_of(raw))
            held = [] if accept_losses else [loss for raw in raws for loss in _losses(known, raw)]
            for raw in raws if not held else ():
                known.install(snapshot_of(raw))  # refuses a version that is there with other content
                snapshot = await kept.install(conn, raw, "operator")
                entry = audit.NewRow("operator", "vocabulary.installed", snapshot.project, snapshot.version, None,
                                    "done", None, bytes.fromhex(snapshot.digest))  # fmt: skip
                await audit.append(conn, [entry])
            return held
    finally:
        await conn.close()


def _losses(known: Vocabularies, raw: bytes) -> Iterator[str]:
    """What a snapshot lacks half of that the newest one at hand has."""
    made = parse(raw)
    newest = known.of(made.project)
    if newest:
        before, after = orjson.loads(newest[-1].read()), orjson.loads(raw)
        for loss in snapshots.lost_between(before, after, between(before, after)):
            yield f"{made.project} {made.version}: {loss}"


# --- check ---


@dataclass(slots=True)
class _Verdict:
    """How many documents a version takes, and why not the others."""

    vocabulary: Vocabulary
    most_examples: int
    checked: int = 0
    failing: int = 0
    rules: Counter[str] = field(default_factory=Counter)  # of documents, not of findings
    first: dict[str, str] = field(default_factory=dict)  # by rule
    examples: list[tuple[str, tuple[Finding, ...]]] = field(default_factory=list)

    def add(self, name: str, findings: Sequence[Finding]) -> None:
        errors = errors_in(findings)
        self.checked += 1
        if errors:
            self.failing += 1
            self.rules.update({finding.rule for finding in errors})
            for finding in errors:
                self.first.setdefault(finding.rule, f"{name}: {finding.message}")
            if len(self.examples) < self.most_examples:
                self.examples.append((name, errors))

    def as_json(self) -> dict[str, Any]:
        made = self.vocabulary
        return {
            "project": made.project, "version": made.version, "checked": self.checked, "failing": self.failing,
            "rules": dict(self.rules.most_common()),
            "examples": [{"id": name, "findings": [one.as_json() for one in found]} for name, found in self.examples],
        }  # fmt: skip

    def show(self) -> None:
        table = _table("rule", "datasets", "for example", wrap="for example")
        for rule, count in self.rules.most_common():
            table.add_row(*_cells(rule, count, self.first[rule]))
        if self.rules:
            _print(table)
        made = self.vocabulary
        out(f"{self.checked} checked by {made.project} {made.version}: {self.checked - self.failing} pass, "
            f"{self.failing} do not", "red" if self.failing else "green")  # fmt: skip


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
    """Would what exists still pass? Counts by rule, with examples; exit 1 if something would not."""
    if bool(path) == bool(dsn):
        raise typer.BadParameter("say what to check: a PATH (- for stdin), or --dsn", param_hint="PATH")
    verdict = _Verdict(_vocabulary(cv_folder, project, version), most)
    judge = open_checker(cv_folder)
    form = form_of(ctx, output)
    with terminal.bars(["checked"], form) as bars:
        if path:
            for entry in documents.read(path, project):
                _add(verdict, judge, entry)
                bars.set("checked", verdict.checked, None)
        else:
            asyncio.run(_check_database(dsn, judge, verdict, lambda: bars.set("checked", verdict.checked, None)))
    if form is Output.TABLE:
        verdict.show()
    else:
        terminal.dump(verdict.as_json())
    if verdict.failing:
        raise typer.Exit(terminal.REJECTED)


def _add(verdict: _Verdict, judge: Checker, entry: documents.Entry | documents.Trouble) -> None:
    if isinstance(entry, documents.Trouble):
        verdict.add(entry.id or entry.place, entry.findings or (Finding(entry.type, "", entry.detail),))
        return
    project = verdict.vocabulary.project
    document = {**orjson.loads(entry.text), "collection": project}
    verdict.add(entry.id, judge.findings(document, project, verdict.vocabulary))


async def _check_database(dsn: str, judge: Checker, verdict: _Verdict, tell: Callable[[], None]) -> None:
    from fedstac.db import connections
    from fedstac.db import vocabularies as kept

    project = verdict.vocabulary.project
    conn = await connections.connect(dsn, application="fedstac vocab check")
    try:
        async for name, text in kept.documents(conn, project):
            verdict.add(name, judge.findings_of_stored(text, project, verdict.vocabulary))
            tell()
    finally:
        await conn.close(timeout=10)


# --- schema ---


@commands.command(
    epilog=examples("fedstac vocab schema CMIP6", "fedstac vocab schema CMIP6 6.2.58.60 > schema.json", codes=True)
)
def schema(
    project: Project,
    version: Annotated[str, typer.Argument(help="Version of the vocabulary; else the newest.")] = "",
    cv_folder: Folder = None,
) -> None:
    """Print the project's STAC extension as JSON Schema, as nodes serve it at /extensions/PROJECT/VERSION/schema.json.

    It says what a schema can say of an item: what has to be there, types, terms and patterns. What ties values
    together is told by `fedstac validate` alone.
    """
    terminal.dump(schemas.schema_of(_vocabulary(cv_folder, project, version)))
