"""Commands about datasets that are there: looking at them, and changing them."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import orjson
import typer

from fedstac.cli import bulk, bulk_changes, terminal
from fedstac.cli.bulk import ChangeOptions, Collection, DryRun, Ids, IdsFrom, Job, One, Yes
from fedstac.cli.bulk_changes import Digest, Filter, ManyOptions
from fedstac.cli.options import Form, Token, Url, client_of, examples, form_of
from fedstac.cli.terminal import Output, for_terminal, out, say
from fedstac.client import Client, documents
from fedstac.client.transport import NotFound
from fedstac.client.values import ChangeResult, Dataset
from fedstac.domain import patching, retraction
from fedstac.domain.alternates import with_alternates
from fedstac.domain.documents import without_server_members
from fedstac.domain.errors import Problem

commands = typer.Typer()
Json = dict[str, Any]
Id = Annotated[str, typer.Argument(metavar="ID", help="A dataset's id.")]


FACET = re.compile(r"[^:]+:\w+_id")  # cmip6:source_id


# --- looks ---


@commands.command(
    rich_help_panel="Client",
    epilog=examples("fedstac get CMIP6.CMIP.NCAR.CESM2.….v20190401", "fedstac get CMIP6.… -o json | jq .properties",
                    codes=True),
)  # fmt: skip
def get(
    ctx: typer.Context, id: Id, collection: Collection = "", output: Form = None, url: Url = "", token: Token = ""
) -> None:
    """Show a dataset: in short on a terminal, else its whole document; exit 3 if there is none."""
    with client_of(ctx, url, token) as client:
        dataset = client.get(id, collection=bulk.collection_of(id, collection, client))
    if form_of(ctx, output) is Output.TABLE and sys.stdout.isatty():
        _show_shortly(dataset)
    elif form_of(ctx, output) is Output.TABLE:
        out(orjson.dumps(dataset.document, option=orjson.OPT_INDENT_2).decode())
    else:
        terminal.dump(dataset.document)


def _show_shortly(dataset: Dataset) -> None:
    """Show what most people look for; the rest is in the document."""
    properties, files = dataset.properties, {file.asset: file for file in reversed(dataset.files)}
    out(for_terminal(dataset.id), "bold")
    latest = "the latest version" if dataset.is_latest else "not the latest version"
    start = properties.get("start_datetime") or properties.get("datetime") or ""
    size = sum(file.size or 0 for file in files.values())
    for label, text in (
        ("title", properties.get("title")), ("state", f"{dataset.state}, {latest}"), ("time", _span(start, properties)),
        ("files", f"{len(files)}, {size / 1e9:.1f} GB" if files else ""),
        ("nodes", ", ".join(dict.fromkeys(file.node for file in dataset.files))),
        *((name.partition(":")[2], value) for name, value in properties.items() if FACET.fullmatch(name)),
        ("published", str(properties.get("created", ""))[:10]), ("changed", str(properties.get("updated", ""))[:10]),
    ):  # fmt: skip
        if text:
            out(for_terminal(f"  {label:<18}{', '.join(map(str, text)) if isinstance(text, list) else text}"))
    terminal.show_notices(properties)
    for link in dataset.document["links"]:
        if link["rel"] in ("cite-as", "related", "replaced_by", "replaces", "latest-version"):
            out(for_terminal(f"  {link['rel']:<18}{link['href']}"))
    say(for_terminal(f"files:     fedstac files {dataset.id}"), "dim")
    say(for_terminal(f"all of it: fedstac get {dataset.id} -o json"), "dim")


def _span(start: str, properties: Mapping[str, Any]) -> str:
    end = properties.get("end_datetime")
    return f"{start[:10]} to {end[:10]}" if end else start[:10]


@commands.command(
    rich_help_panel="Client",
    epilog=examples("fedstac history CMIP6.CMIP.NCAR.CESM2.….v20190401", "fedstac history CMIP6.… -o ndjson",
                    "fedstac history CMIP6.….v20190401 --events",
                    codes=True),
)  # fmt: skip
def history(
    ctx: typer.Context,
    id: Id,
    events: Annotated[bool, typer.Option("--events", help="What became of them, instead: who, when and why.")] = False,
    collection: Collection = "",
    output: Form = None,
    url: Url = "",
    token: Token = "",
) -> None:
    """List the versions of a dataset, the oldest first; the id may be without a version.

    With --events: their events, the newest first, as the log of the node has them; the id is one with a version.
    """
    form = form_of(ctx, output)
    if events:
        with client_of(ctx, url, token) as client:
            rows = client.events_of(id, collection=bulk.collection_of(id, collection, client))
        _show_events(form, rows)
        return
    with client_of(ctx, url, token) as client:
        versions = client.history(id, collection=bulk.collection_of(id, collection, client))
    with terminal.Listing(form, ("version   ", "state    ", "latest", "since     ", "changed   ")) as listing:
        for one in versions:
            cells = (
                one.version,
                one.state,
                "yes" if one.is_latest else "no",
                _day(one, "created"),
                _day(one, "updated"),
            )
            listing.row(
                {"id": one.id, "version": one.version, "state": one.state, "latest": one.is_latest,
                 "created": one.properties.get("created"), "updated": one.properties.get("updated"),
                 "retraction": one.properties.get("fedstac:retraction")}, cells,
            )  # fmt: skip
            if form is Output.TABLE:
                terminal.show_notices(one.properties)


def _show_events(form: Output, rows: Sequence[Mapping[str, Any]]) -> None:
    with terminal.Listing(form, ("time               ", "what      ", "state    ", "who", "id")) as listing:
        for row in rows:
            listing.row(row, (row["time"][:19], row["type"], row["state"], row.get("actor"), row["id"]))
            if form is Output.TABLE:
                terminal.show_notices({"fedstac:state": row["state"], "fedstac:retraction": row.get("retraction")})
                if row.get("reason") and not row.get("retraction"):  # which has the reason too
                    out(for_terminal(f"    {row['reason']}"))


def _day(dataset: Dataset, name: str) -> str:
    return str(dataset.properties.get(name, ""))[:10]


@commands.command(
    rich_help_panel="Client",
    epilog=examples("fedstac diff CMIP6.….v20200101", "fedstac diff CMIP6.….v20190401 CMIP6.….v20200101",
                    "fedstac diff CMIP6.….v20200101 item.json", codes=True),
)  # fmt: skip
def diff(
    ctx: typer.Context,
    id: Id,
    other: Annotated[str, typer.Argument(help="Another id, or a file; else the version before.")] = "",
    every: Annotated[bool, typer.Option("--all", help="Also what the server says: state, dates, its links.")] = False,
    collection: Collection = "",
    output: Form = None,
    url: Url = "",
    token: Token = "",
) -> None:
    """Show what is different between two datasets, or a dataset and a file, as `diff -u` does; exit 1 if something is.

    Of a file, what PUT or publish would change is shown: replicas at other nodes stay.
    """
    with client_of(ctx, url, token) as client:
        where = bulk.collection_of(id, collection, client)
        mine = client.get(id, collection=where).document
        if other and os.path.exists(other):
            names, pair = (id, other), (mine, _with_replicas(mine, _of_file(other)))
        elif other:
            theirs = client.get(other, collection=bulk.collection_of(other, collection, client)).document
            names, pair = (id, other), (mine, theirs)
        else:
            before = _before(client, id, where)
            names, pair = (before.id, id), (before.document, mine)
    if not every:
        pair = (without_server_members(pair[0]), without_server_members(pair[1]))
    lines = bulk.difference(*pair, names)
    if form_of(ctx, output) is not Output.TABLE:
        terminal.dump({"before": names[0], "after": names[1], "diff": lines})
    for line in lines if form_of(ctx, output) is Output.TABLE else ():
        out(for_terminal(line), bulk.style_of(line))
    if lines:
        raise typer.Exit(terminal.REJECTED)


def _before(client: Client, id: str, collection: str) -> Dataset:
    versions = client.history(id, collection=collection)
    at = next((n for n, one in enumerate(versions) if one.id == id), 0)
    if not at:
        raise NotFound(404, "no-predecessor", f"no version before {id} can be seen; say what to compare it with")
    return versions[at - 1]


def _of_file(path: str) -> Mapping[str, Any]:
    [*entries] = documents.read(path, "any")
    if len(entries) != 1 or isinstance(entries[0], documents.DocumentTrouble):
        raise typer.BadParameter(f"{path} is not one Item in JSON", param_hint="OTHER")
    document: Json = orjson.loads(entries[0].text)
    return document


def _with_replicas(stored_document: Mapping[str, Any], document: Mapping[str, Any]) -> Mapping[str, Any]:
    return with_alternates(stored_document, document) if isinstance(document.get("assets"), dict) else document


# --- changes ---


@commands.command(
    rich_help_panel="Client",
    epilog=examples("fedstac patch CMIP6.… --set 'cmip6:grid=native' --unset description",
                    "fedstac patch CMIP6.… --add-link 'related=https://errata.esgf.io/1 Errata'",
                    "fedstac search -c CMIP6 -o ndjson | fedstac patch --ids - -f patch.json", codes=True),
)  # fmt: skip
def patch(
    ctx: typer.Context,
    ids: Ids = None,
    set_: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="A property, or a /pointer; JSON, else text.")
    ] = None,
    unset: Annotated[list[str] | None, typer.Option(metavar="KEY", help="A property, or a /pointer.")] = None,
    add_link: Annotated[list[str] | None, typer.Option(metavar="REL=HREF [TITLE]", help="A link.")] = None,
    file: Annotated[str, typer.Option("--file", "-f", help="A JSON Patch or merge patch.")] = "",
    override: Annotated[str, typer.Option(help="Why files may change under a version; needs permission.")] = "",
    ids_from: IdsFrom = "", collection: Collection = "", yes: Yes = False, dry_run: DryRun = False,
    output: Form = None, url: Url = "", token: Token = "",
) -> None:  # fmt: skip
    """Change metadata of datasets. What is so already stays as it is."""
    edit = _Edit(set_ or [], unset or [], add_link or [], file)

    def perform(one: One) -> ChangeResult:
        body = edit.body
        if body is None:
            body = edit.operations(one.client.get(one.id, collection=one.collection).document)
        return one.client.patch(one.id, body, collection=one.collection, override=override or None,
                                if_match=one.if_match, dry_run=one.dry_run)  # fmt: skip

    options = ChangeOptions(ctx, ids or [], ids_from, collection, yes, dry_run, output, url, token)
    bulk.run(Job("patch", perform, edit.foreseen), options)


class _Edit:
    """What `patch` was told to change."""

    def __init__(self, settings: Sequence[str], unset: Sequence[str], links: Sequence[str], file: str) -> None:
        has_edits = bool(settings or unset or links)
        if has_edits == bool(file):
            raise typer.BadParameter("say --set, --unset, --add-link, or a patch in a file with --file")
        self.body: Any = _json_of(file) if file else None
        self._values = [_assignment(text, "--set", "KEY=VALUE") for text in settings]
        self._removals = [_pointer(key) for key in unset]
        self._links = [_assignment(text, "--add-link", "REL=HREF") for text in links]

    def operations(self, document: Mapping[str, Any]) -> list[Json]:
        """Return the JSON Patch that makes the edits in a document; empty if it has them already."""
        edits = [{"op": "add", "path": _pointer(key), "value": _value(text)} for key, text in self._values]
        edits += [{"op": "remove", "path": path} for path in self._removals if _has(document, path)]
        there = {(link.get("rel"), link.get("href")) for link in document["links"]}
        for rel, text in self._links:
            href, _, title = text.partition(" ")
            if (rel, href) not in there:
                link = {"rel": rel, "href": href, **bulk.link_of(str(document["collection"]), rel)}
                link |= {"title": title.strip()} if title.strip() else {}
                edits.append({"op": "add", "path": "/links/-", "value": link})
        return edits

    def foreseen(self, dataset: Dataset) -> Mapping[str, Any]:
        try:
            edit = patching.read(self.body if self.body is not None else self.operations(dataset.document))
            after: Json = edit.apply(dataset.document)
        except Problem:
            return dataset.document  # the server says what is wrong with it
        return after


def _json_of(path: str) -> Any:
    try:
        return orjson.loads(Path(path).read_bytes())
    except OSError as error:
        reason = f"{path} cannot be read: {error.strerror or error}"
    except orjson.JSONDecodeError as error:
        reason = f"{path} is not JSON: {error}"
    raise typer.BadParameter(reason, param_hint="--file")


def _assignment(text: str, option: str, form: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not equals or not name or (option == "--add-link" and not value):
        raise typer.BadParameter(f"{text!r} is not of the form {form}", param_hint=option)
    return name, value


def _pointer(key: str) -> str:
    return key if key.startswith("/") else "/properties/" + key.replace("~", "~0").replace("/", "~1")


def _value(text: str) -> Any:
    try:
        return orjson.loads(text)
    except orjson.JSONDecodeError:
        return text


def _has(document: Mapping[str, Any], path: str) -> bool:
    try:
        patching.JsonPatch([{"op": "remove", "path": path}]).apply(document)
    except Problem:
        return False
    return True


@commands.command(
    rich_help_panel="Client",
    epilog=examples("fedstac retract CMIP6.….v20190401 --reason 'wrong forcing' --replaced-by CMIP6.….v20200101",
                    "fedstac retract --ids bad.txt --reason 'wrong units' --data purge --dry-run",
                    "fedstac retract CMIP6.….v20190401 --errata https://errata.esgf.io/1    # add to a retraction",
                    codes=True),
)  # fmt: skip
def retract(
    ctx: typer.Context,
    ids: Ids = None,
    reason: Annotated[str, typer.Option(help="Why, for everybody to read. The first retraction needs it.")] = "",
    errata: Annotated[str, typer.Option(help="Address of an errata page.")] = "",
    replaced_by: Annotated[str, typer.Option(metavar="ID", help="The dataset to use instead.")] = "",
    data: Annotated[retraction.Data | None, typer.Option(help="What nodes do with their copies.")] = None,
    ids_from: IdsFrom = "", collection: Collection = "", yes: Yes = False, dry_run: DryRun = False,
    output: Form = None, url: Url = "", token: Token = "",
) -> None:  # fmt: skip
    """Retract datasets: they are found with the reason, and their files are no longer offered. Nothing is erased.

    A repeat changes what it names and keeps the rest. Exit 3 if a dataset is unknown.
    """
    notice = {"reason": reason, "errata": errata, "replaced_by": replaced_by, "data": data.value if data else ""}
    notice = {name: value for name, value in notice.items() if value}
    if not notice:
        raise typer.BadParameter("say why the datasets must not be used", param_hint="--reason")

    def perform(one: One) -> ChangeResult:
        return one.client.retract(
            one.id, collection=one.collection, if_match=one.if_match, dry_run=one.dry_run, **notice
        )

    def foreseen(dataset: Dataset) -> Json:
        whole = retraction.merge(dataset.properties.get("fedstac:retraction", {}), notice)
        flags = {"latest": False, "retracted": True, "fedstac:state": "retracted", "fedstac:retraction": whole}
        return {**dataset.document, "properties": {**dataset.properties, **flags}}  # assets are hidden, and stay

    options = ChangeOptions(ctx, ids or [], ids_from, collection, yes, dry_run, output, url, token)
    bulk.run(Job("retract", perform, foreseen), options)


@commands.command(
    rich_help_panel="Client",
    epilog=examples("fedstac reinstate CMIP6.….v20190401", "fedstac reinstate --ids ids.txt", codes=True),
)
def reinstate(
    ctx: typer.Context, ids: Ids = None,
    ids_from: IdsFrom = "", collection: Collection = "", yes: Yes = False, dry_run: DryRun = False,
    output: Form = None, url: Url = "", token: Token = "",
) -> None:  # fmt: skip
    """Take retractions back: files and replicas are there again."""
    options = ChangeOptions(ctx, ids or [], ids_from, collection, yes, dry_run, output, url, token)
    bulk.run(Job("reinstate", lambda one: one.client.reinstate(one.id, collection=one.collection,
                                                               dry_run=one.dry_run)), options)  # fmt: skip


@commands.command(
    rich_help_panel="Client",
    epilog=examples(
        "fedstac mark CMIP6.….v20190401 --reason 'published by mistake'",
        "fedstac mark -c CMIP6 --filter \"cmip6:source_id = 'X'\" --dry-run -o json    # a look",
        "fedstac mark -c CMIP6 --filter \"cmip6:source_id = 'X'\" --reason 'replaced'",
        codes=True,
    ),
)
def mark(
    ctx: typer.Context, ids: Ids = None,
    reason: Annotated[str, typer.Option(help="Why, for those who delete.")] = "",
    ids_from: IdsFrom = "", filter: Filter = "", digest: Digest = "",
    collection: Collection = "", yes: Yes = False, dry_run: DryRun = False,
    output: Form = None, url: Url = "", token: Token = "",
) -> None:  # fmt: skip
    """Mark datasets for deletion: hidden until they are unmarked. Nothing is erased yet.

    With --filter or --digest in one go: it shows what that comes to, asks for the number of datasets, and follows the
    work. Ctrl-C leaves it running.
    """
    options = ChangeOptions(ctx, ids or [], ids_from, collection, yes, dry_run, output, url, token)
    many = ManyOptions(options, filter, digest)
    if many.is_wanted:
        bulk_changes.run("mark", {"reason": reason} if reason else {}, many)
        return
    bulk.run(Job("mark", lambda one: one.client.mark(one.id, reason=reason or None, collection=one.collection,
                                                     dry_run=one.dry_run)), options)  # fmt: skip


@commands.command(rich_help_panel="Client", epilog=examples("fedstac unmark CMIP6.….v20190401", codes=True))
def unmark(
    ctx: typer.Context, ids: Ids = None,
    ids_from: IdsFrom = "", filter: Filter = "", digest: Digest = "",
    collection: Collection = "", yes: Yes = False, dry_run: DryRun = False,
    output: Form = None, url: Url = "", token: Token = "",
) -> None:  # fmt: skip
    """Take marks for deletion back; with --filter or --digest in one go, as `fedstac mark`."""
    options = ChangeOptions(ctx, ids or [], ids_from, collection, yes, dry_run, output, url, token)
    many = ManyOptions(options, filter, digest)
    if many.is_wanted:
        bulk_changes.run("unmark", {}, many)
        return
    bulk.run(Job("unmark", lambda one: one.client.unmark(one.id, collection=one.collection,
                                                         dry_run=one.dry_run)), options)  # fmt: skip
