"""stac-api-validator, as it is installed, finds nothing wrong with what a node serves."""

from __future__ import annotations

import asyncio
import sys
from asyncio.subprocess import PIPE
from typing import Any

import orjson
import pytest

from fedstac.demo import sample
from tests.support.nodes import Api, StartApi
from tests.support.places import REPOSITORY, SHARED

pytestmark = pytest.mark.shared
Json = dict[str, Any]
WORLD = {"type": "Polygon", "coordinates": [[[-180, -90], [180, -90], [180, 90], [-180, 90], [-180, -90]]]}
ALL = ("core", "children", "collections", "features", "features#filter", "item-search", "item-search#filter")
EXTENSIONS = ("item-search#sort", "item-search#fields", "item-search#query")
NOT_SO = {  # a part of what the validator says, and why it is not so
    "'include': []}} response contained 'properties.label'":
        "an empty `include` is as good as none: the server chooses which members are there then, and has all",
    "'include': None}} response contained 'properties.label'": "the same",
    "'include': ['properties.label']}} response contained fewer than 5 fields":
        "what is included is there, and nothing else but the members that name the item",
    "91,180.125,92": "a box beyond the pole, made from that of the item",
    "91, 180.125, 92": "the same",
}  # fmt: skip


def scene(n: int) -> Json:
    east, north = n * 2 - 60, n - 30
    return {
        "type": "Feature", "stac_version": "1.1.0", "id": f"scene-{n:02}", "collection": "scenes",
        "geometry": {"type": "Point", "coordinates": [east, north]}, "bbox": [east, north, east, north], "links": [],
        "properties": {"datetime": f"20{n:02}-01-01T00:00:00Z", "number": n, "label": f"Label {n % 3} end",
                       "tags": ["a", "b"] if n % 2 else ["b", "c"]},
        "assets": {"data": {"href": f"https://data.example/{n}.nc", "type": "application/netcdf"}},
    }  # fmt: skip


@pytest.fixture
async def node(start_api: StartApi, dsn: str) -> Api:
    api = await start_api(dsn=dsn)
    for name, items in (("CMIP6", list(sample.items(40))), ("scenes", [scene(n) for n in range(60)])):
        assert (await api.admin.post("/collections", json=sample.collection(name))).status_code == 201
        answer = await api.admin.post(
            f"/collections/{name}/items", json={"type": "FeatureCollection", "features": items}
        )
        assert answer.json()["counts"]["done"] == len(items), answer.text
    return api


async def errors_of(api: Api, collection: str, classes: tuple[str, ...]) -> list[str]:
    """Return what the validator finds wrong, less what is not so."""
    arguments = {
        "root_url": api.url, "ccs_to_validate": classes, "collection": collection, "auth_bearer_token": None,
        "geometry": orjson.dumps(WORLD).decode(), "auth_query_parameter": None, "validate_pagination": True,
        "fields_nested_property": "properties.label", "transaction_collection": None, "headers": None,
        "open_assets_urls": False,
        "query_config": {
            "query_comparison_field": "number", "query_eq_value": 5, "query_neq_value": 5, "query_lt_value": 50,
            "query_lte_value": 50, "query_gt_value": 1, "query_gte_value": 1, "query_substring_field": "label",
            "query_starts_with_value": "Lab", "query_ends_with_value": "end", "query_contains_value": "el 1",
            "query_in_field": "tags", "query_in_values": "a,c",
        },
    }  # fmt: skip
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "tests.support.stac_api_validator", str(SHARED / "schemas"), orjson.dumps(arguments),
        stdout=PIPE, stderr=PIPE, cwd=REPOSITORY,
    )  # fmt: skip
    output, log = await process.communicate()
    assert process.returncode == 0, log.decode()
    errors: list[str] = orjson.loads(output.splitlines()[-1])["errors"]
    return [error for error in errors if not any(part in error for part in NOT_SO)]


@pytest.mark.long
async def test_it_finds_nothing_in_scenes(node: Api) -> None:
    assert await errors_of(node, "scenes", (*ALL, *EXTENSIONS)) == []


@pytest.mark.long
async def test_nor_in_a_project_of_esgf(node: Api) -> None:
    assert await errors_of(node, "CMIP6", ALL) == []  # its test of sorting needs moments, and these have intervals
