"""From files to a search: `fedstac scan`, `publish` and `search`, against a node that runs."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.scan.files import FIXED, HINDCAST, amon, centres, drs, ocean
from tests.support.commands import Fedstac
from tests.support.nodes import Api


@pytest.mark.long
async def test_what_is_scanned_is_published_and_found(api: Api, fedstac: Fedstac, root: Path, tmp_path: Path) -> None:
    amon(1850, 1899).write(drs(root))
    amon(1900, 1949).write(drs(root))
    amon(1950, 1950).write(drs(root, "20200101"))  # a newer version
    ocean().write(root / "ocean/v20190308")
    FIXED.write(root / "fixed/v20190308")
    hindcast = "tas_Amon_EC-Earth3_dcppA-hindcast_s1960-r2i1p1f1_gr_196102-196103.nc"
    replace(HINDCAST, name=hindcast).write(root / "dcpp/v20190308")
    pacific: dict[str, Any] = {"latitudes": centres(-20, 0, 5), "longitudes": centres(160, 200, 8)}
    amon(member="r9i1p1f1", **pacific, latitude_edges=None, longitude_edges=None).write(drs(root, member="r9i1p1f1"))
    state = str(tmp_path / "state.sqlite")
    node = ("--node", "esgf.example.org", "--base-url", "https://esgf.example.org/data", "--state", state)
    made = await fedstac("scan", str(root), *node, "--out", "items.ndjson")
    assert made.code == 0, made.stderr
    server = {"FEDSTAC_URL": api.url, "FEDSTAC_TOKEN": api.tokens["admin"]}
    published = await fedstac("publish", "items.ndjson", **server)
    assert published.stdout == "published 6 of 6 items in 1 request\n"

    async def found(*arguments: str) -> set[str]:
        done = await fedstac("search", "-c", "CMIP6", *arguments, "-o", "ndjson", FEDSTAC_URL=api.url)
        assert done.code == 0, done.stderr
        return {line["id"].removeprefix("CMIP6.") for line in done.lines}

    monthly = "CMIP.NCAR.CESM2.historical.r1i1p1f1.Amon.tas.gn"
    sea = "CMIP.NCAR.CESM2.historical.r1i1p1f1.Omon.tos.gn.v20190308"
    fixed = "CMIP.NCAR.CESM2.historical.r1i1p1f1.fx.areacella.gn.v20190308"
    island = "CMIP.NCAR.CESM2.historical.r9i1p1f1.Amon.tas.gn.v20190308"
    start = "DCPP.EC-Earth-Consortium.EC-Earth3.dcppA-hindcast.s1960-r2i1p1f1.Amon.tas.gr.v20190308"
    assert await found() == {f"{monthly}.v20190308", f"{monthly}.v20200101", sea, fixed, island, start}
    assert await found("--filter", "latest = false") == {f"{monthly}.v20190308"}
    assert await found("--filter", "cmip6:sub_experiment_id = 's1960'") == {start}
    assert await found("--datetime", "1920-05-05T00:00:00Z") == {f"{monthly}.v20190308", fixed}
    assert await found("--datetime", "1949-12-31T00:00:00Z/1949-12-31T12:00:00Z") == {f"{monthly}.v20190308", fixed}
    everywhere = {f"{monthly}.v20190308", f"{monthly}.v20200101", sea, fixed, start}
    assert await found("--bbox=-175,-10,-170,-5") == everywhere | {island}
    assert await found("--bbox=0,-10,5,-5") == everywhere
    again = await fedstac("publish", "items.ndjson", **server)
    assert again.stdout == "published 0, unchanged 6 of 6 items in 1 request\n"


async def test_two_version_folders_are_published_with_a_warning(api: Api, fedstac: Fedstac, root: Path) -> None:
    """One run's files lie in two versions' folders: both are published, and each step says what is odd."""
    for year in (1850, 1851, 1852):
        amon(year, year).write(drs(root, "20180912"))
    amon(1853, 1853).write(drs(root, "20180913"))
    node = ("--node", "esgf.example.org", "--base-url", "https://esgf.example.org/data", "--state", "state.sqlite")
    made = await fedstac("scan", str(root), *node, "--out", "items.ndjson")
    assert made.code == 0
    assert "covers less of time" in made.stderr
    judged = await fedstac("validate", "items.ndjson")
    assert (judged.code, "coverage" in judged.stdout) == (0, True)
    server = {"FEDSTAC_URL": api.url, "FEDSTAC_TOKEN": api.tokens["admin"]}
    rehearsed = await fedstac("publish", "items.ndjson", "--dry-run", **server)
    assert "covers less of time" in rehearsed.stdout
    published = await fedstac("publish", "items.ndjson", **server)
    assert published.stdout == "published 2 of 2 items in 1 request\n"
    [hint] = [line for line in published.stderr.splitlines() if "with warnings" in line]
    assert hint.startswith("1 item with warnings: fedstac status ")
    results = await fedstac(*hint.partition("fedstac ")[2].split(), **server)
    assert "warning" in results.stdout
    for part in ("v20180912", "1850-01-01T00:00:00Z to 1852-12-31T23:59:59Z", "v20180913", "1853-01-01T00:00:00Z"):
        assert part in results.stdout
