"""The identity provider of the demonstration, as a process."""

from __future__ import annotations

import json
import os
import subprocess
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx

from tests.scenarios.watching import wait_until


@dataclass(frozen=True)
class DemoProvider:
    """Its address, and a client for it."""

    url: str
    http: httpx.Client


@contextmanager
def demo_provider(program: Sequence[str], replica_secrets: Mapping[str, str]) -> Iterator[DemoProvider]:
    """Run `fedstac identity-provider`, which knows these replica nodes by client id and secret.

    program: what runs fedstac.
    """
    with tempfile.TemporaryDirectory() as folder:
        ready = Path(folder) / "ready"
        command = [*program, "identity-provider", "--ready-file", str(ready)]
        environment = {**os.environ, "FEDSTAC_REPLICA_SECRETS": json.dumps(dict(replica_secrets))}
        process = subprocess.Popen(command, env=environment)
        try:
            wait_until(ready.exists, what="the provider is ready")
            with httpx.Client(trust_env=False) as http:
                yield DemoProvider(json.loads(ready.read_text())["url"], http)
        finally:
            process.terminate()
            process.wait(20)
