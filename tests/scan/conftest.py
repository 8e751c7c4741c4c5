"""A site whose root is a folder of the test."""

from __future__ import annotations

from pathlib import Path

import pytest

from fedstac.scan.site import Site
from tests.scan.files import site_of


@pytest.fixture
def root(tmp_path: Path) -> Path:
    folder = tmp_path / "archive"
    folder.mkdir()
    return folder


@pytest.fixture
def here(root: Path) -> Site:
    return site_of(root)
