"""Which files are found in folders and mapfiles, and that none is outside the roots."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from fedstac.domain.errors import Severity
from fedstac.scan import listing
from fedstac.scan.listing import NoListing
from fedstac.scan.site import Site
from fedstac.scan.values import Fault, ScanFile

SUM = "ab" * 32


def put(path: Path, content: bytes = b"x") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path


def found(source: Path, here: Site, version: str | None = None) -> tuple[list[str], list[tuple[str, str]]]:
    """Return local paths with versions, and faults."""
    listed = list(listing.files(str(source), here, version))
    return (
        [f"{one.local}@{one.version}" for one in listed if isinstance(one, ScanFile)],
        [(os.path.basename(one.path), one.rule) for one in listed if isinstance(one, Fault)],
    )


def test_all_netcdf_files_below_in_the_order_of_names(root: Path, here: Site) -> None:
    for name in ("b/v20200101/y.nc", "b/v20200101/x.nc", "a/v20190101/z.nc", "a/v20190101/notes.txt",
                 "a/v20190101/.z.nc.Xa3", "a/v20190101/.hidden.nc", ".trash/v20190101/x.nc"):  # fmt: skip
        put(root / name)
    files = ["a/v20190101/z.nc@20190101", "b/v20200101/x.nc@20200101", "b/v20200101/y.nc@20200101"]
    assert found(root, here) == (files, [])
    assert found(root / "b", here) == (files[1:], [])


def test_names_with_spaces_quotes_and_any_letters(root: Path, here: Site) -> None:
    name = "v20200101/tas 'α' \"x\" 100%#?.nc"
    put(root / name)
    assert found(root, here) == ([f"{name}@20200101"], [])


def test_a_name_that_is_not_utf_8_is_named(root: Path, here: Site) -> None:
    (root / "v20200101").mkdir()
    put(Path(os.fsdecode(os.fsencode(root) + b"/v20200101/t\xff.nc")))
    [fault] = listing.files(str(root), here)
    assert isinstance(fault, Fault)
    assert fault.rule == "name"
    fault.path.encode()


def test_versions_come_from_the_nearest_folder_or_from_the_command(root: Path, here: Site) -> None:
    put(root / "v20180101/deep/v20200101/x.nc")
    put(root / "flat/y.nc")
    put(root / "v20209999/z.nc")
    files, faults = found(root, here)
    assert files == ["v20180101/deep/v20200101/x.nc@20200101"]
    assert faults == [("y.nc", "version"), ("z.nc", "version")]
    assert found(root / "flat", here, "20210101") == (["flat/y.nc@20210101"], [])


def test_folders_say_no_version_where_they_are_to_be_ignored(root: Path, here: Site) -> None:
    for version in ("20180912", "20180913"):
        put(root / f"v{version}/{version}.nc")
    listed = list(listing.files(str(root), here, "20180913", ignore_folders=True))
    assert [one.version for one in listed if isinstance(one, ScanFile)] == ["20180913", "20180913"]
    lines = "".join(f"a.b#20180913 | {path} | 1\n" for path in sorted(root.rglob("*.nc")))
    (root / "map").write_text(lines)
    listed = list(listing.files(str(root / "map"), here, ignore_folders=True))
    assert [one.version for one in listed if isinstance(one, ScanFile)] == ["20180913", "20180913"]
    [refused] = [one for one in listing.files(str(root / "map"), here) if isinstance(one, Fault)]
    assert "--ignore-version-folders" in refused.message


def test_links_are_followed_within_the_root_once_and_loops_end(root: Path, here: Site) -> None:
    put(root / "files/d20200101/x.nc")
    put(root / "v20200101/y.nc")
    (root / "v20200101/x.nc").symlink_to("../files/d20200101/x.nc")
    (root / "latest").symlink_to("v20200101")
    (root / "v20200101/loop").symlink_to("..")
    (root / "self.nc").symlink_to("self.nc")
    files, faults = found(root, here)
    assert files == ["v20200101/x.nc@20200101", "v20200101/y.nc@20200101"]
    assert faults == [("self.nc", "unreadable")]
    listed = list(listing.files(str(root / "latest"), here, "20200101"))
    assert [one.local for one in listed if isinstance(one, ScanFile)] == ["latest/x.nc", "latest/y.nc"]


def test_nothing_outside_the_root_is_found(root: Path, here: Site, tmp_path: Path) -> None:
    put(tmp_path / "outside/v20200101/secret.nc")
    put(tmp_path / "archive-2/v20200101/neighbour.nc")
    (root / "v20200101").mkdir()
    (root / "v20200101/a.nc").symlink_to("../../outside/v20200101/secret.nc")
    (root / "v20200101/b").symlink_to("../../outside")
    (root / "v20200101/c.nc").symlink_to(tmp_path / "archive-2/v20200101/neighbour.nc")
    (root / "v20200101/gone.nc").symlink_to("nowhere.nc")
    os.mkfifo(root / "v20200101/pipe.nc")
    files, faults = found(root, here)
    assert files == []
    assert faults == [("a.nc", "outside"), ("b", "outside"), ("c.nc", "outside"), ("gone.nc", "unreadable"),
                      ("pipe.nc", "unreadable")]  # fmt: skip
    severities = {one.path[-1]: one.severity for one in listing.files(str(root), here) if isinstance(one, Fault)}
    assert severities["b"] is Severity.WARNING  # a folder that is elsewhere lacks nothing here
    with pytest.raises(NoListing, match="not below a root"):
        list(listing.files(str(tmp_path / "outside"), here))
    with pytest.raises(NoListing, match="not below a root"):
        list(listing.files(str(root / "v20200101/b"), here))


# --- mapfiles ---

ID = "CMIP6.CMIP.NCAR.CESM2.historical.r1i1p1f1.Amon.tas.gn"


def mapfile(path: Path, *lines: str) -> Path:
    path.write_text("\n".join(lines) + "\n")
    return path


def test_a_mapfile_says_dataset_version_and_checksum(root: Path, here: Site, tmp_path: Path) -> None:
    one = put(root / "v20200101/x y.nc", b"12345")
    two = put(root / "loose/z.nc", b"1")
    lines = (
        "# written by esgmapfiles",
        f"{ID}#20200101 | {one} | 5 | mod_time=1585.0 | checksum={SUM.upper()} | checksum_type=SHA256",
        "",
        f"{ID}.v20210101 | {two} | 1 | mod_time=1.0 | checksum=d41d8cd98f00b204e9800998ecf8427e | checksum_type=MD5",
    )
    listed = list(listing.files(str(mapfile(tmp_path / "m.map", *lines)), here))
    assert [(one.local, one.version, one.dataset, one.checksum) for one in listed if isinstance(one, ScanFile)] == [
        ("v20200101/x y.nc", "20200101", ID, SUM),
        ("loose/z.nc", "20210101", ID, None),
    ]


@pytest.mark.parametrize(
    ("line", "rule"),
    [
        ("no mapfile at all", "mapfile"),
        (f"{ID}#2020 | {{file}} | 5", "mapfile"),
        (f"{ID}#20200101 | {{file}} | five", "mapfile"),
        (f"{ID}#20200101 | {{file}} | 5 | checksum=xyz | checksum_type=SHA256", "mapfile"),
        (f"{ID}#20200101 | {{file}} | 6", "size"),
        (f"{ID}#20190101 | {{file}} | 5", "version"),
        (f"{ID}#20201301 | {{file}} | 5", "version"),
        (f"{ID}#20200101 | /etc/passwd | 5", "outside"),
        (f"{ID}#20200101 | ../../etc/passwd | 5", "unreadable"),
        (f"{ID}#20200101 | {{file}}.gone | 5", "unreadable"),
        ("\ufffd", "mapfile"),
    ],
)
def test_lines_of_no_use_are_named_and_the_others_go_on(
    root: Path, here: Site, tmp_path: Path, line: str, rule: str
) -> None:
    file, other = put(root / "v20200101/x.nc", b"12345"), put(root / "v20200101/y.nc", b"1")
    path = mapfile(tmp_path / "m.map", line.format(file=file), f"{ID}#20200101 | {other} | 1")
    fault, good = listing.files(str(path), here)
    assert isinstance(fault, Fault)
    assert fault.rule == rule
    assert isinstance(good, ScanFile)


def test_a_file_named_twice_counts_once(root: Path, here: Site, tmp_path: Path) -> None:
    file = put(root / "v20200101/x.nc")
    path = mapfile(tmp_path / "m.map", *[f"{ID}#20200101 | {file} | 1"] * 2)
    good, fault = listing.files(str(path), here)
    assert isinstance(good, ScanFile)
    assert isinstance(fault, Fault)
    assert "a second time" in fault.message


def test_what_is_no_mapfile_is_refused(root: Path, here: Site) -> None:
    with pytest.raises(NoListing, match="give its folder"):
        list(listing.files(str(put(root / "x.nc", b"\x89HDF\r\n\x1a\n123")), here))
    with pytest.raises(NoListing, match="cannot be read: No such file"):
        list(listing.files(str(root / "gone.map"), here))
