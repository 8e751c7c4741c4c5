"""The HTTP feed as a consumer sees it: events, snapshots, digests, acknowledgements of one publishing node."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any
from urllib.parse import quote

import httpx
import orjson

from fedstac.domain.events import Cursor

TOKEN = re.compile(r"[!-~]*")  # what a header takes
NOT_YOU = (401, 403, 407)  # statuses: nothing is said about what was asked for


class SourceAway(Exception):
    """The source does not answer, or answers with a fault of its own: try again later."""


class SourceRefused(Exception):
    """The source refuses this node; an operator has to see to it."""


class NotServed(SourceRefused):
    """The source has no such thing, whoever asks: asking again is of no use."""


class BehindRetention(Exception):
    """The feed does not reach back to our cursor: take a snapshot."""


class SourcesUnclear(Exception):
    """Which nodes are followed, or with which tokens, cannot be told; the message says what to set."""


@dataclass(frozen=True, slots=True)
class Source:
    """A publishing node that is followed, and this node's token there."""

    address: str
    token: str = field(repr=False)


def sources_of(addresses: str, tokens: str, named: Sequence[str] = ()) -> tuple[Source, ...]:
    """The settings `source` and `source_token`, read: the first token is for the first address, and so on.

    `named`: these addresses alone; if the settings do not have them all, they take the tokens in their order.
    SourcesUnclear where that does not come out even: a token must not be shown to another node than its own.
    """
    known = [address.rstrip("/") for address in _listed(addresses)]
    wanted = [address.rstrip("/") for address in named] or known
    if not wanted:
        raise SourcesUnclear("say which node is followed: --source https://… or FEDSTAC_SOURCE")
    for address in wanted:
        if not _is_address(address):
            raise SourcesUnclear(f"{address!r} is no address of a node; it begins with http:// or https://")
        if wanted.count(address) > 1:
            raise SourcesUnclear(f"{address} is named twice; a node is followed once")
    strange = set(wanted) - set(known)
    paired = wanted if strange else known
    given = _listed(tokens) or ([""] if len(paired) == 1 else [])
    if len(given) != len(paired):
        raise SourcesUnclear(
            f"FEDSTAC_SOURCE_TOKEN has {len(given)} tokens for {len(paired)} sources; it needs one for each of "
            f"{', '.join(paired)}, in this order, with spaces between"
        )
    if strange and strange != set(wanted) and len(given) == len(known):
        raise SourcesUnclear(
            f"FEDSTAC_SOURCE has some of those named, and not {', '.join(sorted(strange))}: it cannot be told whose "
            f"the tokens are"
        )
    if odd := [address for address, token in zip(paired, given, strict=True) if not TOKEN.fullmatch(token)]:
        raise SourcesUnclear(f"the token for {odd[0]} has characters that no token has; copy it again")
    token_of = dict(zip(paired, given, strict=True))
    return tuple(Source(address, token_of[address]) for address in wanted)


def _is_address(text: str) -> bool:
    try:
        url = httpx.URL(text)
    except httpx.InvalidURL:
        return False
    return url.scheme in ("http", "https") and bool(url.host)


def _listed(text: str) -> list[str]:
    return [part for part in re.split(r"[\s,]+", text) if part]


@dataclass(frozen=True, slots=True)
class EventPage:
    events: Sequence[Mapping[str, Any]]
    cursor: Cursor


@dataclass(frozen=True, slots=True)
class SnapshotPage:
    origin: str
    cursor: Cursor
    entries: Sequence[Mapping[str, Any]]
    following: str | None


class HttpFeed:
    """A client of one node's feed. Every method raises SourceAway or SourceRefused where the source fails."""

    def __init__(self, url: str, token: str, *, timeout: float = 90.0) -> None:
        self._client = httpx.AsyncClient(
            base_url=url.rstrip("/"),
            headers={"Authorization": f"Bearer {token}", "Accept": "application/json, */*;q=0.1"},
            timeout=httpx.Timeout(timeout, connect=10.0),
            trust_env=False,
        )

    async def __aenter__(self) -> HttpFeed:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._client.aclose()

    async def head(self) -> tuple[str, Cursor]:
        """The origin's name and its last position."""
        body = await self._json("GET", "/events/head")
        return body["origin"], Cursor.parse(body["cursor"])

    async def progress(self) -> tuple[Cursor, dict[str, Cursor]]:
        """The last position, and through where each node has acknowledged."""
        body = await self._json("GET", "/events/head")
        return Cursor.parse(body["cursor"]), {row["node"]: Cursor.parse(row["through"]) for row in body["nodes"]}

    async def events(self, after: Cursor, *, limit: int, wait: int) -> EventPage:
        """The next events, after up to `wait` seconds. BehindRetention where the feed does not reach back."""
        response = await self._send("GET", "/events", {"after": str(after), "limit": limit, "wait": wait})
        return EventPage(orjson.loads(response.content), Cursor.parse(response.headers["x-cursor"]))

    async def snapshot(self, page: str | None, *, limit: int) -> SnapshotPage:
        """A page of the origin's current state; None is the first."""
        body = await self._json("GET", "/snapshot", {"limit": limit} | ({"page": page} if page else {}))
        return SnapshotPage(body["origin"], Cursor.parse(body["cursor"]), body["entries"], body["next"])

    async def digests(self) -> tuple[Cursor, list[dict[str, Any]]]:
        body = await self._json("GET", "/digests")
        return Cursor.parse(body["cursor"]), body["entries"]

    async def bucket(self, collection: str, bucket: int) -> list[dict[str, Any]]:
        entries: list[dict[str, Any]] = (
            await self._json("GET", "/digests", {"collection": collection, "bucket": bucket})
        )["entries"]
        return entries

    async def vocabulary(self, project: str, version: str) -> bytes:
        """A snapshot's bytes. NotServed where the source has no such version."""
        return (await self._send("GET", f"/vocabularies/{quote(project, safe='')}/{quote(version, safe='')}")).content

    async def acknowledge(self, through: Cursor, exceptions: Sequence[Mapping[str, str]]) -> None:
        """Tells the source that everything through a position is applied here, but for the exceptions."""
        body = {"epoch": through.epoch, "through": through.pos, "exceptions": list(exceptions)}
        await self._send("POST", "/events/status", content=orjson.dumps(body))

    async def _json(self, method: str, path: str, parameters: Mapping[str, Any] | None = None) -> Any:
        return orjson.loads((await self._send(method, path, parameters)).content)

    async def _send(
        self, method: str, path: str, parameters: Mapping[str, Any] | None = None, content: bytes | None = None
    ) -> httpx.Response:
        headers = {"Content-Type": "application/json"} if content is not None else None
        try:
            response = await self._client.request(method, path, params=parameters, content=content, headers=headers)
        except httpx.HTTPError as error:
            raise SourceAway(f"{self._client.base_url}: {error or type(error).__name__}") from error
        if response.status_code == 410:
            raise BehindRetention(response.text[:500])
        if response.status_code in (408, 429) or response.status_code >= 500:
            raise SourceAway(f"{self._client.base_url}{path} answered {response.status_code}")
        if response.status_code >= 300:  # redirections are not followed: our token is not for somebody else
            refused = (
                NotServed if response.status_code >= 400 and response.status_code not in NOT_YOU else SourceRefused
            )
            raise refused(f"{self._client.base_url}{path} answered {response.status_code}: {response.text[:300]}")
        return response
