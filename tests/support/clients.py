"""The Python client beside a running node, and a dataset for it."""

from __future__ import annotations

import asyncio
import copy
import json
from collections.abc import Callable
from typing import Any, TypeVar

import httpx

from fedstac.client import Client
from fedstac.demo import sample
from tests.support.nodes import Api

T = TypeVar("T")


async def with_client(api: Api, role: str, work: Callable[[Client], T]) -> T:
    """Run synchronous work beside the node, which runs in the test's loop."""

    def run() -> T:
        token = api.tokens.get(role, role)
        with Client(api.url, token, retries=1, http=httpx.Client(trust_env=False)) as client:
            return work(client)

    return await asyncio.to_thread(run)


def broken(item: dict[str, Any]) -> dict[str, Any]:
    """Return the item with a geometry that is none."""
    return {**copy.deepcopy(item), "geometry": {"type": "Point", "coordinates": ["east", "north"]}}


[ITEM] = sample.items(1)


ID = ITEM["id"]


FILES = [key for key, asset in ITEM["assets"].items() if "file:checksum" in asset]


def newer(item: dict[str, Any], version: str = "20991231") -> dict[str, Any]:
    changed: dict[str, Any] = json.loads(json.dumps(item).replace(item["properties"]["version"], version))
    return changed
