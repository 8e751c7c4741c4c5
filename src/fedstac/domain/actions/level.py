"""What happens to a stored dataset when its project asks for another access level: the policy file was changed."""

from __future__ import annotations

from dataclasses import dataclass

import orjson

from fedstac.domain import documents, events, policy, versions
from fedstac.domain.access import level_of
from fedstac.domain.actions.state_change import search_copy
from fedstac.domain.actions.target import Target, find, resource_of
from fedstac.domain.model import Change, Decision, Lineage, Outcome, World


@dataclass(frozen=True, slots=True)
class ApplyLevel:
    """Bring a dataset to the level that its document and its project say now. Its document stays as it is."""

    target: Target
    principal: policy.Principal

    def decide(self, lineage: Lineage, world: World) -> Decision:
        """Change the level, which may make another version the latest. Nothing changes where it is right."""
        record = find(self.target, self.principal, lineage, world, None, marked=True)
        world.policy.require(self.principal, policy.Action.UPDATE, resource_of(record, world))
        properties = orjson.loads(record.document or "{}").get("properties", {})
        level = level_of(properties).stricter(world.policy.level_of(record.collection))
        if level is record.access:
            return Decision(Outcome.IDENTICAL)
        after = versions.at_level(record, lineage, level)
        draft = search_copy(record, world) if after.is_found else None
        change = Change(events.UPDATED, record, after, draft, reason=f"the project asks for {documents.ACCESS} {level}")
        return Decision(Outcome.UPDATED, versions.changes(change, lineage, world))
