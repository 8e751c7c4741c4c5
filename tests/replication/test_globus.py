"""Copying by Globus: its own client against a server on loopback that speaks its API and writes the files."""

from __future__ import annotations

import asyncio
import hashlib
import json
import re
from collections.abc import AsyncIterator
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from globus_sdk import AccessTokenAuthorizer, TransferClient

from fedstac.domain.replication.paths import PART_FOLDER
from fedstac.replication.addresses import AddressRules
from fedstac.replication.copying import CopyOrder, CopyReport, copy_file
from fedstac.replication.transports import CopyCause, CopyFailed, Transports
from fedstac.replication.transports.globus import GlobusTransport
from tests.support.receivers import listening

CONTENT = b"globus" * 50_000
CHECKSUM = "1220" + hashlib.sha256(CONTENT).hexdigest()
SOURCE, OWN = "11111111-1111-1111-1111-111111111111", "22222222-2222-2222-2222-222222222222"
LAST = {"status": "SUCCEEDED", "bytes_transferred": len(CONTENT)}


@dataclass
class FakeGlobus:
    """Globus's transfer API. A task is in each of `states` once; it delivers when it is asked for the last."""

    folder: Path
    content: bytes = CONTENT
    states: list[dict[str, Any]] = field(default_factory=lambda: [{"status": "ACTIVE", "bytes_transferred": 7}, LAST])
    tasks: dict[str, tuple[str, list[dict[str, Any]], dict[str, Any]]] = field(default_factory=dict)
    refusal: int = 0
    port: int = 0
    looks: asyncio.Event = field(default_factory=asyncio.Event)

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(asyncio.IncompleteReadError, ConnectionError):
            while True:
                head = (await reader.readuntil(b"\r\n\r\n")).decode()
                length = re.search(r"content-length: (\d+)", head, re.IGNORECASE)
                body = await reader.readexactly(int(length[1])) if length else b""
                answer = self.answer(head.split()[0], head.split()[1], json.loads(body or "{}"))
                status = self.refusal or 200
                text = json.dumps(answer if status == 200 else {"code": "No", "message": "no", "request_id": "1"})
                writer.write(f"HTTP/1.1 {status} x\r\nContent-Type: application/json\r\nContent-Length: {len(text)}\r\n"
                             f"\r\n{text}".encode())  # fmt: skip
                await writer.drain()

    def answer(self, method: str, path: str, body: dict[str, Any]) -> dict[str, Any]:
        if path.endswith("/submission_id"):
            return {"value": str(uuid4())}
        if method == "POST" and path.endswith("/transfer"):
            submission = body["submission_id"]
            self.tasks.setdefault(submission, (str(uuid4()), list(self.states), body))  # taken once
            return {"task_id": self.tasks[submission][0], "code": "Accepted"}
        [(_, states, data)] = [task for task in self.tasks.values() if task[0] == path.rpartition("/")[2]]
        state = states.pop(0) if len(states) > 1 else states[0]
        self.looks.set()
        if state["status"] == "SUCCEEDED":
            [item] = data["DATA"]
            assert (data["source_endpoint"], data["destination_endpoint"]) == (SOURCE, OWN)
            assert item["source_path"] == "/cmip7/a b.nc"
            (self.folder / item["destination_path"].lstrip("/")).write_bytes(self.content)
        return state


@pytest.fixture
async def globus(tmp_path: Path) -> AsyncIterator[FakeGlobus]:
    fake = FakeGlobus(tmp_path)
    async with listening(fake.serve) as fake.port:
        yield fake


def transports(globus: FakeGlobus, *, poll_seconds: float = 0.01) -> Transports:
    made = Transports(lambda: AddressRules((f"globus://{SOURCE}",)))

    def client() -> TransferClient:
        return TransferClient(authorizer=AccessTokenAuthorizer("t"), base_url=f"http://127.0.0.1:{globus.port}")

    made.use("globus", GlobusTransport(OWN, globus.folder, client, threads=made.threads, poll_seconds=poll_seconds))
    return made


def order(globus: FakeGlobus) -> CopyOrder:
    return CopyOrder(globus.folder, "tas/a.nc", len(CONTENT), CHECKSUM, f"globus://{SOURCE}/cmip7/a%20b.nc")


async def test_a_file_is_delivered_verified_and_moved(globus: FakeGlobus) -> None:
    progress: list[int] = []
    async with transports(globus) as every:
        report = await copy_file(order(globus), transports=every, on_bytes=progress.append)
    assert report == CopyReport(len(CONTENT), len(CONTENT), 0)
    assert (globus.folder / "tas/a.nc").read_bytes() == CONTENT
    assert 7 in progress
    assert not (globus.folder / "tas" / PART_FOLDER).exists()


async def test_a_task_under_way_is_taken_up(globus: FakeGlobus) -> None:
    globus.states.insert(0, {"status": "ACTIVE"})
    async with transports(globus, poll_seconds=600) as every:
        copy = asyncio.create_task(copy_file(order(globus), transports=every))
        await globus.looks.wait()
        copy.cancel()
        with pytest.raises(asyncio.CancelledError):
            await copy
    async with transports(globus) as every:
        await copy_file(order(globus), transports=every)
    assert len(globus.tasks) == 1
    assert (globus.folder / "tas/a.nc").read_bytes() == CONTENT
    assert not (globus.folder / "tas" / PART_FOLDER).exists()


async def test_what_was_delivered_is_verified(globus: FakeGlobus) -> None:
    globus.content = CONTENT[:-1] + b"?"
    async with transports(globus) as every:
        with pytest.raises(CopyFailed, match="the catalogue says") as failure:
            await copy_file(order(globus), transports=every)
    assert failure.value.cause == CopyCause.WRONG_CONTENT
    assert not (globus.folder / "tas/a.nc").exists()


@pytest.mark.parametrize(
    ("state", "cause", "reason"),
    [
        (
            {"status": "FAILED", "nice_status_short_description": "no such file"},
            CopyCause.SOURCE_REFUSES,
            "no such file",
        ),
        ({"status": "INACTIVE"}, CopyCause.SOURCE_AWAY, "renew access"),
    ],
)
async def test_a_task_that_fails_says_why(
    globus: FakeGlobus, state: dict[str, Any], cause: CopyCause, reason: str
) -> None:
    globus.states = [state]
    async with transports(globus) as every:
        with pytest.raises(CopyFailed, match=reason) as failure:
            await copy_file(order(globus), transports=every)
    assert failure.value.cause == cause


async def test_globus_refuses(globus: FakeGlobus) -> None:
    globus.refusal = 403
    async with transports(globus) as every:
        with pytest.raises(CopyFailed, match="Globus answered 403") as failure:
            await copy_file(order(globus), transports=every)
        assert failure.value.cause == CopyCause.SOURCE_REFUSES
        with pytest.raises(CopyFailed, match="not among the sources"):
            await copy_file(replace(order(globus), href=f"globus://{OWN}/a.nc"), transports=every)
