"""Large batches and what comes of them wait in a file without a name."""

from __future__ import annotations

import errno
import mmap
import os
import tempfile
from pathlib import Path
from typing import Any

import orjson
import pytest

from fedstac.demo import sample
from fedstac.domain import texts
from fedstac.domain.errors import Unavailable
from fedstac.runtime.spool import Spool
from tests.support.nodes import Api

ITEMS = "/collections/CMIP6/items"
LINES = {"Content-Type": "application/x-ndjson"}
Json = dict[str, Any]


# --- the file ---


def test_what_was_appended_is_read_from_memory_and_from_the_file() -> None:
    spool = Spool(in_memory=10)
    pieces = [bytes([65 + n]) * n for n in range(26)]
    starts = [spool.append(piece) for piece in pieces]
    assert spool.size == sum(map(len, pieces))
    assert [spool.read(start, len(piece)) for start, piece in zip(starts, pieces, strict=True)] == pieces
    text = spool.text()
    assert isinstance(text, mmap.mmap)
    assert text[:] == b"".join(pieces)
    assert spool.read(starts[5], 5) == pieces[5]


def test_little_stays_in_memory() -> None:
    spool = Spool(in_memory=10)
    assert spool.text() == b""
    spool.append(b"0123456789")
    assert spool.text() == b"0123456789"


def test_the_file_has_no_name_and_is_gone_with_its_readers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    spool = Spool(in_memory=10)
    spool.append(b"x" * 11)
    text = spool.text()
    assert list(tmp_path.iterdir()) == []
    assert _open_below(tmp_path)
    del spool
    assert text[:3] == b"xxx"
    del text
    assert not _open_below(tmp_path)


def _open_below(folder: Path) -> list[str]:
    """Return the open files of this process that are, or were, below a folder."""
    numbers = Path("/proc/self/fd").iterdir()
    return [name for number in numbers if (name := _target(number)).startswith(str(folder))]


def _target(link: Path) -> str:
    try:
        return str(link.readlink())
    except FileNotFoundError:  # the descriptor by which the folder was read
        return ""


def test_a_mapped_text_that_is_let_go_is_read_again() -> None:
    spool = Spool()
    spool.append(b"abcdefg\n" * texts.PIECE)
    text, before = spool.text(), _resident()
    assert sum(map(len, texts.pieces(text))) == 8 * texts.PIECE
    assert texts.count(text, b"\n", 0, len(text)) == texts.PIECE
    assert _resident() - before <= 3 * texts.PIECE
    assert texts.let_go(text, len(text)) == len(text)
    assert text[:4] + text[-4:] == b"abcdefg\n"


def _resident() -> int:
    """Return bytes of mapped files that are in memory."""
    lines = Path("/proc/self/status").read_text().splitlines()
    kilobytes = {line.split()[0]: int(line.split()[1]) for line in lines if line.startswith("Rss")}
    return 1024 * (kilobytes["RssFile:"] + kilobytes["RssShmem:"])


# --- requests ---


def batch(form: str, items: list[Json]) -> Json:
    """Return how a batch of over 256 kB is posted."""
    raw = b"\n".join(map(orjson.dumps, items))
    kind = LINES
    if form == "features":
        raw, kind = orjson.dumps({"type": "FeatureCollection", "features": items}), {"Content-Type": "application/json"}
    assert len(raw) > 256 << 10
    return {"content": raw, "headers": kind}


def fail_to_open(**_: object) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_a_full_folder_is_nobodys_fault(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "TemporaryFile", fail_to_open)
    with pytest.raises(Unavailable, match="no room"):
        Spool(in_memory=10).append(b"x" * 11)


async def test_without_room_in_the_folder_a_large_batch_gets_503(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    posted = batch("lines", list(sample.items(100)))
    monkeypatch.setattr(tempfile, "TemporaryFile", fail_to_open)
    response = await api.admin.post(ITEMS, **posted)
    assert response.status_code == 503
    assert "retry-after" in response.headers
    assert "TMPDIR" not in response.text
    assert (await api.admin.post(ITEMS, json=next(sample.items(1)))).status_code < 300


@pytest.mark.parametrize("form", ["features", "lines"])
@pytest.mark.parametrize("text", ["x" * (4 << 20), [[]] * 401_000], ids=["bytes", "values"])
async def test_an_item_that_is_too_large_refuses_itself(api: Api, form: str, text: object) -> None:
    items = list(sample.items(3))
    items[1] = {**items[1], "properties": {**items[1]["properties"], "more": text}}
    posted = batch(form, items)
    response = await api.admin.post(ITEMS, **posted)
    assert response.json()["counts"] == {"queued": 0, "done": 2, "rejected": 1, "failed": 0}
    [problem] = response.json()["problems"]
    assert (problem["n"], problem["type"]) == (1, "body-too-large")
    verdicts = (await api.admin.post("/validate", **posted)).json()["items"]
    assert [verdict["valid"] for verdict in verdicts] == [True, False, True]
    assert verdicts[1]["findings"][0]["message"] == problem["detail"]


@pytest.mark.parametrize("form", ["features", "lines"])
async def test_refused_items_of_a_large_batch_are_kept_and_sent_again(api: Api, form: str) -> None:
    items = list(sample.items(200))
    for item in items[50:]:
        item["properties"]["cmip6:source_id"] = "none-é"
    posted = batch(form, items)
    posted["headers"]["Idempotency-Key"] = "large"
    tried = (await api.admin.post(f"{ITEMS}?dry_run=true", **posted)).json()
    assert [item["outcome"] == "rejected" for item in tried["items"]] == [False] * 50 + [True] * 150
    first = (await api.admin.post(ITEMS, **posted)).json()
    assert first["counts"] == {"queued": 0, "done": 50, "rejected": 150, "failed": 0}
    assert (await api.admin.post(ITEMS, **posted)).json()["id"] == first["id"]
    again = await api.admin.post(f"/requests/{first['id']}/retry")
    assert again.status_code == 400
    assert "none of the 150 items is valid" in again.json()["detail"]
