"""Progress bars share a terminal with results, and never overwrite them."""

from __future__ import annotations

from pathlib import Path

import pytest

from fedstac.demo import sample
from tests.support.clients import FILES, ID, broken
from tests.support.commands import Fedstac, lines, to
from tests.support.nodes import Api
from tests.support.screen import on_screen, screen

WIDTHS = (80, 120)


def test_the_screen_is_read_as_a_terminal_shows_it() -> None:
    assert screen("one\r\ntwo\r\n\x1b[1A\x1b[2Kthree", 80) == ["one", "three", ""]
    assert screen("\x1b[31m" + "x" * 12 + "\x1b[0m\r\ny", 5) == ["x" * 12, "y"]


@pytest.mark.parametrize("width", WIDTHS)
async def test_a_check_shows_every_row_beside_its_bars(width: int, api: Api, fedstac: Fedstac, tmp_path: Path) -> None:
    items = list(sample.items(6))
    (tmp_path / "items.ndjson").write_bytes(lines(items))
    code, shown, written = await on_screen(
        tmp_path, "publish", "items.ndjson", "--check", "--batch", "2", width=width, **to(api)
    )
    assert code == 0, shown
    for item in items:
        assert [line for line in shown if line.startswith("new ") and line.endswith(item["id"])], shown
    assert "published 6 of 6 items in 3 requests" in shown
    assert "/?" not in written


@pytest.mark.parametrize("width", WIDTHS)
async def test_what_is_refused_is_shown_whole_beside_bars(width: int, api: Api, tmp_path: Path) -> None:
    items = [broken(item) for item in sample.items(8)]
    (tmp_path / "items.ndjson").write_bytes(lines(items))
    code, shown, written = await on_screen(tmp_path, "publish", "items.ndjson", "--batch", "2", width=width, **to(api))
    assert code == 1, shown
    for n, item in enumerate(items, 1):
        assert f"rejected: items.ndjson:{n}  {item['id']}" in shown
    assert len([line for line in shown if line.lstrip().startswith("/geometry")]) >= len(items)
    assert "/?" not in written


@pytest.mark.parametrize("width", WIDTHS)
async def test_changes_of_many_are_all_listed_beside_the_bar(width: int, api: Api, tmp_path: Path) -> None:
    items = list(sample.items(12))
    (tmp_path / "items.ndjson").write_bytes(lines(items))
    assert (await on_screen(tmp_path, "publish", "items.ndjson", width=width, **to(api)))[0] == 0
    (tmp_path / "ids").write_text("".join(item["id"] + "\n" for item in items))
    code, shown, _ = await on_screen(
        tmp_path, "retract", "--ids", "ids", "--reason", "wrong forcing", "--yes", width=width, **to(api)
    )
    assert code == 0, shown
    assert sorted(line for line in shown if line.startswith("retracted")) == sorted(
        f"retracted  {item['id']}" for item in items
    )


async def test_an_address_is_not_split(west: Api, fedstac: Fedstac, tmp_path: Path) -> None:
    missing = "http://127.0.0.1:9/" + "a-long-folder/" * 8 + "psl.nc"
    added = await fedstac("replica", "add", ID, "--node", "east", "--href", f"{FILES[0]}={missing}", **to(west))
    assert added.code == 0, added.stdout + added.stderr
    code, shown, written = await on_screen(tmp_path, "replica", "verify", ID, "--node", "east", width=80, **to(west))
    assert code == 1
    assert f"wrong  east  {missing}" in shown
    assert missing in written, "the address is broken by a line feed"
