"""A Dapr sidecar as an event sink: each event is published by it to the topic of one of its pub/sub components.

`dapr+http://host:port/pubsub/topic`. A sidecar keeps no log for us: events are posted as to a webhook, those of one key
one after the other, each at least once. An event in the structured form of CloudEvents keeps its envelope. Of any other
form Dapr makes an envelope with the id, the type and the source of the event, and the value is its `data`.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Mapping
from typing import Final
from urllib.parse import quote, unquote, urlencode, urlsplit

from fedstac.messaging.sinks import DAPR_SCHEMES, OutgoingEvent, SinkTarget, SinkUnclear
from fedstac.messaging.sinks.webhook import WebhookSink, url_of

TOKEN_HEADER: Final = "dapr-api-token"  # noqa: S105 -- the name of a header
STRUCTURED: Final = "application/cloudevents+json"  # Dapr keeps the envelope of what has this type
JSON: Final = "application/json"
ATTRIBUTES: Final = ("id", "source", "type", "traceparent")  # that Dapr takes for the envelope that it makes
_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._/-]{0,248}")


class DaprSink(WebhookSink):
    """Publishes the events of a feed through a sidecar."""

    about_the_event = (413, 415, 422, 431)
    about_the_caller = (400, 401, 403, 404)  # 400 and 404: the sidecar has no such component
    remedy = "see to the sidecar: its token, and that it has this pub/sub component and lets this application publish"

    def __init__(self, target: SinkTarget) -> None:
        super().__init__(target)
        self._origin = target.origin
        self._token = target.sidecar_token if _is_loopback(self._url) else ""

    def _read_address(self, target: SinkTarget) -> str:
        return publish_url(target.address, private=target.private)

    async def _send(self, event: OutgoingEvent, place: Mapping[str, str]) -> None:
        metadata, headers = {"metadata.partitionKey": event.key}, {**event.headers, **place}
        if not event.headers["content-type"].startswith(STRUCTURED):
            metadata |= {f"metadata.cloudevent.{name}": text for name, text in self._attributes(event).items()}
            headers["content-type"] = JSON  # of any other type, GeoJSON's too, Dapr makes a text
        token = {TOKEN_HEADER: self._token} if self._token else {}
        url = f"{self._url}?{urlencode(metadata, quote_via=quote)}"
        await self._post_signed(url, event, {**headers, **token})

    def _attributes(self, event: OutgoingEvent) -> dict[str, str]:
        """Return the attributes of the envelope that Dapr makes, as far as it takes them.

        In the binary form of CloudEvents they stand in the headers.
        """
        attributes = {name: unquote(event.headers.get(f"ce-{name}", "")) for name in ATTRIBUTES}
        attributes["traceparent"] = event.headers.get("traceparent", "")
        ours = {"id": event.event_id, "source": self._origin, "type": event.event_type}
        return ours | {name: text for name, text in attributes.items() if text}


def publish_url(address: str, *, private: bool) -> str:
    """Return the URL at which a sidecar takes the messages of a topic. SinkUnclear where the address names none."""
    scheme, _, rest = address.partition("+")
    base, parts = f"{rest.partition('://')[0]}://", urlsplit(rest)
    pubsub, _, topic = (unquote(part) for part in parts.path.removeprefix("/").partition("/"))
    if f"{scheme}+{parts.scheme}".lower() not in DAPR_SCHEMES or parts.query or not pubsub or not topic:
        raise SinkUnclear(f"{address[:200]!r} names no topic of a sidecar; write dapr+http://host:port/pubsub/topic")
    if not _NAME.fullmatch(pubsub) or not _NAME.fullmatch(topic) or ".." in f"{pubsub}/{topic}":
        raise SinkUnclear(f"{pubsub[:80]!r} or {topic[:80]!r} is no name: letters, digits, dots, - and _")
    return url_of(f"{base}{parts.netloc}/v1.0/publish/{quote(pubsub)}/{quote(topic)}", private=private)


def _is_loopback(url: str) -> bool:
    """Return whether a URL leads to this machine, where a sidecar runs: the token is shown to nobody else."""
    host = urlsplit(url).hostname or ""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
