"""Copying from S3, against a real server of it."""

from __future__ import annotations

import asyncio
import hashlib
import random
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from fedstac.domain.replication.paths import PART_FOLDER
from fedstac.replication.addresses import AddressRules
from fedstac.replication.copying import CopyOrder, CopyReport, copy_file
from fedstac.replication.transports import CopyCause, CopyFailed, Transports
from tests.support.receivers import listening
from tests.support.s3_server import s3_server

CONTENT = random.Random(3).randbytes(9_000_000)
CHECKSUM = "1220" + hashlib.sha256(CONTENT).hexdigest()
RULES = AddressRules(("s3://cmip7",))


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    with s3_server() as address:
        yield address


@pytest.fixture
def bucket(server: str, monkeypatch: pytest.MonkeyPatch) -> str:
    """A bucket with one object."""
    for name, value in (("ENDPOINT_URL", server), ("ACCESS_KEY_ID", "a"), ("SECRET_ACCESS_KEY", "b"),
                        ("DEFAULT_REGION", "us-east-1"), ("EC2_METADATA_DISABLED", "true")):  # fmt: skip
        monkeypatch.setenv(f"AWS_{name}", value)
    httpx.post(f"{server}/moto-api/reset").raise_for_status()
    httpx.put(f"{server}/cmip7", headers=_signed()).raise_for_status()
    put(server, CONTENT)
    return server


def _signed() -> dict[str, str]:
    return {
        "authorization": "AWS4-HMAC-SHA256 Credential=a/20251129/us-east-1/s3/aws4_request, SignedHeaders=, Signature="
    }


def put(server: str, content: bytes) -> None:
    httpx.put(f"{server}/cmip7/tas/a b.nc", content=content, headers=_signed()).raise_for_status()


def order(folder: Path, href: str = "s3://cmip7/tas/a b.nc") -> CopyOrder:
    return CopyOrder(folder, "tas/a.nc", len(CONTENT), CHECKSUM, href)


async def test_an_object_is_copied_and_resumed(bucket: str, tmp_path: Path) -> None:
    async with Transports(lambda: RULES) as transports:
        assert await copy_file(order(tmp_path), transports=transports) == CopyReport(len(CONTENT), len(CONTENT), 0)
        target = tmp_path / "tas/a.nc"
        assert target.read_bytes() == CONTENT
        target.unlink()
        (target.parent / PART_FOLDER).mkdir()
        (target.parent / PART_FOLDER / CHECKSUM).write_bytes(CONTENT[:5_000_000])
        report = await copy_file(order(tmp_path), transports=transports, block_bytes=1 << 20)
        assert report == CopyReport(len(CONTENT), 4_000_000, 5_000_000)
        assert target.read_bytes() == CONTENT


async def test_an_object_that_changes_midway_is_begun_again(bucket: str, tmp_path: Path) -> None:
    put(bucket, bytes(len(CONTENT)))
    sizes: list[int] = []

    def change(size: int) -> None:
        if size and not any(sizes):
            put(bucket, CONTENT)
        sizes.append(size)

    async with Transports(lambda: RULES) as transports:
        await copy_file(order(tmp_path), transports=transports, on_bytes=change)
    assert (tmp_path / "tas/a.nc").read_bytes() == CONTENT


@pytest.mark.parametrize(
    ("href", "cause", "reason"),
    [
        ("s3://cmip7/none.nc", CopyCause.SOURCE_REFUSES, "there is no s3://cmip7/none.nc"),
        ("s3://other/tas/a b.nc", CopyCause.BAD_ADDRESS, "s3://other is not among the sources"),
    ],
)
async def test_a_failure_explains_itself(bucket: str, tmp_path: Path, href: str, cause: CopyCause, reason: str) -> None:
    async with Transports(lambda: RULES) as transports:
        with pytest.raises(CopyFailed, match=reason) as failure:
            await copy_file(order(tmp_path, href), transports=transports)
    assert failure.value.cause == cause


@pytest.mark.parametrize(
    ("status", "cause"), [("500 Oh", CopyCause.SOURCE_REFUSES), ("503 Busy", CopyCause.SOURCE_AWAY)]
)
async def test_an_answer_about_one_file_says_nothing_of_its_host(
    bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, status: str, cause: CopyCause
) -> None:
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(f"HTTP/1.1 {status}\r\nContent-Length: 0\r\nConnection: close\r\n\r\n".encode())
        await writer.drain()
        writer.close()

    async with listening(answer) as port:
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{port}")
        async with Transports(lambda: RULES) as transports:
            with pytest.raises(CopyFailed) as failure:
                await copy_file(order(tmp_path), transports=transports)
    assert failure.value.cause == cause, failure.value


async def test_wrong_content_is_named(bucket: str, tmp_path: Path) -> None:
    put(bucket, bytes(len(CONTENT)))
    async with Transports(lambda: RULES) as transports:
        with pytest.raises(CopyFailed, match="the catalogue says") as failure:
            await copy_file(order(tmp_path), transports=transports)
    assert failure.value.cause == CopyCause.WRONG_CONTENT
