"""Environments of other programs' packages that tests run, each with its lock: what does not fit our own.

An environment is made once. It stays while its lock is the same. If packages cannot be fetched, the tests that need
them are skipped; with CI set, that is a failure.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[1]
SHOWN_LINES = 3  # of what pip said last


class Unavailable(Exception):
    """The packages cannot be fetched; the message ends with the last lines of pip."""


@dataclass(frozen=True)
class Environment:
    """An environment: its folder, its lock, what is locked, and what it is, with its size.

    script: the file in tools/ that makes it.
    """

    folder: str
    lock: str
    requirements: str
    subject: str
    size: str
    script: str

    @property
    def _path(self) -> Path:
        return REPOSITORY / self.folder

    @property
    def _mark(self) -> Path:
        return self._path / ".installed"  # holds the lock that was installed

    @property
    def _lock(self) -> Path:
        return REPOSITORY / self.lock

    def pin(self) -> None:
        """Pin the newest packages that fit, for every Python and machine that it runs on."""
        silence = ("--no-header", "--no-annotate", "--no-emit-index-url", "--no-emit-find-links", "--quiet")
        command = [
            "uv",
            "pip",
            "compile",
            "--universal",
            "--python-version",
            "3.11",
            "--generate-hashes",
            *silence,
            "-",
        ]
        pins = subprocess.run(command, input=self.requirements, text=True, check=True, stdout=subprocess.PIPE).stdout
        self._lock.write_text(f"# {self.subject} for tests; made by: python tools/{self.script} --lock\n{pins}")

    def is_installed(self) -> bool:
        """Return whether the environment is there, with the packages of the lock."""
        is_there = (self._path / "bin" / "python").exists() and self._mark.is_file()
        return is_there and self._mark.read_text() == self._lock.read_text()

    def install(self) -> None:
        """Make the environment anew. Unavailable if that fails: then the next run begins anew."""
        total, began = sum(line[0].isalnum() for line in self._lock.read_text().splitlines()), time.monotonic()
        print(f"{self.subject}: installing {total} packages into {self.folder} ({self.size})", flush=True)
        subprocess.run([sys.executable, "-m", "venv", "--clear", str(self._path)], check=True)
        pip = [str(self._path / "bin" / "python"), "-m", "pip", "--disable-pip-version-check", "--no-input", "install",
               "--progress-bar", "off"]  # fmt: skip
        _run_pip([*pip, "--no-compile", "--require-hashes", "--no-deps", "-r", str(self._lock)], total)
        self._mark.write_text(self._lock.read_text())
        print(f"{self.subject}: installed in {time.monotonic() - began:.0f} s")

    def main(self) -> int:
        """Do what the command line asks for. Return the exit code."""
        if sys.argv[1:] == ["--lock"]:
            self.pin()
            return 0
        if self.is_installed():
            return 0
        try:
            self.install()
        except (Unavailable, subprocess.CalledProcessError, OSError) as error:
            print(f"{error}\n{self.subject}: cannot be installed, so the tests with it are not run", file=sys.stderr)
            return 1 if os.environ.get("CI") else 0
        return 0


def _run_pip(command: list[str], total: int) -> None:
    """Run pip, and show on a terminal how far it is."""
    output: list[str] = []
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as running:
        assert running.stdout is not None
        for line in running.stdout:
            output.append(line)
            if line.startswith("Collecting ") and sys.stdout.isatty():
                count = sum(each.startswith("Collecting ") for each in output)
                print(f"\r  {count}/{total} {line.split()[1][:40]:<40}", end="", flush=True)
    if sys.stdout.isatty():
        print("\r" + " " * 60, end="\r")
    if running.returncode:
        raise Unavailable("".join(output[-SHOWN_LINES:]))
