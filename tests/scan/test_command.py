"""`fedstac scan` in a process of its own: what it prints, how it exits, and that it goes on after a kill."""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import pty
import shlex
import signal
import sqlite3
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.scan.files import amon, drs
from tests.support.commands import Fedstac, Result, StartCommand, environment
from tests.support.forking import Forks
from tests.support.processes import is_running, processes_naming
from tests.support.waiting import PATIENCE

NODE = ("--node", "esgf.example.org", "--base-url", "https://esgf.example.org/data")
COMMAND, READER = "fedstac.cli", "fedstac.scan.reader"  # modules
Scanning = Callable[..., Awaitable[Result]]
StartScan = Callable[..., Awaitable[asyncio.subprocess.Process]]


@pytest.fixture
def scan(fedstac: Fedstac, tmp_path: Path) -> Scanning:
    """Scans with a state of the test's own."""

    async def run(source: Path, *arguments: str) -> Result:
        return await fedstac("scan", str(source), *NODE, *arguments, XDG_STATE_HOME=str(tmp_path / "state"))

    return run


def summary(done: Result) -> dict[str, Any]:
    [*_, last] = done.stderr.splitlines()
    answer: dict[str, Any] = json.loads(last)
    return answer


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(PATIENCE):
        while not condition():  # noqa: ASYNC110 - another process's doing
            await asyncio.sleep(0.005)


async def test_items_go_to_standard_output_and_a_summary_to_standard_error(scan: Scanning, root: Path) -> None:
    amon().write(drs(root))
    amon(member="r2i1p1f1").write(drs(root, member="r2i1p1f1"))
    done = await scan(root)
    assert done.code == 0
    assert [line["properties"]["cmip6:variant_label"] for line in done.lines] == ["r1i1p1f1", "r2i1p1f1"]
    assert done.stderr.startswith("2 datasets from 2 files; 0.1 MB read in ")
    assert "MB/s" in done.stderr
    again = await scan(root)
    assert again.stdout == done.stdout
    assert again.stderr.startswith("2 datasets from 2 files, 2 remembered; 0.0 MB read")


async def test_the_output_is_there_as_a_whole_and_is_valid(
    scan: Scanning, fedstac: Fedstac, root: Path, tmp_path: Path
) -> None:
    amon().write(drs(root))
    done = await scan(root, "--out", "items.ndjson", "-o", "json")
    assert (done.code, done.stdout) == (0, "")
    assert json.loads(done.stderr)["summary"]["datasets"] == 1
    assert sorted(os.listdir(tmp_path)) == ["archive", "items.ndjson", "state"]
    judged = await fedstac("validate", "items.ndjson", "-o", "ndjson", "--cv", "CMIP6=6.2.60.0")
    assert (judged.code, judged.lines[0]["valid"], judged.lines[0]["findings"]) == (0, True, [])


async def test_what_is_wrong_is_named_with_its_reason_and_the_rest_goes_on(scan: Scanning, root: Path) -> None:
    amon().write(drs(root))
    (root / "v20200101").mkdir()
    (root / "v20200101/not \x1b[31m netcdf.nc").write_text("hello")
    (root / "loose.nc").write_text("hello")
    done = await scan(root)
    assert done.code == 1
    assert len(done.lines) == 1
    assert "not \ufffd[31m netcdf.nc: this is no NetCDF-4 file [unreadable]" in done.stderr
    assert "loose.nc: no folder above it is a version (v20200101); say it with --version [version]" in done.stderr
    lines = (await scan(root, "-o", "ndjson")).stderr.splitlines()
    assert [json.loads(line)["event"] for line in lines] == ["error", "error", "summary"]


async def test_trusted_checksums_are_taken_and_others_are_compared(scan: Scanning, root: Path, tmp_path: Path) -> None:
    path = amon().write(drs(root))
    id = "CMIP6.CMIP.NCAR.CESM2.historical.r1i1p1f1.Amon.tas.gn"
    right, wrong = hashlib.sha256(path.read_bytes()).hexdigest(), "ab" * 32
    line = "{id}#20190308 | {path} | {size} | mod_time=1.0 | checksum={sum} | checksum_type=SHA256\n"
    mapfile = tmp_path / "x.map"

    async def with_sum(sum: str, *arguments: str, id: str = id) -> Result:
        mapfile.write_text(line.format(id=id, path=path, size=path.stat().st_size, sum=sum))
        return await scan(mapfile, "--root", str(root), "-o", "ndjson", *arguments)

    trusted = await with_sum(wrong, "--trust-checksums")
    assert trusted.code == 0
    assert f"1220{wrong}" in trusted.stdout
    assert summary(trusted)["bytes_read"] == 0
    compared = await with_sum(wrong)  # what was trusted is no checksum that was computed
    assert (compared.code, compared.stdout) == (1, "")
    assert "its SHA-256 is" in compared.stderr
    assert (await with_sum(right)).code == 0
    other = await with_sum(right, id=id.replace("CESM2", "CESM3"))
    assert (other.code, other.stdout) == (1, "")
    assert "the mapfile says CMIP6.CMIP.NCAR.CESM3" in other.stderr


async def test_names_with_spaces_and_quotes_work_from_end_to_end(scan: Scanning, root: Path) -> None:
    path = amon().write(root / 'it\'s "ä" 100% #1' / "v20190308")
    done = await scan(root)
    assert done.code == 0
    [asset] = done.lines[0]["assets"].values()
    assert asset["file:local_path"] == f'it\'s "ä" 100% #1/v20190308/{path.name}'
    assert asset["href"].startswith("https://esgf.example.org/data/it%27s%20%22%C3%A4%22%20100%25%20%231/v20190308/")


def padded(root: Path, files: int, size: int) -> None:
    """Make files that take a while: NetCDF does not mind what follows its end."""
    for number in range(files):
        path = amon(1850 + number, 1850 + number).write(drs(root))
        os.truncate(path, size)


def remembered(state: Path) -> int:
    try:
        with sqlite3.connect(f"file:{state}?mode=ro", uri=True) as db:
            return int(db.execute("SELECT count(*) FROM facts").fetchone()[0])
    except sqlite3.OperationalError:
        return 0


def reads_file_of(pid: int, size: int) -> bool:
    """Return whether a process has a file of at least that many bytes open."""
    try:
        return any(descriptor.stat().st_size >= size for descriptor in Path(f"/proc/{pid}/fd").iterdir())
    except OSError:  # it ended, or closed a file just now
        return False


def processes_below(folder: Path, module: str) -> list[int]:
    """Return the processes that run a module for a test."""
    return [pid for pid, words in processes_naming(str(folder)).items() if f"-m {module}" in words]


@pytest.fixture
def start_scan(start_command: StartCommand, root: Path, tmp_path: Path) -> StartScan:
    """Starts a scan with one reader and a state of the test's own."""

    async def begin(*arguments: str) -> asyncio.subprocess.Process:
        state = ("--state", str(tmp_path / "state.sqlite"))
        return await start_command("scan", str(root), *NODE, "--jobs", "1", *state, *arguments, folder=tmp_path)

    return begin


FILES = 8
SIZE, ENDLESS = 100 << 20, 1 << 40  # bytes; nobody reads as much before a signal comes


@pytest.mark.parametrize("end", [signal.SIGKILL, signal.SIGINT])
async def test_a_run_that_is_stopped_goes_on_where_it_was(
    start_scan: StartScan, root: Path, tmp_path: Path, end: signal.Signals
) -> None:
    padded(root, FILES, SIZE)
    last = max(drs(root).iterdir())
    os.truncate(last, ENDLESS)
    state, out = tmp_path / "state.sqlite", tmp_path / "items.ndjson"
    out.write_text("as it was\n")
    process = await start_scan("--out", str(out))
    await until(lambda: remembered(state) >= 3)
    readers = processes_below(tmp_path, READER)
    [scan] = processes_below(tmp_path, COMMAND)
    os.kill(scan, end)
    _, stderr = await process.communicate()
    assert process.returncode == (130 if end is signal.SIGINT else -end)
    assert (b"say the same again" in stderr) == (end is signal.SIGINT)
    assert b"Traceback" not in stderr
    assert out.read_text() == "as it was\n"
    remembered_paths = remembered(state)
    assert 3 <= remembered_paths < FILES
    await until(lambda: not any(is_running(pid) for pid in readers))
    os.truncate(last, SIZE)
    process = await start_scan("--out", str(out), "-o", "ndjson")
    _, stderr = await process.communicate()
    assert process.returncode == 0
    report = json.loads(stderr.splitlines()[-1])
    assert (report["remembered"], report["read"], report["bytes_read"]) == (
        remembered_paths,
        FILES - remembered_paths,
        (FILES - remembered_paths) * SIZE,
    )
    [item] = [json.loads(line) for line in out.read_text().splitlines()]
    zeros = {f"1220{hashlib.sha256(path.read_bytes()).hexdigest()}" for path in drs(root).iterdir()}
    assert {asset["file:checksum"] for asset in item["assets"].values()} == zeros


async def test_a_changed_file_is_read_again_and_afresh_reads_all(scan: Scanning, root: Path) -> None:
    paths = [amon(year, year).write(drs(root)) for year in (1850, 1851)]
    await scan(root)
    os.utime(paths[0], ns=(0, 1_000_000_007))
    done = summary(await scan(root, "-o", "ndjson"))
    assert (done["read"], done["remembered"]) == (1, 1)
    done = summary(await scan(root, "-o", "ndjson", "--afresh"))
    assert (done["read"], done["remembered"]) == (2, 0)


async def test_a_file_that_kills_its_reader_takes_no_other_along(
    start_scan: StartScan, root: Path, tmp_path: Path
) -> None:
    padded(root, 1, 4 << 30)
    amon(member="r2i1p1f1").write(drs(root, member="r2i1p1f1"))
    process = await start_scan()
    await until(lambda: any(reads_file_of(child, 4 << 30) for child in processes_below(tmp_path, READER)))
    os.kill(processes_below(tmp_path, READER)[0], signal.SIGSEGV)
    stdout, stderr = await process.communicate()
    assert process.returncode == 1
    assert b"the process that read it ended (signal SIGSEGV) [unreadable]" in stderr
    assert len(stdout.splitlines()) == 1


async def test_damage_anywhere_in_a_file_is_that_files_fault(scan: Scanning, root: Path) -> None:
    content = bytearray(amon().write(drs(root)).read_bytes())
    noise = np.random.default_rng(8)
    for number in range(120):
        damaged = content.copy()
        for at in noise.integers(8, 12_000, 30):
            damaged[at] = noise.integers(256)
        path = root / f"{number}/v20200101/x{number}.nc"
        path.parent.mkdir(parents=True)
        path.write_bytes(damaged)
    done = await scan(root, "-o", "ndjson")
    assert done.code == 1
    report = summary(done)
    assert report["files"] == report["read"] + report["unusable"] == 121
    assert "Traceback" not in done.stderr
    assert all(json.loads(line)["message"].isprintable() for line in done.stderr.splitlines()[:-1])
    assert len([line for line in done.lines if line["id"].endswith("v20190308")]) == 1


async def test_progress_on_a_terminal_leaves_what_is_piped_alone(
    command_forks: Forks, root: Path, tmp_path: Path
) -> None:
    padded(root, 3, 200 << 20)
    ours, theirs = pty.openpty()
    process = await asyncio.create_subprocess_exec(
        *command_forks.program, "scan", str(root), *NODE, "--state", "s.sqlite",
        stdout=asyncio.subprocess.PIPE, stderr=theirs, cwd=tmp_path, env=environment(TERM="xterm"), limit=1 << 24,
    )  # fmt: skip
    os.close(theirs)
    seen = bytearray()

    def drain() -> None:
        try:
            while chunk := os.read(ours, 1 << 16):
                seen.extend(chunk)
        except OSError:  # how a terminal says that nobody writes any more
            pass

    draining = asyncio.get_running_loop().run_in_executor(None, drain)
    stdout, _ = await process.communicate()
    await draining
    os.close(ours)
    assert process.returncode == 0
    assert len(json.loads(stdout)["assets"]) == 3
    assert b"of 3 files" in seen
    assert b"MB/s" in seen


async def test_whoever_reads_may_stop_reading(command_forks: Forks, root: Path, tmp_path: Path) -> None:
    for number in range(40):
        amon(member=f"r{number + 1}i1p1f1").write(drs(root, member=f"r{number + 1}i1p1f1"))
    command = shlex.join([*command_forks.program, "scan", str(root), *NODE, "--state", "s.sqlite"])
    process = await asyncio.create_subprocess_exec(
        "/bin/sh", "-c", f"{command} | head -n1",
        stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE, cwd=tmp_path, env=environment(),
    )  # fmt: skip
    stdout, stderr = await process.communicate()
    assert len(stdout.splitlines()) == 1
    assert b"Traceback" not in stderr


# --- usage ---


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (("archive",), "--site"),
        (("archive", "--site", "gone.toml"), "gone.toml cannot be read"),
        (("archive", "--site", "gone.toml", "--node", "x"), "leave out --node"),
        (("x.map", *NODE), "--root"),
        (("x.map", *NODE, "--root", "archive"), "x.map cannot be read"),
        (("gone", *NODE, "--root", "archive"), "cannot be read"),
        (("archive", *NODE), "names no file with a name in .nc"),
        (("archive", *NODE, "--version", "2020-01-01"), "no date of the calendar"),
        (("/etc", *NODE, "--root", "archive"), "not below a root"),
        (("archive", "--node", "x", "--base-url", "ftp://x"), "no protocol 'ftp'"),
        (("archive", *NODE, "--state", "broken.sqlite"), "broken.sqlite cannot be used"),
        (("archive", *NODE, "--out", "nowhere/items.ndjson"), "cannot be written"),
    ],
)
async def test_wrong_usage_is_said_in_a_sentence(
    fedstac: Fedstac, root: Path, tmp_path: Path, arguments: tuple[str, ...], sentence: str
) -> None:
    (tmp_path / "broken.sqlite").write_bytes(b"not a database" * 100)
    done = await fedstac("scan", *arguments, XDG_STATE_HOME=str(tmp_path / "state"), COLUMNS="1000")
    assert (done.code, done.stdout) == (2, "")
    assert sentence in done.stderr
    assert "Traceback" not in done.stderr


async def test_without_the_extra_it_says_how_to_get_it(fedstac: Fedstac, root: Path, tmp_path: Path) -> None:
    (tmp_path / "sitecustomize.py").write_text("import sys\nsys.modules['h5py'] = sys.modules['cftime'] = None\n")
    done = await fedstac("scan", str(root), *NODE, PYTHONPATH=str(tmp_path))
    assert done.code == 2
    assert done.stderr == "fedstac: to read NetCDF files takes h5py and cftime: pip install 'fedstac[netcdf]'\n"


async def test_help_has_examples(fedstac: Fedstac) -> None:
    done = await fedstac("scan", "--help")
    assert done.code == 0
    assert "fedstac scan /data/CMIP6 --site site.toml" in done.stdout
