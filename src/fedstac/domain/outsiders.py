"""What outsiders get of an event: programs that are no nodes of the federation, and have no rights of their own. Pure.

It follows from the event alone, so that a sink can be compared with the log.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Final

import orjson

from fedstac.domain.access import without_files
from fedstac.domain.events import LoggedEvent
from fedstac.domain.policy import Level, read_level
from fedstac.domain.subscriptions import LoggedDataset, departure

LEVEL: Final = ',"access":"'  # in the text of an event whose dataset is not open
OUTSIDERS: Final = "outsiders"


def as_told(event: LoggedEvent) -> LoggedEvent | None:
    """Return an event as outsiders get it; None where they get nothing.

    A controlled dataset comes without the addresses of its files. One that becomes private leaves, and a private one is
    told nothing of. What is hidden for another reason, each dialect says by itself.
    """
    if event.dataset is None or LEVEL not in event.text:
        return event
    body = orjson.loads(event.text)
    data = body["data"]
    match read_level(data.get("access")):
        case Level.OPEN:
            return event
        case Level.CONTROLLED:
            return replace(event, text=orjson.dumps({**body, "data": without_files(data)}).decode())
        case Level.PRIVATE:
            was_seen = "previous_access" in data and data.get("previous_state") is not None
            return departure(LoggedDataset(event, body), OUTSIDERS) if was_seen else None
