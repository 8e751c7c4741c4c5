"""A file server for demonstrations and tests: the files below a folder over HTTP, on loopback, with ranges and HEAD.

Names that begin with a dot are nobody's: half-copied files lie there. No path leads out of the folder, also not by a
symbolic link.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import uvicorn
from starlette.applications import Starlette
from starlette.staticfiles import StaticFiles

from fedstac.workers import processes


class ServedFolder(StaticFiles):
    """The files of a folder, but for hidden ones. There are no listings."""

    def lookup_path(self, path: str) -> tuple[str, os.stat_result | None]:
        """Return where a path of an address is; nothing where a part of it is hidden."""
        if any(part.startswith(".") for part in Path(path).parts):
            return "", None
        return super().lookup_path(path)


def application(folder: Path) -> Starlette:
    app = Starlette()
    app.mount("/", ServedFolder(directory=folder))
    return app


def serve(folder: Path, *, port: int, on_ready: Callable[[str], object]) -> None:
    """Serve a folder until SIGTERM or SIGINT; `on_ready` gets the address once it takes connections."""
    listening = processes.listen("127.0.0.1", port)
    config = uvicorn.Config(application(folder), lifespan="off", log_config=None, access_log=False)
    on_ready(f"http://127.0.0.1:{listening.getsockname()[1]}")
    uvicorn.Server(config).run([listening])
