"""The client for programs that are asynchronous themselves: looks and changes as Client has them.

Publishing and searching in streams are Client's alone: a thread (asyncio.to_thread) does for them.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from functools import wraps
from types import TracebackType
from typing import Any, Concatenate, ParamSpec, Self, TypeVar

import httpx

from fedstac.client import bulk_changes, changes
from fedstac.client import grants as granting
from fedstac.client import loads as reconciling
from fedstac.client import subscriptions as subscribing
from fedstac.client.credentials import fetch_token
from fedstac.client.transport import (
    NO_ANSWER,
    ClientError,
    Exchange,
    Pause,
    ServerCall,
    TokenSource,
    Tries,
    checked_address,
    headers_of,
    open_http,
    too_long,
)

P = ParamSpec("P")
T = TypeVar("T")


def _awaited(exchange: Callable[P, Exchange[T]]) -> Callable[Concatenate[AsyncClient, P], Awaitable[T]]:
    @wraps(exchange)
    async def method(self: AsyncClient, /, *args: P.args, **kwargs: P.kwargs) -> T:
        return await self.perform(exchange(*args, **kwargs))

    return method


class AsyncClient:
    """A fedstac node, seen by one caller; see Client. Methods are documented in client/changes.py."""

    def __init__(
        self,
        url: str,
        token: str | TokenSource | None = None,
        *,
        timeout: float = 60.0,
        retries: int = 5,
        http: httpx.AsyncClient | None = None,
    ) -> None:
        self.url = checked_address(url)
        self._token, self._timeout, self._retries = token or None, timeout, retries
        self._http = http or open_http(httpx.AsyncClient, timeout=timeout)

    get = _awaited(changes.get)
    history = _awaited(changes.history)
    events_of = _awaited(changes.events_of)
    statuses = _awaited(changes.statuses)
    last_deletion = _awaited(changes.last_deletion)
    patch = _awaited(changes.patch)
    put = _awaited(changes.put)
    retract = _awaited(changes.retract)
    reinstate = _awaited(changes.reinstate)
    mark = _awaited(changes.mark)
    unmark = _awaited(changes.unmark)
    quarantine = _awaited(changes.quarantine)
    release = _awaited(changes.release)
    delete = _awaited(changes.delete)
    purge = _awaited(changes.purge)
    put_replica = _awaited(changes.put_replica)
    remove_replica = _awaited(changes.remove_replica)
    submit_replica = _awaited(changes.submit_replica)
    look_at_change = _awaited(changes.look_at_change)
    list_replicas = _awaited(changes.list_replicas)
    validate = _awaited(changes.validate)
    rehearse = _awaited(changes.rehearse)
    cancel = _awaited(changes.cancel)
    retry = _awaited(changes.retry)

    # many at once: client/bulk_changes.py
    preview_bulk = _awaited(bulk_changes.preview_bulk)
    start_bulk = _awaited(bulk_changes.start_bulk)
    bulk = _awaited(bulk_changes.bulk)
    bulks = _awaited(bulk_changes.bulks)
    bulk_datasets = _awaited(bulk_changes.bulk_datasets)
    cancel_bulk = _awaited(bulk_changes.cancel_bulk)

    # subscriptions and changes: client/subscriptions.py
    put_subscription = _awaited(subscribing.put_subscription)
    subscription = _awaited(subscribing.subscription)
    subscriptions = _awaited(subscribing.subscriptions)
    delete_subscription = _awaited(subscribing.delete_subscription)
    next_events = _awaited(subscribing.next_events)
    ack_events = _awaited(subscribing.ack_events)
    nack_event = _awaited(subscribing.nack_event)
    seek_subscription = _awaited(subscribing.seek_subscription)
    subscription_dead_letters = _awaited(subscribing.subscription_dead_letters)
    redrive_dead_letter = _awaited(subscribing.redrive_dead_letter)
    changes_since = _awaited(subscribing.changes_since)

    # full-state loads: client/loads.py
    begin_load = _awaited(reconciling.begin_load)
    put_load_part = _awaited(reconciling.put_load_part)
    load = _awaited(reconciling.load)
    loads = _awaited(reconciling.loads)
    load_datasets = _awaited(reconciling.load_datasets)
    compare_load = _awaited(reconciling.compare_load)
    apply_load = _awaited(reconciling.apply_load)
    cancel_load = _awaited(reconciling.cancel_load)

    # grants: client/grants.py
    give_grant = _awaited(granting.give_grant)
    grants = _awaited(granting.grants)
    check_grant = _awaited(granting.check_grant)
    withdraw_grant = _awaited(granting.withdraw_grant)
    withdraw_grants = _awaited(granting.withdraw_grants)
    withdraw_again = _awaited(granting.withdraw_again)
    private_datasets = _awaited(granting.private_datasets)
    import_grants = _awaited(granting.import_grants)

    async def aclose(self) -> None:
        await self._http.aclose()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()

    async def perform(self, exchange: Exchange[T]) -> T:
        """Go through an exchange to its end."""
        try:
            step = next(exchange)
            while True:
                if isinstance(step, Pause):
                    await asyncio.sleep(step.seconds)
                    step = next(exchange)
                    continue
                try:
                    answer = await self._answer(step)
                except ClientError as error:
                    step = exchange.throw(error)
                else:
                    step = exchange.send(answer)
        except StopIteration as end:
            result: Any = end.value
            return result  # type: ignore[no-any-return]

    async def _answer(self, call: ServerCall) -> httpx.Response:
        tries = Tries(self.url, self._retries)
        while True:
            token = await fetch_token(self._token) if callable(self._token) else self._token
            try:
                response = await self._http.request(
                    call.method, self.url + call.path, params=call.params, content=call.content,
                    headers=headers_of(call, token), timeout=self._timeout + call.wait,
                )  # fmt: skip
                pause = tries.after(response, call.path)
            except httpx.InvalidURL:
                raise too_long(call) from None
            except NO_ANSWER as error:
                pause = tries.after_error(error)
            if pause is None:
                return response
            await asyncio.sleep(pause)
