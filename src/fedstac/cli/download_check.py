"""`fedstac check-downloads`: were datasets that somebody has downloaded retracted since?"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Annotated, Any

import typer

from fedstac.cli import bulk, terminal
from fedstac.cli.bulk import IdsFrom
from fedstac.cli.options import Form, Token, Url, client_of, examples, form_of
from fedstac.cli.terminal import Output, for_terminal, out, say
from fedstac.client import Client

commands = typer.Typer()
TOGETHER = 1000  # ids in one request
NOT_TO_BE_USED = ("retracted", "quarantined")
SHOWN_FOLDERS = 5  # of those that stand for no dataset


@commands.command(
    "check-downloads",
    rich_help_panel="Client",
    epilog=examples(
        "fedstac check-downloads /data/CMIP6",
        "fedstac check-downloads --ids ids.txt",
        "fedstac check-downloads CMIP6.CMIP.NCAR.CESM2.….v20190401 -o json",
        codes=True,
    ),
)
def check_downloads(
    ctx: typer.Context,
    things: Annotated[
        list[str] | None,
        typer.Argument(metavar="ID|FOLDER", help="Datasets' ids, and folders with NetCDF files.", show_default=False),
    ] = None,
    ids_from: IdsFrom = "",
    output: Form = None,
    url: Url = "",
    token: Token = "",
) -> None:
    """Say which of the datasets that you have are retracted or under quarantine, why, and what to use instead.

    Exit 1 if one is. A folder stands for a dataset if its path ends with the id, or with its parts
    (…/CMIP6/CMIP/NCAR/…/v20190401). The table has those that are not to be used; -o ndjson has all.
    """
    folders = [thing for thing in things or () if Path(thing).is_dir()]
    ids = [thing for thing in things or () if thing not in folders]
    nameless: list[str] = []
    for folder in folders:
        for path, id in datasets_in(folder):
            if id is None:
                nameless.append(path)
            else:
                ids.append(id)
    if not things or ids_from:
        ids += bulk.ids_of(bulk.ChangeOptions(ctx, [], ids_from, "", True, False, output, url, token))
    form, counts = form_of(ctx, output), {"retracted": 0, "quarantined": 0, "unknown": 0, "newer": 0}
    with client_of(ctx, url, token) as client, terminal.Listing(form, ("state    ", "id")) as listing:
        for entry in _statuses(client, iter(dict.fromkeys(ids))):
            counts["newer"] += "latest_version" in entry
            counts[str(entry["state"])] = counts.get(str(entry["state"]), 0) + 1
            if form is not Output.TABLE or entry["state"] in NOT_TO_BE_USED:
                listing.row(entry, (entry["state"], entry["id"]))
                if form is Output.TABLE:
                    retraction = entry if entry["state"] == "retracted" or "reason" in entry else {}
                    terminal.show_notices({"fedstac:state": entry["state"], "fedstac:retraction": retraction})
    for path in nameless[:SHOWN_FOLDERS]:
        say(for_terminal(f"{path}: its name stands for no dataset; `fedstac scan` reads the files"), "yellow")
    if len(nameless) > SHOWN_FOLDERS:
        say(f"and {len(nameless) - SHOWN_FOLDERS} more folders that stand for no dataset", "yellow")
    if form is Output.TABLE:
        total = terminal.number(len(dict.fromkeys(ids)), "dataset")
        of_each = f"{counts['retracted']} retracted, {counts['unknown']} unknown here"
        if counts["quarantined"]:
            of_each = f"{counts['quarantined']} under quarantine, {of_each}"
        out(f"{total}: {of_each}, {counts['newer']} with a newer version")
    if any(counts[state] for state in NOT_TO_BE_USED):
        raise typer.Exit(terminal.REJECTED)


def datasets_in(folder: str) -> Iterator[tuple[str, str | None]]:
    """Yield the path of each folder with NetCDF files, and the id of its dataset; None where the path tells none."""
    for path, _, names in os.walk(os.path.abspath(folder)):
        if any(name.endswith(".nc") for name in names):
            yield path, id_of(Path(path).parts)


def id_of(parts: Sequence[str]) -> str | None:
    """Return the dataset's id that the last parts of a path are; None where they are none."""
    vocabularies = bulk.vocabularies()
    for project in vocabularies.projects():
        vocabulary = vocabularies.current(project)
        if vocabulary is None:
            continue
        count = vocabulary.id_template.text.count(".") + 1
        for candidate in (parts[-1], ".".join(parts[-count:])):
            if vocabulary.id_pattern.fullmatch(candidate):
                return candidate
    return None


def _statuses(client: Client, ids: Iterator[str]) -> Iterator[Mapping[str, Any]]:
    while several := list(islice(ids, TOGETHER)):
        yield from client.statuses(several)
