"""Where things are: the repository, and what lies beside it."""

from __future__ import annotations

from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[2]


SHARED = REPOSITORY.parent / "shared"
