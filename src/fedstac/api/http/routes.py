"""The routes by which the node describes itself."""

from __future__ import annotations

from fedstac.api import parameters
from fedstac.api.capability import Capability
from fedstac.api.http import asyncapi, documentation, links
from fedstac.api.route import JSON, NOT_MODIFIED, Access, Answer, Route
from fedstac.domain.errors import NotFound

HTML = "text/html; charset=utf-8"

DOCUMENTATION = Capability(
    name="documentation",
    description="The description of the routes, and of the problems that they answer with.",
    routes=(
        Route(
            method="GET", path="/api", handler=documentation.get_openapi, access=Access.PUBLIC,
            parameters=(parameters.IF_NONE_MATCH,),
            answers=(
                Answer.of(200, "This document.", "OpenApi", media_type=links.OPENAPI, headers=("ETag",)), NOT_MODIFIED,
            ),
        ),
        Route(
            method="GET", path="/api.html", handler=documentation.get_page, access=Access.PUBLIC,
            answers=(Answer.of(200, "The page.", "Page", media_type=HTML),),
        ),
        Route(
            method="GET", path="/api-assets/{name}", handler=documentation.get_asset, access=Access.PUBLIC,
            parameters=(parameters.IF_NONE_MATCH,),
            answers=(
                Answer(200, "The file.", dict.fromkeys(documentation.MEDIA_TYPES.values(), "File"), ("ETag",)),
                NOT_MODIFIED,
            ),
            problems=(NotFound,),
        ),
        Route(
            method="GET", path="/problems", handler=documentation.get_problems, access=Access.PUBLIC,
            answers=(Answer(200, "The types of problems.", {JSON: "ProblemTypes", HTML: "Page"}),),
        ),
        Route(
            method="GET", path="/problems/{name}", handler=documentation.get_problem, access=Access.PUBLIC,
            answers=(Answer(200, "The type of problem.", {JSON: "ProblemType", HTML: "Page"}),),
            problems=(NotFound,),
        ),
    ),
)  # fmt: skip
MESSAGES = Capability(
    name="messages",
    description="The description of the channels by which this node tells of changes, and of their messages.",
    conformance_classes=("https://www.opengis.net/spec/ogcapi-pubsub-1/1.0/conf/discovery",),
    routes=(
        Route(
            method="GET", path=links.ASYNCAPI_PATH, handler=documentation.get_asyncapi, access=Access.PUBLIC,
            parameters=(parameters.IF_NONE_MATCH,),
            answers=(
                Answer.of(200, "The channels.", "AsyncApi", media_type=links.ASYNCAPI, headers=("ETag",)),
                NOT_MODIFIED,
            ),
        ),
        Route(
            method="GET", path=asyncapi.SCHEMAS + "/{format}", handler=documentation.get_message_schema,
            access=Access.PUBLIC,
            answers=(Answer.of(200, "The schema.", "JsonSchema", media_type=asyncapi.SCHEMA),), problems=(NotFound,),
        ),
    ),
)  # fmt: skip
CAPABILITIES = (DOCUMENTATION, MESSAGES)
