"""What outsiders get of an event: programs that are no nodes of the federation, and have no rights of their own. Pure.

It follows from the event and from what the dataset's record says now. An audit of a sink asks the same of both, so that
the sink can be compared with the log (db/sinks.positions_untold).
"""

from __future__ import annotations

from dataclasses import replace
from typing import Final

import orjson

from fedstac.domain.access import DatasetAccess, DatasetReader, RecordAccess, View, without_files
from fedstac.domain.events import LoggedEvent
from fedstac.domain.model import SEARCHED
from fedstac.domain.policy import ROLES, Level, Resource, read_level
from fedstac.domain.subscriptions import LoggedDataset, departure

LEVEL: Final = ',"access":"'  # in the text of an event whose dataset is not open
OUTSIDERS: Final = "outsiders"
NOBODY: Final = DatasetReader(ROLES, None)
SHOWN: Final = frozenset(SEARCHED)  # states after which an event shows the dataset; by another one it goes


def as_told(event: LoggedEvent, now: RecordAccess | None) -> LoggedEvent | None:
    """Return an event as outsiders get it; None where they get nothing.

    now: what the dataset's record says when the event is delivered; None where only the log knows the dataset. An event
    shows no more than the event says, and no more than the record says: so what is hidden by now does not come out of
    an event of a time when it was open.

    A controlled dataset comes without the addresses of its files. One that becomes private leaves, and a private one is
    told nothing of. What is hidden for another reason, each dialect says by itself.
    """
    if event.dataset is None:
        return event
    view_now = view_of_outsiders(event, now) if now is not None else View.FILES
    if LEVEL not in event.text and view_now is View.FILES:
        return event
    body = orjson.loads(event.text)
    data = body["data"]
    level = read_level(data.get("access"))
    if level is Level.PRIVATE:
        was_seen = "previous_access" in data and data.get("previous_state") is not None
        return departure(LoggedDataset(event, body), OUTSIDERS) if was_seen else None
    if view_now is View.NOTHING and data.get("state") in SHOWN:
        return None  # what hid it follows in the log
    if level is Level.CONTROLLED or view_now is not View.FILES:
        return replace(event, text=orjson.dumps({**body, "data": without_files(data)}).decode())
    return event


def view_of_outsiders(event: LoggedEvent, now: RecordAccess) -> View:
    """Return what outsiders may see of the dataset of an event as its record is now."""
    resource = Resource(event.dataset or "", event.collection, None)
    return NOBODY.view_of(DatasetAccess(resource, now.state, now.level))
