"""The description of what goes out and comes in as messages, as AsyncAPI 3.0: from the table of dialects and the types.

The JSON Schemas of the messages are not in the document. They have addresses that stay, and it refers to them.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final
from urllib.parse import urlsplit

from fedstac.api.http import links
from fedstac.domain import events, grants
from fedstac.domain.events import EventFormat
from fedstac.messaging.dialects import Dialect
from fedstac.messaging.formats import DIALECTS, schema_of
from fedstac.messaging.hubs import Hub

Json = dict[str, Any]

SCHEMAS: Final = "/schemas/messages/v1"
SCHEMA: Final = "application/schema+json"
FORMAT_OF_SCHEMAS: Final = "application/schema+json;version=draft-2020-12"
HTTP: Final = {"bindingVersion": "0.3.0"}
KAFKA: Final = {"bindingVersion": "0.5.0"}
NATS: Final = {"bindingVersion": "0.1.0"}
TEXT: Final = {"type": "string"}
REPORT, CRUD_REPORT = "deletion-report", "deletion-report-of-a-service"
PLACE: Final[Mapping[str, str]] = {
    "pos": "The place of the event in the log.",
    "epoch": "The epoch of the log.",
    "prev": "The place of the event that was sent before it.",
    "ce-id": "The id of the event.",
    "redrive": "1 where it is sent again, behind events that come after it.",
    "tail": "With redrive: where the log ends, as epoch.pos.",
}
SIGNATURE: Final[Mapping[str, str]] = {
    "webhook-id": "The id of the event (Standard Webhooks).",
    "webhook-timestamp": "When it was sent, in seconds since 1970.",
    "webhook-signature": "The signature.",
}
MEANINGS: Final[Mapping[EventFormat, str]] = {
    EventFormat.CLOUDEVENTS: "The native event: CloudEvents 1.0 in JSON, with the full new state.",
    EventFormat.CLOUDEVENTS_BINARY: "The native event in the binary form: its attributes are headers.",
    EventFormat.ESGF: "The event of ESGF's consumers.",
    EventFormat.OGC: "A notification of OGC API Publish-Subscribe (draft 25-030).",
    EventFormat.WIS2: "A notification of WIS2, by reference.",
    EventFormat.OVERVIEW: "A dataset's title and files, for download services.",
    EventFormat.RESOURCE: "A dataset as a search service indexes it.",
    EventFormat.CRUD: "An id and what became of it, in Dapr's envelope.",
}


def event_types() -> tuple[str, ...]:
    """Return the types of all events that a log or a delivery has; entries of a snapshot are no events."""
    own = {text for text in vars(events).values() if isinstance(text, str) and text.endswith(".v1")}
    return tuple(sorted((own - {events.CURRENT, events.COLLECTION_CURRENT}) | set(grants.TYPES)))


def message_of(event_type: str, form: EventFormat) -> str:
    """Return the name of the message that an event of a type is in a format."""
    native = event_type.removeprefix(events.PREFIX).removesuffix(".v1")
    return native if form is EventFormat.CLOUDEVENTS else form.value


def schema_url(base_url: str, form: EventFormat) -> str:
    """Return the address of the JSON Schema of a format's messages, which stays."""
    return f"{base_url}{SCHEMAS}/{form}"


def schema(base_url: str, form: EventFormat) -> Json:
    """Return the JSON Schema of a format's messages, with its address."""
    return {"$id": schema_url(base_url, form), **schema_of(form)}


def document(*, title: str, version: str, base_url: str, hubs: Sequence[Hub] = ()) -> Json:
    """Return the AsyncAPI document of a node. base_url: where it is for its clients, without a slash at the end."""
    messages = _messages(base_url)
    channels = _channels(base_url, hubs)
    return {
        "asyncapi": "3.0.0",
        "info": {
            "title": title, "version": version, "license": {"name": "Apache 2.0"},
            "description": "What a STAC catalogue of a data federation tells of its changes, and what it is told of "
            "deletions. Every change is an event of one log. All channels carry the same events, each message in one "
            "of the formats.",
            "externalDocs": {"description": "The routes, as OpenAPI", "url": f"{base_url}/api"},
        },
        "defaultContentType": "application/json",
        "servers": _servers(base_url, hubs),
        "channels": channels,
        "operations": {name: _operation(name, channel) for name, channel in channels.items()},
        "components": {
            "messages": messages,
            "securitySchemes": {
                "bearer": {"type": "http", "scheme": "bearer", "description": "A token of this node."},
                "sidecar": {
                    "type": "httpApiKey", "in": "header", "name": "dapr-api-token",
                    "description": "A token of this node, as a Dapr sidecar sends it (APP_API_TOKEN).",
                },
            },
        },
    }  # fmt: skip


def hub_channel(hub: Hub, hubs: Sequence[Hub]) -> str:
    """Return the name of the channel of a hub; the landing page has it, too."""
    return f"hub-{hubs.index(hub) + 1}"


# --- servers


def _servers(base_url: str, hubs: Sequence[Hub]) -> Json:
    url = urlsplit(base_url)
    node = {
        "host": url.netloc, "protocol": url.scheme, "description": "This node.",
        "security": [{"$ref": "#/components/securitySchemes/bearer"}],
    }  # fmt: skip
    servers: Json = {
        "node": node | ({"pathname": url.path} if url.path else {}),
        "receiver": _elsewhere("https", "Whoever receives webhooks."),
        "kafka": _elsewhere("kafka", "A broker that a sink of this node sends to."),
        "nats": _elsewhere("nats", "A server of NATS that a sink of this node sends to."),
        "sidecar": _elsewhere("http", "A Dapr sidecar beside this node."),
    }
    for hub in hubs:
        servers[hub_channel(hub, hubs)] = {
            "host": ",".join(hub.broker.servers), "protocol": hub.broker.scheme,
            "description": "A broker that readers of this node's log may use.",
        }  # fmt: skip
    return servers


def _elsewhere(protocol: str, description: str) -> Json:
    host = {"description": "Host and port.", "default": "localhost"}
    return {"host": "{host}", "protocol": protocol, "description": description, "variables": {"host": host}}


# --- channels


def _channels(base_url: str, hubs: Sequence[Hub]) -> Json:
    native = [message_of(each, EventFormat.CLOUDEVENTS) for each in event_types()]
    everything = [*native, *(form.value for form in EventFormat if form is not EventFormat.CLOUDEVENTS)]
    channels = {
        "feed": _channel("/events", "node", native, "The log of this node, a page at a time. For nodes."),
        "stream": _channel("/events/stream", "node", native, "The log as one long answer (Server-Sent Events)."),
        "changes": _channel("/changes", "node", everything, "What changed since a cursor, with a filter. For anybody."),
        "subscription": _channel(
            "/subscriptions/{subscription}/next", "node", everything,
            "What a subscription has for its owner, with a lease. The subscription names the format and the filter.",
            subscription="The name of the subscription.",
        ),
        "webhook": _channel(
            None, "receiver", everything, "What is posted to a sink or a subscription: each message is one signed POST."
        ),
        "topic": _channel(
            "{topic}", "kafka", everything, "A topic of Kafka that a sink writes.", topic="The name of the topic."
        ),
        "subject": _channel(
            "{stream}.{project}.{type}", "nats", everything, "The subjects of a stream of NATS that a sink writes.",
            stream="The name of the stream.", project="The id of the collection.",
            type="The type of the event, with its dots.",
        ),
        "dapr": _channel(
            "/v1.0/publish/{pubsub}/{topic}", "sidecar", everything,
            "A topic that a Dapr sidecar publishes. A message that is no CloudEvent gets an envelope of Dapr.",
            pubsub="The name of the component.", topic="The name of the topic.",
        ),
        "deletion-reports": _channel(
            "/deletions/reports", "node", [REPORT], "How far nodes and services are with their part of deletions."
        ),
        "dapr-deletion-reports": _channel(
            "/dapr/deletion-reports", "node", [REPORT, CRUD_REPORT],
            "The same, brought by a Dapr sidecar from the topics of FEDSTAC_DAPR_REPORTS, in a CloudEvent.",
        ),
    }  # fmt: skip
    for hub in hubs:
        names = native if hub.format is EventFormat.CLOUDEVENTS else [hub.format.value]
        name = hub_channel(hub, hubs)
        text = f"The log of this node at a broker, in the format `{hub.format}`."
        channels[name] = _channel(hub.channel, name, names, text) | {"bindings": _channel_bindings(hub)}
    data = {"type": links.JSON, "rel": "data", "href": f"{base_url}/collections"}
    return {name: channel | {"x-ogc-link": data} for name, channel in channels.items()}


def _channel(
    address: str | None, server: str, messages: Iterable[str], description: str, **parameters: str
) -> dict[str, Any]:
    channel: Json = {
        "address": address, "description": description, "servers": [{"$ref": f"#/servers/{server}"}],
        "messages": {name: {"$ref": f"#/components/messages/{name}"} for name in messages},
    }  # fmt: skip
    if parameters:
        channel["parameters"] = {name: {"description": text} for name, text in parameters.items()}
    return channel


def _channel_bindings(hub: Hub) -> Json:
    return {"kafka": {"topic": hub.channel, **KAFKA}} if hub.broker.scheme == "kafka" else {"nats": dict(NATS)}


METHODS: Final[Mapping[str, str]] = {
    "feed": "GET", "stream": "GET", "changes": "GET", "subscription": "GET", "webhook": "POST", "dapr": "POST",
    "deletion-reports": "POST", "dapr-deletion-reports": "POST",
}  # fmt: skip
RECEIVED: Final = ("deletion-reports", "dapr-deletion-reports")  # what this node is told


def _operation(name: str, channel: Mapping[str, Any]) -> Json:
    operation: Json = {
        "action": "receive" if name in RECEIVED else "send",
        "channel": {"$ref": f"#/channels/{name}"},
        "summary": channel["description"],
        "messages": [{"$ref": f"#/channels/{name}/messages/{message}"} for message in channel["messages"]],
    }
    if name in METHODS:
        operation["bindings"] = {"http": {"method": METHODS[name], **HTTP}}
    elif name == "topic" or "kafka" in channel.get("bindings", {}):
        operation["bindings"] = {"kafka": dict(KAFKA)}
    else:
        operation["bindings"] = {"nats": dict(NATS)}
    if name == "dapr-deletion-reports":
        operation["security"] = [{"$ref": "#/components/securitySchemes/sidecar"}]
    return operation


# --- messages


def _messages(base_url: str) -> Json:
    native = DIALECTS[EventFormat.CLOUDEVENTS]
    own = schema_url(base_url, EventFormat.CLOUDEVENTS)
    messages: Json = {}
    for event_type in event_types():
        payload = {"allOf": [{"$ref": own}, {"properties": {"type": {"const": event_type}}}]}
        name = message_of(event_type, EventFormat.CLOUDEVENTS)
        messages[name] = _message(event_type, MEANINGS[EventFormat.CLOUDEVENTS], native, payload)
    for form, dialect in DIALECTS.items():
        if form is not EventFormat.CLOUDEVENTS:
            message = _message(form.value, MEANINGS[form], dialect, {"$ref": schema_url(base_url, form)})
            messages[form.value] = message | {
                "x-fedstac-types": [each for each in event_types() if dialect.takes(each)]
            }
    for name, component in ((REPORT, "DeletionReports"), (CRUD_REPORT, "CrudOperation")):
        address = f"{base_url}/api#/components/schemas/{component}"
        messages[name] = {
            "name": name, "title": component, "contentType": links.JSON,
            "payload": {"schemaFormat": links.OPENAPI, "schema": {"$ref": address}},
        }  # fmt: skip
    return messages


def _message(name: str, summary: str, dialect: Dialect, payload: Json) -> Json:
    return {
        "name": name,
        "title": name,
        "summary": summary,
        "contentType": dialect.content_type,
        "headers": _headers(PLACE),
        "payload": {"schemaFormat": FORMAT_OF_SCHEMAS, "schema": payload},
        "bindings": {
            "http": {
                "headers": _headers({**SIGNATURE, **{f"fedstac-{name}": text for name, text in PLACE.items()}}),
                **HTTP,
            },
            "kafka": {"key": {**TEXT, "description": f"{dialect.key}, unless the sink has a template."}, **KAFKA},
            "nats": dict(NATS),
        },
    }


def _headers(meanings: Mapping[str, str]) -> Json:
    properties = {name: {**TEXT, "description": text} for name, text in meanings.items()}
    return {"type": "object", "properties": properties}
