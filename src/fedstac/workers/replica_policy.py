"""The policy of a replica node while it runs: what another file changes in the catalogue is done, without a replay."""

from __future__ import annotations

import asyncio
import time
from typing import Final

import structlog

from fedstac.bootstrap import Node
from fedstac.db import connections
from fedstac.domain.groups import PolicyBroken
from fedstac.domain.replication.planning import PolicyPlan
from fedstac.replication.applying import apply_policy
from fedstac.replication.policy_file import LOOK_SECONDS, PolicyFile
from fedstac.runtime import supervision
from fedstac.runtime.wakeup import pause

PART: Final = "replica policy"
AGAIN_SECONDS: Final = 60.0  # after which all datasets are looked at again: an event may have met the older policy
POLICY_LOCK: Final = 0x666564_1A  # advisory lock: one process of a node applies a policy
UNUSABLE: Final = (
    "the replica policy file cannot be used, and the last good one counts;"
    " `fedstac replica policy check` names its faults"
)
log = structlog.get_logger()


class PolicyReload:
    """Applies the policy to the catalogue at the start, after each change of the file, and every minute."""

    def __init__(self, node: Node, policy_file: PolicyFile) -> None:
        self._node, self._policy_file = node, policy_file
        self._digest = ""  # of the policy that was applied last
        self._next_time = 0.0

    async def step(self) -> PolicyPlan | None:
        """Apply the policy if it is due. Return what it changed; None where nothing was due here."""
        policy = self._policy_file.current
        if policy.digest == self._digest and time.monotonic() < self._next_time:
            return None
        async with self._node.pool.acquire() as conn, connections.leading(conn, POLICY_LOCK) as is_leader:
            if not is_leader:
                return None
            plan = await apply_policy(conn, policy, perform=True)
        self._digest, self._next_time = policy.digest, time.monotonic() + AGAIN_SECONDS
        if plan.lines:
            changes = {f"{line.effect} by {line.rule or 'no rule'}": line.datasets for line in plan.lines}
            log.info("policy applied", digest=policy.digest[:12], looked_at=plan.looked_at, changes=changes)
        return plan


async def run(node: Node, stop: asyncio.Event, *, policy_file: PolicyFile) -> None:
    """Keep the catalogue as the policy file says until `stop`."""
    reload = PolicyReload(node, policy_file)

    async def look() -> None:
        await reload.step()
        if policy_file.alert is not None:
            raise PolicyBroken(policy_file.alert)  # so that health and notifications say it
        await pause(stop, LOOK_SECONDS)

    await supervision.keep_trying(node.parts, PART, look, stop, expected={PolicyBroken: UNUSABLE})
