"""One POST and one handshake, to receivers on loopback."""

from __future__ import annotations

import asyncio
import socket
import threading
from contextlib import AsyncExitStack
from functools import partial

import pytest

from fedstac.domain import destinations
from fedstac.domain.destinations import networks_of
from fedstac.messaging import webhooks
from fedstac.messaging.webhooks import Forbidden, Undelivered, Webhooks
from tests.support.receivers import listening
from tests.support.subscribers import Subscriber, agree, subscriber, with_status
from tests.support.waiting import PATIENCE, until

SECRET = b"s" * 32


async def test_an_answer_comes_with_its_headers_and_the_begin_of_its_body() -> None:
    async with subscriber() as receiver, Webhooks(private=True, keep=1) as hooks:

        async def respond(request: object) -> str:
            return f"429 Too Many Requests\r\nRetry-After: 7{with_status('RETRY').removeprefix('200 OK')}"

        receiver.respond = respond
        answer = await hooks.post(receiver.url, id="1", secret=SECRET, body=b"{}", seconds=PATIENCE)
    assert (answer.status, answer.headers["retry-after"], answer.body) == (429, "7", b'{"status":"RETRY"}')
    [request] = receiver.requests
    signed = destinations.signature(SECRET, "1", int(request.headers["webhook-timestamp"]), b"{}")
    assert request.headers["webhook-signature"] == signed


async def test_a_receiver_is_asked_for_its_consent_without_a_signature() -> None:
    async with subscriber() as receiver, Webhooks(private=True, keep=1) as hooks:
        receiver.consent = "200 OK\r\nWebHook-Allowed-Origin: west.example\r\nWebHook-Allowed-Rate: 60"
        answer = await hooks.ask_consent(receiver.url, origin="west.example", seconds=PATIENCE)
    assert (answer.headers["webhook-allowed-origin"], answer.headers["webhook-allowed-rate"]) == ("west.example", "60")
    [request] = receiver.handshakes
    assert (request.method, request.headers["webhook-request-origin"]) == ("OPTIONS", "west.example")
    assert "webhook-signature" not in request.headers


async def test_a_redirect_to_a_private_address_is_not_followed() -> None:
    async with subscriber() as private, subscriber() as receiver, Webhooks(private=True, keep=1) as hooks:

        async def redirect(request: object) -> str:
            return f"307 Temporary Redirect\r\nLocation: {private.url}"

        receiver.respond = redirect
        answer = await hooks.post(receiver.url, id="1", secret=SECRET, body=b"{}", seconds=PATIENCE)
    assert answer.status == 307
    assert (private.requests, private.handshakes) == ([], [])


@pytest.mark.parametrize(("networks", "is_reached"), [
    ((), False), (("10.0.0.0/8",), False), (("127.0.0.0/8",), True), (("10.0.0.0/8", "127.0.0.1"), True),
])  # fmt: skip
async def test_only_private_networks_that_the_operator_lists_are_connected_to(
    networks: tuple[str, ...], is_reached: bool
) -> None:
    async with (
        subscriber() as receiver,
        Webhooks(private=False, keep=1, networks=networks_of(networks)) as hooks,
    ):
        if is_reached:
            assert (await hooks.ask_consent(receiver.url, origin="west", seconds=PATIENCE)).status == 200
        else:
            with pytest.raises(Forbidden):
                await hooks.post(receiver.url, id="1", secret=SECRET, body=b"{}", seconds=PATIENCE)
    assert len(receiver.handshakes) == is_reached


async def test_plain_http_is_for_listed_networks_only() -> None:
    async def find(host: str, port: int) -> list[str]:
        return {"public.example": ["8.8.8.8"], "both.example": ["10.20.0.1", "8.8.8.8"]}[host]

    async with Webhooks(private=False, keep=1, find=find, networks=networks_of(("10.20.0.0/16",))) as hooks:
        for host in ("public.example", "both.example"):
            with pytest.raises(Forbidden, match="plain http is for the networks that the operator lists"):
                await hooks.post(f"http://{host}:9/", id="1", secret=SECRET, body=b"{}", seconds=PATIENCE)


async def test_name_servers_that_do_not_answer_take_no_threads_of_others(monkeypatch: pytest.MonkeyPatch) -> None:
    answered = threading.Event()
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: [] if answered.wait(PATIENCE) else None)
    look_ups = [asyncio.create_task(webhooks.resolve("slow.example", 443)) for _ in range(40)]
    try:
        await asyncio.sleep(0)
        assert await asyncio.wait_for(asyncio.to_thread(len, ()), PATIENCE / 4) == 0
        assert not any(look_up.done() for look_up in look_ups)
    finally:
        answered.set()
        assert await asyncio.gather(*look_ups) == [[]] * 40


async def test_a_receiver_that_is_not_reached_is_told_from_one_that_does_not_answer() -> None:
    async with subscriber() as receiver, Webhooks(private=True, keep=1) as hooks:

        async def hang_up(request: object) -> str:
            raise ConnectionError

        receiver.respond = hang_up
        with pytest.raises(Undelivered) as failure:
            await hooks.post(receiver.url, id="1", secret=SECRET, body=b"{}", seconds=PATIENCE)
        assert failure.value.was_sent
        url = receiver.url
    async with Webhooks(private=True) as hooks:
        with pytest.raises(Undelivered) as failure:
            await hooks.post(url, id="1", secret=SECRET, body=b"{}", seconds=PATIENCE)
    assert not failure.value.was_sent


async def test_connections_are_used_again_and_no_more_are_kept_or_open_than_wanted() -> None:
    receiver, starts = Subscriber(), 0
    most_open = open_now = 0

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal starts, most_open, open_now
        starts, open_now = starts + 1, open_now + 1
        most_open = max(most_open, open_now)
        try:
            await receiver.serve(reader, writer)
        finally:
            open_now -= 1

    async def has_open(count: int) -> bool:
        return open_now == count

    async with listening(serve) as port, AsyncExitStack() as stack:
        receiver.port = port
        hooks = await stack.enter_async_context(Webhooks(private=True, keep=3, at_once=3))

        async def post(count: int, hooks: Webhooks) -> None:
            posts = (
                hooks.post(receiver.url, id=str(n), secret=SECRET, body=b"{}", seconds=PATIENCE) for n in range(count)
            )
            assert {answer.status for answer in await asyncio.gather(*posts)} == {204}

        await post(12, hooks)
        assert (starts, most_open, len(receiver.taken)) == (3, 3, 12)
        for _ in range(4):
            await post(1, hooks)
        assert (starts, open_now) == (3, 3)

        async def hang_up(request: object) -> str:
            raise ConnectionError

        receiver.respond = hang_up
        with pytest.raises(Undelivered):
            await post(1, hooks)
        receiver.respond = agree
        await post(3, hooks)
        assert starts == 4  # the one that was closed is not used again
        async with Webhooks(private=True, keep=1) as thrifty:
            await post(3, thrifty)
            await until(partial(has_open, 4))
        await until(partial(has_open, 3))
    assert open_now == 0
