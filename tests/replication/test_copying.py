"""Copying one file: whatever the source does, the file is right or the failure explains itself."""

from __future__ import annotations

import asyncio
import hashlib
import os
import random
import stat
import threading
from collections import Counter
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from pathlib import Path

import pytest

from fedstac.domain.replication.paths import PART_FOLDER
from fedstac.replication import storage
from fedstac.replication.addresses import AddressRules
from fedstac.replication.copying import CopyOrder, CopyReport, copy_file
from fedstac.replication.transports import CopyCause, CopyFailed, Transports
from tests.support.file_server import Fault, FileAnswer, FileServer, file_server
from tests.support.receivers import listening

CONTENT = random.Random(12).randbytes(3_000_000)
OTHER = random.Random(13).randbytes(3_000_000)
HALF = 1_500_000
STALL_SECONDS = 0.5
Plant = Callable[[Path], None]


def sha256(content: bytes) -> str:
    return "1220" + hashlib.sha256(content).hexdigest()


def cut(at: int = HALF) -> Fault:
    return lambda answer: replace(answer, cut=at)


class Copier:
    """Copies what a server serves into a folder."""

    def __init__(self, folder: Path, server: FileServer, transports: Transports) -> None:
        self.folder, self.server, self.transports = folder, server, transports
        self.progress: list[int] = []

    def order(self, **changes: object) -> CopyOrder:
        order = CopyOrder(self.folder, "CMIP7/a.nc", len(CONTENT), sha256(CONTENT), self.server.url)
        return replace(order, **changes)  # type: ignore[arg-type]

    async def copy(self, **changes: object) -> CopyReport:
        return await copy_file(self.order(**changes), transports=self.transports, on_bytes=self.progress.append)

    async def fail(self, **changes: object) -> CopyFailed:
        with pytest.raises(CopyFailed) as failure:
            await self.copy(**changes)
        assert str(self.folder) not in failure.value.reason
        return failure.value

    @property
    def target(self) -> Path:
        return self.folder / "CMIP7/a.nc"

    @property
    def part_bytes(self) -> int | None:
        """The size of the part; None where there is none."""
        part = self.target.parent / PART_FOLDER / sha256(CONTENT)
        return part.stat().st_size if part.exists() else None

    def is_clean(self) -> bool:
        return not (self.target.parent / PART_FOLDER).exists()


@pytest.fixture
async def copier(tmp_path: Path) -> AsyncIterator[Copier]:
    rules = AddressRules(("127.0.0.1",))
    async with file_server(CONTENT) as server, Transports(lambda: rules, stall_seconds=STALL_SECONDS) as transports:
        yield Copier(tmp_path, server, transports)


async def test_a_file_arrives_whole_verified_and_once(copier: Copier) -> None:
    assert await copier.copy() == CopyReport(len(CONTENT), len(CONTENT), 0)
    assert copier.target.read_bytes() == CONTENT
    assert stat.S_IMODE(copier.target.stat().st_mode) & 0o444
    assert copier.is_clean()
    assert copier.progress == sorted(copier.progress)
    assert copier.progress[-1] == len(CONTENT)
    assert await copier.copy() == CopyReport(len(CONTENT), 0, len(CONTENT))  # it is there already
    assert len(copier.server.requests) == 1
    assert copier.server.requests[0]["accept-encoding"] == "identity"


async def test_an_existing_file_with_another_content_stays_until_the_new_one_is_verified(copier: Copier) -> None:
    copier.target.parent.mkdir()
    copier.target.write_bytes(OTHER)
    copier.server.content = CONTENT[:-1] + b"?"
    assert (await copier.fail()).cause == CopyCause.WRONG_CONTENT
    assert copier.target.read_bytes() == OTHER
    copier.server.content = CONTENT
    await copier.copy()
    assert copier.target.read_bytes() == CONTENT


@pytest.mark.parametrize("size", [0, 1, 70_000])
async def test_small_and_empty_files_arrive(copier: Copier, size: int) -> None:
    copier.server.content = CONTENT[:size]
    await copier.copy(size=size, checksum=sha256(CONTENT[:size]))
    assert copier.target.read_bytes() == CONTENT[:size]
    assert copier.is_clean()


async def test_a_size_that_the_catalogue_does_not_say_is_learnt(copier: Copier) -> None:
    copier.server.faults.append(cut())
    assert (await copier.copy(size=None)).size == len(CONTENT)
    assert copier.target.read_bytes() == CONTENT


@pytest.mark.parametrize(
    ("code", "function"),
    [("1114", "sha1"), ("1340", "sha512"), ("2030", "sha384"), ("1620", "sha3_256"), ("d50110", "md5"),
     ("c0e40240", "blake2b")],
)  # fmt: skip
async def test_every_hash_function_of_python_verifies(copier: Copier, code: str, function: str) -> None:
    digest = hashlib.new(function, CONTENT).hexdigest()
    await copier.copy(checksum=code + digest)
    os.unlink(copier.target)
    failure = await copier.fail(checksum=code + digest[:-2] + ("00" if digest[-2:] != "00" else "01"))
    assert failure.cause == CopyCause.WRONG_CONTENT
    assert code + digest in failure.reason


@pytest.mark.parametrize("checksum", ["", "../../x", "1220abc", "1e20" + "ab" * 32])
async def test_what_cannot_be_verified_is_not_fetched(copier: Copier, checksum: str) -> None:
    assert (await copier.fail(checksum=checksum)).cause == CopyCause.UNVERIFIABLE
    assert not copier.server.requests


async def test_a_copy_that_is_cut_goes_on_where_it_was(copier: Copier) -> None:
    copier.server.faults.extend((cut(), cut(700_000)))
    assert await copier.copy() == CopyReport(len(CONTENT), len(CONTENT), 0)
    assert copier.target.read_bytes() == CONTENT
    assert copier.server.sent_bytes == len(CONTENT)
    assert [fields.get("range") for fields in copier.server.requests] == [None, "bytes=1500000-", "bytes=2200000-"]
    assert copier.server.requests[1]["if-range"] == '"one"'


async def test_a_later_call_reads_what_is_here_and_fetches_the_rest(copier: Copier) -> None:
    copier.server.faults.extend([cut(600_000), *[cut(0)] * 3])
    failure = await copier.fail()
    assert failure.cause == CopyCause.CUT
    assert "127.0.0.1 ended the connection in the middle of the file" in failure.reason
    assert copier.part_bytes == 600_000
    copier.server.faults.clear()
    assert await copier.copy() == CopyReport(len(CONTENT), len(CONTENT) - 600_000, 600_000)
    assert copier.target.read_bytes() == CONTENT


async def test_a_source_that_stalls_is_given_up_and_resumed(copier: Copier) -> None:
    copier.server.faults.append(lambda answer: replace(answer, stall=HALF))
    assert (await copier.copy()).fetched_bytes == len(CONTENT)
    assert copier.target.read_bytes() == CONTENT


# what a server does to the request for the rest, after the first connection was cut in the middle
BAD_RANGES: dict[str, Fault] = {
    "no Content-Range": lambda answer: answer.having(content_range=None),
    "Content-Range is no range": lambda answer: answer.having(content_range="bytes all"),
    "it begins elsewhere": lambda answer: answer.having(content_range="bytes 1400000-2999999/3000000"),
    "it ends elsewhere": lambda answer: answer.having(content_range="bytes 1500000-2899999/3000000"),
    "Content-Length is another": lambda answer: answer.having(content_length="1499000"),
    "it is encoded": lambda answer: answer.having(content_encoding="gzip"),
    "it is a multipart answer": lambda answer: answer.having(content_range=None, content_type="multipart/byteranges"),
    "200 with all": lambda answer: FileAnswer("200 OK", {"content-length": str(len(CONTENT))}, CONTENT),
    "416": lambda answer: FileAnswer("416 Range Not Satisfiable", {"content-length": "0"}, b""),
    "416 that claims to be complete": lambda answer: FileAnswer(
        "416 Range Not Satisfiable", {"content-length": "0", "content-range": "bytes */1500000"}, b""
    ),
    "no length of the whole": lambda answer: answer.having(content_range="bytes 1500000-2999999/*"),
    "another ETag": lambda answer: answer.having(etag='"two"'),
    "another weak ETag": lambda answer: answer.having(etag='W/"two"'),
    "another length of the whole": lambda answer: answer.having(content_range="bytes 1500000-2999999/3000001"),
    "bytes of another file": lambda answer: replace(answer, body=OTHER[HALF:]),
    "no length at all": lambda answer: answer.having(content_length=None),
}


@pytest.mark.parametrize("fault", BAD_RANGES.values(), ids=BAD_RANGES)
async def test_a_file_is_right_however_badly_ranges_are_spoken(copier: Copier, fault: Fault) -> None:
    copier.server.faults.extend((cut(), fault))
    report = await copier.copy()
    assert copier.target.read_bytes() == CONTENT
    assert copier.is_clean()
    assert report.fetched_bytes <= 2 * len(CONTENT)


async def test_a_source_without_any_tag_is_resumed_and_the_checksum_decides(copier: Copier) -> None:
    copier.server.etag = ""
    copier.server.faults.append(cut())
    assert (await copier.copy()).fetched_bytes == len(CONTENT)
    assert "if-range" not in copier.server.requests[1]


async def test_a_time_of_change_serves_where_the_tag_is_weak(copier: Copier) -> None:
    copier.server.etag, copier.server.modified = 'W/"one"', "Sat, 01 Nov 2025 00:00:00 GMT"
    copier.server.faults.append(cut())
    assert (await copier.copy()).fetched_bytes == len(CONTENT)
    assert copier.server.requests[1]["if-range"] == "Sat, 01 Nov 2025 00:00:00 GMT"


def changing(server: FileServer) -> Fault:
    """Cut each answer, and give the next one another weak tag."""

    def fault(answer: FileAnswer) -> FileAnswer:
        server.etag = f'W/"{len(server.requests)}"'
        return replace(answer, cut=HALF)

    return fault


async def test_a_source_that_changes_midway_is_begun_again_once(copier: Copier) -> None:
    def change(answer: FileAnswer) -> FileAnswer:
        copier.server.content, copier.server.etag = CONTENT, '"two"'
        return replace(answer, cut=HALF)

    copier.server.content = OTHER
    copier.server.faults.append(change)
    await copier.copy()
    assert copier.target.read_bytes() == CONTENT
    os.unlink(copier.target)
    copier.server.faults.extend([changing(copier.server)] * 4)
    failure = await copier.fail()
    assert failure.cause == CopyCause.CHANGED
    assert "another content" in failure.reason or "all the time" in failure.reason
    assert copier.part_bytes is None


async def test_a_wrong_checksum_names_both_and_leaves_nothing(copier: Copier) -> None:
    copier.server.content = CONTENT[:-1] + b"?"
    failure = await copier.fail()
    assert failure.cause == CopyCause.WRONG_CONTENT
    assert sha256(copier.server.content) in failure.reason
    assert sha256(CONTENT) in failure.reason
    assert "127.0.0.1" in failure.reason
    assert not copier.target.exists()
    assert copier.is_clean()


async def test_a_source_is_not_blamed_for_bytes_that_were_here_before(copier: Copier) -> None:
    parts = copier.target.parent / PART_FOLDER
    parts.mkdir(parents=True)
    (parts / sha256(CONTENT)).write_bytes(OTHER[:HALF])
    await copier.copy()
    assert copier.target.read_bytes() == CONTENT


@pytest.mark.parametrize("left", [OTHER, OTHER + b"more"], ids=["wrong bytes", "too many bytes"])
async def test_a_full_part_that_is_wrong_is_begun_again(copier: Copier, left: bytes) -> None:
    parts = copier.target.parent / PART_FOLDER
    parts.mkdir(parents=True)
    (parts / sha256(CONTENT)).write_bytes(left)
    (parts / f"{sha256(CONTENT)}.note").write_text('{"source": 3, "version": []')
    await copier.copy()
    assert copier.target.read_bytes() == CONTENT


async def test_a_full_part_that_is_right_is_moved_and_not_fetched(copier: Copier) -> None:
    parts = copier.target.parent / PART_FOLDER
    parts.mkdir(parents=True)
    (parts / sha256(CONTENT)).write_bytes(CONTENT)
    assert await copier.copy() == CopyReport(len(CONTENT), 0, len(CONTENT))
    assert copier.target.read_bytes() == CONTENT
    assert not copier.server.requests


SIZES: dict[str, tuple[Fault, str]] = {
    "longer": (lambda answer: answer.having(content_length="3000005"), "has 3000005 bytes, the catalogue says 3000000"),
    "shorter": (lambda answer: answer.having(content_length="5"), "has 5 bytes, the catalogue says 3000000"),
    "more than it says": (
        lambda answer: replace(answer.having(content_length=None), body=CONTENT + b"more", cut=3_000_004),
        "sends more than the 3000000 bytes of the catalogue",
    ),
    "gzip": (
        lambda answer: replace(answer, body=b"x" * 9).having(content_encoding="gzip", content_length="9"),
        "has 9 bytes, the catalogue says 3000000; 127.0.0.1 sends it encoded with gzip, unasked",
    ),
}


@pytest.mark.parametrize(("fault", "reason"), SIZES.values(), ids=SIZES)
async def test_another_size_is_another_file(copier: Copier, fault: Fault, reason: str) -> None:
    copier.server.faults.append(fault)
    failure = await copier.fail()
    assert failure.cause == CopyCause.WRONG_CONTENT
    assert reason in failure.reason
    assert copier.is_clean()


async def test_a_file_that_is_called_encoded_is_taken_as_it_is(copier: Copier) -> None:
    copier.server.faults.append(lambda answer: answer.having(content_encoding="x-gzip"))
    await copier.copy()
    assert copier.target.read_bytes() == CONTENT


async def test_a_body_in_pieces_arrives(copier: Copier) -> None:
    def chunked(answer: FileAnswer) -> FileAnswer:
        parts = [CONTENT[at : at + 99_999] for at in range(0, len(CONTENT), 99_999)]
        body = b"".join(b"%x\r\n%b\r\n" % (len(part), part) for part in parts) + b"0\r\n\r\n"
        return FileAnswer("200 OK", {"transfer-encoding": "chunked", "content-length": "7"}, body, cut=len(body))

    copier.server.faults.append(chunked)
    await copier.copy()
    assert copier.target.read_bytes() == CONTENT


ANSWERS: dict[str, tuple[FileAnswer, CopyCause, float | None, str]] = {
    "503": (FileAnswer("503 Busy", {"retry-after": "7"}, b""), CopyCause.SOURCE_AWAY, 7, "answered 503"),
    "429": (FileAnswer("429 Slow", {"retry-after": "99999999"}, b""), CopyCause.SOURCE_AWAY, 86400, "answered 429"),
    "502": (FileAnswer("502 Oh", {"retry-after": "soon"}, b""), CopyCause.SOURCE_AWAY, None, "answered 502"),
    "500": (FileAnswer("500 Oh", {}, b""), CopyCause.SOURCE_REFUSES, None, "does not give the file (500)"),
    "501": (FileAnswer("501 No", {}, b""), CopyCause.SOURCE_REFUSES, None, "does not give the file (501)"),
    "404": (FileAnswer("404 No", {}, b""), CopyCause.SOURCE_REFUSES, None, "has no such file (404): http://127.0.0.1"),
    "401": (FileAnswer("401 No", {}, b""), CopyCause.SOURCE_REFUSES, None, "wants a login (401)"),
    "204": (FileAnswer("204 No", {}, b""), CopyCause.SOURCE_REFUSES, None, "does not give the file (204)"),
    "206 to all": (FileAnswer("206 Part", {}, b""), CopyCause.SOURCE_REFUSES, None, "as if for a part"),
    "no HTTP": (FileAnswer("six\r\n", {}, b""), CopyCause.SOURCE_AWAY, None, "does not answer as a server of HTTP"),
}


@pytest.mark.parametrize(("answer", "cause", "seconds", "reason"), ANSWERS.values(), ids=ANSWERS)
async def test_a_refusal_explains_itself(
    copier: Copier, answer: FileAnswer, cause: CopyCause, seconds: float | None, reason: str
) -> None:
    copier.server.faults.extend([lambda _: answer] * 2)
    failure = await copier.fail(href=f"{copier.server.url}?token=secret")
    assert (failure.cause, failure.retry_after) == (cause, seconds)
    assert reason in failure.reason
    assert "secret" not in failure.reason
    assert copier.is_clean()


async def test_nobody_listens_or_answers(copier: Copier) -> None:
    failure = await copier.fail(href="http://127.0.0.1:9/a.nc")
    assert failure.cause == CopyCause.SOURCE_AWAY
    ended = asyncio.Event()

    async def be_silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()
        ended.set()

    async with listening(be_silent) as port:
        failure = await copier.fail(href=f"http://127.0.0.1:{port}/a.nc")
        assert failure.cause == CopyCause.SOURCE_AWAY
        await ended.wait()  # the connection is not left open


REDIRECTS: dict[str, tuple[str, str]] = {
    "another host": ("http://192.0.2.7/a.nc", "the host 192.0.2.7:80 is not among the sources"),
    "a name of this machine": ("//localhost/a.nc", "the host localhost:80 is not among the sources"),
    "the machine's cloud": ("http://169.254.169.254/latest", "169.254.169.254:80 is not among the sources"),
    "a file": ("file:///etc/passwd", "is in no listed folder"),
    "a user": ("http://user:word@127.0.0.1/a.nc", "with a user or a password"),
    "another protocol": ("gopher://127.0.0.1/a.nc", "gopher: is not one that files are fetched from"),
    "itself": ("/data/a.nc", "redirects more than 5 times"),
}


@pytest.mark.parametrize(("location", "reason"), REDIRECTS.values(), ids=REDIRECTS)
async def test_a_redirect_is_judged_again(copier: Copier, location: str, reason: str) -> None:
    answer = FileAnswer("302 Found", {"location": location, "content-length": "0"}, b"")
    copier.server.faults.extend([lambda _: answer] * 6)
    failure = await copier.fail()
    assert failure.cause == CopyCause.SOURCE_REFUSES
    assert reason in failure.reason


async def test_a_redirect_to_a_listed_host_is_followed_with_the_range(copier: Copier) -> None:
    answer = FileAnswer("307 There", {"location": "/elsewhere/a.nc", "content-length": "0"}, b"")
    copier.server.faults.extend((lambda _: answer, cut(), lambda _: answer))
    await copier.copy()
    assert copier.target.read_bytes() == CONTENT
    assert copier.server.requests[-1]["range"] == "bytes=1500000-"


async def test_a_copy_that_is_given_up_lets_go_and_keeps_its_bytes(copier: Copier) -> None:
    copier.server.faults.append(lambda answer: replace(answer, stall=2_600_000))
    transports = copier.transports
    arrived = asyncio.Event()
    loop = asyncio.get_running_loop()

    def note(size: int) -> None:
        if size >= 1 << 20:
            loop.call_soon(arrived.set)

    task = asyncio.create_task(copy_file(copier.order(), transports=transports, on_bytes=note))
    await arrived.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    report = await copier.copy()
    assert report.reused_bytes >= 1 << 20
    assert copier.target.read_bytes() == CONTENT


async def test_a_copy_that_is_given_up_does_not_hold_the_loop_while_its_part_is_read(
    copier: Copier, monkeypatch: pytest.MonkeyPatch
) -> None:
    copier.server.faults.append(cut(2_500_000))
    copier.server.faults.append(lambda answer: replace(answer, status="503 Service Unavailable"))
    await copier.fail()
    assert copier.part_bytes == 2_500_000
    is_read, goes_on, blocks, readv = asyncio.Event(), threading.Event(), 0, os.readv
    loop = asyncio.get_running_loop()

    def read_slowly(fd: int, buffers: list[memoryview]) -> int:
        nonlocal blocks
        if PART_FOLDER in os.readlink(f"/proc/self/fd/{fd}"):
            blocks += 1
            loop.call_soon_threadsafe(is_read.set)
            assert goes_on.wait(10), "the loop waits for the thread that reads the part"
        return readv(fd, buffers)

    monkeypatch.setattr(os, "readv", read_slowly)
    task = asyncio.create_task(copier.copy())
    await is_read.wait()
    task.cancel()
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    assert not task.done()  # it waits for the thread, and this loop goes on
    goes_on.set()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert blocks == 1  # and the rest of the part is not read
    assert (await copier.copy()).reused_bytes == 2_500_000
    assert copier.target.read_bytes() == CONTENT


def test_a_part_that_is_closed_touches_nothing(tmp_path: Path) -> None:
    with storage.open_place(tmp_path, "a.nc") as place:
        part = place.open_part("1220ab")
    part.append([b"x"])
    part.close()
    for work in (part.move_into_place, part.empty, part.discard, part.take_delivery):
        with pytest.raises(OSError, match="Bad file descriptor"):
            work()
    assert (tmp_path / PART_FOLDER / "1220ab").read_bytes() == b"x"


async def test_one_process_copies_a_file_at_a_time(copier: Copier) -> None:
    copier.server.faults.append(lambda answer: replace(answer, stall=HALF))
    reports = await asyncio.gather(*(copier.copy() for _ in range(3)), return_exceptions=True)
    assert sorted(type(each).__name__ for each in reports) == ["CopyFailed", "CopyFailed", "CopyReport"]
    assert {each.cause for each in reports if isinstance(each, CopyFailed)} == {CopyCause.BUSY}
    assert copier.target.read_bytes() == CONTENT


async def test_the_throttle_gets_every_byte_that_came(copier: Copier) -> None:
    counts: Counter[str] = Counter()

    class CountingThrottle:
        async def take(self, host: str, count: int) -> None:
            counts[host] += count

    copier.server.faults.append(cut())
    await copy_file(copier.order(host="east"), transports=copier.transports, throttle=CountingThrottle())
    assert counts == {"east": len(CONTENT)}


async def test_no_room_is_a_cause_of_its_own_and_nothing_is_fetched(copier: Copier) -> None:
    failure = await copier.fail(size=1 << 60)
    assert failure.cause == CopyCause.DISK_FULL
    assert "CMIP7/a.nc needs 1152921504606846976 bytes more" in failure.reason
    assert not copier.server.requests


def _link(target: str) -> Plant:
    return lambda path: path.symlink_to(target)


PLANTS: dict[str, tuple[str, Plant, str]] = {
    "a folder is a link": ("CMIP7", _link("/tmp"), "a link or a file in its way"),
    "a folder is a file": ("CMIP7", Path.touch, "a link or a file in its way"),
    "the target is a link": ("CMIP7/a.nc", _link("/etc/passwd"), "is there already, and is no file"),
    "the target is a folder": ("CMIP7/a.nc", Path.mkdir, "is there already, and is no file"),
    "the target is a pipe": ("CMIP7/a.nc", os.mkfifo, "is there already, and is no file"),
    "the folder of parts is a link": (f"CMIP7/{PART_FOLDER}", _link("/tmp"), "a link or a file in its way"),
    "the part is a link": (f"CMIP7/{PART_FOLDER}/{sha256(CONTENT)}", _link("/tmp/x"), "a link or a file in its way"),
    "the part is a pipe": (f"CMIP7/{PART_FOLDER}/{sha256(CONTENT)}", os.mkfifo, "is no file"),
}


@pytest.mark.parametrize(("path", "plant", "reason"), PLANTS.values(), ids=PLANTS)
async def test_nothing_in_the_tree_leads_out_of_it(copier: Copier, path: str, plant: Plant, reason: str) -> None:
    (copier.folder / path).parent.mkdir(parents=True, exist_ok=True)
    plant(copier.folder / path)
    failure = await copier.fail()
    assert failure.cause == CopyCause.BAD_PATH
    assert reason in failure.reason
    assert not copier.server.requests


@pytest.mark.parametrize(
    "path",
    ["", "/etc/x", "../x", "a/../../x", "a//x", "./x", "a/.", "a\nb", "a\x00b", "x" * 256, "a/" * 2000 + "x",
     f"a/{PART_FOLDER}/x", "\udc80"],
)  # fmt: skip
async def test_a_path_that_is_not_safe_is_not_stored(copier: Copier, path: str) -> None:
    assert (await copier.fail(path=path)).cause == CopyCause.BAD_PATH
    assert not list(copier.folder.iterdir())


@pytest.mark.parametrize("path", ["ä ö/日本 %2e%2e.nc", "-rf *", "a\\b", "..a/b..", "$(x);'\"/`y`", "é" * 127])
async def test_names_with_odd_characters_are_stored_as_they_are(copier: Copier, path: str) -> None:
    await copier.copy(path=path)
    assert (copier.folder / path).read_bytes() == CONTENT


async def test_a_file_of_a_listed_folder_is_copied_and_no_other(copier: Copier, tmp_path: Path) -> None:
    source, folder = tmp_path / "source", tmp_path / "folder"
    source.mkdir()
    folder.mkdir()
    (source / "ä.nc").write_bytes(CONTENT)
    (source / "link.nc").symlink_to("/etc/passwd")
    (tmp_path / "secret.nc").write_bytes(CONTENT)
    order = CopyOrder(folder, "a.nc", len(CONTENT), sha256(CONTENT), f"file://{source}/%C3%A4.nc")
    async with Transports(lambda: AddressRules((f"file://{source}",))) as transports:
        await copy_file(order, transports=transports)
        assert (folder / "a.nc").read_bytes() == CONTENT
        refuses, bad = CopyCause.SOURCE_REFUSES, CopyCause.BAD_ADDRESS
        causes = {"link.nc": refuses, "a" * 300: refuses, "../secret.nc": bad, "%2e%2e/secret.nc": bad}
        for name, cause in causes.items():
            with pytest.raises(CopyFailed) as failure:
                await copy_file(replace(order, path="b.nc", href=f"file://{source}/{name}"), transports=transports)
            assert failure.value.cause == cause
        with pytest.raises(CopyFailed, match="there is no file"):
            await copy_file(replace(order, path="b.nc", href=f"file://{source}/none"), transports=transports)
