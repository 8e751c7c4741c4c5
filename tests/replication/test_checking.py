"""The quality-check command: what it is given, what it says, and that nothing of it stays."""

from __future__ import annotations

import asyncio
import os
import shlex
import signal
import sys
from pathlib import Path

import pytest

from fedstac.replication import checking
from fedstac.replication.checking import CheckInterrupted, CheckResult, CheckUnusable
from tests.support.processes import processes_naming
from tests.support.waiting import until

FILES = ("a/one.nc", "a/two.nc")


async def run(folder: Path, command: str, *, seconds: float = 60) -> CheckResult:
    return await checking.check(
        command, folder=folder, collection="CMIP6", dataset="CMIP6.x.v1", files=FILES, seconds=seconds
    )


def python(code: str) -> str:
    return shlex.join([sys.executable, "-c", code])


async def test_a_command_that_ends_with_0_passes(tmp_path: Path) -> None:
    assert await run(tmp_path, "true") == CheckResult(True)


async def test_the_command_gets_the_files_the_folder_and_the_names_of_the_dataset(tmp_path: Path) -> None:
    report = "import os, sys; print(os.getcwd(), os.environ['FEDSTAC_DATASET'], sys.stdin.read().split()); sys.exit(3)"
    verdict = await run(tmp_path, python(report))
    assert not verdict.passes
    assert verdict.reason.startswith("the check ended with status 3: ")
    assert verdict.reason.endswith(f"\n{tmp_path} CMIP6.x.v1 ['a/one.nc', 'a/two.nc']")


async def test_the_command_sees_no_settings_and_no_secrets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FEDSTAC_REPLICA_TOKEN", "secret")
    monkeypatch.setenv("PGPASSWORD", "secret")
    verdict = await run(tmp_path, python("import os, sys; sys.exit('secret' in os.environ.values())"))
    assert verdict.passes


async def test_of_much_output_the_end_is_the_reason(tmp_path: Path) -> None:
    verdict = await run(tmp_path, python("print('x' * 1_000_000); print('wrong \\x1b[1munits'); raise SystemExit(1)"))
    assert len(verdict.reason) < 2500
    assert verdict.reason.endswith("wrong \ufffd[1munits")


@pytest.mark.parametrize("ignoring", [False, True])
async def test_a_command_that_takes_too_long_is_ended_with_all_it_started(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ignoring: bool
) -> None:
    monkeypatch.setattr(checking, "GRACE_SECONDS", 0.2)
    ignore = "import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN); " if ignoring else ""
    child = f"{ignore}import time; time.sleep(1000)"
    parent = (
        f"{ignore}import subprocess, sys; print('begun', flush=True); subprocess.run([sys.executable, '-c', {child!r}])"
    )
    verdict = await run(tmp_path, python(parent), seconds=2)
    assert not verdict.passes
    assert verdict.reason.startswith("the check did not end within 2 s")
    assert verdict.reason.endswith("begun")

    async def all_gone() -> bool:
        return not processes_naming(str(tmp_path))

    assert await until(all_gone)


async def test_what_a_command_leaves_running_is_ended(tmp_path: Path) -> None:
    child = "import time; time.sleep(1000)"
    command = python(f"import subprocess, sys; subprocess.Popen([sys.executable, '-c', {child!r}])")
    assert (await run(tmp_path, command)).passes

    async def all_gone() -> bool:
        return not processes_naming(str(tmp_path))

    assert await until(all_gone)


@pytest.mark.parametrize("command", ["", "no-such-command-anywhere", "'unclosed", os.devnull])
async def test_a_command_that_cannot_start_blames_no_dataset(tmp_path: Path, command: str) -> None:
    with pytest.raises(CheckUnusable, match="mend the policy"):
        await run(tmp_path, command)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
async def test_a_command_that_somebody_else_ends_says_nothing_of_the_dataset(
    tmp_path: Path, number: signal.Signals
) -> None:
    with pytest.raises(CheckInterrupted, match=f"signal {number.value}"):
        await run(tmp_path, python(f"import os; os.kill(os.getpid(), {number.value})"))


async def test_a_command_that_crashes_fails(tmp_path: Path) -> None:
    verdict = await run(tmp_path, python("import os, signal; os.kill(os.getpid(), signal.SIGSEGV)"))
    assert verdict.reason.startswith("the check was ended by signal 11")


async def test_a_node_that_is_killed_leaves_no_command_running(tmp_path: Path) -> None:
    command = python(f"import time; {str(tmp_path)!r}; time.sleep(1000)")
    code = (
        "import asyncio, sys\nfrom pathlib import Path\nfrom fedstac.replication import checking\n"
        f"asyncio.run(checking.check({command!r}, folder=Path('/'), collection='c', dataset='d', files=(), seconds=60))"
    )
    node = await asyncio.create_subprocess_exec(sys.executable, "-c", code)
    try:

        async def is_running() -> bool:
            return any(pid != node.pid for pid in processes_naming(f"{str(tmp_path)!r}; time.sleep"))

        await until(is_running)
    finally:
        node.kill()
        await node.wait()

    async def all_gone() -> bool:
        return not processes_naming(str(tmp_path))

    assert await until(all_gone)
