"""A new operator goes through docs/operations.md from nothing to two nodes on a Kafka broker: every command runs."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import orjson
import pytest

from fedstac.demo import embedded, kafka, sample
from fedstac.demo.brokers import BrokerMissing, free_port
from tests.docs.shell import FIRST_FEDERATION, REPOSITORY, commands

PAGE = REPOSITORY / "docs/operations.md"
INSTALLING = ("sudo ", "python3 -m venv", "/opt/fedstac/bin/", "export PATH=")  # test_install.py installs the wheel
SERVING = re.compile(r"env \$\(cat (west|east)\.env\) fedstac (serve|index-node)$|java .* kafka\.Kafka ")
SECONDS = 240

pytestmark = [pytest.mark.long, pytest.mark.kafka]


@dataclass(frozen=True)
class Machine:
    """A folder, a PostgreSQL whose superuser we are, and ports that nobody has."""

    folder: Path
    cluster: embedded.Cluster
    jars: Path
    ports: dict[str, int]  # by those in the page

    def as_run(self, text: str) -> str:
        """Return a command with the ports and folders of this machine."""
        for there, here in {
            "@localhost/": f"@127.0.0.1:{self.cluster.port}/",
            "/opt/kafka/libs": str(self.jars),
            "/var/tmp/kafka": str(self.folder / "kafka"),
            **{f":{port}": f":{own}" for port, own in self.ports.items()},
            **{f"PORT={port}": f"PORT={own}" for port, own in self.ports.items()},
        }.items():
            text = text.replace(there, here)
        return text

    def script(self) -> str:
        """Return the section as one script that ends with the first command that fails."""
        lines = ["set -euo pipefail", "trap 'kill $(jobs -p) 2>/dev/null; wait' EXIT"]
        for command in commands(PAGE):
            if command.section != FIRST_FEDERATION or command.text.startswith(INSTALLING):
                continue
            text = self.as_run(command.text)
            lines.append(f"echo '>>> {command.line}' >&2")
            serving = SERVING.match(command.text)
            if serving is None:
                lines.append(text)
                continue
            port = self.ports[{"west": "8080", "east": "8081", None: "9092"}[serving[1]]]
            lines.append(
                f"{text} >>server-{port}.log 2>&1 &\n"
                f"until (exec 3<>/dev/tcp/127.0.0.1/{port}) 2>/dev/null; do kill -0 $!; sleep 0.05; done"
            )
        return "\n".join([*lines, ""])


@pytest.fixture
def machine() -> Iterator[Machine]:
    try:
        jars = kafka.install()
    except BrokerMissing as error:
        pytest.skip(str(error))
    folder = Path(tempfile.mkdtemp(prefix="fedstac-first-"))
    folder.chmod(0o755)
    (folder / "work").mkdir()
    try:
        with embedded.cluster(folder / "pg") as cluster:
            yield Machine(folder, cluster, jars, {port: free_port() for port in ("9092", "9093", "8080", "8081")})
    finally:
        shutil.rmtree(folder)


def test_a_new_operator_goes_from_nothing_to_two_nodes_on_a_kafka_broker(machine: Machine) -> None:
    items = sample.items(20, versions=1)
    (machine.folder / "work" / "items.ndjson").write_bytes(b"".join(orjson.dumps(item) + b"\n" for item in items))
    programs = (Path(sys.executable).parent, embedded.find_binaries(), os.environ["PATH"])
    environment = {
        "PATH": ":".join(map(str, programs)), "HOME": str(machine.folder), "LC_ALL": "C.UTF-8", "TERM": "dumb",
        "COLUMNS": "200", "PGHOST": str(machine.cluster.socket_dir), "PGPORT": str(machine.cluster.port),
        "PGUSER": "postgres", "JAVA_TOOL_OPTIONS": " ".join(kafka.JVM),
    }  # fmt: skip
    process = subprocess.Popen(
        ["bash", "-c", machine.script()], cwd=machine.folder / "work", env=environment, stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT, text=True, process_group=0,
    )  # fmt: skip
    try:
        output, _ = process.communicate(timeout=SECONDS)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        output, _ = process.communicate()
    logs = "".join(path.read_text()[-1500:] for path in (machine.folder / "work").glob("server-*.log"))
    assert process.returncode == 0, f"{output[-3000:]}\n{logs}"
    for sentence in ("all is well", "0 differences", "0 faults"):
        assert sentence in output, output[-3000:]
