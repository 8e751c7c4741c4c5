"""One declaration a route: method, path, handler, who may call, limits of the work, and what OpenAPI says of it.

The rooms declare their routes in `<room>/routes.py`, one `Capability` for each thing that a node can do. `api/app.py`
collects them; `api/http/endpoint.py` enforces what they declare.
"""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Final

from starlette.responses import Response

from fedstac.api.call import Call
from fedstac.domain.errors import Problem
from fedstac.domain.policy import Action
from fedstac.runtime.budget import Lane

Handler = Callable[[Call], Awaitable[Response]]
Schema = Mapping[str, Any]

JSON: Final = "application/json"
GEOJSON: Final = "application/geo+json"
DRY_RUN: Final = "dry_run"
_READ_ONLY: Final = ("GET", "HEAD", "OPTIONS")
_PATH_PARAMETER: Final = re.compile(r"{(\w+)(?::\w+)?}")


class Access(StrEnum):
    """Whom a route is for."""

    PUBLIC = "public"  # anybody
    AUTHENTICATED = "authenticated"  # every caller with a valid token; what they see depends on who they are
    NODE = "node"  # the nodes of the federation
    MONITOR = "monitor"  # administrators, and tokens of those who watch over the node
    ACTION = "action"  # callers whom the policy permits what the request does to a dataset
    RIGHT = "right"  # callers who have the right that the route names, such as manage-collections


class Size(StrEnum):
    """How large a body may be; the settings have the bytes."""

    SMALL = "small"  # a search, a collection, a group
    ITEM = "item"  # one dataset
    IDS = "ids"  # ids of many datasets
    BATCH = "batch"  # many datasets, counted while they arrive


@dataclass(frozen=True, slots=True)
class Parameter:
    """A parameter of the query, or a header."""

    name: str
    description: str
    schema: Schema
    place: str = "query"
    required: bool = False
    example: Any = None


@dataclass(frozen=True, slots=True)
class BodyFormat:
    """The body that a route takes.

    content: the names of the schemas that it may have, by media type.
    """

    size: Size
    content: Mapping[str, tuple[str, ...]]
    is_required: bool = True

    @classmethod
    def of(cls, schema: str, *, size: Size = Size.SMALL, is_required: bool = True) -> BodyFormat:
        """Return the format of a body in JSON with one schema."""
        return cls(size, {JSON: (schema,)}, is_required)


@dataclass(frozen=True, slots=True)
class Answer:
    """An answer that is no problem.

    content: the name of the schema of its body, by media type.
    headers: the names of the headers beside those that all answers have.
    """

    status: int
    description: str
    content: Mapping[str, str] = field(default_factory=dict)
    headers: tuple[str, ...] = ()

    @classmethod
    def of(
        cls, status: int, description: str, schema: str, *, media_type: str = JSON, headers: tuple[str, ...] = ()
    ) -> Answer:
        """Return an answer with one kind of body."""
        return cls(status, description, {media_type: schema}, headers)


NOT_MODIFIED: Final = Answer(304, "The caller has what would be served.", headers=("ETag",))


@dataclass(frozen=True, slots=True, kw_only=True)
class Route:
    """What a route is. The summary and the description of OpenAPI come from the docstring of the handler.

    problems: those that callers of this route can act on; api/http/openapi.py adds those of its access and of its body.
    right: the right that RIGHT needs. Where the path names a collection the right is needed there, before the handler
        runs; elsewhere the handler decides by the body or by what is stored.
    lane: the lane of its work; without one, that of the caller for reads and that of writes for others.
    reads: whether it only reads; without it, as the method says.
    log_name: the name of its refusals in the audit log; without one, method and path. Reads have none.
    logs_refusals: whether refusals are written down; reads never do.
    is_hot: whether it goes past the middleware.
    is_for_sidecar: whether the token may come as a Dapr sidecar sends it.
    """

    method: str
    path: str
    handler: Handler
    access: Access
    right: Action | None = None
    parameters: tuple[Parameter, ...] = ()
    body: BodyFormat | None = None
    answers: tuple[Answer, ...] = ()
    problems: tuple[type[Problem], ...] = ()
    lane: Lane | None = None
    reads: bool | None = None
    log_name: str = ""
    logs_refusals: bool = True
    is_hot: bool = False
    is_for_sidecar: bool = False

    def __post_init__(self) -> None:
        if (self.right is not None) is not (self.access is Access.RIGHT):
            raise ValueError(f"{self.method} {self.path}: a right belongs to the access RIGHT, and only to it")

    @property
    def only_reads(self) -> bool:
        """Return whether the route leaves everything as it is."""
        return self.method in _READ_ONLY if self.reads is None else self.reads

    @property
    def fixed_lane(self) -> Lane | None:
        """Return the lane of the work; None where it depends on the caller."""
        if self.lane is not None or self.only_reads:
            return self.lane
        return Lane.WORK

    @property
    def takes_batch(self) -> bool:
        """Return whether the body may hold many datasets."""
        return self.body is not None and self.body.size is Size.BATCH

    @property
    def has_dry_run(self) -> bool:
        """Return whether what the route does can be tried without doing it."""
        return any(parameter.name == DRY_RUN for parameter in self.parameters)

    @property
    def refusals_as(self) -> str | None:
        """Return the name of its refusals in the audit log; None for a route whose refusals are not written down."""
        if self.only_reads or not self.logs_refusals:
            return None
        return self.log_name or f"{self.method} {self.path}"

    @property
    def path_parameters(self) -> tuple[str, ...]:
        """Return the names of the parameters in the path, in their order."""
        return tuple(_PATH_PARAMETER.findall(self.path))

    @property
    def summary(self) -> str:
        """Return the first sentence of the handler's docstring."""
        return self._documentation[0]

    @property
    def description(self) -> str:
        """Return the other sentences of the handler's docstring, in their paragraphs."""
        return self._documentation[1]

    @property
    def _documentation(self) -> tuple[str, str]:
        first, *others = (" ".join(part.split()) for part in (self.handler.__doc__ or "").strip().split("\n\n"))
        summary, dot, rest = first.partition(". ")
        return summary + dot.rstrip(), "\n\n".join((rest, *others) if rest else others)
