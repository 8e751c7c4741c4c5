"""Write the examples of the OpenAPI document: what a new node answers to the requests of tests/support/exchanges.py.

`make docs` runs it. A test sends the same requests and compares.
"""

from __future__ import annotations

import asyncio
import sys
import tempfile
from dataclasses import asdict
from pathlib import Path

import orjson

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from tests.support.databases import databases, make_template  # noqa: E402
from tests.support.exchanges import record  # noqa: E402

from fedstac.api.http.openapi import EXAMPLES, Example  # noqa: E402
from fedstac.demo import embedded  # noqa: E402


def main() -> None:
    """Record the examples on a private cluster and write them beside the modules of the API."""
    with tempfile.TemporaryDirectory(prefix="fedstac-examples-") as name:
        folder = Path(name)
        folder.chmod(0o755)  # PostgreSQL may run as another user
        exchanges = recorded(folder / "pg")
    target = ROOT / "src" / "fedstac" / "api" / EXAMPLES
    target.write_bytes(text_of(exchanges))
    sys.stdout.write(f"{target.relative_to(ROOT)}: {len(exchanges)} examples\n")


def recorded(folder: Path) -> list[Example]:
    """Return the exchanges with a new node on a new cluster."""
    with (
        embedded.cluster(folder, settings={"fsync": "off"}) as cluster,
        databases(cluster, make_template(cluster)) as make_database,
    ):
        return asyncio.run(record(make_database()))


def text_of(exchanges: list[Example]) -> bytes:
    """Return the file: what is empty is left out."""
    fields = [{name: value for name, value in asdict(one).items() if value not in ("", {}, None)} for one in exchanges]
    return orjson.dumps(fields, option=orjson.OPT_INDENT_2 | orjson.OPT_APPEND_NEWLINE)


if __name__ == "__main__":
    main()
