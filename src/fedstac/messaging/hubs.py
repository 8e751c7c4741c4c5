"""Hubs: the brokers at which readers find the log of this node, as its operator makes them known."""

from __future__ import annotations

from dataclasses import dataclass

from fedstac.domain.events import EventFormat
from fedstac.messaging.sources.addresses import BrokerAddress

OPTIONS = ("format",)


@dataclass(frozen=True, slots=True)
class Hub:
    """A stream or a topic as readers reach it. `format`: of its messages."""

    broker: BrokerAddress
    format: EventFormat

    @property
    def url(self) -> str:
        """The address of the broker, without the name of the stream or topic."""
        return f"{self.broker.scheme}://{','.join(self.broker.servers)}"

    @property
    def channel(self) -> str:
        """What is subscribed to there: a topic, or the subjects of a stream."""
        return f"{self.broker.name}.>" if self.broker.scheme == "nats" else self.broker.name


def read_hubs(text: str) -> tuple[Hub, ...]:
    """Return the hubs of the setting. ValueError, with a sentence that names the fault, where it is wrong."""
    return tuple(_hub(BrokerAddress.parse(address, options=OPTIONS)) for address in text.split())


def _hub(broker: BrokerAddress) -> Hub:
    name = broker.options.get("format", EventFormat.CLOUDEVENTS.value)
    if name not in set(EventFormat):
        raise ValueError(f"{broker} has the format {name!r}; there are {', '.join(EventFormat)}")
    return Hub(broker, EventFormat(name))
