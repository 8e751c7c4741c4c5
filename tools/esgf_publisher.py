"""Make .venv-esgcet: ESGF's publisher (esgcet) and models of its events (esgf-core-utils) with their pinned packages.

tests/scenarios/test_esgf_publisher.py and tests/messaging/test_esgf_consumer.py run them.

`make test` runs this. It does nothing if the environment is there with the packages of the lock. If packages cannot be
fetched, it says so, and that test is skipped; with CI set, it fails. `--lock` pins the packages anew (needs uv).

It takes 620 MB, and some 40 s on two cores. `import esgcet` imports scipy, pandas, duckdb, numpy, numcodecs and
netCDF4: nine tenths of that. The rest (pyproj, shapely, fastparquet, …; 100 MB, 5 s) is installed too, so that the test
runs what `pip install esgcet` gives to anybody. Bytecode is made when it is first used.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[1]
ENVIRONMENT = REPOSITORY / ".venv-esgcet"
PYTHON = ENVIRONMENT / "bin" / "python"
MARK = ENVIRONMENT / ".installed"  # holds the lock that was installed
LOCK = REPOSITORY / "tests" / "scenarios" / "esgcet-requirements.lock"
REQUIREMENTS = "esgcet==5.5.3\npandas<3\nesgf-core-utils==1.0.6\nconfluent-kafka==2.16.1\n"
HEAD = "# ESGF's publisher and models for tests; made by: python tools/esgf_publisher.py --lock\n"
SHOWN_LINES = 3  # of what pip said last


class Unavailable(Exception):
    """The packages cannot be fetched; the message ends with the last lines of pip."""


def lock() -> None:
    """Pin the newest packages that fit, for every Python and machine that it runs on."""
    command = ["uv", "pip", "compile", "--universal", "--python-version", "3.11", "--generate-hashes", "--no-header",
               "--no-annotate", "--no-emit-index-url", "--no-emit-find-links", "--quiet", "-"]  # fmt: skip
    LOCK.write_text(
        HEAD + subprocess.run(command, input=REQUIREMENTS, text=True, check=True, stdout=subprocess.PIPE).stdout
    )


def is_installed() -> bool:
    return PYTHON.exists() and MARK.is_file() and MARK.read_text() == LOCK.read_text()


def install() -> None:
    """Make the environment anew. Unavailable if that fails: then the next run begins anew."""
    total, began = sum(line[0].isalnum() for line in LOCK.read_text().splitlines()), time.monotonic()
    print(
        f"esgf publisher: installing esgcet and {total - 1} packages into {ENVIRONMENT.name} (620 MB, a minute)",
        flush=True,
    )
    subprocess.run([sys.executable, "-m", "venv", "--clear", str(ENVIRONMENT)], check=True)
    pip = [str(PYTHON), "-m", "pip", "--disable-pip-version-check", "--no-input", "install", "--progress-bar", "off"]
    _run_pip([*pip, "--no-compile", "--require-hashes", "--no-deps", "-r", str(LOCK)], total)
    MARK.write_text(LOCK.read_text())
    print(f"esgf publisher: installed in {time.monotonic() - began:.0f} s")


def _run_pip(command: list[str], total: int) -> None:
    """Run pip, and show on a terminal how far it is."""
    output: list[str] = []
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as running:
        assert running.stdout is not None
        for line in running.stdout:
            output.append(line)
            if line.startswith("Collecting ") and sys.stdout.isatty():
                count = sum(each.startswith("Collecting ") for each in output)
                print(f"\r  {count}/{total} {line.split()[1][:40]:<40}", end="", flush=True)
    if sys.stdout.isatty():
        print("\r" + " " * 60, end="\r")
    if running.returncode:
        raise Unavailable("".join(output[-SHOWN_LINES:]))


def main() -> int:
    if sys.argv[1:] == ["--lock"]:
        lock()
        return 0
    if is_installed():
        return 0
    try:
        install()
    except (Unavailable, subprocess.CalledProcessError, OSError) as error:
        print(f"{error}\nesgf publisher: esgcet cannot be installed, so its tests are not run", file=sys.stderr)
        return 1 if os.environ.get("CI") else 0
    return 0


if __name__ == "__main__":
    sys.exit(main())
