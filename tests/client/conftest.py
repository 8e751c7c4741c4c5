"""What the tests of the client share: a node with a dataset in two versions."""

from __future__ import annotations

import pytest

from tests.support.clients import ITEM, newer
from tests.support.nodes import Api


@pytest.fixture
async def west(api: Api) -> Api:
    """With one dataset in two versions."""
    body = {"type": "FeatureCollection", "features": [newer(ITEM), ITEM]}
    assert (await api.admin.post("/collections/CMIP6/items", json=body)).status_code == 200
    return api
