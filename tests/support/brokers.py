"""Real brokers for tests. Each is started when the first test of a process wants it, and serves all of its tests.

A test takes a stream or topic of its own (`fresh_name`). One that kills its broker starts a broker of its own.
"""

from __future__ import annotations

import shutil
import struct
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from itertools import count
from pathlib import Path

import pytest

from fedstac.demo import brokers, kafka
from fedstac.demo.brokers import BrokerMissing, NatsServer
from fedstac.demo.kafka import KafkaBroker

BATCH_HEADER = struct.Struct(">qi")  # of Kafka's log: the first offset, the length of what follows
_numbers = count(1)


@contextmanager
def broker_folder() -> Iterator[Path]:
    """Yield a folder for a broker, which goes with it."""
    folder = Path(tempfile.mkdtemp(prefix="fedstac-broker-"))
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def fresh_name() -> str:
    """Return a name of a stream or topic that no other test of this process has."""
    return f"TEST{next(_numbers)}"


@pytest.fixture(scope="session")
def nats_server() -> Iterator[NatsServer]:
    """A NATS server for all tests that do not end it."""
    with broker_folder() as folder, brokers.nats_server(folder) as server:
        yield server


@pytest.fixture
def own_nats_server() -> Iterator[NatsServer]:
    """A NATS server that a test may kill."""
    with broker_folder() as folder, brokers.nats_server(folder) as server:
        yield server


@pytest.fixture(scope="session")
def kafka_broker() -> Iterator[KafkaBroker]:
    """A Kafka broker for all tests that do not end it."""
    with _kafka_broker() as broker:
        yield broker


@pytest.fixture(scope="module")
def own_kafka_broker() -> Iterator[KafkaBroker]:
    """A Kafka broker that the tests of a module may kill and empty; they leave it running."""
    with _kafka_broker() as broker:
        yield broker


@contextmanager
def _kafka_broker() -> Iterator[KafkaBroker]:
    """Yield a broker; skip the test where there is no Java or Maven, which on CI is a failure."""
    with broker_folder() as folder, ExitStack() as stack:
        try:
            broker = stack.enter_context(kafka.kafka_broker(folder))
        except BrokerMissing as error:
            pytest.skip(str(error))
        yield broker


def cut_log(broker: KafkaBroker, topic: str, partition: int, *, batches: int) -> None:
    """Remove the last batches of a partition's log, the marks of transactions among them. The broker has ended."""
    folder = broker.folder / "data" / f"{topic}-{partition}"
    [log] = folder.glob("*.log")
    content, begins, at = log.read_bytes(), [], 0
    while at + BATCH_HEADER.size <= len(content) and (length := BATCH_HEADER.unpack_from(content, at)[1]):
        begins.append(at)
        at += BATCH_HEADER.size + length
    log.write_bytes(content[: begins[-batches]])
    for snapshot in folder.glob("*.snapshot"):  # of what producers had written
        snapshot.unlink()
