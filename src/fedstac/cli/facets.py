"""The command that counts: which values the datasets of a search have, and how many have each."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any

import typer

from fedstac.cli import terminal
from fedstac.cli.options import Form, Token, Url, client_of, examples, form_of
from fedstac.cli.terminal import Output
from fedstac.domain.aggregating import DISTRIBUTION

commands = typer.Typer()


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
    with terminal.Listing(form, ("facet", "value", "datasets")) as listing:
        for each in counts.aggregations:
            for value, count in _rows(each, 0 if form is Output.NDJSON else top):
                listing.row({"facet": each["name"], "value": value, "datasets": count}, (each["name"], value, count))


def _rows(aggregation: dict[str, Any], top: int) -> Sequence[tuple[object, object]]:
    """Return values and how many datasets have each; of what is one value, that and nothing."""
    if aggregation["data_type"] != DISTRIBUTION:
        return [(aggregation["value"], "")]
    buckets = aggregation["buckets"]
    rows: list[tuple[object, object]] = [(each["key"], each["frequency"]) for each in buckets[: top or len(buckets)]]
    return [*rows, (f"… and {len(buckets) - len(rows)} more", "")] if len(rows) < len(buckets) else rows


def _numbers(text: str) -> list[float]:
    try:
        return [float(number) for number in text.split(",")]
    except ValueError:
        raise typer.BadParameter(f"{text!r} is not west,south,east,north in degrees", param_hint="--bbox") from None
