"""Services as others write them, with their libraries: GHGA's hexkit and event schemas, the SDK of CloudEvents, WMO's.

They know nothing of us. They run in an environment of their own (tools/event_readers.py):
`python event_readers.py ghga`, and `wis2` and `cloudevents` likewise, reads messages from its input, a line each as
JSON, and prints what it made of them. `python event_readers.py hexkit SERVERS TOPIC COUNT` reads COUNT messages of a
topic with hexkit.
"""

import asyncio
import base64
import json
import sys
from typing import Any

MODELS = {
    "dataset_upserted": "MetadataDatasetOverview", "dataset_deleted": "MetadataDatasetID",
    "searchable_resource_upserted": "SearchableResource", "searchable_resource_deleted": "SearchableResourceInfo",
}  # fmt: skip


def validated(event_type: str, payload: Any) -> Any:
    """Return a payload as the publisher of the schemas reads it, or fail."""
    import ghga_event_schemas.pydantic_ as schemas  # type: ignore[import-not-found]
    from ghga_event_schemas.validation import get_validated_payload  # type: ignore[import-not-found]

    model = getattr(schemas, MODELS[event_type])
    return json.loads(get_validated_payload(payload=payload, schema=model).model_dump_json())


def ghga(message: Any) -> Any:
    return validated(message["headers"]["type"], json.loads(base64.b64decode(message["value"]).decode("ascii")))


def cloudevents(message: Any) -> Any:
    """Read a message of Kafka or HTTP, in the structured or the binary form."""
    from cloudevents.core.bindings.http import HTTPMessage, from_http_event  # type: ignore[import-not-found]
    from cloudevents.core.bindings.kafka import KafkaMessage, from_kafka_event  # type: ignore[import-not-found]

    body = base64.b64decode(message["value"])
    if message["binding"] == "kafka":
        headers = {name: text.encode() for name, text in message["headers"].items()}
        event = from_kafka_event(KafkaMessage(headers=headers, key=message["key"], value=body))
    else:
        event = from_http_event(HTTPMessage(headers=message["headers"], body=body))
    attributes = {name: str(value) for name, value in event.get_attributes().items() if name != "time"}
    return {"attributes": attributes, "time": event.get_time().isoformat(), "data": event.get_data()}


def wis2(message: Any) -> Any:
    """Judge a notification with WMO's tests, all but that for its schema, which it would fetch."""
    from pywis_pubsub.ets import WNMTestSuite  # type: ignore[import-not-found]
    from pywis_pubsub.message import get_link  # type: ignore[import-not-found]

    suite = WNMTestSuite(json.loads(base64.b64decode(message["value"])))
    names = [name for name in dir(suite) if name.startswith("test_requirement") and not name.endswith("validation")]
    results = [getattr(suite, name)() for name in names]
    failed = [result for result in results if result["code"] != "PASSED"]
    return {"tests": len(results), "failed": failed, "link": get_link(suite.message["links"])}


async def hexkit(servers: str, topic: str, count: int) -> None:
    """Print what a service of hexkit has after messages of a topic, and each message as it got it."""
    from hexkit.correlation import get_correlation_id  # type: ignore[import-not-found]
    from hexkit.protocols.eventsub import EventSubscriberProtocol  # type: ignore[import-not-found]
    from hexkit.providers.akafka.config import KafkaConfig  # type: ignore[import-not-found]
    from hexkit.providers.akafka.provider.eventsub import KafkaEventSubscriber  # type: ignore[import-not-found]

    datasets: dict[str, Any] = {}
    messages: list[Any] = []

    class Translator(EventSubscriberProtocol):  # type: ignore[misc]
        def __init__(self) -> None:
            self.topics_of_interest = [topic]
            self.types_of_interest = list(MODELS)

        async def _consume_validated(self, *, payload: Any, type_: str, topic: str, key: str, event_id: Any) -> None:
            value = validated(type_, payload)
            messages.append([type_, key, str(event_id), str(get_correlation_id())])
            if type_.endswith("_deleted"):
                datasets.pop(key, None)
            else:
                datasets[key] = value

    config = KafkaConfig(service_name=f"{topic}-reader", service_instance_id="1", kafka_servers=[servers])
    async with KafkaEventSubscriber.construct(config=config, translator=Translator()) as subscriber:
        for _ in range(count):
            await subscriber.run(forever=False)
    print(json.dumps({"datasets": datasets, "messages": messages}))


def main() -> None:
    if sys.argv[1] == "hexkit":
        asyncio.run(hexkit(sys.argv[2], sys.argv[3], int(sys.argv[4])))
        return
    reader = {"ghga": ghga, "cloudevents": cloudevents, "wis2": wis2}[sys.argv[1]]
    for line in sys.stdin.buffer:
        print(json.dumps(reader(json.loads(line)), default=str))


if __name__ == "__main__":
    main()
