"""Documents are read as a stream from whatever form they have."""

from __future__ import annotations

import gzip
import io
import json
import sys
from pathlib import Path
from typing import Any

import pytest

from fedstac.client.documents import DocumentTrouble, ReadyDocument, Unreadable, read

ITEMS = [
    {"type": "Feature", "id": f"i{n}", "collection": "C", "properties": {"é": '] } \\ "', "n": n}} for n in range(3)
]


def lines(items: list[dict[str, Any]]) -> str:
    return "".join(json.dumps(item) + "\n" for item in items)


def collection(items: list[dict[str, Any]], **layout: Any) -> str:
    return json.dumps({"links": [{"features": [1]}], "features": items, "type": "FeatureCollection"}, **layout)


FORMS = {
    "lines": lines(ITEMS),
    "lines with blank ones and no end": "\n" + lines(ITEMS[:2]) + "\n\r\n" + json.dumps(ITEMS[2]),
    "a text sequence": "".join("\x1e" + json.dumps(item) + "\n" for item in ITEMS),
    "a collection": collection(ITEMS),
    "a collection, pretty": collection(ITEMS, indent=2),
    "collections one after the other": collection(ITEMS[:1]) + "\n" + collection(ITEMS[1:]) + "\n",
    "pretty items one after the other": "\n".join(json.dumps(item, indent=1) for item in ITEMS),
    "with a byte order mark": "\ufeff" + lines(ITEMS),
}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("packed", [False, True], ids=["plain", "gzip"])
def test_every_form_is_read(form: str, packed: bool, tmp_path: Path) -> None:
    path = tmp_path / "some.json"
    text = FORMS[form].encode()
    path.write_bytes(gzip.compress(text) if packed else text)
    entries = list(read(str(path)))
    assert [json.loads(entry.text) for entry in entries if isinstance(entry, ReadyDocument)] == ITEMS
    assert all(
        b"\n" not in entry.text and entry.collection == "C" for entry in entries if isinstance(entry, ReadyDocument)
    )


def test_places_are_lines(tmp_path: Path) -> None:
    path = tmp_path / "a.ndjson"
    path.write_text("\n" + lines(ITEMS[:1]) + "\n" + lines(ITEMS[1:2]))
    assert [entry.place for entry in read(str(path))] == [f"{path}:2", f"{path}:4"]
    path.write_text(collection(ITEMS[:2], indent=1))
    numbers = [n for n, line in enumerate(path.read_text().splitlines(), 1) if line == "  {"][1:]  # the first is a link
    assert [entry.place for entry in read(str(path))] == [f"{path}:{n}" for n in numbers]


def test_long_collections_are_read_piece_by_piece(tmp_path: Path) -> None:
    many = [{**ITEMS[0], "id": f"i{n}", "filling": "x" * 3000} for n in range(2000)]
    path = tmp_path / "long.json"
    path.write_text(collection(many, indent=1))
    found = list(read(str(path), "other"))
    assert [(entry.id, entry.collection) for entry in found if isinstance(entry, ReadyDocument)] == [
        (item["id"], "other") for item in many
    ]


def test_a_broken_line_is_reported_and_the_others_are_read(tmp_path: Path) -> None:
    path = tmp_path / "a.ndjson"
    path.write_text(lines(ITEMS[:1]) + '{"id": "b", "id": "c"}\n{"id": \n[1]\n' + lines(ITEMS[1:]))
    first, twice, cut, array, *others = read(str(path))
    assert isinstance(first, ReadyDocument)
    assert len(others) == 2
    assert all(isinstance(entry, DocumentTrouble) for entry in (twice, cut, array))
    assert [entry.place for entry in (twice, cut, array)] == [f"{path}:{n}" for n in (2, 3, 4)]
    assert isinstance(twice, DocumentTrouble)
    assert (twice.id, twice.type) == ("c", "malformed-json")


@pytest.mark.parametrize(
    "text", [collection(ITEMS)[:-40], collection(ITEMS).replace('"i1"', "i1"), collection(ITEMS)[:-30] + "\xff" * 9]
)
def test_a_broken_collection_is_read_up_to_the_break(text: str, tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_text(text, encoding="latin-1")
    *entries, last = read(str(path))
    assert isinstance(last, DocumentTrouble)
    assert last.type == "malformed-json"
    assert all(isinstance(entry, ReadyDocument) for entry in entries)


def test_a_cut_gzip_is_read_up_to_the_cut(tmp_path: Path) -> None:
    path = tmp_path / "a.ndjson.gz"
    path.write_bytes(gzip.compress(lines(ITEMS).encode())[:-12])
    *_, last = read(str(path))
    assert isinstance(last, DocumentTrouble)
    assert "gzip" in last.detail


def test_a_folder_is_read_in_order_of_names_without_what_is_no_item(tmp_path: Path) -> None:
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "one.json").write_text(json.dumps(ITEMS[2]))
    (tmp_path / "a.ndjson.gz").write_bytes(gzip.compress(lines(ITEMS[:2]).encode()))
    (tmp_path / "collection.json").write_text(json.dumps({"type": "Collection", "id": "C"}))
    (tmp_path / "notes.txt").write_text("no JSON")
    (tmp_path / ".hidden.json").write_text("no JSON")
    assert [entry.id for entry in read(str(tmp_path))] == ["i0", "i1", "i2"]


def test_a_pipe_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    pipe = io.TextIOWrapper(io.BufferedReader(io.BytesIO(gzip.compress(lines(ITEMS).encode()))))
    monkeypatch.setattr(sys, "stdin", pipe)
    assert [entry.place for entry in read("-")] == [f"standard input:{n}" for n in (1, 2, 3)]


def test_what_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(Unreadable, match="does not exist"):
        next(read(str(tmp_path / "nothing.json")))
    with pytest.raises(Unreadable, match="holds no file"):
        next(read(str(tmp_path)))


def test_a_collection_is_no_item(tmp_path: Path) -> None:
    path = tmp_path / "collection.json"
    path.write_text(json.dumps({"type": "Collection", "id": "C"}))
    [trouble] = read(str(path))
    assert isinstance(trouble, DocumentTrouble)
    assert "a Collection" in trouble.detail
