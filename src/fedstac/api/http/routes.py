"""The routes by which the node describes itself."""

from __future__ import annotations

from fedstac.api.capability import Capability
from fedstac.api.http import documentation
from fedstac.api.route import Access, Route

DOCUMENTATION = Capability(
    name="documentation",
    description="The description of the routes, and of the problems that they answer with.",
    routes=(
        Route(method="GET", path="/api", handler=documentation.get_openapi, access=Access.PUBLIC),
        Route(method="GET", path="/api.html", handler=documentation.get_page, access=Access.PUBLIC),
        Route(method="GET", path="/problems", handler=documentation.get_problems, access=Access.PUBLIC),
        Route(method="GET", path="/problems/{name}", handler=documentation.get_problem, access=Access.PUBLIC),
    ),
)
CAPABILITIES = (DOCUMENTATION,)
