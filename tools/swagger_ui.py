"""Put the files of Swagger UI, which shows /api.html, into the package. `make setup` runs it.

They come from the npm registry: by npm, which knows where that is, or by curl where NPM_CONFIG_REGISTRY says it. The
version is pinned, and the archive has to have the digest below.
"""

from __future__ import annotations

import base64
import hashlib
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

PACKAGE, VERSION = "swagger-ui-dist", "5.35.0"
SHA512 = "U06rpMtW9V3XPGOBeamTUSr0Z09jMX4IJuANpE/EZbAhw0G8CgwrzU4YmXkn/h0wCDNsXdGarTNNHC3sU8yVUQ=="
FILES = ("swagger-ui-bundle.js", "swagger-ui.css", "favicon-32x32.png", "LICENSE", "NOTICE")
TARGET = Path(__file__).resolve().parents[1] / "src" / "fedstac" / "api" / "http" / "swagger_ui"


def main() -> int:
    """Fetch and unpack what is missing. Return 0 also if it cannot be fetched: the node says so at /api.html."""
    marker = TARGET / "VERSION"
    if marker.is_file() and marker.read_text() == VERSION:
        return 0
    with tempfile.TemporaryDirectory(prefix="fedstac-swagger-ui-") as folder:
        archive = fetch(Path(folder))
        if archive is None:
            return 0
        digest = base64.b64encode(hashlib.sha512(archive.read_bytes()).digest()).decode()
        if digest != SHA512:
            sys.stderr.write(
                f"setup: {PACKAGE} {VERSION} has the sha-512 {digest}, not the one in tools/swagger_ui.py\n"
            )
            return 1
        unpack(archive)
    marker.write_text(VERSION)
    return 0


def fetch(folder: Path) -> Path | None:
    """Download the archive into a folder; None if that is not possible here."""
    archive = folder / f"{PACKAGE}-{VERSION}.tgz"
    registry = os.environ.get("NPM_CONFIG_REGISTRY")
    if shutil.which("npm"):
        command = ["npm", "pack", f"{PACKAGE}@{VERSION}", "--silent", "--pack-destination", str(folder)]
    elif registry and shutil.which("curl"):
        command = ["curl", "-fsSL", "-o", str(archive), f"{registry.rstrip('/')}/{PACKAGE}/-/{archive.name}"]
    else:
        say("npm is not here, so the page /api.html is left out; the description at /api is there")
        return None
    result = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    if result.returncode != 0 or not archive.is_file():
        say(f"{PACKAGE} {VERSION} cannot be fetched, so the page /api.html is left out: {result.stderr.strip()[-300:]}")
        return None
    return archive


def unpack(archive: Path) -> None:
    """Write the files that the page needs."""
    TARGET.mkdir(exist_ok=True)
    with tarfile.open(archive) as files:
        for name in FILES:
            member = files.extractfile(f"package/{name}")
            assert member is not None, name
            (TARGET / name).write_bytes(member.read())


def say(text: str) -> None:
    """Write a line as the other parts of setup do."""
    sys.stdout.write(f"setup: {text}\n")


if __name__ == "__main__":
    raise SystemExit(main())
