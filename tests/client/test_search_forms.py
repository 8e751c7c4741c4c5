"""`fedstac search -o …`: scripts and lists for downloaders, code for a search, GeoParquet. They are run here."""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import shutil
import sys
import threading
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from fedstac.cli import datasets, downloads, ready_code
from fedstac.cli.downloads import FileForm
from fedstac.client.values import Dataset, File
from fedstac.demo import sample
from tests.support.clients import ID, ITEM
from tests.support.commands import Fedstac, to
from tests.support.nodes import Api
from tests.support.waiting import PATIENCE

HOSTILE = (
    "$(touch owned).nc", "`touch owned`.nc", "a'; touch owned; '.nc", 'a"; touch owned; ".nc', "a && touch owned",
    "a | touch owned", "a > owned", "${IFS}touch${IFS}owned", "a\\'; touch owned", "!touch", "~root.nc", "*",
    "a;touch owned",     "a # b.nc", "ä ö.nc", "a%n.nc",
)  # fmt: skip


class _QuietHandler(SimpleHTTPRequestHandler):
    def log_message(self, format: str, *parts: Any) -> None:
        pass


@pytest.fixture
def served(tmp_path: Path) -> Iterator[tuple[str, Path]]:
    """A server of files on loopback: its address and its folder."""
    folder = tmp_path / "served"
    folder.mkdir()
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(_QuietHandler, directory=str(folder)))
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", folder
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


async def run(folder: Path, *command: str, **variables: str) -> tuple[int, str, str]:
    pipe = asyncio.subprocess.PIPE
    environment = {**os.environ, "no_proxy": "127.0.0.1", "NO_PROXY": "127.0.0.1", **variables}
    process = await asyncio.create_subprocess_exec(*command, stdout=pipe, stderr=pipe, cwd=folder, env=environment)
    stdout, stderr = await asyncio.wait_for(process.communicate(), PATIENCE)
    assert process.returncode is not None
    return process.returncode, stdout.decode(), stderr.decode()


def file(address: str, path: str, content: bytes, *, name: str = "data", checksum: str | None = "") -> File:
    sha256 = "1220" + hashlib.sha256(content).hexdigest()
    return File("id", "asset", "west", f"{address}/{name}", path, len(content), sha256 if checksum == "" else checksum)


def script_of(*groups: tuple[File, list[File]]) -> str:
    texts = [downloads.text(original, mirrors, FileForm.WGET) for original, mirrors in groups]
    return downloads.head_of(FileForm.WGET) + "".join(filter(None, texts)) + downloads.end_of(FileForm.WGET)


def names_below(folder: Path) -> list[str]:
    """Return the names of all files in a folder and the folders in it."""
    return [name for _, _, names in os.walk(folder) for name in names]


async def ids_of(fedstac: Fedstac, api: Api, *search: str) -> list[str]:
    done = await fedstac(*search, "-o", "ndjson", **to(api))
    return [json.loads(line)["id"] for line in done.stdout.splitlines()]


needs_wget = pytest.mark.skipif(shutil.which("wget") is None and not os.environ.get("CI"), reason="wget is not here")


@needs_wget
async def test_a_script_fetches_into_folders_takes_the_next_address_and_goes_on(
    served: tuple[str, Path], tmp_path: Path
) -> None:
    address, folder = served
    whole = os.urandom(50_000)
    (folder / "data").write_bytes(whole)
    (folder / "wrong").write_bytes(b"wrong" * 10_000)
    here = tmp_path / "here"
    (here / "a/b").mkdir(parents=True)
    first = file(address, "a/b/c.nc", whole, name="absent")
    wrong, right = file(address, "a/b/c.nc", whole, name="wrong"), file(address, "a/b/c.nc", whole)
    plain = file(address, "d/plain.nc", whole, checksum=None)
    (here / "a/b/c.nc.part").write_bytes(whole[:20_000])  # an attempt that was cut
    (tmp_path / "fetch.sh").write_text(script_of((first, [right]), (plain, [])))
    code, _, errors = await run(here, "sh", str(tmp_path / "fetch.sh"))
    assert code == 0, errors
    assert "206 Partial Content" in errors or "200 OK" in errors
    assert (here / "a/b/c.nc").read_bytes() == (here / "d/plain.nc").read_bytes() == whole
    (folder / "data").unlink()
    assert (await run(here, "sh", str(tmp_path / "fetch.sh")))[0] == 0  # what is whole is not fetched again
    shutil.rmtree(here / "a")
    (folder / "data").write_bytes(whole)
    (tmp_path / "fetch.sh").write_text(script_of((wrong, [right])))
    code, _, errors = await run(here, "sh", str(tmp_path / "fetch.sh"))
    assert (code, (here / "a/b/c.nc").read_bytes() == whole) == (0, True), errors
    assert "is not the file" in errors
    (tmp_path / "fetch.sh").write_text(script_of((file(address, "a/x.nc", b"other"), [])))
    code, _, errors = await run(here, "sh", str(tmp_path / "fetch.sh"))
    assert (code, (here / "a/x.nc").exists()) == (1, False)
    assert "1 files were not fetched" in errors


@needs_wget
async def test_no_name_and_no_address_gets_into_the_shell(served: tuple[str, Path], tmp_path: Path) -> None:
    address, folder = served
    (folder / "data").write_bytes(b"content")
    here = tmp_path / "here"
    here.mkdir()
    groups = []
    for number, name in enumerate(HOSTILE):
        original = file(address, f"{number}/{name}", b"content", name="data")
        hostile = file(address, f"{number}/{name}", b"content", name=f"absent{name}")
        groups.append((hostile, [original]))
    (tmp_path / "fetch.sh").write_text(script_of(*groups))
    code, _, errors = await run(here, "sh", str(tmp_path / "fetch.sh"), HOME=str(here))
    assert code == 0, errors
    assert sorted(names_below(here)) == sorted(HOSTILE)
    assert "owned" not in names_below(tmp_path)


@pytest.mark.parametrize("reason", ["a\nrm -rf x", "a\r\ntouch owned", "\x1b[2J", "\u2028touch owned"])
def test_a_reason_stays_in_its_comment(reason: str) -> None:
    [item] = sample.items(1)
    item["properties"] |= {"fedstac:state": "retracted", "fedstac:retraction": {"reason": reason}}
    line = downloads.retraction_of(Dataset(item))
    assert line is not None
    assert line.isprintable()
    assert item["id"] in line


async def test_every_form_has_retracted_datasets_with_their_reason_and_no_address(
    west: Api, fedstac: Fedstac, tmp_path: Path
) -> None:
    assert (await fedstac("retract", ID, "--reason", "wrong units", **to(west))).code == 0
    everything = ("search", "-c", "CMIP6", "--retracted", "include")
    hrefs = [asset["href"] for asset in ITEM["assets"].values()]
    for form in ("table", "json", "ndjson", "wget", "aria2"):
        done = await fedstac(*everything, "-o", form, **to(west))
        assert (done.code, "wrong units" in done.stdout) == (0, True), (form, done)
        if form in ("wget", "aria2"):
            [line] = [line for line in done.stdout.splitlines() if "wrong units" in line]
            assert line.startswith("# ")
            assert not [href for href in hrefs if href in done.stdout]
    target = tmp_path / "found.parquet"
    done = await fedstac(*everything, "-o", "parquet", "--to", str(target), **to(west))
    assert done.code == 0, done.stderr
    rows = {row["id"]: row for row in pq.read_table(target).to_pylist()}
    assert rows[ID]["fedstac:retraction"]["reason"] == "wrong units"
    assert len(rows) == 2
    assert [name for name in os.listdir(tmp_path) if ".part" in name] == []
    assert (await fedstac(*everything, "-o", "parquet", **to(west))).code == 2
    assert (await fedstac(*everything, "--to", "x", **to(west))).code == 2


async def test_aria2_gets_all_addresses_checksums_and_folders(west: Api, fedstac: Fedstac) -> None:
    done = await fedstac("search", "--ids", ID, "-o", "aria2", **to(west))
    files = [each for each in Dataset(ITEM).files if each.is_web]
    entries = [line for line in done.stdout.splitlines() if line[:1] not in (" ", "#")]
    assert len(entries) == len({each.asset for each in files})
    assert entries[0].split("\t")[0] == files[0].href
    assert f"  out={files[0].path}" in done.stdout
    assert f"  checksum=sha-256={files[0].sha256}" in done.stdout


async def test_python_code_of_a_search_runs_and_finds_the_same(west: Api, fedstac: Fedstac, tmp_path: Path) -> None:
    assert (await fedstac("retract", ID, "--reason", "wrong units", **to(west))).code == 0
    search = ("search", "-c", "CMIP6", "--filter", "title <> 'it''s \"x\" \\n'", "--sortby", "-datetime,id",
              "--retracted", "include")  # fmt: skip
    found = [
        json.loads(line)["id"] for line in (await fedstac(*search, "-o", "ndjson", **to(west))).stdout.splitlines()
    ]
    done = await fedstac(*search, "-o", "python", **to(west))
    assert "fst_" not in done.stdout  # no token
    (tmp_path / "search.py").write_text(done.stdout)
    code, stdout, errors = await run(tmp_path, sys.executable, "search.py", FEDSTAC_TOKEN=west.tokens["admin"])
    assert code == 0, errors
    shown = [line.partition(":")[0] for line in stdout.splitlines() if not line.startswith(" ")]
    assert shown == found
    assert f"{ID}: retracted: wrong units" in stdout


async def test_curl_code_of_a_search_runs_and_finds_the_same(west: Api, fedstac: Fedstac, tmp_path: Path) -> None:
    search = ("search", "-c", "CMIP6", "--filter", "title <> 'it''s $(touch owned) `touch owned`'", "--limit", "0")
    found = [
        json.loads(line)["id"] for line in (await fedstac(*search, "-o", "ndjson", **to(west))).stdout.splitlines()
    ]
    done = await fedstac(*search, "-o", "curl", **to(west))
    (tmp_path / "search.sh").write_text(done.stdout)
    if shutil.which("curl") is None and not os.environ.get("CI"):
        pytest.skip("curl is not here")
    code, stdout, errors = await run(tmp_path, "sh", "search.sh")
    assert code == 0, errors
    assert [item["id"] for item in json.loads(stdout)["features"]] == found
    assert len(found) == 2
    assert not (tmp_path / "owned").exists()


def test_an_interrupted_search_leaves_the_file_as_it_was(tmp_path: Path) -> None:
    def interrupted() -> Iterator[dict[str, Any]]:
        yield ITEM
        raise KeyboardInterrupt

    target = tmp_path / "found.parquet"
    target.write_bytes(b"of yesterday")
    with pytest.raises(KeyboardInterrupt):
        datasets.write_parquet(interrupted(), target)
    assert target.read_bytes() == b"of yesterday"
    assert os.listdir(tmp_path) == ["found.parquet"]
    datasets.write_parquet(iter([ITEM]), target)
    assert pq.read_table(target).column("id").to_pylist() == [ID]


@pytest.mark.parametrize("text", ["'''", '"""', "\\", "{url}", "'); import os; os.abort(); ('", "\n", "$(x)", "`x`"])
def test_code_holds_any_text_as_a_text(text: str) -> None:
    body = {"collections": [text], "filter": text, "ids": [text], "datetime": text}
    compile(ready_code.python(f"https://x/{text}", body, 5), "search.py", "exec")
    assert repr(text) in ready_code.python("https://x", body, 5)
