"""Folders and archives from elsewhere: what is read of them, and what is refused before it does harm."""

from __future__ import annotations

import gzip
import io
import os
import tarfile
from pathlib import Path

import pytest

from fedstac.vocabularies import sources
from fedstac.vocabularies.sources import VocabularyRefused
from tests.vocabularies.publishers import pack, write


def member(
    name: str, *, kind: bytes = tarfile.REGTYPE, raw: bytes = b"{}", target: str = ""
) -> tuple[tarfile.TarInfo, bytes]:
    made = tarfile.TarInfo(name)
    made.type, made.linkname = kind, target
    made.size = len(raw) if kind == tarfile.REGTYPE else 0
    return made, raw


def archive(path: Path, *members: tuple[tarfile.TarInfo, bytes]) -> Path:
    with tarfile.open(path, "w:gz") as made:
        for about, raw in members:
            made.addfile(about, io.BytesIO(raw) if about.isreg() else None)
    return path


def test_an_archive_is_read_without_its_outer_folder(tmp_path: Path) -> None:
    files = sources.read(pack(tmp_path / "a.tar.gz", {"x/y.json": {"a": 1}, "b.yaml": "c: 1"}, top="CVs-1/"))
    assert sorted(files.content) == ["b.yaml", "x/y.json"]
    assert files.json("x/y.json") == {"a": 1}
    assert files.yaml("b.yaml") == {"c": 1}
    assert list(tmp_path.iterdir()) == [tmp_path / "a.tar.gz"]


def test_only_what_may_be_needed_is_read(tmp_path: Path) -> None:
    folder = write(tmp_path / "CVs", {"a.json": {}, "README.md": "x", ".git/config.json": "no JSON", "b/c.json": {}})
    assert sorted(sources.read(folder).content) == ["a.json", "b/c.json"]
    files = sources.read(pack(tmp_path / "a.tar.gz", {"a.json": {}, "photo.png": "x", ".github/ci.yaml": "x"}))
    assert sorted(files.content) == ["a.json"]


@pytest.mark.parametrize(
    ("members", "reason"),
    [
        ([member("../../etc/cron.d/x.json")], "leads out"),
        ([member("/etc/x.json")], "leads out"),
        ([member("a\\..\\x.json")], "leads out"),
        ([member("CVs/../../x.json")], "leads out"),
        ([member("x.json", kind=tarfile.SYMTYPE, target="/etc/passwd")], "link or device"),
        ([member("x.json", kind=tarfile.LNKTYPE, target="../secret")], "link or device"),
        ([member("x.json", kind=tarfile.CHRTYPE)], "link or device"),
        ([member("x.json", kind=tarfile.FIFOTYPE)], "link or device"),
        ([member("x.json"), member("x.json")], "twice"),
    ],
)
def test_an_archive_that_is_made_to_harm_is_refused(
    tmp_path: Path, members: list[tuple[tarfile.TarInfo, bytes]], reason: str
) -> None:
    with pytest.raises(VocabularyRefused, match=reason):
        sources.read(archive(tmp_path / "a.tar.gz", *members))
    assert [path.name for path in tmp_path.rglob("*")] == ["a.tar.gz"]


def test_a_bomb_is_refused_before_it_is_unpacked(tmp_path: Path) -> None:
    zeros = gzip.compress(bytes(sources.MOST_TOGETHER + (1 << 20)), 1)
    for name, kind in (("x.json", tarfile.REGTYPE), ("photo.png", tarfile.REGTYPE), ("h", tarfile.XHDTYPE)):
        header = tarfile.TarInfo(name)
        header.type, header.size = kind, sources.MOST_TOGETHER + (1 << 20)
        path = tmp_path / "bomb.tar.gz"
        path.write_bytes(gzip.compress(header.tobuf(tarfile.GNU_FORMAT)) + zeros)
        with pytest.raises(VocabularyRefused, match=r"most|more than"):
            sources.read(path)


def test_too_many_files_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sources, "MOST_FILES", 3)
    with pytest.raises(VocabularyRefused, match="more than 3 files"):
        sources.read(pack(tmp_path / "a.tar.gz", {f"{n}.json": {} for n in range(5)}))
    with pytest.raises(VocabularyRefused, match="more than 3 files"):
        sources.read(write(tmp_path / "CVs", {f"{n}.json": {} for n in range(5)}))


def test_a_huge_file_is_refused_unread(tmp_path: Path) -> None:
    folder = write(tmp_path / "CVs", {"a.json": {}})
    with (folder / "b.json").open("wb") as file:
        os.truncate(file.fileno(), 1 << 40)
    with pytest.raises(VocabularyRefused, match=r"b\.json has 1099511627776 bytes"):
        sources.read(folder)


def test_a_link_in_a_folder_is_not_followed(tmp_path: Path) -> None:
    folder = write(tmp_path / "CVs", {"a.json": {}})
    (folder / "b.json").symlink_to("/etc/hostname")
    with pytest.raises(VocabularyRefused, match="links are not followed"):
        sources.read(folder)


@pytest.mark.parametrize(
    "raw", [b"", b"no archive", gzip.compress(b"no archive", mtime=0), gzip.compress(b"x" * 5000, mtime=0)[:40]]
)
def test_what_is_no_archive_is_refused(tmp_path: Path, raw: bytes) -> None:
    path = tmp_path / "a.tar.gz"
    path.write_bytes(raw)
    with pytest.raises(VocabularyRefused, match="no sound archive"):
        sources.read(path)


def test_what_is_nothing_is_refused(tmp_path: Path) -> None:
    for path in (tmp_path / "missing", write(tmp_path, {"a.txt": "x"}) / "a.txt"):
        with pytest.raises(VocabularyRefused, match="no folder and no archive"):
            sources.read(path)
