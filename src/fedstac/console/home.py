"""The first page: it leads to the first tab."""

from __future__ import annotations

from starlette.responses import Response

from fedstac.console import pages
from fedstac.console.visits import Visit


async def get_home(visit: Visit) -> Response:
    """Redirect to the first tab."""
    return pages.redirect(f"{visit.place.root}/{pages.TABS[0][0]}")
