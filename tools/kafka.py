#!/usr/bin/env python3
"""Fetch the jars of Apache Kafka for the tests and `fedstac demo --broker kafka`. `make kafka` runs it.

tools/kafka.py               # fetch them if they are not there, and check them
tools/kafka.py --write-sums  # after a change of docker/kafka/pom.xml: write libs.sha256 anew; then read its diff
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

from fedstac import settings
from fedstac.demo import kafka
from fedstac.demo.brokers import BrokerFailed, BrokerMissing


def main(arguments: list[str]) -> int:
    """Do what the arguments ask for. Return the exit code."""
    try:
        if arguments == ["--write-sums"]:
            with tempfile.TemporaryDirectory(prefix="fedstac-kafka-") as folder:
                kafka.fetch(Path(folder))
                (settings.folder("docker/kafka") / "libs.sha256").write_text(kafka.sums_of(Path(folder)))
        elif arguments:
            sys.stderr.write(__doc__ or "")
            return 2
        say(f"the jars of Apache Kafka are in {kafka.install(say)}")
    except (BrokerMissing, BrokerFailed) as error:
        sys.stderr.write(f"kafka: {error}\n")
        return 1
    return 0


def say(text: str) -> None:
    """Write a line as setup does."""
    sys.stdout.write(f"kafka: {text}\n")


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
