"""The first page, which leads to the first tab that is for the visitor; and addresses where there is no page."""

from __future__ import annotations

from starlette.responses import Response

from fedstac.api.deletions import manager
from fedstac.console import pages
from fedstac.console.visits import Visit
from fedstac.domain.errors import MissingPermission, NotFound
from fedstac.workers import deleting

FOR_EVERYBODY = "subscriptions"  # a tab that shows everybody what is their own


async def get_home(visit: Visit) -> Response:
    """Redirect to the deletions, and who may see none of these to their subscriptions."""
    try:
        async with visit.call.node.pool.acquire() as conn:
            await deleting.sight_of(conn, manager.caller_of(visit.call))
    except MissingPermission:
        return pages.redirect(f"{visit.place.root}/{FOR_EVERYBODY}")
    return pages.redirect(f"{visit.place.root}/{pages.TABS[0][0]}")


async def get_nothing(visit: Visit) -> Response:
    """Say that there is no page here: as a page, since somebody typed the address in a browser."""
    raise NotFound(f"there is no page at {visit.call.path[:200]}; {visit.place.root} leads to those there are")
