"""Subscriptions: which events somebody wants, and what each event is to them. Pure.

`changes_for` is the one place where that is decided: for GET /subscriptions/{name}/next, for webhooks, for GET
/changes. A filter is asked of the dataset as it is after an event and as it was before: so a dataset that no longer
fits gives one event `left`. What a reader may not see is, to them, not there; that too is asked after and before.

Before an event a dataset was as its last event in the log says. Where the log no longer says it (retention dropped that
event, or a deletion took its text), nobody can tell whether the subscriber has the dataset. Then it is told that the
dataset left: whoever never had it has nothing to forget.

A passage of a grant (domain/grant_passages.py) changes no dataset, and opens or closes it for one reader.
"""

from __future__ import annotations

import re
from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import StrEnum
from functools import cached_property
from threading import Lock
from types import MappingProxyType
from typing import Any, Final, Protocol
from uuid import UUID, uuid5

import orjson

from fedstac.domain import events, filters, grant_passages, grants
from fedstac.domain.access import DatasetAccess, View, access_of, event_for
from fedstac.domain.errors import BadRequest
from fedstac.domain.events import LoggedEvent
from fedstac.domain.facets import NODES
from fedstac.domain.grant_passages import GrantPassage
from fedstac.domain.model import WITHOUT_DOCUMENT, State
from fedstac.domain.policy import Principal
from fedstac.domain.truth import DatasetFacts, Test, compile_filter, facts_of

Json = Mapping[str, Any]

MEMBERS: Final = ("collections", "types", "cql2", "bbox")
MOST_NAMES: Final = 200  # collections, or types, of a filter
LONGEST_NAME: Final = 200
NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}")  # of a subscription
OF_EACH_NODE: Final = (NODES, "fedstac:replicas")  # what the log does not say beside the document


@dataclass(frozen=True, slots=True)
class SubscriptionFilter:
    """Which events somebody wants. None: of all collections, of all types, whatever the dataset is.

    types: of events as they are delivered, `left` among them. where: a checked CQL2 filter, the box in it.
    """

    collections: frozenset[str] | None = None
    types: frozenset[str] | None = None
    where: Any = None
    test: Test = field(compare=False, repr=False, default=lambda facts: True)
    names: frozenset[str] = frozenset()  # properties that `where` names

    @classmethod
    def parse(cls, value: object) -> SubscriptionFilter:
        """Read a filter as a client sends it. BadRequest says what is wrong with it."""
        if not isinstance(value, Mapping) or any(name not in MEMBERS for name in value):
            raise BadRequest(f"filter: an object with {', '.join(MEMBERS)}, each of which may be left out")
        where = _where(value)
        names = filters.names_in(where)
        if unknown := sorted(names.intersection(OF_EACH_NODE)):
            raise BadRequest(f"filter: {unknown[0]} differs from node to node; ask for another property")
        return cls(
            _names(value, "collections"), _types(value), where, compile_filter(True if where is None else where), names
        )

    def takes_collection(self, collection: str) -> bool:
        """Tell whether it wants events of a collection."""
        return self.collections is None or collection in self.collections

    def takes_type(self, event_type: str) -> bool:
        """Tell whether it wants events of a type."""
        return self.types is None or event_type in self.types


class FilterCache:
    """Filters that were read from their text and compiled, those used last. Not to be shared among threads.

    most_characters: of the texts that it keeps, which bound its memory.
    """

    def __init__(self, most_characters: int = 4 << 20) -> None:
        self._most_characters = most_characters
        self._filters: OrderedDict[str, SubscriptionFilter] = OrderedDict()
        self._characters = 0

    def __len__(self) -> int:
        return len(self._filters)

    def read(self, text: str) -> SubscriptionFilter:
        """Return the filter of a JSON text that was checked before."""
        if text in self._filters:
            self._filters.move_to_end(text)
            return self._filters[text]
        fresh = self._filters[text] = SubscriptionFilter.parse(orjson.loads(text))
        self._characters += len(text)
        while self._characters > self._most_characters:
            oldest, _ = self._filters.popitem(last=False)
            self._characters -= len(oldest)
        return fresh


def _where(value: Json) -> Any:
    parts = []
    if (cql2 := value.get("cql2")) is not None:
        parts.append(filters.check(filters.from_text(cql2) if isinstance(cql2, str) else cql2))
    if (bbox := value.get("bbox")) is not None:
        parts.append({"op": "s_intersects", "args": [{"property": "geometry"}, filters.box(bbox, "filter.bbox")]})
    return {"op": "and", "args": parts} if len(parts) > 1 else parts[0] if parts else None


def _names(value: Json, member: str) -> frozenset[str] | None:
    names = value.get(member)
    if names is None:
        return None
    is_list = isinstance(names, list) and 0 < len(names) <= MOST_NAMES
    if not is_list or not all(isinstance(name, str) and 0 < len(name) <= LONGEST_NAME for name in names or ()):
        raise BadRequest(f"filter.{member} is a list of 1 to {MOST_NAMES} names; leave it out for all")
    return frozenset(names or ())


def _types(value: Json) -> frozenset[str] | None:
    """Return the types in full. `dataset.updated` is short for org.fedstac.dataset.updated.v1."""
    names = _names(value, "types")
    if names is None:
        return None
    types = frozenset(
        name if name.startswith(events.PREFIX) else f"{events.PREFIX}{name.removesuffix('.v1')}.v1" for name in names
    )
    if unknown := sorted(types - DELIVERED_TYPES):
        short = ", ".join(sorted(each.removeprefix(events.PREFIX).removesuffix(".v1") for each in DELIVERED_TYPES))
        raise BadRequest(f"filter.types: {unknown[0][:80]!r} is no type of an event; there are {short}")
    return types


DELIVERED_TYPES: Final = frozenset((
    events.PUBLISHED, events.UPDATED, events.SUPERSEDED, events.REPLACED, events.RETRACTED, events.REINSTATED,
    events.REPLICATED, events.ANNOTATED, events.MARKED, events.UNMARKED, events.QUARANTINED, events.RELEASED,
    events.DELETED, events.PURGED, events.CLEARED, events.LEFT, events.COLLECTION_CREATED, events.COLLECTION_UPDATED,
    events.COLLECTION_CLOSING, events.COLLECTION_REOPENED, events.COLLECTION_DELETED, *grants.TYPES,
))  # fmt: skip
TAKING_AWAY: Final = (events.DELETED, events.PURGED, events.CLEARED)


class Presence(StrEnum):
    """Whether a dataset was there at some point of the log, as far as the log tells."""

    NEVER = "never"  # it had no event yet
    HERE = "here"
    GONE = "gone"  # a tombstone, or nothing, is left
    UNKNOWN = "unknown"  # the log no longer says


@dataclass(frozen=True)
class LoggedDataset:
    """A dataset as one event left it. body: the event, parsed. institution: whose it is; None where nobody can say.

    passage: that of a grant, where the event is one; None where it is a change of the dataset.
    """

    event: LoggedEvent
    body: Json
    institution: str | None = None
    passage: GrantPassage | None = None

    @cached_property
    def presence(self) -> Presence:
        if self.data.get("document") is not None:
            return Presence.HERE
        is_gone = self.event.type in TAKING_AWAY or self.data.get("state") in WITHOUT_DOCUMENT
        return Presence.GONE if is_gone else Presence.UNKNOWN

    @property
    def presence_before(self) -> Presence:
        """Whether the dataset was there before this event, where the log has no earlier one."""
        previous_state = self.data.get("previous_state")
        if previous_state is None:
            return Presence.NEVER
        return Presence.GONE if previous_state in WITHOUT_DOCUMENT else Presence.UNKNOWN

    @property
    def data(self) -> Json:
        data: Json = self.body["data"]
        return data

    @cached_property
    def access(self) -> DatasetAccess:
        """What decides who may read it."""
        return access_of(self.data, self.institution)

    @cached_property
    def properties(self) -> Json:
        """The properties that a search shows of the state, as documents.state_of gives them."""
        data = self.data
        is_retracted = data["state"] == State.RETRACTED or (
            data["state"] == State.QUARANTINED and data.get("retraction") is not None
        )
        properties = {
            "latest": data["latest"], "retracted": is_retracted, "created": data["created"],
            "updated": data["updated"], "fedstac:state": data["state"],
        }  # fmt: skip
        if isinstance(data.get("cv"), Mapping):
            properties["fedstac:cv_version"] = data["cv"]["version"]
        if data.get("retraction") is not None:
            properties["fedstac:retraction"] = data["retraction"]
        return properties

    def facts(self, names: Iterable[str]) -> DatasetFacts:
        """Return what filters with these names ask of a dataset that is here."""
        document = {**self.data["document"], "collection": self.event.collection}
        return facts_of(document, names, properties=self.properties)


InstitutionOf = Callable[[Json], str | None]  # data of an event → whose dataset it is


@dataclass(slots=True)
class _PageFacts:
    """What filters with some names ask of the datasets of a page, by position, as far as somebody asked.

    Readers who share a page ask in threads of their own.
    """

    names: frozenset[str] = frozenset()
    by_position: dict[int, DatasetFacts] | None = None
    lock: Lock = field(default_factory=Lock)


@dataclass(frozen=True, slots=True)
class LogPage:
    """Events of the log in its order, though not all; and what each dataset was before.

    previous: by the position of a dataset's event, that dataset's event before it; None where the log has none.
    datasets: by position, of both.
    """

    events: Sequence[LoggedEvent]
    previous: Mapping[int, LoggedEvent | None]
    datasets: Mapping[int, LoggedDataset]
    _facts: _PageFacts = field(default_factory=_PageFacts, compare=False, repr=False)

    def facts(self, names: frozenset[str]) -> Mapping[int, DatasetFacts]:
        """Return what filters with these names ask of each dataset that is here; made once for as long as it can."""
        page_facts = self._facts
        with page_facts.lock:
            if page_facts.by_position is None or not names <= page_facts.names:
                page_facts.names |= names
                page_facts.by_position = {
                    pos: dataset.facts(page_facts.names)
                    for pos, dataset in self.datasets.items() if dataset.presence is Presence.HERE
                }  # fmt: skip
            return page_facts.by_position

    @property
    def datasets_of_events(self) -> Iterable[LoggedDataset]:
        """The datasets of its events, and what they were before; a part of a page has others beside."""
        for event in self.events:
            if event.dataset is not None:
                yield self.datasets[event.cursor.pos]
                earlier = self.previous[event.cursor.pos]
                if earlier is not None:
                    yield self.datasets[earlier.cursor.pos]

    def after(self, pos: int) -> LogPage:
        """Return the part of the page after a position. It shares what was made of the page."""
        return replace(self, events=[event for event in self.events if event.cursor.pos > pos])

    @classmethod
    def read(
        cls, page: Sequence[LoggedEvent], previous: Mapping[int, LoggedEvent | None], institution_of: InstitutionOf,
        states: Mapping[int, str] = MappingProxyType({}),
    ) -> LogPage:  # fmt: skip
        """Read the events of datasets, each once. previous: as db/subscription_events.previous_events gives it.

        states: by the position of a passage, its dataset as a snapshot has it; absent where it changed since.
        """
        datasets: dict[int, LoggedDataset] = {}
        for event in (*page, *filter(None, previous.values())):
            pos = event.cursor.pos
            if event.dataset is None or pos in datasets:
                continue
            body, passage = orjson.loads(event.text), None
            if event.type == grants.PASSAGE:
                passage = grant_passages.read(event)
                if pos in states:
                    body = grant_passages.with_state(body, orjson.loads(states[pos]))
                    event = with_body(event, body)
            datasets[pos] = LoggedDataset(event, body, institution_of(body["data"]), passage)
        return cls(page, previous, datasets)


class ChangeKind(StrEnum):
    """What an event is to a subscriber."""

    ENTERED = "entered"  # the dataset fits now, and did not before
    CHANGED = "changed"  # it fitted before too; or it is an event of a collection
    LEFT = "left"  # it no longer fits, or may no longer be seen, or is gone


@dataclass(frozen=True, slots=True)
class Subscriber:
    """Who gets events: a name for this purpose, what they want, and with whose rights they read (None: anybody's)."""

    name: str
    filter: SubscriptionFilter
    reader: Principal | None = None


class ReadingRights(Protocol):
    """What readers may see now (workers/reading_rights.py)."""

    def view_before(self, subscriber: Subscriber, dataset: LoggedDataset) -> View:
        """Return how much a subscriber could see of a dataset as it was before the event that is looked at."""
        ...

    def view_of(self, subscriber: Subscriber, dataset: LoggedDataset) -> View:
        """Return how much a subscriber may see of a dataset as it is in the log."""
        ...

    def view_now(self, subscriber: Subscriber, dataset: LoggedDataset) -> View:
        """Return how much a subscriber may see of the dataset as it is now, which the log may tell further on."""
        ...

    def could_see(self, subscriber: Subscriber, dataset: LoggedDataset) -> bool:
        """Tell whether a subscriber could see a dataset when the event was written that is given."""
        ...

    def view_if(self, subscriber: Subscriber, dataset: LoggedDataset, *, holds_grant: bool) -> View:
        """Return how much a subscriber may see of a dataset with a grant, or without any."""
        ...

    def event_for(self, subscriber: Subscriber, event: LoggedEvent) -> LoggedEvent | None:
        """Return an event that is of no dataset as a subscriber gets it; None where they get nothing."""
        ...


@dataclass(frozen=True, slots=True)
class SubscriberEvent:
    """An event as one subscriber gets it.

    event: with the text for their eyes; `left` has a type and an id of its own. source: the event as it is logged.
    Both have the same cursor: an event of the log gives a subscriber one delivery at most.
    """

    event: LoggedEvent
    kind: ChangeKind
    source: LoggedEvent


def changes_for(
    page: LogPage, subscribers: Sequence[Subscriber], rights: ReadingRights,
    checkpoint: Callable[[], None] = lambda: None,
) -> dict[str, list[SubscriberEvent]]:  # fmt: skip
    """Return what each subscriber gets of a page of the log, by the subscriber's name, in the order of the log.

    checkpoint: is called before each event; it raises what ends the work.
    """
    reading = _PageReading(page, frozenset[str]().union(*(each.filter.names for each in subscribers)), rights)
    deliveries: dict[str, list[SubscriberEvent]] = {each.name: [] for each in subscribers}
    for event in page.events:
        checkpoint()
        change = reading.change(event) if event.dataset is not None else None
        for subscriber in subscribers:
            if not subscriber.filter.takes_collection(event.collection):
                continue
            if change is not None:
                delivery = reading.delivery(subscriber, change)
            else:
                shown_event = rights.event_for(subscriber, event)
                delivery = SubscriberEvent(shown_event, ChangeKind.CHANGED, event) if shown_event else None
            if delivery is not None and subscriber.filter.takes_type(delivery.event.type):
                deliveries[subscriber.name].append(delivery)
    return deliveries


@dataclass(frozen=True, slots=True)
class _Change:
    """What an event of a dataset is to all subscribers alike.

    facts: of the dataset after and before; None where it was not here. is_known: it is here, and whether it was before
    is known. Then a filter that it passes neither after nor before decides alone.
    """

    after: LoggedDataset
    before: LoggedDataset | None
    presence_before: Presence
    facts: DatasetFacts | None
    facts_before: DatasetFacts | None
    is_known: bool


class _PageReading:
    """A page that is read for many subscribers: facts and texts are made once for all."""

    def __init__(self, page: LogPage, names: frozenset[str], rights: ReadingRights) -> None:
        self._page, self._rights = page, rights
        self._facts = page.facts(names)
        self._texts: dict[tuple[int, View], LoggedEvent] = {}

    def change(self, event: LoggedEvent) -> _Change:
        """Return what an event of a dataset is, whoever gets it."""
        after = self._page.datasets[event.cursor.pos]
        earlier = self._page.previous[event.cursor.pos]
        before = self._page.datasets[earlier.cursor.pos] if earlier else None
        presence_before = before.presence if before else after.presence_before
        return _Change(
            after, before, presence_before, self._facts.get(event.cursor.pos),
            self._facts.get(earlier.cursor.pos) if earlier else None,
            is_known=after.presence is Presence.HERE and presence_before is not Presence.UNKNOWN,
        )  # fmt: skip

    def delivery(self, subscriber: Subscriber, change: _Change) -> SubscriberEvent | None:
        """Return what an event of a dataset is to a subscriber; None for nothing.

        The filter is asked first: for most subscribers it says that an event is nothing to them.
        """
        if change.after.passage is not None:
            return self._passage(subscriber, change, change.after.passage)
        test, after, before = subscriber.filter.test, change.after, change.before
        passes = change.facts is not None and test(change.facts) is True
        passed = change.facts_before is not None and test(change.facts_before) is True
        if change.is_known and not passes and not passed:
            return None
        if after.presence is Presence.UNKNOWN:
            return None  # it says nothing any more; the deletion follows in the log
        fitted = before is not None and passed and self._rights.view_before(subscriber, before) is not View.NOTHING
        view = self._rights.view_of(subscriber, after)
        if view is View.NOTHING:  # where it was perhaps never to be seen, not even its name is told
            return self._departure(subscriber, after) if fitted else None
        view_now = self._rights.view_now(subscriber, after)
        if view_now is View.NOTHING:  # what hid it follows in the log, and tells whoever still has it by then
            return self._departure(subscriber, after) if fitted and not passes else None
        view = min(view, view_now)
        may_be_there = fitted or change.presence_before is Presence.UNKNOWN
        if after.presence is Presence.GONE:  # what is purged was told to be deleted
            is_concerned = may_be_there or change.presence_before is Presence.GONE
            return SubscriberEvent(self._text(after, view), ChangeKind.LEFT, after.event) if is_concerned else None
        if passes:
            is_known = fitted and before is not None and self._rights.could_see(subscriber, before)
            kind = ChangeKind.CHANGED if is_known else ChangeKind.ENTERED
            return SubscriberEvent(self._text(after, view), kind, after.event)
        return self._departure(subscriber, after) if may_be_there else None

    def _passage(self, subscriber: Subscriber, change: _Change, passage: GrantPassage) -> SubscriberEvent | None:
        """Return what it is to a subscriber that a grant begins or ends; None where it is another's or changes nothing.

        What they may see is asked as of now: a grant that is over again opens nothing, and one that another grant
        stands beside takes nothing away.
        """
        if subscriber.reader is None or subscriber.reader.name != passage.subject:
            return None
        dataset = change.after
        if change.facts is None or subscriber.filter.test(change.facts) is not True:
            return None
        bare, whole = (
            self._rights.view_if(subscriber, dataset, holds_grant=holds_grant) for holds_grant in (False, True)
        )
        view = min(self._rights.view_of(subscriber, dataset), self._rights.view_now(subscriber, dataset))
        if bare >= whole or (view <= bare if passage.begins else view >= whole):
            return None
        if view is View.NOTHING:
            return self._departure(subscriber, dataset)
        kind = ChangeKind.ENTERED if passage.begins and bare is View.NOTHING else ChangeKind.CHANGED
        return SubscriberEvent(self._text(dataset, view), kind, dataset.event)

    def _text(self, dataset: LoggedDataset, view: View) -> LoggedEvent:
        """Return the event as whoever has this view gets it."""
        key = (dataset.event.cursor.pos, view)
        if key not in self._texts:
            body = event_for(dataset.body, view)
            assert body is not None  # of NOTHING only
            is_whole = body is dataset.body
            self._texts[key] = dataset.event if is_whole else with_body(dataset.event, body)
        return self._texts[key]

    def _departure(self, subscriber: Subscriber, dataset: LoggedDataset) -> SubscriberEvent:
        return SubscriberEvent(departure(dataset, subscriber.name), ChangeKind.LEFT, dataset.event)


def departure(dataset: LoggedDataset, subscriber: str) -> LoggedEvent:
    """Return the event `left`, which tells a subscriber that a dataset left what they follow, and only its name.

    Its id follows from the event of the log and the subscriber, so that it is the same whenever it is sent.
    """
    event, body = dataset.event, dataset.body
    names = ("specversion", "source", "time", "datacontenttype", "traceparent", "subject", "sequence", "partitionkey")
    envelope = {name: body[name] for name in names if name in body}
    envelope |= {"id": departure_id(event.event_id, subscriber), "type": events.LEFT, "causationid": event.event_id}
    data = {name: dataset.data[name] for name in ("collection", "id", "base_id", "version", "seq")}
    return with_body(event, {**envelope, "data": data})


def departure_id(event_id: str, subscriber: str) -> str:
    """Return the id of the event `left` that an event of the log gives to a subscriber."""
    return str(uuid5(UUID(event_id), f"left {subscriber}"))


def with_body(event: LoggedEvent, body: Json) -> LoggedEvent:
    """Return a logged event with another text, and the id and type that it says."""
    return LoggedEvent(
        event.cursor, body["id"], event.key, event.collection, event.dataset, event.seq, body["type"],
        orjson.dumps(body).decode(),
    )  # fmt: skip
