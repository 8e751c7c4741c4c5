"""The wheel of this checkout, installed as docs/install.md says, has everything that a node needs."""

from __future__ import annotations

import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

from tests.docs.shell import REPOSITORY, commands

SECTION = "From a checkout"


@pytest.mark.long
def test_a_wheel_of_the_checkout_installs_beside_the_locked_packages_and_runs(tmp_path: Path) -> None:
    page = [command.text for command in commands(REPOSITORY / "docs/install.md") if command.section == SECTION]
    assert [text.split()[0] for text in page] == ["python3", *["/opt/fedstac/bin/pip"] * 3, "/opt/fedstac/bin/fedstac"]
    checkout, place = tmp_path / "checkout", tmp_path / "fedstac"
    _copy_checkout(checkout)
    for n, text in enumerate(page):
        command = text.replace("/opt/fedstac", str(place)).replace("python3", sys.executable)
        done = subprocess.run(
            ["bash", "-c", command],
            cwd=checkout,
            env=_environment(tmp_path),
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, f"{text}: {done.stdout}{done.stderr}"
        if n == 0:
            _lend_packages(place, tmp_path / "packages")
    printed = subprocess.run(
        [place / "bin/python", "-c", "from fedstac.settings import folder; import fedstac\n"
         "print(fedstac.__file__); print(len(list(folder('migrations').glob('*.sql'))), folder('cv'))"],
        cwd=tmp_path, env=_environment(tmp_path), capture_output=True, text=True, check=True,
    ).stdout  # fmt: skip
    module, folders = printed.splitlines()
    assert Path(module).is_relative_to(place)
    count, vocabularies = folders.split()
    assert int(count) == len(list((REPOSITORY / "migrations").glob("*.sql")))
    assert Path(vocabularies).is_relative_to(place)


def _environment(folder: Path) -> dict[str, str]:
    return {"PATH": "/usr/bin:/bin", "HOME": str(folder), "PIP_DISABLE_PIP_VERSION_CHECK": "1", "PIP_NO_INDEX": "1"}


def _copy_checkout(there: Path) -> None:
    tracked = subprocess.run(["git", "ls-files"], cwd=REPOSITORY, capture_output=True, text=True, check=True).stdout
    for name in tracked.splitlines():
        if not name.startswith(("tests/", "benchmarks/", "docs/")) and (REPOSITORY / name).exists():
            (there / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(REPOSITORY / name, there / name)


def _lend_packages(environment: Path, links: Path) -> None:
    """Link the packages of the tests into the environment, all but fedstac; the lock pins them too."""
    links.mkdir()
    for entry in Path(sysconfig.get_path("purelib")).iterdir():
        if "fedstac" not in entry.name and not entry.name.startswith(("pip", "setuptools")):
            (links / entry.name).symlink_to(entry)
    [packages] = environment.glob("lib/python3*/site-packages")
    (packages / "packages.pth").write_text(f"{links}\n")
