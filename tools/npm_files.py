"""Put files of npm packages where pages and tests find them: Swagger UI, htmx, axe-core. `make setup` runs it.

They come from the npm registry: by npm, which knows where that is, or by curl where NPM_CONFIG_REGISTRY says it. The
versions are pinned, and each archive has to have the digest below.
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
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


@dataclass(frozen=True)
class Package:
    """A package of the registry, the files that are taken from it, and the folder that they are put into."""

    name: str
    version: str
    sha512: str  # of its archive, base64
    files: tuple[str, ...]
    folder: Path
    use: str  # what is left out without it

    @property
    def marker(self) -> Path:
        """The file that says which version is there."""
        return self.folder / "VERSION"

    @property
    def is_there(self) -> bool:
        return self.marker.is_file() and self.marker.read_text() == self.version


PACKAGES = (
    Package(
        "swagger-ui-dist", "5.35.0",
        "U06rpMtW9V3XPGOBeamTUSr0Z09jMX4IJuANpE/EZbAhw0G8CgwrzU4YmXkn/h0wCDNsXdGarTNNHC3sU8yVUQ==",
        ("swagger-ui-bundle.js", "swagger-ui.css", "favicon-32x32.png", "LICENSE", "NOTICE"),
        ROOT / "src" / "fedstac" / "api" / "http" / "swagger_ui", "the page /api.html",
    ),
    Package(
        "htmx.org", "2.0.11",
        "Thx/WtpeOQqSrqBCw/A1cwGJGg4UrVa3+sW0GmrM3p4gJgO89ecH4qtbnyzDDWFvBTqjnIMCgELTNt636dtamA==",
        ("dist/htmx.min.js", "LICENSE"),
        ROOT / "src" / "fedstac" / "console" / "htmx", "the console's pages that update themselves",
    ),
    Package(  # for the tests; no page has it
        "axe-core", "4.14.1",
        "FHfa+lmNjQZfJz1q8wKqIDwC6DExcHt/pkjNQb09a3NPjCKg2rhu5qb2S4r76ASyFNNtuFooJpZe37OgudVGtQ==",
        ("axe.min.js", "LICENSE"), ROOT / ".venv" / "axe-core", "the console's test of accessibility",
    ),
)  # fmt: skip


def main() -> int:
    """Fetch and unpack what is missing. Return 0 also if it cannot be fetched: the node serves its pages without it."""
    failures = [package.name for package in PACKAGES if not package.is_there and not install(package)]
    return 1 if failures else 0


def install(package: Package) -> bool:
    """Fetch a package and write its files. Return False where the archive is another one than it should be."""
    with tempfile.TemporaryDirectory(prefix="fedstac-npm-") as folder:
        archive = fetch(package, Path(folder))
        if archive is None:
            return True
        digest = base64.b64encode(hashlib.sha512(archive.read_bytes()).digest()).decode()
        if digest != package.sha512:
            sys.stderr.write(
                f"setup: {package.name} {package.version} has the sha-512 {digest}, not the one in tools/npm_files.py\n"
            )
            return False
        unpack(package, archive)
    package.marker.write_text(package.version)
    return True


def fetch(package: Package, folder: Path) -> Path | None:
    """Download the archive into a folder; None if that is not possible here."""
    archive = folder / f"{package.name}-{package.version}.tgz"
    registry = os.environ.get("NPM_CONFIG_REGISTRY")
    if shutil.which("npm"):
        name = f"{package.name}@{package.version}"
        command = ["npm", "pack", name, "--silent", "--pack-destination", str(folder)]
    elif registry and shutil.which("curl"):
        command = ["curl", "-fsSL", "-o", str(archive), f"{registry.rstrip('/')}/{package.name}/-/{archive.name}"]
    else:
        say(f"npm is not here, so {package.use} is left out")
        return None
    result = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    if result.returncode != 0 or not archive.is_file():
        reason = result.stderr.strip()[-300:]
        say(f"{package.name} {package.version} cannot be fetched, so {package.use} is left out: {reason}")
        return None
    return archive


def unpack(package: Package, archive: Path) -> None:
    """Write the files that are needed."""
    package.folder.mkdir(parents=True, exist_ok=True)
    with tarfile.open(archive) as files:
        for name in package.files:
            member = files.extractfile(f"package/{name}")
            assert member is not None, name
            (package.folder / Path(name).name).write_bytes(member.read())


def say(text: str) -> None:
    """Write a line as the other parts of setup do."""
    sys.stdout.write(f"setup: {text}\n")


if __name__ == "__main__":
    raise SystemExit(main())
