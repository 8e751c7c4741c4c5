"""What the commands of a replica node take from its settings and its policy."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from fedstac import settings as environment

if TYPE_CHECKING:
    from fedstac.domain.replication.policy import ReplicaPolicy
    from fedstac.workers.replica_verifying import Tiers


@dataclass(frozen=True, slots=True)
class ReplicaSetting:
    """The settings of a replica node and its policy as it is on disk now."""

    settings: environment.Settings
    policy: ReplicaPolicy

    @property
    def tiers(self) -> Tiers:
        """Return the folders of the node, and the addresses of its files."""
        from fedstac.replication import places
        from fedstac.workers.replica_verifying import Tiers

        return Tiers(
            places.folders_of(self.settings, self.policy),
            lambda path, tier: places.address_of(self.settings, self.policy, tier=tier, path=path),
        )


def load() -> ReplicaSetting:
    """Read the settings and the policy. Misconfigured names what is missing, PolicyBroken what is wrong."""
    from fedstac.replication import policy_file

    settings = environment.load()
    for value, variable, meaning in (
        (settings.replica_folder, "FEDSTAC_REPLICA_FOLDER", "the folder of its files"),
        (settings.replica_policy, "FEDSTAC_REPLICA_POLICY", "its policy file"),
        (settings.replica_url, "FEDSTAC_REPLICA_URL", "the address under which others find its files"),
    ):
        if not value:
            raise environment.Misconfigured(f"this is a command of a replica node: set {variable}, {meaning}")
    return ReplicaSetting(settings, policy_file.read(settings.replica_policy))
