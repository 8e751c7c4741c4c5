"""Plain tables for the commands of `fedstac vocab`."""

from __future__ import annotations

from rich.console import Console
from rich.table import Table
from rich.text import Text

from fedstac.cli.terminal import for_terminal


def plain_table(*columns: str, wrap: str = "") -> Table:
    """Return a table without lines; the column named by `wrap` takes what is left of the terminal's width."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    for name in columns:
        table.add_column(name, no_wrap=name != wrap, overflow="fold", ratio=1 if name == wrap else None)
    return table


def cells_of(*values: object) -> list[Text]:
    """Return values as the cells of a row, without what a terminal would obey."""
    return [Text(for_terminal(value)) for value in values]


def print_table(table: Table) -> None:
    """Print a table on standard output."""
    Console(highlight=False).print(table)
