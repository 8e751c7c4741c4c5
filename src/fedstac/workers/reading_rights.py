"""What subscribers may see of a page of the log: by the policy, their grants, and what the records say now.

All is read set-wise for a page when it is delivered. A dataset that is hidden now is not delivered from an event of the
time when it was not: its document would tell what nobody may know any more.
"""

from __future__ import annotations

from collections.abc import Container, Iterator, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime

import orjson

from fedstac.db import grant_rights, records
from fedstac.db.connections import Connection
from fedstac.db.grant_rights import CoveringGrants, TargetEvent
from fedstac.domain import access
from fedstac.domain.access import DatasetAccess, DatasetReader, RecordAccess, View
from fedstac.domain.events import COLLECTION_PREFIX, LoggedEvent
from fedstac.domain.grants import PREFIX as GRANT_PREFIX
from fedstac.domain.grants import WITHDRAWN, GrantScope, GrantTarget, for_holder
from fedstac.domain.model import WITHOUT_DOCUMENT, moment
from fedstac.domain.policy import Action, Policy, Resource
from fedstac.domain.subscriptions import LoggedDataset, LogPage, Presence, Subscriber, with_body

ALL_GRANTS = Resource("all grants", "*", "*")
LONG_AGO, NEVER = datetime(1, 1, 1, tzinfo=UTC), datetime(9999, 1, 1, tzinfo=UTC)


@dataclass(frozen=True, slots=True)
class ReadersNow:
    """What readers may see as of now (domain/subscriptions.ReadingRights). records: by collection and id."""

    policy: Policy
    records: dict[tuple[str, str], RecordAccess]
    grants: CoveringGrants
    holders: frozenset[tuple[int, str]] = frozenset()  # events about all grants of a target, by position and holder
    readers: dict[str, DatasetReader] = field(default_factory=dict)  # by subscriber

    @classmethod
    async def read(
        cls, conn: Connection, policy: Policy, page: LogPage, subscribers: Sequence[Subscriber]
    ) -> ReadersNow:
        """Read what decides about a page, in three queries.

        The second comes only where a dataset is not open, the third where an event is about all grants of a target.
        """
        logged_datasets = list(page.datasets_of_events)
        datasets = [each.access for each in logged_datasets]
        here = await records.access_of(conn, {each.key for each in datasets})
        levels = [replace(each, level=here[each.key].level) for each in datasets if each.key in here]
        keys = access.needing_grants([*datasets, *levels])
        subjects = {each.reader.name for each in subscribers if each.reader is not None} if keys else set()
        moments: dict[tuple[str, str], datetime] = {}  # of the oldest event of each that somebody might have had
        for each in logged_datasets:
            if (key := each.access.key) in keys:
                moments[key] = min(moments.get(key, NEVER), _time_of(each))
        reader_names = {each.reader.name for each in subscribers if each.reader is not None}
        holders = await grant_rights.holders_of(conn, reader_names, list(_target_events(page)))
        return cls(policy, here, await grant_rights.covering(conn, subjects, moments), holders)

    def outlive(self, page: LogPage) -> bool:
        """Tell whether a dataset of a page lost its document after the page was read: its text is not to be shown."""
        return any(
            dataset.presence is Presence.HERE
            and ((record := self.records.get(dataset.access.key)) is None or record.state in WITHOUT_DOCUMENT)
            for dataset in page.datasets_of_events
        )

    def view_before(self, subscriber: Subscriber, dataset: LoggedDataset) -> View:
        """Return how much a subscriber could see before the event that is looked at.

        A grant that was suspended, was closed or ran out since counts: whoever had the dataset by it learns that it is
        gone.
        """
        return self._view(subscriber, dataset.access, self.grants.at_last)

    def view_of(self, subscriber: Subscriber, dataset: LoggedDataset) -> View:
        """Return how much a subscriber may see of a dataset as it is in the log."""
        return self._view_as_of_now(subscriber, dataset.access)

    def view_now(self, subscriber: Subscriber, dataset: LoggedDataset) -> View:
        """Return how much a subscriber may see of the dataset as its record is now."""
        of_record = self.records.get(dataset.access.key)
        if of_record is None:
            return View.EVERYTHING  # only the log knows it
        return self._view_as_of_now(
            subscriber, replace(dataset.access, state=of_record.state, level=of_record.level)
        )  # fmt: skip

    def _view_as_of_now(self, subscriber: Subscriber, dataset: DatasetAccess) -> View:
        """Return how much a subscriber may see; of a dataset that is gone, whose grants closed with it, that it is."""
        view = self._view(subscriber, dataset, self.grants.open_now)
        if dataset.state not in WITHOUT_DOCUMENT:
            return view
        return max(view, min(self._view(subscriber, dataset, self.grants.at_last), View.METADATA))

    def could_see(self, subscriber: Subscriber, dataset: LoggedDataset) -> bool:
        """Tell whether a subscriber could see a dataset when its event was written: a later grant does not count."""
        begins = self.grants.at_last.get((_name_of(subscriber), *dataset.access.key))
        holds_grant = begins is not None and begins <= _time_of(dataset)
        return self._reader(subscriber).view_of(dataset.access, holds_grant=holds_grant) is not View.NOTHING

    def view_if(self, subscriber: Subscriber, dataset: LoggedDataset, *, holds_grant: bool) -> View:
        """Return how much a subscriber may see of a dataset with a grant, or without any."""
        return self._reader(subscriber).view_of(dataset.access, holds_grant=holds_grant)

    def event_for(self, subscriber: Subscriber, event: LoggedEvent) -> LoggedEvent | None:
        """Return an event that is of no dataset as a subscriber gets it; None where they get nothing.

        Those of collections are for all. Those about grants are for whoever may read all grants, and for whom they
        concern: they name them, or are about all grants of a target and they have one.
        """
        if event.type.startswith(COLLECTION_PREFIX):
            return event
        if not event.type.startswith(GRANT_PREFIX) or subscriber.reader is None:
            return None
        if self.policy.verdict(subscriber.reader, Action.READ_GRANTS, ALL_GRANTS).allowed:
            return event
        body = orjson.loads(event.text)
        name = _name_of(subscriber)
        if body["data"].get("subject") != name and (event.cursor.pos, name) not in self.holders:
            return None
        return with_body(event, for_holder(body))

    def _reader(self, subscriber: Subscriber) -> DatasetReader:
        reader = self.readers.get(subscriber.name)
        if reader is None:
            reader = self.readers[subscriber.name] = DatasetReader(self.policy, subscriber.reader)
        return reader

    def _view(
        self, subscriber: Subscriber, dataset: DatasetAccess, covered: Container[tuple[str, str, str]]
    ) -> View:  # fmt: skip
        holds_grant = (_name_of(subscriber), *dataset.key) in covered
        return self._reader(subscriber).view_of(dataset, holds_grant=holds_grant)


def _name_of(subscriber: Subscriber) -> str:
    return subscriber.reader.name if subscriber.reader is not None else ""


def _target_events(page: LogPage) -> Iterator[TargetEvent]:
    """Yield the events of a page that are about all grants of a target, and name nobody."""
    for event in page.events:
        if not event.type.startswith(GRANT_PREFIX):
            continue
        body = orjson.loads(event.text)
        data = body["data"]
        if data.get("subject") is None:
            scope = GrantScope(data["scope"])
            names = {
                GrantScope.DATASET: data["dataset"], GrantScope.LINEAGE: f"{data['collection']}/{data['lineage']}",
                GrantScope.PROJECT: "",
            }  # fmt: skip
            target = GrantTarget(data["collection"], scope, names[scope])
            is_wide = event.type != WITHDRAWN and scope is GrantScope.DATASET
            yield TargetEvent(event.cursor.pos, target, moment(body.get("time")) or LONG_AGO, also_wider=is_wide)


def _time_of(dataset: LoggedDataset) -> datetime:
    return moment(dataset.body.get("time")) or LONG_AGO
