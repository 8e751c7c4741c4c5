"""Reports of dependencies on their part of a deletion: what one says, who may say it, and what it changes. Pure.

A report names the event of the mark, or the dataset. It may come late, twice, or after one that was sent later.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import datetime
from enum import StrEnum
from typing import Final
from uuid import UUID

from fedstac.domain.deletion import (
    IDENTIFIER_GUARD,
    LONGEST_TEXT,
    REPORTED,
    Deletion,
    DeletionState,
    DependencyState,
    DependencyStatus,
    state_after,
)
from fedstac.domain.errors import BadRequest, MissingPermission
from fedstac.domain.events import CrudOperation

MOST_REPORTS: Final = 1000  # of one body
LONGEST_ID, LONGEST_NAME = 650, 200  # characters
_UUID: Final = re.compile(r"[0-9a-fA-F]{8}(-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}")
_MEMBERS: Final = ("event_id", "collection", "dataset", "name", "outcome", "comment")
_CRUD_MEMBERS: Final = ("operation", "id", "ids", "collection", "event_id", "name", "comment")
_SHAPES_OF_DATA: Final = '{"reports": […]}, or {"operation": "DELETE", "id": … or "ids": […], "collection": …}'
_SHAPE: Final = "a report is {event_id | collection and dataset, name, outcome, comment}"


@dataclass(frozen=True, slots=True)
class DependencyReport:
    """How far a dependency is with its part of one deletion: ok, failed or nothing to do.

    event_id: of the event that announced the mark. None: the deletion is the open one of the dataset.
    sent_at: when it was sent, where a broker brought it; it may be of an earlier mark of the dataset then.
    """

    name: str
    outcome: DependencyState
    event_id: UUID | None = None
    collection: str = ""
    dataset: str = ""
    comment: str | None = None
    sent_at: datetime | None = None

    def as_json(self) -> dict[str, object]:
        """Return the report as `read` reads it."""
        target: dict[str, object] = (
            {"event_id": str(self.event_id)}
            if self.event_id is not None
            else {"collection": self.collection, "dataset": self.dataset}
        )
        comment = {"comment": self.comment} if self.comment is not None else {}
        return {**target, "name": self.name, "outcome": self.outcome.value, **comment}


class ReportResult(StrEnum):
    """What a report changed."""

    STORED = "stored"
    UNCHANGED = "unchanged"  # it says what is stored, or its part was done before
    TOO_LATE = "too late"  # the mark was taken back
    NOT_ASKED = "not asked"  # there is no such deletion, or it does not wait for this name


@dataclass(frozen=True, slots=True)
class ReportAnswer:
    """What became of one report. `state`: of the dependency after it; None where the report changes none."""

    report: DependencyReport
    result: ReportResult
    state: DependencyState | None = None
    detail: str | None = None

    def as_json(self) -> dict[str, object]:
        """Return the answer as the route gives it: the report without its comment, and what became of it."""
        report = {name: value for name, value in self.report.as_json().items() if name != "comment"}
        return {
            **report, "result": self.result.value, "state": self.state and self.state.value, "detail": self.detail,
        }  # fmt: skip


def read(value: object, node: str) -> tuple[DependencyReport, ...]:
    """Read the reports of a node. BadRequest names what is wrong; MissingPermission: it reports for another."""
    if not isinstance(value, list) or len(value) > MOST_REPORTS:
        raise BadRequest(f"reports is a list of at most {MOST_REPORTS}")
    return tuple(_report(entry, f"/reports/{n}", node) for n, entry in enumerate(value))


def read_event(event: object, node: str) -> tuple[DependencyReport, ...]:
    """Read the reports that a CloudEvent brings in its `data`. Errors as of `read`.

    `data` is {"reports": […]}, or a message of the format `crud`: {"operation": "DELETE", "id": … or "ids": […],
    "collection": …}. Of another operation it says nothing of a deletion, and there are no reports.
    """
    if not isinstance(event, dict) or not isinstance(data := event.get("data"), dict):
        raise BadRequest(f"send a CloudEvent whose data is {_SHAPES_OF_DATA}")
    if data.keys() == {"reports"}:
        reports = read(data["reports"], node)
    elif "operation" in data:
        reports = read(_crud_reports(data), node)
    else:
        raise BadRequest(f"/data: data is {_SHAPES_OF_DATA}")
    sent_at = _moment(event.get("time"))
    if sent_at is None and not all(each.event_id for each in reports):
        raise BadRequest("/time: an event has the time of its report, unless each report names the event of the mark")
    return tuple(replace(each, sent_at=sent_at) for each in reports)


def _crud_reports(data: Mapping[str, object]) -> list[dict[str, object]]:
    """Return the reports that a message of one operation on datasets stands for, not yet checked."""
    if not data.keys() <= set(_CRUD_MEMBERS) or ("id" in data) is ("ids" in data):
        raise BadRequest(f"/data: data is {_SHAPES_OF_DATA}; it has some of {', '.join(_CRUD_MEMBERS)}")
    if data["operation"] not in tuple(CrudOperation):  # it may be anything, and what is no text has no hash
        raise BadRequest(f"/data/operation: operation is one of {', '.join(CrudOperation)}")
    if data["operation"] != CrudOperation.DELETE:
        return []
    ids = data.get("ids", [data.get("id")])
    if not isinstance(ids, list) or len(ids) > MOST_REPORTS:
        raise BadRequest(f"/data/ids: ids is a list of at most {MOST_REPORTS}")
    more = {name: data[name] for name in ("name", "comment") if name in data}
    outcome = {"outcome": DependencyState.OK.value, **more}
    if "event_id" in data:
        if "ids" in data:
            raise BadRequest("/data/event_id: an event marks one dataset: send its id, and no ids")
        return [{"event_id": data["event_id"], **outcome}]
    return [{"collection": data.get("collection"), "dataset": id, **outcome} for id in ids]


def _moment(value: object) -> datetime | None:
    """Return the time that a text says with its zone; None where it says none.

    Of whole seconds, as Dapr writes times, the end of the second: a mark may have come just before.
    """
    try:
        moment = datetime.fromisoformat(value) if isinstance(value, str) else None
    except ValueError:
        return None
    if moment is None or moment.tzinfo is None:
        return None
    return moment if "." in str(value) else moment.replace(microsecond=999_999)


def _report(value: object, at: str, node: str) -> DependencyReport:
    if not isinstance(value, dict) or not value.keys() <= set(_MEMBERS):
        raise BadRequest(f"{at}: {_SHAPE}")
    name = value.get("name", node)
    if not isinstance(name, str) or not 0 < len(name) <= LONGEST_NAME or "\0" in name:
        raise BadRequest(f"{at}/name: name is that of a node, or <node>/<consumer>")
    if name != node and not name.startswith(f"{node}/"):
        raise MissingPermission(f"{at}/name: {node} may not report for {name}; use that node's own token")
    outcomes = {state.value: state for state in REPORTED}
    outcome, comment = value.get("outcome"), value.get("comment")
    if not isinstance(outcome, str) or outcome not in outcomes:
        raise BadRequest(f"{at}/outcome: outcome is one of {', '.join(outcomes)}")
    if comment is not None and (not isinstance(comment, str) or len(comment) > LONGEST_TEXT or "\0" in comment):
        raise BadRequest(f"{at}/comment: comment is a text of at most {LONGEST_TEXT} characters")
    if (event_id := _event_id(value, at)) is not None:
        return DependencyReport(name, outcomes[outcome], event_id, comment=comment)
    return DependencyReport(
        name, outcomes[outcome], None, _id(value, "collection", at), _id(value, "dataset", at), comment
    )


def _event_id(value: Mapping[str, object], at: str) -> UUID | None:
    """Return the event that a report names; None where it names a dataset instead."""
    if "event_id" not in value:
        return None
    event_id = value["event_id"]
    if not isinstance(event_id, str) or not _UUID.fullmatch(event_id):
        raise BadRequest(f"{at}/event_id: event_id is the id of the event that announced the mark")
    return UUID(event_id)


def _id(value: Mapping[str, object], member: str, at: str) -> str:
    text = value.get(member)
    if not isinstance(text, str) or not 0 < len(text) <= LONGEST_ID or "\0" in text:
        raise BadRequest(f"{at}/{member}: {_SHAPE}; without event_id, {member} is an id")
    return text


def judge(
    deletion: Deletion | None, status: DependencyStatus | None, report: DependencyReport, *, now: datetime
) -> tuple[ReportAnswer, DependencyStatus | None]:
    """Return what becomes of a report, and the status that it changes; None where it changes nothing.

    deletion: the one that the report is about. status: of the dependency that reports, in this deletion. A report
    after the deletion is stored: it decides nothing any more, and shows who did their part late. After the purge its
    comment is left out: no word of the dataset comes back.
    """
    if deletion is None:
        detail = "no event of this id marks a dataset" if report.event_id else "the dataset is not marked for deletion"
        return ReportAnswer(report, ReportResult.NOT_ASKED, None, detail), None
    if status is None or status.name == IDENTIFIER_GUARD:  # nobody reports for the guard: people waive it
        detail = f"the deletion {deletion.id} does not wait for {report.name}"
        return ReportAnswer(report, ReportResult.NOT_ASKED, None, detail), None
    if deletion.state is DeletionState.UNMARKED:
        return ReportAnswer(report, ReportResult.TOO_LATE, None, "the mark was taken back"), None
    if report.event_id is None and report.sent_at is not None and report.sent_at < deletion.marked_at:
        return ReportAnswer(report, ReportResult.TOO_LATE, None, "it was sent before the dataset was marked"), None
    state = state_after(status.state, report.outcome)
    comment = None if deletion.state is DeletionState.PURGED else report.comment
    is_repeat = state is status.state and (status.is_fulfilled or status.comment == comment)
    if is_repeat:
        why = None if state is report.outcome else f"it is {state.value} already"
        return ReportAnswer(report, ReportResult.UNCHANGED, state, why), None
    after = replace(status, state=state, comment=comment, reported_at=now)
    return ReportAnswer(report, ReportResult.STORED, state), after
