"""The policy file of a replica node while the node runs: read again when it changes, the last good one kept."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Final

import structlog

from fedstac.domain.groups import PolicyBroken
from fedstac.domain.replication.policy import MAX_BYTES, ReplicaPolicy

LOOK_SECONDS: Final = 1.0  # between looks at the file
SETTING: Final = "FEDSTAC_REPLICA_POLICY"
log = structlog.get_logger()


class PolicyUnreadable(PolicyBroken):
    """There is no such policy file, or it may not be read."""


def read(path: str | Path) -> ReplicaPolicy:
    """Return the policy of a file. PolicyBroken names the file and every fault, by line, key and remedy.

    PolicyUnreadable where the file cannot be read.
    """
    try:
        with Path(path).open("rb") as file:
            content = file.read(MAX_BYTES + 1)
    except OSError as error:
        is_missing = isinstance(error, FileNotFoundError)
        reason = "no such file" if is_missing else error.strerror or type(error).__name__
        raise PolicyUnreadable(f"{path} cannot be read: {reason}; name the policy file, or set {SETTING}") from None
    try:
        return ReplicaPolicy.parse(content)
    except PolicyBroken as broken:
        raise PolicyBroken(*(f"{path}: {fault}" for fault in broken.faults)) from None


class PolicyFile:
    """The policy of a node. PolicyBroken at the start, when there is no good one yet."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self._stamp = self._now()
        self._policy = read(self.path)
        self._next_look = time.monotonic() + LOOK_SECONDS
        self.alert: str | None = None  # why the file that is there is not used

    @property
    def current(self) -> ReplicaPolicy:
        """The policy that counts: that of the file, or the last good one while the file is broken or away."""
        if time.monotonic() >= self._next_look:
            self._next_look = time.monotonic() + LOOK_SECONDS
            self.look()
        return self._policy

    def look(self) -> bool:
        """Read the file again if it has changed. Return whether there is another policy now."""
        stamp = self._now()
        if stamp == self._stamp:
            return False
        self._stamp = stamp
        try:
            policy, self.alert = read(self.path), None
        except PolicyBroken as broken:
            self.alert = (
                f"the replica policy cannot be used, and the last good one counts: {broken}; mend the file, and look at"
                " it with `fedstac replica policy check`"
            )
            log.error("the replica policy cannot be used; the last good one stays", reason=str(broken))
            return False
        is_other = policy.digest != self._policy.digest
        self._policy = policy
        log.info("replica policy read", path=str(self.path), rules=len(policy.rules), sources=len(policy.sources))
        return is_other

    def _now(self) -> tuple[int, int, int] | None:
        try:
            status = os.stat(self.path)
        except OSError:
            return None
        return status.st_mtime_ns, status.st_size, status.st_ino
