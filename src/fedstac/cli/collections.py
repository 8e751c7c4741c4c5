"""Commands about collections: a project's collection is made from its vocabulary, others from a file."""

from __future__ import annotations

import difflib
import sys
from pathlib import Path
from typing import Annotated, Any

import orjson
import typer

from fedstac.cli import bulk, cascades, terminal
from fedstac.cli.bulk import Yes
from fedstac.cli.options import Form, Token, Url, client_of, examples, form_of
from fedstac.cli.terminal import Output, for_terminal, out, say
from fedstac.client import Client
from fedstac.domain import collections as rules

commands = typer.Typer(no_args_is_help=True, help="The collections of a node: one for each project.")
Id = Annotated[str, typer.Argument(metavar="ID", help="The collection's id, for example CMIP6.")]
Title = Annotated[str, typer.Option(help="What people call it.")]
Description = Annotated[str, typer.Option(help="What is in it.")]
License = Annotated[str, typer.Option(help="SPDX licence of the data, for example CC-BY-4.0.")]
File = Annotated[
    Path | None, typer.Option("--file", "-f", exists=True, dir_okay=False, help="A whole STAC Collection in JSON.")
]
Json = dict[str, Any]


@commands.command(
    epilog=examples(
        "fedstac collections create CMIP6                      # from the project's vocabulary",
        "fedstac collections create obs --description 'Station observations' --license CC-BY-4.0",
        "fedstac collections create -f collection.json",
        codes=True,
    )
)
def create(
    ctx: typer.Context,
    id: Annotated[str, typer.Argument(metavar="ID", help="A project of the vocabularies, or another name.")] = "",
    file: File = None, title: Title = "", description: Description = "", license: License = "",
    output: Form = None, url: Url = "", token: Token = "",
) -> None:  # fmt: skip
    """Create a collection, so that datasets can be published into it. Administrators may.

    A project's collection is made from its vocabulary, which then judges what is published there.
    """
    metadata = _metadata_options(title, description, license)
    document = {**(_read(file) if file else {}), **({"id": id} if id else {})}
    if not file:
        document = _from_vocabulary(id, described=bool(description))
    with client_of(ctx, url, token) as client:
        created = client.create_collection({**document, **metadata})
    _show(form_of(ctx, output), created, f"created  {created['id']}")


@commands.command(
    "list", epilog=examples("fedstac collections list", "fedstac collections list -o ndjson | jq .id", codes=True)
)
def list_collections(ctx: typer.Context, output: Form = None, url: Url = "", token: Token = "") -> None:
    """List the collections of a node, with the number of their datasets."""
    form = form_of(ctx, output)
    with (
        client_of(ctx, url, token) as client,
        terminal.Listing(form, ("id            ", "datasets", "title")) as listing,
    ):
        for each in client.collections():
            count = _number_of_datasets(client, each["id"]) if form is Output.TABLE else None
            listing.row(each, (each["id"], count, each.get("title", "")))
    if not listing.count and form is Output.TABLE:
        say("no collection yet; an administrator creates one: fedstac collections create CMIP6", "dim")


@commands.command(
    epilog=examples("fedstac collections show CMIP6", "fedstac collections show CMIP6 --properties", codes=True)
)
def show(
    ctx: typer.Context,
    id: Id,
    properties: Annotated[bool, typer.Option("--properties", help="The properties that can be searched.")] = False,
    output: Form = None,
    url: Url = "",
    token: Token = "",
) -> None:
    """Show a collection, or the properties by which its datasets are searched."""
    form = form_of(ctx, output)
    with client_of(ctx, url, token) as client:
        if properties:
            _show_properties(form, client.queryables(id))
            return
        document = client.collection(id)
        if form is not Output.TABLE:
            terminal.dump(document)
            return
        count = _number_of_datasets(client, id)
    out(for_terminal(document["id"]), "bold")
    interval = " to ".join(str(end or "open")[:10] for end in document["extent"]["temporal"]["interval"][0])
    for label, text in (
        ("title", document.get("title")), ("about", document.get("description")), ("licence", document.get("license")),
        ("time", interval), ("datasets", count),
    ):  # fmt: skip
        if text:
            out(f"  {label:<10}{for_terminal(text)}")


@commands.command(
    epilog=examples(
        "fedstac collections update CMIP6 --license CC-BY-4.0",
        "fedstac collections show CMIP6 -o json > c.json; fedstac collections update CMIP6 -f c.json",
        codes=True,
    )
)
def update(
    ctx: typer.Context, id: Id,
    file: File = None, title: Title = "", description: Description = "", license: License = "",
    output: Form = None, url: Url = "", token: Token = "",
) -> None:  # fmt: skip
    """Change a collection's metadata; its datasets stay as they are."""
    metadata = _metadata_options(title, description, license)
    if not metadata and file is None:
        raise typer.BadParameter("say what is different: --title, --description, --license, or --file")
    with client_of(ctx, url, token) as client:
        document = _read(file) if file else client.collection(id)
        created = client.update_collection(id, {**document, **metadata})
    _show(form_of(ctx, output), created, f"updated  {created['id']}")


@commands.command(
    epilog=examples(
        "fedstac collections delete obs",
        "fedstac collections delete CMIP5 --cascade --dry-run",
        "fedstac collections delete CMIP5 --cascade --reason 'moved to the archive'",
        "fedstac collections delete CMIP5 --cascade --confirm 1204 --reason 'moved to the archive' -o json",
        codes=True,
    )
)
def delete(
    ctx: typer.Context,
    id: Id,
    cascade: Annotated[bool, typer.Option("--cascade", help="Delete it with its datasets: all are marked.")] = False,
    reason: Annotated[str, typer.Option(help="Of a cascade: why.")] = "",
    confirm: Annotated[
        int | None, typer.Option(min=0, help="Of a cascade: how many datasets it has, where nobody is asked.")
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Of a cascade: show what is affected only.")] = False,
    yes: Yes = False, output: Form = None, url: Url = "", token: Token = "",
) -> None:  # fmt: skip
    """Delete a collection that has no datasets; with --cascade, one with its datasets.

    A cascade shows what is affected. On a terminal the number of datasets has to be typed; elsewhere --confirm is
    needed. The datasets are marked at once, and deleted when everybody has done their part; then the collection goes.
    """
    form = form_of(ctx, output)
    with client_of(ctx, url, token) as client:
        if cascade:
            cascades.delete(client, id, form, reason=reason, confirm=confirm, dry_run=dry_run)
            return
        if dry_run or reason or confirm is not None:
            raise typer.BadParameter("--dry-run, --reason and --confirm are of --cascade", param_hint="--cascade")
        asks = sys.stdin.isatty() and sys.stderr.isatty() and not yes
        if asks and not typer.confirm(f"delete the collection {id}?", err=True):
            say("nothing is changed")
            raise typer.Exit(terminal.REJECTED)
        client.delete_collection(id)
    if form is Output.TABLE:
        out(f"deleted  {for_terminal(id)}")
    else:
        terminal.dump({"deleted": id})


@commands.command(
    epilog=examples(
        "fedstac collections cascade CMIP5",
        "fedstac collections cascade CMIP5 --wait",
        "fedstac collections cascade CMIP5 --cancel",
        codes=True,
    )
)
def cascade(
    ctx: typer.Context,
    id: Id,
    wait: Annotated[bool, typer.Option("--wait", help="Wait until all datasets are marked.")] = False,
    cancel: Annotated[bool, typer.Option("--cancel", help="Cancel it. What is marked stays marked.")] = False,
    output: Form = None, url: Url = "", token: Token = "",
) -> None:  # fmt: skip
    """Show how far the deletion of a collection with its datasets is, or cancel it."""
    form = form_of(ctx, output)
    with client_of(ctx, url, token) as client:
        cascades.follow(client, id, form, wait=wait, cancel=cancel)


def _metadata_options(title: str, description: str, license: str) -> Json:
    options = {"title": title, "description": description, "license": license}
    return {name: text for name, text in options.items() if text}


def _read(file: Path) -> Json:
    try:
        document = orjson.loads(file.read_bytes())
    except (OSError, orjson.JSONDecodeError) as error:
        raise typer.BadParameter(f"{file} is no JSON that can be read: {error}", param_hint="--file") from None
    if not isinstance(document, dict):
        raise typer.BadParameter(f"{file} is not one STAC Collection", param_hint="--file")
    return document


def _from_vocabulary(id: str, *, described: bool) -> Json:
    """Return the collection of a project, or of another name if the caller describes it."""
    if not id:
        raise typer.BadParameter("say which: a project such as CMIP6, or --file", param_hint="ID")
    vocabularies = bulk.vocabularies()
    vocabulary = vocabularies.current(id)
    if vocabulary is None and not described:
        projects = sorted(vocabularies.projects())
        near = difflib.get_close_matches(id.upper(), projects, 1)
        raise typer.BadParameter(
            f"no vocabulary has the project {id!r}; there are {', '.join(projects)}"
            + (f"; did you mean {near[0]}?" if near else "")
            + " For a collection without a vocabulary say --description or --file.",
            param_hint="ID",
        )
    return rules.fresh(id, vocabulary)


def _number_of_datasets(client: Client, id: str) -> str:
    search = client.search(collections=[id], retracted="include", limit=1)
    return f"{'about ' if search.is_estimated else ''}{search.matched}"


def _show(form: Output, collection: Json, line: str) -> None:
    """Show a collection after a write; warnings about the document that was sent go to standard error."""
    terminal.show_warnings([f"{each['pointer']}: {each['message']}" for each in collection.get(rules.WARNINGS, ())])
    if form is Output.TABLE:
        out(for_terminal(line))
    else:
        terminal.dump(collection)


def _show_properties(form: Output, schema: Json) -> None:
    if form is Output.JSON:
        terminal.dump(schema)
        return
    with terminal.Listing(form, ("property" + " " * 30, "type")) as listing:
        for name, about in sorted(schema.get("properties", {}).items()):
            kind = about.get("type") or about.get("title") or about.get("$ref", "").rpartition("/")[2]
            listing.row({"name": name, **about}, (name, ", ".join(kind) if isinstance(kind, list) else kind))
