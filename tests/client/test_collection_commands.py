"""Collections by the command line: from nothing to a node that takes datasets."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from fedstac.demo import sample
from tests.support.commands import Fedstac, lines, to
from tests.support.nodes import Api, StartApi


async def test_a_project_is_created_from_its_vocabulary_and_takes_datasets(api: Api, fedstac: Fedstac) -> None:
    made = await fedstac("collections", "create", "CMIP7", "--license", "CC-BY-4.0", **to(api))
    assert (made.code, made.stdout) == (0, "created  CMIP7\n"), made.stderr
    shown = json.loads((await fedstac("collections", "show", "CMIP7", "-o", "json", **to(api))).stdout)
    assert (shown["title"], shown["license"]) == ("CMIP7", "CC-BY-4.0")
    listed = (await fedstac("collections", "list", "-o", "ndjson", **to(api))).lines
    assert {each["id"] for each in listed} == {"CMIP6", "CMIP7"}
    table = await fedstac("collections", "list", **to(api))
    assert [line.split() for line in table.stdout.splitlines()][1:] == [
        ["CMIP6", "0", "CMIP6"],
        ["CMIP7", "0", "CMIP7"],
    ]
    again = await fedstac("collections", "create", "CMIP7", **to(api))
    assert again.code == 1
    assert "change it with fedstac collections update CMIP7" in again.stderr


async def test_a_collection_is_changed_and_deleted_while_it_is_empty(
    api: Api, fedstac: Fedstac, tmp_path: Path
) -> None:
    changed = await fedstac("collections", "update", "CMIP6", "--description", "said otherwise", **to(api))
    assert (changed.code, changed.stdout) == (0, "updated  CMIP6\n"), changed.stderr
    shown = await fedstac("collections", "show", "CMIP6", **to(api))
    assert "said otherwise" in shown.stdout
    document = (await fedstac("collections", "show", "CMIP6", "-o", "json", **to(api))).stdout
    (tmp_path / "c.json").write_text(json.dumps({**json.loads(document), "title": "CMIP6"}))
    assert (await fedstac("collections", "update", "CMIP6", "-f", "c.json", **to(api))).code == 0
    assert (await fedstac("publish", "-", stdin=lines(list(sample.items(1))), **to(api))).code == 0
    properties = await fedstac("collections", "show", "CMIP6", "--properties", **to(api))
    assert (properties.code, "id " in properties.stdout) == (0, True)
    full = await fedstac("collections", "delete", "CMIP6", **to(api))
    assert (full.code, "has datasets" in full.stderr) == (1, True)
    assert (await fedstac("collections", "create", "obs", "--description", "Stations", **to(api))).code == 0
    gone = await fedstac("collections", "delete", "obs", **to(api))
    assert (gone.code, gone.stdout) == (0, "deleted  obs\n")
    assert (await fedstac("collections", "show", "obs", **to(api))).code == 3


async def test_a_collection_is_deleted_with_its_datasets(api: Api, fedstac: Fedstac) -> None:
    assert (await fedstac("publish", "-", stdin=lines(list(sample.items(3))), **to(api))).code == 0
    delete = ("collections", "delete", "CMIP6", "--cascade")
    preview = await fedstac(*delete, "--dry-run", **to(api))
    assert (preview.code, "3 (3 published)" in preview.stdout) == (0, True), preview.stdout
    effects = json.loads((await fedstac(*delete, "--dry-run", "-o", "json", **to(api))).stdout)
    assert effects["confirm"] == 3
    for options, code, words in (
        ((), 2, "say why"), (("--reason", "over"), 2, "say how many"),
        (("--reason", "over", "--confirm", "4"), 1, "has 3 datasets, and 4 were confirmed"),
    ):  # fmt: skip
        refused = await fedstac(*delete, *options, **to(api))
        message = " ".join(refused.stderr.replace("│", " ").split())
        assert (refused.code, words in message) == (code, True), message
    done = await fedstac(*delete, "--reason", "over", "--confirm", "3", **to(api))
    assert (done.code, done.stdout.splitlines()[0]) == (0, "CMIP6  waiting"), done.stderr
    shown = json.loads((await fedstac("collections", "cascade", "CMIP6", "-o", "json", **to(api))).stdout)
    assert (shown["marked"], shown["to_mark"], shown["reason"]) == (3, 0, "over")
    late = await fedstac("publish", "-", stdin=lines(list(sample.items(4))[3:]), **to(api))
    assert (late.code, shown["id"] in late.stdout) == (1, True), late.stdout
    cancelled = await fedstac("collections", "cascade", "CMIP6", "--cancel", **to(api))
    assert (cancelled.code, cancelled.stdout.splitlines()[0]) == (0, "CMIP6  cancelled")


async def test_a_misspelt_project_is_no_collection_by_mistake(api: Api, fedstac: Fedstac) -> None:
    done = await fedstac("collections", "create", "CMIP66", **to(api))
    message = " ".join(done.stderr.replace("│", " ").split())
    assert (done.code, "did you mean CMIP6?" in message) == (2, True), message


@pytest.mark.parametrize(("arguments", "code"), [(("create", "CMIP7"), 4), (("delete", "CMIP6"), 4)])
async def test_only_administrators_may(arguments: tuple[str, ...], code: int, api: Api, fedstac: Fedstac) -> None:
    assert (await fedstac("collections", *arguments, **to(api, "publisher:NCAR"))).code == code


async def test_who_publishes_into_no_collection_is_told_whom_to_ask(
    start_api: StartApi, dsn: str, fedstac: Fedstac
) -> None:
    node_with_contact = await start_api(dsn=dsn, contact="data@west.example")
    done = await fedstac("publish", "-", "-c", "nowhere", stdin=lines(list(sample.items(1))), **to(node_with_contact))
    assert done.code == 3
    assert "ask data@west.example" in done.stderr
    assert "fedstac collections create" in done.stderr
