"""Runs stac-api-validator as a process of its own: `python -m tests.support.stac_api_validator SCHEMAS ARGUMENTS`.

ARGUMENTS are those of its `validate_api`, as JSON; what it finds goes to standard output, as JSON. What it asks the
hosts of schemas for comes from the folder SCHEMAS; nothing else leaves the machine.
"""

from __future__ import annotations

import io
import json
import sys
from pathlib import Path
from typing import Any

from urllib3.connectionpool import HTTPSConnectionPool
from urllib3.response import HTTPResponse

SCHEMAS = Path(sys.argv[1])


def answer(pool: HTTPSConnectionPool, method: str, url: str, *_: Any, **options: Any) -> HTTPResponse:
    """Answer in place of a host on the internet: with the schema that it has under this address, else 404."""
    path = SCHEMAS / pool.host / url.removeprefix(f"https://{pool.host}").partition("#")[0].lstrip("/")
    return HTTPResponse(
        io.BytesIO(path.read_bytes() if path.is_file() else b"{}"), status=200 if path.is_file() else 404,
        headers={"Content-Type": "application/json"}, request_method=method,
        preload_content=options.get("preload_content", True),
    )  # fmt: skip


def main() -> None:
    HTTPSConnectionPool.urlopen = answer  # type: ignore[assignment]
    from stac_api_validator.validations import QueryConfig, validate_api

    arguments = json.loads(sys.argv[2])
    arguments["query_config"] = QueryConfig(**arguments["query_config"])
    warnings, errors = validate_api(**arguments)
    print(json.dumps({"warnings": list(warnings), "errors": list(errors)}))


if __name__ == "__main__":
    main()
