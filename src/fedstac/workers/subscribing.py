"""What is done with subscriptions: made, read, acknowledged, sought; and what each gets of a page of the log.

The verbs know no request. `deliveries` is for all who give events out: `next_events` here, webhooks, GET /changes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import orjson

from fedstac.bootstrap import Node
from fedstac.db import own_groups, subscriptions
from fedstac.db.connections import Connection
from fedstac.db.subscriptions import Subscription
from fedstac.domain.access import DatasetReader, View
from fedstac.domain.events import COLLECTION_PREFIX, LoggedEvent
from fedstac.domain.policy import Policy, Principal
from fedstac.domain.subscriptions import (
    LoggedDataset,
    LogPage,
    Subscriber,
    SubscriberEvent,
    SubscriptionFilter,
    changes_for,
)
from fedstac.domain.vocabulary import UnknownVersion
from fedstac.vocabularies.registry import Vocabularies


async def deliveries(
    node: Node, conn: Connection, page: Sequence[LoggedEvent], subscribers: Sequence[Subscriber]
) -> dict[str, list[SubscriberEvent]]:
    """Return what each subscriber gets of a page of the log, by the subscriber's name, in the order of the log.

    page: events in the order of the log, though not all (db/subscriptions.look, events_at). Asks what
    subscribers may read as of now.
    """
    previous = await subscriptions.previous_events(conn, page)
    log_page = LogPage.read(page, previous, partial(_institution_of, node.checker.vocabularies))
    return changes_for(log_page, subscribers, RightsNow(node.policy))


class RightsNow:
    """What readers may see by the policy of now (domain/subscriptions.ReadingRights)."""

    def __init__(self, policy: Policy) -> None:
        self._policy = policy
        self._readers: dict[str, DatasetReader] = {}  # by subscriber

    def view_of(self, subscriber: Subscriber, dataset: LoggedDataset) -> View:
        """Return how much a subscriber may see of a dataset as it is in the log."""
        reader = self._readers.get(subscriber.name)
        if reader is None:
            reader = self._readers[subscriber.name] = DatasetReader(self._policy, subscriber.reader)
        return reader.view_of(dataset.access)

    def may_see(self, subscriber: Subscriber, event: LoggedEvent) -> bool:
        """Tell whether a subscriber may see an event that is of no dataset: all see those of collections."""
        return event.type.startswith(COLLECTION_PREFIX)


def _institution_of(vocabularies: Vocabularies, data: Mapping[str, Any]) -> str | None:
    """Return whose dataset it is, for the policy; None where that cannot be said."""
    document, cv = data.get("document"), data.get("cv")
    if document is None or not isinstance(cv, Mapping):
        return None
    try:
        vocabulary = vocabularies.at(data["collection"], cv["version"])
    except UnknownVersion:
        return None
    institution = document["properties"].get(vocabulary.institution)
    return institution if isinstance(institution, str) else None


async def subscribers_of(conn: Connection, rows: Sequence[Subscription]) -> list[Subscriber]:
    """Return what stored subscriptions want, and with whose rights: for webhooks, whose owners send no token.

    Roles, groups and entitlements are those of the last PUT, memberships in own groups those of now.
    """
    memberships = await own_groups.memberships(conn, {each.owner for each in rows})
    return [
        Subscriber(
            each.name, filter_of(each), Principal.of_submitter(each.owner, each.roles, each.identity, memberships)
        )
        for each in rows
    ]


def filter_of(subscription: Subscription) -> SubscriptionFilter:
    """Return the filter of a stored subscription."""
    return SubscriptionFilter.parse(orjson.loads(subscription.filter))
