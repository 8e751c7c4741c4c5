"""Dapr's sidecar for the tests of a checkout: built once from its Go modules, and run beside an application.

The versions are in docker/daprd/go.mod, the digests of all modules in go.sum beside it. It has two pub/sub components.
"""

from __future__ import annotations

import hashlib
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from http.client import HTTPConnection, HTTPException
from pathlib import Path

import orjson
from filelock import FileLock

from fedstac import settings
from fedstac.demo.brokers import BrokerMissing, BrokerProcess, free_port, start_on_port

PROGRAM = "daprd"
SOURCES = ("main.go", "go.mod", "go.sum")
BUILD_SECONDS = 3600
LARGEST_BODY = "16Mi"
PUBSUB = "pubsub"  # the name of the component


@dataclass(frozen=True, slots=True)
class Component:
    """A pub/sub component, as its file has it."""

    type: str  # pubsub.in-memory, pubsub.kafka
    metadata: Mapping[str, str]
    name: str = PUBSUB

    def as_yaml(self) -> str:
        """Return its file; JSON is YAML."""
        return orjson.dumps({
            "apiVersion": "dapr.io/v1alpha1", "kind": "Component", "metadata": {"name": self.name},
            "spec": {
                "type": self.type, "version": "v1",
                "metadata": [{"name": name, "value": value} for name, value in self.metadata.items()],
            },
        }).decode()  # fmt: skip


IN_MEMORY = Component("pubsub.in-memory", {})


def kafka_component(brokers: str, *, group: str) -> Component:
    """Return the component of a Kafka broker; its consumer group reads topics from their beginning."""
    return Component(
        "pubsub.kafka",
        {"brokers": brokers, "authType": "none", "consumerGroup": group, "initialOffset": "oldest",
         "consumeRetryInterval": "200ms", "maxMessageBytes": "1048576", "version": "2.5.0"},
    )  # fmt: skip


@dataclass(slots=True)
class Sidecar:
    """A sidecar that runs."""

    process: BrokerProcess

    @property
    def url(self) -> str:
        """The address of its API."""
        return f"http://127.0.0.1:{self.process.port}"


def is_built() -> bool:
    """Return whether daprd is here."""
    return (_folder() / PROGRAM).is_file()


def build(progress: Callable[[str], None]) -> Path:
    """Return the path of daprd, and build it if it is not there. BrokerMissing where there is no Go, or it fails."""
    folder = _folder()
    folder.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(folder.with_name(f"{folder.name}.lock")):
        if (folder / PROGRAM).is_file():
            return folder / PROGRAM
        go = shutil.which("go") or shutil.which("go", path="/usr/local/go/bin")
        if go is None:
            raise BrokerMissing("daprd is built with Go 1.22 or newer, and there is no go: apt-get install golang-go")
        progress("building daprd from its Go modules (some minutes, once)")
        with tempfile.TemporaryDirectory(prefix="daprd-", dir=folder.parent) as unfinished:
            product = Path(unfinished) / folder.name / PROGRAM
            product.parent.mkdir()
            command = [
                go, "build", "-mod=readonly", "-buildvcs=false", "-trimpath", "-ldflags=-s -w", "-o", str(product), ".",
            ]  # fmt: skip
            result = subprocess.run(
                command, cwd=_sources(), stdin=subprocess.DEVNULL,
                capture_output=True, text=True, timeout=BUILD_SECONDS, check=False,
            )  # fmt: skip
            if result.returncode != 0:
                raise BrokerMissing("\n".join(["Go could not build daprd:", *result.stderr.splitlines()[-5:]]))
            product.parent.rename(folder)
    return folder / PROGRAM


@contextmanager
def sidecar(
    folder: Path, components: Sequence[Component], *, app_port: int | None = None, api_token: str = "",
    app_token: str = "",
) -> Iterator[Sidecar]:  # fmt: skip
    """Yield a sidecar that answers, beside the application at a port. BrokerMissing where daprd was not built.

    It works once `is_healthy`: until then it may wait for the application, which may be in this very thread.
    api_token: what it asks of those who call it. app_token: what it shows to the application.
    """
    daprd = _folder() / PROGRAM
    if not daprd.is_file():
        raise BrokerMissing(f"there is no {daprd}: `make dapr` builds it, in some minutes")
    resources = folder / "components"
    resources.mkdir(parents=True, exist_ok=True)
    for each in components:
        (resources / f"{each.name}.yaml").write_text(each.as_yaml())
    tokens = [f"DAPR_API_TOKEN={api_token}"] * bool(api_token) + [f"APP_API_TOKEN={app_token}"] * bool(app_token)

    def at(port: int) -> BrokerProcess:
        command = (
            "/usr/bin/env", *tokens, str(daprd), "--app-id", "fedstac", "--resources-path", str(resources),
            "--dapr-http-port", str(port), "--dapr-grpc-port", str(free_port()),
            "--dapr-internal-grpc-port", str(free_port()), "--dapr-listen-addresses", "127.0.0.1",
            "--dapr-internal-grpc-listen-address", "127.0.0.1", "--max-body-size", LARGEST_BODY,
            "--enable-metrics=false", "--dapr-graceful-shutdown-seconds", "1",
            *(("--app-port", str(app_port), "--app-channel-address", "127.0.0.1") if app_port else ()),
        )  # fmt: skip
        return BrokerProcess(
            "the Dapr sidecar", command, folder / "daprd.log", port, lambda: _status_of(port) is not None
        )

    process = start_on_port(at)
    try:
        yield Sidecar(process)
    finally:
        process.stop()


def is_healthy(port: int) -> bool:
    """Return whether a sidecar works: it has its components, and has asked its application for subscriptions."""
    return _status_of(port) == 204


def _status_of(port: int) -> int | None:
    """Return what a sidecar answers that is asked for its health; None where nobody answers."""
    connection = HTTPConnection("127.0.0.1", port, timeout=1)
    try:
        connection.request("GET", "/v1.0/healthz")
        return connection.getresponse().status
    except (OSError, HTTPException):
        return None
    finally:
        connection.close()


def _folder() -> Path:
    """Return where the program of these sources is kept, for all checkouts of a user."""
    digest = hashlib.sha256(b"".join((_sources() / name).read_bytes() for name in SOURCES))
    return settings.data_folder() / f"daprd-{digest.hexdigest()[:12]}"


def _sources() -> Path:
    return settings.folder("docker/daprd")
