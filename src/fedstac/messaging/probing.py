"""Looks at brokers for a doctor: do they answer, and are they set up for our events? Nothing is written there."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from fedstac.domain.diagnosis import LARGEST_MESSAGE
from fedstac.messaging.sources.addresses import BrokerAddress
from fedstac.runtime.wakeup import pause

CONNECT_SECONDS = 5.0
ANSWER_SECONDS = 10.0
KNOCK_SECONDS = 1.0  # between looks whether a broker can be reached again, and for each of them
ANSWERING_SECONDS = 0.5


@dataclass(frozen=True, slots=True)
class Defect:
    """What is wrong with a broker, and what to do. `is_away`: it does not answer at all."""

    why: str
    remedy: str
    is_away: bool = False


async def knock(host: str, port: int, *, seconds: float = CONNECT_SECONDS) -> str | None:
    """Return why nobody answers at a port; None where somebody does."""
    try:
        async with asyncio.timeout(seconds):
            _, writer = await asyncio.open_connection(host, port)
    except TimeoutError:
        return f"no answer within {seconds:.0f} s"
    except OSError as error:
        return error.strerror or str(error)
    writer.close()
    return None


async def can_be_reached(address: BrokerAddress) -> bool:
    """Return whether somebody answers at the port of one of the servers."""
    reasons = await asyncio.gather(
        *(knock(*_host_and_port(server), seconds=KNOCK_SECONDS) for server in address.servers)
    )
    return None in reasons


async def pause_until_back(address: BrokerAddress, stop: asyncio.Event, seconds: float) -> None:
    """Wait between two attempts at a broker; not beyond `stop`, nor much longer than until it can be reached again.

    What answers at its port, and yet failed, is tried again after ANSWERING_SECONDS: it may be about to start.
    """
    deadline = time.monotonic() + seconds
    while not stop.is_set() and (rest := deadline - time.monotonic()) > 0:
        if await can_be_reached(address):
            await pause(stop, min(rest, ANSWERING_SECONDS))
            return
        await pause(stop, min(rest, KNOCK_SECONDS))


async def defects(address: BrokerAddress) -> list[Defect]:
    """Return what is wrong with the broker of an address."""
    reasons = await asyncio.gather(*(knock(*_host_and_port(server)) for server in address.servers))
    refusals = [
        f"{server}: {reason}" for server, reason in zip(address.servers, reasons, strict=True) if reason is not None
    ]
    if len(refusals) == len(address.servers):
        return [Defect("; ".join(refusals), "start it, or see to the address", is_away=True)]
    more = [Defect(refusal, "start this one too: the others carry on without it") for refusal in refusals]
    try:
        match address.scheme:
            case "nats":
                return more + await _of_nats(address)
            case "kafka":
                return more + await _of_kafka(address)
            case _:
                raise AssertionError(f"nobody knows what to ask of {address.scheme}://")
    except ModuleNotFoundError as error:
        return [Defect(f"the module {error.name} is missing", f"pip install 'fedstac[{address.scheme}]'")]
    except TimeoutError:
        return [*more, Defect(f"no answer within {ANSWER_SECONDS:.0f} s", "see its log", is_away=True)]


def _host_and_port(server: str) -> tuple[str, int]:
    host, _, port = server.rpartition(":")
    return host.strip("[]"), int(port)


async def _of_nats(address: BrokerAddress) -> list[Defect]:
    from fedstac.messaging import jetstream

    connection = jetstream.Connection()
    stream = jetstream.stream_of(address)
    try:
        async with asyncio.timeout(ANSWER_SECONDS):
            await connection.open(stream)
            server_defects = []
            if connection.client.max_payload < LARGEST_MESSAGE:
                server_defects.append(Defect(
                    f"max_payload is {connection.client.max_payload}: large events are refused",
                    f"max_payload: {LARGEST_MESSAGE} in nats-server.conf, as docker/nats has it",
                ))  # fmt: skip
            try:
                info = await connection.ask(f"STREAM.INFO.{stream.stream}")
            except jetstream.ApiFault as problem:
                if problem.code == jetstream.STREAM_MISSING:
                    return server_defects  # the relay makes it
                raise
            return server_defects + _of_stream(stream.stream, info["config"])
    except jetstream.ApiFault as problem:
        return [Defect(str(problem), "see to the rights of the user, and to the server's log")]
    except jetstream.ServerAway as error:
        return [Defect(str(error), "see to the server", is_away=True)]
    except jetstream.ServerRefused as error:
        return [Defect(str(error), "see to the file that ?config= names, and to the server's users")]
    finally:
        await connection.close()


def _of_stream(name: str, config: Mapping[str, Any]) -> list[Defect]:
    stream_defects = []
    if not config.get("allow_atomic"):
        stream_defects.append(
            Defect(f"the stream {name} takes no atomic batches", f"nats stream edit {name} --allow-batch")
        )
    if 0 < config.get("max_msg_size", -1) < LARGEST_MESSAGE:
        stream_defects.append(Defect(
            f"the stream {name} takes messages of {config['max_msg_size']} bytes only",
            f"nats stream edit {name} --max-msg-size {LARGEST_MESSAGE}",
        ))  # fmt: skip
    if config.get("storage") != "file":
        stream_defects.append(Defect(
            f"the stream {name} is in memory: it is empty after a restart, and filled anew each time",
            f"remove it and let the relay make it: nats stream rm {name}",
        ))  # fmt: skip
    if config.get("discard") == "new":
        stream_defects.append(Defect(
            f"the stream {name} refuses new messages when it is full", f"nats stream edit {name} --discard old"
        ))  # fmt: skip
    return stream_defects


async def _of_kafka(address: BrokerAddress) -> list[Defect]:
    from fedstac.messaging import kafka

    def look() -> list[Defect]:
        from confluent_kafka import KafkaException, TopicCollection
        from confluent_kafka.admin import AdminClient, ConfigResource

        admin = AdminClient(kafka.read_properties(address))
        try:
            future = admin.describe_topics(TopicCollection([address.name]), request_timeout=ANSWER_SECONDS)
            future[address.name].result()
        except KafkaException as error:
            if error.args[0].code() == error.args[0].UNKNOWN_TOPIC_OR_PART:
                return []  # the relay makes it
            raise
        resource = ConfigResource(ConfigResource.Type.TOPIC, address.name)
        config = admin.describe_configs([resource], request_timeout=ANSWER_SECONDS)[resource].result()
        return _of_topic(address.name, {name: entry.value for name, entry in config.items()})

    try:
        return await asyncio.to_thread(look)
    except kafka.KafkaRefused as error:
        return [Defect(str(error), "see to the file that ?config= names")]
    except kafka.ERRORS as error:
        problem = kafka.as_fault(kafka.error_of(error), address)
        is_away = isinstance(problem, kafka.KafkaAway)
        return [Defect(str(problem), "see to the brokers" if is_away else "see to this node's rights", is_away=is_away)]


def _of_topic(name: str, config: Mapping[str, Any]) -> list[Defect]:
    topic_defects = []
    if int(config.get("max.message.bytes") or LARGEST_MESSAGE) < LARGEST_MESSAGE:
        topic_defects.append(Defect(
            f"the topic {name} takes messages of {config['max.message.bytes']} bytes only",
            f"kafka-configs.sh --alter --topic {name} --add-config max.message.bytes={LARGEST_MESSAGE}",
        ))  # fmt: skip
    if "compact" in str(config.get("cleanup.policy", "")):
        topic_defects.append(Defect(
            f"the topic {name} is compacted: events are removed, and their places are holes",
            f"kafka-configs.sh --alter --topic {name} --add-config cleanup.policy=delete",
        ))  # fmt: skip
    return topic_defects
