"""The first page: it leads to the first tab that is for the visitor."""

from __future__ import annotations

from starlette.responses import Response

from fedstac.api.deletions import manager
from fedstac.console import pages
from fedstac.console.visits import Visit
from fedstac.domain.errors import MissingPermission
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
