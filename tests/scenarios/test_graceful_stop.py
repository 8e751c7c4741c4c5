"""SIGTERM while everything is under way: each process ends in order, and nothing that was accepted is lost."""

from __future__ import annotations

import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager

import httpx
import orjson
import pytest

from fedstac import bootstrap
from fedstac.api.http import server
from fedstac.demo.federation import Federation
from tests.scenarios import watching
from tests.scenarios.watching import Publisher
from tests.support.waiting import PATIENCE

POLLS = STREAMS = 20
LARGE = 30 << 20  # bytes of a batch
SOURCE_AWAY = "the source is away; trying again"
pytestmark = pytest.mark.long


def test_what_a_process_waits_for_when_it_stops_takes_less_than_ten_seconds() -> None:
    assert server.GRACEFUL_SECONDS + bootstrap.END_SECONDS + bootstrap.FORGET_SECONDS < 10


@contextmanager
def in_threads(work: Callable[[], object], count: int = 1) -> Iterator[list[BaseException]]:
    """Do something beside the test, several times; yield what it raised."""
    errors: list[BaseException] = []

    def run() -> None:
        try:
            work()
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=run) for _ in range(count)]
    for thread in threads:
        thread.start()
    yield errors
    for thread in threads:
        thread.join(PATIENCE)
        assert not thread.is_alive()


def end(running: Federation, *names: str) -> None:
    """Send SIGTERM and wait; each process ends with 0 and logs no error.

    An index node may see its source end before it is told to end itself: that it says so is no error of its own.
    """
    began = time.monotonic()
    for name in names:
        running.processes[name].child.send_signal(signal.SIGTERM)
    for name in names:
        process = running.processes[name]
        assert process.child.wait(PATIENCE) == 0, (name, process.log.read_text()[-2000:])
        print(f"{name} ended {time.monotonic() - began:.1f} s after the signals")
        lines = [orjson.loads(line) for line in process.log.read_text().splitlines() if line.startswith("{")]
        assert [line for line in lines if line["level"] == "error" and line["event"] != SOURCE_AWAY] == []


def test_everything_ends_in_order_while_everything_is_under_way(running: Federation) -> None:
    documents = watching.fresh_items(20)
    publisher = Publisher(running)
    publisher.publish(documents)
    watching.settle(running)
    with watching.client(running, "node:east") as http:
        cursor = http.get("/events/head").json()["cursor"]
    polled: list[int] = []
    streamed: list[bytes] = []

    def poll() -> None:
        with watching.client(running, "node:east") as http:
            answer = http.get(f"/events?after={cursor}&wait=60&type=none")
            assert answer.json() == []
            polled.append(answer.status_code)

    def stream() -> None:
        with (
            watching.client(running, "node:east") as http,
            http.stream("GET", f"/events/stream?after={cursor}&type=none") as answer,
        ):
            streamed.append(b"".join(answer.iter_bytes()))  # raises where it is cut off

    def take_snapshots() -> None:
        with watching.client(running, "node:east") as http:
            while http.get("/snapshot").is_success:
                pass

    def upload(listening: threading.Event) -> None:
        """Send the head and a part of a large batch, and go on slowly."""
        host, _, port = running.west.removeprefix("http://").partition(":")
        with socket.create_connection((host, int(port))) as connection:
            token = running.tokens["admin"]
            connection.sendall(
                f"POST /collections/CMIP6/items HTTP/1.1\r\nHost: {host}\r\nAuthorization: Bearer {token}\r\n"
                f"Content-Type: application/x-ndjson\r\nContent-Length: {LARGE}\r\n\r\n".encode()
            )
            try:
                for number in range(LARGE >> 16):
                    connection.sendall(b" " * (1 << 16))
                    if number == 50:
                        listening.set()
                    if number > 50:
                        threading.Event().wait(0.05)
                assert connection.recv(4096).startswith(b"HTTP/1.1 ")
            except ConnectionError:
                pass  # nothing of it was accepted

    begun = threading.Event()
    late = Publisher(running)
    more = watching.fresh_items(250)
    with ExitStack() as stack:
        errors = stack.enter_context(in_threads(poll, POLLS))
        errors_of_streams = stack.enter_context(in_threads(stream, STREAMS))
        stack.enter_context(in_threads(take_snapshots))
        stack.enter_context(in_threads(lambda: upload(begun)))
        stack.enter_context(in_threads(lambda: late.publish(more, batch=50)))
        assert begun.wait(PATIENCE)
        watching.wait_until(lambda: late.accepted, what="a batch that is accepted")
        end(running, "serve", "worker-1", "worker-2", "sequencer", "east")
        for name in ("serve", "worker-1", "worker-2", "sequencer", "east"):
            running.restart(name)
    assert errors == errors_of_streams == []
    assert polled == [200] * POLLS
    assert len(streamed) == STREAMS
    watching.settle(running)
    watching.assert_nothing_lost(running, late)


def test_a_stream_goes_on_where_it_was_when_its_server_is_killed(running: Federation) -> None:
    publisher = Publisher(running)
    publisher.publish(watching.fresh_items(40))
    watching.settle(running)
    places: list[str] = []  # of the events, in the order in which they came

    def read(http: httpx.Client, count: int) -> None:
        """Read on until so many events have come; go on after the last one."""
        headers = {"Last-Event-ID": places[-1]} if places else {}
        with http.stream("GET", "/events/stream", headers=headers) as answer:
            place = ""
            for line in answer.iter_lines():
                if line.startswith("id: "):
                    place = line.removeprefix("id: ")
                elif line.startswith("data: "):
                    places.append(place)
                    if len(places) >= count:
                        return

    with watching.client(running, "node:east") as http:
        read(http, 25)
        dying = threading.Timer(0.2, running.processes["serve"].kill)
        dying.start()
        with pytest.raises(httpx.TransportError):
            read(http, 1_000_000)
        dying.join()
        running.restart("serve")
        publisher.publish(watching.fresh_items(20))
        watching.settle(running)
        last = http.get("/events/head").json()["cursor"]
        read(http, int(last.partition(".")[2]))
    epoch, _, pos = last.partition(".")
    assert places == [f"{epoch}.{number}" for number in range(1, int(pos) + 1)]  # each once, and none is missing
