"""Acknowledgements over a broker: a stream or topic beside that of the events, which the publishing node reads.

It is named at both ends: `?status=NAME` in the address of the sink and in FEDSTAC_SOURCE_FEED. A message is the body of
POST /events/status with the node's name, signed by what only that node and the publishing node know.
"""

from __future__ import annotations

import hashlib
import hmac
import importlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from types import TracebackType
from typing import Protocol, Self

import orjson

from fedstac.domain import digests
from fedstac.domain.errors import BadRequest, MissingPermission
from fedstac.domain.events import Cursor
from fedstac.messaging.sources.addresses import BrokerAddress

LARGEST_MESSAGE = 4 << 20  # bytes
STATUS = "status"  # the option of an address


class StatusTopic(Protocol):
    """Takes acknowledgements. Its methods raise SourceAway or SourceRefused where the broker fails."""

    async def __aenter__(self) -> Self: ...

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...

    async def make(self) -> None:
        """Make the topic, if it is not there."""
        ...

    async def send(self, value: bytes) -> None:
        """Store a message; make the topic if it is not there."""
        ...


class StatusModule(Protocol):
    """A module beside this one, named by its scheme."""

    def open_topic(self, address: BrokerAddress) -> StatusTopic:
        """Return the topic of an address, not yet connected."""
        ...


def status_address(address: BrokerAddress) -> BrokerAddress | None:
    """Return the address of the acknowledgements that belong to a stream or topic of events; None without any."""
    name = address.options.get(STATUS)
    if name is None:
        return None
    config = {"config": address.options["config"]} if "config" in address.options else {}
    return replace(address, name=name, options=config)


def open_topic(address: BrokerAddress) -> StatusTopic:
    """Return the topic of acknowledgements of an address. Use it with `async with`."""
    module: StatusModule = importlib.import_module(f"{__name__}.{address.scheme}")
    return module.open_topic(address)


# --- messages ---


def sign(body: Mapping[str, object], key: bytes) -> bytes:
    """Return the message of an acknowledgement; its body names the node."""
    text = orjson.dumps(body)
    return orjson.dumps({"status": text.decode(), "hmac": hmac.new(key, text, hashlib.sha256).hexdigest()})


@dataclass(frozen=True, slots=True)
class SignedStatus:
    """A message that was read. `node` says so of itself until `require` has looked at the signature."""

    node: str
    text: str
    signature: str

    def require(self, keys: Iterable[bytes]) -> None:
        """Raise MissingPermission unless one of the keys made the signature."""
        text = self.text.encode()
        matches = [hmac.compare_digest(hmac.new(key, text, hashlib.sha256).hexdigest(), self.signature) for key in keys]
        if not any(matches):
            raise MissingPermission(f"no token of the node {self.node[:63]} signs its acknowledgement so")


def read(value: bytes) -> SignedStatus:
    """Read a message. BadRequest where it is none."""
    try:
        if len(value) > LARGEST_MESSAGE:
            raise ValueError("it is too large")
        message = orjson.loads(value)
        text, signature = message["status"], message["hmac"]
        node = orjson.loads(text)["node"]
        if not isinstance(node, str) or not isinstance(signature, str) or not signature.isascii():
            raise TypeError("a member is no text")
    except (LookupError, TypeError, ValueError) as error:
        raise BadRequest(f"the message is no acknowledgement: {error}"[:200]) from None
    return SignedStatus(node, text, signature)


class StatusSender:
    """Acknowledges over a topic what Origin acknowledges over HTTP. `token`: this node's at the publishing node."""

    def __init__(self, topic: StatusTopic, *, node: str, token: str) -> None:
        self._topic, self._node, self._key = topic, node, digests.of_token(token)

    async def acknowledge(
        self, through: Cursor, exceptions: Sequence[Mapping[str, str]], *, consumer: str | None = None,
        reports: Sequence[Mapping[str, object]] = (),
    ) -> None:  # fmt: skip
        """Say that everything through a position is done here, but for the exceptions; with reports on deletions."""
        body: dict[str, object] = {
            "node": self._node, "epoch": through.epoch, "through": through.pos, "exceptions": list(exceptions),
        }  # fmt: skip
        if consumer is not None:
            body["consumer"] = consumer
        if reports:
            body["reports"] = list(reports)
        await self._topic.send(sign(body, self._key))
