"""Programs of others that read our events, in an environment of their own (tools/event_readers.py)."""

from __future__ import annotations

import base64
import json
import os
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import orjson

from fedstac.domain.events import START
from fedstac.messaging.sinks import OutgoingEvent, place_headers
from fedstac.messaging.sinks.webhook import PLACE_PREFIX
from tests.support.places import REPOSITORY
from tests.support.waiting import PATIENCE

ENVIRONMENT = Path(os.environ.get("FEDSTAC_READERS") or REPOSITORY / ".venv-readers")
PYTHON, MARK = ENVIRONMENT / "bin" / "python", ENVIRONMENT / ".installed"
READER = REPOSITORY / "tests" / "support" / "event_readers.py"


def are_here() -> bool:
    """Return whether the packages are installed. On CI they have to be."""
    return MARK.is_file() or bool(os.environ.get("CI"))


def run(*arguments: str, given: bytes = b"") -> str:
    """Return what a reader prints."""
    result = subprocess.run(
        [PYTHON, READER, *arguments], input=given, capture_output=True, timeout=PATIENCE, check=False
    )
    assert result.returncode == 0, result.stderr.decode()
    return result.stdout.decode()


def read(reader: str, messages: Sequence[OutgoingEvent], binding: str = "kafka") -> list[dict[str, Any]]:
    """Return what a reader makes of messages, each with all of its headers, as a sink sends them."""
    prefix = PLACE_PREFIX if binding == "http" else ""
    lines: list[bytes] = []
    for message in messages:
        places = {f"{prefix}{name}": text for name, text in place_headers(message, START).items()}
        body = base64.b64encode(message.value).decode()
        headers = {**message.headers, **places}
        lines.append(orjson.dumps({"binding": binding, "key": message.key, "value": body, "headers": headers}))
    return [json.loads(line) for line in run(reader, given=b"\n".join(lines)).splitlines()]
