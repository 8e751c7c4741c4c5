"""The command that counts: which values the datasets of a search have, and how many have each."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any

import typer

from fedstac.cli import terminal
from fedstac.cli.options import Form, Token, Url, client_of, examples, form_of
from fedstac.cli.terminal import Output, for_terminal, out
from fedstac.domain.aggregating import DISTRIBUTION, SUFFIX

commands = typer.Typer()

TOTALS = {
    "total_count": "datasets", "file_count": "files", "byte_count": "bytes", "node_count": "nodes with files",
    "datetime_min": "first start", "datetime_max": "last end",
}  # fmt: skip
HEADINGS = {"datetime_frequency": "year of the start", "alternate_name_frequency": "node with files"}


@commands.command(
    rich_help_panel="Client",
    epilog=examples(
        "fedstac facets source_id experiment_id -c CMIP6",
        "fedstac facets -c CMIP6 --filter 'latest = true' --top 3",
        "fedstac facets realm -c CMIP6 --filter \"realm = 'ocean'\" --multi-select -o json",
    ),
)
def facets(
    ctx: typer.Context,
    names: Annotated[
        list[str] | None,
        typer.Argument(metavar="[FACET]...", help="Properties, short or in full, or names of aggregations."),
    ] = None,
    collection: Annotated[
        list[str] | None, typer.Option("--collection", "-c", help="Count in this collection. Repeatable.")
    ] = None,
    bbox: Annotated[str, typer.Option(help="west,south,east,north in degrees.")] = "",
    datetime: Annotated[str, typer.Option(help="A time, year, month or day, or START/END; .. for an open end.")] = "",
    filter: Annotated[str, typer.Option(help="A filter in CQL2 text.")] = "",
    q: Annotated[
        str,
        typer.Option("--query-text", "--q", "-q", metavar="WORDS", help='Free text: words, "phrases", AND, OR, NOT.'),
    ] = "",
    multi_select: Annotated[
        bool, typer.Option("--multi-select", help="Leave the conditions on a facet out where that facet is counted.")
    ] = False,
    top: Annotated[int, typer.Option(min=0, help="In a table, show at most so many values of a facet; 0: all.")] = 10,
    output: Form = None,
    url: Url = "",
    token: Token = "",
) -> None:
    """Count datasets by their facets. Without names: all facets, files, bytes and the span of time."""
    form = form_of(ctx, output)
    with client_of(ctx, url, token) as server:
        counts = server.counts(
            names, collections=collection or (), bbox=_numbers(bbox) if bbox else None, datetime=datetime or None,
            filter=filter or None, q=q or None, multi_select=multi_select,
        )  # fmt: skip
    terminal.show_warnings(counts.warnings)
    if form is Output.JSON:
        terminal.dump(counts.aggregations)
        return
    if form is Output.NDJSON:
        for each in counts.aggregations:
            for value, count in _rows(each):
                terminal.dump({"facet": each["name"], "value": value, "datasets": count})
        return
    for each in counts.aggregations:
        if each["data_type"] == DISTRIBUTION:
            _show_facet(each, (collection or ())[:2], top)
        else:
            out(f"{TOTALS.get(each['name'], each['name']):<18}{_total(each)}")


def _rows(aggregation: dict[str, Any]) -> Sequence[tuple[object, object]]:
    """Return values and how many datasets have each; of what is one value, that and nothing."""
    if aggregation["data_type"] != DISTRIBUTION:
        return [(aggregation["value"], "")]
    return [(each["key"], each["frequency"]) for each in aggregation["buckets"]]


def _total(aggregation: dict[str, Any]) -> str:
    """Return the one value of an aggregation, for people."""
    value = aggregation["value"]
    if value is None:
        return "none"
    if aggregation["data_type"] == "datetime":
        return for_terminal(value)[:10]
    return f"{value:,}" + (f" ({value / 1e9:.1f} GB)" if aggregation["name"] == "byte_count" else "")


def _show_facet(aggregation: dict[str, Any], collections: Sequence[str], top: int) -> None:
    """Show the values of a facet below its name, for people. The count comes first, whatever the length of a value."""
    buckets = aggregation["buckets"]
    most_frequent = buckets[: top or len(buckets)]
    if not most_frequent:
        return
    out()
    out(for_terminal(_heading(aggregation["name"], collections)), "bold")
    for bucket in most_frequent:
        value = str(bucket["key"])
        out(for_terminal(f"{bucket['frequency']:>8,}  {value[:4] if bucket['data_type'] == 'datetime' else value}"))
    if len(most_frequent) < len(buckets):
        out(f"          … and {len(buckets) - len(most_frequent)} more; --top 0 shows all", "dim")


def _heading(name: str, collections: Sequence[str]) -> str:
    """Return the name of a facet as the command takes it: without the project's prefix where one is searched."""
    if name in HEADINGS:
        return HEADINGS[name]
    prefix = f"{collections[0].lower()}_" if len(collections) == 1 else ""
    return name.removesuffix(SUFFIX).removeprefix(prefix)


def _numbers(text: str) -> list[float]:
    try:
        return [float(number) for number in text.split(",")]
    except ValueError:
        raise typer.BadParameter(f"{text!r} is not west,south,east,north in degrees", param_hint="--bbox") from None
