"""Look at vocabularies: `fedstac vocab list`, `show`, `diff`, `suggest` and `schema`."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Annotated, Any

import orjson
import typer
from rich.table import Table
from rich.text import Text

from fedstac import settings as environment
from fedstac.cli import terminal
from fedstac.cli.options import Form, examples, form_of
from fedstac.cli.terminal import Output, complain, for_terminal, out
from fedstac.cli.vocab.snapshots import (
    DIGEST,
    Folder,
    Project,
    Version,
    number_of_terms,
    stop,
    vocabularies_in,
    vocabulary_of,
)
from fedstac.cli.vocab.tables import cells_of, plain_table, print_table
from fedstac.domain import schemas, wording
from fedstac.domain.vocabulary import UnknownVersion, Vocabulary, VocabularyBroken
from fedstac.vocabularies import browsing
from fedstac.vocabularies.compare import Difference, between

commands = typer.Typer()
SHOWN_TERMS = 12


@commands.command("list", epilog=examples("fedstac vocab list", "fedstac vocab list -o json"))
def list_snapshots(ctx: typer.Context, cv_folder: Folder = None, output: Form = None) -> None:
    """List the snapshots: version, source, number of terms, digest, size; `*` is the one that judges.

    Exit 1 if one cannot be used.
    """
    vocabularies, broken = vocabularies_in(cv_folder), False
    rows: list[dict[str, Any]] = []
    for snapshot in vocabularies:
        try:
            vocabulary = vocabularies.at(snapshot.project, snapshot.version)
        except (UnknownVersion, VocabularyBroken) as error:
            complain(f"{snapshot.project} {snapshot.version} cannot be used: {error}")
            broken = True
            continue
        sources = [{"name": one.name, "version": one.version, "licence": one.licence} for one in vocabulary.sources]
        rows.append({
            "project": vocabulary.project, "version": vocabulary.version, "terms": number_of_terms(vocabulary),
            "current": snapshot is vocabularies.of(snapshot.project)[-1],
            "bytes": len(snapshot.read()), "digest": vocabulary.digest, "sources": sources,
        })  # fmt: skip
    if form_of(ctx, output) is not Output.TABLE:
        terminal.dump({"snapshots": rows})
    else:
        _show_snapshots(rows)
    if broken:
        raise typer.Exit(terminal.REJECTED)


def _show_snapshots(rows: Sequence[dict[str, Any]]) -> None:
    table = plain_table("", "project", "version", "terms", "kB", "sha-256", "source", wrap="source")
    for row in rows:
        names = "\n".join(f"{for_terminal(one['name'])} {for_terminal(one['version'])}" for one in row["sources"])
        cells = cells_of("*" if row["current"] else "", row["project"], row["version"], row["terms"],
                       row["bytes"] // 1000, row["digest"][:DIGEST])  # fmt: skip
        table.add_row(*cells, Text(names))
    print_table(table)


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
    project_vocabulary, form = vocabulary_of(cv_folder, project, version), form_of(ctx, output)
    vocabulary = browsing.facet(project_vocabulary, name) if name else None
    entries = browsing.find(project_vocabulary, name) if name and vocabulary is None else []
    if not name:
        _show_project(project_vocabulary, form)
    elif vocabulary is not None:
        _show_facet(project_vocabulary, vocabulary, form)
    elif entries:
        _show_term(project_vocabulary, entries, form)
    else:
        near = sorted(
            (pair for terms in project_vocabulary.terms.values() for pair in browsing.suggestions(terms, name, 1)),
            key=lambda pair: -pair[1],
        )
        hint = f"; did you mean {near[0][0]!r}?" if near else ""
        raise stop(f"{project} {project_vocabulary.version} has no term or facet {name!r}{hint}", terminal.NOT_FOUND)


def _show_project(vocabulary: Vocabulary, form: Output) -> None:
    facets = {name: len(terms) for name, terms in browsing.facets(vocabulary).items()}
    rules = sorted({one.rule for one in vocabulary.relations} | {one.rule for one in vocabulary.compositions})
    sources = [{"name": one.name, "version": one.version, "licence": one.licence, "url": one.url}
               for one in vocabulary.sources]  # fmt: skip
    if form is not Output.TABLE:
        terminal.dump(
            {
                "project": vocabulary.project,
                "version": vocabulary.version,
                "digest": vocabulary.digest,
                "sources": sources,
                "id_template": vocabulary.id_template.text,
                "institution": vocabulary.institution,
                "facets": facets,
                "rules": rules,
                "required": [one.name for one in vocabulary.properties.values() if one.required],
                "extensions": [list(one.uris) for one in vocabulary.extensions],
            }
        )
        return
    out(f"{vocabulary.project} {vocabulary.version}", "bold")
    for source in sources:
        out(for_terminal(f"  {source['name']} {source['version']}, {source['licence']}, {source['url']}"), "dim")
    out(for_terminal(f"  {vocabulary.id_template.text}"))
    out(f"  rules: {', '.join(rules)}")
    table = plain_table("facet", "terms", "for example", wrap="for example")
    for name, terms in browsing.facets(vocabulary).items():
        table.add_row(*cells_of(name, len(terms), wording.enumerated([term or "(empty)" for term in terms], 3)[:200]))
    print_table(table)


def _show_facet(project_vocabulary: Vocabulary, vocabulary: str, form: Output) -> None:
    terms = project_vocabulary.terms[vocabulary]
    if form is not Output.TABLE:
        terminal.dump(
            {
                "project": project_vocabulary.project,
                "version": project_vocabulary.version,
                "facet": vocabulary,
                "properties": browsing.properties_of(project_vocabulary, vocabulary),
                "terms": terms,
            }
        )
        return
    table = plain_table("term", "title", wrap="title")
    for term, attributes in terms.items():
        table.add_row(*cells_of(term, attributes.get("title", "")))
    print_table(table)


def _show_term(vocabulary: Vocabulary, entries: Sequence[browsing.TermEntry], form: Output) -> None:
    rows = [
        (entry, browsing.properties_of(vocabulary, entry.vocabulary), browsing.uses(vocabulary, entry))
        for entry in entries
    ]
    if form is not Output.TABLE:
        terminal.dump({"project": vocabulary.project, "version": vocabulary.version, "found": [
            {"vocabulary": entry.vocabulary, "properties": properties, "term": entry.term,
             "attributes": entry.attributes,
             "used": [{"vocabulary": use.vocabulary, "attribute": use.attribute, "rule": use.rule,
                       "terms": list(use.terms)} for use in uses]}
            for entry, properties, uses in rows]})  # fmt: skip
        return
    for entry, properties, uses in rows:
        out(for_terminal(f"{entry.term}  {', '.join(properties) or entry.vocabulary}"), "bold")
        if entry.title:
            out(for_terminal(f"  {entry.title}"))
        for name, value in entry.attributes.items():
            if name != "title":
                out(for_terminal(f"  {name}: {', '.join(value) if isinstance(value, list) else value}"))
        for use in uses:
            by = f"by {use.attribute}" if use.attribute else "in its name"
            out(for_terminal(f"  used by {len(use.terms)} of {use.vocabulary} ({by}): "
                      f"{wording.enumerated(use.terms, SHOWN_TERMS)}"), "dim")  # fmt: skip


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
        vocabulary_of(folder, project, version)
        contents.append(orjson.loads((folder / project / f"{version}.json").read_bytes()))
    difference = between(*contents)
    if form_of(ctx, output) is Output.TABLE:
        show_difference(difference, f"{project} {before} → {after}", limit=None)
    else:
        terminal.dump({"project": project, "before": before, "after": after, **difference.as_json()})
    if difference:
        raise typer.Exit(terminal.REJECTED)


def show_difference(difference: Difference, title: str, *, limit: int | None) -> None:
    """Show a difference line by line, as `diff` does: + is new, - is gone, ~ is changed."""
    rows = list(_changes(difference))
    out(for_terminal(f"{title}" + ("" if rows else " nothing is different")), "bold" if limit is None else "")
    table = Table(box=None, pad_edge=False, show_header=False)
    table.add_column(no_wrap=True)
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold", ratio=1)
    colours = {"+": "green", "-": "red"}
    for sign, name, text in rows[:limit]:
        table.add_row(*(Text(for_terminal(cell), style=colours.get(sign, "")) for cell in (sign, name, text)))
    if rows:
        print_table(table)
    if limit is not None and len(rows) > limit:
        out(f"  and {len(rows) - limit} more; `fedstac vocab diff` shows all")


def _changes(difference: Difference) -> Iterator[tuple[str, str, str]]:
    for name in sorted({*difference.added, *difference.removed, *difference.changed}):
        yield from (("+", name, term) for term in difference.added.get(name, ()))
        yield from (("-", name, term) for term in difference.removed.get(name, ()))
        for term, changes in difference.changed.get(name, {}).items():
            for attribute, (old, new) in changes.items():
                yield "~", name, f"{term} {attribute}: {_step(old, new)}"
    for name, (old, new) in {**difference.properties, **difference.other}.items():
        yield "~", name, _step(old, new)


def _step(old: Any, new: Any) -> str:
    """Return the change of a value: of a list, the members that are new or gone."""
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
    project_vocabulary = vocabulary_of(cv_folder, project, version)
    vocabulary = browsing.facet(project_vocabulary, facet)
    if vocabulary is None:
        raise stop(f"{project} has no facet {facet!r}; `fedstac vocab show {project}` lists them", terminal.NOT_FOUND)
    terms = project_vocabulary.terms[vocabulary]
    near = browsing.suggestions(terms, text[:200], limit)
    if form_of(ctx, output) is Output.TABLE:
        table = plain_table("term", "alike", "title", wrap="title")
        for term, score in near:
            table.add_row(*cells_of(term, f"{score:.0f} %", terms[term].get("title", "")))
        if near:
            print_table(table)
    else:
        rows = [{"term": term, "score": score, "title": terms[term].get("title")} for term, score in near]
        terminal.dump({"project": project, "version": project_vocabulary.version, "facet": vocabulary, "text": text,
                       "suggestions": rows})  # fmt: skip
    if not near:
        raise stop(f"no term of {facet} is near {text!r}", terminal.NOT_FOUND)


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
    terminal.dump(schemas.schema_of(vocabulary_of(cv_folder, project, version)))
