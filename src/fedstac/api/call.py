"""What a handler gets instead of a request of Starlette: the caller, what was sent, and the services of the node."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from starlette.applications import Starlette
from starlette.datastructures import Headers, QueryParams

from fedstac.domain import strict_json
from fedstac.domain.errors import BadRequest
from fedstac.domain.policy import Principal
from fedstac.domain.texts import Text
from fedstac.runtime.budget import Budget

if TYPE_CHECKING:  # the rooms use Call; what they offer to it is only named here
    from fedstac.api.http.files import OpenFiles
    from fedstac.api.http.openapi import Description
    from fedstac.api.nodes.health import HealthLook
    from fedstac.api.nodes.metrics import FiguresLook
    from fedstac.api.nodes.stream import OpenStreams
    from fedstac.api.people.identity import Principals
    from fedstac.api.search.queryables import QueryableNames
    from fedstac.api.writing.admission import Admission, KnownCollections
    from fedstac.api.writing.backlog import BacklogLook
    from fedstac.api.writing.refusals import Refusals
    from fedstac.bootstrap import Node
    from fedstac.columns.memory import FacetColumns
    from fedstac.messaging.hubs import Hub
    from fedstac.runtime.capacity import Memory, Threads
    from fedstac.runtime.shares import FairShares
    from fedstac.workers.page_cache import PageCache
    from fedstac.workers.roles import Role


@dataclass(frozen=True, slots=True)
class Services:
    """What the handlers of a running application share."""

    node: Node
    base_url: str  # where the node is for its clients, without a slash at the end
    conformance: Sequence[str]  # the conformance classes of all capabilities
    openapi: Description  # of all routes
    asyncapi: Description  # of all channels
    hubs: Sequence[Hub]  # where readers find the log, beside this node
    principals: Principals
    refusals: Refusals
    queryables: QueryableNames
    columns: FacetColumns | None  # None: searches go to PostgreSQL
    admission: Admission
    collections: KnownCollections
    memory: Memory
    threads: Threads
    shares: FairShares  # of what PostgreSQL searches by itself
    health: HealthLook
    figures: FiguresLook
    streams: OpenStreams
    waiting_readers: OpenStreams  # of changes, without a token
    pages: PageCache  # of the log, which readers of changes and of subscriptions share
    open_files: OpenFiles
    open_budgets: set[Budget]  # of the requests that are worked on
    backlog: BacklogLook
    roles: Sequence[Role]  # of this process

    @property
    def publishes(self) -> bool:
        """Return whether datasets are published at this node."""
        return not any(role.follows for role in self.roles)


class QueryParameters(QueryParams):
    """The parameters of a query. One that is there more than once has no single value: it is refused, or a list."""

    def __getitem__(self, name: str) -> str:
        """Return the value of a parameter. KeyError where it is not there, BadRequest where it is there twice."""
        value = super().__getitem__(name)
        if len(self._list) > len(self._dict) and len(self.getlist(name)) > 1:
            raise BadRequest(f"the parameter {name[:40]} is there more than once, and could mean either; send it once")
        return value


async def _no_body() -> bytes:
    return b""


class RequestBody:
    """The body of a request: read once, when a handler wants it, and kept until it is forgotten."""

    __slots__ = ("_on_forget", "_read", "_text")

    def __init__(
        self, read: Callable[[], Awaitable[Text]] = _no_body, on_forget: Callable[[], object] = lambda: None
    ) -> None:
        self._read, self._on_forget = read, on_forget
        self._text: Text | None = None

    async def text(self) -> Text:
        """Return the body, which may be in a file. BodyTooLarge or TooManyRequests where there is no memory for it."""
        if self._text is None:
            self._text = await self._read()
        return self._text

    async def read(self) -> bytes:
        """Return the whole body, of a route that takes no batch."""
        text = await self.text()
        return text if isinstance(text, bytes) else text[:]

    async def read_object(self, *members: str) -> dict[str, Any]:
        """Return the body, an object with these members at most; none is an empty one. BadRequest for another thing."""
        content = await self.read()
        body = strict_json.parse(content) if content else {}
        if not isinstance(body, dict) or not body.keys() <= set(members):
            raise BadRequest(f"send a JSON object with some of {', '.join(members)}")
        return body

    def forget(self) -> None:
        """Give the memory of the body back before a wait for something else."""
        self._text = b""
        self._on_forget()


def services_of(app: Starlette) -> Services:
    """Return the services of an application that is running."""
    services: Services = app.state.services
    return services


@dataclass(slots=True)
class CallProgress:
    """How far a request has come; the row of its refusal in the audit log is made from it."""

    caller: Principal | None = None
    items: int = 1  # that the body holds
    item_ids: Sequence[str] = ()  # of the first of them
    is_accepted: bool = False  # what is refused from here on is in the audit log already


@dataclass(frozen=True, slots=True)
class Call:
    """A request to a route, after its access was checked."""

    services: Services
    headers: Headers
    query_params: QueryParams
    path_params: Mapping[str, Any]
    body: RequestBody
    method: str = "GET"
    path: str = "/"
    query_string: str = ""
    request_id: str = ""  # stands in the log, in the audit log and in the answer
    traceparent: str | None = None  # of what the call leads to
    progress: CallProgress = field(default_factory=CallProgress)

    @property
    def node(self) -> Node:
        """Return the node that is called."""
        return self.services.node

    @property
    def base_url(self) -> str:
        """Return where the node is for its clients, without a slash at the end."""
        return self.services.base_url

    @property
    def caller(self) -> Principal:
        """Return the caller of a route that is not public."""
        assert self.progress.caller is not None, f"{self.method} {self.path} is public: ask for the caller"
        return self.progress.caller

    async def find_caller(self) -> Principal | None:
        """Return the caller of a public route; None for somebody who sends no token.

        Unauthenticated where the token is not valid, Unavailable where that cannot be told just now.
        """
        if self.progress.caller is None and "authorization" in self.headers:
            self.progress.caller = await self.services.principals.identify(self.headers)
        return self.progress.caller
