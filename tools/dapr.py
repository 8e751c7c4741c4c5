#!/usr/bin/env python3
"""Build Dapr's sidecar for the tests that are marked `dapr`. `make dapr` runs it; it needs Go.

tools/dapr.py                # build it if it is not there
"""

from __future__ import annotations

import sys

from fedstac.demo import dapr
from fedstac.demo.brokers import BrokerMissing


def main(arguments: list[str]) -> int:
    """Build the sidecar. Return the exit code."""
    if arguments:
        sys.stderr.write(__doc__ or "")
        return 2
    try:
        say(f"the sidecar is {dapr.build(say)}")
    except BrokerMissing as error:
        sys.stderr.write(f"dapr: {error}\n")
        return 1
    return 0


def say(text: str) -> None:
    """Write a line as setup does."""
    sys.stdout.write(f"dapr: {text}\n")


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
