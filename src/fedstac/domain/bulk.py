"""Changes of many datasets at once: what is shown before, who may, and whether it is still what was shown. Pure.

A preview counts the chosen datasets in groups of the same collection, institution, state and publisher. Its digest is
over the action and every dataset with its state. The change has to carry that digest: what is done is what was shown.
"""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from enum import StrEnum
from typing import Any, Final, NamedTuple

import orjson

from fedstac.domain import retraction
from fedstac.domain.actions import quarantine
from fedstac.domain.errors import BadRequest, BulkChanged, Finding, StacInvalid, UnderQuarantine
from fedstac.domain.model import State
from fedstac.domain.policy import READING, Action, Policy, Principal, Resource
from fedstac.domain.visibility import may_see_hidden

MOST: Final = 100_000  # datasets of one change
MOST_SHOWN: Final = 10  # ids of a preview
MOST_NAMED: Final = 50  # institutions, publishers and projects of a preview; the rest is counted together
OTHERS: Final = "others"
DIGEST: Final = re.compile(r"([0-9a-f]{64})\.([0-9]{1,6})\.([0-9]{1,16})")


class BulkAction(StrEnum):
    """What can be done to many datasets in one change."""

    MARK = "mark"
    UNMARK = "unmark"
    QUARANTINE = "quarantine"
    RELEASE = "release"
    RECONCILE = "reconcile"  # a full-state load, whose datasets were chosen by comparing


RIGHTS: Final[Mapping[BulkAction, Action]] = {
    BulkAction.MARK: Action.MARK, BulkAction.UNMARK: Action.UNMARK, BulkAction.QUARANTINE: Action.QUARANTINE,
    BulkAction.RELEASE: Action.QUARANTINE,
}  # fmt: skip
MEMBERS: Final[Mapping[BulkAction, str]] = {  # that each command is made of
    BulkAction.MARK: "reason", BulkAction.QUARANTINE: "quarantine", BulkAction.RELEASE: "decision",
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class BulkWish:
    """An action for many datasets. `body` is what the command of each is made of."""

    action: BulkAction
    body: Mapping[str, Any]

    @property
    def text(self) -> str:
        """The body as JSON; the same wish has the same text."""
        return orjson.dumps(self.body, option=orjson.OPT_SORT_KEYS).decode()


def read_wish(value: Mapping[str, Any]) -> BulkWish:
    """Return the wish in {action, reason | quarantine | decision}. BadRequest or StacInvalid where it is another thing.

    Members that choose the datasets are somebody else's.
    """
    name = value.get("action")
    if not isinstance(name, str) or name not in tuple(RIGHTS):
        raise BadRequest(f"action={str(name)[:40]!r} is not one of {', '.join(RIGHTS)}")
    action = BulkAction(name)
    for other in set(MEMBERS.values()) - {MEMBERS.get(action)}:
        if other in value:
            raise BadRequest(f"`{other}` says nothing about {action}; leave it out")
    match action:
        case BulkAction.MARK:
            reason = value.get("reason")
            if reason is not None and (not isinstance(reason, str) or len(reason) > retraction.LONGEST_TEXT):
                raise BadRequest(f"reason is a text of at most {retraction.LONGEST_TEXT} characters")
            return BulkWish(action, {"reason": reason or None})
        case BulkAction.UNMARK:
            return BulkWish(action, {})
        case BulkAction.QUARANTINE:
            body = quarantine.read_quarantine(value.get("quarantine", {}))
            if "reason" not in body:
                message = "`reason` is missing; say why nobody should use the datasets for now"
                raise StacInvalid(f"the quarantine is not valid: {message}",
                                  findings=(Finding("quarantine", "/quarantine/reason", message),))  # fmt: skip
            return BulkWish(action, {"quarantine": body})
        case BulkAction.RELEASE:
            decision = {"decision": value["decision"]} if "decision" in value else {}
            return BulkWish(action, {"decision": quarantine.read_decision(decision)})
        case BulkAction.RECONCILE:
            raise BadRequest("a full-state load begins at POST /collections/{collection}/reconcile")


class GroupKey(NamedTuple):
    """What decides whether a caller may see and change the datasets of a group."""

    collection: str
    cv_version: str | None
    institution: str | None
    state: State
    is_quarantined: bool  # also where the state is marked
    is_private: bool = False


@dataclass(frozen=True, slots=True)
class DatasetGroup:
    """Datasets that are alike, counted. `digest`: over their ids and the digests of their records, in their order."""

    key: GroupKey
    publisher: str
    count: int
    with_replicas: int
    with_newer_version: int
    with_identifier: int
    changed_count: int  # since a moment that was asked about
    digest: bytes
    first_ids: tuple[str, ...]

    @property
    def resource(self) -> Resource:
        """The first of its datasets as the policy sees it."""
        return Resource(self.first_ids[0], self.key.collection, self.key.institution)


def permit(
    groups: Iterable[DatasetGroup], action: BulkAction, caller: Principal, policy: Policy, *, named: bool
) -> tuple[list[DatasetGroup], list[GroupKey]]:
    """Return the groups that the caller may change, and the keys of those that are hidden from the caller.

    What is hidden counts as never there. MissingPermission, Misdirected or UnderQuarantine names the first dataset that
    can be seen and not be changed: then nothing is. `named`: the datasets were chosen by their ids, not by a search,
    which shows nothing that is under quarantine.
    """
    groups_of_caller: list[DatasetGroup] = []
    hidden: list[GroupKey] = []
    for group in groups:
        may_quarantine = policy.may_one_of(caller, (Action.QUARANTINE,), group.resource)
        is_marked = group.key.state is State.MARKED
        is_readable = not group.key.is_private or policy.without_homes.may_one_of(caller, READING, group.resource)
        if (
            not is_readable
            or (is_marked and not may_see_hidden(policy, caller, group.resource))
            or (group.key.state is State.QUARANTINED and not named and not may_quarantine)
        ):
            hidden.append(group.key)
            continue
        policy.require(caller, RIGHTS[action], group.resource)
        if group.key.is_quarantined and not may_quarantine:
            raise UnderQuarantine(
                f"{group.first_ids[0]} is under quarantine; the administrators of this node decide about it"
            )
        groups_of_caller.append(group)
    return groups_of_caller, hidden


def is_unchanged(action: BulkAction, key: GroupKey) -> bool:
    """Tell whether an action leaves the datasets of a group as they are. Another reason of a quarantine is a change."""
    match action:
        case BulkAction.MARK:
            return key.state is State.MARKED
        case BulkAction.UNMARK:
            return key.state is not State.MARKED
        case BulkAction.QUARANTINE | BulkAction.RECONCILE:
            return False
        case BulkAction.RELEASE:
            return not key.is_quarantined


def is_refused(action: BulkAction, key: GroupKey) -> bool:
    """Tell whether an action is refused for the datasets of a group, which are marked for deletion."""
    if key.state is not State.MARKED:
        return False
    return action is BulkAction.QUARANTINE or (action is BulkAction.RELEASE and key.is_quarantined)


@dataclass(frozen=True, slots=True)
class BulkPreview:
    """What a change of many datasets would do, as of a moment.

    asked_count: of ids, how many different ones were given; None where a filter chose.
    """

    wish: BulkWish
    groups: Sequence[DatasetGroup]
    at: datetime
    asked_count: int | None = None
    warnings: tuple[Finding, ...] = field(default=())

    @property
    def total(self) -> int:
        """The number of datasets."""
        return sum(group.count for group in self.groups)

    @property
    def digest(self) -> str:
        """The digest that the change has to carry: of what is shown, then the number of datasets, and the moment."""
        entries = sorted(
            [*map(str, group.key), group.publisher, str(group.count), group.digest.hex()] for group in self.groups
        )
        content = [self.wish.action, self.wish.text, entries]
        microseconds = int(self.at.timestamp() * 1_000_000)
        return f"{hashlib.sha256(orjson.dumps(content)).hexdigest()}.{self.total}.{microseconds}"

    def as_json(self) -> dict[str, Any]:
        """Return what callers see."""
        action = self.wish.action

        def count(value: Callable[[DatasetGroup], int]) -> int:
            return sum(value(group) for group in self.groups)

        ids = sorted(id for group in self.groups for id in group.first_ids)[:MOST_SHOWN]
        missing = {} if self.asked_count is None else {"missing": max(self.asked_count - self.total, 0)}
        return {
            "action": action.value,
            "total": self.total,
            "collections": self._tally(lambda group: group.key.collection),
            "institutions": self._tally(lambda group: group.key.institution or ""),
            "publishers": self._tally(lambda group: group.publisher),
            "states": self._tally(lambda group: group.key.state.value),
            "marked": count(lambda group: group.count if group.key.state is State.MARKED else 0),
            "unchanged": count(lambda group: group.count if is_unchanged(action, group.key) else 0),
            "refused": count(lambda group: group.count if is_refused(action, group.key) else 0),
            "with_replicas": count(lambda group: group.with_replicas),
            "with_newer_version": count(lambda group: group.with_newer_version),
            "with_identifier": count(lambda group: group.with_identifier),
            **missing,
            "ids": ids,
            "digest": self.digest,
            "warnings": [finding.as_json() for finding in self.warnings],
        }

    def _tally(self, name: Callable[[DatasetGroup], str]) -> dict[str, int]:
        """Count datasets by a name, the most first; what is beyond MOST_NAMED names counts as OTHERS."""
        counts: Counter[str] = Counter()
        for group in self.groups:
            counts[name(group)] += group.count
        ordered = sorted(counts.items(), key=lambda pair: (-pair[1], pair[0]))
        rest = sum(number for _, number in ordered[MOST_NAMED:])
        return dict(ordered[:MOST_NAMED]) | ({OTHERS: rest} if rest else {})


@dataclass(frozen=True, slots=True)
class ShownDigest:
    """A digest as a caller gives it back."""

    set_digest: str
    total: int
    at: datetime

    @classmethod
    def read(cls, value: object) -> ShownDigest:
        """Read what a preview gave. BadRequest where it is none."""
        match = DIGEST.fullmatch(value) if isinstance(value, str) else None
        if match is None:
            raise BadRequest("digest is what the preview answers with; look first, then send it with the change")
        return cls(match[1], int(match[2]), datetime.fromtimestamp(int(match[3]) / 1_000_000, UTC))

    def require(self, now: BulkPreview) -> None:
        """Raise BulkChanged, with the difference by count, where the datasets are no longer those that were shown."""
        if now.digest.partition(".")[0] == self.set_digest:
            return
        changed_count = sum(group.changed_count for group in now.groups)
        raise BulkChanged(
            f"the datasets are no longer those that were shown: {self.total} then, {now.total} now, {changed_count} of"
            " these changed since; look at the preview again and send its digest",
            shown_count=self.total, count=now.total, changed_count=changed_count,
        )  # fmt: skip
