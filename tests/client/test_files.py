"""`fedstac files` and `fedstac get`: from datasets to their files, in the forms that downloaders read."""

from __future__ import annotations

import json
import shlex
from pathlib import Path
from typing import Any

import pytest

from fedstac.client.values import Dataset
from fedstac.demo import sample
from tests.support.clients import FILES, ID, ITEM
from tests.support.commands import Fedstac, lines, to
from tests.support.nodes import Api
from tests.support.screen import on_screen

ASSETS: dict[str, Any] = {key: ITEM["assets"][key] for key in FILES}
EAST = {key: f"https://east.example/{key}" for key in FILES}


async def at_east(fedstac: Fedstac, api: Api) -> None:
    places = [part for key, href in EAST.items() for part in ("--href", f"{key}={href}")]
    assert (await fedstac("replica", "add", ID, "--node", "east", *places, **to(api))).code == 0


async def test_addresses_of_originals_and_of_a_node(west: Api, fedstac: Fedstac) -> None:
    await at_east(fedstac, west)
    done = await fedstac("files", ID, **to(west))
    assert (done.code, done.stdout.splitlines()) == (0, [asset["href"] for asset in ASSETS.values()]), done.stderr
    misspelt = await fedstac("files", "--filter", "cmip6:sourceid = 'x'", "-c", "CMIP6", **to(west))
    assert "did you mean `cmip6:source_id`?" in misspelt.stderr
    copies = await fedstac("files", "--filter", f"id = '{ID}'", "-c", "CMIP6", "--node", "east", **to(west))
    assert (copies.code, copies.stdout.splitlines()) == (0, list(EAST.values())), copies.stderr
    nowhere = await fedstac("files", ID, "--node", "north", **to(west))
    assert (nowhere.code, nowhere.stdout) == (1, "")
    assert "it has no files at north" in nowhere.stderr
    rows = (await fedstac("files", ID, "-o", "ndjson", **to(west))).lines
    assert [row["sha256"] for row in rows] == [asset["file:checksum"][4:] for asset in ASSETS.values()]


async def test_a_list_for_aria2_has_mirrors_folders_and_checksums(west: Api, fedstac: Fedstac) -> None:
    await at_east(fedstac, west)
    done = await fedstac("files", ID, "--format", "aria2", **to(west))
    key, asset = next(iter(ASSETS.items()))
    assert done.stdout.splitlines()[:4] == [
        f"{asset['href']}\t{EAST[key]}", f"  out={asset['file:local_path']}", "  continue=true",
        f"  checksum=sha-256={asset['file:checksum'][4:]}",
    ]  # fmt: skip


async def test_ids_come_from_a_pipe_and_unknown_ones_are_named(west: Api, fedstac: Fedstac) -> None:
    done = await fedstac("files", "--ids", "-", stdin=lines([ITEM]) + b"CMIP6.nothing\n", **to(west))
    assert (done.code, len(done.stdout.splitlines())) == (1, len(FILES))
    assert "CMIP6.nothing: there is no such dataset" in done.stderr
    assert (await fedstac("files", **to(west))).code == 2
    assert (await fedstac("retract", ID, "--reason", "wrong units", **to(west))).code == 0
    retracted = await fedstac("files", ID, **to(west))
    assert (retracted.code, "it is retracted: wrong units" in retracted.stderr) == (1, True)


async def test_checksums_are_as_sha256sum_reads_them(west: Api, fedstac: Fedstac) -> None:
    listed = (await fedstac("files", ID, "--format", "sha256", **to(west))).stdout
    assert listed.splitlines()[0] == "{}  {}".format(
        ASSETS[FILES[0]]["file:checksum"][4:], ASSETS[FILES[0]]["file:local_path"]
    )


async def test_a_script_for_wget_quotes_what_it_is_given(west: Api, fedstac: Fedstac) -> None:
    script = (await fedstac("files", ID, "--format", "wget", **to(west))).stdout
    line = next(line for line in script.splitlines() if line.startswith("fetch ") and "()" not in line)
    asset = ASSETS[FILES[0]]
    size = str(asset["file:size"])
    words = ["fetch", asset["file:local_path"], asset["file:checksum"][4:], size, asset["href"]]
    assert shlex.split(line) == words


@pytest.mark.parametrize("path", ["../x", "/etc/passwd", "a/../../x", "a\nb", "-x", "a//b", "a\\b", "./x"])
def test_a_path_never_leads_out_of_the_folder(path: str) -> None:
    [item] = sample.items(1)
    key = next(key for key, asset in item["assets"].items() if "file:checksum" in asset)
    item["assets"][key]["file:local_path"] = path
    assert Dataset(item).files[0].path == ""


@pytest.mark.parametrize("href", ["https://a/b\nhttps://c", "https://a b", "", "javascript:x", "--option"])
def test_what_is_no_address_of_the_web_is_not_given_to_a_downloader(href: str) -> None:
    [item] = sample.items(1)
    key = next(key for key, asset in item["assets"].items() if "file:checksum" in asset)
    item["assets"][key]["href"] = href
    assert not Dataset(item).files[0].is_web


async def test_on_a_terminal_get_is_short_and_json_is_whole(west: Api, fedstac: Fedstac, tmp_path: Path) -> None:
    code, shown, _ = await on_screen(tmp_path, "get", ID, width=120, **to(west))
    assert (code, shown[0]) == (0, ID)
    assert len(shown) < 40
    assert any(line.split()[:2] == ["source_id", ITEM["properties"]["cmip6:source_id"]] for line in shown)
    code, shown, written = await on_screen(tmp_path, "get", ID, "-o", "json", width=120, **to(west))
    assert (code, json.loads(written)["id"]) == (0, ID)
    piped = await fedstac("get", ID, **to(west))
    assert json.loads(piped.stdout)["id"] == ID
