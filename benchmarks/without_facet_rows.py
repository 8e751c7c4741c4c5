"""`fedstac` whose publications write no rows of the columns: `facet_rows.py` measures what these cost."""

from __future__ import annotations

from fedstac.cli import main
from fedstac.db import facets


async def write_nothing(*_: object) -> None:
    """Do nothing in place of what writes rows, terms and footprints."""


facets.prepare = write_nothing
facets.write = write_nothing

if __name__ == "__main__":
    main()
