"""A demonstration under way, as `fedstac demo` runs it: a process, its ready file, what is left of it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import httpx
import psycopg

from fedstac.demo.identity_provider import CLIENT, DEVICE
from tests.scenarios.watching import wait_until
from tests.support.processes import processes_naming

ITEMS = 250
ENVIRONMENT = {name: value for name, value in os.environ.items() if not name.startswith(("FEDSTAC_", "PG"))}


OWN_PROGRAM = (sys.executable, "-m", "fedstac.cli")


def command(*arguments: object, program: Sequence[str] = OWN_PROGRAM) -> list[str]:
    return [*program, "demo", *map(str, arguments)]


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

    @property
    def api(self) -> str:
        return str(self.about["api"])

    def admin(self, method: str, path: str) -> None:
        """Ask west for something, as its administrator."""
        bearer = {"Authorization": f"Bearer {self.about['tokens']['admin']}"}
        httpx.request(method, f"{self.api}{path}", headers=bearer, trust_env=False).raise_for_status()

    def left(self) -> dict[int, str]:
        """Return its processes that are still there."""
        return processes_naming(str(self.data), *([self.sockets.name] if self.about else []))

    def announced(self) -> int:
        """Return how many events west has had."""
        with psycopg.connect(self.about["dsn"]) as conn:
            [[count]] = conn.execute("SELECT count(*) FROM fedstac.outbox").fetchall()
            return int(count)

    def log_in(self, subject: str) -> str:
        """Return an access token of its identity provider, by a device code that somebody confirms."""
        with httpx.Client(base_url=self.about["issuer"], trust_env=False) as http:
            question = {"client_id": CLIENT, "scope": "openid"}
            begun = http.post("/device", data=question).raise_for_status().json()
            http.post(begun["verification_uri_complete"], data={"subject": subject}).raise_for_status()
            form = {"client_id": CLIENT, "grant_type": DEVICE, "device_code": begun["device_code"]}
            return str(http.post("/token", data=form).raise_for_status().json()["access_token"])

    def sent(self) -> int:
        """Return through which position the relay has sent west's events."""
        with psycopg.connect(self.about["dsn"]) as conn:
            [[pos]] = conn.execute("SELECT pos FROM fedstac.sink").fetchall()
            return int(pos)

    def shows_copy(self, path: Path) -> bool:
        """Return whether the index node shows a copy of a file at the replica node, by its path there."""
        item = httpx.get(f"{self.about['index']}/collections/CMIP6/items/{'.'.join(path.parts[:-1])}", trust_env=False)
        assets = item.json()["assets"].values()
        hrefs = [asset.get("alternate", {}).get("replica", {}).get("href") for asset in assets]
        return f"{self.about['replica']}/{path}" in hrefs

    def matched(self, node: str = "index") -> int:
        """Return how many datasets an index node finds; `stream_index` is the one that follows the broker."""
        response = httpx.get(f"{self.about[node]}/search?limit=1", trust_env=False)
        return int(response.json()["numberMatched"])


@contextmanager
def demo(
    folder: Path, items: int = ITEMS, *, program: Sequence[str] = OWN_PROGRAM, ignores_interrupts: bool = False,
    options: Sequence[str] = (),
) -> Iterator[Demo]:  # fmt: skip
    """Run until the block ends; its data stays in the folder. program: what runs fedstac."""

    def before() -> None:
        if ignores_interrupts:
            signal.signal(signal.SIGINT, signal.SIG_IGN)

    data, output, ready_file = folder / "demo", folder / "output", folder / "ready"
    arguments = command(
        "--data-dir", data, "--items", items, "--port", 0, "--ready-file", ready_file, *options, program=program
    )
    with output.open("wb") as file:
        process = subprocess.Popen(
            arguments, env=ENVIRONMENT, stdin=subprocess.DEVNULL, stdout=file, stderr=file, process_group=0,
            preexec_fn=before,
        )  # fmt: skip
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
