"""`fedstac files`: from datasets to their files, in the form that a downloader reads."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from itertools import islice
from typing import Annotated

import typer

from fedstac.cli import bulk, downloads, terminal
from fedstac.cli.bulk import Ids, IdsFrom
from fedstac.cli.downloads import FileForm
from fedstac.cli.options import Form, Token, Url, client_of, examples, form_of
from fedstac.cli.terminal import Output, for_terminal, say
from fedstac.client import Client
from fedstac.client.values import Dataset

commands = typer.Typer()
TOGETHER = 50  # ids in one search


@commands.command(
    rich_help_panel="Client",
    epilog=examples(
        "fedstac files CMIP6.CMIP.NCAR.CESM2.….v20190401",
        "fedstac files -c CMIP6 --filter \"latest = true AND cmip6:variable_id = 'psl'\" --format wget | sh",
        "fedstac files CMIP6.… --format aria2 > list && aria2c -i list        # all nodes as mirrors",
        "fedstac search … -o ndjson | fedstac files --ids - --node east --format urls",
        "fedstac files CMIP6.… --format sha256 | sha256sum -c",
        codes=True,
    ),
)
def files(
    ctx: typer.Context,
    ids: Ids = None,
    ids_from: IdsFrom = "",
    filter: Annotated[str, typer.Option(help="Of all datasets that match this CQL2 text.")] = "",
    collection: Annotated[
        list[str] | None, typer.Option("--collection", "-c", help="With --filter; repeatable.")
    ] = None,
    format: Annotated[FileForm, typer.Option("--format", "-f", help="Addresses, a script, or a list.")] = FileForm.URLS,
    node: Annotated[str, typer.Option("--node", "-n", help="The copies of this node; else the originals.")] = "",
    output: Form = None,
    url: Url = "",
    token: Token = "",
) -> None:
    """List the addresses of datasets' files, as they come: for a downloader, or to check what was downloaded.

    Exit 1 if a dataset is unknown, is retracted, or has no files at the node.
    """
    if bool(filter or collection) == bool(ids or ids_from):
        raise typer.BadParameter("say which datasets: ID…, --ids, or --filter and --collection", param_hint="ID")
    form, total, size, missing = form_of(ctx, output), 0, 0, 0
    options = bulk.ChangeOptions(ctx, ids or [], ids_from, "", True, False, output, url, token)
    with client_of(ctx, url, token) as client, terminal.Listing(form, ()) as listing:
        datasets = (
            _matching(client, filter, collection or []) if filter or collection
            else _by_id(client, iter(bulk.ids_of(options)))
        )  # fmt: skip
        if form is Output.TABLE:
            sys.stdout.write(downloads.head_of(format))
        for id, dataset in datasets:
            entries = [file for file in dataset.files if node in ("", file.node)] if dataset else []
            if not entries:
                missing += 1
                say(for_terminal(f"{id}: {_why_none(dataset, node)}"), "yellow")
            for file, mirrors in downloads.group(entries):
                if form is not Output.TABLE:
                    listing.row(downloads.as_json(file), ())
                elif (text := downloads.text(file, mirrors, format)) is not None:
                    sys.stdout.write(text)
                else:
                    missing += 1
                    say(for_terminal(f"{file.href or file.asset}: cannot be written as {format}"), "yellow")
                    continue
                total, size = total + 1, size + (downloads.size_of(file) or 0)
            sys.stdout.flush()
        if form is Output.TABLE:
            sys.stdout.write(downloads.end_of(format))
    say(f"{terminal.number(total, 'file')}, {size / 1e9:.1f} GB", "dim")
    if missing:
        raise typer.Exit(terminal.REJECTED)


def _matching(client: Client, filter: str, collections: Sequence[str]) -> Iterator[tuple[str, Dataset | None]]:
    results = client.search(collections=collections, filter=filter or None)
    terminal.show_warnings(results.warnings)
    for item in results:
        yield str(item["id"]), Dataset(item)


def _by_id(client: Client, ids: Iterator[str]) -> Iterator[tuple[str, Dataset | None]]:
    """Yield the datasets of these ids in their order, some at a time; None if there is none."""
    while several := list(islice(ids, TOGETHER)):
        datasets = {str(item["id"]): Dataset(item) for item in client.search(ids=several, retracted="include")}
        for id in several:
            yield id, datasets.get(id)


def _why_none(dataset: Dataset | None, node: str) -> str:
    if dataset is None:
        return "there is no such dataset"
    if dataset.state == "retracted":
        reason = (dataset.properties.get("fedstac:retraction") or {}).get("reason")
        return "it is retracted" + (f": {reason}" if reason else "")
    return f"it has no files at {node}" if node else "it has no files"
