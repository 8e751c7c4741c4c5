"""Where things are: the repository, and what lies beside it."""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path

MEMORY = Path("/dev/shm")
LEAST_MEMORY = 6 << 30  # bytes: what two processes of the suite have in files at the most, three times
REPOSITORY = Path(__file__).resolve().parents[2]
SHARED = REPOSITORY.parent / "shared"


def use_memory_for_temporary_files() -> None:
    """Let temporary files live in memory where there is room: a database is copied there in a tenth of the time.

    A TMPDIR that somebody chose stays.
    """
    if "TMPDIR" not in os.environ and MEMORY.is_dir() and shutil.disk_usage(MEMORY).free >= LEAST_MEMORY:
        os.environ["TMPDIR"] = str(MEMORY)
        tempfile.tempdir = None  # it is chosen anew
