"""`fedstac demo` as its user meets it: a command, a terminal's Ctrl-C, an exit code."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import httpx
import orjson
import psycopg
import pytest

from fedstac import sample
from tests.conftest import SHARED
from tests.scenarios.watching import processes_of, wait_until

pytestmark = pytest.mark.xdist_group("demo")
ITEMS = 250
ENVIRONMENT = {name: value for name, value in os.environ.items() if not name.startswith(("FEDSTAC_", "PG"))}


def command(*arguments: object) -> list[str]:
    return [sys.executable, "-m", "fedstac.cli", "demo", *map(str, arguments)]


@dataclass
class Demo:
    """A demonstration under way, and what its ready file says."""

    data: Path
    output: Path
    process: subprocess.Popen[bytes]
    about: dict[str, Any] = field(default_factory=dict)

    @property
    def sockets(self) -> Path:
        return Path(parse_qs(urlsplit(self.about["dsn"]).query)["host"][0])

    def left(self) -> dict[int, str]:
        """Its processes that are still there."""
        return processes_of(str(self.data), *([self.sockets.name] if self.about else []))

    def announced(self) -> int:
        """How many events west has had."""
        with psycopg.connect(self.about["dsn"]) as conn:
            [[count]] = conn.execute("SELECT count(*) FROM fedstac.outbox").fetchall()
            return int(count)

    def matched(self) -> int:
        response = httpx.get(f"{self.about['index']}/search?limit=1", trust_env=False)
        return int(response.json()["numberMatched"])


@contextmanager
def demo(folder: Path) -> Iterator[Demo]:
    data, output, ready_file = folder / "demo", folder / "output", folder / "ready"
    arguments = command("--data-dir", data, "--items", ITEMS, "--port", 0, "--ready-file", ready_file)
    with output.open("wb") as file:
        process = subprocess.Popen(
            arguments, env=ENVIRONMENT, stdin=subprocess.DEVNULL, stdout=file, stderr=file, process_group=0
        )
    running = Demo(data, output, process)
    try:
        wait_until(lambda: ready_file.exists() or process.poll() is not None, what="the demonstration is ready")
        assert process.poll() is None, output.read_text()
        running.about = json.loads(ready_file.read_text())
        yield running
    finally:
        if process.poll() is None:
            process.kill()
        process.wait()
        ready_file.unlink(missing_ok=True)
        wait_until(lambda: not running.left(), what="nothing is left running")


def test_ctrl_c_ends_everything(folder: Path) -> None:
    with demo(folder) as running:
        assert running.about.keys() == {"api", "index", "dsn", "tokens"}
        assert running.matched() == ITEMS
        bearer = {"Authorization": f"Bearer {running.about['tokens']['node:east']}"}
        head = httpx.get(f"{running.about['api']}/events/head", headers=bearer, trust_env=False)
        assert head.json()["origin"] == "west"
        assert len(running.left()) > 5
        second = subprocess.run(
            command("--data-dir", running.data, "--port", 0),
            env=ENVIRONMENT,
            capture_output=True,
            text=True,
            timeout=60,
        )
        assert second.returncode == 5
        assert f"runs on {running.data}: stop it" in second.stderr
        assert "Traceback" not in second.stderr
        running.process.send_signal(signal.SIGINT)
        assert running.process.wait(30) == 0, running.output.read_text()
        assert running.left() == {}
        assert not running.sockets.exists()
        assert not (folder / "ready").exists()
        assert "Traceback" not in running.output.read_text()


def test_kill_9_leaves_nothing_running_and_the_next_start_publishes_nothing_again(folder: Path) -> None:
    with demo(folder) as first:
        events = first.announced()
        first.process.kill()
        first.process.wait()
        wait_until(lambda: not first.left(), what="everything has ended with its parent")
    with demo(folder) as second:
        assert second.matched() == ITEMS
        assert second.announced() == events
        second.process.send_signal(signal.SIGTERM)
        assert second.process.wait(30) == 0, second.output.read_text()
        assert second.left() == {}


def check(*arguments: object) -> tuple[int, dict[str, Any]]:
    done = subprocess.run(
        command("--check", "--output", "json", *arguments), env=ENVIRONMENT, capture_output=True, text=True, timeout=300
    )
    assert done.stdout, done.stderr
    assert "Traceback" not in done.stderr, done.stderr
    return done.returncode, json.loads(done.stdout)


def test_a_check_accounts_for_every_item() -> None:
    code, report = check("--items", 600)
    assert report.pop("seconds") > 0
    assert report.pop("rate") > 0
    assert report == {
        "submitted": 600, "published": 600, "unchanged": 0, "rejected": 0, "failed": 0, "unaccounted": 0,
        "visible": {"east": 600, "south": 600}, "differences": {"east": 0, "south": 0}, "violations": [], "ok": True,
    }  # fmt: skip
    assert code == 0


def test_a_check_that_does_not_find_what_is_expected_fails(folder: Path) -> None:
    code, report = check("--data-dir", folder / "checks", "--items", 20, "--expect-rejected", 3)
    assert (code, report["ok"], report["published"], report["rejected"]) == (1, False, 20, 0)


def test_a_check_counts_what_is_refused(folder: Path, tmp_path: Path) -> None:
    items = list(sample.items(30))
    del items[7]["properties"]
    items[11]["id"] = "CMIP6.of.no.form"
    lines = tmp_path / "items.ndjson"
    lines.write_bytes(b"\n".join(orjson.dumps(item) for item in items))
    code, report = check("--data-dir", folder / "checks", "--input", lines, "--expect-rejected", 2)
    assert (code, report["ok"], report["submitted"], report["published"], report["rejected"]) == (0, True, 30, 28, 2)


@pytest.mark.shared
def test_a_check_accounts_for_real_dataset_names(folder: Path) -> None:
    lines = SHARED / "data" / "cmip6" / "west-items.ndjson.gz"
    code, report = check("--data-dir", folder / "checks", "--input", lines, "--expect-rejected", 11)
    assert report["submitted"] == 1987
    assert (report["published"] + report["unchanged"], report["rejected"]) == (1976, 11)  # domain/test_west_items.py
    assert (report["unaccounted"], report["failed"], report["violations"]) == (0, 0, [])
    assert set(report["differences"].values()) == {0}
    assert code == 0
