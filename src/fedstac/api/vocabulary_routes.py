"""The routes of vocabularies and of their schemas."""

from __future__ import annotations

from fedstac.api import vocabularies
from fedstac.api.capability import Capability
from fedstac.api.route import JSON, Access, BodyFormat, Route, Size

SNAPSHOT = "/vocabularies/{project}/{version}"

VOCABULARIES = Capability(
    name="vocabularies",
    description="Controlled vocabularies, the schemas that follow from them, and documents judged with them.",
    routes=(
        Route(method="GET", path="/vocabularies", handler=vocabularies.get_vocabularies, access=Access.PUBLIC),
        Route(method="GET", path="/vocabularies/{project}", handler=vocabularies.get_project, access=Access.PUBLIC),
        Route(method="GET", path=SNAPSHOT, handler=vocabularies.get_snapshot, access=Access.PUBLIC),
        Route(
            method="GET", path=SNAPSHOT + "/terms/{facet}", handler=vocabularies.get_terms, access=Access.PUBLIC
        ),
        Route(
            method="POST", path="/validate", handler=vocabularies.post_validate, access=Access.AUTHENTICATED,
            body=BodyFormat(Size.BATCH, {JSON: ("Item", "Items")}), reads=True,
        ),
        Route(
            method="GET", path="/extensions/{name}/{version}/schema.json", handler=vocabularies.get_extension,
            access=Access.PUBLIC,
        ),
    ),
)  # fmt: skip
CAPABILITIES = (VOCABULARIES,)
