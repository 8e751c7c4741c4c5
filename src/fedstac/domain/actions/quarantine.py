"""What happens when an administrator puts a dataset under quarantine, or releases it. Nothing is erased.

Readers find it by its id alone, with a notice and without its files. Only those who may quarantine change it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Final

import orjson

from fedstac.domain import events, versions
from fedstac.domain.actions.state_change import StateChange
from fedstac.domain.actions.target import QueuedAction, Target, find, refusal_of_marked, resource_of
from fedstac.domain.errors import BadRequest, Finding, StacInvalid
from fedstac.domain.model import Decision, Lineage, Outcome, State, World
from fedstac.domain.policy import Action, Principal

QUARANTINES: Final = StateChange(Action.QUARANTINE, events.QUARANTINED, Outcome.QUARANTINED)
RELEASES: Final = StateChange(Action.QUARANTINE, events.RELEASED, Outcome.RELEASED)
TEXTS: Final = ("reason", "case", "contact")
LONGEST_TEXT, MOST_LINKS = 2000, 20


def read_quarantine(value: object) -> dict[str, Any]:
    """Return {reason, case, contact, links} as a caller gives it. BadRequest or StacInvalid where it is not so."""
    if not isinstance(value, dict) or not value.keys() <= {*TEXTS, "links"}:
        raise BadRequest(f"a quarantine is a JSON object; send {{{', '.join(TEXTS)}, links}}")
    for name in TEXTS:
        text = value.get(name)
        if name in value and (not isinstance(text, str) or not text.strip() or len(text) > LONGEST_TEXT):
            raise _invalid(name, f"`{name}` is a text of at most {LONGEST_TEXT} characters")
    links = value.get("links", [])
    is_list = isinstance(links, list) and len(links) <= MOST_LINKS
    if not is_list or not all(
        isinstance(link, str) and link.startswith(("https://", "http://", "mailto:")) and len(link) <= LONGEST_TEXT
        for link in links
    ):
        raise _invalid("links", f"`links` is a list of at most {MOST_LINKS} addresses: https://…")
    return {name: value[name] for name in (*TEXTS, "links") if name in value}


def read_decision(value: object) -> str | None:
    """Return the decision that ends a quarantine: {decision}. BadRequest where it is another thing."""
    decision = value.get("decision") if isinstance(value, dict) and value.keys() <= {"decision"} else 0
    if decision is not None and (not isinstance(decision, str) or len(decision) > LONGEST_TEXT):
        raise BadRequest(f'a release is {{"decision": "…"}}, a text of at most {LONGEST_TEXT} characters')
    return decision


def _invalid(name: str, message: str) -> StacInvalid:
    return StacInvalid(f"the quarantine is not valid: {message}",
                       findings=(Finding("quarantine", f"/{name}", message),))  # fmt: skip


@dataclass(frozen=True, slots=True)
class Quarantine:
    """Put a dataset under quarantine. `quarantine` says why, and whom to ask."""

    target: Target
    principal: Principal
    quarantine: Mapping[str, Any]
    expected: tuple[str, ...] | None = None

    @classmethod
    def read(cls, action: QueuedAction) -> Quarantine:
        """Read {"quarantine": {…}, "expected": […]}."""
        return cls(action.target, action.principal, action.body["quarantine"], action.expected)

    def decide(self, lineage: Lineage, world: World) -> Decision:
        """Hide the dataset and its files. StacInvalid without a reason. The same again changes nothing."""
        record = find(self.target, self.principal, lineage, world, self.expected, marked=True)
        world.policy.require(self.principal, Action.QUARANTINE, resource_of(record, world))
        if record.state is State.MARKED:
            raise refusal_of_marked(record, world)
        if "reason" not in self.quarantine:
            raise _invalid("reason", "`reason` is missing; say why nobody should use the dataset for now")
        text = orjson.dumps(self.quarantine, option=orjson.OPT_SORT_KEYS).decode()
        if record.quarantine == text:
            return Decision(Outcome.IDENTICAL)
        after = versions.restore(replace(record, quarantine=text), lineage)
        return QUARANTINES.decision(record, after, lineage, world, reason=self.quarantine["reason"])


@dataclass(frozen=True, slots=True)
class Release:
    """End a quarantine: every byte is as it was. `decision` says why."""

    target: Target
    principal: Principal
    reason: str | None = None
    expected: tuple[str, ...] | None = None

    @classmethod
    def read(cls, action: QueuedAction) -> Release:
        """Read {"decision": "…", "expected": […]}."""
        return cls(action.target, action.principal, action.body.get("decision"), action.expected)

    def decide(self, lineage: Lineage, world: World) -> Decision:
        """Show the dataset again as it was. Nothing changes where it is not under quarantine."""
        record = find(self.target, self.principal, lineage, world, self.expected, marked=True)
        world.policy.require(self.principal, Action.QUARANTINE, resource_of(record, world))
        if record.quarantine is None:
            return Decision(Outcome.IDENTICAL)
        if record.state is State.MARKED:
            raise refusal_of_marked(record, world)
        after = versions.restore(replace(record, quarantine=None), lineage)
        return RELEASES.decision(record, after, lineage, world, reason=self.reason)
