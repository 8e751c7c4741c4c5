"""A site whose root is a folder of the test."""

from __future__ import annotations

from pathlib import Path

import pytest

from fedstac.scan.site import Site, site


@pytest.fixture
def root(tmp_path: Path) -> Path:
    folder = tmp_path / "archive"
    folder.mkdir()
    return folder


@pytest.fixture
def here(root: Path) -> Site:
    return site_of(root)


def site_of(root: Path) -> Site:
    urls = {"https": "https://esgf.example.org/thredds/fileServer/data/"}
    return site({"node": "esgf.example.org", "roots": [{"folder": str(root), "urls": urls}]}, "test")
