"""Acknowledging: an origin is told through where everything is done here, and which events were not applied."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Protocol

from fedstac.bootstrap import Node
from fedstac.db import nodes
from fedstac.db.parked import ParkedEvent
from fedstac.domain import events
from fedstac.domain.events import Cursor
from fedstac.messaging.sources import SourceAway, SourceRefused
from fedstac.runtime.metrics import ACKNOWLEDGEMENT_SECONDS
from fedstac.runtime.supervision import SendTrouble
from fedstac.workers.pages import Handler

EXCEPTIONS_AT_ONCE = 1000  # the origin takes 2 000
LONGEST_RETRY_SECONDS = 2.0  # what comes back is found that soon
UNACKNOWLEDGED = {
    SourceAway: "the source does not take an acknowledgement just now; trying again",
    SourceRefused: "the source refuses an acknowledgement; trying again",
}


class Acknowledger(Protocol):
    """Tells an origin what is done here: the origin itself over HTTP, or a topic."""

    async def acknowledge(
        self, through: Cursor, exceptions: Sequence[Mapping[str, str]], *, consumer: str | None = None
    ) -> None:
        """Say that everything through a position is done here, but for the exceptions."""
        ...


class Acknowledgements:
    """What one consumer has to tell one origin. `part`: the part of the process that /healthcheck shows."""

    def __init__(self, node: Node, handler: Handler, acknowledger: Acknowledger, *, part: str) -> None:
        self.node, self.handler = node, handler
        self.acknowledged = events.START
        self.exceptions: list[dict[str, str]] = []  # not yet acknowledged
        self._acknowledger, self._part = acknowledger, part
        self._next_at = 0.0  # not before; by time.monotonic
        self._trouble = SendTrouble(node.parts, UNACKNOWLEDGED, most=LONGEST_RETRY_SECONDS)

    def begin(self, exceptions: Sequence[dict[str, str]]) -> None:
        """Begin anew, at once, with the exceptions that are stored."""
        self.exceptions, self._next_at = list(exceptions), 0.0

    def add(self, parked_events: Sequence[ParkedEvent]) -> None:
        """Add the events of a page that are parked."""
        self.exceptions += (
            {"event_id": each.event_id, "outcome": each.outcome, "detail": each.detail} for each in parked_events
        )

    def lag_behind(self, applied_cursor: Cursor) -> bool:
        """Return whether something that is applied is not yet acknowledged."""
        return self.acknowledged != applied_cursor or bool(self.exceptions)

    async def send(self, origin: str, applied_cursor: Cursor) -> None:
        """Tell the origin through where everything is done, if it does not know.

        A refused acknowledgement is logged, shown in /healthcheck and tried again; following goes on without it. Events
        may be added meanwhile.
        """
        if time.monotonic() < self._next_at:
            return
        consumer = None if self.handler.consumer == nodes.INDEX else self.handler.consumer
        through = await self.handler.acknowledgeable(origin, applied_cursor)
        try:
            while self.acknowledged != through or self.exceptions:
                with self.node.metrics.timing(ACKNOWLEDGEMENT_SECONDS, self.handler.consumer, origin):
                    exceptions = self.exceptions[:EXCEPTIONS_AT_ONCE]
                    await self._acknowledger.acknowledge(through, exceptions, consumer=consumer)
                self.acknowledged = through
                del self.exceptions[: len(exceptions)]  # others were added meanwhile
        except (SourceAway, SourceRefused) as error:
            self._next_at = time.monotonic() + self._trouble.begin(self._part, error)
            return
        self._trouble.end(self._part)
