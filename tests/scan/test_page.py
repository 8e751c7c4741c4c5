"""docs/scan.md says what the code does: each fault is there, and its site file is one."""

from __future__ import annotations

import re
import textwrap
from pathlib import Path

from fedstac.domain import crosschecks
from fedstac.scan import site
from tests.support.places import REPOSITORY

PAGE = (REPOSITORY / "docs/scan.md").read_text()
FAULT = re.compile(r"""(?:Fault\([^"()]*(?:\([^()]*\))?[^"()]*|Unusable\(\s*|fault = )"([a-z-]+)"[,]""")


def test_every_fault_is_explained() -> None:
    sources = [path.read_text() for path in (REPOSITORY / "src/fedstac/scan").glob("*.py")]
    named = {rule for source in sources for rule in FAULT.findall(source)}
    named.add(crosschecks.COVERAGE)
    explained = {
        rule
        for line in PAGE.partition("| fault |")[2].splitlines()
        if line.startswith("| `")
        for rule in re.findall(r"`([a-z-]+)`", line.split("|")[1])
    }
    assert named == explained


def test_the_site_file_is_one(tmp_path: Path) -> None:
    block = PAGE[PAGE.index("    node = ") : PAGE.index("A file's asset has")]
    path = tmp_path / "site.toml"
    path.write_text(textwrap.dedent(block).replace('"/data"  ', f'"{tmp_path}"'))
    assert site.read(path).node == "esgf-data.example.org"
