"""What subscribers may see of a page of the log: by the policy, their grants, and what the records say now.

All is read set-wise for a page when it is delivered. A dataset that is hidden now is not delivered from an event of the
time when it was not: its document would tell what nobody may know any more.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime

import orjson

from fedstac.db import grants, records
from fedstac.db.connections import Connection
from fedstac.db.grants import CoveringGrants
from fedstac.db.records import RecordAccess
from fedstac.domain import access
from fedstac.domain.access import DatasetAccess, DatasetReader, View
from fedstac.domain.events import COLLECTION_PREFIX, LoggedEvent
from fedstac.domain.grants import PREFIX as GRANT_PREFIX
from fedstac.domain.model import WITHOUT_DOCUMENT, moment
from fedstac.domain.policy import Action, Policy, Resource
from fedstac.domain.subscriptions import LoggedDataset, LogPage, Presence, Subscriber

ALL_GRANTS = Resource("all grants", "*", "*")
LONG_AGO, NEVER = datetime(1, 1, 1, tzinfo=UTC), datetime(9999, 1, 1, tzinfo=UTC)


@dataclass(frozen=True, slots=True)
class ReadersNow:
    """What readers may see as of now (domain/subscriptions.ReadingRights). records: by collection and id."""

    policy: Policy
    records: dict[tuple[str, str], RecordAccess]
    grants: CoveringGrants
    readers: dict[str, DatasetReader] = field(default_factory=dict)  # by subscriber

    @classmethod
    async def read(
        cls, conn: Connection, policy: Policy, page: LogPage, subscribers: Sequence[Subscriber]
    ) -> ReadersNow:
        """Read what decides about a page: two queries, the second only where a dataset is not open."""
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
        return cls(policy, here, await grants.covering(conn, subjects, moments))

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

    def may_see(self, subscriber: Subscriber, event: LoggedEvent) -> bool:
        """Tell whether a subscriber may see an event that is of no dataset.

        Those of collections are for all. Those about grants are for whom they name, and who may read all grants.
        """
        if event.type.startswith(COLLECTION_PREFIX):
            return True
        if not event.type.startswith(GRANT_PREFIX) or subscriber.reader is None:
            return False
        if self.policy.verdict(subscriber.reader, Action.READ_GRANTS, ALL_GRANTS).allowed:
            return True
        return bool(orjson.loads(event.text)["data"].get("subject") == subscriber.reader.name)

    def _view(
        self, subscriber: Subscriber, dataset: DatasetAccess, covered: frozenset[tuple[str, str, str]]
    ) -> View:  # fmt: skip
        reader = self.readers.get(subscriber.name)
        if reader is None:
            reader = self.readers[subscriber.name] = DatasetReader(self.policy, subscriber.reader)
        name = subscriber.reader.name if subscriber.reader is not None else ""
        return reader.view_of(dataset, holds_grant=(name, *dataset.key) in covered)


def _time_of(dataset: LoggedDataset) -> datetime:
    return moment(dataset.body.get("time")) or LONG_AGO
