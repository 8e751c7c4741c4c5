"""`fedstac validate`: the server's rules on files and pipes, offline."""

from __future__ import annotations

import copy
import gzip
import json
from pathlib import Path
from typing import Any

import pytest

from fedstac.demo import sample
from tests.support.commands import Fedstac, alone, lines
from tests.support.vocabulary_versions import NEW, OLD, ONLY_NEW, of_model


def misspelt(item: dict[str, Any]) -> dict[str, Any]:
    """Return the item with an unknown experiment, in the id as well."""
    return json.loads(json.dumps(item).replace(item["properties"]["cmip6:experiment_id"], "historcal"))  # type: ignore[no-any-return]


async def test_every_line_has_id_verdict_version_and_findings(fedstac: Fedstac) -> None:
    items = list(sample.items(3))
    items[1] = misspelt(items[1])
    done = await fedstac("validate", "-", "-o", "ndjson", stdin=lines(items))
    assert done.code == 1
    assert [set(line) for line in done.lines] == [{"id", "valid", "cv_version", "findings"}] * 3
    assert [line["id"] for line in done.lines] == [item["id"] for item in items]
    assert [line["valid"] for line in done.lines] == [True, False, True]
    assert {line["cv_version"] for line in done.lines} == {NEW}
    found = done.lines[1]["findings"]
    assert any(one["suggestion"] == "historical" and one["pointer"] for one in found if "suggestion" in one)
    assert "3 checked: 2 valid, 1 not valid" in done.stderr


async def test_folders_and_gzip_are_read_and_places_named(fedstac: Fedstac, tmp_path: Path) -> None:
    items = list(sample.items(5))
    items[4] = misspelt(items[4])
    (tmp_path / "deep" / "er").mkdir(parents=True)
    (tmp_path / "deep" / "one.json").write_text(json.dumps(items[0], indent=2))
    (tmp_path / "deep" / "er" / "rest.ndjson.gz").write_bytes(gzip.compress(lines(items[1:])))
    done = await fedstac("validate", "deep")
    assert done.code == 1
    assert f"deep/er/rest.ndjson.gz:4  {items[4]['id']}" in done.stdout
    assert "did you mean `historical`?" in done.stdout
    assert "5 checked: 4 valid, 1 not valid" in done.stderr
    good = await fedstac("validate", "deep/one.json")
    assert (good.code, good.stdout) == (0, "")
    assert good.stderr == "1 checked: 1 valid, 0 not valid\n"


async def test_a_version_is_chosen(fedstac: Fedstac) -> None:
    item = of_model(ONLY_NEW)
    newest = await fedstac("validate", "-", "-o", "json", stdin=lines([item]))
    assert (newest.code, json.loads(newest.stdout)[0]["cv_version"]) == (0, NEW)
    older = await fedstac("validate", "-", "--cv", f"CMIP6={OLD}", "-o", "ndjson", stdin=lines([item]))
    assert (older.code, older.lines[0]["cv_version"]) == (1, OLD)
    assert {finding["rule"] for finding in older.lines[0]["findings"]} >= {"term"}


async def test_a_dataset_is_judged_beside_those_before_it(fedstac: Fedstac) -> None:
    """One run under two names, a newer version that covers less; a dataset that is not valid counts for none."""
    item, other = sample.items(2, versions=1)
    renamed = copy.deepcopy(other)
    files = [asset for asset in item["assets"].values() if "file:checksum" in asset]
    target = next(asset for asset in renamed["assets"].values() if "file:checksum" in asset)
    target["cmip6:tracking_id"] = files[0]["cmip6:tracking_id"]
    shorter = json.loads(json.dumps(item).replace(item["id"], item["id"][:-8] + "20300101"))
    shorter["properties"] |= {"version": "20300101", "start_datetime": item["properties"]["end_datetime"]}
    del shorter["properties"]["cmip6:pid"]  # and so not valid
    done = await fedstac("validate", "-", "-o", "ndjson", stdin=lines([item, renamed, shorter]))
    assert [[one["rule"] for one in line["findings"]] for line in done.lines[:2]] == [[], ["shared-tracking-id"]]
    assert item["id"] in done.lines[1]["findings"][0]["message"]
    assert "coverage" not in [one["rule"] for one in done.lines[2]["findings"]]
    shorter["properties"]["cmip6:pid"] = item["properties"]["cmip6:pid"]
    done = await fedstac("validate", "-", "-o", "ndjson", stdin=lines([item, shorter]))
    assert done.code == 0, done.stdout
    assert {one["rule"] for one in done.lines[1]["findings"]} >= {"coverage", "pid"}


@pytest.mark.parametrize(
    ("arguments", "phrase"),
    [
        (("nothing.json",), "nothing.json does not exist"),
        (("-", "--cv", "CMIP6"), "PROJECT=VERSION"),
        (("-", "--cv", "CMIP6=1.0"), "vocab list"),
    ],
)
async def test_wrong_usage_exits_2(arguments: tuple[str, ...], phrase: str, fedstac: Fedstac) -> None:
    done = await fedstac("validate", *arguments, stdin=lines(list(sample.items(1))))
    assert (done.code, done.stdout) == (2, "")
    assert phrase in " ".join(done.stderr.replace("│", " ").split())


async def test_a_line_that_is_no_json_is_not_valid_and_the_rest_goes_on(fedstac: Fedstac) -> None:
    [item] = sample.items(1)
    nowhere = {name: value for name, value in item.items() if name != "collection"}
    raw = lines([item]) + b"{no JSON\n" + b'{"id": "a", "id": "b"}\n[1]\n' + lines([nowhere, item])
    done = await fedstac("validate", "-", "-o", "ndjson", stdin=raw)
    assert done.code == 1
    assert [line["valid"] for line in done.lines] == [True, False, False, False, False, True]
    assert all(line["findings"] for line in done.lines[1:5])
    assert [line["cv_version"] for line in done.lines[1:4]] == [None] * 3
    result = await fedstac("validate", "-", "-c", "CMIP6", "-o", "ndjson", stdin=lines([nowhere]))
    assert (result.code, result.lines[0]["valid"]) == (0, True)


async def test_a_table_shows_the_first_and_all_on_demand(fedstac: Fedstac) -> None:
    items = [misspelt(copy.deepcopy(item)) for item in sample.items(25)]
    done = await fedstac("validate", "-", stdin=lines(items))
    assert done.code == 1
    assert done.stdout.count("standard input:") == 20
    assert "and 5 more items with findings; --all or -o ndjson shows them" in done.stdout
    every = await fedstac("validate", "-", "--all", stdin=lines(items))
    assert every.stdout.count("standard input:") == 25


async def test_it_needs_nothing_of_the_server(tmp_path: Path) -> None:
    (tmp_path / "items.ndjson").write_bytes(lines([misspelt(next(sample.items(1)))]))
    code, stdout, stderr = await alone(tmp_path, "validate", "items.ndjson")
    assert code == 1
    assert "did you mean `historical`?" in stdout
    assert "1 checked: 0 valid, 1 not valid" in stderr


async def test_what_no_vocabulary_judged_is_told(fedstac: Fedstac, tmp_path: Path) -> None:
    """A mistyped collection or folder must not look like a dataset that is as its project wants it."""
    [item] = sample.items(1)
    done = await fedstac("validate", "-", "--collection", "CMIP9", stdin=lines([item]))
    assert done.code == 0
    assert "1 of the valid ones were judged by STAC's own rules alone" in done.stderr
    missing = await fedstac("validate", "-", "--cv-folder", str(tmp_path / "nowhere"), stdin=lines([item]))
    assert missing.code == 2
    assert "no folder of vocabulary snapshots" in missing.stderr
    listed = await fedstac("vocab", "list", "--cv-folder", str(tmp_path / "nowhere"))
    assert listed.code == 2
