"""Who may read what of a dataset. Pure: whose it is, its state and its level in, a View out. Deny by default.

A level says who may have a dataset at all (docs/services.md, Controlled and private datasets):

- `open`: everybody.
- `controlled`: everybody sees the metadata. The addresses of its files are for those who have a right to it.
- `private`: for everybody else it is as if it had never existed.

A right to it is a grant that is valid now, or a rule of the policy that lets somebody publish, update or replicate it.
The dataset's own `fedstac:access` and the project's policy say the level; the stricter one counts. The level is stored
with the dataset and travels in its events, so that every node decides alike.

Who publishes or changes a dataset without a word on its level leaves it as it is. A new version has the level of the
version before it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import IntEnum
from typing import Any, Final

import orjson

from fedstac.domain import documents, events
from fedstac.domain.documents import ACCESS
from fedstac.domain.errors import Finding, Severity, pointer
from fedstac.domain.model import Draft, Record, State
from fedstac.domain.policy import READING, Level, Policy, Principal, Resource, read_level
from fedstac.domain.visibility import may_see_files, may_see_hidden

# Of an event: who did it, and what uncovers another state.
INTERNAL: Final = ("actor", "reason", "previous_state", "previous_access", "actions")
# Of a deletion: its files, and which of them another dataset has too, which may be one that nobody is to know of.
OF_FILES: Final = ("unreferenced", "still_referenced")
COVERED: Final = frozenset((events.MARKED, events.UNMARKED))  # which outsiders are not to know of
NOTICE: Final = ("case", "contact")  # what a quarantine says to everybody


class View(IntEnum):
    """What a reader gets of a dataset; a higher one includes the lower ones."""

    NOTHING = 0  # as if it had never existed
    METADATA = 1  # without the addresses of its files
    FILES = 2  # the whole document
    EVERYTHING = 3  # and who changed it, and why


@dataclass(frozen=True, slots=True)
class DatasetAccess:
    """What decides who may read a dataset: whose it is, its state, and its level."""

    resource: Resource
    state: State
    level: Level = Level.OPEN

    @property
    def key(self) -> tuple[str, str]:
        """The collection and the id, as grants name the dataset."""
        return self.resource.project, self.resource.dataset


@dataclass(frozen=True, slots=True)
class RecordAccess:
    """What a record says, as of now, of who may read its dataset."""

    state: State
    level: Level


class DatasetReader:
    """A reader with the policy's answers about them, for as long as one page or request: policies change.

    caller: None for somebody without a token.
    """

    def __init__(self, policy: Policy, caller: Principal | None) -> None:
        self._policy = policy.without_homes
        self._caller = caller
        self._answers: dict[tuple[str, str, str | None], bool] = {}

    def view_of(self, dataset: DatasetAccess, *, holds_grant: bool = False) -> View:
        """Return what the reader gets of the dataset.

        holds_grant: whether a grant of the reader's for it is open, valid and not suspended. Of a dataset that is gone,
        or of its state before a change: whether one was, so that whoever had it learns that it is gone.
        """
        state, level = dataset.state, dataset.level
        is_reader = level is Level.OPEN or holds_grant or self._may("read", dataset)
        if level is Level.PRIVATE and not is_reader:
            return View.NOTHING
        keeps = self._may("keep", dataset)
        if state is State.MARKED and not keeps:
            return View.NOTHING
        if not is_reader or not self._may_have_files(state, dataset):
            return View.METADATA
        return View.EVERYTHING if keeps else View.FILES

    def _may_have_files(self, state: State, dataset: DatasetAccess) -> bool:
        match state:
            case State.RETRACTED:
                return self._may("answer", dataset)
            case State.QUARANTINED:
                return self._may("decide", dataset)
            case _:
                return True

    def _may(self, what: str, dataset: DatasetAccess) -> bool:
        """Ask the policy once for a project and institution: no rule names a single dataset."""
        caller, resource = self._caller, dataset.resource
        if caller is None or caller.is_admin:
            return caller is not None
        key = (what, resource.project, resource.institution)
        answer = self._answers.get(key)
        if answer is None:
            match what:
                case "read":
                    answer = self._policy.may_one_of(caller, READING, resource)
                case "keep":
                    answer = may_see_hidden(self._policy, caller, resource)
                case _:
                    answer = may_see_files(self._policy, caller, resource, is_quarantined=what == "decide")
            self._answers[key] = answer
        return answer


def level_of(properties: Mapping[str, Any]) -> Level:
    """Return the level that a document states in its properties. One that nobody knows is private."""
    return read_level(properties.get(ACCESS))


def level_of_draft(draft: Draft, policy: Policy) -> Level:
    """Return the level of a dataset that is written: its document's or its project's, the stricter one."""
    text = draft.search.properties
    of_document = level_of(orjson.loads(text)) if ACCESS in text else Level.OPEN
    return of_document.stricter(policy.level_of(draft.collection))


def level_in_document(record: Record) -> Level:
    """Return the level that a stored document states; of a dataset whose document is gone, the level that it had."""
    text = record.document
    if text is None:
        return record.access
    return level_of(orjson.loads(text)["properties"]) if ACCESS in text else Level.OPEN


def at_level_of(before: Mapping[str, Any], document: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return a document that says nothing of its level with the level of the one before it, if that states one."""
    if ACCESS not in before["properties"]:
        return document
    return {**document, "properties": {**document["properties"], ACCESS: before["properties"][ACCESS]}}


def warn_of_kept_level(level: Level) -> Finding:
    """Return the warning that a dataset keeps a level, since nothing was said of it."""
    return Finding(
        "access", pointer("properties", ACCESS),
        f"it stays {level}, since nothing says otherwise; say `{ACCESS}` to have another level", Severity.WARNING,
    )  # fmt: skip


def needing_grants(datasets: Iterable[DatasetAccess]) -> set[tuple[str, str]]:
    """Return the keys of the datasets for which a grant makes a difference, for one question to db/grant_rights.py."""
    return {each.key for each in datasets if each.level is not Level.OPEN}


# --- events ---


def access_of(data: Mapping[str, Any], institution: str | None) -> DatasetAccess:
    """Return what decides who may read a dataset from the data of its event: the state after it.

    institution: whose dataset it is, by the vocabulary that the document was judged with; None where nobody can say.
    """
    resource = Resource(data["id"], data["collection"], institution)
    return DatasetAccess(resource, State(data["state"]), read_level(data.get("access")))


def event_for(event: Mapping[str, Any], view: View) -> Mapping[str, Any] | None:
    """Return a dataset's event, parsed, as somebody with that view of it gets it; None where they get nothing.

    Without the files' addresses, `assets` is empty. Without the right to mark the dataset, the event says nothing of a
    mark, of who made the change, or why; nor of the files of what was deleted, by which hidden datasets show. The event
    that is given stays as it is.
    """
    match view:
        case View.NOTHING:
            return None
        case View.EVERYTHING:
            return event
    data = {name: value for name, value in event["data"].items() if name not in (*INTERNAL, *OF_FILES)}
    if view is View.METADATA:
        data = without_files(data)
    kind = events.UPDATED if event["type"] in COVERED else event["type"]
    return {**event, "type": kind, "data": data}


def without_files(data: Mapping[str, Any]) -> dict[str, Any]:
    """Return the data of an event without the addresses of the dataset's files, and with the notice of a quarantine."""
    bare = {name: value for name, value in data.items() if name not in OF_FILES}
    if (document := bare.get("document")) is not None:
        bare["document"] = documents.without_files(document)
    if (quarantine := bare.get("quarantine")) is not None:
        bare["quarantine"] = {name: quarantine[name] for name in NOTICE if name in quarantine}
    return bare
