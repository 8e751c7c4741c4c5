"""`fedstac check-downloads` and `fedstac history --events` against a real node."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from fedstac.cli import download_check
from tests.support.clients import ID, ITEM, newer
from tests.support.commands import Fedstac, to
from tests.support.nodes import Api

NEWER = newer(ITEM)["id"]
UNKNOWN = ID[:-8] + "20010101"


def test_paths_tell_datasets() -> None:
    parts = ("/", "data", *ID.split("."))
    assert download_check.id_of(parts) == ID
    assert download_check.id_of(("/", "data", ID)) == ID
    assert download_check.id_of(parts[:-1]) is None
    assert download_check.id_of(("/",)) is None


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder as downloads leave it: two datasets by their paths, and one that nobody can name."""
    for path in (ID.replace(".", "/"), UNKNOWN, "flat"):
        (tmp_path / "data" / path).mkdir(parents=True)
        (tmp_path / "data" / path / "psl.nc").touch()
    return tmp_path / "data"


async def test_retracted_downloads_are_found(west: Api, fedstac: Fedstac, folder: Path) -> None:
    fine = await fedstac("check-downloads", str(folder), **to(west))
    assert fine.code == 0
    assert "2 datasets: 0 retracted, 1 unknown here, 1 with a newer version" in fine.stdout
    assert f"{folder}/flat: its name stands for no dataset" in fine.stderr
    reasons = ("--reason", "wrong forcing", "--replaced-by", NEWER)
    assert (await fedstac("retract", ID, *reasons, **to(west))).code == 0
    found = await fedstac("check-downloads", str(folder), **to(west))
    assert found.code == 1
    assert f"retracted  {ID}" in found.stdout
    assert "retracted: wrong forcing" in found.stdout
    assert f"use instead: {NEWER}" in found.stdout
    assert UNKNOWN not in found.stdout
    piped = await fedstac(
        "check-downloads", "--ids", "-", "-o", "ndjson", stdin=f"{NEWER}\n{ID}\n".encode(), **to(west)
    )
    assert piped.code == 1
    assert [(line["id"], line["state"]) for line in piped.lines] == [(NEWER, "published"), (ID, "retracted")]
    assert (await fedstac("check-downloads", NEWER, UNKNOWN, **to(west))).code == 0
    assert (await fedstac("check-downloads", **to(west))).code == 2


async def test_the_events_of_a_dataset_are_listed(west: Api, fedstac: Fedstac) -> None:
    assert (await fedstac("retract", ID, "--reason", "wrong forcing", **to(west))).code == 0
    shown = await fedstac("history", ID, "--events", **to(west))
    assert shown.code == 0
    assert shown.stdout.splitlines()[1].split()[1:] == ["retracted", "retracted", "admin", ID]
    assert "retracted: wrong forcing" in shown.stdout
    events = json.loads((await fedstac("history", ID, "--events", "-o", "json", **to(west))).stdout)
    assert next(event["type"] for event in events if event["id"] == ID) == "retracted"
    assert (await fedstac("history", UNKNOWN, "--events", **to(west))).code == 3
