"""One node for the whole module: what one request does to it, the next one meets."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.hostile.site import Site, site


@pytest.fixture(scope="module")
def node() -> Iterator[Site]:
    with site() as running:
        yield running
