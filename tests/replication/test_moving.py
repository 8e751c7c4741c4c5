"""Files that leave their place on real disks: deleted, moved, copied to another file system; links are not followed."""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from fedstac.domain.replication.paths import PART_FOLDER, PathUnsafe
from fedstac.replication import moving
from fedstac.replication.moving import OtherFileSystem, WrongContent

PATH = "CMIP6/a/b.nc"
CONTENT = b"whole" * 1000
CHECKSUM = "1220" + hashlib.sha256(CONTENT).hexdigest()


def write(folder: Path, content: bytes = CONTENT) -> Path:
    place = folder / PATH
    place.parent.mkdir(parents=True, exist_ok=True)
    place.write_bytes(content)
    return place


@pytest.fixture
def other_disk(tmp_path: Path) -> Iterator[Path]:
    """A folder on another file system than `tmp_path`."""
    for root in ("/tmp", "/dev/shm", "/var/tmp"):
        if Path(root).is_dir() and Path(root).stat().st_dev != tmp_path.stat().st_dev:
            with tempfile.TemporaryDirectory(dir=root) as folder:
                yield Path(folder)
            return
    pytest.skip("there is one file system only")


def test_a_deleted_file_takes_its_part_and_its_empty_folders_with_it(tmp_path: Path) -> None:
    place = write(tmp_path)
    (place.parent / PART_FOLDER).mkdir()
    for name in (CHECKSUM, f"{CHECKSUM}.note", f"{CHECKSUM}.delivery", f"{CHECKSUM}.delivery.task", "b.nc.moving"):
        (place.parent / PART_FOLDER / name).write_bytes(b"half")
    other = tmp_path / "CMIP6" / "c.nc"
    other.write_bytes(b"")
    for _ in range(2):  # a repeat is harmless
        moving.delete(tmp_path, PATH, CHECKSUM)
        assert [path for path in tmp_path.rglob("*") if path.is_file()] == [other]
        assert not place.parent.exists()


def test_a_file_is_moved_once_and_found_at_its_new_place_by_a_repeat(tmp_path: Path) -> None:
    source, target = tmp_path / "served", tmp_path / "restricted"
    target.mkdir()
    write(source)
    assert moving.move(source, PATH, CHECKSUM, to=target)
    assert moving.move(source, PATH, CHECKSUM, to=target)
    assert (target / PATH).read_bytes() == CONTENT
    assert list(source.iterdir()) == []
    moving.delete(target, PATH, CHECKSUM)
    assert not moving.move(source, PATH, CHECKSUM, to=target)


def test_a_file_that_another_dataset_has_too_stays_where_it_is(tmp_path: Path) -> None:
    source, target = tmp_path / "served", tmp_path / "cold"
    target.mkdir()
    write(source)
    assert moving.move(source, PATH, CHECKSUM, to=target, keeps=True)
    assert (target / PATH).read_bytes() == (source / PATH).read_bytes() == CONTENT


def test_to_another_file_system_a_file_is_copied_and_compared_first(tmp_path: Path, other_disk: Path) -> None:
    write(tmp_path)
    with pytest.raises(OtherFileSystem):
        moving.move(tmp_path, PATH, CHECKSUM, to=other_disk)
    assert (tmp_path / PATH).read_bytes() == CONTENT
    moving.stage(tmp_path, PATH, CHECKSUM, to=other_disk)
    assert not (other_disk / PATH).exists()
    assert moving.move(tmp_path, PATH, CHECKSUM, to=other_disk)
    assert (other_disk / PATH).read_bytes() == CONTENT
    assert list(tmp_path.iterdir()) == []
    assert not (other_disk / PATH).parent.joinpath(PART_FOLDER).exists()


def test_a_file_whose_bits_have_changed_is_not_copied_to_another_file_system(tmp_path: Path, other_disk: Path) -> None:
    place = write(tmp_path, CONTENT[:-1] + b"?")
    with pytest.raises(WrongContent, match="is not what it was"):
        moving.stage(tmp_path, PATH, CHECKSUM, to=other_disk)
    assert place.exists()
    assert [path for path in other_disk.rglob("*") if path.is_file()] == []


@pytest.mark.parametrize("path", ["../b.nc", "/etc/passwd", "a/../../b", ".fedstac-part/x", ""])
def test_a_path_that_leads_out_is_refused(tmp_path: Path, path: str) -> None:
    with pytest.raises(PathUnsafe):
        moving.delete(tmp_path, path, None)


def test_no_link_on_the_way_is_followed(tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    write(outside)
    inside = tmp_path / "inside"
    inside.mkdir()
    (inside / "CMIP6").symlink_to(outside / "CMIP6")
    with pytest.raises(OSError):
        moving.delete(inside, PATH, CHECKSUM)
    assert (outside / PATH).read_bytes() == CONTENT
