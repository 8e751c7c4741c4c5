"""One publishing node over HTTP, as a consumer speaks to it: its token, and what its refusals mean."""

from __future__ import annotations

from collections.abc import Mapping
from types import TracebackType
from typing import Any, Self

import httpx
import orjson

from fedstac.client.credentials import Away, fetch_token
from fedstac.client.service import ServiceTokens
from fedstac.client.transport import ClientError, JsonObject
from fedstac.messaging.sources import BehindRetention, NotServed, SourceAway, SourceRefused
from fedstac.messaging.sources.addresses import SourceAddress

TIMEOUT_SECONDS, CONNECT_SECONDS = 90.0, 10.0
ABOUT_THE_CALLER = (401, 403, 407)  # statuses that say nothing about what was asked for


class NodeClient:
    """Sends requests to one node. Every method raises SourceAway or SourceRefused where the node fails."""

    def __init__(self, source: SourceAddress) -> None:
        self._source = source
        self._client = httpx.AsyncClient(
            base_url=source.address.rstrip("/"),
            headers={"Accept": "application/json, */*;q=0.1"},
            timeout=httpx.Timeout(TIMEOUT_SECONDS, connect=CONNECT_SECONDS),
            trust_env=False,
        )

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._client.aclose()

    async def get_json(self, path: str, parameters: Mapping[str, Any] | None = None) -> JsonObject:
        """Return the JSON object of an answer."""
        return self.object_of(await self.send("GET", path, parameters), path)

    def object_of(self, answer: httpx.Response, path: str) -> JsonObject:
        """Return the JSON object of an answer. SourceAway where another server has answered, as a proxy does."""
        value = self.value_of(answer, path)
        if not isinstance(value, dict):
            raise SourceAway(f"{self._client.base_url}{path} did not answer with a JSON object")
        return JsonObject(value, f"{self._client.base_url}{path}", SourceAway)

    def value_of(self, answer: httpx.Response, path: str) -> Any:
        """Return the JSON of an answer, of whatever kind."""
        try:
            return orjson.loads(answer.content)
        except orjson.JSONDecodeError:
            address = f"{self._client.base_url}{path}"
            raise SourceAway(f"{address} did not answer with JSON; is there a proxy before it?") from None

    async def send(
        self, method: str, path: str, parameters: Mapping[str, Any] | None = None, *, content: bytes | None = None
    ) -> httpx.Response:
        """Return the answer to a request. BehindRetention where the feed does not reach back (410)."""
        headers = {"Authorization": f"Bearer {await self._current_token()}"}
        if content is not None:
            headers["Content-Type"] = "application/json"
        try:
            response = await self._client.request(method, path, params=parameters, content=content, headers=headers)
        except httpx.HTTPError as error:
            raise SourceAway(f"{self._client.base_url}: {error or type(error).__name__}") from error
        status = response.status_code
        if status == 401 and isinstance(self._source.token_source, ServiceTokens):
            self._source.token_source.forget()
        if status == 410:
            raise BehindRetention(response.text[:500])
        if status in (408, 429) or status >= 500:
            raise SourceAway(f"{self._client.base_url}{path} answered {status}")
        if status >= 300:  # redirections are not followed: our token is not for somebody else
            kind = NotServed if status >= 400 and status not in ABOUT_THE_CALLER else SourceRefused
            raise kind(f"{self._client.base_url}{path} answered {status}: {response.text[:300]}")
        return response

    async def _current_token(self) -> str:
        """Return the token for the next request. SourceAway where its issuer gives none now, SourceRefused at all."""
        if self._source.token_source is None:
            return self._source.token
        try:
            return await fetch_token(self._source.token_source)
        except Away as error:
            raise SourceAway(str(error)) from error
        except ClientError as error:
            raise SourceRefused(str(error)) from error
