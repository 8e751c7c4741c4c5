"""Site files: what they say, and that each fault is named."""

from __future__ import annotations

from pathlib import Path

import pytest

from fedstac.scan import site
from fedstac.scan.site import SiteBroken

WHOLE = """
node = "esgf.example.org"

[[roots]]
folder = "{root}"

[roots.urls]
opendap = "https://esgf.example.org/thredds/dodsC/data"
https = "https://esgf.example.org/thredds/fileServer/data/"

[roots.globus]
endpoint = "d1817efe-6324-077f-841a-11d2ca30cd2e"
path = "/css03 data"
"""


def write(folder: Path, text: str) -> Path:
    path = folder / "site.toml"
    path.write_text(text.replace("{root}", str(folder)))
    return path


def test_a_site(tmp_path: Path) -> None:
    read = site.read(write(tmp_path, WHOLE))
    [root] = read.roots
    assert root.protocol == "https"  # however they are ordered
    assert root.address("https", "a b/ü'#.nc") == (
        "https://esgf.example.org/thredds/fileServer/data/a%20b/%C3%BC%27%23.nc"
    )
    assert root.globus_address("CMIP6/x") == (
        "https://app.globus.org/file-manager?origin_id=d1817efe-6324-077f-841a-11d2ca30cd2e"
        "&origin_path=/css03%20data/CMIP6/x/"
    )
    assert read.access_of(root) == ["HTTPServer", "OPENDAP", "Globus"]


def test_access_can_be_said(tmp_path: Path) -> None:
    read = site.read(write(tmp_path, 'access = ["HTTPServer"]\n' + WHOLE))
    assert read.access_of(read.roots[0]) == ["HTTPServer"]


def test_one_fault_is_told_once(tmp_path: Path) -> None:
    with pytest.raises(SiteBroken) as caught:
        site.read(write(tmp_path, WHOLE.replace('https = "https://', 'https = "http://')))
    assert "at least 1 item" not in str(caught.value)
    assert str(caught.value).count(";") == 0


@pytest.mark.parametrize(
    ("old", "new", "reason"),
    [
        ('node = "esgf.example.org"', "", "node: Field required"),
        ('node = "esgf.example.org"', 'node = "esgf example"', "no node's name"),
        ('node = "esgf.example.org"', 'node = "esgf.example.org"\nnod = 1', "nod: Extra inputs"),
        ('folder = "{root}"', 'folder = "data"', "roots.0.folder: 'data' has to be an absolute path"),
        ('folder = "{root}"', 'folder = "/nowhere/at/all"', "no folder"),
        ('https = "https://esgf', 'https = "http://esgf', "not an address of https"),
        ("fileServer/data/", "fileServer/data?x=1", "no address to put a path after"),
        ("opendap =", "opendup =", "no protocol 'opendup'"),
        ("d1817efe-", "", "roots.0.globus.endpoint"),
        ('path = "/css03', 'path = "css03', "roots.0.globus.path"),
        ("[[roots]]", "[[roots", "no TOML"),
        ("[roots.globus]", '[[roots]]\nfolder = "{root}"\n[roots.urls]\ns3 = "s3://bucket"\n[roots.globus]', "overlap"),
    ],
)
def test_faults_are_named(tmp_path: Path, old: str, new: str, reason: str) -> None:
    path = write(tmp_path, WHOLE.replace(old, new))
    with pytest.raises(SiteBroken) as caught:
        site.read(path)
    assert reason in str(caught.value)
    assert "site.toml" in str(caught.value)


def test_a_file_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(SiteBroken, match="No such file"):
        site.read(tmp_path / "gone.toml")
