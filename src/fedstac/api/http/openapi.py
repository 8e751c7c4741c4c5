"""The description of every route as OpenAPI 3.1, from what the routes declare.

The examples are real: `tools/examples.py` records them from a node, and a test sends them again and compares.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache, cached_property
from importlib.resources import files
from typing import Any, Final

import orjson

from fedstac.api import parameters
from fedstac.api.capability import Capability
from fedstac.api.http import preconditions
from fedstac.api.route import Access, Answer, Parameter, Route
from fedstac.api.schemas import COMPONENTS, ref
from fedstac.domain import errors
from fedstac.domain.errors import Problem

EXAMPLES: Final = "examples.json"  # beside the package's modules: exchanges in the order in which they are made
PROBLEM_TYPE: Final = "application/problem+json"
_CONVERTOR: Final = re.compile(r":\w+}")

OF_EVERY_ROUTE: Final = (
    errors.BadRequest, errors.UnsupportedMediaType, errors.HeadersTooLarge, errors.Unavailable, errors.TakesTooLong,
)  # fmt: skip
OF_BODIES: Final = (errors.MalformedJson, errors.BodyTimeout, errors.BodyTooLarge, errors.TooManyRequests)
OF_TOKENS: Final = (errors.Unauthenticated, errors.InvalidToken, errors.InvalidTokenAudience)
OF_ACCESS: Final[Mapping[Access, tuple[type[Problem], ...]]] = {
    Access.PUBLIC: (),
    Access.AUTHENTICATED: OF_TOKENS,
    Access.NODE: (*OF_TOKENS, errors.MissingPermission),
    Access.MONITOR: (*OF_TOKENS, errors.MissingPermission),
    Access.ACTION: (*OF_TOKENS, errors.MissingPermission),
    Access.RIGHT: (*OF_TOKENS, errors.MissingPermission),
}
CALLERS: Final[Mapping[Access, str]] = {
    Access.PUBLIC: "anybody",
    Access.AUTHENTICATED: "every caller with a valid token",
    Access.NODE: "the nodes of the federation",
    Access.MONITOR: "administrators and tokens with the role `monitor`",
    Access.ACTION: "callers whom the policy permits what the request does",
    Access.RIGHT: "callers with the right `{right}`",
}
HEADERS: Final[Mapping[str, str]] = {
    "Allow": "The methods that the caller may use.",
    "ETag": "What If-Match and If-None-Match take.",
    "Last-Modified": "When it was changed.",
    "Link": "With rel=monitor: the request that did it.",
    "Location": "Where to read it.",
    "Preference-Applied": "wait, where the answer waited for the result.",
    "Retry-After": "Seconds after which to ask again.",
    "X-Cursor": "The cursor to go on from.",
}


@dataclass(frozen=True, slots=True)
class Example:
    """A request to a route, and its answer: an example.

    caller: the name of a token; empty where none is sent.
    """

    operation: str
    summary: str
    status: int
    caller: str = ""
    path: Mapping[str, str] = field(default_factory=dict)
    query: Mapping[str, str] = field(default_factory=dict)
    headers: Mapping[str, str] = field(default_factory=dict)
    body: Any = None
    answer: Any = None


class Description:
    """A document that describes the node, as it is served. It is made when somebody first asks for it."""

    def __init__(self, make: Callable[[], Mapping[str, Any]]) -> None:
        self._make = make

    @cached_property
    def body(self) -> bytes:
        """The document as JSON."""
        return orjson.dumps(self._make())

    @cached_property
    def etag(self) -> str:
        """The tag of this document alone."""
        return preconditions.tag_of(self.body)


@cache
def recorded_examples() -> Sequence[Example]:
    """Return the recorded examples, in the order in which they were made."""
    text = files("fedstac.api").joinpath(EXAMPLES).read_bytes()
    return tuple(Example(**fields) for fields in orjson.loads(text))


def operation_name(route: Route) -> str:
    """Return the name of a route in the examples."""
    return f"{route.method} {route.path}"


def document(capabilities: Iterable[Capability], *, title: str, version: str, base_url: str) -> dict[str, Any]:
    """Return the OpenAPI document of the capabilities."""
    examples: dict[str, list[Example]] = {}
    for exchange in recorded_examples():
        examples.setdefault(exchange.operation, []).append(exchange)
    writer = _Writer(examples)
    capabilities = tuple(capabilities)
    for capability in capabilities:
        for route in capability.routes:
            writer.add(route, capability.name)
    return {
        "openapi": "3.1.0",
        "info": {
            "title": title, "version": version, "license": {"name": "Apache 2.0", "identifier": "Apache-2.0"},
            "description": "A STAC catalogue of a data federation: search, publish, follow. A refusal is a problem"
            " document (RFC 9457), whose type leads to a page that explains it.",
        },
        "servers": [{"url": base_url}],
        "tags": [{"name": capability.name, "description": capability.description} for capability in capabilities],
        "paths": writer.paths,
        "components": {
            "schemas": dict(COMPONENTS),
            "responses": writer.responses,
            "securitySchemes": {"bearer": {"type": "http", "scheme": "bearer"}},
        },
    }  # fmt: skip


class _Writer:
    """Writes the operations of a document, and gathers the responses that they share."""

    def __init__(self, examples: Mapping[str, Sequence[Example]]) -> None:
        self._examples = examples
        self.paths: dict[str, dict[str, Any]] = {}
        self.responses: dict[str, Any] = {}

    def add(self, route: Route, tag: str) -> None:
        """Write the operation of a route."""
        path = _CONVERTOR.sub("}", route.path)
        self.paths.setdefault(path, {})[route.method.lower()] = self._operation(route, path, tag)

    def _operation(self, route: Route, path: str, tag: str) -> dict[str, Any]:
        examples = self._examples.get(operation_name(route), ())
        callers = f"For {callers_of(route)}."
        operation: dict[str, Any] = {
            "operationId": "_".join([route.method.lower(), *re.findall(r"\w+", path)]) if path != "/" else "get_root",
            "tags": [tag],
            "summary": route.summary,
            "description": "\n\n".join(part for part in (route.description, callers) if part),
            "parameters": [
                *(_path_parameter(name, examples) for name in route.path_parameters),
                *(_parameter(parameter, examples) for parameter in route.parameters),
            ],
        }
        if route.body is not None:
            content = {media_type: _any_of(names) for media_type, names in route.body.content.items()}
            with_body = [exchange for exchange in examples if exchange.body is not None]
            _illustrate(content, with_body, [exchange.body for exchange in with_body], _media_type_sent)
            operation["requestBody"] = {"required": route.body.is_required, "content": content}
        operation["responses"] = {
            **{str(answer.status): _response(answer, examples) for answer in route.answers},
            **self._refusals(route, examples),
        }
        operation["security"] = [{"bearer": []}] if route.access is not Access.PUBLIC else [{}, {"bearer": []}]
        return operation

    def _refusals(self, route: Route, examples: Sequence[Example]) -> dict[str, Any]:
        """Return the responses that are problems, by status; those without examples are shared."""
        by_status: dict[int, list[type[Problem]]] = {}
        for problem in dict.fromkeys(problems_of(route)):
            by_status.setdefault(problem.status, []).append(problem)
        responses: dict[str, Any] = {}
        for status, problems in sorted(by_status.items()):
            names = sorted(problem.name for problem in problems)
            response = _refusal(problems)
            refusals = [exchange for exchange in examples if exchange.status == status]
            if refusals:
                _illustrate(response["content"], refusals, [one.answer for one in refusals], lambda _: PROBLEM_TYPE)
                responses[str(status)] = response
            else:
                self.responses["-or-".join(names)] = response
                responses[str(status)] = {"$ref": f"#/components/responses/{'-or-'.join(names)}"}
        return responses


def callers_of(route: Route) -> str:
    """Return who may call a route, as a reader wants to know it."""
    return CALLERS[route.access].format(right=route.right)


def problems_of(route: Route) -> tuple[type[Problem], ...]:
    """Return every problem that a route answers with: its own, those of its access and those that all routes have."""
    return (*OF_EVERY_ROUTE, *OF_ACCESS[route.access], *(OF_BODIES if route.body else ()), *route.problems)


def _any_of(names: Sequence[str]) -> dict[str, Any]:
    schemas = [ref(name) for name in names]
    return {"schema": schemas[0] if len(schemas) == 1 else {"anyOf": schemas}}


def _path_parameter(name: str, examples: Sequence[Example]) -> dict[str, Any]:
    fields: dict[str, Any] = {
        "name": name, "in": "path", "required": True, "description": parameters.IN_PATH[name],
        "schema": {"type": "string", "minLength": 1},
    }  # fmt: skip
    value = next((one.path[name] for one in examples if name in one.path), None)
    return fields if value is None else fields | {"example": value}


def _parameter(parameter: Parameter, examples: Sequence[Example]) -> dict[str, Any]:
    fields: dict[str, Any] = {
        "name": parameter.name, "in": parameter.place, "required": parameter.required,
        "description": parameter.description, "schema": parameter.schema,
    }  # fmt: skip
    if parameter.schema.get("type") == "array":
        fields |= {"style": "form", "explode": False}
    senders = (one.query if parameter.place == "query" else one.headers for one in examples)
    text = next((values[parameter.name] for values in senders if parameter.name in values), None)
    return fields if text is None else fields | {"example": _value(text, parameter.schema)}


def _value(text: str, schema: Mapping[str, Any]) -> Any:
    """Return the value that a text stands for in a query."""
    match schema.get("type"):
        case "array":
            return text.split(",")
        case "integer" | "boolean":
            return orjson.loads(text)
    return text


def _response(answer: Answer, examples: Sequence[Example]) -> dict[str, Any]:
    response: dict[str, Any] = {"description": answer.description}
    if answer.headers:
        response["headers"] = {
            name: {"description": HEADERS[name], "schema": {"type": "string"}} for name in answer.headers
        }
    if answer.content:
        content = {media_type: {"schema": ref(name)} for media_type, name in answer.content.items()}
        matches = [one for one in examples if one.status == answer.status and one.answer is not None]
        _illustrate(content, matches, [one.answer for one in matches], lambda one: _media_type_of(one.answer, content))
        response["content"] = content
    return response


def _refusal(problems: Sequence[type[Problem]]) -> dict[str, Any]:
    description = " ".join(f"`{problem.name}`: {problem.title}." for problem in problems)
    return {"description": description, "content": {PROBLEM_TYPE: {"schema": ref("Problem")}}}


def _illustrate(content: dict[str, Any], exchanges: Sequence[Example], values: Sequence[Any], media_type: Any) -> None:
    """Add examples to the media types that they have."""
    for n, (exchange, value) in enumerate(zip(exchanges, values, strict=True), 1):
        entry = content.get(media_type(exchange)) or next(iter(content.values()))
        entry.setdefault("examples", {})[f"example-{n}"] = {"summary": exchange.summary, "value": value}


def _media_type_sent(exchange: Example) -> str:
    return {name.lower(): value for name, value in exchange.headers.items()}.get("content-type", "application/json")


def _media_type_of(answer: Any, content: Mapping[str, Any]) -> str:
    is_feature = isinstance(answer, dict) and answer.get("type") in ("Feature", "FeatureCollection")
    return next((name for name in content if ("geo+json" in name) is is_feature), next(iter(content)))
