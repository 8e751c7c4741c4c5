"""Containers of the image that `make image` builds: with buildah in a chroot, without a daemon."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.support.places import REPOSITORY

IMAGE = "fedstac"
BUILD = REPOSITORY / "tools" / "image"
SCRIPT = "/opt/fedstac/bin/fedstac"  # with which its processes run
ENVIRONMENT = {"BUILDAH_ISOLATION": "chroot", "STORAGE_DRIVER": "vfs"}


def buildah(*arguments: str) -> str:
    """Run buildah and return what it says."""
    command = ["buildah", *arguments]
    done = subprocess.run(command, env={**os.environ, **ENVIRONMENT}, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{' '.join(command)}: {done.stderr}"
    return done.stdout.strip()


def is_built() -> bool:
    """Return whether there is an image of this checkout as it is."""
    if shutil.which("buildah") is None or os.geteuid() != 0:
        return False
    command = ["buildah", "inspect", "--type", "image", IMAGE]
    done = subprocess.run(command, env={**os.environ, **ENVIRONMENT}, capture_output=True, text=True, check=False)
    return done.returncode == 0 and (config_in(done.stdout)["Labels"] or {}).get("fedstac.inputs") == fingerprint()


def config_in(inspected: str) -> dict[str, Any]:
    """Return how an image, or a container of it, is to be run."""
    return dict(json.loads(inspected)["Docker"]["config"])


def fingerprint() -> str:
    """Return what `make image` would label an image of this checkout with."""
    return subprocess.run([BUILD, "--fingerprint"], capture_output=True, text=True, check=True).stdout.strip()


@dataclass(frozen=True)
class Container:
    """A file system of the image, in which commands run with the user and the variables of the image."""

    name: str
    config: Mapping[str, Any]

    def run(self, *command: str, **variables: str) -> subprocess.CompletedProcess[str]:
        """Run a command to its end."""
        return subprocess.run(
            self._command(*command, **variables), env={**os.environ, **ENVIRONMENT}, capture_output=True, text=True,
            check=False,
        )  # fmt: skip

    @contextmanager
    def running(self, *command: str, log: Path, **variables: str) -> Iterator[None]:
        """Run a command while the block runs; end it with SIGTERM, after which it stops in order."""
        with log.open("ab") as output:
            process = subprocess.Popen(
                self._command(*command, **variables), env={**os.environ, **ENVIRONMENT}, stdout=output, stderr=output
            )
        try:
            yield
        finally:
            pids = _of_command(process.pid)
            for pid in pids:
                os.kill(pid, signal.SIGTERM)
            code = process.wait(20)
        assert pids
        text = log.read_text()
        assert '"stopping"' in text
        assert code == 0 or "subprocess exited on terminated" in text, text[-2000:]  # by the signal, when it is done

    def _command(self, *command: str, **variables: str) -> list[str]:
        environment = [f"--env={name}={value}" for name, value in variables.items()]
        return ["buildah", "run", *environment, self.name, "--", *command]


def _of_command(ancestor: int) -> list[int]:
    """Return the processes of fedstac below a process of buildah."""
    parents: dict[int, int] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                stat = (entry / "stat").read_text()
            except OSError:  # it has ended
                continue
            parents[int(entry.name)] = int(stat.rpartition(")")[2].split()[1])

    def is_below(pid: int) -> bool:
        while pid in parents and pid != ancestor:
            pid = parents[pid]
        return pid == ancestor

    return [pid for pid in parents if is_below(pid) and _is_ours(_command_line(pid))]


def _is_ours(command: list[str]) -> bool:
    """Return whether this is Python with our script, and not what buildah started that with."""
    return SCRIPT in command and "python" in command[0]


def _command_line(pid: int) -> list[str]:
    try:
        return Path(f"/proc/{pid}/cmdline").read_text().split("\0")
    except OSError:
        return []


@contextmanager
def container() -> Iterator[Container]:
    """Yield a container of the image; it goes with the context."""
    name = buildah("from", "--pull-never", IMAGE)
    try:
        yield Container(name, config_in(buildah("inspect", name)))
    finally:
        buildah("rm", name)
