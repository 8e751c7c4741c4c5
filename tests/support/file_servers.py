"""A file server as a process: the one of the demonstration."""

from __future__ import annotations

import json
import os
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from tests.scenarios.watching import wait_until


@contextmanager
def file_server(program: Sequence[str], folder: Path, *, port: int = 0) -> Iterator[str]:
    """Run `fedstac file-server` on a folder, and yield its address. program: what runs fedstac."""
    with tempfile.TemporaryDirectory() as own:
        ready = Path(own) / "ready"
        command = [*program, "file-server", str(folder), "--port", str(port)]
        process = subprocess.Popen([*command, "--ready-file", str(ready)], env=os.environ)
        try:
            wait_until(lambda: ready.exists() or process.poll() is not None, what="the file server is ready")
            yield json.loads(ready.read_text())["url"]
        finally:
            process.terminate()
            process.wait(20)
