"""The routes of vocabularies and of their schemas."""

from __future__ import annotations

from fedstac.api import parameters, vocabularies
from fedstac.api.capability import Capability
from fedstac.api.route import GEOJSON, JSON, NOT_MODIFIED, Access, Answer, BodyFormat, Route, Size
from fedstac.domain.errors import NotFound, StacInvalid

SNAPSHOT = "/vocabularies/{project}/{version}"
LINES = "application/x-ndjson"

VOCABULARIES = Capability(
    name="vocabularies",
    description="Controlled vocabularies, the schemas that follow from them, and documents judged with them.",
    routes=(
        Route(
            method="GET", path="/vocabularies", handler=vocabularies.get_vocabularies, access=Access.PUBLIC,
            answers=(Answer.of(200, "The versions.", "Vocabularies"),),
        ),
        Route(
            method="GET", path="/vocabularies/{project}", handler=vocabularies.get_project, access=Access.PUBLIC,
            answers=(Answer.of(200, "The versions, the oldest first.", "Vocabularies"),), problems=(NotFound,),
        ),
        Route(
            method="GET", path=SNAPSHOT, handler=vocabularies.get_snapshot, access=Access.PUBLIC,
            parameters=(parameters.IF_NONE_MATCH,),
            answers=(
                Answer.of(200, "The snapshot, byte for byte.", "Vocabulary", headers=("ETag",)), NOT_MODIFIED,
            ),
            problems=(NotFound,),
        ),
        Route(
            method="GET", path=SNAPSHOT + "/terms/{facet}", handler=vocabularies.get_terms, access=Access.PUBLIC,
            answers=(Answer.of(200, "The terms.", "Terms"),), problems=(NotFound,),
        ),
        Route(
            method="POST", path="/validate", handler=vocabularies.post_validate, access=Access.AUTHENTICATED,
            parameters=(parameters.CV_VERSION,),
            body=BodyFormat(Size.BATCH, {JSON: ("Item", "Items"), GEOJSON: ("Item", "Items"), LINES: ("Lines",)}),
            answers=(Answer.of(200, "All findings, document by document.", "Validation"),),
            problems=(NotFound, StacInvalid), reads=True,
        ),
        Route(
            method="GET", path="/extensions/{name}/{version}/schema.json", handler=vocabularies.get_extension,
            access=Access.PUBLIC,
            answers=(Answer.of(200, "The schema.", "JsonSchema", media_type="application/schema+json"),),
            problems=(NotFound,),
        ),
    ),
)  # fmt: skip
CAPABILITIES = (VOCABULARIES,)
