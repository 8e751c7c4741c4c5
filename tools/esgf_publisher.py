"""Makes .venv-esgcet: ESGF's publisher (esgcet) as pinned, for tests/scenarios/test_esgf_publisher.py.

`--lock` pins it anew, for this version of Python and this kind of machine. About 760 MB.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[1]
ENVIRONMENT = REPOSITORY / ".venv-esgcet"
LOCK = REPOSITORY / "tests" / "scenarios" / "esgcet-requirements.lock"
WANTED = ("esgcet==5.5.3", "pandas<3")
HEAD = "# ESGF's publisher for tests/scenarios/test_esgf_publisher.py; made by: python tools/esgf_publisher.py --lock\n"


def lock() -> None:
    """Pins what pip would install, with the hash of each archive."""
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--dry-run", "--ignore-installed", "--report", "-"]
    said = subprocess.run([*command, *WANTED], check=True, capture_output=True, text=True).stdout
    lines = [
        f"{each['metadata']['name'].lower().replace('_', '-')}=={each['metadata']['version']} \\\n"
        f"    --hash=sha256:{each['download_info']['archive_info']['hashes']['sha256']}\n"
        for each in json.loads(said)["install"]
    ]
    LOCK.write_text(HEAD + "".join(sorted(lines)))


def install() -> None:
    """Nothing where it is there as the lock has it."""
    mark = ENVIRONMENT / ".installed"
    if mark.is_file() and mark.read_text() == LOCK.read_text():
        return
    subprocess.run([sys.executable, "-m", "venv", "--clear", str(ENVIRONMENT)], check=True)
    pip = [str(ENVIRONMENT / "bin" / "python"), "-m", "pip", "--disable-pip-version-check", "install", "--quiet"]
    subprocess.run([*pip, "--require-hashes", "--no-deps", "-r", str(LOCK)], check=True)
    mark.write_text(LOCK.read_text())


if __name__ == "__main__":
    if sys.argv[1:] == ["--lock"]:
        lock()
    else:
        install()
