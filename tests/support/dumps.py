"""Dumps of a test's database, as a person makes them who looks for what was purged."""

from __future__ import annotations

import os
import subprocess

from fedstac.demo import embedded


def dump(cluster: embedded.Cluster, dsn: str) -> str:
    """Return a dump of a database, a line a row."""
    name = dsn.rpartition("/")[2].partition("?")[0]
    environment = {
        "PATH": f"{embedded.find_binaries()}:{os.environ['PATH']}", "PGHOST": str(cluster.socket_dir),
        "PGPORT": str(cluster.port), "PGUSER": "postgres",
    }  # fmt: skip
    done = subprocess.run(
        ["pg_dump", "--column-inserts", name], env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def lines_with(word: str, text: str) -> list[str]:
    """Return the beginnings of the lines that have a word, and what is around it."""
    return [
        f"{line[:160]} … {line[max(at - 60, 0) : at + 40]}"
        for line in text.splitlines() if (at := line.find(word)) >= 0
    ]  # fmt: skip
