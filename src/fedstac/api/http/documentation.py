"""What the node says of itself: the description of its routes, and the pages that the types of problems point to."""

from __future__ import annotations

import html
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib.resources import files

import orjson
from starlette.datastructures import Headers
from starlette.responses import HTMLResponse, Response

from fedstac.api.call import Call
from fedstac.api.http import asyncapi, links, preconditions, problems
from fedstac.api.http.media_types import Accept
from fedstac.api.http.openapi import Description
from fedstac.domain import errors
from fedstac.domain.errors import NotFound, Problem
from fedstac.domain.events import EventFormat

PAGE = """<!doctype html>
<html lang="en">
<title>{title}</title>
<meta name="viewport" content="width=device-width, initial-scale=1">
<link rel="icon" href="api-assets/favicon-32x32.png">
<link rel="stylesheet" href="api-assets/swagger-ui.css">
<div id="swagger-ui"></div>
<script src="api-assets/swagger-ui-bundle.js"></script>
<script src="api-assets/start.js"></script>
</html>
"""
PAGE_WITHOUT_ASSETS = """<!doctype html>
<html lang="en">
<title>{title}</title>
<p>This node was installed without Swagger UI. <a href="api">The description of the routes</a> is there.</p>
</html>
"""
PAGE_MAY = (
    "default-src 'none'; script-src 'self'; style-src 'self' 'unsafe-inline'; img-src 'self' data:; connect-src 'self'"
)
START = """SwaggerUIBundle({
  url: "api",
  dom_id: "#swagger-ui",
  deepLinking: true,
  validatorUrl: null,
  presets: [SwaggerUIBundle.presets.apis],
});
"""
MEDIA_TYPES = {
    "start.js": "text/javascript; charset=utf-8",
    "swagger-ui-bundle.js": "text/javascript; charset=utf-8",
    "swagger-ui.css": "text/css; charset=utf-8",
    "favicon-32x32.png": "image/png",
}


async def get_openapi(call: Call) -> Response:
    """Return the description of every route, as OpenAPI 3.1."""
    description = call.services.openapi
    return _describe(call, description, links.OPENAPI)


async def get_asyncapi(call: Call) -> Response:
    """Return the description of every channel and message, as AsyncAPI 3.0.

    It refers to the JSON Schemas of the messages, which have addresses of their own, and to this document.
    """
    description = call.services.asyncapi
    return _describe(call, description, links.ASYNCAPI)


def _describe(call: Call, description: Description, media_type: str) -> Response:
    fresh = {"Cache-Control": "no-cache"}
    return preconditions.serve(call.headers, description.body, media_type, fresh, tag=description.etag)


async def get_message_schema(call: Call) -> Response:
    """Return the JSON Schema of the messages of a format."""
    name = call.path_params["format"]
    if name not in set(EventFormat):
        raise NotFound(f"there is no format {name[:80]!r}; there are {', '.join(EventFormat)}")
    body = orjson.dumps(asyncapi.schema(call.base_url, EventFormat(name)))
    return Response(body, media_type=asyncapi.SCHEMA)


async def get_page(call: Call) -> Response:
    """Return a page that shows the description of every route. It works without the internet."""
    title = html.escape(f"fedstac {call.node.settings.node}")
    page = PAGE if "swagger-ui.css" in assets() else PAGE_WITHOUT_ASSETS
    return HTMLResponse(page.format(title=title), headers={"Content-Security-Policy": PAGE_MAY})


async def get_asset(call: Call) -> Response:
    """Return a file of the page."""
    name = call.path_params["name"]
    asset = assets().get(name)
    if asset is None:
        raise NotFound(f"the page /api.html has no file {name[:100]!r}; it has {', '.join(assets())}")
    headers = {"Cache-Control": "public, max-age=3600"}
    return preconditions.serve(call.headers, asset.body, asset.media_type, headers, tag=asset.etag)


@dataclass(frozen=True, slots=True)
class Asset:
    """A file of the page."""

    body: bytes
    media_type: str
    etag: str


@cache
def assets() -> Mapping[str, Asset]:
    """Return the files of the page by their names. Those of Swagger UI are there if setup could fetch them."""
    bodies = {"start.js": START.encode()}
    folder = files("fedstac.api.http").joinpath("swagger_ui")
    for name in MEDIA_TYPES:
        if (file := folder.joinpath(name)).is_file():
            bodies[name] = file.read_bytes()
    return {name: Asset(body, MEDIA_TYPES[name], preconditions.tag_of(body)) for name, body in bodies.items()}


async def get_problems(call: Call) -> Response:
    """List all types of problems."""
    types = [_explanation(problem, call.base_url) for problem in errors.problems()]
    types.sort(key=lambda each: (each["status"], each["name"]))
    if not prefers_html(call.headers):
        return _json({"problems": types})
    rows = "".join(
        f'<li><a href="{html.escape(str(each["type"]))}">{html.escape(str(each["name"]))}</a> ({each["status"]}):'
        f" {html.escape(str(each['title']))}</li>"
        for each in types
    )
    return _page("Problems", f"<ul>{rows}</ul>")


async def get_problem(call: Call) -> Response:
    """Explain one type of problem."""
    name = call.path_params["name"]
    problem = next((each for each in errors.problems() if each.name == name), None)
    if problem is None:
        raise NotFound(f"there is no problem of the name {name[:100]!r}; all are listed at /problems")
    explanation = _explanation(problem, call.base_url)
    if not prefers_html(call.headers):
        return _json(explanation)
    text = html.escape(str(explanation["description"]))
    return _page(f"{problem.title} ({problem.status})", f"<p><code>{html.escape(problem.name)}</code></p><p>{text}</p>")


def _explanation(problem: type[Problem], base: str) -> dict[str, str | int]:
    return {
        "type": f"{base}/problems/{problem.name}",
        "name": problem.name,
        "status": problem.status,
        "title": problem.title,
        "description": problems.explanation(problem),
    }


def _json(content: object) -> Response:
    return Response(orjson.dumps(content), media_type=links.JSON, headers={"vary": "accept"})


def _page(title: str, content: str) -> Response:
    title = html.escape(title)
    text = f'<!doctype html><html lang="en"><title>{title}</title><h1>{title}</h1>{content}</html>'
    return HTMLResponse(text, headers={"vary": "accept"})


def prefers_html(headers: Headers) -> bool:
    """Return whether a caller would rather read a page than JSON."""
    accept = Accept(headers)
    return accept.own_weight("text/html") > max(accept.weight(links.JSON), accept.own_weight(problems.MEDIA_TYPE))
