"""`fedstac demo` as its user meets it: a command, a terminal's Ctrl-C, an exit code."""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
import stat
import subprocess
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import httpx
import orjson
import pytest

from fedstac.demo import kafka, sample
from fedstac.demo.brokers import BrokerMissing
from fedstac.messaging.sinks import SinkTarget, open_sink
from tests.scenarios.demonstrations import ENVIRONMENT, ITEMS, Demo, command, demo
from tests.scenarios.watching import wait_until
from tests.support.forking import Forks
from tests.support.places import SHARED
from tests.support.waiting import PATIENCE

pytestmark = [pytest.mark.xdist_group("demo"), pytest.mark.long]


def test_ctrl_c_ends_everything(folder: Path) -> None:
    with demo(folder, ignores_interrupts=True) as running:  # as a shell starts it in the background
        assert running.about.keys() == {"api", "index", "dsn", "issuer", "tokens", "console"}
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
            timeout=PATIENCE,
        )
        assert second.returncode == 5
        assert f"runs on {running.data}: stop it" in second.stderr
        assert "Traceback" not in second.stderr
        running.process.send_signal(signal.SIGINT)
        assert running.process.wait(PATIENCE) == 0, running.output.read_text()
        assert running.left() == {}
        assert not running.sockets.exists()
        assert not (folder / "ready").exists()
        assert "Traceback" not in running.output.read_text()


BROKER = ("--broker", "nats")
Check = Callable[..., tuple[int, dict[str, Any]]]


def test_kill_9_leaves_nothing_running_and_the_next_start_publishes_nothing_again(
    folder: Path, command_forks: Forks
) -> None:
    """The next start says that it uses the data again, and the stream; a start with --fresh throws both away."""
    with demo(folder, options=BROKER) as first:
        events = first.announced()
        assert first.about["stream"].startswith("nats://127.0.0.1:")
        assert first.matched("stream_index") == ITEMS
        first.process.kill()
        first.process.wait()
        wait_until(lambda: not first.left(), what="everything has ended with its parent")
    with demo(folder, options=BROKER, program=command_forks.program) as second:
        assert second.matched() == ITEMS
        assert second.announced() == events
        wait_until(lambda: second.sent() == events, what="the relay knows where the stream ends")
        assert stored_positions(second.about["stream"]) == [*range(1, events + 1)]
        assert f"reusing the data in {second.data} (made by fedstac " in second.output.read_text()
        second.process.send_signal(signal.SIGTERM)
        assert second.process.wait(PATIENCE) == 0, second.output.read_text()
        assert second.left() == {}
    with demo(folder, 3, options=("--fresh", *BROKER), program=command_forks.program) as third:
        assert "reusing" not in third.output.read_text()
        assert (third.matched(), third.matched("stream_index")) == (3, 3)
        assert stored_positions(third.about["stream"]) == [*range(1, third.announced() + 1)]


REPLICA = ("--replica",)


def test_a_replica_node_has_its_copies_again_and_its_end_is_told(folder: Path, command_forks: Forks) -> None:
    """The demonstration is killed, started with the data of before, and ends with its replica node."""
    own = folder / "with-replica"
    own.mkdir()
    copies = own / "demo" / "replica" / "replica"
    with demo(own, 40, options=REPLICA, program=command_forks.program) as first:
        before = {path: path.stat().st_ino for path in copies.rglob("*.nc")}
        assert len(before) > 24
        assert all(first.shows_copy(path.relative_to(copies)) for path in before)
        first.process.kill()
        first.process.wait()
        wait_until(lambda: not first.left(), what="everything has ended with its parent")
    with demo(own, 40, options=REPLICA, program=command_forks.program) as second:
        assert {path: path.stat().st_ino for path in copies.rglob("*.nc")} == before, "nothing is copied again"
        assert second.about["replica"] == first.about["replica"], "addresses are parts of datasets"
        assert second.matched() == 40
        [pid] = [pid for pid, words in second.left().items() if "replica-node" in words]
        os.kill(pid, signal.SIGKILL)
        assert second.process.wait(PATIENCE) == 5
        assert "replica ended with -9; it logged last:" in second.output.read_text()
        assert second.left() == {}


def stored_positions(stream: str) -> list[int]:
    """Return the positions of the events in a stream, in its order."""

    async def read() -> list[int]:
        async with open_sink(SinkTarget("west", "test", stream)) as sink:
            return [event.cursor.pos async for event in sink.stored_events()]

    return asyncio.run(read())


class Terminal:
    """Somebody with a home of their own, who uses the command line at a demonstration."""

    def __init__(self, home: Path, running: Demo, program: Sequence[str]) -> None:
        self.home, self._program = home, program
        self._environment = {
            **ENVIRONMENT, "HOME": str(home), "XDG_CONFIG_HOME": str(home), "XDG_STATE_HOME": str(home),
            "FEDSTAC_URL": running.about["api"], "PYTHON_KEYRING_BACKEND": "keyring.backends.null.Keyring",
        }  # fmt: skip

    def begin(self, *arguments: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [*self._program, *arguments], env=self._environment, cwd=self.home, text=True,
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        )  # fmt: skip

    def run(self, *arguments: str) -> tuple[int, str, str]:
        with self.begin(*arguments) as process:
            out, err = process.communicate(timeout=PATIENCE)
        return process.returncode, out, err

    def log_in(self, button: str) -> str:
        """Run `fedstac login`, and press a button on the page that it names. Return its output."""
        with self.begin("login", "--no-browser") as process:
            assert process.stderr is not None
            page = process.stderr.readline().removeprefix("open ").strip()
            code = process.stderr.readline().removeprefix("and confirm the code ").strip()
            assert page.startswith("http://"), page
            shown = httpx.get(page, trust_env=False).text
            assert code in shown
            [subject] = re.findall(rf'<button name="subject" value="(\w*)">{button}</button>', shown)
            assert httpx.post(page, data={"subject": subject}, trust_env=False).is_success
            out, err = process.communicate(timeout=PATIENCE)
            assert process.returncode == (0 if subject else 4), err
            return out + err


def test_log_in_publish_and_log_out(folder: Path, tmp_path: Path, command_forks: Forks) -> None:
    ours = [item for item in sample.items(400, start=ITEMS) if item["properties"]["cmip6:institution_id"] == "NCAR"]
    for n, item in enumerate(ours[:2]):
        (tmp_path / f"{n}.json").write_bytes(orjson.dumps(item))
    (own := folder / "logins").mkdir()
    with demo(own, program=command_forks.program) as running:
        terminal = Terminal(tmp_path, running, command_forks.program)
        assert "you refused" in terminal.log_in("Refuse")
        assert "as Nina of NCAR" in terminal.log_in("Nina of NCAR")
        [kept] = (tmp_path / "fedstac").glob("*.json")
        assert stat.S_IMODE(kept.stat().st_mode) == 0o600

        code, out, _ = terminal.run("whoami", "-o", "json")
        me = json.loads(out)
        assert (code, me["issuer"], me["subject"], me["roles"]) == (0, running.about["issuer"], "nina", [])
        assert terminal.run("publish", "0.json", "--wait")[:2] == (0, "published 1 of 1 item in 1 request\n")
        wait_until(lambda: running.matched() == ITEMS + 1, what="east shows it")
        code, out, err = terminal.run("logout")
        assert (code, out, err) == (0, f"logged out of {running.about['api']}\n", "")
        assert not kept.exists()
        assert terminal.run("whoami")[0] == 4

        assert "as Sam Stranger" in terminal.log_in("Sam Stranger")
        code, _, err = terminal.run("publish", "1.json")
        assert (code, "may not publish" in err) == (4, True), err
        assert "as Ada Admin" in terminal.log_in("Ada Admin")
        assert json.loads(terminal.run("whoami", "-o", "json")[1])["roles"] == ["admin"]
        assert terminal.run("publish", "1.json", "--wait")[0] == 0


@pytest.fixture
def check(command_forks: Forks) -> Check:
    """Runs a demonstration that checks itself; its exit code and report."""

    def run_check(*arguments: object) -> tuple[int, dict[str, Any]]:
        done = subprocess.run(
            command("--check", "--output", "json", *arguments, program=command_forks.program),
            env=ENVIRONMENT, capture_output=True, text=True, timeout=900,
        )  # fmt: skip
        assert done.stdout, done.stderr
        assert "Traceback" not in done.stderr, done.stderr
        return done.returncode, json.loads(done.stdout)

    return run_check


def test_a_check_accounts_for_every_item(check: Check) -> None:
    code, report = check("--items", 600)
    assert report.pop("seconds") > 0
    assert report.pop("rate") > 0
    assert report == {
        "submitted": 600, "published": 600, "unchanged": 0, "rejected": 0, "failed": 0, "unaccounted": 0,
        "visible": {"east": 600, "south": 600}, "differences": {"east": 0, "south": 0},
        "broker": {}, "violations": [], "ok": True,
    }  # fmt: skip
    assert code == 0


def test_a_check_reads_every_copy_loads_beside_services_and_leads_a_deletion_to_its_end(check: Check) -> None:
    code, report = check("--items", 60, *REPLICA, "--services", "--deletion")
    assert report["services"] == {
        "loaded": 50, "deleted": 20, "grants_closed": 20, "subscriptions": 20, "agree": True,
    }  # fmt: skip
    assert report["deletion"] == {"marked": 20, "acknowledged": 60, "waived": 20, "deleted": 20, "purged": 20}
    figures = report["replica"]
    assert (figures["datasets"], figures["announced"]) == (24, 24)
    assert figures["files"] == figures["verified"] > 24
    assert figures["bytes"] > figures["files"] * 8192
    assert (code, report["ok"], report["published"], report["visible"]) == (0, True, 60, {"east": 60, "south": 60})


def test_a_check_counts_what_is_refused_and_fails_if_it_is_not_what_is_expected(
    folder: Path, tmp_path: Path, check: Check
) -> None:
    items = list(sample.items(30))
    del items[7]["properties"]
    items[11]["id"] = "CMIP6.of.no.form"
    lines = tmp_path / "items.ndjson"
    lines.write_bytes(b"\n".join(orjson.dumps(item) for item in items))
    code, report = check("--data-dir", folder / "checks", "--input", lines, "--expect-rejected", 3, *BROKER)
    assert (code, report["ok"], report["submitted"], report["published"], report["rejected"]) == (1, False, 30, 28, 2)
    assert report["broker"].pop("stored") > 28  # the collection and superseded versions are events too
    assert report["broker"] == {"missing": 0, "doubled": 0}
    assert report["visible"] == {"east": 28, "south": 28}


@pytest.mark.shared
@pytest.mark.kafka
def test_a_check_accounts_for_real_dataset_names(folder: Path, check: Check) -> None:
    try:
        kafka.install()
    except BrokerMissing as error:
        pytest.skip(str(error))
    lines = SHARED / "data" / "cmip6" / "west-items.ndjson.gz"
    code, report = check(
        "--data-dir", folder / "checks", "--input", lines, "--expect-rejected", 11, "--broker", "kafka"
    )
    assert (report["broker"]["missing"], report["broker"]["doubled"]) == (0, 0)
    assert report["submitted"] == 1987
    assert (report["published"] + report["unchanged"], report["rejected"]) == (1976, 11)  # domain/test_west_items.py
    assert (report["unaccounted"], report["failed"], report["violations"]) == (0, 0, [])
    assert set(report["differences"].values()) == {0}
    assert code == 0
