"""A consumer as ESGF's sites write one: models of esgf-core-utils, a Kafka client, RFC 6902. It knows nothing of us.

It runs in an environment of its own (tools/esgf_publisher.py):
`python esgf_consumer.py validate` reads events from its input, a line each, and prints how many are valid KafkaEvents;
`python esgf_consumer.py follow SERVERS TOPIC COUNT` reads COUNT messages of a topic and prints the items, as JSON.
"""

import json
import sys

from esgf_core_utils.models.kafka import KafkaEvent  # type: ignore[import-not-found]


def steps_of(path: str) -> list[str]:
    return [step.replace("~1", "/").replace("~0", "~") for step in path.split("/")[1:]]


def apply(item: dict, operation: dict) -> None:  # type: ignore[type-arg]
    """Apply an operation to an item, strictly: what is replaced or removed has to be there."""
    *parents, last = steps_of(operation["path"])
    for step in parents:
        item = item[step]
    if operation["op"] in ("replace", "remove"):
        item[last]
    if operation["op"] == "remove":
        del item[last]
    else:
        item[last] = operation["value"]


def take(items: dict, value: bytes) -> None:  # type: ignore[type-arg]
    """Bring the items up to date with an event."""
    payload = KafkaEvent.model_validate_json(value).data.payload
    if payload.method == "POST":
        items[payload.item.id] = payload.item.model_dump(mode="json", exclude_unset=True)
        return
    for operation in payload.patch:
        apply(items[payload.item_id], operation.model_dump(mode="json", by_alias=True))


def validate() -> None:
    count = 0
    for line in sys.stdin.buffer:
        KafkaEvent.model_validate_json(line)
        count += 1
    print(count)


def follow(servers: str, topic: str, count: int) -> None:
    from confluent_kafka import Consumer

    consumer = Consumer({
        "bootstrap.servers": servers, "group.id": f"{topic}-consumer", "auto.offset.reset": "earliest",
        "enable.auto.commit": False, "isolation.level": "read_committed",
    })  # fmt: skip
    consumer.subscribe([topic])
    items: dict = {}  # type: ignore[type-arg]
    while count:
        message = consumer.poll(1.0)
        if message is None:
            continue
        if message.error():
            raise SystemExit(str(message.error()))
        take(items, message.value())
        count -= 1
    consumer.close()
    print(json.dumps(items))


if __name__ == "__main__":
    if sys.argv[1] == "validate":
        validate()
    else:
        follow(sys.argv[2], sys.argv[3], int(sys.argv[4]))
