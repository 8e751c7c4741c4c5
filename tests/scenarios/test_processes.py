"""Several API processes of one node share a port: one that dies is started anew, and all end together."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import asyncpg
import httpx
import pytest

from fedstac.domain.facets import PLACES
from tests.scenarios.watching import wait_until
from tests.support.processes import children, is_running, peak_memory, serving, shared_memory
from tests.support.waiting import PATIENCE


def test_several_processes_share_a_port_and_one_that_is_killed_is_started_anew(dsn: str, tmp_path: Path) -> None:
    with serving(tmp_path, FEDSTAC_DSN=dsn, FEDSTAC_NODE="west", FEDSTAC_PORT="0") as (process, ready):
        wait_until(lambda: ready.exists() or process.poll() is not None, what="the node answers")
        url = json.loads(ready.read_text())["url"]
        members = children(process.pid)
        assert len(members) == 3
        for _ in range(20):
            assert httpx.get(f"{url}/livez").status_code < 300
        os.kill(members[1], signal.SIGKILL)
        wait_until(lambda: len(set(children(process.pid)) - set(members)) == 1, what="another process is there")
        for _ in range(20):
            assert httpx.get(f"{url}/collections").status_code == 200
        members = children(process.pid)
        process.terminate()
        assert process.wait(PATIENCE) == 0
        assert not [member for member in members if is_running(member)]


ROWS = f"""
    INSERT INTO fedstac.facet (n, collection, shown, starts, ends, updated, footprint, size, files, codes)
    SELECT n, c.key, 5, now() + n * interval '1 hour', now(), now(), 0, n, 1,
           array_fill(n % 7, ARRAY[{PLACES // 2}]) || array_fill(n % 900, ARRAY[{PLACES - PLACES // 2}])
    FROM generate_series($1::int4, $2::int4) n, pgstac.collections c"""
LOOKED = """SELECT count(*) FROM pg_stat_activity
            WHERE application_name = 'fedstac west columns' AND query_start > $1 AND state = 'idle'"""


async def _share_columns(dsn: str, folder: Path, rows: int) -> tuple[int, int]:
    """Serve from rows of codes; return the bytes of the three processes and their parent together, and of one alone."""
    conn = await asyncpg.connect(dsn)

    async def counts(url: str) -> set[int]:
        """Ask many times at once, so that all processes answer, until each has looked since."""
        since, seen = await conn.fetchval("SELECT clock_timestamp()"), set[int]()
        while await conn.fetchval(LOOKED, since) < 3:
            limits = httpx.Limits(max_keepalive_connections=0)
            async with httpx.AsyncClient(base_url=url, limits=limits, timeout=PATIENCE) as client:
                query = "/aggregate?aggregations=total_count&filter=updated%3C%3D"
                moment = f"TIMESTAMP('20{40 + len(seen)}-01-01T00:00:00Z')"
                answers = await asyncio.gather(*(client.get(query + moment) for _ in range(12)))
            seen |= {answer.json()["aggregations"][0]["value"] for answer in answers}
        return seen

    try:
        await conn.execute('SELECT pgstac.create_collection(\'{"id": "c"}\')')
        await conn.execute(ROWS, 0, rows - 1)
        with serving(folder, FEDSTAC_DSN=dsn, FEDSTAC_NODE="west", FEDSTAC_PORT="0") as (process, ready):
            await asyncio.to_thread(wait_until, lambda: ready.exists() or process.poll() is not None, what="it serves")
            url = json.loads(ready.read_text())["url"]
            assert await counts(url) == {rows}
            left = rows + 100 - len(range(7, rows + 100, 1000))
            await conn.execute(ROWS, rows, rows + 99)
            await conn.execute("UPDATE fedstac.facet SET shown = 0, changed = pg_current_xact_id() WHERE n % 1000 = 7")
            assert await counts(url) == {left}
            lines = [json.loads(line) for line in (folder / "log").read_text().splitlines()]
            assert [line["rows"] for line in lines if line["event"] == "the columns are loaded"] == [rows]
            members = children(process.pid)
            os.kill(members[1], signal.SIGKILL)
            await asyncio.to_thread(
                wait_until, lambda: len(set(children(process.pid)) - set(members)) == 1, what="another process is there"
            )
            assert await counts(url) == {left}
            assert (folder / "log").read_text().count("the columns are loaded") == 1
            members = children(process.pid)
            return sum(map(shared_memory, (process.pid, *members))), peak_memory(process.pid)
    finally:
        await conn.close()


async def test_processes_share_the_columns_and_all_see_a_change(dsn: str, tmp_path: Path) -> None:
    await _share_columns(dsn, tmp_path, 20_000)


@pytest.mark.soak
async def test_processes_do_not_cost_a_copy_of_the_columns_each(dsn: str, tmp_path: Path) -> None:
    together, alone = await _share_columns(dsn, tmp_path, 1_000_000)
    print(f"Pss of three processes and their parent {together >> 20} MB; the parent's peak {alone >> 20} MB")
    assert together < alone + 200 * 2**20


def test_what_one_process_lacks_ends_all(dsn: str, tmp_path: Path) -> None:
    variables = {"FEDSTAC_DSN": dsn, "FEDSTAC_NODE": "west", "FEDSTAC_PORT": "0", "FEDSTAC_CV_FOLDER": "/nowhere"}
    with serving(tmp_path, **variables) as (process, ready):
        assert process.wait(PATIENCE) > 0
        assert not ready.exists()
        assert not children(process.pid)


# --- the parent alone, with members that do nothing

MEMBER = """
member = processes.multiply(2)
os.write(1, f"ready {member.number}\\n".encode())  # in one piece: the other member writes there too
member.tell_ready()
"""


@contextmanager
def parent(before: str, after: str = "signal.pause()") -> Iterator[subprocess.Popen[str]]:
    """Run a script that becomes two members and their parent; what is before that, and what each does when ready."""
    script = f"import os, signal, sys\nfrom fedstac.workers import processes\n{before}{MEMBER}{after}\n"
    pipe = subprocess.PIPE
    with subprocess.Popen(
        [sys.executable, "-c", script], stdin=pipe, stdout=pipe, stderr=subprocess.STDOUT, text=True, process_group=0
    ) as process:
        try:
            yield process
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)


def read_to(process: subprocess.Popen[str], *words: str) -> list[str]:
    """Read lines until each of these words was in one; fail where the output ends before."""
    assert process.stdout
    lines: list[str] = []
    while not all(any(word in line for line in lines) for word in words):
        lines.append(process.stdout.readline())
        assert lines[-1], lines
    return lines


def test_a_child_that_is_no_member_ends_without_harm() -> None:
    with parent("if not os.fork():\n    sys.stdin.read()\n    os._exit(0)") as process:
        read_to(process, "ready 0", "ready 1")
        assert len(children(process.pid)) == 3
        assert process.stdin
        process.stdin.close()
        wait_until(lambda: len(children(process.pid)) < 3, what="the other child is gone")
        process.terminate()
        assert process.wait(PATIENCE) == 0


def test_a_member_that_ends_soon_is_started_again_after_a_pause() -> None:
    before = "class Long(processes.Backoff):\n    pause = lambda self: 1000.0\nprocesses.Backoff = Long"
    with parent(before, "signal.pause() if member.number else sys.exit(3)") as process:
        lines = read_to(process, "ready 0", "ready 1", "an api process ended")
        process.terminate()
        assert process.wait(PATIENCE) == 0
        assert process.stdout
        lines += process.stdout.readlines()
        assert [line.split() for line in lines].count(["ready", "0"]) == 1


def test_a_member_that_does_not_end_is_killed() -> None:
    with parent("processes.END_SECONDS = 0.1", "signal.signal(15, signal.SIG_IGN)\nos.write(1, b'deaf\\n')\n"
                "while True:\n    signal.pause()") as process:  # fmt: skip
        read_to(process, "ready 0", "ready 1", "deaf")
        process.terminate()
        assert process.wait(PATIENCE) == 0
        assert not children(process.pid)
